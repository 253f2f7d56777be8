//! Memory of the host that the GPU reads and writes by itself.

use super::device::Device;
use super::events::Event;
use super::failure::Doing;
use crate::{Error, Result};
use cudarc::driver::result as driver;
use std::collections::VecDeque;
use std::sync::Arc;

/// The smallest buffer, in bytes.
const SMALLEST: usize = 4096;

/// A pinned buffer.
pub(super) struct Pinned {
    device: Arc<Device>,
    ptr: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(device: &Arc<Device>, wanted: usize) -> Result<Self> {
        let bytes = wanted.checked_next_power_of_two().unwrap_or(wanted).max(SMALLEST);
        device.leave_graph()?;
        device.bind()?;
        // Flags 0: the memory is cached as any other. Memory that is meant for writing only is slow to read.
        // SAFETY: freed on drop
        match unsafe { driver::malloc_host(bytes, 0) } {
            Ok(ptr) => {
                // SAFETY: `bytes` bytes that nobody else has
                unsafe { ptr.cast::<u8>().write_bytes(0, bytes) };
                Ok(Self { device: device.clone(), ptr: ptr.cast(), bytes })
            }
            Err(error) if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { what: "copies between host and GPU", bytes })
            }
            Err(error) => Err(error).doing(&format!("cannot pin {bytes} bytes of the host's memory")),
        }
    }

    /// The contents. Only while the GPU does not use them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialized bytes, borrowed with self
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    /// The contents. Only while the GPU does not use them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` initialized bytes, borrowed mutably with self
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A destructor has nobody to tell of a failure.
        let _ = self.device.leave_graph();
        // SAFETY: allocated in `new`, freed once; its owner saw to it that the GPU is done with it
        let _ = self.device.bind().map(|()| unsafe { driver::free_host(self.ptr.cast()) });
    }
}

/// Pinned buffers that wait to be used again, each with the point at which the GPU is done with it.
pub(super) struct Pool {
    device: Arc<Device>,
    idle: VecDeque<(Pinned, Option<Arc<Event>>)>,
    /// Buffers that there are before one is waited for.
    most: usize,
}

impl Pool {
    pub fn new(device: &Arc<Device>, most: usize) -> Self {
        Self { device: device.clone(), idle: VecDeque::new(), most }
    }

    /// A buffer of at least `bytes` bytes that the GPU does not use. Waits for the oldest one where `most` are in use.
    pub fn take(&mut self, bytes: usize) -> Result<Pinned> {
        let unused = self.idle.iter().position(|(buffer, busy)| busy.is_none() && buffer.bytes >= bytes);
        if let Some((buffer, _)) = unused.and_then(|at| self.idle.remove(at)) {
            return Ok(buffer);
        }
        if self.idle.len() >= self.most
            && let Some((buffer, busy)) = self.idle.pop_front()
        {
            if let Some(busy) = busy {
                busy.synchronize()?;
            }
            if buffer.bytes >= bytes {
                return Ok(buffer);
            }
        }
        Pinned::new(&self.device, bytes)
    }

    /// Gives a buffer back, which the GPU uses until `busy` has passed.
    pub fn give(&mut self, buffer: Pinned, busy: Option<Arc<Event>>) {
        self.idle.push_back((buffer, busy));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for busy in self.idle.iter().filter_map(|(_, busy)| busy.as_ref()) {
            let _ = busy.synchronize();
        }
    }
}
