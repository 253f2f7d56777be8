//! `launcher` without a subcommand: training.

use crate::args::TrainArgs;
use crate::progress::TrainProgress;
use crate::{exit, fill_mask, job, signals};
use anyhow::bail;
use engine::config::Config;
use engine::dist::Group;
use engine::trainer::{self, Ending, Options};
use kernels::Backend;
use kernels::cuda::Device;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Trains, and prints the run's last line. The code is 128 + n where signal n ended it.
pub fn run(args: &TrainArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = configuration(args)?;
    job::run(&args.place, &config, Training { config: &config, resume: args.resume, out })
}

/// A run, in any process of it.
struct Training<'a> {
    config: &'a Config,
    resume: bool,
    out: &'a mut dyn Write,
}

impl job::Task for Training<'_> {
    const LEAVES_RUN: bool = true;

    fn run<B: Backend<Acc = f32>>(
        self,
        backend: B,
        _: Option<Arc<Device>>,
        group: &mut Group<B>,
    ) -> anyhow::Result<u8> {
        let Self { config, resume, out } = self;
        if group.is_first() {
            warn_of_short_run(config);
        }
        tracing::debug!("configuration {}:\n{}", config.hash(), config.to_toml()?);
        job::start(group, config)?;
        let options = Options { resume, stop: &signals::STOP, mlperf: None };
        let mut progress = TrainProgress::new();
        let outcome = trainer::train_in(group, backend, config, &options, &mut progress);
        progress.finish();
        let outcome = outcome?;
        if group.is_first() {
            writeln!(out, "{}", outcome.summary)?;
            let done = matches!(outcome.ending, Ending::Finished | Ending::TargetReached);
            if done && !config.train.fill_mask.is_empty() {
                fill_mask::answer_all(&outcome.run.join("model"), &config.train.fill_mask, out)?;
            }
            // Before the others may end: who has started all may end this one then.
            out.flush()?;
        }
        Ok(match outcome.ending {
            Ending::Finished | Ending::TargetReached => exit::DONE,
            Ending::Stopped(signal) => exit::by_signal(signal),
        })
    }
}

/// The file and `--set`, then the options that have a name of their own.
fn configuration(args: &TrainArgs) -> anyhow::Result<Config> {
    let mut overrides = args.overrides.clone();
    let mut set = |key: &str, value: Option<String>| overrides.extend(value.map(|v| format!("{key}={v}")));
    set("data.dir", quoted("--data", args.data.as_deref())?);
    set("train.run", quoted("--run", args.run.as_deref())?);
    set("train.steps", args.steps.map(|n| n.to_string()));
    set("train.seed", args.seed.map(|n| n.to_string()));
    set("train.device", args.place.device_value());
    Ok(Config::load(args.config.as_deref(), &overrides)?)
}

/// A path as a TOML string, so that none is taken for another type. A JSON string is one too.
pub fn quoted(option: &str, path: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(path) = path else { return Ok(None) };
    match path.to_str() {
        Some(text) => Ok(Some(serde_json::Value::from(text).to_string())),
        None => bail!("{option}: {} is not a path in UTF-8; rename it", path.display()),
    }
}

/// A trial of a few steps is fine, but its learning rate is not the configured one.
fn warn_of_short_run(config: &Config) {
    let warmup_end = config.schedule.start_warmup_step + config.schedule.warmup_steps;
    let steps = config.train.steps;
    if i64::try_from(steps).is_ok_and(|steps| steps < warmup_end) {
        exit::say(&format!(
            "warning: the warmup ends at step {warmup_end}, the run at step {steps}: it never reaches schedule.lr"
        ));
    }
}
