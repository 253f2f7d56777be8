//! The sum of three embeddings, normalized: forward gathers rows, backward adds rows to the tables in the order that
//! [`Groups`] gives, so without atomics and the same for any number of threads. Bound by memory.

use crate::backend::{EmbeddingBackward, EmbeddingForward, Groups};
use crate::cpu::Cpu;
use crate::cpu::layernorm::{normalize, normalize_backward};
use crate::cpu::math::{Mask, add_partials, block_rows, check_indices, grain, range_mut, simd};
use crate::cpu::memory::Scratch;
use crate::cpu::rows::add_at;
use crate::error::{check_len, check_range, check_table};
use crate::{Error, Result, Scalar};
use rayon::prelude::*;

pub(super) fn forward<T: Scalar>(args: EmbeddingForward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "embedding_forward";
    let EmbeddingForward { y, z, mean, rstd, tokens, positions, types, .. } = args;
    let EmbeddingForward { word, position, kind, gamma, beta, eps, dropout, .. } = args;
    let (rows, h) = (tokens.len(), gamma.len());
    check_len(OP, "y", y.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "mean", mean.len(), rows)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    check_len(OP, "positions", positions.len(), rows)?;
    check_len(OP, "types", types.len(), rows)?;
    check_len(OP, "beta", beta.len(), h)?;
    check_indices(OP, "tokens", tokens, check_table(OP, "word", word.len(), h)?)?;
    check_indices(OP, "positions", positions, check_table(OP, "position", position.len(), h)?)?;
    check_indices(OP, "types", types, check_table(OP, "kind", kind.len(), h)?)?;
    let mask = Mask::<T>::new(OP, dropout, rows)?;
    let eps = T::from_f64(eps);
    let block = block_rows(rows);
    y.par_chunks_mut(block * h)
        .zip(z.par_chunks_mut(block * h))
        .zip(mean.par_chunks_mut(block).zip(rstd.par_chunks_mut(block)))
        .enumerate()
        .with_min_len(grain(block * h))
        .for_each(|(i, ((y, z), (mean, rstd)))| {
            simd!(|| {
                let rows = y.chunks_exact_mut(h).zip(z.chunks_exact_mut(h)).zip(mean.iter_mut().zip(rstd));
                for (row, ((y, z), (mean, rstd))) in (i * block..).zip(rows) {
                    let word = &word[tokens[row] as usize * h..][..h];
                    let position = &position[positions[row] as usize * h..][..h];
                    let kind = &kind[types[row] as usize * h..][..h];
                    for (((z, &word), &position), &kind) in z.iter_mut().zip(word).zip(position).zip(kind) {
                        *z = word + position + kind;
                    }
                    (*mean, *rstd) = normalize(y, z, gamma, beta, eps);
                    mask.apply(row, y);
                }
            });
        });
    Ok(())
}

pub(super) fn backward<T: Scalar>(scratch: &Scratch, args: EmbeddingBackward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "embedding_backward";
    let EmbeddingBackward { dy, z, mean, rstd, gamma, types, by_token, by_position, .. } = args;
    let EmbeddingBackward { grads, dword, dposition, dkind, dgamma, dbeta, dropout, .. } = args;
    let (rows, h) = (types.len(), gamma.len());
    check_len(OP, "dy", dy.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "mean", mean.len(), rows)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    check_range(OP, "dgamma", grads.len(), &dgamma, h)?;
    check_range(OP, "dbeta", grads.len(), &dbeta, h)?;
    let kinds = check_table(OP, "dkind", dkind.len(), h)?;
    check_range(OP, "dkind", grads.len(), &dkind, kinds * h)?;
    check_indices(OP, "types", types, kinds)?;
    let tables = [
        ("dword", &dword, ["by_token.ids", "by_token.starts", "by_token.rows"], by_token),
        ("dposition", &dposition, ["by_position.ids", "by_position.starts", "by_position.rows"], by_position),
    ];
    for (arg, range, names, groups) in &tables {
        check_range(OP, arg, grads.len(), range, range.len())?;
        let table = check_table(OP, arg, range.len(), h)?;
        check_groups(OP, *names, groups, table, rows)?;
    }
    let mask = Mask::<T>::new(OP, dropout, rows)?;
    if rows == 0 {
        return Ok(());
    }
    let block = block_rows(rows);
    // per block: dgamma, dbeta, a row of scratch, and the token types' table
    let stride = (3 + kinds) * h;
    scratch.with(rows.div_ceil(block) * stride, |partials: &mut [T]| {
        dy.par_chunks_mut(block * h)
            .zip(partials.par_chunks_mut(stride))
            .enumerate()
            .with_min_len(grain(block * h))
            .for_each(|(i, (dy, partials))| {
                simd!(|| {
                    partials.fill(T::ZERO);
                    let (dgamma, rest) = partials.split_at_mut(h);
                    let (dbeta, rest) = rest.split_at_mut(h);
                    let (xhat, dkind) = rest.split_at_mut(h);
                    for (row, dy) in (i * block..).zip(dy.chunks_exact_mut(h)) {
                        mask.apply(row, dy);
                        let sums = (&mut *dgamma, &mut *dbeta);
                        let statistics = (mean[row], rstd[row]);
                        normalize_backward(dy, &z[row * h..][..h], statistics, gamma, sums, xhat);
                        crate::cpu::math::add(&mut dkind[types[row] as usize * h..][..h], dy);
                    }
                });
            });
        add_partials(&mut grads[dgamma], partials, stride, 0);
        add_partials(&mut grads[dbeta], partials, stride, h);
        add_partials(&mut grads[dkind], partials, stride, 3 * h);
    });
    for (arg, range, _, groups) in tables {
        let table = range_mut(OP, arg, grads, range, range.len())?;
        let pairs = || {
            groups.ids.iter().zip(groups.starts.windows(2)).flat_map(|(&id, ends)| {
                groups.rows[ends[0] as usize..ends[1] as usize]
                    .iter()
                    .map(move |&row| (row as usize, id as usize))
            })
        };
        add_at(table, dy, h, groups.rows.len(), pairs);
    }
    Ok(())
}

fn check_groups<T: Scalar>(
    op: &'static str,
    [ids, starts, rows]: [&'static str; 3],
    groups: &Groups<'_, Cpu<T>>,
    table: usize,
    limit: usize,
) -> Result<()> {
    check_indices(op, ids, groups.ids, table)?;
    check_len(op, rows, groups.rows.len(), limit)?;
    check_indices(op, rows, groups.rows, limit)?;
    check_len(op, starts, groups.starts.len(), groups.ids.len() + 1)?;
    check_offsets(op, starts, groups.starts, limit)
}

/// Checks offsets: from 0 to `end`, never falling.
pub(super) fn check_offsets(op: &'static str, arg: &'static str, offsets: &[u32], end: usize) -> Result<()> {
    let fail = |what| Err(Error::Unsupported { op, what });
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return fail(format!("`{arg}` is empty, expected offsets from 0 to {end}"));
    };
    if first != 0 || last as usize != end {
        return fail(format!("`{arg}` goes from {first} to {last}, expected from 0 to {end}"));
    }
    match offsets.windows(2).position(|w| w[0] > w[1]) {
        Some(at) => fail(format!("`{arg}[{}]` is {}, below its predecessor", at + 1, offsets[at + 1])),
        None => Ok(()),
    }
}
