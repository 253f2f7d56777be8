//! safetensors files, written and read in one pass with bounded memory, the checksum taken on the way.
//!
//! The crate `safetensors` owns the header; the data behind it are the tensors, one after another, little-endian.

use super::staging::{Digest, HashedFile};
use crate::error::{During, Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

#[cfg(target_endian = "big")]
compile_error!("tensors are read and written as they lie in memory, which must be little-endian");

/// Longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Writes f32 tensors `(name, shape, elements)` in the given order, so that the same tensors give the same bytes.
/// `info` becomes the header's `__metadata__`.
pub(super) fn write<'a>(
    path: &Path,
    info: (&str, &str),
    tensors: &[(String, &'a [usize], &'a [f32])],
) -> Result<Digest> {
    let mut offset = 0;
    let entries = tensors.iter().map(|(name, shape, data)| {
        let start = offset;
        offset += size_of_val(*data);
        let entry = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (start, offset) };
        (name.clone(), entry)
    });
    let info = HashMap::from([(info.0.to_owned(), info.1.to_owned())]);
    let refused = |what: String| Error::file(path, format!("cannot describe the tensors: {what}"));
    let header = Metadata::new(Some(info), entries.collect()).map_err(|e| refused(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| refused(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = HashedFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for (_, _, data) in tensors {
        file.write(bytemuck::cast_slice(data))?;
    }
    file.finish()
}

/// What the header says of one tensor.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    bytes: usize,
}

/// A safetensors file open for one pass: [`TensorFile::read`] or [`TensorFile::skip`] for each entry in turn.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    size: u64,
    hash: Box<Xxh3>,
    /// In the order of the data, without gaps.
    pub(super) entries: Vec<Entry>,
    next: usize,
}

impl TensorFile {
    /// Reads the header. Nothing is allocated that the file's size does not justify.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).during("cannot open", path)?;
        let size = file.metadata().during("cannot read", path)?.len();
        let damaged = |what: String| {
            Error::file(path, format!("not a whole safetensors file: {what}; fetch or export it again"))
        };
        if size < 8 {
            return Err(damaged(format!("{size} bytes are too few")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).during("cannot read", path)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER.min(size - 8) {
            return Err(damaged(format!("its header should have {header_bytes} bytes, the file has {size}")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).during("cannot read", path)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| damaged(format!("its header says {e}")))?;
        let expected = (8 + header_bytes).checked_add(metadata.data_len() as u64);
        if expected != Some(size) {
            let data = metadata.data_len();
            return Err(damaged(format!(
                "its header promises {data} bytes of tensors, the file has {size} in all"
            )));
        }
        let mut hash = Box::<Xxh3>::default();
        hash.update(&length);
        hash.update(&header);
        let entries = metadata.offset_keys().into_iter().filter_map(|name| {
            let info = metadata.info(&name)?;
            let bytes = info.data_offsets.1 - info.data_offsets.0;
            Some(Entry { dtype: info.dtype, shape: info.shape.clone(), bytes, name })
        });
        let entries = entries.collect();
        Ok(Self { path: path.to_owned(), file, size, hash, entries, next: 0 })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where each tensor's elements begin, in bytes, in the order of `entries`.
    pub(super) fn offsets(&self) -> Vec<u64> {
        let mut offset = self.size - self.data_bytes();
        let mut next = |entry: &Entry| {
            let start = offset;
            offset += entry.bytes as u64;
            start
        };
        self.entries.iter().map(&mut next).collect()
    }

    /// Bytes of all tensors together.
    pub(super) fn data_bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes as u64).sum()
    }

    fn piece(&mut self, target: &mut [u8]) -> Result<()> {
        self.file.read_exact(target).during("cannot read", &self.path)?;
        self.hash.update(target);
        Ok(())
    }

    /// Reads the next tensor, which is f32, f16 or bf16, into as many elements.
    pub(super) fn read(&mut self, target: &mut [f32]) -> Result<()> {
        let entry = self.entries[self.next].clone();
        if entry.shape.iter().product::<usize>() != target.len() {
            let (name, shape, wanted) = (entry.name, entry.shape, target.len());
            return Err(Error::file(
                &self.path,
                format!("{name} has shape {shape:?}, not {wanted} elements"),
            ));
        }
        self.next += 1;
        let half_to_f32 = match entry.dtype {
            Dtype::F32 => {
                for piece in target.chunks_mut(PIECE / 4) {
                    self.piece(bytemuck::cast_slice_mut(piece))?;
                }
                return Ok(());
            }
            Dtype::F16 => |bits| half::f16::from_bits(bits).to_f32(),
            Dtype::BF16 => |bits| half::bf16::from_bits(bits).to_f32(),
            other => return Err(Error::file(&self.path, unsupported(&entry.name, other))),
        };
        let mut buffer = vec![0u16; (PIECE / 2).min(target.len())];
        for piece in target.chunks_mut(PIECE / 2) {
            let halves = &mut buffer[..piece.len()];
            self.piece(bytemuck::cast_slice_mut(halves))?;
            for (to, &bits) in piece.iter_mut().zip(halves.iter()) {
                *to = half_to_f32(bits);
            }
        }
        Ok(())
    }

    /// Passes over the next tensor.
    pub(super) fn skip(&mut self) -> Result<()> {
        let mut left = self.entries[self.next].bytes;
        self.next += 1;
        let mut buffer = vec![0; left.min(PIECE)];
        while left > 0 {
            let n = left.min(PIECE);
            self.piece(&mut buffer[..n])?;
            left -= n;
        }
        Ok(())
    }

    /// Size and checksum of the file, once every entry was read or skipped.
    pub(super) fn digest(&self) -> Digest {
        debug_assert_eq!(self.next, self.entries.len());
        Digest::new(self.size, &self.hash)
    }
}

/// The message for a tensor whose type cannot be read.
pub(super) fn unsupported(name: &str, dtype: Dtype) -> String {
    format!("{name} is stored as {dtype:?}; F32, F16 and BF16 can be read, convert it to one of them")
}
