//! Norm, clipping and optimizers over all parameters.

use crate::harness::{B, Bench, all, all_mut};
use kernels::backend::*;
use kernels::cuda::Memory;
use kernels::{Backend, Result};

/// Tensors of the sizes that the model has, one after another.
fn tensors(bench: &Bench<'_>) -> Vec<TensorSpan> {
    let (h, f) = (bench.shape.hidden, bench.shape.inner);
    let mut sizes = vec![
        (bench.shape.vocab * h, true),
        (bench.shape.length * h, true),
        (2 * h, true),
        (h, false),
        (h, false),
    ];
    for _ in 0..bench.shape.layers {
        // queries, keys, values and output; the layernorm; the feed-forward network; its layernorm
        sizes.extend([(h * h, true), (h, false)].repeat(4));
        sizes.extend([
            (h, false),
            (h, false),
            (f * h, true),
            (f, false),
            (h * f, true),
            (h, false),
            (h, false),
            (h, false),
        ]);
    }
    let mut at = 0;
    let span = |(len, decay)| {
        at += len;
        TensorSpan { range: at - len..at, decay }
    };
    sizes.into_iter().map(span).collect()
}

pub fn over_all_parameters(bench: &mut Bench<'_>) -> Result<()> {
    let tensors = tensors(bench);
    let n = tensors.last().map_or(0, |t| t.range.end);
    let mut grads = bench.floats(n)?;
    let mut norm = bench.floats(1)?;
    bench.cuda.upload(all_mut(&mut norm), &[1.0])?;
    let mut sums: Memory<f64> = bench.cuda.zeros("sums of squares", n.div_ceil(STRETCH))?;
    bench.run("square_sums", |cuda| cuda.square_sums(all_mut(&mut sums), all(&grads)))?;
    let mut root = bench.floats(1)?;
    bench.run("root_of_sum", |cuda| cuda.root_of_sum(all_mut(&mut root), all(&sums)))?;
    bench.run("clip", |cuda| cuda.clip(all_mut(&mut grads), all(&norm), 0.999))?;

    let mut weights = bench.cuda.weights(n)?;
    let (mut m, mut v) = (bench.floats(n)?, bench.cuda.zeros::<f32>("second moments", n)?);
    let mut updates: Memory<u32> = bench.indices([100])?;
    let mut lamb: Memory<f64> = bench.cuda.zeros("sums of LAMB", lamb_sums(&tensors))?;
    let hyper = OptimizerHyper {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-6,
        weight_decay: 0.01,
        max_norm: 1.0,
        clip_eps: 1e-6,
    };
    let mut step = |name: &str, op: &mut dyn FnMut(&B, OptimizerStep<'_, B>) -> Result<()>| {
        bench.run(name, |cuda| {
            let step = OptimizerStep {
                weights: &mut weights,
                grads: all(&grads),
                m: all_mut(&mut m),
                v: all_mut(&mut v),
                norm: all(&norm),
                updates: all_mut(&mut updates),
                shard: 0..n,
                tensors: &tensors,
                hyper,
            };
            op(cuda, step)
        })
    };
    step("adamw", &mut |cuda, args| cuda.adamw(args))?;
    step("lamb_moments", &mut |cuda, args| cuda.lamb_moments(args, all_mut(&mut lamb)))?;
    step("lamb_apply", &mut |cuda, args| cuda.lamb_apply(args, all(&lamb)))
}
