//! UTF-16 to UTF-8, as it is read.

use std::io::{self, BufRead, ErrorKind, Read};

/// Stands for half of a surrogate pair: a byte that UTF-8 never holds, which is counted and replaced where text is.
const INVALID: u8 = 0xff;

/// Decodes UTF-16. A byte order mark becomes that of UTF-8.
pub(super) struct Utf16<R> {
    reader: R,
    big: bool,
    /// First byte of a unit that continues in the reader's next buffer.
    odd: Option<u8>,
    /// First unit of a pair.
    high: Option<u16>,
    decoded: Vec<u8>,
    /// What is handed out of it.
    taken: usize,
}

impl<R: BufRead> Utf16<R> {
    pub fn new(reader: R, big: bool) -> Self {
        Self { reader, big, odd: None, high: None, decoded: Vec::new(), taken: 0 }
    }

    /// Decodes the reader's next buffer; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.taken = 0;
        self.decoded.clear();
        let bytes = match self.reader.fill_buf() {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(true),
            other => other?,
        };
        let count = bytes.len();
        if count == 0 {
            if self.odd.is_some() {
                let what =
                    "cut short: the last character of this UTF-16 text is half there; fetch the file again";
                return Err(io::Error::new(ErrorKind::UnexpectedEof, what));
            }
            self.decoded.extend(self.high.take().map(|_| INVALID));
            return Ok(!self.decoded.is_empty());
        }
        let mut odd = self.odd.take();
        for &byte in bytes {
            let Some(first) = odd.take() else {
                odd = Some(byte);
                continue;
            };
            let pair = [first, byte];
            let unit = if self.big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) };
            push(unit, &mut self.high, &mut self.decoded);
        }
        self.odd = odd;
        self.reader.consume(count);
        Ok(true)
    }
}

/// Appends a unit, or keeps it where it is the first of a pair.
fn push(unit: u16, high: &mut Option<u16>, decoded: &mut Vec<u8>) {
    let mut append = |units: &[u16]| match char::decode_utf16(units.iter().copied()).next() {
        Some(Ok(c)) => decoded.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        _ => decoded.push(INVALID),
    };
    match (high.take(), unit) {
        (Some(first), 0xdc00..=0xdfff) => return append(&[first, unit]),
        (Some(first), _) => append(&[first]),
        (None, _) => {}
    }
    match unit {
        0xd800..=0xdbff => *high = Some(unit),
        _ => append(&[unit]),
    }
}

impl<R: BufRead> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.decoded.len() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let n = buffer.len().min(self.decoded.len() - self.taken);
        buffer[..n].copy_from_slice(&self.decoded[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn decode(bytes: &[u8], big: bool, capacity: usize) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        Utf16::new(BufReader::with_capacity(capacity, bytes), big).read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn every_cut_of_the_buffer_gives_the_same_text() {
        let text = "\u{feff}Größe 文 \u{1f433}\u{10ffff}!";
        for big in [false, true] {
            let units = text.encode_utf16().map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() });
            let bytes = units.collect::<Vec<_>>().concat();
            for capacity in 1..9 {
                assert_eq!(decode(&bytes, big, capacity).unwrap(), text.as_bytes());
            }
            assert!(decode(&bytes[..bytes.len() - 1], big, 4).unwrap_err().to_string().contains("cut short"));
        }
    }

    #[test]
    fn half_pairs_are_bytes_that_are_no_utf8() {
        let units = [0x61, 0xd800, 0x62, 0xdc00, 0xd800, 0xd83d, 0xdc33, 0xdbff];
        let bytes = units.map(u16::to_be_bytes).concat();
        let want = [b"a\xffb\xff\xff".as_slice(), "\u{1f433}".as_bytes(), b"\xff"].concat();
        assert_eq!(decode(&bytes, true, 3).unwrap(), want);
    }
}
