//! What a foreign tensor's name says about its place in the model.

use super::tensorflow2;
use crate::checkpoint::hf::canonical;
use crate::config::{ModelConfig, Preset};
use crate::table::TensorTable;
use std::collections::HashSet;
use std::sync::LazyLock;

pub(super) const WORD: &str = "bert.embeddings.word_embeddings.weight";
pub(super) const MLM_BIAS: &str = "cls.predictions.bias";
const LAYER: &str = "bert.encoder.layer.";
/// Numbers that optimizers and training loops of TensorFlow keep beside the weights.
const COUNTERS: [&str; 3] = ["global_step", "beta1_power", "beta2_power"];

/// What a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A parameter under Hugging Face's name; TensorFlow's kernels are `[in, out]` and transposed.
    Parameter {
        /// Hugging Face's name.
        name: String,
        /// Whether rows and columns change places.
        transposed: bool,
    },
    /// A copy of the parameter of that name, to which it is tied.
    Tied(&'static str),
    /// An optimizer's moments and counters, or a constant of the model: nothing that a model's weights need.
    State,
    /// Part of an encoder that BERT does not have.
    Foreign,
    /// Anything else, a classifier for example.
    Unknown,
}

/// The number of the layer that a parameter belongs to.
pub(super) fn layer(name: &str) -> Option<usize> {
    name.strip_prefix(LAYER)?.split('.').next()?.parse().ok()
}

/// Whether a model of enough layers has that parameter.
fn is_parameter(name: &str) -> bool {
    static NAMES: LazyLock<HashSet<String>> = LazyLock::new(|| {
        let one_layer = ModelConfig { layers: 1, vocab_size: 1, ..Preset::Tiny.model() };
        TensorTable::new(&one_layer).tensors.into_iter().map(|t| t.name).collect()
    });
    let Some((number, rest)) = name.strip_prefix(LAYER).and_then(|rest| rest.split_once('.')) else {
        return NAMES.contains(name);
    };
    // 07 and +7 are no layer numbers
    let canonical = number.parse::<u32>().is_ok_and(|n| n.to_string() == number);
    canonical && NAMES.contains(&format!("{LAYER}0.{rest}"))
}

/// For the names of Google's BERT in TensorFlow 1, and of its encoder in TensorFlow 2.
pub(super) fn tensorflow(name: &str) -> Role {
    if tensorflow2::is_state(name) {
        return Role::State;
    }
    if let Some((name, transposed)) = tensorflow2::parameter(name).filter(|(name, _)| is_parameter(name)) {
        return Role::Parameter { name, transposed };
    }
    if let Some((name, transposed)) = tensorflow_parameter(name) {
        return Role::Parameter { name, transposed };
    }
    let below_parameter = name.rsplit_once('/').is_some_and(|(of, _)| tensorflow_parameter(of).is_some());
    if below_parameter || COUNTERS.contains(&name) {
        Role::State
    } else if name.starts_with("bert/encoder/") || name.starts_with("bert/embeddings/") {
        Role::Foreign
    } else {
        Role::Unknown
    }
}

fn tensorflow_parameter(name: &str) -> Option<(String, bool)> {
    match name {
        "cls/predictions/output_bias" => return Some((MLM_BIAS.to_owned(), false)),
        "cls/seq_relationship/output_weights" => {
            return Some(("cls.seq_relationship.weight".to_owned(), false));
        }
        "cls/seq_relationship/output_bias" => return Some(("cls.seq_relationship.bias".to_owned(), false)),
        _ => {}
    }
    let (stem, last) = name.rsplit_once('/')?;
    let norm = stem.ends_with("/LayerNorm");
    let stem = stem.replace('/', ".").replacen("bert.encoder.layer_", LAYER, 1);
    let (full, transposed) = match last {
        "kernel" if !norm => (format!("{stem}.weight"), true),
        "bias" if !norm => (format!("{stem}.bias"), false),
        "gamma" if norm => (format!("{stem}.weight"), false),
        "beta" if norm => (format!("{stem}.bias"), false),
        table if table.ends_with("_embeddings") => (format!("{stem}.{table}.weight"), false),
        _ => return None,
    };
    // Only names with slashes: dots come from the translation.
    (!name.contains('.') && is_parameter(&full)).then_some((full, transposed))
}

/// For the names of PyTorch's BERTs: Hugging Face's, old and new, and NVIDIA's.
pub(super) fn pytorch(name: &str) -> Role {
    // NVIDIA's products with the activation in the same kernel
    let full = canonical(&name.replace(".dense_act.", ".dense."));
    match full.as_str() {
        "cls.predictions.decoder.weight" => Role::Tied(WORD),
        "cls.predictions.decoder.bias" => Role::Tied(MLM_BIAS),
        "bert.embeddings.position_ids" | "bert.embeddings.token_type_ids" => Role::State,
        _ if is_parameter(&full) => Role::Parameter { name: full, transposed: false },
        _ if ["bert.encoder.", "bert.embeddings."].iter().any(|part| full.starts_with(part)) => Role::Foreign,
        _ => Role::Unknown,
    }
}
