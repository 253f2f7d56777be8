//! A process that dies, hangs or meets an error ends all, soon, with one message, and leaves none behind.

use super::{model, place, train};
use crate::cli::Workplace;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// What the end of all may take.
const SOON: Duration = Duration::from_secs(30);
pub const ENDLESS: &str = "--steps 100000000 --set train.checkpoint_every=20 --set train.log_every=1";

pub struct Job {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Job {
    fn start(place: &Workplace, run: &str, options: &str) -> Self {
        Self::start_with(place, run, options, &[])
    }

    /// With these variables in the environment.
    pub fn start_with(place: &Workplace, run: &str, options: &str, environment: &[(&str, &str)]) -> Self {
        let line = format!("--config ranks.toml --run {run} {options}");
        let args: Vec<&str> = line.split_whitespace().collect();
        let mut command = place.interruptible(&args);
        command.envs(environment.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, said: String::new() }
    }

    pub fn wait_for(&mut self, word: &str) {
        while !self.said.lines().last().is_some_and(|line| line.contains(word)) {
            let read = self.stderr.read_line(&mut self.said).unwrap();
            assert!(read > 0, "ended before `{word}`:\n{}", self.said);
        }
    }

    /// Process numbers of the workers, by rank.
    pub fn workers(&self) -> Vec<u32> {
        let pid = self.child.id();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let mut pids: Vec<u32> = text.split_whitespace().map(|p| p.parse().unwrap()).collect();
        let rank = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let text = String::from_utf8_lossy(&environment).into_owned();
            text.split('\0').find_map(|v| v.strip_prefix("LAUNCHER_RANK=")?.parse::<usize>().ok())
        };
        // One that is just being started has its parent's environment still.
        pids.retain(|pid| rank(pid).is_some());
        pids.sort_by_key(rank);
        pids
    }

    /// Exit code and all that was said, once all is over.
    pub fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let workers = self.workers();
        self.stderr.read_to_string(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(begun.elapsed() < SOON, "took {:?}:\n{}", begun.elapsed(), self.said);
        for pid in workers {
            let state = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            assert!(state.trim() != "launcher", "worker {pid} is left behind");
        }
        (status.code(), self.said)
    }
}

pub fn send(signal: &str, pid: u32) {
    Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
}

pub fn errors(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.contains("error:")).collect()
}

#[test]
fn a_process_that_is_killed_ends_all_with_one_message() {
    let place = place();
    let steps = "--steps 1500 --set train.checkpoint_every=20 --set train.log_every=1";
    train(&place, "whole", &format!("{steps} --processes 3")).done();
    for (victim, moment) in [(1, 0), (2, 15), (0, 135)] {
        let run = format!("run-{victim}");
        let mut job = Job::start(&place, &run, &format!("{steps} --processes 3"));
        job.wait_for("step ");
        std::thread::sleep(Duration::from_millis(moment));
        send("KILL", job.workers()[victim]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}");
        let errors = errors(&said);
        assert!(errors.len() == 1 && errors[0].contains(&format!("rank {victim} on ")), "{said}");
        // What was saved is whole.
        train(&place, &run, &format!("{steps} --processes 3 --resume")).done();
        assert!(model(&place, &run) == model(&place, "whole"));
    }
}

#[test]
fn a_process_that_is_killed_while_the_job_starts_ends_all() {
    let place = place();
    for moment in [0, 20, 60] {
        let job = Job::start(
            &place,
            &format!("run{moment}"),
            &format!("{ENDLESS} --processes 2 --set ranks.start_seconds=60"),
        );
        let begun = Instant::now();
        while job.workers().len() < 2 {
            assert!(begun.elapsed() < SOON);
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(moment));
        send("KILL", job.workers()[1]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}\n{said}");
        let errors = errors(&said);
        assert!(errors.len() == 1 && errors[0].contains("rank 1 "), "{said}");
    }
}

#[test]
fn a_process_that_hangs_ends_all() {
    let place = place();
    for victim in [1, 0] {
        let mut job = Job::start(&place, &format!("run{victim}"), &format!("{ENDLESS} --processes 2"));
        job.wait_for("step ");
        let pid = job.workers()[victim];
        send("STOP", pid);
        let begun = Instant::now();
        // Standard error is open as long as the stopped process is: the launcher kills it.
        let (code, said) = job.end();
        assert!(begun.elapsed() < SOON && code.is_some_and(|code| code != 0), "{code:?}");
        let errors = errors(&said);
        assert!(errors.len() == 1 && errors[0].contains(&format!("rank {victim} on ")), "{said}");
        assert!(errors[0].contains("no sign of life"), "{said}");
    }
}

#[test]
fn a_signal_to_the_launcher_leaves_one_checkpoint_to_go_on_from() {
    let place = place();
    train(&place, "whole", "--steps 400 --processes 2").done();
    let mut job = Job::start(&place, "parts", "--steps 400 --processes 2 --set train.checkpoint_every=0");
    job.wait_for("step ");
    send("TERM", job.child.id());
    let (code, said) = job.end();
    assert_eq!(code, Some(143), "{said}");
    assert_eq!(said.matches("ending after this step").count(), 1, "{said}");
    assert_eq!(fs::read_dir(place.path("parts/checkpoints")).unwrap().count(), 1);
    train(&place, "parts", "--steps 400 --processes 2 --resume").done();
    assert!(model(&place, "whole") == model(&place, "parts"));
}

#[test]
fn a_launcher_that_is_killed_leaves_no_worker() {
    let place = place();
    let mut job = Job::start(&place, "run", &format!("{ENDLESS} --processes 2"));
    job.wait_for("step ");
    let workers = job.workers();
    assert_eq!(workers.len(), 2);
    send("KILL", job.child.id());
    let begun = Instant::now();
    let lives = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(launcher)") && !stat.contains(") Z ")
    };
    while workers.iter().any(lives) {
        assert!(begun.elapsed() < SOON, "workers are left behind");
        std::thread::sleep(Duration::from_millis(50));
    }
    job.child.wait().unwrap();
}

#[test]
fn an_error_of_one_process_is_the_message_of_all() {
    let place = place();
    // A learning rate at which weights leave f32's range
    let job = Job::start(&place, "run", "--processes 2 --set schedule.lr=1e30 --set optimizer.clip_norm=0");
    let (code, said) = job.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(errors(&said).len() == 1 && errors(&said)[0].contains("is not finite"), "{said}");
    let job = Job::start(&place, "run", "--processes 2 --data nowhere");
    let (code, said) = job.end();
    assert!(code == Some(1) && errors(&said).len() == 1 && said.contains("nowhere"), "{said}");
}
