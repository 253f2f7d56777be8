//! Starts the workers of one machine, passes signals on to them, and leaves none behind.

use crate::ranks::{LISTENER, LOCAL_RANK, LOCAL_WORLD, MEET, RANK, TOKEN, WORLD};
use crate::{exit, signals};
use anyhow::Context;
use kernels::limits;
use rustix::io::FdFlags;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often to look after the workers.
const PAUSE: Duration = Duration::from_millis(20);
/// What workers have to end by themselves once one of them has failed.
const GRACE: Duration = Duration::from_secs(5);

/// The workers to start.
pub struct Crew {
    pub count: usize,
    /// Rank of the first.
    pub first: usize,
    pub world: usize,
    /// `host:port` of rank 0; where all ranks are on this machine, found here.
    pub meet: Option<String>,
    /// What the ranks have in common; where all are on this machine, drawn here.
    pub token: String,
    /// Whether whatever has started this process ends it with the others of the job, and should not leave it behind.
    pub started: bool,
}

/// Where the workers meet, and what keeps others out.
struct Meeting {
    meet: String,
    listener: Option<TcpListener>,
    token: String,
}

/// Among workers of this machine only, at a port that only this machine reaches, with a token that nobody knows.
fn meeting(crew: &Crew) -> anyhow::Result<Meeting> {
    if crew.world == crew.count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port")?;
        let meet = listener.local_addr().context("cannot find a free port")?.to_string();
        let token = engine::dist::random().context("cannot draw a token for the workers")?;
        return Ok(Meeting { meet, listener: Some(listener), token });
    }
    let Some(meet) = crew.meet.clone() else {
        anyhow::bail!(
            "the machine of rank 0 is not known here; set MASTER_ADDR for all, as in mpirun -x MASTER_ADDR=node1"
        );
    };
    Ok(Meeting { meet, listener: None, token: crew.token.clone() })
}

/// Starts this program again as each worker and waits for all. The code is 0 if all are done, else the first failure's.
pub fn run(crew: &Crew) -> anyhow::Result<u8> {
    let Meeting { meet, mut listener, token } = meeting(crew)?;
    let program = std::env::current_exe().context("cannot find this program's file to start workers from")?;
    let passed = signals::pass_on()?;
    let mut workers = Vec::new();
    for local in 0..crew.count {
        let mut command = Command::new(&program);
        command
            .args(std::env::args_os().skip(1))
            .env(RANK, (crew.first + local).to_string())
            .env(WORLD, crew.world.to_string())
            .env(LOCAL_RANK, local.to_string())
            .env(LOCAL_WORLD, crew.count.to_string())
            .env(MEET, &meet)
            .env(TOKEN, &token)
            // Held open as long as this process lives: a worker that reads its end knows that it is alone.
            .stdin(Stdio::piped())
            // A terminal's signals come to this process only, which passes them on once.
            .process_group(0);
        // It goes to the first worker only, and is closed here.
        let listener = listener.take();
        if let Some(listener) = &listener {
            rustix::io::fcntl_setfd(listener, FdFlags::empty()).context("cannot pass a port on")?;
            command.env(LISTENER, listener.as_raw_fd().to_string());
        }
        match command.spawn() {
            Ok(child) => workers.push(Worker { rank: crew.first + local, child, ended: None }),
            Err(e) => {
                workers.iter_mut().for_each(Worker::kill);
                anyhow::bail!(limits::refused(&format!("worker {}", crew.first + local), &e));
            }
        }
    }
    Ok(look_after(&mut workers, &passed, crew.started))
}

/// In rank 0's worker: the listener that [`run`] has left open for it. To be called once.
pub fn listener() -> Option<TcpListener> {
    let fd = std::env::var(LISTENER).ok()?.parse().ok().filter(|fd| *fd >= 0)?;
    // SAFETY: whoever set the variable has left the descriptor open for this process, and nothing else here knows of it
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    let meant = std::env::var(MEET).ok()?.parse::<SocketAddr>().ok();
    let inherited = listener.local_addr().ok();
    if inherited.is_none() || inherited != meant {
        // Not ours after all: it stays as it is.
        let _ = listener.into_raw_fd();
        return None;
    }
    rustix::io::fcntl_setfd(&listener, FdFlags::CLOEXEC).ok()?;
    Some(listener)
}

struct Worker {
    rank: usize,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Worker {
    fn signal(&self, number: i32) {
        if self.ended.is_some() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let (Some(pid), Some(signal)) = (pid, rustix::process::Signal::from_named_raw(number)) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.ended = self.child.wait().ok().or(self.ended);
    }

    /// Whether it has just ended, and not well.
    fn has_failed(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
            return self.ended.is_some_and(|status| !status.success());
        }
        false
    }
}

fn code(status: ExitStatus) -> u8 {
    let by_signal = || status.signal().map(exit::by_signal);
    status.code().and_then(|code| u8::try_from(code).ok()).or_else(by_signal).unwrap_or(exit::FAILED)
}

fn look_after(workers: &mut [Worker], passed: &std::sync::mpsc::Receiver<i32>, started: bool) -> u8 {
    let parent = parent_id();
    let mut failure: Option<u8> = None;
    // When the others began to have reason to end: not where all were asked to, and one still writes its checkpoint.
    let mut failed: Option<(usize, ExitStatus, Instant)> = None;
    let mut asked = Vec::new();
    let mut said = false;
    while workers.iter().any(|w| w.ended.is_none()) {
        for signal in passed.try_iter() {
            workers.iter().for_each(|w| w.signal(signal));
            asked.push(exit::by_signal(signal));
        }
        for worker in workers.iter_mut() {
            if worker.has_failed() {
                let status = worker.ended.unwrap_or_default();
                tracing::info!("worker {} ended: {status}", worker.rank);
                failure = failure.or(Some(code(status)));
                if !asked.contains(&code(status)) {
                    failed = failed.or(Some((worker.rank, status, Instant::now())));
                }
            }
        }
        if let Some((rank, status, _)) = failed.filter(|(_, _, at)| at.elapsed() > GRACE) {
            if let Some(signal) = status.signal().filter(|_| !said) {
                // The others would have ended by themselves had they met this one before.
                exit::say(&format!("error: rank {rank} was killed by signal {signal} before all had met"));
                said = true;
            }
            workers.iter_mut().filter(|w| w.ended.is_none()).for_each(Worker::kill);
        }
        if started && parent_id() != parent {
            exit::say(&format!("error: process {parent}, which had started the job, is gone"));
            workers.iter_mut().for_each(Worker::kill);
            return exit::FAILED;
        }
        std::thread::sleep(PAUSE);
    }
    failure.unwrap_or(exit::DONE)
}

/// In a worker: ends the process when the one that started it is gone.
///
/// # Errors
/// The system has no thread left.
pub fn end_with_starter() -> anyhow::Result<()> {
    let wait = || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(exit::FAILED.into());
    };
    let started = std::thread::Builder::new().name("starter".to_owned()).spawn(wait);
    started.map(drop).map_err(|e| anyhow::anyhow!(limits::refused("the thread that watches the starter", &e)))
}
