//! The GPU's time, by events: of anything ([`Device::time`]), and of every kernel ([`Device::profile`]).

use super::device::{Device, lock};
use super::events::Clock;
use super::failure::Doing;
use crate::Result;
use cudarc::driver::result as driver;
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Measured launches that are kept before they are added up.
const PENDING: usize = 4096;

/// The time of one kernel, or of all products of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// The kernel's symbol, or the op.
    pub name: &'static str,
    /// Number of launches.
    pub calls: u64,
    /// Time of all of them.
    pub milliseconds: f64,
}

/// Times of launches.
#[derive(Default)]
pub(super) struct Profile {
    on: AtomicBool,
    records: std::sync::Mutex<Records>,
}

#[derive(Default)]
struct Records {
    /// Name, start and end of launches that have not been added up.
    pending: Vec<(&'static str, [sys::CUevent; 2])>,
    totals: BTreeMap<&'static str, (u64, f64)>,
}

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
        self.give_back(events);
        milliseconds
    }

    /// Whether every launch is timed from here on, which slows them down and keeps them out of graphs. Forgets what was
    /// measured before.
    ///
    /// # Errors
    /// Those of ops queued earlier.
    pub fn set_profile(&self, on: bool) -> Result<()> {
        self.synchronize()?;
        self.profile()?;
        lock(&self.profile.records).totals.clear();
        self.profile.on.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Whether launches are timed.
    pub(super) fn profiling(&self) -> bool {
        self.profile.on.load(Ordering::Relaxed)
    }

    /// The time of every kernel since [`Self::set_profile`], the longest first. Waits for the GPU.
    ///
    /// # Errors
    /// Those of ops queued earlier.
    pub fn profile(&self) -> Result<Vec<KernelTime>> {
        self.synchronize()?;
        let mut records = lock(&self.profile.records);
        self.add_up(&mut records)?;
        let mut times: Vec<_> = records
            .totals
            .iter()
            .map(|(&name, &(calls, milliseconds))| KernelTime { name, calls, milliseconds })
            .collect();
        times.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(times)
    }

    /// Queues something on the compute stream, as part of a graph or timed where that is asked for. Everything that runs there
    /// in the order of the ops goes through here.
    pub(super) fn queue(&self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.profiling() {
            self.enter_graph()?;
            return work();
        }
        let events = self.bracket(work)?;
        let mut records = lock(&self.profile.records);
        records.pending.push((name, events));
        if records.pending.len() < PENDING {
            return Ok(());
        }
        self.synchronize()?;
        self.add_up(&mut records)
    }

    /// Two events around what `work` queues on the compute stream.
    fn bracket(&self, work: impl FnOnce() -> Result<()>) -> Result<[sys::CUevent; 2]> {
        let events = [self.take_event(Clock::With)?, self.take_event(Clock::With)?];
        let done = self
            .record(events[0], self.compute())
            .and_then(|()| work())
            .and_then(|()| self.record(events[1], self.compute()));
        if done.is_err() {
            self.give_back(events);
        }
        done.map(|()| events)
    }

    fn give_back(&self, events: [sys::CUevent; 2]) {
        for event in events {
            self.give_event(Clock::With, event);
        }
    }

    /// Gives the events of launches that were not added up back.
    pub(super) fn forget_times(&self) {
        for (_, events) in std::mem::take(&mut lock(&self.profile.records).pending) {
            self.give_back(events);
        }
    }

    /// Adds launches that have ended to the totals.
    fn add_up(&self, records: &mut Records) -> Result<()> {
        for (name, events) in std::mem::take(&mut records.pending) {
            let (calls, total) = records.totals.entry(name).or_default();
            *calls += 1;
            *total += elapsed(events)?;
            self.give_back(events);
        }
        Ok(())
    }
}

/// Milliseconds between two events that have passed.
fn elapsed([start, end]: [sys::CUevent; 2]) -> Result<f64> {
    // SAFETY: both were recorded on one stream of the current context
    unsafe { driver::event::elapsed(start, end) }.map(f64::from).doing("cannot read the GPU's time")
}
