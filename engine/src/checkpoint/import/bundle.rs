//! TensorFlow's checkpoints of version 2, "bundles": `PREFIX.index`, a sorted table of what each variable is and where
//! it lies, and `PREFIX.data-00000-of-00001`, the plain little-endian elements.

use super::locate::{INDEX, with_suffix};
use super::source::{Dtype, Source, Stored, Stretch, outside};
use super::wire::{Entry, Header};
use super::{sstable, tensorflow2};
use crate::checkpoint::staging::read_small;
use crate::error::{During, Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The version of the format that this reads.
const VERSION: u64 = 1;
/// More files than any checkpoint has.
const MAX_SHARDS: u64 = 10_000;

struct Shard {
    path: PathBuf,
    bytes: u64,
}

/// An open bundle.
pub(super) struct Bundle {
    index: PathBuf,
    shards: Vec<Shard>,
    entries: Vec<Entry>,
    tensors: Vec<Stored>,
    heads: Option<usize>,
}

impl Bundle {
    /// Reads the index of a prefix and looks at the size of the data files.
    pub(super) fn open(prefix: &Path) -> Result<Self> {
        let index = with_suffix(prefix, INDEX);
        let bytes = read_small(&index, sstable::LIMIT)?;
        let damaged = |what: String| {
            Error::file(&index, format!("not a whole TensorFlow index: {what}; fetch the checkpoint again"))
        };
        let mut table = sstable::read(&bytes).map_err(damaged)?.into_iter();
        let header = match table.next() {
            Some((key, value)) if key.is_empty() => Header::parse(&value).map_err(damaged)?,
            _ => return Err(damaged("its first entry is no header".to_owned())),
        };
        check_header(&index, &header)?;
        let (mut entries, mut tensors, mut heads) = (Vec::new(), Vec::new(), None);
        for (key, value) in table {
            let name = String::from_utf8_lossy(&key).into_owned();
            let entry = Entry::parse(&value).map_err(|what| damaged(format!("{name}: {what}")))?;
            let shape: Option<Vec<usize>> = entry.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
            let shape = shape.ok_or_else(|| damaged(format!("{name}: shape {:?}", entry.shape)))?;
            let (shape, told) = tensorflow2::joined(&name, shape);
            heads = heads.or(told);
            tensors.push(Stored { name, shape, dtype: dtype(entry.dtype) });
            entries.push(entry);
        }
        let shard = |number| {
            let path = with_suffix(prefix, &format!("data-{number:05}-of-{:05}", header.shards));
            let bytes = fs::metadata(&path).during("cannot read", &path)?.len();
            Ok(Shard { path, bytes })
        };
        let shards = (0..header.shards).map(shard).collect::<Result<_>>()?;
        Ok(Self { index, shards, entries, tensors, heads })
    }

    fn place(&self, number: usize) -> Result<(&Entry, &Stored, &Shard)> {
        let (entry, stored) = (&self.entries[number], &self.tensors[number]);
        match usize::try_from(entry.shard).ok().and_then(|shard| self.shards.get(shard)) {
            Some(shard) => Ok((entry, stored, shard)),
            None => Err(Error::file(
                &self.index,
                format!(
                    "{}: lies in data file {}, there are {}; fetch the checkpoint again",
                    stored.name,
                    entry.shard,
                    self.shards.len()
                ),
            )),
        }
    }
}

fn check_header(index: &Path, header: &Header) -> Result<()> {
    let refused = |what: String| Err(Error::file(index, what));
    if header.big_endian {
        return refused(
            "endianness: BIG, only LITTLE can be read; save the checkpoint on a little-endian machine"
                .to_owned(),
        );
    }
    if header.min_consumer > VERSION {
        let needed = header.min_consumer;
        return refused(format!(
            "version.min_consumer: {needed}, this program reads version {VERSION}; save the checkpoint in that format"
        ));
    }
    if header.shards == 0 || header.shards > MAX_SHARDS {
        let shards = header.shards;
        return refused(format!(
            "num_shards: {shards}, expected 1 to {MAX_SHARDS}; fetch the checkpoint again"
        ));
    }
    Ok(())
}

/// Numbers of TensorFlow's types.proto.
fn dtype(number: u64) -> Dtype {
    match number {
        1 => Dtype::F32,
        2 => Dtype::F64,
        14 => Dtype::Bf16,
        19 => Dtype::F16,
        3 => Dtype::Other("INT32".to_owned()),
        7 => Dtype::Other("STRING".to_owned()),
        9 => Dtype::Other("INT64".to_owned()),
        other => Dtype::Other(format!("type {other}")),
    }
}

impl Source for Bundle {
    fn path(&self) -> &Path {
        &self.index
    }

    fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    fn data_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    fn has_checksums(&self) -> bool {
        true
    }

    fn heads(&self) -> Option<usize> {
        self.heads
    }

    fn check(&self, number: usize) -> Result<()> {
        let (entry, stored, shard) = self.place(number)?;
        let (name, size) = (&stored.name, entry.size);
        if entry.sliced {
            return Err(Error::file(
                &self.index,
                format!(
                    "{name}: is stored in slices of a partitioned variable; save the checkpoint without partitions"
                ),
            ));
        }
        let width = stored.dtype.width().unwrap_or_default();
        let expected = stored.elements().and_then(|n| n.checked_mul(width)).map(|n| n as u64);
        if expected != Some(size) {
            let (shape, dtype) = (&stored.shape, &stored.dtype);
            return Err(Error::file(
                &self.index,
                format!(
                    "{name}: size: {size} bytes, {dtype} {shape:?} takes {}; fetch the checkpoint again",
                    expected.map_or("more than there are".to_owned(), |n| n.to_string())
                ),
            ));
        }
        match entry.offset.checked_add(size) {
            Some(end) if end <= shard.bytes => Ok(()),
            _ => Err(outside(&shard.path, name, size, entry.offset, shard.bytes)),
        }
    }

    fn read(&mut self, number: usize, unit: usize, sink: &mut dyn FnMut(&[f32])) -> Result<()> {
        let (entry, stored, shard) = self.place(number)?;
        let stretch = Stretch {
            path: &shard.path,
            dtype: &stored.dtype,
            offset: entry.offset,
            elements: stored.elements().unwrap_or_default(),
        };
        let mut file = File::open(&shard.path).during("cannot open", &shard.path)?;
        let mut crc = 0;
        stretch.read(&mut file, unit, &mut |bytes| crc = crc32c::crc32c_append(crc, bytes), sink)?;
        let (found, stored_crc) = (sstable::masked(crc), entry.crc);
        if found != stored_crc {
            return Err(Error::file(
                &shard.path,
                format!(
                    "{}: damaged: checksum {found:08x}, the index says {stored_crc:08x}; fetch the checkpoint again",
                    stored.name
                ),
            ));
        }
        Ok(())
    }
}
