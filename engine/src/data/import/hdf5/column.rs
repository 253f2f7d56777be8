//! Columns of an HDF5 file: integers of any width and order, one a row, a fixed number a row, or as many as a row has.

use super::super::skipped::{BadKind, Wrong};
use super::MOST_TOKENS;
use bytemuck::{Pod, Zeroable};
use hdf5_reader::error::{Error, Result};
use hdf5_reader::{ByteOrder, Dataset, Datatype, H5Type, SliceInfo, SliceInfoElem};
use std::ops::Range;

/// Bytes of what a row of a column of variable length holds: the length, an address and an index.
const REFERENCE: usize = 16;

/// How many values a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// A number.
    Scalar,
    /// A list of this length.
    Fixed(usize),
    /// A list.
    Variable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Signed,
    Unsigned,
    Float,
}

/// A dataset whose first dimension is the rows.
pub(super) struct Column {
    dataset: Dataset,
    name: &'static str,
    element: Element,
    /// Bytes of a value.
    bytes: usize,
    order: ByteOrder,
    pub width: Width,
    pub rows: u64,
}

impl Column {
    /// Takes a dataset of integers, or of floating-point numbers where `floats`.
    pub fn new(dataset: Dataset, name: &'static str, floats: bool) -> std::result::Result<Self, Wrong> {
        let (datatype, variable) = match dataset.dtype() {
            Datatype::VarLen { base, .. } => (&**base, true),
            other => (other, false),
        };
        let (element, bytes, order) = match datatype {
            Datatype::FixedPoint { size, signed: true, byte_order } => (Element::Signed, *size, *byte_order),
            Datatype::FixedPoint { size, signed: false, byte_order } => {
                (Element::Unsigned, *size, *byte_order)
            }
            Datatype::FloatingPoint { size: size @ (4 | 8), byte_order } if floats => {
                (Element::Float, *size, *byte_order)
            }
            other => {
                let kind = if floats { "numbers" } else { "integers" };
                let found = format!("{other:?}");
                let found = found.split([' ', '{']).next().unwrap_or_default();
                let what = format!("{name}: of type {found}, expected {kind}");
                return Err(Wrong::new(BadKind::Missing, what));
            }
        };
        let bytes = usize::from(bytes);
        if !matches!(bytes, 1 | 2 | 4 | 8) || (variable && dataset.vlen_reference_size() != REFERENCE) {
            let what =
                format!("{name}: values of {bytes} bytes, expected 1, 2, 4 or 8 in a file of 8-byte offsets");
            return Err(Wrong::new(BadKind::Missing, what));
        }
        let (rows, width) = match (dataset.shape(), variable) {
            (&[rows], true) => (rows, Width::Variable),
            (&[rows], false) | (&[rows, 1], false) => (rows, Width::Scalar),
            (&[rows, width], false) => (rows, Width::Fixed(usize::try_from(width).unwrap_or(usize::MAX))),
            (shape, _) => {
                let what = format!("{name}: {} dimensions, expected 1 or 2", shape.len());
                return Err(Wrong::new(BadKind::Length, what));
            }
        };
        Ok(Self { dataset, name, element, bytes, order, width, rows })
    }

    /// The column, if its rows hold what is expected; of [`Width::Fixed`] 0 stands for any length.
    pub fn with_width(self, expected: Width) -> std::result::Result<Self, Wrong> {
        let fits = match (self.width, expected) {
            (Width::Fixed(_), Width::Fixed(0)) => true,
            (found, expected) => found == expected,
        };
        if fits {
            return Ok(self);
        }
        let words = |width| match width {
            Width::Scalar => "one number".to_owned(),
            Width::Fixed(0) => "a list of fixed length".to_owned(),
            Width::Fixed(n) => format!("{n} numbers"),
            Width::Variable => "a list of any length".to_owned(),
        };
        let what = format!("{}: {} a row, expected {}", self.name, words(self.width), words(expected));
        Err(Wrong::new(BadKind::Length, what))
    }

    /// Rows that are compressed together; 1 where none are.
    pub fn chunk_rows(&self) -> u64 {
        let chunks = self.dataset.chunks();
        chunks.and_then(|dims| dims.first().copied()).map_or(1, |rows| u64::from(rows).max(1))
    }

    /// Bytes of a row; for a list of any length a guess.
    pub fn row_bytes(&self) -> usize {
        match self.width {
            Width::Scalar => self.bytes,
            Width::Fixed(n) => n.saturating_mul(self.bytes),
            Width::Variable => REFERENCE + 128 * self.bytes,
        }
    }

    /// Bytes that a row takes at least before it is compressed.
    pub fn stored_row_bytes(&self) -> usize {
        match self.width {
            Width::Variable => REFERENCE,
            _ => self.row_bytes(),
        }
    }

    /// Reads rows into memory; lists of any length stay in the file until asked for.
    pub fn read(&self, rows: Range<u64>) -> std::result::Result<Values<'_>, Wrong> {
        let expected = (rows.end - rows.start).saturating_mul(self.stored_row_bytes() as u64);
        let bytes = self.read_bytes(rows).map_err(|e| wrong_of(self.name, &e))?;
        if bytes.len() as u64 != expected {
            let what = format!("{}: {} bytes of rows, expected {expected}", self.name, bytes.len());
            return Err(Wrong::new(BadKind::Undecodable, what));
        }
        Ok(Values { column: self, bytes })
    }

    fn read_bytes(&self, rows: Range<u64>) -> Result<Vec<u8>> {
        match (self.width, self.bytes) {
            (Width::Variable, _) => self.slice::<REFERENCE>(rows),
            (_, 1) => self.slice::<1>(rows),
            (_, 2) => self.slice::<2>(rows),
            (_, 4) => self.slice::<4>(rows),
            _ => self.slice::<8>(rows),
        }
    }

    fn slice<const N: usize>(&self, rows: Range<u64>) -> Result<Vec<u8>>
    where
        [u8; N]: Pod,
    {
        let rows = SliceInfoElem::Slice { start: rows.start, end: rows.end, step: 1 };
        let all = SliceInfoElem::Slice { start: 0, end: u64::MAX, step: 1 };
        let mut selections = vec![rows];
        selections.resize(self.dataset.ndim(), all);
        let array = self.dataset.read_slice::<Raw<N>>(&SliceInfo { selections })?;
        let (values, offset) = array.into_raw_vec_and_offset();
        if offset.unwrap_or(0) != 0 {
            return Err(Error::InvalidData("values do not begin where they should".into()));
        }
        Ok(bytemuck::cast_slice(&values).to_vec())
    }

    fn numbers(&self, bytes: &[u8], out: &mut Vec<i64>) {
        match (self.bytes, self.element, self.order) {
            // What the columns usually are, without a decision for each value.
            (1, Element::Signed, _) => out.extend(bytes.iter().map(|&b| i64::from(b as i8))),
            (2, Element::Signed, ByteOrder::LittleEndian) => {
                out.extend(bytes.chunks_exact(2).map(|b| i64::from(i16::from_le_bytes([b[0], b[1]]))));
            }
            _ => out.extend(bytes.chunks_exact(self.bytes).map(|value| self.number(value))),
        }
    }

    fn number(&self, bytes: &[u8]) -> i64 {
        let mut eight = [0; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        if self.order == ByteOrder::BigEndian {
            eight[..bytes.len()].reverse();
        }
        let unused = 64 - 8 * bytes.len() as u32;
        match self.element {
            Element::Signed => (i64::from_le_bytes(eight) << unused) >> unused,
            Element::Unsigned => i64::try_from(u64::from_le_bytes(eight)).unwrap_or(i64::MAX),
            // Weights are compared with 0 and 1; whatever is neither becomes 2.
            Element::Float => {
                let value = match bytes.len() {
                    4 => f64::from(f32::from_le_bytes([0, 1, 2, 3].map(|i| eight[i]))),
                    _ => f64::from_le_bytes(eight),
                };
                if value == 0.0 {
                    0
                } else if value == 1.0 {
                    1
                } else {
                    2
                }
            }
        }
    }
}

/// Rows of a column.
pub(super) struct Values<'a> {
    column: &'a Column,
    bytes: Vec<u8>,
}

impl Values<'_> {
    /// The values of the row `i` of those read, put into `out`.
    pub fn row(&self, i: usize, out: &mut Vec<i64>) -> std::result::Result<(), Wrong> {
        let column = self.column;
        out.clear();
        let size = match column.width {
            Width::Scalar => column.bytes,
            Width::Fixed(n) => n * column.bytes,
            Width::Variable => {
                let reference = &self.bytes[i * REFERENCE..(i + 1) * REFERENCE];
                let length = length_of(reference);
                if length > MOST_TOKENS {
                    let name = column.name;
                    let what = format!("{name}: a list of {length} values, expected at most {MOST_TOKENS}");
                    return Err(Wrong::new(BadKind::Length, what));
                }
                let bytes = column.dataset.resolve_vlen_reference_bytes(reference, column.bytes);
                column.numbers(&bytes.map_err(|e| wrong_of(column.name, &e))?, out);
                return Ok(());
            }
        };
        column.numbers(&self.bytes[i * size..(i + 1) * size], out);
        Ok(())
    }

    /// The longest list among rows of lists of any length, those beyond `most` not counted.
    pub fn longest(&self, most: usize) -> usize {
        self.bytes.chunks_exact(REFERENCE).map(length_of).filter(|&n| n <= most).max().unwrap_or(0)
    }
}

/// The length of the list that a reference is to.
fn length_of(reference: &[u8]) -> usize {
    reference.first_chunk().map_or(0, |&bytes| u32::from_le_bytes(bytes) as usize)
}

/// A value's bytes as they are in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct Raw<const N: usize>([u8; N])
where
    [u8; N]: Pod;

impl<const N: usize> H5Type for Raw<N>
where
    [u8; N]: Pod,
{
    fn hdf5_type() -> Datatype {
        Datatype::Opaque { size: N as u32, tag: String::new() }
    }

    fn from_bytes(bytes: &[u8], _: &Datatype) -> Result<Self> {
        let short = || Error::InvalidData(format!("expected {N} bytes, got {}", bytes.len()));
        bytes.first_chunk().map(|&bytes| Self(bytes)).ok_or_else(short)
    }

    fn element_size(_: &Datatype) -> usize {
        N
    }

    fn native_copy_compatible(_: &Datatype) -> bool {
        true
    }
}

/// A reader's error in a field's words.
pub(super) fn wrong_of(name: &str, error: &Error) -> Wrong {
    let cause = root(error);
    let kind = match cause {
        Error::ChecksumMismatch { .. } => BadKind::Checksum,
        Error::UnexpectedEof { .. } | Error::OffsetOutOfBounds(_) => BadKind::Truncated,
        Error::DatasetNotFound(_) | Error::GroupNotFound(_) => BadKind::Missing,
        _ => BadKind::Undecodable,
    };
    let expected = if kind == BadKind::Truncated { "; the file is cut short or damaged" } else { "" };
    Wrong::new(kind, format!("{name}: cannot be read: {cause}{expected}"))
}

/// The error without the names of what was read.
pub(super) fn root(mut error: &Error) -> &Error {
    while let Error::Context { source, .. } = error {
        error = source;
    }
    error
}
