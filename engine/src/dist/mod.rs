//! Several processes that train one model: how they find each other, what they reduce and when, how one failure ends all.

mod activity;
mod buckets;
mod control;
mod program;
mod rendezvous;
mod watched;

pub use activity::{Busy, Limits, Waiting};
pub use buckets::Buckets;
pub use control::{Control, End};
pub use program::program;
pub use rendezvous::{Address, Meeting, meet, random};

use crate::{Error, Result};
use kernels::Backend;
use kernels::collective::{Collective, Solo};
use std::sync::atomic::{AtomicI32, Ordering};

/// Where this process stands in its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// This process, of `0..world`.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// This process among those of its machine.
    pub local_rank: usize,
    /// Number of processes of its machine.
    pub local_world: usize,
    /// Name of its machine.
    pub host: String,
}

impl Place {
    /// Words for messages: `rank 3 on node7`.
    pub fn name(&self) -> String {
        format!("rank {} on {}", self.rank, self.host)
    }
}

/// A signal that this process has got, or that another one has told of.
pub(crate) fn signal(own: &AtomicI32, control: Option<&Control>) -> i32 {
    match own.load(Ordering::Relaxed) {
        0 => control.map_or(0, Control::signal),
        signal => signal,
    }
}

/// The processes of a job, seen from one of them.
pub struct Group<B: Backend> {
    /// What they do together.
    pub ranks: Box<dyn Collective<B>>,
    /// How they watch each other; none for a single process.
    pub control: Option<Control>,
}

impl<B: Backend> Group<B> {
    /// A single process.
    pub fn solo() -> Self {
        Self { ranks: Box::new(Solo), control: None }
    }

    /// Several, whose collective operations are watched.
    pub fn new(ranks: Box<dyn Collective<B>>, control: Control) -> Self {
        Self { ranks: Box::new(watched::Watched::new(ranks, control.activity())), control: Some(control) }
    }

    /// Whether this process writes the run's files and speaks to the user.
    pub fn is_first(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.ranks.world()
    }

    /// Waits for the device, on which work of this process may wait for the others.
    pub fn wait<R>(&self, f: impl FnOnce() -> R) -> R {
        let _waiting = self.waits();
        f()
    }

    /// Until what is returned goes, this process may wait for the others.
    pub fn waits(&self) -> Option<Waiting> {
        self.control.as_ref().map(|control| Waiting::new(control.activity()))
    }

    /// The number of the signal that asks this process, whose own is `own`, or another one to end the run; 0 without one.
    /// What other processes have got is known a moment later: they decide together in [`Self::agree_on_signal`].
    pub fn signal(&self, own: &AtomicI32) -> i32 {
        signal(own, self.control.as_ref())
    }

    /// Sums `numbers` over processes; a signal that any of them has got is the answer of all.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn agree_on_signal(&mut self, own: &AtomicI32, numbers: &mut [f64]) -> Result<i32> {
        let signal = self.signal(own);
        if self.world() == 1 {
            return Ok(signal);
        }
        // A mean over those that have got one: all have got the same.
        let mut all = vec![f64::from(signal), f64::from(u8::from(signal != 0))];
        all.extend_from_slice(numbers);
        self.ranks.sum_host(&mut all)?;
        numbers.copy_from_slice(&all[2..]);
        Ok((all[0] / all[1].max(1.0)) as i32)
    }

    /// Bytes of rank 0, of any number, on all ranks.
    pub fn broadcast(&mut self, bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let mut bytes = bytes.unwrap_or_default();
        if self.world() == 1 {
            return Ok(bytes);
        }
        let mut parts = vec![8..8; self.world()];
        parts[0] = 0..8;
        let mut length = (bytes.len() as u64).to_ne_bytes();
        self.ranks.gather_bytes(&mut length, &parts)?;
        let length = u64::from_ne_bytes(length) as usize;
        bytes.resize(length, 0);
        parts.fill(length..length);
        parts[0] = 0..length;
        self.ranks.gather_bytes(&mut bytes, &parts)?;
        Ok(bytes)
    }

    /// The first rank does something that the others wait for, however long it takes, and all have its result.
    pub fn first<T: serde::Serialize + serde::de::DeserializeOwned>(
        &mut self,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.world() == 1 {
            return f();
        }
        let own = if self.is_first() {
            let _busy = self.control.as_ref().map(Control::busy);
            let value = f()?;
            Some(
                serde_json::to_vec(&value)
                    .map_err(|e| Error::Training(format!("cannot send to ranks: {e}")))?,
            )
        } else {
            None
        };
        let bytes = self.broadcast(own)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Training(format!("rank 0 sent nonsense: {e}")))
    }

    /// Makes sure that all processes have the same of everything in `what`: names and values.
    ///
    /// # Errors
    /// The first rank that differs from rank 0, and in what.
    pub fn agree(&mut self, what: &[(&str, String)]) -> Result<()> {
        const WIDTH: usize = 256;
        let (rank, world) = (self.ranks.rank(), self.world());
        for (name, value) in what {
            let mut table = vec![0u8; WIDTH * world];
            let bytes = &value.as_bytes()[..value.len().min(WIDTH)];
            table[rank * WIDTH..][..bytes.len()].copy_from_slice(bytes);
            let parts: Vec<_> = (0..world).map(|r| r * WIDTH..(r + 1) * WIDTH).collect();
            self.ranks.gather_bytes(&mut table, &parts)?;
            let of = |r: usize| {
                let text = String::from_utf8_lossy(&table[parts[r].clone()]);
                text.trim_end_matches('\0').to_owned()
            };
            if let Some(other) = (1..world).find(|&r| of(r) != of(0)) {
                let host =
                    self.control.as_ref().map_or_else(String::new, |c| format!(" on {}", c.host(other)));
                return Err(Error::Training(format!(
                    "rank {other}{host} has another {name} than rank 0: {} and {}; start all ranks with the same",
                    of(other),
                    of(0)
                )));
            }
        }
        Ok(())
    }
}
