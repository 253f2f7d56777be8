//! Lengths of sequences, drawn.

use crate::format;
use std::io::Write;

/// Most lines of a drawing.
const LINES: usize = 16;
/// Cells of the longest bar.
const WIDTH: usize = 50;

/// Draws how many sequences have which length: one line for a range of lengths, the longest bar for the most.
pub fn print(lengths: &[usize], out: &mut dyn Write) -> std::io::Result<()> {
    let Some(&longest) = lengths.iter().max() else { return Ok(()) };
    let step = longest.div_ceil(LINES).max(1);
    // line i holds lengths i * step + 1 ..= (i + 1) * step; no sequence is empty
    let mut counts = vec![0u64; longest.div_ceil(step).max(1)];
    for &length in lengths {
        counts[length.max(1).div_ceil(step) - 1] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let digits = longest.to_string().len();
    let width = format::count(most).len();
    for (i, &n) in counts.iter().enumerate() {
        let (from, to) = (i * step + 1, ((i + 1) * step).min(longest));
        let bar = format::bar(n as f64 / most as f64, WIDTH);
        writeln!(out, "  {from:>digits$}-{to:<digits$}  {:>width$}  {bar}", format::count(n))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(lengths: &[usize]) -> String {
        let mut out = Vec::new();
        print(lengths, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_length_is_in_exactly_one_line() {
        assert_eq!(drawn(&[]), "");
        let full = "█".repeat(WIDTH);
        assert_eq!(drawn(&[1, 2, 2]), format!("  1-1  1  {}\n  2-2  2  {full}\n", "█".repeat(WIDTH / 2)));
        let lines = drawn(&(1..=512).collect::<Vec<_>>());
        assert_eq!(lines.lines().count(), LINES);
        assert!(lines.lines().all(|line| line.contains(" 32  ")), "{lines}");
    }
}
