//! What the parts of a step take on one GPU, and what they leave of its memory.

use super::lengths::{Deal, Lengths};
use super::links::Links;
use crate::config::{ModelConfig, Recompute};
use crate::memory::{Kind, MemoryPlan};
use crate::table::TensorTable;
use crate::{Error, Result};
use serde::Serialize;

/// Seconds of a step that do not depend on the batch, for each layer of the model: launching kernels, filling and draining
/// the GPU at each of them. From two published pairs of single-node results of NVIDIA's code for BERT-large, each pair one
/// GPU type at two batches a GPU, without evaluations: H100 96 sequences in 92.8 ms (8 GPUs) and 224 in 196.7 ms (4 GPUs,
/// Fujitsu, training results v4.1) lie on a line that starts at 15.1 ms; GB200 96 in 61.5 ms and 144 in 85.4 ms (Dell,
/// v5.0) at 13.7 ms. What this model says the optimizer and the links take of that, about 4 and 2 ms, is counted apart:
/// 11 ms over 24 layers are left.
pub const FIXED_PER_LAYER: f64 = 0.45e-3;
/// Bytes of memory traffic of LAMB for a parameter, the gradient apart: master weight and two moments read and written in f32
/// (24), the update written and read again once its norm is known (8), the bf16 weight written (2).
const OPTIMIZER_TRAFFIC: f64 = 34.0;
/// Share of a step's computation that is backward, which does two products for each one of forward.
const BACKWARD: f64 = 2.0 / 3.0;
/// Messages into which the gradients are cut.
const BUCKETS: usize = 8;
/// All-reduces of a few numbers in a step: the gradients' norm, LAMB's norms of weights and updates, the losses.
const SMALL_REDUCTIONS: f64 = 3.0;
/// Bytes that are no tensors of ours: the CUDA context, NCCL's buffers, workspaces of matrix products. Assumed.
const RESERVED: f64 = 2e9;
/// Share of memory that is planned with; the rest is for batches that are longer than most.
const USABLE: f64 = 0.9;
/// Sequences of a micro-batch at most, whatever the memory.
const LARGEST_MICRO: f64 = 1e6;
/// Share of tokens that are predicted, and the most of a sequence (BERT's data).
const MASKED: (f64, f64) = (0.15, 76.0);

/// The GPUs and what connects them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// Links inside and between nodes.
    pub links: Links,
    /// Bytes of memory of a GPU.
    pub memory: f64,
    /// Bytes per second that its memory reads and writes.
    pub memory_bandwidth: f64,
}

/// H100 SXM: 80 GB; 3.0 TB/s, measured with device-to-device copies (nominal: 3.35).
impl Default for Machine {
    fn default() -> Self {
        Self { links: Links::default(), memory: 80e9, memory_bandwidth: 3.0e12 }
    }
}

/// How a step is divided over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Method {
    /// Bytes of a gradient's element on the links: 2 for bf16, 4 for f32.
    pub gradient_bytes: usize,
    /// Whether each rank updates its part of the weights only (ZeRO-1).
    pub shard: bool,
    /// Share of backward's time during which gradients are reduced without slowing it; 0: reduced after it.
    pub overlap: f64,
    /// How sequences come to the ranks.
    pub deal: Deal,
    /// Standard deviation of the speed of equal GPUs, as a share. Each step waits for the slowest.
    pub jitter: f64,
    /// Seconds of evaluating a sequence over those of training it.
    pub eval_cost: f64,
    /// Sequences of one evaluation, over all GPUs.
    pub eval_sequences: usize,
    /// Seconds of a micro-batch that do not depend on its size.
    pub fixed: Option<f64>,
}

/// - overlap 0.7: the first buckets are ready only when some layers are done, and collectives take memory bandwidth and
///   multiprocessors from backward; assumed, not measured here.
/// - jitter 2 %: equal GPUs at their power limit run at different clocks. Sinha et al., "Not All GPUs Are Created Equal" (SC
///   2022), report variations of 8 % on average within clusters; 2 % is their width over about four standard deviations.
/// - an evaluation does the forward pass only, a third of a step's products, of MLPerf's 10,000 sequences.
impl Default for Method {
    fn default() -> Self {
        Self {
            gradient_bytes: 2,
            shard: true,
            overlap: 0.7,
            deal: Deal::Length,
            jitter: 0.02,
            eval_cost: 1.0 / 3.0,
            eval_sequences: crate::mlperf::EVAL_SEQUENCES as usize,
            fixed: None,
        }
    }
}

/// Seconds of a micro-batch on one GPU: a fixed part, and one for each sequence of mean length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GpuCost {
    /// Independent of the batch.
    pub fixed: f64,
    /// For each sequence.
    pub per_sequence: f64,
}

/// Seconds of one step beside computation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Overhead {
    /// The update of the weights.
    pub optimizer: f64,
    /// All collectives.
    pub communication: f64,
    /// Those that nothing hides.
    pub exposed: f64,
}

/// The sizes that costs depend on.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    model: ModelConfig,
    table: TensorTable,
    mean_length: f64,
}

impl Sizes {
    pub fn new(model: &ModelConfig, lengths: &Lengths) -> Self {
        Self { model: model.clone(), table: TensorTable::new(model), mean_length: lengths.mean() }
    }

    /// The part of a step beside `compute` seconds of computation in `accumulation` micro-batches. Gradients are reduced
    /// during the backward pass of the last one; at least the last bucket waits for its end.
    pub fn overhead(
        &self,
        machine: &Machine,
        method: &Method,
        gpus: usize,
        compute: f64,
        accumulation: usize,
    ) -> Overhead {
        let (links, elements) = (&machine.links, self.table.len as f64);
        let gradients = elements * method.gradient_bytes as f64;
        let half = links.reduce_scatter(gpus, gradients, BUCKETS);
        let (reduce, gather) = if method.shard {
            (half, links.reduce_scatter(gpus, 2.0 * elements, BUCKETS))
        } else {
            (2.0 * half, 0.0)
        };
        let backward = BACKWARD * compute / accumulation as f64;
        let exposed = if method.overlap > 0.0 {
            (reduce - method.overlap * backward).max(reduce / BUCKETS as f64)
        } else {
            reduce
        };
        let rest = gather + SMALL_REDUCTIONS * links.small_all_reduce(gpus);
        let traffic = elements * (OPTIMIZER_TRAFFIC + method.gradient_bytes as f64);
        let owners = if method.shard { gpus as f64 } else { 1.0 };
        Overhead {
            optimizer: traffic / owners / machine.memory_bandwidth,
            communication: reduce + rest,
            exposed: exposed + rest,
        }
    }

    /// Bytes of a GPU's memory with micro-batches of `sequences`: bf16 weights, gradients, f32 master weights and two
    /// moments, activations, and what is reserved.
    pub fn memory(&self, method: &Method, gpus: usize, sequences: f64) -> f64 {
        let owners = if method.shard { gpus as f64 } else { 1.0 };
        let state = self.table.len as f64 * (2.0 + method.gradient_bytes as f64 + 12.0 / owners);
        state + RESERVED + self.activations(sequences)
    }

    fn activations(&self, sequences: f64) -> f64 {
        let masked = (self.mean_length * MASKED.0).min(MASKED.1) * sequences;
        let dims = [self.mean_length * sequences, masked + sequences, masked, sequences];
        let kind = Kind { elem: 2, acc: 4, host: false, recompute: Recompute::None, owners: 1 };
        let plan = MemoryPlan::new(&self.model, &self.table, dims, 1, kind);
        plan.activations + plan.scratch
    }

    /// The largest micro-batch that fits.
    ///
    /// # Errors
    /// Not even one sequence does.
    pub fn capacity(&self, machine: &Machine, method: &Method, gpus: usize) -> Result<usize> {
        let room = USABLE * machine.memory - self.memory(method, gpus, 0.0);
        let sequences = (room / self.activations(1.0)).floor();
        if sequences < 1.0 {
            let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
            let needed = gb(self.memory(method, gpus, 1.0) / USABLE);
            let what = format!(
                "{} for each of {gpus} GPUs, but one sequence a GPU needs {needed}; choose a smaller model or more memory",
                gb(machine.memory)
            );
            return Err(Error::config("--gpu-memory", what));
        }
        Ok(sequences.min(LARGEST_MICRO) as usize)
    }

    /// [`FIXED_PER_LAYER`] of all layers.
    pub fn default_fixed(&self) -> f64 {
        FIXED_PER_LAYER * self.model.layers as f64
    }
}

/// Expected speed of the slowest of `gpus` equal GPUs as a factor on time, 1 for one. The mean of the largest of n normal
/// numbers, by extreme value theory: a - (ln ln n + ln 4 pi) / (2 a) + gamma / a with a = sqrt(2 ln n).
pub(super) fn slowest(gpus: usize, jitter: f64) -> f64 {
    const EULER_GAMMA: f64 = 0.577_215_664_901_532_9;
    if gpus < 2 {
        return 1.0;
    }
    let ln = (gpus as f64).ln();
    let a = (2.0 * ln).sqrt();
    let sigmas = a - (ln.ln() + (4.0 * std::f64::consts::PI).ln()) / (2.0 * a) + EULER_GAMMA / a;
    1.0 + jitter * sigmas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    fn large() -> Sizes {
        let model = ModelConfig { vocab_size: 30_522, ..Preset::Large.model() };
        Sizes::new(&model, &Lengths::mlperf(512).unwrap())
    }

    /// Tabulated: 1.42, 2.51 and 3.24 standard deviations for 8, 100 and 1000.
    #[test]
    fn the_slowest_of_many_is_the_tabulated_maximum() {
        for (n, sigmas) in [(8, 1.4236), (100, 2.5076), (1000, 3.2414)] {
            let found = (slowest(n, 0.02) - 1.0) / 0.02;
            assert!((found - sigmas).abs() < 0.11, "{n}: {found}");
        }
        assert_eq!(slowest(1, 0.02), 1.0);
    }

    #[test]
    fn sharding_divides_the_optimizer_and_its_memory_only() {
        let (sizes, machine) = (large(), Machine::default());
        let whole = Method { shard: false, ..Method::default() };
        let [a, b] = [whole, Method::default()].map(|m| sizes.overhead(&machine, &m, 8, 0.1, 1));
        assert!((a.optimizer / b.optimizer - 8.0).abs() < 1e-9, "{a:?} {b:?}");
        assert!((a.communication - b.communication).abs() < 1e-9, "an all-reduce is its two halves");
        // 12 bytes of 336 million parameters on one GPU, or on eight
        let saved = sizes.memory(&whole, 8, 10.0) - sizes.memory(&Method::default(), 8, 10.0);
        assert!((saved / (12.0 * 336.2e6 * 7.0 / 8.0) - 1.0).abs() < 1e-3, "{saved}");
    }

    #[test]
    fn overlap_hides_all_but_the_last_bucket_and_never_more() {
        let (sizes, machine) = (large(), Machine::default());
        let exposed = |overlap, compute, parts| {
            let method = Method { overlap, shard: false, ..Method::default() };
            let o = sizes.overhead(&machine, &method, 64, compute, parts);
            (o.exposed, o.communication)
        };
        let (all, communication) = exposed(0.0, 1.0, 1);
        assert_eq!(all, communication);
        let (least, _) = exposed(1.0, 1.0, 1);
        assert!(least > communication / 9.0 && least < communication / 6.0, "{least} {communication}");
        // a short step hides a part, and accumulation leaves the last micro-batch only
        let (part, _) = exposed(1.0, 0.003, 1);
        assert!((communication - part - 0.002).abs() < 1e-9, "{part}");
        let (part, _) = exposed(1.0, 0.003, 2);
        assert!((communication - part - 0.001).abs() < 1e-9, "{part}");
    }

    #[test]
    fn what_fits_fits_and_one_more_does_not() {
        let (sizes, machine, method) = (large(), Machine::default(), Method::default());
        let most = sizes.capacity(&machine, &method, 8).unwrap();
        let usable = USABLE * machine.memory;
        assert!(sizes.memory(&method, 8, most as f64) <= usable);
        assert!(sizes.memory(&method, 8, most as f64 + 1.0) > usable);
        let small = Machine { memory: 4e9, ..machine };
        let error = sizes.capacity(&small, &method, 1).unwrap_err().to_string();
        assert!(error.starts_with("--gpu-memory: 4.0 GB for each of 1 GPUs, but one sequence"), "{error}");
    }
}
