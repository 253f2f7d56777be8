//! Launches of cu/nonfinite.cu.

use super::device::Device;
use super::launch::Launch;
use super::{View, ViewMut};
use crate::Result;
use crate::backend::STRETCH;
use crate::error::check_len;

/// Threads of the one block.
const THREADS: usize = 512;
// The kernel's stretches are the backend's.
const _: () = assert!(STRETCH == 1 << 14);

pub(super) fn find_nonfinite(
    device: &Device,
    mut place: ViewMut<'_, f32>,
    x: View<'_, f32>,
    norm: View<'_, f32>,
) -> Result<()> {
    check_len("find_nonfinite", "place", place.len(), 2)?;
    check_len("find_nonfinite", "norm", norm.len(), 1)?;
    let launch =
        Launch::new(device, "find_nonfinite_f32").view_mut(&mut place).view(&x).view(&norm).size(x.len());
    // SAFETY: the kernel's parameters in order; it reads x.len() elements of x and one of norm, and writes two
    unsafe { launch.run([1, 1, 1], [THREADS, 1, 1], 0) }
}
