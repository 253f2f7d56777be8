//! Checksums set right after a change: without that most changes would end at the checksum, and nothing behind it would be
//! tried.

use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Where a file keeps its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Nowhere.
    None,
    /// XXH3 of what follows the first line, in it: import.journal, part.json.
    FirstLine,
    /// As `checksum`, the first field of a manifest.json.
    Manifest,
    /// As the last field of a state.json, of the text with zeros in its place.
    State,
    /// In a shard's header, and in the manifest.json beside it.
    Shard,
    /// Masked CRC-32C of each record of a TFRecord file.
    Records,
    /// Masked CRC-32C of each block of a TensorFlow index.
    Blocks,
}

fn hex(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Sets the checksums of `bytes`, made of `sample`, which will lie at `path`. What is not of the format any more stays as
/// it is.
pub fn seal(seal: Seal, bytes: &mut Vec<u8>, sample: &[u8], path: &Path) {
    match seal {
        Seal::None => {}
        Seal::FirstLine => {
            if let Some(line) = bytes.iter().position(|&b| b == b'\n') {
                let sum = hex(&bytes[line + 1..]);
                bytes.splice(..line, sum.bytes());
            }
        }
        Seal::Manifest => manifest(bytes),
        Seal::State => state(bytes),
        Seal::Shard => shard(bytes, path),
        Seal::Records => records(bytes),
        Seal::Blocks => blocks(bytes, sample),
    }
}

fn manifest(bytes: &mut [u8]) {
    const PREFIX: &[u8] = b"{\n  \"checksum\": \"";
    let end = PREFIX.len() + 16;
    if bytes.starts_with(PREFIX) && bytes.len() >= end {
        let sum = hex(&bytes[end..]);
        bytes[PREFIX.len()..end].copy_from_slice(sum.as_bytes());
    }
}

fn state(bytes: &mut [u8]) {
    const ENDING: &[u8] = b"\"\n}\n";
    let Some(end) = bytes.len().checked_sub(ENDING.len()).filter(|&end| end >= 16) else { return };
    if bytes.ends_with(ENDING) {
        bytes[end - 16..end].fill(b'0');
        let sum = hex(bytes);
        bytes[end - 16..end].copy_from_slice(sum.as_bytes());
    }
}

/// Sets a shard's own checksums, and has the manifest beside it name its size and checksum.
fn shard(bytes: &mut [u8], path: &Path) {
    const HEADER: usize = 128;
    if bytes.len() < HEADER {
        return;
    }
    let body = xxh3_64(&bytes[HEADER..]);
    bytes[88..96].copy_from_slice(&body.to_le_bytes());
    let header = xxh3_64(&bytes[..HEADER - 8]);
    bytes[HEADER - 8..HEADER].copy_from_slice(&header.to_le_bytes());
    let file = path.with_file_name("manifest.json");
    let (Ok(text), Some(name)) = (std::fs::read(&file), path.file_name()) else { return };
    let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&text) else { return };
    let shards = ["train", "eval"].map(|split| format!("/{split}/shards"));
    for pointer in shards {
        let entries = json.pointer_mut(&pointer).and_then(|s| s.as_array_mut()).into_iter().flatten();
        for entry in entries.filter(|entry| entry["file"].as_str().is_some_and(|file| file == name)) {
            entry["bytes"] = bytes.len().into();
            entry["xxh3"] = format!("{header:016x}").into();
        }
    }
    // the checksum must stay the first field: it is set in the text
    let Ok(mut text) = serde_json::to_vec_pretty(&json) else { return };
    text.push(b'\n');
    manifest(&mut text);
    let _ = std::fs::write(file, text);
}

fn records(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(length) = bytes.get(at..at + 8).and_then(|l| l.try_into().ok()).map(u64::from_le_bytes) {
        let Some(crc) = bytes.get(at + 8..at + 12) else { return };
        let sum = masked(&bytes[at..at + 8]);
        if crc != sum {
            bytes[at + 8..at + 12].copy_from_slice(&sum);
        }
        let Ok(length) = usize::try_from(length) else { return };
        let Some(end) = (at + 12)
            .checked_add(length)
            .filter(|&end| bytes.len().checked_sub(4).is_some_and(|last| end <= last))
        else {
            return;
        };
        let sum = masked(&bytes[at + 12..end]);
        bytes[end..end + 4].copy_from_slice(&sum);
        at = end + 4;
    }
}

/// The blocks' ends are those of the sample, as long as nothing was moved.
fn blocks(bytes: &mut [u8], sample: &[u8]) {
    let mut start = 0;
    for end in 1..sample.len().saturating_sub(4) {
        if end > start && sample[end..end + 4] == masked(&sample[start..end]) {
            if end + 4 > bytes.len() {
                return;
            }
            let sum = masked(&bytes[start..end]);
            bytes[end..end + 4].copy_from_slice(&sum);
            start = end + 4;
        }
    }
}
