//! One run: preset or configuration, seed from the system, and the log's truth about it.

use super::args::{Division, MlperfArgs, Status};
use crate::progress::TrainProgress;
use crate::train::quoted;
use crate::{exit, format, job, signals};
use anyhow::{Context, bail};
use engine::config::Config;
use engine::data::shards::{MANIFEST, Manifest};
use engine::dist::Group;
use engine::memory;
use engine::mlperf::report::read_log;
use engine::mlperf::{self, Preset, Submission, presets};
use engine::table::TensorTable;
use engine::trainer::{self, Ending, Options};
use kernels::Backend;
use kernels::cuda::Device;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The log in a run folder.
const LOG: &str = "mllog.txt";

/// Trains until the target is reached, and says how long it took. The code is 1 where it was not reached, 128 + n where
/// signal n ended the run.
pub fn run(args: &MlperfArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = configuration(args)?;
    let Some(target) = config.train.target_accuracy else {
        bail!("train.target_accuracy: is not set; the benchmark's is {}", mlperf::TARGET);
    };
    refuse_used(&config.train.run)?;
    job::run(&args.place, &config, Submitted { config: config.clone(), args, target, out })
}

/// A run for MLPerf, in any process of it.
struct Submitted<'a> {
    config: Config,
    args: &'a MlperfArgs,
    target: f64,
    out: &'a mut dyn Write,
}

impl job::Task for Submitted<'_> {
    const LEAVES_RUN: bool = true;

    fn run<B: Backend<Acc = f32>>(
        self,
        backend: B,
        _: Option<Arc<Device>>,
        group: &mut Group<B>,
    ) -> anyhow::Result<u8> {
        let Self { mut config, args, target, out } = self;
        if args.config.is_none() && !is_set(args, "train.accumulation") {
            choose_accumulation(&backend, &mut config)?;
        }
        train(backend, config, args, target, group, out)
    }
}

fn train<B: Backend<Acc = f32>>(
    backend: B,
    mut config: Config,
    args: &MlperfArgs,
    target: f64,
    group: &mut Group<B>,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    // Every process has drawn a seed: the first one's counts.
    config.train.seed = group.first(|| Ok(config.train.seed))?;
    job::start(group, &config)?;
    tracing::debug!("configuration {}:\n{}", config.hash(), config.to_toml()?);
    let submission = submission(args);
    let options = Options { resume: false, stop: &signals::STOP, mlperf: Some(&submission) };
    let mut progress = TrainProgress::new();
    let outcome = trainer::train_in(group, backend, &config, &options, &mut progress);
    progress.finish();
    let outcome = outcome?;
    if !group.is_first() {
        return Ok(match outcome.ending {
            Ending::Stopped(signal) => exit::by_signal(signal),
            _ => exit::DONE,
        });
    }
    if let Ending::Stopped(signal) = outcome.ending {
        let log = outcome.run.join(LOG);
        writeln!(
            out,
            "stopped by signal {signal}: the run counts as not converged; log in {}",
            log.display()
        )?;
        return Ok(exit::by_signal(signal));
    }
    writeln!(out, "{}", outcome.summary)?;
    conclude(&outcome.run, target, out)
}

/// What the log says of the run; the code is 1 where the target was not reached.
fn conclude(run: &Path, target: f64, out: &mut dyn Write) -> anyhow::Result<u8> {
    let path = run.join(LOG);
    let log = read_log(&path)?;
    let accuracy = log.accuracy.map_or("none".to_owned(), |a| format!("{a:.4}"));
    let samples = format::count(log.samples.unwrap_or(0.0) as u64);
    let seconds = log.minutes.map_or("?".to_owned(), |m| format!("{:.1} s", m * 60.0));
    let path = path.display();
    if !log.converged {
        out.flush()?;
        bail!(
            "the target accuracy of {target} was not reached: {accuracy} after {samples} sequences and {seconds}; log in \
             {path}"
        );
    }
    writeln!(
        out,
        "target accuracy {target} reached: {accuracy} after {samples} sequences, {seconds} from run_start to run_stop; log \
         in {path}"
    )?;
    Ok(exit::DONE)
}

/// The preset or the file, then `--set`, then the options that have a name of their own; a seed that nobody gave is the
/// system's.
fn configuration(args: &MlperfArgs) -> anyhow::Result<Config> {
    let mut settings = match args.config {
        Some(_) => Vec::new(),
        None => Preset::of(args.preset.unwrap_or(presets::DEFAULT))?.settings(),
    };
    settings.extend(args.overrides.iter().cloned());
    let mut set = |key: &str, value: Option<String>| settings.extend(value.map(|v| format!("{key}={v}")));
    set("data.dir", quoted("--data", args.data.as_deref())?);
    set("model.init_from", quoted("--start", args.start.as_deref())?);
    set("train.run", quoted("--run", args.run.as_deref())?);
    set("train.device", args.place.device_value());
    set("train.seed", args.seed.map(|seed| seed.to_string()));
    if !has_own_seed(args) {
        let seed = getrandom::u64().context("the system gives no random seed; give one with --seed")?;
        // a configuration's numbers are signed
        set("train.seed", Some((seed >> 1).to_string()));
    }
    Ok(Config::load(args.config.as_deref(), &settings)?)
}

fn has_own_seed(args: &MlperfArgs) -> bool {
    args.seed.is_some() || is_set(args, "train.seed")
}

/// Whether `--set` gives a key.
fn is_set(args: &MlperfArgs, key: &str) -> bool {
    args.overrides.iter().filter_map(|o| o.split_once('=')).any(|(name, _)| name.trim() == key)
}

/// A run whose clock would be paused is none, so nothing goes on where another run ended.
fn refuse_used(run: &Path) -> anyhow::Result<()> {
    if [LOG, "checkpoints", "model"].iter().any(|name| run.join(name).exists()) {
        bail!(
            "{}: already holds a run, and a run of MLPerf is not resumed: its clock may not pause; choose another folder \
             with --run",
            run.display()
        );
    }
    Ok(())
}

/// Micro-batches as large as the memory allows. Without a manifest there is nothing to reckon with; the trainer says so.
fn choose_accumulation<B: Backend>(backend: &B, config: &mut Config) -> anyhow::Result<()> {
    if !config.data.dir.join(MANIFEST).is_file() {
        return Ok(());
    }
    let manifest = Manifest::load(&config.data.dir)?;
    let mut model = config.model.clone();
    model.vocab_size = manifest.vocab_size;
    config.train.accumulation = memory::accumulation(backend, config, &TensorTable::new(&model), &manifest);
    Ok(())
}

fn submission(args: &MlperfArgs) -> Submission {
    Submission {
        org: args.org.clone(),
        platform: args.platform.clone(),
        status: match args.status {
            Status::Cloud => "cloud",
            Status::Onprem => "onprem",
            Status::Preview => "preview",
            Status::Research => "research",
        }
        .to_owned(),
        division: args.division.map(|division| match division {
            Division::Closed => mlperf::Division::Closed,
            Division::Open => mlperf::Division::Open,
        }),
        system_seed: !has_own_seed(args),
    }
}
