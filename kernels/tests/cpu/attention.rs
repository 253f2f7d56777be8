use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::philox::{DropoutRate, attention_bytes};
use kernels::{Backend, Scalar};

/// Attention over packed sequences of (queries, keys).
#[derive(Debug)]
struct Attention {
    sequences: Vec<(usize, usize)>,
    heads: usize,
    d: usize,
    p: f64,
    /// Queries in a buffer of their own.
    split: bool,
}

impl Attention {
    fn packed(lengths: &[usize], heads: usize, d: usize, p: f64) -> Self {
        Self { sequences: lengths.iter().map(|&n| (n, n)).collect(), heads, d, p, split: false }
    }

    fn split(sequences: &[(usize, usize)], heads: usize, d: usize, p: f64) -> Self {
        Self { sequences: sequences.to_vec(), heads, d, p, split: true }
    }

    fn offsets(&self, which: impl Fn(&(usize, usize)) -> usize) -> Vec<u32> {
        let mut end = 0;
        let ends = self.sequences.iter().map(|s| {
            end += which(s) as u32;
            end
        });
        [0].into_iter().chain(ends).collect()
    }

    fn size<'a, T: Scalar>(&self, cu_q: &'a [u32], cu_k: &'a [u32]) -> AttentionSize<'a, Cpu<T>> {
        AttentionSize::<Cpu<T>> {
            cu_q,
            cu_k,
            queries: cu_q[cu_q.len() - 1] as usize,
            keys: cu_k[cu_k.len() - 1] as usize,
            max_keys: self.sequences.iter().map(|s| s.1).max().unwrap(),
            heads: self.heads,
            head_size: self.d,
        }
    }
}

fn qkv<T: Scalar>(inputs: &[Vec<T>]) -> Qkv<'_, Cpu<T>> {
    match inputs {
        [q, kv] => Qkv::Split::<Cpu<T>> { q, kv },
        _ => Qkv::Packed(&inputs[0][..]),
    }
}

impl Op for Attention {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let h = self.heads * self.d;
        let queries: usize = self.sequences.iter().map(|s| s.0).sum();
        let keys: usize = self.sequences.iter().map(|s| s.1).sum();
        if self.split {
            return vec![noise(queries * h, 60), noise(keys * 2 * h, 61)];
        }
        vec![noise(keys * 3 * h, 62)]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let (cu_q, cu_k) = (self.offsets(|s| s.0), self.offsets(|s| s.1));
        let queries = cu_q[cu_q.len() - 1] as usize;
        let inputs: Vec<Vec<T>> = inputs.iter().map(|x| cast(x)).collect();
        let (mut out, mut lse) = (poison::<T>(queries * self.heads * self.d), poison(self.heads * queries));
        let (cpu, row_keys) = (Cpu::<T>::new(), row_keys(queries));
        cpu.attention_forward(AttentionForward::<Cpu<T>> {
            out: &mut out,
            lse: &mut lse,
            qkv: qkv(&inputs),
            size: self.size(&cu_q, &cu_k),
            dropout: dropout(self.p, &row_keys),
        })
        .unwrap();
        let mut gradients: Vec<Vec<T>> = inputs.iter().map(|x| poison(x.len())).collect();
        let dqkv = match &mut gradients[..] {
            [dq, dkv] => QkvGrad::Split::<Cpu<T>> { dq, dkv },
            [dqkv] => QkvGrad::Packed(&mut dqkv[..]),
            _ => unreachable!(),
        };
        cpu.attention_backward(AttentionBackward::<Cpu<T>> {
            dqkv,
            dout: &cast::<T>(&self.dy(out.len())),
            qkv: qkv(&inputs),
            out: &out,
            lse: &lse,
            size: self.size(&cu_q, &cu_k),
            dropout: dropout(self.p, &row_keys),
        })
        .unwrap();
        Run { y: wide(&out), gradients: gradients.iter().map(|g| wide(g)).collect() }
    }
}

#[test]
fn gradients() {
    finite_differences(&Attention::packed(&[1, 2, 5], 2, 2, 0.0));
    finite_differences(&Attention::packed(&[1, 17, 3], 3, 12, 0.3));
    finite_differences(&Attention::packed(&[63, 1, 65], 1, 12, 0.1));
    finite_differences(&Attention::packed(&[64, 130], 2, 2, 0.2));
    finite_differences(&Attention::packed(&[20], 1, 64, 0.1));
}

#[test]
fn gradients_of_a_subset_of_queries() {
    finite_differences(&Attention::split(&[(1, 1), (2, 63), (0, 5), (66, 130)], 2, 12, 0.0));
    finite_differences(&Attention::split(&[(0, 3), (3, 65), (7, 64)], 1, 64, 0.25));
}

#[test]
fn f32_is_close() {
    single_precision(&Attention::packed(&[130, 1, 65, 300], 2, 64, 0.1), 30.0);
    single_precision(&Attention::split(&[(3, 130), (0, 64), (9, 63)], 3, 12, 0.0), 30.0);
}

#[test]
fn threads_do_not_matter() {
    any_threads(&Attention::packed(&[130, 1, 65, 200], 3, 12, 0.1));
    any_threads(&Attention::split(&[(3, 130), (0, 64), (9, 63)], 2, 64, 0.1));
}

/// The definition, one element after another.
#[test]
fn forward_is_the_definition() {
    let op = Attention::split(&[(2, 3), (3, 70)], 2, 4, 0.3);
    let inputs = op.inputs();
    let (q, kv, h) = (&inputs[0], &inputs[1], 8);
    let rate = DropoutRate::new(0.3);
    let keys = row_keys(5);
    let run = op.run::<f64>(&inputs);
    for (row, head, c) in (0..5).flat_map(|r| (0..2).flat_map(move |h| (0..4).map(move |c| (r, h, c)))) {
        let range = if row < 2 { 0..3 } else { 3..73 };
        let score = |key: usize| -> f64 {
            (0..4).map(|c| q[row * h + head * 4 + c] * kv[key * 2 * h + head * 4 + c]).sum::<f64>() / 2.0
        };
        let total: f64 = range.clone().map(|key| score(key).exp()).sum();
        let want: f64 = range
            .clone()
            .map(|key| {
                let j = key - range.start;
                let byte = attention_bytes(0x5eed, 11, keys[row], head as u32, j as u32 / 64)[j % 64];
                let kept = if byte < rate.threshold { 0.0 } else { rate.scale() };
                score(key).exp() / total * kept * kv[key * 2 * h + h + head * 4 + c]
            })
            .sum();
        let got = run.y[row * h + head * 4 + c];
        assert!((got - want).abs() < 1e-14, "row {row}, head {head}, column {c}: {got}, not {want}");
    }
}

/// Scores of some hundreds would overflow without the subtraction of their maximum.
#[test]
fn large_scores_stay_finite() {
    let op = Attention::packed(&[70], 1, 64, 0.0);
    let inputs: Vec<Vec<f64>> = op.inputs().iter().map(|x| x.iter().map(|x| 40.0 * x).collect()).collect();
    let run = op.run::<f32>(&inputs);
    assert!(run.y.iter().chain(&run.gradients[0]).all(|x| x.is_finite()));
}
