//! The step loop.

use super::artifacts::Artifacts;
use super::setup::{Prepared, Setup};
use super::step::{Queued, Window};
use super::{Ending, Observer, Options, Outcome, RunInfo};
use crate::config::Config;
use crate::data::loader::{GlobalBatch, Loader, LoaderConfig};
use crate::dist::Group;
use crate::memory::MemoryTable;
use crate::model::Gradients;
use crate::step::Reduction;
use crate::{Error, Result};
use kernels::Backend;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

/// A run in progress.
pub(super) struct Run<'g, B: Backend> {
    pub(super) group: &'g mut Group<B>,
    pub(super) reduction: Reduction,
    /// The signal that ended this run on any process, agreed upon by all.
    pub(super) stopped: i32,
    pub(super) setup: Setup<B>,
    pub(super) grads: Gradients<B>,
    pub(super) artifacts: Artifacts,
    pub(super) window: Window,
    /// Steps and their seconds in this process, for the time left.
    pub(super) done: (u64, f64),
    /// The step that is queued and not accounted for.
    pub(super) pending: Option<Queued<B>>,
    /// Since when the next step to be accounted for is at work.
    pub(super) clock: Instant,
    /// Seconds that the slowest process worked in the newest step, as all of them know.
    pub(super) slowest: Option<f64>,
    /// Whether all data is known to be right, to all processes.
    pub(super) verified: bool,
    /// Whether a step is accounted for only once the next one is queued, so that the device need not wait for the host.
    late: bool,
}

/// What is to be done after a step.
struct Due {
    evaluation: bool,
    anything: bool,
}

pub fn run<B: Backend<Acc = f32>>(
    group: &mut Group<B>,
    prepared: Prepared<B>,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    // Where ops are done when they return there is nothing to gain.
    let late = !B::HOST;
    run_pipelined(group, prepared, options, observer, late)
}

/// As [`run`]; `late` changes no file and no message, only when they are written.
pub(super) fn run_pipelined<B: Backend<Acc = f32>>(
    group: &mut Group<B>,
    prepared: Prepared<B>,
    options: &Options<'_>,
    observer: &mut dyn Observer,
    late: bool,
) -> Result<Outcome> {
    let Prepared { setup, grads, memory, mllog } = prepared;
    let mut loader = loader(group, &setup)?;
    let artifacts = Artifacts::open(&setup, mllog)?;
    if artifacts.writes() {
        observer.started(&info(group, &setup, memory));
    }
    let reduction = Reduction::new(&setup.config, setup.bert.table(), group.world());
    let mut run = Run {
        group,
        reduction,
        stopped: 0,
        setup,
        grads,
        artifacts,
        window: Window::default(),
        done: (0, 0.0),
        pending: None,
        clock: Instant::now(),
        slowest: None,
        verified: false,
        late,
    };
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

fn info<B: Backend>(group: &Group<B>, setup: &Setup<B>, memory: MemoryTable) -> RunInfo {
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
        memory,
        on_host: B::HOST,
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
            self.say_nothing_left("the target accuracy is reached", "train.target_accuracy", observer);
            return Ok(Ending::TargetReached);
        }
        if self.setup.state.step >= train.steps {
            self.say_nothing_left(&format!("all {} steps are done", train.steps), "train.steps", observer);
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
                self.account_pending(options, observer)?;
                return Ok(Ending::Stopped(self.stopped));
            }
            if self.pending.is_none() {
                self.clock = Instant::now();
            }
            self.setup.verification.is_done()?;
            let Some(queued) = self.next_step(loader, options)? else {
                return self.give_up(options, observer);
            };
            if let Some(before) = self.pending.replace(queued) {
                self.account(before, options, observer)?;
            }
            // What is due after a step needs its results, and its weights before the next one changes them.
            let due = self.due();
            if self.late && !due.anything {
                continue;
            }
            self.account_pending(options, observer)?;
            self.setup.state.eval_due = due.evaluation;
            if let Some(ending) = self.settle(options, observer)? {
                return Ok(ending);
            }
        }
        Ok(Ending::Finished)
    }

    /// Takes the next batch and queues its step; none where a signal ended that.
    fn next_step(&mut self, loader: &mut Loader, options: &Options<'_>) -> Result<Option<Queued<B>>> {
        let batch = match loader.next_while(&|| !self.asks() || self.group.signal(options.stop) == 0) {
            Err(Error::Stopped) if self.group.world() == 1 => return Ok(None),
            // The others may have theirs: they are met as by a process that has no part in the batch.
            Err(Error::Stopped) => {
                GlobalBatch { state_after: self.setup.state.loader, ..GlobalBatch::default() }
            }
            batch => batch?,
        };
        self.queue_after_own_work(&batch, options)
    }

    /// Queues a step once this process has done its own work of the one before. What is still to be done of that is done with
    /// the others: a device with much in its queue lets its host wait for them.
    fn queue_after_own_work(
        &mut self,
        batch: &GlobalBatch,
        options: &Options<'_>,
    ) -> Result<Option<Queued<B>>> {
        let Some(before) = &mut self.pending else { return self.queue(batch, options) };
        before.worked = Some(self.group.ranks.work_seconds()?);
        let _waiting = self.group.waits();
        self.queue(batch, options)
    }

    fn say_nothing_left(&self, why: &str, key: &str, observer: &mut dyn Observer) {
        if self.artifacts.writes() {
            observer.message(&format!("{why}: nothing is left to train; raise {key} to go on"));
        }
    }

    /// The run ends where a signal came in the middle of a step: that of the steps before it counts.
    fn give_up(&mut self, options: &Options<'_>, observer: &mut dyn Observer) -> Result<Ending> {
        self.account_pending(options, observer)?;
        self.agree_to_stop(options, &mut [])?;
        if self.artifacts.writes() {
            let step = self.setup.state.step + 1;
            observer.message(&format!("step {step} was under way and is dropped; --resume takes it again"));
        }
        Ok(Ending::Stopped(self.stopped))
    }

    fn account_pending(&mut self, options: &Options<'_>, observer: &mut dyn Observer) -> Result<()> {
        self.pending.take().map_or(Ok(()), |queued| self.account(queued, options, observer))
    }

    /// What is to be done after the step that is queued.
    fn due(&self) -> Due {
        let Setup { config: Config { train, .. }, state, .. } = &self.setup;
        let (step, sequences) = (state.step + 1, self.pending.as_ref().map_or(0, |queued| queued.sequences));
        let (before, after) = (state.samples, state.samples + sequences as u64);
        let last = step == train.steps;
        let crossed = train.eval_every > 0 && after / train.eval_every > before / train.eval_every;
        let saved = train.checkpoint_every > 0 && step.is_multiple_of(train.checkpoint_every);
        Due { evaluation: crossed || last, anything: crossed || last || saved }
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
        let (reached, now) = (self.target_reached(), SystemTime::now());
        let Setup { config, state, .. } = &self.setup;
        let every = config.train.checkpoint_every;
        let regular = every > 0 && (state.step.is_multiple_of(every) || improved);
        if !(regular || reached || state.step == config.train.steps) {
            return Ok(None);
        }
        if !self.verified(options, observer)? {
            return Ok(Some(Ending::Stopped(self.stopped)));
        }
        if reached {
            self.artifacts.run_stop(now, &self.setup.state, true)?;
        }
        self.artifacts.checkpoint(self.group, &mut self.setup)?;
        Ok(reached.then_some(Ending::TargetReached))
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
        let now = SystemTime::now();
        if let Ending::Stopped(signal) = ending {
            self.say_unverified(observer)?;
            self.artifacts.checkpoint(self.group, &mut self.setup)?;
            self.artifacts.run_stop(now, &self.setup.state, false)?;
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
        let now = SystemTime::now();
        if !self.verified(options, observer)? {
            let ending = Ending::Stopped(self.stopped);
            return self.finish(ending, options, observer);
        }
        let success = ending == Ending::TargetReached || self.setup.config.train.target_accuracy.is_none();
        self.artifacts.run_stop(now, &self.setup.state, success)?;
        let weights = self.setup.weights(self.group)?;
        if !self.artifacts.writes() {
            let (run, summary) = (self.setup.config.train.run.clone(), String::new());
            return Ok(Outcome { ending, run, summary });
        }
        // An earlier process may have been killed between its last checkpoint and this.
        self.artifacts.prune(&self.setup)?;
        let summary = self.artifacts.export(&self.setup, &weights)?;
        Ok(Outcome { ending, run: self.setup.config.train.run.clone(), summary })
    }
}
