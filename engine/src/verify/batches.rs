//! The batches that a run trains and evaluates on as a file, so that other software can train on the same ones.

use crate::config::Config;
use crate::data::loader::eval_batches;
use crate::data::{Batch, Dataset, Loader, LoaderConfig, LoaderState, SplitName};
use crate::files::write_new;
use crate::{Error, Result};
use kernels::cpu::memory::total;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::Arc;

/// Sequences of one evaluation batch in the file.
const EVAL_BATCH: usize = 32;

/// What [`write_batches`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Sequences to train on.
    pub train_sequences: usize,
    /// Their tokens.
    pub train_tokens: usize,
    /// Sequences to evaluate on.
    pub eval_sequences: usize,
}

/// Writes the first `batches` global batches of the run that `config`, a resolved configuration, describes, and all that
/// its evaluations read, to a safetensors file. For P of `train` and `eval`, with N sequences of T tokens in all, M of
/// them masked, in B batches (`eval`: of 32 sequences), in the order in which the run reads them, all i32:
///
/// - `P.tokens` [T], masked; `P.token_types` [T];
/// - `P.cu_seqlens` [N + 1], offsets of the sequences; `P.cu_batches` [B + 1], offsets of the batches in sequences;
/// - `P.mlm_positions` [M], indices into `P.tokens`, ascending; `P.mlm_labels` [M], the original tokens there;
/// - `P.nsp_labels` [N], left out where the data has none.
///
/// Without held-out text there is no `eval`. All of it is in memory at once: about 10 bytes a token.
///
/// # Errors
/// Data that is missing, damaged or does not fit the configuration; more than 2^31 tokens; a file that is there already or
/// cannot be written.
pub fn write_batches(path: &Path, config: &Config, batches: u64) -> Result<Written> {
    let open = |split| Dataset::open_verified(&config.data.dir, split);
    let (data, held_out) = (Arc::new(open(SplitName::Train)?), open(SplitName::Eval)?);
    let t = &config.train;
    let max_positions = config.model.max_positions;
    let loader = LoaderConfig {
        batch_sequences: t.batch_sequences,
        batch_tokens: t.batch_tokens,
        accumulation: t.accumulation,
        seed: t.seed,
        rank: 0,
        world: 1,
        max_positions,
    };
    check_count(path, config, &data, batches)?;
    let mut loader = Loader::new(data.clone(), loader, LoaderState::default())?;
    let mut train = Flat::new();
    for _ in 0..batches {
        train.add(&loader.next()?.micro);
        train.check(path)?;
    }
    let mut eval = Flat::new();
    for batch in eval_batches(&held_out, t.eval_sequences, EVAL_BATCH, max_positions, (0, 1)) {
        eval.add(&[batch?]);
        eval.check(path)?;
    }
    let written = Written {
        train_sequences: train.sequences(),
        train_tokens: train.tokens.len(),
        eval_sequences: eval.sequences(),
    };
    let parts: &[_] =
        if eval.sequences() > 0 { &[("train", train), ("eval", eval)] } else { &[("train", train)] };
    let refused =
        |e: safetensors::SafeTensorError| Error::file(path, format!("cannot describe the batches: {e}"));
    let views: std::result::Result<Vec<_>, _> =
        parts.iter().flat_map(|(name, flat)| flat.views(name)).collect();
    let bytes = safetensors::serialize(views.map_err(refused)?, None).map_err(refused)?;
    data.check_files()?;
    held_out.check_files()?;
    write_new(path, &bytes)?;
    Ok(written)
}

/// Refuses so many batches that the file's offsets or the memory cannot hold them.
fn check_count(path: &Path, config: &Config, data: &Dataset, batches: u64) -> Result<()> {
    /// Of a token in memory, joined and once more as the file's content.
    const BYTES: f64 = 24.0;
    let mean = data.split().tokens as f64 / data.len().max(1) as f64;
    let tokens = match config.train.batch_tokens {
        0 => config.train.batch_sequences as f64 * mean,
        tokens => tokens as f64,
    };
    let memory = total().map_or(f64::INFINITY, |bytes| bytes as f64 / BYTES);
    let most = (f64::from(i32::MAX).min(memory) / tokens).floor();
    if batches as f64 <= most {
        return Ok(());
    }
    let what =
        format!("{batches} batches of about {tokens:.0} tokens are more than fit; ask for at most {most}");
    Err(Error::file(path, what))
}

/// Batches joined, as the file holds them.
struct Flat {
    tokens: Vec<u32>,
    types: Vec<u32>,
    cu_seqlens: Vec<u32>,
    cu_batches: Vec<u32>,
    mlm_positions: Vec<u32>,
    mlm_labels: Vec<u32>,
    nsp_labels: Vec<u32>,
}

impl Flat {
    fn new() -> Self {
        let (start, none) = (vec![0], Vec::new);
        Self {
            tokens: none(),
            types: none(),
            cu_seqlens: start.clone(),
            cu_batches: start,
            mlm_positions: none(),
            mlm_labels: none(),
            nsp_labels: none(),
        }
    }

    fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Adds one batch, given as its micro-batches.
    fn add(&mut self, micro: &[Batch]) {
        for batch in micro {
            let start = self.tokens.len() as u32;
            self.tokens.extend(&batch.tokens);
            self.types.extend(&batch.types);
            self.cu_seqlens.extend(batch.cu_seqlens[1..].iter().map(|end| start + end));
            let position = |&row: &u32| start + batch.rows[row as usize];
            self.mlm_positions.extend(batch.mlm_rows.iter().map(position));
            self.mlm_labels.extend(&batch.mlm_labels);
            self.nsp_labels.extend(&batch.nsp_labels);
        }
        self.cu_batches.push(self.sequences() as u32);
    }

    /// Offsets are i32. One batch is far smaller than what is left up to 2^32.
    fn check(&self, path: &Path) -> Result<()> {
        if i32::try_from(self.tokens.len()).is_ok() {
            return Ok(());
        }
        let batches = self.cu_batches.len() - 1;
        let what = format!("{batches} batches have more than {} tokens, ask for fewer", i32::MAX);
        Err(Error::file(path, what))
    }

    fn views<'a>(
        &'a self,
        part: &str,
    ) -> Vec<std::result::Result<(String, TensorView<'a>), safetensors::SafeTensorError>> {
        [
            ("tokens", &self.tokens),
            ("token_types", &self.types),
            ("cu_seqlens", &self.cu_seqlens),
            ("cu_batches", &self.cu_batches),
            ("mlm_positions", &self.mlm_positions),
            ("mlm_labels", &self.mlm_labels),
            ("nsp_labels", &self.nsp_labels),
        ]
        .into_iter()
        .filter(|(name, values)| *name != "nsp_labels" || !values.is_empty())
        .map(|(name, values)| {
            let view = TensorView::new(Dtype::I32, vec![values.len()], bytemuck::cast_slice(values))?;
            Ok((format!("{part}.{name}"), view))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sequence;

    #[test]
    fn micro_batches_are_joined_and_offsets_go_on() {
        let one = Sequence {
            tokens: vec![2, 7, 3],
            types: vec![0, 0, 1],
            mlm_positions: vec![0, 2],
            mlm_labels: vec![9, 8],
            nsp_label: Some(1),
        };
        let two =
            Sequence { tokens: vec![5, 4], types: vec![0, 1], nsp_label: Some(0), ..Sequence::default() };
        let pack = |s: &[Sequence]| Batch::pack(s, 0, 8);
        let mut flat = Flat::new();
        flat.add(&[pack(&[two.clone(), one.clone()]), pack(std::slice::from_ref(&two))]);
        flat.add(&[pack(&[one])]);
        assert_eq!(flat.tokens, [5, 4, 2, 7, 3, 5, 4, 2, 7, 3]);
        assert_eq!(flat.types, [0, 1, 0, 0, 1, 0, 1, 0, 0, 1]);
        assert_eq!(flat.cu_seqlens, [0, 2, 5, 7, 10]);
        assert_eq!(flat.cu_batches, [0, 3, 4]);
        assert_eq!(flat.mlm_positions, [2, 4, 7, 9]);
        assert_eq!(flat.mlm_labels, [9, 8, 9, 8]);
        assert_eq!(flat.nsp_labels, [0, 1, 0, 1]);
    }
}
