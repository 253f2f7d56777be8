//! One transformer layer, post-layernorm as in the original BERT:
//!
//! ```text
//! qkv = x Wqkv^T + b        context = attention(qkv)
//! y1  = layernorm(dropout(context Wo^T + b) + x)
//! y   = layernorm(dropout(gelu(y1 W1^T + b) W2^T + b) + y1)
//! ```
//!
//! In the last layer only the rows that a head reads (masked tokens and first tokens) are queries; keys and values
//! are those of all tokens. The result is exactly that of the full layer at those rows.

use super::{Gradients, Pass};
use crate::Result;
use crate::activations::{BackwardScratch, LayerActs, NormActs, QkvActs};
use crate::device_batch::Part;
use crate::table::{Linear, Norm};
use kernels::backend::*;
use kernels::philox::Site;
use std::ops::Range;

/// Splits the joined query, key and value layer into queries and keys-and-values.
fn split_qkv(qkv: &Linear, hidden: usize) -> (Linear, Linear) {
    let part = |from: usize, to: usize| Linear {
        weight: qkv.weight.start + from * hidden * hidden..qkv.weight.start + to * hidden * hidden,
        bias: qkv.bias.start + from * hidden..qkv.bias.start + to * hidden,
    };
    (part(0, 1), part(1, 3))
}

impl<B: Backend> Pass<'_, B> {
    /// `y = x w^T + b` for one of the table's linear layers.
    pub(super) fn linear(
        &self,
        linear: &Linear,
        y: &mut B::Mem<B::Elem>,
        x: Elems<'_, B>,
        size: LinearSize,
    ) -> Result<()> {
        Ok(self.backend.linear_forward(LinearForward {
            y: B::at_mut(y, 0..size.rows * size.outputs),
            x: B::shorten(x),
            w: B::weight(self.weights, linear.weight.clone()),
            bias: Some(B::weight(self.weights, linear.bias.clone())),
            size,
        })?)
    }

    /// `inner = x w^T + b` and `y = gelu(inner)` for one of the table's linear layers.
    pub(super) fn linear_gelu(
        &self,
        linear: &Linear,
        [inner, y]: [&mut B::Mem<B::Elem>; 2],
        x: Elems<'_, B>,
        size: LinearSize,
    ) -> Result<()> {
        let len = size.rows * size.outputs;
        Ok(self.backend.linear_gelu_forward(LinearGeluForward {
            y: B::at_mut(y, 0..len),
            inner: B::at_mut(inner, 0..len),
            x: B::shorten(x),
            w: B::weight(self.weights, linear.weight.clone()),
            bias: B::weight(self.weights, linear.bias.clone()),
            kind: self.config.gelu,
            size,
        })?)
    }

    /// `dx = dy w`, or added.
    pub(super) fn dgrad(
        &self,
        linear: &Linear,
        dx: &mut B::Mem<B::Elem>,
        dy: Elems<'_, B>,
        accumulate: bool,
        size: LinearSize,
    ) -> Result<()> {
        Ok(self.backend.linear_dgrad(LinearDgrad {
            dx: B::at_mut(dx, 0..size.rows * size.inputs),
            dy: B::shorten(dy),
            w: B::weight(self.weights, linear.weight.clone()),
            accumulate,
            size,
        })?)
    }

    /// `dw += dy^T x`.
    pub(super) fn wgrad(
        &self,
        params: &mut B::Mem<B::Acc>,
        dw: &Range<usize>,
        dy: Elems<'_, B>,
        x: Elems<'_, B>,
        size: LinearSize,
    ) -> Result<()> {
        let grads = B::at_mut(params, 0..self.table.len);
        let (dy, x) = (B::shorten(dy), B::shorten(x));
        Ok(self.backend.linear_wgrad(LinearWgrad { grads, dw: dw.clone(), dy, x, size })?)
    }

    /// `db += column sums of dy`.
    pub(super) fn bias_grad(
        &self,
        params: &mut B::Mem<B::Acc>,
        dbias: &Range<usize>,
        dy: Elems<'_, B>,
        size: Size2,
    ) -> Result<()> {
        let grads = B::at_mut(params, 0..self.table.len);
        Ok(self.backend.bias_grad(BiasGrad { grads, dbias: dbias.clone(), dy: B::shorten(dy), size })?)
    }

    /// `y` = layernorm of `dropout(z) + residual`; the sum takes the place of z in `acts`.
    pub(super) fn norm(
        &self,
        norm: &Norm,
        acts: &mut NormActs<B>,
        y: &mut B::Mem<B::Elem>,
        residual: Option<Elems<'_, B>>,
        dropout: Dropout<'_, B>,
        rows: usize,
    ) -> Result<()> {
        let len = rows * self.hidden();
        Ok(self.backend.layernorm_forward(LayerNormForward {
            y: B::at_mut(y, 0..len),
            z: B::at_mut(&mut acts.z, 0..len),
            residual: residual.map(B::shorten),
            mean: B::at_mut(&mut acts.mean, 0..rows),
            rstd: B::at_mut(&mut acts.rstd, 0..rows),
            gamma: B::master(self.weights, norm.gamma.clone()),
            beta: B::master(self.weights, norm.beta.clone()),
            eps: self.config.layer_norm_eps,
            dropout: dropout.shorten(),
        })?)
    }

    /// Backward of [`Self::norm`]; `dbias` is the bias whose layer made the normalized branch.
    pub(super) fn norm_backward(
        &self,
        norm: &Norm,
        acts: &NormActs<B>,
        params: &mut B::Mem<B::Acc>,
        [dz, dx]: [&mut B::Mem<B::Elem>; 2],
        dy: Elems<'_, B>,
        dbias: Option<Range<usize>>,
        dropout: Dropout<'_, B>,
        rows: usize,
    ) -> Result<()> {
        let len = rows * self.hidden();
        Ok(self.backend.layernorm_backward(LayerNormBackward {
            dz: B::at_mut(dz, 0..len),
            dx: B::at_mut(dx, 0..len),
            dy: B::shorten(dy),
            z: B::at(&acts.z, 0..len),
            mean: B::at(&acts.mean, 0..rows),
            rstd: B::at(&acts.rstd, 0..rows),
            gamma: B::master(self.weights, norm.gamma.clone()),
            grads: B::at_mut(params, 0..self.table.len),
            dgamma: norm.gamma.clone(),
            dbeta: norm.beta.clone(),
            dbias,
            dropout: dropout.shorten(),
        })?)
    }
}

/// The layer's rows and the sizes of its products.
struct Sizes {
    subset: bool,
    rows: usize,
    hidden: usize,
    inner: usize,
}

impl Sizes {
    fn of<B: Backend>(pass: &Pass<'_, B>, qkv: &QkvActs<B>) -> Self {
        let subset = matches!(qkv, QkvActs::Split { .. });
        Self {
            subset,
            rows: if subset { pass.batch.dims.rows } else { pass.batch.dims.tokens },
            hidden: pass.config.hidden,
            inner: pass.config.intermediate,
        }
    }

    fn project(&self) -> LinearSize {
        LinearSize { rows: self.rows, inputs: self.hidden, outputs: self.hidden }
    }

    fn up(&self) -> LinearSize {
        LinearSize { rows: self.rows, inputs: self.hidden, outputs: self.inner }
    }

    fn down(&self) -> LinearSize {
        LinearSize { rows: self.rows, inputs: self.inner, outputs: self.hidden }
    }
}

/// `x` is the layer's input [T, H], `y` its output [N, H].
pub fn forward<B: Backend>(
    pass: &Pass<'_, B>,
    index: usize,
    acts: &mut LayerActs<B>,
    x: &B::Mem<B::Elem>,
    y: &mut B::Mem<B::Elem>,
) -> Result<()> {
    let tensors = &pass.table.layers[index];
    let s = Sizes::of(pass, &acts.qkv);
    let (len, keys) = (s.rows * s.hidden, pass.row_keys(s.subset));

    qkv_forward(pass, &tensors.qkv, &mut acts.qkv, x)?;
    pass.backend.attention_forward(AttentionForward {
        out: B::at_mut(&mut acts.context, 0..len),
        lse: B::at_mut(&mut acts.lse, 0..pass.config.heads * s.rows),
        qkv: view_qkv(pass, &acts.qkv),
        size: pass.attention_size(s.subset),
        dropout: pass.drops.attention(index, pass.row_keys(s.subset)),
    })?;
    pass.linear(
        &tensors.attention_output,
        &mut acts.attention_norm.z,
        B::at(&acts.context, 0..len),
        s.project(),
    )?;
    let residual = match &acts.qkv {
        QkvActs::Packed(_) => B::at(x, 0..len),
        QkvActs::Split { x, .. } => B::at(x, 0..len),
    };
    let dropout = pass.drops.hidden(index, Site::AttentionOutput, keys);
    let (norm, attended) = (&mut acts.attention_norm, &mut acts.attended);
    pass.norm(&tensors.attention_norm, norm, attended, Some(residual), dropout, s.rows)?;

    let inner = s.rows * s.inner;
    let y1 = B::at(&acts.attended, 0..len);
    pass.linear_gelu(&tensors.intermediate, [&mut acts.inner, &mut acts.gelu], y1, s.up())?;
    pass.linear(&tensors.output, &mut acts.output_norm.z, B::at(&acts.gelu, 0..inner), s.down())?;
    let dropout = pass.drops.hidden(index, Site::FeedForwardOutput, keys);
    pass.norm(&tensors.output_norm, &mut acts.output_norm, y, Some(y1), dropout, s.rows)
}

fn qkv_forward<B: Backend>(
    pass: &Pass<'_, B>,
    qkv: &Linear,
    acts: &mut QkvActs<B>,
    x: &B::Mem<B::Elem>,
) -> Result<()> {
    let (h, tokens, rows) = (pass.hidden(), pass.batch.dims.tokens, pass.batch.dims.rows);
    let all = B::at(x, 0..tokens * h);
    match acts {
        QkvActs::Packed(y) => {
            pass.linear(qkv, y, all, LinearSize { rows: tokens, inputs: h, outputs: 3 * h })
        }
        QkvActs::Split { x: chosen, q, kv } => {
            let (query, key_value) = split_qkv(qkv, h);
            pass.backend.gather_rows(GatherRows {
                y: B::at_mut(chosen, 0..rows * h),
                x: B::shorten(all),
                rows: pass.batch.at(Part::Rows),
                cols: h,
            })?;
            let chosen = B::at(chosen, 0..rows * h);
            pass.linear(&query, q, chosen, LinearSize { rows, inputs: h, outputs: h })?;
            pass.linear(&key_value, kv, all, LinearSize { rows: tokens, inputs: h, outputs: 2 * h })
        }
    }
}

fn view_qkv<'a, B: Backend>(pass: &Pass<'_, B>, acts: &'a QkvActs<B>) -> Qkv<'a, B> {
    let (h, tokens, rows) = (pass.hidden(), pass.batch.dims.tokens, pass.batch.dims.rows);
    match acts {
        QkvActs::Packed(qkv) => Qkv::Packed(B::at(qkv, 0..tokens * 3 * h)),
        QkvActs::Split { q, kv, .. } => {
            Qkv::Split { q: B::at(q, 0..rows * h), kv: B::at(kv, 0..tokens * 2 * h) }
        }
    }
}

/// Reads `scratch.d`, the gradient of the layer's output [N, H], and leaves there the gradient of its input [T, H].
pub fn backward<B: Backend>(
    pass: &Pass<'_, B>,
    index: usize,
    acts: &LayerActs<B>,
    x: &B::Mem<B::Elem>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let tensors = &pass.table.layers[index];
    let s = Sizes::of(pass, &acts.qkv);
    let (len, inner, keys) = (s.rows * s.hidden, s.rows * s.inner, pass.row_keys(s.subset));
    let Gradients { params, scratch } = grads;
    let BackwardScratch { d, dz, dx, dinner, .. } = scratch;

    // d: dy -> dz: gradient of the second residual sum, dx: of the feed-forward branch
    let dropout = pass.drops.hidden(index, Site::FeedForwardOutput, keys);
    pass.norm_backward(
        &tensors.output_norm,
        &acts.output_norm,
        params,
        [&mut *dz, &mut *dx],
        B::at(d, 0..len),
        Some(tensors.output.bias.clone()),
        dropout,
        s.rows,
    )?;
    let dbranch = B::at(dx, 0..len);
    pass.wgrad(params, &tensors.output.weight, dbranch, B::at(&acts.gelu, 0..inner), s.down())?;
    pass.backend.linear_gelu_dgrad(LinearGeluDgrad {
        dinner: B::at_mut(dinner, 0..inner),
        dy: B::shorten(dbranch),
        w: B::weight(pass.weights, tensors.output.weight.clone()),
        inner: B::at(&acts.inner, 0..inner),
        kind: pass.config.gelu,
        grads: B::at_mut(params, 0..pass.table.len),
        dbias: tensors.intermediate.bias.clone(),
        size: s.down(),
    })?;
    let (dup, y1) = (B::at(dinner, 0..inner), B::at(&acts.attended, 0..len));
    pass.wgrad(params, &tensors.intermediate.weight, dup, y1, s.up())?;
    // dz becomes the gradient of y1: through the residual, and through the feed-forward part
    pass.dgrad(&tensors.intermediate, dz, dup, true, s.up())?;

    // dz: dy1 -> d: gradient of the first residual sum, dx: of the attention branch
    let dropout = pass.drops.hidden(index, Site::AttentionOutput, keys);
    pass.norm_backward(
        &tensors.attention_norm,
        &acts.attention_norm,
        params,
        [&mut *d, &mut *dx],
        B::at(dz, 0..len),
        Some(tensors.attention_output.bias.clone()),
        dropout,
        s.rows,
    )?;
    let dbranch = B::at(dx, 0..len);
    pass.wgrad(params, &tensors.attention_output.weight, dbranch, B::at(&acts.context, 0..len), s.project())?;
    // dz: gradient of the context
    pass.dgrad(&tensors.attention_output, dz, dbranch, false, s.project())?;
    attention_backward(pass, index, acts, &s, scratch)?;
    qkv_backward(pass, &tensors.qkv, &acts.qkv, x, grads)
}

/// `scratch.dz` (gradient of the context) to `scratch.dqkv`, or `dq` and `dqkv` in the last layer.
fn attention_backward<B: Backend>(
    pass: &Pass<'_, B>,
    index: usize,
    acts: &LayerActs<B>,
    s: &Sizes,
    scratch: &mut BackwardScratch<B>,
) -> Result<()> {
    let (len, tokens, h) = (s.rows * s.hidden, pass.batch.dims.tokens, s.hidden);
    let BackwardScratch { dz, dqkv, dq, .. } = scratch;
    Ok(pass.backend.attention_backward(AttentionBackward {
        dqkv: if s.subset {
            QkvGrad::Split { dq: B::at_mut(dq, 0..len), dkv: B::at_mut(dqkv, 0..tokens * 2 * h) }
        } else {
            QkvGrad::Packed(B::at_mut(dqkv, 0..tokens * 3 * h))
        },
        dout: B::at(dz, 0..len),
        qkv: view_qkv(pass, &acts.qkv),
        out: B::at(&acts.context, 0..len),
        lse: B::at(&acts.lse, 0..pass.config.heads * s.rows),
        size: pass.attention_size(s.subset),
        dropout: pass.drops.attention(index, pass.row_keys(s.subset)),
    })?)
}

/// `scratch.dqkv` and `scratch.d` (gradient through the residual) to `scratch.d` (gradient of the layer's input).
fn qkv_backward<B: Backend>(
    pass: &Pass<'_, B>,
    qkv: &Linear,
    acts: &QkvActs<B>,
    x: &B::Mem<B::Elem>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (h, tokens, rows) = (pass.hidden(), pass.batch.dims.tokens, pass.batch.dims.rows);
    let Gradients { params, scratch } = grads;
    let all = B::at(x, 0..tokens * h);
    match acts {
        QkvActs::Packed(_) => {
            let size = LinearSize { rows: tokens, inputs: h, outputs: 3 * h };
            let dy = B::at(&scratch.dqkv, 0..tokens * 3 * h);
            pass.bias_grad(params, &qkv.bias, dy, Size2 { rows: tokens, cols: 3 * h })?;
            clear_key_bias(pass, params, qkv)?;
            pass.wgrad(params, &qkv.weight, dy, all, size)?;
            pass.dgrad(qkv, &mut scratch.d, dy, true, size)
        }
        QkvActs::Split { x: chosen, .. } => {
            let (query, key_value) = split_qkv(qkv, h);
            let (dq, dkv) = (B::at(&scratch.dq, 0..rows * h), B::at(&scratch.dqkv, 0..tokens * 2 * h));
            let q_size = LinearSize { rows, inputs: h, outputs: h };
            let kv_size = LinearSize { rows: tokens, inputs: h, outputs: 2 * h };
            pass.bias_grad(params, &query.bias, dq, Size2 { rows, cols: h })?;
            pass.bias_grad(params, &key_value.bias, dkv, Size2 { rows: tokens, cols: 2 * h })?;
            clear_key_bias(pass, params, qkv)?;
            pass.wgrad(params, &query.weight, dq, B::at(chosen, 0..rows * h), q_size)?;
            pass.wgrad(params, &key_value.weight, dkv, all, kv_size)?;
            // All tokens through keys and values, then the chosen rows through queries and the residual
            pass.dgrad(&key_value, &mut scratch.dz, dkv, false, kv_size)?;
            pass.dgrad(&query, &mut scratch.d, dq, true, q_size)?;
            pass.backend.scatter_add_rows(ScatterAddRows {
                x: B::at_mut(&mut scratch.dz, 0..tokens * h),
                y: B::at(&scratch.d, 0..rows * h),
                rows: pass.batch.at(Part::Rows),
                cols: h,
            })?;
            std::mem::swap(&mut scratch.d, &mut scratch.dz);
            Ok(())
        }
    }
}

/// The gradient of a key's bias is 0: it shifts all scores of a query alike, which the softmax does not see. Adam
/// divides a gradient by its own size and would turn what rounding leaves of it into a random walk.
fn clear_key_bias<B: Backend>(pass: &Pass<'_, B>, params: &mut B::Mem<B::Acc>, qkv: &Linear) -> Result<()> {
    let (start, h) = (qkv.bias.start + pass.hidden(), pass.hidden());
    Ok(pass.backend.clear(B::at_mut(params, start..start + h))?)
}
