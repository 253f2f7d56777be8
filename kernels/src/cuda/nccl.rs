//! Ranks with a GPU each, over NCCL.
//!
//! What the GPUs exchange is queued on a stream of its own, which events order against the ops: backward goes on while
//! gradients travel, and nothing here waits for the GPU. What the hosts exchange (sums of a few numbers, texts, NCCL's own id) goes
//! over the transport of bytes that they have anyhow; only whole tables, as of a checkpoint, go through the GPUs' memory, in
//! pieces.
//!
//! **Gradients.** The part of a bucket that a rank updates is reduced to that rank (`ncclReduce` in place, those of one bucket in
//! one group), since shards are ranges of the whole table that optimizers, norms and checkpoints share. Of a bucket of B
//! bytes a rank sends B, in a pipeline that all links take part in; a reduce-scatter would send B (N - 1) / N and need equal
//! parts that lie side by side in every bucket, an all-reduce 2 B (N - 1) / N: no less for two ranks, 1.75 B for eight.
//! Without shards a bucket is all-reduced.
//!
//! **Weights.** Each rank's part of the rounded weights goes to all (grouped `ncclBroadcast`s, which together move what an
//! all-gather of unequal parts would, and which NCCL from 2.29 on joins into one), 2 bytes a weight; of the master weights
//! only those that ops read everywhere. The rest of the master weights stays with the rank that updates them.
//!
//! **Order.** NCCL adds along rings or trees that it chooses by the number of ranks, their links, and the size of a message: sums
//! repeat bit for bit in the same place, but differ from those of other transports by rounding. In bf16 every partial
//! sum on the way is rounded again. `NCCL_ALGO` and `NCCL_PROTO` pin the choice.

mod cards;
mod communicator;
mod library;
mod stream;
mod ways;
mod work;

pub use cards::takes_several_on_one_gpu;
pub use library::{OLDEST, SEVERAL_ON_ONE_GPU, dotted, version};

use super::device::Device;
use super::events::Event;
use super::memory::Memory;
use super::{Cuda, Element, Kind, View, ViewMut, Weights};
use crate::collective::{Collective, Division, Transport, Travel, Wire, sum_on_hosts};
use crate::{Error, Result};
use bytemuck::cast_slice_mut;
use cards::{Card, agree, exchange_id};
use communicator::{Communicator, Group};
use half::bf16;
use library::{Calls, SUM, Type};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use stream::{Stream, WIDE, cast};
use ways::Ways;
use work::Work;

/// Numbers that go through the GPU's memory between hosts, at a time.
const PIECE: usize = 1 << 20;

/// The ranks of a job on GPUs.
pub struct Nccl {
    /// Ends before the stream.
    communicator: Communicator,
    /// Of gradients on their way in bf16; reused, in the order of the stream.
    narrow: Option<Memory<bf16>>,
    /// For what goes between hosts.
    passage: Memory<f32>,
    work: Work,
    ways: Ways,
    stream: Stream,
    device: Arc<Device>,
    hosts: Box<dyn Transport>,
    calls: &'static Calls,
}

impl Nccl {
    /// Joins the ranks that `hosts` connects, this one with `device`. NCCL may take `patience` to connect them, now and when
    /// a kind of operation is first used.
    ///
    /// # Errors
    /// NCCL that is missing, too old, or of different versions; two ranks with one GPU, where NCCL does not take that; ranks
    /// that do not come.
    pub fn new(device: Arc<Device>, mut hosts: Box<dyn Transport>, patience: Duration) -> Result<Self> {
        let (rank, world) = (hosts.rank(), hosts.world());
        // Also where this rank has none: the others wait to hear of it.
        let found = library::library();
        let card = Card { version: found.as_ref().map_or(0, |calls| calls.version), gpu: device.uuid()? };
        let cards = card.exchange(hosts.as_mut())?;
        let calls = found?;
        agree(&cards)?;
        let id = exchange_id(calls, hosts.as_mut())?;
        let stream = Stream::new(&device)?;
        let communicator = Communicator::join(calls, &device, id, rank, world, patience)?;
        let passage = Memory::zeroed(&device, "numbers on their way between hosts", PIECE)?;
        let (work, ways) = (Work::new(&device), Ways::new(&device));
        Ok(Self { communicator, narrow: None, passage, work, ways, stream, device, hosts, calls })
    }

    /// Lets the own stream go on where the device's ops are now.
    fn after_ops(&self, device: &Arc<Device>) -> Result<()> {
        device.leave_graph()?;
        Event::record(device, device.compute())?.hold(self.stream.raw)?;
        device.resume_graph();
        Ok(())
    }

    /// Lets the device's ops go on where the own stream is now.
    fn before_ops(&self, device: &Arc<Device>) -> Result<()> {
        device.leave_graph()?;
        Event::record(device, self.stream.raw)?.hold(device.compute())?;
        device.resume_graph();
        Ok(())
    }

    /// Reduces `what`, of which element i lies at `at(i)`, as the division says.
    fn reduce(
        &self,
        what: &Range<usize>,
        division: &Division,
        kind: Type,
        at: impl Fn(usize) -> u64,
    ) -> Result<()> {
        self.communicator.group("cannot reduce gradients", |group| match division {
            Division::Replicated { .. } => self.all_reduce(group, at(what.start), what.len(), kind),
            Division::Sharded(shards) => {
                for (root, shard) in shards.iter().enumerate() {
                    let part = common(what, shard);
                    if part.is_empty() {
                        continue;
                    }
                    let (data, count) = (at(part.start) as *mut _, part.len());
                    // SAFETY: `count` elements of the kind lie there, and are not touched before the stream has passed
                    let code = unsafe {
                        let (root, comm) = (root as i32, group.comm);
                        (group.calls.reduce)(data, data, count, kind as i32, SUM, root, comm, self.stream.raw)
                    };
                    group.note(code);
                }
            }
        })
    }

    fn all_reduce(&self, group: &mut Group<'_>, at: u64, count: usize, kind: Type) {
        let data = at as *mut _;
        // SAFETY: `count` elements of the kind lie there, and are not touched before the stream has passed
        let code = unsafe {
            (group.calls.all_reduce)(data, data, count, kind as i32, SUM, group.comm, self.stream.raw)
        };
        group.note(code);
    }

    /// The elements of `part` go from rank `root` to all.
    fn broadcast<T>(&self, group: &mut Group<'_>, part: ViewMut<'_, T>, kind: Type, root: usize) {
        if !part.is_empty() {
            self.broadcast_at(group, part.ptr(), part.len(), kind, root);
        }
    }

    fn broadcast_at(&self, group: &mut Group<'_>, at: u64, count: usize, kind: Type, root: usize) {
        let (data, root) = (at as *mut _, root as i32);
        // SAFETY: `count` elements of the kind lie there, and are not touched before the stream has passed
        let code = unsafe {
            (group.calls.broadcast)(data, data, count, kind as i32, root, group.comm, self.stream.raw)
        };
        group.note(code);
    }

    /// The first `len` numbers of the passage go from rank `root` to all, in the order of the ops.
    fn pass(&mut self, device: &Arc<Device>, len: usize, root: usize) -> Result<()> {
        self.after_ops(device)?;
        // Its own borrow: the group takes the rest of self.
        let passage = self.passage.view_mut(0..len).ptr();
        self.communicator.group("cannot pass numbers between hosts", |group| {
            self.broadcast_at(group, passage, len, Type::F32, root);
        })?;
        self.before_ops(device)
    }

    /// Room for `len` elements on their way.
    fn room(&mut self, len: usize) -> Result<&mut Memory<bf16>> {
        if self.narrow.as_ref().is_none_or(|room| room.len() < len) {
            // What is under way in the old one comes first.
            self.stream.synchronize()?;
            self.narrow = None;
            self.narrow = Some(Memory::zeroed(&self.device, "gradients in bf16", len)?);
            // The zeros were written in the order of the ops.
            self.after_ops(&self.device)?;
        }
        self.narrow.as_mut().ok_or_else(|| Error::Ranks("no room for gradients in bf16".into()))
    }

    /// Reduces a bucket rounded to bf16: there, on the way and back, all on the own stream.
    fn reduce_narrow(
        &mut self,
        grads: View<'_, f32>,
        range: &Range<usize>,
        division: &Division,
    ) -> Result<()> {
        // Both sides are aligned at the same elements then.
        let shift = range.start % WIDE;
        let rank = self.hosts.rank();
        let room = self.room(shift + range.len())?.view_mut(shift..shift + range.len()).ptr();
        let at = |i: usize| room + ((i - range.start) * size_of::<bf16>()) as u64;
        cast(&self.device, &self.stream, "narrow_bf16", room, grads.ptr(), range.len())?;
        self.reduce(range, division, Type::Bf16, at)?;
        let own = common(range, &division.of(rank));
        let back = grads.ptr() + ((own.start - range.start) * size_of::<f32>()) as u64;
        cast(&self.device, &self.stream, "widen_bf16", back, at(own.start), own.len())
    }
}

/// A range in pieces that the passage has room for.
fn pieces(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.clone().step_by(PIECE).map(move |start| start..(start + PIECE).min(end))
}

/// The elements that both have; empty at a place in `a` where there are none.
fn common(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = b.start.clamp(a.start, a.end);
    start..b.end.clamp(start, a.end)
}

impl<E: Element> Collective<Cuda<E>> for Nccl {
    fn rank(&self) -> usize {
        self.hosts.rank()
    }
    fn world(&self) -> usize {
        self.hosts.world()
    }
    fn describe(&self) -> String {
        format!("{} GPUs over NCCL {}", self.hosts.world(), dotted(self.calls.version))
    }

    fn begin_work(&mut self, _: &Cuda<E>) -> Result<()> {
        self.work.begin()
    }

    fn work_seconds(&mut self) -> Result<f64> {
        self.work.seconds()
    }

    fn time_travel(&mut self, on: bool) -> Result<()> {
        self.stream.synchronize()?;
        self.ways.measure(on);
        Ok(())
    }

    fn travel(&mut self) -> Result<Travel> {
        self.device.synchronize()?;
        self.stream.synchronize()?;
        self.ways.travel()
    }

    fn begin_reduce(
        &mut self,
        backend: &Cuda<E>,
        grads: &Memory<f32>,
        range: Range<usize>,
        division: &Division,
        wire: Wire,
    ) -> Result<()> {
        let view = grads.view(range.clone());
        if view.is_empty() {
            return self.communicator.check();
        }
        self.after_ops(backend.device())?;
        let left = self.ways.point(self.stream.raw)?;
        match wire {
            Wire::Full => {
                let at = |i: usize| view.ptr() + ((i - range.start) * size_of::<f32>()) as u64;
                self.reduce(&range, division, Type::F32, at)
            }
            Wire::Bf16 => self.reduce_narrow(view, &range, division),
        }?;
        self.ways.gradients_came(left, self.stream.raw)
    }

    fn finish_reduce(&mut self, backend: &Cuda<E>, _: &mut Memory<f32>) -> Result<()> {
        self.communicator.check()?;
        self.work.end()?;
        self.ways.own_work_done(self.stream.raw)?;
        self.before_ops(backend.device())
    }

    fn gather_weights(
        &mut self,
        backend: &Cuda<E>,
        weights: &mut Weights<E>,
        division: &Division,
        masters: &[Range<usize>],
    ) -> Result<()> {
        let Division::Sharded(shards) = division else { return Ok(()) };
        self.after_ops(backend.device())?;
        let left = self.ways.point(self.stream.raw)?;
        let kind = match E::KIND {
            Kind::F32 => Type::F32,
            Kind::Bf16 => Type::Bf16,
        };
        self.communicator.group("cannot gather weights", |group| {
            for (root, shard) in shards.iter().enumerate() {
                let Some(rounded) = &mut weights.rounded else {
                    self.broadcast(group, weights.master.view_mut(shard.clone()), kind, root);
                    continue;
                };
                self.broadcast(group, rounded.view_mut(shard.clone()), kind, root);
                for part in masters {
                    let part = common(shard, part);
                    self.broadcast(group, weights.master.view_mut(part), Type::F32, root);
                }
            }
        })?;
        self.ways.weights_came(left, self.stream.raw)?;
        self.before_ops(backend.device())
    }

    fn gather_to_first(
        &mut self,
        backend: &Cuda<E>,
        own: View<'_, f32>,
        parts: &[Range<usize>],
        whole: &mut [f32],
    ) -> Result<()> {
        let (rank, device) = (self.hosts.rank(), backend.device());
        let passage = self.passage.view(0..PIECE).ptr();
        for (root, part) in parts.iter().enumerate() {
            for piece in pieces(part) {
                let source = own.ptr() + ((piece.start - part.start) * size_of::<f32>()) as u64;
                let target = if root == 0 { source } else { passage };
                if root > 0 {
                    if rank == root {
                        device.copy(passage, source, piece.len() * size_of::<f32>())?;
                    }
                    self.pass(device, piece.len(), root)?;
                }
                if rank == 0 {
                    device.download(cast_slice_mut(&mut whole[piece]), target)?;
                }
            }
        }
        Ok(())
    }

    fn send_from_first(&mut self, backend: &Cuda<E>, data: &mut [f32]) -> Result<()> {
        let (rank, device) = (self.hosts.rank(), backend.device());
        let passage = self.passage.view(0..PIECE).ptr();
        for piece in pieces(&(0..data.len())) {
            let data = cast_slice_mut(&mut data[piece.clone()]);
            if rank == 0 {
                device.upload(passage, data)?;
            }
            self.pass(device, piece.len(), 0)?;
            if rank > 0 {
                device.download(data, passage)?;
            }
        }
        Ok(())
    }

    fn sum(&mut self, backend: &Cuda<E>, data: ViewMut<'_, f64>) -> Result<()> {
        if data.is_empty() {
            return self.communicator.check();
        }
        self.after_ops(backend.device())?;
        self.communicator
            .group("cannot sum", |group| self.all_reduce(group, data.ptr(), data.len(), Type::F64))?;
        self.before_ops(backend.device())
    }

    fn sum_host(&mut self, data: &mut [f64]) -> Result<()> {
        self.communicator.check()?;
        sum_on_hosts(self.hosts.as_mut(), data)
    }

    fn gather_bytes(&mut self, data: &mut [u8], parts: &[Range<usize>]) -> Result<()> {
        self.communicator.check()?;
        self.hosts.all_gather(data, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ranges_have_in_common() {
        for (a, b, want) in [
            (10..20, 0..12, 10..12),
            (10..20, 15..40, 15..20),
            (10..20, 0..50, 10..20),
            (10..20, 0..5, 10..10),
            (10..20, 30..40, 20..20),
            (10..20, 12..12, 12..12),
        ] {
            assert_eq!(common(&a, &b), want);
        }
    }
}
