//! The training loop: data in, a trained model and everything that tells how it went out.

mod artifacts;
mod data;
mod evaluation;
mod places;
mod resume;
mod run;
mod setup;
mod start;
mod step;
#[cfg(test)]
mod tests;
mod warm_up;

use crate::Result;
use crate::config::Config;
use crate::data::prepare::PrepareProgress;
use crate::dist::Group;
use crate::memory::MemoryTable;
use crate::metrics::{EvalRecord, TrainRecord};
use crate::mlperf::Submission;
use kernels::Backend;
use std::path::PathBuf;
use std::sync::atomic::AtomicI32;

/// How to run, besides what the configuration says.
pub struct Options<'a> {
    /// Go on from the run folder's newest whole checkpoint.
    pub resume: bool,
    /// 0, or the number of the signal that asks the run to stop at the next step.
    pub stop: &'a AtomicI32,
    /// A run for MLPerf: its log says whose it is, the shards are opened after run_start, and it is never resumed.
    pub mlperf: Option<&'a Submission>,
}

/// Hears how the run goes.
pub trait Observer: Send {
    /// One line that a user should see.
    fn message(&mut self, line: &str);
    /// Text is being prepared.
    fn preparing(&mut self, progress: &PrepareProgress);
    /// Training is about to start.
    fn started(&mut self, info: &RunInfo);
    /// A step is done.
    fn step(&mut self, record: &TrainRecord, progress: &StepProgress);
    /// An evaluation is done.
    fn evaluated(&mut self, record: &EvalRecord);
}

/// What is known before the first step.
#[derive(Debug, Clone, PartialEq)]
pub struct RunInfo {
    /// The device, in words.
    pub device: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Sequences to train on.
    pub train_sequences: u64,
    /// Their tokens.
    pub train_tokens: u64,
    /// Sequences held out.
    pub eval_sequences: u64,
    /// Entropy of the training text's token frequencies, in nats: what a model reaches that knows nothing else.
    pub unigram_entropy: f64,
    /// Steps already done by an earlier process.
    pub first_step: u64,
    /// Steps in all.
    pub steps: u64,
    /// What the run takes of the device's memory.
    pub memory: MemoryTable,
    /// Whether the device is the host itself.
    pub on_host: bool,
}

/// How far the run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepProgress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
    /// Estimate of the time left, in seconds.
    pub seconds_left: f64,
    /// Whether the step's record goes to the logs: every `train.log_every` steps.
    pub logged: bool,
    /// Of several processes the one that the others wait for, and by how much its work exceeds the mean since the last
    /// line of the logs.
    pub slowest: Option<(usize, f64)>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// The target accuracy was reached.
    TargetReached,
    /// A signal of that number asked for it; a checkpoint is written.
    Stopped(i32),
}

/// What a run leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// The run folder.
    pub run: PathBuf,
    /// What was reached and where it lies, in one line.
    pub summary: String,
}

/// Trains as `config` says, on `backend`.
///
/// # Errors
/// Any wrong value of the configuration, unreadable or foreign data, a run folder that belongs to another
/// configuration, a full disk, a non-finite loss. Checkpoints already written stay.
pub fn train<B: Backend<Acc = f32>>(
    backend: B,
    config: &Config,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    train_in(&mut Group::solo(), backend, config, options, observer)
}

/// As [`train`], as one of several processes, which all call this. The first one writes everything and is the only one to
/// call `observer`.
///
/// # Errors
/// Those of [`train`], on the process that meets them; processes that differ in configuration or data; a process that is
/// gone.
pub fn train_in<B: Backend<Acc = f32>>(
    group: &mut Group<B>,
    backend: B,
    config: &Config,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    config.validate()?;
    let prepared = setup::prepare(group, backend, config, options, observer)?;
    run::run(group, prepared, options, observer)
}
