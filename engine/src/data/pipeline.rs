//! One reader, many workers, results in the reader's order, bounded memory.

use crate::error::{Error, Result};
use kernels::limits;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{Builder, Scope};

/// Why a producer ended early.
pub(crate) enum Stop {
    /// It failed.
    Failed(Error),
    /// Nobody wants more.
    Enough,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What a producer and its helpers return.
pub(crate) type Produced = std::result::Result<(), Stop>;

/// How much work is under way, and whether to give up.
struct Flow {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
    budget: usize,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, (usize, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `cost` fits; whatever it is, it fits when nothing else is under way.
    fn acquire(&self, cost: usize) -> Produced {
        let mut state = self.lock();
        while !state.1 && state.0 > 0 && state.0 + cost > self.budget {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.1 {
            return Err(Stop::Enough);
        }
        state.0 += cost;
        Ok(())
    }

    fn release(&self, cost: usize) {
        self.lock().0 -= cost;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.lock().1 = true;
        self.changed.notify_all();
    }
}

/// Stops the flow when its thread is done, however it ends; without it a panic would leave the others waiting.
struct StopOnDrop<'a>(&'a Flow, bool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        if self.1 || std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// Runs `produce` on one thread, the functions that `worker` makes on `threads` threads, and `consume` here, on the
/// results in the order of production. `produce` gets a function that takes a job and its cost; the cost of all jobs
/// between production and consumption stays within `budget`.
///
/// # Errors
/// The first one in the order of production, whatever the number of threads; a thread that the system refuses.
pub(crate) fn ordered<T: Send, R: Send, W: FnMut(T) -> Result<R>>(
    threads: usize,
    budget: usize,
    produce: impl FnOnce(&mut dyn FnMut(T, usize) -> Produced) -> Produced + Send,
    worker: impl Fn() -> W + Sync,
    mut consume: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let flow = Flow { state: Mutex::new((0, false)), changed: Condvar::new(), budget };
    let (send_job, receive_job) = mpsc::channel::<(u64, usize, T)>();
    let receive_job = Mutex::new(receive_job);
    let (send_result, receive_result) = mpsc::channel::<(u64, usize, Result<R>)>();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&flow, true);
        let (flow, receive_job, worker) = (&flow, &receive_job, &worker);
        let failed = send_result.clone();
        start(scope, "the reader's thread", move || {
            let _stop = StopOnDrop(flow, false);
            let mut number = 0;
            let outcome = produce(&mut |job, cost| {
                flow.acquire(cost)?;
                number += 1;
                send_job.send((number - 1, cost, job)).map_err(|_| Stop::Enough)
            });
            if let Err(Stop::Failed(error)) = outcome {
                // Where nobody receives any more, an earlier error is on its way.
                let _ = failed.send((number, 0, Err(error)));
            }
        })?;
        for worker_number in 1..=threads.max(1) {
            let send_result = send_result.clone();
            let name = format!("worker {worker_number} of {threads}");
            start(scope, &name, move || {
                let _stop = StopOnDrop(flow, false);
                let mut work = worker();
                loop {
                    let job = receive_job.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, cost, job)) = job else { return };
                    if send_result.send((number, cost, work(job))).is_err() {
                        return;
                    }
                }
            })?;
        }
        drop(send_result);
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (number, cost, result) in receive_result {
            early.insert(number, (cost, result));
            while let Some((cost, result)) = early.remove(&next) {
                consume(result?)?;
                flow.release(cost);
                next += 1;
            }
        }
        Ok(())
    })
}

/// Where the system refuses a thread, those that run already end with the flow.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    what: &str,
    f: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    let started = Builder::new().spawn_scoped(scope, f);
    started.map(drop).map_err(|e| Error::Training(limits::refused(what, &e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn results_come_in_order_and_the_budget_holds() {
        for threads in [1, 2, 5] {
            let (under_way, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut got = Vec::new();
            ordered(
                threads,
                10,
                |emit| {
                    (0..200u64).try_for_each(|i| {
                        let cost = 1 + i as usize % 13;
                        emit((i, cost), cost)?;
                        Ok(())
                    })
                },
                || {
                    |(i, cost): (u64, usize)| {
                        most.fetch_max(under_way.fetch_add(cost, SeqCst) + cost, SeqCst);
                        std::thread::sleep(std::time::Duration::from_micros(i * 37 % 101));
                        under_way.fetch_sub(cost, SeqCst);
                        Ok(i)
                    }
                },
                |i| {
                    got.push(i);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(got, (0..200).collect::<Vec<_>>());
            assert!(most.load(SeqCst) <= 13);
        }
    }

    #[test]
    fn the_first_error_in_order_wins() {
        for threads in [1, 4] {
            let outcome = ordered(
                threads,
                100,
                |emit| {
                    (0..50).try_for_each(|i| emit(i, 1))?;
                    Err(Stop::Failed(Error::Training("end".into())))
                },
                || |i: u64| if i == 20 || i == 40 { Err(Error::Training(format!("job {i}"))) } else { Ok(i) },
                |i| if i == 30 { Err(Error::Training("never".into())) } else { Ok(()) },
            );
            assert_eq!(outcome.unwrap_err().to_string(), "job 20");
        }
        let outcome = ordered(
            2,
            1,
            |emit| {
                emit(1, 1)?;
                Err(Stop::Failed(Error::Training("cannot read".into())))
            },
            || Ok,
            |_: i32| Ok(()),
        );
        assert_eq!(outcome.unwrap_err().to_string(), "cannot read");
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_in_a_worker_does_not_hang() {
        let _ = ordered(
            2,
            2,
            |emit| (0..50).try_for_each(|i| emit(i, 1)),
            || |i: i32| if i == 3 { panic!("worker") } else { Ok(i) },
            |_| Ok(()),
        );
    }
}
