//! The step loop.

use super::artifacts::{Artifacts, last_good};
use super::setup::Setup;
use super::{Ending, Observer, Options, Outcome, RunInfo, StepProgress};
use crate::config::{ClipOrder, GradientWire, OnNonFinite};
use crate::data::loader::{GlobalBatch, Loader, LoaderConfig, eval_batches};
use crate::data::shards::Dataset;
use crate::dist::{Buckets, Group};
use crate::metrics::{EvalRecord, TrainRecord};
use crate::mllog::MlLog;
use crate::model::{Bert, EvalSums, Gradients, LossScale, training_flops};
use crate::optim::learning_rate;
use crate::{Error, Result};
use kernels::Backend;
use kernels::collective::Wire;
use kernels::philox::step_key;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Sequences of one evaluation batch.
const EVAL_BATCH: usize = 32;

/// Sums since the last line of metrics.
#[derive(Default)]
struct Window {
    tokens: u64,
    seconds: f64,
    flops: f64,
    /// Seconds that each process computed before it waited for the others.
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

/// What one step did.
struct Step {
    sums: EvalSums,
    norm: f64,
    lr: f64,
}

impl Step {
    fn is_finite(&self) -> bool {
        self.sums.loss().is_finite() && self.norm.is_finite()
    }
}

/// A run in progress.
struct Run<'g, B: Backend> {
    group: &'g mut Group<B>,
    buckets: Buckets,
    /// The signal that ended this run on any process, agreed upon by all.
    stopped: i32,
    setup: Setup<B>,
    grads: Gradients<B>,
    artifacts: Artifacts,
    window: Window,
    /// Steps and their seconds in this process, for the time left.
    done: (u64, f64),
}

pub fn run<B: Backend<Acc = f32>>(
    group: &mut Group<B>,
    setup: Setup<B>,
    mllog: Option<MlLog>,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mut loader = loader(group, &setup)?;
    let artifacts = Artifacts::open(&setup, mllog)?;
    let grads = setup.bert.gradients()?;
    if artifacts.writes() {
        observer.started(&info(group, &setup));
    }
    let buckets = Buckets::new(setup.bert.table(), setup.config.ranks.bucket_elements);
    let window = Window::default();
    let mut run = Run { group, buckets, stopped: 0, setup, grads, artifacts, window, done: (0, 0.0) };
    run.agree_to_stop(options, &mut [])?;
    run.artifacts.run_start(&run.setup)?;
    let ending = run.steps(&mut loader, options, observer)?;
    drop(loader);
    run.finish(ending, options, observer)
}

fn loader<B: Backend>(group: &Group<B>, setup: &Setup<B>) -> Result<Loader> {
    let t = &setup.config.train;
    let config = LoaderConfig {
        batch_sequences: t.batch_sequences,
        batch_tokens: t.batch_tokens,
        accumulation: t.accumulation,
        seed: t.seed,
        rank: group.ranks.rank(),
        world: group.world(),
        max_positions: setup.config.model.max_positions,
    };
    Loader::new(setup.train.clone(), config, setup.state.loader)
}

fn info<B: Backend>(group: &Group<B>, setup: &Setup<B>) -> RunInfo {
    let manifest = setup.train.manifest();
    RunInfo {
        device: match group.world() {
            1 => setup.bert.backend().describe(),
            _ => format!("{}, each {}", group.ranks.describe(), setup.bert.backend().describe()),
        },
        parameters: setup.bert.table().parameters(),
        train_sequences: setup.train.len() as u64,
        train_tokens: setup.train.split().tokens,
        eval_sequences: setup.eval.as_ref().map_or(0, |d| d.len() as u64),
        unigram_entropy: manifest.unigram_entropy,
        first_step: setup.state.step,
        steps: setup.config.train.steps,
    }
}

impl<B: Backend<Acc = f32>> Run<'_, B> {
    fn steps(
        &mut self,
        loader: &mut Loader,
        options: &Options<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Ending> {
        let train = self.setup.config.train.clone();
        if self.target_reached() {
            return Ok(Ending::TargetReached);
        }
        if self.setup.state.eval_due
            && let Some(ending) = self.settle(options, observer)?
        {
            return Ok(ending);
        }
        while self.setup.state.step < train.steps {
            if self.group.world() == 1 {
                self.stopped = options.stop.load(Ordering::Relaxed);
            }
            if self.stopped != 0 {
                return Ok(Ending::Stopped(self.stopped));
            }
            let started = Instant::now();
            let global = loader.next()?;
            let step = self.step(&global, options)?;
            self.window.tokens += global.tokens as u64;
            self.window.flops +=
                global.micro.iter().map(|b| training_flops(self.setup.bert.config(), b)).sum::<f64>();
            self.account(&global, &step, started.elapsed().as_secs_f64(), observer)?;

            let due = train.eval_every > 0
                && self.setup.state.samples / train.eval_every
                    > (self.setup.state.samples - global.sequences as u64) / train.eval_every;
            self.setup.state.eval_due = due || self.setup.state.step == train.steps;
            if let Some(ending) = self.settle(options, observer)? {
                return Ok(ending);
            }
        }
        Ok(Ending::Finished)
    }

    /// Evaluates and writes a checkpoint where they are due after a step. A signal ends an evaluation early; it is then
    /// still due when the run is resumed.
    fn settle(&mut self, options: &Options<'_>, observer: &mut dyn Observer) -> Result<Option<Ending>> {
        let mut improved = false;
        if self.setup.state.eval_due {
            let Some(better) = self.evaluate(options, observer)? else {
                return Ok(Some(Ending::Stopped(self.stopped)));
            };
            (improved, self.setup.state.eval_due) = (better, false);
        }
        let reached = self.target_reached();
        let Setup { config, state, .. } = &self.setup;
        if reached {
            self.artifacts.run_stop(state, true)?;
        }
        let every = config.train.checkpoint_every;
        let regular = every > 0 && (state.step.is_multiple_of(every) || improved);
        if regular || reached || state.step == config.train.steps {
            self.artifacts.checkpoint(self.group, &self.setup)?;
        }
        Ok(reached.then_some(Ending::TargetReached))
    }

    /// Forward, backward and update of one global batch.
    fn step(&mut self, global: &GlobalBatch, options: &Options<'_>) -> Result<Step> {
        let started = Instant::now();
        let Self { group, buckets, setup: Setup { config, bert, optimizer, state, .. }, grads, .. } = self;
        let (world, ranks, division) = (group.world(), group.ranks.as_mut(), optimizer.division().clone());
        let wire = match config.ranks.gradients {
            GradientWire::F32 => Wire::Full,
            GradientWire::Bf16 => Wire::Bf16,
        };
        let key = step_key(config.train.seed, state.step + 1);
        let lr = learning_rate(&config.schedule, state.step, config.train.steps);
        bert.clear_sums()?;
        grads.clear(bert.backend())?;
        let scale = LossScale::new(global.mlm_total, global.nsp_total);
        let mut reduce = |backend: &B, stage: usize, grads: &B::Mem<B::Acc>| -> Result<()> {
            for range in buckets.after(stage) {
                ranks.begin_reduce(backend, grads, range.clone(), &division, wire)?;
            }
            Ok(())
        };
        let clip_own =
            world > 1 && config.optimizer.clip_norm > 0.0 && config.ranks.clip == ClipOrder::Before;
        let (last, before) = match global.micro.split_last() {
            Some((last, before)) => {
                (Some(last).filter(|_| !clip_own), if clip_own { &global.micro } else { before })
            }
            None => (None, &[][..]),
        };
        for batch in before {
            bert.forward_backward(grads, batch, scale, key)?;
        }
        if clip_own {
            optimizer.clip_own(bert.backend(), grads.params_mut(), world)?;
        }
        match last {
            // With the last micro-batch gradients are complete, stage by stage.
            Some(last) => bert.forward_backward_staged(grads, last, scale, key, &mut reduce)?,
            None => {
                (0..buckets.stages()).try_for_each(|stage| reduce(bert.backend(), stage, grads.params()))?
            }
        }
        let worked = started.elapsed().as_secs_f64();
        ranks.finish_reduce(bert.backend(), grads.params_mut())?;
        let (backend, weights) = bert.weights_mut();
        optimizer.update(backend, ranks, weights, grads.params(), lr)?;
        let mut sums = bert.sums()?;
        let norm = optimizer.norm(bert.backend())?;
        let mut numbers = vec![sums.mlm_loss, sums.mlm_correct, sums.nsp_loss, sums.nsp_correct];
        numbers.resize(4 + world, 0.0);
        numbers[4 + self.group.ranks.rank()] = worked;
        self.agree_to_stop(options, &mut numbers)?;
        [sums.mlm_loss, sums.mlm_correct, sums.nsp_loss, sums.nsp_correct] =
            [numbers[0], numbers[1], numbers[2], numbers[3]];
        self.window.add_work(&numbers[4..]);
        (sums.mlm_count, sums.nsp_count) = (global.mlm_total, global.nsp_total);
        Ok(Step { sums, norm, lr })
    }

    /// Sums `numbers` over processes; a signal that any of them has got is one to all.
    fn agree_to_stop(&mut self, options: &Options<'_>, numbers: &mut [f64]) -> Result<()> {
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

    /// Counts the step, and logs it where it is due.
    fn account(
        &mut self,
        global: &GlobalBatch,
        step: &Step,
        seconds: f64,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if !step.is_finite() {
            self.non_finite(step, observer)?;
        }
        let state = &mut self.setup.state;
        state.step += 1;
        if step.norm.is_finite() {
            state.updates += 1;
        } else {
            state.skipped += 1;
        }
        state.samples += global.sequences as u64;
        state.tokens += global.tokens as u64;
        state.loader = global.state_after;
        state.train_seconds += seconds;
        self.window.seconds += seconds;
        self.done.0 += 1;
        self.done.1 += seconds;

        let train = &self.setup.config.train;
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
            grad_norm: step.norm,
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
        let grads = self.grads.download(bert.backend())?;
        let culprit = bert
            .table()
            .tensors
            .iter()
            .find(|t| grads[t.range()].iter().any(|g| !g.is_finite()))
            .map_or("the loss".to_owned(), |t| format!("the gradient of {}", t.name));
        let what = format!(
            "step {}: {culprit} is not finite (loss {}, gradient norm {}, learning rate {:e})",
            state.step + 1,
            step.sums.loss(),
            step.norm,
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

    /// Evaluates on the held-out text; tells whether the accuracy is the best so far, or nothing if a signal came.
    fn evaluate(&mut self, options: &Options<'_>, observer: &mut dyn Observer) -> Result<Option<bool>> {
        if self.setup.eval.is_none() {
            return Ok(Some(false));
        }
        let Some(record) = self.measure(options)? else { return Ok(None) };
        if self.artifacts.writes() {
            observer.evaluated(&record);
        }
        let (state, accuracy) = (&mut self.setup.state, record.eval_mlm_accuracy);
        let improved = state.best_accuracy.is_none_or(|best| accuracy > best);
        if improved {
            (state.best_accuracy, state.best_step) = (Some(accuracy), Some(state.step));
        }
        self.artifacts.evaluated(record)?;
        Ok(Some(improved))
    }

    /// One evaluation; none without held-out text, or if a signal came.
    fn measure(&mut self, options: &Options<'_>) -> Result<Option<EvalRecord>> {
        let Self { group, artifacts, stopped, setup: Setup { config, bert, eval, state, .. }, .. } = self;
        let Some(dataset) = eval else { return Ok(None) };
        let started = Instant::now();
        artifacts.eval_start(state)?;
        // Several processes stop only where they agree to, after a step.
        let stop = || group.world() == 1 && options.stop.load(Ordering::Relaxed) != 0;
        let part = (group.ranks.rank(), group.world());
        let Some((mut sums, mut sequences)) =
            evaluate(bert, dataset, config.train.eval_sequences, part, &stop)?
        else {
            *stopped = options.stop.load(Ordering::Relaxed);
            return Ok(None);
        };
        sums_of_all(group, &mut sums, &mut sequences)?;
        let labelled = sums.nsp_count > 0;
        let record = EvalRecord {
            step: state.step,
            samples: state.samples,
            eval_loss: sums.loss(),
            eval_mlm_loss: sums.mlm_mean(),
            eval_mlm_accuracy: sums.mlm_accuracy(),
            eval_nsp_loss: labelled.then(|| sums.nsp_mean()),
            eval_nsp_accuracy: labelled.then(|| sums.nsp_accuracy()),
            eval_perplexity: sums.mlm_mean().exp(),
            eval_sequences: sequences,
            eval_seconds: started.elapsed().as_secs_f64(),
        };
        self.artifacts.eval_stop(&record)?;
        self.artifacts.track(state, None)?;
        Ok(Some(record))
    }

    fn target_reached(&self) -> bool {
        let best = self.setup.state.best_accuracy;
        self.setup.config.train.target_accuracy.is_some_and(|target| best.is_some_and(|b| b >= target))
    }

    fn finish(
        mut self,
        ending: Ending,
        options: &Options<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        if let Ending::Stopped(signal) = ending {
            self.artifacts.checkpoint(self.group, &self.setup)?;
            self.artifacts.run_stop(&self.setup.state, false)?;
            let (run, step) = (&self.setup.config.train.run, self.setup.state.step);
            let summary = format!(
                "stopped by signal {signal} after step {step}; checkpoint in {}, go on with --resume",
                run.join("checkpoints").display()
            );
            return Ok(Outcome { ending, run: run.clone(), summary });
        }
        // The last evaluation is not in memory where the run had already ended before this process.
        if self.artifacts.last_eval.is_none() {
            let record = self.measure(options)?;
            match &record {
                Some(record) if self.artifacts.writes() => observer.evaluated(record),
                None if self.setup.eval.is_some() => {
                    let ending = Ending::Stopped(self.stopped);
                    return self.finish(ending, options, observer);
                }
                _ => {}
            }
            self.artifacts.last_eval = record;
        }
        let success = ending == Ending::TargetReached || self.setup.config.train.target_accuracy.is_none();
        self.artifacts.run_stop(&self.setup.state, success)?;
        if !self.artifacts.writes() {
            let (run, summary) = (self.setup.config.train.run.clone(), String::new());
            return Ok(Outcome { ending, run, summary });
        }
        // An earlier process may have been killed between its last checkpoint and this.
        self.artifacts.prune(&self.setup)?;
        let summary = self.artifacts.export(&self.setup)?;
        Ok(Outcome { ending, run: self.setup.config.train.run.clone(), summary })
    }
}

/// Adds what the other processes have evaluated.
fn sums_of_all<B: Backend>(group: &mut Group<B>, sums: &mut EvalSums, sequences: &mut u64) -> Result<()> {
    if group.world() == 1 {
        return Ok(());
    }
    let EvalSums { mlm_loss, mlm_correct, nsp_loss, nsp_correct, mlm_count, nsp_count } = sums;
    let counts = [*mlm_count, *nsp_count, *sequences as usize].map(|n| n as f64);
    let mut all = [*mlm_loss, *mlm_correct, *nsp_loss, *nsp_correct, counts[0], counts[1], counts[2]];
    group.ranks.sum_host(&mut all)?;
    [*mlm_loss, *mlm_correct, *nsp_loss, *nsp_correct] = [all[0], all[1], all[2], all[3]];
    (*mlm_count, *nsp_count, *sequences) = (all[4] as usize, all[5] as usize, all[6] as u64);
    Ok(())
}

fn is_power_of_ten(n: u64) -> bool {
    n > 0 && 10u64.pow(n.ilog10()) == n
}

/// Sums over `sequences` held-out sequences (0: all), with the same masks each time; and how many they were. Of the
/// batches, those of one process of several: `part` is its rank and their number. None if `stop` says so before the end.
pub(crate) fn evaluate<B: Backend>(
    bert: &mut Bert<B>,
    dataset: &Dataset,
    sequences: usize,
    part: (usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Option<(EvalSums, u64)>> {
    let (mut sums, mut count) = (EvalSums::default(), 0);
    for batch in eval_batches(dataset, sequences, EVAL_BATCH, bert.config().max_positions, part) {
        let batch = batch?;
        if stop() {
            return Ok(None);
        }
        sums.add(&bert.evaluate(&batch)?);
        count += batch.sequences() as u64;
    }
    Ok(Some((sums, count)))
}
