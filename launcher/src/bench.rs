//! `launcher bench`: how fast whole training steps are.

mod breakdown;

use crate::args::{BenchArgs, PlaceArgs};
use crate::device::{self, Work};
use crate::{exit, format};
use anyhow::bail;
use breakdown::{Breakdown, Ceilings};
use engine::bench::{Bench, Mix, batch, matmul_rate, settled};
use engine::config::Config;
use engine::model::training_flops;
use kernels::Backend;
use kernels::cuda::Device;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// Tokens of BERT's vocabulary, for a configuration that leaves it to the data.
const VOCAB: usize = 30_522;
/// Rows of the product that is taken for the ceiling: a GPU's, a CPU's.
const CEILING: [usize; 2] = [8192, 1536];

/// What was measured.
struct Measured {
    device: String,
    parameters: usize,
    sequences: usize,
    tokens: usize,
    masked: usize,
    steps: usize,
    /// Seconds of a step.
    step: f64,
    /// FLOPs of a step.
    flops: f64,
    /// FLOP/s of a large product.
    ceiling: f64,
    /// Bytes on the GPU by buffer.
    memory: Vec<(&'static str, u64)>,
    profile: Option<Breakdown>,
}

/// Measures and prints.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = configuration(args)?;
    crate::start_threads(config.train.threads)?;
    let chosen = device::choose(config.train.device)?;
    chosen.why.iter().for_each(|line| exit::say(line));
    let measured = chosen.run(&config, false, Timing { args, config: &config })?;
    if args.json {
        writeln!(out, "{}", measured.to_json())?;
    } else {
        measured.print(out)?;
    }
    Ok(exit::DONE)
}

fn configuration(args: &BenchArgs) -> anyhow::Result<Config> {
    let place = PlaceArgs { device: args.device, gpus: None, processes: None };
    let mut settings = args.overrides.clone();
    settings.extend(place.device_value().map(|value| format!("train.device={value}")));
    let mut config = Config::load(args.config.as_deref(), &settings)?;
    if config.model.init_from.is_some() {
        bail!("model.init_from: bench times a model of given sizes; set model.preset instead");
    }
    if config.model.vocab_size == 0 {
        config.model.vocab_size = VOCAB;
    }
    Ok(config)
}

struct Timing<'a> {
    args: &'a BenchArgs,
    config: &'a Config,
}

impl Work for Timing<'_> {
    type Result = Measured;

    fn on<B: Backend<Acc = f32>>(self, backend: B, gpu: Option<Arc<Device>>) -> anyhow::Result<Measured> {
        let (args, config) = (self.args, self.config);
        let train = &config.train;
        if args.profile && gpu.is_none() {
            bail!("--profile: only GPUs tell the time of each kernel; leave it out");
        }
        let device = backend.describe();
        let rows = args.ceiling.map_or(CEILING[usize::from(gpu.is_none())], |n| n as usize);
        let ceiling = matmul_rate(&backend, rows)?;
        let sequences = args.batch.map_or(train.batch_sequences / train.accumulation, |n| n as usize).max(1);
        let budget = args.tokens.map(|n| n as usize).or_else(|| {
            let by_config = args.batch.is_none() && train.batch_tokens > 0;
            by_config.then_some(train.batch_tokens / train.accumulation)
        });
        let longest = config.model.max_positions.min(config.data.prepare.max_seq_length);
        let lengths = Mix::parse(&args.lengths)?.lengths(sequences, budget, longest)?;
        let batch = batch(&config.model, &lengths, config.data.prepare.max_predictions);
        let mut bench = Bench::new(backend, &config.model, &config.optimizer, batch)?;
        let times = bench.time(args.steps.map(|n| n as usize), args.seconds)?;
        let step = settled(&times);
        let profile = match &gpu {
            Some(gpu) if args.profile => {
                // As many bytes as a gigabyte for the default's 8192 rows.
                let ceilings = Ceilings { copy: gpu.copy_rate(16 * rows * rows)?, product: ceiling };
                Some(Breakdown::measure(&mut bench, gpu, step, ceilings)?)
            }
            _ => None,
        };
        let batch = bench.batch();
        Ok(Measured {
            device,
            parameters: bench.parameters(),
            sequences: batch.sequences(),
            tokens: batch.token_count(),
            masked: batch.mlm_labels.len(),
            steps: times.len(),
            step,
            flops: training_flops(&config.model, batch),
            ceiling,
            memory: gpu.map(|gpu| gpu.usage()).unwrap_or_default(),
            profile,
        })
    }
}

impl Measured {
    fn per_second(&self, n: usize) -> f64 {
        n as f64 / self.step
    }

    fn rate(&self) -> f64 {
        self.flops / self.step
    }

    fn bytes(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let rows = [
            ("device", self.device.clone()),
            ("parameters", format::count(self.parameters as u64)),
            (
                "a step",
                format!(
                    "{} sequences, {} tokens, {} masked",
                    self.sequences,
                    format::count(self.tokens as u64),
                    format::count(self.masked as u64)
                ),
            ),
            ("ms", format!("{:.2} (median of the second half of {} steps)", self.step * 1e3, self.steps)),
            ("sequences/s", format!("{:.1}", self.per_second(self.sequences))),
            ("tokens/s", format::count(self.per_second(self.tokens) as u64)),
            (
                "model TFLOP/s",
                format!(
                    "{:.3}, {:.0} % of a large product's {:.3}",
                    self.rate() / 1e12,
                    100.0 * self.rate() / self.ceiling,
                    self.ceiling / 1e12
                ),
            ),
        ];
        for (name, value) in rows {
            writeln!(out, "{name:<14} {value}")?;
        }
        if !self.memory.is_empty() {
            writeln!(out, "{:<14} {:.2} GiB", "memory", gib(self.bytes()))?;
        }
        match &self.profile {
            Some(profile) => profile.print(out),
            None => Ok(()),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "device": self.device,
            "parameters": self.parameters,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "masked": self.masked,
            "steps": self.steps,
            "ms": self.step * 1e3,
            "sequences_per_second": self.per_second(self.sequences),
            "tokens_per_second": self.per_second(self.tokens),
            "model_tflops": self.rate() / 1e12,
            "matmul_tflops": self.ceiling / 1e12,
            "memory_bytes": self.bytes(),
            "profile": self.profile.as_ref().map(Breakdown::to_json),
        })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
