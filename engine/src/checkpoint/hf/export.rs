//! Writes a model folder that `transformers` loads as BertForPreTraining.

use super::super::staging::{Staging, write_file};
use super::super::{CONFIG, MODEL, tensor_file, views};
use super::config;
use crate::config::ModelConfig;
use crate::error::{During, Error, Result};
use crate::files::check_vacant;
use crate::table::TensorTable;
use serde_json::json;
use std::fs;
use std::path::Path;

const VOCAB: &str = "vocab.txt";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
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
    vocab_file: &Path,
) -> Result<()> {
    assert_eq!(weights.len(), table.len, "weights have the table's length");
    let vocab = read_vocab(vocab_file, model)?;
    replaceable(dir)?;
    let staging = Staging::new(dir)?;
    write(&staging, model, views("", table, weights), Some(vocab))?;
    staging.commit()?;
    Ok(())
}

/// As [`export`] with some of the tensors `(name, shape, elements)` of a model, with or without a vocabulary, and where
/// nothing is yet.
pub(in crate::checkpoint) fn export_new(
    dir: &Path,
    model: &ModelConfig,
    tensors: Vec<(String, &[usize], &[f32])>,
    vocab_file: Option<&Path>,
) -> Result<()> {
    let vocab = vocab_file.map(|path| read_vocab(path, model)).transpose()?;
    vacant(dir)?;
    let staging = Staging::fresh(dir, &FILES)?;
    write(&staging, model, tensors, vocab)?;
    staging.commit_fresh()?;
    Ok(())
}

/// Refuses a folder that [`export_new`] would refuse.
pub(in crate::checkpoint) fn vacant(dir: &Path) -> Result<()> {
    check_vacant(dir, "--out")
}

fn write(
    staging: &Staging,
    model: &ModelConfig,
    tensors: Vec<(String, &[usize], &[f32])>,
    vocab: Option<(Vec<u8>, usize)>,
) -> Result<()> {
    let pad = vocab.as_ref().map_or(0, |(_, pad)| *pad);
    let at = |name: &str| staging.path().join(name);
    tensor_file::write(&at(MODEL), ("format", "pt"), &tensors)?;
    write_file(&at(CONFIG), &config::to_bytes(model, pad))?;
    if let Some((vocab, _)) = vocab {
        write_file(&at(VOCAB), &vocab)?;
    }
    write_file(&at(TOKENIZER_CONFIG), &tokenizer_config(model))?;
    Ok(())
}

/// A vocabulary's bytes and the number of its padding token.
fn read_vocab(vocab_file: &Path, model: &ModelConfig) -> Result<(Vec<u8>, usize)> {
    let vocab = fs::read(vocab_file).during("cannot read", vocab_file)?;
    let lines = vocab.split(|&b| b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let count = lines.clone().count() - usize::from(vocab.is_empty() || vocab.ends_with(b"\n"));
    if count > model.vocab_size {
        let size = model.vocab_size;
        return Err(Error::file(
            vocab_file,
            format!(
                "has {count} tokens, the model {size}; use the vocabulary that the data was prepared with"
            ),
        ));
    }
    let pad = lines.clone().position(|l| l == b"[PAD]").unwrap_or(0);
    Ok((vocab, pad))
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

fn tokenizer_config(model: &ModelConfig) -> Vec<u8> {
    let json = json!({
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": true,
        "tokenize_chinese_chars": true,
        "strip_accents": null,
        "model_max_length": model.max_positions,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    });
    format!("{json:#}\n").into_bytes()
}
