//! Gradient norm, AdamW and LAMB over the flat table. Bound by memory: each array is read and written once (LAMB
//! reads moments and weights twice). Norms are summed in f64, in blocks of fixed size, in order.

use crate::backend::{OptimizerHyper, OptimizerStep, STRETCH, TensorSpan, lamb_sums, stretches};
use crate::cpu::Cpu;
use crate::cpu::math::{CHUNK, WIDE, add, grain, simd, vector, vector_mut};
use crate::error::{check_len, check_range};
use crate::{Result, Scalar};
use rayon::prelude::*;
use std::ops::Range;

/// Sum of squares in f64, in a fixed order.
#[inline(always)]
fn squares<T: Scalar>(x: &[T]) -> f64 {
    let mut lanes = [0.0; WIDE];
    let chunks = x.chunks_exact(WIDE);
    let tail = chunks.remainder();
    for x in chunks {
        let x = vector(x, 0);
        for l in 0..WIDE {
            let x = x[l].to_f64();
            lanes[l] += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += x.to_f64() * x.to_f64();
    }
    lanes.iter().sum()
}

pub(super) fn square_sums<T: Scalar>(sums: &mut [f64], x: &[T]) -> Result<()> {
    check_len("square_sums", "sums", sums.len(), x.len().div_ceil(STRETCH))?;
    x.par_chunks(STRETCH)
        .zip(sums)
        .with_min_len(grain(STRETCH))
        .for_each(|(x, sum)| *sum = simd!(|| squares(x)));
    Ok(())
}

pub(super) fn root_of_sum<T: Scalar>(norm: &mut [T], sums: &[f64]) -> Result<()> {
    check_len("root_of_sum", "norm", norm.len(), 1)?;
    norm[0] = T::from_f64(sums.iter().sum::<f64>().sqrt());
    Ok(())
}

pub(super) fn find_nonfinite<T: Scalar>(place: &mut [T], x: &[T], norm: &[T]) -> Result<()> {
    check_len("find_nonfinite", "place", place.len(), 2)?;
    check_len("find_nonfinite", "norm", norm.len(), 1)?;
    let suspect = !norm[0].to_f64().is_finite();
    let first = suspect.then(|| x.iter().position(|x| !x.to_f64().is_finite())).flatten();
    let found = first.map_or([-1.0; 2], |i| [(i / STRETCH) as f64, (i % STRETCH) as f64]);
    place.copy_from_slice(&found.map(T::from_f64));
    Ok(())
}

pub(super) fn clip<T: Scalar>(x: &mut [T], norm: &[T], max_norm: f64) -> Result<()> {
    check_len("clip", "norm", norm.len(), 1)?;
    let norm = norm[0].to_f64();
    if norm.is_finite() && norm > max_norm {
        let scale = T::from_f64(max_norm / norm);
        x.par_chunks_mut(CHUNK)
            .with_min_len(grain(CHUNK))
            .for_each(|x| simd!(|| x.iter_mut().for_each(|x| *x *= scale)));
    }
    Ok(())
}

/// One step's constants, rounded once from f64.
#[derive(Clone, Copy)]
struct Constants<T> {
    clip: T,
    beta1: T,
    one_minus_beta1: T,
    beta2: T,
    one_minus_beta2: T,
    /// 1 / (1 - beta1^update)
    correction1: T,
    /// 1 / sqrt(1 - beta2^update)
    correction2: T,
    eps: T,
}

impl<T: Scalar> Constants<T> {
    fn new(hyper: &OptimizerHyper, update: u32, norm: f64) -> Self {
        let OptimizerHyper { beta1, beta2, eps, max_norm, clip_eps, .. } = *hyper;
        let correction = |beta: f64| 1.0 - beta.powf(update.into());
        let constants = [
            (max_norm / (norm + clip_eps)).min(1.0),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 / correction(beta1),
            1.0 / correction(beta2).sqrt(),
            eps,
        ];
        let [clip, beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps] =
            constants.map(T::from_f64);
        Self { clip, beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps }
    }

    /// Updates the moments.
    #[inline(always)]
    fn moments(&self, g: T, m: &mut T, v: &mut T) {
        let g = g * self.clip;
        *m = self.beta1 * *m + self.one_minus_beta1 * g;
        *v = self.beta2 * *v + self.one_minus_beta2 * (g * g);
    }

    /// Adam's direction: `mh / (sqrt(vh) + eps)`.
    #[inline(always)]
    fn direction(&self, m: T, v: T) -> T {
        m * self.correction1 / (v.sqrt() * self.correction2 + self.eps)
    }
}

/// What of one tensor lies in the shard.
struct Piece<'a, T> {
    w: &'a mut [T],
    g: &'a [T],
    m: &'a mut [T],
    v: &'a mut [T],
    decay: bool,
    /// Elements before the first multiple of [`STRETCH`].
    head: usize,
    /// The pairs of sums of the tensor's stretches.
    tensor_sums: Range<usize>,
    /// Of these, the piece's.
    sums: Range<usize>,
}

/// Checks the lengths and calls `f` with every tensor's piece, unless the norm is not finite. With `counts` the update is
/// counted as applied.
fn for_each_piece<T: Scalar>(
    op: &'static str,
    args: OptimizerStep<'_, Cpu<T>>,
    counts: bool,
    mut f: impl FnMut(Piece<'_, T>, Constants<T>, OptimizerHyper),
) -> Result<()> {
    let OptimizerStep { weights, grads, m, v, norm, updates, shard, tensors, hyper } = args;
    let weights = weights.as_mut_slice();
    check_len(op, "grads", grads.len(), weights.len())?;
    check_range(op, "shard", weights.len(), &shard, shard.len())?;
    check_len(op, "shard's start within a stretch", shard.start % STRETCH, 0)?;
    if shard.end < weights.len() {
        check_len(op, "shard's end within a stretch", shard.end % STRETCH, 0)?;
    }
    check_len(op, "m", m.len(), shard.len())?;
    check_len(op, "v", v.len(), shard.len())?;
    check_len(op, "norm", norm.len(), 1)?;
    check_len(op, "updates", updates.len(), 1)?;
    for TensorSpan { range, .. } in tensors {
        check_range(op, "tensors", weights.len(), range, range.len())?;
    }
    if !norm[0].is_finite() {
        return Ok(());
    }
    let constants = Constants::new(&hyper, updates[0] + 1, norm[0].to_f64());
    if counts {
        updates[0] += 1;
    }
    let mut first_sum = 0;
    for TensorSpan { range, decay } in tensors {
        let all = stretches(range);
        let tensor_sums = first_sum..first_sum + all.len();
        first_sum = tensor_sums.end;
        let (start, end) = (range.start.max(shard.start), range.end.min(shard.end));
        if start >= end {
            continue;
        }
        let own = stretches(&(start..end));
        let sums = tensor_sums.start + own.start - all.start..tensor_sums.start + own.end - all.start;
        let head = (start.next_multiple_of(STRETCH) - start).min(end - start);
        let local = start - shard.start..end - shard.start;
        let (w, m, v) = (&mut weights[start..end], &mut m[local.clone()], &mut v[local]);
        let g = &grads[start..end];
        f(Piece { w, g, m, v, decay: *decay, head, tensor_sums, sums }, constants, hyper);
    }
    Ok(())
}

pub(super) fn adamw<T: Scalar>(args: OptimizerStep<'_, Cpu<T>>) -> Result<()> {
    for_each_piece("adamw", args, true, |Piece { w, g, m, v, decay, .. }, constants, hyper| {
        let keep = T::from_f64(if decay { 1.0 - hyper.lr * hyper.weight_decay } else { 1.0 });
        let lr = T::from_f64(hyper.lr);
        w.par_chunks_mut(CHUNK)
            .zip(g.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .with_min_len(grain(CHUNK))
            .for_each(|((w, g), (m, v))| {
                simd!(|| {
                    for ((w, &g), (m, v)) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
                        constants.moments(g, m, v);
                        *w = *w * keep - lr * constants.direction(*m, *v);
                    }
                });
            });
    })
}

pub(super) fn lamb_moments<T: Scalar>(args: OptimizerStep<'_, Cpu<T>>, sums: &mut [f64]) -> Result<()> {
    check_len("lamb_moments", "sums", sums.len(), lamb_sums(args.tensors))?;
    for_each_piece("lamb_moments", args, false, |piece, constants, hyper| {
        let Piece { w, g, m, v, decay, head, sums: own, .. } = piece;
        let decay_rate = T::from_f64(if decay { hyper.weight_decay } else { 0.0 });
        let stretch = |w: &[T], g: &[T], m: &mut [T], v: &mut [T], sums: &mut [f64]| {
            let squares = simd!(|| moments_and_squares(w, g, m, v, decay_rate, &constants));
            sums.copy_from_slice(&squares);
        };
        let sums = &mut sums[2 * own.start..2 * own.end];
        let (head_sums, sums) = sums.split_at_mut(if head > 0 { 2 } else { 0 });
        let (m_head, m) = m.split_at_mut(head);
        let (v_head, v) = v.split_at_mut(head);
        if head > 0 {
            stretch(&w[..head], &g[..head], m_head, v_head, head_sums);
        }
        w[head..]
            .par_chunks(STRETCH)
            .zip(g[head..].par_chunks(STRETCH))
            .zip(m.par_chunks_mut(STRETCH).zip(v.par_chunks_mut(STRETCH)))
            .zip(sums.par_chunks_exact_mut(2))
            .with_min_len(grain(STRETCH))
            .for_each(|(((w, g), (m, v)), sums)| stretch(w, g, m, v, sums));
    })
}

pub(super) fn lamb_apply<T: Scalar>(args: OptimizerStep<'_, Cpu<T>>, sums: &[f64]) -> Result<()> {
    check_len("lamb_apply", "sums", sums.len(), lamb_sums(args.tensors))?;
    for_each_piece("lamb_apply", args, true, |piece, constants, hyper| {
        let Piece { w, m, v, decay, tensor_sums, .. } = piece;
        let decay_rate = T::from_f64(if decay { hyper.weight_decay } else { 0.0 });
        let mut total = [0.0; 2];
        let of_tensor = &sums[2 * tensor_sums.start..2 * tensor_sums.end];
        of_tensor.chunks_exact(2).for_each(|sums| add(&mut total, sums));
        let [w_norm, u_norm] = total.map(f64::sqrt);
        let ratio = if decay && w_norm > 0.0 && u_norm > 0.0 { w_norm / u_norm } else { 1.0 };
        let rate = T::from_f64(hyper.lr * ratio);
        w.par_chunks_mut(CHUNK)
            .zip(m.par_chunks(CHUNK).zip(v.par_chunks(CHUNK)))
            .with_min_len(grain(CHUNK))
            .for_each(|(w, (m, v))| {
                simd!(|| {
                    for (w, (&m, &v)) in w.iter_mut().zip(m.iter().zip(v)) {
                        *w -= rate * (constants.direction(m, v) + decay_rate * *w);
                    }
                });
            });
    })
}

/// Updates one block's moments; returns the sums of squares of w and of the update u.
#[inline(always)]
fn moments_and_squares<T: Scalar>(
    w: &[T],
    g: &[T],
    m: &mut [T],
    v: &mut [T],
    decay_rate: T,
    constants: &Constants<T>,
) -> [f64; 2] {
    let mut sums = [0.0; WIDE];
    let whole = w.len() / WIDE * WIDE;
    for at in (0..whole).step_by(WIDE) {
        let (w, g) = (vector(w, at), vector(g, at));
        let (m, v) = (vector_mut(m, at), vector_mut(v, at));
        for l in 0..WIDE {
            constants.moments(g[l], &mut m[l], &mut v[l]);
            let u = (constants.direction(m[l], v[l]) + decay_rate * w[l]).to_f64();
            sums[l] += u * u;
        }
    }
    for i in whole..w.len() {
        constants.moments(g[i], &mut m[i], &mut v[i]);
        let u = (constants.direction(m[i], v[i]) + decay_rate * w[i]).to_f64();
        sums[i - whole] += u * u;
    }
    [squares(w), sums.iter().sum()]
}
