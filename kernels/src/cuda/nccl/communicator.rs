//! A communicator: how it begins, what it does in groups, how its errors show, and its end.
//!
//! It does not block: a call returns while NCCL still connects ranks, and is asked until it is done or a deadline is over. A
//! thread looks for errors that show later, when the GPU works: it then aborts the communicator, so that the GPU, and whoever
//! waits for it, goes on, and every later call says what has happened.

use super::library::{Calls, Code, Config, Handle, IN_PROGRESS, REMOTE_ERROR, SUCCESS, UniqueId};
use crate::cuda::device::{Device, lock};
use crate::{Error, Result};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two questions whether a call is done: the first ones follow each other closely.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(5)];
/// Between two looks for errors.
const LOOK: Duration = Duration::from_millis(200);
/// What the others have to end their part once this rank is done.
const FAREWELL: Duration = Duration::from_secs(10);

struct State {
    /// Null once it is gone.
    comm: Handle,
    /// Why it is gone.
    failure: Option<String>,
    /// The owner ends it.
    over: bool,
}

// SAFETY: the handle is used by one thread at a time, behind a mutex; NCCL does not care by which
unsafe impl Send for State {}

struct Shared {
    calls: &'static Calls,
    state: Mutex<State>,
    ends: Condvar,
}

/// A communicator of this rank.
pub(super) struct Communicator {
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
    /// How long NCCL may take to connect ranks, at the start or when a kind of operation is first used.
    patience: Duration,
}

/// Operations that begin together.
pub(super) struct Group<'a> {
    pub calls: &'a Calls,
    pub comm: Handle,
    failed: Code,
}

impl Group<'_> {
    /// Notes the answer of a call.
    pub fn note(&mut self, code: Code) {
        if self.failed == SUCCESS && code != IN_PROGRESS {
            self.failed = code;
        }
    }
}

impl Communicator {
    /// Joins `world` ranks, each of which has the same `id`, with the GPU that is the calling thread's.
    ///
    /// # Errors
    /// Ranks that do not come within `patience`, and whatever NCCL says.
    pub fn join(
        calls: &'static Calls,
        device: &Device,
        id: UniqueId,
        rank: usize,
        world: usize,
        patience: Duration,
    ) -> Result<Self> {
        device.bind()?;
        let mut config = Config::not_blocking();
        let mut comm: Handle = std::ptr::null_mut();
        let what = "cannot join the other ranks";
        // SAFETY: `comm` and `config` live through the call
        let code = unsafe { (calls.init_rank)(&mut comm, world as i32, id, rank as i32, &mut config) };
        if code != SUCCESS && code != IN_PROGRESS {
            return Err(calls.error(what, code, comm));
        }
        let state = State { comm, failure: None, over: false };
        let shared = Arc::new(Shared { calls, state: Mutex::new(state), ends: Condvar::new() });
        {
            let mut state = lock(&shared.state);
            shared.settle(&mut state, what, patience)?;
        }
        let watching = shared.clone();
        let watcher =
            std::thread::Builder::new()
                .name("nccl watch".into())
                .spawn(move || watching.watch())
                .map_err(|e| Error::Ranks(crate::limits::refused("the thread that watches NCCL", &e)))?;
        Ok(Self { shared, watcher: Some(watcher), patience })
    }

    /// Fails if the communicator has failed.
    pub fn check(&self) -> Result<()> {
        lock(&self.shared.state).check()
    }

    /// Queues what `f` asks for as one group.
    ///
    /// # Errors
    /// Of a communicator that failed earlier, or whatever NCCL says; `what` says what was being done.
    pub fn group(&self, what: &str, f: impl FnOnce(&mut Group<'_>)) -> Result<()> {
        let mut state = lock(&self.shared.state);
        state.check()?;
        let calls = self.shared.calls;
        // SAFETY: NCCL's calls with a live communicator
        let started = unsafe { (calls.group_start)() };
        let mut group = Group { calls, comm: state.comm, failed: started };
        f(&mut group);
        let asked = group.failed;
        // A group that began ends, whatever was asked for in it.
        // SAFETY: as above
        let ended = unsafe { (calls.group_end)() };
        for code in [asked, ended] {
            if code != SUCCESS && code != IN_PROGRESS {
                return Err(self.shared.fail(&mut state, what, code));
            }
        }
        // What is queued after it on the stream, an event even, may not overtake what NCCL still prepares.
        self.shared.settle(&mut state, what, self.patience)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(Error::Ranks(failure.clone())),
            None => Ok(()),
        }
    }
}

impl Shared {
    /// What NCCL says of the communicator now.
    fn ask(&self, comm: Handle) -> Code {
        let mut code = SUCCESS;
        // SAFETY: the communicator is alive, as the caller holds its state
        match unsafe { (self.calls.get_async_error)(comm, &mut code) } {
            SUCCESS => code,
            refused => refused,
        }
    }

    /// Waits until NCCL has done what it was asked for.
    fn settle(&self, state: &mut State, what: &str, patience: Duration) -> Result<()> {
        let begun = Instant::now();
        for turn in 0.. {
            match self.ask(state.comm) {
                SUCCESS => return Ok(()),
                IN_PROGRESS if begun.elapsed() < patience => {
                    std::thread::sleep(PAUSES[usize::from(turn > 500)])
                }
                IN_PROGRESS => {
                    let seconds = patience.as_secs_f64();
                    let why = format!(
                        "NCCL: {what}: other ranks have not answered within {seconds} s: were all started, and can they \
                         reach each other? (NCCL_DEBUG=INFO tells more; NCCL_SOCKET_IFNAME chooses the network)"
                    );
                    self.give_up(state, &why);
                    return state.check();
                }
                code => return Err(self.fail(state, what, code)),
            }
        }
        Ok(())
    }

    /// Notes what NCCL says, and aborts.
    fn fail(&self, state: &mut State, what: &str, code: Code) -> Error {
        let mut error = self.calls.error(what, code, state.comm).to_string();
        if code == REMOTE_ERROR {
            error += "; another rank has failed or died: its own message says more";
        }
        self.give_up(state, &error);
        Error::Ranks(error)
    }

    /// Ends the communicator with whatever is under way on the GPU.
    fn give_up(&self, state: &mut State, why: &str) {
        state.failure.get_or_insert_with(|| why.to_owned());
        let comm = std::mem::replace(&mut state.comm, std::ptr::null_mut());
        if !comm.is_null() {
            // It is lost already: an error of this call adds nothing.
            // SAFETY: alive until here, and nobody has it any more
            unsafe { (self.calls.abort)(comm) };
        }
    }

    /// Looks for errors until the communicator is over.
    fn watch(&self) {
        let mut state = lock(&self.state);
        while !state.over && state.failure.is_none() {
            let code = self.ask(state.comm);
            if code != SUCCESS && code != IN_PROGRESS {
                self.fail(&mut state, "the ranks' connection failed", code);
                return;
            }
            state = match self.ends.wait_timeout(state, LOOK) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Ends the communicator when all that it was asked for is done, on all ranks.
    fn finish(&self, state: &mut State) -> Result<()> {
        state.check()?;
        let what = "cannot end the communicator";
        // SAFETY: the communicator is alive
        let code = unsafe { (self.calls.finalize)(state.comm) };
        if code != SUCCESS && code != IN_PROGRESS {
            return Err(self.fail(state, what, code));
        }
        self.settle(state, what, FAREWELL)?;
        let comm = std::mem::replace(&mut state.comm, std::ptr::null_mut());
        // SAFETY: as above; nobody has it any more
        self.calls.check(what, unsafe { (self.calls.destroy)(comm) })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.over = true;
        // Ranks that do not end with this one are aborted with their part; whoever cares has been told by another way.
        let ended = match std::thread::panicking() {
            true => Err(Error::Ranks(String::new())),
            false => self.shared.finish(&mut state),
        };
        if ended.is_err() {
            self.shared.give_up(&mut state, "the communicator is over");
        }
        drop(state);
        self.shared.ends.notify_all();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}
