//! The same operations on files in every run, so that a kill or a full disk can be put before each of them in turn.

use super::{Result, Workplace, leftovers, message, names, skipped};
use crate::cli::Ran;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// A run of few operations that has all kinds: preparation, checkpoints, evaluations, export.
const SHORT: &str = "--config tiny.toml --steps 4 --set train.log_every=1 --set train.eval_every=8 \
                     --set train.checkpoint_every=1 --set train.keep_checkpoints=1 --resume";

/// Runs commands with an operation that fails.
struct Faults {
    place: Workplace,
    library: PathBuf,
    /// Kind and path of each operation of an undisturbed run.
    operations: Vec<String>,
    expected: Result,
    checkpoints: Vec<String>,
}

impl Faults {
    /// None, with a word why, where the library cannot be built or does not see what the binary does.
    fn new() -> Option<Self> {
        let place = Workplace::with_corpus();
        let library = place.path("fault.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/robustness/fault.c");
        let compiler =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).output();
        if !compiler.is_ok_and(|c| c.status.success()) {
            skipped("no C compiler builds tests/robustness/fault.c here");
            return None;
        }
        place.line(SHORT).done();
        let (expected, checkpoints) = (Result::of(&place.path("run")), names(&place.path("run/checkpoints")));
        let mut faults = Self { place, library, operations: vec![], expected, checkpoints };
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

    /// Back to the text.
    fn clear(&self) {
        for dir in ["run", "shards", "shards.preparing"] {
            let _ = fs::remove_dir_all(self.place.path(dir));
        }
    }

    fn run(&self, mode: &str, at: usize) -> (ExitStatus, Ran) {
        let args: Vec<&str> = SHORT.split_whitespace().collect();
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
        self.place.line(SHORT).done();
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
