//! The command line as clap sees it. Scripts rely on these names: add, never rename.

use crate::mlperf::args::MlperfArgs;
use crate::plan::PlanArgs;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use engine::config;
use engine::data::prepare::PartOf;
use std::path::PathBuf;

const TRAIN_EXAMPLE: &str = "\
Example:
  launcher --config configs/quickstart.toml --run runs/first --set train.batch_sequences=16

Settings come from the defaults, then the configuration file, then --set, then the options above. Relative paths, \
those in a configuration file too, are relative to the current directory.

Exit codes: 0 done; 2 wrong usage; 1 anything else. SIGINT, SIGTERM and SIGHUP end training after the current step \
with a checkpoint written and exit with 128 + the signal's number; a second one ends it at once.

RUST_LOG=info shows more of what is done, RUST_LOG=debug the whole configuration too.";

/// Trains BERT from text: MLM and next-sentence prediction, with hand-written forward and backward passes.
///
/// Without a subcommand it trains.
#[derive(Debug, Parser)]
#[command(name = "launcher", version, args_conflicts_with_subcommands = true, after_help = TRAIN_EXAMPLE)]
pub struct Cli {
    /// What to do; without it, train.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of training.
    #[command(flatten)]
    pub train: TrainArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each one's arguments carry its description")]
pub enum Command {
    Prepare(PrepareArgs),
    Import(ImportArgs),
    Inspect(InspectArgs),
    Eval(EvalArgs),
    FillMask(FillMaskArgs),
    Verify(VerifyArgs),
    Mlperf(MlperfArgs),
    Plan(Box<PlanArgs>),
    Bench(BenchArgs),
    Doctor(DoctorArgs),
}

/// Options of training.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Configuration file in TOML [default: none, every key has its default]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of shards, prepared first if the configuration names an input [key: data.dir, default: runs/data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder for everything the run leaves behind [key: train.run, default: runs/default]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// On what it runs.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Updates of the weights [key: train.steps, default: 1000]
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Seed of initialization, order, masks and dropout [key: train.seed, default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Go on from the newest whole checkpoint of the run folder; without one, start [default: off]
    #[arg(long)]
    pub resume: bool,
    /// Set any configuration key, as in schedule.lr=2e-4; may be repeated [default: none]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// On what to train.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// Where to train [key: train.device, default: auto]
    #[arg(long, value_enum)]
    pub device: Option<Device>,
    /// GPUs to train on, on each machine: as many processes are started as mpirun and the like have not [default: 1 if any]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus: Option<u32>,
    /// Processes to start on this machine, each with its share of the cores [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "gpus", value_parser = clap::value_parser!(u32).range(1..))]
    pub processes: Option<u32>,
}

impl PlaceArgs {
    /// The value of the key `train.device`, if one was given.
    pub fn device_value(&self) -> Option<String> {
        let device = match self.device? {
            Device::Auto => "auto",
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        };
        Some(device.to_owned())
    }
}

/// Turns text into shards of token sequences
///
/// Reads plain text, JSON Lines, Parquet, and CSV or TSV with --text-field, each also compressed (gzip, zstd, bzip2, xz);
/// files, folders, or - for standard input. Writes shards and manifest.json.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher prepare --input data/text --vocab data/vocab.txt --out runs/data --max-seq-length 128
  launcher prepare --recipe mlperf --input results/part-* --vocab vocab.txt --out data
Over two hosts, each with the same input, then on one of them:
  launcher prepare --part 1/2 --input data/text --vocab data/vocab.txt --out part-1
  launcher prepare --part 2/2 --input data/text --vocab data/vocab.txt --out part-2
  launcher prepare --merge part-1 part-2 --out data")]
pub struct PrepareArgs {
    /// Files or folders of text, pipes, or - for standard input [default: none; must be given, except with --merge]
    #[arg(long, required_unless_present = "merge", num_args = 1.., value_name = "PATH")]
    pub input: Vec<PathBuf>,
    /// Field that holds the text, in JSON Lines, Parquet, CSV and TSV; a.b is field b within a [default: text; none for CSV
    /// and TSV]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Leave bad rows of JSON Lines, CSV and TSV out and count them [default: end at the first]
    #[arg(long)]
    pub skip_bad: bool,
    /// Make part I of N only, to be merged with the others; every part takes the same input and options [default: all]
    #[arg(long, value_name = "I/N", conflicts_with = "merge")]
    pub part: Option<PartOf>,
    /// Merge the folders of all parts, in any order, into what one host would have prepared [default: prepare]
    #[arg(long, num_args = 1.., value_name = "DIR", conflicts_with_all = [
        "input", "text_field", "skip_bad", "recipe", "vocab", "train_vocab", "alphabet_limit", "cased", "uncased",
        "strip_accents", "tokenize_chinese_chars", "max_seq_length", "split", "nsp", "no_nsp", "masking",
        "whole_word_masking", "dupe_factor",
        "masked_lm_prob", "max_predictions", "short_seq_prob", "eval_fraction", "eval_input", "eval_records", "seed",
        "threads",
    ])]
    pub merge: Vec<PathBuf>,
    /// Whose steps and draws: ours, or those of MLPerf's create_pretraining_data.py, run once a file. The recipe gives the
    /// defaults of the options below
    #[arg(long, value_enum, default_value_t = Recipe::Standard)]
    pub recipe: Recipe,
    /// WordPiece vocabulary, one token a line; or a model's folder or its tokenizer.json [default: none, --train-vocab instead]
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["train_vocab", "merge"],
        conflicts_with = "train_vocab"
    )]
    pub vocab: Option<PathBuf>,
    /// Train a WordPiece vocabulary of N tokens on the input [default: none, --vocab instead]
    #[arg(long, value_name = "N")]
    pub train_vocab: Option<usize>,
    /// Keep upper and lower case, and accents [default: as the vocabulary's files say, or its tokens]
    #[arg(long, conflicts_with = "uncased")]
    pub cased: bool,
    /// Make text lower case, and remove accents [default: as the vocabulary's files say, or its tokens]
    #[arg(long)]
    pub uncased: bool,
    /// Remove accents [default: as the vocabulary's files say, or where text becomes lower case]
    #[arg(long, value_name = "true|false")]
    pub strip_accents: Option<bool>,
    /// Make each Chinese character a word of its own [default: as the vocabulary's files say, or true]
    #[arg(long, value_name = "true|false")]
    pub tokenize_chinese_chars: Option<bool>,
    /// Leave all but the N most frequent characters out of the vocabulary of --train-vocab; words with others become [UNK]
    /// [default: none, as many as there is room for]
    #[arg(long, value_name = "N", requires = "train_vocab")]
    pub alphabet_limit: Option<usize>,
    /// Folder of the shards
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Tokens of the longest sequence, [CLS] and [SEP] included [default: 512]
    #[arg(long, value_name = "N")]
    pub max_seq_length: Option<usize>,
    /// What plain text is: one sentence a line with a blank line between documents, or prose [default: lines]
    #[arg(long, value_enum)]
    pub split: Option<Split>,
    /// Sentence pairs with a next-sentence label [default: on]
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "no_nsp")]
    pub nsp: bool,
    /// Full sentences without a label [default: off]
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "nsp")]
    pub no_nsp: bool,
    /// Masks drawn anew at load time, or once and stored (mlperf: static) [default: dynamic]
    #[arg(long, value_enum)]
    pub masking: Option<Masking>,
    /// Predict all pieces of a word or none of them [default: off]
    #[arg(long)]
    pub whole_word_masking: bool,
    /// How often each document is used, each time cut and masked anew (mlperf: 10) [default: 1]
    #[arg(long, value_name = "N")]
    pub dupe_factor: Option<usize>,
    /// Share of tokens to predict [default: 0.15]
    #[arg(long, value_name = "P")]
    pub masked_lm_prob: Option<f64>,
    /// Most tokens to predict in one sequence [default: 76]
    #[arg(long, value_name = "N")]
    pub max_predictions: Option<usize>,
    /// Share of sequences cut shorter at random [default: 0.1]
    #[arg(long, value_name = "P")]
    pub short_seq_prob: Option<f64>,
    /// Share of documents held out for evaluation (mlperf: 0) [default: 0.02]
    #[arg(long, value_name = "F")]
    pub eval_fraction: Option<f64>,
    /// Evaluation text, all of it held out; for the recipe mlperf [default: none]
    #[arg(long, value_name = "FILE")]
    pub eval_input: Option<PathBuf>,
    /// Sequences kept of the evaluation text's, evenly spaced [default: 10000]
    #[arg(long, value_name = "N", requires = "eval_input")]
    pub eval_records: Option<usize>,
    /// Seed of everything drawn [default: 12345]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// CPU threads; 0 for all cores. The shards do not depend on it
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    pub threads: usize,
}

/// Takes over what other software made
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What it is.
    #[command(subcommand)]
    pub kind: ImportKind,
}

/// What `launcher import` takes over.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each one's arguments carry its description")]
pub enum ImportKind {
    /// Turns TFRecord files of tf.Example into shards of token sequences
    ///
    /// Reads what the BERT reference's create_pretraining_data.py writes: input_ids, input_mask, segment_ids,
    /// masked_lm_positions, masked_lm_ids, masked_lm_weights, next_sentence_labels; plain or gzip. All checksums are
    /// verified.
    Tfrecord(ImportDataArgs),
    /// Turns HDF5 files of masked sequences into shards of token sequences
    ///
    /// Reads what NVIDIA's BERT preprocessing writes: sequences of fixed length, of variable length, and packed. Which
    /// it is, the datasets of each file tell.
    Hdf5(ImportDataArgs),
    TfCheckpoint(TfCheckpointArgs),
    Pytorch(PytorchArgs),
}

/// Options of both kinds of data.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher import tfrecord tfrecords/train --eval tfrecords/eval_10k --vocab vocab.txt --out runs/data

Masks and next-sentence labels are kept as they are. An import that was interrupted goes on when it is started again \
with the same files. Records are counted from 0 in messages.")]
pub struct ImportDataArgs {
    /// Files or folders of sequences to train on
    #[arg(required = true, value_name = "PATH")]
    pub input: Vec<PathBuf>,
    /// Files or folders of sequences to evaluate on [default: none]
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub eval: Vec<PathBuf>,
    /// WordPiece vocabulary that the ids belong to, one token a line; or a model's folder or its tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub vocab: PathBuf,
    /// Folder of the shards
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Leave bad records out and count them, instead of ending at the first [default: off]
    #[arg(long)]
    pub skip_bad: bool,
    /// CPU threads; 0 for all cores. The shards do not depend on it
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    pub threads: usize,
}

/// Says what a shard folder, run folder, checkpoint, model folder or file of tensors holds
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher inspect runs/quickstart/model
  launcher inspect runs/quickstart --batches 100 --out batches.safetensors")]
pub struct InspectArgs {
    /// A folder of shards, a run folder, a checkpoint, a Hugging Face model folder, a .safetensors file, or a TensorFlow
    /// (.index) or PyTorch (.bin, .pt) checkpoint
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// Write the first N batches that the run of a run folder trains on, and what it evaluates on, to --out, for training
    /// other software on the same [default: none]
    #[arg(long, value_name = "N", requires = "out", value_parser = clap::value_parser!(u64).range(1..))]
    pub batches: Option<u64>,
    /// The file of --batches [default: none]
    #[arg(long, value_name = "FILE.safetensors", requires = "batches")]
    pub out: Option<PathBuf>,
}

/// Measures a model on prepared text: MLM loss, accuracy and perplexity, NSP accuracy
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher eval --model runs/quickstart/model --data runs/quickstart/data")]
pub struct EvalArgs {
    /// Hugging Face model folder, or a run folder or checkpoint
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Folder of shards, prepared with the model's vocabulary
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Which part of the data
    #[arg(long, value_enum, default_value_t = DataSplit::Eval)]
    pub split: DataSplit,
    /// Number of sequences; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub sequences: usize,
    /// Sequences of one batch; changes speed and memory only
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_positive)]
    pub batch_sequences: usize,
    /// Write the first batch and the losses on it to FILE.safetensors, for comparing with other software [default: none]
    #[arg(long, value_name = "FILE")]
    pub dump_batch: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// The type of weights and activations [default: bf16 on GPUs, f32 on CPUs]
    #[arg(long, value_enum)]
    pub precision: Option<DevicePrecision>,
    /// CPU threads; 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    pub threads: usize,
}

/// Predicts the tokens at each [MASK] of a text
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher fill-mask --model runs/quickstart/model \"The capital of [MASK] is Paris.\"")]
pub struct FillMaskArgs {
    /// Hugging Face model folder with its vocab.txt, or a run folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Text with one or more [MASK]
    pub text: String,
    /// Number of tokens shown for each mask
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = parse_positive)]
    pub top: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
}

/// Compares the engine with golden files of another implementation
///
/// Prints the worst relative error of hidden states, logits, losses, gradients and of ten steps of each optimizer,
/// each with its limit. Exits with 1 where a limit is exceeded.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher verify tests/golden/tiny-erf.safetensors --precision f32")]
pub struct VerifyArgs {
    /// Golden files
    #[arg(required = true, value_name = "FILE.safetensors")]
    pub files: Vec<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = VerifyDevice::Cpu)]
    pub device: VerifyDevice,
    /// In which precision to compute: CPUs f64 or f32, GPUs f32 or bf16
    #[arg(long, value_enum, default_value_t = Precision::F64)]
    pub precision: Precision,
}

/// Times whole training steps, on made-up tokens, without loading data
///
/// Forward, backward, clipping and the optimizer, back to back; the median of the second half counts, when the clocks of a
/// GPU at full load have settled. The count of model FLOPs is that of the products of forward and backward. Several processes
/// take each step together, with the same batch each; `launcher plan --step` reads what --json prints.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher bench --config configs/bert-large.toml --device cuda --batch 32
  launcher bench --config configs/bert-large.toml --batch 128 --lengths mlperf --profile
  launcher bench --config configs/bert-large.toml --batch 96 --gpus 8 --json > step.json")]
pub struct BenchArgs {
    /// Configuration file in TOML: model, optimizer, precision [default: none, every key has its default]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// On what it runs.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Sequences of a step in each process [default: train.batch_sequences / train.accumulation, over all processes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
    /// Tokens of a step in each process instead: as many sequences as fit [default: --batch counts]
    #[arg(long, value_name = "N", conflicts_with = "batch", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: Option<u32>,
    /// Lengths of the sequences: `full`, `mlperf` (the benchmark's mix), or a file with one length in a line, taken in turn
    #[arg(long, value_name = "full|mlperf|FILE", default_value = "full")]
    pub lengths: PathBuf,
    /// Steps to time [default: as many as --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: Option<u32>,
    /// Time to run for, if --steps does not say
    #[arg(long, value_name = "S", default_value_t = 12.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// Rows of the square product that is the ceiling; --profile's copy has 16 bytes for each of its elements [default: 8192 on
    /// GPUs, 1536 on CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 17))]
    pub ceiling: Option<u32>,
    /// Time every op too, in a few steps of their own: a table whose rows, with bytes, operations and the share of the ceiling,
    /// add up to the step (GPUs only) [default: off]
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object instead of the table [default: off]
    #[arg(long)]
    pub json: bool,
    /// Set any configuration key, as in model.preset=base; may be repeated [default: none]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Tells what this machine and this build have for training, and what to do about what is missing
///
/// GPUs and their driver, the libraries of CUDA, the kernels in this binary, MPI. The exit code is 1 where a GPU is there and
/// cannot be used.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher doctor --kernels")]
pub struct DoctorArgs {
    /// List every kernel's registers, shared memory and spills too [default: off]
    #[arg(long)]
    pub kernels: bool,
}

/// Turns a TensorFlow checkpoint of a BERT into a Hugging Face folder
///
/// Reads PREFIX.index and PREFIX.data-… of TensorFlow 1, as the start checkpoint of MLPerf, or the encoder of the official
/// BERT in TensorFlow 2, and leaves out the optimizer's variables.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher import tf-checkpoint model.ckpt-28252 --config bert_config.json --vocab vocab.txt --out start")]
pub struct TfCheckpointArgs {
    /// The part of the files' names before .index, or the folder of one checkpoint
    #[arg(value_name = "PREFIX")]
    pub path: PathBuf,
    /// Where the model goes and what the checkpoint does not say.
    #[command(flatten)]
    pub model: ImportModelArgs,
    /// The activation [default: tanh, which Google's BERT computes, though its configuration says gelu]
    #[arg(long, value_enum)]
    pub gelu: Option<GeluForm>,
}

/// Turns a PyTorch file of a BERT into a Hugging Face folder
///
/// Reads what torch.save wrote, .bin or .pt, in both layouts, without running anything of it, and safetensors. The weights
/// may lie under `model` or `state_dict`, have Hugging Face's or NVIDIA's names, and be spread over several files.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  launcher import pytorch pytorch_model.bin --config config.json --vocab vocab.txt --out start")]
pub struct PytorchArgs {
    /// A file of weights, the index of several, or the folder of one model
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Where the model goes and what the file does not say.
    #[command(flatten)]
    pub model: ImportModelArgs,
    /// The activation [default: what the configuration says, or erf]
    #[arg(long, value_enum)]
    pub gelu: Option<GeluForm>,
}

/// Where an imported model goes, and what its file does not say.
#[derive(Debug, Args)]
pub struct ImportModelArgs {
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The model's config.json or bert_config.json [default: the one beside the checkpoint; without, sizes are those of the
    /// tensors, and heads are taken to have 64]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The model's vocabulary, or a folder with it. Whether it is cased the files beside it or beside the checkpoint say, or
    /// else its tokens [default: vocab.txt beside the checkpoint; without, the folder has none]
    #[arg(long, value_name = "FILE")]
    pub vocab: Option<PathBuf>,
    /// What becomes of the rows of padding behind the vocabulary's tokens
    #[arg(long, value_enum, default_value = "cut")]
    pub vocab_rows: VocabRows,
}

/// A value of `--vocab-rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VocabRows {
    /// They are left out.
    Cut,
    /// They stay, and the model has as many tokens as rows.
    Keep,
}

/// A value of `--gelu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GeluForm {
    /// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), `gelu_new` in configurations.
    Tanh,
    /// x/2 (1 + erf(x / sqrt(2))), `gelu` in configurations.
    Erf,
}

/// A value of `--device` of training, eval and fill-mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The best device that this build and machine have.
    Auto,
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl Device {
    /// As the configuration has it.
    pub fn wanted(self) -> config::Device {
        match self {
            Self::Auto => config::Device::Auto,
            Self::Cpu => config::Device::Cpu,
            Self::Cuda => config::Device::Cuda,
        }
    }
}

/// A value of `--precision` of eval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum DevicePrecision {
    F32,
    /// GPUs only.
    Bf16,
}

/// A value of `--device` of verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum VerifyDevice {
    Cpu,
    Cuda,
}

/// A value of `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Precision {
    F64,
    F32,
    Bf16,
}

/// A value of `--recipe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Recipe {
    /// Ours: streaming, of any size, split into training and evaluation text.
    Standard,
    /// MLPerf's: the reference tool's sequences, masks and labels, in its order.
    Mlperf,
}

/// A value of `--split` of prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// One sentence a line, a blank line between documents.
    Lines,
    /// Prose, split into sentences; a file is a document.
    Sentences,
}

/// A value of `--masking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Masking {
    /// At load time: every epoch differs, every run repeats.
    Dynamic,
    /// At preparation, stored in the shards.
    Static,
}

/// A value of `--split` of eval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataSplit {
    /// The held-out documents.
    Eval,
    /// The documents trained on.
    Train,
}

impl PrepareArgs {
    /// As the configuration section that `prepare` takes.
    pub fn config(&self) -> config::PrepareConfig {
        let default = config::PrepareConfig::of(match self.recipe {
            Recipe::Standard => config::Recipe::Standard,
            Recipe::Mlperf => config::Recipe::Mlperf,
        });
        config::PrepareConfig {
            recipe: default.recipe,
            input: self.input.clone(),
            text_field: self.text_field.clone(),
            skip_bad: self.skip_bad,
            vocab: self.vocab.clone(),
            train_vocab: self.train_vocab,
            lowercase: (self.cased || self.uncased).then_some(self.uncased),
            strip_accents: self.strip_accents,
            tokenize_chinese_chars: self.tokenize_chinese_chars,
            alphabet_limit: self.alphabet_limit,
            max_seq_length: self.max_seq_length.unwrap_or(default.max_seq_length),
            split: self.split.map_or(default.split, |split| match split {
                Split::Lines => config::Split::Lines,
                Split::Sentences => config::Split::Sentences,
            }),
            nsp: !self.no_nsp,
            masking: self.masking.map_or(default.masking, |masking| match masking {
                Masking::Dynamic => config::Masking::Dynamic,
                Masking::Static => config::Masking::Static,
            }),
            whole_word_masking: self.whole_word_masking,
            dupe_factor: self.dupe_factor.unwrap_or(default.dupe_factor),
            masked_lm_prob: self.masked_lm_prob.unwrap_or(default.masked_lm_prob),
            max_predictions: self.max_predictions.unwrap_or(default.max_predictions),
            short_seq_prob: self.short_seq_prob.unwrap_or(default.short_seq_prob),
            eval_fraction: self.eval_fraction.unwrap_or(default.eval_fraction),
            eval_input: self.eval_input.clone(),
            eval_records: self.eval_records.unwrap_or(default.eval_records),
            seed: self.seed.unwrap_or(default.seed),
        }
    }
}

pub(crate) fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

/// A time that ends.
fn parse_seconds(text: &str) -> Result<f64, String> {
    const WEEK: f64 = 604_800.0;
    match text.parse() {
        Ok(seconds) if (0.0..=WEEK).contains(&seconds) => Ok(seconds),
        Ok(_) => Err(format!("expected 0 to {WEEK}")),
        Err(_) => Err("not a number".to_owned()),
    }
}

/// More threads than any machine runs at once; 0 is one for each core.
fn parse_threads(text: &str) -> Result<usize, String> {
    const MOST: usize = 4096;
    match text.parse() {
        Ok(threads) if threads <= MOST => Ok(threads),
        _ => Err(format!("expected a whole number from 0 to {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_of_prepare_are_those_of_the_configuration() {
        let cli =
            Cli::try_parse_from(["launcher", "prepare", "--input", "a", "b", "--vocab", "v", "--out", "o"])
                .unwrap();
        let Some(Command::Prepare(args)) = cli.command else { panic!("not prepare") };
        let input = vec!["a".into(), "b".into()];
        let expected =
            config::PrepareConfig { input, vocab: Some("v".into()), ..config::PrepareConfig::default() };
        assert_eq!(args.config(), expected);
    }

    #[test]
    fn the_help_names_the_defaults_of_the_configuration() {
        let command = Cli::command();
        let prepare = command.find_subcommand("prepare").unwrap();
        let [standard, mlperf] =
            [config::Recipe::Standard, config::Recipe::Mlperf].map(config::PrepareConfig::of);
        for (option, default) in [
            ("max_seq_length", format!("[default: {}]", standard.max_seq_length)),
            ("dupe_factor", format!("(mlperf: {}) [default: {}]", mlperf.dupe_factor, standard.dupe_factor)),
            ("masked_lm_prob", format!("[default: {}]", standard.masked_lm_prob)),
            ("max_predictions", format!("[default: {}]", standard.max_predictions)),
            ("short_seq_prob", format!("[default: {}]", standard.short_seq_prob)),
            (
                "eval_fraction",
                format!("(mlperf: {}) [default: {}]", mlperf.eval_fraction, standard.eval_fraction),
            ),
            ("eval_records", format!("[default: {}]", mlperf.eval_records)),
            ("seed", format!("[default: {}]", standard.seed)),
        ] {
            let arg = prepare.get_arguments().find(|arg| arg.get_id() == option).unwrap();
            let help = arg.get_help().unwrap().to_string();
            assert!(help.ends_with(&default), "{option}: {help}");
        }
    }

    #[test]
    fn the_last_of_nsp_and_no_nsp_wins() {
        let nsp = |last: [&str; 2]| {
            let line = ["launcher", "prepare", "--input", "a", "--vocab", "v", "--out", "o"];
            let cli = Cli::try_parse_from(line.into_iter().chain(last)).unwrap();
            let Some(Command::Prepare(args)) = cli.command else { panic!("not prepare") };
            args.config().nsp
        };
        assert!(nsp(["--no-nsp", "--nsp"]));
        assert!(!nsp(["--nsp", "--no-nsp"]));
    }
}
