//! Linear layers: three products by cuBLASLt. Bound by arithmetic, `2 rows inputs outputs` operations each.

use super::gemm::{Family, Operands, Products, Shape};
use super::memory::{View, ViewMut};
use super::{Cuda, Element};
use crate::backend::{LinearDgrad, LinearForward, LinearSize, LinearWgrad};
use crate::error::{check_len, check_range};
use crate::{Error, Result};

/// The shape of a product that is not empty.
fn shape<E: Element>(family: Family, size: LinearSize) -> Shape {
    let LinearSize { rows, inputs, outputs } = size;
    let (bias, accumulate) = (false, false);
    Shape { family, kind: E::KIND, rows, inputs, outputs, bias, accumulate, alignment: [0; 3] }
}

fn operands<A, B, D>(a: &View<'_, A>, b: &View<'_, B>, d: &ViewMut<'_, D>) -> Operands {
    Operands { a: a.ptr(), b: b.ptr(), d: d.ptr(), bias: 0 }
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
