//! Timing whole training steps on made-up tokens: what `launcher bench` prints.

use crate::config::{Config, ModelConfig};
use crate::data::{Batch, Sequence};
use crate::dist::{Control, Group};
use crate::files::{WRITTEN_BY_HAND, read_up_to};
use crate::model::{Bert, Gradients, LossScale, SUMS};
use crate::optim::{Optimizer, UpdateOutcome};
use crate::plan::Lengths;
use crate::step::{self, OwnWork, Reduction, Step, Stop};
use crate::{Error, Result};
use kernels::backend::{Backend, LinearForward, LinearSize};
use kernels::collective::Travel;
use kernels::cpu::memory::zeros;
use kernels::philox::{Stream, step_key};
use std::path::Path;
use std::time::Instant;

/// Counter word c3 of the draws here, apart from those of training.
const BENCH: u32 = 17;
/// Share of tokens that are masked.
const MASKED: f64 = 0.15;
/// Steps before the first that is timed.
const WARM_UP: usize = 3;
/// Learning rate: small, as the tokens mean nothing.
const LR: f64 = 1e-5;

/// Where the lengths of the sequences come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Mix {
    /// All as long as can be.
    Full,
    /// Drawn from the histogram of MLPerf's data.
    Mlperf,
    /// These, in turn.
    Given(Vec<u32>),
}

impl Mix {
    /// `full`, `mlperf`, or a file that holds one length in a line.
    ///
    /// # Errors
    /// A file that cannot be read, with the line that is no length.
    pub fn parse(name: &Path) -> Result<Self> {
        match name.to_str() {
            Some("full") => return Ok(Self::Full),
            Some("mlperf") => return Ok(Self::Mlperf),
            _ => {}
        }
        let text = read_up_to(name, WRITTEN_BY_HAND, "cannot read the lengths")?;
        let text = String::from_utf8_lossy(&text);
        let mut lengths = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match line.trim().parse::<u32>() {
                Ok(length) if length > 0 => lengths.push(length),
                _ => {
                    let what =
                        format!("line {}: {line:?} is not a length; one number above 0 in each line", i + 1);
                    return Err(Error::file(name, what));
                }
            }
        }
        if lengths.is_empty() {
            return Err(Error::file(name, "holds no length; one number in each line"));
        }
        Ok(Self::Given(lengths))
    }

    /// The lengths of one batch: of `sequences`, or of as many as fit `tokens`, none longer than `longest`.
    ///
    /// # Errors
    /// Not one sequence fits; a given length is longer.
    pub fn lengths(&self, sequences: usize, tokens: Option<usize>, longest: usize) -> Result<Vec<u32>> {
        let histogram = Lengths::mlperf(longest)?;
        if let Self::Given(lengths) = self
            && let Some(length) = lengths.iter().find(|&&length| length as usize > longest)
        {
            let what = format!(
                "a sequence of {length} tokens is longer than the longest that is trained on, {longest}"
            );
            let remedy = "leave it out, or raise model.max_positions and data.prepare.max_seq_length";
            return Err(Error::config("--lengths", format!("{what}; {remedy}")));
        }
        let mut stream = Stream::new(1, 0, BENCH);
        let mut given = match self {
            Self::Given(lengths) => lengths.iter().cycle(),
            _ => [].iter().cycle(),
        };
        let mut next = || match self {
            Self::Full => longest as u32,
            Self::Mlperf => histogram.draw(&mut stream) as u32,
            Self::Given(_) => given.next().copied().unwrap_or(1),
        };
        let Some(budget) = tokens else { return Ok((0..sequences).map(|_| next()).collect()) };
        let (mut lengths, mut used) = (Vec::new(), 0);
        loop {
            let length = next();
            used += length as usize;
            if used > budget {
                break;
            }
            lengths.push(length);
        }
        if lengths.is_empty() {
            return Err(Error::config("--tokens", format!("{budget} are fewer than the first sequence has")));
        }
        Ok(lengths)
    }
}

/// Sequences of these lengths of made-up tokens: two segments, 15 % masked but at most `max_predictions`, with
/// next-sentence labels.
pub fn batch(model: &ModelConfig, lengths: &[u32], max_predictions: usize) -> Batch {
    let vocab = model.vocab_size as u32;
    let all: Vec<Sequence> = lengths
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let mut stream = Stream::new(2, i as u64, BENCH);
            let masked = ((f64::from(length) * MASKED) as usize).clamp(1, max_predictions.max(1));
            let mut mlm_positions: Vec<u32> = (0..length).collect();
            stream.shuffle(&mut mlm_positions);
            mlm_positions.truncate(masked);
            mlm_positions.sort_unstable();
            let second = if model.type_vocab > 1 { length / 2 } else { length };
            Sequence {
                tokens: (0..length).map(|_| stream.below(vocab)).collect(),
                types: (0..length).map(|p| u32::from(p >= second)).collect(),
                mlm_labels: mlm_positions.iter().map(|_| stream.below(vocab)).collect(),
                mlm_positions,
                nsp_label: Some(stream.below(2)),
            }
        })
        .collect();
    Batch::pack(&all, 0, model.max_positions as u32)
}

/// A model with all that a training step needs, in each process that takes it.
pub struct Bench<'g, B: Backend> {
    group: &'g mut Group<B>,
    bert: Bert<B>,
    grads: Gradients<B>,
    optimizer: Optimizer<B>,
    reduction: Reduction,
    batch: Batch,
    scale: LossScale,
    step: u64,
    work: OwnWork,
}

impl<'g, B: Backend<Acc = f32>> Bench<'g, B> {
    /// Fresh weights, moments 0, and the batch that every step takes in each process.
    ///
    /// # Errors
    /// Memory that does not suffice; processes with different configurations or batches.
    pub fn new(group: &'g mut Group<B>, backend: B, config: &Config, batch: Batch) -> Result<Self> {
        let sizes = format!("{} sequences of {} tokens", batch.sequences(), batch.token_count());
        group.agree(&[("configuration", config.hash()), ("batch", sizes)])?;
        let mut bert = Bert::recomputing(backend, &config.model, config.train.recompute)?;
        bert.init(1)?;
        let grads = bert.gradients()?;
        let (world, table) = (group.world(), bert.table());
        let division = step::division(config, table, world);
        let rank = group.ranks.rank();
        let optimizer = Optimizer::divided(bert.backend(), table, &config.optimizer, &division, rank)?;
        let reduction = Reduction::new(config, table, world);
        let scale = LossScale::new(world * batch.mlm_labels.len(), world * batch.nsp_labels.len());
        let work = OwnWork::default();
        Ok(Self { group, bert, grads, optimizer, reduction, batch, scale, step: 0, work })
    }

    /// The device.
    pub fn backend(&self) -> &B {
        self.bert.backend()
    }

    /// The batch.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.bert.table().parameters()
    }

    /// Operations of a step's attention, forward and backward: two products and five, each of `2 H` operations for every query and
    /// key of a sequence. In the last layer only some tokens are queries.
    pub fn attention_flops(&self) -> [f64; 2] {
        let (batch, config) = (&self.batch, self.bert.config());
        let lengths = |cu: &[u32]| cu.windows(2).map(|w| f64::from(w[1] - w[0])).collect::<Vec<_>>();
        let (keys, queries) = (lengths(&batch.cu_seqlens), lengths(&batch.cu_rows));
        let all: f64 = keys.iter().map(|k| k * k).sum();
        let chosen: f64 = keys.iter().zip(&queries).map(|(k, q)| k * q).sum();
        let product = 2.0 * config.hidden as f64 * ((config.layers as f64 - 1.0) * all + chosen);
        [2.0 * product, 5.0 * product]
    }

    /// The processes that take each step together.
    pub fn group(&self) -> &Group<B> {
        self.group
    }

    /// Of several processes the one that the others have waited for in all steps so far, and by how much its work exceeds the
    /// mean.
    pub fn slowest(&self) -> Option<(usize, f64)> {
        self.work.slowest()
    }

    /// Queues one step as training does.
    fn queue(&mut self) -> Result<B::Pending> {
        let Self { group, bert, grads, optimizer, reduction, batch, scale, step, .. } = self;
        *step += 1;
        let micro = std::slice::from_ref(&*batch);
        let step = Step { micro, scale: *scale, key: step_key(1, *step), lr: LR };
        let queued =
            step::queue(step::Parts { group, bert, grads, optimizer }, reduction, &step, &Stop::never())?;
        queued.ok_or(Error::Stopped)
    }

    /// Seconds of each of `steps` steps, or of as many as `seconds` take, back to back: from one step's end to the next one's.
    ///
    /// # Errors
    /// Those of the device and of the other processes, and a gradient that is not finite.
    pub fn time(&mut self, steps: Option<usize>, seconds: f64) -> Result<Vec<f64>> {
        self.run(WARM_UP)?;
        // One step is always queued while the one before runs, as in training.
        let mut pending = self.queue()?;
        let (started, mut last) = (Instant::now(), Instant::now());
        let mut times = Vec::new();
        loop {
            let worked = self.group.ranks.work_seconds()?;
            let next = {
                let _waiting = self.group.waits();
                self.queue()?
            };
            // The first was under way before the clock ran.
            let done = times.len() >= steps.unwrap_or(1).max(1);
            let over = done && (steps.is_some() || started.elapsed().as_secs_f64() >= seconds);
            let over = self.finish(std::mem::replace(&mut pending, next), worked, over)?;
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            if over {
                break;
            }
        }
        let worked = self.group.ranks.work_seconds()?;
        self.finish(pending, worked, true)?;
        times.remove(0);
        Ok(times)
    }

    /// Runs `steps` steps and waits for each.
    ///
    /// # Errors
    /// As [`Self::time`].
    pub fn run(&mut self, steps: usize) -> Result<()> {
        for _ in 0..steps {
            let numbers = self.queue()?;
            let worked = self.group.ranks.work_seconds()?;
            self.finish(numbers, worked, false)?;
        }
        Ok(())
    }

    /// How long gradients and weights are on their way in a step: the mean of `steps` steps, as this process sees it.
    ///
    /// # Errors
    /// As [`Self::time`].
    pub fn travel(&mut self, steps: usize) -> Result<Travel> {
        self.group.ranks.time_travel(true)?;
        self.run(steps)?;
        let Travel { gradients, exposed, weights } = self.group.ranks.travel()?;
        self.group.ranks.time_travel(false)?;
        let [gradients, exposed, weights] = [gradients, exposed, weights].map(|s| s / steps as f64);
        Ok(Travel { gradients, exposed, weights })
    }

    /// Waits for a step of which this process's own part took `worked` seconds. Whether it is the last one is the first
    /// process's to say.
    fn finish(&mut self, numbers: B::Pending, worked: f64, over: bool) -> Result<bool> {
        let numbers = self.group.wait(|| self.bert.backend().read(numbers))?;
        let norm = UpdateOutcome::from_numbers(numbers.get(SUMS..).unwrap_or_default()).norm;
        if !norm.is_finite() {
            return Err(Error::Training(format!("step {}: the gradient's norm is {norm}", self.step)));
        }
        let world = self.group.world();
        if world == 1 {
            return Ok(over);
        }
        let mut shared = vec![0.0; 1 + world];
        shared[0] = f64::from(u8::from(over && self.group.is_first()));
        shared[1 + self.group.ranks.rank()] = worked;
        self.group.ranks.sum_host(&mut shared)?;
        self.group.control.iter().for_each(Control::step_done);
        self.work.add(&shared[1..]);
        Ok(shared[0] > 0.0)
    }
}

/// The middle one of the second half of the times, when the clocks of a device at full load have settled.
pub fn settled(times: &[f64]) -> f64 {
    let mut half = times[times.len() / 2..].to_vec();
    half.sort_by(f64::total_cmp);
    half.get(half.len() / 2).copied().unwrap_or(f64::NAN)
}

/// FLOP/s of one product of square matrices of `n` rows of random numbers, in the backend's precision: the median of a few.
///
/// # Errors
/// Memory that does not suffice.
pub fn matmul_rate<B: Backend<Acc = f32>>(backend: &B, n: usize) -> Result<f64> {
    // Weights are the one kind of elements that can be set from f32.
    let mut operands = backend.weights(2 * n * n)?;
    let mut stream = Stream::new(3, 0, BENCH);
    let mut noise = zeros("operands of the ceiling", 2 * n * n)?;
    noise.fill_with(|| stream.uniform() as f32 - 0.5);
    backend.upload_weights(&mut operands, 0, &noise)?;
    let mut y = backend.elems("product", n * n)?;
    let probe = backend.zeros::<B::Acc>("product's end", 1)?;
    let mut times = Vec::new();
    for _ in 0..9 {
        backend.read(backend.read_later(&[B::at(&probe, 0..1)])?)?;
        let started = Instant::now();
        backend.linear_forward(LinearForward {
            y: B::at_mut(&mut y, 0..n * n),
            x: B::weight(&operands, 0..n * n),
            w: B::weight(&operands, n * n..2 * n * n),
            bias: None,
            size: LinearSize { rows: n, inputs: n, outputs: n },
        })?;
        backend.read(backend.read_later(&[B::at(&probe, 0..1)])?)?;
        times.push(started.elapsed().as_secs_f64());
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(2.0 * (n as f64).powi(3) / times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use kernels::cpu::Cpu;

    #[test]
    fn lengths_are_those_asked_for() {
        assert_eq!(Mix::Full.lengths(3, None, 64).unwrap(), [64; 3]);
        assert_eq!(Mix::Full.lengths(3, Some(200), 64).unwrap(), [64; 3]);
        assert_eq!(Mix::Given(vec![5, 64]).lengths(3, None, 64).unwrap(), [5, 64, 5]);
        let error = Mix::Given(vec![5, 65]).lengths(1, None, 64).unwrap_err().to_string();
        assert!(
            error.starts_with("--lengths: a sequence of 65 tokens is longer") && error.contains("64;"),
            "{error}"
        );
        let mix = Mix::Mlperf.lengths(4000, None, 512).unwrap();
        let mean = mix.iter().sum::<u32>() as f64 / 4000.0;
        assert!((245.0..267.0).contains(&mean), "{mean}");
        assert!(Mix::Mlperf.lengths(0, Some(5000), 512).unwrap().iter().sum::<u32>() <= 5000);
        let error = Mix::Full.lengths(0, Some(63), 64).unwrap_err().to_string();
        assert!(error.contains("63 are fewer"), "{error}");
    }

    #[test]
    fn a_file_of_lengths_is_read_and_nonsense_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lengths.txt");
        std::fs::write(&file, "12\n\n7\n").unwrap();
        assert_eq!(Mix::parse(&file).unwrap(), Mix::Given(vec![12, 7]));
        for (text, want) in [("12\n0\n", "line 2: \"0\" is not a length"), ("", "holds no length")] {
            std::fs::write(&file, text).unwrap();
            assert!(Mix::parse(&file).unwrap_err().to_string().contains(want));
        }
        assert_eq!(Mix::parse(Path::new("mlperf")).unwrap(), Mix::Mlperf);
    }

    #[test]
    fn steps_are_timed() {
        let model = ModelConfig { vocab_size: 300, ..Preset::Tiny.model() };
        let batch = batch(&model, &[40, 9, 1], 76);
        assert_eq!((batch.token_count(), batch.mlm_labels.len()), (50, 6 + 1 + 1));
        let mut group = Group::solo();
        let config = Config { model: model.clone(), ..Config::default() };
        let mut bench = Bench::new(&mut group, Cpu::<f32>::new(), &config, batch).unwrap();
        // The first of two layers attends from every token, the last from a few.
        let ([forward, backward], full) =
            (bench.attention_flops(), 4.0 * 128.0 * f64::from(40 * 40 + 9 * 9 + 1));
        assert!(forward > full && forward < 2.0 * full && backward == 2.5 * forward, "{forward}, {full}");
        assert_eq!(bench.time(Some(3), 0.0).unwrap().len(), 3);
        assert!(bench.time(None, 0.05).unwrap().iter().sum::<f64>() < 60.0);
        assert_eq!((bench.slowest(), bench.travel(1).unwrap()), (None, Travel::default()));
        assert_eq!(settled(&[9.0, 9.0, 9.0, 1.0, 2.0, 3.0]), 2.0);
        assert!(matmul_rate(bench.backend(), 64).unwrap() > 1e6);
    }
}
