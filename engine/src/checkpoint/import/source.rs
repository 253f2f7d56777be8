//! What all foreign checkpoints have in common: named tensors that lie somewhere in files as plain numbers.

use crate::error::{During, Error, Result};
use half::{bf16, f16};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How a tensor's elements are stored, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// No floats: whole numbers or strings, under the name the file's framework has for them.
    Other(String),
}

impl Dtype {
    /// Bytes of an element; none where it is not read.
    pub(super) fn width(&self) -> Option<usize> {
        match self {
            Self::F64 => Some(8),
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::Other(_) => None,
        }
    }

    /// Appends the elements that `bytes` hold to `out`. Whole elements only.
    fn widen(&self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
            Self::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Self::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            Self::Other(_) => {}
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name) => name,
        })
    }
}

/// A tensor of a foreign file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The file's name for it.
    pub name: String,
    /// As the file has it.
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub dtype: Dtype,
}

impl Stored {
    /// Number of elements; none where it does not fit.
    pub(super) fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))
    }
}

/// A foreign checkpoint, open for reading tensor by tensor.
pub(super) trait Source {
    /// The file that messages name.
    fn path(&self) -> &Path;

    /// All tensors.
    fn tensors(&self) -> &[Stored];

    /// Bytes of all files that hold elements.
    fn data_bytes(&self) -> u64;

    /// Whether the format carries checksums, which [`Self::read`] verifies.
    fn has_checksums(&self) -> bool;

    /// The number of attention heads, where shapes tell it.
    fn heads(&self) -> Option<usize> {
        None
    }

    /// Refuses a tensor whose elements do not lie in the file as its shape and type say.
    fn check(&self, number: usize) -> Result<()>;

    /// Hands a tensor that passed [`Self::check`] to `sink`, in its shape's row-major order. Each piece but the last has a
    /// multiple of `unit` elements.
    fn read(&mut self, number: usize, unit: usize, sink: &mut dyn FnMut(&[f32])) -> Result<()>;
}

/// Elements that lie one after another in a file.
pub(super) struct Stretch<'a> {
    pub(super) path: &'a Path,
    pub(super) dtype: &'a Dtype,
    /// Byte of the first element.
    pub(super) offset: u64,
    pub(super) elements: usize,
}

/// Elements of a piece, unless a unit is larger.
const PIECE: usize = 1 << 17;

impl Stretch<'_> {
    /// Reads in pieces, multiples of `unit` elements but the last; `raw` sees the bytes before `sink` the elements.
    pub(super) fn read(
        &self,
        file: &mut File,
        unit: usize,
        raw: &mut dyn FnMut(&[u8]),
        sink: &mut dyn FnMut(&[f32]),
    ) -> Result<()> {
        let Some(width) = self.dtype.width() else { return Ok(()) };
        let unit = unit.clamp(1, self.elements.max(1));
        let piece = (PIECE / unit).max(1) * unit;
        file.seek(SeekFrom::Start(self.offset)).during("cannot read", self.path)?;
        let mut bytes = vec![0; piece.min(self.elements) * width];
        let mut wide = Vec::with_capacity(piece.min(self.elements));
        let mut left = self.elements;
        while left > 0 {
            let count = left.min(piece);
            let bytes = &mut bytes[..count * width];
            file.read_exact(bytes).during("cannot read", self.path)?;
            raw(bytes);
            wide.clear();
            self.dtype.widen(bytes, &mut wide);
            sink(&wide);
            left -= count;
        }
        Ok(())
    }
}

/// The message for a tensor whose elements do not lie where they should.
pub(super) fn outside(path: &Path, name: &str, bytes: u64, offset: u64, file: u64) -> Error {
    Error::file(
        path,
        format!(
            "{name}: its {bytes} bytes should lie at byte {offset}, the file has {file}; it is cut short or damaged, \
             fetch it again"
        ),
    )
}
