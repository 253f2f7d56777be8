//! One step: what is queued on the device, and how its results are accounted for.

use super::Options;
use super::artifacts::{LOWER, last_good};
use super::run::Run;
use super::{Observer, StepProgress};
use crate::config::{Config, OnNonFinite};
use crate::data::LoaderState;
use crate::data::loader::GlobalBatch;
use crate::dist::Control;
use crate::metrics::TrainRecord;
use crate::model::{EvalSums, LossScale, SUMS, training_flops};
use crate::optim::{UpdateOutcome, learning_rate};
use crate::step::{self, OwnWork, Stop};
use crate::trainer::setup::Setup;
use crate::{Error, Result};
use kernels::Backend;
use kernels::philox::step_key;
use std::time::Instant;

/// Steps of fewer seconds are finished when a signal comes.
const SHORT: f64 = 1.0;

/// Sums since the last line of metrics.
#[derive(Default)]
pub(super) struct Window {
    tokens: u64,
    seconds: f64,
    flops: f64,
    work: OwnWork,
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
    /// Whether a step is given up where a signal comes: always by a single process, by several where a step is long enough
    /// to be worth their agreement. They have seen the same seconds.
    pub(super) fn asks(&self) -> bool {
        self.group.world() == 1 || self.slowest.is_none_or(|seconds| seconds > SHORT)
    }

    /// Queues forward, backward and update of one global batch. Waits for nothing, unless several processes meet in it. None
    /// where a signal ended it.
    pub(super) fn queue(&mut self, global: &GlobalBatch, options: &Options<'_>) -> Result<Option<Queued<B>>> {
        let number = self.setup.state.step + u64::from(self.pending.is_some());
        let config = &self.setup.config;
        let step = step::Step {
            micro: &global.micro,
            scale: LossScale::new(global.mlm_total, global.nsp_total),
            key: step_key(config.train.seed, number + 1),
            lr: learning_rate(&config.schedule, number, config.train.steps),
        };
        let stop = Stop { signal: options.stop, asks: self.asks() };
        let Self { group, reduction, setup: Setup { bert, optimizer, .. }, grads, .. } = self;
        let parts = step::Parts { group, bert, grads, optimizer };
        let Some(numbers) = step::queue(parts, reduction, &step, &stop)? else { return Ok(None) };
        Ok(Some(Queued {
            numbers,
            lr: step.lr,
            worked: None,
            masked: global.mlm_total,
            labelled: global.nsp_total,
            sequences: global.sequences,
            tokens: global.tokens,
            flops: global.micro.iter().map(|b| training_flops(bert.config(), b)).sum(),
            loader: global.state_after,
        }))
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
        self.window.work.add(&shared[SUMS..]);
        self.slowest = shared[SUMS..].iter().copied().reduce(f64::max);
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
            (state.updates, state.skipped_in_a_row) = (state.updates + 1, 0);
        } else {
            (state.skipped, state.skipped_in_a_row) = (state.skipped + 1, state.skipped_in_a_row + 1);
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
            slowest: self.window.work.slowest(),
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

    /// Says which tensor is not finite, and ends the run unless it is to skip such steps and has not skipped too many.
    fn non_finite(&self, step: &Step, observer: &mut dyn Observer) -> Result<()> {
        let Setup { config, bert, state, .. } = &self.setup;
        let Config { train, .. } = config;
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
        if train.on_nonfinite == OnNonFinite::Stop {
            let remedy =
                last_good(&train.run, "resume with train.on_nonfinite = \"skip\" or a lower schedule.lr");
            return Err(Error::Training(format!("{what}; {remedy}")));
        }
        if step.outcome.norm.is_finite() {
            observer.message(&format!("{what}; its gradient is finite, and the update is made"));
            return Ok(());
        }
        let skipped = state.skipped_in_a_row + 1;
        if skipped >= train.nonfinite_limit {
            let remedy = last_good(&train.run, LOWER);
            return Err(Error::Training(format!(
                "{what}; {skipped} updates in a row were skipped (train.nonfinite_limit = {}), so it is the weights that are \
                 too large, and skipping cannot mend them; {remedy}",
                train.nonfinite_limit
            )));
        }
        observer.message(&format!("{what}; the update is skipped"));
        Ok(())
    }

    /// Sums `numbers` over processes; a signal that any of them has got is one to all.
    pub(super) fn agree_to_stop(&mut self, options: &Options<'_>, numbers: &mut [f64]) -> Result<()> {
        self.stopped = self.group.agree_on_signal(options.stop, numbers)?;
        Ok(())
    }
}

fn is_power_of_ten(n: u64) -> bool {
    n > 0 && 10u64.pow(n.ilog10()) == n
}
