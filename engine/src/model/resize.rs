//! A model's weights for another number of tokens or positions.

use super::init;
use crate::config::{Extension, NewRows};
use crate::table::{Tensor, TensorTable};

/// Which rows stay and how new ones start. Everything else of both models is of one size.
pub struct Resize {
    /// Rows of the word embeddings and MLM biases that stay; those behind them are new.
    pub kept_tokens: usize,
    /// How new rows start; where there are none it does not matter.
    pub new_rows: NewRows,
    /// How new positions start; where there are none it does not matter.
    pub new_positions: Extension,
    /// Standard deviation of what is drawn.
    pub deviation: f64,
    /// Of what is drawn.
    pub seed: u64,
}

impl Resize {
    /// The weights [to.len] of a table from those [from.len] of another, padding 0.
    pub fn apply(&self, from: &TensorTable, weights: &[f32], to: &TensorTable) -> Vec<f32> {
        let mut resized = vec![0.0; to.len];
        for (old, new) in from.tensors.iter().zip(&to.tensors) {
            let source = &weights[old.range()];
            if new.offset == to.word.start || new.offset == to.decoder_bias.start {
                self.tokens(old, source, to, new, &mut resized);
            } else if new.offset == to.position.start {
                self.positions(source, to, new, &mut resized);
            } else {
                resized[new.range()].copy_from_slice(source);
            }
        }
        resized
    }

    fn draw(&self, to: &TensorTable, new: &Tensor, resized: &mut [f32]) {
        init::tensors(resized, to, |name| name == new.name, self.deviation, self.seed);
    }

    fn tokens(&self, old: &Tensor, source: &[f32], to: &TensorTable, new: &Tensor, resized: &mut [f32]) {
        let width: usize = old.shape[1..].iter().product();
        let kept = &source[..self.kept_tokens * width];
        if self.new_rows == NewRows::Random {
            self.draw(to, new, resized);
        }
        let (same, added) = resized[new.range()].split_at_mut(kept.len());
        same.copy_from_slice(kept);
        if self.new_rows == NewRows::Mean && !added.is_empty() {
            let mut sums = vec![0.0f64; width];
            for row in kept.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            for row in added.chunks_exact_mut(width) {
                row.iter_mut().zip(&sums).for_each(|(x, sum)| *x = (sum / self.kept_tokens as f64) as f32);
            }
        }
    }

    fn positions(&self, source: &[f32], to: &TensorTable, new: &Tensor, resized: &mut [f32]) {
        match self.new_positions {
            Extension::Tile => {
                for tile in resized[new.range()].chunks_mut(source.len()) {
                    tile.copy_from_slice(&source[..tile.len()]);
                }
            }
            Extension::Random => {
                self.draw(to, new, resized);
                let target = &mut resized[new.range()];
                let kept = source.len().min(target.len());
                target[..kept].copy_from_slice(&source[..kept]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, Preset};

    fn model(vocab_size: usize, max_positions: usize) -> ModelConfig {
        ModelConfig { layers: 1, hidden: 4, heads: 1, vocab_size, max_positions, ..Preset::Tiny.model() }
    }

    /// From 10 tokens and 3 positions; each element is its place in its tensor.
    fn resized(resize: &Resize, tokens: usize, positions: usize) -> (TensorTable, Vec<f32>) {
        let (from, to) = (TensorTable::new(&model(10, 3)), TensorTable::new(&model(tokens, positions)));
        let mut weights = vec![0.0; from.len];
        for tensor in &from.tensors {
            (0..).zip(&mut weights[tensor.range()]).for_each(|(i, w)| *w = i as f32);
        }
        let resized = resize.apply(&from, &weights, &to);
        for (old, new) in from.tensors.iter().zip(&to.tensors).filter(|(old, new)| old.shape == new.shape) {
            assert_eq!(resized[new.range()], weights[old.range()], "{}", new.name);
        }
        assert_eq!(resized.len(), to.len);
        (to, resized)
    }

    const RESIZE: Resize = Resize {
        kept_tokens: 10,
        new_rows: NewRows::Mean,
        new_positions: Extension::Tile,
        deviation: 0.02,
        seed: 1,
    };

    #[test]
    fn fewer_rows_are_the_first() {
        let (table, weights) = resized(&Resize { kept_tokens: 7, ..RESIZE }, 7, 2);
        assert_eq!(weights[table.word.start..][..28], (0..28).map(|i| i as f32).collect::<Vec<_>>());
        assert!(weights[table.word.start + 28..table.word.end].iter().all(|&w| w == 0.0), "padding");
        assert_eq!(weights[table.decoder_bias.start..][..8], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]);
        assert_eq!(weights[table.position.clone()], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn new_tokens_start_as_the_mean_or_drawn() {
        // of 9 rows: the tenth was padding
        let (table, weights) = resized(&Resize { kept_tokens: 9, ..RESIZE }, 12, 3);
        for row in 9..12 {
            assert_eq!(weights[table.word.start + 4 * row..][..4], [16.0, 17.0, 18.0, 19.0]);
        }
        assert_eq!(weights[table.decoder_bias.start + 8..][..5], [8.0, 4.0, 4.0, 4.0, 0.0]);

        let random = Resize { new_rows: NewRows::Random, ..RESIZE };
        let (table, weights) = resized(&random, 12, 3);
        let added = &weights[table.word.start + 40..][..8];
        assert!(added.iter().all(|&w| w != 0.0 && w.abs() <= 0.04), "{added:?}");
        assert_eq!(weights[table.decoder_bias.start + 9..][..3], [9.0, 0.0, 0.0]);
        assert_eq!(weights, resized(&random, 12, 3).1);
        assert_ne!(weights, resized(&Resize { seed: 2, ..random }, 12, 3).1);
    }

    #[test]
    fn new_positions_repeat_the_old_ones_or_are_drawn() {
        let (table, weights) = resized(&RESIZE, 10, 7);
        let place = |row: usize| weights[table.position.start + 4 * row];
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(place), [0.0, 4.0, 8.0, 0.0, 4.0, 8.0, 0.0]);
        let (table, weights) = resized(&Resize { new_positions: Extension::Random, ..RESIZE }, 10, 7);
        let rows = &weights[table.position.clone()];
        assert_eq!(rows[..12], (0..12).map(|i| i as f32).collect::<Vec<_>>());
        assert!(rows[12..].iter().all(|&w| w != 0.0 && w.abs() <= 0.04));
    }
}
