//! The bytes of a shard: a header of 128 bytes, then sections, each at a multiple of 8, zeros between. All numbers are
//! little-endian.
//!
//! | section | type | length |
//! | --- | --- | --- |
//! | offsets of sequences in the tokens | u32 | sequences + 1 |
//! | start of segment B in each sequence, its length if there is none | u16 | sequences |
//! | next-sentence label, 0 or 1; with flag 1 | u8 | sequences |
//! | tokens, unmasked | u16 if the vocabulary has at most 65,536 tokens, else u32 | tokens |
//! | offsets of sequences in the masks; with flag 2 | u32 | sequences + 1 |
//! | masked positions, ascending in each sequence; with flag 2 | u16 | masks |
//! | what stands there instead; with flag 2 | as tokens | masks |

use std::ops::Range;

#[cfg(target_endian = "big")]
compile_error!("shards are read in place and little-endian");

pub(super) const MAGIC: [u8; 8] = *b"BERT-SEQ";
pub(super) const VERSION: u32 = 1;
/// Sequences carry next-sentence labels.
pub(super) const NSP: u32 = 1;
/// Sequences carry masks.
pub(super) const MASKS: u32 = 2;

/// The first 128 bytes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    /// Bytes of a token, 2 or 4.
    pub width: u32,
    pub flags: u32,
    pub max_seq_length: u32,
    pub vocab_size: u64,
    pub sequences: u64,
    pub tokens: u64,
    pub masks: u64,
    pub vocab_sha256: [u8; 32],
    /// XXH3 of all that follows the header.
    pub body_xxh3: u64,
    /// Of the whole file.
    pub file_length: u64,
    pub reserved: [u64; 2],
    /// XXH3 of the header before this field.
    pub header_xxh3: u64,
}

pub(super) const HEADER: usize = size_of::<Header>();

/// Where the sections lie in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub offsets: Range<usize>,
    pub segment_b: Range<usize>,
    pub nsp: Range<usize>,
    pub tokens: Range<usize>,
    pub mask_offsets: Range<usize>,
    pub mask_positions: Range<usize>,
    pub mask_tokens: Range<usize>,
    pub file_length: usize,
}

impl Header {
    /// Checksum of the header.
    pub fn checksum(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&bytemuck::bytes_of(self)[..HEADER - 8])
    }

    /// Where the sections lie; none if the counts are beyond any file.
    pub fn layout(&self) -> Option<Layout> {
        let mut end = HEADER;
        let mut section = |elements: u64, size: u32| {
            let start = end.checked_next_multiple_of(8)?;
            end = usize::try_from(elements).ok()?.checked_mul(size as usize)?.checked_add(start)?;
            Some(start..end)
        };
        let n = self.sequences;
        let has = |flag: u32, count: u64| if self.flags & flag != 0 { count } else { 0 };
        let all = n.checked_add(1)?;
        Some(Layout {
            offsets: section(all, 4)?,
            segment_b: section(n, 2)?,
            nsp: section(has(NSP, n), 1)?,
            tokens: section(self.tokens, self.width)?,
            mask_offsets: section(has(MASKS, all), 4)?,
            mask_positions: section(has(MASKS, self.masks), 2)?,
            mask_tokens: section(has(MASKS, self.masks), self.width)?,
            file_length: end.checked_next_multiple_of(8)?,
        })
    }
}
