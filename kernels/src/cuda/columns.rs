//! Sums over rows: each block of a kernel writes its own, and a second kernel adds the blocks in their order.

use super::device::Device;
use super::launch::Launch;
use crate::Result;
use std::ops::Range;

/// Rows that a block of `column_sums` reads at once, as in cu/common/columns.cuh.
const ROWS: usize = 8;
const WARP: usize = 32;
/// Blocks of `column_sums` for each multiprocessor: a few rounds of what it holds, so that the last round's idle ones
/// cost little.
const BLOCKS: usize = 16;

/// Elements of `size` bytes that one access moves.
pub(super) const fn wide<E>() -> usize {
    16 / size_of::<E>()
}

/// How a kernel over columns is launched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    stripes: usize,
    chunks: usize,
    /// Rows of a block.
    pub chunk: usize,
}

impl Columns {
    /// For `[rows, cols]` of which a thread takes `width` columns. It depends on the sizes and the GPU alone.
    pub fn new(device: &Device, rows: usize, cols: usize, width: usize) -> Self {
        let stripes = cols.div_ceil(WARP * width);
        let wanted = (BLOCKS * device.multiprocessors()).div_ceil(stripes.max(1));
        let chunk = rows.div_ceil(wanted).next_multiple_of(ROWS).max(4 * ROWS);
        Self { stripes, chunks: rows.div_ceil(chunk), chunk }
    }

    /// Floats of the partial sums, for `sets` sums a column.
    pub fn partials(&self, sets: usize, cols: usize) -> usize {
        self.chunks * sets * cols
    }

    /// Runs a kernel over columns that has got its arguments, then adds its sums, `[sets * cols]`, to `dst`.
    ///
    /// # Safety
    /// As [`Launch::run`]; the kernel's `partials` have [`Self::partials`] floats, `dst` has `sets * cols`.
    pub unsafe fn sum(
        &self,
        device: &Device,
        launch: Launch<'_>,
        partials: u64,
        dst: u64,
        sets: usize,
        cols: usize,
    ) -> Result<()> {
        // SAFETY: the caller's
        unsafe {
            launch.run([self.stripes, self.chunks, sets], [WARP, ROWS, 1], 0)?;
            add_partials(device, &[dst], partials, self.chunks, sets * cols)
        }
    }
}

/// Adds `partials` \[blocks, dst.len(), cols\] to up to three tensors of `cols` elements; address 0 leaves one out.
///
/// # Safety
/// The addresses point to that many floats.
pub(super) unsafe fn add_partials(
    device: &Device,
    dst: &[u64],
    partials: u64,
    blocks: usize,
    cols: usize,
) -> Result<()> {
    let at = |i: usize| dst.get(i).copied().unwrap_or(0);
    let launch = Launch::new(device, "add_partials_f32").arg(at(0)).arg(at(1)).arg(at(2));
    let launch = launch.arg(partials).size(blocks).size(cols);
    // SAFETY: the caller's
    unsafe { launch.run([cols.div_ceil(WARP), dst.len(), 1], [WARP, WARP, 1], 0) }
}

/// Address of a checked range of the flat table that begins at `table`.
pub(super) fn at(table: u64, range: &Range<usize>) -> u64 {
    table + (range.start * size_of::<f32>()) as u64
}

/// Whether accesses of 16 bytes may start at each address.
pub(super) fn aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|a| a.is_multiple_of(16))
}
