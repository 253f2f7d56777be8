//! Sorted tables in LevelDB's format, which TensorFlow uses for the index of a checkpoint.
//!
//! ```text
//! file    data blocks | metaindex block | index block | footer
//! footer  handle of the metaindex, handle of the index, padding to 40 bytes, magic (8 bytes)
//! handle  varint offset, varint size
//! block   entries | offset of each restart (4 bytes each) | number of restarts (4 bytes)
//!         then a trailer outside of the size: type (0 plain, 1 Snappy), masked CRC-32C of block and type (4 bytes)
//! entry   varint bytes shared with the key before, varint other bytes, varint bytes of the value, other bytes, value
//! ```
//!
//! An entry's value in the index block is the handle of a data block. All numbers are little-endian. Source: the
//! description of the table format in LevelDB's documentation.

use super::wire::varint;
use std::ops::Range;

/// The largest file that is read as an index.
pub(super) const LIMIT: u64 = 1 << 24;
/// Longest key; prefixes are shared, so that keys take more memory than they have bytes in the file.
const MAX_KEY: usize = 4096;
/// Most bytes of all keys and values together.
const MAX_TOTAL: usize = 1 << 26;
/// Most entries, each of which takes some hundred bytes besides: a BERT-large with an optimizer has 1,200.
const MAX_ENTRIES: usize = 1 << 18;
const FOOTER: usize = 48;
const MAGIC: u64 = 0xdb47_7524_8b80_fb57;
/// Type and checksum behind each block.
const TRAILER: usize = 5;

/// Key and value of each entry, in the table's order.
pub(super) type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// TensorFlow and LevelDB store checksums rotated and shifted, so that a checksum of data that hold a checksum stays a
/// good one.
pub(super) fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Reads a whole table. Keys are strictly ascending.
///
/// # Errors
/// One line that says what is wrong and where.
pub(super) fn read(file: &[u8]) -> Result<Entries, String> {
    let Some((body, footer)) = file.split_last_chunk::<FOOTER>() else {
        return Err(format!("{} bytes are too few for a table's footer of {FOOTER}", file.len()));
    };
    let (handles, magic) = footer.split_at(FOOTER - 8);
    let magic = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| magic[i]));
    if magic != MAGIC {
        return Err(format!("its last 8 bytes are {magic:#018x}, a table's are {MAGIC:#018x}"));
    }
    let mut handles = handles;
    let _metaindex = handle(&mut handles)?;
    let index = block(body, handle(&mut handles)?)?;

    let mut entries = Entries::new();
    let (mut total, mut end) = (0, 0);
    each_entry(&index, |_, value| {
        let mut value = value;
        let place = handle(&mut value)?;
        // Blocks that overlap would let a small file ask for any amount of memory.
        if place.start < end {
            return Err(format!("a block starts at byte {}, inside of the one before", place.start));
        }
        end = place.end;
        each_entry(&block(body, place)?, |key, value| {
            if let Some((last, _)) = entries.last().filter(|(last, _)| last.as_slice() >= key) {
                let (last, key) = (String::from_utf8_lossy(last), String::from_utf8_lossy(key));
                return Err(format!("key {key:?} follows {last:?}: not in order"));
            }
            total += key.len() + value.len();
            if total > MAX_TOTAL {
                return Err(format!("its entries take more than {MAX_TOTAL} bytes"));
            }
            if entries.len() == MAX_ENTRIES {
                return Err(format!("it has more than {MAX_ENTRIES} entries"));
            }
            entries.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
    })?;
    Ok(entries)
}

/// Takes a block's place from the front of `bytes`.
fn handle(bytes: &mut &[u8]) -> Result<Range<usize>, String> {
    let offset = varint(bytes).ok_or("a block's offset is no number")?;
    let size = varint(bytes).ok_or("a block's size is no number")?;
    let place = || {
        let start = usize::try_from(offset).ok()?;
        Some(start..start.checked_add(usize::try_from(size).ok()?)?)
    };
    place().ok_or_else(|| format!("a block of {size} bytes at byte {offset} is impossible"))
}

/// The content of a block, its checksum verified.
fn block(body: &[u8], place: Range<usize>) -> Result<Vec<u8>, String> {
    let start = place.start;
    let whole = place.end.checked_add(TRAILER).and_then(|end| body.get(start..end));
    let Some((checked, crc)) = whole.and_then(|whole| whole.split_last_chunk::<4>()) else {
        let (size, file) = (place.len(), body.len() + FOOTER);
        return Err(format!(
            "a block of {size} bytes at byte {start} lies outside of the file's {file} bytes"
        ));
    };
    let (stored, found) = (u32::from_le_bytes(*crc), masked(crc32c::crc32c(checked)));
    if stored != found {
        return Err(format!("the block at byte {start} has checksum {found:08x}, {stored:08x} is stored"));
    }
    match checked.split_last() {
        Some((0, content)) => Ok(content.to_vec()),
        Some((1, content)) => decompress(content, start),
        other => {
            let kind = other.map_or(0, |(kind, _)| *kind);
            Err(format!(
                "the block at byte {start} has compression {kind}; none (0) and Snappy (1) are known"
            ))
        }
    }
}

fn decompress(content: &[u8], start: usize) -> Result<Vec<u8>, String> {
    let bad = |e: snap::Error| format!("the block at byte {start} is not Snappy: {e}");
    let size = snap::raw::decompress_len(content).map_err(bad)?;
    // A copy of 64 bytes takes 3, so no block grows more than that.
    if size > 22 * content.len() + 64 {
        return Err(format!("the block at byte {start} says {size} bytes, {} are stored", content.len()));
    }
    snap::raw::Decoder::new().decompress_vec(content).map_err(bad)
}

/// Calls `visit` with each key and value of a block.
fn each_entry(block: &[u8], mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), String>) -> Result<(), String> {
    let short = || format!("a block of {} bytes is too short for its restarts", block.len());
    let (rest, count) = block.split_last_chunk::<4>().ok_or_else(short)?;
    let restarts = u32::from_le_bytes(*count) as usize;
    let end = restarts.checked_mul(4).and_then(|bytes| rest.len().checked_sub(bytes)).ok_or_else(short)?;
    let (mut rest, mut key) = (&rest[..end], Vec::new());
    while !rest.is_empty() {
        let at = end - rest.len();
        let cut = || format!("the entry at byte {at} of a block of {} is cut short", block.len());
        let mut length = || varint(&mut rest).and_then(|n| usize::try_from(n).ok()).ok_or_else(cut);
        let (shared, fresh, value) = (length()?, length()?, length()?);
        if shared > key.len() || fresh > MAX_KEY || shared + fresh > MAX_KEY {
            return Err(format!(
                "the entry at byte {at} of a block shares {shared} of {} bytes and adds {fresh}; keys have at most \
                 {MAX_KEY}",
                key.len()
            ));
        }
        let (suffix, tail) = rest.split_at_checked(fresh).ok_or_else(cut)?;
        let (value, tail) = tail.split_at_checked(value).ok_or_else(cut)?;
        key.truncate(shared);
        key.extend_from_slice(suffix);
        visit(&key, value)?;
        rest = tail;
    }
    Ok(())
}
