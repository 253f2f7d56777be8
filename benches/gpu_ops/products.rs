//! The linear layers' products, 2 rows inputs outputs operations each: as they are chosen by measurement, and on compute
//! capability 9.0 by our own kernels, whether or not those are chosen.

use crate::harness::{B, Bench, all, all_mut};
use kernels::backend::*;
use kernels::cuda::{Cuda, Options, Tiles};
use kernels::{Backend, Result};

/// What does the products, and what it is called in a row's name.
type Doer<'a> = (&'static str, &'a B);

pub fn linear(bench: &mut Bench<'_>) -> Result<()> {
    let (s, chosen) = (bench.shape, bench.cuda);
    let own = |columns| {
        let tiles = Some(Tiles { columns, parts: 1 });
        Cuda::new(chosen.device().clone(), Options { own: tiles, measure: false, ..Options::default() })
    };
    let (wide, narrow) = (own(256)?, own(128)?);
    let mut doers: Vec<Doer<'_>> = vec![("", chosen)];
    if chosen.device().arch() == (9, 0) {
        doers.extend([(", own 128 x 256", &wide), (", own 128 x 128", &narrow)]);
    }
    family(bench, &doers, "qkv", s.tokens(), s.hidden, 3 * s.hidden)?;
    family(bench, &doers, "out", s.tokens(), s.hidden, s.hidden)?;
    family(bench, &doers, "ffn1", s.tokens(), s.hidden, s.inner)?;
    family(bench, &doers, "ffn2", s.tokens(), s.inner, s.hidden)?;
    family(bench, &doers, "mlm decoder", s.masked, s.hidden, s.vocab)?;
    with_gelu(bench, &doers)
}

/// Forward with bias, and both gradients, of one layer.
fn family(
    bench: &mut Bench<'_>,
    doers: &[Doer<'_>],
    name: &str,
    rows: usize,
    inputs: usize,
    outputs: usize,
) -> Result<()> {
    let size = LinearSize { rows, inputs, outputs };
    let (x, w) = (bench.elems(rows * inputs)?, bench.elems(outputs * inputs)?);
    let (bias, mut y) = (bench.elems(outputs)?, bench.elems(rows * outputs)?);
    let (mut dx, mut grads) = (bench.elems(rows * inputs)?, bench.floats(outputs * inputs)?);
    for (by, cuda) in doers {
        bench.run(&format!("linear_forward {name}{by}"), |_| {
            let (y, x, w, bias) = (all_mut(&mut y), all(&x), all(&w), Some(all(&bias)));
            cuda.linear_forward(LinearForward { y, x, w, bias, size })
        })?;
        bench.run(&format!("linear_dgrad {name}{by}"), |_| {
            let (dx, dy, w) = (all_mut(&mut dx), all(&y), all(&w));
            cuda.linear_dgrad(LinearDgrad { dx, dy, w, accumulate: false, size })
        })?;
        bench.run(&format!("linear_dgrad added {name}{by}"), |_| {
            let (dx, dy, w) = (all_mut(&mut dx), all(&y), all(&w));
            cuda.linear_dgrad(LinearDgrad { dx, dy, w, accumulate: true, size })
        })?;
        bench.run(&format!("linear_wgrad {name}{by}"), |_| {
            let (grads, dw, dy, x) = (all_mut(&mut grads), 0..outputs * inputs, all(&y), all(&x));
            cuda.linear_wgrad(LinearWgrad { grads, dw, dy, x, size })
        })?;
    }
    Ok(())
}

/// The feed-forward part's products with GELU: fused, or both kernels, whichever is chosen.
fn with_gelu(bench: &mut Bench<'_>, doers: &[Doer<'_>]) -> Result<()> {
    let (t, h, f) = (bench.shape.tokens(), bench.shape.hidden, bench.shape.inner);
    let (x, w, bias) = (bench.elems(t * h)?, bench.elems(f * h)?, bench.elems(f)?);
    let (mut inner, mut y, mut grads) = (bench.elems(t * f)?, bench.elems(t * f)?, bench.floats(f)?);
    for (form, kind) in [("tanh", Gelu::Tanh), ("erf", Gelu::Erf)] {
        for (by, cuda) in doers {
            bench.run(&format!("linear_gelu_forward {form} ffn1{by}"), |_| {
                let (inner, y, size) =
                    (all_mut(&mut inner), all_mut(&mut y), LinearSize { rows: t, inputs: h, outputs: f });
                let (x, w, bias) = (all(&x), all(&w), all(&bias));
                cuda.linear_gelu_forward(LinearGeluForward { y, inner, x, w, bias, kind, size })
            })?;
            bench.run(&format!("linear_gelu_dgrad {form} ffn2{by}"), |_| {
                let (dinner, grads, size) =
                    (all_mut(&mut y), all_mut(&mut grads), LinearSize { rows: t, inputs: f, outputs: h });
                let (dy, w, inner, dbias) = (all(&x), all(&w), all(&inner), 0..f);
                cuda.linear_gelu_dgrad(LinearGeluDgrad { dinner, dy, w, inner, kind, grads, dbias, size })
            })?;
        }
    }
    Ok(())
}
