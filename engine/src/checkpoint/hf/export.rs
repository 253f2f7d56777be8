//! Writes a model folder that `transformers` loads as BertForPreTraining.

use super::super::staging::{Staging, write_file};
use super::super::{CONFIG, MODEL, tensor_file, views};
use super::config;
use crate::config::ModelConfig;
use crate::data::shards::VOCAB;
use crate::data::tokenize::TokenizerSettings;
use crate::data::tokenize::files::TOKENIZER_CONFIG;
use crate::data::vocab::Vocab;
use crate::error::{During, Error, Result};
use crate::files::check_vacant;
use crate::table::TensorTable;
use serde_json::json;
use std::fs;
use std::path::Path;

/// What a model folder holds.
const FILES: [&str; 4] = [CONFIG, MODEL, VOCAB, TOKENIZER_CONFIG];

/// Writes config.json, model.safetensors, vocab.txt and tokenizer_config.json. The folder appears whole; a model
/// folder that is there already is replaced: it is the run's own, which the trainer makes sure of. The decoder's weight
/// and bias are tied to the word embeddings and to `cls.predictions.bias`: they are not stored twice.
///
/// # Errors
/// What the system answers; a vocabulary longer than the model's; a folder there that holds something else.
///
/// # Panics
/// If `weights` does not have the table's length.
pub fn export(
    dir: &Path,
    model: &ModelConfig,
    table: &TensorTable,
    weights: &[f32],
    vocab: &Vocab,
    tokenizer: TokenizerSettings,
) -> Result<()> {
    assert_eq!(weights.len(), table.len, "weights have the table's length");
    check_size(vocab, model)?;
    replaceable(dir)?;
    let staging = Staging::new(dir)?;
    write(&staging, model, views("", table, weights), Some(vocab), Some(tokenizer))?;
    staging.commit()?;
    Ok(())
}

/// As [`export`] with some of the tensors `(name, shape, elements)` of a model, with or without a vocabulary, and where
/// nothing is yet. Where nobody knows how text is normalized, there is no tokenizer_config.json.
pub(in crate::checkpoint) fn export_new(
    dir: &Path,
    model: &ModelConfig,
    tensors: Vec<(String, &[usize], &[f32])>,
    vocab: Option<&Vocab>,
    tokenizer: Option<TokenizerSettings>,
) -> Result<()> {
    vocab.map_or(Ok(()), |vocab| check_size(vocab, model))?;
    vacant(dir)?;
    let staging = Staging::fresh(dir, &FILES)?;
    write(&staging, model, tensors, vocab, tokenizer)?;
    staging.commit_fresh()?;
    Ok(())
}

fn check_size(vocab: &Vocab, model: &ModelConfig) -> Result<()> {
    let (count, size) = (vocab.len(), model.vocab_size);
    if count <= size {
        return Ok(());
    }
    let what = "use the vocabulary that the data was prepared with";
    Err(Error::config("vocabulary", format!("has {count} tokens, the model {size}; {what}")))
}

/// Refuses a folder that [`export_new`] would refuse.
pub(in crate::checkpoint) fn vacant(dir: &Path) -> Result<()> {
    check_vacant(dir, "--out")
}

fn write(
    staging: &Staging,
    model: &ModelConfig,
    tensors: Vec<(String, &[usize], &[f32])>,
    vocab: Option<&Vocab>,
    tokenizer: Option<TokenizerSettings>,
) -> Result<()> {
    let at = |name: &str| staging.path().join(name);
    tensor_file::write(&at(MODEL), ("format", "pt"), &tensors)?;
    write_file(&at(CONFIG), &config::to_bytes(model, vocab.map_or(0, |vocab| vocab.pad as usize)))?;
    if let Some(vocab) = vocab {
        write_file(&at(VOCAB), vocab.to_text().as_bytes())?;
    }
    if let Some(tokenizer) = tokenizer {
        write_file(&at(TOKENIZER_CONFIG), &tokenizer_config(model, tokenizer))?;
    }
    Ok(())
}

/// Refuses to replace a folder in which anything lies that [`export`] does not write.
pub(crate) fn replaceable(dir: &Path) -> Result<()> {
    if fs::symlink_metadata(dir).is_err() {
        return Ok(());
    }
    if !dir.is_dir() {
        return Err(Error::file(dir, "is there and is no folder; remove it or choose another place"));
    }
    for entry in fs::read_dir(dir).during("cannot read", dir)? {
        let name = entry.during("cannot read", dir)?.file_name();
        if FILES.iter().all(|file| name != *file) {
            let name = name.to_string_lossy();
            return Err(Error::file(
                dir,
                format!("holds `{name}`, which a new model in its place would remove; move it away"),
            ));
        }
    }
    Ok(())
}

fn tokenizer_config(model: &ModelConfig, tokenizer: TokenizerSettings) -> Vec<u8> {
    let json = json!({
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lowercase,
        "tokenize_chinese_chars": tokenizer.tokenize_chinese_chars,
        "strip_accents": tokenizer.strip_accents_or_null(),
        "model_max_length": model.max_positions,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    });
    format!("{json:#}\n").into_bytes()
}
