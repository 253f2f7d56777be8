//! Reads a BERT from a Hugging Face folder or from one of our checkpoints.

use super::super::shards::Index;
use super::super::staging::{Digest, read_small};
use super::super::tensor_file::{Entry, TensorFile, unsupported};
use super::super::train_state::{Manifest, STATE};
use super::super::{CONFIG, MODEL, verify};
use super::names::canonical;
use super::{config, vocabulary};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::table::{Init, Tensor, TensorTable};
use kernels::cpu::memory::zeros;
use safetensors::Dtype;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const WORD: &str = "bert.embeddings.word_embeddings.weight";
const BIAS: &str = "cls.predictions.bias";
const DECODER_WEIGHT: &str = "cls.predictions.decoder.weight";
const DECODER_BIAS: &str = "cls.predictions.decoder.bias";
/// Beside the files of a model that is saved in several.
const INDEX: &str = "model.safetensors.index.json";

/// A model from elsewhere.
#[derive(Debug, Clone)]
pub struct Imported {
    /// What config.json says.
    pub model: ModelConfig,
    /// Its table.
    pub table: TensorTable,
    /// Parameters in the table's order, padding 0. A missing tensor is 0, a missing layernorm weight 1.
    pub weights: Vec<f32>,
    /// Tensors that the file lacks: of the pooler and the heads only, embeddings and layers are always there.
    pub missing: Vec<String>,
    /// Tensors of the file that the model has no place for, a classifier for example.
    pub ignored: Vec<String>,
    /// The files of weights that were read.
    pub files: Vec<PathBuf>,
}

impl Imported {
    /// Refuses weights that no model can compute with; `dir` is where they come from.
    ///
    /// # Errors
    /// Names the first tensor that has a value that is not finite.
    pub fn check_finite(&self, dir: &Path) -> Result<()> {
        let broken = |t: &&Tensor| self.weights[t.range()].iter().any(|w| !w.is_finite());
        match self.table.tensors.iter().find(broken) {
            None => Ok(()),
            Some(tensor) => Err(Error::file(
                match self.files.as_slice() {
                    [file] => file.as_path(),
                    _ => dir,
                },
                format!(
                    "{} holds a value that is not finite; fetch the file again or choose another",
                    tensor.name
                ),
            )),
        }
    }
}

/// What becomes of a tensor in the file.
enum Target {
    /// Number in the table.
    Table(usize),
    /// A copy of the word embeddings, or of the MLM bias.
    Tied(&'static str),
    /// A buffer that is no parameter.
    Buffer,
    /// No place for it.
    Ignored,
}

/// Reads a model folder, whose weights may lie in several files with an index. Tensors may be f32, f16 or bf16, with or
/// without the prefix `bert.` and those of wrappers, layernorm's named `gamma` and `beta` as in old checkpoints. In a
/// checkpoint of ours the checksums are verified too.
///
/// # Errors
/// Names file, field and number: another model family, an unknown activation, sizes that make no sense or do not go
/// with the tensors, a missing file or tensor, a wrong shape or type, a decoder that is not tied, a vocab.txt of another
/// size.
pub fn import(dir: &Path) -> Result<Imported> {
    let (config_path, mut files) = find(dir)?;
    let bytes = read_small(&config_path, config::LIMIT)?;
    let parsed = config::parse(&config_path, &bytes)?;
    let manifest = dir.join(STATE).is_file().then(|| Manifest::read(dir)).transpose()?;
    let checked = |name: &str, path: &Path, found: &Digest| match manifest.as_ref().map(|m| m.files.get(name))
    {
        Some(Some(promised)) => verify(path, found, promised),
        Some(None) => {
            Err(Error::file(dir.join(STATE), format!("files.{name} is missing; use another checkpoint")))
        }
        None => Ok(()),
    };
    checked(CONFIG, &config_path, &Digest::of(&bytes))?;

    let elements = parsed.encoder_elements();
    let available: u64 = files.iter().map(TensorFile::data_bytes).sum();
    if elements * 2 > u128::from(available) {
        return Err(Error::file(
            &config_path,
            format!(
                "describes {elements} elements without heads, {MODEL} has only {available} bytes; the two files do \
                 not belong together"
            ),
        ));
    }
    let model = parsed.0;
    let table = TensorTable::new(&model);
    let plan = Plan::new(&model, &table, &files)?;
    let weights = plan.read(&table, &mut files)?;
    for file in &files {
        checked(MODEL, file.path(), &file.digest())?;
    }
    let row = |number: usize| &weights[table.word.start + number * model.hidden..][..model.hidden];
    vocabulary::check_beside(dir, model.vocab_size, |number| row(number).iter().all(|&x| x == 0.0))?;
    let Plan { missing, ignored, .. } = plan;
    let files = files.iter().map(|file| file.path().to_owned()).collect();
    Ok(Imported { model, table, weights, missing, ignored, files })
}

/// config.json and the open files of a model folder, or what to do instead.
fn find(dir: &Path) -> Result<(PathBuf, Vec<TensorFile>)> {
    let (config, model, index) = (dir.join(CONFIG), dir.join(MODEL), dir.join(INDEX));
    if !dir.is_dir() {
        return Err(Error::file(dir, "is not a folder; name a model folder or a checkpoint folder"));
    }
    if !config.is_file() {
        let inner = dir.join("model");
        let remedy = match inner.join(CONFIG).is_file() {
            true => format!("name {} instead", inner.display()),
            false => "name a folder with config.json and model.safetensors".to_owned(),
        };
        return Err(Error::file(dir, format!("holds no {CONFIG}; {remedy}")));
    }
    if model.is_file() {
        return Ok((config, vec![TensorFile::open(&model)?]));
    }
    if index.is_file() {
        let index = Index::read(&index)?;
        let files = index.files().iter().map(|path| TensorFile::open(path)).collect::<Result<Vec<_>>>()?;
        index.check(files.iter().map(|file| {
            let names = file.entries.iter().map(|entry| entry.name.as_str());
            (file.path(), names.collect())
        }))?;
        return Ok((config, files));
    }
    let others = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];
    let found = others.into_iter().find(|name| dir.join(name).is_file());
    let remedy = match found {
        Some(name) if name.starts_with("pytorch_model") => {
            format!(
                "make a folder that does of it with `launcher import pytorch {} --out DIR`",
                dir.display()
            )
        }
        _ => "save the model with save_pretrained, which writes it".to_owned(),
    };
    let found = found.map(|name| format!(", only {name}")).unwrap_or_default();
    Err(Error::file(dir, format!("holds no {MODEL}{found}; {remedy}")))
}

/// What becomes of each tensor of the files, in their order.
struct Plan {
    targets: Vec<Target>,
    missing: Vec<String>,
    ignored: Vec<String>,
}

impl Plan {
    fn new(model: &ModelConfig, table: &TensorTable, files: &[TensorFile]) -> Result<Self> {
        let numbers: HashMap<&str, usize> =
            table.tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let mut from: HashMap<String, &str> = HashMap::new();
        let (mut targets, mut ignored) = (Vec::new(), Vec::new());
        let entries =
            files.iter().flat_map(|file| file.entries.iter().map(move |entry| (file.path(), entry)));
        for (path, entry) in entries {
            let name = canonical(&entry.name);
            let (target, shape) = match (numbers.get(name.as_str()), name.as_str()) {
                (Some(&i), _) => (Target::Table(i), Some(table.tensors[i].shape.clone())),
                (_, DECODER_WEIGHT) => (Target::Tied(WORD), Some(vec![model.vocab_size, model.hidden])),
                (_, DECODER_BIAS) => (Target::Tied(BIAS), Some(vec![model.vocab_size])),
                (_, "bert.embeddings.position_ids" | "bert.embeddings.token_type_ids") => {
                    (Target::Buffer, None)
                }
                (_, other) if other.starts_with("bert.encoder.layer.") => {
                    let layers = model.layers;
                    let what = format!("{} has no place in {layers} layers; compare {CONFIG}", entry.name);
                    return Err(Error::file(path, what));
                }
                (_, other) if other.starts_with("bert.encoder.") || other.starts_with("bert.embeddings.") => {
                    let what = format!("{} is no part of a BERT encoder; choose another model", entry.name);
                    return Err(Error::file(path, what));
                }
                _ => {
                    ignored.push(entry.name.clone());
                    (Target::Ignored, None)
                }
            };
            if let Some(shape) = shape {
                check(path, entry, &shape)?;
                if let Some(first) = from.insert(name, &entry.name) {
                    return Err(Error::file(
                        path,
                        format!("{first} and {} are the same tensor; remove one", entry.name),
                    ));
                }
            }
            targets.push(target);
        }
        let present = |name: &str| from.contains_key(name) || name == BIAS && from.contains_key(DECODER_BIAS);
        let missing: Vec<String> =
            table.tensors.iter().map(|t| &t.name).filter(|n| !present(n)).cloned().collect();
        let needed: Vec<&String> =
            missing.iter().filter(|n| n.starts_with("bert.") && !n.starts_with("bert.pooler.")).collect();
        if let Some(first) = needed.first() {
            let count = needed.len();
            return Err(Error::file(
                files[0].path(),
                format!(
                    "{first} is missing ({count} in all); choose a folder that holds a whole BERT encoder"
                ),
            ));
        }
        Ok(Self { targets, missing, ignored })
    }

    fn read(&self, table: &TensorTable, files: &mut [TensorFile]) -> Result<Vec<f32>> {
        let mut weights = zeros("weights", table.len)?;
        for tensor in table.tensors.iter().filter(|t| t.init == Init::Ones) {
            weights[tensor.range()].fill(1.0);
        }
        let mut copies = Vec::new();
        let mut bias_found = false;
        let mut targets = self.targets.iter();
        for file in files {
            for target in targets.by_ref().take(file.entries.len()) {
                match target {
                    Target::Table(i) => {
                        let tensor = &table.tensors[*i];
                        bias_found |= tensor.name == BIAS;
                        file.read(&mut weights[tensor.range()])?;
                    }
                    Target::Tied(name) => {
                        let Some(tensor) = table.find(name) else { continue };
                        let mut copy = vec![0.0; tensor.len()];
                        file.read(&mut copy)?;
                        copies.push((file.path().to_owned(), tensor, copy));
                    }
                    Target::Buffer | Target::Ignored => file.skip()?,
                }
            }
        }
        for (path, tensor, copy) in copies {
            let own = &mut weights[tensor.range()];
            if tensor.name == BIAS && !bias_found {
                own.copy_from_slice(&copy);
            } else if !own.iter().zip(&copy).all(|(a, b)| a.to_bits() == b.to_bits()) {
                let what = format!(
                    "cls.predictions.decoder differs from {}; only models with a tied decoder can be read",
                    tensor.name
                );
                return Err(Error::file(path, what));
            }
        }
        Ok(weights)
    }
}

fn check(path: &Path, entry: &Entry, shape: &[usize]) -> Result<()> {
    if entry.shape != shape {
        let (name, found) = (&entry.name, &entry.shape);
        return Err(Error::file(
            path,
            format!("{name} has shape {found:?}, {CONFIG} asks for {shape:?}; compare the two"),
        ));
    }
    if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(Error::file(path, unsupported(&entry.name, entry.dtype)));
    }
    Ok(())
}
