//! Checkpoints of other frameworks, turned into Hugging Face folders: TensorFlow's bundles, which MLPerf's start
//! checkpoint is, and PyTorch's files. Nothing of a file is run, sizes are checked before memory is taken for them, and
//! tensors are read one by one: memory is that of the model's weights in f32.

mod bundle;
mod names;
mod pickle;
mod plan;
mod sizes;
mod source;
mod sstable;
#[cfg(test)]
mod tests;
mod torch;
mod wire;

pub use names::Role;
pub use source::{Dtype, Stored};

use super::hf;
use crate::config::ModelConfig;
use crate::data::tokenize::{PartialSettings, TokenizerFiles};
use crate::error::{Error, Result};
use crate::table::TensorTable;
use bundle::Bundle;
use kernels::backend::Gelu;
use plan::Plan;
use sizes::Given;
use source::Source;
use std::path::{Path, PathBuf};
use torch::TorchFile;

/// Which framework wrote a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// TensorFlow, a bundle: `PREFIX.index` and `PREFIX.data-…`.
    TensorFlow,
    /// PyTorch, one file of `torch.save`.
    PyTorch,
}

/// What the checkpoint does not say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The model's configuration, config.json or bert_config.json: compared with the tensors, and the source of the
    /// number of heads and the dropouts.
    pub config: Option<PathBuf>,
    /// vocab.txt, a tokenizer.json or a folder with one, for the model's folder; rows of zeros behind its tokens are cut off.
    /// How its text is normalized the files beside it or beside the checkpoint say, or else its tokens.
    pub vocab: Option<PathBuf>,
    /// The activation, whatever the configuration says.
    pub gelu: Option<Gelu>,
}

/// A model read from another framework's checkpoint.
#[derive(Debug, Clone)]
pub struct Converted {
    /// Its sizes.
    pub model: ModelConfig,
    /// Its table.
    pub table: TensorTable,
    /// Parameters in the table's order [table.len], padding 0.
    pub weights: Vec<f32>,
    /// Parameters of the pooler and the heads that the file lacks. They are not exported.
    pub missing: Vec<String>,
    /// Tensors of the file that the model has no place for.
    pub ignored: Vec<String>,
    /// Number of tensors that became parameters.
    pub read: usize,
    /// Number of tensors that belong to an optimizer or a training loop, and were left.
    pub state: usize,
    /// Rows of zeros cut from the end of the word embeddings.
    pub cut_rows: usize,
    /// Whether the format has checksums; then those of all tensors read were right.
    pub has_checksums: bool,
    /// Its vocabulary and tokenizer, if one was named.
    pub tokenizer: Option<TokenizerFiles>,
}

fn open(framework: Framework, path: &Path) -> Result<Box<dyn Source>> {
    Ok(match framework {
        Framework::TensorFlow => Box::new(Bundle::open(path)?),
        Framework::PyTorch => Box::new(TorchFile::open(path)?),
    })
}

fn role_of(framework: Framework) -> &'static dyn Fn(&str) -> Role {
    match framework {
        Framework::TensorFlow => &names::tensorflow,
        Framework::PyTorch => &names::pytorch,
    }
}

/// Every tensor of a checkpoint and what it is, without reading elements.
///
/// # Errors
/// A file that is missing, damaged or of another kind.
pub fn list(framework: Framework, path: &Path) -> Result<Vec<(Stored, Role)>> {
    let source = open(framework, path)?;
    let role = role_of(framework);
    Ok(source.tensors().iter().map(|stored| (stored.clone(), role(&stored.name))).collect())
}

/// Reads a model. `path` is a bundle's prefix or a PyTorch file. Elements may be f32, f64, f16 or bf16.
///
/// # Errors
/// Names file, tensor, numbers and remedy: a file that is missing, damaged or of another kind, a checksum that is wrong,
/// a tensor of the encoder that is missing, a shape or type that does not fit, a configuration of another model, a value
/// that is not finite, a decoder that is not tied.
pub fn read(framework: Framework, path: &Path, options: &Options) -> Result<Converted> {
    let tokenizer = options.vocab.as_deref().map(|vocab| load_tokenizer(vocab, path)).transpose()?;
    let mut source = open(framework, path)?;
    let given = Given { config: options.config.as_deref(), vocab: tokenizer.as_ref().map(|t| t.vocab.len()) };
    let mut plan = Plan::new(source.as_mut(), role_of(framework), &given)?;
    plan.model.gelu = match (options.gelu, framework) {
        (Some(gelu), _) => gelu,
        // Google's configuration says "gelu" and its code computes the tanh form.
        (None, Framework::TensorFlow) => Gelu::Tanh,
        (None, Framework::PyTorch) if options.config.is_some() => plan.model.gelu,
        (None, Framework::PyTorch) => Gelu::Erf,
    };
    let weights = plan.read(source.as_mut())?;
    let read = plan.tensors_read();
    let Plan { model, table, missing, ignored, state, cut_rows, .. } = plan;
    let has_checksums = source.has_checksums();
    Ok(Converted { model, table, weights, missing, ignored, read, state, cut_rows, has_checksums, tokenizer })
}

/// A vocabulary and how its text is normalized, which the files beside the checkpoint may say too.
fn load_tokenizer(vocab: &Path, checkpoint: &Path) -> Result<TokenizerFiles> {
    let files = TokenizerFiles::load(vocab, checkpoint.parent(), PartialSettings::default())?;
    match files.contradiction() {
        Some(what) => Err(Error::config("--vocab", format!("{what}; correct the file that says otherwise"))),
        None => Ok(files),
    }
}

impl Converted {
    /// Writes the Hugging Face folder, with the vocabulary if one was named. Missing tensors are left out, so that whoever
    /// reads the folder knows that they were never trained.
    ///
    /// # Errors
    /// What the system answers; a folder there that holds something else.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let mut tensors = super::views("", &self.table, &self.weights);
        tensors.retain(|(name, _, _)| !self.missing.contains(name));
        let (vocab, settings) = self.tokenizer.as_ref().map(|t| (&t.vocab, t.settings)).unzip();
        hf::export_tensors(dir, &self.model, tensors, vocab, settings)
    }
}

/// Refuses, before anything is read, a folder that [`Converted::export`] would refuse.
///
/// # Errors
/// A folder there that holds something else than a model.
pub fn check_target(dir: &Path) -> Result<()> {
    hf::replaceable(dir)
}
