//! PyTorch's files, `.bin` and `.pt`, as `torch.save` writes them, read without running anything: the zip archive of
//! today and the stream of pickles of PyTorch before 1.6.

mod archive;
mod legacy;

use super::names::{Role, pytorch};
use super::pickle::{Object, Pickle, Tensor, Value};
use super::source::{Dtype, Source, Stored, Stretch, outside};
use crate::error::{During, Error, Result};
use crate::files::check_regular;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The longest pickle that is read: 100 times that of a BERT-large.
pub(super) const PICKLE_LIMIT: usize = 1 << 24;
/// Under what programs put a model's weights beside other things.
const WRAPPERS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];
/// Wrappers within wrappers that are looked into.
const MAX_DEPTH: usize = 3;

/// Where a storage's bytes lie.
#[derive(Debug, Clone, Copy)]
struct Region {
    offset: u64,
    bytes: u64,
    /// Checksum that is still to be verified.
    crc32: Option<u32>,
}

/// A tensor within a storage.
struct Located {
    storage: String,
    /// Elements before the first, from the storage's start.
    offset: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// An open file.
pub(super) struct TorchFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    has_checksums: bool,
    storages: HashMap<String, Region>,
    located: Vec<Located>,
    tensors: Vec<Stored>,
}

/// The tensors of a file, without their elements.
type Named = Vec<(Stored, Located)>;

impl TorchFile {
    /// Reads what the file holds.
    pub(super) fn open(path: &Path) -> Result<Self> {
        check_regular(path)?;
        let mut file = File::open(path).during("cannot open", path)?;
        let metadata = file.metadata().during("cannot read", path)?;
        if metadata.is_dir() {
            return Err(Error::file(path, "is a folder, not a file of weights; name one"));
        }
        let bytes = metadata.len();
        let mut start = [0; 4];
        let have = file.read(&mut start).during("cannot read", path)?;
        file.seek(SeekFrom::Start(0)).during("cannot read", path)?;
        let zipped = start[..have].starts_with(b"PK");
        let (named, storages) = match zipped {
            true => archive::read(path, &file, bytes)?,
            false => legacy::read(path, &mut file, bytes)?,
        };
        let (tensors, located) = named.into_iter().unzip();
        Ok(Self { path: path.to_owned(), file, bytes, has_checksums: zipped, storages, located, tensors })
    }

    fn region(&self, number: usize) -> Result<Region> {
        let (name, key) = (&self.tensors[number].name, &self.located[number].storage);
        self.storages.get(key).copied().ok_or_else(|| {
            Error::file(
                &self.path,
                format!("{name}: its storage {key:?} is not in the file; fetch the file again"),
            )
        })
    }

    /// Compares a storage's checksum, once.
    fn verify(&mut self, number: usize, region: Region) -> Result<()> {
        let Some(expected) = region.crc32 else { return Ok(()) };
        self.file.seek(SeekFrom::Start(region.offset)).during("cannot read", &self.path)?;
        let (mut crc, mut left, mut piece) = (crc32fast::Hasher::new(), region.bytes, vec![0; 1 << 20]);
        while left > 0 {
            let count = left.min(piece.len() as u64) as usize;
            self.file.read_exact(&mut piece[..count]).during("cannot read", &self.path)?;
            crc.update(&piece[..count]);
            left -= count as u64;
        }
        let found = crc.finalize();
        let (name, key) = (&self.tensors[number].name, &self.located[number].storage);
        if found != expected {
            return Err(Error::file(
                &self.path,
                format!(
                    "{name}: damaged: checksum {found:08x}, the archive says {expected:08x}; fetch the file again, or save it with checksums"
                ),
            ));
        }
        if let Some(region) = self.storages.get_mut(key) {
            region.crc32 = None;
        }
        Ok(())
    }
}

impl Located {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected = size.saturating_mul(expected);
            fits
        })
    }

    /// Elements from the first to the last, both included; none where it does not fit.
    fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape
            .iter()
            .zip(&self.strides)
            .try_fold(1usize, |span, (&size, &stride)| span.checked_add((size - 1).checked_mul(stride)?))
    }
}

impl Source for TorchFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    fn data_bytes(&self) -> u64 {
        self.bytes
    }

    fn has_checksums(&self) -> bool {
        self.has_checksums
    }

    fn check(&self, number: usize) -> Result<()> {
        let (region, located, stored) = (self.region(number)?, &self.located[number], &self.tensors[number]);
        let width = stored.dtype.width().unwrap_or_default() as u64;
        let last = located.span().and_then(|span| located.offset.checked_add(span as u64));
        let bytes = last.and_then(|elements| elements.checked_mul(width)).unwrap_or(u64::MAX);
        if region.offset.checked_add(region.bytes).is_none_or(|end| end > self.bytes) {
            return Err(outside(&self.path, &stored.name, region.bytes, region.offset, self.bytes));
        }
        if bytes > region.bytes {
            let (name, shape, strides) = (&stored.name, &located.shape, &located.strides);
            return Err(Error::file(
                &self.path,
                format!(
                    "{name}: shape {shape:?} with strides {strides:?} from element {} does not fit into its storage of {} \
                     bytes; fetch the file again",
                    located.offset, region.bytes
                ),
            ));
        }
        // More elements than the storage has: rows that repeat one another.
        if stored.elements().is_none_or(|n| Some(n) > located.span()) {
            let what = format!("{}: its elements overlap; save a copy of the tensor", stored.name);
            return Err(Error::file(&self.path, what));
        }
        Ok(())
    }

    fn read(&mut self, number: usize, unit: usize, sink: &mut dyn FnMut(&[f32])) -> Result<()> {
        let region = self.region(number)?;
        self.verify(number, region)?;
        let (located, stored) = (&self.located[number], &self.tensors[number]);
        let width = stored.dtype.width().unwrap_or_default() as u64;
        let elements = stored.elements().unwrap_or_default();
        let contiguous = located.is_contiguous();
        let stretch = Stretch {
            path: &self.path,
            dtype: &stored.dtype,
            offset: region.offset + located.offset * width,
            elements: if contiguous { elements } else { located.span().unwrap_or_default() },
        };
        if contiguous {
            return stretch.read(&mut self.file, unit, &mut |_| {}, sink);
        }
        // Rare, and then small: the whole stretch is taken into memory and its elements are picked from it.
        let mut all = Vec::new();
        stretch.read(&mut self.file, 1, &mut |_| {}, &mut |piece| all.extend_from_slice(piece))?;
        gather(&all, &located.shape, &located.strides, &mut |row| sink(row));
        Ok(())
    }
}

/// Hands over the elements of a strided tensor in row-major order, all at once. `shape` holds no 0.
fn gather(all: &[f32], shape: &[usize], strides: &[usize], sink: &mut dyn FnMut(&[f32])) {
    let count = shape.iter().product();
    let (mut values, mut index, mut at) = (Vec::with_capacity(count), vec![0; shape.len()], 0);
    while values.len() < count {
        values.push(all[at]);
        // the index counts up, its last place fastest
        for ((i, &size), &stride) in index.iter_mut().zip(shape).zip(strides).rev() {
            *i += 1;
            at += stride;
            if *i < size {
                break;
            }
            at -= *i * stride;
            *i = 0;
        }
    }
    sink(&values);
}

/// The tensors under their names: those of the file's dictionary, or of the one in it that holds a BERT.
fn state_dict(path: &Path, pickle: &Pickle<'_>) -> Result<Named> {
    let mut value = pickle.root;
    for _ in 0..MAX_DEPTH {
        let Some(pairs) = pickle.dict(value) else { break };
        let named = tensors(pickle, pairs);
        let known = |stored: &Stored| matches!(pytorch(&stored.name), Role::Parameter { .. });
        if named.iter().any(|(stored, _)| known(stored)) {
            return Ok(named);
        }
        let inner = |name: &str| {
            let found = pairs.iter().rev().find(|(key, _)| pickle.text(*key) == Some(name));
            found.map(|(_, value)| *value).filter(|value| pickle.dict(*value).is_some())
        };
        match WRAPPERS.iter().find_map(|name| inner(name)) {
            Some(next) => value = next,
            None => break,
        }
    }
    let what = match (pickle.get(pickle.root), pickle.root) {
        (Some(Object::Dict(pairs)), _) => {
            let keys = pairs.iter().filter_map(|(key, _)| pickle.text(*key));
            let keys: Vec<String> = keys
                .take(5)
                .map(|key| key.chars().take(60).collect::<String>().escape_default().to_string())
                .collect();
            format!("its dictionary of {} (first keys: {})", pairs.len(), keys.join(", "))
        }
        (Some(Object::Tensor(_)), _) => "a single tensor".to_owned(),
        (Some(_), _) => "what is no dictionary".to_owned(),
        (None, value) => format!("{value:?}"),
    };
    Err(Error::file(
        path,
        format!(
            "holds {what}, no weights of a BERT; save model.state_dict() with torch.save, or name another file"
        ),
    ))
}

/// The tensors of a dictionary; of entries with the same key the last counts.
fn tensors(pickle: &Pickle<'_>, pairs: &[(Value, Value)]) -> Named {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut named = Named::new();
    for &(key, value) in pairs {
        let (Some(name), Some(Object::Tensor(tensor))) = (pickle.text(key), pickle.get(value)) else {
            continue;
        };
        let Tensor { storage, offset, shape, strides } = tensor;
        let stored = Stored { name: name.to_owned(), shape: shape.clone(), dtype: storage.dtype.clone() };
        let located = Located {
            storage: storage.key.to_owned(),
            offset: storage.start.saturating_add(*offset),
            shape: shape.clone(),
            strides: strides.clone(),
        };
        match places.insert(name, named.len()) {
            Some(earlier) => {
                places.insert(name, earlier);
                named[earlier] = (stored, located);
            }
            None => named.push((stored, located)),
        }
    }
    named
}

/// The message for a pickle that cannot be read.
fn refused(path: &Path, what: &str) -> Error {
    Error::file(path, format!("cannot be read as PyTorch's: {what}; save model.state_dict() with torch.save"))
}

/// Width of a storage's elements in the file, of types that are not read too.
fn width(dtype: &Dtype) -> u64 {
    match dtype {
        Dtype::Other(name) => match name.as_str() {
            "Long" => 8,
            "Int" => 4,
            "Short" => 2,
            _ => 1,
        },
        known => known.width().unwrap_or(1) as u64,
    }
}
