//! Ranks whose backend is the CPU: sums in our own order over any transport of bytes. Gradients travel on a thread of their
//! own while backward goes on.

use super::{Collective, Division, Travel, Wire};
use crate::cpu::Cpu;
use crate::cpu::memory::Buffer;
use crate::{Backend, Error, Result, Scalar};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::bf16;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Elements that one exchange takes of a part: it bounds the memory for what arrives.
const PIECE: usize = 1 << 20;

/// Moves bytes between ranks. All ranks call the same methods in the same order.
///
/// # Errors
/// Of every method: a rank that cannot be reached.
pub trait Transport: Send {
    /// This process, of `0..world`.
    fn rank(&self) -> usize;
    /// Number of processes.
    fn world(&self) -> usize;
    /// One line that says what this is, for logs.
    fn describe(&self) -> String;
    /// `send[r]` goes to rank r, `receive[r]` comes from it; the lengths agree on both sides. This rank's own are not
    /// touched.
    fn all_to_all(&mut self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()>;
    /// The bytes at `parts[r]` come from rank r. The parts are in order and do not overlap.
    fn all_gather(&mut self, data: &mut [u8], parts: &[Range<usize>]) -> Result<()>;
}

/// Numbers that travel.
trait Travels: Scalar {
    /// Adds what another rank sent.
    fn add_bytes(sum: &mut [Self], bytes: &[u8], wire: Wire);
    /// What is sent.
    fn to_bytes(values: &[Self], wire: Wire, out: &mut Vec<u8>);
    /// Bytes of one.
    fn size(wire: Wire) -> usize;
}

impl<T: Scalar> Travels for T {
    fn add_bytes(sum: &mut [T], bytes: &[u8], wire: Wire) {
        match wire {
            Wire::Full => {
                // The buffer may lie at any address.
                for (sum, bytes) in sum.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
                    *sum += bytemuck::pod_read_unaligned(bytes);
                }
            }
            Wire::Bf16 => {
                for (sum, bytes) in sum.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *sum += T::from_f64(bf16::from_ne_bytes(*bytes).to_f64());
                }
            }
        }
    }

    fn to_bytes(values: &[T], wire: Wire, out: &mut Vec<u8>) {
        match wire {
            Wire::Full => out.extend_from_slice(cast_slice(values)),
            Wire::Bf16 => {
                out.extend(values.iter().flat_map(|v| bf16::from_f64(v.to_f64()).to_ne_bytes()));
            }
        }
    }

    fn size(wire: Wire) -> usize {
        match wire {
            Wire::Full => size_of::<T>(),
            Wire::Bf16 => 2,
        }
    }
}

/// Of each part, its k-th piece.
fn piece(part: &Range<usize>, k: usize) -> Range<usize> {
    let start = (part.start + k * PIECE).min(part.end);
    start..(start + PIECE).min(part.end)
}

/// Sums `data[parts[r]]` over ranks into rank r's, in the order of ranks. What is elsewhere in `data` stays as it is.
fn sum_parts<T: Scalar>(
    transport: &mut dyn Transport,
    data: &mut [T],
    parts: &[Range<usize>],
    wire: Wire,
) -> Result<()> {
    let (rank, world) = (transport.rank(), transport.world());
    let rounds = parts.iter().map(|p| p.len().div_ceil(PIECE)).max().unwrap_or(0);
    let (mut sent, mut received, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..rounds {
        let mine = piece(&parts[rank], k);
        sent.clear();
        let mut places = Vec::with_capacity(world);
        for part in parts {
            let start = sent.len();
            T::to_bytes(&data[piece(part, k)], wire, &mut sent);
            places.push(start..sent.len());
        }
        let bytes = mine.len() * T::size(wire);
        received.resize(bytes * world, 0u8);
        let send: Vec<&[u8]> = places.iter().map(|p| &sent[p.clone()]).collect();
        let mut receive: Vec<&mut [u8]> = if bytes > 0 {
            received.chunks_exact_mut(bytes).collect()
        } else {
            (0..world).map(|_| &mut [][..]).collect()
        };
        transport.all_to_all(&send, &mut receive)?;
        own.clear();
        own.resize(mine.len(), T::ZERO);
        for (r, received) in receive.iter().enumerate() {
            // The own contribution takes its turn, rounded as the others are.
            let bytes = if r == rank { send[rank] } else { received };
            T::add_bytes(&mut own, bytes, wire);
        }
        data[mine].copy_from_slice(&own);
    }
    Ok(())
}

fn gather_parts<T: Pod>(transport: &mut dyn Transport, data: &mut [T], parts: &[Range<usize>]) -> Result<()> {
    let size = size_of::<T>();
    let bytes: Vec<_> = parts.iter().map(|p| p.start * size..p.end * size).collect();
    transport.all_gather(cast_slice_mut(data), &bytes)
}

/// Slices at ranges that are in order and do not overlap.
fn slices<T>(mut data: &mut [T], parts: impl Iterator<Item = Range<usize>>) -> Vec<&mut [T]> {
    let mut at = 0;
    parts
        .map(|part| {
            let (_, rest) = std::mem::take(&mut data).split_at_mut(part.start - at);
            let (slice, rest) = rest.split_at_mut(part.len());
            (data, at) = (rest, part.end);
            slice
        })
        .collect()
}

/// Every rank's part comes to rank 0.
fn gather_to_first<T: Pod>(
    transport: &mut dyn Transport,
    own: &[T],
    parts: &[Range<usize>],
    whole: &mut [T],
) -> Result<()> {
    let (rank, world) = (transport.rank(), transport.world());
    let rounds = parts.iter().map(|p| p.len().div_ceil(PIECE)).max().unwrap_or(0);
    for k in 0..rounds {
        let mut send: Vec<&[u8]> = vec![&[]; world];
        if rank > 0 {
            send[0] = cast_slice(&own[piece(&(0..own.len()), k)]);
        }
        let mut receive: Vec<&mut [u8]> = match rank {
            0 => slices(whole, parts.iter().map(|p| piece(p, k))).into_iter().map(cast_slice_mut).collect(),
            _ => (0..world).map(|_| &mut [][..]).collect(),
        };
        transport.all_to_all(&send, &mut receive)?;
    }
    if rank == 0 {
        whole[parts[0].clone()].copy_from_slice(own);
    }
    Ok(())
}

/// The parts of `0..len` that ranks take to sum it for all.
fn even(len: usize, world: usize) -> Vec<Range<usize>> {
    (0..world).map(|r| r * len / world..(r + 1) * len / world).collect()
}

fn sum_all<T: Scalar>(transport: &mut dyn Transport, data: &mut [T], wire: Wire) -> Result<()> {
    let parts = even(data.len(), transport.world());
    sum_parts(transport, data, &parts, wire)?;
    gather_parts(transport, data, &parts)
}

/// Sums numbers of the hosts, in the order of ranks.
pub(crate) fn sum_on_hosts(transport: &mut dyn Transport, data: &mut [f64]) -> Result<()> {
    sum_all(transport, data, Wire::Full)
}

/// Gradients under way.
struct Bucket<T> {
    at: usize,
    values: Vec<T>,
    division: Division,
    wire: Wire,
}

impl<T: Scalar> Bucket<T> {
    fn reduce(&mut self, transport: &mut dyn Transport) -> Result<()> {
        match &self.division {
            Division::Replicated { .. } => sum_all(transport, &mut self.values, self.wire),
            Division::Sharded(shards) => {
                let end = self.at + self.values.len();
                let local = |s: &Range<usize>| {
                    let start = s.start.clamp(self.at, end) - self.at;
                    start..s.end.clamp(self.at, end).max(start + self.at) - self.at
                };
                let parts: Vec<_> = shards.iter().map(local).collect();
                sum_parts(transport, &mut self.values, &parts, self.wire)
            }
        }
    }
}

/// The ranks of a job on CPUs.
pub struct HostCollective<T: Scalar> {
    transport: Arc<Mutex<Box<dyn Transport>>>,
    rank: usize,
    world: usize,
    jobs: Option<Sender<Bucket<T>>>,
    done: Receiver<Done<T>>,
    thread: Option<JoinHandle<()>>,
    under_way: usize,
    /// Buffers of buckets that are done.
    spare: Vec<Vec<T>>,
    /// Since when this rank works on a step.
    begun: Instant,
    /// Seconds of steps that nobody has asked for.
    worked: VecDeque<f64>,
    travel: Travel,
}

/// A bucket that has been reduced, and the seconds that it took.
struct Done<T> {
    bucket: Bucket<T>,
    result: Result<()>,
    seconds: f64,
}

fn lock(transport: &Mutex<Box<dyn Transport>>) -> MutexGuard<'_, Box<dyn Transport>> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Scalar> HostCollective<T> {
    /// Over a transport, with a thread for what is under way.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn new(transport: Box<dyn Transport>) -> Result<Self> {
        let (rank, world) = (transport.rank(), transport.world());
        let transport = Arc::new(Mutex::new(transport));
        let (jobs, inbox) = channel::<Bucket<T>>();
        let (outbox, done) = channel();
        let shared = transport.clone();
        let work = move || {
            for mut bucket in inbox {
                let left = Instant::now();
                let result = bucket.reduce(lock(&shared).as_mut());
                let seconds = left.elapsed().as_secs_f64();
                if outbox.send(Done { bucket, result, seconds }).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("collective".into())
            .spawn(work)
            .map_err(|e| Error::Ranks(crate::limits::refused("the thread for collectives", &e)))?;
        Ok(Self {
            transport,
            rank,
            world,
            jobs: Some(jobs),
            done,
            thread: Some(thread),
            under_way: 0,
            spare: Vec::new(),
            begun: Instant::now(),
            worked: VecDeque::new(),
            travel: Travel::default(),
        })
    }

    /// Calls `f` with the transport once nothing is under way.
    fn idle<R>(&mut self, f: impl FnOnce(&mut dyn Transport) -> Result<R>) -> Result<R> {
        if self.under_way > 0 {
            return Err(Error::Ranks("gradients are under way: finish_reduce comes first".into()));
        }
        f(lock(&self.transport).as_mut())
    }
}

impl<T: Scalar> Drop for HostCollective<T> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A job that waits for a rank which is gone ends with that rank's connection.
            let _ = thread.join();
        }
    }
}

impl<T: Scalar> Collective<Cpu<T>> for HostCollective<T> {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.world
    }
    fn describe(&self) -> String {
        lock(&self.transport).describe()
    }

    fn begin_work(&mut self, _: &Cpu<T>) -> Result<()> {
        self.begun = Instant::now();
        Ok(())
    }

    fn work_seconds(&mut self) -> Result<f64> {
        Ok(self.worked.pop_front().unwrap_or(0.0))
    }

    /// It costs next to nothing: it is always on.
    fn time_travel(&mut self, _: bool) -> Result<()> {
        self.travel = Travel::default();
        Ok(())
    }

    fn travel(&mut self) -> Result<Travel> {
        Ok(self.travel)
    }

    fn begin_reduce(
        &mut self,
        _: &Cpu<T>,
        grads: &Buffer<T>,
        range: Range<usize>,
        division: &Division,
        wire: Wire,
    ) -> Result<()> {
        let mut values = self.spare.pop().unwrap_or_default();
        values.clear();
        values.extend_from_slice(&grads.as_slice()[range.clone()]);
        let bucket = Bucket { at: range.start, values, division: division.clone(), wire };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(bucket).is_ok());
        if !sent {
            return Err(Error::Ranks("the thread for collectives ended; see the message above".into()));
        }
        self.under_way += 1;
        Ok(())
    }

    fn finish_reduce(&mut self, _: &Cpu<T>, grads: &mut Buffer<T>) -> Result<()> {
        self.worked.push_back(self.begun.elapsed().as_secs_f64());
        let waits = Instant::now();
        let grads = grads.as_mut_slice();
        let mut first_error = Ok(());
        while self.under_way > 0 {
            let Ok(Done { bucket, result, seconds }) = self.done.recv() else {
                return Err(Error::Ranks("the thread for collectives ended; see the message above".into()));
            };
            self.under_way -= 1;
            self.travel.gradients += seconds;
            if result.is_err() {
                first_error = first_error.and(result);
                continue;
            }
            let own = bucket.division.of(self.rank);
            let end = bucket.at + bucket.values.len();
            let (start, end) = (own.start.clamp(bucket.at, end), own.end.clamp(bucket.at, end));
            if start < end {
                grads[start..end].copy_from_slice(&bucket.values[start - bucket.at..end - bucket.at]);
            }
            self.spare.push(bucket.values);
        }
        self.travel.exposed += waits.elapsed().as_secs_f64();
        first_error
    }

    fn gather_weights(
        &mut self,
        _: &Cpu<T>,
        weights: &mut Buffer<T>,
        division: &Division,
        _: &[Range<usize>],
    ) -> Result<()> {
        let Division::Sharded(parts) = division else { return Ok(()) };
        let left = Instant::now();
        // There is one copy of the weights.
        self.idle(|t| gather_parts(t, weights.as_mut_slice(), parts))?;
        self.travel.weights += left.elapsed().as_secs_f64();
        Ok(())
    }

    fn gather_to_first(
        &mut self,
        _: &Cpu<T>,
        own: &[T],
        parts: &[Range<usize>],
        whole: &mut [T],
    ) -> Result<()> {
        self.idle(|t| gather_to_first(t, own, parts, whole))
    }

    fn send_from_first(&mut self, _: &Cpu<T>, data: &mut [T]) -> Result<()> {
        let mut parts = vec![data.len()..data.len(); self.world];
        parts[0] = 0..data.len();
        self.idle(|t| gather_parts(t, data, &parts))
    }

    fn sum(&mut self, _: &Cpu<T>, data: <Cpu<T> as Backend>::Mut<'_, f64>) -> Result<()> {
        self.idle(|t| sum_all(t, data, Wire::Full))
    }

    fn sum_host(&mut self, data: &mut [f64]) -> Result<()> {
        self.idle(|t| sum_all(t, data, Wire::Full))
    }

    fn gather_bytes(&mut self, data: &mut [u8], parts: &[Range<usize>]) -> Result<()> {
        self.idle(|t| t.all_gather(data, parts))
    }
}
