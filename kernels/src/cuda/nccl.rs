//! Ranks with a GPU each, over NCCL.
//!
//! What the GPUs exchange is queued on a stream of its own, which events order against the ops: backward goes on while
//! gradients travel, and nothing here waits for the GPU. What the hosts exchange (sums of a few numbers, checkpoints, NCCL's
//! own id) goes over the transport of bytes that they have anyhow.
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

mod communicator;
mod library;

pub use library::{OLDEST, SEVERAL_ON_ONE_GPU, dotted, version};

use super::device::Device;
use super::events::Event;
use super::failure::Doing;
use super::launch::Launch;
use super::memory::Memory;
use super::{Cuda, Element, Kind, View, ViewMut, Weights};
use crate::collective::{Collective, Division, Transport, Wire, sum_on_hosts};
use crate::{Error, Result};
use communicator::{Communicator, Group};
use cudarc::driver::result as driver;
use cudarc::driver::sys;
use half::bf16;
use library::{Calls, SUM, Type, UniqueId};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Lets NCCL put several ranks on one GPU, from 2.30 on.
const SEVERAL: &str = "NCCL_MULTI_RANK_GPU_ENABLE";
/// Elements of bf16 in 16 bytes.
const WIDE: usize = 8;

/// The ranks of a job on GPUs.
pub struct Nccl {
    /// Ends before the stream.
    communicator: Communicator,
    /// Of gradients on their way in bf16; reused, in the order of the stream.
    narrow: Option<Memory<bf16>>,
    stream: Stream,
    device: Arc<Device>,
    hosts: Box<dyn Transport>,
    calls: &'static Calls,
}

/// A stream beside the ops.
struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
}

// SAFETY: the handle is the driver's, which may be used from any thread
unsafe impl Send for Stream {}

impl Stream {
    /// One whose work goes before that of the ops where the GPU has room for one of the two only: others wait for it.
    fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let (mut least, mut greatest, mut raw) = (0, 0, std::ptr::null_mut());
        // SAFETY: all places live through the calls
        unsafe {
            sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest)
                .doing("cannot read the GPU's priorities")?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            sys::cuStreamCreateWithPriority(&mut raw, flags, greatest).doing("cannot create a stream")?;
        }
        Ok(Self { device: device.clone(), raw })
    }

    fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives as long as self
        unsafe { driver::stream::synchronize(self.raw) }.doing("the GPU failed at work queued before")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A destructor has nobody to tell of a failure.
        let _ = self.synchronize();
        // SAFETY: nothing is queued on it any more, and nobody else has it
        let _ = unsafe { driver::stream::destroy(self.raw) };
    }
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
        Ok(Self { communicator, narrow: None, stream, device, hosts, calls })
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
        if part.is_empty() {
            return;
        }
        let (data, count, root) = (part.ptr() as *mut _, part.len(), root as i32);
        // SAFETY: `count` elements of the kind lie there, and are not touched before the stream has passed
        let code = unsafe {
            (group.calls.broadcast)(data, data, count, kind as i32, root, group.comm, self.stream.raw)
        };
        group.note(code);
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

/// Whether several ranks may have one GPU: NCCL can, and the environment tells it to.
///
/// # Errors
/// As [`version`].
pub fn takes_several_on_one_gpu() -> Result<bool> {
    Ok(takes_several(version()?))
}

fn takes_several(version: i32) -> bool {
    version >= SEVERAL_ON_ONE_GPU && std::env::var(SEVERAL).is_ok_and(|value| value == "1")
}

/// Queues one of the casts of cu/cast.cu.
fn cast(
    device: &Device,
    stream: &Stream,
    kernel: &'static str,
    to: u64,
    from: u64,
    len: usize,
) -> Result<()> {
    const THREADS: usize = 256;
    let blocks = len.div_ceil(THREADS * WIDE).min(8 * device.multiprocessors());
    let launch = Launch::new(device, kernel).arg(to).arg(from).arg(len as u64);
    // SAFETY: both have `len` elements of their types, which the caller checked
    unsafe { launch.run_on(stream.raw, [blocks, 1, 1], [THREADS, 1, 1], 0) }
}

/// The elements that both have; empty at a place in `a` where there are none.
fn common(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = b.start.clamp(a.start, a.end);
    start..b.end.clamp(start, a.end)
}

/// What ranks tell each other before they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Card {
    /// Of NCCL; 0 where there is none.
    version: i32,
    /// The GPU's own number.
    gpu: [u8; 16],
}

impl Card {
    const BYTES: usize = 20;

    fn exchange(self, hosts: &mut dyn Transport) -> Result<Vec<Self>> {
        let (rank, world) = (hosts.rank(), hosts.world());
        let mut bytes = vec![0; Self::BYTES * world];
        let own = &mut bytes[rank * Self::BYTES..][..Self::BYTES];
        own[..4].copy_from_slice(&self.version.to_ne_bytes());
        own[4..].copy_from_slice(&self.gpu);
        let parts: Vec<_> = (0..world).map(|r| r * Self::BYTES..(r + 1) * Self::BYTES).collect();
        hosts.all_gather(&mut bytes, &parts)?;
        let read = |bytes: &[u8; Self::BYTES]| {
            let (version, gpu) = bytes.split_at(4);
            let mut card = Self { version: 0, gpu: [0; 16] };
            card.version = i32::from_ne_bytes([version[0], version[1], version[2], version[3]]);
            card.gpu.copy_from_slice(gpu);
            card
        };
        Ok(bytes.as_chunks().0.iter().map(read).collect())
    }
}

/// Whether ranks with these cards can join.
fn agree(cards: &[Card]) -> Result<()> {
    if let Some(rank) = cards.iter().position(|card| card.version == 0) {
        return Err(Error::Ranks(format!("rank {rank} has no NCCL that can be used; see its message")));
    }
    let version = cards[0].version;
    if let Some(rank) = cards.iter().position(|card| card.version != version) {
        return Err(Error::Ranks(format!(
            "rank {rank} has NCCL {}, rank 0 has {}: install the same version on all machines",
            dotted(cards[rank].version),
            dotted(version)
        )));
    }
    let twice = (0..cards.len()).find_map(|b| Some(((0..b).find(|&a| cards[a].gpu == cards[b].gpu)?, b)));
    if let Some((a, b)) = twice
        && !takes_several(version)
    {
        return Err(Error::Ranks(format!(
            "ranks {a} and {b} have the same GPU: start as many as there are GPUs (NCCL {} takes several on one GPU from {} on, \
             with {SEVERAL}=1)",
            dotted(version),
            dotted(SEVERAL_ON_ONE_GPU)
        )));
    }
    Ok(())
}

/// NCCL's id of rank 0, on all ranks.
fn exchange_id(calls: &Calls, hosts: &mut dyn Transport) -> Result<UniqueId> {
    let mut id = UniqueId([0; 128]);
    let mut made = Ok(());
    if hosts.rank() == 0 {
        // SAFETY: `id` lives through the call
        made = calls.check("cannot make an id for the ranks", unsafe { (calls.get_unique_id)(&mut id) });
    }
    let mut parts = vec![id.0.len()..id.0.len(); hosts.world()];
    parts[0] = 0..id.0.len();
    hosts.all_gather(&mut id.0, &parts)?;
    made?;
    match id.0.iter().all(|&byte| byte == 0) {
        true => Err(Error::Ranks("rank 0 could not make NCCL's id; see its message".into())),
        false => Ok(id),
    }
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
        match wire {
            Wire::Full => {
                let at = |i: usize| view.ptr() + ((i - range.start) * size_of::<f32>()) as u64;
                self.reduce(&range, division, Type::F32, at)
            }
            Wire::Bf16 => self.reduce_narrow(view, &range, division),
        }
    }

    fn finish_reduce(&mut self, backend: &Cuda<E>, _: &mut Memory<f32>) -> Result<()> {
        self.communicator.check()?;
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
        self.before_ops(backend.device())
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

    fn card(version: i32, gpu: u8) -> Card {
        Card { version, gpu: [gpu; 16] }
    }

    #[test]
    fn ranks_that_cannot_join_are_told_why() {
        assert!(agree(&[card(22_807, 1), card(22_807, 2)]).is_ok());
        let said = |cards: &[Card]| agree(cards).unwrap_err().to_string();
        assert!(said(&[card(22_807, 1), card(0, 2)]).contains("rank 1 has no NCCL"));
        let versions = said(&[card(22_807, 1), card(22_807, 2), card(23_007, 3)]);
        assert!(versions.contains("rank 2 has NCCL 2.30.7, rank 0 has 2.28.7"), "{versions}");
        let twice = said(&[card(22_807, 1), card(22_807, 2), card(22_807, 1)]);
        assert!(twice.contains("ranks 0 and 2 have the same GPU") && twice.contains(SEVERAL), "{twice}");
    }

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
