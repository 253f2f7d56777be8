//! The time of every op and of its kernels, beside what the op must move and compute.

use super::device::{Device, lock};
use super::events::Clock;
use super::timing::{elapsed, middle};
use crate::Result;
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Measured launches that are kept before they are added up.
const PENDING: usize = 4096;
/// Brackets around nothing whose median is what a bracket itself takes, and bytes that are cleared meanwhile, so that the GPU
/// is busy while they are queued, as it is in a step.
const BRACKETS: usize = 17;
const BUSY: (usize, usize) = (16, 32 << 20);

/// What an op must do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes that it must read and write, each array once for each pass that its kernel file describes.
    pub bytes: u64,
    /// Operations of its products; 0 where memory is the bound.
    pub flops: u64,
}

/// The time of one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// The kernel's symbol; for a product by cuBLASLt, its kind.
    pub name: &'static str,
    /// Number of launches.
    pub calls: u64,
    /// Time of all of them.
    pub milliseconds: f64,
}

/// The time of all calls of one op. What no op of [`crate::Backend`] launched stands for itself, without work.
#[derive(Debug, Clone, PartialEq)]
pub struct OpTime {
    /// The op, with the shape of a product.
    pub name: String,
    /// Number of calls.
    pub calls: u64,
    /// Of all calls.
    pub work: Work,
    /// Time of all of its launches, as its events bracket them.
    pub milliseconds: f64,
    /// Each of its kernels, the longest first.
    pub kernels: Vec<KernelTime>,
}

impl OpTime {
    /// Number of launches of all its kernels.
    pub fn launches(&self) -> u64 {
        self.kernels.iter().map(|k| k.calls).sum()
    }
}

/// Times of launches.
#[derive(Default)]
pub(super) struct Profile {
    on: AtomicBool,
    records: Mutex<Records>,
}

struct Counted {
    name: String,
    calls: u64,
    work: Work,
}

#[derive(Default)]
struct Records {
    ops: Vec<Counted>,
    /// The op that launches now.
    current: Option<usize>,
    /// Op, kernel, start and end of launches that have not been added up.
    pending: Vec<(Option<usize>, &'static str, [sys::CUevent; 2])>,
    totals: BTreeMap<(Option<usize>, &'static str), (u64, f64)>,
}

/// While it lives, what is launched belongs to one call of an op.
pub(super) struct Op<'d>(Option<&'d Device>);

impl Drop for Op<'_> {
    fn drop(&mut self) {
        if let Some(device) = self.0 {
            lock(&device.profile.records).current = None;
        }
    }
}

impl Device {
    /// Whether every launch is timed from here on, which slows them down and keeps them out of graphs. Forgets what was
    /// measured before.
    ///
    /// # Errors
    /// Those of ops queued earlier.
    pub fn set_profile(&self, on: bool) -> Result<()> {
        self.synchronize()?;
        self.profile()?;
        {
            let mut records = lock(&self.profile.records);
            records.totals.clear();
            records.ops.clear();
        }
        self.profile.on.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Whether launches are timed.
    pub(super) fn profiling(&self) -> bool {
        self.profile.on.load(Ordering::Relaxed)
    }

    /// Milliseconds that a bracket of events around nothing measures: so much of each launch's time is the events' own.
    ///
    /// # Errors
    /// Memory that does not suffice for what keeps the GPU busy meanwhile, and those of ops queued earlier.
    pub fn time_bracket(&self) -> Result<f64> {
        const WHAT: &str = "what keeps the GPU busy";
        let (fills, bytes) = BUSY;
        let memory = self.alloc(WHAT, bytes)?;
        let mut brackets = Vec::with_capacity(BRACKETS);
        let mut done = (0..fills).try_for_each(|_| self.fill(memory, 0, bytes));
        for _ in 0..BRACKETS {
            done = done.and_then(|()| Ok(brackets.push(self.bracket(|| Ok(()))?)));
        }
        let done = done.and_then(|()| self.synchronize());
        self.free(WHAT, memory, bytes);
        let times = done.and_then(|()| brackets.iter().map(|&events| elapsed(events)).collect::<Result<_>>());
        brackets.into_iter().for_each(|events| self.give_back(events));
        Ok(middle(times?))
    }

    /// Until the answer is dropped, launches are counted as one call of this op. It is not asked unless launches are timed.
    pub(super) fn op(&self, what: impl FnOnce() -> (String, Work)) -> Op<'_> {
        if !self.profiling() {
            return Op(None);
        }
        let (name, work) = what();
        let mut records = lock(&self.profile.records);
        let found = records.ops.iter().position(|op| op.name == name);
        let index = found.unwrap_or(records.ops.len());
        if found.is_none() {
            records.ops.push(Counted { name, calls: 0, work: Work::default() });
        }
        let op = &mut records.ops[index];
        op.calls += 1;
        op.work.bytes += work.bytes;
        op.work.flops += work.flops;
        records.current = Some(index);
        Op(Some(self))
    }

    /// The time of every op since [`Self::set_profile`], the longest first. Waits for the GPU.
    ///
    /// # Errors
    /// Those of ops queued earlier.
    pub fn profile(&self) -> Result<Vec<OpTime>> {
        self.synchronize()?;
        let mut records = lock(&self.profile.records);
        self.add_up(&mut records)?;
        let of = |op: &Counted| OpTime {
            name: op.name.clone(),
            calls: op.calls,
            work: op.work,
            milliseconds: 0.0,
            kernels: Vec::new(),
        };
        let mut ops: Vec<_> = records.ops.iter().map(of).collect();
        for (&(op, name), &(calls, milliseconds)) in &records.totals {
            let kernel = KernelTime { name, calls, milliseconds };
            let (name, work) = (name.to_owned(), Work::default());
            match op {
                Some(op) => ops[op].kernels.push(kernel),
                None => ops.push(OpTime { name, calls, work, milliseconds, kernels: vec![kernel] }),
            }
        }
        for op in &mut ops {
            op.milliseconds = op.kernels.iter().map(|k| k.milliseconds).sum();
            op.kernels.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        }
        ops.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(ops)
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
        let op = records.current;
        records.pending.push((op, name, events));
        if records.pending.len() < PENDING {
            return Ok(());
        }
        self.synchronize()?;
        self.add_up(&mut records)
    }

    /// Gives the events of launches that were not added up back.
    pub(super) fn forget_times(&self) {
        for (_, _, events) in std::mem::take(&mut lock(&self.profile.records).pending) {
            self.give_back(events);
        }
    }

    /// Adds launches that have ended to the totals.
    fn add_up(&self, records: &mut Records) -> Result<()> {
        for (op, name, events) in std::mem::take(&mut records.pending) {
            let (calls, total) = records.totals.entry((op, name)).or_default();
            *calls += 1;
            *total += elapsed(events)?;
            self.give_back(events);
        }
        Ok(())
    }

    fn give_back(&self, events: [sys::CUevent; 2]) {
        for event in events {
            self.give_event(Clock::With, event);
        }
    }
}
