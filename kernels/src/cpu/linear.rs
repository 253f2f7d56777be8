//! Linear layers: three products through the crate `gemm`, which takes any strides, so nothing is transposed.
//!
//! Bound by arithmetic. A product's result depends on its sizes and on the machine's vector width and caches, not on
//! the number of threads, as `gemm` splits rows and columns among them but never the sum.

use crate::backend::{
    BiasGrad, GeluBackward, GeluForward, LinearDgrad, LinearForward, LinearGeluDgrad, LinearGeluForward,
    LinearSize, LinearWgrad, Size2,
};
use crate::cpu::math::{add, add_partials, block_rows, grain, range_mut, simd};
use crate::cpu::memory::Scratch;
use crate::cpu::{Cpu, gelu};
use crate::error::{check_len, check_range};
use crate::{Result, Scalar};
use gemm_common::Parallelism;
use rayon::prelude::*;

/// A row-major matrix inside a larger array: where it starts, and the distances of its rows and columns.
#[derive(Clone, Copy)]
pub(super) struct View<P> {
    pub at: P,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<P> View<P> {
    /// Rows of `row_stride` elements, of which the first `cols` take part.
    pub fn new(at: P, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { at, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let Self { at, rows, cols, row_stride, col_stride } = self;
        Self { at, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

impl<T> View<*mut T> {
    /// The same elements, to be read.
    pub fn cast_const(self) -> View<*const T> {
        let Self { at, rows, cols, row_stride, col_stride } = self;
        View { at: at.cast_const(), rows, cols, row_stride, col_stride }
    }
}

impl<T> View<*const T> {
    /// The same elements, to be written.
    pub fn cast_mut(self) -> View<*mut T> {
        let Self { at, rows, cols, row_stride, col_stride } = self;
        View { at: at.cast_mut(), rows, cols, row_stride, col_stride }
    }
}

/// `c = factor a b`, or `c += factor a b`.
///
/// # Safety
/// The views must lie in live memory, and nothing else may access c's elements during the call.
#[inline]
pub(super) unsafe fn product<T: Scalar>(
    c: View<*mut T>,
    accumulate: bool,
    factor: T,
    a: View<*const T>,
    b: View<*const T>,
    parallelism: Parallelism,
) {
    debug_assert!(c.rows == a.rows && c.cols == b.cols && a.cols == b.rows);
    // The kernels prefer columns in c that are contiguous.
    let (c, a, b) = if c.col_stride < c.row_stride {
        (c.transposed(), b.transposed(), a.transposed())
    } else {
        (c, a, b)
    };
    // SAFETY: the caller's promise; the sizes are the views'
    unsafe {
        T::gemm()(
            c.rows,
            c.cols,
            a.cols,
            c.at,
            c.col_stride as isize,
            c.row_stride as isize,
            accumulate,
            a.at,
            a.col_stride as isize,
            a.row_stride as isize,
            b.at,
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

pub(super) fn forward<T: Scalar>(args: LinearForward<'_, Cpu<T>>) -> Result<()> {
    let LinearForward { y, x, w, bias, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_forward";
    check_len(OP, "y", y.len(), rows * outputs)?;
    check_len(OP, "x", x.len(), rows * inputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    if let Some(bias) = bias {
        check_len(OP, "bias", bias.len(), outputs)?;
        y.par_chunks_mut(outputs.max(1)).with_min_len(grain(outputs)).for_each(|y| y.copy_from_slice(bias));
    }
    let y = View::new(y.as_mut_ptr(), rows, outputs, outputs);
    let x = View::new(x.as_ptr(), rows, inputs, inputs);
    let w = View::new(w.as_ptr(), outputs, inputs, inputs);
    // SAFETY: the lengths were checked, and y is borrowed mutably
    unsafe { product(y, bias.is_some(), T::ONE, x, w.transposed(), Parallelism::Rayon(0)) };
    Ok(())
}

/// The product, then GELU: between two passes over memory nothing is gained by joining them.
pub(super) fn gelu_forward<T: Scalar>(args: LinearGeluForward<'_, Cpu<T>>) -> Result<()> {
    let LinearGeluForward { y, inner, x, w, bias, kind, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_gelu_forward";
    check_len(OP, "y", y.len(), rows * outputs)?;
    check_len(OP, "inner", inner.len(), rows * outputs)?;
    check_len(OP, "x", x.len(), rows * inputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    check_len(OP, "bias", bias.len(), outputs)?;
    forward::<T>(LinearForward { y: &mut *inner, x, w, bias: Some(bias), size })?;
    gelu::forward::<T>(GeluForward { y, x: inner, kind })
}

/// The product, then GELU's slope in place.
pub(super) fn gelu_dgrad<T: Scalar>(scratch: &Scratch, args: LinearGeluDgrad<'_, Cpu<T>>) -> Result<()> {
    let LinearGeluDgrad { dinner, dy, w, inner, kind, grads, dbias, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_gelu_dgrad";
    check_len(OP, "dinner", dinner.len(), rows * inputs)?;
    check_len(OP, "dy", dy.len(), rows * outputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    check_len(OP, "inner", inner.len(), rows * inputs)?;
    check_range(OP, "dbias", grads.len(), &dbias, inputs)?;
    dgrad::<T>(LinearDgrad { dx: &mut *dinner, dy, w, accumulate: false, size })?;
    let size = Size2 { rows, cols: inputs };
    gelu::backward::<T>(scratch, GeluBackward { dy: dinner, x: inner, kind, grads, dbias, size })
}

pub(super) fn dgrad<T: Scalar>(args: LinearDgrad<'_, Cpu<T>>) -> Result<()> {
    let LinearDgrad { dx, dy, w, accumulate, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_dgrad";
    check_len(OP, "dx", dx.len(), rows * inputs)?;
    check_len(OP, "dy", dy.len(), rows * outputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    let dx = View::new(dx.as_mut_ptr(), rows, inputs, inputs);
    let dy = View::new(dy.as_ptr(), rows, outputs, outputs);
    let w = View::new(w.as_ptr(), outputs, inputs, inputs);
    // SAFETY: the lengths were checked, and dx is borrowed mutably
    unsafe { product(dx, accumulate, T::ONE, dy, w, Parallelism::Rayon(0)) };
    Ok(())
}

pub(super) fn wgrad<T: Scalar>(args: LinearWgrad<'_, Cpu<T>>) -> Result<()> {
    let LinearWgrad { grads, dw, dy, x, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_wgrad";
    let dw = range_mut(OP, "dw", grads, &dw, outputs * inputs)?;
    check_len(OP, "dy", dy.len(), rows * outputs)?;
    check_len(OP, "x", x.len(), rows * inputs)?;
    let dw = View::new(dw.as_mut_ptr(), outputs, inputs, inputs);
    let dy = View::new(dy.as_ptr(), rows, outputs, outputs);
    let x = View::new(x.as_ptr(), rows, inputs, inputs);
    // SAFETY: the lengths were checked, and dw is borrowed mutably
    unsafe { product(dw, true, T::ONE, dy.transposed(), x, Parallelism::Rayon(0)) };
    Ok(())
}

pub(super) fn bias_grad<T: Scalar>(scratch: &Scratch, args: BiasGrad<'_, Cpu<T>>) -> Result<()> {
    let BiasGrad { grads, dbias, dy, size: Size2 { rows, cols } } = args;
    const OP: &str = "bias_grad";
    let dbias = range_mut(OP, "dbias", grads, &dbias, cols)?;
    check_len(OP, "dy", dy.len(), rows * cols)?;
    if rows * cols == 0 {
        return Ok(());
    }
    let block = block_rows(rows);
    scratch.with(rows.div_ceil(block) * cols, |partials: &mut [T]| {
        partials
            .par_chunks_mut(cols)
            .zip(dy.par_chunks(block * cols))
            .with_min_len(grain(block * cols))
            .for_each(|(sums, dy)| {
                simd!(|| {
                    sums.fill(T::ZERO);
                    for dy in dy.chunks_exact(cols) {
                        add(sums, dy);
                    }
                });
            });
        add_partials(dbias, partials, cols, 0);
    });
    Ok(())
}
