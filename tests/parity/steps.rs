//! Whole steps with dropout on: the losses of a backend, for comparison with another's.

use crate::training::model;
use engine::config::{ModelConfig, OptimizerConfig, OptimizerKind, Recompute};
use engine::data::Batch;
use engine::model::{Bert, LossScale};
use engine::optim::Optimizer;
use kernels::Backend;
use kernels::collective::Solo;
use kernels::cpu::Cpu;
use kernels::philox::step_key;

/// Of weights and dropout.
const SEED: u64 = 1;

/// Trains on the batches in turn, each given as its micro-batches, with dropout as the model has it; the loss of each step.
pub fn losses<B: Backend>(
    backend: B,
    config: &ModelConfig,
    recompute: Recompute,
    batches: &[Vec<Batch>],
    steps: usize,
) -> Vec<f64> {
    let mut bert = Bert::recomputing(backend, config, recompute).unwrap();
    bert.init(SEED).unwrap();
    let mut grads = bert.gradients().unwrap();
    let kind = OptimizerConfig { kind: OptimizerKind::Lamb, ..OptimizerConfig::default() };
    let mut optimizer = Optimizer::new(bert.backend(), bert.table(), &kind).unwrap();
    (0..steps)
        .map(|step| {
            let micro = &batches[step % batches.len()];
            let masked = micro.iter().map(|b| b.mlm_labels.len()).sum();
            let labelled = micro.iter().map(|b| b.nsp_labels.len()).sum();
            let scale = LossScale::new(masked, labelled);
            bert.clear_sums().unwrap();
            grads.clear(bert.backend()).unwrap();
            for batch in micro {
                bert.forward_backward(&mut grads, batch, scale, step_key(SEED, step as u64)).unwrap();
            }
            let (backend, weights) = bert.weights_mut();
            optimizer.update(backend, &mut Solo, weights, grads.params(), 0.01).unwrap();
            let sums = bert.sums().unwrap();
            sums.mlm_loss * scale.mlm + sums.nsp_loss * scale.nsp
        })
        .collect()
}

/// Four batches of uneven lengths over `vocab` tokens, of one, two, three and one micro-batches.
pub fn batches(vocab: u32) -> Vec<Vec<Batch>> {
    let lengths: [&[&[u32]]; 4] =
        [&[&[13, 24, 5, 1]], &[&[24, 23], &[7]], &[&[9], &[2, 17], &[24]], &[&[11, 3, 8]]];
    let pack = |micro: &[&[u32]]| {
        let mut slot = 0;
        let mut one = |lengths: &[u32]| {
            let batch = Batch::pack(&model::sequences(lengths, vocab), slot, model::POSITIONS);
            slot += lengths.len() as u32;
            batch
        };
        micro.iter().map(|lengths| one(lengths)).collect()
    };
    lengths.iter().map(|micro| pack(micro)).collect()
}

/// Largest relative difference of two loss curves.
pub fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

#[test]
fn f32_follows_f64_over_steps_with_dropout() {
    let (config, batches) = (model::config(), batches(37));
    let [kept, recomputed] = [Recompute::None, Recompute::Layer]
        .map(|recompute| losses(Cpu::<f32>::new(), &config, recompute, &batches, 24));
    assert_eq!(kept, recomputed);
    let exact = losses(Cpu::<f64>::new(), &config, Recompute::None, &batches, 24);
    // rounding only: the masks of dropout are the same
    assert!(apart(&kept, &exact) < 1e-4, "{}", apart(&kept, &exact));
    assert!(exact[20] < exact[0], "{exact:?}");
    let undropped = ModelConfig { hidden_dropout: 0.0, attention_dropout: 0.0, ..config };
    let other = losses(Cpu::<f64>::new(), &undropped, Recompute::None, &batches, 24);
    assert!(apart(&other, &exact) > 1e-2, "dropout has no effect");
}
