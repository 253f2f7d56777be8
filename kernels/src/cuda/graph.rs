//! A step's ops as CUDA graphs.
//!
//! Between [`Device::begin_graphs`] and [`Device::end_graphs`] what the compute stream is given is captured instead of run, and the
//! graph is launched where the capture ends. Every step is captured anew, and the executable graph of the step before takes over
//! the new one's parameters (it is built again where the sequence of kernels has changed). So nothing in a graph can be
//! out of date: scalars, grids and addresses may change from step to step, and the same kernels run in the same order
//! on the same arguments as without graphs.
//!
//! What cannot be captured ends the capture: what was captured is launched, and then the thing is done as if there were no
//! graphs. After a mark, a wait or a read the capture goes on, so that a step may be several graphs. After anything
//! else (memory taken or given back, a copy from or to the host, a kernel's or an algorithm's first use, which may make
//! the driver load code) the ops are queued one by one until the next of these or the step's end.

use super::device::{Device, lock};
use super::failure::Doing;
use crate::Result;
use cudarc::driver::result as driver;
use cudarc::driver::sys;
use std::sync::atomic::{AtomicU8, Ordering};

/// Ops are queued at once.
const OFF: u8 = 0;
/// The next op begins a capture.
const ARMED: u8 = 1;
/// Ops are captured.
const CAPTURING: u8 = 2;

/// Graphs of the running step.
#[derive(Default)]
pub(super) struct Graphs {
    in_step: bool,
    /// Number of graphs launched in this step.
    launched: usize,
    /// The executable graphs of the step before, in order.
    ready: Vec<sys::CUgraphExec>,
}

/// What [`Graphs`] does now; read before every op.
#[derive(Default)]
pub(super) struct State(AtomicU8);

/// A captured graph.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: ended its capture, destroyed once; what was instantiated from it is independent of it
            let _ = unsafe { driver::graph::destroy(self.0) };
        }
    }
}

impl Device {
    /// From here on ops may be captured.
    pub(super) fn begin_graphs(&self) -> Result<()> {
        self.leave_graph()?;
        let mut graphs = lock(&self.graphs);
        graphs.in_step = true;
        graphs.launched = 0;
        drop(graphs);
        self.resume_graph();
        Ok(())
    }

    /// Launches what has not been launched; from here on ops are queued at once.
    pub(super) fn end_graphs(&self) -> Result<()> {
        lock(&self.graphs).in_step = false;
        self.leave_graph()
    }

    /// Called before anything is queued on the compute stream.
    pub(super) fn enter_graph(&self) -> Result<()> {
        if self.state.0.load(Ordering::Relaxed) != ARMED {
            return Ok(());
        }
        self.bind()?;
        // Other threads, and other devices' memory in this one, are not held up by what happens on this stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as self and is not capturing
        unsafe { sys::cuStreamBeginCapture_v2(self.compute(), mode) }.doing("cannot begin a graph")?;
        self.state.0.store(CAPTURING, Ordering::Relaxed);
        Ok(())
    }

    /// Lets ops be captured again, in a step with graphs.
    pub(super) fn resume_graph(&self) {
        let idle = self.state.0.load(Ordering::Relaxed) == OFF;
        if idle && lock(&self.graphs).in_step {
            self.state.0.store(ARMED, Ordering::Relaxed);
        }
    }

    /// Called before anything that cannot be captured: launches what was captured so far.
    pub(super) fn leave_graph(&self) -> Result<()> {
        if self.state.0.swap(OFF, Ordering::Relaxed) != CAPTURING {
            return Ok(());
        }
        self.bind()?;
        let mut captured = Captured(std::ptr::null_mut());
        // SAFETY: the stream is capturing, begun above
        unsafe { sys::cuStreamEndCapture(self.compute(), &mut captured.0) }
            .doing("an op of the step cannot be part of a graph")?;
        let mut graphs = lock(&self.graphs);
        let at = graphs.launched;
        graphs.launched += 1;
        let graph = match graphs.ready.get(at) {
            Some(&ready) if takes_over(ready, &captured) => ready,
            old => {
                let old = old.copied();
                // SAFETY: a graph that was captured whole
                let new = unsafe { driver::graph::instantiate(captured.0, sys::CUgraphInstantiate_flags(0)) }
                    .doing("cannot build a graph")?;
                match old {
                    Some(old) => {
                        graphs.ready[at] = new;
                        // SAFETY: nobody else has it; the driver keeps it until its last launch has ended
                        unsafe { driver::graph::exec_destroy(old) }.doing("cannot destroy a graph")?;
                    }
                    None => graphs.ready.push(new),
                }
                new
            }
        };
        // SAFETY: the graph's arguments hold as they would for the ops one by one
        unsafe { driver::graph::launch(graph, self.compute()) }.doing("cannot launch a graph")
    }

    /// Destroys all graphs; nothing of them runs any more.
    pub(super) fn drop_graphs(&self) {
        if self.state.0.swap(OFF, Ordering::Relaxed) == CAPTURING {
            let mut captured = Captured(std::ptr::null_mut());
            // A step that failed half-way: what was captured is not run.
            // SAFETY: the stream is capturing
            let _ = unsafe { sys::cuStreamEndCapture(self.compute(), &mut captured.0) };
        }
        for graph in lock(&self.graphs).ready.drain(..) {
            // SAFETY: nobody else has it
            let _ = unsafe { driver::graph::exec_destroy(graph) };
        }
    }
}

/// Gives an executable graph the parameters of a captured one; false where it is another sequence of kernels.
fn takes_over(ready: sys::CUgraphExec, captured: &Captured) -> bool {
    // SAFETY: the driver's struct of numbers and handles, all valid as zeros
    let mut why: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
    // SAFETY: both graphs are alive; launches that are under way keep their parameters
    let answer = unsafe { sys::cuGraphExecUpdate_v2(ready, captured.0, &mut why) };
    answer.result().is_ok()
}
