//! Weights in several files: the index that Hugging Face's `save_pretrained` writes beside them, `NAME.index.json`.

use super::staging::read_small;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What the name of an index ends with.
pub(super) const SUFFIX: &str = ".index.json";
/// 100 times that of a BERT-large.
const LIMIT: u64 = 1 << 23;

#[derive(Deserialize)]
struct Json {
    /// File by tensor.
    weight_map: BTreeMap<String, String>,
}

/// An index that was read.
pub(super) struct Index {
    path: PathBuf,
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// What is no index, and a file that does not lie beside it.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let json: Json = serde_json::from_slice(&read_small(path, LIMIT)?).map_err(|e| {
            Error::file(path, format!("is no index of a model's files: {e}; fetch the file again"))
        })?;
        let index = Self { path: path.to_owned(), weight_map: json.weight_map };
        for (tensor, file) in &index.weight_map {
            let plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
            if !plain || !path.with_file_name(file).is_file() {
                let what =
                    format!("weight_map.{tensor}: {file}, which does not lie beside it; fetch all files");
                return Err(Error::file(path, what));
            }
        }
        if index.weight_map.is_empty() {
            return Err(Error::file(path, "weight_map names no file; fetch the file again"));
        }
        Ok(index)
    }

    /// The files, sorted.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<&String> = self.weight_map.values().collect();
        files.sort();
        files.dedup();
        files.into_iter().map(|file| self.path.with_file_name(file)).collect()
    }

    /// Refuses files that do not hold the tensors that the index promises. `found` gives the names in each file.
    pub(super) fn check<'a>(&self, found: impl Iterator<Item = (&'a Path, Vec<&'a str>)>) -> Result<()> {
        let mut files: HashMap<PathBuf, Vec<&str>> = HashMap::new();
        for (path, mut names) in found {
            names.sort_unstable();
            files.insert(path.to_owned(), names);
        }
        for (tensor, file) in &self.weight_map {
            let path = self.path.with_file_name(file);
            let names = files.get(&path).map(Vec::as_slice).unwrap_or_default();
            if names.binary_search(&tensor.as_str()).is_err() {
                let index = self.path.display();
                let what = format!("holds no {tensor}, {index} says that it does; fetch the files again");
                return Err(Error::file(path, what));
            }
        }
        Ok(())
    }
}
