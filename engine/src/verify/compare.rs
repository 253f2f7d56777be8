//! Errors of vectors, and of all tensors' gradients, against a reference's.

use super::golden::Golden;
use super::{Limits, VerifyLine};
use crate::Result;
use crate::table::{Tensor, TensorTable};
use std::path::Path;

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

/// The worst of several errors, and whose it is.
pub(super) struct Worst {
    error: f64,
    name: String,
}

impl Worst {
    pub fn new() -> Self {
        Self { error: 0.0, name: String::new() }
    }

    fn see(&mut self, name: &str, error: f64) {
        if self.name.is_empty() || error.is_nan() || error > self.error {
            (self.error, self.name) = (error, name.to_owned());
        }
    }

    pub fn see_values(&mut self, name: &str, ours: &[f64], reference: &[f64]) {
        self.see_values_over(name, ours, reference, 0.0, 0.0);
    }

    /// The error relative to the reference's norm; where that exceeds `limit` and the norm is below `floor`, to `floor`.
    pub fn see_values_over(&mut self, name: &str, ours: &[f64], reference: &[f64], limit: f64, floor: f64) {
        let distance = distance(ours, reference);
        let scale = norm(reference.iter().copied());
        // where both are 0 they agree
        let plain = if distance == 0.0 { 0.0 } else { distance / scale };
        self.see(name, if plain > limit { distance / scale.max(floor) } else { plain });
    }

    pub fn line(self, file: &Path, what: &'static str, limit: f64) -> VerifyLine {
        VerifyLine { file: file.to_owned(), what, worst: self.name, error: self.error, limit }
    }
}

fn reference(golden: &Golden<'_>, tensor: &Tensor) -> Result<Vec<f64>> {
    golden.checked(&format!("grad.{}", tensor.name), &tensor.shape)
}

/// The norm of the whole reference gradient.
fn whole_norm(golden: &Golden<'_>, table: &TensorTable) -> Result<f64> {
    let mut squares = 0.0;
    for tensor in &table.tensors {
        squares += norm(reference(golden, tensor)?.into_iter()).powi(2);
    }
    Ok(squares.sqrt())
}

/// Errors of the gradients, each relative to its own norm. Beyond the limit a second look is taken: a gradient may be 0 in exact arithmetic (a key's bias, to
/// which the softmax is blind) or nearly so (queries and keys where all tokens have become alike): then it is a sum
/// of large terms that cancel, and what is left of it in the reference too is their rounding. So that no error below
/// the type's rounding of the whole gradient's norm counts as exceeded, the scale is then at least `epsilon / limit` of
/// that norm: 2e-8 in f64, 1e-3 in f32.
pub(super) fn gradients(
    golden: &Golden<'_>,
    table: &TensorTable,
    ours: &[f64],
    limits: Limits,
) -> Result<Worst> {
    let floor = whole_norm(golden, table)? * limits.epsilon / limits.pass;
    let mut worst = Worst::new();
    for tensor in &table.tensors {
        let reference = reference(golden, tensor)?;
        worst.see_values_over(&tensor.name, &ours[tensor.range()], &reference, limits.pass, floor);
    }
    Ok(worst)
}

/// How far apart two gradients of all parameters are, tensor by tensor.
pub(super) fn differences(table: &TensorTable, a: &[f64], b: &[f64]) -> Vec<f64> {
    table.tensors.iter().map(|tensor| distance(&a[tensor.range()], &b[tensor.range()])).collect()
}

/// Of each tensor's gradient, 1 minus the cosine of the angle to the reference's, and by how much the ratio of their norms
/// differs from 1. A difference that is below what rounding of the type (half of `epsilon`) is to a typical tensor's norm
/// (the root of the mean of all squares) counts as none: by such a gradient, of terms that cancel, both figures tell nothing.
/// So does one that is at most twice what rounding the weights to the type costs by itself (`costs`, of each tensor): the
/// next-sentence head's gradients hang on the few sequences of a batch.
pub(super) fn directions(
    golden: &Golden<'_>,
    table: &TensorTable,
    ours: &[f64],
    costs: &[f64],
    epsilon: f64,
) -> Result<[Worst; 2]> {
    let typical = whole_norm(golden, table)? / (table.tensors.len() as f64).sqrt();
    let [mut angles, mut ratios] = [Worst::new(), Worst::new()];
    for (tensor, cost) in table.tensors.iter().zip(costs) {
        let (ours, reference) = (&ours[tensor.range()], reference(golden, tensor)?);
        let [own, theirs] = [ours, &reference].map(|v| norm(v.iter().copied()));
        let product: f64 = ours.iter().zip(&reference).map(|(a, b)| a * b).sum();
        let negligible = distance(ours, &reference) <= (0.5 * epsilon * typical).max(2.0 * cost);
        let [angle, ratio] =
            if negligible { [0.0; 2] } else { [1.0 - product / (own * theirs), (own / theirs - 1.0).abs()] };
        angles.see(&tensor.name, angle);
        ratios.see(&tensor.name, ratio);
    }
    Ok([angles, ratios])
}
