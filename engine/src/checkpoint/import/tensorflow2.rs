//! Names of TensorFlow 2's checkpoints of objects, in which the official BERT's encoder (tensorflow/models,
//! `official/nlp/bert`) numbers its layers:
//!
//! | object | what |
//! | --- | --- |
//! | layer_with_weights-0, -1, -2 | word, position and type embeddings |
//! | layer_with_weights-3 | their layernorm |
//! | layer_with_weights-4 on | the transformer's layers, attention's kernels `[H, heads, size]` and `[heads, size, H]` |
//! | the last | the pooler |
//!
//! The table is that of Hugging Face's `convert_bert_original_tf2_checkpoint_to_pytorch.py`. Heads have no numbers of their
//! own there: they start anew.

/// What every variable's key ends with.
const SUFFIX: &str = "/.ATTRIBUTES/VARIABLE_VALUE";
/// The encoder within what was saved.
const ROOTS: [&str; 2] = ["model/", "encoder/"];
const LAYER: &str = "layer_with_weights-";
/// The first three objects.
const TABLES: [&str; 3] = ["word_embeddings", "position_embeddings", "token_type_embeddings"];
/// Objects before the transformer's layers.
const EMBEDDINGS: usize = 4;

/// The parts of a layer, in the object's names and in Hugging Face's.
const PARTS: [(&str, &str); 8] = [
    ("_attention_layer/_query_dense", "attention.self.query"),
    ("_attention_layer/_key_dense", "attention.self.key"),
    ("_attention_layer/_value_dense", "attention.self.value"),
    ("_attention_output_dense", "attention.output.dense"),
    ("_attention_layer_norm", "attention.output.LayerNorm"),
    ("_intermediate_dense", "intermediate.dense"),
    ("_output_dense", "output.dense"),
    ("_output_layer_norm", "output.LayerNorm"),
];

/// Whether a key is a variable of TensorFlow 2.
pub(super) fn is_one(key: &str) -> bool {
    key.ends_with(SUFFIX)
}

/// Whether a key is an optimizer's or a training loop's, or the description of the objects.
pub(super) fn is_state(key: &str) -> bool {
    let root = key.split('/').next().unwrap_or_default();
    let states = ["_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter", "global_step", "optimizer"];
    states.contains(&root) || key.contains("/.OPTIMIZER_SLOT/")
}

/// Layer and what is below it.
fn layer(key: &str) -> Option<(usize, &str)> {
    let name = key.strip_suffix(SUFFIX)?;
    let name = ROOTS.iter().find_map(|root| name.strip_prefix(root)).unwrap_or(name);
    let (number, rest) = name.strip_prefix(LAYER)?.split_once('/')?;
    Some((number.parse().ok()?, rest))
}

/// The parameter of a key, and whether its matrix is `[in, out]`.
pub(super) fn parameter(key: &str) -> Option<(String, bool)> {
    let (number, rest) = layer(key)?;
    let table = TABLES.get(number);
    let name = match (number, rest, table) {
        (_, "embeddings", Some(table)) => format!("bert.embeddings.{table}.weight"),
        (3, "gamma", _) => "bert.embeddings.LayerNorm.weight".to_owned(),
        (3, "beta", _) => "bert.embeddings.LayerNorm.bias".to_owned(),
        (EMBEDDINGS.., "kernel", _) => return Some(("bert.pooler.dense.weight".to_owned(), true)),
        (EMBEDDINGS.., "bias", _) => "bert.pooler.dense.bias".to_owned(),
        (EMBEDDINGS.., _, _) => {
            let (part, last) = rest.rsplit_once('/')?;
            let (_, part) = PARTS.iter().find(|(theirs, _)| *theirs == part)?;
            let last = match (last, part.ends_with("LayerNorm")) {
                ("kernel", false) | ("gamma", true) => "weight",
                ("bias", false) | ("beta", true) => "bias",
                _ => return None,
            };
            let name = format!("bert.encoder.layer.{}.{part}.{last}", number - EMBEDDINGS);
            return Some((name, last == "weight" && !part.ends_with("LayerNorm")));
        }
        _ => return None,
    };
    Some((name, false))
}

/// Attention's kernels and biases with the heads joined, as every other BERT has them; the number of heads where the shape
/// tells it.
pub(super) fn joined(key: &str, shape: Vec<usize>) -> (Vec<usize>, Option<usize>) {
    let Some((_, rest)) = layer(key) else { return (shape, None) };
    let inner = rest.starts_with("_attention_layer/");
    match *shape.as_slice() {
        [hidden, heads, size] if inner && rest.ends_with("/kernel") => {
            (vec![hidden, heads.saturating_mul(size)], Some(heads))
        }
        [heads, size] if inner && rest.ends_with("/bias") => (vec![heads.saturating_mul(size)], Some(heads)),
        [heads, size, hidden] if rest == "_attention_output_dense/kernel" => {
            (vec![heads.saturating_mul(size), hidden], Some(heads))
        }
        _ => (shape, None),
    }
}
