//! Limits on threads, processes and memory: what is missing is said, with who limits it and what to do.

use super::{Workplace, skipped};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A control group in which few processes and threads may run; removed when dropped.
struct Group(PathBuf);

impl Group {
    /// None where this process may not make one.
    fn new(name: &str, most: usize) -> Option<Self> {
        let name = format!("launcher-test-{}-{name}", std::process::id());
        let tops = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let group = tops.iter().map(|top| PathBuf::from(top).join(&name)).find(|group| {
            fs::create_dir(group).is_ok()
                && (group.join("pids.max").exists() || fs::remove_dir(group).is_err())
        })?;
        let group = Self(group);
        fs::write(group.0.join("pids.max"), most.to_string()).ok()?;
        Some(group)
    }

    fn run(&self, place: &Workplace, line: &str) -> Output {
        let (group, launcher) = (self.0.display(), env!("CARGO_BIN_EXE_launcher"));
        let script = format!("echo $$ > {group}/cgroup.procs || exit 77; exec {launcher} {line}");
        Command::new("sh").args(["-c", &script]).current_dir(place.path("")).output().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[track_caller]
fn explained(output: &Output, line: &str, source: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}: {said}");
    assert!(!said.contains("panicked"), "{line}: {said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "{line}: {said}");
    for part in ["cannot start ", source, "ask for fewer threads (train.threads, or --threads)"] {
        assert!(errors[0].contains(part), "{line}: `{part}` is not in: {said}");
    }
}

#[test]
fn too_few_threads_are_an_error_that_names_the_limit() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    place.line("prepare --input text.txt --vocab vocab.txt --out data --max-seq-length 32").done();
    let prepare = "prepare --input text.txt --vocab vocab.txt --max-seq-length 32 --threads";
    for (most, lines) in [
        // room for the shell's process, and for the launcher's own thread
        (
            1,
            vec![
                "inspect run/model",
                "fill-mask --model run [MASK]",
                "verify none.safetensors",
                "--config tiny.toml --run new",
            ],
        ),
        // for the threads that compute, and not for all of the others
        (
            3,
            vec![
                "--config tiny.toml --run new",
                "bench --config tiny.toml --device cpu --set train.threads=8",
            ],
        ),
        (4, vec!["eval --model run --data shards --threads 8"]),
        (6, vec![]),
    ] {
        let Some(group) = Group::new(&most.to_string(), most) else {
            return skipped("no control group for processes can be made here");
        };
        // half of the room for the threads that compute, and not enough for those that prepare
        let prepare = format!("{prepare} {} --out new-data", (most / 2).max(1));
        let lines = lines.into_iter().map(str::to_owned).chain([prepare]);
        for line in lines {
            let output = group.run(&place, &line);
            if output.status.code() == Some(77) {
                return skipped("this process may not enter the control group that it made");
            }
            explained(&output, &line, &format!("pids.max allows {most} processes and threads"));
        }
        assert!(!place.path("new-data").exists() && !place.path("new-data.preparing").exists());
    }
}

#[test]
fn a_users_limit_on_processes_is_named() {
    let place = Workplace::with_corpus();
    let launcher = env!("CARGO_BIN_EXE_launcher");
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    // root has no such limit
    let other = ["setpriv", "--reuid", "65533", "--clear-groups", "prlimit", "--nproc=2", launcher];
    let run = |line: &str| {
        let args = other[1..].iter().copied().chain(line.split_whitespace());
        Command::new(other[0]).args(args).current_dir(place.path("")).output()
    };
    if !run("--version").is_ok_and(|output| output.status.success()) {
        return skipped("the program cannot be run as another user");
    }
    let line = "prepare --input text.txt --vocab vocab.txt --out o --max-seq-length 32 --threads 8";
    explained(&run(line).unwrap(), line, "ulimit -u allows 2 processes and threads");
}

#[test]
fn a_limit_on_addresses_counts_as_memory() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 1").done();
    let launcher = env!("CARGO_BIN_EXE_launcher");
    let run = |line: &str, kilobytes: usize| {
        let script = format!("ulimit -v {kilobytes}; exec {launcher} {line}");
        Command::new("sh").args(["-c", &script]).current_dir(place.path("")).output().unwrap()
    };
    let line = "--config tiny.toml --run new --set model.layers=8 --set model.hidden=2048 --set model.heads=32 \
                --set model.intermediate=8192";
    let output = run(line, 3_000_000);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("error: model: 8 layers of 2048 need ") && last.contains("limited by ulimit -v"),
        "{said}"
    );
    let output = run("--config tiny.toml --run small --steps 2", 3_000_000);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
