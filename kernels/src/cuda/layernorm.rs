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
/// Threads of a block of backward, of the kernels for any length, too, as in cu/common/layernorm.cuh.
pub(super) const BACKWARD_THREADS: usize = 256;
/// Threads of a block of the forward kernels for any length, as in cu/common/layernorm.cuh.
const ANY_THREADS: usize = 256;

/// The smallest of the kernels, by the columns that its warps hold, that takes rows of `cols`; none if only the
/// one for any length does.
pub(super) fn columns_held<E>(cols: usize, addresses: &[u64]) -> Option<usize> {
    let vectors = cols.is_multiple_of(wide::<E>()) && aligned(addresses);
    [256, 512, 768, 1024].into_iter().find(|&held| vectors && cols <= held)
}

/// Grid, block and bytes of shared memory of a forward kernel that holds `held` columns in a warp, or of the one for any
/// length, which has a row in shared memory.
pub(super) fn forward_blocks(held: Option<usize>, [rows, h]: [usize; 2]) -> ([usize; 3], [usize; 3], usize) {
    match held {
        Some(_) => ([rows.div_ceil(FORWARD_THREADS / WARP), 1, 1], [FORWARD_THREADS, 1, 1], 0),
        None => ([rows, 1, 1], [ANY_THREADS, 1, 1], h * size_of::<f32>()),
    }
}

/// Number of blocks of a backward kernel that holds `held` columns in a warp, or of the one for any length: those that fit
/// the GPU at once. Each writes column sums. It depends on the sizes and the GPU alone.
pub(super) fn backward_blocks(device: &Device, held: Option<usize>, rows: usize) -> usize {
    let (resident, at_once) = match held {
        Some(256) => (4, BACKWARD_THREADS / WARP),
        Some(512) => (2, BACKWARD_THREADS / WARP),
        Some(_) => (1, BACKWARD_THREADS / WARP),
        None => (4, 1),
    };
    rows.div_ceil(at_once).min(resident * device.multiprocessors())
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
    let held = columns_held::<E>(h, &[y.ptr(), z.ptr(), residual, gamma.ptr(), beta.ptr()]);
    let name = match held {
        Some(256) => kernel!(E, "layernorm_forward_256"),
        Some(512) => kernel!(E, "layernorm_forward_512"),
        Some(768) => kernel!(E, "layernorm_forward_768"),
        Some(_) => kernel!(E, "layernorm_forward_1024"),
        None => kernel!(E, "layernorm_forward_any"),
    };
    let launch = Launch::new(device, name).view_mut(&mut y).view_mut(&mut z).arg(residual);
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
    let held = columns_held::<E>(h, &[dz.ptr(), dx.ptr(), dy.ptr(), z.ptr(), gamma.ptr()]);
    let blocks = backward_blocks(device, held, rows);
    let partials = device.scratch(blocks * ranges.len() * h * size_of::<f32>())?;
    let name = match held {
        Some(256) => kernel!(E, "layernorm_backward_256"),
        Some(512) => kernel!(E, "layernorm_backward_512"),
        Some(768) => kernel!(E, "layernorm_backward_768"),
        Some(_) => kernel!(E, "layernorm_backward_1024"),
        None => kernel!(E, "layernorm_backward_any"),
    };
    let launch = Launch::new(device, name).view_mut(&mut dz).view_mut(&mut dx).view(&dy).view(&z);
    let launch = launch.view(&mean).view(&rstd).view(&gamma).arg(partials).size(rows).size(h).arg(d);
    let dst = ranges.map(|(_, range)| range.map_or(0, |range| at(grads.ptr(), range)));
    // SAFETY: the arguments are the kernels', and their lengths were checked; scratch has a row for each block and tensor
    unsafe {
        launch.run([blocks, 1, 1], [BACKWARD_THREADS, 1, 1], 0)?;
        add_partials(device, &dst, partials, blocks, h)
    }
}
