//! Linear layers: three products by cuBLASLt or our own kernels, some with GELU. Bound by arithmetic, `2 rows inputs outputs`
//! operations each.

use super::columns;
use super::device::Device;
use super::gemm::{Family, Operands, Products, Shape};
use super::memory::{View, ViewMut};
use super::{Cuda, Element, gelu};
use crate::backend::{
    GeluBackward, GeluForward, LinearDgrad, LinearForward, LinearGeluDgrad, LinearGeluForward, LinearSize,
    LinearWgrad, Size2,
};
use crate::error::{check_len, check_range};
use crate::{Error, Result};

/// The shape of a product that is not empty.
fn shape<E: Element>(family: Family, size: LinearSize) -> Shape {
    let LinearSize { rows, inputs, outputs } = size;
    let (bias, accumulate, gelu) = (false, false, None);
    Shape { family, kind: E::KIND, rows, inputs, outputs, bias, accumulate, gelu, alignment: [0; 3] }
}

fn operands<A, B, D>(a: &View<'_, A>, b: &View<'_, B>, d: &ViewMut<'_, D>) -> Operands {
    Operands { a: a.ptr(), b: b.ptr(), d: d.ptr(), bias: 0, kept: 0, sums: 0 }
}

pub(super) fn forward<E: Element>(products: &Products, args: LinearForward<'_, Cuda<E>>) -> Result<()> {
    let LinearForward { y, x, w, bias, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_forward";
    check_len(OP, "y", y.len(), rows * outputs)?;
    check_len(OP, "x", x.len(), rows * inputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    if let Some(bias) = bias {
        check_len(OP, "bias", bias.len(), outputs)?;
    }
    if y.is_empty() {
        return Ok(());
    }
    if inputs == 0 {
        return Err(Error::Unsupported { op: OP, what: "a layer without inputs".into() });
    }
    let shape = Shape { bias: bias.is_some(), ..shape::<E>(Family::Forward, size) };
    let at = Operands { bias: bias.map_or(0, |bias| bias.ptr()), ..operands(&w, &x, &y) };
    // SAFETY: the lengths were checked, and y is borrowed mutably
    unsafe { products.run(shape, at) }
}

pub(super) fn gelu_forward<E: Element>(
    device: &Device,
    products: &Products,
    args: LinearGeluForward<'_, Cuda<E>>,
) -> Result<()> {
    let LinearGeluForward { mut y, mut inner, x, w, bias, kind, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_gelu_forward";
    check_len(OP, "y", y.len(), rows * outputs)?;
    check_len(OP, "inner", inner.len(), rows * outputs)?;
    check_len(OP, "x", x.len(), rows * inputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    check_len(OP, "bias", bias.len(), outputs)?;
    if y.is_empty() {
        return Ok(());
    }
    if inputs == 0 {
        return Err(Error::Unsupported { op: OP, what: "a layer without inputs".into() });
    }
    let shape = Shape { bias: true, gelu: Some(kind), ..shape::<E>(Family::Forward, size) };
    let at = Operands { bias: bias.ptr(), kept: inner.ptr(), ..operands(&w, &x, &y) };
    let all = 0..rows * outputs;
    let mut apart = || {
        forward(products, LinearForward { y: inner.part(all.clone()), x, w, bias: Some(bias), size })?;
        gelu::forward(device, GeluForward { y: y.part(all.clone()), x: inner.view(), kind })
    };
    // SAFETY: the lengths were checked, and y and inner are borrowed mutably
    unsafe { products.run_gelu(shape, at, &mut apart) }
}

pub(super) fn gelu_dgrad<E: Element>(
    device: &Device,
    products: &Products,
    args: LinearGeluDgrad<'_, Cuda<E>>,
) -> Result<()> {
    let LinearGeluDgrad { mut dinner, dy, w, inner, kind, mut grads, dbias, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_gelu_dgrad";
    check_len(OP, "dinner", dinner.len(), rows * inputs)?;
    check_len(OP, "dy", dy.len(), rows * outputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    check_len(OP, "inner", inner.len(), rows * inputs)?;
    check_range(OP, "dbias", grads.len(), &dbias, inputs)?;
    if dinner.is_empty() {
        return Ok(());
    }
    if outputs == 0 {
        return Err(Error::Unsupported { op: OP, what: "a layer without outputs".into() });
    }
    let shape = Shape { gelu: Some(kind), ..shape::<E>(Family::Dgrad, size) };
    let sums = columns::at(grads.ptr(), &dbias);
    let at = Operands { kept: inner.ptr(), sums, ..operands(&w, &dy, &dinner) };
    let (all, table) = (0..rows * inputs, 0..grads.len());
    let mut apart = || {
        let dx = dinner.part(all.clone());
        dgrad(products, LinearDgrad { dx, dy, w, accumulate: false, size })?;
        let (dy, grads, size) =
            (dinner.part(all.clone()), grads.part(table.clone()), Size2 { rows, cols: inputs });
        gelu::backward(device, GeluBackward { dy, x: inner, kind, grads, dbias: dbias.clone(), size })
    };
    // SAFETY: the lengths were checked, and dinner and grads are borrowed mutably
    unsafe { products.run_gelu(shape, at, &mut apart) }
}

pub(super) fn dgrad<E: Element>(products: &Products, args: LinearDgrad<'_, Cuda<E>>) -> Result<()> {
    let LinearDgrad { dx, dy, w, accumulate, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_dgrad";
    check_len(OP, "dx", dx.len(), rows * inputs)?;
    check_len(OP, "dy", dy.len(), rows * outputs)?;
    check_len(OP, "w", w.len(), outputs * inputs)?;
    if dx.is_empty() {
        return Ok(());
    }
    if outputs == 0 {
        return Err(Error::Unsupported { op: OP, what: "a layer without outputs".into() });
    }
    let shape = Shape { accumulate, ..shape::<E>(Family::Dgrad, size) };
    // SAFETY: the lengths were checked, and dx is borrowed mutably
    unsafe { products.run(shape, operands(&w, &dy, &dx)) }
}

pub(super) fn wgrad<E: Element>(products: &Products, args: LinearWgrad<'_, Cuda<E>>) -> Result<()> {
    let LinearWgrad { mut grads, dw, dy, x, size } = args;
    let LinearSize { rows, inputs, outputs } = size;
    const OP: &str = "linear_wgrad";
    check_range(OP, "dw", grads.len(), &dw, outputs * inputs)?;
    check_len(OP, "dy", dy.len(), rows * outputs)?;
    check_len(OP, "x", x.len(), rows * inputs)?;
    if rows == 0 || dw.is_empty() {
        return Ok(());
    }
    let dw = grads.part(dw);
    let shape = Shape { accumulate: true, ..shape::<E>(Family::Wgrad, size) };
    // SAFETY: the lengths were checked, and dw is borrowed mutably
    unsafe { products.run(shape, operands(&x, &dy, &dw)) }
}
