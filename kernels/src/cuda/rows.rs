//! Launches of cu/rows.cu. Row numbers lie on the GPU and are not looked at here: whoever makes them has them in range.

use super::columns::{Columns, aligned, at, wide};
use super::device::Device;
use super::launch::{Launch, kernel};
use super::{Cuda, Element};
use crate::Result;
use crate::backend::{BiasGrad, GatherRows, ScatterAddRows, Size2};
use crate::error::{check_len, check_range, check_table};

/// Threads of a block, a warp of which takes a row.
const THREADS: usize = 256;
const WARP: usize = 32;

pub(super) fn gather<E: Element>(device: &Device, args: GatherRows<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "gather_rows";
    let GatherRows { mut y, x, rows, cols } = args;
    check_len(OP, "y", y.len(), rows.len() * cols)?;
    check_table(OP, "x", x.len(), cols)?;
    let vectors = cols.is_multiple_of(wide::<E>()) && aligned(&[y.ptr(), x.ptr()]);
    let name = if vectors { kernel!(E, "gather") } else { kernel!(E, "gather_any") };
    let launch = Launch::new(device, name).view_mut(&mut y).view(&x).view(&rows).size(rows.len()).size(cols);
    // SAFETY: the arguments are the kernel's, and their lengths were checked; the row numbers are the caller's promise
    unsafe { launch.run([rows.len().div_ceil(THREADS / WARP), 1, 1], [THREADS, 1, 1], 0) }
}

pub(super) fn scatter_add<E: Element>(device: &Device, args: ScatterAddRows<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "scatter_add_rows";
    let ScatterAddRows { mut x, y, rows, cols } = args;
    check_len(OP, "y", y.len(), rows.len() * cols)?;
    check_table(OP, "x", x.len(), cols)?;
    let vectors = cols.is_multiple_of(wide::<E>()) && aligned(&[y.ptr(), x.ptr()]);
    let name = if vectors { kernel!(E, "scatter_add") } else { kernel!(E, "scatter_add_any") };
    let launch = Launch::new(device, name).view_mut(&mut x).view(&y).view(&rows).size(rows.len()).size(cols);
    // SAFETY: the arguments are the kernel's, and their lengths were checked; the row numbers are the caller's promise
    unsafe { launch.run([rows.len().div_ceil(THREADS / WARP), 1, 1], [THREADS, 1, 1], 0) }
}

pub(super) fn bias_grad<E: Element>(device: &Device, args: BiasGrad<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "bias_grad";
    let BiasGrad { grads, dbias, dy, size: Size2 { rows, cols } } = args;
    check_range(OP, "dbias", grads.len(), &dbias, cols)?;
    check_len(OP, "dy", dy.len(), rows * cols)?;
    if rows * cols == 0 {
        return Ok(());
    }
    let vectors = cols.is_multiple_of(wide::<E>()) && dy.is_aligned();
    let name = if vectors { kernel!(E, "bias_grad") } else { kernel!(E, "bias_grad_any") };
    let columns = Columns::new(device, rows, cols, if vectors { wide::<E>() } else { 1 });
    let partials = device.scratch(columns.partials(1, cols) * size_of::<f32>())?;
    let launch = Launch::new(device, name).arg(partials).view(&dy).size(rows).size(cols).size(columns.chunk);
    // SAFETY: the arguments are the kernel's, and their lengths were checked; scratch has what `columns` asked for
    unsafe { columns.sum(device, launch, partials, at(grads.ptr(), &dbias), 1, cols) }
}
