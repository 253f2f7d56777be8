//! Finite differences of the whole model with dropout on, and the switches that may not change a result.

use super::model::{POSITIONS, bert, config, loss_and_gradient, sequences};
use engine::config::{ModelConfig, OptimizerConfig, OptimizerKind, Recompute};
use engine::data::Batch;
use engine::model::{Bert, LossScale};
use engine::optim::Optimizer;
use kernels::collective::Solo;
use kernels::cpu::Cpu;
use kernels::philox::step_key;

const LENGTHS: [u32; 4] = [13, 24, 5, 1];

/// Largest difference, relative to the larger vector's norm.
fn relative(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference: Vec<f64> = a.iter().zip(b).map(|(x, y)| x - y).collect();
    norm(&difference) / norm(a).max(norm(b))
}

#[test]
fn the_gradient_of_every_tensor_matches_finite_differences() {
    let config = config();
    let mut bert = bert(&config);
    let batch = [Batch::pack(&sequences(&LENGTHS, 37), 0, POSITIONS)];
    let mut grads = bert.gradients().unwrap();
    let (_, gradient) = loss_and_gradient(&mut bert, &mut grads, &batch);
    let weights = bert.weights().unwrap();
    // A direction a tensor: the derivative along it is the gradient's product with it.
    let h = 1e-6;
    let table = bert.table().clone();
    for (index, tensor) in table.tensors.iter().enumerate() {
        let mut stream = kernels::philox::Stream::new(1, index as u64, 97);
        let direction: Vec<f64> = tensor.range().map(|_| stream.uniform() * 2.0 - 1.0).collect();
        let expected: f64 = gradient[tensor.range()].iter().zip(&direction).map(|(g, d)| g * d).sum();
        let mut at = |shift: f64| {
            let mut moved = weights.clone();
            for (w, d) in moved[tensor.range()].iter_mut().zip(&direction) {
                *w += shift * d;
            }
            bert.load_master(&moved).unwrap();
            loss_and_gradient(&mut bert, &mut grads, &batch).0
        };
        let numeric = (at(h) - at(-h)) / (2.0 * h);
        assert!(
            (numeric - expected).abs() < 1e-8 + 1e-6 * expected.abs(),
            "{}: {expected:e} by hand, {numeric:e} by differences",
            tensor.name
        );
    }
}

#[test]
fn packed_equals_one_by_one_and_accumulation_equals_one_batch() {
    let config = config();
    let mut bert = bert(&config);
    let mut grads = bert.gradients().unwrap();
    let all = sequences(&LENGTHS, 37);
    let (loss, gradient) = loss_and_gradient(&mut bert, &mut grads, &[Batch::pack(&all, 0, POSITIONS)]);
    for size in [1, 2, 3] {
        let micro: Vec<Batch> = all
            .chunks(size)
            .enumerate()
            .map(|(i, chunk)| Batch::pack(chunk, (i * size) as u32, POSITIONS))
            .collect();
        let (other, others) = loss_and_gradient(&mut bert, &mut grads, &micro);
        assert!((loss - other).abs() < 1e-12 * loss, "micro-batches of {size}: {loss} and {other}");
        assert!(relative(&gradient, &others) < 1e-12, "micro-batches of {size}");
    }
    // Another slot draws other masks: the agreement above is not that of dropout without effect.
    let (other, _) = loss_and_gradient(&mut bert, &mut grads, &[Batch::pack(&all, 1, POSITIONS)]);
    assert!((loss - other).abs() > 1e-3, "{loss} and {other}");
}

#[test]
fn the_same_step_twice_is_bit_equal() {
    let config = config();
    let mut first = bert(&config);
    let mut second = bert(&config);
    let (mut a, mut b) = (first.gradients().unwrap(), second.gradients().unwrap());
    let batch = [Batch::pack(&sequences(&LENGTHS, 37), 0, POSITIONS)];
    let one = loss_and_gradient(&mut first, &mut a, &batch);
    // A larger batch before it leaves other values in every buffer.
    let larger = [Batch::pack(&sequences(&[24, 24, 24, 23, 11], 37), 0, POSITIONS)];
    loss_and_gradient(&mut second, &mut b, &larger);
    let two = loss_and_gradient(&mut second, &mut b, &batch);
    assert_eq!(one.0.to_bits(), two.0.to_bits());
    assert!(one.1.iter().zip(&two.1).all(|(x, y)| x.to_bits() == y.to_bits()));
}

/// The last layer computes only what a head reads; asking for every token must give the same at those.
#[test]
fn the_last_layers_subset_is_exact() {
    let config = config();
    let mut bert = bert(&config);
    let some = sequences(&LENGTHS, 37);
    let mut all = some.clone();
    for s in &mut all {
        s.mlm_positions = (0..s.tokens.len() as u32).collect();
        s.mlm_labels = vec![0; s.tokens.len()];
    }
    let (subset, full) = (Batch::pack(&some, 0, POSITIONS), Batch::pack(&all, 0, POSITIONS));
    let of_subset = bert.mlm_logits(&subset).unwrap();
    let of_full = bert.mlm_logits(&full).unwrap();
    let vocab = config.vocab_size;
    for (i, &row) in subset.mlm_rows.iter().enumerate() {
        let token = subset.rows[row as usize] as usize;
        let (ours, theirs) = (&of_subset[i * vocab..][..vocab], &of_full[token * vocab..][..vocab]);
        assert!(relative(ours, theirs) < 1e-13, "token {token}");
    }
}

/// Without labels of one kind, the other head still trains; without both there is nothing to do.
#[test]
fn a_batch_may_lack_masks_or_next_sentence_labels() {
    let config = config();
    let mut bert = bert(&config);
    let mut grads = bert.gradients().unwrap();
    let mut no_masks = sequences(&LENGTHS, 37);
    for s in &mut no_masks {
        s.mlm_positions.clear();
        s.mlm_labels.clear();
    }
    let (loss, gradient) = loss_and_gradient(&mut bert, &mut grads, &[Batch::pack(&no_masks, 0, POSITIONS)]);
    assert!(loss > 0.0);
    let transform = bert.table().transform.weight.clone();
    assert!(gradient[transform].iter().all(|&g| g == 0.0));

    let mut no_nsp = sequences(&LENGTHS, 37);
    no_nsp.iter_mut().for_each(|s| s.nsp_label = None);
    let (loss, gradient) = loss_and_gradient(&mut bert, &mut grads, &[Batch::pack(&no_nsp, 0, POSITIONS)]);
    assert!(loss > 0.0);
    assert!(gradient[bert.table().pooler.weight.clone()].iter().all(|&g| g == 0.0));
}

/// A batch of another model is an error with both numbers, not a wrong result.
#[test]
fn a_foreign_batch_is_refused() {
    let config = config();
    let mut bert = bert(&config);
    let mut grads = bert.gradients().unwrap();
    let scale = LossScale::new(1, 1);
    let mut refused = |lengths: &[u32], vocab: u32| {
        let batch = Batch::pack(&sequences(lengths, vocab), 0, POSITIONS);
        bert.forward_backward(&mut grads, &batch, scale, 1).unwrap_err().to_string()
    };
    let message = refused(&[25], 37);
    assert!(message.contains("24") && message.contains("25"), "{message}");
    let message = refused(&[24, 24, 24], 1000);
    assert!(message.contains("37"), "{message}");
}

/// The softmax does not see a key's bias: its gradient is exactly 0, not what rounding leaves of it.
#[test]
fn a_key_bias_has_no_gradient() {
    let config = config();
    let mut bert = bert(&config);
    let mut grads = bert.gradients().unwrap();
    let batch = Batch::pack(&sequences(&LENGTHS, 37), 0, POSITIONS);
    let (_, gradient) = loss_and_gradient(&mut bert, &mut grads, &[batch.clone(), batch]);
    for tensor in &bert.table().tensors {
        let zero = gradient[tensor.range()].iter().all(|&g| g == 0.0);
        assert_eq!(zero, tensor.name.ends_with("attention.self.key.bias"), "{}", tensor.name);
    }
}

/// Weights and the last loss after four steps of three micro-batches with dropout.
fn trained(config: &ModelConfig, recompute: Recompute) -> (Vec<u32>, u64) {
    let mut bert = Bert::recomputing(Cpu::<f32>::new(), config, recompute).unwrap();
    bert.init(3).unwrap();
    let mut grads = bert.gradients().unwrap();
    let kind = OptimizerConfig { kind: OptimizerKind::Lamb, ..OptimizerConfig::default() };
    let mut optimizer = Optimizer::new(bert.backend(), bert.table(), &kind).unwrap();
    let (all, mut loss) = (sequences(&LENGTHS, 37), 0.0);
    for step in 0..4 {
        bert.clear_sums().unwrap();
        grads.clear(bert.backend()).unwrap();
        for range in [0..1, 1..3, 3..4] {
            let batch = Batch::pack(&all[range.clone()], range.start as u32, POSITIONS);
            bert.forward_backward(&mut grads, &batch, LossScale::new(10, 4), step_key(1, step)).unwrap();
        }
        loss = bert.sums().unwrap().mlm_loss;
        let (backend, weights) = bert.weights_mut();
        optimizer.update(backend, &mut Solo, weights, grads.params(), 0.01).unwrap();
    }
    (bert.weights().unwrap().iter().map(|w| w.to_bits()).collect(), loss.to_bits())
}

#[test]
fn recomputing_layers_changes_no_bit() {
    for layers in [1, 2, 3, 5] {
        let config = ModelConfig { layers, ..config() };
        let kept = trained(&config, Recompute::None);
        assert!(kept == trained(&config, Recompute::Layer), "{layers} layers");
        let undropped = ModelConfig { hidden_dropout: 0.0, attention_dropout: 0.0, ..config };
        assert!(kept != trained(&undropped, Recompute::Layer), "dropout has no effect");
    }
}
