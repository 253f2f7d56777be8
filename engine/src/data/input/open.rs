//! A file's bytes, decompressed and as UTF-8 where they are UTF-16.

use super::utf16::Utf16;
use crate::error::{During, Error, Result};
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const BUFFER: usize = 1 << 18;
/// Most memory that decompression of xz may take, in KiB: `xz -9` asks for 64 MiB, a damaged header for anything.
const XZ_MEMORY: u32 = 256 << 10;

/// How a file is compressed. All four may be several streams, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Compression {
    /// By the bytes that a file begins with.
    pub fn of(head: &[u8]) -> Self {
        let bzip2 = |head: &[u8]| {
            let [b'B', b'Z', b'h', b'1'..=b'9', block @ ..] = head else { return false };
            // The first block's mark, or that of an end without a block: text may begin with "BZh9".
            [&b"\x31\x41\x59\x26\x53\x59"[..], b"\x17\x72\x45\x38\x50\x90"]
                .iter()
                .any(|mark| mark.starts_with(&block[..block.len().min(mark.len())]))
        };
        match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // A frame, or one to be skipped, with which files in many frames begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ if bzip2(head) => Self::Bzip2,
            _ => Self::None,
        }
    }
}

/// Which characters the bytes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// With a byte order mark; big-endian or not.
    Utf16 {
        big: bool,
    },
}

/// Counts the bytes that pass.
struct Counted<'a, R>(R, &'a AtomicU64);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}

/// The bytes of the file at `path`, which messages call `name`; `bytes_read` counts those of the disk.
pub(super) fn open<'a>(
    path: &Path,
    name: &Path,
    compression: Compression,
    encoding: Encoding,
    bytes_read: &'a AtomicU64,
) -> Result<Box<dyn BufRead + 'a>> {
    let raw = File::open(path).during("cannot open the input", name)?;
    let raw = BufReader::with_capacity(BUFFER, Counted(raw, bytes_read));
    fn buffered<'a>(decoder: impl Read + 'a) -> Box<dyn BufRead + 'a> {
        Box::new(BufReader::with_capacity(BUFFER, decoder))
    }
    let bytes = match compression {
        Compression::None => Box::new(raw),
        Compression::Gzip => buffered(MultiGzDecoder::new(raw)),
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(raw).during("cannot decompress the input", name)?;
            buffered(decoder)
        }
        Compression::Bzip2 => buffered(MultiBzDecoder::new(raw)),
        Compression::Xz => buffered(XzReader::new_mem_limit(raw, true, XZ_MEMORY)),
    };
    Ok(match encoding {
        Encoding::Utf8 => bytes,
        Encoding::Utf16 { big } => buffered(Utf16::new(bytes, big)),
    })
}

/// An error while reading a file: the system's, or what a decoder says.
pub(super) fn unreadable(error: io::Error, name: &Path, compression: Compression) -> Error {
    match (error.raw_os_error(), compression) {
        (Some(_), _) => Error::Io { action: "cannot read the input", path: name.to_owned(), source: error },
        (None, Compression::None) => Error::file(name, error.to_string()),
        (None, _) => Error::file(
            name,
            format!("cannot decompress: {error}; the file is cut short or damaged, fetch it again"),
        ),
    }
}
