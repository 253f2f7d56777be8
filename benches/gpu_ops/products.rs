//! The linear layers' products, 2 rows inputs outputs operations each.

use crate::harness::{Bench, all, all_mut};
use kernels::backend::*;
use kernels::{Backend, Result};

pub fn linear(bench: &mut Bench<'_>) -> Result<()> {
    let s = bench.shape;
    family(bench, "qkv", s.tokens(), s.hidden, 3 * s.hidden)?;
    family(bench, "out", s.tokens(), s.hidden, s.hidden)?;
    family(bench, "ffn1", s.tokens(), s.hidden, s.inner)?;
    family(bench, "ffn2", s.tokens(), s.inner, s.hidden)?;
    family(bench, "mlm decoder", s.masked, s.hidden, s.vocab)
}

/// Forward with bias, and both gradients, of one layer.
fn family(bench: &mut Bench<'_>, name: &str, rows: usize, inputs: usize, outputs: usize) -> Result<()> {
    let size = LinearSize { rows, inputs, outputs };
    let (x, w) = (bench.elems(rows * inputs)?, bench.elems(outputs * inputs)?);
    let (bias, mut y) = (bench.elems(outputs)?, bench.elems(rows * outputs)?);
    let (mut dx, mut grads) = (bench.elems(rows * inputs)?, bench.floats(outputs * inputs)?);
    bench.run(&format!("linear_forward {name}"), |cuda| {
        let (y, x, w, bias) = (all_mut(&mut y), all(&x), all(&w), Some(all(&bias)));
        cuda.linear_forward(LinearForward { y, x, w, bias, size })
    })?;
    bench.run(&format!("linear_dgrad {name}"), |cuda| {
        let (dx, dy, w) = (all_mut(&mut dx), all(&y), all(&w));
        cuda.linear_dgrad(LinearDgrad { dx, dy, w, accumulate: false, size })
    })?;
    bench.run(&format!("linear_wgrad {name}"), |cuda| {
        let (grads, dw, dy, x) = (all_mut(&mut grads), 0..outputs * inputs, all(&y), all(&x));
        cuda.linear_wgrad(LinearWgrad { grads, dw, dy, x, size })
    })
}
