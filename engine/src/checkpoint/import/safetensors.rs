//! safetensors files, whose names may be those of wrapped or headless models.

use super::source::{Dtype, Source, Stored, Stretch};
use crate::checkpoint::tensor_file::TensorFile;
use crate::error::{During, Result};
use safetensors::Dtype as Type;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// An open file. The header was checked against the file's size, so every tensor lies in it.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    tensors: Vec<Stored>,
    offsets: Vec<u64>,
    data_bytes: u64,
}

/// Whether a file is safetensors: by its name, or by its start, the header's length and a JSON object.
pub(super) fn is_one(path: &Path) -> bool {
    let mut start = [0; 9];
    let read = File::open(path).and_then(|mut file| {
        file.read_exact(&mut start)?;
        Ok(file.metadata()?.len())
    });
    let length = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| start[i]));
    let begins = read.is_ok_and(|size| length < size && start[8] == b'{');
    begins || path.extension().is_some_and(|extension| extension == "safetensors")
}

impl SafetensorsFile {
    /// Reads the header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let stored = file.entries.iter().map(|entry| Stored {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            dtype: dtype(entry.dtype),
        });
        let tensors = stored.collect();
        Ok(Self { path: path.to_owned(), tensors, offsets: file.offsets(), data_bytes: file.data_bytes() })
    }
}

fn dtype(stored: Type) -> Dtype {
    match stored {
        Type::F32 => Dtype::F32,
        Type::F64 => Dtype::F64,
        Type::F16 => Dtype::F16,
        Type::BF16 => Dtype::Bf16,
        other => Dtype::Other(format!("{other:?}")),
    }
}

impl Source for SafetensorsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn has_checksums(&self) -> bool {
        false
    }

    fn check(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, number: usize, unit: usize, sink: &mut dyn FnMut(&[f32])) -> Result<()> {
        let stored = &self.tensors[number];
        let stretch = Stretch {
            path: &self.path,
            dtype: &stored.dtype,
            offset: self.offsets[number],
            elements: stored.elements().unwrap_or_default(),
        };
        let mut file = File::open(&self.path).during("cannot open", &self.path)?;
        stretch.read(&mut file, unit, &mut |_| {}, sink)
    }
}
