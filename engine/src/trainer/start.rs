//! The model that a run begins with: its sizes, and the weights of `model.init_from`, fitted to the data's vocabulary and
//! to what the configuration asks for.

use super::Observer;
use super::setup::begun_from;
use crate::checkpoint::hf::{self, Imported};
use crate::config::{Config, Extension, ModelConfig, NewRows};
use crate::data::shards::{Manifest, VOCAB};
use crate::data::tokenize::TokenizerFiles;
use crate::data::vocab::Vocab;
use crate::model::init;
use crate::model::resize::Resize;
use crate::table::TensorTable;
use crate::{Error, Result};
use std::path::Path;

/// Keys of a model that training may choose, whatever model it starts from.
const FREE: [&str; 6] = [
    "init_from",
    "resize_vocab",
    "extend_positions",
    "hidden_dropout",
    "attention_dropout",
    "initializer_range",
];
/// Keys to which a model is fitted.
const FITTED: [&str; 2] = ["vocab_size", "max_positions"];
/// Names of ignored tensors that a message shows.
const SHOWN: usize = 5;

/// Fills in the model's vocabulary and, with `init_from`, its sizes and starting weights. A run to go on with has them
/// already.
pub(super) fn resolve_model(
    config: &mut Config,
    manifest: &Manifest,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Option<Vec<f32>>> {
    let begun = if resume { begun_from(&config.train.run, config.model.init_from.as_deref())? } else { None };
    let mut start = None;
    if let Some(begun) = begun {
        for Contradiction { key, given, has } in contradictions(config, &begun, &FREE) {
            observer.message(&format!("{key}: {given} is not used: the run goes on with its model's {has}"));
        }
        let (hidden_dropout, attention_dropout) =
            (config.model.hidden_dropout, config.model.attention_dropout);
        config.model = ModelConfig { hidden_dropout, attention_dropout, ..begun };
    } else if let Some(dir) = config.model.init_from.clone() {
        start = Some(from_model(config, manifest, &dir, observer)?);
    }
    if config.model.vocab_size == 0 {
        config.model.vocab_size = manifest.vocab_size;
    }
    fits_data(config, manifest)?;
    config.validate()?;
    Ok(start)
}

/// Whether the model can be trained on the data.
fn fits_data(config: &Config, manifest: &Manifest) -> Result<()> {
    let (model, vocab) = (&config.model, manifest.vocab_size);
    if model.vocab_size != vocab && !hf::is_padded(vocab, model.vocab_size) {
        return Err(config.given.error(
            "model.vocab_size",
            format!(
                "{} differs from the data's vocabulary of {vocab} tokens; leave it out to take the data's, or \
                 prepare the data with the model's vocabulary",
                model.vocab_size
            ),
        ));
    }
    if manifest.options.nsp && model.type_vocab < 2 {
        let remedy = match model.init_from {
            None => "raise it to 2, or prepare with --no-nsp",
            Some(_) => "prepare with --no-nsp, or choose another model.init_from",
        };
        return Err(Error::config(
            "model.type_vocab",
            format!("{}, but the data's sequences have two segments; {remedy}", model.type_vocab),
        ));
    }
    let longest = manifest.train.longest.max(manifest.eval.longest);
    if longest > model.max_positions {
        let raise = match model.init_from {
            None => "raise it",
            Some(_) => "raise it and set model.extend_positions",
        };
        return Err(Error::config(
            "model.max_positions",
            format!(
                "{} is less than the data's sequences of up to {longest} tokens; prepare with --max-seq-length {} \
                 or {raise}",
                model.max_positions, model.max_positions
            ),
        ));
    }
    Ok(())
}

/// A key that was given and that the model contradicts.
struct Contradiction {
    key: String,
    given: String,
    has: String,
}

/// Whether a key of the model was given: in a file, as an override, or, by whoever made the configuration otherwise, as a
/// value that is no default.
fn is_given(config: &Config, name: &str, value: &serde_json::Value, defaults: &serde_json::Value) -> bool {
    config.given.has(&format!("model.{name}")) || *value != defaults[name]
}

/// The keys given that differ from those of a model, but for some.
fn contradictions(config: &Config, has: &ModelConfig, free: &[&str]) -> Vec<Contradiction> {
    let json = |model: &ModelConfig| serde_json::to_value(model).unwrap_or_default();
    let (given, has, defaults) = (json(&config.model), json(has), json(&ModelConfig::default()));
    let fields = given.as_object().into_iter().flatten();
    fields
        .filter(|(name, value)| {
            // a vocab_size of 0 is the data's
            let open = *name == "vocab_size" && **value == 0;
            let differs = **value != has[name.as_str()] && !open && !free.contains(&name.as_str());
            differs && is_given(config, name, value, &defaults)
        })
        .map(|(name, value)| Contradiction {
            key: format!("model.{name}"),
            given: value.to_string(),
            has: has[name.as_str()].to_string(),
        })
        .collect()
}

/// Takes the sizes of the model in `dir` and returns its weights, cut and extended as the configuration asks for and the
/// data need.
fn from_model(
    config: &mut Config,
    manifest: &Manifest,
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Vec<f32>> {
    let imported = hf::import(dir)?;
    imported.check_finite(dir)?;
    let shown = dir.display();
    if let Some(Contradiction { key, given, has }) =
        contradictions(config, &imported.model, &[&FREE[..], &FITTED].concat()).into_iter().next()
    {
        let how = match key.as_str() {
            "model.gelu" => ", or change hidden_act in its config.json if that is wrong",
            "model.layer_norm_eps" => ", or change layer_norm_eps in its config.json if that is wrong",
            _ => "",
        };
        let what = format!(
            "{given}, the model in {shown} has {has}; leave the key out, as model.init_from gives the sizes{how}"
        );
        return Err(config.given.error(&key, what));
    }
    for name in &imported.missing {
        observer.message(&format!("{shown}: no tensor `{name}`: it starts anew"));
    }
    if !imported.ignored.is_empty() {
        let (names, count) = (&imported.ignored, imported.ignored.len());
        let more = if count > SHOWN { ", …" } else { "" };
        let names = names[..count.min(SHOWN)].join(", ");
        observer.message(&format!(
            "{shown}: {count} tensors are no part of the model and are left out: {names}{more}"
        ));
    }
    let positions = positions(config, &imported.model, dir, observer)?;
    let tokens = Tokens::of(config, manifest, &imported, dir)?;
    tokens.tell(config, manifest, imported.model.vocab_size, dir, observer);
    let given = &config.model;
    let initializer_range = match config.given.has("model.initializer_range") {
        true => given.initializer_range,
        false => imported.model.initializer_range,
    };
    let model = ModelConfig {
        vocab_size: tokens.rows,
        max_positions: positions,
        hidden_dropout: given.hidden_dropout,
        attention_dropout: given.attention_dropout,
        initializer_range,
        init_from: Some(dir.to_owned()),
        resize_vocab: given.resize_vocab,
        extend_positions: given.extend_positions,
        ..imported.model.clone()
    };
    config.model = model;
    Ok(weights(config, imported, tokens.kept))
}

/// The weights of the resolved model.
fn weights(config: &Config, imported: Imported, kept_tokens: usize) -> Vec<f32> {
    let (model, seed) = (&config.model, config.train.seed);
    let from = &imported.model;
    let same = (from.vocab_size, from.max_positions) == (model.vocab_size, model.max_positions);
    let (table, mut weights) = if same && kept_tokens == model.vocab_size {
        (imported.table, imported.weights)
    } else {
        let resize = Resize {
            kept_tokens,
            new_rows: model.resize_vocab.unwrap_or(NewRows::Random),
            new_positions: model.extend_positions.unwrap_or(Extension::Random),
            deviation: model.initializer_range,
            seed,
        };
        let table = TensorTable::new(model);
        let weights = resize.apply(&imported.table, &imported.weights, &table);
        (table, weights)
    };
    let missing = |name: &str| imported.missing.iter().any(|m| m == name);
    init::tensors(&mut weights, &table, missing, model.initializer_range, seed);
    weights
}

/// The number of positions: the model's, or the one that was given.
fn positions(config: &Config, model: &ModelConfig, dir: &Path, observer: &mut dyn Observer) -> Result<usize> {
    let (given, has, dir) = (config.model.max_positions, model.max_positions, dir.display());
    let default = ModelConfig::default().max_positions;
    if given == has || !(config.given.has("model.max_positions") || given != default) {
        return Ok(has);
    }
    let line = match config.model.extend_positions {
        _ if given < has => format!("the first {given} of its {has} position embeddings are kept"),
        Some(Extension::Tile) => format!("its {has} position embeddings are repeated up to {given}"),
        Some(Extension::Random) => format!("position embeddings {has} to {} start anew", given - 1),
        None => {
            let what = format!(
                "{given}, the model in {dir} has {has}; leave it out, or say with model.extend_positions how the others \
                 start: \"tile\" repeats the model's, \"random\" draws them"
            );
            return Err(config.given.error("model.max_positions", what));
        }
    };
    observer.message(&format!("{dir}: {line} (model.max_positions)"));
    Ok(given)
}

/// Rows of the word embeddings.
struct Tokens {
    /// First tokens of the data's vocabulary that are the model's.
    known: usize,
    /// Whether a vocab.txt beside the model says so.
    certain: bool,
    /// Rows of the model that stay.
    kept: usize,
    /// Rows of the model to train.
    rows: usize,
}

impl Tokens {
    /// Compares the vocabularies.
    fn of(config: &Config, manifest: &Manifest, imported: &Imported, dir: &Path) -> Result<Self> {
        let (rows, tokens) = (imported.model.vocab_size, manifest.vocab_size);
        let (known, certain) = match known_beside(config, manifest, dir)? {
            Some(known) => (known, true),
            None if rows == tokens || hf::is_padded(tokens, rows) => (tokens, false),
            None if rows < tokens => (rows, false),
            None => {
                return Err(Error::file(
                    dir,
                    format!(
                        "its model has {rows} tokens, the data's vocabulary {tokens}; prepare the data with the model's \
                         vocabulary"
                    ),
                ));
            }
        };
        let own = if known < tokens { known } else { rows };
        let wanted = match config.model.vocab_size {
            0 => tokens,
            given if given == tokens || hf::is_padded(tokens, given) => given,
            given => {
                let what = format!(
                    "{given} is neither the number of the data's tokens, {tokens}, nor that with padding to a multiple of \
                     8 to 1024; leave it out"
                );
                return Err(config.given.error("model.vocab_size", what));
            }
        };
        if wanted > own && config.model.resize_vocab.is_none() {
            let how = "set model.resize_vocab to \"mean\" (new rows start as the mean of the model's) or \"random\"";
            return Err(if known < tokens {
                let new = tokens - known;
                Error::file(
                    dir,
                    format!(
                        "its model has {known} tokens, the data's vocabulary {tokens}; for {new} new ones {how}, or prepare \
                         the data with the model's vocabulary"
                    ),
                )
            } else {
                let what =
                    format!("{wanted}, the model in {} has {own}; leave it out, or {how}", dir.display());
                config.given.error("model.vocab_size", what)
            });
        }
        Ok(Self { known, certain, kept: own.min(wanted), rows: wanted })
    }

    /// Says what becomes of the rows where it is not plain.
    fn tell(
        &self,
        config: &Config,
        manifest: &Manifest,
        has: usize,
        dir: &Path,
        observer: &mut dyn Observer,
    ) {
        let (tokens, dir) = (manifest.vocab_size, dir.display());
        let mut say = |line: String| observer.message(&format!("{dir}: {line}"));
        if self.known < tokens && !self.certain {
            let known = self.known;
            say(format!(
                "no {VOCAB} beside the model: its {known} rows are taken for the data's first {known} tokens"
            ));
        }
        let behind = has.saturating_sub(self.known.max(self.kept));
        if behind > 0 {
            let keep = match self.known < tokens {
                true => String::new(),
                false => format!("; model.vocab_size = {has} keeps them"),
            };
            say(format!("{behind} rows behind its {} tokens are padding and are left out{keep}", self.known));
        }
        if self.known == tokens && self.kept > tokens {
            say(format!("{} rows of padding behind {tokens} tokens are kept", self.kept - tokens));
        }
        if self.rows > self.kept {
            let how = match config.model.resize_vocab {
                Some(NewRows::Mean) => "as the mean of the others",
                _ => "anew",
            };
            say(format!(
                "{} rows behind its {} start {how} (model.resize_vocab)",
                self.rows - self.kept,
                self.kept
            ));
        }
    }
}

/// How many of the data's first tokens are those of the vocab.txt beside a model, if one lies there.
///
/// # Errors
/// One with other tokens.
fn known_beside(config: &Config, manifest: &Manifest, dir: &Path) -> Result<Option<usize>> {
    let Some(tokenizer) = TokenizerFiles::of_model(dir)? else { return Ok(None) };
    let remedy = format!("prepare the data with the model's vocabulary, --vocab {}", dir.display());
    if let Some((key, there, here)) = tokenizer.settings.difference(&manifest.tokenizer()) {
        return Err(Error::file(
            dir,
            format!(
                "{key} is {there} ({}), the data was prepared with {here}; {remedy}, or with data.prepare.{} = {there}",
                tokenizer.source,
                key.trim_start_matches("do_").replace("lower_case", "lowercase")
            ),
        ));
    }
    let theirs = &tokenizer.vocab;
    if theirs.sha256() == manifest.vocab_sha256 {
        return Ok(Some(theirs.len()));
    }
    let ours = Vocab::load(&config.data.dir.join(VOCAB))?;
    let mut pairs = theirs.tokens().iter().zip(ours.tokens()).enumerate();
    let difference = match pairs.find(|(_, (theirs, ours))| theirs != ours) {
        Some((id, (theirs, ours))) => format!("token {id} is `{theirs}`, there it is `{ours}`"),
        None if theirs.len() < ours.len() => return Ok(Some(theirs.len())),
        None => format!("token {} is `{}`, there it is none", ours.len(), theirs.tokens()[ours.len()]),
    };
    let (theirs, ours) = (theirs.len(), ours.len());
    Err(Error::file(
        &tokenizer.path,
        format!(
            "is not the data's vocabulary: it has {theirs} tokens, the data's {ours}; {difference}; {remedy}"
        ),
    ))
}
