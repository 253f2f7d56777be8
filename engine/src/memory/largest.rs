//! The largest batch that can come, from what the manifest tells of the data's lengths.

use super::{Kind, MemoryPlan};
use crate::activations::Dims;
use crate::config::{Config, TrainConfig};
use crate::data::shards::{Manifest, SplitManifest};
use crate::table::TensorTable;

/// More sequences or tokens than any micro-batch has.
const MANY: usize = 1 << 28;

/// Sizes that no micro-batch of one of `world` processes exceeds: of training, and of evaluation in batches of
/// `eval_batch`.
pub fn largest(config: &Config, data: &Manifest, world: usize, eval_batch: usize) -> [Dims; 2] {
    let train = match config.train.batch_tokens {
        0 => of_sequences(&data.train, data, own_sequences(&config.train, world)),
        _ => of_tokens(&data.train, data, own_tokens(&config.train, data.train.longest, world)),
    };
    let eval = match data.eval.sequences {
        0 => Dims::default(),
        n => of_sequences(&data.eval, data, eval_batch.min(n as usize)),
    };
    [train, eval]
}

/// The largest micro-batch that `memory` bytes hold: sequences, or tokens where the run's batches are counted in those. None
/// if not the smallest does.
pub fn most_that_fits(
    config: &Config,
    table: &TensorTable,
    data: &Manifest,
    kind: Kind,
    memory: f64,
) -> Option<usize> {
    let mut one = config.clone();
    one.train.accumulation = 1;
    let mut fits = |n: usize| {
        let by_tokens = config.train.batch_tokens > 0;
        (one.train.batch_sequences, one.train.batch_tokens) = if by_tokens { (0, n) } else { (n, 0) };
        let [train, _] = largest(&one, data, 1, 0);
        MemoryPlan::new(&one.model, table, train.into(), 1, kind).total() <= memory
    };
    let least = if config.train.batch_tokens > 0 { data.train.longest } else { 1 };
    if !fits(least) {
        return None;
    }
    let (mut fit, mut too_many) = (least, MANY);
    while too_many - fit > 1 {
        let middle = fit + (too_many - fit) / 2;
        *(if fits(middle) { &mut fit } else { &mut too_many }) = middle;
    }
    Some(fit)
}

/// Most sequences of a micro-batch: ranks get shares of the batch that differ by one at most, and so do micro-batches.
fn own_sequences(train: &TrainConfig, world: usize) -> usize {
    train.batch_sequences.div_ceil(world).div_ceil(train.accumulation.max(1))
}

/// Most tokens of a micro-batch. Ranks differ by less than the longest sequence; micro-batches take the sequences whose
/// middle lies in their share, so that half of one may protrude at each end.
fn own_tokens(train: &TrainConfig, longest: usize, world: usize) -> usize {
    let share = |tokens: usize, parts: usize| match parts {
        0 | 1 => tokens,
        _ => tokens.min(tokens.div_ceil(parts) + longest),
    };
    share(share(train.batch_tokens, world), train.accumulation)
}

/// How often one sequence can be in a batch of this share of the data: once for each epoch that the batch touches.
fn repeats(batch: usize, all: u64) -> u64 {
    (batch as u64).div_ceil(all.max(1)) + 1
}

/// The longest `sequences` of a split.
fn of_sequences(split: &SplitManifest, data: &Manifest, sequences: usize) -> Dims {
    let times = repeats(sequences, split.sequences);
    let (mut left, mut tokens, mut masked) = (sequences, 0, 0);
    let mut take = |count: usize, length: usize| {
        let length = length.min(split.longest);
        tokens += count * length;
        masked += count * masks(data, length);
        count
    };
    for (bin, &count) in split.lengths.counts.iter().enumerate().rev() {
        let count = left.min((count * times) as usize);
        left -= take(count, (bin + 1) * split.lengths.width);
    }
    take(left, split.longest);
    Dims { tokens, rows: (masked + sequences).min(tokens), masked, sequences }
}

/// As many sequences of the shortest as `tokens` hold.
fn of_tokens(split: &SplitManifest, data: &Manifest, tokens: usize) -> Dims {
    let times = repeats(tokens, split.tokens);
    let (mut left, mut sequences) = (tokens, 0);
    for (bin, &count) in split.lengths.counts.iter().enumerate() {
        let shortest = bin * split.lengths.width + 1;
        let count = (left / shortest).min((count * times) as usize);
        (left, sequences) = (left - count * shortest, sequences + count);
    }
    let options = &data.options;
    let most = (sequences * options.max_predictions).min(tokens);
    let masked = match data.source {
        Some(_) => most,
        // Rounding adds at most a half, and one token of the shortest sequences, which have three, is predicted.
        None => {
            let p = options.masked_lm_prob;
            most.min((p * tokens as f64 + (1.0 - 3.0 * p).max(0.5) * sequences as f64).ceil() as usize)
        }
    };
    Dims { tokens, rows: (masked + sequences).min(tokens), masked, sequences }
}

/// The most predictions in a sequence of this length. Imported data may hold more than the share that we would draw.
fn masks(data: &Manifest, length: usize) -> usize {
    let options = &data.options;
    let most = options.max_predictions.min(length);
    match data.source {
        Some(_) => most,
        None => ((options.masked_lm_prob * length as f64).round_ties_even() as usize).max(1).min(most),
    }
}
