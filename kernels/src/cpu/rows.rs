//! Gathering rows, and adding rows back where they came from. Bound by memory.

use crate::backend::{GatherRows, ScatterAddRows};
use crate::cpu::Cpu;
use crate::cpu::math::{add, check_indices, grain, simd};
use crate::error::{check_len, check_table};
use crate::{Result, Scalar};
use rayon::prelude::*;

/// Columns that one task of [`add_at`] takes.
const COLUMNS: usize = 128;

pub(super) fn gather<T: Scalar>(args: GatherRows<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "gather_rows";
    let GatherRows { y, x, rows, cols } = args;
    check_len(OP, "y", y.len(), rows.len() * cols)?;
    let available = check_table(OP, "x", x.len(), cols)?;
    check_indices(OP, "rows", rows, available)?;
    y.par_chunks_mut(cols.max(1)).zip(rows).with_min_len(grain(cols)).for_each(|(y, &row)| {
        y.copy_from_slice(&x[row as usize * cols..][..cols]);
    });
    Ok(())
}

pub(super) fn scatter_add<T: Scalar>(args: ScatterAddRows<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "scatter_add_rows";
    let ScatterAddRows { x, y, rows, cols } = args;
    check_len(OP, "y", y.len(), rows.len() * cols)?;
    let available = check_table(OP, "x", x.len(), cols)?;
    check_indices(OP, "rows", rows, available)?;
    let pairs = || rows.iter().enumerate().map(|(from, &to)| (from, to as usize));
    add_at(x, y, cols, rows.len(), pairs);
    Ok(())
}

/// `table[to] += y[from]` for every pair (from, to) in their order. Tasks are ranges of columns, so that repeated
/// targets are added in that order, too, by one thread. The pairs must be inside both.
pub(super) fn add_at<T: Scalar, I: Iterator<Item = (usize, usize)>>(
    table: &mut [T],
    y: &[T],
    cols: usize,
    pairs_len: usize,
    pairs: impl Fn() -> I + Sync,
) {
    let rows = table.len() / cols;
    let table = Shared::new(table.as_mut_ptr());
    (0..cols.div_ceil(COLUMNS)).into_par_iter().with_min_len(grain(pairs_len * COLUMNS)).for_each(|task| {
        let start = task * COLUMNS;
        let width = COLUMNS.min(cols - start);
        simd!(|| {
            for (from, to) in pairs() {
                assert!(to < rows);
                // SAFETY: row `to` lies in the table, and no other task has these columns
                let row = unsafe { table.slice(to * cols + start, width) };
                add(row, &y[from * cols + start..][..width]);
            }
        });
    });
}

/// A buffer that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

// SAFETY: the pointer is only turned into slices by `slice`, whose callers promise disjoint parts
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(at: *mut T) -> Self {
        Self(at)
    }

    /// Address of an element.
    pub fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }

    /// Part of the buffer.
    ///
    /// # Safety
    /// The part must lie in the buffer, which must be mutably borrowed for as long as the slice lives, and no other
    /// task may have a slice that overlaps it.
    #[inline(always)]
    pub unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}
