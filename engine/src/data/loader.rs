//! Batches for training and evaluation, prepared on a thread of their own.
//!
//! Each epoch goes through all sequences once, in the order of a permutation keyed by (seed, epoch). A batch that
//! the end of an epoch leaves incomplete is completed from the next one. What a batch holds depends on the seed and
//! on [`LoaderState`] only: ranks and micro-batches divide it, they do not change it. Ranks get its sequences by length, so
//! that none waits for another.

mod dealing;

use crate::data::masking::Masker;
use crate::data::permutation::Permutation;
use crate::data::shards::Dataset;
use crate::data::{Batch, LoaderState, Sequence};
use crate::error::{Error, Result};
use dealing::deal;
use kernels::limits;
use kernels::philox::step_key;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Batches ready ahead of the trainer.
const PREFETCH: usize = 3;

/// How often a wait for a batch looks whether it is to go on.
const LOOK: Duration = Duration::from_millis(50);

/// What a batch is and which part of it this process trains on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Sequences of a global batch; 0 if `batch_tokens` is given instead.
    pub batch_sequences: usize,
    /// Token budget of a global batch; 0 for `batch_sequences`.
    pub batch_tokens: usize,
    /// Micro-batches that this rank's part is divided into.
    pub accumulation: usize,
    /// Of order and masks.
    pub seed: u64,
    /// This process, of `0..world`.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// The model's number of positions.
    pub max_positions: usize,
}

/// One step's data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GlobalBatch {
    /// This rank's micro-batches: at most `accumulation`, none of them empty. Empty if there are fewer sequences than
    /// ranks.
    pub micro: Vec<Batch>,
    /// Masked tokens of all ranks and micro-batches.
    pub mlm_total: usize,
    /// Next-sentence labels of all ranks and micro-batches.
    pub nsp_total: usize,
    /// Sequences of all ranks and micro-batches.
    pub sequences: usize,
    /// Tokens of all ranks and micro-batches.
    pub tokens: usize,
    /// Where to go on after this batch.
    pub state_after: LoaderState,
}

/// An endless supply of batches.
pub struct Loader {
    batches: Option<Receiver<Result<GlobalBatch>>>,
    /// Nobody wants the batch that is being prepared.
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts preparing batches from `state` on.
    ///
    /// # Errors
    /// An empty data set, a sequence longer than `max_positions` or than the token budget, a configuration that makes
    /// no batch, a state that is not of this data.
    pub fn new(dataset: Arc<Dataset>, config: LoaderConfig, state: LoaderState) -> Result<Self> {
        check(&dataset, &config, state)?;
        let (send, batches) = sync_channel(PREFETCH);
        let ended = Arc::<AtomicBool>::default();
        let mut maker = Maker { masker: Masker::new(&dataset), dataset, config, state, ended: ended.clone() };
        let run = move || {
            loop {
                let batch = maker.next();
                let last = batch.is_err();
                if send.send(batch).is_err() || last {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("loader".into())
            .spawn(run)
            .map_err(|e| Error::Training(limits::refused("the loader's thread", &e)))?;
        Ok(Self { batches: Some(batches), ended, thread: Some(thread) })
    }

    /// The next batch.
    ///
    /// # Errors
    /// A sequence of it is damaged.
    #[allow(clippy::should_implement_trait, reason = "never ends, and fails only once")]
    pub fn next(&mut self) -> Result<GlobalBatch> {
        self.next_while(&|| true)
    }

    /// As [`Self::next`], while `goes_on` says so: a large batch, or one from a slow disk, takes long.
    ///
    /// # Errors
    /// Those of [`Self::next`], and [`Error::Stopped`].
    pub fn next_while(&mut self, goes_on: &dyn Fn() -> bool) -> Result<GlobalBatch> {
        loop {
            let batch = self.batches.as_ref().map(|batches| batches.recv_timeout(LOOK));
            match batch {
                Some(Ok(batch)) => return batch,
                Some(Err(RecvTimeoutError::Timeout)) if goes_on() => {}
                Some(Err(RecvTimeoutError::Timeout)) => return Err(Error::Stopped),
                _ => return Err(Error::Training("the loader's thread ended; see the message above".into())),
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.batches.take()); // the thread's next send fails, and it ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn check(dataset: &Dataset, config: &LoaderConfig, state: LoaderState) -> Result<()> {
    let LoaderConfig { batch_sequences, batch_tokens, accumulation, rank, world, .. } = *config;
    let dir = dataset.dir();
    if dataset.is_empty() {
        return Err(Error::file(dir, "holds no sequence to train on; prepare more text"));
    }
    check_positions(dataset, config.max_positions)?;
    if (batch_sequences == 0) == (batch_tokens == 0) {
        let what = format!(
            "{batch_sequences} with batch_tokens {batch_tokens}; set one of them to 0, the other not"
        );
        return Err(Error::config("train.batch_sequences", what));
    }
    if batch_tokens > 0 && batch_tokens < dataset.longest() {
        let what = format!(
            "{batch_tokens} is less than the longest sequence's {} tokens; raise it",
            dataset.longest()
        );
        return Err(Error::config("train.batch_tokens", what));
    }
    if accumulation == 0 {
        return Err(Error::config("train.accumulation", "0, expected at least 1"));
    }
    if rank >= world {
        return Err(Error::config("rank", format!("{rank}, expected less than the {world} processes")));
    }
    let (cursor, len) = (state.cursor, dataset.len());
    if cursor >= len as u64 {
        let what = format!(
            "the checkpoint's loader stands at sequence {cursor} of {len}: it is of other data; give the data that the run began with"
        );
        return Err(Error::file(dir, what));
    }
    Ok(())
}

fn check_positions(dataset: &Dataset, max_positions: usize) -> Result<()> {
    let longest = dataset.longest();
    if longest > max_positions {
        let what = format!(
            "a sequence has {longest} tokens, the model {max_positions} positions; raise model.max_positions or prepare \
             with --max-seq-length {max_positions}"
        );
        return Err(Error::file(dataset.dir(), what));
    }
    Ok(())
}

/// A sequence of a batch: epoch and number.
type Pick = (u64, usize);

struct Maker {
    dataset: Arc<Dataset>,
    masker: Masker,
    config: LoaderConfig,
    state: LoaderState,
    ended: Arc<AtomicBool>,
}

impl Maker {
    fn next(&mut self) -> Result<GlobalBatch> {
        let mut batch = GlobalBatch {
            micro: Vec::new(),
            mlm_total: 0,
            nsp_total: 0,
            sequences: 0,
            tokens: 0,
            state_after: self.state,
        };
        let (mut picks, mut lengths): (Vec<Pick>, Vec<u32>) = Default::default();
        let len = self.dataset.len() as u64;
        let mut order = Permutation::new(len, step_key(self.config.seed, self.state.epoch));
        loop {
            self.go_on()?;
            let pick = (self.state.epoch, order.get(self.state.cursor) as usize);
            let sequence = self.dataset.get(pick.1)?;
            let tokens = sequence.tokens.len();
            let LoaderConfig { batch_sequences, batch_tokens, .. } = self.config;
            let full = if batch_tokens > 0 {
                batch.tokens + tokens > batch_tokens
            } else {
                batch.sequences == batch_sequences
            };
            if full {
                break;
            }
            picks.push(pick);
            lengths.push(tokens as u32);
            batch.sequences += 1;
            batch.tokens += tokens;
            batch.mlm_total += self.masker.count(&sequence, self.config.seed, pick.0, pick.1 as u64);
            batch.nsp_total += usize::from(sequence.nsp.is_some());
            self.state.cursor += 1;
            if self.state.cursor == len {
                self.state = LoaderState { epoch: self.state.epoch + 1, cursor: 0 };
                order = Permutation::new(len, step_key(self.config.seed, self.state.epoch));
            }
        }
        batch.state_after = self.state;
        let ranks = deal(&lengths, self.config.world);
        let slots: Vec<u32> =
            (0..picks.len() as u32).filter(|&slot| ranks[slot as usize] == self.config.rank).collect();
        batch.micro = self.micro_batches(&picks, &slots)?;
        self.dataset.check_reads()?;
        Ok(batch)
    }

    fn go_on(&self) -> Result<()> {
        if self.ended.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Successive parts of this rank's sequences, those at `slots` of the global batch: of equal counts, or of about equal
    /// tokens for a token budget.
    fn micro_batches(&self, picks: &[Pick], slots: &[u32]) -> Result<Vec<Batch>> {
        let masked = |(epoch, i): Pick| {
            self.go_on()?;
            Ok(self.masker.train(&self.dataset.get(i)?, self.config.seed, epoch, i as u64))
        };
        let sequences =
            slots.iter().map(|&slot| masked(picks[slot as usize])).collect::<Result<Vec<Sequence>>>()?;
        let weight = |s: &Sequence| if self.config.batch_tokens > 0 { s.tokens.len() } else { 1 };
        let total: usize = sequences.iter().map(weight).sum();
        let parts = self.config.accumulation;
        let mut before = 0;
        let part_of: Vec<usize> = sequences
            .iter()
            .map(|s| {
                // The part in which the sequence's middle lies.
                let part = (2 * before + weight(s)) * parts / (2 * total);
                before += weight(s);
                part
            })
            .collect();
        let mut start = 0;
        let batches = part_of.chunk_by(|a, b| a == b).map(|part| {
            let range = start..start + part.len();
            start += part.len();
            let slots = slots[range.clone()].iter().copied();
            Batch::pack_slots(&sequences[range], slots, self.config.max_positions as u32)
        });
        Ok(batches.collect())
    }
}

/// Batches of `batch_sequences` for evaluation: `sequences` of the data set, evenly spread, 0 for all, always with the
/// same masks, whatever the run's seed. Of the batches, those of one process of several: `part` is its rank and their
/// number.
///
/// # Errors
/// The first item is an error if a sequence is longer than `max_positions`; an item is one if a sequence of it is damaged.
pub fn eval_batches(
    dataset: &Dataset,
    sequences: usize,
    batch_sequences: usize,
    max_positions: usize,
    part: (usize, usize),
) -> impl Iterator<Item = Result<Batch>> + '_ {
    let count = if sequences == 0 { dataset.len() } else { sequences.min(dataset.len()) };
    let masker = Masker::new(dataset);
    let error = check_positions(dataset, max_positions).err();
    let end = if error.is_some() { 0 } else { count };
    let batches =
        (0..end).step_by(batch_sequences.max(1)).skip(part.0).step_by(part.1.max(1)).map(move |first| {
            let last = (first + batch_sequences.max(1)).min(count);
            let masked = |k| {
                let i = (k as u128 * dataset.len() as u128 / count as u128) as usize;
                Ok(masker.eval(&dataset.get(i)?, i as u64))
            };
            let batch = (first..last).map(masked).collect::<Result<Vec<Sequence>>>()?;
            dataset.check_reads()?;
            Ok(Batch::pack(&batch, first as u32, max_positions as u32))
        });
    error.map(Err).into_iter().chain(batches)
}

#[cfg(test)]
mod tests;
