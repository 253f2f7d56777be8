//! Launches of cu/cross_entropy.cu.

use super::device::Device;
use super::launch::{Launch, kernel};
use super::{Cuda, Element};
use crate::backend::*;
use crate::error::check_len;
use crate::{Error, Result};

/// Vectors of 16 bytes that a thread holds: `HELD` of cu/cross_entropy.cu.
const HELD: usize = 8;
/// Rows shorter than this take a warp each.
const SHORT: usize = 512;
/// Warps of a block where a row takes one.
const WARPS: usize = 8;

/// Labels are not checked: they are on the device. One that is no class makes the loss NaN.
pub(super) fn cross_entropy<E: Element>(device: &Device, args: CrossEntropy<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "cross_entropy";
    let CrossEntropy { mut logits, labels, classes, stride, scale, mut sums } = args;
    let rows = labels.len();
    check_len(OP, "logits", logits.len(), rows * stride)?;
    check_len(OP, "sums", sums.len(), 2)?;
    if classes == 0 || classes > stride {
        let what = format!("{classes} classes in rows of {stride} elements");
        return Err(Error::Unsupported { op: OP, what });
    }
    if rows == 0 {
        return Ok(());
    }
    let losses = device.scratch(rows * size_of::<[f32; 2]>())?;
    let wide = 16 / size_of::<E>();
    let (factor, write) = (scale.unwrap_or(0.0) as f32, u32::from(scale.is_some()));
    if stride >= SHORT && stride.is_multiple_of(wide) && logits.is_aligned() {
        let threads = (stride / wide).div_ceil(HELD).next_multiple_of(32).min(1024);
        let launch = Launch::new(device, kernel!(E, "cross_entropy_block"));
        let launch = launch.view_mut(&mut logits).arg(losses).view(&labels);
        let launch = launch.size(classes).size(stride).arg(factor).arg(write);
        // SAFETY: `logits` has rows * stride elements and is aligned, `losses` two floats and `labels` one label a row
        unsafe { launch.run([rows, 1, 1], [threads, 1, 1], 0) }?;
    } else {
        let launch = Launch::new(device, kernel!(E, "cross_entropy_warp"));
        let launch = launch.view_mut(&mut logits).arg(losses).view(&labels);
        let launch = launch.size(rows).size(classes).size(stride).arg(factor).arg(write);
        // SAFETY: as above, without the alignment
        unsafe { launch.run([rows.div_ceil(WARPS), 1, 1], [32 * WARPS, 1, 1], 0) }?;
    }
    let launch = Launch::new(device, "cross_entropy_sums_f32");
    let launch = launch.view_mut(&mut sums).arg(losses).size(rows);
    // SAFETY: `sums` has two elements, `losses` two a row
    unsafe { launch.run([1, 1, 1], [1024, 1, 1], 0) }
}
