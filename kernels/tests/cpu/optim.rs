//! The optimizers against their definitions, one element after another.

use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

const LEN: usize = 40_000;

fn tensors() -> [TensorSpan; 3] {
    // elements 2..5 and those from 39,000 on belong to no tensor
    [(0..2, true), (5..17_000, true), (17_000..39_000, false)]
        .map(|(range, decay)| TensorSpan { range, decay })
}

fn hyper() -> OptimizerHyper {
    OptimizerHyper {
        lr: 0.02,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.1,
        max_norm: 1.5,
        clip_eps: 1e-6,
    }
}

#[derive(Debug, Clone, PartialEq)]
struct State {
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    updates: u32,
}

impl State {
    fn new() -> Self {
        let v = noise(LEN, 82).iter().map(|x| x * x).collect();
        Self { w: noise(LEN, 80), m: noise(LEN, 81), v, updates: 0 }
    }

    /// The definitions, in f64.
    fn step(&mut self, lamb: bool, grads: &[f64], norm: f64, hyper: &OptimizerHyper) {
        let OptimizerHyper { lr, beta1, beta2, eps, weight_decay, max_norm, clip_eps } = *hyper;
        self.updates += 1;
        let clip = (max_norm / (norm + clip_eps)).min(1.0);
        for TensorSpan { range, decay } in tensors() {
            let wd = if decay { weight_decay } else { 0.0 };
            let mut u = Vec::new();
            for i in range.clone() {
                let g = grads[i] * clip;
                self.m[i] = beta1 * self.m[i] + (1.0 - beta1) * g;
                self.v[i] = beta2 * self.v[i] + (1.0 - beta2) * g * g;
                let mh = self.m[i] / (1.0 - beta1.powi(self.updates as i32));
                let vh = self.v[i] / (1.0 - beta2.powi(self.updates as i32));
                if lamb {
                    u.push(mh / (vh.sqrt() + eps) + wd * self.w[i]);
                } else {
                    self.w[i] -= lr * wd * self.w[i];
                    self.w[i] -= lr * mh / (vh.sqrt() + eps);
                }
            }
            if lamb {
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let (w, u_norm) = (&mut self.w[range], norm(&u));
                let zero = norm(w) == 0.0 || u_norm == 0.0;
                let ratio = if decay && !zero { norm(w) / u_norm } else { 1.0 };
                w.iter_mut().zip(u).for_each(|(w, u)| *w -= lr * ratio * u);
            }
        }
    }

    fn step_on_cpu<T: Scalar>(&mut self, lamb: bool, grads: &[f64], norm: f64, hyper: OptimizerHyper) {
        self.step_in_shards::<T>(lamb, grads, norm, hyper, &[0, LEN]);
    }

    /// As ranks do it that share the table between `edges`: each all ops on its shard, the sums exchanged.
    fn step_in_shards<T: Scalar>(
        &mut self,
        lamb: bool,
        grads: &[f64],
        norm: f64,
        hyper: OptimizerHyper,
        edges: &[usize],
    ) {
        let cpu = Cpu::<T>::new();
        let mut weights = cpu.weights(LEN).unwrap();
        cpu.upload_weights(&mut weights, 0, &cast::<T>(&self.w)).unwrap();
        let (mut m, mut v) = (cast::<T>(&self.m), cast::<T>(&self.v));
        let (grads, norm, tensors) = (cast::<T>(grads), cast::<T>(&[norm]), tensors());
        let mut sums = vec![0.0; lamb_sums(&tensors)];
        for apply in if lamb { &[false, true][..] } else { &[true] } {
            let mut after = self.updates;
            for shard in edges.windows(2).map(|edge| edge[0]..edge[1]) {
                let mut updates = [self.updates];
                let step = OptimizerStep::<Cpu<T>> {
                    weights: &mut weights,
                    grads: &grads,
                    m: &mut m[shard.clone()],
                    v: &mut v[shard.clone()],
                    norm: &norm,
                    updates: &mut updates,
                    shard,
                    tensors: &tensors,
                    hyper,
                };
                match (lamb, apply) {
                    (false, _) => cpu.adamw(step),
                    (true, false) => cpu.lamb_moments(step, &mut sums),
                    (true, true) => cpu.lamb_apply(step, &sums),
                }
                .unwrap();
                after = updates[0];
            }
            assert_eq!(after, self.updates + u32::from(*apply && norm[0].is_finite()));
            self.updates = after;
        }
        let w = wide(<Cpu<T> as Backend>::master(&weights, 0..LEN));
        (self.w, self.m, self.v) = (w, wide(&m), wide(&v));
    }
}

fn compare(lamb: bool, zero_tensor: bool) {
    let [mut want, mut double, mut single] = [State::new(), State::new(), State::new()];
    for state in [&mut want, &mut double, &mut single] {
        if zero_tensor {
            state.w[0..2].fill(0.0);
        }
    }
    for update in 1..=3 {
        let grads = noise(LEN, 90 + update);
        let norm = grads.iter().map(|x| x * x).sum::<f64>().sqrt();
        want.step(lamb, &grads, norm, &hyper());
        double.step_on_cpu::<f64>(lamb, &grads, norm, hyper());
        single.step_on_cpu::<f32>(lamb, &grads, norm, hyper());
    }
    for (got, bound) in [(double, 1e-13), (single, 2e-6)] {
        for (got, want) in [(&got.w, &want.w), (&got.m, &want.m), (&got.v, &want.v)] {
            let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            let error = minus(got, want).iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            assert!(error <= bound * largest, "lamb {lamb}: {error} of {largest}");
        }
        let outside = |i: &usize| (2..5).contains(i) || *i >= 39_000;
        assert!((0..LEN).filter(outside).all(|i| got.w[i] == want.w[i] && got.m[i] == want.m[i]));
    }
}

#[test]
fn adamw_is_its_definition() {
    compare(false, false);
}

#[test]
fn lamb_is_its_definition() {
    compare(true, false);
    compare(true, true);
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    for (lamb, norm) in [(false, f64::NAN), (true, f64::INFINITY)] {
        let mut state = State::new();
        let grads = vec![f64::NAN; LEN];
        state.step_on_cpu::<f32>(lamb, &grads, norm, hyper());
        let before = State::new();
        assert!(state.w == before.w && state.m == before.m);
    }
}

#[test]
fn optimizers_do_not_depend_on_threads() {
    let run = |threads: usize, lamb| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut state = State::new();
        pool.install(|| state.step_on_cpu::<f32>(lamb, &noise(LEN, 91), 3.0, hyper()));
        state
    };
    for lamb in [false, true] {
        let one = run(1, lamb);
        assert!(run(2, lamb) == one && run(3, lamb) == one);
    }
}

#[test]
fn shards_end_bit_equal_to_the_whole() {
    for lamb in [false, true] {
        let grads = noise(LEN, 92);
        let [mut whole, mut two, mut three] = [State::new(), State::new(), State::new()];
        whole.step_on_cpu::<f32>(lamb, &grads, 3.0, hyper());
        two.step_in_shards::<f32>(lamb, &grads, 3.0, hyper(), &[0, STRETCH, LEN]);
        three.step_in_shards::<f32>(lamb, &grads, 3.0, hyper(), &[0, STRETCH, STRETCH, 2 * STRETCH, LEN]);
        assert!(whole == two && whole == three && whole != State::new());
    }
}

#[test]
fn a_shard_that_divides_a_stretch_is_refused() {
    for shard in [1..LEN, 0..LEN - 1, 0..LEN + 1] {
        let cpu = Cpu::<f32>::new();
        let mut weights = cpu.weights(LEN).unwrap();
        let (grads, mut m, mut v) = (vec![0.0; LEN], vec![0.0; LEN], vec![0.0; LEN]);
        let n = shard.len().min(LEN);
        let step = OptimizerStep::<Cpu<f32>> {
            weights: &mut weights,
            grads: &grads,
            m: &mut m[..n],
            v: &mut v[..n],
            norm: &[1.0],
            updates: &mut [0],
            shard,
            tensors: &tensors(),
            hyper: hyper(),
        };
        assert!(cpu.adamw(step).unwrap_err().to_string().contains("shard"));
    }
}

fn norm_of<T: Scalar>(grads: &[f64]) -> f64 {
    let (cpu, mut norm) = (Cpu::<T>::new(), poison::<T>(1));
    let mut sums = vec![f64::NAN; grads.len().div_ceil(STRETCH)];
    cpu.square_sums(&mut sums, &cast::<T>(grads)).unwrap();
    cpu.root_of_sum(&mut norm, &sums).unwrap();
    norm[0].to_f64()
}

#[test]
fn the_first_element_that_is_not_finite_is_found() {
    let cpu = Cpu::<f32>::new();
    let find = |bad: &[usize], norm: f32| {
        let mut x: Vec<f32> = cast(&noise(LEN, 96));
        bad.iter().for_each(|&i| x[i] = if i % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY });
        let mut place = poison::<f32>(2);
        cpu.find_nonfinite(&mut place, &x, &[norm]).unwrap();
        [place[0], place[1]]
    };
    assert_eq!(find(&[0, 5], f32::NAN), [0.0, 0.0]);
    assert_eq!(find(&[STRETCH - 1], f32::INFINITY), [0.0, (STRETCH - 1) as f32]);
    assert_eq!(find(&[LEN - 1, STRETCH + 7], f32::NAN), [1.0, 7.0]);
    // a norm beyond the type's range, of finite elements; and one that is finite, so that nothing is looked at
    assert_eq!(find(&[], f32::INFINITY), [-1.0; 2]);
    assert_eq!(find(&[3], 1.0), [-1.0; 2]);
}

#[test]
fn the_norm_is_exact_and_not_finite_for_bad_gradients() {
    for n in [0, 1, 15, 16_385, 100_000] {
        let grads = noise(n, 95);
        let want = grads.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((norm_of::<f64>(&grads) - want).abs() <= 1e-13 * want);
        assert!((norm_of::<f32>(&grads) - want).abs() <= 6e-8 * want);
    }
    // squares beyond f32's range
    assert_eq!(norm_of::<f32>(&[3e30, 4e30]), f64::from(5e30f32));
    assert!(norm_of::<f32>(&[1.0, f64::NAN, 2.0]).is_nan());
    assert_eq!(norm_of::<f32>(&[1.0, f64::NEG_INFINITY]), f64::INFINITY);
}

#[test]
fn clipping_scales_to_the_norm_and_leaves_the_rest_alone() {
    let grads = noise(40_000, 97);
    let norm = grads.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (max_norm, want) in [(0.5, 0.5 / norm), (2.0 * norm, 1.0)] {
        let mut clipped = grads.clone();
        Cpu::<f64>::new().clip(&mut clipped, &[norm], max_norm).unwrap();
        assert!(clipped.iter().zip(&grads).all(|(c, g)| (c - g * want).abs() <= 1e-15));
    }
    let mut same = grads.clone();
    Cpu::<f64>::new().clip(&mut same, &[f64::NAN], 0.5).unwrap();
    assert_eq!(same, grads);
}

#[test]
fn the_norm_does_not_depend_on_threads() {
    let grads = noise(300_000, 96);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| norm_of::<f64>(&grads))
    };
    assert!(run(1) == run(2) && run(1) == run(3));
}
