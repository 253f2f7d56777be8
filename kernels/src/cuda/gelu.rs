//! Launches of cu/gelu.cu.

use super::columns::{Columns, aligned, at, wide};
use super::device::Device;
use super::launch::{Launch, kernel};
use super::{Cuda, Element};
use crate::Result;
use crate::backend::{Gelu, GeluBackward, GeluForward, Size2, TanhBackward, TanhForward};
use crate::error::{check_len, check_range};

/// Threads of a block and vectors of a thread of the elementwise kernels, as in cu/gelu.cu.
const MAP: [usize; 2] = [256, 4];

/// Runs an elementwise kernel, of vectors or of single elements, that has got its other arguments.
///
/// # Safety
/// As [`Launch::run`], over `n` elements.
unsafe fn map<E>(launch: Launch<'_>, n: usize, vectors: bool) -> Result<()> {
    let width = if vectors { wide::<E>() } else { 1 };
    let blocks = n.div_ceil(width * MAP[0] * MAP[1]);
    // SAFETY: the caller's
    unsafe { launch.arg(n as u64).run([blocks, 1, 1], [MAP[0], 1, 1], 0) }
}

pub(super) fn forward<E: Element>(device: &Device, args: GeluForward<'_, Cuda<E>>) -> Result<()> {
    let GeluForward { mut y, x, kind } = args;
    check_len("gelu_forward", "y", y.len(), x.len())?;
    let vectors = aligned(&[y.ptr(), x.ptr()]);
    let name = match (kind, vectors) {
        (Gelu::Tanh, true) => kernel!(E, "gelu_tanh_forward"),
        (Gelu::Tanh, false) => kernel!(E, "gelu_tanh_forward_any"),
        (Gelu::Erf, true) => kernel!(E, "gelu_erf_forward"),
        (Gelu::Erf, false) => kernel!(E, "gelu_erf_forward_any"),
    };
    let launch = Launch::new(device, name).view_mut(&mut y).view(&x);
    // SAFETY: the arguments are the kernel's, and their lengths were checked
    unsafe { map::<E>(launch, x.len(), vectors) }
}

pub(super) fn backward<E: Element>(device: &Device, args: GeluBackward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "gelu_backward";
    let GeluBackward { mut dy, x, kind, grads, dbias, size: Size2 { rows, cols } } = args;
    check_len(OP, "dy", dy.len(), rows * cols)?;
    check_len(OP, "x", x.len(), rows * cols)?;
    check_range(OP, "dbias", grads.len(), &dbias, cols)?;
    if rows * cols == 0 {
        return Ok(());
    }
    let vectors = cols.is_multiple_of(wide::<E>()) && aligned(&[dy.ptr(), x.ptr()]);
    let name = match (kind, vectors) {
        (Gelu::Tanh, true) => kernel!(E, "gelu_tanh_backward"),
        (Gelu::Tanh, false) => kernel!(E, "gelu_tanh_backward_any"),
        (Gelu::Erf, true) => kernel!(E, "gelu_erf_backward"),
        (Gelu::Erf, false) => kernel!(E, "gelu_erf_backward_any"),
    };
    let columns = Columns::new(device, rows, cols, if vectors { wide::<E>() } else { 1 });
    let partials = device.scratch(columns.partials(1, cols) * size_of::<f32>())?;
    let launch = Launch::new(device, name).arg(partials).view_mut(&mut dy).view(&x);
    let launch = launch.size(rows).size(cols).size(columns.chunk);
    // SAFETY: the arguments are the kernel's, and their lengths were checked; scratch has what `columns` asked for
    unsafe { columns.sum(device, launch, partials, at(grads.ptr(), &dbias), 1, cols) }
}

pub(super) fn tanh_forward<E: Element>(device: &Device, args: TanhForward<'_, Cuda<E>>) -> Result<()> {
    let mut y = args.y;
    let (n, vectors) = (y.len(), y.is_aligned());
    let name = if vectors { kernel!(E, "tanh_forward") } else { kernel!(E, "tanh_forward_any") };
    // SAFETY: the argument is the kernel's
    unsafe { map::<E>(Launch::new(device, name).view_mut(&mut y), n, vectors) }
}

pub(super) fn tanh_backward<E: Element>(device: &Device, args: TanhBackward<'_, Cuda<E>>) -> Result<()> {
    let TanhBackward { mut dy, y } = args;
    check_len("tanh_backward", "dy", dy.len(), y.len())?;
    let vectors = aligned(&[dy.ptr(), y.ptr()]);
    let name = if vectors { kernel!(E, "tanh_backward") } else { kernel!(E, "tanh_backward_any") };
    // SAFETY: the arguments are the kernel's, and their lengths were checked
    unsafe { map::<E>(Launch::new(device, name).view_mut(&mut dy).view(&y), y.len(), vectors) }
}
