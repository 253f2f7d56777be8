//! The two heads of pre-training: masked-token prediction (MLM), whose decoder is the word embeddings, and
//! next-sentence prediction (NSP).
//!
//! ```text
//! MLM  logits = layernorm(gelu(h Wt^T + b)) E^T + b     at masked tokens
//! NSP  logits = tanh(h Wp^T + b) Ws^T + b               at first tokens
//! ```

use super::{Gradients, LossScale, Pass};
use crate::Result;
use crate::activations::{BackwardScratch, HeadActs};
use crate::device_batch::Part;
use crate::table::Linear;
use kernels::backend::*;
use kernels::philox::DropoutRate;

impl<B: Backend> Pass<'_, B> {
    /// The decoder, tied to the word embeddings.
    fn decoder(&self) -> Linear {
        Linear { weight: self.table.word.clone(), bias: self.table.decoder_bias.clone() }
    }

    fn mlm_sizes(&self) -> (LinearSize, LinearSize) {
        let (rows, inputs) = (self.batch.dims.masked, self.hidden());
        let transform = LinearSize { rows, inputs, outputs: inputs };
        (transform, LinearSize { outputs: self.table.padded_vocab, ..transform })
    }

    fn nsp_sizes(&self) -> (LinearSize, LinearSize) {
        let (rows, inputs) = (self.batch.dims.sequences, self.hidden());
        let pooler = LinearSize { rows, inputs, outputs: inputs };
        (pooler, LinearSize { outputs: 2, ..pooler })
    }

    fn no_dropout(&self) -> Dropout<'_, B> {
        Dropout { rate: DropoutRate::NONE, key: 0, site: 0, row_keys: self.batch.at(Part::RowsKeys) }
    }
}

/// Logits of both heads from the last layer's output [R, H].
pub fn forward<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &mut HeadActs<B>,
    hidden: &B::Mem<B::Elem>,
) -> Result<()> {
    let (h, dims, b) = (pass.hidden(), pass.batch.dims, pass.batch);
    let rows = 0..dims.rows * h;
    if dims.masked > 0 {
        let (transform, decoder) = pass.mlm_sizes();
        let len = dims.masked * h;
        let masked = B::at_mut(&mut acts.masked, 0..len);
        pass.backend.gather_rows(GatherRows {
            y: masked,
            x: B::at(hidden, rows.clone()),
            rows: b.at(Part::MlmRows),
            cols: h,
        })?;
        let masked = B::at(&acts.masked, 0..len);
        pass.linear_gelu(&pass.table.transform, [&mut acts.transform, &mut acts.norm.z], masked, transform)?;
        let norm = &pass.table.transform_norm;
        pass.norm(norm, &mut acts.norm, &mut acts.normed, None, pass.no_dropout(), dims.masked)?;
        pass.linear(&pass.decoder(), &mut acts.logits, B::at(&acts.normed, 0..len), decoder)?;
    }
    if b.nsp {
        let (pooler, classifier) = pass.nsp_sizes();
        let len = dims.sequences * h;
        let first = B::at_mut(&mut acts.first, 0..len);
        pass.backend.gather_rows(GatherRows {
            y: first,
            x: B::at(hidden, rows),
            rows: b.at(Part::FirstRows),
            cols: h,
        })?;
        pass.linear(&pass.table.pooler, &mut acts.pooled, B::at(&acts.first, 0..len), pooler)?;
        pass.backend.tanh_forward(TanhForward { y: B::at_mut(&mut acts.pooled, 0..len) })?;
        let pooled = B::at(&acts.pooled, 0..len);
        pass.linear(&pass.table.seq_relationship, &mut acts.nsp_logits, pooled, classifier)?;
    }
    Ok(())
}

/// Adds losses and right answers to `sums` [4]; with a scale, turns the logits into their gradients.
pub fn losses<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &mut HeadActs<B>,
    sums: &mut B::Mem<B::Acc>,
    scale: Option<LossScale>,
) -> Result<()> {
    let (dims, b) = (pass.batch.dims, pass.batch);
    if dims.masked > 0 {
        let stride = pass.table.padded_vocab;
        pass.backend.cross_entropy(CrossEntropy {
            logits: B::at_mut(&mut acts.logits, 0..dims.masked * stride),
            labels: b.at(Part::MlmLabels),
            classes: pass.config.vocab_size,
            stride,
            scale: scale.map(|s| s.mlm),
            sums: B::at_mut(sums, 0..2),
        })?;
    }
    if b.nsp {
        pass.backend.cross_entropy(CrossEntropy {
            logits: B::at_mut(&mut acts.nsp_logits, 0..dims.sequences * 2),
            labels: b.at(Part::NspLabels),
            classes: 2,
            stride: 2,
            scale: scale.map(|s| s.nsp),
            sums: B::at_mut(sums, 2..4),
        })?;
    }
    Ok(())
}

/// From the logits' gradients to `scratch.d`, the gradient of the last layer's output [R, H].
pub fn backward<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &mut HeadActs<B>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let len = pass.batch.dims.rows * pass.hidden();
    pass.backend.clear(B::at_mut(&mut grads.scratch.d, 0..len))?;
    if pass.batch.dims.masked > 0 {
        mlm_backward(pass, acts, grads)?;
    }
    if pass.batch.nsp {
        nsp_backward(pass, acts, grads)?;
    }
    Ok(())
}

fn mlm_backward<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &mut HeadActs<B>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (h, dims, table) = (pass.hidden(), pass.batch.dims, pass.table);
    let (transform, decoder) = pass.mlm_sizes();
    let len = dims.masked * h;
    let Gradients { params, scratch } = grads;
    let BackwardScratch { d, dz, dhead, dhead_x, .. } = scratch;

    let dlogits = B::at(&acts.logits, 0..dims.masked * table.padded_vocab);
    let size = Size2 { rows: dims.masked, cols: table.padded_vocab };
    pass.bias_grad(params, &table.decoder_bias, dlogits, size)?;
    pass.wgrad(params, &table.word, dlogits, B::at(&acts.normed, 0..len), decoder)?;
    pass.dgrad(&pass.decoder(), dhead, dlogits, false, decoder)?;
    pass.norm_backward(
        &table.transform_norm,
        &acts.norm,
        params,
        [&mut *dz, &mut *dhead_x],
        B::at(dhead, 0..len),
        None,
        pass.no_dropout(),
        dims.masked,
    )?;
    pass.backend.gelu_backward(GeluBackward {
        dy: B::at_mut(dhead_x, 0..len),
        x: B::at(&acts.transform, 0..len),
        kind: pass.config.gelu,
        grads: B::at_mut(params, 0..table.len),
        dbias: table.transform.bias.clone(),
        size: Size2 { rows: dims.masked, cols: h },
    })?;
    let dtransform = B::at(dhead_x, 0..len);
    pass.wgrad(params, &table.transform.weight, dtransform, B::at(&acts.masked, 0..len), transform)?;
    pass.dgrad(&table.transform, dhead, dtransform, false, transform)?;
    Ok(pass.backend.scatter_add_rows(ScatterAddRows {
        x: B::at_mut(d, 0..dims.rows * h),
        y: B::at(dhead, 0..len),
        rows: pass.batch.at(Part::MlmRows),
        cols: h,
    })?)
}

fn nsp_backward<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &mut HeadActs<B>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (h, dims, table) = (pass.hidden(), pass.batch.dims, pass.table);
    let (pooler, classifier) = pass.nsp_sizes();
    let len = dims.sequences * h;
    let Gradients { params, scratch } = grads;
    let BackwardScratch { d, dhead, dhead_x, .. } = scratch;

    let (dlogits, pooled) = (B::at(&acts.nsp_logits, 0..dims.sequences * 2), B::at(&acts.pooled, 0..len));
    let size = Size2 { rows: dims.sequences, cols: 2 };
    pass.bias_grad(params, &table.seq_relationship.bias, dlogits, size)?;
    pass.wgrad(params, &table.seq_relationship.weight, dlogits, pooled, classifier)?;
    pass.dgrad(&table.seq_relationship, dhead, dlogits, false, classifier)?;
    pass.backend.tanh_backward(TanhBackward { dy: B::at_mut(dhead, 0..len), y: pooled })?;
    let dpooled = B::at(dhead, 0..len);
    pass.bias_grad(params, &table.pooler.bias, dpooled, Size2 { rows: dims.sequences, cols: h })?;
    pass.wgrad(params, &table.pooler.weight, dpooled, B::at(&acts.first, 0..len), pooler)?;
    pass.dgrad(&table.pooler, dhead_x, dpooled, false, pooler)?;
    Ok(pass.backend.scatter_add_rows(ScatterAddRows {
        x: B::at_mut(d, 0..dims.rows * h),
        y: B::at(dhead_x, 0..len),
        rows: pass.batch.at(Part::FirstRows),
        cols: h,
    })?)
}
