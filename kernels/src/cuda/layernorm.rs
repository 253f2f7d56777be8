//! Launches of cu/layernorm.cu.

use super::columns::{add_partials, aligned, at, wide};
use super::device::Device;
use super::launch::{Launch, dropout, kernel};
use super::{Cuda, Element};
use crate::Result;
use crate::backend::{LayerNormBackward, LayerNormForward};
use crate::error::{check_len, check_range};

const WARP: usize = 32;
/// Threads of a block of the forward kernels that hold a row in a warp.
const FORWARD_THREADS: usize = 128;
/// Threads of a block of the backward kernels that hold a row in a warp, as in cu/common/layernorm.cuh.
const BACKWARD_THREADS: usize = 256;
/// Threads of a block of the kernels for any length, as in cu/common/layernorm.cuh.
const ANY_THREADS: usize = 256;
/// Columns that a thread has where a block holds a row, forward and backward: `WIDE_FORWARD_VECS` and `WIDE_BACKWARD_VECS` of
/// cu/common/layernorm.cuh, in columns.
const WIDE_COLUMNS: [usize; 2] = [16, 8];
/// The longest row that a block holds.
const WIDEST: usize = 4096;
/// Threads of a multiprocessor that a backward kernel keeps busy whose blocks hold a row.
const WIDE_RESIDENT: usize = 512;

/// Who holds a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// A warp, by the kernel for at most this many columns.
    Warp(usize),
    /// A block.
    Block,
    /// Nobody: one column a thread at a time.
    Any,
}

/// Of rows of `cols` elements; vectors need addresses that are multiples of 16.
pub(super) fn holder<E>(cols: usize, addresses: &[u64]) -> Held {
    if !cols.is_multiple_of(wide::<E>()) || !aligned(addresses) || cols > WIDEST {
        return Held::Any;
    }
    [256, 512, 768, 1024].into_iter().find(|&held| cols <= held).map_or(Held::Block, Held::Warp)
}

/// The symbol of the op's kernel for a holder: `held!(E, held, "name")` is `name_256_f32` or the like.
macro_rules! held {
    ($element:ty, $held:expr, $name:literal) => {
        match $held {
            $crate::cuda::layernorm::Held::Warp(256) => kernel!($element, $name, "_256"),
            $crate::cuda::layernorm::Held::Warp(512) => kernel!($element, $name, "_512"),
            $crate::cuda::layernorm::Held::Warp(768) => kernel!($element, $name, "_768"),
            $crate::cuda::layernorm::Held::Warp(_) => kernel!($element, $name, "_1024"),
            $crate::cuda::layernorm::Held::Block => kernel!($element, $name, "_wide"),
            $crate::cuda::layernorm::Held::Any => kernel!($element, $name, "_any"),
        }
    };
}
pub(super) use held;

/// Threads of a block that holds a row of `h` columns, `columns` a thread.
fn block_threads(h: usize, columns: usize) -> usize {
    h.div_ceil(columns).next_multiple_of(WARP)
}

/// Grid, block and bytes of shared memory of a forward kernel.
pub(super) fn forward_blocks(held: Held, [rows, h]: [usize; 2]) -> ([usize; 3], [usize; 3], usize) {
    match held {
        Held::Warp(_) => ([rows.div_ceil(FORWARD_THREADS / WARP), 1, 1], [FORWARD_THREADS, 1, 1], 0),
        Held::Block => ([rows, 1, 1], [block_threads(h, WIDE_COLUMNS[0]), 1, 1], 0),
        // a row in shared memory
        Held::Any => ([rows, 1, 1], [ANY_THREADS, 1, 1], h * size_of::<f32>()),
    }
}

/// Blocks, threads of each and bytes of their shared memory, of a backward kernel. The blocks are those that fit the GPU at once,
/// as each writes column sums. Their number depends on the sizes and the GPU alone.
pub(super) fn backward_blocks<E: Element>(
    device: &Device,
    held: Held,
    [rows, h]: [usize; 2],
) -> (usize, [usize; 3], usize) {
    let (threads, at_once, resident) = match held {
        Held::Warp(256) => (BACKWARD_THREADS, BACKWARD_THREADS / WARP, 2),
        Held::Warp(_) => (BACKWARD_THREADS, BACKWARD_THREADS / WARP, 1),
        Held::Block => {
            let threads = block_threads(h, WIDE_COLUMNS[1]);
            (threads, 1, WIDE_RESIDENT / threads)
        }
        Held::Any => (ANY_THREADS, 1, 4),
    };
    // `RowRing` of cu/common/layernorm.cuh: dy and z of a few rows for each holder
    let stages = if size_of::<E>() == 2 { 3 } else { 1 };
    let shared = match held {
        Held::Warp(columns) => at_once * stages * 2 * columns * size_of::<E>(),
        Held::Block => stages * 2 * threads * WIDE_COLUMNS[1] * size_of::<E>(),
        Held::Any => 0,
    };
    (rows.div_ceil(at_once).min(resident * device.multiprocessors()), [threads, 1, 1], shared)
}

pub(super) fn forward<E: Element>(device: &Device, args: LayerNormForward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "layernorm_forward";
    let LayerNormForward { mut y, mut z, residual, mut mean, mut rstd, gamma, beta, eps, dropout: d } = args;
    let (rows, h) = (mean.len(), gamma.len());
    check_len(OP, "y", y.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    check_len(OP, "beta", beta.len(), h)?;
    if let Some(residual) = residual {
        check_len(OP, "residual", residual.len(), rows * h)?;
    }
    let d = dropout(OP, d, rows)?;
    if rows * h == 0 {
        return Ok(());
    }
    let residual = residual.map_or(0, |r| r.ptr());
    let held = holder::<E>(h, &[y.ptr(), z.ptr(), residual, gamma.ptr(), beta.ptr()]);
    let launch = Launch::new(device, held!(E, held, "layernorm_forward"))
        .view_mut(&mut y)
        .view_mut(&mut z)
        .arg(residual);
    let launch = launch.view_mut(&mut mean).view_mut(&mut rstd).view(&gamma).view(&beta);
    let (grid, block, shared) = forward_blocks(held, [rows, h]);
    // SAFETY: the arguments are the kernel's, and their lengths were checked
    unsafe { launch.arg(eps as f32).size(rows).size(h).arg(d).run(grid, block, shared) }
}

pub(super) fn backward<E: Element>(device: &Device, args: LayerNormBackward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "layernorm_backward";
    let LayerNormBackward { mut dz, mut dx, dy, z, mean, rstd, gamma, grads, .. } = args;
    let LayerNormBackward { dgamma, dbeta, dbias, dropout: d, .. } = args;
    let (rows, h) = (mean.len(), gamma.len());
    check_len(OP, "dz", dz.len(), rows * h)?;
    check_len(OP, "dx", dx.len(), rows * h)?;
    check_len(OP, "dy", dy.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    let ranges = [("dgamma", Some(&dgamma)), ("dbeta", Some(&dbeta)), ("dbias", dbias.as_ref())];
    for (arg, range) in ranges {
        range.map_or(Ok(()), |range| check_range(OP, arg, grads.len(), range, h))?;
    }
    let d = dropout(OP, d, rows)?;
    if rows * h == 0 {
        return Ok(());
    }
    let held = holder::<E>(h, &[dz.ptr(), dx.ptr(), dy.ptr(), z.ptr(), gamma.ptr()]);
    let (blocks, threads, shared) = backward_blocks::<E>(device, held, [rows, h]);
    let partials = device.scratch(blocks * ranges.len() * h * size_of::<f32>())?;
    let launch = Launch::new(device, held!(E, held, "layernorm_backward"))
        .view_mut(&mut dz)
        .view_mut(&mut dx)
        .view(&dy)
        .view(&z);
    let launch = launch.view(&mean).view(&rstd).view(&gamma).arg(partials).size(rows).size(h).arg(d);
    let dst = ranges.map(|(_, range)| range.map_or(0, |range| at(grads.ptr(), range)));
    // SAFETY: the arguments are the kernels', and their lengths were checked; scratch has a row for each block and tensor
    unsafe {
        launch.run([blocks, 1, 1], threads, shared)?;
        add_partials(device, &dst, partials, blocks, h)
    }
}
