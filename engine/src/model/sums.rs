//! What a loss is over batches, micro-batches and ranks.

use kernels::Scalar;

/// Numbers of a loss on the device; see [`EvalSums::from_numbers`].
pub(crate) const SUMS: usize = 4;

/// Sums over the predictions of one or more batches.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvalSums {
    /// Cross-entropy of the masked tokens, natural logarithm.
    pub mlm_loss: f64,
    /// Masked tokens whose largest logit is right.
    pub mlm_correct: f64,
    /// Masked tokens.
    pub mlm_count: usize,
    /// Cross-entropy of the next-sentence labels.
    pub nsp_loss: f64,
    /// Right next-sentence answers.
    pub nsp_correct: f64,
    /// Sequences with a next-sentence label.
    pub nsp_count: usize,
}

impl EvalSums {
    /// From MLM loss, MLM correct, NSP loss, NSP correct; the counts are left 0.
    pub fn from_numbers<T: Scalar>(numbers: &[T]) -> Self {
        let number = |i: usize| numbers.get(i).map_or(f64::NAN, |n| n.to_f64());
        let [mlm_loss, mlm_correct, nsp_loss, nsp_correct] = [0, 1, 2, 3].map(number);
        Self { mlm_loss, mlm_correct, nsp_loss, nsp_correct, ..Self::default() }
    }

    /// Mean cross-entropy of a masked token; 0 where there is none.
    pub fn mlm_mean(&self) -> f64 {
        self.mlm_loss / self.mlm_count.max(1) as f64
    }

    /// Mean cross-entropy of a next-sentence label; 0 where there is none.
    pub fn nsp_mean(&self) -> f64 {
        self.nsp_loss / self.nsp_count.max(1) as f64
    }

    /// The training loss: the sum of both means.
    pub fn loss(&self) -> f64 {
        self.mlm_mean() + self.nsp_mean()
    }

    /// Share of masked tokens that are right.
    pub fn mlm_accuracy(&self) -> f64 {
        self.mlm_correct / self.mlm_count.max(1) as f64
    }

    /// Share of next-sentence answers that are right.
    pub fn nsp_accuracy(&self) -> f64 {
        self.nsp_correct / self.nsp_count.max(1) as f64
    }

    /// Adds another batch's sums.
    pub fn add(&mut self, other: &Self) {
        self.mlm_loss += other.mlm_loss;
        self.mlm_correct += other.mlm_correct;
        self.mlm_count += other.mlm_count;
        self.nsp_loss += other.nsp_loss;
        self.nsp_correct += other.nsp_correct;
        self.nsp_count += other.nsp_count;
    }
}

/// What turns a batch's loss into the global batch's: the loss is the mean over all masked tokens plus the mean over
/// all next-sentence labels, whatever micro-batch or rank they are in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// 1 / masked tokens of the global batch.
    pub mlm: f64,
    /// 1 / next-sentence labels of the global batch.
    pub nsp: f64,
}

impl LossScale {
    /// For a global batch of these counts.
    pub fn new(masked: usize, labelled: usize) -> Self {
        Self { mlm: 1.0 / masked.max(1) as f64, nsp: 1.0 / labelled.max(1) as f64 }
    }
}
