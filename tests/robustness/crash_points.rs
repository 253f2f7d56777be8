//! The same operations on files in every run, so that a kill or a full disk can be put before each of them in turn.

use super::{Result, Workplace, copy, leftovers, message, names, skipped};
use crate::cli::Ran;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// A run of few operations that has all kinds: preparation, checkpoints, evaluations, export.
const SHORT: &str = "--config tiny.toml --steps 4 --set train.log_every=1 --set train.eval_every=8 \
                     --set train.checkpoint_every=1 --set train.keep_checkpoints=1 --resume";

/// More steps for a run that [`SHORT`] has finished, in another batch.
const LONGER: &str = "--config tiny.toml --steps 6 --set train.log_every=1 --set train.eval_every=8 \
                      --set train.checkpoint_every=1 --set train.keep_checkpoints=1 --set train.batch_sequences=6 --resume";

/// Runs commands with an operation that fails.
struct Faults {
    place: Workplace,
    /// What is run.
    command: &'static str,
    /// The folder of a finished run, if the command goes on with one.
    finished: Option<PathBuf>,
    library: PathBuf,
    /// Kind and path of each operation of an undisturbed run.
    operations: Vec<String>,
    expected: Result,
    checkpoints: Vec<String>,
}

impl Faults {
    /// None, with a word why, where the library cannot be built or does not see what the binary does.
    fn new() -> Option<Self> {
        Self::of(SHORT, false)
    }

    /// Of a command that goes on with a finished run, if so asked for.
    fn of(command: &'static str, goes_on: bool) -> Option<Self> {
        let place = Workplace::with_corpus();
        let library = place.path("fault.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/robustness/fault.c");
        let compiler =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).output();
        if !compiler.is_ok_and(|c| c.status.success()) {
            skipped("no C compiler builds tests/robustness/fault.c here");
            return None;
        }
        let finished = goes_on.then(|| {
            place.line(SHORT).done();
            let kept = place.path("finished");
            copy(&place.path("run"), &kept);
            kept
        });
        place.line(command).done();
        let (expected, checkpoints) = (Result::of(&place.path("run")), names(&place.path("run/checkpoints")));
        let mut faults =
            Self { place, command, finished, library, operations: vec![], expected, checkpoints };
        faults.clear();
        let (_, ran) = faults.run("log", 0);
        let kinds = ["create", "write", "mkdir", "fsync", "truncate", "rename", "unlink", "rmdir"];
        let is_operation = |line: &&str| kinds.iter().any(|k| line.starts_with(&format!("{k} ")));
        faults.operations = ran.stderr.lines().filter(is_operation).map(str::to_owned).collect();
        if faults.operations.is_empty() {
            skipped("LD_PRELOAD has no effect here");
            return None;
        }
        Some(faults)
    }

    /// Back to the text, or to the finished run.
    fn clear(&self) {
        if let Some(finished) = &self.finished {
            fs::remove_dir_all(self.place.path("run")).unwrap();
            return copy(finished, &self.place.path("run"));
        }
        for dir in ["run", "shards", "shards.preparing"] {
            let _ = fs::remove_dir_all(self.place.path(dir));
        }
    }

    fn run(&self, mode: &str, at: usize) -> (ExitStatus, Ran) {
        let args: Vec<&str> = self.command.split_whitespace().collect();
        let mut command = self.place.command(&args);
        command.env("LD_PRELOAD", &self.library).env("FAULT_MODE", mode).env("FAULT_AT", at.to_string());
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran =
            Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        (output.status, ran)
    }

    /// The numbers of all operations but writes, and of every `stride`th write.
    fn points(&self, stride: usize) -> Vec<usize> {
        let mut writes = 0;
        let mut chosen = |operation: &str| {
            writes += usize::from(operation.starts_with("write "));
            !operation.starts_with("write ") || writes % stride == 0
        };
        (0..self.operations.len()).filter(|&at| chosen(&self.operations[at])).collect()
    }

    /// Goes on without a fault and compares the end.
    #[track_caller]
    fn resume(&self, at: usize) {
        let what = format!("resumed after a fault at operation {at}: {}", self.operations[at]);
        self.place.line(self.command).done();
        Result::of(&self.place.path("run")).assert_equal(&self.expected, &what);
        assert_eq!(names(&self.place.path("run/checkpoints")), self.checkpoints, "{what}");
        assert_eq!(leftovers(&self.place.path("")), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn killed_before_any_operation_on_a_file_a_run_resumes_byte_equal() {
    let Some(faults) = Faults::new() else { return };
    let points = faults.points(stride(23));
    for &at in &points {
        faults.clear();
        let (status, _) = faults.run(if at % 2 == 0 { "kill" } else { "torn" }, at);
        assert_eq!(status.signal(), Some(9), "operation {at}: {}", faults.operations[at]);
        faults.resume(at);
    }
    eprintln!("killed at {} of {} operations", points.len(), faults.operations.len());
}

/// The folder of a finished run that goes on has the old model or the new one, and the end is that of one never killed.
#[test]
fn killed_before_any_operation_of_a_continuation_a_run_has_one_model_or_the_other() {
    let Some(faults) = Faults::of(LONGER, true) else { return };
    let model = |dir: &Path| fs::read(dir.join("model/model.safetensors")).unwrap();
    let old = model(faults.finished.as_ref().unwrap());
    assert!(old != faults.expected.model);
    let points = faults.points(stride(29));
    for &at in &points {
        faults.clear();
        let (status, _) = faults.run(if at % 2 == 0 { "kill" } else { "torn" }, at);
        assert_eq!(status.signal(), Some(9), "operation {at}: {}", faults.operations[at]);
        let run = faults.place.path("run");
        // Between two renames neither has the name, and both are whole.
        let left = if run.join("model").exists() { model(&run) } else { old.clone() };
        assert!(left == old || left == faults.expected.model, "operation {at}: {}", faults.operations[at]);
        assert!(run.join("model").exists() || run.join(".old-model").exists());
        faults.resume(at);
    }
    eprintln!("killed at {} of {} operations", points.len(), faults.operations.len());
}

#[test]
fn a_disk_that_is_full_from_any_operation_on_is_named_and_loses_nothing() {
    let Some(faults) = Faults::new() else { return };
    let needs_space = |at: &usize| {
        ["create ", "mkdir ", "write "].iter().any(|kind| faults.operations[*at].starts_with(kind))
    };
    let points: Vec<usize> = faults.points(stride(41)).into_iter().filter(needs_space).collect();
    for &at in points.iter().step_by(if stride(2) == 1 { 1 } else { 2 }) {
        faults.clear();
        let (_, ran) = faults.run("full", at);
        let said = message(ran);
        let path = said.split(": ").next().unwrap();
        assert!(path.starts_with("run") || path.starts_with("shards"), "operation {at}: {said}");
        assert!(said.contains("No space left") && said.contains("free some space"), "operation {at}: {said}");
        faults.resume(at);
    }
}

/// The distance between points; `LAUNCHER_ALL_POINTS` takes every one.
fn stride(usual: usize) -> usize {
    if std::env::var_os("LAUNCHER_ALL_POINTS").is_some() { 1 } else { usual }
}
