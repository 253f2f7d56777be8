//! Random starting weights.

use crate::Result;
use crate::table::{Init, Tensor, TensorTable};
use kernels::cpu::memory::zeros;
use kernels::philox::{INIT, Stream, step_key};
use rayon::prelude::*;

/// Elements drawn from one stream: the draws do not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// All weights in table order, padding 0.
///
/// # Errors
/// Memory that does not suffice.
pub fn weights(table: &TensorTable, deviation: f64, seed: u64) -> Result<Vec<f32>> {
    let mut weights = zeros("the first weights", table.len)?;
    tensors(&mut weights, table, |_| true, deviation, seed);
    Ok(weights)
}

/// Draws those tensors whose name is `chosen`; the others keep their values.
pub fn tensors(
    weights: &mut [f32],
    table: &TensorTable,
    chosen: impl Fn(&str) -> bool,
    deviation: f64,
    seed: u64,
) {
    for (index, tensor) in table.tensors.iter().enumerate().filter(|(_, t)| chosen(&t.name)) {
        let part = &mut weights[tensor.range()];
        match tensor.init {
            Init::Zeros => part.fill(0.0),
            Init::Ones => part.fill(1.0),
            Init::TruncatedNormal => truncated_normal(part, tensor, index, deviation, seed),
        }
    }
}

fn truncated_normal(part: &mut [f32], tensor: &Tensor, index: usize, deviation: f64, seed: u64) {
    debug_assert_eq!(part.len(), tensor.len());
    part.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
        let mut stream = Stream::new(step_key(seed, 0), (index as u64) << 32 | chunk as u64, INIT);
        for w in out {
            *w = (standard_normal_within_two(&mut stream) * deviation) as f32;
        }
    });
}

/// Box and Muller's transform, drawn again beyond two standard deviations.
fn standard_normal_within_two(stream: &mut Stream) -> f64 {
    loop {
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * stream.uniform()).cos();
        if normal.abs() <= 2.0 {
            return normal;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, Preset};

    #[test]
    fn truncated_normal_has_its_moments_and_padding_stays_zero() {
        let config = ModelConfig { vocab_size: 1001, ..Preset::Tiny.model() };
        let table = TensorTable::new(&config);
        let weights = weights(&table, 0.02, 7).unwrap();
        let word = &weights[table.find("bert.embeddings.word_embeddings.weight").unwrap().range()];
        let mean = word.iter().sum::<f32>() / word.len() as f32;
        let variance = word.iter().map(|w| w * w).sum::<f32>() / word.len() as f32;
        assert!(mean.abs() < 3e-4, "{mean}");
        // A normal cut at two deviations has 0.8796 of the deviation.
        assert!((variance.sqrt() / 0.02 - 0.8796).abs() < 5e-3, "{variance}");
        assert!(word.iter().all(|w| w.abs() <= 0.04));
        assert!(weights[1001 * 128..table.padded_vocab * 128].iter().all(|&w| w == 0.0));
        assert_eq!(weights, super::weights(&table, 0.02, 7).unwrap());
        assert_ne!(weights, super::weights(&table, 0.02, 8).unwrap());
    }
}
