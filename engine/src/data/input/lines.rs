//! Lines of any length in bounded memory.

use crate::data::tokenize::floor_char_boundary;
use std::io::{BufRead, Read, Result};

/// How far back a cut looks for a space.
const LONGEST_WORD: usize = 1 << 16;

/// Reads lines, line ends included; a line longer than `limit` comes in several parts, cut between words.
pub(super) struct BoundedLines<R> {
    reader: R,
    limit: usize,
    buffer: Vec<u8>,
    /// End of the current line in `buffer`; what follows it belongs to the next.
    end: usize,
    /// Number of the current line, from 1.
    pub number: u64,
    /// Whether the current line is a part and goes on.
    pub cut: bool,
}

impl<R: BufRead> BoundedLines<R> {
    pub fn new(reader: R, limit: usize) -> Self {
        Self { reader, limit, buffer: Vec::new(), end: 0, number: 0, cut: false }
    }

    /// Goes to the next line; false at the end.
    pub fn next(&mut self) -> Result<bool> {
        self.buffer.drain(..self.end);
        let room = self.limit - self.buffer.len();
        self.reader.by_ref().take(room as u64).read_until(b'\n', &mut self.buffer)?;
        if self.number == 0 && self.buffer.starts_with(b"\xef\xbb\xbf") {
            self.buffer.drain(..3); // the byte order mark that some editors write
        }
        if !self.cut {
            self.number += 1;
        }
        // A byte order mark makes the first part 3 bytes shorter.
        self.cut = self.buffer.len() + 3 >= self.limit && !self.buffer.ends_with(b"\n");
        self.end = if self.cut { cut_word(&self.buffer) } else { self.buffer.len() };
        Ok(self.end > 0)
    }

    pub fn line(&self) -> &[u8] {
        &self.buffer[..self.end]
    }
}

/// Where to cut bytes that go on: after the last space, or before the last character if no space is near.
pub(super) fn cut_word(bytes: &[u8]) -> usize {
    let near = bytes.len().saturating_sub(LONGEST_WORD);
    match bytes[near..].iter().rposition(u8::is_ascii_whitespace) {
        Some(at) => near + at + 1,
        None => match floor_char_boundary(bytes, bytes.len().saturating_sub(1)) {
            0 => bytes.len(),
            at => at,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_come_in_parts_cut_between_words() {
        let text = "\u{feff}one two three\nfour\n\nfünffünffünf sechs";
        let mut lines = BoundedLines::new(text.as_bytes(), 12);
        let mut got = Vec::new();
        while lines.next().unwrap() {
            got.push((lines.number, std::str::from_utf8(lines.line()).unwrap().to_owned()));
        }
        let joined: String = got.iter().map(|(_, part)| part.as_str()).collect();
        assert_eq!(joined, text.trim_start_matches('\u{feff}'));
        assert!(got.iter().all(|(_, part)| part.len() <= 12));
        assert_eq!(got[0].1, "one two ");
        assert_eq!(got.last().unwrap().0, 4);
    }
}
