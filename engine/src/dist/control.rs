//! How the processes of a job watch each other. Each has a connection to rank 0, over which it says every second that it is
//! alive and whether it waits. Whoever dies, falls silent or keeps all others waiting ends the job with one message.

use super::rendezvous::{receive, send};
use super::{Meeting, Place};
use crate::Error;
use serde::{Deserialize, Serialize};
use std::io::{BufReader, ErrorKind};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// A process that is silent for so long is taken for hung.
const SILENCE: Duration = Duration::from_secs(10);
/// A process that keeps the others waiting for so long, and ten times as long as ever before, is taken for hung.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the cause of a failure may take to be known.
const CAUSE: Duration = Duration::from_secs(5);

/// What a process does, for the others to see.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    /// Milliseconds since `begun` plus 1 when the present wait began; 0 if it does not wait.
    waiting: AtomicU64,
    /// When the present work began, likewise.
    working: AtomicU64,
    /// Things that only this process does and that may take long.
    busy: AtomicU32,
    /// The longest stretch of work between two waits, in milliseconds.
    longest: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let begun = Instant::now();
        Self { begun, waiting: zero(), working: AtomicU64::new(1), busy: AtomicU32::new(0), longest: zero() }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64 + 1
    }

    /// This process waits for others from now on.
    pub fn wait_begins(&self) {
        let now = self.now();
        let work = now.saturating_sub(self.working.swap(0, SeqCst));
        self.longest.fetch_max(work, SeqCst);
        self.waiting.store(now, SeqCst);
    }

    /// It works again.
    pub fn wait_ends(&self) {
        self.waiting.store(0, SeqCst);
        self.working.store(self.now(), SeqCst);
    }

    fn beat(&self) -> Beat {
        let since = |at: u64| if at == 0 { 0 } else { self.now().saturating_sub(at) + 1 };
        Beat {
            waiting: since(self.waiting.load(SeqCst)),
            working: since(self.working.load(SeqCst)),
            busy: self.busy.load(SeqCst) > 0,
            longest: self.longest.load(SeqCst),
        }
    }
}

/// A sign of life; times in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Beat {
    waiting: u64,
    working: u64,
    busy: bool,
    longest: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Beat(Beat),
    /// To rank 0: this process cannot go on.
    Failed(String),
    /// From rank 0: the job ends.
    Abort(String),
    /// The sender has nothing left to do.
    Done,
}

/// Called once when the job has failed, with the message and whether this process is the one to say it. It should not
/// return.
pub type Failure = Box<dyn Fn(&str, bool) + Send + Sync>;

struct Shared {
    place: Place,
    hosts: Vec<String>,
    activity: Arc<Activity>,
    /// To write to; by rank.
    streams: Vec<Option<Mutex<TcpStream>>>,
    /// Newest of each rank.
    beats: Mutex<Vec<Beat>>,
    /// Nothing that happens from now on matters.
    over: AtomicBool,
    failed: AtomicBool,
    on_failure: Failure,
}

/// This process's side of the watch.
pub struct Control {
    shared: Arc<Shared>,
}

/// While it exists, this process may let the others wait.
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.working.store(self.0.now(), SeqCst);
        self.0.busy.fetch_sub(1, SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Starts the watch over a meeting's connections.
    ///
    /// # Errors
    /// If the system has no thread or file left.
    pub fn start(place: &Place, meeting: &mut Meeting, on_failure: Failure) -> std::io::Result<Self> {
        let control = std::mem::take(&mut meeting.control);
        let mut streams = Vec::new();
        for reader in &control {
            let stream = reader.as_ref().map(|r| r.get_ref().try_clone()).transpose()?;
            streams.push(stream.map(Mutex::new));
        }
        let shared = Arc::new(Shared {
            place: place.clone(),
            hosts: meeting.hosts.clone(),
            activity: Arc::new(Activity::new()),
            streams,
            beats: Mutex::new(vec![Beat::default(); place.world]),
            over: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            on_failure,
        });
        for (rank, reader) in control.into_iter().enumerate() {
            if let Some(reader) = reader {
                reader.get_ref().set_read_timeout(Some(SILENCE))?;
                let shared = shared.clone();
                spawn("control reader", move || shared.listen(rank, reader))?;
            }
        }
        let beating = shared.clone();
        spawn("control", move || beating.keep_beating())?;
        Ok(Self { shared })
    }

    /// Where waiting is noted.
    pub(super) fn activity(&self) -> Arc<Activity> {
        self.shared.activity.clone()
    }

    /// Says that this process does something alone, for which the others may wait as long as it takes.
    pub fn busy(&self) -> Busy {
        self.shared.activity.busy.fetch_add(1, SeqCst);
        Busy(self.shared.activity.clone())
    }

    /// This process among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.shared.place.local_rank
    }

    /// Number of processes on this machine.
    pub fn local_world(&self) -> usize {
        self.shared.place.local_world
    }

    /// The machine of a rank.
    pub fn host(&self, rank: usize) -> &str {
        &self.shared.hosts[rank]
    }

    /// Ends the job because of an error of this process. Returns only if nobody can be told.
    pub fn fail(&self, error: &Error) {
        let shared = &self.shared;
        if matches!(error, Error::Op(kernels::Error::RankLost { .. })) {
            // Whoever is gone may have said why, or rank 0 knows more: this is only what follows from it.
            std::thread::sleep(CAUSE);
        }
        let message = format!("{}: {error}", shared.place.name());
        if shared.place.rank == 0 {
            shared.abort(&message);
        } else {
            shared.send(0, &Message::Failed(message.clone()));
            std::thread::sleep(CAUSE);
            shared.fail(&message, true);
        }
    }

    /// This process is done: the others may go.
    pub fn finish(&self) {
        self.shared.over.store(true, SeqCst);
        for rank in 0..self.shared.streams.len() {
            self.shared.send(rank, &Message::Done);
        }
    }
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(f).map(drop)
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} on {}", self.hosts[rank])
    }

    /// What cannot be sent is noticed by the reader of the same connection.
    fn send(&self, rank: usize, message: &Message) {
        if let Some(stream) = &self.streams[rank] {
            let _ = send(&lock(stream), message);
        }
    }

    /// Once: what the launcher does about it.
    fn fail(&self, message: &str, speaks: bool) {
        if !self.failed.swap(true, SeqCst) {
            self.over.store(true, SeqCst);
            (self.on_failure)(message, speaks);
        }
    }

    /// Rank 0: ends the job.
    fn abort(&self, message: &str) {
        if !self.is_over() {
            for rank in 1..self.streams.len() {
                self.send(rank, &Message::Abort(message.to_owned()));
            }
            self.fail(message, true);
        }
    }

    /// Something is wrong with another rank. Rank 0 ends the job; without it each ends by itself, and rank 1 speaks.
    fn lost(&self, what: &str) {
        if self.is_over() {
            return;
        }
        if self.place.rank == 0 { self.abort(what) } else { self.fail(what, self.place.rank == 1) }
    }

    fn keep_beating(&self) {
        while !self.is_over() {
            let beat = self.activity.beat();
            for rank in 0..self.streams.len() {
                self.send(rank, &Message::Beat(beat));
            }
            lock(&self.beats)[self.place.rank] = beat;
            if self.place.rank == 0
                && let Some(rank) = self.hung()
            {
                let seconds = lock(&self.beats)[rank].working / 1000;
                self.abort(&format!(
                    "{} hangs: the others have waited for it for {seconds} s",
                    self.name(rank)
                ));
            }
            std::thread::sleep(BEAT);
        }
    }

    /// A rank that works while others wait, much longer than any stretch of work so far.
    fn hung(&self) -> Option<usize> {
        let beats = lock(&self.beats);
        let longest = beats.iter().map(|b| b.longest).max().unwrap_or(0);
        let patience = (PATIENCE.as_millis() as u64).max(10 * longest);
        let waits = beats.iter().any(|b| b.waiting > patience);
        let first_step = longest == 0;
        (0..beats.len()).find(|&r| waits && !first_step && !beats[r].busy && beats[r].working > patience)
    }

    fn listen(&self, rank: usize, mut reader: BufReader<TcpStream>) {
        loop {
            match receive::<Message>(&mut reader) {
                Ok(Some(Message::Beat(beat))) => lock(&self.beats)[rank] = beat,
                Ok(Some(Message::Failed(message))) => self.abort(&message),
                Ok(Some(Message::Abort(message))) => self.fail(&message, false),
                Ok(Some(Message::Done)) => return,
                Ok(None) => return self.lost(&format!("{} died: its connection closed", self.name(rank))),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let seconds = SILENCE.as_secs();
                    return self.lost(&format!("{} hangs: no sign of life for {seconds} s", self.name(rank)));
                }
                Err(e) => return self.lost(&format!("{} died: {e}", self.name(rank))),
            }
        }
    }
}
