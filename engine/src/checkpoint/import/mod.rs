//! Checkpoints of other frameworks, turned into Hugging Face folders: TensorFlow's bundles, which MLPerf's start
//! checkpoint is, and PyTorch's files, safetensors among them. Nothing of a file is run, sizes are checked before memory is taken for them, and
//! tensors are read one by one: memory is that of the model's weights in f32.

mod bundle;
mod locate;
mod names;
mod pickle;
mod plan;
mod safetensors;
mod shards;
mod sizes;
mod source;
mod sstable;
mod tensorflow2;
#[cfg(test)]
mod tests;
mod torch;
mod wire;

pub use names::Role;
pub use sizes::Padding;
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

/// Which framework wrote a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// TensorFlow, a bundle: `PREFIX.index` and `PREFIX.data-…`.
    TensorFlow,
    /// PyTorch: files of `torch.save`, or safetensors.
    PyTorch,
}

/// What the checkpoint does not say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The model's configuration, config.json or bert_config.json: compared with the tensors, and the source of the
    /// number of heads and the dropouts. Without one, what lies beside the checkpoint.
    pub config: Option<PathBuf>,
    /// vocab.txt, a tokenizer.json or a folder with one, for the model's folder; rows of padding behind its tokens are cut
    /// off. Without one, what lies beside the checkpoint. How its text is normalized the files beside it or beside the
    /// checkpoint say, or else its tokens.
    pub vocab: Option<PathBuf>,
    /// The activation, whatever the configuration says.
    pub gelu: Option<Gelu>,
    /// Keep the rows of padding.
    pub keep_padding: bool,
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
    /// Rows behind the vocabulary, where there are any.
    pub padding: Option<Padding>,
    /// Whether the number of heads is a guess.
    pub heads_guessed: bool,
    /// The file or prefix that was read.
    pub path: PathBuf,
    /// The configuration that was used, named or found.
    pub config: Option<PathBuf>,
    /// The vocabulary, named or found.
    pub vocab: Option<PathBuf>,
    /// Whether the format has checksums; then those of all tensors read were right.
    pub has_checksums: bool,
    /// Its vocabulary and tokenizer, if there is one.
    pub tokenizer: Option<TokenizerFiles>,
}

fn open(framework: Framework, path: &Path) -> Result<Box<dyn Source>> {
    match framework {
        Framework::TensorFlow => Ok(Box::new(Bundle::open(path)?)),
        Framework::PyTorch => shards::open(path),
    }
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
    let source = open(framework, &locate::checkpoint(framework, path)?)?;
    let role = role_of(framework);
    Ok(source.tensors().iter().map(|stored| (stored.clone(), role(&stored.name))).collect())
}

/// Reads a model. `path` is a bundle's prefix, a file of weights, one of several or their index, or the folder of any of
/// these. Elements may be f32, f64, f16 or bf16.
///
/// # Errors
/// Names file, tensor, numbers and remedy: a file that is missing, damaged or of another kind, a folder of several
/// checkpoints, a checksum that is wrong, a tensor of the encoder that is missing, a shape or type that does not fit, a
/// configuration or vocabulary of another model, a value that is not finite, a decoder that is not tied.
pub fn read(framework: Framework, path: &Path, options: &Options) -> Result<Converted> {
    let path = locate::checkpoint(framework, path)?;
    let config = options.config.clone().or_else(|| locate::config_beside(framework, &path));
    let vocab = options.vocab.clone().or_else(|| locate::vocab_beside(&path));
    let tokenizer = vocab.as_deref().map(|vocab| load_tokenizer(vocab, &path)).transpose()?;
    let tokens = vocab.as_deref().zip(tokenizer.as_ref()).map(|(file, t)| (file, t.vocab.len()));
    let mut source = open(framework, &path)?;
    let given = Given { config: config.as_deref(), vocab: tokens, keep_padding: options.keep_padding };
    let mut plan = Plan::new(source.as_mut(), role_of(framework), &given)?;
    plan.model.gelu = match (options.gelu, framework) {
        (Some(gelu), _) => gelu,
        // Google's configuration says "gelu" and its code computes the tanh form.
        (None, Framework::TensorFlow) => Gelu::Tanh,
        (None, Framework::PyTorch) if config.is_some() => plan.model.gelu,
        (None, Framework::PyTorch) => Gelu::Erf,
    };
    let weights = plan.read(source.as_mut())?;
    let read = plan.tensors_read();
    let Plan { model, table, missing, ignored, state, padding, .. } = plan;
    Ok(Converted {
        model,
        table,
        weights,
        missing,
        ignored,
        read,
        state,
        padding,
        heads_guessed: config.is_none() && source.heads().is_none(),
        has_checksums: source.has_checksums(),
        path,
        config,
        vocab,
        tokenizer,
    })
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
    /// Writes the Hugging Face folder, with the vocabulary if there is one. Missing tensors are left out, so that whoever
    /// reads the folder knows that they were never trained.
    ///
    /// # Errors
    /// What the system answers; a folder there that holds anything.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let mut tensors = super::views("", &self.table, &self.weights);
        tensors.retain(|(name, _, _)| !self.missing.contains(name));
        let (vocab, settings) = self.tokenizer.as_ref().map(|t| (&t.vocab, t.settings)).unzip();
        hf::export_new(dir, &self.model, tensors, vocab, settings)
    }
}

/// Refuses, before anything is read, a folder that [`Converted::export`] would refuse.
///
/// # Errors
/// A folder there that holds anything, a file, a mount point.
pub fn check_target(dir: &Path) -> Result<()> {
    hf::vacant(dir)
}
