//! A file's columns, and the sequences in its rows.

use super::super::example::Shape;
use super::super::record::{Masked, length_of, masks_of};
use super::super::skipped::{BadKind, Wrong};
use super::super::source::Layout;
use super::column::{Column, Values, Width, root, wrong_of};
use super::{MOST_TOKENS, Plan};
use crate::error::{During, Error, Result};
use hdf5_reader::error as h5;
use hdf5_reader::storage::{FileStorage, Storage, StorageBuffer};
use hdf5_reader::{Hdf5File, OpenOptions};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Most bytes to read, or to unpack, at a time: a damaged file may ask for anything.
const MOST_BYTES: usize = 128 << 20;
/// Most that deflate makes of a byte, and some for what is not compressed.
const MOST_PER_BYTE: u64 = 1100;
/// Rows to look at together when lengths are looked for.
const SCAN_ROWS: u64 = 1 << 16;

/// The outer error is the system's, the inner one the file's.
pub(crate) type Opened<T> = Result<std::result::Result<T, Wrong>>;

/// An open file.
pub(crate) struct Table {
    layout: Layout,
    rows: u64,
    input_ids: Column,
    segment_ids: Column,
    positions: Column,
    labels: Column,
    /// None where the file has no such labels.
    next_sentence: Option<Column>,
    /// Of the fixed length.
    input_mask: Option<Column>,
    /// Of the fixed length, where there are.
    weights: Option<Column>,
    /// Of packed rows: the lengths of sequences and of their lists of masks.
    lengths: Option<(Column, Column)>,
}

impl Table {
    pub fn open(path: &Path) -> Opened<Self> {
        let file = File::open(path).during("cannot open the input", path)?;
        let storage = FileStorage::from_file(file).map_err(|e| io_error(path, &e));
        let storage = match storage {
            Ok(storage) => Arc::new(Bounded(storage)),
            Err(Some(error)) => return Err(error),
            Err(None) => return Ok(Err(Wrong::new(BadKind::Truncated, "cannot be read"))),
        };
        // Every chunk is read once, and a file is open as long as one block is read: no cache pays.
        let options = OpenOptions::default()
            .with_chunk_cache_bytes(0)
            .with_max_chunk_bytes(MOST_BYTES)
            .with_max_read_bytes(MOST_BYTES)
            .with_max_object_header_bytes(1 << 20);
        let opened = Hdf5File::from_storage_with_options(storage, options);
        match opened.map_err(|e| (io_error(path, &e), e)) {
            Ok(file) => Ok(Self::new(&file).and_then(|table| table.check_rows(file.storage().len()))),
            Err((Some(error), _)) => Err(error),
            Err((None, e)) => {
                let wrong = wrong_of("the file", &e);
                let what = format!("is not a whole HDF5 file: {}", root(&e));
                Ok(Err(Wrong::new(wrong.kind, what)))
            }
        }
    }

    fn new(file: &Hdf5File) -> std::result::Result<Self, Wrong> {
        let group = file.root_group().and_then(|group| group.datasets());
        let group = group.map_err(|e| wrong_of("the file", &e))?;
        let has = |name: &str| group.iter().any(|dataset| dataset.name() == name);
        let packed = has("packed_input_len") || has("packed_masked_lm_len");
        let column = |name: &'static str| {
            let dataset = group.iter().find(|dataset| dataset.name() == name).cloned();
            let dataset =
                dataset.ok_or_else(|| missing(name, &group.iter().map(|d| d.name()).collect::<Vec<_>>()))?;
            Column::new(dataset, name, name == "masked_lm_weights")
        };
        let input_ids = column("input_ids")?;
        let (layout, list) = match input_ids.width {
            _ if packed => (Layout::Packed, Width::Variable),
            Width::Variable => (Layout::VariableLength, Width::Variable),
            _ => (Layout::FixedLength, Width::Fixed(0)),
        };
        let input_ids = input_ids.with_width(list)?;
        let tokens = input_ids.width;
        let positions = column("masked_lm_positions")?.with_width(list)?;
        let masks = positions.width;
        let fixed = layout == Layout::FixedLength;
        let table = Self {
            layout,
            rows: input_ids.rows,
            segment_ids: column("segment_ids")?.with_width(tokens)?,
            labels: column("masked_lm_ids")?.with_width(masks)?,
            next_sentence: has("next_sentence_labels")
                .then(|| {
                    column("next_sentence_labels")?.with_width(if packed { list } else { Width::Scalar })
                })
                .transpose()?,
            input_mask: fixed.then(|| column("input_mask")?.with_width(tokens)).transpose()?,
            weights: (fixed && has("masked_lm_weights"))
                .then(|| column("masked_lm_weights")?.with_width(masks))
                .transpose()?,
            lengths: packed
                .then(|| {
                    Ok((
                        column("packed_input_len")?.with_width(list)?,
                        column("packed_masked_lm_len")?.with_width(list)?,
                    ))
                })
                .transpose()?,
            input_ids,
            positions,
        };
        for (name, column) in table.columns() {
            if column.rows != table.rows {
                let what = format!("{name}: {} rows, expected {} as input_ids has", column.rows, table.rows);
                return Err(Wrong::new(BadKind::Length, what));
            }
        }
        Ok(table)
    }

    /// Whether the file can hold as many rows as it says: what it does not hold reads as zeros.
    fn check_rows(self, file_bytes: u64) -> std::result::Result<Self, Wrong> {
        let least = self.input_ids.stored_row_bytes() as u64;
        let most = file_bytes.saturating_mul(MOST_PER_BYTE) / least.max(1);
        if self.rows <= most {
            return Ok(self);
        }
        let what =
            format!("input_ids: {} rows, expected at most {most} in a file of {file_bytes} bytes", self.rows);
        Err(Wrong::new(BadKind::Length, what))
    }

    fn columns(&self) -> impl Iterator<Item = (&'static str, &Column)> {
        let (lengths, mask_lengths) = self.lengths.as_ref().map(|(a, b)| (a, b)).unzip();
        [
            ("input_ids", Some(&self.input_ids)),
            ("segment_ids", Some(&self.segment_ids)),
            ("masked_lm_positions", Some(&self.positions)),
            ("masked_lm_ids", Some(&self.labels)),
            ("next_sentence_labels", self.next_sentence.as_ref()),
            ("input_mask", self.input_mask.as_ref()),
            ("masked_lm_weights", self.weights.as_ref()),
            ("packed_input_len", lengths),
            ("packed_masked_lm_len", mask_lengths),
        ]
        .into_iter()
        .filter_map(|(name, column)| Some((name, column?)))
    }

    /// How to read the file in windows of about `block_bytes` bytes.
    pub fn plan(&self, block_bytes: usize) -> std::result::Result<Plan, Wrong> {
        let row_bytes = self.columns().map(|(_, c)| c.row_bytes()).fold(0usize, usize::saturating_add).max(1);
        let wanted = (block_bytes / row_bytes).max(1) as u64;
        let chunk = self.columns().map(|(_, c)| c.chunk_rows()).max().unwrap_or(1);
        // Larger chunks are unpacked more than once rather than held at once.
        let window = if chunk <= 4 * wanted { wanted.div_ceil(chunk) * chunk } else { wanted };
        let (longest, shape) = match (self.input_ids.width, self.positions.width) {
            (Width::Fixed(sequence), Width::Fixed(predictions)) => {
                (sequence, Some(Shape { sequence, predictions, labels: self.next_sentence.is_some() }))
            }
            _ => (self.longest()?, None),
        };
        let window_bytes = usize::try_from(window).unwrap_or(usize::MAX).saturating_mul(row_bytes);
        let labels = self.next_sentence.is_some();
        Ok(Plan { layout: self.layout, rows: self.rows, window, window_bytes, longest, shape, labels })
    }

    /// The longest row of lists of any length; of packed ones a bound, and one that a full pack reaches. Rows that cannot
    /// be read, or are longer than sequences can be, are found when their turn comes.
    fn longest(&self) -> std::result::Result<usize, Wrong> {
        let mut longest = 0;
        let mut row = 0;
        while row < self.rows {
            let end = self.rows.min(row + SCAN_ROWS);
            if let Ok(values) = self.input_ids.read(row..end) {
                longest = longest.max(values.longest(MOST_TOKENS));
            }
            row = end;
        }
        Ok(longest)
    }

    /// Reads rows.
    pub fn read(&self, rows: Range<u64>) -> std::result::Result<Rows<'_>, Wrong> {
        Ok(Rows {
            input_ids: self.input_ids.read(rows.clone())?,
            segment_ids: self.segment_ids.read(rows.clone())?,
            positions: self.positions.read(rows.clone())?,
            labels: self.labels.read(rows.clone())?,
            next_sentence: self.next_sentence.as_ref().map(|c| c.read(rows.clone())).transpose()?,
            input_mask: self.input_mask.as_ref().map(|c| c.read(rows.clone())).transpose()?,
            weights: self.weights.as_ref().map(|c| c.read(rows.clone())).transpose()?,
            lengths: match &self.lengths {
                Some((a, b)) => Some((a.read(rows.clone())?, b.read(rows)?)),
                None => None,
            },
            scratch: Default::default(),
        })
    }
}

/// Some rows of a file.
pub(crate) struct Rows<'a> {
    input_ids: Values<'a>,
    segment_ids: Values<'a>,
    positions: Values<'a>,
    labels: Values<'a>,
    next_sentence: Option<Values<'a>>,
    input_mask: Option<Values<'a>>,
    weights: Option<Values<'a>>,
    lengths: Option<(Values<'a>, Values<'a>)>,
    scratch: [Vec<i64>; 7],
}

impl Rows<'_> {
    /// Calls `f` with each sequence of the row `i` of those read.
    pub fn sequences(
        &mut self,
        i: usize,
        f: &mut dyn FnMut(&Masked<'_>) -> std::result::Result<(), Wrong>,
    ) -> Vec<Wrong> {
        let [ids, segments, positions, labels, next, extra, weights] = &mut self.scratch;
        let mut read = || {
            self.input_ids.row(i, ids)?;
            self.segment_ids.row(i, segments)?;
            self.positions.row(i, positions)?;
            self.labels.row(i, labels)?;
            next.clear();
            self.next_sentence.as_ref().map_or(Ok(()), |values| values.row(i, next))
        };
        let labelled = self.next_sentence.is_some();
        let outcome = read().and_then(|()| match (&self.lengths, &self.input_mask) {
            (Some((lengths, mask_lengths)), _) => {
                lengths.row(i, extra)?;
                mask_lengths.row(i, weights)?;
                let (lengths, mask_lengths) = (extra, weights);
                let pack = Pack { ids, segments, positions, labels, next, labelled, lengths, mask_lengths };
                pack.check()?;
                Ok(Err(pack))
            }
            (None, Some(input_mask)) => {
                input_mask.row(i, extra)?;
                let length = length_of(extra)?;
                let count = match &self.weights {
                    Some(values) => {
                        values.row(i, weights)?;
                        masks_of(weights.iter().map(|&w| w as f64))?
                    }
                    None => masks_before_zero(positions)?,
                };
                Ok(Ok((length, count)))
            }
            (None, None) => Ok(Ok((ids.len(), positions.len()))),
        });
        match outcome {
            Err(wrong) => vec![wrong],
            Ok(Err(pack)) => pack.sequences(f),
            Ok(Ok((length, count))) => {
                let labels_end = if self.input_mask.is_some() { count } else { labels.len() };
                let segments_end = if self.input_mask.is_some() { length } else { segments.len() };
                let sequence = Masked {
                    input_ids: &ids[..length],
                    segment_ids: &segments[..segments_end],
                    positions: &positions[..count],
                    labels: &labels[..labels_end],
                    next_sentence_label: next.first().copied(),
                };
                f(&sequence).err().into_iter().collect()
            }
        }
    }
}

/// A row of several sequences.
struct Pack<'a> {
    ids: &'a [i64],
    segments: &'a [i64],
    positions: &'a [i64],
    labels: &'a [i64],
    next: &'a [i64],
    /// Whether there are such labels.
    labelled: bool,
    lengths: &'a [i64],
    mask_lengths: &'a [i64],
}

impl Pack<'_> {
    /// Whether the lists have the lengths that they say of each other.
    fn check(&self) -> std::result::Result<(), Wrong> {
        let count = self.lengths.len();
        let sum = |name: &str, lengths: &[i64]| {
            let total = lengths.iter().try_fold(0i64, |sum, &n| sum.checked_add(n).filter(|_| n >= 0));
            let wrong =
                || Wrong::new(BadKind::Length, format!("{name}: {lengths:?}, expected lengths of lists"));
            total.ok_or_else(wrong)
        };
        let tokens = sum("packed_input_len", self.lengths)?;
        let masks = sum("packed_masked_lm_len", self.mask_lengths)?;
        for (name, found, expected, of) in [
            ("packed_masked_lm_len", self.mask_lengths.len(), count as i64, "as packed_input_len has"),
            (
                "next_sentence_labels",
                self.next.len(),
                if self.labelled { count as i64 } else { 0 },
                "as packed_input_len has",
            ),
            ("input_ids", self.ids.len(), tokens, "the sum of packed_input_len"),
            ("segment_ids", self.segments.len(), tokens, "the sum of packed_input_len"),
            ("masked_lm_positions", self.positions.len(), masks, "the sum of packed_masked_lm_len"),
            ("masked_lm_ids", self.labels.len(), masks, "the sum of packed_masked_lm_len"),
        ] {
            if found as i64 != expected {
                let what = format!("{name}: {found} values, expected {expected}, {of}");
                return Err(Wrong::new(BadKind::Length, what));
            }
        }
        if count == 0 {
            return Err(Wrong::new(BadKind::Length, "packed_input_len: 0 values, expected 1 or more"));
        }
        Ok(())
    }

    fn sequences(&self, f: &mut dyn FnMut(&Masked<'_>) -> std::result::Result<(), Wrong>) -> Vec<Wrong> {
        let mut wrongs = Vec::new();
        let (mut token, mut mask) = (0, 0);
        let mut positions = Vec::new();
        for (i, (&length, &count)) in self.lengths.iter().zip(self.mask_lengths).enumerate() {
            let (tokens, masks) = (token..token + length as usize, mask..mask + count as usize);
            (token, mask) = (tokens.end, masks.end);
            positions.clear();
            positions
                .extend(self.positions[masks.clone()].iter().map(|&p| p.saturating_sub(tokens.start as i64)));
            let sequence = Masked {
                input_ids: &self.ids[tokens.clone()],
                segment_ids: &self.segments[tokens],
                positions: &positions,
                labels: &self.labels[masks],
                next_sentence_label: self.next.get(i).copied(),
            };
            if let Err(mut wrong) = f(&sequence) {
                wrong.what =
                    format!("sequence {} of {} in the pack: {}", i + 1, self.lengths.len(), wrong.what);
                wrongs.push(wrong);
            }
        }
        wrongs
    }
}

/// The masks of a padded list of positions.
fn masks_before_zero(positions: &[i64]) -> std::result::Result<usize, Wrong> {
    let count = positions.iter().position(|&p| p == 0).unwrap_or(positions.len());
    match (count..positions.len()).find(|&i| positions[i] != 0) {
        None => Ok(count),
        Some(i) => {
            let what = format!(
                "masked_lm_positions[{i}]: {}, expected 0 behind the 0 that ends the list",
                positions[i]
            );
            Err(Wrong::new(BadKind::Position, what))
        }
    }
}

fn missing(name: &str, found: &[&str]) -> Wrong {
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    Wrong::new(BadKind::Missing, format!("{name}: missing, expected among the file's datasets ({found})"))
}

/// The system's error, if it is one.
fn io_error(path: &Path, error: &h5::Error) -> Option<Error> {
    match root(error) {
        h5::Error::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            let source = std::io::Error::new(e.kind(), e.to_string());
            Some(Error::Io { action: "cannot read the input", path: path.to_owned(), source })
        }
        _ => None,
    }
}

/// A file of which no more is read at a time than fits memory.
struct Bounded(FileStorage);

impl Storage for Bounded {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_range(&self, offset: u64, len: usize) -> h5::Result<StorageBuffer> {
        if len > MOST_BYTES {
            return Err(h5::Error::ResourceLimit(format!(
                "{len} bytes at once, expected at most {MOST_BYTES}"
            )));
        }
        self.0.read_range(offset, len)
    }
}
