//! The list of ops that a device provides, at the height where devices fuse: one op is one kernel (or one product).
//!
//! Invariants of every backward: gradients of parameters are added to (`+=`), gradients of activations are
//! overwritten (`=`) unless the field says otherwise. Every op checks its buffers' lengths before it touches them.
//! No op depends on the number of threads or on timing: the same inputs give the same bits.
//!
//! Sizes: `T` tokens of a packed batch (no padding), `R` rows of any kind, `H` hidden, `F` intermediate, `B`
//! sequences. Matrices are row-major; a linear layer's weight is `[out, in]` as PyTorch keeps it.

use crate::philox::DropoutRate;
use crate::{Result, Scalar};
use std::ops::Range;

/// A borrowed buffer of the backend's elements (weights, activations).
pub type Elems<'a, B> = <B as Backend>::Ref<'a, <B as Backend>::Elem>;
/// A mutably borrowed buffer of elements.
pub type ElemsMut<'a, B> = <B as Backend>::Mut<'a, <B as Backend>::Elem>;
/// A borrowed buffer of accumulators (statistics, gradients of parameters, moments).
pub type Accs<'a, B> = <B as Backend>::Ref<'a, <B as Backend>::Acc>;
/// A mutably borrowed buffer of accumulators.
pub type AccsMut<'a, B> = <B as Backend>::Mut<'a, <B as Backend>::Acc>;
/// A borrowed buffer of indices.
pub type Indices<'a, B> = <B as Backend>::Ref<'a, u32>;

/// Rows times columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size2 {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// GELU's two forms (Hendrycks and Gimpel, 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gelu {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: original BERT and MLPerf.
    Tanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`: Hugging Face's `gelu`.
    Erf,
}

/// One dropout layer in one step: a mask that is a function of these, never stored. See [`crate::philox`].
pub struct Dropout<'a, B: Backend> {
    /// The rate; at [`DropoutRate::NONE`] nothing is drawn and `row_keys` is not read.
    pub rate: DropoutRate,
    /// [`crate::philox::step_key`].
    pub key: u64,
    /// [`crate::philox::site`].
    pub site: u32,
    /// One key a row, the same wherever the row's token lies in whichever batch.
    pub row_keys: Indices<'a, B>,
}

impl<B: Backend> Clone for Dropout<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Dropout<'_, B> {}

impl<'long, B: Backend> Dropout<'long, B> {
    /// The same dropout for a shorter time.
    pub fn shorten<'short>(self) -> Dropout<'short, B>
    where
        'long: 'short,
    {
        let Self { rate, key, site, row_keys } = self;
        Dropout { rate, key, site, row_keys: B::shorten(row_keys) }
    }
}

/// Rows grouped by a value: group `g` is value `ids[g]` at rows `rows[starts[g]..starts[g + 1]]`. It lets the
/// gradient of a table be summed in a fixed order without atomics.
pub struct Groups<'a, B: Backend> {
    /// Distinct values, U of them.
    pub ids: Indices<'a, B>,
    /// U + 1 offsets into `rows`.
    pub starts: Indices<'a, B>,
    /// Row numbers, grouped.
    pub rows: Indices<'a, B>,
}

/// `y = dropout(layernorm(word[tokens] + position[positions] + kind[types]))`.
pub struct EmbeddingForward<'a, B: Backend> {
    /// out [T, H]
    pub y: ElemsMut<'a, B>,
    /// out [T, H]: the sum before the layernorm, kept for backward
    pub z: ElemsMut<'a, B>,
    /// out [T]
    pub mean: AccsMut<'a, B>,
    /// out [T]: 1 / standard deviation
    pub rstd: AccsMut<'a, B>,
    /// [T] token ids
    pub tokens: Indices<'a, B>,
    /// [T] position within its sequence
    pub positions: Indices<'a, B>,
    /// [T] token types
    pub types: Indices<'a, B>,
    /// [V, H]
    pub word: Elems<'a, B>,
    /// [P, H]
    pub position: Elems<'a, B>,
    /// [types, H]
    pub kind: Elems<'a, B>,
    /// [H]
    pub gamma: Accs<'a, B>,
    /// [H]
    pub beta: Accs<'a, B>,
    /// Added to the variance.
    pub eps: f64,
    /// Dropout of y.
    pub dropout: Dropout<'a, B>,
}

/// Gradients of [`EmbeddingForward`].
pub struct EmbeddingBackward<'a, B: Backend> {
    /// in: gradient of y [T, H]; overwritten with the gradient of z
    pub dy: ElemsMut<'a, B>,
    /// [T, H]
    pub z: Elems<'a, B>,
    /// [T]
    pub mean: Accs<'a, B>,
    /// [T]
    pub rstd: Accs<'a, B>,
    /// [H]
    pub gamma: Accs<'a, B>,
    /// [T] token types
    pub types: Indices<'a, B>,
    /// Rows grouped by token id.
    pub by_token: Groups<'a, B>,
    /// Rows grouped by position.
    pub by_position: Groups<'a, B>,
    /// All gradients of parameters; the ranges below are added to.
    pub grads: AccsMut<'a, B>,
    /// Word table, at least `V * H`.
    pub dword: Range<usize>,
    /// Position table.
    pub dposition: Range<usize>,
    /// Token-type table.
    pub dkind: Range<usize>,
    /// [H]
    pub dgamma: Range<usize>,
    /// [H]
    pub dbeta: Range<usize>,
    /// The forward's.
    pub dropout: Dropout<'a, B>,
}

/// `z = dropout(x) + residual; y = layernorm(z)`.
pub struct LayerNormForward<'a, B: Backend> {
    /// out [R, H]
    pub y: ElemsMut<'a, B>,
    /// in: x [R, H]; out: z, kept for backward
    pub z: ElemsMut<'a, B>,
    /// [R, H], or none
    pub residual: Option<Elems<'a, B>>,
    /// out [R]
    pub mean: AccsMut<'a, B>,
    /// out [R]: 1 / standard deviation
    pub rstd: AccsMut<'a, B>,
    /// [H]
    pub gamma: Accs<'a, B>,
    /// [H]
    pub beta: Accs<'a, B>,
    /// Added to the variance.
    pub eps: f64,
    /// Dropout of x.
    pub dropout: Dropout<'a, B>,
}

/// Gradients of [`LayerNormForward`], and of the bias of the linear layer that made x.
pub struct LayerNormBackward<'a, B: Backend> {
    /// out [R, H]: gradient of z, which is the residual's
    pub dz: ElemsMut<'a, B>,
    /// out [R, H]: gradient of x (dz times the dropout mask)
    pub dx: ElemsMut<'a, B>,
    /// [R, H]
    pub dy: Elems<'a, B>,
    /// [R, H]
    pub z: Elems<'a, B>,
    /// [R]
    pub mean: Accs<'a, B>,
    /// [R]
    pub rstd: Accs<'a, B>,
    /// [H]
    pub gamma: Accs<'a, B>,
    /// All gradients of parameters; the ranges below are added to.
    pub grads: AccsMut<'a, B>,
    /// [H]
    pub dgamma: Range<usize>,
    /// [H]
    pub dbeta: Range<usize>,
    /// [H]: column sums of dx, or none
    pub dbias: Option<Range<usize>>,
    /// The forward's.
    pub dropout: Dropout<'a, B>,
}

/// Sizes of a linear layer: `y[rows, out] = x[rows, inputs] w[out, inputs]^T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearSize {
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
}

/// `y = x w^T + bias`.
pub struct LinearForward<'a, B: Backend> {
    /// out [rows, outputs]
    pub y: ElemsMut<'a, B>,
    /// [rows, inputs]
    pub x: Elems<'a, B>,
    /// [outputs, inputs]
    pub w: Elems<'a, B>,
    /// [outputs]
    pub bias: Option<Elems<'a, B>>,
    /// Sizes.
    pub size: LinearSize,
}

/// `inner = x w^T + bias; y = gelu(inner)`: a linear layer and the GELU of what it makes.
pub struct LinearGeluForward<'a, B: Backend> {
    /// out [rows, outputs]
    pub y: ElemsMut<'a, B>,
    /// out [rows, outputs]: kept for backward
    pub inner: ElemsMut<'a, B>,
    /// [rows, inputs]
    pub x: Elems<'a, B>,
    /// [outputs, inputs]
    pub w: Elems<'a, B>,
    /// [outputs]
    pub bias: Elems<'a, B>,
    /// Which form.
    pub kind: Gelu,
    /// Sizes.
    pub size: LinearSize,
}

/// `dinner = (dy w) gelu'(inner)`: dgrad of a linear layer whose input is `gelu(inner)`, and through that GELU; with the bias
/// gradient of the linear layer that made `inner`.
pub struct LinearGeluDgrad<'a, B: Backend> {
    /// out [rows, inputs]
    pub dinner: ElemsMut<'a, B>,
    /// [rows, outputs]
    pub dy: Elems<'a, B>,
    /// [outputs, inputs]
    pub w: Elems<'a, B>,
    /// [rows, inputs]
    pub inner: Elems<'a, B>,
    /// Which form.
    pub kind: Gelu,
    /// All gradients of parameters.
    pub grads: AccsMut<'a, B>,
    /// [inputs]: column sums of dinner are added
    pub dbias: Range<usize>,
    /// Sizes of the layer that dgrad is of.
    pub size: LinearSize,
}

/// `dx = dy w`, or `dx += dy w`.
pub struct LinearDgrad<'a, B: Backend> {
    /// out [rows, inputs]; added to if `accumulate`
    pub dx: ElemsMut<'a, B>,
    /// [rows, outputs]
    pub dy: Elems<'a, B>,
    /// [outputs, inputs]
    pub w: Elems<'a, B>,
    /// Add to dx instead of overwriting it.
    pub accumulate: bool,
    /// Sizes.
    pub size: LinearSize,
}

/// `dw += dy^T x`.
pub struct LinearWgrad<'a, B: Backend> {
    /// All gradients of parameters.
    pub grads: AccsMut<'a, B>,
    /// [outputs, inputs], added to
    pub dw: Range<usize>,
    /// [rows, outputs]
    pub dy: Elems<'a, B>,
    /// [rows, inputs]
    pub x: Elems<'a, B>,
    /// Sizes.
    pub size: LinearSize,
}

/// `db += column sums of dy`.
pub struct BiasGrad<'a, B: Backend> {
    /// All gradients of parameters.
    pub grads: AccsMut<'a, B>,
    /// [cols], added to
    pub dbias: Range<usize>,
    /// [rows, cols]
    pub dy: Elems<'a, B>,
    /// Sizes.
    pub size: Size2,
}

/// `y = gelu(x)`.
pub struct GeluForward<'a, B: Backend> {
    /// out [any]
    pub y: ElemsMut<'a, B>,
    /// [any]: kept for backward
    pub x: Elems<'a, B>,
    /// Which form.
    pub kind: Gelu,
}

/// `dx = dy gelu'(x)` in place, and the bias gradient of the linear layer that made x.
pub struct GeluBackward<'a, B: Backend> {
    /// in: gradient of y [rows, cols]; out: gradient of x
    pub dy: ElemsMut<'a, B>,
    /// [rows, cols]
    pub x: Elems<'a, B>,
    /// Which form.
    pub kind: Gelu,
    /// All gradients of parameters.
    pub grads: AccsMut<'a, B>,
    /// [cols]: column sums of dx are added
    pub dbias: Range<usize>,
    /// Sizes.
    pub size: Size2,
}

/// Queries, keys and values, head after head within a row.
pub enum Qkv<'a, B: Backend> {
    /// [T, 3H]: a row is q, k, v.
    Packed(Elems<'a, B>),
    /// The last layer's subset: queries of R chosen rows, keys and values of all T.
    Split {
        /// [R, H]
        q: Elems<'a, B>,
        /// [T, 2H]: a row is k, v
        kv: Elems<'a, B>,
    },
}

/// Gradient of [`Qkv`], in the same layout.
pub enum QkvGrad<'a, B: Backend> {
    /// out [T, 3H]
    Packed(ElemsMut<'a, B>),
    /// As [`Qkv::Split`].
    Split {
        /// out [R, H]
        dq: ElemsMut<'a, B>,
        /// out [T, 2H]
        dkv: ElemsMut<'a, B>,
    },
}

/// Sizes of an attention over packed sequences: sequence b has queries `cu_q[b]..cu_q[b + 1]` and keys
/// `cu_k[b]..cu_k[b + 1]`; every query attends to every key of its own sequence and to nothing else.
pub struct AttentionSize<'a, B: Backend> {
    /// [B + 1] offsets of the query rows, from 0 to R
    pub cu_q: Indices<'a, B>,
    /// [B + 1] offsets of the key rows, from 0 to T
    pub cu_k: Indices<'a, B>,
    /// R
    pub queries: usize,
    /// T
    pub keys: usize,
    /// The longest sequence's keys.
    pub max_keys: usize,
    /// Number of heads.
    pub heads: usize,
    /// Elements of one head; H = heads * head_size. The scores are scaled by `1 / sqrt(head_size)`.
    pub head_size: usize,
}

/// `out = dropout(softmax(q k^T / sqrt(head_size))) v`.
pub struct AttentionForward<'a, B: Backend> {
    /// out [R, H]
    pub out: ElemsMut<'a, B>,
    /// out [heads, R]: log-sum-exp of the scaled scores, all that backward needs
    pub lse: AccsMut<'a, B>,
    /// Inputs.
    pub qkv: Qkv<'a, B>,
    /// Sizes.
    pub size: AttentionSize<'a, B>,
    /// Dropout of the weights; `row_keys` [R] are the queries'.
    pub dropout: Dropout<'a, B>,
}

/// Gradients of [`AttentionForward`].
pub struct AttentionBackward<'a, B: Backend> {
    /// Out.
    pub dqkv: QkvGrad<'a, B>,
    /// [R, H]
    pub dout: Elems<'a, B>,
    /// Inputs.
    pub qkv: Qkv<'a, B>,
    /// [R, H]
    pub out: Elems<'a, B>,
    /// [heads, R]
    pub lse: Accs<'a, B>,
    /// Sizes.
    pub size: AttentionSize<'a, B>,
    /// The forward's.
    pub dropout: Dropout<'a, B>,
}

/// `y[i] = x[rows[i]]`.
pub struct GatherRows<'a, B: Backend> {
    /// out [R, cols]
    pub y: ElemsMut<'a, B>,
    /// [T, cols]
    pub x: Elems<'a, B>,
    /// [R], each below T
    pub rows: Indices<'a, B>,
    /// Elements of a row.
    pub cols: usize,
}

/// `x[rows[i]] += y[i]`, the gather's backward.
pub struct ScatterAddRows<'a, B: Backend> {
    /// in and out [T, cols]
    pub x: ElemsMut<'a, B>,
    /// [R, cols]
    pub y: Elems<'a, B>,
    /// [R], each below T, no two equal
    pub rows: Indices<'a, B>,
    /// Elements of a row.
    pub cols: usize,
}

/// Softmax, cross-entropy and its gradient, in place.
pub struct CrossEntropy<'a, B: Backend> {
    /// in: logits [rows, stride]; out: `(softmax - onehot) * scale`, 0 from column `classes` on. Left alone without
    /// `scale`.
    pub logits: ElemsMut<'a, B>,
    /// [rows], each below `classes`
    pub labels: Indices<'a, B>,
    /// Columns that take part.
    pub classes: usize,
    /// Elements of a row in memory.
    pub stride: usize,
    /// Gradient of the whole loss by one row's (1 / rows of the global batch); `None` evaluates only.
    pub scale: Option<f64>,
    /// \[2\], added to: sum of the rows' losses (natural logarithm), number of rows whose largest logit is the
    /// label (the first of equal ones counts as the largest)
    pub sums: AccsMut<'a, B>,
}

/// `y = tanh(y)` in place.
pub struct TanhForward<'a, B: Backend> {
    /// in and out [any]
    pub y: ElemsMut<'a, B>,
}

/// `dx = dy (1 - y^2)` in place.
pub struct TanhBackward<'a, B: Backend> {
    /// in: gradient of y; out: gradient of x
    pub dy: ElemsMut<'a, B>,
    /// The forward's output.
    pub y: Elems<'a, B>,
}

/// One parameter tensor as the optimizers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpan {
    /// Where it lies in the flat table.
    pub range: Range<usize>,
    /// Whether weight decay applies (and, in LAMB, the trust ratio).
    pub decay: bool,
}

/// Elements of one partial sum over the flat table. Stretches begin at its multiples, wherever tensors and shards begin, so
/// that sums do not depend on how the table is divided among ranks.
pub const STRETCH: usize = 1 << 14;

/// The stretches that a range of the flat table touches.
pub fn stretches(range: &Range<usize>) -> Range<usize> {
    let start = range.start / STRETCH;
    start..if range.is_empty() { start } else { range.end.div_ceil(STRETCH) }
}

/// Number of sums that LAMB takes: two for each stretch of each tensor.
pub fn lamb_sums(tensors: &[TensorSpan]) -> usize {
    tensors.iter().map(|t| 2 * stretches(&t.range).len()).sum()
}

/// What both optimizers take for one step. Where the norm is not finite nothing is changed.
pub struct OptimizerStep<'a, B: Backend> {
    /// Updated.
    pub weights: &'a mut B::Weights,
    /// All gradients of parameters, unclipped; only those of the shard are read.
    pub grads: Accs<'a, B>,
    /// First moments of the shard, updated.
    pub m: AccsMut<'a, B>,
    /// Second moments of the shard, updated.
    pub v: AccsMut<'a, B>,
    /// \[1\]: global norm of all gradients
    pub norm: Accs<'a, B>,
    /// \[1\]: number of updates applied before this one, for the bias corrections. [`Backend::adamw`] and
    /// [`Backend::lamb_apply`] add one, unless the norm is not finite.
    pub updates: B::Mut<'a, u32>,
    /// The part of the table to update. It begins at a multiple of [`STRETCH`] and ends at one or at the table's end.
    pub shard: Range<usize>,
    /// The tensors; elements between them are left alone.
    pub tensors: &'a [TensorSpan],
    /// Hyperparameters of this step.
    pub hyper: OptimizerHyper,
}

/// Hyperparameters of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerHyper {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled by `min(1, max_norm / (norm + clip_eps))`; infinite for no clipping.
    pub max_norm: f64,
    /// 1e-6 in `torch.nn.utils.clip_grad_norm_`, 0 in the MLPerf reference.
    pub clip_eps: f64,
}

/// A device's memory and its ops.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Whether the device is the host itself: its memory is the host's, and ops are done when they return. Elsewhere they
    /// are queued.
    const HOST: bool;
    /// Weights, activations and activation gradients.
    type Elem: bytemuck::Pod + Send + Sync;
    /// Statistics, losses, gradients of parameters, moments and master weights.
    type Acc: Scalar;
    /// Owned memory of the device.
    type Mem<T: bytemuck::Pod + Send + Sync>: Send + Sync;
    /// A borrowed part of it.
    type Ref<'a, T: 'a + Send + Sync>: Copy + Send + Sync;
    /// A mutably borrowed part of it.
    type Mut<'a, T: 'a + Send + Sync>: Send;
    /// A point in the order of the ops.
    type Mark: Send + Sync;
    /// Numbers on their way to the host.
    type Pending: Send;
    /// All parameters: master weights in `Acc` and, where `Elem` is narrower, the rounded copy that products read.
    type Weights: Send + Sync;

    /// One line that names the device, for logs.
    fn describe(&self) -> String;
    /// What a user should know of how this device trains a model with heads of `head_size` elements, each once.
    fn remarks(&self, head_size: usize) -> Vec<String>;
    /// Bytes of memory that this process may take on the device, used or not; none if it cannot be told.
    fn memory(&self) -> Option<u64>;

    /// Zeroed elements. `what` names the buffer in the error.
    fn elems(&self, what: &'static str, len: usize) -> Result<Self::Mem<Self::Elem>>;
    /// Zeroed memory of any plain type. `what` names the buffer in the error.
    fn zeros<T: bytemuck::Pod + Send + Sync>(&self, what: &'static str, len: usize) -> Result<Self::Mem<T>>;
    /// Number of elements.
    fn len<T: bytemuck::Pod + Send + Sync>(mem: &Self::Mem<T>) -> usize;
    /// Borrows a range.
    fn at<T: bytemuck::Pod + Send + Sync>(mem: &Self::Mem<T>, range: Range<usize>) -> Self::Ref<'_, T>;
    /// Mutably borrows a range.
    fn at_mut<T: bytemuck::Pod + Send + Sync>(
        mem: &mut Self::Mem<T>,
        range: Range<usize>,
    ) -> Self::Mut<'_, T>;
    /// The same borrow for a shorter time (associated types are invariant, so the compiler cannot do it alone).
    fn shorten<'short, 'long: 'short, T: 'long + Send + Sync>(r: Self::Ref<'long, T>)
    -> Self::Ref<'short, T>;
    /// Copies from the host; the lengths must agree.
    fn upload<T: bytemuck::Pod + Send + Sync>(&self, dst: Self::Mut<'_, T>, src: &[T]) -> Result<()>;
    /// Copies to the host; the lengths must agree. Waits for the device.
    fn download<T: bytemuck::Pod + Send + Sync>(&self, src: Self::Ref<'_, T>, dst: &mut [T]) -> Result<()>;
    /// Copies elements to the host, widened. Waits for the device.
    fn download_elems(&self, src: Elems<'_, Self>, dst: &mut [f64]) -> Result<()>;
    /// The point after all ops queued so far.
    fn mark(&self) -> Result<Self::Mark>;
    /// Ops queued from here on run after `mark`.
    fn wait(&self, mark: &Self::Mark) -> Result<()>;
    /// Copies from the host beside the ops: begins once the device has passed `after`. Who reads `dst` first waits for the
    /// mark that is returned. `src` may be changed at once; the lengths must agree.
    fn upload_beside(&self, dst: Self::Mut<'_, u32>, src: &[u32], after: &Self::Mark) -> Result<Self::Mark>;
    /// Begins to copy numbers to the host, as they are after the ops queued so far.
    fn read_later(&self, parts: &[Accs<'_, Self>]) -> Result<Self::Pending>;
    /// The numbers of [`Self::read_later`], one part after the other. Waits for the ops queued before that, and for no other.
    fn read(&self, pending: Self::Pending) -> Result<Vec<Self::Acc>>;
    /// Until [`Self::end_step`] nothing waits for the device, so that it may take the ops between as one.
    fn begin_step(&self) -> Result<()>;
    /// See [`Self::begin_step`].
    fn end_step(&self) -> Result<()>;
    /// Sets to zero.
    fn clear<T: bytemuck::Pod + Send + Sync>(&self, dst: Self::Mut<'_, T>) -> Result<()>;

    /// Parameters, all zero.
    fn weights(&self, len: usize) -> Result<Self::Weights>;
    /// The copy that products, embeddings and biases read.
    fn weight(weights: &Self::Weights, range: Range<usize>) -> Self::Ref<'_, Self::Elem>;
    /// The master copy, which layernorms and optimizers read.
    fn master(weights: &Self::Weights, range: Range<usize>) -> Self::Ref<'_, Self::Acc>;
    /// Sets parameters from the host, both copies.
    fn upload_weights(&self, weights: &mut Self::Weights, at: usize, src: &[Self::Acc]) -> Result<()>;

    /// See [`EmbeddingForward`].
    fn embedding_forward(&self, args: EmbeddingForward<'_, Self>) -> Result<()>;
    /// See [`EmbeddingBackward`].
    fn embedding_backward(&self, args: EmbeddingBackward<'_, Self>) -> Result<()>;
    /// See [`LayerNormForward`].
    fn layernorm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()>;
    /// See [`LayerNormBackward`].
    fn layernorm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()>;
    /// See [`LinearForward`].
    fn linear_forward(&self, args: LinearForward<'_, Self>) -> Result<()>;
    /// See [`LinearGeluForward`].
    fn linear_gelu_forward(&self, args: LinearGeluForward<'_, Self>) -> Result<()>;
    /// See [`LinearGeluDgrad`].
    fn linear_gelu_dgrad(&self, args: LinearGeluDgrad<'_, Self>) -> Result<()>;
    /// See [`LinearDgrad`].
    fn linear_dgrad(&self, args: LinearDgrad<'_, Self>) -> Result<()>;
    /// See [`LinearWgrad`].
    fn linear_wgrad(&self, args: LinearWgrad<'_, Self>) -> Result<()>;
    /// See [`BiasGrad`].
    fn bias_grad(&self, args: BiasGrad<'_, Self>) -> Result<()>;
    /// See [`GeluForward`].
    fn gelu_forward(&self, args: GeluForward<'_, Self>) -> Result<()>;
    /// See [`GeluBackward`].
    fn gelu_backward(&self, args: GeluBackward<'_, Self>) -> Result<()>;
    /// See [`AttentionForward`].
    fn attention_forward(&self, args: AttentionForward<'_, Self>) -> Result<()>;
    /// See [`AttentionBackward`].
    fn attention_backward(&self, args: AttentionBackward<'_, Self>) -> Result<()>;
    /// See [`GatherRows`].
    fn gather_rows(&self, args: GatherRows<'_, Self>) -> Result<()>;
    /// See [`ScatterAddRows`].
    fn scatter_add_rows(&self, args: ScatterAddRows<'_, Self>) -> Result<()>;
    /// See [`CrossEntropy`].
    fn cross_entropy(&self, args: CrossEntropy<'_, Self>) -> Result<()>;
    /// See [`TanhForward`].
    fn tanh_forward(&self, args: TanhForward<'_, Self>) -> Result<()>;
    /// See [`TanhBackward`].
    fn tanh_backward(&self, args: TanhBackward<'_, Self>) -> Result<()>;

    /// Sums of squares: `sums[i]` is that of elements `i * STRETCH` to `(i + 1) * STRETCH` of `x`.
    fn square_sums(&self, sums: Self::Mut<'_, f64>, x: Accs<'_, Self>) -> Result<()>;
    /// `norm` \[1\] = square root of the sum of `sums`, added in order.
    fn root_of_sum(&self, norm: AccsMut<'_, Self>, sums: Self::Ref<'_, f64>) -> Result<()>;
    /// `place` \[2\] = where the first element of `x` is that is not finite: the number of its [`STRETCH`], and its number in
    /// there; twice -1 if there is none. `x` is read only where `norm` \[1\], of `x` or of a sum that it is part of, is not
    /// finite.
    fn find_nonfinite(&self, place: AccsMut<'_, Self>, x: Accs<'_, Self>, norm: Accs<'_, Self>)
    -> Result<()>;
    /// `x *= min(1, max_norm / norm)` with `norm` \[1\]; nothing where the norm is not finite.
    fn clip(&self, x: AccsMut<'_, Self>, norm: Accs<'_, Self>, max_norm: f64) -> Result<()>;
    /// One step of AdamW (Loshchilov and Hutter, 2019): `w -= lr wd w`, then `w -= lr mh / (sqrt(vh) + eps)`.
    fn adamw(&self, args: OptimizerStep<'_, Self>) -> Result<()>;
    /// The first half of a step of LAMB (You et al., 2020) as MLPerf defines it: updates the moments and writes the sums of
    /// squares of `w` and of `u = mh / (sqrt(vh) + eps) + wd w`, a pair for each stretch of each tensor in the shard;
    /// `sums` \[[`lamb_sums`]\] has places for all tensors, and those of other shards are left alone.
    fn lamb_moments(&self, args: OptimizerStep<'_, Self>, sums: Self::Mut<'_, f64>) -> Result<()>;
    /// The second half: `w -= lr (|w| / |u|) u` with the norms of whole tensors from `sums`, the ratio 1 where either norm
    /// is 0; tensors without decay take neither decay nor ratio.
    fn lamb_apply(&self, args: OptimizerStep<'_, Self>, sums: Self::Ref<'_, f64>) -> Result<()>;
}
