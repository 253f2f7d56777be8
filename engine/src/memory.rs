//! How much memory training takes, reckoned before any of it is taken.

mod largest;

pub use largest::{largest, most_that_fits};

use crate::activations::Dims;
use crate::config::{Config, ModelConfig, Recompute};
use crate::data::shards::Manifest;
use crate::device_batch::{SLOTS, most_indices};
use crate::table::TensorTable;
use crate::{Error, Result};
use kernels::Backend;

/// Bytes of a packed batch on the host, and of the sequences it is made of, for each token.
const HOST_BYTES: f64 = 96.0;
/// Left on a device of its own for what ops and their libraries take: partial sums, and the work space of products.
const OPS: f64 = (256 << 20) as f64;

/// Bytes of one process on its device, by role.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryPlan {
    /// Master weights and, where elements are narrower, the rounded copy.
    pub weights: f64,
    /// Of all parameters.
    pub gradients: f64,
    /// Both moments, of the parameters that this process updates.
    pub moments: f64,
    /// What forward keeps for backward, for one micro-batch.
    pub activations: f64,
    /// Backward's scratch, for one micro-batch.
    pub scratch: f64,
    /// The index arrays of the micro-batches on the device and, where that is the host, the global batch.
    pub batch: f64,
    /// What ops take.
    pub ops: f64,
}

/// What a plan is for, besides the model and its batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// Bytes of a weight as products read it, and of an activation.
    pub elem: usize,
    /// Bytes of an accumulator.
    pub acc: usize,
    /// Whether the device's memory is the host's.
    pub host: bool,
    /// What is computed twice instead of kept.
    pub recompute: Recompute,
    /// Processes that share the moments.
    pub owners: usize,
}

impl Kind {
    /// For one process on this backend.
    pub fn of<B: Backend>(recompute: Recompute) -> Self {
        let (elem, acc) = (size_of::<B::Elem>(), size_of::<B::Acc>());
        Self { elem, acc, host: B::HOST, recompute, owners: 1 }
    }
}

impl MemoryPlan {
    /// For updates of batches of `dims` (tokens, rows, masked tokens, sequences), each in `accumulation` micro-batches.
    pub fn new(
        model: &ModelConfig,
        table: &TensorTable,
        dims: [f64; 4],
        accumulation: usize,
        kind: Kind,
    ) -> Self {
        let micro = dims.map(|n| n / accumulation.max(1) as f64);
        let [elems, accs] = activation_elements(model, table.padded_vocab, micro, kind.recompute);
        let (len, elem, acc) = (table.len as f64, kind.elem as f64, kind.acc as f64);
        let [tokens, rows, masked, sequences] = micro.map(|n| n.ceil() as usize);
        let indices = most_indices(&Dims { tokens, rows, masked, sequences }, model.max_positions);
        let staged = if kind.host { dims[0] * HOST_BYTES } else { 0.0 };
        Self {
            weights: len * if kind.elem < kind.acc { acc + elem } else { acc },
            gradients: len * acc,
            moments: 2.0 * len * acc / kind.owners.max(1) as f64,
            activations: elems * elem + accs * acc,
            scratch: scratch_elements(model, micro) * elem,
            batch: (SLOTS * indices * size_of::<u32>()) as f64 + staged,
            ops: if kind.host { 0.0 } else { OPS },
        }
    }

    /// Weights, gradients and moments: what no batch changes.
    pub fn state(&self) -> f64 {
        self.weights + self.gradients + self.moments
    }

    /// All of it.
    pub fn total(&self) -> f64 {
        self.state() + self.activations + self.scratch + self.batch + self.ops
    }

    /// Roles and their bytes.
    pub fn rows(&self) -> [(&'static str, f64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("backward scratch", self.scratch),
            ("batch", self.batch),
            ("left to ops", self.ops),
        ]
    }
}

/// Elements and accumulators that [`crate::activations::Activations`] takes for tokens, rows, masked tokens and sequences.
fn activation_elements(
    m: &ModelConfig,
    padded_vocab: usize,
    dims: [f64; 4],
    recompute: Recompute,
) -> [f64; 2] {
    let [h, f, heads, v] = [m.hidden, m.intermediate, m.heads, padded_vocab].map(|n| n as f64);
    let [tokens, rows, masked, sequences] = dims;
    // of n rows: context, attended, two layernorms' sums; before and after GELU
    let layer = |n: f64, qkv: f64| [qkv + n * (4.0 * h + 2.0 * f), n * (heads + 4.0)];
    let sets = (recompute.sets(m.layers) - 1) as f64;
    let full = layer(tokens, 3.0 * tokens * h).map(|n| n * sets);
    let last = layer(rows, 2.0 * rows * h + 2.0 * tokens * h);
    let hidden = [m.layers as f64 * tokens * h + rows * h, 0.0];
    let embedding = [tokens * h, 2.0 * tokens];
    let heads = [masked * (4.0 * h + v) + sequences * (2.0 * h + 2.0), 2.0 * masked];
    [embedding, hidden, full, last, heads].iter().fold([0.0; 2], |[a, b], part| [a + part[0], b + part[1]])
}

/// Elements of [`crate::activations::BackwardScratch`].
fn scratch_elements(m: &ModelConfig, [tokens, rows, masked, sequences]: [f64; 4]) -> f64 {
    let [h, f] = [m.hidden, m.intermediate].map(|n| n as f64);
    tokens * (6.0 * h + f) + rows * h + 2.0 * masked.max(sequences) * h
}

fn mean_length(data: &Manifest) -> f64 {
    data.train.tokens as f64 / data.train.sequences.max(1) as f64
}

/// What batches of `sequences` of the data's mean length take.
fn plan<B: Backend>(
    config: &Config,
    table: &TensorTable,
    data: &Manifest,
    sequences: f64,
    accumulation: usize,
) -> MemoryPlan {
    let (mean, options) = (mean_length(data), &data.options);
    let masked = (mean * options.masked_lm_prob).min(options.max_predictions as f64) * sequences;
    let dims = [mean * sequences, masked + sequences, masked, sequences];
    MemoryPlan::new(&config.model, table, dims, accumulation, Kind::of::<B>(config.train.recompute))
}

/// What a run takes on its device, for its reader.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryTable {
    /// Roles and bytes.
    pub rows: Vec<(&'static str, f64)>,
    /// All of it.
    pub total: f64,
    /// What there is; none if the device does not tell.
    pub device: Option<f64>,
    /// Whether it was taken for the largest batch that can come. Else it is for one of the data's mean length, and buffers
    /// grow with the batches.
    pub reserved: bool,
    /// The largest micro-batch that fits, in words; none where the device is the host, which has other uses for its memory.
    pub largest: Option<String>,
}

/// What a process of `owners` that share moments takes: the table and, where the largest batches that can come fit, their
/// sizes in training and evaluation. Where the device is the host, buffers grow with the batches: what is taken there is
/// missing elsewhere.
pub fn survey<B: Backend>(
    backend: &B,
    config: &Config,
    table: &TensorTable,
    data: &Manifest,
    [world, owners, eval_batch]: [usize; 3],
) -> (MemoryTable, Option<[Dims; 2]>) {
    let memory = backend.memory().map(|bytes| bytes as f64);
    let kind = Kind { owners, ..Kind::of::<B>(config.train.recompute) };
    let sizes = largest(config, data, world, eval_batch);
    let [train, eval] = sizes;
    let whole = MemoryPlan::new(&config.model, table, train.max(&eval).into(), 1, kind);
    let reserved = !B::HOST && memory.is_none_or(|memory| whole.total() <= memory);
    let plan = if reserved {
        whole
    } else {
        let t = &config.train;
        let sequences = match t.batch_tokens {
            0 => t.batch_sequences as f64,
            tokens => tokens as f64 / mean_length(data),
        };
        plan::<B>(config, table, data, sequences / world as f64, t.accumulation)
    };
    let most =
        memory.filter(|_| !B::HOST).and_then(|memory| most_that_fits(config, table, data, kind, memory));
    let unit = match config.train.batch_tokens {
        0 => format!("sequences of up to {} tokens", data.train.longest),
        _ => "tokens".to_owned(),
    };
    let table = MemoryTable {
        rows: plan.rows().into_iter().filter(|(_, bytes)| *bytes > 0.0).collect(),
        total: plan.total(),
        device: memory,
        reserved,
        largest: most.map(|n| format!("{n} {unit}")),
    };
    (table, reserved.then_some(sizes))
}

/// The fewest micro-batches of equal size into which a batch of `train.batch_sequences` can be divided so that training
/// fits nine tenths of the device's memory; the rest is for batches that are longer than most. As many as there are
/// sequences where nothing fits, and one where the device does not tell its memory.
pub fn accumulation<B: Backend>(backend: &B, config: &Config, table: &TensorTable, data: &Manifest) -> usize {
    let batch = config.train.batch_sequences.max(1);
    let Some(memory) = backend.memory().map(|bytes| 0.9 * bytes as f64) else { return 1 };
    let fits = |parts: &usize| plan::<B>(config, table, data, batch as f64, *parts).total() <= memory;
    (1..=batch).filter(|parts| batch.is_multiple_of(*parts)).find(fits).unwrap_or(batch)
}

/// Refuses a run that cannot fit the device's memory, before it takes all of it.
pub fn check<B: Backend>(backend: &B, config: &Config, table: &TensorTable, data: &Manifest) -> Result<()> {
    let Some(memory) = backend.memory().map(|bytes| bytes as f64) else { return Ok(()) };
    let train = &config.train;
    let mean = mean_length(data);
    let by_tokens = train.batch_tokens > 0;
    let sequences =
        if by_tokens { (train.batch_tokens as f64 / mean).max(1.0) } else { train.batch_sequences as f64 };
    let plan = |sequences: f64| plan::<B>(config, table, data, sequences, train.accumulation);
    let needed = plan(sequences);
    if needed.total() <= memory {
        return Ok(());
    }
    let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
    let limit = if B::HOST { kernels::cpu::memory::limited_by() } else { None };
    let limit = limit.map_or(String::new(), |source| format!(" (limited by {source})"));
    let (total, has) = (gb(needed.total()), format!("{} of memory{limit}", gb(memory)));
    let one = plan(1.0);
    if one.total() > memory {
        let m = &config.model;
        return Err(Error::config(
            "model",
            format!(
                "{} layers of {} need {} for weights, gradients and moments and {total} in all, but there are {has}; \
                 choose a smaller model",
                m.layers,
                m.hidden,
                gb(needed.state())
            ),
        ));
    }
    let unit = if by_tokens { mean } else { 1.0 };
    let fixed = one.state() + one.ops;
    let most = ((memory - fixed) / (one.total() - fixed) * unit).floor();
    let (key, given, unit) = if by_tokens {
        ("train.batch_tokens", train.batch_tokens, "tokens")
    } else {
        ("train.batch_sequences", train.batch_sequences, "sequences")
    };
    let recompute = match train.recompute {
        Recompute::None => ", or set train.recompute = \"layer\"",
        Recompute::Layer => "",
    };
    Err(Error::config(
        key,
        format!(
            "{given} {unit} in {} micro-batches need {total}, but there are {has}: about {most} fit; lower it or \
             raise train.accumulation{recompute}",
            train.accumulation
        ),
    ))
}

/// [`Dims`] as numbers.
impl From<Dims> for [f64; 4] {
    fn from(d: Dims) -> Self {
        [d.tokens, d.rows, d.masked, d.sequences].map(|n| n as f64)
    }
}

#[cfg(test)]
mod tests;
