//! Launches of cu/embedding.cu. Ids, positions, types and groups lie on the GPU and are not looked at here: whoever makes a
//! batch has them inside the tables.

use super::columns::{Columns, add_partials, aligned, at, wide};
use super::device::Device;
use super::launch::{Arg, Launch, dropout, kernel};
use super::layernorm::{backward_blocks, forward_blocks, held, holder};
use super::{Cuda, Element};
use crate::Result;
use crate::backend::{EmbeddingBackward, EmbeddingForward, Groups};
use crate::error::{check_len, check_range, check_table};

/// Rows of a chunk of the groups' list, and threads of the block that adds them up, as in cu/embedding.cu.
const GROUP_CHUNK: usize = 32;
const GROUP_THREADS: usize = 128;
const WARP: usize = 32;

/// `struct Tables` of cu/embedding.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tables {
    tokens: u64,
    positions: u64,
    types: u64,
    word: u64,
    position: u64,
    kind: u64,
}
// SAFETY: six pointers, as in `struct Tables`
unsafe impl Arg for Tables {}

pub(super) fn forward<E: Element>(device: &Device, args: EmbeddingForward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "embedding_forward";
    let EmbeddingForward { mut y, mut z, mut mean, mut rstd, tokens, positions, types, .. } = args;
    let EmbeddingForward { word, position, kind, gamma, beta, eps, dropout: d, .. } = args;
    let (rows, h) = (tokens.len(), gamma.len());
    check_len(OP, "y", y.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "mean", mean.len(), rows)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    check_len(OP, "positions", positions.len(), rows)?;
    check_len(OP, "types", types.len(), rows)?;
    check_len(OP, "beta", beta.len(), h)?;
    check_table(OP, "word", word.len(), h)?;
    check_table(OP, "position", position.len(), h)?;
    check_table(OP, "kind", kind.len(), h)?;
    let d = dropout(OP, d, rows)?;
    let tables = Tables {
        tokens: tokens.ptr(),
        positions: positions.ptr(),
        types: types.ptr(),
        word: word.ptr(),
        position: position.ptr(),
        kind: kind.ptr(),
    };
    let addresses = [y.ptr(), z.ptr(), tables.word, tables.position, tables.kind, gamma.ptr(), beta.ptr()];
    let held = holder::<E>(h, &addresses);
    let launch = Launch::new(device, held!(E, held, "embedding_forward"))
        .view_mut(&mut y)
        .view_mut(&mut z)
        .view_mut(&mut mean);
    let launch = launch.view_mut(&mut rstd).arg(tables).view(&gamma).view(&beta);
    let (grid, block, shared) = forward_blocks(held, [rows, h]);
    // SAFETY: the arguments are the kernel's, and their lengths were checked; the indices are the caller's promise
    unsafe { launch.arg(eps as f32).size(rows).size(h).arg(d).run(grid, block, shared) }
}

pub(super) fn backward<E: Element>(device: &Device, args: EmbeddingBackward<'_, Cuda<E>>) -> Result<()> {
    const OP: &str = "embedding_backward";
    let EmbeddingBackward { mut dy, z, mean, rstd, gamma, types, by_token, by_position, .. } = args;
    let EmbeddingBackward { grads, dword, dposition, dkind, dgamma, dbeta, dropout: d, .. } = args;
    let (rows, h) = (types.len(), gamma.len());
    check_len(OP, "dy", dy.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "mean", mean.len(), rows)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    check_range(OP, "dgamma", grads.len(), &dgamma, h)?;
    check_range(OP, "dbeta", grads.len(), &dbeta, h)?;
    let kinds = check_table(OP, "dkind", dkind.len(), h)?;
    check_range(OP, "dkind", grads.len(), &dkind, kinds * h)?;
    let tables = [
        ("dword", &dword, ["by_token.starts", "by_token.rows"], by_token),
        ("dposition", &dposition, ["by_position.starts", "by_position.rows"], by_position),
    ];
    for (arg, range, [starts, list], groups) in &tables {
        check_range(OP, arg, grads.len(), range, range.len())?;
        check_table(OP, arg, range.len(), h)?;
        check_len(OP, list, groups.rows.len(), rows)?;
        check_len(OP, starts, groups.starts.len(), groups.ids.len() + 1)?;
    }
    let d = dropout(OP, d, rows)?;
    if rows == 0 {
        return Ok(());
    }
    let vectors = h.is_multiple_of(wide::<E>()) && dy.is_aligned();
    let columns = Columns::new(device, rows, h, if vectors { wide::<E>() } else { 1 });
    let held = holder::<E>(h, &[dy.ptr(), z.ptr(), gamma.ptr()]);
    let (blocks, threads, shared) = backward_blocks::<E>(device, held, [rows, h]);
    // the kernels run one after another, so one piece of scratch serves them all
    let floats = [blocks * 2 * h, columns.partials(kinds, h), rows.div_ceil(GROUP_CHUNK) * 2 * h];
    let scratch = device.scratch(floats.into_iter().fold(0, usize::max) * size_of::<f32>())?;

    let launch = Launch::new(device, held!(E, held, "embedding_backward"))
        .view_mut(&mut dy)
        .view(&z)
        .view(&mean)
        .view(&rstd);
    let launch = launch.view(&gamma).arg(scratch).size(rows).size(h).arg(d);
    let dst = [&dgamma, &dbeta].map(|range| at(grads.ptr(), range));
    let name = if vectors { kernel!(E, "kind_sums") } else { kernel!(E, "kind_sums_any") };
    let by_kind = Launch::new(device, name).arg(scratch).view_mut(&mut dy).view(&types);
    let by_kind = by_kind.size(rows).size(h).size(columns.chunk);
    // SAFETY: the arguments are the kernels', and their lengths were checked; scratch has room for each; the indices are the
    // caller's promise
    unsafe {
        launch.run([blocks, 1, 1], threads, shared)?;
        add_partials(device, &dst, scratch, blocks, h)?;
        columns.sum(device, by_kind, scratch, at(grads.ptr(), &dkind), kinds, h)?;
        for (_, range, _, groups) in &tables {
            add_groups::<E>(device, [at(grads.ptr(), range), scratch, dy.ptr()], groups, h)?;
        }
    }
    Ok(())
}

/// Adds rows to a table by groups.
///
/// # Safety
/// `table` has a row of `h` floats for every id, `parts` two for every chunk, and `dz` a row of elements for every number
/// among the groups' rows.
unsafe fn add_groups<E: Element>(
    device: &Device,
    [table, parts, dz]: [u64; 3],
    groups: &Groups<'_, Cuda<E>>,
    h: usize,
) -> Result<()> {
    let vectors = h.is_multiple_of(wide::<E>()) && aligned(&[table, dz]);
    let (sum, join, width) = if vectors {
        (kernel!(E, "group_sum"), kernel!(E, "group_join"), wide::<E>())
    } else {
        (kernel!(E, "group_sum_any"), kernel!(E, "group_join_any"), 1)
    };
    let threads = h.div_ceil(width).next_multiple_of(WARP).min(GROUP_THREADS);
    let chunks = groups.rows.len().div_ceil(GROUP_CHUNK);
    for (name, blocks) in [(sum, chunks), (join, chunks.saturating_sub(1))] {
        let launch = Launch::new(device, name).arg(table).arg(parts).arg(dz);
        let launch = launch.view(&groups.ids).view(&groups.starts).view(&groups.rows);
        let launch = launch.size(groups.ids.len()).size(groups.rows.len()).size(h);
        // SAFETY: the caller's
        unsafe { launch.run([blocks, h.div_ceil(width * threads), 1], [threads, 1, 1], 0)? };
    }
    Ok(())
}
