//! What a file holds, by its first bytes. Its name decides only what they leave open.

use super::open::Encoding;
use std::ops::Range;

/// Share of bytes that are neither UTF-8 nor printable, in percent, from which on a file is no text: more than any Latin-1.
const MOST_ODD: usize = 30;

/// What the first bytes, decompressed, are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Text(Encoding),
    Parquet,
}

/// What a file is, by its first bytes.
///
/// # Errors
/// What it is instead of text, and the remedy.
pub(super) fn content_of(head: &[u8]) -> Result<Content, String> {
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return Err("is text in UTF-32, which is not read; convert it: iconv -f UTF-32 -t UTF-8".into());
        }
        [0xff, 0xfe, ..] => return Ok(Content::Text(Encoding::Utf16 { big: false })),
        [0xfe, 0xff, ..] => return Ok(Content::Text(Encoding::Utf16 { big: true })),
        _ => {}
    }
    let odd = Odd::count(head);
    // Text holds a NUL now and then; numbers in binary hold many.
    let binary = odd.nul * 100 > head.len() || (odd.control + odd.invalid) * 100 > head.len() * MOST_ODD;
    if head.starts_with(b"PAR1") && odd.control > 0 {
        return Ok(Content::Parquet);
    }
    if let Some((name, remedy)) = named(head, binary) {
        return Err(format!("is {name}, not text; {remedy}"));
    }
    match binary {
        true => Err(odd.describe(head)),
        false => Ok(Content::Text(Encoding::Utf8)),
    }
}

/// What is text to a machine alone, as far as its beginning, in UTF-8, shows.
pub(super) fn markup(head: &[u8]) -> Option<String> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins =
        |with: &str| head.get(..with.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(with.as_bytes()));
    if begins("version https://git-lfs.github.com/spec/") {
        return Some("is a pointer of Git LFS, not the file itself; fetch it: git lfs pull".into());
    }
    let kind = match () {
        () if begins("<mediawiki") => "a MediaWiki dump in XML",
        () if begins("<!doctype html") || begins("<html") => "a page of HTML",
        () if begins("<?xml") => "XML",
        () => return None,
    };
    let remedy = if begins("<mediawiki") { " with a tool such as WikiExtractor" } else { "" };
    Some(format!(
        "is {kind}, and its markup would be trained on as text; extract the text first{remedy} (or, to train on \
         markup, put it into JSON Lines)"
    ))
}

/// Bytes that text does not hold.
#[derive(Default)]
struct Odd {
    nul: usize,
    /// NUL included.
    control: usize,
    /// In stretches that are not UTF-8.
    invalid: usize,
}

impl Odd {
    fn count(head: &[u8]) -> Self {
        let mut odd = Self::default();
        let mut chunks = head.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            let control = |&b: &u8| matches!(b, 0..=8 | 0x0e..=0x1a | 0x1c..=0x1f | 0x7f);
            odd.control += chunk.valid().bytes().filter(|b| control(b)).count();
            odd.nul += chunk.valid().bytes().filter(|&b| b == 0).count();
            // The head may end within a character.
            if chunks.peek().is_some() || chunk.invalid().len() == 1 {
                odd.invalid += chunk.invalid().len();
            }
        }
        odd
    }

    fn describe(&self, head: &[u8]) -> String {
        let nuls = |parity: usize| head.iter().skip(parity).step_by(2).filter(|&&b| b == 0).count();
        let (even, odd) = (nuls(0), nuls(1));
        let half = head.len() / 2;
        for (these, others, name) in [(odd, even, "UTF-16LE"), (even, odd, "UTF-16BE")] {
            if these * 10 > half * 3 && others * 20 < half {
                return format!(
                    "is text in {name} without a byte order mark, it seems; convert it: iconv -f {name} -t UTF-8"
                );
            }
        }
        let count = head.len();
        if self.nul > 0 {
            let nul = self.nul;
            return format!(
                "is a binary file, not text: {nul} of its first {count} bytes are NUL; remove it from the input (from text \
                 that holds some, remove them: tr -d '\\000')"
            );
        }
        if self.invalid > self.control {
            let invalid = self.invalid;
            return format!(
                "is text in another encoding than UTF-8, or no text: {invalid} of its first {count} bytes are not UTF-8; \
                 convert it (as in iconv -f GB18030 -t UTF-8) or remove it from the input"
            );
        }
        let control = self.control;
        format!(
            "is a binary file, not text: {control} of its first {count} bytes are control characters; remove it from the \
             input"
        )
    }
}

const EXTRACT: &str = "extract the text first";
const REMOVE: &str = "remove it from the input";
const UNPACK: &str = "unpack it first";
const CONVERT: &str = "write its text as JSON Lines or Parquet first";

/// Bytes at a place, and what holds them there.
type Mark = (usize, &'static [u8], &'static str, &'static str);

/// Marks with which no text begins.
const SURE: [Mark; 21] = [
    (0, b"%PDF-", "a PDF file", EXTRACT),
    (0, b"%!PS-Adobe", "PostScript", EXTRACT),
    (0, b"{\\rtf", "a document in RTF", EXTRACT),
    (0, b"\xd0\xcf\x11\xe0", "an office document", EXTRACT),
    (0, b"PK\x03\x04", "a zip archive (or an office document, or a PyTorch file)", UNPACK),
    (0, b"PK\x05\x06", "a zip archive of no files", REMOVE),
    (256, b"\0ustar", "a tar archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (0, b"\x1f\x9d", "compressed with compress", UNPACK),
    (0, b"\x5d\0\0", "compressed with lzma", UNPACK),
    (0, b"\xff\x06\0\0sNaPpY", "compressed with snappy", UNPACK),
    (0, b"\xff\xff\xff\xff", "a stream of Arrow", CONVERT),
    (0, b"Obj\x01", "an Avro file", CONVERT),
    (0, b"SQLite format 3\0", "an SQLite database", CONVERT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "sequences are taken over by launcher import hdf5"),
    (0, b"\x93NUMPY", "an array of NumPy", REMOVE),
    (0, b"\x7fELF", "a program (ELF)", REMOVE),
    (0, b"\x89PNG\r\n\x1a\n", "an image (PNG)", REMOVE),
    (0, b"\xff\xd8\xff", "an image (JPEG)", REMOVE),
];
/// Marks that may begin text too, but not with the bytes that follow in such a file.
const OF_BINARY: [Mark; 11] = [
    (0, b"LZIP", "compressed with lzip", UNPACK),
    (0, b"ARROW1", "an Arrow (Feather) file", CONVERT),
    (0, b"FEA1", "a Feather file", CONVERT),
    (0, b"PARE", "an encrypted Parquet file", CONVERT),
    (0, b"ORC", "an ORC file", CONVERT),
    (0, b"GIF8", "an image (GIF)", REMOVE),
    (8, b"WEBP", "an image (WebP)", REMOVE),
    (0, b"RIFF", "sound or video (RIFF)", REMOVE),
    (0, b"II*\0", "an image (TIFF)", REMOVE),
    (0, b"MM\0*", "an image (TIFF)", REMOVE),
    (0, b"MZ", "a program (EXE)", REMOVE),
];

/// The name of a format, and the remedy.
fn named(head: &[u8], binary: bool) -> Option<(&'static str, &'static str)> {
    let at = |place: Range<usize>| head.get(place).unwrap_or_default();
    let has = |&&(place, bytes, ..): &&Mark| at(place..place + bytes.len()) == bytes;
    if let Some(&(_, _, name, remedy)) = SURE.iter().find(has) {
        return Some((name, remedy));
    }
    if matches!(head, [0x80, 2..=5, ..]) {
        return Some(("a pickle of Python", CONVERT));
    }
    if !binary {
        return None;
    }
    if let Some(&(_, _, name, remedy)) = OF_BINARY.iter().find(has) {
        return Some((name, remedy));
    }
    let length = at(0..8).try_into().map(u64::from_le_bytes).unwrap_or_default();
    if (2..100 << 20).contains(&length) && at(8..9) == b"{" {
        return Some(("a safetensors file", REMOVE));
    }
    // The length of a TFRecord's first record is followed by its checksum.
    let checksum = at(8..12).try_into().map(u32::from_le_bytes).unwrap_or_default();
    if head.len() >= 12 && checksum == crc32c::crc32c(at(0..8)).rotate_right(15).wrapping_add(0xa282_ead8) {
        return Some(("a TFRecord file", "sequences are taken over by launcher import tfrecord"));
    }
    None
}
