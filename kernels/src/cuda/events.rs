//! Points on streams. Events are made once and used again.

use super::device::{Device, lock};
use super::failure::Doing;
use crate::Result;
use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUevent_flags};
use std::sync::Arc;

/// Whether an event can tell the time, which makes it slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Without,
    With,
}

/// Events that nobody uses now.
#[derive(Default)]
pub(super) struct Pool {
    without: Vec<sys::CUevent>,
    with: Vec<sys::CUevent>,
}

impl Pool {
    fn of(&mut self, clock: Clock) -> &mut Vec<sys::CUevent> {
        match clock {
            Clock::Without => &mut self.without,
            Clock::With => &mut self.with,
        }
    }

    /// Destroys them all; the context is current.
    pub(super) fn clear(&mut self) {
        for event in self.without.drain(..).chain(self.with.drain(..)) {
            // A destructor has nobody to tell of a failure.
            // SAFETY: made by `take_event`; nobody else has it
            let _ = unsafe { driver::event::destroy(event) };
        }
    }
}

impl Device {
    /// An event that nobody else uses. It is given back by [`Self::give_event`].
    pub(super) fn take_event(&self, clock: Clock) -> Result<sys::CUevent> {
        if let Some(event) = lock(&self.events).of(clock).pop() {
            return Ok(event);
        }
        self.bind()?;
        let flags = match clock {
            Clock::Without => CUevent_flags::CU_EVENT_DISABLE_TIMING,
            Clock::With => CUevent_flags::CU_EVENT_DEFAULT,
        };
        driver::event::create(flags).doing("cannot create an event")
    }

    /// Gives an event back. Streams that were told to wait for it still wait for what it meant then.
    pub(super) fn give_event(&self, clock: Clock, event: sys::CUevent) {
        lock(&self.events).of(clock).push(event);
    }

    /// Records an event of this device after all that is queued on the stream.
    pub(super) fn record(&self, event: sys::CUevent, stream: sys::CUstream) -> Result<()> {
        self.bind()?;
        // SAFETY: both are this device's and alive
        unsafe { driver::event::record(event, stream) }.doing("cannot record an event")
    }
}

/// A point on a stream.
pub(crate) struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: the handle is the driver's, which may be used from any thread
unsafe impl Send for Event {}
// SAFETY: as above; it is recorded once, before it is shared
unsafe impl Sync for Event {}

impl Event {
    /// The point after all that is queued on the stream.
    pub fn record(device: &Arc<Device>, stream: sys::CUstream) -> Result<Self> {
        let event = Self { device: device.clone(), raw: device.take_event(Clock::Without)? };
        device.record(event.raw, stream)?;
        Ok(event)
    }

    /// Lets the host wait until the point has passed.
    ///
    /// # Errors
    /// Also those of the work before it.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: recorded in `record`
        unsafe { driver::event::synchronize(self.raw) }.doing("the GPU failed at work queued before")
    }

    /// Lets what is queued on the stream from here on wait until the point has passed.
    pub fn hold(&self, stream: sys::CUstream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both are this device's and alive
        unsafe { sys::cuStreamWaitEvent(stream, self.raw, 0) }.doing("cannot let a stream wait")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.give_event(Clock::Without, self.raw);
    }
}
