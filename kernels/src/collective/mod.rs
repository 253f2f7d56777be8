//! Operations over all ranks of a job.
//!
//! On CPUs a sum over ranks is always added in the order of the ranks, by the one rank that owns the element: its bits do not
//! depend on timing, transport or on who asks for it. On GPUs the order is NCCL's ([`crate::cuda::nccl`]).

mod host;
#[cfg(feature = "mpi")]
pub mod mpi;
mod solo;
pub mod tcp;

pub use host::{HostCollective, Transport};
pub use solo::Solo;

pub(crate) use host::sum_on_hosts;

use crate::Result;
use crate::backend::Backend;
use std::ops::Range;
use std::sync::Arc;

/// How the flat table is divided among ranks: the part that each rank updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Division {
    /// Every rank updates everything.
    Replicated {
        /// Elements of the table.
        len: usize,
    },
    /// Rank r updates the r-th range; together they are the whole table, in order.
    Sharded(Arc<[Range<usize>]>),
}

impl Division {
    /// Shards of about equal size that begin at multiples of `unit`.
    pub fn sharded(len: usize, world: usize, unit: usize) -> Self {
        let units = len.div_ceil(unit);
        let edge = |r: usize| (r * units / world * unit).min(len);
        Self::Sharded((0..world).map(|r| edge(r)..if r + 1 == world { len } else { edge(r + 1) }).collect())
    }

    /// What a rank updates.
    pub fn of(&self, rank: usize) -> Range<usize> {
        match self {
            Self::Replicated { len, .. } => 0..*len,
            Self::Sharded(shards) => shards[rank].clone(),
        }
    }
}

/// The number format in which gradients travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wire {
    /// As they are.
    #[default]
    Full,
    /// Rounded to bf16. On CPUs added in full; between GPUs every partial sum on the way is rounded again.
    Bf16,
}

/// How long what ranks exchange was on its way, in seconds by the device's clock. Who waits for a slower rank takes its time for
/// the way's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Travel {
    /// Gradients, from the moment each bucket could leave.
    pub gradients: f64,
    /// Of that, what remained when this rank's own work was done: from there on nothing else ran.
    pub exposed: f64,
    /// Updated weights; nothing else runs meanwhile.
    pub weights: f64,
}

impl std::ops::AddAssign for Travel {
    fn add_assign(&mut self, other: Self) {
        self.gradients += other.gradients;
        self.exposed += other.exposed;
        self.weights += other.weights;
    }
}

/// The ranks of a job, seen from one of them. Every rank calls the same methods in the same order with buffers of the same
/// sizes.
///
/// # Errors
/// Of every method: a rank that cannot be reached. Nothing is known of the buffers then.
pub trait Collective<B: Backend>: Send {
    /// This process, of `0..world`.
    fn rank(&self) -> usize;
    /// Number of processes.
    fn world(&self) -> usize;
    /// One line that says over what the ranks talk, for logs.
    fn describe(&self) -> String;

    /// This rank's own work of a step begins; it ends with [`Self::finish_reduce`], where it waits for the others first.
    fn begin_work(&mut self, backend: &B) -> Result<()>;
    /// Seconds of a step's own work, by the device's clock: of the first step that was not asked for yet. Waits until it is
    /// done, and for no other rank.
    fn work_seconds(&mut self) -> Result<f64>;

    /// Whether it is measured from here on how long gradients and weights are on their way. Forgets what was measured before.
    fn time_travel(&mut self, on: bool) -> Result<()>;
    /// The sum over all steps since, which are whole. Waits for them.
    fn travel(&mut self) -> Result<Travel>;

    /// Begins to sum the gradients at `range`, which are complete on this rank and are not touched until
    /// [`Self::finish_reduce`]. Computation may go on meanwhile.
    fn begin_reduce(
        &mut self,
        backend: &B,
        grads: &B::Mem<B::Acc>,
        range: Range<usize>,
        division: &Division,
        wire: Wire,
    ) -> Result<()>;
    /// Waits for all that was begun: of every range the part that the division gives this rank is the sum over ranks, the
    /// rest is unspecified.
    fn finish_reduce(&mut self, backend: &B, grads: &mut B::Mem<B::Acc>) -> Result<()>;
    /// Every rank's part of the weights, as [`Backend::weight`] has them, comes to all ranks; of the ranges `masters` also what
    /// [`Backend::master`] has. Elsewhere the master copy may be up to date only on the rank that updates it.
    fn gather_weights(
        &mut self,
        backend: &B,
        weights: &mut B::Weights,
        division: &Division,
        masters: &[Range<usize>],
    ) -> Result<()>;
    /// Rank r's `own` comes to `whole[parts[r]]` of rank 0, in the host's memory; the other ranks' `whole` is not touched. The parts are in order and do not overlap.
    fn gather_to_first(
        &mut self,
        backend: &B,
        own: B::Ref<'_, B::Acc>,
        parts: &[Range<usize>],
        whole: &mut [B::Acc],
    ) -> Result<()>;
    /// Rank 0's `data`, in the host's memory, comes to all.
    fn send_from_first(&mut self, backend: &B, data: &mut [B::Acc]) -> Result<()>;
    /// Sums over ranks, on all ranks, in f64.
    fn sum(&mut self, backend: &B, data: B::Mut<'_, f64>) -> Result<()>;
    /// Sums over ranks, on all ranks, of numbers on the host.
    fn sum_host(&mut self, data: &mut [f64]) -> Result<()>;
    /// The bytes at `parts[r]` come from rank r to all ranks. The parts are in order and do not overlap.
    fn gather_bytes(&mut self, data: &mut [u8], parts: &[Range<usize>]) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_the_table_in_order_and_begin_at_units() {
        for (len, world, unit) in [(100, 3, 7), (5, 4, 16), (0, 2, 16), (1 << 20, 8, 1 << 14), (33, 1, 4)] {
            let division = Division::sharded(len, world, unit);
            let mut at = 0;
            for rank in 0..world {
                let shard = division.of(rank);
                assert_eq!(shard.start, at);
                assert!(shard.start.is_multiple_of(unit) || shard.start == len);
                at = shard.end;
            }
            assert_eq!(at, len);
        }
        assert_eq!(Division::sharded(64, 4, 16).of(2), 32..48);
    }
}
