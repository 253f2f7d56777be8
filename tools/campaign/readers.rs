//! The table of readers.

use crate::seal::Seal;
use crate::{library, program};
use std::path::Path;

/// What runs a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The engine, in the worker's process.
    Library,
    /// The launcher, in a process for each input.
    Program,
}

/// How a reader took an input, apart from the ends that are findings.
#[derive(Debug)]
pub enum Answer {
    Accepted,
    /// With its message.
    Refused(String),
    /// The launcher ended with this, or wrote of a panic.
    Ended(String),
    /// The launcher did not end in time.
    Hung,
}

/// A reader and what it is tried with.
pub struct Reader {
    pub name: &'static str,
    pub kind: Kind,
    /// Samples to damage, one for each input, with their checksums.
    pub files: &'static [(&'static str, Seal)],
    /// Files and folders of samples that lie beside them.
    pub beside: &'static [&'static str],
    /// Reads the samples in the current folder, of which this one is damaged.
    pub read: fn(&Path) -> Answer,
}

const fn library(
    name: &'static str,
    files: &'static [(&'static str, Seal)],
    beside: &'static [&'static str],
    read: fn(&Path) -> Answer,
) -> Reader {
    Reader { name, kind: Kind::Library, files, beside, read }
}

const fn program(
    name: &'static str,
    files: &'static [(&'static str, Seal)],
    beside: &'static [&'static str],
    read: fn(&Path) -> Answer,
) -> Reader {
    Reader { name, kind: Kind::Program, files, beside, read }
}

use Seal::{Blocks, FirstLine, Manifest, None, Records, Shard, State};

const TEXTS: &[(&str, Seal)] = &[("text.txt", None), ("prose.txt", None)];
const JSON_LINES: &[(&str, Seal)] = &[("text.jsonl", None)];
const TABLES: &[(&str, Seal)] = &[("text.csv", None), ("text.tsv", None)];
const PARQUET: &[(&str, Seal)] = &[
    ("plain.parquet", None),
    ("snappy.parquet", None),
    ("gzip.parquet", None),
    ("zstd.parquet", None),
    ("lz4.parquet", None),
];
const GZIP: &[(&str, Seal)] = &[("text.txt.gz", None), ("text.jsonl.gz", None)];
const ZSTD: &[(&str, Seal)] = &[("text.txt.zst", None), ("text.jsonl.zst", None)];
const OTHERS: &[(&str, Seal)] = &[("text.txt.bz2", None), ("text.txt.xz", None)];
const RECORDS: &[(&str, Seal)] = &[
    ("import/tfrecord/part-0.tfrecord", Records),
    ("import/unpacked.tfrecord", Records),
    ("import/unpacked.tfrecord", None),
    ("import/tfrecord/part-1.tfrecord.gz", None),
];
const HDF5: &[(&str, Seal)] = &[
    ("import/fixed.hdf5", None),
    ("import/fixed-gzip.hdf5", None),
    ("import/fixed-latest.hdf5", None),
    ("import/fixed-wide.hdf5", None),
    ("import/variable.hdf5", None),
    ("import/variable-gzip.hdf5", None),
    ("import/packed.hdf5", None),
    ("import/packed-gzip.hdf5", None),
];
const TORCH: &[(&str, Seal)] = &[
    ("checkpoints/legacy.bin", None),
    ("checkpoints/zip.bin", None),
    ("checkpoints/encoder-bf16.pt", None),
    ("checkpoints/nvidia.pt", None),
];
const BUNDLE: &[(&str, Seal)] = &[
    ("checkpoints/tiny.index", Blocks),
    ("checkpoints/tiny.index", None),
    ("checkpoints/tiny-snappy.index", Blocks),
    ("checkpoints/tiny.data-00000-of-00002", None),
    ("checkpoints/tiny.data-00001-of-00002", None),
];
const CHECKPOINT: &[(&str, Seal)] = &[
    ("run/checkpoints/step-00000004/state.json", State),
    ("run/checkpoints/step-00000004/state.json", None),
    ("run/checkpoints/step-00000004/config.json", None),
    ("run/checkpoints/step-00000004/model.safetensors", None),
    ("run/checkpoints/step-00000004/optimizer.safetensors", None),
];
const MODEL: &[(&str, Seal)] = &[
    ("run/model/config.json", None),
    ("run/model/model.safetensors", None),
    ("run/model/vocab.txt", None),
    ("run/model/tokenizer_config.json", None),
];
const SHARDS: &[(&str, Seal)] =
    &[("data/manifest.json", Manifest), ("data/manifest.json", None), ("data/train-00000.shard", Shard)];
const PARTS: &[(&str, Seal)] =
    &[("part-1/part.json", FirstLine), ("part-2/part.json", FirstLine), ("part-1/train-00000.shard", None)];
const JOURNAL: &[(&str, Seal)] = &[
    ("imported.preparing/import.journal", FirstLine),
    ("imported.preparing/import.journal", None),
    ("imported.preparing/train-00000.shard", Shard),
];
const LOGS: &[(&str, Seal)] = &[("mlperf/result_0.txt", None), ("mlperf/result_7.txt", None)];
const STEP: &[(&str, Seal)] = &[("step.json", None), ("bench.json", None)];
const METRICS: &[(&str, Seal)] = &[("run/metrics.jsonl", None)];
const CONFIG: &[(&str, Seal)] = &[("tiny.toml", None), ("run/config.toml", None)];
const GOLDEN: &[(&str, Seal)] = &[("golden.safetensors", None)];

/// All of them.
pub const READERS: &[Reader] = &[
    library("text", TEXTS, &["vocab.txt"], library::lines),
    library("sentences", TEXTS, &["vocab.txt"], library::sentences),
    library("text-recipe", TEXTS, &["vocab.txt"], library::recipe),
    library("text-vocabulary", TEXTS, &[], library::train_vocabulary),
    library("jsonl", JSON_LINES, &["vocab.txt"], library::lines),
    library("tables", TABLES, &["vocab.txt"], library::lines),
    library("parquet", PARQUET, &["vocab.txt"], library::lines),
    library("gzip", GZIP, &["vocab.txt"], library::lines),
    library("zstd", ZSTD, &["vocab.txt"], library::lines),
    library("bzip2-xz", OTHERS, &["vocab.txt"], library::lines),
    library("vocab", &[("vocab.txt", None)], &[], library::vocabulary),
    library("config", CONFIG, &[], library::config),
    library("shards", SHARDS, &["data"], library::shards),
    library("parts", PARTS, &["part-1", "part-2"], library::parts),
    library("journal", JOURNAL, &["imported.preparing", "import", "vocab.txt"], library::journal),
    library("tfrecord", RECORDS, &["import/vocab.txt"], library::tfrecord),
    library("hdf5", HDF5, &["import/vocab.txt"], library::hdf5),
    library("checkpoint", CHECKPOINT, &["run/checkpoints", "run/config.toml"], library::checkpoint),
    library("model", MODEL, &["run/model"], library::model),
    library("torch", TORCH, &["checkpoints/twin"], library::torch),
    library("tf-bundle", BUNDLE, &["checkpoints"], library::bundle),
    library("golden", GOLDEN, &[], library::golden),
    library("mllog", LOGS, &["mlperf"], library::logs),
    library("plan-step", STEP, &[], library::step),
    library("metrics", METRICS, &[], library::metrics),
    program("prepare-text", TEXTS, &["vocab.txt"], program::prepare),
    program("prepare-jsonl", JSON_LINES, &["vocab.txt"], program::prepare),
    program("prepare-tables", TABLES, &["vocab.txt"], program::prepare),
    program("prepare-parquet", PARQUET, &["vocab.txt"], program::prepare),
    program("prepare-gzip", GZIP, &["vocab.txt"], program::prepare),
    program("prepare-zstd", ZSTD, &["vocab.txt"], program::prepare),
    program("prepare-bzip2-xz", OTHERS, &["vocab.txt"], program::prepare),
    program("prepare-vocab", &[("vocab.txt", None)], &["text.txt"], program::prepare_vocabulary),
    program("prepare-merge", PARTS, &["part-1", "part-2"], program::merge),
    program("import-tfrecord", RECORDS, &["import/vocab.txt"], program::import_tfrecord),
    program("import-hdf5", HDF5, &["import/vocab.txt"], program::import_hdf5),
    program("import-resumed", JOURNAL, &["imported.preparing", "import", "vocab.txt"], program::import_again),
    program("import-pytorch", TORCH, &["checkpoints/twin"], program::import_torch),
    program("import-tf-checkpoint", BUNDLE, &["checkpoints"], program::import_bundle),
    program("inspect-shards", SHARDS, &["data"], program::inspect),
    program(
        "inspect-run",
        &[("run/metrics.jsonl", None), ("run/config.toml", None)],
        &["run"],
        program::inspect_run,
    ),
    program("inspect-checkpoint", CHECKPOINT, &["run/checkpoints"], program::inspect),
    program("inspect-model", MODEL, &["run/model"], program::inspect),
    program("inspect-torch", TORCH, &[], program::inspect_file),
    program("inspect-tf-bundle", BUNDLE, &["checkpoints"], program::inspect_file),
    program("inspect-golden", GOLDEN, &[], program::inspect_file),
    program("eval-model", MODEL, &["run/model", "data"], program::eval),
    program("eval-shards", SHARDS, &["run/model", "data"], program::eval),
    program("fill-mask", MODEL, &["run/model"], program::fill_mask),
    program("verify", GOLDEN, &[], program::verify),
    program("plan-step-file", STEP, &[], program::plan),
    program("plan-config", CONFIG, &[], program::plan_config),
    program("bench-lengths", &[("lengths.txt", None)], &["tiny.toml"], program::bench_lengths),
    program("mlperf-report", LOGS, &["mlperf"], program::report),
    program("train-config", &[("tiny.toml", None)], &["vocab.txt", "text.txt"], program::train),
    program("train-shards", SHARDS, &["tiny.toml", "data"], program::train_on_data),
    program("train-resumed", CHECKPOINT, &["run", "tiny.toml", "data"], program::resume),
    program("train-metrics", METRICS, &["run", "tiny.toml", "data"], program::resume),
];
