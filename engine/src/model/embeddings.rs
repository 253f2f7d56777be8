//! Word + position + token-type embeddings, layernorm, dropout.

use super::{Gradients, Pass};
use crate::Result;
use crate::activations::EmbeddingActs;
use kernels::backend::{Backend, EmbeddingBackward, EmbeddingForward};
use kernels::philox::Site;

pub fn forward<B: Backend>(pass: &Pass<'_, B>, acts: &mut EmbeddingActs<B>) -> Result<()> {
    let (b, t, w) = (pass.batch, pass.table, pass.weights);
    let (tokens, len) = (b.dims.tokens, b.dims.tokens * pass.hidden());
    Ok(pass.backend.embedding_forward(EmbeddingForward {
        y: B::at_mut(&mut acts.y, 0..len),
        z: B::at_mut(&mut acts.z, 0..len),
        mean: B::at_mut(&mut acts.mean, 0..tokens),
        rstd: B::at_mut(&mut acts.rstd, 0..tokens),
        tokens: b.tokens.view(),
        positions: b.positions.view(),
        types: b.types.view(),
        word: B::weight(w, t.word.clone()),
        position: B::weight(w, t.position.clone()),
        kind: B::weight(w, t.kind.clone()),
        gamma: B::master(w, t.embedding_norm.gamma.clone()),
        beta: B::master(w, t.embedding_norm.beta.clone()),
        eps: pass.config.layer_norm_eps,
        dropout: pass.drops.hidden(0, Site::Embedding, b.row_keys.view()),
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
        types: b.types.view(),
        by_token: b.by_token.view(),
        by_position: b.by_position.view(),
        grads: B::at_mut(&mut grads.params, 0..t.len),
        dword: t.word.clone(),
        dposition: t.position.clone(),
        dkind: t.kind.clone(),
        dgamma: t.embedding_norm.gamma.clone(),
        dbeta: t.embedding_norm.beta.clone(),
        dropout: pass.drops.hidden(0, Site::Embedding, b.row_keys.view()),
    })?)
}
