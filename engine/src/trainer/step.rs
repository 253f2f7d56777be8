//! One step: what is queued on the device, and how its results are accounted for.

use super::Options;
use super::artifacts::last_good;
use super::run::Run;
use super::{Observer, StepProgress};
use crate::config::{ClipOrder, GradientWire, OnNonFinite};
use crate::data::LoaderState;
use crate::data::loader::GlobalBatch;
use crate::dist::{Control, Group};
use crate::metrics::TrainRecord;
use crate::model::{Bert, EvalSums, LossScale, SUMS, training_flops};
use crate::optim::{UpdateOutcome, learning_rate};
use crate::trainer::setup::Setup;
use crate::{Error, Result};
use kernels::Backend;
use kernels::collective::Wire;
use kernels::philox::step_key;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Sums since the last line of metrics.
#[derive(Default)]
pub(super) struct Window {
    tokens: u64,
    seconds: f64,
    flops: f64,
    /// Seconds that each process, or its device, computed before it waited for the others.
    work: Vec<f64>,
}

impl Window {
    fn add_work(&mut self, seconds: &[f64]) {
        self.work.resize(seconds.len(), 0.0);
        self.work.iter_mut().zip(seconds).for_each(|(sum, s)| *sum += s);
    }

    /// Of several processes the one that the others wait for, and by how much its work exceeds the mean.
    fn slowest(&self) -> Option<(usize, f64)> {
        let mean = self.work.iter().sum::<f64>() / self.work.len() as f64;
        let slowest = (0..self.work.len()).max_by(|&a, &b| self.work[a].total_cmp(&self.work[b]))?;
        (self.work.len() > 1 && mean > 0.0).then(|| (slowest, self.work[slowest] / mean - 1.0))
    }
}

/// A step whose ops are queued.
pub(super) struct Queued<B: Backend> {
    /// Losses and the update's outcome.
    numbers: B::Pending,
    lr: f64,
    /// Seconds of this process's own work, once that is known to be done.
    pub worked: Option<f64>,
    masked: usize,
    labelled: usize,
    pub sequences: usize,
    tokens: usize,
    flops: f64,
    /// Where the loader goes on after it.
    loader: LoaderState,
}

/// What one step did.
struct Step {
    sums: EvalSums,
    outcome: UpdateOutcome,
    lr: f64,
}

impl Step {
    fn is_finite(&self) -> bool {
        self.sums.loss().is_finite() && self.outcome.norm.is_finite()
    }
}

impl<B: Backend<Acc = f32>> Run<'_, B> {
    /// Queues forward, backward and update of one global batch. Waits for nothing, unless several processes meet in it.
    pub(super) fn queue(&mut self, global: &GlobalBatch) -> Result<Queued<B>> {
        let number = self.setup.state.step + u64::from(self.pending.is_some());
        let config = &self.setup.config;
        let key = step_key(config.train.seed, number + 1);
        let lr = learning_rate(&config.schedule, number, config.train.steps);
        self.group.ranks.begin_work(self.setup.bert.backend())?;
        self.gradients(global, key)?;
        let Self { group, setup: Setup { bert, optimizer, .. }, grads, .. } = self;
        group.ranks.finish_reduce(bert.backend(), grads.params_mut())?;
        let (backend, weights) = bert.weights_mut();
        optimizer.update(backend, group.ranks.as_mut(), weights, grads.params(), lr)?;
        together(group, bert, B::end_step)?;
        let [norm, nonfinite] = optimizer.outcome_on_device();
        Ok(Queued {
            numbers: bert.backend().read_later(&[bert.sums_on_device(), norm, nonfinite])?,
            lr,
            worked: None,
            masked: global.mlm_total,
            labelled: global.nsp_total,
            sequences: global.sequences,
            tokens: global.tokens,
            flops: global.micro.iter().map(|b| training_flops(bert.config(), b)).sum(),
            loader: global.state_after,
        })
    }

    /// Forward and backward of all micro-batches; gradients leave for other processes as they are complete. The device may
    /// take all ops of a micro-batch as one, those of the last with the update that follows: the batch and the memory that it
    /// needs come before.
    fn gradients(&mut self, global: &GlobalBatch, key: u64) -> Result<()> {
        let Self { group, buckets, setup: Setup { config, bert, optimizer, .. }, grads, .. } = self;
        let (world, division) = (group.world(), optimizer.division().clone());
        let wire = match config.ranks.gradients {
            GradientWire::F32 => Wire::Full,
            GradientWire::Bf16 => Wire::Bf16,
        };
        let scale = LossScale::new(global.mlm_total, global.nsp_total);
        let clip_own =
            world > 1 && config.optimizer.clip_norm > 0.0 && config.ranks.clip == ClipOrder::Before;
        let (last, before) = match global.micro.split_last() {
            Some((last, before)) if !clip_own => (Some(last), before),
            _ => (None, &global.micro[..]),
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
                ranks.begin_reduce(backend, grads, range.clone(), &division, wire)?;
            }
            Ok(())
        };
        if last.is_some() {
            // With the last micro-batch gradients are complete, stage by stage.
            return bert.train(grads, scale, key, &mut reduce);
        }
        if clip_own {
            optimizer.clip_own(bert.backend(), grads.params_mut(), world)?;
        }
        (0..buckets.stages()).try_for_each(|stage| reduce(bert.backend(), stage, grads.params()))
    }

    /// Waits for a step's results, counts it, and logs it where it is due. Its seconds are those since the step before it was
    /// accounted for, or since it was begun where none was before it.
    pub(super) fn account(
        &mut self,
        queued: Queued<B>,
        options: &Options<'_>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        // This process's own work first: while it waits for that, it does not wait for others.
        let worked = queued.worked.map_or_else(|| self.group.ranks.work_seconds(), Ok)?;
        let numbers = self.group.wait(|| self.setup.bert.backend().read(queued.numbers))?;
        let (losses, outcome) = numbers.split_at(SUMS);
        let outcome = UpdateOutcome::from_numbers(outcome);
        let mut shared: Vec<f64> = losses.iter().copied().map(f64::from).collect();
        shared.resize(SUMS + self.group.world(), 0.0);
        shared[SUMS + self.group.ranks.rank()] = worked;
        self.agree_to_stop(options, &mut shared)?;
        self.group.control.iter().for_each(Control::step_done);
        let sums = EvalSums {
            mlm_count: queued.masked,
            nsp_count: queued.labelled,
            ..EvalSums::from_numbers(&shared[..SUMS])
        };
        let step = Step { sums, outcome, lr: queued.lr };
        self.window.add_work(&shared[SUMS..]);
        self.window.tokens += queued.tokens as u64;
        self.window.flops += queued.flops;
        let now = Instant::now();
        let seconds = now.duration_since(std::mem::replace(&mut self.clock, now)).as_secs_f64();
        if !step.is_finite() {
            self.non_finite(&step, observer)?;
        }

        let state = &mut self.setup.state;
        state.step += 1;
        if outcome.norm.is_finite() {
            state.updates += 1;
        } else {
            state.skipped += 1;
        }
        state.samples += queued.sequences as u64;
        state.tokens += queued.tokens as u64;
        state.loader = queued.loader;
        state.train_seconds += seconds;
        self.window.seconds += seconds;
        self.done.0 += 1;
        self.done.1 += seconds;
        self.log(&step, observer)
    }

    /// Tells the observer of the step that was counted last, and writes its records where they are due.
    fn log(&mut self, step: &Step, observer: &mut dyn Observer) -> Result<()> {
        let (state, train) = (&self.setup.state, &self.setup.config.train);
        let logged = state.step.is_multiple_of(train.log_every) || state.step == train.steps;
        let labelled = step.sums.nsp_count > 0;
        let record = TrainRecord {
            step: state.step,
            loss: step.sums.loss(),
            mlm_loss: step.sums.mlm_mean(),
            nsp_loss: labelled.then(|| step.sums.nsp_mean()),
            mlm_accuracy: step.sums.mlm_accuracy(),
            nsp_accuracy: labelled.then(|| step.sums.nsp_accuracy()),
            lr: step.lr,
            grad_norm: step.outcome.norm,
            tokens_per_second: self.window.tokens as f64 / self.window.seconds,
            samples: state.samples,
            seconds: state.train_seconds,
            model_tflops: self.window.flops / self.window.seconds / 1e12,
            skipped: state.skipped,
        };
        let progress = StepProgress {
            step: state.step,
            total: train.steps,
            seconds_left: (train.steps - state.step) as f64 * self.done.1 / self.done.0 as f64,
            logged,
            slowest: self.window.slowest(),
        };
        if self.artifacts.writes() {
            observer.step(&record, &progress);
        }
        if is_power_of_ten(state.step) {
            self.artifacts.track(state, Some(record.loss))?;
        }
        if logged {
            self.artifacts.train(record)?;
            self.window = Window::default();
        }
        Ok(())
    }

    /// Says which tensor is not finite, and ends the run unless it is to skip such steps.
    fn non_finite(&self, step: &Step, observer: &mut dyn Observer) -> Result<()> {
        let Setup { config, bert, state, .. } = &self.setup;
        // Between tensors lies padding, whose gradient follows that of the tensor before it.
        let owner = |element| bert.table().tensors.iter().rfind(|t| t.offset <= element);
        let culprit = step
            .outcome
            .nonfinite
            .and_then(owner)
            .map_or("the loss".to_owned(), |t| format!("the gradient of {}", t.name));
        let what = format!(
            "step {}: {culprit} is not finite (loss {}, gradient norm {}, learning rate {:e})",
            state.step + 1,
            step.sums.loss(),
            step.outcome.norm,
            step.lr
        );
        match config.train.on_nonfinite {
            OnNonFinite::Skip => {
                observer.message(&format!("{what}; the update is skipped"));
                Ok(())
            }
            OnNonFinite::Stop => Err(Error::Training(format!("{what}; {}", last_good(&config.train.run)))),
        }
    }

    /// Sums `numbers` over processes; a signal that any of them has got is one to all.
    pub(super) fn agree_to_stop(&mut self, options: &Options<'_>, numbers: &mut [f64]) -> Result<()> {
        let signal = options.stop.load(Ordering::Relaxed);
        if self.group.world() == 1 {
            self.stopped = signal;
            return Ok(());
        }
        // A mean over those that have got one: all have got the same.
        let mut all = vec![f64::from(signal), f64::from(u8::from(signal != 0))];
        all.extend_from_slice(numbers);
        self.group.ranks.sum_host(&mut all)?;
        numbers.copy_from_slice(&all[2..]);
        self.stopped = (all[0] / all[1].max(1.0)) as i32;
        Ok(())
    }
}

/// Begins or ends what the device may take as one. Several processes wait for each other in there.
fn together<B: Backend>(group: &Group<B>, bert: &Bert<B>, edge: fn(&B) -> kernels::Result<()>) -> Result<()> {
    if group.world() == 1 {
        edge(bert.backend())?;
    }
    Ok(())
}

fn is_power_of_ten(n: u64) -> bool {
    n > 0 && 10u64.pow(n.ilog10()) == n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rank_is_that_of_the_most_work_in_all_steps_of_a_window() {
        let mut window = Window::default();
        assert_eq!(window.slowest(), None);
        window.add_work(&[1.0, 2.0, 1.0]);
        window.add_work(&[1.0, 1.0, 3.0]);
        assert_eq!(window.slowest(), Some((2, 1.0 / 3.0)));
        let mut alone = Window::default();
        alone.add_work(&[1.0]);
        assert_eq!(alone.slowest(), None);
    }
}
