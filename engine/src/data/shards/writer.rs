//! Writes shards.

use super::SequenceRef;
use super::format::{HEADER, Header, MAGIC, MASKS, NSP, VERSION};
use super::manifest::{Lengths, ShardEntry, SplitManifest};
use crate::data::vocab::Vocab;
use crate::error::{During, Result};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A shard is closed before it would become larger.
const SHARD_BYTES: usize = 64 << 20;

/// Sequences by column, as a shard stores them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns {
    /// Bytes of a token, 2 or 4.
    width: usize,
    lengths: Vec<u16>,
    segment_b: Vec<u16>,
    nsp: Vec<u8>,
    tokens: Vec<u8>,
    mask_counts: Vec<u16>,
    mask_positions: Vec<u16>,
    mask_tokens: Vec<u8>,
}

impl Columns {
    /// For a vocabulary of this size.
    pub fn new(vocab_size: usize) -> Self {
        Self { width: if vocab_size <= 1 << 16 { 2 } else { 4 }, ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.tokens.len() / self.width
    }

    /// Adds a sequence. Lengths and positions fit u16: `max_seq_length` does.
    pub fn push(&mut self, tokens: &[u32], segment_b: usize, nsp: Option<bool>) {
        self.lengths.push(tokens.len() as u16);
        self.segment_b.push(segment_b as u16);
        self.nsp.extend(nsp.map(u8::from));
        tokens.iter().for_each(|&t| push_token(&mut self.tokens, t, self.width));
    }

    /// Adds a masked position to the sequence added last; [`Columns::end_mask`] follows.
    pub fn push_mask(&mut self, position: usize, token: u32) {
        self.mask_positions.push(position as u16);
        push_token(&mut self.mask_tokens, token, self.width);
    }

    /// Ends the mask of a sequence.
    pub fn end_mask(&mut self, count: usize) {
        self.mask_counts.push(count as u16);
    }

    /// Adds a sequence of a shard whose vocabulary is this one's, with its mask.
    pub(super) fn push_stored(&mut self, sequence: &SequenceRef<'_>) {
        self.lengths.push(sequence.tokens.len() as u16);
        self.segment_b.push(sequence.segment_b_start as u16);
        self.nsp.extend(sequence.nsp.map(|label| label as u8));
        self.tokens.extend_from_slice(sequence.tokens.bytes());
        if let Some(mask) = &sequence.mask {
            self.mask_counts.push(mask.positions.len() as u16);
            self.mask_positions.extend_from_slice(mask.positions);
            self.mask_tokens.extend_from_slice(mask.tokens.bytes());
        }
    }

    fn append(&mut self, other: &Self, sequences: Range<usize>, tokens: Range<usize>, masks: Range<usize>) {
        let width = self.width;
        let bytes = |r: &Range<usize>| r.start * width..r.end * width;
        self.lengths.extend_from_slice(&other.lengths[sequences.clone()]);
        self.segment_b.extend_from_slice(&other.segment_b[sequences.clone()]);
        if !other.nsp.is_empty() {
            self.nsp.extend_from_slice(&other.nsp[sequences.clone()]);
        }
        self.tokens.extend_from_slice(&other.tokens[bytes(&tokens)]);
        if !other.mask_counts.is_empty() {
            self.mask_counts.extend_from_slice(&other.mask_counts[sequences]);
            self.mask_positions.extend_from_slice(&other.mask_positions[masks.clone()]);
            self.mask_tokens.extend_from_slice(&other.mask_tokens[bytes(&masks)]);
        }
    }

    /// Sequences, tokens and masks before the sequence `first`, or all if there are no more.
    fn start_of(&self, first: usize) -> (usize, usize, usize) {
        let first = first.min(self.len());
        let sum = |counts: &[u16]| counts.iter().take(first).map(|&n| usize::from(n)).sum();
        (first, sum(&self.lengths), sum(&self.mask_counts))
    }

    /// Bytes of a sequence of `tokens` tokens and `masks` masks in a shard, nearly.
    fn cost(&self, tokens: usize, masks: usize) -> usize {
        tokens * self.width + masks * (self.width + 2) + 11
    }

    /// Removes all sequences.
    pub fn clear(&mut self) {
        *self = Self { width: self.width, ..Self::default() };
    }
}

fn push_token(bytes: &mut Vec<u8>, token: u32, width: usize) {
    bytes.extend_from_slice(&token.to_le_bytes()[..width]);
}

/// Writes the shards of one split, in the order given.
pub(crate) struct SplitWriter<'a> {
    dir: &'a Path,
    name: &'static str,
    header: Header,
    open: Columns,
    bytes: usize,
    shard_bytes: usize,
    manifest: SplitManifest,
}

impl<'a> SplitWriter<'a> {
    /// Shards `dir/name-00000.shard` on.
    pub fn new(
        dir: &'a Path,
        name: &'static str,
        vocab: &Vocab,
        max_seq_length: usize,
        nsp: bool,
        masks: bool,
    ) -> Self {
        let open = Columns::new(vocab.len());
        let mut vocab_sha256 = [0; 32];
        for (byte, hex) in vocab_sha256.iter_mut().zip(vocab.sha256().as_bytes().chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
            *byte = digit(hex[0]) << 4 | digit(hex[1]);
        }
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            width: open.width as u32,
            flags: if nsp { NSP } else { 0 } | if masks { MASKS } else { 0 },
            max_seq_length: max_seq_length as u32,
            vocab_size: vocab.len() as u64,
            vocab_sha256,
            ..bytemuck::Zeroable::zeroed()
        };
        let (lengths, random_next) = (Lengths::new(max_seq_length), nsp.then_some(0));
        let manifest = SplitManifest { lengths, random_next, ..SplitManifest::default() };
        Self { dir, name, header, open, bytes: 0, shard_bytes: SHARD_BYTES, manifest }
    }

    /// Closes shards at another size.
    pub fn with_shard_bytes(mut self, bytes: usize) -> Self {
        self.shard_bytes = bytes;
        self
    }

    /// Goes on behind shards that were closed before, as `on_close` of [`SplitWriter::append_from`] got them.
    pub fn behind(mut self, closed: SplitManifest) -> Self {
        self.manifest = closed;
        self
    }

    /// Adds sequences.
    pub fn append(&mut self, columns: &Columns, documents: u64) -> Result<()> {
        self.manifest.documents += documents;
        self.append_from(columns, 0, &mut |_| Ok(()))
    }

    /// Adds the sequences from number `first` on; calls `on_close` whenever a shard was closed, when nothing is pending.
    pub fn append_from(
        &mut self,
        columns: &Columns,
        first: usize,
        on_close: &mut dyn FnMut(&SplitManifest) -> Result<()>,
    ) -> Result<()> {
        let (mut sequence, mut tokens, mut masks) = columns.start_of(first);
        let (mut to, mut tokens_to, mut masks_to) = (sequence, tokens, masks);
        while to < columns.len() {
            let length = usize::from(columns.lengths[to]);
            let count = columns.mask_counts.get(to).map_or(0, |&n| usize::from(n));
            let cost = columns.cost(length, count);
            if self.bytes > 0 && self.bytes + cost > self.shard_bytes {
                self.open.append(columns, sequence..to, tokens..tokens_to, masks..masks_to);
                (sequence, tokens, masks) = (to, tokens_to, masks_to);
                self.close()?;
                on_close(&self.manifest)?;
            }
            self.bytes += cost;
            self.manifest.lengths.add(length);
            self.manifest.longest = self.manifest.longest.max(length);
            (to, tokens_to, masks_to) = (to + 1, tokens_to + length, masks_to + count);
        }
        self.open.append(columns, sequence..to, tokens..tokens_to, masks..masks_to);
        Ok(())
    }

    /// Closes the last shard.
    pub fn finish(mut self) -> Result<SplitManifest> {
        if self.open.len() > 0 {
            self.close()?;
        }
        Ok(self.manifest)
    }

    fn close(&mut self) -> Result<()> {
        let file = format!("{}-{:05}.shard", self.name, self.manifest.shards.len());
        let mut header = self.header;
        header.sequences = self.open.len() as u64;
        header.tokens = self.open.tokens() as u64;
        header.masks = self.open.mask_positions.len() as u64;
        write_shard(self.dir.join(&file), &mut header, &self.open)?;
        self.manifest.sequences += header.sequences;
        self.manifest.tokens += header.tokens;
        if let Some(random) = &mut self.manifest.random_next {
            *random += self.open.nsp.iter().map(|&label| u64::from(label)).sum::<u64>();
        }
        self.manifest.shards.push(ShardEntry {
            file,
            sequences: header.sequences,
            tokens: header.tokens,
            bytes: header.file_length,
            xxh3: format!("{:016x}", header.header_xxh3),
        });
        self.open.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// Fills in the header's checksums and writes the file.
fn write_shard(path: PathBuf, header: &mut Header, columns: &Columns) -> Result<()> {
    let offsets = |lengths: &[u16]| {
        let mut end = 0u32;
        let ends = lengths.iter().map(|&n| {
            end += u32::from(n);
            end
        });
        std::iter::once(0).chain(ends).collect::<Vec<u32>>()
    };
    let (starts, mask_starts) = (offsets(&columns.lengths), offsets(&columns.mask_counts));
    let mut sections: Vec<&[u8]> = vec![
        bytemuck::cast_slice(&starts),
        bytemuck::cast_slice(&columns.segment_b),
        &columns.nsp,
        &columns.tokens,
    ];
    if header.flags & MASKS != 0 {
        sections.extend([
            bytemuck::cast_slice::<u32, u8>(&mask_starts),
            bytemuck::cast_slice(&columns.mask_positions),
            &columns.mask_tokens,
        ]);
    }
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut length = HEADER;
    let padding = |section: &[u8]| &[0u8; 8][..section.len().next_multiple_of(8) - section.len()];
    for section in &sections {
        hash.update(section);
        hash.update(padding(section));
        length += section.len().next_multiple_of(8);
    }
    header.body_xxh3 = hash.digest();
    header.file_length = length as u64;
    header.header_xxh3 = header.checksum();

    let mut file = File::create(&path).during("cannot create", &path)?;
    let mut write = |bytes: &[u8]| file.write_all(bytes).during("cannot write", &path);
    write(bytemuck::bytes_of(header))?;
    for section in sections {
        write(section)?;
        write(padding(section))?;
    }
    file.sync_all().during("cannot write", &path)
}
