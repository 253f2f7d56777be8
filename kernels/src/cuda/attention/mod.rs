//! Attention over packed sequences. Three families of kernels, chosen by element, head size and device: on tensor cores
//! `cu/attention_sm90*.cu` where they run, else `cu/attention_sm80*.cu`; `cu/attention_any.cu` for everything else. All save the
//! log-sum-exp only and replay dropout.
//!
//! The offsets of the sequences lie on the device and are not checked. Relied on: they never fall and end at the sizes'
//! counts, no sequence has more keys or more queries than `max_keys`, and a sequence with queries has keys.

mod any;
mod sm80;
mod sm90;
mod sm90_backward;

use super::device::Device;
use super::launch::{Arg, Launch, dropout, kernel};
use super::{Cuda, Element, Kind};
use crate::backend::{AttentionBackward, AttentionForward, AttentionSize, Qkv, QkvGrad};
use crate::error::check_len;
use crate::{Error, Result};

/// The largest head size.
const LARGEST_HEAD: usize = 128;
/// The head size of the kernels on tensor cores.
const MMA_HEAD: usize = 64;
/// Most blocks of a grid's second and third dimension.
const GRID: usize = u16::MAX as usize;

/// `struct AttentionSizes` of cu/common/attention.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SizesArg {
    cu_q: u64,
    cu_k: u64,
    queries: u32,
    heads: u32,
    head_size: u32,
    q_stride: u32,
    kv_stride: u32,
    wide: u32,
    scale: f32,
    sequences: u32,
}
// SAFETY: `struct AttentionSizes` of cu/common/attention.cuh
unsafe impl Arg for SizesArg {}

/// The sizes, checked as far as the host can.
#[derive(Clone, Copy)]
struct Sizes {
    cu_q: u64,
    cu_k: u64,
    sequences: usize,
    queries: usize,
    keys: usize,
    max_keys: usize,
    heads: usize,
    d: usize,
}

impl Sizes {
    fn new<E: Element>(op: &'static str, size: &AttentionSize<'_, Cuda<E>>) -> Result<Self> {
        let &AttentionSize { cu_q, cu_k, queries, keys, max_keys, heads, head_size: d } = size;
        let fail = |what| Err(Error::Unsupported { op, what });
        check_len(op, "cu_q", cu_q.len(), cu_k.len())?;
        let Some(sequences) = cu_q.len().checked_sub(1) else {
            return fail("`cu_q` is empty, expected the offsets of the sequences".into());
        };
        if heads == 0 || d == 0 {
            return fail(format!("{heads} heads of {d} elements"));
        }
        if d > LARGEST_HEAD {
            return fail(format!("a head size of {d}: the GPU's kernels take up to {LARGEST_HEAD}"));
        }
        if heads > GRID || sequences > GRID {
            return fail(format!(
                "{heads} heads and {sequences} sequences: at most {GRID} of each fit a launch"
            ));
        }
        if [queries, keys, max_keys].iter().any(|&n| u32::try_from(n).is_err()) {
            return fail(format!("{queries} queries and {keys} keys: 32 bits count the rows of a batch"));
        }
        let (cu_q, cu_k) = (cu_q.ptr(), cu_k.ptr());
        Ok(Self { cu_q, cu_k, sequences, queries, keys, max_keys: max_keys.min(keys), heads, d })
    }

    fn hidden(&self) -> usize {
        self.heads * self.d
    }

    /// Blocks of `rows` rows of the longest sequence, which has at least as many keys as any has queries.
    fn grid(&self, rows: usize, total: usize) -> [usize; 3] {
        [self.max_keys.min(total).div_ceil(rows), self.heads, self.sequences]
    }

    fn query_grid(&self, rows: usize) -> [usize; 3] {
        self.grid(rows, self.queries)
    }

    fn key_grid(&self, rows: usize) -> [usize; 3] {
        self.grid(rows, self.keys)
    }

    /// Where the parts of a packed or a split buffer lie, from the addresses and lengths of both.
    fn parts<E>(
        &self,
        op: &'static str,
        [q_name, kv_name]: [&'static str; 2],
        q: Option<(u64, usize)>,
        kv: (u64, usize),
    ) -> Result<Parts> {
        let (h, bytes) = (self.hidden(), size_of::<E>());
        let at = |ptr: u64, elements: usize| ptr + (elements * bytes) as u64;
        let columns = if q.is_some() { 2 * h } else { 3 * h };
        check_len(op, kv_name, kv.1, self.keys * columns)?;
        let Some((q, len)) = q else {
            if self.queries != self.keys {
                let what = format!("{} queries and {} keys in one packed buffer", self.queries, self.keys);
                return Err(Error::Unsupported { op, what });
            }
            return Ok(Parts {
                q: kv.0,
                k: at(kv.0, h),
                v: at(kv.0, 2 * h),
                q_stride: columns,
                kv_stride: columns,
            });
        };
        check_len(op, q_name, len, self.queries * h)?;
        Ok(Parts { q, k: kv.0, v: at(kv.0, h), q_stride: h, kv_stride: columns })
    }

    fn qkv<E: Element>(&self, op: &'static str, qkv: &Qkv<'_, Cuda<E>>) -> Result<Parts> {
        match qkv {
            Qkv::Packed(x) => self.parts::<E>(op, ["q", "qkv"], None, (x.ptr(), x.len())),
            Qkv::Split { q, kv } => {
                self.parts::<E>(op, ["q", "kv"], Some((q.ptr(), q.len())), (kv.ptr(), kv.len()))
            }
        }
    }

    fn dqkv<E: Element>(&self, op: &'static str, dqkv: &QkvGrad<'_, Cuda<E>>) -> Result<Parts> {
        match dqkv {
            QkvGrad::Packed(x) => self.parts::<E>(op, ["dq", "dqkv"], None, (x.ptr(), x.len())),
            QkvGrad::Split { dq, dkv } => {
                self.parts::<E>(op, ["dq", "dkv"], Some((dq.ptr(), dq.len())), (dkv.ptr(), dkv.len()))
            }
        }
    }

    /// As kernels take them. Heads of rows are accessed 16 bytes at a time if `aligned`, and if they are whole such vectors.
    fn arg<E>(&self, parts: &Parts, aligned: bool) -> SizesArg {
        let wide = aligned && (self.d * size_of::<E>()).is_multiple_of(16);
        SizesArg {
            cu_q: self.cu_q,
            cu_k: self.cu_k,
            queries: self.queries as u32,
            heads: self.heads as u32,
            head_size: self.d as u32,
            q_stride: parts.q_stride as u32,
            kv_stride: parts.kv_stride as u32,
            wide: wide.into(),
            scale: (1.0 / (self.d as f64).sqrt()) as f32,
            sequences: self.sequences as u32,
        }
    }
}

/// Addresses of queries, keys and values (or their gradients), and elements from one row to the next.
struct Parts {
    q: u64,
    k: u64,
    v: u64,
    q_stride: usize,
    kv_stride: usize,
}

impl Parts {
    fn are_aligned(&self) -> bool {
        [self.q, self.k, self.v].iter().all(|ptr| ptr.is_multiple_of(16))
    }
}

/// What a user should know of the attention of heads of this size.
pub(super) fn remark<E: Element>(head_size: usize) -> Option<String> {
    (E::KIND == Kind::Bf16 && !on_tensor_cores::<E>(head_size)).then(|| {
        format!(
            "attention runs without tensor cores, which is slower: the kernels for them are for heads of {MMA_HEAD} elements, \
             not {head_size}"
        )
    })
}

/// Whether there are kernels on tensor cores; they take aligned buffers only.
fn on_tensor_cores<E: Element>(head_size: usize) -> bool {
    E::KIND == Kind::Bf16 && head_size == MMA_HEAD
}

pub(super) fn forward<E: Element>(device: &Device, args: AttentionForward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "attention_forward";
    let AttentionForward { out, lse, qkv, size, dropout: mask } = args;
    let sizes = Sizes::new(OP, &size)?;
    check_len(OP, "out", out.len(), sizes.queries * sizes.hidden())?;
    check_len(OP, "lse", lse.len(), sizes.heads * sizes.queries)?;
    let parts = sizes.qkv(OP, &qkv)?;
    let (drops, key, mask) = (!mask.rate.is_none(), mask.key, dropout(OP, mask, sizes.queries)?);
    let aligned = out.is_aligned() && parts.are_aligned();
    if aligned && on_tensor_cores::<E>(sizes.d) && sm90::has_forward(device, drops) {
        let arg = sizes.arg::<E>(&parts, aligned);
        let (out, lse, parts, sizes) = (out.ptr(), lse.ptr(), &parts, &sizes);
        // SAFETY: lengths were checked above, offsets are the caller's promise (see the module)
        return unsafe {
            sm90::forward(device, sm90::Forward { out, lse, parts, sizes, arg, drops, mask, key })
        };
    }
    let (kernel, rows, threads, shared) = if aligned && on_tensor_cores::<E>(sizes.d) {
        let kernel =
            if drops { "attention_sm80_forward_dropout_bf16" } else { "attention_sm80_forward_bf16" };
        (kernel, sm80::QUERIES, sm80::THREADS, sm80::FORWARD_SHARED)
    } else {
        (kernel!(E, "attention_any_forward"), any::ROWS, any::THREADS, any::forward_shared(sizes.d))
    };
    let launch = Launch::new(device, kernel).arg(out.ptr()).arg(lse.ptr()).arg(parts.q).arg(parts.k);
    let launch = launch.arg(parts.v).arg(sizes.arg::<E>(&parts, aligned)).arg(mask);
    // SAFETY: the kernel's signature; lengths were checked above, offsets are the caller's promise (see the module)
    unsafe { launch.run(sizes.query_grid(rows), [threads, 1, 1], shared) }
}

pub(super) fn backward<E: Element>(device: &Device, args: AttentionBackward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "attention_backward";
    let AttentionBackward { dqkv, dout, qkv, out, lse, size, dropout: mask } = args;
    let sizes = Sizes::new(OP, &size)?;
    check_len(OP, "dout", dout.len(), sizes.queries * sizes.hidden())?;
    check_len(OP, "out", out.len(), sizes.queries * sizes.hidden())?;
    check_len(OP, "lse", lse.len(), sizes.heads * sizes.queries)?;
    let (parts, grads) = (sizes.qkv(OP, &qkv)?, sizes.dqkv(OP, &dqkv)?);
    if parts.q_stride != grads.q_stride {
        let what = "gradients in another layout than queries, keys and values".into();
        return Err(Error::Unsupported { op: OP, what });
    }
    let (drops, mask) = (!mask.rate.is_none(), dropout(OP, mask, sizes.queries)?);
    let aligned = [dout, out].iter().all(|x| x.is_aligned()) && parts.are_aligned() && grads.are_aligned();
    let arg = sizes.arg::<E>(&parts, aligned);
    let delta = device.scratch(sizes.heads * sizes.queries * size_of::<f32>())?;
    if aligned && on_tensor_cores::<E>(sizes.d) && sm90_backward::takes(device, &sizes, drops) {
        let (dout, out, lse, parts, grads, sizes) =
            (dout.ptr(), out.ptr(), lse.ptr(), &parts, &grads, &sizes);
        let args = sm90_backward::Backward { dout, out, lse, delta, parts, grads, sizes, arg, drops, mask };
        // SAFETY: lengths were checked above, offsets are the caller's promise (see the module)
        return unsafe { sm90_backward::backward(device, args) };
    }
    let plan = if aligned && on_tensor_cores::<E>(sizes.d) {
        sm80::backward(drops)
    } else {
        any::backward::<E>(sizes.d)
    };
    let dq = Launch::new(device, plan.dq).arg(grads.q).arg(delta).view(&dout).arg(parts.q).arg(parts.k);
    let dq = dq.arg(parts.v).view(&out).view(&lse).arg(arg).arg(mask);
    let dkv = Launch::new(device, plan.dkv).arg(grads.k).arg(grads.v).arg(delta).view(&dout).arg(parts.q);
    let dkv = dkv.arg(parts.k).arg(parts.v).view(&lse).arg(arg).arg(mask);
    let threads = [plan.threads, 1, 1];
    // SAFETY: the kernels' signatures; lengths were checked above, offsets are the caller's promise (see the module)
    unsafe {
        dq.run(sizes.query_grid(plan.queries), threads, plan.dq_shared)?;
        dkv.run(sizes.key_grid(plan.keys), threads, plan.dkv_shared)
    }
}

/// The two kernels of backward: rows and threads of their blocks, and shared memory in bytes.
struct Backward {
    dq: &'static str,
    dkv: &'static str,
    queries: usize,
    keys: usize,
    threads: usize,
    dq_shared: usize,
    dkv_shared: usize,
}
