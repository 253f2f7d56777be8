//! Measured steps, and what they say about one GPU.

use super::cost::{GpuCost, Machine, Method, Sizes, slowest};
use super::lengths::Lengths;
use crate::files::{WRITTEN_BY_HAND, read_up_to};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// How far `ms`, `batch` and `sequences_per_second` of a file may disagree; they are rounded when written.
const AGREEMENT: f64 = 0.05;
/// Batches closer than this, as a share, say nothing about the fixed part of a step.
const SPREAD: f64 = 0.2;

/// One measured step, without evaluations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// GPUs it ran on.
    pub gpus: usize,
    /// Sequences of a step on each of them.
    pub batch_per_gpu: f64,
    /// Seconds of a step.
    pub seconds: f64,
}

/// A file of `--step`; other keys are left to whoever wrote it.
#[derive(Deserialize)]
struct StepFile {
    /// Sequences of a step, over all GPUs.
    batch: f64,
    /// Milliseconds of a step.
    ms: f64,
    /// Over all GPUs.
    sequences_per_second: Option<f64>,
    /// 1 if it is not said.
    gpus: Option<usize>,
}

impl Measured {
    /// From a rate: sequences per second over all `gpus`, with `batch_per_gpu` sequences a step on each.
    ///
    /// # Errors
    /// A number is not positive.
    pub fn rate(rate: f64, gpus: usize, batch_per_gpu: f64) -> Result<Self> {
        positive("--rate", rate, "sequences per second")?;
        positive("--rate-batch", batch_per_gpu, "sequences a GPU")?;
        positive("--rate-gpus", gpus as f64, "GPUs")?;
        Ok(Self { gpus, batch_per_gpu, seconds: batch_per_gpu * gpus as f64 / rate })
    }

    /// Reads a JSON object with `batch` (sequences of a step over all GPUs), `ms` and, if given, `sequences_per_second`
    /// and `gpus`.
    ///
    /// # Errors
    /// The file cannot be read, is no such object, or its numbers contradict each other.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_up_to(path, WRITTEN_BY_HAND, "cannot read")?;
        let step: StepFile = serde_json::from_slice(&text).map_err(|e| {
            Error::file(
                path,
                format!("{e}; expected {{\"batch\": sequences, \"ms\": milliseconds, \"gpus\": number}}"),
            )
        })?;
        let gpus = step.gpus.unwrap_or(1);
        for (field, value) in [("batch", step.batch), ("ms", step.ms), ("gpus", gpus as f64)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::file(path, format!("{field} is {value}, expected a number above 0")));
            }
        }
        let rate = 1e3 * step.batch / step.ms;
        if let Some(said) = step.sequences_per_second.filter(|said| (said / rate - 1.0).abs() > AGREEMENT) {
            let what = format!(
                "sequences_per_second is {said}, but batch {} in {} ms are {rate:.1}; all three are over all GPUs",
                step.batch, step.ms
            );
            return Err(Error::file(path, what));
        }
        Ok(Self { gpus, batch_per_gpu: step.batch / gpus as f64, seconds: step.ms / 1e3 })
    }
}

/// Refuses what is not a number above 0.
pub(super) fn positive(option: &str, value: f64, unit: &str) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(option, format!("{value} {unit}, expected a number above 0")))
}

/// The cost of one GPU behind measured steps: what the optimizer, the links, the imbalance and the slowest GPU add is taken
/// off. Steps of several batches give both parts of the cost (least squares); of one batch, the fixed part is that of
/// `method`, or the model's default.
pub(super) fn fit(
    sizes: &Sizes,
    machine: &Machine,
    method: &Method,
    lengths: &Lengths,
    steps: &[Measured],
) -> Result<GpuCost> {
    let points: Vec<[f64; 2]> =
        steps.iter().map(|m| compute_of(sizes, machine, method, lengths, m)).collect();
    let Some(&[work, compute]) = points.iter().max_by(|a, b| a[0].total_cmp(&b[0])) else {
        return Err(Error::config("--rate", "none is given, expected --rate or --step"));
    };
    let smallest = points.iter().map(|p| p[0]).fold(f64::INFINITY, f64::min);
    let several = work > (1.0 + SPREAD) * smallest;
    let cost = match (method.fixed, several) {
        (None, true) => line(&points),
        (fixed, _) => {
            let fixed = fixed.unwrap_or(sizes.default_fixed());
            // One slope through all points, the fixed part taken off.
            let [above, below] =
                points.iter().fold([0.0; 2], |[a, b], p| [a + p[0] * (p[1] - fixed), b + p[0] * p[0]]);
            GpuCost { fixed, per_sequence: above / below }
        }
    };
    if cost.per_sequence > 0.0 && cost.fixed >= 0.0 {
        return Ok(cost);
    }
    let [fixed, compute] = [cost.fixed, compute].map(|s| 1e3 * s);
    let (option, what) = if cost.fixed < 0.0 {
        ("--step", "a step takes less than in proportion to its batch; measure again, or give --fixed-ms")
    } else {
        ("--fixed-ms", "nothing is left for the sequences; give a larger batch, or a smaller --fixed-ms")
    };
    let numbers = format!("a fixed part of {fixed:.2} ms of {compute:.2} ms of computation");
    Err(Error::config(option, format!("{numbers}: {what}")))
}

/// Sequences of mean length on the fullest rank, and the seconds that computing them takes on a GPU of mean speed. More
/// computation hides more of the collectives but never makes the step shorter, so halving finds it.
fn compute_of(
    sizes: &Sizes,
    machine: &Machine,
    method: &Method,
    lengths: &Lengths,
    m: &Measured,
) -> [f64; 2] {
    let batch = m.batch_per_gpu;
    let work = batch * lengths.imbalance(m.gpus, batch.round().max(1.0) as usize, method.deal);
    let (mut low, mut high) = (0.0, m.seconds);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let o = sizes.overhead(machine, method, m.gpus, middle, 1);
        if middle + o.optimizer + o.exposed < m.seconds { low = middle } else { high = middle }
    }
    [work, low / slowest(m.gpus, method.jitter)]
}

/// Least squares of a line.
fn line(points: &[[f64; 2]]) -> GpuCost {
    let n = points.len() as f64;
    let [x, y] = [0, 1].map(|k| points.iter().map(|p| p[k]).sum::<f64>() / n);
    let [above, below] =
        points.iter().fold([0.0; 2], |[a, b], p| [a + (p[0] - x) * (p[1] - y), b + (p[0] - x).powi(2)]);
    let per_sequence = above / below;
    GpuCost { fixed: y - per_sequence * x, per_sequence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use crate::plan::Planner;

    fn planner(method: Method, steps: &[Measured]) -> Result<Planner> {
        Planner::new(&Preset::Large.model(), Machine::default(), method, steps)
    }

    fn step(gpus: usize, batch_per_gpu: f64, seconds: f64) -> Measured {
        Measured { gpus, batch_per_gpu, seconds }
    }

    /// Steps that a planner predicts, measured, give the planner's cost back.
    #[test]
    fn two_batches_give_both_parts() {
        let method = Method { fixed: Some(7e-3), ..Method::default() };
        let planned = planner(method, &[step(8, 96.0, 0.0928)]).unwrap();
        let steps = [(8, 24), (8, 96), (64, 48)]
            .map(|(n, b)| step(n, b as f64, planned.predict(n, b).unwrap().step_ms / 1e3));
        let found = planner(Method::default(), &steps).unwrap().cost();
        assert!((found.fixed / 7e-3 - 1.0).abs() < 1e-6, "{found:?}");
        assert!((found.per_sequence / planned.cost().per_sequence - 1.0).abs() < 1e-6, "{found:?}");
    }

    /// One GPU: no links, no imbalance, nobody to wait for; LAMB is 36 bytes of 336,232,000 parameters at 3 TB/s.
    #[test]
    fn one_batch_leaves_the_default_fixed_part() {
        let found = planner(Method::default(), &[step(1, 64.0, 0.09)]).unwrap().cost();
        assert_eq!(found.fixed, 24.0 * 0.45e-3);
        let expected = (0.09 - 24.0 * 0.45e-3 - 36.0 * 336.23e6 / 3e12) / 64.0;
        assert!((found.per_sequence / expected - 1.0).abs() < 1e-4, "{found:?} {expected}");
    }

    #[test]
    fn measurements_that_cannot_be_are_named() {
        let error = planner(Method::default(), &[step(1, 1.0, 0.010)]).unwrap_err().to_string();
        assert!(error.starts_with("--fixed-ms: a fixed part of 10.80 ms of 5.97 ms"), "{error}");
        let error =
            planner(Method::default(), &[step(1, 10.0, 0.05), step(1, 100.0, 1.0)]).unwrap_err().to_string();
        assert!(error.starts_with("--step: a fixed part of -"), "{error}");
        assert!(planner(Method::default(), &[]).is_err());
    }

    #[test]
    fn files_of_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Measured::read(&path).map_err(|e| e.to_string())
        };
        let whole =
            r#"{"batch": 768, "ms": 92.8, "sequences_per_second": 8276, "gpus": 8, "precision": "bf16"}"#;
        assert_eq!(read(whole), Ok(step(8, 96.0, 0.0928)));
        assert_eq!(read(r#"{"batch": 32, "ms": 80}"#), Ok(step(1, 32.0, 0.08)));
        let error =
            read(r#"{"batch": 96, "ms": 92.8, "sequences_per_second": 8276, "gpus": 8}"#).unwrap_err();
        assert!(
            error.contains("step.json: sequences_per_second is 8276, but batch 96 in 92.8 ms"),
            "{error}"
        );
        assert!(read(r#"{"batch": 32}"#).unwrap_err().contains("missing field `ms`"));
        assert!(
            read(r#"{"batch": 32, "ms": 0}"#).unwrap_err().contains("ms is 0, expected a number above 0")
        );
        assert!(read(r#"{"batch": 32, "ms": 5, "gpus": 0}"#).unwrap_err().contains("gpus is 0"));
        assert!(
            Measured::read(Path::new("nowhere.json"))
                .unwrap_err()
                .to_string()
                .contains("nowhere.json: cannot read")
        );
    }
}
