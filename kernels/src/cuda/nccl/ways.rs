//! How long gradients and weights are on their way, by the GPU's clock, while somebody wants to know.

use crate::Result;
use crate::collective::Travel;
use crate::cuda::device::Device;
use crate::cuda::events::Clock;
use crate::cuda::timing::elapsed;
use cudarc::driver::sys::{CUevent, CUstream};
use std::sync::Arc;

/// Points on the streams between which something was on its way, or waited for.
pub(super) struct Ways {
    device: Arc<Device>,
    on: bool,
    gradients: Vec<[CUevent; 2]>,
    weights: Vec<[CUevent; 2]>,
    /// The ends of a step's own work and of its gradients' way, on two streams: whichever comes first.
    ends: Vec<[CUevent; 2]>,
}

// SAFETY: the handles are the driver's, which may be used from any thread
unsafe impl Send for Ways {}

impl Ways {
    pub fn new(device: &Arc<Device>) -> Self {
        Self {
            device: device.clone(),
            on: false,
            gradients: Vec::new(),
            weights: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// From here on, or no longer. Forgets what was measured.
    pub fn measure(&mut self, on: bool) {
        self.forget();
        self.on = on;
    }

    /// The point after all that is queued on the stream; none while nothing is measured.
    pub fn point(&self, stream: CUstream) -> Result<Option<CUevent>> {
        if !self.on {
            return Ok(None);
        }
        let event = self.device.take_event(Clock::With)?;
        if let Err(error) = self.device.record(event, stream) {
            self.device.give_event(Clock::With, event);
            return Err(error);
        }
        Ok(Some(event))
    }

    /// A bucket that could leave at `left` has come.
    pub fn gradients_came(&mut self, left: Option<CUevent>, stream: CUstream) -> Result<()> {
        let way = self.way(left, stream)?;
        self.gradients.extend(way);
        Ok(())
    }

    /// Weights that left at `left` have come.
    pub fn weights_came(&mut self, left: Option<CUevent>, stream: CUstream) -> Result<()> {
        let way = self.way(left, stream)?;
        self.weights.extend(way);
        Ok(())
    }

    /// The ops of a step's own work are queued, and all its gradients on `stream`.
    pub fn own_work_done(&mut self, stream: CUstream) -> Result<()> {
        if self.on {
            self.device.leave_graph()?;
            let done = self.point(self.device.compute());
            self.device.resume_graph();
            let ends = self.way(done?, stream)?;
            self.ends.extend(ends);
        }
        Ok(())
    }

    fn way(&self, left: Option<CUevent>, stream: CUstream) -> Result<Option<[CUevent; 2]>> {
        let Some(left) = left else { return Ok(None) };
        match self.point(stream) {
            Ok(came) => Ok(came.map(|came| [left, came])),
            Err(error) => {
                self.device.give_event(Clock::With, left);
                Err(error)
            }
        }
    }

    /// The sums; both streams have passed all points.
    pub fn travel(&self) -> Result<Travel> {
        self.device.bind()?;
        let sum = |ways: &[[CUevent; 2]]| {
            ways.iter().map(|&way| Ok(elapsed(way)?.max(0.0) / 1e3)).sum::<Result<f64>>()
        };
        Ok(Travel {
            gradients: sum(&self.gradients)?,
            exposed: sum(&self.ends)?,
            weights: sum(&self.weights)?,
        })
    }

    fn forget(&mut self) {
        let all = self.gradients.drain(..).chain(self.weights.drain(..)).chain(self.ends.drain(..));
        all.flatten().for_each(|event| self.device.give_event(Clock::With, event));
    }
}

impl Drop for Ways {
    fn drop(&mut self) {
        self.forget();
    }
}
