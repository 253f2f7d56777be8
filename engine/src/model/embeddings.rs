//! Word + position + token-type embeddings, layernorm, dropout.

use super::{Gradients, Pass};
use crate::Result;
use crate::activations::EmbeddingActs;
use crate::device_batch::Part;
use kernels::backend::{Backend, EmbeddingBackward, EmbeddingForward};
use kernels::philox::Site;

/// The output is `y` [T, H].
pub fn forward<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &mut EmbeddingActs<B>,
    y: &mut B::Mem<B::Elem>,
) -> Result<()> {
    let (b, t, w) = (pass.batch, pass.table, pass.weights);
    let (tokens, len) = (b.dims.tokens, b.dims.tokens * pass.hidden());
    Ok(pass.backend.embedding_forward(EmbeddingForward {
        y: B::at_mut(y, 0..len),
        z: B::at_mut(&mut acts.z, 0..len),
        mean: B::at_mut(&mut acts.mean, 0..tokens),
        rstd: B::at_mut(&mut acts.rstd, 0..tokens),
        tokens: b.at(Part::Tokens),
        positions: b.at(Part::Positions),
        types: b.at(Part::Types),
        word: B::weight(w, t.word.clone()),
        position: B::weight(w, t.position.clone()),
        kind: B::weight(w, t.kind.clone()),
        gamma: B::master(w, t.embedding_norm.gamma.clone()),
        beta: B::master(w, t.embedding_norm.beta.clone()),
        eps: pass.config.layer_norm_eps,
        dropout: pass.drops.hidden(0, Site::Embedding, b.at(Part::RowKeys)),
    })?)
}

/// Reads `scratch.d`, the gradient of the embeddings' output.
pub fn backward<B: Backend>(
    pass: &Pass<'_, B>,
    acts: &EmbeddingActs<B>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (b, t) = (pass.batch, pass.table);
    let (tokens, len) = (b.dims.tokens, b.dims.tokens * pass.hidden());
    Ok(pass.backend.embedding_backward(EmbeddingBackward {
        dy: B::at_mut(&mut grads.scratch.d, 0..len),
        z: B::at(&acts.z, 0..len),
        mean: B::at(&acts.mean, 0..tokens),
        rstd: B::at(&acts.rstd, 0..tokens),
        gamma: B::master(pass.weights, t.embedding_norm.gamma.clone()),
        types: b.at(Part::Types),
        by_token: b.by_token(),
        by_position: b.by_position(),
        grads: B::at_mut(&mut grads.params, 0..t.len),
        dword: t.word.clone(),
        dposition: t.position.clone(),
        dkind: t.kind.clone(),
        dgamma: t.embedding_norm.gamma.clone(),
        dbeta: t.embedding_norm.beta.clone(),
        dropout: pass.drops.hidden(0, Site::Embedding, b.at(Part::RowKeys)),
    })?)
}
