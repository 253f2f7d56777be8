//! How unequal the work of ranks is when sequences of random lengths are dealt to them.

use crate::{Error, Result};
use kernels::philox::{Stream, step_key};
use serde::{Deserialize, Serialize};

/// Published histogram of lengths (Graphcore's packed BERT tutorial; the file names its source).
const HISTOGRAM: &str = include_str!("length_histogram.json");
/// Counter word c3 of the draws, apart from those of training.
const PLAN: u32 = 16;
/// Sequences drawn at least for one figure; fewer trials are needed the more ranks there are.
const DRAWS: usize = 100_000;
/// Sequences drawn at most for one batch.
const MOST: usize = 1 << 22;

/// How the sequences of a global batch come to the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Deal {
    /// As they come: each rank takes the next ones.
    Random,
    /// Sorted by length and dealt to and fro (0 to N-1, then N-1 to 0), so that no rank gets all the long ones.
    Length,
}

/// A distribution of sequence lengths.
#[derive(Debug, Clone)]
pub struct Lengths {
    /// Sequences not longer than index + 1, as a share.
    cumulative: Vec<f64>,
    mean: f64,
}

#[derive(Deserialize)]
struct Histogram {
    counts: Vec<u64>,
}

impl Lengths {
    /// That of MLPerf's data, longer sequences cut at `longest` tokens.
    ///
    /// # Errors
    /// `longest` is 0.
    pub fn mlperf(longest: usize) -> Result<Self> {
        let histogram: Histogram = serde_json::from_str(HISTOGRAM)
            .map_err(|e| Error::file("length_histogram.json", format!("cannot be read: {e}")))?;
        Self::new(&histogram.counts, longest)
    }

    /// From the number of sequences of each length, index 0 being length 1.
    fn new(counts: &[u64], longest: usize) -> Result<Self> {
        let total: u64 = counts.iter().sum();
        if longest == 0 || total == 0 {
            return Err(Error::config("model.max_positions", "0 tokens, expected at least 1"));
        }
        let mut cumulative = Vec::with_capacity(longest.min(counts.len()));
        let (mut seen, mut tokens) = (0u64, 0.0);
        for (i, &n) in counts.iter().enumerate() {
            seen += n;
            tokens += n as f64 * (i + 1).min(longest) as f64;
            if i < longest {
                cumulative.push(seen as f64 / total as f64);
            }
        }
        // The last one holds all that is left.
        if let Some(last) = cumulative.last_mut() {
            *last = 1.0;
        }
        Ok(Self { cumulative, mean: tokens / total as f64 })
    }

    /// Tokens of a sequence, on average.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Expected tokens of the fullest rank over the mean of all ranks, where each of `ranks` gets `per_rank` sequences of a
    /// global batch. An average over simulated batches; the draws are always the same. Where a batch is too large to draw,
    /// fewer sequences are dealt and the excess over 1 is scaled with the square root, as sums of independent lengths vary.
    pub fn imbalance(&self, ranks: usize, per_rank: usize, deal: Deal) -> f64 {
        if ranks <= 1 || per_rank == 0 {
            return 1.0;
        }
        let drawn = per_rank.min(MOST / ranks).max(1);
        let batch = ranks * drawn;
        let trials = DRAWS.div_ceil(batch).min(1000);
        let mut sums = vec![0u64; ranks];
        let mut total = 0.0;
        for trial in 0..trials {
            let mut stream = Stream::new(step_key(1, trial as u64), drawn as u64, PLAN);
            sums.fill(0);
            match deal {
                Deal::Random => (0..batch).for_each(|i| sums[i % ranks] += self.draw(&mut stream)),
                Deal::Length => self.deal_by_length(batch, &mut stream, &mut sums),
            }
            let fullest = sums.iter().copied().max().unwrap_or(0) as f64;
            total += fullest * ranks as f64 / sums.iter().sum::<u64>() as f64;
        }
        1.0 + (total / trials as f64 - 1.0) * (drawn as f64 / per_rank as f64).sqrt()
    }

    /// One length.
    pub fn draw(&self, stream: &mut Stream) -> u64 {
        let u = stream.uniform();
        self.cumulative.partition_point(|&c| c <= u) as u64 + 1
    }

    /// Draws a batch as a histogram, which is sorting it, and deals it from the longest to the shortest.
    fn deal_by_length(&self, batch: usize, stream: &mut Stream, sums: &mut [u64]) {
        let mut counts = vec![0usize; self.cumulative.len() + 1];
        (0..batch).for_each(|_| counts[self.draw(stream) as usize] += 1);
        let mut dealt = 0;
        for (length, &n) in counts.iter().enumerate().rev() {
            for _ in 0..n {
                let (round, at) = (dealt / sums.len(), dealt % sums.len());
                let rank = if round % 2 == 0 { at } else { sums.len() - 1 - at };
                sums[rank] += length as u64;
                dealt += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_has_the_published_moments() {
        let lengths = Lengths::mlperf(512).unwrap();
        assert!((lengths.mean() - 255.8).abs() < 0.1, "{}", lengths.mean());
        let full = 1.0 - lengths.cumulative[510];
        assert!((full - 0.234).abs() < 5e-4, "{full}");
        let cut = Lengths::mlperf(128).unwrap();
        assert_eq!(cut.cumulative.len(), 128);
        assert!(cut.mean() < 128.0 && cut.mean() > 100.0, "{}", cut.mean());
        assert!(Lengths::mlperf(0).is_err());
    }

    #[test]
    fn draws_have_the_mean_of_the_histogram() {
        let lengths = Lengths::mlperf(512).unwrap();
        let mut stream = Stream::new(1, 0, PLAN);
        let mean = (0..20_000).map(|_| lengths.draw(&mut stream) as f64).sum::<f64>() / 20_000.0;
        // standard deviation 182.7, so 1.3 of the mean
        assert!((mean - lengths.mean()).abs() < 5.0, "{mean}");
    }

    /// Two ranks, one sequence each, half of them 1 long and half 3: the fuller one has 1 of 1, 3 of 2 or 3 of 3 in
    /// expectation (1 + 1.5 + 1.5 + 1) / 4.
    #[test]
    fn the_imbalance_of_a_small_case_is_the_exact_one() {
        let lengths = Lengths::new(&[1, 0, 1], 3).unwrap();
        let random = lengths.imbalance(2, 1, Deal::Random);
        assert!((random - 1.25).abs() < 0.03, "{random}");
        assert_eq!(Lengths::new(&[0, 5], 2).unwrap().imbalance(4, 3, Deal::Random), 1.0);
        assert_eq!(lengths.imbalance(1, 7, Deal::Random), 1.0);
    }

    /// Of lengths 4, 3, 2, 1 two ranks get 4 + 1 and 3 + 2; straight dealing would give 4 + 2 and 3 + 1.
    #[test]
    fn dealing_by_length_goes_to_and_fro() {
        let lengths = Lengths { cumulative: vec![0.25, 0.5, 0.75, 1.0], mean: 2.5 };
        // The first stream whose four draws all differ.
        let all = |seed| {
            (0..4).fold((Stream::new(seed, 0, PLAN), 0u32), |(mut s, seen), _| {
                let length = lengths.draw(&mut s);
                (s, seen | 1 << length)
            })
        };
        let seed = (0..1000).find(|&seed| all(seed).1 == 0b11110).unwrap();
        let mut sums = [0, 0];
        lengths.deal_by_length(4, &mut Stream::new(seed, 0, PLAN), &mut sums);
        assert_eq!(sums, [5, 5]);
    }

    #[test]
    fn dealing_by_length_is_better_than_dealing_at_random() {
        let lengths = Lengths::mlperf(512).unwrap();
        for ranks in [8, 64, 512] {
            let [random, dealt] = [Deal::Random, Deal::Length].map(|deal| lengths.imbalance(ranks, 8, deal));
            assert!(dealt < 1.1 && random > 1.3 && dealt < random, "{ranks}: {random} {dealt}");
        }
    }

    #[test]
    fn batches_too_large_to_draw_are_scaled() {
        let lengths = Lengths::mlperf(512).unwrap();
        let [drawn, scaled] = [64, 1024].map(|n| lengths.imbalance(1 << 16, n, Deal::Random) - 1.0);
        assert!((drawn / scaled - 4.0).abs() < 1e-9, "{drawn} {scaled}");
        assert!(lengths.imbalance(8, usize::MAX, Deal::Random) - 1.0 < 1e-3);
    }

    /// The documentation's figures are these.
    #[test]
    fn the_documentation_has_the_expected_imbalances() {
        let lengths = Lengths::mlperf(512).unwrap();
        let documented = include_str!("../../../docs/scaling.md");
        for per_rank in [4, 6, 16, 72, 96] {
            let mut line = format!("| {per_rank} |");
            for ranks in [8, 64, 512] {
                let [random, dealt] =
                    [Deal::Random, Deal::Length].map(|d| lengths.imbalance(ranks, per_rank, d));
                line += &format!(" {random:.3} | {dealt:.4} |");
            }
            assert!(documented.contains(&line), "docs/scaling.md lacks:\n{line}");
        }
    }
}
