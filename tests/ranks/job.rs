//! Jobs that are disturbed while they run: of our own workers, or of mpirun's.

use crate::cli::Workplace;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// What the end of all may take.
pub const SOON: Duration = Duration::from_secs(30);
pub const ENDLESS: &str = "--steps 100000000 --set train.checkpoint_every=20 --set train.log_every=1";
/// What tells a worker's rank.
const RANKS: [&str; 2] = ["LAUNCHER_RANK=", "OMPI_COMM_WORLD_RANK="];

pub struct Job {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Job {
    /// Of our own workers, as the options say.
    pub fn start(place: &Workplace, run: &str, options: &str) -> Self {
        Self::start_with(place, run, options, &[])
    }

    /// With these variables in the environment.
    pub fn start_with(place: &Workplace, run: &str, options: &str, environment: &[(&str, &str)]) -> Self {
        let line = format!("--config ranks.toml --run {run} {options}");
        let mut command = place.interruptible(&line.split_whitespace().collect::<Vec<_>>());
        command.envs(environment.iter().copied());
        Self::of(command)
    }

    /// Of four that mpirun starts, on the CPU.
    pub fn mpirun(place: &Workplace, run: &str, options: &str) -> Self {
        let launcher = env!("CARGO_BIN_EXE_launcher");
        let line = format!("-n 4 {launcher} --config ranks.toml --run {run} --device cpu {options}");
        Self::of(mpirun(place, &line.split_whitespace().collect::<Vec<_>>()))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, said: String::new() }
    }

    /// Waits for a line with this word.
    #[track_caller]
    pub fn wait_for(&mut self, word: &str) {
        while !self.said.lines().last().is_some_and(|line| line.contains(word)) {
            let read = self.stderr.read_line(&mut self.said).unwrap();
            assert!(read > 0, "ended before `{word}`:\n{}", self.said);
        }
    }

    /// Waits until so many workers are there.
    #[track_caller]
    pub fn wait_for_workers(&self, count: usize) {
        let begun = Instant::now();
        while self.workers().len() < count {
            assert!(begun.elapsed() < SOON, "{count} workers never came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The process that has started the workers.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process numbers of the workers, by rank.
    pub fn workers(&self) -> Vec<u32> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
        let text = children.flatten().collect::<Vec<_>>().concat();
        let mut pids: Vec<u32> = text.split_whitespace().map(|p| p.parse().unwrap()).collect();
        let rank = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let text = String::from_utf8_lossy(&environment).into_owned();
            let value = |v: &str| RANKS.iter().find_map(|name| v.strip_prefix(name)?.parse::<usize>().ok());
            text.split('\0').find_map(value)
        };
        // One that is just being started has its parent's environment still.
        pids.retain(|pid| rank(pid).is_some());
        pids.sort_by_key(rank);
        pids
    }

    /// Exit code and all that was said, once all is over; no process is left.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let workers = self.workers();
        self.stderr.read_to_string(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        while workers.iter().any(lives) {
            assert!(begun.elapsed() < SOON, "workers are left behind:\n{}", self.said);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(begun.elapsed() < SOON, "took {:?}:\n{}", begun.elapsed(), self.said);
        (status.code(), self.said)
    }
}

/// Whether a process is one of ours and not over.
fn lives(pid: &u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains("(launcher)") && !stat.contains(") Z ")
}

pub fn send(signal: &str, pid: u32) {
    Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
}

/// The messages of errors that are ours.
pub fn errors(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.contains("error:")).collect()
}

/// The only one.
#[track_caller]
pub fn one_error(said: &str) -> &str {
    let errors = errors(said);
    assert_eq!(errors.len(), 1, "{said}");
    errors[0]
}

/// Whether there is an mpirun to test with.
pub fn mpirun_is_there() -> bool {
    let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(std::env::var_os("REQUIRE_MPI").is_none(), "REQUIRE_MPI is set and there is no mpirun");
    eprintln!("skipped: no mpirun");
    false
}

/// mpirun with these arguments, in the workplace; no signal is ignored, as in [`Workplace::interruptible`].
pub fn mpirun(place: &Workplace, args: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM,HUP", "mpirun"]);
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]).args(args);
    command.current_dir(place.path("")).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}
