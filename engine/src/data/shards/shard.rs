//! One shard, mapped, and the sequences in it. What its header says is checked when it is opened, all of it by
//! [`Shard::verify`], and each sequence when it is read: another process may have shortened the file since.

use super::format::{HEADER, Header, Layout, MAGIC, MASKS, NSP, VERSION};
use super::manifest::ShardEntry;
use crate::config::{Masking, PrepareConfig};
use crate::data::vocab::Vocab;
use crate::error::{During, Error, Result};
use crate::mapped::Mapped;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Token ids in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Tokens<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
}

impl<'a> Tokens<'a> {
    /// Number of tokens.
    #[allow(clippy::len_without_is_empty, reason = "a sequence is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::U16(t) => t.len(),
            Self::U32(t) => t.len(),
        }
    }

    /// The token at `i`; panics past the end, as a slice does.
    pub fn get(&self, i: usize) -> u32 {
        match self {
            Self::U16(t) => u32::from(t[i]),
            Self::U32(t) => t[i],
        }
    }

    /// All of them.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::U16(t) => t.iter().map(|&t| u32::from(t)).collect(),
            Self::U32(t) => t.to_vec(),
        }
    }

    /// As they lie in the shard.
    pub(super) fn bytes(&self) -> &'a [u8] {
        match self {
            Self::U16(t) => bytemuck::cast_slice(t),
            Self::U32(t) => bytemuck::cast_slice(t),
        }
    }

    fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::U16(t) => Self::U16(&t[range]),
            Self::U32(t) => Self::U32(&t[range]),
        }
    }

    fn max(self) -> u32 {
        match self {
            Self::U16(t) => u32::from(t.iter().copied().max().unwrap_or(0)),
            Self::U32(t) => t.iter().copied().max().unwrap_or(0),
        }
    }
}

/// Masks stored with a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticMask<'a> {
    /// Positions to predict, strictly ascending.
    pub positions: &'a [u16],
    /// What stands there instead of the original tokens.
    pub tokens: Tokens<'a>,
}

/// One sequence of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRef<'a> {
    /// [CLS] A [SEP] B [SEP] or [CLS] sentences [SEP], unmasked.
    pub tokens: Tokens<'a>,
    /// Where segment B begins; the sequence's length if there is none.
    pub segment_b_start: usize,
    /// 0: B follows A; 1: B is random; none without next-sentence prediction.
    pub nsp: Option<u32>,
    /// None where masks are drawn at load time.
    pub mask: Option<StaticMask<'a>>,
}

/// What every shard of a data set must agree with.
pub(crate) struct Expected {
    pub vocab_size: usize,
    pub vocab_sha256: String,
    pub max_seq_length: usize,
    pub nsp: bool,
    pub masks: bool,
}

impl Expected {
    /// Of data prepared in this way.
    pub fn new(vocab: &Vocab, options: &PrepareConfig) -> Self {
        Self {
            vocab_size: vocab.len(),
            vocab_sha256: vocab.sha256().to_owned(),
            max_seq_length: options.max_seq_length,
            nsp: options.nsp,
            masks: options.masking == Masking::Static,
        }
    }
}

#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    map: Mapped,
    header: Header,
    layout: Layout,
}

impl Shard {
    /// Maps a shard. Only its header is read, and compared with what the manifest and the file's size say.
    pub fn open(dir: &Path, entry: &ShardEntry, expected: &Expected) -> Result<Self> {
        let path = dir.join(&entry.file);
        let file = File::open(&path).during("cannot open the shard", &path)?;
        let length = file.metadata().during("cannot read the shard", &path)?.len();
        let bad = |what| damaged(&path, what);
        if length != entry.bytes || length < HEADER as u64 {
            return Err(bad(format!("has {length} bytes, the manifest says {}", entry.bytes)));
        }
        let map = Mapped::new(&file, &path)?;
        let header: Header = bytemuck::pod_read_unaligned(&map[..HEADER]);
        let layout = check_header(&header, entry, expected, map.len()).map_err(bad)?;
        map.check()?;
        Ok(Self { path, map, header, layout })
    }

    /// Reads all of it: the checksum, then every number that [`Shard::get`] relies on. A checksum says that a file is as
    /// written, not that whoever wrote it was right.
    pub fn verify(&self) -> Result<()> {
        self.map.read_ahead();
        let found = self.check_body();
        // What is cut off while it is read looks like damage, too.
        self.map.check_file()?;
        found.map_err(|what| damaged(&self.path, what))
    }

    /// Whether all that was read so far was there; see [`Mapped::check`].
    pub fn check_reads(&self) -> Result<()> {
        self.map.check()
    }

    /// Whether the file still has its length; see [`Mapped::check_file`].
    pub fn check_file(&self) -> Result<()> {
        self.map.check_file()
    }

    pub fn len(&self) -> usize {
        self.header.sequences as usize
    }

    /// The sequence `i`, with nothing in it that a reader could trip over. Panics past the end, as a slice does.
    ///
    /// # Errors
    /// The sequence is damaged: what [`Shard::verify`] says of the shard.
    pub fn get(&self, i: usize) -> Result<SequenceRef<'_>> {
        self.checked(i).or_else(|what| {
            self.verify()?;
            Err(damaged(&self.path, format!("sequence {i}: {what}")))
        })
    }

    /// The sequence `i`, whose places and values are checked first.
    fn checked(&self, i: usize) -> std::result::Result<SequenceRef<'_>, String> {
        let header = &self.header;
        let sequence = self.at(i)?;
        let (length, longest) = (sequence.tokens.len(), header.max_seq_length);
        if !(2..=longest as usize).contains(&length) {
            return Err(format!("offsets: {length} tokens, expected 2 to {longest}"));
        }
        check_ids("tokens", sequence.tokens, header.vocab_size)?;
        if let Some(mask) = &sequence.mask {
            check_ids("mask_tokens", mask.tokens, header.vocab_size)?;
        }
        check_sequence(&sequence).map(|()| sequence)
    }

    /// The sequence `i`, if its places lie in the shard. Offsets are read once: they may turn to zeros at any moment.
    fn at(&self, i: usize) -> std::result::Result<SequenceRef<'_>, String> {
        let (header, layout) = (&self.header, &self.layout);
        let range = |name: &str, section, end: u64| {
            let offsets = self.u32s(section);
            let (from, to) = (offsets[i], offsets[i + 1]);
            match from <= to && u64::from(to) <= end {
                true => Ok(from as usize..to as usize),
                false => Err(format!("{name}: goes from {from} to {to} of {end}")),
            }
        };
        let tokens = range("offsets", &layout.offsets, header.tokens)?;
        let mask = match header.flags & MASKS {
            0 => None,
            _ => {
                let masks = range("mask_offsets", &layout.mask_offsets, header.masks)?;
                Some(StaticMask {
                    positions: &self.u16s(&layout.mask_positions)[masks.clone()],
                    tokens: self.tokens(&layout.mask_tokens).slice(masks),
                })
            }
        };
        Ok(SequenceRef {
            tokens: self.tokens(&layout.tokens).slice(tokens),
            segment_b_start: usize::from(self.u16s(&layout.segment_b)[i]),
            nsp: self.map[layout.nsp.clone()].get(i).map(|&label| u32::from(label)),
            mask,
        })
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.u32s(&self.layout.offsets)
            .windows(2)
            .map(|w| w[1].wrapping_sub(w[0]) as usize)
            .max()
            .unwrap_or(0)
    }

    fn u16s(&self, section: &Range<usize>) -> &[u16] {
        bytemuck::cast_slice(&self.map[section.clone()])
    }

    fn u32s(&self, section: &Range<usize>) -> &[u32] {
        bytemuck::cast_slice(&self.map[section.clone()])
    }

    fn tokens(&self, section: &Range<usize>) -> Tokens<'_> {
        match self.header.width {
            2 => Tokens::U16(self.u16s(section)),
            _ => Tokens::U32(self.u32s(section)),
        }
    }

    fn check_body(&self) -> std::result::Result<(), String> {
        let (header, layout) = (&self.header, &self.layout);
        let checksum = xxhash_rust::xxh3::xxh3_64(&self.map[HEADER..]);
        if checksum != header.body_xxh3 {
            let want = header.body_xxh3;
            return Err(format!(
                "damaged: checksum of the sections is {checksum:016x}, the header says {want:016x}"
            ));
        }
        let lengths = 2..=u64::from(header.max_seq_length);
        check_offsets("offsets", self.u32s(&layout.offsets), header.tokens, &lengths)?;
        for (name, section) in [("tokens", &layout.tokens), ("mask_tokens", &layout.mask_tokens)] {
            check_ids(name, self.tokens(section), header.vocab_size)?;
        }
        if header.flags & MASKS != 0 {
            check_offsets(
                "mask_offsets",
                self.u32s(&layout.mask_offsets),
                header.masks,
                &(0..=lengths.end() - 1),
            )?;
        }
        for i in 0..self.len() {
            self.at(i).and_then(|s| check_sequence(&s)).map_err(|what| format!("sequence {i}: {what}"))?;
        }
        Ok(())
    }
}

fn damaged(path: &Path, what: String) -> Error {
    Error::file(path, format!("{what}; restore the file, or remove the folder and prepare the data again"))
}

fn check_header(
    header: &Header,
    entry: &ShardEntry,
    expected: &Expected,
    file_length: usize,
) -> std::result::Result<Layout, String> {
    if header.magic != MAGIC {
        return Err(format!("magic: begins with {:02x?}, a shard with {MAGIC:02x?}", header.magic));
    }
    if header.version != VERSION {
        return Err(format!("version: {}, this program reads {VERSION}", header.version));
    }
    if header.checksum() != header.header_xxh3 {
        let (got, want) = (header.checksum(), header.header_xxh3);
        return Err(format!("damaged: checksum of the header is {got:016x}, it says {want:016x}"));
    }
    if entry.xxh3 != format!("{:016x}", header.header_xxh3) {
        return Err(format!("checksum {:016x}, the manifest says {}", header.header_xxh3, entry.xxh3));
    }
    let sha256: String = header.vocab_sha256.iter().map(|b| format!("{b:02x}")).collect();
    if sha256 != expected.vocab_sha256 {
        return Err(format!(
            "was made with vocabulary {sha256}, the manifest names {}",
            expected.vocab_sha256
        ));
    }
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    let flags = flag(expected.nsp, NSP) | flag(expected.masks, MASKS);
    let width = if expected.vocab_size <= 1 << 16 { 2 } else { 4 };
    for (name, got, want) in [
        ("width", u64::from(header.width), width),
        ("flags", u64::from(header.flags), u64::from(flags)),
        ("max_seq_length", u64::from(header.max_seq_length), expected.max_seq_length as u64),
        ("vocab_size", header.vocab_size, expected.vocab_size as u64),
        ("sequences", header.sequences, entry.sequences),
        ("tokens", header.tokens, entry.tokens),
        ("file_length", header.file_length, file_length as u64),
        ("reserved", header.reserved[0] | header.reserved[1], 0),
    ] {
        if got != want {
            return Err(format!("{name}: {got}, expected {want}"));
        }
    }
    let layout = header.layout().filter(|layout| layout.file_length == file_length);
    layout.ok_or_else(|| {
        let Header { sequences, tokens, masks, .. } = header;
        format!("{sequences} sequences, {tokens} tokens and {masks} masks do not make {file_length} bytes")
    })
}

fn check_ids(name: &str, tokens: Tokens<'_>, vocab_size: u64) -> std::result::Result<(), String> {
    let max = tokens.max();
    match u64::from(max) < vocab_size {
        true => Ok(()),
        false => Err(format!("{name}: id {max} is beyond the vocabulary of {vocab_size} tokens")),
    }
}

fn check_offsets(
    name: &str,
    offsets: &[u32],
    end: u64,
    lengths: &std::ops::RangeInclusive<u64>,
) -> std::result::Result<(), String> {
    let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
    if first != 0 || u64::from(last) != end {
        return Err(format!("{name}: from {first} to {last}, expected 0 to {end}"));
    }
    for (i, pair) in offsets.windows(2).enumerate() {
        let length = u64::from(pair[1]).wrapping_sub(u64::from(pair[0]));
        if !lengths.contains(&length) {
            let (min, max) = (lengths.start(), lengths.end());
            return Err(format!(
                "{name}: sequence {i} goes from {} to {}, expected {min} to {max} long",
                pair[0], pair[1]
            ));
        }
    }
    Ok(())
}

fn check_sequence(sequence: &SequenceRef<'_>) -> std::result::Result<(), String> {
    let (length, b) = (sequence.tokens.len(), sequence.segment_b_start);
    let fits = match sequence.nsp {
        Some(label) if label > 1 => return Err(format!("next-sentence label {label}, expected 0 or 1")),
        Some(_) => (2..length).contains(&b),
        // imported pairs may come without labels
        None => (2..=length).contains(&b),
    };
    if !fits {
        return Err(format!("segment B starts at {b} of {length} tokens"));
    }
    if let Some(mask) = &sequence.mask {
        let ascending = mask.positions.windows(2).all(|w| w[0] < w[1]);
        let last = mask.positions.last().map_or(0, |&p| usize::from(p));
        if !ascending || last >= length {
            return Err(format!("masked positions not ascending below {length}: {:?}", mask.positions));
        }
    }
    Ok(())
}
