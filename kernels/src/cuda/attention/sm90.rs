//! The launches of cu/attention_sm90.cu: their constants, tensor maps and keys.

use super::super::device::Device;
use super::super::launch::{Arg, DropoutArg, Launch};
use super::super::tensor_map::{BOX_COLUMNS, TensorMap};
use super::{MMA_HEAD, Parts, Sizes, SizesArg};
use crate::Result;
use crate::philox::{W0, W1};

/// Two teams and their producers.
const TEAMS: usize = 2;
const THREADS: usize = 128 * (TEAMS + 1);
/// Rows of a tile.
const TILE: usize = 64;
/// A team's tiles of 64 rows: two times two of queries, eight of keys and values.
const TEAM_TILES: usize = 4 + 8;
const FORWARD_SHARED: usize = TEAMS * TEAM_TILES * TILE * 2 * MMA_HEAD;
/// Queries of an item.
const QUERIES: usize = 128;

/// `struct RoundKeys` of cu/common/attention_sm90.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RoundKeys {
    low: [u32; 10],
    high: [u32; 10],
}
// SAFETY: `struct RoundKeys` of cu/common/attention_sm90.cuh
unsafe impl Arg for RoundKeys {}

impl RoundKeys {
    pub fn new(key: u64) -> Self {
        let of = |word: u32, step: u32| {
            std::array::from_fn(|round| word.wrapping_add(step.wrapping_mul(round as u32)))
        };
        Self { low: of(key as u32, W0), high: of((key >> 32) as u32, W1) }
    }
}

fn forward_kernel(drops: bool) -> &'static str {
    if drops { "attention_sm90_forward_dropout_bf16" } else { "attention_sm90_forward_bf16" }
}

/// Whether the device runs these kernels.
pub fn has_forward(device: &Device, drops: bool) -> bool {
    device.has_kernel(forward_kernel(drops))
}

/// What the forward kernels take.
pub struct Forward<'a> {
    pub out: u64,
    pub lse: u64,
    pub parts: &'a Parts,
    pub sizes: &'a Sizes,
    pub arg: SizesArg,
    pub drops: bool,
    pub mask: DropoutArg,
    pub key: u64,
}

/// Queues the forward kernel.
///
/// # Safety
/// `out` and `lse` have room for what the sizes say, the parts are theirs, aligned, of bf16 and of heads of 64; the offsets hold what
/// the module relies on.
pub unsafe fn forward(device: &Device, args: Forward<'_>) -> Result<()> {
    let Forward { out, lse, parts, sizes, arg, drops, mask, key } = args;
    // Sequences without queries have no items, and each has at most one that is not full.
    let items = sizes.heads * (sizes.queries / QUERIES + sizes.sequences);
    if sizes.queries == 0 {
        return Ok(());
    }
    let map = |at, rows, columns, stride| TensorMap::bf16(at, rows, columns, 2 * stride, TILE, BOX_COLUMNS);
    let h = sizes.hidden();
    let queries = map(parts.q, sizes.queries, h, parts.q_stride)?;
    let keys = map(parts.k, sizes.keys, 2 * h, parts.kv_stride)?;
    let launch = Launch::new(device, forward_kernel(drops)).arg(out).arg(lse).arg(queries).arg(keys);
    let launch = launch.arg(arg).arg(mask).arg(RoundKeys::new(key));
    let blocks = device.multiprocessors().min(items.div_ceil(TEAMS));
    // SAFETY: the kernel's signature; values follow keys in a row of both layouts, so that one map has both
    unsafe { launch.run([blocks, 1, 1], [THREADS, 1, 1], FORWARD_SHARED) }
}
