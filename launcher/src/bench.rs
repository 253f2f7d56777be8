//! `launcher bench`: how fast whole training steps are.

mod breakdown;

use crate::args::BenchArgs;
use crate::{exit, format, job};
use anyhow::bail;
use breakdown::{Breakdown, Ceilings, PROFILED};
use engine::bench::{Bench, Mix, batch, matmul_rate, settled};
use engine::config::Config;
use engine::dist::Group;
use engine::memory::{Kind, MemoryPlan};
use engine::model::training_flops;
use engine::table::TensorTable;
use kernels::Backend;
use kernels::collective::Travel;
use kernels::cuda::Device;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// Tokens of BERT's vocabulary, for a configuration that leaves it to the data.
const VOCAB: usize = 30_522;
/// Share of tokens that are masked.
const MASKED: f64 = 0.15;
/// Rows of the product that is taken for the ceiling: a GPU's, a CPU's.
const CEILING: [usize; 2] = [8192, 1536];

/// What was measured, as the first process sees it.
struct Measured {
    device: String,
    parameters: usize,
    /// Of one process, as are tokens, predictions, FLOPs and memory.
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
    /// Number of processes.
    world: usize,
    /// What only several have.
    together: Option<Together>,
    profile: Option<Breakdown>,
}

/// What several processes take a step for besides their own work.
struct Together {
    /// Over what they talk.
    ranks: String,
    /// Of a step.
    travel: Travel,
    /// The rank that the others wait for, and by how much its own work exceeds the mean.
    slowest: Option<(usize, f64)>,
}

impl Together {
    /// Share of the gradients' way during which backward went on.
    fn hidden(&self) -> f64 {
        (1.0 - self.travel.exposed / self.travel.gradients).clamp(0.0, 1.0)
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let Travel { gradients, exposed, weights } = self.travel;
        let ms = |seconds: f64| format!("{:.2} ms", 1e3 * seconds);
        let row = |name, value| format!("{name:<14} {value}");
        writeln!(out, "{}", row("processes", self.ranks.clone()))?;
        let (way, after, share) = (ms(gradients), ms(exposed), 100.0 * self.hidden());
        let text = format!("{way} on their way, {share:.0} % beside backward; {after} after it");
        writeln!(out, "{}", row("gradients", text))?;
        if weights > 0.0 {
            writeln!(out, "{}", row("weights", format!("{} on their way", ms(weights))))?;
        }
        if let Some((rank, more)) = self.slowest {
            let text = format!("{rank}, its own work {:.0} % over the mean", 100.0 * more);
            writeln!(out, "{}", row("slowest rank", text))?;
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let Travel { gradients, exposed, weights } = self.travel;
        json!({
            "ranks": self.ranks,
            "gradients_ms": 1e3 * gradients,
            "gradients_after_backward_ms": 1e3 * exposed,
            "gradients_beside_backward": self.hidden(),
            "weights_ms": 1e3 * weights,
            "slowest_rank": self.slowest.map(|(rank, _)| rank),
            "slowest_rank_over_mean": self.slowest.map(|(_, more)| more),
        })
    }
}

/// Measures and prints.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = configuration(args)?;
    job::run(&args.place, &config, Timing { args, config: &config, out })
}

fn configuration(args: &BenchArgs) -> anyhow::Result<Config> {
    let mut settings = args.overrides.clone();
    settings.extend(args.place.device_value().map(|value| format!("train.device={value}")));
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
    out: &'a mut dyn Write,
}

impl job::Task for Timing<'_> {
    const LEAVES_RUN: bool = false;

    fn run<B: Backend<Acc = f32>>(
        self,
        backend: B,
        gpu: Option<Arc<Device>>,
        group: &mut Group<B>,
    ) -> anyhow::Result<u8> {
        let Self { args, config, out } = self;
        job::start_threads(group, config)?;
        let measured = measure(args, config, backend, gpu, group)?;
        if group.is_first() {
            if args.json {
                writeln!(out, "{}", measured.to_json())?;
            } else {
                measured.print(out)?;
            }
            // Before the others may end: who has started all may end this one then.
            out.flush()?;
        }
        Ok(exit::DONE)
    }
}

/// Refuses a batch of so many tokens and sequences that the host's memory cannot hold, before it is made; a GPU says so
/// itself.
fn check_memory<B: Backend<Acc = f32>>(
    args: &BenchArgs,
    config: &Config,
    backend: &B,
    world: usize,
    [tokens, sequences]: [f64; 2],
) -> anyhow::Result<()> {
    let Some(memory) = backend.memory().filter(|_| B::HOST) else { return Ok(()) };
    let (model, owners) = (&config.model, if config.ranks.shard_optimizer { world } else { 1 });
    let masked = sequences.max(MASKED * tokens).min(sequences * config.data.prepare.max_predictions as f64);
    let dims = [tokens, masked + sequences, masked, sequences];
    let kind = Kind { owners, ..Kind::of::<B>(config.train.recompute) };
    let needed = MemoryPlan::new(model, &TensorTable::new(model), dims, 1, kind).total();
    if needed > memory as f64 {
        let batch = match (args.batch, args.tokens) {
            (Some(batch), _) => format!("--batch {batch}"),
            (_, Some(tokens)) => format!("--tokens {tokens}"),
            _ => "a step".to_owned(),
        };
        let [needed, memory] = [needed, memory as f64].map(|bytes| bytes / 1e9);
        bail!(
            "{batch}: the model and {tokens:.0} tokens take {needed:.1} GB and more, and there are {memory:.1} GB; ask for fewer"
        );
    }
    Ok(())
}

/// Every process takes the same batch.
fn measure<B: Backend<Acc = f32>>(
    args: &BenchArgs,
    config: &Config,
    backend: B,
    gpu: Option<Arc<Device>>,
    group: &mut Group<B>,
) -> anyhow::Result<Measured> {
    let (train, world) = (&config.train, group.world());
    if args.profile && gpu.is_none() {
        bail!("--profile: only GPUs tell the time of each kernel; leave it out");
    }
    let device = backend.describe();
    let mix = Mix::parse(&args.lengths)?;
    let share = train.accumulation * world;
    let sequences = args.batch.map_or(train.batch_sequences / share, |n| n as usize).max(1);
    let budget = args.tokens.map(|n| n as usize).or_else(|| {
        let by_config = args.batch.is_none() && train.batch_tokens > 0;
        by_config.then_some(train.batch_tokens / share)
    });
    let longest = config.model.max_positions.min(config.data.prepare.max_seq_length);
    let least =
        budget.map_or([sequences as f64; 2], |tokens| [tokens as f64, tokens as f64 / longest as f64]);
    check_memory(args, config, &backend, world, least)?;
    let lengths = mix.lengths(sequences, budget, longest)?;
    let tokens = lengths.iter().map(|&length| f64::from(length)).sum();
    check_memory(args, config, &backend, world, [tokens, lengths.len() as f64])?;
    let rows = args.ceiling.map_or(CEILING[usize::from(gpu.is_none())], |n| n as usize);
    let ceiling = matmul_rate(&backend, rows)?;
    let batch = batch(&config.model, &lengths, config.data.prepare.max_predictions);
    let mut bench = Bench::new(group, backend, config, batch)?;
    let times = bench.time(args.steps.map(|n| n as usize), args.seconds)?;
    let step = settled(&times);
    let slowest = bench.slowest();
    let together = match world {
        1 => None,
        _ => {
            let travel = bench.travel(PROFILED)?;
            Some(Together { ranks: bench.group().ranks.describe(), travel, slowest })
        }
    };
    let profile = match &gpu {
        Some(gpu) if args.profile => {
            // As many bytes as a gigabyte for the default's 8192 rows.
            let ceilings = Ceilings { copy: gpu.copy_rate(16 * rows * rows)?, product: ceiling };
            let travel = together.as_ref().map(|together| together.travel);
            Some(Breakdown::measure(&mut bench, gpu, step, travel, ceilings)?)
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
        world,
        together,
        profile,
    })
}

impl Measured {
    /// Of all processes.
    fn per_second(&self, n: usize) -> f64 {
        (self.world * n) as f64 / self.step
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
                    "{} sequences, {} tokens, {} masked{}",
                    self.sequences,
                    format::count(self.tokens as u64),
                    format::count(self.masked as u64),
                    if self.together.is_some() { ", in each process" } else { "" }
                ),
            ),
            ("ms", format!("{:.2} (median of the second half of {} steps)", self.step * 1e3, self.steps)),
            ("sequences/s", format!("{:.1}", self.per_second(self.sequences))),
            ("tokens/s", format::count(self.per_second(self.tokens) as u64)),
            (
                if self.together.is_some() { "TFLOP/s each" } else { "model TFLOP/s" },
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
        if let Some(together) = &self.together {
            together.print(out)?;
        }
        if !self.memory.is_empty() {
            writeln!(out, "{:<14} {:.2} GiB", "memory", gib(self.bytes()))?;
        }
        match &self.profile {
            Some(profile) => profile.print(out),
            None => Ok(()),
        }
    }

    /// `launcher plan --step` reads `batch`, `ms`, `sequences_per_second` and `gpus`, which are those of all processes.
    fn to_json(&self) -> Value {
        json!({
            "device": self.device,
            "parameters": self.parameters,
            "gpus": self.world,
            "batch": self.world * self.sequences,
            "tokens": self.world * self.tokens,
            "masked": self.world * self.masked,
            "steps": self.steps,
            "ms": self.step * 1e3,
            "sequences_per_second": self.per_second(self.sequences),
            "tokens_per_second": self.per_second(self.tokens),
            "model_tflops": self.rate() / 1e12,
            "matmul_tflops": self.ceiling / 1e12,
            "memory_bytes": self.bytes(),
            "together": self.together.as_ref().map(Together::to_json),
            "profile": self.profile.as_ref().map(Breakdown::to_json),
        })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
