//! Golden files: a reference implementation's weights, batches, hidden states, losses, gradients and ten optimizer
//! steps, compared with ours. The format is described in tests/golden/README.md.

pub mod batches;
pub mod export;
mod golden;

use crate::Result;
use crate::config::{OptimizerConfig, OptimizerKind, ScheduleConfig, ScheduleKind};
use crate::data::Batch;
use crate::error::During;
use crate::model::{Bert, LossScale};
use crate::optim::{Optimizer, learning_rate};
use crate::table::{Tensor, TensorTable};
use golden::Golden;
use kernels::Scalar;
use kernels::backend::Backend;
use kernels::collective::Solo;
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
    /// Distance from 1 to the next number of the type.
    pub epsilon: f64,
}

impl Limits {
    /// For a backend of 64-bit floats.
    pub const F64: Self = Self { pass: 1e-8, trajectory: 1e-8, weights: 1e-6, epsilon: f64::EPSILON };
    /// For a backend of 32-bit floats.
    pub const F32: Self = Self { pass: 1e-4, trajectory: 1e-3, weights: 1e-3, epsilon: f32::EPSILON as f64 };
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

/// Learning rate of the golden files.
const BASE_LR: f64 = 0.01;
/// A tensor that starts at 0 and whose gradient is 0 has moved by rounding only. Weights smaller than this share of a
/// learning rate, root mean square, are compared with it.
const STILL: f64 = 1e-3;

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
        self.see_values_over(name, ours, reference, 0.0, 0.0);
    }

    /// The error relative to the reference's norm; where that exceeds `limit` and the norm is below `floor`, to `floor`.
    fn see_values_over(&mut self, name: &str, ours: &[f64], reference: &[f64], limit: f64, floor: f64) {
        let distance = distance(ours, reference);
        let scale = norm(reference.iter().copied());
        // where both are 0 they agree
        let plain = if distance == 0.0 { 0.0 } else { distance / scale };
        self.see(name, if plain > limit { distance / scale.max(floor) } else { plain });
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
    let reference = golden.checked("seq_relationship_logits", &[sequences.len(), 2])?;
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
        losses.see_values(name, &[ours], &golden.checked(name, &[1])?);
    }
    let ours = widen(&grads.download(bert.backend())?);
    let gradients = compare_gradients(golden, bert.table(), &ours, limits)?;
    Ok(vec![
        hidden.line(path, "hidden states", limits.pass),
        logits.line(path, "logits", limits.pass),
        losses.line(path, "losses", limits.pass),
        gradients.line(path, "gradients", limits.pass),
    ])
}

/// Errors of the gradients, each relative to its own norm. Beyond the limit a second look is taken: a gradient may be 0 in exact arithmetic (a key's bias, to
/// which the softmax is blind) or nearly so (queries and keys where all tokens have become alike): then it is a sum
/// of large terms that cancel, and what is left of it in the reference too is their rounding. So that no error below
/// the type's rounding of the whole gradient's norm counts as exceeded, the scale is then at least `epsilon / limit` of
/// that norm: 2e-8 in f64, 1e-3 in f32.
fn compare_gradients(
    golden: &Golden<'_>,
    table: &TensorTable,
    ours: &[f64],
    limits: Limits,
) -> Result<Worst> {
    let reference = |t: &Tensor| golden.checked(&format!("grad.{}", t.name), &t.shape);
    let mut squares = 0.0;
    for tensor in &table.tensors {
        squares += norm(reference(tensor)?.into_iter()).powi(2);
    }
    let floor = squares.sqrt() * limits.epsilon / limits.pass;
    let mut worst = Worst::new();
    for tensor in &table.tensors {
        worst.see_values_over(&tensor.name, &ours[tensor.range()], &reference(tensor)?, limits.pass, floor);
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
        lr: BASE_LR,
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
        optimizer.update(backend, &mut Solo, weights, grads.params(), lr)?;
        losses.push(sums.mlm_loss * scale.mlm + sums.nsp_loss * scale.nsp);
        norms.push(optimizer.norm(bert.backend())?);
        rates.push(lr);
    }
    let mut trajectory = Worst::new();
    for (name, ours) in [("losses", &losses), ("grad_norms", &norms), ("lrs", &rates)] {
        let name = format!("{prefix}.{name}");
        trajectory.see_values(&name, ours, &golden.checked(&name, &[10])?);
    }
    let ours = widen(&bert.weights()?);
    let mut weights = Worst::new();
    for tensor in &bert.table().tensors {
        let reference = golden.checked(&format!("{prefix}.param.{}", tensor.name), &tensor.shape)?;
        let floor = STILL * BASE_LR * (tensor.len() as f64).sqrt();
        weights.see_values_over(&tensor.name, &ours[tensor.range()], &reference, limits.weights, floor);
    }
    Ok(vec![
        trajectory.line(path, losses_of, limits.trajectory),
        weights.line(path, weights_of, limits.weights),
    ])
}
