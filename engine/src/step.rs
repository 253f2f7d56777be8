//! How a training step is queued: in training, and where steps are timed.

use crate::Result;
use crate::config::{ClipOrder, Config, GradientWire};
use crate::data::Batch;
use crate::dist::{Buckets, Group};
use crate::model::{Bert, Gradients, LossScale};
use crate::optim::Optimizer;
use crate::table::TensorTable;
use kernels::backend::{Backend, STRETCH};
use kernels::collective::{Division, Wire};

/// How gradients are summed over processes.
#[derive(Debug, Clone)]
pub struct Reduction {
    buckets: Buckets,
    wire: Wire,
    /// Each process clips its own before they are summed.
    clip_own: bool,
}

impl Reduction {
    /// As the configuration says, over `world` processes.
    pub fn new(config: &Config, table: &TensorTable, world: usize) -> Self {
        let wire = match config.ranks.gradients {
            GradientWire::F32 => Wire::Full,
            GradientWire::Bf16 => Wire::Bf16,
        };
        let clips = config.optimizer.clip_norm > 0.0 && config.ranks.clip == ClipOrder::Before;
        let buckets = Buckets::new(table, config.ranks.bucket_elements);
        Self { buckets, wire, clip_own: world > 1 && clips }
    }
}

/// Which process updates what.
pub fn division(config: &Config, table: &TensorTable, world: usize) -> Division {
    match world {
        world if world > 1 && config.ranks.shard_optimizer => Division::sharded(table.len, world, STRETCH),
        _ => Division::Replicated { len: table.len },
    }
}

/// What a step changes.
pub struct Parts<'a, B: Backend> {
    /// The processes that take it together.
    pub group: &'a mut Group<B>,
    /// Weights and activations.
    pub bert: &'a mut Bert<B>,
    /// Of all parameters.
    pub grads: &'a mut Gradients<B>,
    /// Moments.
    pub optimizer: &'a mut Optimizer<B>,
}

/// What a step is made of.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// This process's micro-batches.
    pub micro: &'a [Batch],
    /// Of the predictions of all processes.
    pub scale: LossScale,
    /// What dropout is drawn with.
    pub key: u64,
    /// Learning rate.
    pub lr: f64,
}

/// Queues forward, backward and update. Waits for nothing, unless several processes meet in it. The answer becomes the sums of
/// the losses ([`crate::model::EvalSums`]) and what [`Optimizer::outcome_on_device`] has.
///
/// # Errors
/// Those of the device and of the other processes.
pub fn queue<B: Backend<Acc = f32>>(
    parts: Parts<'_, B>,
    reduction: &Reduction,
    step: &Step<'_>,
) -> Result<B::Pending> {
    let Parts { group, bert, grads, optimizer } = parts;
    group.ranks.begin_work(bert.backend())?;
    gradients(Parts { group, bert, grads, optimizer }, reduction, step)?;
    group.ranks.finish_reduce(bert.backend(), grads.params_mut())?;
    let (backend, weights) = bert.weights_mut();
    optimizer.update(backend, group.ranks.as_mut(), weights, grads.params(), step.lr)?;
    together(group, bert, B::end_step)?;
    let [norm, nonfinite] = optimizer.outcome_on_device();
    Ok(bert.backend().read_later(&[bert.sums_on_device(), norm, nonfinite])?)
}

/// Forward and backward of all micro-batches; gradients leave for other processes as they are complete. The device may take
/// all ops of a micro-batch as one, those of the last with the update that follows: the batch and the memory that it needs
/// come before.
fn gradients<B: Backend<Acc = f32>>(
    parts: Parts<'_, B>,
    reduction: &Reduction,
    step: &Step<'_>,
) -> Result<()> {
    let Parts { group, bert, grads, optimizer } = parts;
    let Reduction { buckets, wire, clip_own } = reduction;
    let &Step { micro, scale, key, .. } = step;
    let (world, division) = (group.world(), optimizer.division().clone());
    let (last, before) = match micro.split_last() {
        Some((last, before)) if !clip_own => (Some(last), before),
        _ => (None, micro),
    };
    bert.clear_sums()?;
    grads.clear(bert.backend())?;
    for batch in before {
        bert.bring(grads, batch)?;
        together(group, bert, B::begin_step)?;
        bert.train(grads, scale, key, &mut |_, _, _| Ok(()))?;
        together(group, bert, B::end_step)?;
    }
    if let Some(last) = last {
        bert.bring(grads, last)?;
        together(group, bert, B::begin_step)?;
    }
    let ranks = group.ranks.as_mut();
    let mut reduce = |backend: &B, stage: usize, grads: &B::Mem<B::Acc>| -> Result<()> {
        for range in buckets.after(stage) {
            ranks.begin_reduce(backend, grads, range.clone(), &division, *wire)?;
        }
        Ok(())
    };
    if last.is_some() {
        // With the last micro-batch gradients are complete, stage by stage.
        return bert.train(grads, scale, key, &mut reduce);
    }
    if *clip_own {
        optimizer.clip_own(bert.backend(), grads.params_mut(), world)?;
    }
    (0..buckets.stages()).try_for_each(|stage| reduce(bert.backend(), stage, grads.params()))
}

/// Begins or ends what the device may take as one. Several processes wait for each other in there.
fn together<B: Backend>(group: &Group<B>, bert: &Bert<B>, edge: fn(&B) -> kernels::Result<()>) -> Result<()> {
    if group.world() == 1 {
        edge(bert.backend())?;
    }
    Ok(())
}

/// Seconds that each process, or its device, computed before it waited for the others.
#[derive(Debug, Clone, Default)]
pub struct OwnWork(Vec<f64>);

impl OwnWork {
    /// Adds a step's, of every process.
    pub fn add(&mut self, seconds: &[f64]) {
        self.0.resize(seconds.len(), 0.0);
        self.0.iter_mut().zip(seconds).for_each(|(sum, s)| *sum += s);
    }

    /// Of several processes the one that the others wait for, and by how much its work exceeds the mean.
    pub fn slowest(&self) -> Option<(usize, f64)> {
        let mean = self.0.iter().sum::<f64>() / self.0.len() as f64;
        let slowest = (0..self.0.len()).max_by(|&a, &b| self.0[a].total_cmp(&self.0[b]))?;
        (self.0.len() > 1 && mean > 0.0).then(|| (slowest, self.0[slowest] / mean - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rank_is_that_of_the_most_work_in_all_steps() {
        let mut work = OwnWork::default();
        assert_eq!(work.slowest(), None);
        work.add(&[1.0, 2.0, 1.0]);
        work.add(&[1.0, 1.0, 3.0]);
        let (rank, more) = work.slowest().unwrap();
        assert!(rank == 2 && (more - 1.0 / 3.0).abs() < 1e-12);
        let mut alone = OwnWork::default();
        alone.add(&[1.0]);
        assert_eq!(alone.slowest(), None);
    }
}
