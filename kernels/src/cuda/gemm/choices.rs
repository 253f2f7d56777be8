//! The algorithms that were chosen, and their text form.
//!
//! A line names the machine, a line each a product and its algorithm (which is cuBLASLt's and has no other meaning), and
//! the last line is a checksum:
//!
//! ```text
//! cuBLASLt algorithms 1
//! machine NVIDIA H100 80GB HBM3, compute capability 9.0, …
//! linear_forward bf16 rows 16384 inputs 1024 outputs 3072 bias 1 accumulate 0 aligned 256 256 256: 1f 0 3a0 …
//! sum 8d0a51f3c2e97b64
//! ```

use super::{Algorithm, Family, Kind, Shape, bucket};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt::Write;

const TITLE: &str = "cuBLASLt algorithms 1";

/// The products that share an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Choice(Shape);

impl Choice {
    pub fn of(shape: &Shape) -> Self {
        Self(Shape { rows: bucket(shape.rows), ..*shape })
    }

    fn to_text(self) -> String {
        let Shape { family, kind, rows, inputs, outputs, bias, accumulate, alignment: [a, b, d] } = self.0;
        let (family, kind) = (family.name(), kind_name(kind));
        let (bias, accumulate) = (u8::from(bias), u8::from(accumulate));
        format!(
            "{family} {kind} rows {rows} inputs {inputs} outputs {outputs} bias {bias} accumulate {accumulate} aligned {a} {b} {d}"
        )
    }

    fn from_text(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [family, kind, _, rows, _, inputs, _, outputs, _, bias, _, accumulate, _, a, b, d] = words[..]
        else {
            return None;
        };
        let families = [Family::Forward, Family::Dgrad, Family::Wgrad];
        let number = |text: &str| text.parse::<usize>().ok();
        let choice = Self(Shape {
            family: families.into_iter().find(|f| f.name() == family)?,
            kind: [Kind::F32, Kind::Bf16].into_iter().find(|&k| kind_name(k) == kind)?,
            rows: number(rows)?,
            inputs: number(inputs)?,
            outputs: number(outputs)?,
            bias: bias == "1",
            accumulate: accumulate == "1",
            alignment: [a.parse().ok()?, b.parse().ok()?, d.parse().ok()?],
        });
        (choice.to_text() == text).then_some(choice)
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::F32 => "f32",
        Kind::Bf16 => "bf16",
    }
}

/// An algorithm for each choice.
#[derive(Default)]
pub(super) struct Choices(HashMap<Choice, [u64; 8]>);

impl Choices {
    pub fn get(&self, choice: &Choice) -> Option<Algorithm> {
        self.0.get(choice).map(|&data| Algorithm { data })
    }

    pub fn insert(&mut self, choice: Choice, algorithm: Algorithm) {
        self.0.insert(choice, algorithm.data);
    }

    /// The same choices give the same text.
    pub fn to_text(&self, machine: &str) -> String {
        let mut lines: Vec<_> = self
            .0
            .iter()
            .map(|(choice, data)| {
                let data = data.map(|word| format!("{word:x}")).join(" ");
                format!("{}: {data}", choice.to_text())
            })
            .collect();
        lines.sort();
        let mut text = format!("{TITLE}\nmachine {machine}\n");
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        let sum = checksum(&text);
        let _ = writeln!(text, "sum {sum:016x}");
        text
    }

    pub fn from_text(text: &str, machine: &str) -> Result<Self> {
        let damaged = || Error::Device("the file of cuBLASLt's algorithms is damaged".into());
        let (body, sum) = text.trim_end().rsplit_once("\nsum ").ok_or_else(damaged)?;
        let body = format!("{body}\n");
        if u64::from_str_radix(sum, 16).ok() != Some(checksum(&body)) {
            return Err(damaged());
        }
        let mut lines = body.lines();
        if lines.next() != Some(TITLE) {
            return Err(damaged());
        }
        let theirs = lines.next().and_then(|line| line.strip_prefix("machine ")).ok_or_else(damaged)?;
        if theirs != machine {
            return Err(Error::Device(format!(
                "the file of cuBLASLt's algorithms is of another machine ({theirs}; this is {machine})"
            )));
        }
        let parse = |line: &str| {
            let (choice, data) = line.split_once(": ")?;
            let data: Option<Vec<_>> =
                data.split(' ').map(|word| u64::from_str_radix(word, 16).ok()).collect();
            Some((Choice::from_text(choice)?, data?.try_into().ok()?))
        };
        lines.map(parse).collect::<Option<_>>().map(Self).ok_or_else(damaged)
    }
}

/// FNV-1a of 64 bits (Fowler, Noll and Vo).
fn checksum(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Choices {
        let mut choices = Choices::default();
        for (i, family) in [Family::Forward, Family::Dgrad, Family::Wgrad].into_iter().enumerate() {
            let shape = Shape {
                family,
                kind: if i == 1 { Kind::F32 } else { Kind::Bf16 },
                rows: 100 + i,
                inputs: 30,
                outputs: 2,
                bias: i == 0,
                accumulate: i == 2,
                alignment: [256, 4, 16],
            };
            let data = std::array::from_fn(|word| (u64::MAX / 7).wrapping_mul((word + i) as u64));
            choices.insert(Choice::of(&shape), Algorithm { data });
        }
        choices
    }

    #[test]
    fn the_text_says_it_all() {
        let choices = example();
        let text = choices.to_text("this");
        let back = Choices::from_text(&text, "this").unwrap();
        assert_eq!(back.0, choices.0);
        assert_eq!(back.to_text("this"), text);
        assert_eq!(Choices::from_text(&Choices::default().to_text("a"), "a").unwrap().0.len(), 0);
    }

    #[test]
    fn what_is_damaged_or_foreign_is_refused() {
        let text = example().to_text("this");
        assert!(Choices::from_text(&text, "that").is_err());
        for cut in 0..text.len() - 1 {
            assert!(Choices::from_text(&text[..cut], "this").is_err(), "cut at {cut}");
        }
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Choices::from_text(&changed, "this").is_err(), "changed at {at}");
        }
    }
}
