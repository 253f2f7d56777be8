//! What the tests of all ops share.

use kernels::Scalar;
use kernels::backend::Dropout;
use kernels::cpu::Cpu;
use kernels::philox::{DropoutRate, Stream};

/// Uniform numbers in [-1, 1) that f32 holds exactly.
pub fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut stream = Stream::new(seed, 0, 99);
    (0..len).map(|_| f64::from((stream.uniform() * 2.0 - 1.0) as f32)).collect()
}

/// Rounds to the op's type.
pub fn cast<T: Scalar>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

/// Widens from the op's type.
pub fn wide<T: Scalar>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// An output that no op may leave as it is.
pub fn poison<T: Scalar>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// `a - b`.
pub fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Distinct row keys.
pub fn row_keys(rows: usize) -> Vec<u32> {
    (0..rows as u32).map(|row| row * 7919 + 13).collect()
}

/// Dropout at rate `p` under fixed keys.
pub fn dropout<T: Scalar>(p: f64, row_keys: &[u32]) -> Dropout<'_, Cpu<T>> {
    Dropout::<Cpu<T>> { rate: DropoutRate::new(p), key: 0x5eed, site: 11, row_keys }
}

/// What one forward and backward of an op gave.
#[derive(Debug, PartialEq)]
pub struct Run {
    /// The differentiable output.
    pub y: Vec<f64>,
    /// Gradient of `sum(y dy)` by each input, without what the buffer held before.
    pub gradients: Vec<Vec<f64>>,
}

/// An op at some size.
pub trait Op: std::fmt::Debug {
    /// Its differentiable inputs.
    fn inputs(&self) -> Vec<Vec<f64>>;
    /// Gradient of the output that backward starts from.
    fn dy(&self, len: usize) -> Vec<f64> {
        noise(len, 1)
    }
    /// Forward, then backward.
    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run;
}

/// Compares every gradient with central differences of fourth order, at up to 60 elements of each input and along
/// one random direction.
pub fn finite_differences(op: &impl Op) {
    let inputs = op.inputs();
    let run = op.run::<f64>(&inputs);
    assert_eq!(run.gradients.len(), inputs.len());
    let dy = op.dy(run.y.len());
    let loss = |which: usize, direction: &[(usize, f64)], step: f64| -> f64 {
        let mut inputs = inputs.clone();
        direction.iter().for_each(|&(i, d)| inputs[which][i] += step * d);
        op.run::<f64>(&inputs).y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
    };
    for (which, gradient) in run.gradients.iter().enumerate() {
        assert_eq!(gradient.len(), inputs[which].len());
        if gradient.is_empty() {
            continue; // an input that this case leaves out
        }
        let largest = gradient.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        assert!(largest.is_finite(), "{op:?}: input {which}");
        let whole = noise(gradient.len(), 77).into_iter().enumerate().collect();
        let stride = gradient.len().div_ceil(60).max(1);
        let single = (0..gradient.len()).step_by(stride).map(|i| vec![(i, 1.0)]);
        for direction in single.chain([whole]) {
            let h = 2e-3 / (direction.len() as f64).sqrt();
            let difference = |step| loss(which, &direction, step) - loss(which, &direction, -step);
            let numeric = (8.0 * difference(h) - difference(2.0 * h)) / (12.0 * h);
            let exact: f64 = direction.iter().map(|&(i, d)| gradient[i] * d).sum();
            let size = (largest + 1e-3) * (direction.len() as f64).sqrt();
            let error = (numeric - exact).abs() / size;
            assert!(error < 1e-8, "{op:?}: input {which} at {:?}: {exact}, not {numeric}", direction[0]);
        }
    }
}

/// Compares f32 with f64: the difference's norm may be `ulps` times what rounding each exact element costs.
pub fn single_precision(op: &impl Op, ulps: f64) {
    let inputs = op.inputs();
    let (got, want) = (op.run::<f32>(&inputs), op.run::<f64>(&inputs));
    let pairs = got.gradients.iter().zip(&want.gradients).chain([(&got.y, &want.y)]);
    for (i, (got, want)) in pairs.enumerate() {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (error, size) = (norm(&minus(got, want)), norm(want));
        let bound = ulps * f64::from(f32::EPSILON) / 2.0 * (size + 1e-3);
        assert!(error <= bound, "{op:?}: tensor {i} is off by {error}, {} ulps", error / bound * ulps);
    }
}

/// Runs in pools of 1, 2 and 3 threads and compares bit for bit.
pub fn any_threads(op: &(impl Op + Sync)) {
    let inputs = op.inputs();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| op.run::<f32>(&inputs))
    };
    let one = run(1);
    assert!(one.y.iter().all(|y| y.is_finite()));
    for threads in [2, 3] {
        assert!(run(threads) == one, "{op:?} differs with {threads} threads");
    }
}
