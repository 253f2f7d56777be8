//! The configuration of a run: what a TOML file says, with every default, and its one [`Config::validate`].

mod hash;
mod load;
#[cfg(test)]
mod tests;
mod validate;

pub use load::Given;

use kernels::backend::Gelu;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A whole run. Every field has a default; the resolved configuration is written beside the run's results.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The model's sizes.
    pub model: ModelConfig,
    /// Where the data lies, or how to prepare it.
    pub data: DataConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// AdamW or LAMB.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// Several processes.
    pub ranks: RanksConfig,
    /// Which of the keys above were given; no key itself.
    #[serde(skip)]
    pub given: Given,
}

/// Published sizes: tiny 2x128, mini 4x256, small 4x512, medium 8x512 (Turc et al., 2019), base 12x768,
/// large 24x1024 (Devlin et al., 2019); heads of 64, intermediate 4 times hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Preset {
    Tiny,
    Mini,
    Small,
    Medium,
    Base,
    Large,
}

/// A model's sizes. In TOML, `preset` gives layers, hidden, heads and intermediate; keys beside it override it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Transformer layers.
    pub layers: usize,
    /// H, a multiple of `heads`.
    pub hidden: usize,
    /// Attention heads; the head size is `hidden / heads` and even.
    pub heads: usize,
    /// F, the feed-forward part's inner size.
    pub intermediate: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Number of token types.
    pub type_vocab: usize,
    /// Number of tokens; 0 takes it from the data.
    pub vocab_size: usize,
    /// `tanh` or `erf`.
    #[serde(with = "gelu_name")]
    pub gelu: Gelu,
    /// Dropout after embeddings, attention and feed-forward.
    pub hidden_dropout: f64,
    /// Dropout of attention weights.
    pub attention_dropout: f64,
    /// Added to layernorm's variance.
    pub layer_norm_eps: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Start from this Hugging Face folder or checkpoint instead of random weights. The sizes are the model's; those given
    /// must agree with them, except for fewer `max_positions`, which keep the first position embeddings.
    pub init_from: Option<PathBuf>,
    /// With `init_from`: lets the vocabulary have more tokens than the model's, behind them, and says how their rows start.
    pub resize_vocab: Option<NewRows>,
    /// With `init_from`: lets `max_positions` be more than the model's, and says how the new position embeddings start.
    pub extend_positions: Option<Extension>,
}

/// How the word embeddings and MLM biases of new tokens start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewRows {
    /// Each as the mean of the model's rows, so that a new token is as likely as an average one (Hewitt, 2021,
    /// "Initializing New Word Embeddings for Pretrained Language Models").
    Mean,
    /// Drawn as for a new model, with `initializer_range` and `train.seed`; biases 0.
    Random,
}

/// How position embeddings start that the model does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extension {
    /// The model's own, repeated from the first as often as needed (Beltagy et al., 2020, "Longformer", section 5).
    Tile,
    /// Drawn as for a new model, with `initializer_range` and `train.seed`.
    Random,
}

/// Where the data lies. If `dir` holds no manifest and `prepare.input` is given, the data is prepared there first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The shard folder.
    pub dir: PathBuf,
    /// How to make it.
    pub prepare: PrepareConfig,
}

/// How text becomes shards: the options of `launcher prepare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrepareConfig {
    /// Whose steps and draws. It gives the defaults of the other keys; see [`PrepareConfig::of`].
    pub recipe: Recipe,
    /// Files or folders.
    pub input: Vec<PathBuf>,
    /// Field of JSON Lines and Parquet that holds the text, names within names separated by dots; `text` if none is
    /// given. CSV and TSV are read only with one.
    pub text_field: Option<String>,
    /// Leave bad rows out and count them, instead of ending at the first.
    pub skip_bad: bool,
    /// vocab.txt, a tokenizer.json or a model's folder; or else `train_vocab`.
    pub vocab: Option<PathBuf>,
    /// Train a WordPiece vocabulary of this many tokens on the input.
    pub train_vocab: Option<usize>,
    /// Text becomes lower case; where it is not given, what the files beside the vocabulary say, or what its tokens tell. A
    /// vocabulary that is trained is uncased.
    pub lowercase: Option<bool>,
    /// Accents are removed; where it is not given, what the files beside the vocabulary say, or the value of `lowercase`.
    pub strip_accents: Option<bool>,
    /// Each Chinese character is a word of its own; where it is not given, what the files beside the vocabulary say, or true.
    pub tokenize_chinese_chars: Option<bool>,
    /// Most characters of the alphabet of `train_vocab`, the most frequent ones; none for as many as there is room for.
    pub alphabet_limit: Option<usize>,
    /// Tokens of the longest sequence, [CLS] and [SEP] included.
    pub max_seq_length: usize,
    /// What a line of plain text is.
    pub split: Split,
    /// Sentence pairs with a next-sentence label; otherwise full sentences.
    pub nsp: bool,
    /// Masks drawn at load time, or stored.
    pub masking: Masking,
    /// Predict all pieces of a word or none of them.
    pub whole_word_masking: bool,
    /// How often each document is used, each time cut and masked anew.
    pub dupe_factor: usize,
    /// Share of tokens to predict.
    pub masked_lm_prob: f64,
    /// Most tokens to predict in one sequence.
    pub max_predictions: usize,
    /// Share of sequences that are cut shorter at random.
    pub short_seq_prob: f64,
    /// Share of documents held out for evaluation.
    pub eval_fraction: f64,
    /// The evaluation text, of which all is held out; for the recipe `mlperf`.
    pub eval_input: Option<PathBuf>,
    /// Sequences kept of the evaluation text's.
    pub eval_records: usize,
    /// Of everything drawn.
    pub seed: u64,
}

/// Whose steps and draws preparation follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Ours: streaming, of any size, split into training and evaluation text.
    Standard,
    /// Those of MLPerf's create_pretraining_data.py, draw for draw.
    Mlperf,
}

/// What a line of plain text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// One sentence a line, a blank line between documents.
    Lines,
    /// Prose, to be split into sentences; a blank line ends a paragraph, a file is a document.
    Sentences,
}

/// When masks are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Masking {
    /// At load time: every epoch differs, every run repeats.
    Dynamic,
    /// At preparation, stored in the shards.
    Static,
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The run folder.
    pub run: PathBuf,
    /// `auto`, `cpu` or `cuda`.
    pub device: Device,
    /// In which precision weights and activations are read and written: `auto` is bf16 on GPUs and f32 on CPUs.
    pub precision: Precision,
    /// Queue each step on the GPU as one graph. Changes no result.
    pub graph: bool,
    /// Updates of the weights.
    pub steps: u64,
    /// Of initialization, order, masks and dropout.
    pub seed: u64,
    /// Sequences of one update; 0 if `batch_tokens` is given instead.
    pub batch_sequences: usize,
    /// Token budget of one update: as many sequences as fit; 0 for `batch_sequences`.
    pub batch_tokens: usize,
    /// Micro-batches of one update, each `1 / accumulation` of the batch.
    pub accumulation: usize,
    /// Steps between lines of metrics.
    pub log_every: u64,
    /// Sequences trained between evaluations; 0 evaluates at the end only.
    pub eval_every: u64,
    /// Sequences of one evaluation; 0 for all.
    pub eval_sequences: usize,
    /// MLM accuracy on held-out text that ends the run.
    pub target_accuracy: Option<f64>,
    /// Steps between checkpoints; 0 for the end only.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept, besides the best.
    pub keep_checkpoints: usize,
    /// What a non-finite loss or gradient does.
    pub on_nonfinite: OnNonFinite,
    /// With `on_nonfinite = "skip"`: the run ends after so many skipped steps in a row. A skipped step leaves the weights as
    /// they are, so the next ones differ in text and dropout only: what fails on 20 batches in a row fails because of the
    /// weights, and skipping cannot mend them.
    pub nonfinite_limit: u64,
    /// CPU threads; 0 for all cores.
    pub threads: usize,
    /// Activations that are computed twice instead of kept: those of `none`, or of each `layer`. The results are the same
    /// bits.
    pub recompute: Recompute,
    /// Sentences with a [MASK], which the trained model answers when the run is done.
    pub fill_mask: Vec<String>,
}

/// Which activations backward computes once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// None: forward keeps all.
    #[default]
    None,
    /// Those of each layer, of which forward keeps the input only.
    Layer,
}

/// How several processes train one model. None of it changes what is computed, except that bf16 rounds and that clipping
/// before the sum clips otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RanksConfig {
    /// Each process updates its share of the weights and keeps only that share's moments (ZeRO-1).
    pub shard_optimizer: bool,
    /// Gradients travel while backward goes on, in buckets of at least so many elements.
    pub bucket_elements: usize,
    /// How gradients travel: `f32` or `bf16`.
    pub gradients: GradientWire,
    /// Whether gradients are clipped `after` they are summed over processes, or each process's own `before`; MLPerf allows
    /// both.
    pub clip: ClipOrder,
    /// How long the processes wait for each other until the first step is done, in seconds.
    pub start_seconds: u64,
    /// How long they wait for one in later steps before it is taken for hung, in seconds; ten times its longest work so far
    /// if that is more. Without any sign of life, half as long.
    pub hang_seconds: u64,
}

impl Default for RanksConfig {
    fn default() -> Self {
        Self {
            shard_optimizer: true,
            bucket_elements: 4 << 20,
            gradients: GradientWire::F32,
            clip: ClipOrder::After,
            start_seconds: 120,
            hang_seconds: 20,
        }
    }
}

/// When gradients are clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipOrder {
    /// Once they are summed over processes.
    After,
    /// Each process's own, to its share of the norm; the sum then waits for all of backward.
    Before,
}

/// The format in which gradients travel between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientWire {
    /// As they are.
    F32,
    /// Rounded to bf16; on CPUs added in f32, between GPUs every partial sum is rounded again.
    Bf16,
}

/// Where to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Device {
    Auto,
    Cpu,
    Cuda,
}

/// The type of weights and activations; master weights, moments, sums and statistics are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Precision {
    Auto,
    F32,
    Bf16,
}

/// What a non-finite loss or gradient does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// End the run with a message; the last good checkpoint stays.
    Stop,
    /// Skip the update, count it, go on.
    Skip,
}

/// The optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw` or `lamb`.
    pub kind: OptimizerKind,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; not for biases and layernorms.
    pub weight_decay: f64,
    /// Gradients are clipped to this global norm; 0 for no clipping.
    pub clip_norm: f64,
}

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OptimizerKind {
    AdamW,
    Lamb,
}

/// The learning rate over time; steps count from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// What follows the warmup.
    pub kind: ScheduleKind,
    /// Base learning rate.
    pub lr: f64,
    /// Steps of linear warmup.
    pub warmup_steps: i64,
    /// MLPerf's `start_warmup_step`: the warmup counts from here, and may lie below 0.
    pub start_warmup_step: i64,
    /// Steps over which the decay runs; 0 for `train.steps`.
    pub total_steps: u64,
    /// Learning rate at the end, for `linear`, `cosine` and `polynomial`.
    pub end_lr: f64,
    /// Exponent of `polynomial`.
    pub power: f64,
}

/// What follows the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ScheduleKind {
    Polynomial,
    Linear,
    Cosine,
    Constant,
}

mod gelu_name {
    use super::Gelu;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub fn serialize<S: Serializer>(gelu: &Gelu, s: S) -> Result<S::Ok, S::Error> {
        match gelu {
            Gelu::Tanh => "tanh",
            Gelu::Erf => "erf",
        }
        .serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Gelu, D::Error> {
        match String::deserialize(d)?.as_str() {
            "tanh" => Ok(Gelu::Tanh),
            "erf" => Ok(Gelu::Erf),
            other => Err(de::Error::unknown_variant(other, &["tanh", "erf"])),
        }
    }
}

impl Preset {
    /// Keys of the model that a preset gives.
    pub const SIZES: [&str; 4] = ["layers", "hidden", "heads", "intermediate"];

    /// The preset's model; the vocabulary's size is left open.
    pub fn model(self) -> ModelConfig {
        let (layers, hidden) = match self {
            Self::Tiny => (2, 128),
            Self::Mini => (4, 256),
            Self::Small => (4, 512),
            Self::Medium => (8, 512),
            Self::Base => (12, 768),
            Self::Large => (24, 1024),
        };
        ModelConfig {
            layers,
            hidden,
            heads: hidden / 64,
            intermediate: 4 * hidden,
            max_positions: 512,
            type_vocab: 2,
            vocab_size: 0,
            gelu: Gelu::Tanh,
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            layer_norm_eps: 1e-12,
            initializer_range: 0.02,
            init_from: None,
            resize_vocab: None,
            extend_positions: None,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Preset::Base.model()
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { dir: "runs/data".into(), prepare: PrepareConfig::default() }
    }
}

impl PrepareConfig {
    /// The field that holds the text.
    pub fn field(&self) -> &str {
        self.text_field.as_deref().unwrap_or("text")
    }

    /// The defaults of a recipe. MLPerf's are those of its dataset: sequences of 512 tokens, 76 predictions, 10 masks of each
    /// document, stored, the seed 12345, and no text held out but that of `eval_input`.
    pub fn of(recipe: Recipe) -> Self {
        let standard = Self::default();
        match recipe {
            Recipe::Standard => standard,
            Recipe::Mlperf => {
                Self { recipe, masking: Masking::Static, dupe_factor: 10, eval_fraction: 0.0, ..standard }
            }
        }
    }
}

impl Default for PrepareConfig {
    fn default() -> Self {
        Self {
            recipe: Recipe::Standard,
            input: Vec::new(),
            text_field: None,
            skip_bad: false,
            vocab: None,
            train_vocab: None,
            lowercase: None,
            strip_accents: None,
            tokenize_chinese_chars: None,
            alphabet_limit: None,
            max_seq_length: 512,
            split: Split::Lines,
            nsp: true,
            masking: Masking::Dynamic,
            whole_word_masking: false,
            dupe_factor: 1,
            masked_lm_prob: 0.15,
            max_predictions: 76,
            short_seq_prob: 0.1,
            eval_fraction: 0.02,
            eval_input: None,
            eval_records: 10_000,
            seed: 12345,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            run: "runs/default".into(),
            device: Device::Auto,
            precision: Precision::Auto,
            graph: false,
            steps: 1000,
            seed: 1,
            batch_sequences: 32,
            batch_tokens: 0,
            accumulation: 1,
            log_every: 10,
            eval_every: 0,
            eval_sequences: 0,
            target_accuracy: None,
            checkpoint_every: 500,
            keep_checkpoints: 2,
            on_nonfinite: OnNonFinite::Stop,
            nonfinite_limit: 20,
            threads: 0,
            recompute: Recompute::None,
            fill_mask: Vec::new(),
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.01,
            clip_norm: 1.0,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Linear,
            lr: 1e-4,
            warmup_steps: 0,
            start_warmup_step: 0,
            total_steps: 0,
            end_lr: 0.0,
            power: 1.0,
        }
    }
}
