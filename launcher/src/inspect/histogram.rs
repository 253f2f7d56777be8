//! Lengths of sequences, drawn.

use crate::format;
use engine::data::shards::Lengths;
use std::io::Write;

/// Most lines of a drawing.
const LINES: usize = 16;
/// Cells of the longest bar.
const WIDTH: usize = 50;

/// Draws how many sequences have which length: one line for a range of lengths, the longest bar for the most. Ranges
/// below the shortest and past the longest sequence are left out.
pub fn print(lengths: &Lengths, longest: usize, out: &mut dyn Write) -> std::io::Result<()> {
    let used = lengths.counts.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1);
    let merge = used.div_ceil(LINES).max(1);
    let counts: Vec<u64> = lengths.counts[..used].chunks(merge).map(|c| c.iter().sum()).collect();
    let step = lengths.width * merge;
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let digits = longest.to_string().len();
    let width = format::count(most).len();
    for (i, &n) in counts.iter().enumerate().skip_while(|&(_, &n)| n == 0) {
        let (from, to) = (i * step + 1, ((i + 1) * step).min(longest));
        let bar = format::bar(n as f64 / most as f64, WIDTH);
        let line = format!("  {from:>digits$}-{to:<digits$}  {:>width$}  {bar}", format::count(n));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(width: usize, counts: &[u64], longest: usize) -> String {
        let mut out = Vec::new();
        print(&Lengths { width, counts: counts.to_vec() }, longest, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_sequence_is_in_exactly_one_line() {
        assert_eq!(drawn(4, &[0, 0], 0), "");
        let (full, half) = ("█".repeat(WIDTH), "█".repeat(WIDTH / 2));
        assert_eq!(drawn(4, &[1, 2, 0], 6), format!("  1-4  1  {half}\n  5-6  2  {full}\n"));
        assert_eq!(drawn(2, &[0, 3, 0, 3], 8), format!("  3-4  3  {full}\n  5-6  0\n  7-8  3  {full}\n"));
        // 32 ranges of 16 in 16 lines, the last one cut at the longest
        let lines = drawn(16, &[3; 32], 509);
        assert_eq!(lines.lines().count(), LINES);
        assert!(lines.lines().all(|line| line.contains("  6  ")), "{lines}");
        assert!(lines.ends_with(&format!("481-509  6  {full}\n")), "{lines}");
    }
}
