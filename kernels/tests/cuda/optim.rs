//! The optimizers against those of the CPU in f64.

use crate::check::*;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element, Memory, Weights};
use kernels::{Backend, Result};
use std::ops::Range;

const LEN: usize = 40_000;

/// Elements 2..5 and those from 39,000 on belong to no tensor; tensors begin and end beside 16 bytes.
fn tensors() -> Vec<TensorSpan> {
    [(0..2, true), (5..6, false), (6..17_001, true), (17_001..39_000, false)]
        .map(|(range, decay)| TensorSpan { range, decay })
        .to_vec()
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

/// Parameters and moments; all are numbers of f32.
#[derive(Debug, Clone, PartialEq)]
struct State {
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    updates: u32,
}

/// What a step takes beside the state.
#[derive(Clone, Copy)]
struct Given<'a> {
    lamb: bool,
    grads: &'a [f64],
    norm: f64,
    hyper: OptimizerHyper,
}

impl<'a> Given<'a> {
    fn new(lamb: bool, grads: &'a [f64]) -> Self {
        let norm = grads.iter().map(|x| x * x).sum::<f64>().sqrt() as f32;
        Self { lamb, grads, norm: norm.into(), hyper: hyper() }
    }
}

impl State {
    fn new() -> Self {
        let [w, m, v] = [80, 81, 82].map(|seed| rounded_f32(&noise(LEN, seed)));
        Self { w, m, v: rounded_f32(&v.iter().map(|x| x * x).collect::<Vec<_>>()), updates: 6 }
    }

    fn step_on_cpu(&mut self, given: Given<'_>) {
        let cpu = Cpu::<f64>::new();
        let mut weights = cpu.weights(LEN).unwrap();
        cpu.upload_weights(&mut weights, 0, &self.w).unwrap();
        let tensors = tensors();
        let (mut sums, mut updates) = (vec![0.0; lamb_sums(&tensors)], [self.updates]);
        for apply in halves(given.lamb) {
            let step = OptimizerStep::<Cpu<f64>> {
                weights: &mut weights,
                grads: given.grads,
                m: &mut self.m,
                v: &mut self.v,
                norm: &[given.norm],
                updates: &mut updates,
                shard: 0..LEN,
                tensors: &tensors,
                hyper: given.hyper,
            };
            match (given.lamb, apply) {
                (false, _) => cpu.adamw(step),
                (true, false) => cpu.lamb_moments(step, &mut sums),
                (true, true) => cpu.lamb_apply(step, &sums),
            }
            .unwrap();
        }
        self.updates = updates[0];
        self.w = Cpu::<f64>::master(&weights, 0..LEN).to_vec();
    }
}

/// Which halves of a step there are: whether it is the one that applies the update.
fn halves(lamb: bool) -> &'static [bool] {
    if lamb { &[false, true] } else { &[true] }
}

/// A [`State`] on the GPU, its table divided as ranks divide it.
struct Gpu<E: Element> {
    cuda: Cuda<E>,
    weights: Weights<E>,
    moments: Vec<(Range<usize>, Memory<f32>, Memory<f32>)>,
    updates: Memory<u32>,
}

impl<E: Element> Gpu<E> {
    fn new(state: &State, edges: &[usize]) -> Self {
        let cuda = cuda::<E>();
        let mut weights = cuda.weights(LEN).unwrap();
        let w: Vec<f32> = state.w.iter().map(|&w| w as f32).collect();
        cuda.upload_weights(&mut weights, 0, &w).unwrap();
        let shards = edges.windows(2).map(|edge| edge[0]..edge[1]);
        let moments = shards
            .map(|s| (s.clone(), put_f32(&cuda, &state.m[s.clone()]), put_f32(&cuda, &state.v[s])))
            .collect();
        let updates = put(&cuda, &[state.updates]);
        Self { cuda, weights, moments, updates }
    }

    /// As ranks do it: each all ops on its shard, the sums exchanged.
    fn step(&mut self, given: Given<'_>) {
        let tensors = tensors();
        let grads = put_f32(&self.cuda, given.grads);
        let norm = put_f32(&self.cuda, &[given.norm]);
        let mut sums: Memory<f64> = poisoned(&self.cuda, lamb_sums(&tensors));
        let before = get(&self.cuda, &self.updates)[0];
        for &apply in halves(given.lamb) {
            for (shard, m, v) in &mut self.moments {
                let n = shard.len();
                self.cuda.upload(Cuda::<E>::at_mut(&mut self.updates, 0..1), &[before]).unwrap();
                let step = OptimizerStep::<Cuda<E>> {
                    weights: &mut self.weights,
                    grads: Cuda::<E>::at(&grads, 0..LEN),
                    m: Cuda::<E>::at_mut(m, 0..n),
                    v: Cuda::<E>::at_mut(v, 0..n),
                    norm: Cuda::<E>::at(&norm, 0..1),
                    updates: Cuda::<E>::at_mut(&mut self.updates, 0..1),
                    shard: shard.clone(),
                    tensors: &tensors,
                    hyper: given.hyper,
                };
                let len = sums.len();
                match (given.lamb, apply) {
                    (false, _) => self.cuda.adamw(step),
                    (true, false) => self.cuda.lamb_moments(step, Cuda::<E>::at_mut(&mut sums, 0..len)),
                    (true, true) => self.cuda.lamb_apply(step, Cuda::<E>::at(&sums, 0..len)),
                }
                .unwrap();
            }
            let counted = u32::from(apply && given.norm.is_finite());
            assert_eq!(get(&self.cuda, &self.updates), [before + counted]);
        }
    }

    fn state(&self) -> State {
        let mut w = vec![0.0f32; LEN];
        self.cuda.download(Cuda::<E>::master(&self.weights, 0..LEN), &mut w).unwrap();
        let mut rounded = vec![f64::NAN; LEN];
        self.cuda.download_elems(Cuda::<E>::weight(&self.weights, 0..LEN), &mut rounded).unwrap();
        assert!(w.iter().zip(&rounded).all(|(&w, &rounded)| E::from_f32(w).to_f64() == rounded));
        let mut state =
            State { w: widened(&w), m: vec![], v: vec![], updates: get(&self.cuda, &self.updates)[0] };
        for (_, m, v) in &self.moments {
            state.m.extend(get_f32(&self.cuda, m));
            state.v.extend(get_f32(&self.cuda, v));
        }
        state
    }
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

fn run<E: Element>(start: &State, given: Given<'_>, edges: &[usize]) -> State {
    let mut gpu = Gpu::<E>::new(start, edges);
    gpu.step(given);
    gpu.state()
}

fn as_the_oracle<E: Element>(lamb: bool) {
    let mut want = State::new();
    want.w[0..2].fill(0.0); // a tensor whose trust ratio is 1
    let mut gpu = Gpu::<E>::new(&want, &[0, LEN]);
    for update in 0..3 {
        let grads = rounded_f32(&noise(LEN, 90 + update));
        let given = Given::new(lamb, &grads);
        want.step_on_cpu(given);
        gpu.step(given);
        let got = gpu.state();
        // each update rounds again what the one before has rounded
        let times = 2.0 * (update + 1) as f64;
        for (what, got, want) in [("w", &got.w, &want.w), ("m", &got.m, &want.m), ("v", &got.v, &want.v)] {
            close_f32(&format!("lamb {lamb}, update {update}: {what}"), got, want, times);
        }
        let outside = |i: &usize| (2..5).contains(i) || *i >= 39_000;
        let before = State::new();
        assert!((0..LEN).filter(outside).all(|i| got.w[i] == before.w[i] && got.m[i] == before.m[i]));
        assert_eq!(got.updates, want.updates);
    }
}

#[test]
fn adamw() {
    as_the_oracle::<f32>(false);
    as_the_oracle::<bf16>(false);
}

#[test]
fn lamb() {
    as_the_oracle::<f32>(true);
    as_the_oracle::<bf16>(true);
}

#[test]
fn optimizers_without_clipping_and_at_the_first_update() {
    for lamb in [false, true] {
        let grads = rounded_f32(&noise(LEN, 93));
        let mut given = Given::new(lamb, &grads);
        given.hyper.max_norm = f64::INFINITY;
        given.hyper.clip_eps = 0.0;
        let mut want = State { updates: 0, ..State::new() };
        let got = run::<bf16>(&want, given, &[0, LEN]);
        want.step_on_cpu(given);
        close_f32("w", &got.w, &want.w, 2.0);
        close_f32("m", &got.m, &want.m, 2.0);
    }
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing_and_is_not_counted() {
    let grads = vec![f64::NAN; LEN];
    for lamb in [false, true] {
        for norm in [f64::NAN, f64::INFINITY] {
            let given = Given { norm, ..Given::new(lamb, &grads) };
            assert!(run::<bf16>(&State::new(), given, &[0, LEN]) == State::new());
        }
    }
}

#[test]
fn shards_and_reruns_end_bit_equal_to_the_whole() {
    let grads = rounded_f32(&noise(LEN, 92));
    for lamb in [false, true] {
        let given = Given::new(lamb, &grads);
        let whole = run::<bf16>(&State::new(), given, &[0, LEN]);
        assert!(whole != State::new());
        let edges: [&[usize]; 3] = [&[0, LEN], &[0, STRETCH, LEN], &[0, STRETCH, STRETCH, 2 * STRETCH, LEN]];
        for edges in edges {
            assert!(run::<bf16>(&State::new(), given, edges) == whole, "lamb {lamb}, {edges:?}");
        }
    }
}

#[test]
fn more_divisions_than_are_kept() {
    // two steps with each of six shards, one backend: the oldest tables on the device make room
    let grads = rounded_f32(&noise(LEN, 94));
    let given = Given::new(false, &grads);
    let edges = [0, 0, STRETCH, STRETCH, 2 * STRETCH, 2 * STRETCH, LEN];
    let (mut shards, mut whole) =
        (Gpu::<f32>::new(&State::new(), &edges), Gpu::<f32>::new(&State::new(), &[0, LEN]));
    for _ in 0..2 {
        shards.step(given);
        whole.step(given);
    }
    assert!(shards.state() == whole.state());
}

/// A step over 4 elements with buffers of these lengths: gradients, m, v, norm, updates, sums of LAMB.
fn step_with_lengths(op: &str, lengths: [usize; 6], shard: Range<usize>, tensor: Range<usize>) -> Result<()> {
    type B = Cuda<f32>;
    let cuda = cuda::<f32>();
    let mut weights = cuda.weights(4)?;
    let [grads, mut m, mut v, norm] = [0, 1, 2, 3].map(|i| put_f32(&cuda, &vec![1.0; lengths[i]]));
    let (mut updates, mut sums) =
        (put(&cuda, &vec![0u32; lengths[4]]), put(&cuda, &vec![1.0f64; lengths[5]]));
    let step = OptimizerStep::<B> {
        weights: &mut weights,
        grads: B::at(&grads, 0..lengths[0]),
        m: B::at_mut(&mut m, 0..lengths[1]),
        v: B::at_mut(&mut v, 0..lengths[2]),
        norm: B::at(&norm, 0..lengths[3]),
        updates: B::at_mut(&mut updates, 0..lengths[4]),
        shard,
        tensors: &[TensorSpan { range: tensor, decay: true }],
        hyper: hyper(),
    };
    match op {
        "adamw" => cuda.adamw(step),
        "lamb_moments" => cuda.lamb_moments(step, B::at_mut(&mut sums, 0..lengths[5])),
        _ => cuda.lamb_apply(step, B::at(&sums, 0..lengths[5])),
    }
}

#[test]
fn optimizers_refuse_wrong_lengths() {
    let right = [4, 4, 4, 1, 1, 2];
    for op in ["adamw", "lamb_moments", "lamb_apply"] {
        step_with_lengths(op, right, 0..4, 0..4).unwrap();
        for wrong in 0..if op == "adamw" { 5 } else { 6 } {
            for change in [0, 2] {
                let mut lengths = right;
                lengths[wrong] = lengths[wrong] + change - 1;
                let error = step_with_lengths(op, lengths, 0..4, 0..4).unwrap_err().to_string();
                assert!(
                    error.starts_with(op) && error.contains(&format!("{} elements", lengths[wrong])),
                    "{error}"
                );
            }
        }
        for shard in [1..4, 0..3, 0..5] {
            let n = shard.len();
            let error = step_with_lengths(op, [4, n, n, 1, 1, 2], shard, 0..4).unwrap_err().to_string();
            assert!(error.contains("shard"), "{error}");
        }
        assert!(step_with_lengths(op, right, 0..4, 1..5).unwrap_err().to_string().contains("tensors"));
    }
}

/// The norm of gradients that begin at element `offset` of their buffer.
fn norm_of(grads: &[f64], offset: usize) -> f64 {
    type B = Cuda<f32>;
    let cuda = cuda::<f32>();
    let mut buffer = vec![f64::NAN; offset];
    buffer.extend_from_slice(grads);
    let grads = put_f32(&cuda, &buffer);
    let stretches = (buffer.len() - offset).div_ceil(STRETCH);
    let (mut sums, mut norm): (Memory<f64>, Memory<f32>) = (poisoned(&cuda, stretches), poisoned(&cuda, 1));
    cuda.square_sums(B::at_mut(&mut sums, 0..stretches), B::at(&grads, offset..buffer.len())).unwrap();
    cuda.root_of_sum(B::at_mut(&mut norm, 0..1), B::at(&sums, 0..stretches)).unwrap();
    assert!(cuda.square_sums(B::at_mut(&mut sums, 0..0), B::at(&grads, 0..1)).is_err());
    assert!(cuda.root_of_sum(B::at_mut(&mut norm, 0..0), B::at(&sums, 0..stretches)).is_err());
    get_f32(&cuda, &norm)[0]
}

#[test]
fn the_norm_is_exact_and_not_finite_for_bad_gradients() {
    for (n, offset) in [(1, 0), (15, 0), (15, 2), (16_385, 0), (50_001, 0), (50_001, 3)] {
        let grads = rounded_f32(&noise(n, 95));
        let want = grads.iter().map(|x| x * x).sum::<f64>().sqrt();
        close_f32("the norm", &[norm_of(&grads, offset)], &[want], 2.0);
    }
    // squares beyond f32's range
    assert_eq!(norm_of(&[3e30, 4e30], 0), f64::from(5e30f32));
    assert!(norm_of(&[1.0, f64::NAN, 2.0], 0).is_nan());
    assert_eq!(norm_of(&[1.0, f64::NEG_INFINITY], 0), f64::INFINITY);
}

#[test]
fn clipping_scales_to_the_norm_and_leaves_the_rest_alone() {
    type B = Cuda<f32>;
    let cuda = cuda::<f32>();
    let grads = rounded_f32(&noise(LEN + 1, 97));
    let clip = |norm: f64, max_norm: f64, offset: usize| {
        let (mut x, norm) = (put_f32(&cuda, &grads), put_f32(&cuda, &[norm]));
        cuda.clip(B::at_mut(&mut x, offset..LEN), B::at(&norm, 0..1), max_norm).unwrap();
        assert!(cuda.clip(B::at_mut(&mut x, 0..1), B::at(&norm, 0..0), 1.0).is_err());
        get_f32(&cuda, &x)
    };
    for offset in [0, 1] {
        let got = clip(2.5, 0.5, offset);
        let want: Vec<f64> = grads[offset..LEN].iter().map(|g| g * 0.2).collect();
        close_f32("clipped", &got[offset..LEN], &want, 2.0);
        assert!(got[..offset] == grads[..offset] && got[LEN] == grads[LEN]);
    }
    for (norm, max_norm) in [(2.5, 2.5), (2.5, f64::INFINITY), (f64::NAN, 0.5), (f64::INFINITY, 0.5)] {
        assert!(clip(norm, max_norm, 0) == grads, "norm {norm}, at most {max_norm}");
    }
}
