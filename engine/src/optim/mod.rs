//! AdamW and LAMB with their moments, and the learning-rate schedule.

mod schedule;

pub use schedule::learning_rate;

use crate::Result;
use crate::config::{OptimizerConfig, OptimizerKind};
use crate::table::TensorTable;
use kernels::Scalar;
use kernels::backend::{
    Accs, Backend, OptimizerHyper, OptimizerStep, STRETCH, TensorSpan, lamb_sums, stretches,
};
use kernels::collective::{Collective, Division};
use kernels::cpu::memory::zeros;
use std::ops::Range;

/// Moments and the rule that applies them: of all parameters, or of this rank's shard.
pub struct Optimizer<B: Backend> {
    config: OptimizerConfig,
    spans: Vec<TensorSpan>,
    division: Division,
    /// What ops read of master weights.
    masters: Vec<Range<usize>>,
    shard: Range<usize>,
    m: B::Mem<B::Acc>,
    v: B::Mem<B::Acc>,
    norm: B::Mem<B::Acc>,
    /// [2] where the gradient is not finite, as [`Backend::find_nonfinite`] leaves it.
    nonfinite: B::Mem<B::Acc>,
    /// [1] updates applied
    updates: B::Mem<u32>,
    /// Sums of squares of the gradients' stretches, those of other ranks included.
    squares: B::Mem<f64>,
    /// LAMB's, of weights and updates.
    lamb: B::Mem<f64>,
    /// Whether gradients come clipped.
    clipped: bool,
}

/// What an update found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateOutcome {
    /// Global norm of the gradient before clipping. Where it is not finite nothing was updated.
    pub norm: f64,
    /// The first element of the table whose gradient is not finite, as far as this process sees.
    pub nonfinite: Option<usize>,
}

impl UpdateOutcome {
    /// From the numbers of [`Optimizer::outcome_on_device`].
    pub fn from_numbers<T: Scalar>(numbers: &[T]) -> Self {
        let number = |i: usize| numbers.get(i).map_or(f64::NAN, |n| n.to_f64());
        let [norm, stretch, element] = [0, 1, 2].map(number);
        let nonfinite = (stretch >= 0.0).then(|| stretch as usize * STRETCH + element as usize);
        Self { norm, nonfinite }
    }
}

impl<B: Backend> Optimizer<B> {
    /// Moments 0, of all parameters.
    pub fn new(backend: &B, table: &TensorTable, config: &OptimizerConfig) -> Result<Self> {
        Self::divided(backend, table, config, &Division::Replicated { len: table.len }, 0)
    }

    /// Moments 0, for the part that the division gives this rank.
    pub fn divided(
        backend: &B,
        table: &TensorTable,
        config: &OptimizerConfig,
        division: &Division,
        rank: usize,
    ) -> Result<Self> {
        let (spans, shard) = (table.spans(), division.of(rank));
        let sums = match config.kind {
            OptimizerKind::AdamW => 0,
            OptimizerKind::Lamb => lamb_sums(&spans),
        };
        Ok(Self {
            config: config.clone(),
            m: backend.zeros("first moments", shard.len())?,
            v: backend.zeros("second moments", shard.len())?,
            norm: backend.zeros("gradient norm", 1)?,
            nonfinite: backend.zeros("place of a gradient that is not finite", 2)?,
            updates: backend.zeros("number of updates", 1)?,
            squares: backend.zeros("gradient norm's parts", table.len.div_ceil(STRETCH))?,
            lamb: backend.zeros("norms' parts", sums)?,
            division: division.clone(),
            masters: table.masters(),
            spans,
            shard,
            clipped: false,
        })
    }

    /// What each rank updates.
    pub fn division(&self) -> &Division {
        &self.division
    }

    /// Clips and applies `grads`, summed over ranks for this rank's shard, at learning rate `lr`. Afterwards every rank has
    /// all weights. A gradient whose norm is not finite changes nothing and is not counted as an update.
    pub fn update(
        &mut self,
        backend: &B,
        ranks: &mut dyn Collective<B>,
        weights: &mut B::Weights,
        grads: &B::Mem<B::Acc>,
        lr: f64,
    ) -> Result<()> {
        let kind = self.config.kind;
        self.compute_norm(backend, ranks, grads)?;
        let c = &self.config;
        let hyper = OptimizerHyper {
            lr,
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: c.weight_decay,
            max_norm: if c.clip_norm > 0.0 && !self.clipped { c.clip_norm } else { f64::INFINITY },
            clip_eps: match kind {
                OptimizerKind::AdamW => 1e-6,
                OptimizerKind::Lamb => 0.0,
            },
        };
        match kind {
            OptimizerKind::AdamW => backend.adamw(self.step(weights, grads, hyper).0)?,
            OptimizerKind::Lamb => {
                let sums = B::len(&self.lamb);
                backend.clear(B::at_mut(&mut self.lamb, 0..sums))?;
                let (step, lamb) = self.step(weights, grads, hyper);
                backend.lamb_moments(step, B::at_mut(lamb, 0..sums))?;
                if self.is_sharded() {
                    ranks.sum(backend, B::at_mut(&mut self.lamb, 0..sums))?;
                }
                let (step, lamb) = self.step(weights, grads, hyper);
                backend.lamb_apply(step, B::at(lamb, 0..sums))?;
            }
        }
        ranks.gather_weights(backend, weights, &self.division, &self.masters)?;
        Ok(())
    }

    /// Clips this process's own part of the gradient to its share of the norm, before it is summed over `world` processes;
    /// [`Self::update`] then clips no more.
    pub fn clip_own(&mut self, backend: &B, grads: &mut B::Mem<B::Acc>, world: usize) -> Result<()> {
        let (all, len) = (B::len(&self.squares), B::len(grads));
        backend.square_sums(B::at_mut(&mut self.squares, 0..all), B::at(grads, 0..len))?;
        backend.root_of_sum(B::at_mut(&mut self.norm, 0..1), B::at(&self.squares, 0..all))?;
        let most = self.config.clip_norm / world as f64;
        backend.clip(B::at_mut(grads, 0..len), B::at(&self.norm, 0..1), most)?;
        self.clipped = true;
        Ok(())
    }

    /// Whether ranks share the moments.
    pub fn is_sharded(&self) -> bool {
        matches!(self.division, Division::Sharded(_))
    }

    /// The same bits however the table is divided: each stretch is summed by one rank, and 0 is added to it.
    fn compute_norm(
        &mut self,
        backend: &B,
        ranks: &mut dyn Collective<B>,
        grads: &B::Mem<B::Acc>,
    ) -> Result<()> {
        let all = B::len(&self.squares);
        if self.is_sharded() {
            backend.clear(B::at_mut(&mut self.squares, 0..all))?;
        }
        let own = stretches(&self.shard);
        backend.square_sums(B::at_mut(&mut self.squares, own), B::at(grads, self.shard.clone()))?;
        if self.is_sharded() {
            ranks.sum(backend, B::at_mut(&mut self.squares, 0..all))?;
        }
        backend.root_of_sum(B::at_mut(&mut self.norm, 0..1), B::at(&self.squares, 0..all))?;
        let (norm, len) = (B::at(&self.norm, 0..1), B::len(grads));
        Ok(backend.find_nonfinite(B::at_mut(&mut self.nonfinite, 0..2), B::at(grads, 0..len), norm)?)
    }

    /// The arguments of the optimizers' ops, and LAMB's sums beside them.
    fn step<'a>(
        &'a mut self,
        weights: &'a mut B::Weights,
        grads: &'a B::Mem<B::Acc>,
        hyper: OptimizerHyper,
    ) -> (OptimizerStep<'a, B>, &'a mut B::Mem<f64>) {
        let own = self.shard.len();
        let step = OptimizerStep {
            weights,
            grads: B::at(grads, 0..B::len(grads)),
            m: B::at_mut(&mut self.m, 0..own),
            v: B::at_mut(&mut self.v, 0..own),
            norm: B::at(&self.norm, 0..1),
            updates: B::at_mut(&mut self.updates, 0..1),
            shard: self.shard.clone(),
            tensors: &self.spans,
            hyper,
        };
        (step, &mut self.lamb)
    }

    /// Global norm of the last gradient, before clipping. Waits for the device.
    pub fn norm(&self, backend: &B) -> Result<f64> {
        let mut host = [B::Acc::ZERO];
        backend.download(B::at(&self.norm, 0..1), &mut host)?;
        Ok(host[0].to_f64())
    }

    /// What [`UpdateOutcome::from_numbers`] reads, after [`Self::update`].
    pub fn outcome_on_device(&self) -> [Accs<'_, B>; 2] {
        [B::at(&self.norm, 0..1), B::at(&self.nonfinite, 0..2)]
    }

    /// Both moments of all parameters, in the first process's memory; the others have their part in it, and get nothing.
    pub fn moments(
        &self,
        backend: &B,
        ranks: &mut dyn Collective<B>,
        len: usize,
    ) -> Result<[Vec<B::Acc>; 2]> {
        let mut copy = |mem: &B::Mem<B::Acc>| self.whole(backend, ranks, B::at(mem, 0..B::len(mem)), len);
        Ok([copy(&self.m)?, copy(&self.v)?])
    }

    /// All master weights, each from the process that updates it; likewise.
    pub fn weights(
        &self,
        backend: &B,
        ranks: &mut dyn Collective<B>,
        weights: &B::Weights,
        len: usize,
    ) -> Result<Vec<B::Acc>> {
        self.whole(backend, ranks, B::master(weights, self.shard.clone()), len)
    }

    /// `len` numbers in the first process's memory, of which `own` are this rank's shard.
    fn whole(
        &self,
        backend: &B,
        ranks: &mut dyn Collective<B>,
        own: Accs<'_, B>,
        len: usize,
    ) -> Result<Vec<B::Acc>> {
        let mut host = zeros("a copy of weights or moments", if ranks.rank() == 0 { len } else { 0 })?;
        match &self.division {
            Division::Sharded(shards) => ranks.gather_to_first(backend, own, shards, &mut host)?,
            Division::Replicated { .. } if ranks.rank() == 0 => backend.download(own, &mut host)?,
            Division::Replicated { .. } => {}
        }
        Ok(host)
    }

    /// Sets this rank's moments from all, as a checkpoint keeps them, and the number of updates that made them.
    pub fn load_moments(&mut self, backend: &B, m: &[B::Acc], v: &[B::Acc], updates: u64) -> Result<()> {
        let own = self.shard.len();
        let updates = u32::try_from(updates).unwrap_or(u32::MAX);
        backend.upload(B::at_mut(&mut self.updates, 0..1), &[updates])?;
        backend.upload(B::at_mut(&mut self.m, 0..own), &m[self.shard.clone()])?;
        Ok(backend.upload(B::at_mut(&mut self.v, 0..own), &v[self.shard.clone()])?)
    }
}
