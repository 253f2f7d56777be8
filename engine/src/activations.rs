//! What a pass keeps on the device: the batch, the activations that backward reads, and backward's scratch.
//!
//! Every buffer is allocated for the largest batch seen so far and reused; once warm, a step allocates nothing.

use crate::config::ModelConfig;
use crate::data::{Batch, GroupedRows};
use kernels::Result;
use kernels::backend::{Backend, Groups};

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

/// Indices on the device; the first `len` elements are valid.
pub struct Index<B: Backend> {
    mem: B::Mem<u32>,
    len: usize,
}

impl<B: Backend> Index<B> {
    fn new(backend: &B) -> Result<Self> {
        Ok(Self { mem: backend.zeros("batch indices", 0)?, len: 0 })
    }

    fn set(&mut self, backend: &B, values: &[u32]) -> Result<()> {
        if B::len(&self.mem) < values.len() {
            self.mem = backend.zeros("batch indices", values.len().next_power_of_two())?;
        }
        self.len = values.len();
        backend.upload(B::at_mut(&mut self.mem, 0..values.len()), values)
    }

    /// The valid part.
    pub fn view(&self) -> B::Ref<'_, u32> {
        B::at(&self.mem, 0..self.len)
    }
}

/// [`GroupedRows`] on the device.
pub struct DeviceGroups<B: Backend> {
    ids: Index<B>,
    starts: Index<B>,
    rows: Index<B>,
}

impl<B: Backend> DeviceGroups<B> {
    fn new(backend: &B) -> Result<Self> {
        Ok(Self { ids: Index::new(backend)?, starts: Index::new(backend)?, rows: Index::new(backend)? })
    }

    fn set(&mut self, backend: &B, groups: &GroupedRows) -> Result<()> {
        self.ids.set(backend, &groups.ids)?;
        self.starts.set(backend, &groups.starts)?;
        self.rows.set(backend, &groups.rows)
    }

    /// As the ops take it.
    pub fn view(&self) -> Groups<'_, B> {
        Groups { ids: self.ids.view(), starts: self.starts.view(), rows: self.rows.view() }
    }
}

/// [`Batch`] on the device, field by field.
#[allow(missing_docs)]
pub struct DeviceBatch<B: Backend> {
    pub dims: Dims,
    pub max_length: usize,
    pub tokens: Index<B>,
    pub types: Index<B>,
    pub positions: Index<B>,
    pub row_keys: Index<B>,
    pub cu_seqlens: Index<B>,
    pub rows: Index<B>,
    pub rows_keys: Index<B>,
    pub cu_rows: Index<B>,
    pub mlm_rows: Index<B>,
    pub mlm_labels: Index<B>,
    pub first_rows: Index<B>,
    pub nsp_labels: Index<B>,
    pub by_token: DeviceGroups<B>,
    pub by_position: DeviceGroups<B>,
    /// Whether the batch has next-sentence labels.
    pub nsp: bool,
}

impl<B: Backend> DeviceBatch<B> {
    /// Empty.
    pub fn new(backend: &B) -> Result<Self> {
        let index = || Index::new(backend);
        Ok(Self {
            dims: Dims::default(),
            max_length: 0,
            tokens: index()?,
            types: index()?,
            positions: index()?,
            row_keys: index()?,
            cu_seqlens: index()?,
            rows: index()?,
            rows_keys: index()?,
            cu_rows: index()?,
            mlm_rows: index()?,
            mlm_labels: index()?,
            first_rows: index()?,
            nsp_labels: index()?,
            by_token: DeviceGroups::new(backend)?,
            by_position: DeviceGroups::new(backend)?,
            nsp: false,
        })
    }

    /// Copies a batch to the device.
    pub fn upload(&mut self, backend: &B, batch: &Batch) -> Result<()> {
        self.dims = Dims::of(batch);
        self.max_length = batch.max_length;
        self.nsp = !batch.nsp_labels.is_empty();
        for (index, values) in [
            (&mut self.tokens, &batch.tokens),
            (&mut self.types, &batch.types),
            (&mut self.positions, &batch.positions),
            (&mut self.row_keys, &batch.row_keys),
            (&mut self.cu_seqlens, &batch.cu_seqlens),
            (&mut self.rows, &batch.rows),
            (&mut self.rows_keys, &batch.rows_keys),
            (&mut self.cu_rows, &batch.cu_rows),
            (&mut self.mlm_rows, &batch.mlm_rows),
            (&mut self.mlm_labels, &batch.mlm_labels),
            (&mut self.first_rows, &batch.first_rows),
            (&mut self.nsp_labels, &batch.nsp_labels),
        ] {
            index.set(backend, values)?;
        }
        self.by_token.set(backend, &batch.by_token)?;
        self.by_position.set(backend, &batch.by_position)
    }
}

/// The activation memory of a model for batches up to `capacity`.
pub struct Activations<B: Backend> {
    /// What fits.
    pub capacity: Dims,
    /// Of the embeddings.
    pub embedding: EmbeddingActs<B>,
    /// Of each layer.
    pub layers: Vec<LayerActs<B>>,
    /// Of the heads.
    pub heads: HeadActs<B>,
}

/// Output of the embeddings.
pub struct EmbeddingActs<B: Backend> {
    /// [T, H] the sum before the layernorm
    pub z: B::Mem<B::Elem>,
    /// [T]
    pub mean: B::Mem<B::Acc>,
    /// [T]
    pub rstd: B::Mem<B::Acc>,
    /// [T, H] output
    pub y: B::Mem<B::Elem>,
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

/// What one layer keeps; N is T, and R in the last layer.
pub struct LayerActs<B: Backend> {
    /// Queries, keys, values.
    pub qkv: QkvActs<B>,
    /// [heads, N]
    pub lse: B::Mem<B::Acc>,
    /// [N, H] attention's output before its projection
    pub context: B::Mem<B::Elem>,
    /// Layernorm after attention.
    pub attention_norm: NormActs<B>,
    /// [N, F] before GELU
    pub inner: B::Mem<B::Elem>,
    /// [N, F] after GELU
    pub gelu: B::Mem<B::Elem>,
    /// Layernorm after the feed-forward part; its `y` is the layer's output.
    pub output_norm: NormActs<B>,
}

/// What one layernorm keeps.
pub struct NormActs<B: Backend> {
    /// [N, H] the sum before the layernorm
    pub z: B::Mem<B::Elem>,
    /// [N]
    pub mean: B::Mem<B::Acc>,
    /// [N]
    pub rstd: B::Mem<B::Acc>,
    /// [N, H] output
    pub y: B::Mem<B::Elem>,
}

/// What the heads keep.
pub struct HeadActs<B: Backend> {
    /// [M, H] hidden states of the masked tokens
    pub masked: B::Mem<B::Elem>,
    /// [M, H] transform before GELU
    pub transform: B::Mem<B::Elem>,
    /// Layernorm of the transform.
    pub norm: NormActs<B>,
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
        y: backend.zeros("layernorm output", rows * hidden)?,
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
        inner: backend.zeros("feed-forward inner", rows * m.intermediate)?,
        gelu: backend.zeros("gelu", rows * m.intermediate)?,
        output_norm: norm_acts(backend, rows, h)?,
    })
}

impl<B: Backend> Activations<B> {
    /// Allocates for batches up to `capacity`.
    pub fn new(backend: &B, m: &ModelConfig, padded_vocab: usize, capacity: Dims) -> Result<Self> {
        let h = m.hidden;
        let Dims { tokens, masked, sequences, .. } = capacity;
        Ok(Self {
            capacity,
            embedding: EmbeddingActs {
                z: backend.zeros("embedding sum", tokens * h)?,
                mean: backend.zeros("embedding mean", tokens)?,
                rstd: backend.zeros("embedding rstd", tokens)?,
                y: backend.zeros("embedding output", tokens * h)?,
            },
            layers: (0..m.layers)
                .map(|i| layer_acts(backend, m, &capacity, i + 1 == m.layers))
                .collect::<Result<_>>()?,
            heads: HeadActs {
                masked: backend.zeros("masked rows", masked * h)?,
                transform: backend.zeros("MLM transform", masked * h)?,
                norm: norm_acts(backend, masked, h)?,
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
