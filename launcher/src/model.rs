//! Models as eval, fill-mask and inspect read them.

use anyhow::bail;
use engine::checkpoint::hf;
use engine::config::ModelConfig;
use engine::data::tokenize::TokenizerFiles;
use engine::model::Bert;
use engine::table::TensorTable;
use kernels::Backend;
use std::path::{Path, PathBuf};

/// The file that makes a folder a model's.
pub const CONFIG: &str = "config.json";
/// Its weights.
pub const WEIGHTS: &str = "model.safetensors";
/// Its vocabulary.
pub const VOCAB: &str = "vocab.txt";

/// A model as its folder has it.
pub struct Model {
    /// Its folder.
    pub dir: PathBuf,
    /// Its sizes.
    pub config: ModelConfig,
    /// Whether it has a next-sentence head that was trained.
    pub has_nsp: bool,
    table: TensorTable,
    weights: Vec<f32>,
}

impl Model {
    /// Reads a model folder, or that of a run folder.
    ///
    /// # Errors
    /// What [`hf::import`] says, and a model without an MLM head.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let dir = folder(path);
        let imported = hf::import(&dir)?;
        imported.check_finite(&dir)?;
        let lacks = |prefix: &str| imported.missing.iter().any(|name| name.starts_with(prefix));
        if lacks("cls.predictions.") {
            let dir = dir.display();
            bail!(
                "{dir}: {WEIGHTS} has no MLM head (cls.predictions.…); use a model trained with BertForPreTraining"
            );
        }
        for name in &imported.ignored {
            tracing::info!("{}: {name} is not part of the model", dir.display());
        }
        let has_nsp = !lacks("bert.pooler.") && !lacks("cls.seq_relationship.");
        let hf::Imported { model: config, table, weights, .. } = imported;
        Ok(Self { dir, config, has_nsp, table, weights })
    }

    /// The model on a device, ready to predict.
    pub fn on<B: Backend<Acc = f32>>(&self, backend: B) -> anyhow::Result<Bert<B>> {
        let mut bert = Bert::new(backend, &self.config)?;
        bert.load_weights(&self.weights)?;
        Ok(bert)
    }

    /// One line: sizes and parameters.
    pub fn describe(&self) -> String {
        describe(&self.config, self.table.parameters())
    }

    /// The tokenizer that lies beside the weights; none where there is no vocabulary.
    ///
    /// # Errors
    /// Files that are damaged, or not those of this model.
    pub fn own_tokenizer(&self) -> anyhow::Result<Option<TokenizerFiles>> {
        let Some(files) = TokenizerFiles::of_model(&self.dir)? else { return Ok(None) };
        if files.vocab.len() > self.config.vocab_size {
            let (path, tokens, size) = (files.path.display(), files.vocab.len(), self.config.vocab_size);
            bail!(
                "{path}: has {tokens} tokens, the model {size}; use the vocabulary that the model was trained with"
            );
        }
        Ok(Some(files))
    }

    /// The tokenizer that lies beside the weights.
    ///
    /// # Errors
    /// None there, or those of [`Self::own_tokenizer`].
    pub fn tokenizer(&self) -> anyhow::Result<TokenizerFiles> {
        let Some(files) = self.own_tokenizer()? else {
            bail!(
                "{}: holds no {VOCAB}; name a model folder that has one, or copy it there",
                self.dir.display()
            );
        };
        Ok(files)
    }
}

/// What is said of a model whose weights are finite, but so large that what it computes is not.
pub fn useless(model: &Model, what: &str) -> String {
    format!(
        "{}: {what} is not finite: the weights are too large to compute with, as after training at too high a rate; use an \
         earlier checkpoint",
        model.dir.display()
    )
}

/// A model folder itself, or the one in a run folder.
pub fn folder(path: &Path) -> PathBuf {
    let inner = path.join("model");
    if !path.join(CONFIG).is_file() && inner.join(CONFIG).is_file() { inner } else { path.to_owned() }
}

/// One line: sizes and parameters.
pub fn describe(config: &ModelConfig, parameters: usize) -> String {
    let ModelConfig { layers, hidden, heads, intermediate, max_positions, vocab_size, .. } = config;
    let parameters = crate::format::count(parameters as u64);
    format!(
        "BERT, {layers} layers of {hidden} ({heads} heads, intermediate {intermediate}), {max_positions} positions, \
         {vocab_size} tokens, {parameters} parameters"
    )
}
