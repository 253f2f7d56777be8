//! GELU (Hendrycks and Gimpel, 2016) in both forms, and the pooler's tanh. Elementwise; bound by memory once
//! vectorized.

use crate::backend::{Gelu, GeluBackward, GeluForward, Size2, TanhBackward, TanhForward};
use crate::cpu::Cpu;
use crate::cpu::math::{CHUNK, add, add_partials, block_rows, grain, range_mut, simd};
use crate::cpu::memory::Scratch;
use crate::error::check_len;
use crate::{Result, Scalar};
use rayon::prelude::*;

/// sqrt(2 / pi)
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044715;

#[inline(always)]
fn gelu_tanh<T: Scalar>(x: T) -> T {
    let half = T::from_f64(0.5) * x;
    let u = x * (x * x).mul_add(T::from_f64(ROOT * CUBIC), T::from_f64(ROOT));
    half.mul_add(u.tanh(), half)
}

#[inline(always)]
fn gelu_tanh_slope<T: Scalar>(x: T) -> T {
    let half = T::from_f64(0.5);
    let u = x * (x * x).mul_add(T::from_f64(ROOT * CUBIC), T::from_f64(ROOT));
    let du = (x * x).mul_add(T::from_f64(3.0 * ROOT * CUBIC), T::from_f64(ROOT));
    let t = u.tanh();
    half * (T::ONE + t + x * du * (T::ONE - t * t))
}

#[inline(always)]
fn gelu_erf<T: Scalar>(x: T) -> T {
    let half = T::from_f64(0.5) * x;
    half.mul_add((x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf(), half)
}

#[inline(always)]
fn gelu_erf_slope<T: Scalar>(x: T) -> T {
    let half = T::from_f64(0.5);
    let erf = (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf();
    // sqrt(2 / pi) / 2 is 1 / sqrt(2 pi), the normal density's factor
    let density = half * T::from_f64(ROOT) * (-(half * x * x)).exp();
    x.mul_add(density, half.mul_add(erf, half))
}

#[inline(always)]
fn map<T: Scalar>(y: &mut [T], x: &[T], f: impl Fn(T, T) -> T) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(*y, x);
    }
}

pub(super) fn forward<T: Scalar>(args: GeluForward<'_, Cpu<T>>) -> Result<()> {
    let GeluForward { y, x, kind } = args;
    check_len("gelu_forward", "y", y.len(), x.len())?;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).with_min_len(grain(CHUNK)).for_each(
        |(y, x)| match kind {
            Gelu::Tanh => simd!(|| map(y, x, |_, x| gelu_tanh(x))),
            Gelu::Erf => simd!(|| map(y, x, |_, x| gelu_erf(x))),
        },
    );
    Ok(())
}

pub(super) fn backward<T: Scalar>(scratch: &Scratch, args: GeluBackward<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "gelu_backward";
    let GeluBackward { dy, x, kind, grads, dbias, size: Size2 { rows, cols } } = args;
    check_len(OP, "dy", dy.len(), rows * cols)?;
    check_len(OP, "x", x.len(), rows * cols)?;
    let dbias = range_mut(OP, "dbias", grads, &dbias, cols)?;
    if rows * cols == 0 {
        return Ok(());
    }
    let block = block_rows(rows);
    scratch.with(rows.div_ceil(block) * cols, |partials: &mut [T]| {
        dy.par_chunks_mut(block * cols)
            .zip(x.par_chunks(block * cols))
            .zip(partials.par_chunks_mut(cols))
            .with_min_len(grain(block * cols))
            .for_each(|((dy, x), sums)| {
                simd!(|| {
                    sums.fill(T::ZERO);
                    for (dy, x) in dy.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                        match kind {
                            Gelu::Tanh => map(dy, x, |dy, x| dy * gelu_tanh_slope(x)),
                            Gelu::Erf => map(dy, x, |dy, x| dy * gelu_erf_slope(x)),
                        }
                        add(sums, dy);
                    }
                });
            });
        add_partials(dbias, partials, cols, 0);
    });
    Ok(())
}

pub(super) fn tanh_forward<T: Scalar>(args: TanhForward<'_, Cpu<T>>) -> Result<()> {
    args.y.par_chunks_mut(CHUNK).with_min_len(grain(CHUNK)).for_each(|y| {
        simd!(|| {
            for y in y.iter_mut() {
                *y = y.tanh();
            }
        });
    });
    Ok(())
}

pub(super) fn tanh_backward<T: Scalar>(args: TanhBackward<'_, Cpu<T>>) -> Result<()> {
    let TanhBackward { dy, y } = args;
    check_len("tanh_backward", "dy", dy.len(), y.len())?;
    dy.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).with_min_len(grain(CHUNK)).for_each(|(dy, y)| {
        simd!(|| map(dy, y, |dy, y| dy * (T::ONE - y * y)));
    });
    Ok(())
}
