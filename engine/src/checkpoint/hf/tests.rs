//! Model folders out and in again, and folders from elsewhere.

use super::*;
use crate::checkpoint::tests::{numbers, small_model};
use crate::checkpoint::{CONFIG, MODEL};
use crate::config::ModelConfig;
use crate::data::tokenize::TokenizerSettings;
use crate::data::vocab::Vocab;
use crate::table::TensorTable;
use half::{bf16, f16};
use kernels::backend::Gelu;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Folder {
    dir: TempDir,
    model: ModelConfig,
    table: TensorTable,
    weights: Vec<f32>,
}

impl Folder {
    fn exported() -> Self {
        let model = small_model();
        let table = TensorTable::new(&model);
        // Multiples of 1/8 below 256 are exact in f16; bf16 keeps fewer.
        let mut weights = numbers(&table, 1.0);
        weights.iter_mut().for_each(|x| *x = (*x * 8.0).floor() % 61.0 / 8.0);
        let folder = Self { dir: TempDir::new().unwrap(), model, table, weights };
        fs::write(folder.vocab(), "[PAD]\na\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nb\nc\nd\ne\nf\n").unwrap();
        folder.export().unwrap();
        folder
    }

    fn vocab(&self) -> PathBuf {
        self.dir.path().join("words.txt")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn export(&self) -> crate::Result<()> {
        let vocab = Vocab::load(&self.vocab()).unwrap();
        export(&self.path(), &self.model, &self.table, &self.weights, &vocab, TokenizerSettings::UNCASED)
    }

    /// Sets a field of config.json, or removes it.
    fn configure(&self, key: &str, value: Option<Value>) -> String {
        let path = self.path().join(CONFIG);
        let before = fs::read_to_string(&path).unwrap();
        let mut json: Value = serde_json::from_str(&before).unwrap();
        match value {
            Some(v) => json[key] = v,
            None => drop(json.as_object_mut().unwrap().remove(key)),
        }
        fs::write(&path, json.to_string()).unwrap();
        before
    }

    /// Writes model.safetensors anew through the crate's own writer: `each` names and converts every tensor.
    fn rewrite(&self, each: impl Fn(&str, Vec<usize>, &[f32]) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)>) {
        let tensors = self.table.tensors.iter();
        let stored: Vec<_> =
            tensors.flat_map(|t| each(&t.name, t.shape.clone(), &self.weights[t.range()])).collect();
        let views = stored.iter().map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(self.path().join(MODEL), bytes).unwrap();
    }

    fn error(&self) -> String {
        let error = import(&self.path()).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

fn bytes(data: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(data).to_vec()
}

fn f32_tensor(name: String, shape: Vec<usize>, data: &[f32]) -> (String, Dtype, Vec<usize>, Vec<u8>) {
    (name, Dtype::F32, shape, bytes(data))
}

#[test]
fn what_was_exported_comes_back() {
    let folder = Folder::exported();
    let imported = import(&folder.path()).unwrap();
    assert_eq!(imported.model, folder.model);
    assert_eq!(imported.weights, folder.weights);
    assert_eq!((imported.missing, imported.ignored), (vec![], vec![]));
    assert_eq!(fs::read(folder.path().join("vocab.txt")).unwrap(), fs::read(folder.vocab()).unwrap());
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join(CONFIG)).unwrap()).unwrap();
    assert_eq!(config["hidden_act"], "gelu_new");
    assert_eq!(config["architectures"], json!(["BertForPreTraining"]));
}

#[test]
fn exporting_again_replaces_the_folder_and_leaves_nothing_else() {
    let mut folder = Folder::exported();
    folder.weights.fill(0.0);
    folder.model.gelu = Gelu::Erf;
    folder.export().unwrap();
    let imported = import(&folder.path()).unwrap();
    assert_eq!((imported.model.gelu, imported.weights), (Gelu::Erf, folder.weights));
    assert_eq!(fs::read_dir(folder.dir.path()).unwrap().count(), 2, "the vocabulary and the model");
}

#[test]
fn a_folder_that_holds_anything_else_is_not_replaced() {
    let folder = Folder::exported();
    fs::write(folder.path().join("thesis.tex"), "years of work").unwrap();
    let error = folder.export().unwrap_err().to_string();
    assert!(error.contains("holds `thesis.tex`"), "{error}");
    assert!(folder.path().join("thesis.tex").exists());
}

#[test]
fn a_vocabulary_longer_than_the_models_is_refused() {
    let folder = Folder::exported();
    fs::write(folder.vocab(), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\ne\nf\ng\n").unwrap();
    let error = folder.export().unwrap_err().to_string();
    assert!(error.contains("has 12 tokens, the model 11"), "{error}");
}

#[test]
fn half_precision_is_widened() {
    let folder = Folder::exported();
    folder.rewrite(|name, shape, data| {
        let half = data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        vec![(name.to_owned(), Dtype::F16, shape, half)]
    });
    assert_eq!(import(&folder.path()).unwrap().weights, folder.weights);
    folder.rewrite(|name, shape, data| {
        let half = data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        vec![(name.to_owned(), Dtype::BF16, shape, half)]
    });
    let rounded: Vec<f32> = folder.weights.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(import(&folder.path()).unwrap().weights, rounded);
}

#[test]
fn an_encoder_without_heads_prefix_and_with_old_names_is_read() {
    let folder = Folder::exported();
    folder.rewrite(|name, shape, data| match name.strip_prefix("bert.") {
        None => vec![],
        Some(name) => {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            let ids = ("embeddings.position_ids".into(), Dtype::I64, vec![1, 2], vec![0; 16]);
            let other = ("classifier.weight".into(), Dtype::F64, vec![1], vec![0; 8]);
            let extra = if name.contains("word") { vec![ids, other] } else { vec![] };
            [vec![f32_tensor(name, shape, data)], extra].concat()
        }
    });
    folder.configure("architectures", Some(json!(["BertModel"])));
    let imported = import(&folder.path()).unwrap();
    let encoder = ..folder.table.transform.weight.start;
    assert_eq!(imported.weights[encoder], folder.weights[encoder]);
    assert!(imported.weights[folder.table.transform_norm.gamma.clone()].iter().all(|&x| x == 1.0));
    assert!(imported.weights[folder.table.transform.weight.clone()].iter().all(|&x| x == 0.0));
    assert_eq!(imported.ignored, ["classifier.weight"]);
    assert_eq!(imported.missing.len(), 7);
    assert!(imported.missing.iter().all(|name| name.starts_with("cls.")), "{:?}", imported.missing);
}

/// The folder with `decoder.weight` scaled and the MLM bias only under the decoder's name.
fn with_decoder(folder: &Folder, scale: f32) {
    folder.rewrite(|name, shape, data| match name {
        "bert.embeddings.word_embeddings.weight" => {
            let copy: Vec<f32> = data.iter().map(|x| x * scale).collect();
            let decoder = "cls.predictions.decoder.weight".to_owned();
            vec![f32_tensor(name.to_owned(), shape.clone(), data), f32_tensor(decoder, shape, &copy)]
        }
        "cls.predictions.bias" => vec![f32_tensor("cls.predictions.decoder.bias".into(), shape, data)],
        _ => vec![f32_tensor(name.to_owned(), shape, data)],
    });
}

#[test]
fn copies_of_the_tied_decoder_are_accepted_and_an_untied_one_is_not() {
    let folder = Folder::exported();
    with_decoder(&folder, 1.0);
    let imported = import(&folder.path()).unwrap();
    assert_eq!(imported.weights, folder.weights);
    assert_eq!((imported.missing, imported.ignored), (vec![], vec![]));
    with_decoder(&folder, 2.0);
    assert!(folder.error().contains("only models with a tied decoder"));
}

#[test]
fn a_config_that_does_not_fit_is_an_error_with_field_number_and_remedy() {
    let folder = Folder::exported();
    let cases = [
        ("model_type", Some(json!("roberta")), "model_type: \"roberta\", only \"bert\" can be read"),
        ("hidden_act", Some(json!("relu")), "hidden_act: \"relu\", expected gelu (erf) or gelu_new"),
        ("is_decoder", Some(json!(true)), "is_decoder: true, only false"),
        ("position_embedding_type", Some(json!("relative_key")), "only \"absolute\" can be read"),
        ("hidden_act", Some(json!("silu")), "hidden_act: \"silu\", expected gelu (erf) or gelu_new"),
        ("tie_word_embeddings", Some(json!(false)), "tie_word_embeddings: false, only true can be read"),
        ("pruned_heads", Some(json!({"0": [1]})), "pruned_heads: {\"0\":[1]}, only {} or [] can be read"),
        ("is_encoder_decoder", Some(json!(true)), "is_encoder_decoder: true, only false"),
        ("add_cross_attention", Some(json!(true)), "add_cross_attention: true, only false"),
        ("embedding_size", Some(json!(4)), "embedding_size: 4, only 8 can be read"),
        ("directionality", Some(json!("left")), "directionality: \"left\", only \"bidi\""),
        ("quantization_config", Some(json!({"bits": 8})), "only models without it can be read"),
        ("type_vocab_size", Some(json!(0)), "type_vocab_size: 0, expected a whole number from 1"),
        ("num_hidden_layers", Some(json!(0)), "num_hidden_layers: 0, expected a whole number from 1"),
        (
            "num_hidden_layers",
            Some(json!(2)),
            "bert.encoder.layer.1.attention.self.query.weight is missing (16 in",
        ),
        ("vocab_size", Some(json!(12)), "shape [11, 8], config.json asks for [12, 8]"),
        ("vocab_size", Some(json!(1u64 << 40)), "vocab_size: 1099511627776, expected"),
        ("vocab_size", Some(json!(-1)), "vocab_size: -1, expected"),
        ("hidden_size", None, "hidden_size: missing, expected"),
        ("hidden_size", Some(json!(1 << 24)), "do not belong together"),
        ("num_hidden_layers", Some(json!(1 << 24)), "do not belong together"),
        ("num_attention_heads", Some(json!(3)), "hidden_size 8 does not give 3 heads"),
        ("layer_norm_eps", Some(json!(0)), "layer_norm_eps: 0, expected"),
        ("hidden_dropout_prob", Some(json!("x")), "hidden_dropout_prob: \"x\", expected"),
    ];
    for (key, value, expected) in cases {
        let before = folder.configure(key, value.clone());
        let error = folder.error();
        assert!(error.contains(expected), "{key} {value:?}: {error}");
        fs::write(folder.path().join(CONFIG), before).unwrap();
    }
}

#[test]
fn tensors_that_do_not_fit_are_errors_with_name_and_remedy() {
    let folder = Folder::exported();
    let check = |expected: &str| {
        let error = folder.error();
        assert!(error.contains(MODEL) && error.contains(expected), "{error}");
    };
    folder.rewrite(|name, mut shape, data| {
        shape.reverse();
        vec![f32_tensor(name.to_owned(), shape, data)]
    });
    check("has shape [8, 16], config.json asks for [16, 8]");
    folder.rewrite(|name, shape, data| vec![(name.to_owned(), Dtype::I32, shape, bytes(data))]);
    check("is stored as I32; F32, F16 and BF16 can be read");
    folder.rewrite(|name, shape, data| {
        let twice = vec![f32_tensor(name.to_owned(), shape.clone(), data)];
        match name.strip_prefix("bert.pooler") {
            Some(rest) => [twice, vec![f32_tensor(format!("pooler{rest}"), shape, data)]].concat(),
            None => twice,
        }
    });
    check("are the same tensor; remove one");
    fs::rename(folder.path().join(MODEL), folder.path().join("pytorch_model.bin")).unwrap();
    check("holds no model.safetensors, only pytorch_model.bin");
}

#[test]
fn a_folder_that_is_not_a_models_names_the_remedy() {
    let folder = Folder::exported();
    let error = |path: &Path| import(path).unwrap_err().to_string();
    assert!(error(folder.dir.path()).contains(&format!("name {} instead", folder.path().display())));
    assert!(error(&folder.vocab()).contains("is not a folder"));
    assert!(error(&folder.dir.path().join("nowhere")).contains("is not a folder"));
}

#[test]
fn names_of_wrapped_models_are_read() {
    let folder = Folder::exported();
    for prefix in ["module.", "model.", "module._orig_mod."] {
        folder.rewrite(|name, shape, data| vec![f32_tensor(format!("{prefix}{name}"), shape, data)]);
        let imported = import(&folder.path()).unwrap();
        assert_eq!(
            (imported.weights, imported.missing, imported.ignored),
            (folder.weights.clone(), vec![], vec![])
        );
    }
    folder.rewrite(|name, shape, data| {
        let extra = f32_tensor("bert.embeddings.rotary.weight".to_owned(), vec![1], &[0.0]);
        let more = if name.contains("word") { vec![extra] } else { vec![] };
        [vec![f32_tensor(name.to_owned(), shape, data)], more].concat()
    });
    assert!(folder.error().contains("bert.embeddings.rotary.weight is no part of a BERT encoder"));
}

#[test]
fn the_vocabulary_beside_a_model_has_its_size_or_leaves_padding() {
    let folder = Folder::exported();
    let vocab = folder.path().join("vocab.txt");
    for (tokens, fits) in [(11, true), (12, false), (9, false), (10, false), (3, false)] {
        fs::write(&vocab, "x\n".repeat(tokens)).unwrap();
        match import(&folder.path()) {
            Ok(imported) => assert!(fits, "{tokens} of {}", imported.model.vocab_size),
            Err(e) => {
                let expected =
                    format!("vocab.txt: has {tokens} tokens, the model 11 (vocab_size in config.json); ");
                assert!(!fits && e.to_string().contains(&expected), "{e}");
            }
        }
    }
    fs::write(folder.path().join("added_tokens.json"), "{}").unwrap();
    assert!(folder.error().contains("append the tokens of added_tokens.json"), "{}", folder.error());
    // rows of zeros are padding, however many
    folder.rewrite(|name, shape, data| {
        let mut data = data.to_vec();
        if name.contains("word") {
            data[3 * 8..].fill(0.0);
        }
        vec![f32_tensor(name.to_owned(), shape, &data)]
    });
    assert_eq!(import(&folder.path()).unwrap().model.vocab_size, 11);
}
