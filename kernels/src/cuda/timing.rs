//! The GPU's time, by events, of anything ([`Device::time`]), and the speed of its memory.

use super::device::Device;
use super::events::Clock;
use super::failure::Doing;
use crate::Result;
use cudarc::driver::result as driver;
use cudarc::driver::sys;

/// Copies whose median is the speed of memory, after one to warm up.
const COPIES: usize = 9;

impl Device {
    /// Milliseconds that the GPU takes for what `work` queues on the compute stream. Waits for it.
    ///
    /// # Errors
    /// Those of `work`, and those of ops queued earlier.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.leave_graph()?;
        let events = self.bracket(work)?;
        // SAFETY: recorded by `bracket`
        let done = unsafe { driver::event::synchronize(events[1]) };
        let milliseconds = done.doing("the GPU failed at work queued before").and_then(|()| elapsed(events));
        for event in events {
            self.give_event(Clock::With, event);
        }
        milliseconds
    }

    /// Bytes a second, read and written, of a copy of `bytes` bytes within the GPU's memory.
    ///
    /// # Errors
    /// Memory that does not suffice for two of them, and those of ops queued earlier.
    pub fn copy_rate(&self, bytes: usize) -> Result<f64> {
        const WHAT: &str = "copies that are timed";
        let src = self.alloc(WHAT, bytes)?;
        let dst = self.alloc(WHAT, bytes).inspect_err(|_| self.free(WHAT, src, bytes))?;
        let times = self.fill(src, 1, bytes).and_then(|()| {
            let copies = (0..=COPIES).map(|_| self.time(|| self.copy(dst, src, bytes)));
            copies.collect::<Result<Vec<_>>>()
        });
        self.free(WHAT, src, bytes);
        self.free(WHAT, dst, bytes);
        Ok(2.0 * bytes as f64 / (middle(times?.split_off(1)) / 1e3))
    }

    /// Two events around what `work` queues on the compute stream.
    pub(super) fn bracket(&self, work: impl FnOnce() -> Result<()>) -> Result<[sys::CUevent; 2]> {
        let events = [self.take_event(Clock::With)?, self.take_event(Clock::With)?];
        let done = self
            .record(events[0], self.compute())
            .and_then(|()| work())
            .and_then(|()| self.record(events[1], self.compute()));
        if done.is_err() {
            for event in events {
                self.give_event(Clock::With, event);
            }
        }
        done.map(|()| events)
    }
}

/// Milliseconds between two events that have passed.
pub(super) fn elapsed([start, end]: [sys::CUevent; 2]) -> Result<f64> {
    // SAFETY: both were recorded on streams of the current context
    unsafe { driver::event::elapsed(start, end) }.map(f64::from).doing("cannot read the GPU's time")
}

/// The median; 0 of nothing.
pub(super) fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}
