//! Golden files: a reference implementation's weights, batches, hidden states, losses, gradients and ten optimizer
//! steps, compared with ours. The format is described in tests/golden/README.md.

pub mod batches;
mod compare;
pub mod export;
mod golden;

use crate::Result;
use crate::config::{ModelConfig, OptimizerConfig, OptimizerKind, ScheduleConfig, ScheduleKind};
use crate::data::Batch;
use crate::error::During;
use crate::files::check_regular;
use crate::model::{Bert, LossScale};
use crate::optim::{Optimizer, learning_rate};
use compare::Worst;
use golden::Golden;
use kernels::Scalar;
use kernels::backend::Backend;
use kernels::collective::Solo;
use kernels::cpu::Cpu;
use std::path::{Path, PathBuf};

/// Limits of the relative error `|ours - reference| / |reference|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Hidden states, logits, losses of one pass.
    pub pass: f64,
    /// Gradients of one pass.
    pub gradients: GradientLimits,
    /// Losses and gradient norms over the ten steps.
    pub trajectory: f64,
    /// Weights after ten steps, which the files keep in f32; none where they are not compared.
    pub weights: Option<f64>,
    /// Distance from 1 to the next number of the type.
    pub epsilon: f64,
}

/// How each tensor's gradient is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GradientLimits {
    /// Its relative error, within [`Limits::pass`].
    Pass,
    /// Its direction and its length.
    Direction {
        /// Most that the cosine of the angle to the reference's may lack to 1.
        cosine: f64,
        /// Most that the ratio of the norms may differ from 1.
        ratio: f64,
    },
}

impl Limits {
    /// For a backend of 64-bit floats.
    pub const F64: Self = Self {
        pass: 1e-8,
        gradients: GradientLimits::Pass,
        trajectory: 1e-8,
        weights: Some(1e-6),
        epsilon: f64::EPSILON,
    };
    /// For a backend of 32-bit floats.
    pub const F32: Self = Self {
        pass: 1e-4,
        gradients: GradientLimits::Pass,
        trajectory: 1e-3,
        weights: Some(1e-3),
        epsilon: f32::EPSILON as f64,
    };
    /// For a backend whose weights and activations are bf16: rounding the weights alone moves the logits of a golden file by
    /// 1.3 %, a gradient by 10 %. The adaptive optimizers' first steps go by the sign of each
    /// element of the gradient, and rounding turns that of the smallest: weights are not compared.
    pub const BF16: Self = Self {
        pass: 3e-2,
        gradients: GradientLimits::Direction { cosine: 1e-3, ratio: 1e-2 },
        trajectory: 5e-2,
        weights: None,
        epsilon: 1.0 / 128.0,
    };
}

/// One comparison: the worst error over its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyLine {
    /// The golden file.
    pub file: PathBuf,
    /// What was compared.
    pub what: &'static str,
    /// The worst tensor.
    pub worst: String,
    /// Its error; NaN counts as exceeded.
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

/// Runs one golden file on `backend`.
pub fn run<B: Backend>(
    backend: &dyn Fn() -> kernels::Result<B>,
    path: &Path,
    limits: Limits,
) -> Result<Vec<VerifyLine>> {
    check_regular(path)?;
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

/// Gradients of one batch in f64 from any weights.
fn exact_gradients(
    config: &ModelConfig,
    weights: &[f64],
    batch: &Batch,
    scale: LossScale,
) -> Result<Vec<f64>> {
    let mut bert = Bert::new(Cpu::<f64>::new(), config)?;
    bert.load_master(weights)?;
    let mut grads = bert.gradients()?;
    bert.forward_backward(&mut grads, batch, scale, 0)?;
    grads.download(bert.backend())
}

fn one_pass<B: Backend>(
    backend: &dyn Fn() -> kernels::Result<B>,
    golden: &Golden<'_>,
    limits: Limits,
) -> Result<Vec<VerifyLine>> {
    let (c, path) = (&golden.config, golden.path);
    let stride = c.max_positions as u32;
    let mut bert = Bert::new(backend()?, c)?;
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
    let mut lines = vec![
        hidden.line(path, "hidden states", limits.pass),
        logits.line(path, "logits", limits.pass),
        losses.line(path, "losses", limits.pass),
    ];
    match limits.gradients {
        GradientLimits::Pass => {
            let gradients = compare::gradients(golden, bert.table(), &ours, limits)?;
            lines.push(gradients.line(path, "gradients", limits.pass));
        }
        GradientLimits::Direction { cosine, ratio } => {
            let weights = [bert.weights()?.iter().map(|w| w.to_f64()).collect(), bert.rounded_weights()?];
            let [exact, rounded] = weights.map(|weights| exact_gradients(c, &weights, &batch, scale));
            let costs = compare::differences(bert.table(), &rounded?, &exact?);
            let [angles, ratios] = compare::directions(golden, bert.table(), &ours, &costs, limits.epsilon)?;
            lines.push(angles.line(path, "gradients: 1 - cosine", cosine));
            lines.push(ratios.line(path, "gradients: norms", ratio));
        }
    }
    Ok(lines)
}

fn ten_steps<B: Backend>(
    backend: &dyn Fn() -> kernels::Result<B>,
    golden: &Golden<'_>,
    kind: OptimizerKind,
    limits: Limits,
) -> Result<Vec<VerifyLine>> {
    let (c, path) = (&golden.config, golden.path);
    let (prefix, losses_of, weights_of) = match kind {
        OptimizerKind::AdamW => ("adamw", "AdamW losses", "AdamW weights"),
        OptimizerKind::Lamb => ("lamb", "LAMB losses", "LAMB weights"),
    };
    let mut bert = Bert::new(backend()?, c)?;
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
    let mut lines = vec![trajectory.line(path, losses_of, limits.trajectory)];
    if let Some(limit) = limits.weights {
        let ours = widen(&bert.weights()?);
        let mut weights = Worst::new();
        for tensor in &bert.table().tensors {
            let reference = golden.checked(&format!("{prefix}.param.{}", tensor.name), &tensor.shape)?;
            let floor = STILL * BASE_LR * (tensor.len() as f64).sqrt();
            weights.see_values_over(&tensor.name, &ours[tensor.range()], &reference, limit, floor);
        }
        lines.push(weights.line(path, weights_of, limit));
    }
    Ok(lines)
}
