//! The kernels between the products.

use crate::harness::{B, Bench, Shape, all, all_mut, dropout};
use kernels::backend::*;
use kernels::cuda::Memory;
use kernels::philox::DropoutRate;
use kernels::{Backend, Result};
use std::collections::BTreeMap;

/// Rows grouped by their value: values, offsets, rows.
fn groups(bench: &Bench<'_>, values: &[usize]) -> Result<[Memory<u32>; 3]> {
    let mut by_value = BTreeMap::<usize, Vec<usize>>::new();
    for (row, &value) in values.iter().enumerate() {
        by_value.entry(value).or_default().push(row);
    }
    let ends = by_value.values().scan(0, |end, rows| {
        *end += rows.len();
        Some(*end)
    });
    let starts = bench.indices([0].into_iter().chain(ends))?;
    let rows = bench.indices(by_value.values().flatten().copied())?;
    Ok([bench.indices(by_value.into_keys())?, starts, rows])
}

fn as_groups([ids, starts, rows]: &[Memory<u32>; 3]) -> Groups<'_, B> {
    Groups { ids: all(ids), starts: all(starts), rows: all(rows) }
}

pub fn embedding(bench: &mut Bench<'_>) -> Result<()> {
    let s = bench.shape;
    let (t, h) = (s.tokens(), s.hidden);
    let tokens: Vec<usize> = (0..t).map(|i| i * 7919 % s.vocab).collect();
    let positions: Vec<usize> = (0..t).map(|i| i % s.length).collect();
    let (by_token, by_position) = (groups(bench, &tokens)?, groups(bench, &positions)?);
    let (tokens, positions) = (bench.indices(tokens)?, bench.indices(positions)?);
    let types = bench.indices((0..t).map(|i| usize::from(i % s.length >= s.length / 2)))?;
    let keys = bench.indices(0..t)?;
    let [word, position, kind] = [s.vocab * h, s.length * h, 2 * h].map(|n| bench.elems(n));
    let (word, position, kind) = (word?, position?, kind?);
    let (mut y, mut z, gamma) = (bench.elems(t * h)?, bench.elems(t * h)?, bench.floats(h)?);
    let (mut mean, mut rstd) = (bench.floats(t)?, bench.floats(t)?);
    bench.run("embedding_forward", |cuda| {
        cuda.embedding_forward(EmbeddingForward {
            y: all_mut(&mut y),
            z: all_mut(&mut z),
            mean: all_mut(&mut mean),
            rstd: all_mut(&mut rstd),
            tokens: all(&tokens),
            positions: all(&positions),
            types: all(&types),
            word: all(&word),
            position: all(&position),
            kind: all(&kind),
            gamma: all(&gamma),
            beta: all(&gamma),
            eps: 1e-12,
            dropout: dropout(&keys),
        })
    })?;
    let edges = [0, s.vocab * h, s.length * h, 2 * h, h, h];
    let edges: Vec<usize> = edges.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n) + n)).collect();
    let mut grads = bench.floats(edges[5])?;
    bench.run("embedding_backward", |cuda| {
        cuda.embedding_backward(EmbeddingBackward {
            dy: all_mut(&mut y),
            z: all(&z),
            mean: all(&mean),
            rstd: all(&rstd),
            gamma: all(&gamma),
            types: all(&types),
            by_token: as_groups(&by_token),
            by_position: as_groups(&by_position),
            grads: all_mut(&mut grads),
            dword: edges[0]..edges[1],
            dposition: edges[1]..edges[2],
            dkind: edges[2]..edges[3],
            dgamma: edges[3]..edges[4],
            dbeta: edges[4]..edges[5],
            dropout: dropout(&keys),
        })
    })
}

pub fn layernorm(bench: &mut Bench<'_>) -> Result<()> {
    let (t, h) = (bench.shape.tokens(), bench.shape.hidden);
    let [x, y, z, dx] = [(); 4].map(|()| bench.elems(t * h));
    let (x, mut y, mut z, mut dx) = (x?, y?, z?, dx?);
    let (mut mean, mut rstd, gamma) = (bench.floats(t)?, bench.floats(t)?, bench.floats(h)?);
    let (keys, mut grads) = (bench.indices(0..t)?, bench.floats(3 * h)?);
    bench.run("layernorm_forward", |cuda| {
        cuda.layernorm_forward(LayerNormForward {
            y: all_mut(&mut y),
            z: all_mut(&mut z),
            residual: Some(all(&x)),
            mean: all_mut(&mut mean),
            rstd: all_mut(&mut rstd),
            gamma: all(&gamma),
            beta: all(&gamma),
            eps: 1e-12,
            dropout: dropout(&keys),
        })
    })?;
    bench.run("layernorm_backward", |cuda| {
        cuda.layernorm_backward(LayerNormBackward {
            dz: all_mut(&mut y),
            dx: all_mut(&mut dx),
            dy: all(&x),
            z: all(&z),
            mean: all(&mean),
            rstd: all(&rstd),
            gamma: all(&gamma),
            grads: all_mut(&mut grads),
            dgamma: 0..h,
            dbeta: h..2 * h,
            dbias: Some(2 * h..3 * h),
            dropout: dropout(&keys),
        })
    })
}

pub fn elementwise(bench: &mut Bench<'_>) -> Result<()> {
    let s = bench.shape;
    let (t, f) = (s.tokens(), s.inner);
    let (x, mut y, mut grads) = (bench.elems(t * f)?, bench.elems(t * f)?, bench.floats(f)?);
    let size = Size2 { rows: t, cols: f };
    for (name, kind) in [("tanh", Gelu::Tanh), ("erf", Gelu::Erf)] {
        bench.run(&format!("gelu_forward {name}"), |cuda| {
            cuda.gelu_forward(GeluForward { y: all_mut(&mut y), x: all(&x), kind })
        })?;
        bench.run(&format!("gelu_backward {name}"), |cuda| {
            let (dy, x, grads) = (all_mut(&mut y), all(&x), all_mut(&mut grads));
            cuda.gelu_backward(GeluBackward { dy, x, kind, grads, dbias: 0..f, size })
        })?;
    }
    let (cols, rows) = (3 * s.hidden, t);
    let (dy, mut grads) = (bench.elems(rows * cols)?, bench.floats(cols)?);
    bench.run("bias_grad qkv", |cuda| {
        let (grads, dy, size) = (all_mut(&mut grads), all(&dy), Size2 { rows, cols });
        cuda.bias_grad(BiasGrad { grads, dbias: 0..cols, dy, size })
    })
}

pub fn attention(bench: &mut Bench<'_>) -> Result<()> {
    let s = bench.shape;
    let (t, h) = (s.tokens(), s.hidden);
    let (qkv, mut dqkv) = (bench.elems(3 * t * h)?, bench.elems(3 * t * h)?);
    let (mut out, dout, mut lse) = (bench.elems(t * h)?, bench.elems(t * h)?, bench.floats(t * s.heads)?);
    let cu = bench.indices((0..=s.sequences).map(|i| i * s.length))?;
    let keys = bench.indices(0..t)?;
    // two products forward, five backward
    let product = 2 * t * s.length * h;
    for (name, rate) in [("", DropoutRate::new(0.1)), (" without dropout", DropoutRate::NONE)] {
        bench.run_of(&format!("attention_forward{name}"), Some(2 * product), |cuda| {
            let (out, lse, qkv) = (all_mut(&mut out), all_mut(&mut lse), Qkv::Packed(all(&qkv)));
            let (size, dropout) = (packed(&cu, s), Dropout { rate, ..dropout(&keys) });
            cuda.attention_forward(AttentionForward { out, lse, qkv, size, dropout })
        })?;
        bench.run_of(&format!("attention_backward{name}"), Some(5 * product), |cuda| {
            cuda.attention_backward(AttentionBackward {
                dqkv: QkvGrad::Packed(all_mut(&mut dqkv)),
                dout: all(&dout),
                qkv: Qkv::Packed(all(&qkv)),
                out: all(&out),
                lse: all(&lse),
                size: packed(&cu, s),
                dropout: Dropout { rate, ..dropout(&keys) },
            })
        })?;
    }
    Ok(())
}

/// Full sequences.
fn packed(cu: &Memory<u32>, s: Shape) -> AttentionSize<'_, B> {
    AttentionSize {
        cu_q: all(cu),
        cu_k: all(cu),
        queries: s.tokens(),
        keys: s.tokens(),
        max_keys: s.length,
        heads: s.heads,
        head_size: s.hidden / s.heads,
    }
}

/// The masked tokens' rows, the loss, the pooler.
pub fn heads(bench: &mut Bench<'_>) -> Result<()> {
    let s = bench.shape;
    let (t, r, h) = (s.tokens(), s.masked, s.hidden);
    let (mut x, mut y) = (bench.elems(t * h)?, bench.elems(r * h)?);
    let rows = bench.indices((0..r).map(|i| i * (t / r)))?;
    bench.run("gather_rows", |cuda| {
        cuda.gather_rows(GatherRows { y: all_mut(&mut y), x: all(&x), rows: all(&rows), cols: h })
    })?;
    bench.run("scatter_add_rows", |cuda| {
        cuda.scatter_add_rows(ScatterAddRows { x: all_mut(&mut x), y: all(&y), rows: all(&rows), cols: h })
    })?;
    let mut loss = |name: &str, rows: usize, classes: usize, stride: usize| {
        let mut logits = bench.elems(rows * stride)?;
        let labels = bench.indices((0..rows).map(|i| i * 31 % classes))?;
        let mut sums = bench.floats(2)?;
        bench.run(name, |cuda| {
            let (logits, labels, sums) = (all_mut(&mut logits), all(&labels), all_mut(&mut sums));
            cuda.cross_entropy(CrossEntropy { logits, labels, classes, stride, scale: Some(0.1), sums })
        })
    };
    loss("cross_entropy mlm", r, s.vocab - 6, s.vocab)?;
    loss("cross_entropy nsp", s.sequences, 2, 2)?;
    let (mut y, mut dy) = (bench.elems(s.sequences * h)?, bench.elems(s.sequences * h)?);
    bench.run("tanh_forward", |cuda| cuda.tanh_forward(TanhForward { y: all_mut(&mut y) }))?;
    bench.run("tanh_backward", |cuda| cuda.tanh_backward(TanhBackward { dy: all_mut(&mut dy), y: all(&y) }))
}
