//! The changes that make an input of a sample.

use kernels::philox::Stream;

/// What breaks readers: the ends of integers and of their signed halves.
const EXTREMES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];
const BYTES: &[u8] =
    &[0, 1, 0x7f, 0x80, 0xff, b'\n', b'\r', b'\t', b' ', b'"', b'\\', b'{', b'[', b',', b'-', b'0', b'9'];
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "-1e-320",
    "0.5",
    "NaN",
];
const TOKENS: [&str; 14] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "1",
    "[[1]]",
    "{\"a\":{}}",
    "\u{feff}",
    "\u{1f600}",
    "''",
    "= =",
];
/// Brackets in a row: what reads them by recursion may run out of stack.
const NESTING: usize = 20_000;
/// Most bytes of an input; some changes lengthen it.
const LONGEST: usize = 16 << 20;

/// Draws, each input from a stream of its own.
pub struct Draw(Stream);

impl Draw {
    /// Of input `n` of a reader.
    pub fn new(seed: u64, reader: &str, n: u64) -> Self {
        // FNV-1a of the name
        let name = reader.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Self(Stream::new(seed, n, name))
    }

    /// Below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.0.uniform() * n as f64) as usize).min(n.saturating_sub(1))
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A range in `0..len`, short ones more often.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let at = self.below(len + 1);
        let most = self.of(&[1, 4, 16, 64, 1024, len]);
        at..(at + self.below(most + 1)).min(len)
    }
}

/// `bytes` with one to four changes; `other` is another sample of the same reader.
pub fn mutate(draw: &mut Draw, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let changes = draw.of(&[1, 1, 1, 2, 3, 4]);
    for _ in 0..changes {
        change(draw, &mut bytes, other);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn change(draw: &mut Draw, bytes: &mut Vec<u8>, other: &[u8]) {
    let len = bytes.len();
    match draw.below(16) {
        0 | 1 if len > 0 => bytes[draw.below(len)] ^= 1 << draw.below(8),
        2 | 3 if len > 0 => bytes[draw.below(len)] = draw.of(BYTES),
        4 => bytes.truncate(draw.below(len + 1)),
        5 => extend(draw, bytes),
        6 => drop(bytes.drain(draw.range(len))),
        7 => {
            let block = bytes[draw.range(len)].to_vec();
            let at = draw.below(len + 1);
            bytes.splice(at..at, block);
        }
        8 => {
            let (a, b) = (draw.range(len), draw.range(len));
            let n = a.len().min(b.len());
            (0..n).for_each(|i| bytes.swap(a.start + i, b.start + i));
        }
        9..=11 => integer(draw, bytes),
        12 => {
            // the front of this sample, the back of the other
            bytes.truncate(draw.below(len + 1));
            bytes.extend_from_slice(&other[draw.below(other.len() + 1)..]);
        }
        13 => {
            let range = draw.range(len);
            bytes[range].iter_mut().for_each(|b| *b = draw.below(256) as u8);
        }
        14 => number(draw, bytes),
        _ => token(draw, bytes),
    }
}

fn extend(draw: &mut Draw, bytes: &mut Vec<u8>) {
    let n = draw.of(&[1, 7, 100, 5000, 100_000]);
    let from = bytes.len();
    match draw.below(3) {
        0 => bytes.resize(from + n, 0),
        1 => bytes.extend((0..n).map(|_| draw.below(256) as u8)),
        _ => bytes.extend_from_within(from - n.min(from)..),
    }
}

/// An integer of 1 to 8 bytes, or a varint, set to an extreme or moved by a little. Headers and footers are hit more often.
fn integer(draw: &mut Draw, bytes: &mut [u8]) {
    let len = bytes.len();
    let width = draw.of(&[1, 2, 4, 4, 8, 8, 10]);
    if len < width {
        return;
    }
    let mut at = match draw.below(4) {
        0 => draw.below((len - width + 1).min(96)),
        1 => len - width - draw.below((len - width + 1).min(96)),
        _ => draw.below(len - width + 1),
    };
    if draw.one_in(2) {
        at -= at % width.min(8);
    }
    let field = &mut bytes[at..at + width];
    if width == 10 {
        field.fill(0xff);
        field[9] = 1;
        return;
    }
    let little = draw.below(4) > 0;
    let old = field.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let value = match draw.below(4) {
        0 => old.wrapping_add(draw.of(&[1, 2, 8, u64::MAX])),
        1 => len as u64 + draw.of(&[0, 1, u64::MAX]),
        _ => draw.of(&EXTREMES),
    };
    let value = value.to_le_bytes();
    field.copy_from_slice(&value[..width]);
    if !little {
        field.reverse();
    }
}

/// Digits replaced by another number.
fn number(draw: &mut Draw, bytes: &mut Vec<u8>) {
    let from = draw.below(bytes.len() + 1);
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|i| from + i) else { return };
    let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |i| start + i);
    bytes.splice(start..end, draw.of(&NUMBERS).bytes());
}

/// A value of another type, or brackets without end.
fn token(draw: &mut Draw, bytes: &mut Vec<u8>) {
    let at = draw.below(bytes.len() + 1);
    if draw.one_in(8) {
        let bracket = draw.of(b"[{(\"");
        bytes.splice(at..at, std::iter::repeat_n(bracket, NESTING));
        return;
    }
    // what stands between two quotes, where there are any
    let quote = |from: usize| bytes[from..].iter().position(|&b| b == b'"').map(|i| from + i);
    let string = quote(at).and_then(|start| Some(start..quote(start + 1)? + 1));
    let range = string.filter(|_| draw.one_in(2)).unwrap_or(at..at);
    bytes.splice(range, draw.of(&TOKENS).bytes());
}
