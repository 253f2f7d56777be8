//! What a process does, for the others to see, and who of them keeps the others waiting.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// When a process is taken for hung.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Before the first step is done: so long the others wait for one.
    pub start: Duration,
    /// From then on, if it is also ten times as long as any stretch of work so far.
    pub hang: Duration,
}

impl Limits {
    /// A process without a sign of life for so long is taken for hung.
    pub fn silence(&self) -> Duration {
        self.hang / 2
    }

    /// Between two signs of life.
    pub fn beat(&self) -> Duration {
        BEAT.min(self.silence() / 10)
    }
}

/// What a process does, for the others to see.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    /// Waits that lie in each other.
    depth: AtomicU32,
    /// Milliseconds since `begun` plus 1 when the present wait began; 0 if it does not wait.
    waiting: AtomicU64,
    /// When the present work began, likewise.
    working: AtomicU64,
    /// Things that only this process does and that may take long.
    busy: AtomicU32,
    /// The longest stretch of work between two waits, in milliseconds.
    longest: AtomicU64,
    /// Whether a step is done.
    steps: AtomicBool,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            depth: AtomicU32::new(0),
            waiting: AtomicU64::new(0),
            working: AtomicU64::new(1),
            busy: AtomicU32::new(0),
            longest: AtomicU64::new(0),
            steps: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64 + 1
    }

    /// This process waits for others from now on.
    fn wait_begins(&self) {
        if self.depth.fetch_add(1, SeqCst) > 0 {
            return;
        }
        let now = self.now();
        let work = now.saturating_sub(self.working.swap(0, SeqCst));
        self.longest.fetch_max(work, SeqCst);
        self.waiting.store(now, SeqCst);
    }

    /// It works again.
    fn wait_ends(&self) {
        if self.depth.fetch_sub(1, SeqCst) > 1 {
            return;
        }
        self.waiting.store(0, SeqCst);
        self.working.store(self.now(), SeqCst);
    }

    /// A step is done. How long what came before the first one took says nothing of those to come.
    pub fn step_done(&self) {
        if !self.steps.swap(true, SeqCst) {
            self.longest.store(0, SeqCst);
        }
    }

    pub fn beat(&self) -> Beat {
        let since = |at: u64| if at == 0 { 0 } else { self.now().saturating_sub(at) + 1 };
        Beat {
            waiting: since(self.waiting.load(SeqCst)),
            working: since(self.working.load(SeqCst)),
            busy: self.busy.load(SeqCst) > 0,
            longest: self.longest.load(SeqCst),
            steps: self.steps.load(SeqCst),
        }
    }
}

/// While it exists, this process waits for the others.
pub struct Waiting(Arc<Activity>);

impl Waiting {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        activity.wait_begins();
        Self(activity)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.wait_ends();
    }
}

/// While it exists, this process may let the others wait.
pub struct Busy(Arc<Activity>);

impl Busy {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        activity.busy.fetch_add(1, SeqCst);
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.working.store(self.0.now(), SeqCst);
        self.0.busy.fetch_sub(1, SeqCst);
    }
}

/// A sign of life; times in milliseconds, 0 where a process does not do that.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Beat {
    pub waiting: u64,
    pub working: u64,
    pub busy: bool,
    pub longest: u64,
    pub steps: bool,
}

/// What is wrong, and for how many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hung {
    /// This rank works while others wait for it.
    One { rank: usize, seconds: u64 },
    /// All wait: what lies between them does not move. This rank was the last to begin.
    All { last: usize, seconds: u64 },
}

/// Who has kept the others waiting too long, by the newest sign of life of each.
pub fn hung(beats: &[Beat], limits: &Limits) -> Option<Hung> {
    let longest = beats.iter().map(|b| b.longest).max()?;
    let limit = match beats.iter().all(|b| b.steps) {
        true => limits.hang,
        false => limits.hang.max(limits.start),
    };
    let patience = (limit.as_millis() as u64).max(10 * longest);
    if !beats.iter().any(|b| b.waiting > patience) {
        return None;
    }
    let slow = |b: &Beat| !b.busy && b.working > patience;
    if let Some(rank) = beats.iter().position(slow) {
        return Some(Hung::One { rank, seconds: beats[rank].working / 1000 });
    }
    let last = (0..beats.len()).min_by_key(|&rank| beats[rank].waiting)?;
    let all_wait = beats.iter().all(|b| b.waiting > patience && !b.busy);
    all_wait.then(|| Hung::All { last, seconds: beats[last].waiting / 1000 })
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { start: Duration::from_secs(120), hang: Duration::from_secs(20) };

    fn waits(seconds: u64) -> Beat {
        Beat { waiting: 1000 * seconds, longest: 50, steps: true, ..Beat::default() }
    }

    fn works(seconds: u64) -> Beat {
        Beat { working: 1000 * seconds, longest: 50, steps: true, ..Beat::default() }
    }

    #[test]
    fn who_works_while_others_wait_too_long_hangs() {
        let find = |beats: &[Beat]| hung(beats, &LIMITS);
        assert_eq!(find(&[waits(19), works(19), waits(19)]), None);
        assert_eq!(find(&[waits(21), works(22), waits(21)]), Some(Hung::One { rank: 1, seconds: 22 }));
        // It works for long, but nobody has waited long yet.
        assert_eq!(find(&[waits(5), works(22)]), None);
        // It was waited for, and has just begun something new.
        assert_eq!(find(&[waits(21), works(1)]), None);
        // It may: a checkpoint.
        assert_eq!(find(&[Beat { busy: true, ..works(500) }, waits(500)]), None);
        // Steps of 5 s, and half a minute is not long.
        let slow = |beat| Beat { longest: 5000, ..beat };
        assert_eq!(find(&[waits(30), slow(works(30))]), None);
        assert_eq!(find(&[waits(51), slow(works(51))]), Some(Hung::One { rank: 1, seconds: 51 }));
    }

    #[test]
    fn all_who_wait_for_each_other_hang() {
        let find = |beats: &[Beat]| hung(beats, &LIMITS);
        assert_eq!(find(&[waits(25), waits(19)]), None);
        assert_eq!(find(&[waits(25), waits(21), waits(24)]), Some(Hung::All { last: 1, seconds: 21 }));
        assert_eq!(find(&[waits(25), works(1), waits(24)]), None);
        assert_eq!(find(&[waits(25), Beat { busy: true, ..waits(24) }]), None);
    }

    #[test]
    fn before_the_first_step_there_is_more_time() {
        let starts = |beat| Beat { steps: false, ..beat };
        assert_eq!(hung(&[waits(100), starts(works(100))], &LIMITS), None);
        let found = hung(&[starts(waits(121)), starts(works(121))], &LIMITS);
        assert_eq!(found, Some(Hung::One { rank: 1, seconds: 121 }));
        let activity = Arc::new(Activity::new());
        std::thread::sleep(Duration::from_millis(30));
        let outer = Waiting::new(activity.clone());
        drop(Waiting::new(activity.clone()));
        assert!(activity.beat().waiting > 0 && activity.beat().working == 0);
        drop(outer);
        assert!(activity.beat().waiting == 0 && activity.beat().working > 0);
        assert!(activity.beat().longest >= 30);
        activity.step_done();
        assert_eq!(activity.beat().longest, 0);
        assert!(activity.beat().steps);
    }
}
