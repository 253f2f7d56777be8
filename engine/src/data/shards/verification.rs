//! Verifies data while it is in use.
//!
//! To read all of a large data set takes minutes, which a run would stand still for, and MLPerf's clock would count. So a
//! thread of low priority does it beside the training, a shard at a time. Until it is through, damage may be in a
//! batch; a run therefore stops at the first damage that is found, and leaves nothing as finished before all was read.

use super::Dataset;
use crate::error::{Error, Result};
use kernels::limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// A thread that verifies data.
#[derive(Debug)]
pub struct Verification {
    /// None once its answer was heard.
    thread: Option<JoinHandle<Result<()>>>,
    progress: Arc<Progress>,
    shards: usize,
}

#[derive(Debug, Default)]
struct Progress {
    /// Shards that are right.
    done: AtomicUsize,
    stop: AtomicBool,
}

impl Verification {
    /// Starts to verify, in order, every shard that this process is to look at: of the processes of one machine, which see
    /// the same files, each takes a share. `part` is this one and their number.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(data: Vec<Arc<Dataset>>, part: (usize, usize)) -> Result<Self> {
        let shards = |data: Arc<Dataset>| {
            let count = data.split().shards.len();
            (0..count).map(move |shard| (data.clone(), shard))
        };
        let work: Vec<_> = data.into_iter().flat_map(shards).skip(part.0).step_by(part.1.max(1)).collect();
        let (shards, progress) = (work.len(), Arc::<Progress>::default());
        if work.is_empty() {
            return Ok(Self { thread: None, progress, shards });
        }
        let shared = progress.clone();
        let verify = move || {
            give_way();
            for (data, shard) in work {
                if shared.stop.load(Ordering::Relaxed) {
                    break;
                }
                data.verify_shard(shard)?;
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("verification".into()).spawn(verify);
        let thread =
            thread.map_err(|e| Error::Training(limits::refused("the thread that verifies data", &e)))?;
        Ok(Self { thread: Some(thread), progress, shards })
    }

    /// Whether all is verified; does not wait.
    ///
    /// # Errors
    /// The first shard that is damaged, told once.
    pub fn is_done(&mut self) -> Result<bool> {
        let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) else {
            return Ok(self.thread.is_none());
        };
        match thread.join() {
            Ok(result) => result.map(|()| true),
            Err(_) => {
                Err(Error::Training("the thread that verifies data ended; see the message above".into()))
            }
        }
    }

    /// Shards found right so far, and all that this process looks at.
    pub fn progress(&self) -> (usize, usize) {
        (self.progress.done.load(Ordering::Relaxed), self.shards)
    }
}

impl Drop for Verification {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Leaves the cores to the training where both want them.
fn give_way() {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes three numbers. On Linux it is about the calling thread; that it fails changes nothing else.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}
