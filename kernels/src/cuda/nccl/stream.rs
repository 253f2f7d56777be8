//! The stream on which the ranks' operations are queued, and what runs there besides them.

use crate::Result;
use crate::cuda::device::Device;
use crate::cuda::failure::Doing;
use crate::cuda::launch::Launch;
use cudarc::driver::result as driver;
use cudarc::driver::sys;
use std::sync::Arc;

/// Elements of bf16 in 16 bytes.
pub(super) const WIDE: usize = 8;

/// A stream beside the ops.
pub(super) struct Stream {
    device: Arc<Device>,
    pub raw: sys::CUstream,
}

// SAFETY: the handle is the driver's, which may be used from any thread
unsafe impl Send for Stream {}

impl Stream {
    /// One whose work goes before that of the ops where the GPU has room for one of the two only: others wait for it.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let (mut least, mut greatest, mut raw) = (0, 0, std::ptr::null_mut());
        // SAFETY: all places live through the calls
        unsafe {
            sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest)
                .doing("cannot read the GPU's priorities")?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            sys::cuStreamCreateWithPriority(&mut raw, flags, greatest).doing("cannot create a stream")?;
        }
        Ok(Self { device: device.clone(), raw })
    }

    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives as long as self
        unsafe { driver::stream::synchronize(self.raw) }.doing("the GPU failed at work queued before")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A destructor has nobody to tell of a failure.
        let _ = self.synchronize();
        // SAFETY: nothing is queued on it any more, and nobody else has it
        let _ = unsafe { driver::stream::destroy(self.raw) };
    }
}

/// Queues one of the casts of cu/cast.cu.
pub(super) fn cast(
    device: &Device,
    stream: &Stream,
    kernel: &'static str,
    to: u64,
    from: u64,
    len: usize,
) -> Result<()> {
    const THREADS: usize = 256;
    let blocks = len.div_ceil(THREADS * WIDE).min(8 * device.multiprocessors());
    let launch = Launch::new(device, kernel).arg(to).arg(from).arg(len as u64);
    // SAFETY: both have `len` elements of their types, which the caller checked
    unsafe { launch.run_on(stream.raw, [blocks, 1, 1], [THREADS, 1, 1], 0) }
}
