//! Products by our own kernels on compute capability 9.0: launches of cu/gemm_sm90.cu and cu/gemm_gelu_sm90.cu.

use super::plan::{Family, Operands, Shape};
use crate::backend::Gelu;
use crate::cuda::Kind;
use crate::cuda::columns::add_partials;
use crate::cuda::device::Device;
use crate::cuda::launch::Launch;
use crate::cuda::tensor_map::TensorMap;
use crate::{Error, Result};

/// How a product is divided among the blocks of our kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    /// Columns of a tile of 128 rows: 128 or 256.
    pub columns: usize,
    /// Into how many parts the sum over the rows of a wgrad is cut, where its tiles leave multiprocessors idle. Other products
    /// have one.
    pub parts: usize,
}

/// Rows of a tile, and of k in a step: GEMM_ROWS and GEMM_DEPTH of cu/common/gemm_sm90.cuh.
const ROWS: usize = 128;
const DEPTH: usize = 64;
const COLUMNS: [usize; 2] = [256, 128];
/// Threads of a block.
const THREADS: usize = 384;
/// Rows and columns of the boxes that D is stored in, and their bytes.
const BOX: usize = 64;
const BOX_BYTES: usize = BOX * BOX * 2;
/// Most shared memory of a block, and what of it barriers and column sums take.
const SHARED: usize = 227 << 10;
const BARRIERS: usize = 1 << 10;
const SUMS: usize = 2 << 10;
/// Most parts of a sum, and the fewest steps of each: less is not worth the passes over the parts.
const PARTS: usize = 4;
const STEPS: usize = 8;
/// Most bytes of all parts: what the largest layer of a model takes would be missed elsewhere.
const PARTS_BYTES: usize = 64 << 20;
/// How many times as busy parts are to make the blocks before they are tried.
const WORTH: f64 = 1.05;

/// Rows and columns of D, and how many terms each element is the sum of.
struct Problem {
    m: usize,
    n: usize,
    k: usize,
}

impl Problem {
    fn of(shape: &Shape) -> Self {
        let Shape { rows, inputs, outputs, .. } = *shape;
        match shape.family {
            Family::Forward => Self { m: rows, n: outputs, k: inputs },
            Family::Dgrad => Self { m: rows, n: inputs, k: outputs },
            Family::Wgrad => Self { m: outputs, n: inputs, k: rows },
        }
    }

    fn tiles(&self, columns: usize) -> usize {
        self.m.div_ceil(ROWS) * self.n.div_ceil(columns)
    }

    fn steps(&self) -> usize {
        self.k.div_ceil(DEPTH)
    }
}

/// Whether our kernels can do it on this device: bf16, rows of whole 16 bytes. It depends on nothing that products of one
/// choice do not share.
pub(super) fn fits(device: &Device, shape: &Shape) -> bool {
    let Shape { kind, rows, inputs, outputs, alignment, .. } = *shape;
    let (rows, whole) =
        (bounded(rows), [inputs, outputs].into_iter().all(|n| n.is_multiple_of(8) && bounded(n)));
    let aligned = alignment.iter().all(|&bytes| bytes >= 16);
    kind == Kind::Bf16 && rows && whole && aligned && device.has_kernel(name(shape, COLUMNS[0]))
}

/// Kernels count in 32 bits, which the places of the last tile must not leave.
fn bounded(n: usize) -> bool {
    n > 0 && n < 1 << 30
}

/// The ways worth trying.
pub(super) fn candidates(device: &Device, shape: &Shape) -> Vec<Tiles> {
    if !fits(device, shape) {
        return Vec::new();
    }
    let (problem, blocks) = (Problem::of(shape), device.multiprocessors().max(1));
    let mut found = Vec::new();
    for columns in COLUMNS {
        found.push(Tiles { columns, parts: 1 });
        if shape.family != Family::Wgrad {
            continue;
        }
        // Of what blocks could do until the last is done, what they do.
        let busy = |parts: usize| {
            let items = problem.tiles(columns) * parts;
            items as f64 / (items.next_multiple_of(blocks)) as f64
        };
        let mut best = busy(1);
        for parts in (2..=most_parts(shape)).filter(|parts| problem.steps() >= parts * STEPS) {
            if busy(parts) > best * WORTH {
                best = busy(parts);
                found.push(Tiles { columns, parts });
            }
        }
    }
    found
}

/// Whether there is such a kernel for the shape, and each part of its sums has terms.
pub(super) fn takes(shape: &Shape, tiles: Tiles) -> bool {
    COLUMNS.contains(&tiles.columns) && tiles.parts >= 1 && tiles.parts <= most_parts(shape)
}

/// The most parts that a sum may be cut into.
pub(super) fn most_parts(shape: &Shape) -> usize {
    let problem = Problem::of(shape);
    let room = PARTS_BYTES / (problem.m * problem.n * size_of::<f32>()).max(1);
    if shape.family == Family::Wgrad { problem.steps().min(PARTS).min(room).max(1) } else { 1 }
}

/// The kernel's symbol.
fn name(shape: &Shape, columns: usize) -> &'static str {
    let wide = columns == 256;
    let either = |[wider, narrower]: [&'static str; 2]| if wide { wider } else { narrower };
    either(match (shape.family, shape.gelu, shape.accumulate) {
        (Family::Forward, None, _) => ["gemm_forward_256", "gemm_forward_128"],
        (Family::Forward, Some(Gelu::Tanh), _) => {
            ["gemm_gelu_tanh_forward_256", "gemm_gelu_tanh_forward_128"]
        }
        (Family::Forward, Some(Gelu::Erf), _) => ["gemm_gelu_erf_forward_256", "gemm_gelu_erf_forward_128"],
        (Family::Dgrad, None, false) => ["gemm_dgrad_256", "gemm_dgrad_128"],
        (Family::Dgrad, None, true) => ["gemm_dgrad_add_256", "gemm_dgrad_add_128"],
        (Family::Dgrad, Some(Gelu::Tanh), _) => {
            ["gemm_gelu_tanh_backward_256", "gemm_gelu_tanh_backward_128"]
        }
        (Family::Dgrad, Some(Gelu::Erf), _) => ["gemm_gelu_erf_backward_256", "gemm_gelu_erf_backward_128"],
        (Family::Wgrad, ..) => ["gemm_wgrad_256", "gemm_wgrad_128"],
    })
}

/// Dynamic shared memory: `Memory` of cu/common/gemm_sm90.cuh with the slots that the kernel's epilogue has.
fn shared(shape: &Shape, columns: usize) -> usize {
    let (slots, sums) = match (shape.family, shape.gelu, shape.accumulate) {
        (Family::Wgrad, ..) => (0, 0),
        (Family::Dgrad, Some(_), _) => (columns / BOX, SUMS),
        (Family::Dgrad, None, true) => (columns / BOX, 0),
        _ => (2, 0),
    };
    let stage = (ROWS + columns) * DEPTH * 2;
    let rest = BARRIERS + 2 * (slots * BOX_BYTES + sums);
    (SHARED - rest) / stage * stage + rest
}

/// Queues the product, with what is fused.
///
/// # Safety
/// The operands' addresses hold for matrices of the shape.
pub(super) unsafe fn run(device: &Device, shape: &Shape, tiles: Tiles, at: &Operands) -> Result<()> {
    if !takes(shape, tiles) {
        let Tiles { columns, parts } = tiles;
        let what = format!("there is no kernel of tiles of {columns} columns and {parts} parts");
        return Err(Error::Unsupported { op: shape.family.name(), what });
    }
    let Tiles { columns, parts } = tiles;
    let Shape { family, gelu, accumulate, .. } = *shape;
    let problem = Problem::of(shape);
    let Problem { m, n, k } = problem;
    let [a, b] = operands(shape, columns, at)?;
    let launch = Launch::new(device, name(shape, columns)).arg(a).arg(b);
    let out = |address| map(address, [m, n], BOX);
    let mut partials = 0;
    let launch = match (family, gelu) {
        (Family::Forward, None) => launch.arg(out(at.d)?).arg(at.bias),
        (Family::Forward, Some(_)) => launch.arg(out(at.kept)?).arg(out(at.d)?).arg(at.bias),
        (Family::Dgrad, None) => launch.arg(out(at.d)?),
        (Family::Dgrad, Some(_)) => {
            partials = device.scratch(m.div_ceil(BOX) * n * size_of::<f32>())?;
            launch.arg(out(at.kept)?).arg(out(at.d)?).arg(partials)
        }
        (Family::Wgrad, _) if parts == 1 => launch.arg(at.d),
        (Family::Wgrad, _) => {
            partials = device.scratch(parts * m * n * size_of::<f32>())?;
            launch.arg(partials)
        }
    };
    let launch = launch.size(m).size(n).size(k);
    let launch = match family {
        Family::Wgrad => launch.size(parts).arg(u32::from(accumulate && parts == 1)),
        _ => launch,
    };
    let blocks = (problem.tiles(columns) * parts).min(device.multiprocessors());
    // SAFETY: the arguments are the kernel's, the caller's addresses hold for its matrices, scratch has what was asked for
    unsafe { launch.run([blocks, 1, 1], [THREADS, 1, 1], shared(shape, columns)) }?;
    match (family, gelu) {
        // SAFETY: the partial sums are those of the kernel before, and the caller's address has n floats
        (Family::Dgrad, Some(_)) => unsafe { add_partials(device, &[at.sums], partials, m.div_ceil(BOX), n) },
        // SAFETY: as above, with m n floats
        (Family::Wgrad, _) if parts > 1 => unsafe { add_parts(device, at.d, partials, parts, m * n) },
        _ => Ok(()),
    }
}

/// A and B. Where k is in rows of memory a tile of a step is one box, else as many boxes as it takes.
fn operands(shape: &Shape, columns: usize, at: &Operands) -> Result<[TensorMap; 2]> {
    let Shape { family, rows, inputs, outputs, .. } = *shape;
    let (x, w, y) = ([rows, inputs], [outputs, inputs], [rows, outputs]);
    // In the order of cuBLASLt what we call A is the second operand.
    let (a, b) = (at.b, at.a);
    Ok(match family {
        Family::Forward => [map(a, x, ROWS)?, map(b, w, columns)?],
        Family::Dgrad => [map(a, y, ROWS)?, map(b, w, DEPTH)?],
        Family::Wgrad => [map(a, y, DEPTH)?, map(b, x, DEPTH)?],
    })
}

/// A matrix of bf16 without gaps, read and written in boxes of `lines` rows and 64 columns.
fn map(address: u64, [rows, columns]: [usize; 2], lines: usize) -> Result<TensorMap> {
    TensorMap::bf16(address, rows, columns, columns * 2, lines, BOX)
}

/// Adds the parts, `len` floats each, to `dst` in their order.
///
/// # Safety
/// The addresses hold for that many floats, and are multiples of 16.
unsafe fn add_parts(device: &Device, dst: u64, partials: u64, parts: usize, len: usize) -> Result<()> {
    const BLOCK: usize = 256;
    let vectors = len / 4;
    let launch = Launch::new(device, "gemm_add_parts").arg(dst).arg(partials).size(parts).size(vectors);
    // SAFETY: the caller's; len is a multiple of 64
    unsafe { launch.run([vectors.div_ceil(BLOCK), 1, 1], [BLOCK, 1, 1], 0) }
}
