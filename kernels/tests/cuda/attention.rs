use crate::check::*;
use bytemuck::Zeroable;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element, Memory, View};
use kernels::{Backend, Error};

/// Attention over packed sequences of (queries, keys).
#[derive(Debug, Clone)]
struct Attention {
    sequences: Vec<(usize, usize)>,
    heads: usize,
    d: usize,
    p: f64,
    /// Queries in a buffer of their own.
    split: bool,
    /// Elements by which every buffer misses an address that is a multiple of 16 bytes.
    offset: usize,
}

impl Attention {
    fn packed(lengths: &[usize], heads: usize, d: usize, p: f64) -> Self {
        let sequences = lengths.iter().map(|&n| (n, n)).collect();
        Self { sequences, heads, d, p, split: false, offset: 0 }
    }

    fn split(sequences: &[(usize, usize)], heads: usize, d: usize, p: f64) -> Self {
        Self { sequences: sequences.to_vec(), heads, d, p, split: true, offset: 0 }
    }

    fn queries(&self) -> usize {
        self.sequences.iter().map(|s| s.0).sum()
    }

    fn keys(&self) -> usize {
        self.sequences.iter().map(|s| s.1).sum()
    }

    fn hidden(&self) -> usize {
        self.heads * self.d
    }

    /// Offsets of queries and of keys.
    fn offsets(&self) -> [Vec<u32>; 2] {
        let mut offsets = [vec![0], vec![0]];
        for &(queries, keys) in &self.sequences {
            for (offsets, n) in offsets.iter_mut().zip([queries, keys]) {
                offsets.push(offsets[offsets.len() - 1] + n as u32);
            }
        }
        offsets
    }

    fn size<'a, B: Backend>(&self, cu_q: Indices<'a, B>, cu_k: Indices<'a, B>) -> AttentionSize<'a, B> {
        AttentionSize {
            cu_q,
            cu_k,
            queries: self.queries(),
            keys: self.keys(),
            max_keys: self.sequences.iter().map(|s| s.1).max().unwrap_or(0),
            heads: self.heads,
            head_size: self.d,
        }
    }

    /// Lengths of the buffers of queries, keys and values.
    fn lengths(&self) -> Vec<usize> {
        let h = self.hidden();
        if self.split { vec![self.queries() * h, self.keys() * 2 * h] } else { vec![self.keys() * 3 * h] }
    }

    /// Queries, keys and values, and the gradient of the output, as E holds them.
    fn inputs<E: Element>(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let noise = |len, seed| rounded::<E>(&noise(len, seed));
        // Scores of some units, so that weights differ by orders of magnitude.
        let scaled = |len, seed| rounded::<E>(&noise(len, seed).iter().map(|x| 2.5 * x).collect::<Vec<_>>());
        let qkv = self.lengths().into_iter().zip(70..).map(|(len, seed)| scaled(len, seed)).collect();
        (qkv, noise(self.queries() * self.hidden(), 80))
    }

    fn oracle<E: Element>(&self) -> Exact {
        let ([cu_q, cu_k], keys, (qkv, dout)) =
            (self.offsets(), row_keys(self.queries()), self.inputs::<E>());
        let cpu = Cpu::<f64>::new();
        let mut out = vec![f64::NAN; self.queries() * self.hidden()];
        let mut lse = vec![f64::NAN; self.queries() * self.heads];
        let dropout = cpu_dropout(self.p, &keys);
        cpu.attention_forward(AttentionForward {
            out: &mut out,
            lse: &mut lse,
            qkv: host_qkv(&qkv),
            size: self.size(&cu_q[..], &cu_k[..]),
            dropout: dropout.shorten(),
        })
        .unwrap();
        // Backward starts from what forward saves, rounded.
        let (saved_out, saved_lse) = (rounded::<E>(&out), rounded_f32(&lse));
        let mut grads: Vec<Vec<f64>> = qkv.iter().map(|x| vec![f64::NAN; x.len()]).collect();
        let dqkv = match &mut grads[..] {
            [dq, dkv] => QkvGrad::Split::<Cpu<f64>> { dq, dkv },
            [dqkv] => QkvGrad::Packed(&mut dqkv[..]),
            _ => unreachable!(),
        };
        cpu.attention_backward(AttentionBackward {
            dqkv,
            dout: &dout,
            qkv: host_qkv(&qkv),
            out: &saved_out,
            lse: &saved_lse,
            size: self.size(&cu_q[..], &cu_k[..]),
            dropout: dropout.shorten(),
        })
        .unwrap();
        Exact { out, lse, saved_out, saved_lse, grads }
    }

    /// Forward, and backward from what the oracle saved.
    fn run<E: Element>(&self, saved_out: &[f64], saved_lse: &[f64]) -> Run<E> {
        let (cuda, (qkv, dout)) = (cuda::<E>(), self.inputs::<E>());
        let [cu_q, cu_k] = self.offsets().map(|x| put(&cuda, &x));
        let row_keys = put(&cuda, &row_keys(self.queries()));
        let size = || self.size::<Cuda<E>>(all(&cu_q), all(&cu_k));
        let shifted = |values: &[f64]| {
            let zeros = vec![0.0; self.offset];
            put_elems(&cuda, &[zeros, values.to_vec()].concat())
        };
        let output = |len: usize| poisoned::<E, E>(&cuda, len + self.offset);
        let from = |memory: &Memory<E>| self.offset..memory_len(memory);
        let qkv: Vec<_> = qkv.iter().map(|x| shifted(x)).collect();
        let at = |memory| Cuda::<E>::at(memory, from(memory));
        let layout = || match &qkv[..] {
            [q, kv] => Qkv::Split { q: at(q), kv: at(kv) },
            _ => Qkv::Packed(at(&qkv[0])),
        };
        let dropout = gpu_dropout::<E>(self.p, &row_keys);
        let mut out = output(saved_out.len());
        let mut lse = poisoned::<E, f32>(&cuda, saved_lse.len());
        let range = from(&out);
        let args = AttentionForward {
            out: Cuda::<E>::at_mut(&mut out, range),
            lse: Cuda::<E>::at_mut(&mut lse, 0..saved_lse.len()),
            qkv: layout(),
            size: size(),
            dropout: dropout.shorten(),
        };
        cuda.attention_forward(args).unwrap();
        let (saved_out, saved_lse) = (shifted(saved_out), put_f32(&cuda, saved_lse));
        let dout = shifted(&dout);
        let mut grads: Vec<_> = self.lengths().into_iter().map(output).collect();
        let dqkv = match &mut grads[..] {
            [dq, dkv] => {
                let (q_range, kv_range) = (from(dq), from(dkv));
                QkvGrad::Split { dq: Cuda::<E>::at_mut(dq, q_range), dkv: Cuda::<E>::at_mut(dkv, kv_range) }
            }
            [dqkv] => {
                let range = from(dqkv);
                QkvGrad::Packed(Cuda::<E>::at_mut(dqkv, range))
            }
            _ => unreachable!(),
        };
        let args = AttentionBackward {
            dqkv,
            dout: at(&dout),
            qkv: layout(),
            out: at(&saved_out),
            lse: all(&saved_lse),
            size: size(),
            dropout: dropout.shorten(),
        };
        cuda.attention_backward(args).unwrap();
        let host = |memory: &Memory<E>| get(&cuda, memory).split_off(self.offset);
        Run { out: host(&out), lse: get(&cuda, &lse), grads: grads.iter().map(host).collect() }
    }

    /// Splits gradients into those of queries, keys and values.
    fn parts(&self, grads: &[Vec<f64>]) -> [Vec<f64>; 3] {
        let h = self.hidden();
        let columns = |x: &[f64], stride: usize, at: usize| -> Vec<f64> {
            x.chunks(stride).flat_map(|row| row[at..at + h].iter().copied()).collect()
        };
        match grads {
            [dq, dkv] => [dq.clone(), columns(dkv, 2 * h, 0), columns(dkv, 2 * h, h)],
            [x] => [0, h, 2 * h].map(|at| columns(x, 3 * h, at)),
            _ => unreachable!(),
        }
    }

    fn check<E: Element>(&self, bounds: &Bounds) {
        let exact = self.oracle::<E>();
        let run = self.run::<E>(&exact.saved_out, &exact.saved_lse);
        let name = |what: &str| format!("{what} of {self:?}");
        close::<E>(&name("out"), &wide(&run.out), &exact.out, bounds.out);
        close_f32(&name("lse"), &wide(&run.lse), &exact.lse, bounds.lse);
        let got: Vec<Vec<f64>> = run.grads.iter().map(|x| wide(x)).collect();
        let what = ["dq", "dk", "dv"].map(name);
        for ((what, got), exact) in what.iter().zip(self.parts(&got)).zip(self.parts(&exact.grads)) {
            close::<E>(what, &got, &exact, bounds.grads);
        }
    }
}

/// The oracle's answers, and what it saved for backward.
struct Exact {
    out: Vec<f64>,
    lse: Vec<f64>,
    saved_out: Vec<f64>,
    saved_lse: Vec<f64>,
    grads: Vec<Vec<f64>>,
}

struct Run<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    grads: Vec<Vec<E>>,
}

/// How many times what rounding the exact answer costs.
struct Bounds {
    out: f64,
    lse: f64,
    grads: f64,
}

fn host_qkv(buffers: &[Vec<f64>]) -> Qkv<'_, Cpu<f64>> {
    match buffers {
        [q, kv] => Qkv::Split { q, kv },
        _ => Qkv::Packed(&buffers[0][..]),
    }
}

fn wide<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn all<T: bytemuck::Pod + Send + Sync>(memory: &Memory<T>) -> View<'_, T> {
    Cuda::<f32>::at(memory, 0..memory.len())
}

fn memory_len<E: Element>(memory: &Memory<E>) -> usize {
    memory.len()
}

#[test]
fn probe() {
    let b = Bounds { out: 2.0, lse: 2.0, grads: 2.0 };
    for d in [1, 8, 30, 64, 80, 128] {
        for p in [0.0, 0.1] {
            for lengths in [&[1][..], &[2, 5], &[63, 64, 1], &[65, 130, 257]] {
                Attention::packed(lengths, 2, d, p).check::<f32>(&b);
                Attention::packed(lengths, 2, d, p).check::<bf16>(&b);
            }
        }
    }
}
