//! Files of weights, one or several that belong together.

use super::safetensors::{self, SafetensorsFile};
use super::source::{Source, Stored};
use super::torch::TorchFile;
use crate::checkpoint::shards::{Index, SUFFIX};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// `STEM-00001-of-00002.EXTENSION`.
pub(super) struct Shard<'a> {
    pub(super) stem: &'a str,
    /// From 1.
    pub(super) number: usize,
    count: usize,
    extension: &'a str,
}

/// What a file's name says of its place among others.
pub(super) fn shard(path: &Path) -> Option<Shard<'_>> {
    let name = path.file_name()?.to_str()?;
    let (stem, extension) = name.rsplit_once('.')?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&number).then_some(Shard { stem, number, count, extension })
}

/// Opens a file of weights; of one of several, or of their index, all.
pub(super) fn open(path: &Path) -> Result<Box<dyn Source>> {
    let is_index = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(SUFFIX));
    if is_index {
        let index = Index::read(path)?;
        let all = Shards::open(path, &index.files())?;
        index.check(all.parts.iter().map(|part| {
            let names = part.tensors().iter().map(|tensor| tensor.name.as_str());
            (part.path(), names.collect())
        }))?;
        return Ok(Box::new(all));
    }
    match shard(path) {
        Some(Shard { count: 2.., .. }) => Ok(Box::new(Shards::open(path, &siblings(path)?)?)),
        _ => one(path),
    }
}

fn one(path: &Path) -> Result<Box<dyn Source>> {
    Ok(match safetensors::is_one(path) {
        true => Box::new(SafetensorsFile::open(path)?),
        false => Box::new(TorchFile::open(path)?),
    })
}

/// All files that belong with one of several.
fn siblings(path: &Path) -> Result<Vec<PathBuf>> {
    let Some(Shard { stem, count, extension, .. }) = shard(path) else { return Ok(vec![path.to_owned()]) };
    let sibling = |number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.{extension}"));
    match (1..=count).map(sibling).find(|sibling| !sibling.is_file()) {
        None => Ok((1..=count).map(sibling).collect()),
        Some(missing) => Err(Error::file(
            missing,
            format!("is missing, {} is one of {count} files of a model; fetch them all", path.display()),
        )),
    }
}

/// Several files as one.
struct Shards {
    /// The index, or the file that was named.
    path: PathBuf,
    parts: Vec<Box<dyn Source>>,
    tensors: Vec<Stored>,
    /// Part and number in it.
    places: Vec<(usize, usize)>,
}

impl Shards {
    fn open(path: &Path, files: &[PathBuf]) -> Result<Self> {
        let parts = files.iter().map(|file| one(file)).collect::<Result<Vec<_>>>()?;
        let (mut tensors, mut places) = (Vec::new(), Vec::new());
        for (number, part) in parts.iter().enumerate() {
            places.extend((0..part.tensors().len()).map(|tensor| (number, tensor)));
            tensors.extend_from_slice(part.tensors());
        }
        Ok(Self { path: path.to_owned(), parts, tensors, places })
    }
}

impl Source for Shards {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    fn data_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.data_bytes()).sum()
    }

    fn has_checksums(&self) -> bool {
        self.parts.iter().all(|part| part.has_checksums())
    }

    fn check(&self, number: usize) -> Result<()> {
        let (part, number) = self.places[number];
        self.parts[part].check(number)
    }

    fn read(&mut self, number: usize, unit: usize, sink: &mut dyn FnMut(&[f32])) -> Result<()> {
        let (part, number) = self.places[number];
        self.parts[part].read(number, unit, sink)
    }
}
