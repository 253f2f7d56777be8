//! What a pass keeps on the device: the activations that backward reads, and backward's scratch.
//!
//! Every buffer is allocated for the largest batch seen so far and reused; once warm, a step allocates nothing.

use crate::config::{ModelConfig, Recompute};
use crate::data::Batch;
use kernels::Result;
use kernels::backend::Backend;

/// Sizes of one batch; of the buffers, the largest of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dims {
    /// T
    pub tokens: usize,
    /// R: rows of the last layer that the heads read
    pub rows: usize,
    /// M: masked tokens
    pub masked: usize,
    /// B
    pub sequences: usize,
}

impl Dims {
    /// The sizes of a batch.
    pub fn of(batch: &Batch) -> Self {
        Self {
            tokens: batch.tokens.len(),
            rows: batch.rows.len(),
            masked: batch.mlm_rows.len(),
            sequences: batch.sequences(),
        }
    }

    /// Whether a batch of these sizes fits buffers of `capacity`.
    pub fn fits(&self, capacity: &Self) -> bool {
        self.tokens <= capacity.tokens
            && self.rows <= capacity.rows
            && self.masked <= capacity.masked
            && self.sequences <= capacity.sequences
    }

    /// The larger of each.
    pub fn max(&self, other: &Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            rows: self.rows.max(other.rows),
            masked: self.masked.max(other.masked),
            sequences: self.sequences.max(other.sequences),
        }
    }
}

impl Recompute {
    /// Sets of activations for so many layers.
    pub fn sets(self, layers: usize) -> usize {
        match self {
            Self::None => layers,
            Self::Layer => layers.min(2),
        }
    }

    /// The set of layer `index`.
    pub fn set_of(self, index: usize, layers: usize) -> usize {
        match self {
            Self::None => index,
            Self::Layer if index + 1 == layers => self.sets(layers) - 1,
            Self::Layer => 0,
        }
    }

    /// Whether the activations of layer `index` are gone when backward comes to it. The last layer's are its own, and those
    /// of the one before it are the newest of the set that the others share.
    pub fn is_gone(self, index: usize, layers: usize) -> bool {
        self == Self::Layer && index + 2 < layers
    }
}

/// The activation memory of a model for batches up to `capacity`.
pub struct Activations<B: Backend> {
    /// What fits.
    pub capacity: Dims,
    /// Of the embeddings.
    pub embedding: EmbeddingActs<B>,
    /// Output of the embeddings and of each layer: [T, H], of the last layer [R, H].
    pub hidden: Vec<B::Mem<B::Elem>>,
    /// Of each layer; where layers are recomputed, of all but the last in turn, and of the last.
    pub layers: Vec<LayerActs<B>>,
    /// Of the heads.
    pub heads: HeadActs<B>,
}

/// What the embeddings keep besides their output.
pub struct EmbeddingActs<B: Backend> {
    /// [T, H] the sum before the layernorm
    pub z: B::Mem<B::Elem>,
    /// [T]
    pub mean: B::Mem<B::Acc>,
    /// [T]
    pub rstd: B::Mem<B::Acc>,
}

/// Queries, keys and values of a layer: of all tokens, or in the last layer of the rows that are read.
pub enum QkvActs<B: Backend> {
    /// [T, 3H]
    Packed(B::Mem<B::Elem>),
    /// Of the last layer.
    Split {
        /// [R, H] the layer's input at the rows
        x: B::Mem<B::Elem>,
        /// [R, H]
        q: B::Mem<B::Elem>,
        /// [T, 2H]
        kv: B::Mem<B::Elem>,
    },
}

/// What one layer keeps besides its output; N is T, and R in the last layer.
pub struct LayerActs<B: Backend> {
    /// Queries, keys, values.
    pub qkv: QkvActs<B>,
    /// [heads, N]
    pub lse: B::Mem<B::Acc>,
    /// [N, H] attention's output before its projection
    pub context: B::Mem<B::Elem>,
    /// Layernorm after attention.
    pub attention_norm: NormActs<B>,
    /// [N, H] that layernorm's output
    pub attended: B::Mem<B::Elem>,
    /// [N, F] before GELU
    pub inner: B::Mem<B::Elem>,
    /// [N, F] after GELU
    pub gelu: B::Mem<B::Elem>,
    /// Layernorm after the feed-forward part, which makes the layer's output.
    pub output_norm: NormActs<B>,
}

/// What one layernorm keeps besides its output.
pub struct NormActs<B: Backend> {
    /// [N, H] the sum before the layernorm
    pub z: B::Mem<B::Elem>,
    /// [N]
    pub mean: B::Mem<B::Acc>,
    /// [N]
    pub rstd: B::Mem<B::Acc>,
}

/// What the heads keep.
pub struct HeadActs<B: Backend> {
    /// [M, H] hidden states of the masked tokens
    pub masked: B::Mem<B::Elem>,
    /// [M, H] transform before GELU
    pub transform: B::Mem<B::Elem>,
    /// Layernorm of the transform.
    pub norm: NormActs<B>,
    /// [M, H] that layernorm's output
    pub normed: B::Mem<B::Elem>,
    /// [M, padded vocabulary] logits, then their gradient
    pub logits: B::Mem<B::Elem>,
    /// [B, H] hidden states of the first tokens
    pub first: B::Mem<B::Elem>,
    /// [B, H] pooler's output
    pub pooled: B::Mem<B::Elem>,
    /// [B, 2] logits, then their gradient
    pub nsp_logits: B::Mem<B::Elem>,
}

fn norm_acts<B: Backend>(backend: &B, rows: usize, hidden: usize) -> Result<NormActs<B>> {
    Ok(NormActs {
        z: backend.zeros("layernorm input", rows * hidden)?,
        mean: backend.zeros("layernorm mean", rows)?,
        rstd: backend.zeros("layernorm rstd", rows)?,
    })
}

fn layer_acts<B: Backend>(backend: &B, m: &ModelConfig, dims: &Dims, last: bool) -> Result<LayerActs<B>> {
    let (h, rows) = (m.hidden, if last { dims.rows } else { dims.tokens });
    let qkv = if last {
        QkvActs::Split {
            x: backend.zeros("rows", rows * h)?,
            q: backend.zeros("queries", rows * h)?,
            kv: backend.zeros("keys and values", dims.tokens * 2 * h)?,
        }
    } else {
        QkvActs::Packed(backend.zeros("qkv", rows * 3 * h)?)
    };
    Ok(LayerActs {
        qkv,
        lse: backend.zeros("lse", m.heads * rows)?,
        context: backend.zeros("attention context", rows * h)?,
        attention_norm: norm_acts(backend, rows, h)?,
        attended: backend.zeros("attention output", rows * h)?,
        inner: backend.zeros("feed-forward inner", rows * m.intermediate)?,
        gelu: backend.zeros("gelu", rows * m.intermediate)?,
        output_norm: norm_acts(backend, rows, h)?,
    })
}

impl<B: Backend> Activations<B> {
    /// Allocates for batches up to `capacity`.
    pub fn new(
        backend: &B,
        m: &ModelConfig,
        padded_vocab: usize,
        recompute: Recompute,
        capacity: Dims,
    ) -> Result<Self> {
        let h = m.hidden;
        let Dims { tokens, rows, masked, sequences } = capacity;
        let layers = recompute.sets(m.layers);
        Ok(Self {
            capacity,
            embedding: EmbeddingActs {
                z: backend.zeros("embedding sum", tokens * h)?,
                mean: backend.zeros("embedding mean", tokens)?,
                rstd: backend.zeros("embedding rstd", tokens)?,
            },
            hidden: (0..=m.layers)
                .map(|i| backend.zeros("hidden states", if i == m.layers { rows } else { tokens } * h))
                .collect::<Result<_>>()?,
            layers: (0..layers)
                .map(|i| layer_acts(backend, m, &capacity, i + 1 == layers))
                .collect::<Result<_>>()?,
            heads: HeadActs {
                masked: backend.zeros("masked rows", masked * h)?,
                transform: backend.zeros("MLM transform", masked * h)?,
                norm: norm_acts(backend, masked, h)?,
                normed: backend.zeros("MLM layernorm output", masked * h)?,
                logits: backend.zeros("MLM logits", masked * padded_vocab)?,
                first: backend.zeros("first rows", sequences * h)?,
                pooled: backend.zeros("pooled", sequences * h)?,
                nsp_logits: backend.zeros("NSP logits", sequences * 2)?,
            },
        })
    }
}

/// Backward's scratch, shared by all layers. What lies in which buffer when is told in `model/layer.rs`.
pub struct BackwardScratch<B: Backend> {
    /// What fits.
    pub capacity: Dims,
    /// [T, H] gradient of the current layer's output, then of its input
    pub d: B::Mem<B::Elem>,
    /// [T, H]
    pub dz: B::Mem<B::Elem>,
    /// [T, H]
    pub dx: B::Mem<B::Elem>,
    /// [T, F]
    pub dinner: B::Mem<B::Elem>,
    /// [T, 3H], or [T, 2H] of the last layer
    pub dqkv: B::Mem<B::Elem>,
    /// [R, H] queries of the last layer
    pub dq: B::Mem<B::Elem>,
    /// [max(M, B), H]
    pub dhead: B::Mem<B::Elem>,
    /// [max(M, B), H]
    pub dhead_x: B::Mem<B::Elem>,
}

impl<B: Backend> BackwardScratch<B> {
    /// Allocates for batches up to `capacity`.
    pub fn new(backend: &B, m: &ModelConfig, capacity: Dims) -> Result<Self> {
        let (h, tokens) = (m.hidden, capacity.tokens);
        let head = capacity.masked.max(capacity.sequences) * h;
        Ok(Self {
            capacity,
            d: backend.zeros("gradient of a layer", tokens * h)?,
            dz: backend.zeros("gradient of a sum", tokens * h)?,
            dx: backend.zeros("gradient of a branch", tokens * h)?,
            dinner: backend.zeros("gradient of feed-forward inner", tokens * m.intermediate)?,
            dqkv: backend.zeros("gradient of qkv", tokens * 3 * h)?,
            dq: backend.zeros("gradient of queries", capacity.rows * h)?,
            dhead: backend.zeros("gradient of a head", head)?,
            dhead_x: backend.zeros("gradient of a head's input", head)?,
        })
    }
}
