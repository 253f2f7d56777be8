//! TFRecord: a file of records, each framed as
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | length of the record, little-endian |
//! | 4 | masked CRC-32C of these 8 bytes |
//! | length | the record |
//! | 4 | masked CRC-32C of the record |
//!
//! plain or gzip as a whole. A wrong checksum of a length ends a file: where the next record begins is not known then.

use super::example::{Example, Shape};
use super::files::InputFile;
use super::journal::Position;
use super::skipped::{Bad, BadKind, Wrong};
use crate::data::pipeline::Produced;
use crate::error::{During, Error, Result};
use crate::metrics::masked_crc;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of the length and its checksum.
const HEADER: usize = 12;
/// A longer record is none of a sequence: 65,535 tokens take a quarter of this. Decoded, a record may take fifty times its
/// bytes.
const LONGEST_RECORD: u64 = 4 << 20;
const BUFFER: usize = 1 << 18;
/// Of a block, whatever their lengths.
const MOST_RECORDS: usize = 1 << 16;

/// Some whole records of a file.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Where it begins.
    pub position: Position,
    /// Bytes of all input up to its end, as on disk.
    pub bytes_read: u64,
    pub bytes: Vec<u8>,
    pub records: Vec<Record>,
}

/// A record's bytes in its block with the checksum that they should have, or why there are none.
#[derive(Debug)]
pub(super) struct Record {
    pub number: u64,
    pub content: std::result::Result<(Range<usize>, [u8; 4]), Wrong>,
}

impl Block {
    /// The record `i` with its number in the file.
    pub fn get(&self, i: usize) -> (u64, std::result::Result<&[u8], Wrong>) {
        let Record { number, content } = &self.records[i];
        let bytes = content.as_ref().map_err(Wrong::clone).and_then(|(range, expected)| {
            let bytes = &self.bytes[range.clone()];
            let found = masked_crc(bytes);
            if found == *expected { Ok(bytes) } else { Err(checksum("the record", *expected, found)) }
        });
        (*number, bytes)
    }
}

/// Calls `emit` with the blocks of `files` from `start` on, each of at least `block_bytes` bytes or the end of a file.
pub(super) fn blocks(
    files: &[InputFile],
    start: Position,
    block_bytes: usize,
    emit: &mut dyn FnMut(Block) -> Produced,
) -> Produced {
    let mut before: u64 = files.iter().take(start.file).map(|f| f.bytes).sum();
    for (index, file) in files.iter().enumerate().skip(start.file) {
        let from = if index == start.file { start } else { Position { file: index, ..Position::default() } };
        let read = AtomicU64::new(0);
        let mut reader = Records::open(file, from, &read)?;
        loop {
            let mut block = Block { position: reader.position, ..Block::default() };
            let more = reader.fill(&mut block, block_bytes)?;
            block.bytes_read = before + read.load(Relaxed).min(file.bytes);
            if !block.records.is_empty() {
                emit(block)?;
            }
            if !more {
                break;
            }
        }
        before += file.bytes;
    }
    Ok(())
}

/// The padded lengths of the first record that has any.
///
/// # Errors
/// No such record; without `skip_bad`, a bad one before it.
pub(super) fn probe(files: &[InputFile], skip_bad: bool) -> Result<Shape> {
    let mut first = None;
    for (index, file) in files.iter().enumerate() {
        let read = AtomicU64::new(0);
        let mut reader = Records::open(file, Position { file: index, ..Position::default() }, &read)?;
        loop {
            let mut block = Block::default();
            let more = reader.fill(&mut block, 1)?;
            for i in 0..block.records.len() {
                let (number, bytes) = block.get(i);
                match bytes.and_then(|bytes| Example::parse(bytes)?.shape()) {
                    Ok(shape) => return Ok(shape),
                    Err(wrong) if skip_bad => {
                        first.get_or_insert((index, Bad::record(number, wrong)));
                    }
                    Err(wrong) => return Err(super::bad(&file.path, &Bad::record(number, wrong).message())),
                }
            }
            if !more {
                break;
            }
        }
    }
    Err(match (first, files.first()) {
        (Some((index, bad)), _) => super::bad(&files[index].path, &bad.message()),
        (None, Some(file)) => Error::file(&file.path, "no record in the input; give files of sequences"),
        (None, None) => Error::config("input", "names no file; give TFRecord files"),
    })
}

/// Reads a file's records one after another.
struct Records<'a> {
    file: &'a InputFile,
    source: Box<dyn BufRead + 'a>,
    compressed: bool,
    /// Of the next record.
    position: Position,
}

impl<'a> Records<'a> {
    fn open(file: &'a InputFile, position: Position, read: &'a AtomicU64) -> Result<Self> {
        let path = &file.path;
        let mut raw = File::open(path).during("cannot open the input", path)?;
        let mut head = Vec::with_capacity(HEADER);
        raw.by_ref().take(HEADER as u64).read_to_end(&mut head).during("cannot read the input", path)?;
        let framed = head.len() == HEADER && masked_crc(&head[..8]) == head[8..];
        let compressed = !framed && head.starts_with(&[0x1f, 0x8b]);
        let begin = if compressed { 0 } else { position.offset };
        raw.seek(SeekFrom::Start(begin)).during("cannot read the input", path)?;
        read.store(begin, Relaxed);
        let raw = BufReader::with_capacity(BUFFER, Counted(raw, read));
        let source: Box<dyn BufRead> = match compressed {
            false => Box::new(raw),
            true => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(raw))),
        };
        let mut records = Self { file, source, compressed, position };
        if compressed {
            // What lies before was read whole by an earlier import.
            io::copy(&mut records.source.by_ref().take(position.offset), &mut io::sink())
                .during("cannot decompress the input", path)?;
        }
        Ok(records)
    }

    /// Adds records until the block holds `bytes` bytes; whether the file goes on.
    fn fill(&mut self, block: &mut Block, bytes: usize) -> Result<bool> {
        while block.bytes.len() < bytes && block.records.len() < MOST_RECORDS {
            let number = self.position.record;
            let record = match self.next(block)? {
                Ok(None) => return Ok(false),
                Ok(Some(content)) => Record { number, content },
                Err(wrong) => {
                    block.records.push(Record { number, content: Err(wrong) });
                    return Ok(false);
                }
            };
            block.records.push(record);
            self.position.record += 1;
        }
        Ok(true)
    }

    /// The next record's bytes, added to the block, or what is wrong with it alone; none at the end of the file. The inner
    /// error ends the file.
    #[allow(clippy::type_complexity, reason = "the three ways in which a record ends, each used once")]
    fn next(
        &mut self,
        block: &mut Block,
    ) -> Result<std::result::Result<Option<std::result::Result<(Range<usize>, [u8; 4]), Wrong>>, Wrong>> {
        let mut header = [0; HEADER];
        match self.read(&mut header)? {
            Ok(0) => return Ok(Ok(None)),
            Ok(HEADER) => {}
            Ok(n) => return Ok(Err(self.cut_short("its length", n as u64, HEADER as u64))),
            Err(wrong) => return Ok(Err(wrong)),
        }
        let (length, stored) = header.split_at(8);
        let computed = masked_crc(length);
        if computed != stored {
            let stored = [stored[0], stored[1], stored[2], stored[3]];
            return Ok(Err(checksum("the record's length", stored, computed)));
        }
        let length = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| header[i]));
        // Whoever writes a right checksum may write any length.
        let whole = length.saturating_add(4);
        self.position.offset = self.position.offset.saturating_add(whole).saturating_add(HEADER as u64);
        if length > LONGEST_RECORD {
            let what = format!("{length} bytes, expected at most {LONGEST_RECORD} for a sequence");
            return Ok(match self.pass_over(whole)? {
                Ok(()) => Ok(Some(Err(Wrong::new(BadKind::Length, what)))),
                Err(wrong) => Err(wrong),
            });
        }
        let start = block.bytes.len();
        let whole = whole as usize;
        block.bytes.resize(start + whole, 0);
        let mut bytes = std::mem::take(&mut block.bytes);
        let outcome = self.read(&mut bytes[start..]);
        block.bytes = bytes;
        Ok(match outcome? {
            Ok(n) if n == whole => {
                let crc = [4, 3, 2, 1].map(|i| block.bytes[start + whole - i]);
                block.bytes.truncate(start + whole - 4);
                Ok(Some(Ok((start..start + whole - 4, crc))))
            }
            Ok(n) => Err(self.cut_short("its bytes and their checksum", n as u64, whole as u64)),
            Err(wrong) => Err(wrong),
        })
    }

    /// Reads up to the buffer's length or the end of the file.
    fn read(&mut self, buffer: &mut [u8]) -> Result<std::result::Result<usize, Wrong>> {
        let mut done = 0;
        while done < buffer.len() {
            match self.source.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return self.unreadable(e),
            }
        }
        Ok(Ok(done))
    }

    fn pass_over(&mut self, bytes: u64) -> Result<std::result::Result<(), Wrong>> {
        match io::copy(&mut self.source.by_ref().take(bytes), &mut io::sink()) {
            Ok(n) if n == bytes => Ok(Ok(())),
            Ok(n) => Ok(Err(self.cut_short("its bytes and their checksum", n, bytes))),
            Err(e) => self.unreadable(e),
        }
    }

    /// Damage of compressed bytes is the file's; anything else is the system's.
    fn unreadable<T>(&self, error: io::Error) -> Result<std::result::Result<T, Wrong>> {
        use ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        if self.compressed && matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) {
            let what = format!("cannot be decompressed: {error}, expected whole gzip data");
            return Ok(Err(Wrong::new(BadKind::Truncated, what)));
        }
        Err(Error::Io { action: "cannot read the input", path: self.file.path.clone(), source: error })
    }

    fn cut_short(&self, part: &str, found: u64, expected: u64) -> Wrong {
        let what = format!("the file ends {found} bytes into {part}, expected {expected}");
        Wrong::new(BadKind::Truncated, what)
    }
}

fn checksum(of: &str, stored: [u8; 4], computed: [u8; 4]) -> Wrong {
    let [stored, computed] = [stored, computed].map(u32::from_le_bytes);
    let what = format!("the checksum of {of} is {computed:08x}, expected {stored:08x}, which the file says");
    Wrong::new(BadKind::Checksum, what)
}

/// Counts the bytes that pass.
struct Counted<'a>(File, &'a AtomicU64);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}
