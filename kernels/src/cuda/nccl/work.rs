//! How long this rank's GPU works on a step before it waits for the other ranks, by its own clock. Host and GPU go on meanwhile:
//! two events are recorded, and read once somebody asks.

use crate::Result;
use crate::cuda::device::Device;
use crate::cuda::events::Clock;
use crate::cuda::failure::Doing;
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUevent;
use std::collections::VecDeque;
use std::sync::Arc;

/// The steps' own work.
pub(super) struct Work {
    device: Arc<Device>,
    begun: Option<CUevent>,
    /// Beginnings and ends that nobody has asked for.
    done: VecDeque<[CUevent; 2]>,
}

// SAFETY: the handles are the driver's, which may be used from any thread
unsafe impl Send for Work {}

impl Work {
    pub fn new(device: &Arc<Device>) -> Self {
        Self { device: device.clone(), begun: None, done: VecDeque::new() }
    }

    /// The ops that are queued from here on are a step's.
    pub fn begin(&mut self) -> Result<()> {
        let event = self.point()?;
        if let Some(unused) = self.begun.replace(event) {
            self.device.give_event(Clock::With, unused);
        }
        Ok(())
    }

    /// Those up to here were, if one was begun.
    pub fn end(&mut self) -> Result<()> {
        if let Some(begun) = self.begun.take() {
            match self.point() {
                Ok(ended) => self.done.push_back([begun, ended]),
                Err(error) => {
                    self.device.give_event(Clock::With, begun);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Seconds that the first step took which was not asked for yet; waits until it is done. 0 if there is none.
    pub fn seconds(&mut self) -> Result<f64> {
        let Some([begun, ended]) = self.done.pop_front() else { return Ok(0.0) };
        self.device.bind()?;
        // SAFETY: recorded in `point`, both on one stream of the context that is current
        let milliseconds = unsafe {
            let done = driver::event::synchronize(ended).doing("the GPU failed at work queued before");
            done.and_then(|()| driver::event::elapsed(begun, ended).doing("cannot read the GPU's time"))
        };
        for event in [begun, ended] {
            self.device.give_event(Clock::With, event);
        }
        Ok(f64::from(milliseconds?) / 1e3)
    }

    /// Here, on the stream of the ops.
    fn point(&self) -> Result<CUevent> {
        let device = &self.device;
        device.leave_graph()?;
        let event = device.take_event(Clock::With)?;
        let recorded = device.record(event, device.compute());
        device.resume_graph();
        match recorded {
            Ok(()) => Ok(event),
            Err(error) => {
                device.give_event(Clock::With, event);
                Err(error)
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        for event in self.begun.take().into_iter().chain(self.done.drain(..).flatten()) {
            self.device.give_event(Clock::With, event);
        }
    }
}
