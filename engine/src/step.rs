//! How a training step is queued: in training, and where steps are timed.

use crate::config::{ClipOrder, Config, GradientWire};
use crate::data::Batch;
use crate::dist::{self, Buckets, Group};
use crate::model::{Bert, GoesOn, Gradients, LossScale, StageDone};
use crate::optim::Optimizer;
use crate::table::TensorTable;
use crate::{Error, Result};
use kernels::backend::{Backend, STRETCH};
use kernels::collective::{Division, Wire};
use std::cell::Cell;
use std::sync::atomic::AtomicI32;

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

/// Whether a step under way is to be given up because of a signal.
pub struct Stop<'a> {
    /// The signal that this process got.
    pub signal: &'a AtomicI32,
    /// Whether the step is so long that it is worth asking. All processes have the same answer: they agree before the update
    /// whether it is made, which costs them one more exchange of a few bytes.
    pub asks: bool,
}

impl Stop<'_> {
    /// A step that is always finished.
    pub fn never() -> Self {
        static NONE: AtomicI32 = AtomicI32::new(0);
        Self { signal: &NONE, asks: false }
    }
}

/// Queues forward, backward and update. Waits for nothing, unless several processes meet in it. The answer becomes the sums of
/// the losses ([`crate::model::EvalSums`]) and what [`Optimizer::outcome_on_device`] has. None where `stop` has ended the
/// step: the weights and moments of all processes are then those of before.
///
/// # Errors
/// Those of the device and of the other processes.
pub fn queue<B: Backend<Acc = f32>>(
    parts: Parts<'_, B>,
    reduction: &Reduction,
    step: &Step<'_>,
    stop: &Stop<'_>,
) -> Result<Option<B::Pending>> {
    let Parts { group, bert, grads, optimizer } = parts;
    group.ranks.begin_work(bert.backend())?;
    let whole = gradients(Parts { group, bert, grads, optimizer }, reduction, step, stop)?;
    if !whole && group.world() == 1 {
        return Ok(None);
    }
    group.ranks.finish_reduce(bert.backend(), grads.params_mut())?;
    if stop.asks && group.world() > 1 && group.agree_on_signal(stop.signal, &mut [])? != 0 {
        return Ok(None);
    }
    let (backend, weights) = bert.weights_mut();
    optimizer.update(backend, group.ranks.as_mut(), weights, grads.params(), step.lr)?;
    edge(group.world() == 1, bert, B::end_step)?;
    let [norm, nonfinite] = optimizer.outcome_on_device();
    Ok(Some(bert.backend().read_later(&[bert.sums_on_device(), norm, nonfinite])?))
}

/// Forward and backward of all micro-batches; gradients leave for other processes as they are complete. The device may take
/// all ops of a micro-batch as one, those of the last with the update that follows: the batch and the memory that it needs
/// come before. False where the step was given up: what the other processes wait for has left nevertheless, with any values.
fn gradients<B: Backend<Acc = f32>>(
    parts: Parts<'_, B>,
    reduction: &Reduction,
    step: &Step<'_>,
    stop: &Stop<'_>,
) -> Result<bool> {
    let Parts { group, bert, grads, optimizer } = parts;
    let Reduction { buckets, wire, clip_own } = reduction;
    let (world, division) = (group.world(), optimizer.division().clone());
    let Group { ranks, control } = group;
    let goes_on = || !stop.asks || dist::signal(stop.signal, control.as_ref()) == 0;
    let begun = Cell::new(0);
    let mut reduce = |backend: &B, stage: usize, grads: &B::Mem<B::Acc>| -> Result<()> {
        for range in buckets.after(stage) {
            ranks.begin_reduce(backend, grads, range.clone(), &division, *wire)?;
        }
        begun.set(stage + 1);
        Ok(())
    };
    // With the last micro-batch gradients are complete, stage by stage, unless they are clipped first.
    let micro_batches = MicroBatches { step, alone: world == 1, goes_on: &goes_on };
    let whole = match micro_batches.run(bert, grads, if *clip_own { None } else { Some(&mut reduce) }) {
        Ok(()) => true,
        Err(Error::Stopped) => false,
        Err(error) => return Err(error),
    };
    if whole && *clip_own {
        optimizer.clip_own(bert.backend(), grads.params_mut(), world)?;
    }
    (begun.get()..buckets.stages()).try_for_each(|stage| reduce(bert.backend(), stage, grads.params()))?;
    Ok(whole)
}

/// This process's part of a step.
struct MicroBatches<'a> {
    step: &'a Step<'a>,
    /// Whether there is no other process.
    alone: bool,
    /// Asked between micro-batches and, where ops are done when they return, between layers: on a device of its own a
    /// micro-batch is a matter of milliseconds, and what it takes as one is not cut.
    goes_on: GoesOn<'a>,
}

impl MicroBatches<'_> {
    /// Adds up their gradients from 0; `last` is called as backward of the last one completes them.
    fn run<B: Backend<Acc = f32>>(
        &self,
        bert: &mut Bert<B>,
        grads: &mut Gradients<B>,
        mut last: Option<&mut StageDone<'_, B>>,
    ) -> Result<()> {
        let Self { step, alone, goes_on } = *self;
        let &Step { micro, scale, key, .. } = step;
        let in_pass: GoesOn<'_> = if B::HOST { goes_on } else { &|| true };
        bert.clear_sums()?;
        grads.clear(bert.backend())?;
        for (i, batch) in micro.iter().enumerate() {
            if !goes_on() {
                return Err(Error::Stopped);
            }
            bert.bring(grads, batch)?;
            edge(alone, bert, B::begin_step)?;
            match last.as_deref_mut().filter(|_| i + 1 == micro.len()) {
                // The update follows: its end is the step's.
                Some(done) => bert.train(grads, scale, key, in_pass, done)?,
                None => {
                    bert.train(grads, scale, key, in_pass, &mut |_, _, _| Ok(()))?;
                    edge(alone, bert, B::end_step)?;
                }
            }
        }
        Ok(())
    }
}

/// Begins or ends what the device may take as one. Several processes wait for each other in there.
fn edge<B: Backend>(alone: bool, bert: &Bert<B>, edge: fn(&B) -> kernels::Result<()>) -> Result<()> {
    if alone {
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
    use crate::bench::batch;
    use crate::config::{ModelConfig, Preset};
    use kernels::cpu::Cpu;

    /// A model that is about to take its third step, and how many layers a pass has.
    struct Ready {
        group: Group<Cpu<f32>>,
        bert: Bert<Cpu<f32>>,
        grads: Gradients<Cpu<f32>>,
        optimizer: Optimizer<Cpu<f32>>,
        reduction: Reduction,
        micro: Vec<Batch>,
    }

    impl Ready {
        fn new() -> Self {
            let sizes = ModelConfig {
                hidden: 16,
                heads: 2,
                intermediate: 32,
                max_positions: 16,
                ..Preset::Tiny.model()
            };
            let config =
                Config { model: ModelConfig { layers: 3, vocab_size: 50, ..sizes }, ..Config::default() };
            let mut bert = Bert::new(Cpu::new(), &config.model).unwrap();
            bert.init(1).unwrap();
            let grads = bert.gradients().unwrap();
            let optimizer = Optimizer::new(bert.backend(), bert.table(), &config.optimizer).unwrap();
            let reduction = Reduction::new(&config, bert.table(), 1);
            let micro = [[16, 9], [12, 14]].map(|lengths| batch(&config.model, &lengths, 4)).to_vec();
            let mut ready = Self { group: Group::solo(), bert, grads, optimizer, reduction, micro };
            (1..3).for_each(|key| assert!(ready.queue(key, &Stop::never())));
            ready
        }

        /// Whether the step was taken.
        fn queue(&mut self, key: u64, stop: &Stop<'_>) -> bool {
            let Self { group, bert, grads, optimizer, reduction, micro } = self;
            let step = Step { micro, scale: LossScale::new(8, 4), key, lr: 0.1 };
            queue(Parts { group, bert, grads, optimizer }, reduction, &step, stop).unwrap().is_some()
        }

        fn state(&mut self) -> Vec<u32> {
            let Self { group, bert, optimizer, .. } = self;
            let moments = optimizer.moments(bert.backend(), group.ranks.as_mut(), bert.table().len).unwrap();
            let all = moments.into_iter().chain([bert.weights().unwrap()]);
            all.flatten().map(f32::to_bits).collect()
        }
    }

    #[test]
    fn a_step_given_up_at_any_layer_leaves_nothing_and_is_taken_again_to_the_same_bits() {
        let mut undisturbed = Ready::new();
        let before = undisturbed.state();
        assert!(undisturbed.queue(3, &Stop::never()));
        let after = undisturbed.state();
        assert!(before != after);
        // Each of two micro-batches asks at its beginning, before 3 layers forward and before 3 backward.
        for moment in 0..14 {
            let mut ready = Ready::new();
            let asked = Cell::new(0);
            let goes_on = || asked.replace(asked.get() + 1) < moment;
            let step = Step { micro: &ready.micro, scale: LossScale::new(8, 4), key: 3, lr: 0.1 };
            let part = MicroBatches { step: &step, alone: true, goes_on: &goes_on };
            let ended = part.run(&mut ready.bert, &mut ready.grads, None);
            assert!(matches!(ended, Err(Error::Stopped)) && asked.get() == moment + 1, "{moment}: {ended:?}");
            assert!(ready.state() == before, "{moment}");
            assert!(ready.queue(3, &Stop::never()) && ready.state() == after, "{moment}");
        }
        let (mut ready, signal) = (Ready::new(), AtomicI32::new(15));
        assert!(!ready.queue(3, &Stop { signal: &signal, asks: true }) && ready.state() == before);
        assert!(ready.queue(3, &Stop { signal: &signal, asks: false }) && ready.state() == after);
    }

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
