//! HDF5 files as NVIDIA's input preprocessing writes them. One row is one sequence, padded or not, or a pack of several:
//!
//! | layout | told by | columns |
//! | --- | --- | --- |
//! | fixed length | lists of fixed length | input_ids, input_mask, segment_ids, masked_lm_positions, masked_lm_ids, next_sentence_labels; masked_lm_weights where there are |
//! | variable length | lists of any length | the same without input_mask and weights |
//! | packed | packed_input_len | as variable length, the lists of a row's sequences joined, positions counted in the joined list; packed_input_len, packed_masked_lm_len: how long each sequence's part is |
//!
//! Files without next_sentence_labels hold sequences that train no next-sentence head. Shuffled files have the same
//! layouts. In a padded list of positions without weights a 0 ends the list: [CLS] stands there, which is never masked.

mod column;
mod table;

pub(super) use table::Table;

use super::example::Shape;
use super::files::InputFile;
use super::skipped::{Bad, BadKind, Wrong};
use super::source::Layout;
use super::{LONGEST, bad, check_length};
use crate::data::pipeline::ordered;
use crate::error::{Error, Result};

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub layout: Layout,
    pub rows: u64,
    /// Rows to read at a time: whole chunks where the file has such.
    pub window: u64,
    /// Bytes of these rows.
    pub window_bytes: usize,
    /// Most tokens of a sequence.
    pub longest: usize,
    /// The padded lengths, where there is padding.
    pub shape: Option<Shape>,
    /// Whether there are next-sentence labels.
    pub labels: bool,
}

/// A file's plan, or what is wrong with the file.
pub(super) type Planned = std::result::Result<Plan, Wrong>;

/// Looks at every file: its layout, and how long its sequences are.
///
/// # Errors
/// Without `skip_bad`, the first file that is bad. In any case padded files of different lengths, and files with and without
/// next-sentence labels.
pub(super) fn plan(
    files: &[InputFile],
    skip_bad: bool,
    block_bytes: usize,
    threads: usize,
) -> Result<Vec<Planned>> {
    let mut plans = Vec::with_capacity(files.len());
    let mut first: Option<(usize, Shape)> = None;
    let mut labels: Option<(usize, bool)> = None;
    ordered(
        threads,
        threads * 2,
        |emit| files.iter().try_for_each(|file| emit(file, 1)),
        || |file: &InputFile| plan_file(file, block_bytes),
        |planned: Planned| {
            let index = plans.len();
            let file = &files[index];
            match &planned {
                Err(wrong) if !skip_bad => return Err(bad(&file.path, &Bad::file(wrong.clone()).message())),
                Err(_) => {}
                Ok(plan) => {
                    let (other, expected) = *labels.get_or_insert((index, plan.labels));
                    same_labels(file, plan.labels, &files[other], expected)?;
                    if let Some(shape) = plan.shape {
                        let (other, expected) = *first.get_or_insert((index, shape));
                        same_shape(file, shape, &files[other], expected)?;
                    }
                }
            }
            plans.push(planned);
            Ok(())
        },
    )?;
    Ok(plans)
}

fn same_labels(file: &InputFile, found: bool, other: &InputFile, expected: bool) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = if found { ("there", "none") } else { ("missing", "some") };
    let other = other.path.display();
    let what = format!("next_sentence_labels: {found}, expected {expected} as in {other}; import them apart");
    Err(Error::file(&file.path, what))
}

fn same_shape(file: &InputFile, found: Shape, other: &InputFile, expected: Shape) -> Result<()> {
    let other = other.path.display();
    for (field, found, expected) in [
        ("input_ids", found.sequence, expected.sequence),
        ("masked_lm_positions", found.predictions, expected.predictions),
    ] {
        if found != expected {
            let what = format!(
                "{field}: {found} values a row, expected {expected} as in {other}; import them apart"
            );
            return Err(Error::file(&file.path, what));
        }
    }
    Ok(())
}

fn plan_file(file: &InputFile, block_bytes: usize) -> Result<Planned> {
    Ok(match Table::open(&file.path)? {
        Err(wrong) => Err(wrong),
        Ok(table) => table.plan(block_bytes).and_then(|plan| match plan.shape {
            Some(shape) => check_length("input_ids", shape.sequence)
                .and_then(|()| match shape.predictions {
                    0..=LONGEST => Ok(plan),
                    n => Err(format!("masked_lm_positions: {n} values a row, expected at most {LONGEST}")),
                })
                .map_err(|what| Wrong::new(BadKind::Length, what)),
            None => Ok(plan),
        }),
    })
}

/// Sequences cannot be longer.
pub(super) const MOST_TOKENS: usize = LONGEST;
