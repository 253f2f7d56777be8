//! A training step takes the memory that is reckoned beforehand, and once warm it allocates no buffer: a counting
//! allocator watches a few steps. The crate `gemm` packs its
//! operands into buffers that it takes at each call; they are the only pieces aligned to a cache line, and not counted.
//! This is a binary of its own because the count is the whole process's.

use engine::activations::Dims;
use engine::config::{ModelConfig, OptimizerConfig, Preset, Recompute};
use engine::data::{Batch, Sequence};
use engine::memory::{Kind, MemoryPlan};
use engine::model::{Bert, Gradients, LossScale};
use engine::optim::Optimizer;
use kernels::collective::Solo;
use kernels::cpu::Cpu;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Of buffers, which are on cache lines, while they exist.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator; the counters have no influence on it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() < 64 {
            BYTES.fetch_add(layout.size(), Ordering::Relaxed);
            LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        } else {
            LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if layout.align() >= 64 {
            LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn sequences(lengths: &[u32]) -> Vec<Sequence> {
    let of = |&len: &u32| {
        let mlm_positions: Vec<u32> = (1..len).step_by(7).collect();
        Sequence {
            tokens: (0..len).map(|p| p * 31 % 999).collect(),
            types: vec![0; len as usize],
            mlm_labels: mlm_positions.clone(),
            mlm_positions,
            nsp_label: Some(len % 2),
        }
    };
    lengths.iter().map(of).collect()
}

/// A model that trains.
struct Trained {
    bert: Bert<Cpu<f32>>,
    grads: Gradients<Cpu<f32>>,
    optimizer: Optimizer<Cpu<f32>>,
}

impl Trained {
    fn new(config: &ModelConfig, recompute: Recompute) -> Self {
        let mut bert = Bert::recomputing(Cpu::<f32>::new(), config, recompute).unwrap();
        bert.init(1).unwrap();
        let grads = bert.gradients().unwrap();
        let optimizer = Optimizer::new(bert.backend(), bert.table(), &OptimizerConfig::default()).unwrap();
        Self { bert, grads, optimizer }
    }

    fn step(&mut self, batch: &Batch, update: u64) {
        let Self { bert, grads, optimizer } = self;
        bert.clear_sums().unwrap();
        grads.clear(bert.backend()).unwrap();
        bert.forward_backward(grads, batch, LossScale::new(10, 3), update).unwrap();
        let (backend, weights) = bert.weights_mut();
        optimizer.update(backend, &mut Solo, weights, grads.params(), 1e-4).unwrap();
        bert.sums().unwrap();
    }
}

fn batch(lengths: &[u32]) -> Batch {
    Batch::pack(&sequences(lengths), 0, 512)
}

// One test: the counters are the whole process's.
#[test]
fn a_step_takes_what_is_reckoned_and_once_warm_allocates_nothing() {
    let config = ModelConfig { vocab_size: 1000, layers: 3, ..Preset::Tiny.model() };
    let large = batch(&[128, 70, 3].repeat(16));
    let live = || LIVE.load(Ordering::Relaxed) as f64;
    for recompute in [Recompute::None, Recompute::Layer] {
        let before = live();
        let mut model = Trained::new(&config, recompute);
        model.step(&large, 1);
        let taken = live() - before;
        let kind = Kind { host: false, ..Kind::of::<Cpu<f32>>(recompute) };
        let plan = MemoryPlan::new(&config, model.bert.table(), Dims::of(&large).into(), 1, kind);
        // and the ops' own buffers of fixed size, about 7 MB
        let planned = plan.total() - plan.ops;
        assert!((1.0..1.12).contains(&(taken / planned)), "{taken} bytes taken, {planned} reckoned");

        // What is reserved is all that a larger batch takes, but for the ops' own buffers.
        let mut model = Trained::new(&config, recompute);
        model.bert.reserve(&mut model.grads, [Dims::of(&large), Dims::default()]).unwrap();
        let before = live();
        model.step(&batch(&[7, 3]), 1);
        model.step(&large, 2);
        assert!(live() - before < 0.12 * planned, "{} bytes beside what was reserved", live() - before);
    }

    let mut model = Trained::new(&config, Recompute::None);
    let batches = [&[128, 70, 3][..], &[100, 100], &[128, 128, 128, 1]].map(batch);
    (1..7).for_each(|i| model.step(&batches[i % 3], i as u64));
    BYTES.store(0, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    (7..13).for_each(|i| model.step(&batches[i % 3], i as u64));
    let (bytes, largest) = (BYTES.load(Ordering::Relaxed) / 6, LARGEST.load(Ordering::Relaxed));
    // Threads that meet at a product's end take a few hundred bytes; no buffer may be among it.
    assert!(bytes < 64 << 10 && largest < 8 << 10, "{bytes} bytes a step, the largest piece {largest}");
}
