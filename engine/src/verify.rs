//! Golden files: a reference implementation's weights, batches, hidden states, losses, gradients and ten optimizer
//! steps, compared with ours. The format is described in tests/golden/README.md.

use crate::config::{ModelConfig, OptimizerConfig, OptimizerKind, Preset, ScheduleConfig, ScheduleKind};
use crate::data::{Batch, Sequence};
use crate::error::During;
use crate::model::{Bert, LossScale};
use crate::optim::{Optimizer, learning_rate};
use crate::table::{Tensor, TensorTable};
use crate::{Error, Result};
use kernels::Scalar;
use kernels::backend::{Backend, Gelu};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Limits of the relative error `|ours - reference| / |reference|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Hidden states, logits, losses, gradients of one pass.
    pub pass: f64,
    /// Losses and gradient norms over the ten steps.
    pub trajectory: f64,
    /// Weights after ten steps, which the files keep in f32.
    pub weights: f64,
}

impl Limits {
    /// For a backend of 64-bit floats.
    pub const F64: Self = Self { pass: 1e-8, trajectory: 1e-8, weights: 1e-6 };
    /// For a backend of 32-bit floats.
    pub const F32: Self = Self { pass: 1e-4, trajectory: 1e-3, weights: 1e-3 };
}

/// One comparison: the worst relative error over its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyLine {
    /// The golden file.
    pub file: PathBuf,
    /// What was compared.
    pub what: &'static str,
    /// The worst tensor.
    pub worst: String,
    /// Its relative error; NaN counts as exceeded.
    pub error: f64,
    /// The limit.
    pub limit: f64,
}

impl VerifyLine {
    /// Whether the error is within the limit.
    pub fn passed(&self) -> bool {
        self.error <= self.limit
    }
}

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
struct Golden<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    config: ModelConfig,
}

impl<'a> Golden<'a> {
    fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
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

    fn checked(&self, name: &str, want: usize) -> Result<Vec<f64>> {
        let values = self.floats(name)?;
        if values.len() != want {
            let what = format!("`{name}` has {} elements, expected {want}", values.len());
            return Err(Error::file(self.path, what));
        }
        Ok(values)
    }

    /// The sequences of batch `index`, without padding.
    fn batch(&self, index: usize) -> Result<Vec<Sequence>> {
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
    fn unpadded(&self, name: &str, sequences: &[Sequence], width: usize) -> Result<Vec<f64>> {
        let padded = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let cols = self.tensor(name)?.shape().get(1).copied().unwrap_or(padded);
        let values = self.checked(name, sequences.len() * cols * width)?;
        Ok(sequences
            .iter()
            .enumerate()
            .flat_map(|(i, s)| &values[i * cols * width..][..s.tokens.len() * width])
            .copied()
            .collect())
    }

    fn initial_weights(&self, table: &TensorTable) -> Result<Vec<f32>> {
        let mut weights = vec![0.0; table.len];
        for tensor in &table.tensors {
            let values = self.checked(&format!("param.{}", tensor.name), tensor.len())?;
            for (w, v) in weights[tensor.range()].iter_mut().zip(values) {
                *w = v as f32;
            }
        }
        Ok(weights)
    }
}

/// Euclidean norm.
fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// `|ours - reference|`.
fn distance(ours: &[f64], reference: &[f64]) -> f64 {
    if ours.len() != reference.len() {
        return f64::NAN;
    }
    norm(ours.iter().zip(reference).map(|(a, b)| a - b))
}

/// The worst of several relative errors, and whose it is.
struct Worst {
    error: f64,
    name: String,
}

impl Worst {
    fn new() -> Self {
        Self { error: 0.0, name: String::new() }
    }

    fn see(&mut self, name: &str, error: f64) {
        if self.name.is_empty() || error.is_nan() || error > self.error {
            (self.error, self.name) = (error, name.to_owned());
        }
    }

    fn see_values(&mut self, name: &str, ours: &[f64], reference: &[f64]) {
        self.see(name, distance(ours, reference) / norm(reference.iter().copied()));
    }

    fn line(self, file: &Path, what: &'static str, limit: f64) -> VerifyLine {
        VerifyLine { file: file.to_owned(), what, worst: self.name, error: self.error, limit }
    }
}

/// Runs one golden file on `backend`.
pub fn run<B: Backend>(backend: &dyn Fn() -> B, path: &Path, limits: Limits) -> Result<Vec<VerifyLine>> {
    let bytes = std::fs::read(path).during("cannot read", path)?;
    let golden = Golden::parse(path, &bytes)?;
    let mut lines = one_pass(backend, &golden, limits)?;
    for kind in [OptimizerKind::AdamW, OptimizerKind::Lamb] {
        lines.extend(ten_steps(backend, &golden, kind, limits)?);
    }
    Ok(lines)
}

fn widen<T: Scalar>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

fn one_pass<B: Backend>(
    backend: &dyn Fn() -> B,
    golden: &Golden<'_>,
    limits: Limits,
) -> Result<Vec<VerifyLine>> {
    let (c, path) = (&golden.config, golden.path);
    let stride = c.max_positions as u32;
    let mut bert = Bert::new(backend(), c)?;
    bert.load_weights(&golden.initial_weights(bert.table())?)?;
    let sequences = golden.batch(0)?;

    // Every token is a "masked" one, so that the last layer and the decoder run on all of them.
    let mut all = sequences.clone();
    for s in &mut all {
        s.mlm_positions = (0..s.tokens.len() as u32).collect();
        s.mlm_labels = vec![0; s.tokens.len()];
    }
    let mut logits = Worst::new();
    let ours = bert.mlm_logits(&Batch::pack(&all, 0, stride))?;
    let reference = golden.unpadded("prediction_logits", &sequences, c.vocab_size)?;
    logits.see_values("prediction_logits", &ours, &reference);
    let reference = golden.checked("seq_relationship_logits", sequences.len() * 2)?;
    logits.see_values("seq_relationship_logits", &bert.nsp_logits()?, &reference);
    let mut hidden = Worst::new();
    for k in 0..=c.layers {
        let reference = golden.unpadded(&format!("hidden.{k}"), &sequences, c.hidden)?;
        hidden.see_values(&format!("hidden.{k}"), &bert.hidden_states(k)?, &reference);
    }

    let batch = Batch::pack(&sequences, 0, stride);
    let mut grads = bert.gradients()?;
    bert.clear_sums()?;
    let scale = LossScale::new(batch.mlm_labels.len(), batch.nsp_labels.len());
    bert.forward_backward(&mut grads, &batch, scale, 0)?;
    let sums = bert.sums()?;
    let (mlm, nsp) = (sums.mlm_loss * scale.mlm, sums.nsp_loss * scale.nsp);
    let mut losses = Worst::new();
    for (name, ours) in [("mlm_loss", mlm), ("nsp_loss", nsp), ("loss", mlm + nsp)] {
        losses.see_values(name, &[ours], &golden.checked(name, 1)?);
    }
    let ours = widen(&grads.download(bert.backend())?);
    let gradients = compare_gradients(golden, bert.table(), &ours)?;
    Ok(vec![
        hidden.line(path, "hidden states", limits.pass),
        logits.line(path, "logits", limits.pass),
        losses.line(path, "losses", limits.pass),
        gradients.line(path, "gradients", limits.pass),
    ])
}

/// A gradient that is zero in exact arithmetic (a key's bias shifts all scores of a query alike) holds only rounding
/// in the reference; it is compared with the norm of the whole gradient.
fn compare_gradients(golden: &Golden<'_>, table: &TensorTable, ours: &[f64]) -> Result<Worst> {
    let reference = |t: &Tensor| golden.checked(&format!("grad.{}", t.name), t.len());
    let mut squares = 0.0;
    for tensor in &table.tensors {
        squares += norm(reference(tensor)?.into_iter()).powi(2);
    }
    let whole = squares.sqrt();
    let mut worst = Worst::new();
    for tensor in &table.tensors {
        let reference = reference(tensor)?;
        let own = norm(reference.iter().copied());
        let denominator = if own < 1e-12 * whole { whole } else { own };
        worst.see(&tensor.name, distance(&ours[tensor.range()], &reference) / denominator);
    }
    Ok(worst)
}

fn ten_steps<B: Backend>(
    backend: &dyn Fn() -> B,
    golden: &Golden<'_>,
    kind: OptimizerKind,
    limits: Limits,
) -> Result<Vec<VerifyLine>> {
    let (c, path) = (&golden.config, golden.path);
    let (prefix, losses_of, weights_of) = match kind {
        OptimizerKind::AdamW => ("adamw", "AdamW losses", "AdamW weights"),
        OptimizerKind::Lamb => ("lamb", "LAMB losses", "LAMB weights"),
    };
    let mut bert = Bert::new(backend(), c)?;
    bert.load_weights(&golden.initial_weights(bert.table())?)?;
    let mut grads = bert.gradients()?;
    let config = OptimizerConfig { kind, ..OptimizerConfig::default() };
    let mut optimizer = Optimizer::new(bert.backend(), bert.table(), &config)?;
    let schedule = ScheduleConfig {
        kind: ScheduleKind::Polynomial,
        lr: 0.01,
        warmup_steps: 3,
        total_steps: 12,
        ..ScheduleConfig::default()
    };
    let batches: Vec<Batch> = (0..3)
        .map(|i| Ok(Batch::pack(&golden.batch(i)?, 0, c.max_positions as u32)))
        .collect::<Result<_>>()?;

    let (mut losses, mut norms, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..10 {
        let batch = &batches[step % 3];
        let scale = LossScale::new(batch.mlm_labels.len(), batch.nsp_labels.len());
        let lr = learning_rate(&schedule, step as u64, 10);
        bert.clear_sums()?;
        grads.clear(bert.backend())?;
        bert.forward_backward(&mut grads, batch, scale, 0)?;
        let sums = bert.sums()?;
        let (backend, weights) = bert.weights_mut();
        optimizer.update(backend, weights, grads.params(), lr, step as u64 + 1)?;
        losses.push(sums.mlm_loss * scale.mlm + sums.nsp_loss * scale.nsp);
        norms.push(optimizer.norm(bert.backend())?);
        rates.push(lr);
    }
    let mut trajectory = Worst::new();
    for (name, ours) in [("losses", &losses), ("grad_norms", &norms), ("lrs", &rates)] {
        let name = format!("{prefix}.{name}");
        trajectory.see_values(&name, ours, &golden.checked(&name, 10)?);
    }
    let ours = widen(&bert.weights()?);
    let mut weights = Worst::new();
    for tensor in &bert.table().tensors {
        let reference = golden.checked(&format!("{prefix}.param.{}", tensor.name), tensor.len())?;
        weights.see_values(&tensor.name, &ours[tensor.range()], &reference);
    }
    Ok(vec![
        trajectory.line(path, losses_of, limits.trajectory),
        weights.line(path, weights_of, limits.weights),
    ])
}
