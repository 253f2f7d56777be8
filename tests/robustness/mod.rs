//! What a run survives: kills, signals, damaged files, full disks, losses that are not finite.

mod crash_points;
mod damage;
mod disk;
mod kill;
mod limits;
mod nonfinite;
mod shortened;

use crate::cli::{Ran, Workplace, files};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A run of 24 steps with evaluations and checkpoints between them.
const TRAIN: &str = "--config tiny.toml --steps 24 --set train.log_every=1 --set train.eval_every=20 \
                     --set train.checkpoint_every=4";

/// What a run ends with, apart from the time it took.
#[derive(PartialEq)]
struct Result {
    model: Vec<u8>,
    metrics: Vec<Value>,
}

impl Result {
    #[track_caller]
    fn of(run: &Path) -> Self {
        Self { model: fs::read(run.join("model/model.safetensors")).unwrap(), metrics: metrics(run) }
    }

    /// Compares part by part, for a message that can be read.
    #[track_caller]
    fn assert_equal(&self, other: &Self, what: &str) {
        assert!(self.model == other.model, "{what}: other weights");
        assert_eq!(self.metrics, other.metrics, "{what}");
    }
}

/// The lines of metrics.jsonl without what measures time.
#[track_caller]
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let without_time = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        for key in ["tokens_per_second", "seconds", "model_tflops", "eval_seconds"] {
            value.as_object_mut().unwrap().remove(key);
        }
        value
    };
    text.lines().map(without_time).collect()
}

/// Names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Files and folders that only a process at work may have.
fn leftovers(dir: &Path) -> Vec<String> {
    let temporary = |part: &str| {
        [".tmp-", ".old-", ".trash-"].iter().any(|p| part.starts_with(p))
            || [".preparing", ".tmp"].iter().any(|s| part.ends_with(s))
    };
    let mut found: Vec<String> = files(dir).iter().map(|f| f.display().to_string()).collect();
    found.extend(names(dir)); // an empty folder has no file
    found.extend(names(&dir.join("run/checkpoints")));
    found.retain(|path| path.split('/').any(temporary));
    found
}

/// The message of a command that must fail: one line on standard error begins with `error:`, and it is the last.
#[track_caller]
fn message(ran: Ran) -> String {
    let stderr = ran.stderr.clone();
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{stderr}");
    assert!(!stderr.contains("stack backtrace"), "{stderr}");
    ran.failed()
}

/// Runs undisturbed.
fn undisturbed() -> (Workplace, Result) {
    let place = Workplace::with_corpus();
    place.line(TRAIN).done();
    let result = Result::of(&place.path("run"));
    (place, result)
}

/// Copies a folder with all that it holds.
fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// Says on standard error, past the test harness's capture where `--nocapture` is given, what was not tested.
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
