//! A small model and batches for it.

use engine::config::{ModelConfig, Preset};
use engine::data::{Batch, Sequence};
use engine::model::{Bert, Gradients, LossScale};
use kernels::backend::Gelu;
use kernels::cpu::Cpu;
use kernels::philox::{Stream, step_key};

/// Positions of the model, and the stride of the dropout's row keys.
pub const POSITIONS: u32 = 24;

/// Odd sizes, all dropouts on.
pub fn config() -> ModelConfig {
    ModelConfig {
        layers: 2,
        hidden: 18,
        heads: 3,
        intermediate: 26,
        max_positions: POSITIONS as usize,
        vocab_size: 37,
        gelu: Gelu::Tanh,
        hidden_dropout: 0.1,
        attention_dropout: 0.2,
        initializer_range: 0.3,
        ..Preset::Tiny.model()
    }
}

/// A model in f64 with random weights, biases and layernorms included.
pub fn bert(config: &ModelConfig) -> Bert<Cpu<f64>> {
    let mut bert = Bert::new(Cpu::<f64>::new(), config).unwrap();
    bert.init(3).unwrap();
    let mut weights: Vec<f32> = bert.weights().unwrap().iter().map(|&w| w as f32).collect();
    let mut stream = Stream::new(5, 0, 99);
    for tensor in bert.table().tensors.iter().filter(|t| !t.decay) {
        weights[tensor.range()].iter_mut().for_each(|w| *w += stream.uniform() as f32 * 0.4 - 0.2);
    }
    bert.load_weights(&weights).unwrap();
    bert
}

/// Sequences of these lengths; the first one's first token is masked, the last has one token and no mask.
pub fn sequences(lengths: &[u32], vocab: u32) -> Vec<Sequence> {
    let mut stream = Stream::new(9, u64::from(lengths[0]), 98);
    lengths
        .iter()
        .enumerate()
        .map(|(i, &len)| {
            let mlm_positions: Vec<u32> =
                (0..len).filter(|p| len > 1 && (p + i as u32).is_multiple_of(4)).collect();
            Sequence {
                tokens: (0..len).map(|_| stream.below(vocab)).collect(),
                types: (0..len).map(|p| u32::from(p > len / 2)).collect(),
                mlm_labels: mlm_positions.iter().map(|_| stream.below(vocab)).collect(),
                mlm_positions,
                nsp_label: Some(stream.below(2)),
            }
        })
        .collect()
}

/// Loss and gradient of a batch given as micro-batches, with dropout.
pub fn loss_and_gradient(
    bert: &mut Bert<Cpu<f64>>,
    grads: &mut Gradients<Cpu<f64>>,
    micro: &[Batch],
) -> (f64, Vec<f64>) {
    let masked = micro.iter().map(|b| b.mlm_labels.len()).sum();
    let labelled = micro.iter().map(|b| b.nsp_labels.len()).sum();
    let scale = LossScale::new(masked, labelled);
    bert.clear_sums().unwrap();
    grads.clear(bert.backend()).unwrap();
    for batch in micro {
        bert.forward_backward(grads, batch, scale, step_key(1, 2)).unwrap();
    }
    let sums = bert.sums().unwrap();
    let loss = sums.mlm_loss * scale.mlm + sums.nsp_loss * scale.nsp;
    (loss, grads.download(bert.backend()).unwrap())
}
