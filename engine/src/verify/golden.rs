//! A golden file in memory: its sizes, weights, batches and reference results, each checked when it is asked for.

use crate::config::{ModelConfig, Preset};
use crate::data::Sequence;
use crate::table::TensorTable;
use crate::{Error, Result};
use kernels::backend::Gelu;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct HfConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
}

/// A golden file in memory.
pub(super) struct Golden<'a> {
    pub(super) path: &'a Path,
    tensors: SafeTensors<'a>,
    pub(super) config: ModelConfig,
}

impl<'a> Golden<'a> {
    pub(super) fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let bad = |what: String| Error::file(path, what);
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| bad(format!("not a safetensors file ({e}); download it again")))?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
        let config = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get("config"))
            .ok_or_else(|| bad("metadata has no `config`: not a golden file".into()))?;
        let c: HfConfig = serde_json::from_str(config).map_err(|e| bad(format!("metadata `config`: {e}")))?;
        let gelu = match c.hidden_act.as_str() {
            "gelu" => Gelu::Erf,
            "gelu_new" | "gelu_pytorch_tanh" => Gelu::Tanh,
            other => return Err(bad(format!("hidden_act is `{other}`, expected gelu or gelu_new"))),
        };
        let config = ModelConfig {
            layers: c.num_hidden_layers,
            hidden: c.hidden_size,
            heads: c.num_attention_heads,
            intermediate: c.intermediate_size,
            max_positions: c.max_position_embeddings,
            type_vocab: c.type_vocab_size,
            vocab_size: c.vocab_size,
            gelu,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            layer_norm_eps: c.layer_norm_eps,
            ..Preset::Tiny.model()
        };
        let golden = Self { path, tensors, config };
        golden.check_sizes()?;
        Ok(golden)
    }

    /// The configuration's sizes are only believed where the file holds tensors of those sizes.
    fn check_sizes(&self) -> Result<()> {
        let c = &self.config;
        if c.heads == 0 || c.layers == 0 || !c.hidden.is_multiple_of(c.heads.max(1)) {
            let what = format!("config: {} layers, hidden {} over {} heads", c.layers, c.hidden, c.heads);
            return Err(Error::file(self.path, what));
        }
        let (last, h) = (c.layers - 1, c.hidden);
        for (name, want) in [
            ("embeddings.word_embeddings".to_owned(), [c.vocab_size, h]),
            ("embeddings.position_embeddings".to_owned(), [c.max_positions, h]),
            ("embeddings.token_type_embeddings".to_owned(), [c.type_vocab, h]),
            (format!("encoder.layer.{last}.intermediate.dense"), [c.intermediate, h]),
        ] {
            let name = format!("param.bert.{name}.weight");
            let shape = self.tensor(&name)?.shape().to_vec();
            if shape != want {
                return Err(Error::file(self.path, format!("`{name}` is {shape:?}, config says {want:?}")));
            }
        }
        let more = format!("param.bert.encoder.layer.{}.output.dense.weight", c.layers);
        if self.tensors.tensor(&more).is_ok() {
            let what = format!("holds `{more}`, config says {} layers", c.layers);
            return Err(Error::file(self.path, what));
        }
        if !(c.layer_norm_eps.is_finite() && c.layer_norm_eps > 0.0) {
            let what = format!("config: layer_norm_eps is {}, expected more than 0", c.layer_norm_eps);
            return Err(Error::file(self.path, what));
        }
        Ok(())
    }

    fn tensor(&self, name: &str) -> Result<safetensors::tensor::TensorView<'_>> {
        self.tensors.tensor(name).map_err(|_| {
            Error::file(self.path, format!("has no tensor `{name}`: not a golden file, or cut off"))
        })
    }

    /// Any float tensor, widened.
    fn floats(&self, name: &str) -> Result<Vec<f64>> {
        let view = self.tensor(name)?;
        match view.dtype() {
            Dtype::F64 => Ok(view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
            Dtype::F32 => {
                Ok(view.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
            }
            other => Err(Error::file(self.path, format!("`{name}` is {other:?}, expected F32 or F64"))),
        }
    }

    fn integers(&self, name: &str) -> Result<(Vec<i64>, Vec<usize>)> {
        let view = self.tensor(name)?;
        if view.dtype() != Dtype::I64 {
            return Err(Error::file(self.path, format!("`{name}` is {:?}, expected I64", view.dtype())));
        }
        let values = view.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        Ok((values, view.shape().to_vec()))
    }

    /// A float tensor of this shape.
    pub(super) fn checked(&self, name: &str, want: &[usize]) -> Result<Vec<f64>> {
        let view = self.tensor(name)?;
        if view.shape() != want {
            let what = format!("`{name}` has shape {:?}, expected {want:?}", view.shape());
            return Err(Error::file(self.path, what));
        }
        self.floats(name)
    }

    /// The sequences of batch `index`, without padding.
    pub(super) fn batch(&self, index: usize) -> Result<Vec<Sequence>> {
        let field = |name: &str| self.integers(&format!("batch{index}.{name}"));
        let (ids, shape) = field("input_ids")?;
        let [rows, cols] = shape[..] else {
            return Err(Error::file(self.path, format!("batch{index}.input_ids has shape {shape:?}")));
        };
        let (mask, types, labels) =
            (field("attention_mask")?.0, field("token_type_ids")?.0, field("labels")?.0);
        let next = field("next_sentence_label")?.0;
        if [mask.len(), types.len(), labels.len()] != [ids.len(); 3] || next.len() != rows {
            return Err(Error::file(self.path, format!("batch{index}: its tensors differ in shape")));
        }
        if rows == 0 {
            return Err(Error::file(
                self.path,
                format!("batch{index}.input_ids has shape {shape:?}: no sequence"),
            ));
        }
        let small = |what: &str, value: i64, limit: usize| {
            u32::try_from(value).ok().filter(|&v| (v as usize) < limit).ok_or_else(|| {
                Error::file(self.path, format!("batch{index}.{what}: {value}, expected 0..{limit}"))
            })
        };
        (0..rows)
            .map(|row| {
                let range = row * cols..(row + 1) * cols;
                let len = mask[range.clone()].iter().take_while(|&&m| m != 0).count();
                if len == 0 || mask[range.clone()][len..].iter().any(|&m| m != 0) {
                    let what = format!("batch{index}.attention_mask: row {row} is not ones, then zeros");
                    return Err(Error::file(self.path, what));
                }
                let mut s = Sequence {
                    nsp_label: Some(small("next_sentence_label", next[row], 2)?),
                    ..Sequence::default()
                };
                for (position, i) in range.take(len).enumerate() {
                    s.tokens.push(small("input_ids", ids[i], self.config.vocab_size)?);
                    s.types.push(small("token_type_ids", types[i], self.config.type_vocab)?);
                    if labels[i] != -100 {
                        s.mlm_positions.push(position as u32);
                        s.mlm_labels.push(small("labels", labels[i], self.config.vocab_size)?);
                    }
                }
                Ok(s)
            })
            .collect()
    }

    /// The rows of a padded [B, S, width] tensor that are tokens.
    pub(super) fn unpadded(&self, name: &str, sequences: &[Sequence], width: usize) -> Result<Vec<f64>> {
        let longest = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let cols = self.tensor(name)?.shape().get(1).copied().unwrap_or(0).max(longest);
        let values = self.checked(name, &[sequences.len(), cols, width])?;
        Ok(sequences
            .iter()
            .enumerate()
            .flat_map(|(i, s)| &values[i * cols * width..][..s.tokens.len() * width])
            .copied()
            .collect())
    }

    pub(super) fn initial_weights(&self, table: &TensorTable) -> Result<Vec<f32>> {
        let mut weights = vec![0.0; table.len];
        for tensor in &table.tensors {
            let values = self.checked(&format!("param.{}", tensor.name), &tensor.shape)?;
            for (w, v) in weights[tensor.range()].iter_mut().zip(values) {
                *w = v as f32;
            }
        }
        Ok(weights)
    }
}
