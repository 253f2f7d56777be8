//! What each op must move and compute: the bytes that the files of `cu/` count, and the operations of products. `launcher bench
//! --profile` and `cargo bench --bench gpu_ops` compare times with it.

use super::profile::Work;
use super::{Cuda, Element};
use crate::backend::*;

/// Bytes of a float, of an index.
const FLOAT: usize = 4;

fn bytes(op: &str, bytes: usize) -> (String, Work) {
    (op.to_owned(), Work { bytes: bytes as u64, flops: 0 })
}

/// `n` elements.
fn elems<E>(n: usize) -> usize {
    n * size_of::<E>()
}

/// Keys of the rows, where there is dropout.
fn keys<E: Element>(dropout: &Dropout<'_, Cuda<E>>, rows: usize) -> usize {
    if dropout.rate.is_none() { 0 } else { FLOAT * rows }
}

/// Rows of the word table, the sum, the result; tables of positions and types stay in cache.
pub(super) fn embedding_forward<E: Element>(a: &EmbeddingForward<'_, Cuda<E>>) -> (String, Work) {
    let (rows, h) = (a.tokens.len(), a.gamma.len());
    let numbers = 5 * FLOAT * rows + keys(&a.dropout, rows) + 2 * FLOAT * h;
    bytes("embedding_forward", elems::<E>(3 * rows * h) + numbers)
}

/// dy, z and dz once, dz three times more for the three tables, and the rows of the tables that occur.
pub(super) fn embedding_backward<E: Element>(a: &EmbeddingBackward<'_, Cuda<E>>) -> (String, Work) {
    let (rows, h) = (a.types.len(), a.gamma.len());
    let added = a.by_token.ids.len() + a.by_position.ids.len() + a.dkind.len() / h.max(1) + 2;
    let numbers = 5 * FLOAT * rows + keys(&a.dropout, rows) + FLOAT * h;
    bytes("embedding_backward", elems::<E>(6 * rows * h) + 2 * FLOAT * added * h + numbers)
}

pub(super) fn layernorm_forward<E: Element>(a: &LayerNormForward<'_, Cuda<E>>) -> (String, Work) {
    let (rows, h) = (a.mean.len(), a.gamma.len());
    let arrays = if a.residual.is_some() { 4 } else { 3 };
    let numbers = 2 * FLOAT * rows + keys(&a.dropout, rows) + 2 * FLOAT * h;
    bytes("layernorm_forward", elems::<E>(arrays * rows * h) + numbers)
}

pub(super) fn layernorm_backward<E: Element>(a: &LayerNormBackward<'_, Cuda<E>>) -> (String, Work) {
    let (rows, h) = (a.mean.len(), a.gamma.len());
    let sums = if a.dbias.is_some() { 3 } else { 2 };
    let numbers = 2 * FLOAT * rows + keys(&a.dropout, rows) + (1 + 2 * sums) * FLOAT * h;
    bytes("layernorm_backward", elems::<E>(4 * rows * h) + numbers)
}

/// The shape stands in the name: products are as different as their shapes.
fn product(op: &str, size: LinearSize, moved: usize) -> (String, Work) {
    let LinearSize { rows, inputs, outputs } = size;
    let name = format!("{op} {rows} x {inputs} -> {outputs}");
    (name, Work { bytes: moved as u64, flops: (2 * rows * inputs * outputs) as u64 })
}

pub(super) fn linear_forward<E: Element>(a: &LinearForward<'_, Cuda<E>>) -> (String, Work) {
    let LinearSize { rows, inputs, outputs } = a.size;
    let bias = if a.bias.is_some() { outputs } else { 0 };
    let moved = rows * inputs + inputs * outputs + rows * outputs + bias;
    product("linear_forward", a.size, elems::<E>(moved))
}

/// Fused or not, what the fused kernel moves: GELU's input is written beside the result.
pub(super) fn linear_gelu_forward<E: Element>(a: &LinearGeluForward<'_, Cuda<E>>) -> (String, Work) {
    let LinearSize { rows, inputs, outputs } = a.size;
    let moved = rows * inputs + inputs * outputs + 2 * rows * outputs + outputs;
    product("linear_gelu_forward", a.size, elems::<E>(moved))
}

/// The same: GELU's input is read.
pub(super) fn linear_gelu_dgrad<E: Element>(a: &LinearGeluDgrad<'_, Cuda<E>>) -> (String, Work) {
    let LinearSize { rows, inputs, outputs } = a.size;
    let moved = rows * outputs + inputs * outputs + 2 * rows * inputs;
    product("linear_gelu_dgrad", a.size, elems::<E>(moved) + 2 * FLOAT * inputs)
}

pub(super) fn linear_dgrad<E: Element>(a: &LinearDgrad<'_, Cuda<E>>) -> (String, Work) {
    let LinearSize { rows, inputs, outputs } = a.size;
    let dx = if a.accumulate { 2 } else { 1 } * rows * inputs;
    product("linear_dgrad", a.size, elems::<E>(dx + inputs * outputs + rows * outputs))
}

pub(super) fn linear_wgrad<E: Element>(a: &LinearWgrad<'_, Cuda<E>>) -> (String, Work) {
    let LinearSize { rows, inputs, outputs } = a.size;
    let moved = elems::<E>(rows * (inputs + outputs)) + 2 * FLOAT * inputs * outputs;
    product("linear_wgrad", a.size, moved)
}

pub(super) fn bias_grad<E: Element>(a: &BiasGrad<'_, Cuda<E>>) -> (String, Work) {
    let Size2 { rows, cols } = a.size;
    bytes("bias_grad", elems::<E>(rows * cols) + 2 * FLOAT * cols)
}

pub(super) fn gelu_forward<E: Element>(a: &GeluForward<'_, Cuda<E>>) -> (String, Work) {
    bytes("gelu_forward", elems::<E>(2 * a.x.len()))
}

pub(super) fn gelu_backward<E: Element>(a: &GeluBackward<'_, Cuda<E>>) -> (String, Work) {
    let Size2 { rows, cols } = a.size;
    bytes("gelu_backward", elems::<E>(3 * rows * cols) + 2 * FLOAT * cols)
}

/// Queries, keys, values and the result. How many products of rows there are, the lengths say, which are on the device.
pub(super) fn attention_forward<E: Element>(a: &AttentionForward<'_, Cuda<E>>) -> (String, Work) {
    let (qkv, out) = attention_elems(&a.size);
    bytes("attention_forward", elems::<E>(qkv + out) + FLOAT * a.lse.len())
}

/// Queries, keys, values, the result and its gradient are read, three gradients written.
pub(super) fn attention_backward<E: Element>(a: &AttentionBackward<'_, Cuda<E>>) -> (String, Work) {
    let (qkv, out) = attention_elems(&a.size);
    bytes("attention_backward", elems::<E>(2 * qkv + 2 * out) + FLOAT * a.lse.len())
}

fn attention_elems<B: Backend>(size: &AttentionSize<'_, B>) -> (usize, usize) {
    let hidden = size.heads * size.head_size;
    ((size.queries + 2 * size.keys) * hidden, size.queries * hidden)
}

pub(super) fn gather_rows<E: Element>(a: &GatherRows<'_, Cuda<E>>) -> (String, Work) {
    let rows = a.rows.len();
    bytes("gather_rows", elems::<E>(2 * rows * a.cols) + FLOAT * rows)
}

pub(super) fn scatter_add_rows<E: Element>(a: &ScatterAddRows<'_, Cuda<E>>) -> (String, Work) {
    let rows = a.rows.len();
    bytes("scatter_add_rows", elems::<E>(3 * rows * a.cols) + FLOAT * rows)
}

pub(super) fn cross_entropy<E: Element>(a: &CrossEntropy<'_, Cuda<E>>) -> (String, Work) {
    let passes = if a.scale.is_some() { 2 } else { 1 };
    bytes("cross_entropy", elems::<E>(passes * a.logits.len()) + FLOAT * a.labels.len())
}

pub(super) fn tanh_forward<E: Element>(a: &TanhForward<'_, Cuda<E>>) -> (String, Work) {
    bytes("tanh_forward", elems::<E>(2 * a.y.len()))
}

pub(super) fn tanh_backward<E: Element>(a: &TanhBackward<'_, Cuda<E>>) -> (String, Work) {
    bytes("tanh_backward", elems::<E>(3 * a.y.len()))
}

/// `passes` over `n` floats, each of reading or of writing.
pub(super) fn floats(op: &str, passes: usize, n: usize) -> (String, Work) {
    bytes(op, FLOAT * passes * n)
}

pub(super) fn copy(n: usize) -> (String, Work) {
    bytes("copy", 2 * n)
}

pub(super) fn clear(n: usize) -> (String, Work) {
    bytes("clear", n)
}

/// Of an optimizer's op that moves `floats` arrays and, with `rounded`, the copy that products read: as many bytes a parameter
/// as cu/optim.cu says.
pub(super) fn optimizer<E: Element>(
    op: &str,
    a: &OptimizerStep<'_, Cuda<E>>,
    floats: usize,
    rounded: bool,
) -> (String, Work) {
    let own = |t: &TensorSpan| t.range.end.min(a.shard.end).saturating_sub(t.range.start.max(a.shard.start));
    let n: usize = a.tensors.iter().map(own).sum();
    let copy = if rounded && a.weights.rounded.is_some() { size_of::<E>() } else { 0 };
    bytes(op, (FLOAT * floats + copy) * n)
}
