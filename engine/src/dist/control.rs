//! How the processes of a job watch each other. Each has a connection to rank 0, over which it says that it is alive and whether
//! it waits. Whoever dies, falls silent or keeps all others waiting ends the job with one message.

use super::activity::{Activity, Beat, Busy, Hung, Limits, hung, lock};
use super::rendezvous::{receive, send};
use super::{Meeting, Place};
use crate::Error;
use serde::{Deserialize, Serialize};
use std::io::{BufReader, ErrorKind};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the cause of a failure may take to be known.
const CAUSE: Duration = Duration::from_secs(5);
/// What a process that ends without a word leaves the one that speaks: who starts them may end all when one ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Beat(Beat),
    /// To rank 0: this process cannot go on.
    Failed(String),
    /// From rank 0: the job ends.
    Abort(String),
    /// A signal of this number ends the sender at once, and with it the job: no failure.
    Interrupted(i32),
    /// A signal of this number asks for the end of the run, with a checkpoint.
    Stop(i32),
    /// The sender has nothing left to do.
    Done,
}

/// How a process ends because of another one, or because of an error of its own.
pub trait End: Send + Sync {
    /// Tells the user why; in one process of a job only.
    fn say(&self, why: &str);
    /// Ends this process: because of a failure, or of a signal of this number that has ended another one. It should not
    /// return.
    fn leave(&self, signal: Option<i32>);
}

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
    /// The number of the signal that asks for the end of the run, whichever process got it; 0 without one.
    stop: AtomicI32,
    /// Whether rank 0 has nothing left to do.
    first_done: Mutex<bool>,
    heard: Condvar,
    limits: Limits,
    own: Mutex<OwnBeats>,
    end: Box<dyn End>,
}

/// When this process has last said that it is alive, and when it went on after it had not for long.
struct OwnBeats {
    last: Instant,
    resumed: Option<Instant>,
}

/// This process's side of the watch.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    /// Starts the watch over a meeting's connections.
    ///
    /// # Errors
    /// If the system has no thread or file left.
    pub fn start(
        place: &Place,
        meeting: &mut Meeting,
        limits: Limits,
        end: Box<dyn End>,
    ) -> std::io::Result<Self> {
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
            stop: AtomicI32::new(0),
            first_done: Mutex::new(false),
            heard: Condvar::new(),
            limits,
            own: Mutex::new(OwnBeats { last: Instant::now(), resumed: None }),
            end,
        });
        for (rank, reader) in control.into_iter().enumerate() {
            if let Some(reader) = reader {
                reader.get_ref().set_read_timeout(Some(limits.silence()))?;
                // A last word must not wait for the answer to the one before: it is lost if this process ends meanwhile.
                reader.get_ref().set_nodelay(true)?;
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
        Busy::new(self.shared.activity.clone())
    }

    /// Says that a step is done: from now on the others wait for this process as long as for a step.
    pub fn step_done(&self) {
        self.shared.activity.step_done();
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
        // Another thread has been told of this before, and ends this process.
        std::thread::sleep(CAUSE);
    }

    /// Ends the job because a signal ends this process at once. That is no failure, and nothing is said.
    pub fn interrupt(&self, signal: i32) {
        let shared = &self.shared;
        if !shared.is_over() && !shared.failed.swap(true, SeqCst) {
            shared.over.store(true, SeqCst);
            shared.send_all(&Message::Interrupted(signal));
        }
    }

    /// Tells all processes that a signal asks for the end of the run: each may be in the middle of something that it need
    /// not finish. Returns at once.
    pub fn ask_to_stop(&self, signal: i32) {
        self.shared.asked_to_stop(signal);
    }

    /// The signal that some process has got, as far as is known here; 0 without one.
    pub fn signal(&self) -> i32 {
        self.shared.stop.load(SeqCst)
    }

    /// This process is done. All end when rank 0 has nothing left to do: who starts them may take one that ends before, by a
    /// signal say, as a reason to end the others.
    pub fn finish(&self) {
        let shared = &self.shared;
        if shared.place.rank == 0 {
            shared.over.store(true, SeqCst);
            return shared.send_all(&Message::Done);
        }
        shared.send(0, &Message::Done);
        let mut done = lock(&shared.first_done);
        while !*done {
            done = shared.heard.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
        shared.over.store(true, SeqCst);
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

    fn send_all(&self, message: &Message) {
        (0..self.streams.len()).for_each(|rank| self.send(rank, message));
    }

    /// Once: ends this process.
    fn fail(&self, message: &str, speaks: bool) {
        if !self.failed.swap(true, SeqCst) {
            self.over.store(true, SeqCst);
            if speaks {
                self.end.say(message);
            }
            if self.place.rank == 0 {
                // After the message: what starts the processes may end this one when it sees another end.
                self.send_all(&Message::Abort(message.to_owned()));
            }
            self.end.leave(None);
        }
    }

    /// Rank 0: ends the job.
    fn abort(&self, message: &str) {
        if !self.is_over() {
            self.fail(message, true);
        }
    }

    /// A signal has ended another rank.
    fn interrupted(&self, signal: i32) {
        if !self.is_over() && !self.failed.swap(true, SeqCst) {
            self.over.store(true, SeqCst);
            if self.place.rank == 0 {
                self.send_all(&Message::Interrupted(signal));
            }
            self.end.leave(Some(signal));
        }
    }

    /// Any rank tells rank 0, which tells all.
    fn asked_to_stop(&self, signal: i32) {
        if self.stop.swap(signal, SeqCst) == 0 {
            self.send_all(&Message::Stop(signal));
        }
    }

    /// Something is wrong with another rank. Rank 0 ends the job; without it each ends by itself, and the first one speaks that
    /// is on another machine, if there is any: rank 0's may be lost as a whole.
    fn lost(&self, what: &str) {
        if self.is_over() {
            return;
        }
        let elsewhere = self.hosts.iter().position(|host| *host != self.hosts[0]);
        let speaks = [0, elsewhere.unwrap_or(1)].contains(&self.place.rank) && !self.was_stopped();
        if !speaks {
            std::thread::sleep(LAST_WORDS);
        }
        self.fail(what, speaks);
    }

    /// Whether this process itself did not run until just now, so that what it misses may be because of that.
    fn was_stopped(&self) -> bool {
        let own = lock(&self.own);
        own.last.elapsed() > self.limits.silence() || own.resumed.is_some_and(|at| at.elapsed() < CAUSE)
    }

    fn note_beat(&self) {
        let mut own = lock(&self.own);
        let now = Instant::now();
        if now.duration_since(own.last) > self.limits.silence() {
            own.resumed = Some(now);
        }
        own.last = now;
    }

    fn keep_beating(&self) {
        while !self.is_over() {
            self.note_beat();
            let beat = self.activity.beat();
            for rank in 0..self.streams.len() {
                self.send(rank, &Message::Beat(beat));
            }
            lock(&self.beats)[self.place.rank] = beat;
            if self.place.rank == 0
                && !self.was_stopped()
                && let Some(hung) = hung(&lock(&self.beats), &self.limits)
            {
                self.abort(&self.words(hung));
            }
            std::thread::sleep(self.limits.beat());
        }
    }

    fn words(&self, hung: Hung) -> String {
        match hung {
            Hung::One { rank, seconds } => {
                format!("{} hangs: the others have waited for it for {seconds} s", self.name(rank))
            }
            Hung::All { last, seconds } => format!(
                "all ranks have waited for each other for {seconds} s, last {}: a device or the network between them \
                 hangs",
                self.name(last)
            ),
        }
    }

    fn listen(&self, rank: usize, mut reader: BufReader<TcpStream>) {
        loop {
            match receive::<Message>(&mut reader) {
                Ok(Some(Message::Beat(beat))) => lock(&self.beats)[rank] = beat,
                Ok(Some(Message::Failed(message))) => self.abort(&message),
                Ok(Some(Message::Abort(message))) => self.fail(&message, false),
                Ok(Some(Message::Interrupted(signal))) => self.interrupted(signal),
                Ok(Some(Message::Stop(signal))) => self.asked_to_stop(signal),
                Ok(Some(Message::Done)) => {
                    *lock(&self.first_done) |= rank == 0;
                    return self.heard.notify_all();
                }
                Ok(None) => return self.lost(&format!("{} died: its connection closed", self.name(rank))),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.was_stopped() {
                        continue;
                    }
                    let seconds = self.limits.silence().as_secs_f64();
                    return self.lost(&format!("{} hangs: no sign of life for {seconds} s", self.name(rank)));
                }
                Err(e) => return self.lost(&format!("{} died: {e}", self.name(rank))),
            }
        }
    }
}
