//! Once warm, a training step allocates no buffer: a counting allocator watches a few steps. The crate `gemm` packs its
//! operands into buffers that it takes at each call; they are the only pieces aligned to a cache line, and not counted.
//! This is a binary of its own because the count is the whole process's.

use engine::config::{ModelConfig, OptimizerConfig, Preset};
use engine::data::{Batch, Sequence};
use engine::model::{Bert, LossScale};
use engine::optim::Optimizer;
use kernels::cpu::Cpu;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator; the counters have no influence on it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() < 64 {
            BYTES.fetch_add(layout.size(), Ordering::Relaxed);
            LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
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

#[test]
fn a_warm_step_allocates_nothing() {
    let config = ModelConfig { vocab_size: 1000, ..Preset::Tiny.model() };
    let mut bert = Bert::new(Cpu::<f32>::new(), &config).unwrap();
    bert.init(1).unwrap();
    let mut grads = bert.gradients().unwrap();
    let mut optimizer = Optimizer::new(bert.backend(), bert.table(), &OptimizerConfig::default()).unwrap();
    let batches =
        [&[128, 70, 3][..], &[100, 100], &[128, 128, 128, 1]].map(|l| Batch::pack(&sequences(l), 0, 512));
    let mut step = |batch: &Batch, update: u64| {
        bert.clear_sums().unwrap();
        grads.clear(bert.backend()).unwrap();
        bert.forward_backward(&mut grads, batch, LossScale::new(10, 3), update).unwrap();
        let (backend, weights) = bert.weights_mut();
        optimizer.update(backend, weights, grads.params(), 1e-4, update).unwrap();
        bert.sums().unwrap();
    };
    (1..7).for_each(|i| step(&batches[i % 3], i as u64));
    BYTES.store(0, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    (7..13).for_each(|i| step(&batches[i % 3], i as u64));
    let (bytes, largest) = (BYTES.load(Ordering::Relaxed) / 6, LARGEST.load(Ordering::Relaxed));
    // Threads that meet at a product's end take a few hundred bytes; no buffer may be among it.
    assert!(bytes < 64 << 10 && largest < 8 << 10, "{bytes} bytes a step, the largest piece {largest}");
}
