//! What a run writes: metrics, the MLLOG file, checkpoints, the exported model, the report.

use super::evaluation::refuse_useless;
use super::resume::history;
use super::setup::Setup;
use crate::checkpoint::{self, TrainState, hf};
use crate::config::{Config, OptimizerKind};
use crate::data::shards::Manifest;
use crate::dist::{Control, Group};
use crate::metrics::{EvalRecord, MetricsLog, TrainRecord};
use crate::mllog::{MlLog, keys};
use crate::report::{self, ReportSummary};
use crate::table::Tensor;
use crate::{Error, Result};
use kernels::Backend;
use serde_json::json;
use std::path::Path;
use std::time::SystemTime;

/// What a run writes. Of several processes the first one does; the others have no files.
pub struct Artifacts {
    files: Option<Files>,
    /// Whether run_stop is in the log.
    stopped: bool,
    /// Newest records of this process; of steps, those whose loss was finite.
    last_train: Option<TrainRecord>,
    pub last_eval: Option<EvalRecord>,
}

/// The open files of a run.
struct Files {
    metrics: MetricsLog,
    mllog: MlLog,
}

impl Artifacts {
    /// With the log that the first process has begun.
    pub fn open<B: Backend>(setup: &Setup<B>, mllog: Option<MlLog>) -> Result<Self> {
        let mut files = None;
        if let Some(mllog) = mllog {
            let resume_step = setup.resumed.then_some(setup.state.step);
            files = Some(Files { metrics: MetricsLog::open(&setup.config.train.run, resume_step)?, mllog });
        }
        Ok(Self { files, stopped: false, last_train: None, last_eval: None })
    }

    /// Whether this process writes.
    pub fn writes(&self) -> bool {
        self.files.is_some()
    }

    fn mllog(&mut self, f: impl FnOnce(&mut MlLog) -> Result<()>) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| f(&mut files.mllog))
    }

    /// The clock of time-to-train starts, if it did not before the data was opened.
    pub fn run_start<B: Backend>(&mut self, setup: &Setup<B>) -> Result<()> {
        self.mllog(|log| {
            if !setup.clock_runs {
                start_clock(log)?;
            }
            log.start(keys::BLOCK_START, (), &block(&setup.state))
        })
    }

    /// Throughput, and the loss where it is known, for a reader of the log.
    pub fn track(&mut self, state: &TrainState, loss: Option<f64>) -> Result<()> {
        let throughput = state.samples as f64 / state.train_seconds;
        let mut stats = json!({ "throughput": throughput });
        if let Some(loss) = loss {
            stats["train_loss"] = loss.into();
        }
        let place = [("step", state.step.into()), (keys::EPOCH_NUM, state.samples.into())];
        self.mllog(|log| log.point(keys::TRACKED_STATS, stats, &place))
    }

    pub fn train(&mut self, record: TrainRecord) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.metrics.train(&record))?;
        // A skipped step's loss says nothing of the model.
        if record.loss.is_finite() {
            self.last_train = Some(record);
        }
        Ok(())
    }

    pub fn eval_start(&mut self, state: &TrainState) -> Result<()> {
        self.mllog(|log| log.start(keys::EVAL_START, (), &[(keys::EPOCH_NUM, state.samples.into())]))
    }

    pub fn eval_stop(&mut self, record: &EvalRecord) -> Result<()> {
        let epoch = [(keys::EPOCH_NUM, record.samples.into())];
        self.mllog(|log| {
            log.point(keys::EVAL_ACCURACY, record.eval_mlm_accuracy, &epoch)?;
            log.end(keys::EVAL_STOP, (), &epoch)
        })
    }

    pub fn evaluated(&mut self, record: EvalRecord) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.metrics.eval(&record))?;
        self.last_eval = Some(record);
        Ok(())
    }

    /// Writes a checkpoint, whose weights and moments come from all processes, and removes those that need not be kept.
    ///
    /// # Errors
    /// Weights or moments that are not finite, or weights that give no finite loss: earlier checkpoints stay.
    pub fn checkpoint<B: Backend<Acc = f32>>(
        &mut self,
        group: &mut Group<B>,
        setup: &mut Setup<B>,
    ) -> Result<()> {
        [Some(&setup.train), setup.eval.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|data| data.check_files())?;
        let weights = setup.weights(group)?;
        if self.writes() {
            let _busy = group.control.as_ref().map(Control::busy);
            self.refuse_broken(setup, "", &weights)?;
            // The evaluation after this very step has found its loss finite.
            if self.last_eval.as_ref().is_none_or(|eval| eval.step != setup.state.step) {
                refuse_useless(setup)?;
            }
        }
        let Setup { bert, optimizer, .. } = setup;
        let [m, v] = optimizer.moments(bert.backend(), group.ranks.as_mut(), bert.table().len)?;
        if !self.writes() {
            return Ok(());
        }
        let _busy = group.control.as_ref().map(Control::busy);
        self.refuse_broken(setup, "the first moment of ", &m)?;
        self.refuse_broken(setup, "the second moment of ", &v)?;
        let Setup { config, bert, state, .. } = setup;
        checkpoint::save(&config.train.run, state, &config.model, bert.table(), &weights, &m, &v)?;
        self.prune(setup)
    }

    /// Refuses numbers that are not finite: a checkpoint of them would be worthless, and take the place of a good one.
    fn refuse_broken<B: Backend>(&self, setup: &Setup<B>, what: &str, numbers: &[f32]) -> Result<()> {
        let Setup { config, bert, state, .. } = setup;
        let broken = |t: &&Tensor| numbers[t.range()].iter().any(|w| !w.is_finite());
        let Some(tensor) = bert.table().tensors.iter().find(broken) else { return Ok(()) };
        let what = format!("step {}: {what}{} is not finite after the update", state.step, tensor.name);
        Err(Error::Training(format!("{what}; {}", last_good(&config.train.run, LOWER))))
    }

    /// Removes the checkpoints that need not be kept.
    pub fn prune<B: Backend>(&self, setup: &Setup<B>) -> Result<()> {
        let Setup { config, state, .. } = setup;
        checkpoint::prune(&config.train.run, config.train.keep_checkpoints, state.best_step)
    }

    /// The clock has stopped at this time: where the target was reached, before anything was written or waited for, elsewhere
    /// at the end. Only the first call counts.
    pub fn run_stop(&mut self, time: SystemTime, state: &TrainState, success: bool) -> Result<()> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        let status = if success { keys::SUCCESS } else { keys::ABORTED };
        let metadata = [(keys::STATUS, status.into()), (keys::EPOCH_NUM, state.samples.into())];
        self.mllog(|log| {
            log.at(time).end(keys::BLOCK_STOP, (), &block(state))?;
            log.at(time).end(keys::RUN_STOP, (), &metadata)
        })
    }

    /// Exports the model, writes the report, and says in one line what was reached and where it lies.
    pub fn export<B: Backend<Acc = f32>>(&mut self, setup: &Setup<B>, weights: &[f32]) -> Result<String> {
        let Setup { config, bert, state, train, .. } = setup;
        let run = &config.train.run;
        let model = run.join("model");
        let tokenizer = train.manifest().tokenizer();
        hf::export(&model, &config.model, bert.table(), weights, train.vocab(), tokenizer)?;
        let entropy = train.manifest().unigram_entropy;
        let reached = match (&self.last_eval, &self.last_train) {
            (Some(e), _) => format!(
                "held-out MLM loss {:.3} (unigram entropy {entropy:.3}), accuracy {:.3}",
                e.eval_mlm_loss, e.eval_mlm_accuracy
            ),
            (None, Some(t)) => format!("MLM loss {:.3} (unigram entropy {entropy:.3})", t.mlm_loss),
            (None, None) => "nothing left to train".into(),
        };
        let outcome = format!("{} steps, {:.0} s of training, {reached}", state.step, state.train_seconds);
        let report = report::write(
            run,
            &ReportSummary {
                title: format!("Training run {}", run.display()),
                outcome: outcome.clone(),
                results: self.results(setup),
                settings: settings(config, &history(run)),
                unigram_entropy: Some(entropy),
                target_accuracy: config.train.target_accuracy,
            },
        )?;
        Ok(format!("done: {outcome}; model in {}, report in {}", model.display(), report.display()))
    }

    fn results<B: Backend>(&self, setup: &Setup<B>) -> Vec<(String, String)> {
        let Setup { bert, state, .. } = setup;
        let mut results = vec![
            ("device".to_owned(), bert.backend().describe()),
            ("parameters".to_owned(), bert.table().parameters().to_string()),
            ("steps".to_owned(), state.step.to_string()),
            ("sequences".to_owned(), state.samples.to_string()),
            ("tokens".to_owned(), state.tokens.to_string()),
            ("seconds of training".to_owned(), format!("{:.1}", state.train_seconds)),
            ("skipped updates".to_owned(), state.skipped.to_string()),
        ];
        if let Some(e) = &self.last_eval {
            results.push(("held-out MLM loss".to_owned(), format!("{:.4}", e.eval_mlm_loss)));
            results.push(("held-out perplexity".to_owned(), format!("{:.1}", e.eval_perplexity)));
            results.push(("held-out MLM accuracy".to_owned(), format!("{:.4}", e.eval_mlm_accuracy)));
            if let Some(accuracy) = e.eval_nsp_accuracy {
                results.push(("held-out NSP accuracy".to_owned(), format!("{accuracy:.4}")));
            }
        }
        results
    }
}

/// What to do where weights have become too large.
pub const LOWER: &str = "resume with a lower schedule.lr";

/// What a run that cannot go on leaves, and what to do with it: `resume` says how to go on with it.
pub fn last_good(run: &Path, resume: &str) -> String {
    match checkpoint::list(run).ok().and_then(|mut all| all.pop()) {
        Some((_, newest)) => format!(
            "the last good checkpoint is kept in {}: {resume}, or start another run from it (model.init_from)",
            newest.display()
        ),
        None => "there is no checkpoint yet: start again with a lower schedule.lr".to_owned(),
    }
}

fn block(state: &TrainState) -> [(&'static str, serde_json::Value); 2] {
    [(keys::FIRST_EPOCH_NUM, state.samples.into()), (keys::SAMPLES_COUNT, state.samples.into())]
}

/// Initialization is over, the clock starts.
pub fn start_clock(log: &mut MlLog) -> Result<()> {
    log.end(keys::INIT_STOP, (), &[])?;
    log.start(keys::RUN_START, (), &[])
}

/// The settings that a reader of the log needs; the counts are the manifest's.
pub fn log_settings(log: &mut MlLog, config: &Config, data: &Manifest) -> Result<()> {
    let Config { train, optimizer, schedule, .. } = config;
    let total = if schedule.total_steps > 0 { schedule.total_steps } else { train.steps };
    log.point(keys::SEED, train.seed, &[])?;
    if train.batch_sequences > 0 {
        log.point(keys::GLOBAL_BATCH_SIZE, train.batch_sequences, &[])?;
    }
    log.point(keys::GRADIENT_ACCUMULATION_STEPS, train.accumulation, &[])?;
    log.point(keys::OPT_BASE_LEARNING_RATE, schedule.lr, &[])?;
    if optimizer.kind == OptimizerKind::Lamb {
        log.point(keys::OPT_LAMB_EPSILON, optimizer.eps, &[])?;
        log.point(keys::OPT_LAMB_BETA_1, optimizer.beta1, &[])?;
        log.point(keys::OPT_LAMB_BETA_2, optimizer.beta2, &[])?;
        log.point(keys::OPT_LAMB_WEIGHT_DECAY_RATE, optimizer.weight_decay, &[])?;
    }
    log.point(keys::OPT_LEARNING_RATE_TRAINING_STEPS, total, &[])?;
    log.point(keys::OPT_LEARNING_RATE_WARMUP_STEPS, schedule.warmup_steps, &[])?;
    log.point(keys::NUM_WARMUP_STEPS, schedule.warmup_steps, &[])?;
    log.point(keys::START_WARMUP_STEP, schedule.start_warmup_step, &[])?;
    let evaluated = match train.eval_sequences as u64 {
        0 => data.eval.sequences,
        n => n.min(data.eval.sequences),
    };
    log.point(keys::TRAIN_SAMPLES, data.train.sequences, &[])?;
    log.point(keys::EVAL_SAMPLES, evaluated, &[])
}

/// The settings that a reader of the report wants to see first.
fn settings(config: &Config, history: &str) -> Vec<(String, String)> {
    let Config { model: m, train: t, optimizer: o, schedule: s, data, .. } = config;
    let batch = match t.batch_sequences {
        0 => format!("{} tokens", t.batch_tokens),
        n => format!("{n} sequences"),
    };
    [
        ("model", format!("{} layers, hidden {}, {} heads", m.layers, m.hidden, m.heads)),
        ("vocabulary", m.vocab_size.to_string()),
        ("dropout", format!("{} hidden, {} attention", m.hidden_dropout, m.attention_dropout)),
        ("data", data.dir.display().to_string()),
        ("batch", format!("{batch}, {} micro-batches", t.accumulation)),
        ("steps", t.steps.to_string()),
        ("seed", t.seed.to_string()),
        ("optimizer", format!("{:?}, weight decay {}, clip {}", o.kind, o.weight_decay, o.clip_norm)),
        ("learning rate", format!("{}, {:?}, {} steps of warmup", s.lr, s.kind, s.warmup_steps)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into_iter()
    .chain(history.lines().map(|line| ("changed".to_owned(), line.trim_start_matches("# ").to_owned())))
    .collect()
}
