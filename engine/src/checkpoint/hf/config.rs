//! config.json as Hugging Face's `BertConfig` writes it, to and from [`ModelConfig`].

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use kernels::backend::Gelu;
use serde_json::{Map, Value, json};
use std::path::Path;

/// config.json has about 1 KB.
pub(in crate::checkpoint) const LIMIT: u64 = 1 << 20;
/// No size of a model is beyond this; products of three of them fit in 128 bits.
const MAX_SIZE: u64 = 1 << 24;

/// The file's bytes.
pub(in crate::checkpoint) fn to_bytes(model: &ModelConfig, pad_token_id: usize) -> Vec<u8> {
    let hidden_act = match model.gelu {
        Gelu::Erf => "gelu",
        Gelu::Tanh => "gelu_new",
    };
    let json = json!({
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "hidden_act": hidden_act,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": model.max_positions,
        "type_vocab_size": model.type_vocab,
        "hidden_dropout_prob": model.hidden_dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.layer_norm_eps,
        "initializer_range": model.initializer_range,
        "pad_token_id": pad_token_id,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
    });
    format!("{json:#}\n").into_bytes()
}

/// A model as a config.json describes it. Sizes are at least 1 and bounded, so that products do not overflow u128.
pub(in crate::checkpoint) struct Parsed(pub(in crate::checkpoint) ModelConfig);

struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Fields<'_> {
    fn wrong<T>(&self, key: &str, what: &str) -> Result<T> {
        let value = self.map.get(key).map_or("missing".to_owned(), Value::to_string);
        Err(Error::file(self.path, format!("{key}: {value}, {what}")))
    }

    fn size(&self, key: &str) -> Result<usize> {
        match self.map.get(key).and_then(Value::as_u64) {
            Some(n @ 1..=MAX_SIZE) => Ok(n as usize),
            _ => self.wrong(key, &format!("expected a whole number from 1 to {MAX_SIZE}; check the file")),
        }
    }

    fn number(&self, key: &str, default: f64, least: f64, below: f64) -> Result<f64> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => match v.as_f64() {
                Some(x) if x >= least && x < below => Ok(x),
                _ => self
                    .wrong(key, &format!("expected a number from {least} to below {below}; check the file")),
            },
        }
    }

    /// Refuses a value other than those listed; a missing key or null means the first.
    fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(v) if allowed.contains(v) => Ok(()),
            Some(_) => {
                let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
                let allowed = match allowed.is_empty() {
                    true => "models without it".to_owned(),
                    false => allowed.join(" or "),
                };
                self.wrong(key, &format!("only {allowed} can be read; choose a BERT encoder's folder"))
            }
        }
    }

    fn gelu(&self) -> Result<Gelu> {
        match self.map.get("hidden_act").map(Value::as_str) {
            None | Some(Some("gelu")) => Ok(Gelu::Erf),
            Some(Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast")) => Ok(Gelu::Tanh),
            _ => self.wrong(
                "hidden_act",
                "expected gelu (erf) or gelu_new (tanh); choose a model with one of them",
            ),
        }
    }
}

/// Reads a config.json's content; the path is for messages.
pub(in crate::checkpoint) fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed> {
    let map = match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return Err(Error::file(path, "is not a JSON object; name a Hugging Face model folder")),
        Err(e) => return Err(Error::file(path, format!("is not JSON: {e}; fetch the file again"))),
    };
    let fields = Fields { path, map };
    fields.only("model_type", &[json!("bert")])?;
    fields.only("position_embedding_type", &[json!("absolute")])?;
    fields.only("is_decoder", &[json!(false)])?;
    fields.only("is_encoder_decoder", &[json!(false)])?;
    fields.only("add_cross_attention", &[json!(false)])?;
    fields.only("tie_word_embeddings", &[json!(true)])?;
    fields.only("pruned_heads", &[json!({}), json!([])])?;
    fields.only("directionality", &[json!("bidi")])?;
    if let Some(hidden) = fields.map.get("hidden_size") {
        // ALBERT's and ELECTRA's configurations are BERT's with a factorized embedding
        fields.only("embedding_size", std::slice::from_ref(hidden))?;
    }
    fields.only("num_hidden_groups", &[])?;
    fields.only("quantization_config", &[])?;
    let model = ModelConfig {
        layers: fields.size("num_hidden_layers")?,
        hidden: fields.size("hidden_size")?,
        heads: fields.size("num_attention_heads")?,
        intermediate: fields.size("intermediate_size")?,
        max_positions: fields.size("max_position_embeddings")?,
        type_vocab: fields.size("type_vocab_size")?,
        vocab_size: fields.size("vocab_size")?,
        gelu: fields.gelu()?,
        hidden_dropout: fields.number("hidden_dropout_prob", 0.1, 0.0, 1.0)?,
        attention_dropout: fields.number("attention_probs_dropout_prob", 0.1, 0.0, 1.0)?,
        layer_norm_eps: fields.number("layer_norm_eps", 1e-12, f64::MIN_POSITIVE, 1.0)?,
        initializer_range: fields.number("initializer_range", 0.02, 0.0, 100.0)?,
        init_from: None,
        resize_vocab: None,
        extend_positions: None,
    };
    if !model.hidden.is_multiple_of(2 * model.heads) {
        let (heads, hidden) = (model.heads, model.hidden);
        return fields.wrong(
            "num_attention_heads",
            &format!("hidden_size {hidden} does not give {heads} heads of one even size; check the file"),
        );
    }
    Ok(Parsed(model))
}

impl Parsed {
    /// Elements of the embeddings and the layers, which every BERT checkpoint has, heads or not.
    pub(in crate::checkpoint) fn encoder_elements(&self) -> u128 {
        let wide = |n: usize| n as u128;
        let m = &self.0;
        let (h, f) = (wide(m.hidden), wide(m.intermediate));
        let embeddings = (wide(m.vocab_size) + wide(m.max_positions) + wide(m.type_vocab) + 2) * h;
        embeddings + wide(m.layers) * (4 * h * (h + 1) + 2 * h * f + f + h + 4 * h)
    }

    /// Refuses another model than the run's; dropouts and initialization are training's business.
    pub(in crate::checkpoint) fn same_model(&self, path: &Path, model: &ModelConfig) -> Result<()> {
        let (a, b) = (&self.0, model);
        let sizes = [
            ("num_hidden_layers", a.layers, b.layers),
            ("hidden_size", a.hidden, b.hidden),
            ("num_attention_heads", a.heads, b.heads),
            ("intermediate_size", a.intermediate, b.intermediate),
            ("max_position_embeddings", a.max_positions, b.max_positions),
            ("type_vocab_size", a.type_vocab, b.type_vocab),
            ("vocab_size", a.vocab_size, b.vocab_size),
        ];
        let differs = |key: &str, found: String, wanted: String| {
            let what =
                format!("{key}: {found}, the configuration has {wanted}; use the run's own configuration");
            Err(Error::file(path, what))
        };
        for (key, found, wanted) in sizes {
            if found != wanted {
                return differs(key, found.to_string(), wanted.to_string());
            }
        }
        if a.gelu != b.gelu {
            return differs("hidden_act", format!("{:?}", a.gelu), format!("{:?}", b.gelu));
        }
        if a.layer_norm_eps != b.layer_norm_eps {
            return differs("layer_norm_eps", a.layer_norm_eps.to_string(), b.layer_norm_eps.to_string());
        }
        Ok(())
    }
}
