//! Shapes, buffers, timing, and the table.

use criterion::{Criterion, SamplingMode, Throughput};
use half::bf16;
use kernels::backend::*;
use kernels::cuda::{Cuda, Memory, View, ViewMut, Work};
use kernels::philox::{DropoutRate, Stream};
use kernels::{Backend, Result};
use std::time::Duration;

pub type B = Cuda<bf16>;

/// Sizes of a model and a batch.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub sequences: usize,
    pub length: usize,
    pub hidden: usize,
    pub inner: usize,
    pub heads: usize,
    pub layers: usize,
    pub vocab: usize,
    /// Masked tokens of the batch.
    pub masked: usize,
    /// Bytes of the copy that is the ceiling.
    pub copied: usize,
    /// Rows and columns of the product that is the ceiling.
    pub square: usize,
    /// Bytes that are read to empty the second-level cache.
    pub flushed: usize,
}

impl Shape {
    /// BERT-large, 32 full sequences, 76 masked tokens each.
    pub const LARGE: Self = Self {
        sequences: 32,
        length: 512,
        hidden: 1024,
        inner: 4096,
        heads: 16,
        layers: 24,
        vocab: 30_528,
        masked: 32 * 76,
        copied: 1 << 30,
        square: 8192,
        flushed: 256 << 20,
    };
    /// For the emulator.
    pub const TINY: Self = Self {
        sequences: 2,
        length: 24,
        hidden: 64,
        inner: 128,
        heads: 1,
        layers: 1,
        vocab: 192,
        masked: 8,
        copied: 1 << 16,
        square: 64,
        flushed: 1 << 16,
    };

    pub fn tokens(&self) -> usize {
        self.sequences * self.length
    }
}

struct Row {
    name: String,
    work: Work,
    milliseconds: f64,
}

impl Row {
    /// Operations a second of a product, bytes a second of everything else.
    fn rate(&self) -> f64 {
        let work = if self.work.flops > 0 { self.work.flops } else { self.work.bytes };
        work as f64 / (self.milliseconds / 1e3).max(1e-12)
    }
}

/// What all benches share.
pub struct Bench<'c> {
    pub cuda: &'c B,
    pub shape: Shape,
    criterion: Option<Criterion>,
    noise: Vec<f32>,
    flushed: Memory<f32>,
    flush_sums: Memory<f64>,
    rows: Vec<Row>,
}

pub fn all<T: bytemuck::Pod + Send + Sync>(memory: &Memory<T>) -> View<'_, T> {
    B::at(memory, 0..memory.len())
}

pub fn all_mut<T: bytemuck::Pod + Send + Sync>(memory: &mut Memory<T>) -> ViewMut<'_, T> {
    let len = memory.len();
    B::at_mut(memory, 0..len)
}

pub fn dropout(row_keys: &Memory<u32>) -> Dropout<'_, B> {
    Dropout { rate: DropoutRate::new(0.1), key: 7, site: 9, row_keys: all(row_keys) }
}

impl<'c> Bench<'c> {
    /// With `benching` criterion runs the ops, else each runs twice.
    pub fn new(cuda: &'c B, shape: Shape, benching: bool, tiny: bool) -> Result<Self> {
        let criterion = benching.then(|| {
            let time = |full: u64| Duration::from_millis(if tiny { 1 } else { full });
            let criterion = Criterion::default().warm_up_time(time(100)).measurement_time(time(400));
            criterion.sample_size(10).nresamples(1000).configure_from_args()
        });
        let mut stream = Stream::new(1, 0, 99);
        let noise = (0..1 << 20).map(|_| stream.uniform() as f32 - 0.5).collect();
        let floats = shape.flushed / size_of::<f32>();
        let flushed = cuda.zeros("what empties the cache", floats)?;
        let flush_sums = cuda.zeros("what empties the cache", floats.div_ceil(STRETCH))?;
        Ok(Self { cuda, shape, criterion, noise, flushed, flush_sums, rows: Vec::new() })
    }

    /// Elements between -0.5 and 0.5: products of zeros draw less power and run faster.
    pub fn elems(&self, len: usize) -> Result<Memory<bf16>> {
        let block: Vec<bf16> =
            self.noise[..len.min(self.noise.len())].iter().map(|&x| bf16::from_f32(x)).collect();
        self.repeated(&block, len)
    }

    /// Floats between -0.5 and 0.5.
    pub fn floats(&self, len: usize) -> Result<Memory<f32>> {
        self.repeated(&self.noise[..len.min(self.noise.len())], len)
    }

    pub fn indices(&self, values: impl IntoIterator<Item = usize>) -> Result<Memory<u32>> {
        let values: Vec<u32> = values.into_iter().map(|i| i as u32).collect();
        let mut memory = self.cuda.zeros("indices", values.len())?;
        self.cuda.upload(all_mut(&mut memory), &values)?;
        Ok(memory)
    }

    fn repeated<T: bytemuck::Pod + Send + Sync>(&self, block: &[T], len: usize) -> Result<Memory<T>> {
        let mut memory = self.cuda.zeros("operands", len)?;
        for at in (0..len).step_by(block.len().max(1)) {
            let n = block.len().min(len - at);
            self.cuda.upload(B::at_mut(&mut memory, at..at + n), &block[..n])?;
        }
        Ok(memory)
    }

    /// Times an op; what it must move and compute it says itself.
    pub fn run(&mut self, name: &str, op: impl FnMut(&B) -> Result<()>) -> Result<()> {
        self.run_of(name, None, op)
    }

    /// Times an op of so many operations, where only its caller knows them.
    pub fn run_of(
        &mut self,
        name: &str,
        flops: Option<usize>,
        mut op: impl FnMut(&B) -> Result<()>,
    ) -> Result<()> {
        let cuda = self.cuda;
        op(cuda)?; // plans are made, memory is taken
        let mut work = self.work(&mut op)?;
        work.flops = flops.map_or(work.flops, |flops| flops as u64);
        let (flushed, flush_sums) = (&self.flushed, &mut self.flush_sums);
        let (mut samples, mut failure) = (Vec::new(), None);
        let mut sample = || {
            // Reading empties the cache as writing would, and leaves nothing that has to be written back meanwhile. It also
            // keeps the GPU busy while the op is queued, so that the time holds no waiting for the host.
            cuda.square_sums(all_mut(flush_sums), all(flushed))?;
            let milliseconds = cuda.device().time(|| op(cuda))?;
            samples.push(milliseconds);
            Ok(milliseconds)
        };
        match &mut self.criterion {
            None => {
                for _ in 0..2 {
                    sample()?;
                }
            }
            Some(criterion) => {
                let mut group = criterion.benchmark_group("gpu");
                group.sampling_mode(SamplingMode::Flat);
                group.throughput(match work.flops {
                    0 => Throughput::Bytes(work.bytes),
                    n => Throughput::Elements(n),
                });
                group.bench_function(name, |b| {
                    b.iter_custom(|n| {
                        let mut total = 0.0;
                        for _ in 0..n {
                            match sample() {
                                Ok(milliseconds) => total += milliseconds,
                                Err(error) => failure = Some(error),
                            }
                        }
                        // criterion takes no samples of nothing
                        Duration::from_secs_f64(total / 1e3).max(Duration::from_nanos(n))
                    });
                });
                group.finish();
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        samples.sort_by(f64::total_cmp);
        if let Some(&milliseconds) = samples.get(samples.len() / 2) {
            self.rows.push(Row { name: name.to_owned(), work, milliseconds });
        }
        Ok(())
    }

    /// What the op counts in one call, as in `launcher bench --profile`.
    fn work(&self, op: &mut impl FnMut(&B) -> Result<()>) -> Result<Work> {
        let device = self.cuda.device();
        device.set_profile(true)?;
        op(self.cuda)?;
        let ops = device.profile()?;
        device.set_profile(false)?;
        let sum = |of: fn(&Work) -> u64| ops.iter().map(|op| of(&op.work)).sum();
        Ok(Work { bytes: sum(|w| w.bytes), flops: sum(|w| w.flops) })
    }

    /// What nothing here can exceed by much: a copy's bytes and a product's operations in a second.
    pub fn ceilings(&mut self) -> Result<()> {
        let floats = self.shape.copied / size_of::<f32>();
        let (src, mut dst) = (self.floats(floats)?, self.floats(floats)?);
        self.run(COPY, |cuda| cuda.copy(all_mut(&mut dst), all(&src)))?;
        let n = self.shape.square;
        let (x, w, mut y) = (self.elems(n * n)?, self.elems(n * n)?, self.elems(n * n)?);
        let size = LinearSize { rows: n, inputs: n, outputs: n };
        self.run(PRODUCT, |cuda| {
            let (y, x, w) = (all_mut(&mut y), all(&x), all(&w));
            cuda.linear_forward(LinearForward { y, x, w, bias: None, size })
        })
    }

    /// Prints what was measured.
    pub fn table(&self) {
        let rate_of = |name: &str| self.rows.iter().find(|row| row.name == name).map(Row::rate);
        let ceilings = [rate_of(COPY), rate_of(PRODUCT)];
        println!("\n{}, {:?}\n", self.cuda.describe(), self.shape);
        println!("| op | ms | work | rate | share of the ceiling |\n| --- | ---: | ---: | ---: | ---: |");
        for row in &self.rows {
            let rate = row.rate();
            let Work { bytes, flops } = row.work;
            let (work, rate_text, ceiling) = if flops == 0 {
                (format!("{:.1} MB", bytes as f64 / 1e6), format!("{:.0} GB/s", rate / 1e9), ceilings[0])
            } else {
                let tera = format!("{:.1} TFLOP/s", rate / 1e12);
                (format!("{:.1} GFLOP", flops as f64 / 1e9), tera, ceilings[1])
            };
            let share = ceiling.map_or("-".into(), |ceiling| format!("{:.0} %", 100.0 * rate / ceiling));
            println!("| {} | {:.4} | {work} | {rate_text} | {share} |", row.name, row.milliseconds);
        }
    }
}

const COPY: &str = "copy";
const PRODUCT: &str = "square product";
