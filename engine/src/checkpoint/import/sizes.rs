//! The sizes of a foreign model: those that its tensors have, compared with what the user says.

use super::names::{Role, WORD, layer};
use super::plan::check_type;
use super::source::Source;
use super::tensorflow2;
use crate::checkpoint::hf::{config, is_padded};
use crate::checkpoint::staging::read_small;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Size of a head where nothing says otherwise: that of all published BERTs.
const HEAD_SIZE: usize = 64;
/// The smallest published BERT has two heads; of smaller ones nothing is known.
const LEAST_HIDDEN: usize = 2 * HEAD_SIZE;
/// Largest size of a model that makes sense; products of three fit in 128 bits.
const MAX_SIZE: usize = 1 << 24;

/// Sizes that the tensors themselves have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    layers: usize,
    hidden: usize,
    intermediate: usize,
    positions: usize,
    types: usize,
    /// Rows of the word embeddings, padding included.
    pub(super) rows: usize,
}

/// What the user said about the model.
pub(super) struct Given<'a> {
    /// A BERT's configuration file.
    pub(super) config: Option<&'a Path>,
    /// The vocabulary and its number of tokens.
    pub(super) vocab: Option<(&'a Path, usize)>,
    /// Whether rows of padding behind the vocabulary stay.
    pub(super) keep_padding: bool,
}

/// Rows behind the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Tokens of the vocabulary.
    pub tokens: usize,
    /// How many rows there are.
    pub rows: usize,
    /// Whether they are all 0: they were never trained.
    pub zeros: bool,
    /// Whether they stay in the model.
    pub kept: bool,
}

fn twice(source: &dyn Source, first: usize, second: usize) -> Error {
    let [first, second] = [first, second].map(|number| &source.tensors()[number].name);
    Error::file(source.path(), format!("{first} and {second} are the same tensor; remove one"))
}

/// Names of the file for names of the model.
pub(super) struct Found {
    /// Number in the file, and whether the matrix is transposed.
    pub(super) parameters: HashMap<String, (usize, bool)>,
    pub(super) tied: Vec<(usize, &'static str)>,
    pub(super) ignored: Vec<String>,
    pub(super) state: usize,
}

impl Found {
    pub(super) fn new(source: &dyn Source, role: &dyn Fn(&str) -> Role) -> Result<Self> {
        let (mut parameters, mut tied) = (HashMap::new(), Vec::new());
        let (mut ignored, mut state) = (Vec::new(), 0);
        let tensors = source.tensors();
        for (number, stored) in tensors.iter().enumerate() {
            match role(&stored.name) {
                Role::Parameter { name, transposed } => {
                    if let Some((first, _)) = parameters.insert(name, (number, transposed)) {
                        return Err(twice(source, first, number));
                    }
                }
                Role::Tied(to) => {
                    if let Some(&(first, _)) = tied.iter().find(|(_, earlier)| *earlier == to) {
                        return Err(twice(source, first, number));
                    }
                    tied.push((number, to));
                }
                Role::State => state += 1,
                Role::Foreign => {
                    let what = format!("{} is no part of a BERT layer; choose a BERT encoder", stored.name);
                    return Err(Error::file(source.path(), what));
                }
                Role::Unknown => ignored.push(stored.name.clone()),
            }
        }
        Ok(Self { parameters, tied, ignored, state })
    }

    /// The message for a tensor without which there is no model.
    fn lacks(&self, source: &dyn Source, name: &str) -> Error {
        let (known, of) = (self.parameters.len(), source.tensors().len());
        let remedy = match source.tensors().iter().any(|t| tensorflow2::is_one(&t.name)) {
            true => {
                "this is a checkpoint of TensorFlow 2's objects under other names than the official BERT's encoder has: \
                 load it where it was made, save its weights with torch.save or as safetensors under Hugging Face's names, \
                 and take launcher import pytorch"
            }
            false => "choose a file that holds a whole BERT encoder",
        };
        let what = format!("{name} is missing, {known} of {of} tensors have names of a BERT; {remedy}");
        Error::file(source.path(), what)
    }

    /// The two sizes of a matrix in the model's orientation.
    fn matrix(&self, source: &dyn Source, name: &str) -> Result<[usize; 2]> {
        let Some(&(number, transposed)) = self.parameters.get(name) else {
            return Err(self.lacks(source, name));
        };
        let stored = &source.tensors()[number];
        match *stored.shape.as_slice() {
            [a, b] if (1..=MAX_SIZE).contains(&a) && (1..=MAX_SIZE).contains(&b) => {
                Ok(if transposed { [b, a] } else { [a, b] })
            }
            _ => Err(Error::file(
                source.path(),
                format!(
                    "{} has shape {:?}, expected two sizes from 1 to {MAX_SIZE}; choose a BERT encoder",
                    stored.name, stored.shape
                ),
            )),
        }
    }

    pub(super) fn sizes(&self, source: &dyn Source) -> Result<Sizes> {
        let [rows, hidden] = self.matrix(source, WORD)?;
        let [positions, _] = self.matrix(source, "bert.embeddings.position_embeddings.weight")?;
        let [types, _] = self.matrix(source, "bert.embeddings.token_type_embeddings.weight")?;
        let [intermediate, _] = self.matrix(source, "bert.encoder.layer.0.intermediate.dense.weight")?;
        let numbers: BTreeSet<usize> = self.parameters.keys().filter_map(|name| layer(name)).collect();
        let layers = numbers.len();
        if let Some(gap) = (0..layers).find(|n| !numbers.contains(n)) {
            let last = numbers.last().copied().unwrap_or_default();
            return Err(Error::file(
                source.path(),
                format!(
                    "layer {gap} is missing, there is a layer {last}; choose a file that holds a whole BERT encoder"
                ),
            ));
        }
        Ok(Sizes { layers, hidden, intermediate, positions, types, rows })
    }
}

/// The model's configuration: the sizes of the tensors, the rest from the file that the user named.
pub(super) fn configure(source: &dyn Source, sizes: &Sizes, given: &Given<'_>) -> Result<ModelConfig> {
    let Sizes { layers, hidden, intermediate, positions, types, rows } = *sizes;
    let Some(path) = given.config else {
        return Ok(ModelConfig {
            layers,
            hidden,
            heads: heads(source, hidden)?,
            intermediate,
            max_positions: positions,
            type_vocab: types,
            vocab_size: rows,
            ..ModelConfig::default()
        });
    };
    let model = config::parse(path, &read_small(path, config::LIMIT)?)?.0;
    for (key, said, found) in [
        ("num_hidden_layers", model.layers, layers),
        ("hidden_size", model.hidden, hidden),
        ("intermediate_size", model.intermediate, intermediate),
        ("max_position_embeddings", model.max_positions, positions),
        ("type_vocab_size", model.type_vocab, types),
        ("vocab_size", model.vocab_size, rows),
    ] {
        let fits = if key == "vocab_size" { said <= found } else { said == found };
        if !fits {
            let file = source.path().display();
            return Err(Error::file(
                path,
                format!(
                    "{key}: {said}, the tensors of {file} have {found}; name the configuration of this model"
                ),
            ));
        }
    }
    match source.heads() {
        Some(heads) if heads != model.heads => {
            let (said, file) = (model.heads, source.path().display());
            let what = format!(
                "num_attention_heads: {said}, the tensors of {file} have {heads}; name the configuration of this model"
            );
            Err(Error::file(path, what))
        }
        _ => Ok(model),
    }
}

/// The number of heads without a configuration: as the shapes say, or else a guess of 64 elements each.
fn heads(source: &dyn Source, hidden: usize) -> Result<usize> {
    if let Some(heads) = source.heads() {
        return match (1..=hidden).contains(&heads) && hidden.is_multiple_of(2 * heads) {
            true => Ok(heads),
            false => Err(Error::file(
                source.path(),
                format!(
                    "hidden size {hidden} does not give {heads} heads of one even size; fetch the file again"
                ),
            )),
        };
    }
    if hidden.is_multiple_of(HEAD_SIZE) && hidden >= LEAST_HIDDEN {
        return Ok(hidden / HEAD_SIZE);
    }
    let why = match hidden.is_multiple_of(HEAD_SIZE) {
        true => format!("hidden size {hidden} is less than that of any published BERT"),
        false => format!("hidden size {hidden} is no multiple of {HEAD_SIZE}"),
    };
    Err(Error::file(
        source.path(),
        format!(
            "{why}, so the number of heads cannot be told; name the model's configuration with --config, or put it beside \
             the file as config.json"
        ),
    ))
}

/// Rows of the word embeddings behind the last one that is not 0.
fn zero_rows(source: &mut dyn Source, found: &Found, sizes: &Sizes) -> Result<usize> {
    let Some(&(number, _)) = found.parameters.get(WORD) else { return Ok(0) };
    check_type(source, number)?;
    source.check(number)?;
    let (mut row, mut used) = (0, 0);
    source.read(number, sizes.hidden, &mut |piece| {
        for values in piece.chunks(sizes.hidden) {
            row += 1;
            if values.iter().any(|&x| x != 0.0) {
                used = row;
            }
        }
    })?;
    Ok(sizes.rows - used)
}

/// Sets the number of tokens to that of the vocabulary, or else of the configuration, where the other rows are padding:
/// all 0, or few enough to make a handy multiple.
pub(super) fn fit_vocabulary(
    source: &mut dyn Source,
    found: &Found,
    sizes: &Sizes,
    given: &Given<'_>,
    model: &mut ModelConfig,
) -> Result<Option<Padding>> {
    let (rows, said) = (sizes.rows, model.vocab_size);
    let tokens = given.vocab.map_or(said, |(_, tokens)| tokens);
    let file = source.path().display().to_string();
    if let (Some((path, _)), true) = (given.vocab, tokens > rows) {
        return Err(Error::file(
            path,
            format!(
                "has {tokens} tokens, the model {rows}; name the vocabulary that the model was trained with"
            ),
        ));
    }
    if let (Some(config), Some((vocab, _))) = (given.config, given.vocab)
        && said != rows
        && said != tokens
    {
        let vocab = vocab.display();
        let what = format!(
            "vocab_size: {said}, {vocab} has {tokens} tokens and the word embeddings of {file} {rows} rows; name the \
             configuration and the vocabulary of this model"
        );
        return Err(Error::file(config, what));
    }
    if tokens == rows {
        return Ok(None);
    }
    let zeros = zero_rows(source, found, sizes)?;
    let all_zeros = rows - tokens <= zeros;
    if !all_zeros && !is_padded(tokens, rows) {
        let used = rows - zeros;
        return Err(match (given.vocab, given.config) {
            (Some((path, _)), _) => Error::file(
                path,
                format!(
                    "has {tokens} tokens, the word embeddings of {file} have {rows} rows, more than padding would be; name \
                     the vocabulary that the model was trained with (--vocab)"
                ),
            ),
            (None, config) => Error::file(
                config.unwrap_or(source.path()),
                format!(
                    "vocab_size: {said}, the word embeddings have {rows} rows, up to row {used} not all 0; name the \
                     configuration of this model"
                ),
            ),
        });
    }
    model.vocab_size = if given.keep_padding { rows } else { tokens };
    Ok(Some(Padding { tokens, rows: rows - tokens, zeros: all_zeros, kept: given.keep_padding }))
}
