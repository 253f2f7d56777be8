//! What was chosen, and its text form.
//!
//! A line names the machine, a line each a product and what does it, and the last line is a checksum:
//!
//! ```text
//! products 2
//! machine NVIDIA H100 80GB HBM3, compute capability 9.0, …
//! linear_forward bf16 rows 16384 inputs 1024 outputs 3072 bias 1 accumulate 0 gelu none aligned 256 256 256: cublaslt 1f 0 3a0 …
//! linear_wgrad bf16 rows 16384 inputs 1024 outputs 1024 bias 0 accumulate 1 gelu none aligned 256 256 256: own 256 4
//! sum 8d0a51f3c2e97b64
//! ```
//!
//! The words after `cublaslt` are its algorithm and have no other meaning; `own` are our kernels, with columns of a tile and parts
//! of a sum; `apart` is a product without what could be fused into it, the rest by another kernel.

use super::own::Tiles;
use super::{Family, Kind, Shape, bucket};
use crate::backend::Gelu;
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt::Write;

const TITLE: &str = "products 2";
/// That of files which only knew cuBLASLt's algorithms.
const FORMER: &str = "cuBLASLt algorithms 1";

/// The products that share a pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Choice(Shape);

/// What does a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    /// An algorithm of cuBLASLt.
    Library([u64; 8]),
    /// Our kernel.
    Own(Tiles),
    /// A product as it is chosen without GELU, and GELU's kernel.
    Apart,
}

impl Pick {
    fn to_text(self) -> String {
        match self {
            Self::Library(words) => format!("cublaslt {}", words.map(|word| format!("{word:x}")).join(" ")),
            Self::Own(Tiles { columns, parts }) => format!("own {columns} {parts}"),
            Self::Apart => "apart".into(),
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let pick = match words[..] {
            ["cublaslt", ref words @ ..] => {
                let words: Option<Vec<_>> =
                    words.iter().map(|word| u64::from_str_radix(word, 16).ok()).collect();
                Self::Library(words?.try_into().ok()?)
            }
            ["own", columns, parts] => {
                Self::Own(Tiles { columns: columns.parse().ok()?, parts: parts.parse().ok()? })
            }
            ["apart"] => Self::Apart,
            _ => return None,
        };
        (pick.to_text() == text).then_some(pick)
    }
}

impl Choice {
    pub fn of(shape: &Shape) -> Self {
        Self(Shape { rows: bucket(shape.rows), ..*shape })
    }

    fn to_text(self) -> String {
        let Shape { family, kind, rows, inputs, outputs, bias, accumulate, gelu, alignment: [a, b, d] } =
            self.0;
        let (family, kind, gelu) = (family.name(), kind_name(kind), gelu_name(gelu));
        let (bias, accumulate) = (u8::from(bias), u8::from(accumulate));
        format!(
            "{family} {kind} rows {rows} inputs {inputs} outputs {outputs} bias {bias} accumulate {accumulate} gelu {gelu} \
             aligned {a} {b} {d}"
        )
    }

    fn from_text(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [family, kind, _, rows, _, inputs, _, outputs, _, bias, _, accumulate, _, gelu, _, a, b, d] =
            words[..]
        else {
            return None;
        };
        let families = [Family::Forward, Family::Dgrad, Family::Wgrad];
        let gelus = [None, Some(Gelu::Tanh), Some(Gelu::Erf)];
        let number = |text: &str| text.parse::<usize>().ok();
        let choice = Self(Shape {
            family: families.into_iter().find(|f| f.name() == family)?,
            kind: [Kind::F32, Kind::Bf16].into_iter().find(|&k| kind_name(k) == kind)?,
            rows: number(rows)?,
            inputs: number(inputs)?,
            outputs: number(outputs)?,
            bias: bias == "1",
            accumulate: accumulate == "1",
            gelu: gelus.into_iter().find(|&g| gelu_name(g) == gelu)?,
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

fn gelu_name(gelu: Option<Gelu>) -> &'static str {
    match gelu {
        None => "none",
        Some(Gelu::Tanh) => "tanh",
        Some(Gelu::Erf) => "erf",
    }
}

/// A pick for each choice.
#[derive(Default)]
pub(super) struct Choices(HashMap<Choice, Pick>);

impl Choices {
    pub fn get(&self, choice: &Choice) -> Option<Pick> {
        self.0.get(choice).copied()
    }

    pub fn insert(&mut self, choice: Choice, pick: Pick) {
        self.0.insert(choice, pick);
    }

    /// The same choices give the same text.
    pub fn to_text(&self, machine: &str) -> String {
        let line = |(choice, pick): (&Choice, &Pick)| format!("{}: {}", choice.to_text(), pick.to_text());
        let mut lines: Vec<_> = self.0.iter().map(line).collect();
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
        let damaged = || Error::Device("the file of products' algorithms is damaged".into());
        let (body, sum) = text.trim_end().rsplit_once("\nsum ").ok_or_else(damaged)?;
        let body = format!("{body}\n");
        if u64::from_str_radix(sum, 16).ok() != Some(checksum(&body)) {
            return Err(damaged());
        }
        let mut lines = body.lines();
        match lines.next() {
            Some(TITLE) => {}
            Some(FORMER) => {
                let what = format!(
                    "the file of products' algorithms is of an older version ({FORMER}; this is {TITLE})"
                );
                return Err(Error::Device(what));
            }
            _ => return Err(damaged()),
        }
        let theirs = lines.next().and_then(|line| line.strip_prefix("machine ")).ok_or_else(damaged)?;
        if theirs != machine {
            return Err(Error::Device(format!(
                "the file of products' algorithms is of another machine ({theirs}; this is {machine})"
            )));
        }
        let parse = |line: &str| {
            let (choice, pick) = line.split_once(": ")?;
            Some((Choice::from_text(choice)?, Pick::from_text(pick)?))
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
                gelu: None,
                alignment: [256, 4, 16],
            };
            let words = std::array::from_fn(|word| (u64::MAX / 7).wrapping_mul((word + i) as u64));
            choices.insert(Choice::of(&shape), Pick::Library(words));
            let shape = Shape { gelu: Some([Gelu::Tanh, Gelu::Erf][i % 2]), ..shape };
            let own = Pick::Own(Tiles { columns: 256 >> (i % 2), parts: 1 + i });
            choices.insert(Choice::of(&shape), if i == 1 { Pick::Apart } else { own });
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

    #[test]
    fn a_file_of_the_former_version_is_told_from_a_damaged_one() {
        let body = format!("{FORMER}\nmachine this\n");
        let text = format!("{body}sum {:016x}\n", checksum(&body));
        let Err(error) = Choices::from_text(&text, "this") else { panic!("was read") };
        assert!(
            error.to_string().contains("is of an older version (cuBLASLt algorithms 1; this is products 2)")
        );
    }
}
