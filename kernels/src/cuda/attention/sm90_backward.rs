//! The launch of cu/attention_sm90_backward.cu: its constants and tensor maps.

use super::super::device::Device;
use super::super::launch::{DropoutArg, Launch};
use super::super::tensor_map::{BOX_COLUMNS, TensorMap};
use super::{MMA_HEAD, Parts, Sizes, SizesArg};
use crate::Result;

/// The longest sequence.
const LONGEST: usize = 512;
const THREADS: usize = 3 * 128;
const TILE: usize = 64;
/// Most items of a block.
const ITEMS: usize = 32;
/// Bytes of a row of a head.
const ROW: usize = 2 * MMA_HEAD;
/// `struct BackwardShared`: four stages of two tiles, the sums of dq, ds, keys; lse and D of each stage, items, ten
/// barriers.
const TILES: usize = 4 * 2 * TILE * ROW + LONGEST * 2 * ROW + 2 * 128 * ROW;
const SHARED: usize = (TILES + 4 * 2 * 4 * TILE + ITEMS * 5 * 4 + 10 * 8).next_multiple_of(1024);

fn kernel(drops: bool) -> &'static str {
    if drops { "attention_sm90_backward_dropout_bf16" } else { "attention_sm90_backward_bf16" }
}

/// Whether the device runs this kernel, and the kernel these sizes: it keeps the gradients of a head's queries in shared
/// memory, and makes nothing of a batch without queries.
pub fn takes(device: &Device, sizes: &Sizes, drops: bool) -> bool {
    sizes.max_keys <= LONGEST && sizes.queries > 0 && device.has_kernel(kernel(drops))
}

/// What the kernel takes.
pub struct Backward<'a> {
    pub dout: u64,
    pub out: u64,
    pub lse: u64,
    /// Scratch of [heads, R] f32.
    pub delta: u64,
    pub parts: &'a Parts,
    pub grads: &'a Parts,
    pub sizes: &'a Sizes,
    pub arg: SizesArg,
    pub drops: bool,
    pub mask: DropoutArg,
}

/// Queues the kernel.
///
/// # Safety
/// The sizes are such that [`takes`] says yes; the buffers have the lengths that the sizes say, and are aligned, of bf16
/// and of heads of 64; the offsets hold what the module relies on.
pub unsafe fn backward(device: &Device, args: Backward<'_>) -> Result<()> {
    let Backward { dout, out, lse, delta, parts, grads, sizes, arg, drops, mask } = args;
    let h = sizes.hidden();
    let map = |at, rows, columns, stride| TensorMap::bf16(at, rows, columns, 2 * stride, TILE, BOX_COLUMNS);
    let queries = map(parts.q, sizes.queries, h, parts.q_stride)?;
    // Values follow keys in a row of both layouts.
    let keys = map(parts.k, sizes.keys, 2 * h, parts.kv_stride)?;
    let douts = map(dout, sizes.queries, h, h)?;
    let launch =
        Launch::new(device, kernel(drops)).arg(grads.q).arg(grads.k).arg(grads.v).arg(delta).arg(dout);
    let launch = launch.arg(out).arg(lse).arg(arg).arg(mask).arg(queries).arg(keys).arg(douts);
    let items = sizes.sequences * sizes.heads;
    let blocks = items.min(device.multiprocessors()).max(items.div_ceil(ITEMS));
    // SAFETY: the kernel's signature; the rest is the caller's
    unsafe { launch.run([blocks, 1, 1], [THREADS, 1, 1], SHARED) }
}
