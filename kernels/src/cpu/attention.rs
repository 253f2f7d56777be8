//! Attention over packed sequences: `out = dropout(softmax(q k^T / sqrt(d))) v`.
//!
//! A task is one head of one sequence. It takes [`QUERIES`] queries at a time, whose scores against all keys of the
//! sequence fit the second-level cache; nothing of the size of all scores exists. Saved is the log-sum-exp of each
//! row of scores; backward computes the scores again and replays the dropout (Dao et al., "FlashAttention", 2022):
//!
//! with `p = exp(s - lse)`, `m` the dropout factor (0 or 1 / (1 - rate)) and `D = dout . out`:
//! `dv = (p m)^T dout`, `dp = dout v^T`, `ds = p (m dp - D)`, `dq = ds k / sqrt(d)`, `dk = ds^T q / sqrt(d)`.

use crate::backend::{AttentionBackward, AttentionForward, AttentionSize, Qkv, QkvGrad};
use crate::cpu::Cpu;
use crate::cpu::embedding::check_offsets;
use crate::cpu::linear::{View, product};
use crate::cpu::math::{Mask, WIDE, attention_bytes_of_key, attention_words, simd, sum2, vector, vector_mut};
use crate::cpu::memory::Scratch;
use crate::cpu::rows::Shared;
use crate::error::check_len;
use crate::{Error, Result, Scalar};
use gemm_common::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// Queries of one block.
const QUERIES: usize = 128;

/// Where queries, keys and values (or their gradients) lie.
#[derive(Clone, Copy)]
struct Layout<P> {
    q: P,
    k: P,
    v: P,
    q_stride: usize,
    kv_stride: usize,
}

/// The sizes, checked.
#[derive(Clone, Copy)]
struct Sizes<'a> {
    cu_q: &'a [u32],
    cu_k: &'a [u32],
    queries: usize,
    heads: usize,
    d: usize,
}

impl<'a> Sizes<'a> {
    fn new<T: Scalar>(op: &'static str, size: AttentionSize<'a, Cpu<T>>) -> Result<Self> {
        let AttentionSize { cu_q, cu_k, queries, keys, max_keys, heads, head_size } = size;
        check_len(op, "cu_q", cu_q.len(), cu_k.len())?;
        check_offsets(op, "cu_q", cu_q, queries)?;
        check_offsets(op, "cu_k", cu_k, keys)?;
        let fail = |what| Err(Error::Unsupported { op, what });
        if heads == 0 || head_size == 0 {
            return fail(format!("{heads} heads of {head_size} elements"));
        }
        for (b, (q, k)) in cu_q.windows(2).zip(cu_k.windows(2)).enumerate() {
            let (queries, keys) = (q[1] - q[0], k[1] - k[0]);
            if keys as usize > max_keys {
                return fail(format!("sequence {b} has {keys} keys, more than `max_keys` {max_keys}"));
            }
            if keys == 0 && queries > 0 {
                return fail(format!("sequence {b} has {queries} queries and no keys"));
            }
        }
        Ok(Self { cu_q, cu_k, queries, heads, d: head_size })
    }

    /// Factor of the scores.
    fn factor<T: Scalar>(&self) -> T {
        T::from_f64(1.0 / (self.d as f64).sqrt())
    }

    /// Packed rows hold a query and a key each.
    fn check_packed(&self, op: &'static str, keys: usize) -> Result<()> {
        if self.queries == keys {
            return Ok(());
        }
        let what = format!("{} queries and {keys} keys in one packed buffer", self.queries);
        Err(Error::Unsupported { op, what })
    }

    fn hidden(&self) -> usize {
        self.heads * self.d
    }

    /// Every head of every sequence.
    fn tasks(&self) -> impl IndexedParallelIterator<Item = Task> {
        let Self { cu_q, cu_k, heads, .. } = *self;
        (0..(cu_q.len() - 1) * heads).into_par_iter().map(move |i| {
            let range = |cu: &[u32]| cu[i / heads] as usize..cu[i / heads + 1] as usize;
            Task { q: range(cu_q), k: range(cu_k), head: i % heads }
        })
    }

    fn layout<P>(&self, packed: bool, q: P, kv: P, at: impl Fn(&P, usize) -> P) -> Layout<P> {
        let h = self.hidden();
        if packed {
            return Layout { k: at(&kv, h), v: at(&kv, 2 * h), q, q_stride: 3 * h, kv_stride: 3 * h };
        }
        Layout { k: at(&kv, 0), v: at(&kv, h), q, q_stride: h, kv_stride: 2 * h }
    }
}

/// One head of one sequence.
struct Task {
    q: Range<usize>,
    k: Range<usize>,
    head: usize,
}

impl Task {
    /// Blocks of queries.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.q.end;
        self.q.clone().step_by(QUERIES).map(move |start| start..(start + QUERIES).min(end))
    }
}

impl<T> Layout<*const T> {
    fn q(&self, rows: &Range<usize>, head: usize, d: usize) -> View<*const T> {
        View::new(self.q.wrapping_add(rows.start * self.q_stride + head * d), rows.len(), d, self.q_stride)
    }
    fn k(&self, rows: &Range<usize>, head: usize, d: usize) -> View<*const T> {
        View::new(self.k.wrapping_add(rows.start * self.kv_stride + head * d), rows.len(), d, self.kv_stride)
    }
    fn v(&self, rows: &Range<usize>, head: usize, d: usize) -> View<*const T> {
        Self { k: self.v, ..*self }.k(rows, head, d)
    }
}

/// A pointer layout that tasks share.
struct SharedLayout<P>(Layout<P>);
// SAFETY: tasks read through it, or write the elements of their own head and sequence only
unsafe impl<P> Send for SharedLayout<P> {}
// SAFETY: as above
unsafe impl<P> Sync for SharedLayout<P> {}
impl<P: Copy> SharedLayout<P> {
    fn get(&self) -> Layout<P> {
        self.0
    }
}

fn check_qkv<'a, T: Scalar>(
    op: &'static str,
    qkv: Qkv<'a, Cpu<T>>,
    sizes: &Sizes<'_>,
    keys: usize,
) -> Result<Layout<*const T>> {
    let h = sizes.hidden();
    let at = |p: &*const T, n: usize| p.wrapping_add(n);
    match qkv {
        Qkv::Packed(x) => {
            check_len(op, "qkv", x.len(), keys * 3 * h)?;
            sizes.check_packed(op, keys)?;
            Ok(sizes.layout(true, x.as_ptr(), x.as_ptr(), at))
        }
        Qkv::Split { q, kv } => {
            check_len(op, "q", q.len(), sizes.queries * h)?;
            check_len(op, "kv", kv.len(), keys * 2 * h)?;
            Ok(sizes.layout(false, q.as_ptr(), kv.as_ptr(), at))
        }
    }
}

pub(super) fn forward<T: Scalar>(scratch: &Scratch, args: AttentionForward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "attention_forward";
    let AttentionForward { out, lse, qkv, size, dropout } = args;
    let keys = size.keys;
    let sizes = Sizes::new(OP, size)?;
    let (h, d) = (sizes.hidden(), sizes.d);
    check_len(OP, "out", out.len(), sizes.queries * h)?;
    check_len(OP, "lse", lse.len(), sizes.heads * sizes.queries)?;
    let qkv = SharedLayout(check_qkv(OP, qkv, &sizes, keys)?);
    let mask = Mask::<T>::new(OP, dropout, sizes.queries)?;
    let (out, lse) = (Shared::new(out.as_mut_ptr()), Shared::new(lse.as_mut_ptr()));
    sizes.tasks().for_each(|task| {
        let (qkv, head, n) = (qkv.get(), task.head, task.k.len());
        let (k, v) = (qkv.k(&task.k, head, d), qkv.v(&task.k, head, d));
        scratch.with(QUERIES * n, |p: &mut [T]| {
            for rows in task.blocks() {
                let q = qkv.q(&rows, head, d);
                let mut p = Block::new(p, &rows, n);
                // SAFETY: lengths and offsets were checked; p is this task's own
                unsafe { product(p.view(), false, sizes.factor(), k, q.transposed(), Parallelism::None) };
                // SAFETY: no other task has these rows of this head
                let lse = unsafe { lse.slice(head * sizes.queries + rows.start, rows.len()) };
                let mut inverse = [T::ZERO; QUERIES];
                simd!(|| softmax(p.data, p.width, lse, &mut inverse, &mask, rows.start, head));
                let block = View::new(out.at(rows.start * h + head * d), rows.len(), d, h);
                // SAFETY: as above
                unsafe {
                    product(block, false, T::ONE, p.view().cast_const().transposed(), v, Parallelism::None)
                };
                for (row, inverse) in rows.clone().zip(inverse) {
                    // SAFETY: no other task has these columns of this row
                    let out = unsafe { out.slice(row * h + head * d, d) };
                    out.iter_mut().for_each(|out| *out *= inverse);
                }
            }
        });
    });
    Ok(())
}

/// Scores of a block of queries, transposed: [keys, width], one column a query. So the products need not rearrange
/// their operands, and softmax and dropout work on vectors of 16 queries.
struct Block<'a, T> {
    data: &'a mut [T],
    queries: usize,
    /// `queries` rounded up to whole vectors; the columns from `queries` on hold no meaning.
    width: usize,
}

impl<'a, T> Block<'a, T> {
    fn new(scratch: &'a mut [T], rows: &Range<usize>, keys: usize) -> Self {
        let width = rows.len().next_multiple_of(WIDE);
        Self { data: &mut scratch[..keys * width], queries: rows.len(), width }
    }

    fn view(&mut self) -> View<*mut T> {
        View::new(self.data.as_mut_ptr(), self.data.len() / self.width, self.queries, self.width)
    }
}

/// Transposed scores to unnormalized probabilities, dropout applied; writes their log-sum-exps and 1 / sums.
#[inline(always)]
fn softmax<T: Scalar>(
    p: &mut [T],
    width: usize,
    lse: &mut [T],
    inverse: &mut [T],
    mask: &Mask<'_, T>,
    first_row: usize,
    head: usize,
) {
    let groups = lse.chunks_mut(WIDE).zip(inverse.chunks_mut(WIDE));
    for ((lse, inverse), at) in groups.zip((0..).step_by(WIDE)) {
        let max = maxima(p, width, at);
        let mut total = [T::ZERO; WIDE];
        let row_keys = mask.sixteen_row_keys(first_row + at);
        for (block, p) in p.chunks_mut(64 * width).enumerate() {
            if mask.rate.is_none() {
                for p in p.chunks_exact_mut(width) {
                    exp_and_sum(vector_mut(p, at), &max, &mut total);
                }
                continue;
            }
            let words = attention_words(mask.key, mask.site, row_keys, head, block);
            for (j, p) in p.chunks_exact_mut(width).enumerate() {
                let p = vector_mut(p, at);
                exp_and_sum(p, &max, &mut total);
                let bytes = attention_bytes_of_key(&words, j);
                for l in 0..WIDE {
                    let m = if bytes[l] < u32::from(mask.rate.threshold) { T::ZERO } else { mask.scale };
                    p[l] *= m;
                }
            }
        }
        for (l, (lse, inverse)) in lse.iter_mut().zip(inverse).enumerate() {
            *lse = max[l] + total[l].ln();
            *inverse = T::ONE / total[l];
        }
    }
}

#[inline(always)]
fn exp_and_sum<T: Scalar>(p: &mut [T; WIDE], max: &[T; WIDE], total: &mut [T; WIDE]) {
    for l in 0..WIDE {
        p[l] = (p[l] - max[l]).exp();
        total[l] += p[l];
    }
}

/// Each column's largest score.
#[inline(always)]
fn maxima<T: Scalar>(p: &[T], width: usize, at: usize) -> [T; WIDE] {
    let mut max = *vector(p, at);
    let mut other = max;
    for pair in p.chunks(2 * width) {
        let x = *vector(pair, at);
        for l in 0..WIDE {
            max[l] = max[l].max(x[l]);
        }
        if pair.len() > width {
            let x = *vector(pair, width + at);
            for l in 0..WIDE {
                other[l] = other[l].max(x[l]);
            }
        }
    }
    for l in 0..WIDE {
        max[l] = max[l].max(other[l]);
    }
    max
}

pub(super) fn backward<T: Scalar>(scratch: &Scratch, args: AttentionBackward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "attention_backward";
    let AttentionBackward { dqkv, dout, qkv, out, lse, size, dropout } = args;
    let keys = size.keys;
    let sizes = Sizes::new(OP, size)?;
    let h = sizes.hidden();
    check_len(OP, "dout", dout.len(), sizes.queries * h)?;
    check_len(OP, "out", out.len(), sizes.queries * h)?;
    check_len(OP, "lse", lse.len(), sizes.heads * sizes.queries)?;
    let qkv = SharedLayout(check_qkv(OP, qkv, &sizes, keys)?);
    let at = |p: &*mut T, n: usize| p.wrapping_add(n);
    let dqkv = SharedLayout(match dqkv {
        QkvGrad::Packed(x) => {
            check_len(OP, "dqkv", x.len(), keys * 3 * h)?;
            sizes.check_packed(OP, keys)?;
            let x = x.as_mut_ptr();
            sizes.layout(true, x, x, at)
        }
        QkvGrad::Split { dq, dkv } => {
            check_len(OP, "dq", dq.len(), sizes.queries * h)?;
            check_len(OP, "dkv", dkv.len(), keys * 2 * h)?;
            sizes.layout(false, dq.as_mut_ptr(), dkv.as_mut_ptr(), at)
        }
    });
    let mask = Mask::<T>::new(OP, dropout, sizes.queries)?;
    let saved = Saved { dout, out, lse };
    sizes.tasks().for_each(|task| {
        scratch.with(2 * QUERIES * task.k.len(), |pair: &mut [T]| {
            let (p, ds) = pair.split_at_mut(QUERIES * task.k.len());
            // SAFETY: lengths and offsets were checked, and no two tasks have a head of a sequence in common
            unsafe { backward_task(qkv.get(), dqkv.get(), &saved, &sizes, &mask, &task, p, ds) };
        });
    });
    Ok(())
}

/// What backward reads besides queries, keys and values.
struct Saved<'a, T> {
    dout: &'a [T],
    out: &'a [T],
    lse: &'a [T],
}

/// Backward of one head of one sequence.
///
/// # Safety
/// The layouts must hold the task's rows, and no other task may access its head's elements of dqkv.
unsafe fn backward_task<T: Scalar>(
    qkv: Layout<*const T>,
    dqkv: Layout<*mut T>,
    saved: &Saved<'_, T>,
    sizes: &Sizes<'_>,
    mask: &Mask<'_, T>,
    task: &Task,
    p: &mut [T],
    ds: &mut [T],
) {
    let Layout { q, k, v, q_stride, kv_stride } = dqkv;
    let dqkv = Layout { q: q.cast_const(), k: k.cast_const(), v: v.cast_const(), q_stride, kv_stride };
    let (head, n, d, h) = (task.head, task.k.len(), sizes.d, sizes.hidden());
    let (k, v) = (qkv.k(&task.k, head, d), qkv.v(&task.k, head, d));
    let dk = dqkv.k(&task.k, head, d).cast_mut();
    let dv = dqkv.v(&task.k, head, d).cast_mut();
    if task.q.is_empty() {
        for row in 0..n {
            for view in [dk, dv] {
                // SAFETY: the caller's promise
                unsafe { Shared::new(view.at).slice(row * view.row_stride, d) }.fill(T::ZERO);
            }
        }
    }
    for rows in task.blocks() {
        let more = rows.start > task.q.start;
        let (q, dq) = (qkv.q(&rows, head, d), dqkv.q(&rows, head, d).cast_mut());
        let dout = View::new(saved.dout[rows.start * h + head * d..].as_ptr(), rows.len(), d, h);
        let (mut p, mut ds) = (Block::new(p, &rows, n), Block::new(ds, &rows, n));
        let none = Parallelism::None;
        // SAFETY: the caller's promise
        unsafe {
            product(p.view(), false, sizes.factor(), k, q.transposed(), none);
            product(ds.view(), false, T::ONE, v, dout.transposed(), none);
        }
        simd!(|| softmax_backward(p.data, ds.data, p.width, saved, sizes, mask, &rows, head));
        let (p, ds) = (p.view().cast_const(), ds.view().cast_const());
        // SAFETY: the caller's promise
        unsafe {
            product(dv, more, T::ONE, p, dout, none);
            product(dk, more, sizes.factor(), ds, q, none);
            product(dq, false, sizes.factor(), ds.transposed(), k, none);
        }
    }
}

/// Transposed scores to dropped-out probabilities, and gradients of those to gradients of the scores.
#[inline(always)]
fn softmax_backward<T: Scalar>(
    p: &mut [T],
    ds: &mut [T],
    width: usize,
    saved: &Saved<'_, T>,
    sizes: &Sizes<'_>,
    mask: &Mask<'_, T>,
    rows: &Range<usize>,
    head: usize,
) {
    let (h, d) = (sizes.hidden(), sizes.d);
    for first in rows.clone().step_by(WIDE) {
        let at = first - rows.start;
        let (mut dots, mut lse) = ([T::ZERO; WIDE], [T::ZERO; WIDE]);
        for (l, row) in (first..rows.end.min(first + WIDE)).enumerate() {
            let at = row * h + head * d;
            dots[l] = sum2(&saved.dout[at..][..d], &saved.out[at..][..d], |x, y| x * y);
            lse[l] = saved.lse[head * sizes.queries + row];
        }
        let row_keys = mask.sixteen_row_keys(first);
        for (block, (p, ds)) in p.chunks_mut(64 * width).zip(ds.chunks_mut(64 * width)).enumerate() {
            let rows = p.chunks_exact_mut(width).zip(ds.chunks_exact_mut(width));
            let rows = rows.map(|(p, ds)| (vector_mut(p, at), vector_mut(ds, at)));
            if mask.rate.is_none() {
                for (p, ds) in rows {
                    for l in 0..WIDE {
                        p[l] = (p[l] - lse[l]).exp();
                        ds[l] = p[l] * (ds[l] - dots[l]);
                    }
                }
                continue;
            }
            let words = attention_words(mask.key, mask.site, row_keys, head, block);
            for (j, (p, ds)) in rows.enumerate() {
                let bytes = attention_bytes_of_key(&words, j);
                for l in 0..WIDE {
                    let m = if bytes[l] < u32::from(mask.rate.threshold) { T::ZERO } else { mask.scale };
                    let exp = (p[l] - lse[l]).exp();
                    ds[l] = exp * (ds[l] * m - dots[l]);
                    p[l] = exp * m;
                }
            }
        }
    }
}
