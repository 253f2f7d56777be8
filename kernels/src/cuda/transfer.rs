//! Copies beside the ops, numbers on their way to the host, and the points by which the two are ordered.
//!
//! There are two streams: ops run on one, batches arrive on the other. A batch goes through a pinned buffer, so that the
//! host may change its own at once, and the buffer is used again when the GPU has read it.

use super::device::{Device, lock};
use super::events::Event;
use super::failure::Doing;
use super::pinned::{Pinned, Pool};
use super::{View, ViewMut};
use crate::error::check_len;
use crate::{Error, Result};
use cudarc::driver::result as driver;
use std::sync::{Arc, Mutex};

/// Batches that may be on their way before the host waits for one.
const UPLOADS: usize = 4;
/// Buffers for numbers on their way to the host that are kept.
const READS: usize = 8;

/// A point in the order of the ops, or the end of a copy beside them.
pub struct Mark(Arc<Event>);

/// Numbers on their way to the host.
pub struct Pending {
    /// None once they have been read.
    buffer: Option<Pinned>,
    /// Passes when they have arrived.
    arrived: Event,
    len: usize,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.buffer.is_some() {
            // Nobody wants the numbers, but the GPU may still be writing them.
            let _ = self.arrived.synchronize();
        }
    }
}

/// The device's copies.
pub(super) struct Transfer {
    device: Arc<Device>,
    /// Whether steps become graphs.
    graph: bool,
    uploads: Mutex<Pool>,
    reads: Mutex<Pool>,
}

impl Transfer {
    pub(super) fn new(device: &Arc<Device>, graph: bool) -> Self {
        let pool = |most| Mutex::new(Pool::new(device, most));
        Self { device: device.clone(), graph, uploads: pool(UPLOADS), reads: pool(READS) }
    }

    pub(super) fn mark(&self) -> Result<Mark> {
        self.device.leave_graph()?;
        let mark = Mark(Arc::new(Event::record(&self.device, self.device.compute())?));
        self.device.resume_graph();
        Ok(mark)
    }

    pub(super) fn wait(&self, mark: &Mark) -> Result<()> {
        self.device.leave_graph()?;
        mark.0.hold(self.device.compute())?;
        self.device.resume_graph();
        Ok(())
    }

    pub(super) fn upload_beside(&self, dst: ViewMut<'_, u32>, src: &[u32], after: &Mark) -> Result<Mark> {
        check_len("upload_beside", "src", src.len(), dst.len())?;
        let (device, src) = (&self.device, bytemuck::cast_slice::<_, u8>(src));
        let mut uploads = lock(&self.uploads);
        let mut buffer = uploads.take(src.len())?;
        buffer.bytes_mut()[..src.len()].copy_from_slice(src);
        after.0.hold(device.copies())?;
        if !src.is_empty() {
            // SAFETY: `dst` has as many bytes; the buffer is not touched before the event below has passed
            unsafe { driver::memcpy_htod_async(dst.ptr(), &buffer.bytes()[..src.len()], device.copies()) }
                .doing("cannot copy to the GPU")?;
        }
        let arrived = Arc::new(Event::record(device, device.copies())?);
        uploads.give(buffer, Some(arrived.clone()));
        Ok(Mark(arrived))
    }

    pub(super) fn read_later(&self, parts: &[View<'_, f32>]) -> Result<Pending> {
        let device = &self.device;
        let len = parts.iter().map(View::len).sum::<usize>();
        let mut buffer = lock(&self.reads).take(len * size_of::<f32>())?;
        device.leave_graph()?;
        device.bind()?;
        let mut rest = buffer.bytes_mut();
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let (place, after) = rest.split_at_mut(part.len() * size_of::<f32>());
            // SAFETY: both have that many bytes; the buffer is not touched before the event below has passed
            unsafe { driver::memcpy_dtoh_async(place, part.ptr(), device.compute()) }
                .doing("cannot copy from the GPU")?;
            rest = after;
        }
        let arrived = Event::record(device, device.compute())?;
        device.resume_graph();
        Ok(Pending { buffer: Some(buffer), arrived, len })
    }

    pub(super) fn read(&self, mut pending: Pending) -> Result<Vec<f32>> {
        pending.arrived.synchronize()?;
        let Some(buffer) = pending.buffer.take() else {
            return Err(Error::Device("numbers on their way to the host were read twice".into()));
        };
        let numbers = buffer.bytes()[..pending.len * size_of::<f32>()]
            .chunks_exact(size_of::<f32>())
            .map(bytemuck::pod_read_unaligned)
            .collect();
        lock(&self.reads).give(buffer, None);
        Ok(numbers)
    }

    pub(super) fn begin_step(&self) -> Result<()> {
        if self.graph { self.device.begin_graphs() } else { Ok(()) }
    }

    pub(super) fn end_step(&self) -> Result<()> {
        if self.graph { self.device.end_graphs() } else { Ok(()) }
    }
}
