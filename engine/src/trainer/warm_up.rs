//! Before MLPerf's clock runs: what a device does only once.

use super::evaluation::EVAL_BATCH;
use crate::Result;
use crate::bench;
use crate::config::{Config, TrainConfig};
use crate::data::shards::{Manifest, SplitManifest};
use crate::model::{Bert, Gradients, LossScale};
use kernels::Backend;

/// Batches differ in tokens, and products of about as many rows share an algorithm: shares of the mean that reach the
/// neighbours too.
const SHARES: [f64; 3] = [1.0, 0.9, 1.1];

/// Runs passes of the usual sizes on made-up tokens, so that kernels are loaded and the algorithms of products are chosen
/// before the data may be touched. Nothing of it stays: no weight is updated, and a step begins with gradients and sums
/// of 0. The host has nothing to load.
pub fn warm_up<B: Backend<Acc = f32>>(
    bert: &mut Bert<B>,
    grads: &mut Gradients<B>,
    config: &Config,
    manifest: &Manifest,
    world: usize,
) -> Result<()> {
    if B::HOST {
        return Ok(());
    }
    let model = bert.config().clone();
    let predictions = manifest.options.max_predictions;
    for share in SHARES {
        let [train, eval] = [
            lengths(&manifest.train, own_sequences(&config.train, &manifest.train, world), share),
            lengths(&manifest.eval, EVAL_BATCH.min(manifest.eval.sequences as usize), share),
        ];
        let batch = bench::batch(&model, &train, predictions);
        let scale = LossScale::new(batch.mlm_labels.len(), batch.nsp_labels.len());
        bert.forward_backward(grads, &batch, scale, 0)?;
        if !eval.is_empty() {
            bert.evaluate(&bench::batch(&model, &eval, predictions))?;
        }
    }
    bert.clear_sums()?;
    grads.clear(bert.backend())
}

/// Sequences of a micro-batch.
fn own_sequences(train: &TrainConfig, data: &SplitManifest, world: usize) -> usize {
    let all = match train.batch_tokens {
        0 => train.batch_sequences,
        tokens => tokens / mean(data).ceil() as usize,
    };
    all.div_ceil(world).div_ceil(train.accumulation.max(1)).max(1)
}

fn mean(data: &SplitManifest) -> f64 {
    (data.tokens as f64 / data.sequences.max(1) as f64).max(1.0)
}

fn lengths(data: &SplitManifest, sequences: usize, share: f64) -> Vec<u32> {
    vec![((mean(data) * share) as usize).clamp(2, data.longest.max(2)) as u32; sequences]
}
