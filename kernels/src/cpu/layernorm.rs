//! Dropout, residual and layer normalization (Ba et al., 2016), row by row:
//!
//! `z = dropout(x) + residual`, `xhat = (z - mean) rstd`, `y = gamma xhat + beta`.
//!
//! With `g = gamma dy`: `dz = rstd (g - mean(g) - xhat mean(g xhat))`, `dgamma = sum dy xhat`, `dbeta = sum dy`. Saved
//! are z, mean and rstd. Bound by memory: a row stays in the first-level cache over its passes.

use crate::backend::{LayerNormBackward, LayerNormForward};
use crate::cpu::Cpu;
use crate::cpu::math::{Mask, add, add_partials, block_rows, grain, simd, sum, sum2};
use crate::cpu::memory::Scratch;
use crate::error::{check_len, check_range};
use crate::{Result, Scalar};
use rayon::prelude::*;

/// Normalizes one row; returns mean and 1 / standard deviation. The variance is taken around the mean in a second
/// pass: one pass over squares would cancel where the mean is large.
#[inline(always)]
pub(super) fn normalize<T: Scalar>(y: &mut [T], z: &[T], gamma: &[T], beta: &[T], eps: T) -> (T, T) {
    let n = T::from_f64(z.len() as f64);
    let mean = sum(z, |z| z) / n;
    let variance = sum(z, |z| (z - mean) * (z - mean)) / n;
    let rstd = T::ONE / (variance + eps).sqrt();
    for (((y, &z), &gamma), &beta) in y.iter_mut().zip(z).zip(gamma).zip(beta) {
        *y = ((z - mean) * rstd).mul_add(gamma, beta);
    }
    (mean, rstd)
}

/// One row's backward: `d` holds dy and becomes dz; adds to dgamma and dbeta. `xhat` is scratch.
#[inline(always)]
pub(super) fn normalize_backward<T: Scalar>(
    d: &mut [T],
    z: &[T],
    (mean, rstd): (T, T),
    gamma: &[T],
    (dgamma, dbeta): (&mut [T], &mut [T]),
    xhat: &mut [T],
) {
    let columns = xhat.iter_mut().zip(z).zip(&mut *d).zip(gamma).zip(dgamma).zip(dbeta);
    for (((((xhat, &z), d), &gamma), dgamma), dbeta) in columns {
        *xhat = (z - mean) * rstd;
        *dgamma = xhat.mul_add(*d, *dgamma);
        *dbeta += *d;
        *d *= gamma;
    }
    let n = T::from_f64(z.len() as f64);
    let mean_g = sum(d, |g| g) / n;
    let mean_g_xhat = sum2(d, xhat, |g, xhat| g * xhat) / n;
    for (d, &xhat) in d.iter_mut().zip(&*xhat) {
        *d = rstd * (*d - mean_g - xhat * mean_g_xhat);
    }
}

pub(super) fn forward<T: Scalar>(args: LayerNormForward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "layernorm_forward";
    let LayerNormForward { y, z, residual, mean, rstd, gamma, beta, eps, dropout } = args;
    let (rows, h) = (mean.len(), gamma.len());
    check_len(OP, "y", y.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    check_len(OP, "beta", beta.len(), h)?;
    if let Some(residual) = residual {
        check_len(OP, "residual", residual.len(), rows * h)?;
    }
    let mask = Mask::<T>::new(OP, dropout, rows)?;
    if rows * h == 0 {
        return Ok(());
    }
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
                    mask.apply(row, z);
                    if let Some(residual) = residual {
                        add(z, &residual[row * h..][..h]);
                    }
                    (*mean, *rstd) = normalize(y, z, gamma, beta, eps);
                }
            });
        });
    Ok(())
}

pub(super) fn backward<T: Scalar>(scratch: &Scratch, args: LayerNormBackward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "layernorm_backward";
    let LayerNormBackward { dz, dx, dy, z, mean, rstd, gamma, grads, dgamma, dbeta, dbias, dropout } = args;
    let (rows, h) = (mean.len(), gamma.len());
    check_len(OP, "dz", dz.len(), rows * h)?;
    check_len(OP, "dx", dx.len(), rows * h)?;
    check_len(OP, "dy", dy.len(), rows * h)?;
    check_len(OP, "z", z.len(), rows * h)?;
    check_len(OP, "rstd", rstd.len(), rows)?;
    let ranges = [("dgamma", Some(&dgamma)), ("dbeta", Some(&dbeta)), ("dbias", dbias.as_ref())];
    for (arg, range) in ranges {
        range.map_or(Ok(()), |range| check_range(OP, arg, grads.len(), range, h))?;
    }
    let mask = Mask::<T>::new(OP, dropout, rows)?;
    if rows * h == 0 {
        return Ok(());
    }
    let block = block_rows(rows);
    // per block: dgamma, dbeta, dbias, and a row of scratch
    let stride = 4 * h;
    scratch.with(rows.div_ceil(block) * stride, |partials: &mut [T]| {
        dz.par_chunks_mut(block * h)
            .zip(dx.par_chunks_mut(block * h))
            .zip(partials.par_chunks_mut(stride))
            .enumerate()
            .with_min_len(grain(block * h))
            .for_each(|(i, ((dz, dx), partials))| {
                simd!(|| {
                    partials.fill(T::ZERO);
                    let (dgamma, rest) = partials.split_at_mut(h);
                    let (dbeta, rest) = rest.split_at_mut(h);
                    let (dbias_sum, xhat) = rest.split_at_mut(h);
                    let rows = dz.chunks_exact_mut(h).zip(dx.chunks_exact_mut(h));
                    for (row, (dz, dx)) in (i * block..).zip(rows) {
                        dz.copy_from_slice(&dy[row * h..][..h]);
                        let sums = (&mut *dgamma, &mut *dbeta);
                        let statistics = (mean[row], rstd[row]);
                        normalize_backward(dz, &z[row * h..][..h], statistics, gamma, sums, xhat);
                        dx.copy_from_slice(dz);
                        mask.apply(row, dx);
                        if dbias.is_some() {
                            add(dbias_sum, dx);
                        }
                    }
                });
            });
        for (at, range) in [Some(&dgamma), Some(&dbeta), dbias.as_ref()].into_iter().enumerate() {
            if let Some(range) = range {
                add_partials(&mut grads[range.clone()], partials, stride, at * h);
            }
        }
    });
    Ok(())
}
