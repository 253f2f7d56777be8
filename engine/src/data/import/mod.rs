//! Sequences that other software made, into the same shards as [`prepare`](crate::data::prepare) writes, with their masks:
//! TFRecord files of `tf.Example` as the benchmark's reference makes them, and HDF5 files in NVIDIA's layouts.
//!
//! The unit of work is a block of records. Where blocks begin depends on the files alone, and results are written in the
//! order of blocks, so the bytes written do not depend on the number of threads, nor on whether an import was killed and
//! started again: a journal in the staging folder says where the shards closed so far end.

mod example;
mod files;
mod hdf5;
mod journal;
mod record;
mod run;
mod skipped;
mod source;
mod tfrecord;

pub use source::{ImportFormat, ImportSource, Layout};

use crate::config::{Masking, PrepareConfig};
use crate::data::prepare::contents::{Contents, Source};
use crate::data::prepare::staging::{
    JOURNAL, Staging, existing_like, input_difference, source_difference, tokenizer_difference,
};
use crate::data::prepare::{Phase, PrepareProgress, entropy};
use crate::data::shards::{InputRecord, MANIFEST, Manifest, VOCAB};
use crate::data::tokenize::{PartialSettings, TokenizerFiles};
use crate::error::{During, Error, Result};
use crate::files::check_utf8;
use files::InputFile;
use journal::{Identity, Journal};
use run::{Run, Sizes};
pub use skipped::SkippedKind;
use std::path::{Path, PathBuf};

/// Longest sequences that shards can hold.
const LONGEST: usize = u16::MAX as usize;
/// Shortest `max_seq_length` of prepared data.
const SHORTEST: usize = 8;

/// What to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportConfig {
    /// What the files are.
    pub format: ImportFormat,
    /// Files or folders of sequences to train on.
    pub inputs: Vec<PathBuf>,
    /// Files or folders of sequences to evaluate on; may be empty.
    pub eval: Vec<PathBuf>,
    /// The vocabulary that the ids belong to.
    pub vocab: PathBuf,
    /// Leave bad records out and count them, instead of ending at the first.
    pub skip_bad: bool,
}

/// What an import did.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Of the data, whose `source` says where it came from.
    pub manifest: Manifest,
    /// Whether the folder held it already, imported from the same files.
    pub existed: bool,
    /// Sequences that an earlier import of the same files had left.
    pub kept: u64,
    /// What was left out, by kind; empty where the folder held the data already.
    pub skipped: Vec<SkippedKind>,
    /// What text the vocabulary is for, and why that is known, in words.
    pub tokenizer: String,
}

/// Imports into the folder `out`, which appears when it is complete. Sequences of which none has a next-sentence label
/// become data without. `threads` 0 is one per core. Data that already lies there whole and was imported from the same
/// files is kept. An import that was killed or failed and is started again with the same files goes on behind its last
/// closed shard.
///
/// # Errors
/// A folder `out` that holds anything else, files that cannot be read, and bad records: the file, the record (from 0),
/// the field, what it holds and what was expected. With `skip_bad`, only where nothing is left.
pub fn import(
    config: &ImportConfig,
    out: &Path,
    threads: usize,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Imported> {
    import_in(config, out, threads, Sizes::default(), progress)
}

/// As [`import`], in blocks and shards of these sizes.
fn import_in(
    config: &ImportConfig,
    out: &Path,
    threads: usize,
    sizes: Sizes,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Imported> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let train = files::list(&config.inputs, config.format)?;
    let eval = files::list(&config.eval, config.format)?;
    train
        .iter()
        .chain(&eval)
        .map(|file| &file.path)
        .chain([&config.vocab])
        .try_for_each(|path| check_utf8(path))?;
    let tokenizer = TokenizerFiles::load(&config.vocab, None, PartialSettings::default())?;
    let (vocab, settings) = (&tokenizer.vocab, tokenizer.settings);
    let files = train.iter().chain(&eval).map(|file| Source::of(&file.path, file.bytes));
    let contents = Contents::new(files, threads, progress)?;
    let wanted = Wanted { config, train: &train, eval: &eval, tokenizer: &tokenizer, contents: &contents };
    if let Some(found) = wanted.existing(out)? {
        return Ok(found);
    }
    let run = Run::new(config, vocab, threads, sizes, [&train, &eval], progress)?;
    let waiting = || progress(&progress_of(Phase::Waiting, &train, &eval));
    let mut staging = Staging::enter(out, &waiting)?;
    // Another process may have made it meanwhile.
    if let Some(found) = wanted.existing(out)? {
        staging.empty()?;
        return Ok(found);
    }
    let known = contents.records()?;
    let (known_train, known_eval) = known.split_at(train.len());
    let identity = Identity::new(config, [(&train, known_train), (&eval, known_eval)], vocab);
    let kind = (run.max_seq_length, run.labels());
    let journal = Journal::load(staging.path(), &identity, vocab, kind, config.skip_bad)?;
    match journal {
        Some(_) => staging.keep(),
        None => staging.empty()?,
    }
    let kept = journal.as_ref().map_or(0, |j| j.train.sequences + j.eval.sequences);
    let vocab_path = staging.path().join(VOCAB);
    vocab.save(&vocab_path)?;
    std::fs::File::open(&vocab_path).and_then(|f| f.sync_all()).during("cannot write", &vocab_path)?;
    let done = run.all(&mut staging, identity, journal)?;

    contents.check_unchanged()?;
    let mut manifest = Manifest::new(&done.options, known_train.to_vec());
    (manifest.vocab_size, manifest.vocab_sha256) = (vocab.len(), vocab.sha256().to_owned());
    manifest.set_tokenizer(settings);
    manifest.unigram_entropy = entropy(&done.unigrams);
    manifest.source = Some(ImportSource { eval_inputs: known_eval.to_vec(), ..done.source });
    (manifest.train, manifest.eval) = (done.train, done.eval);
    manifest.save(staging.path())?;
    staging.finish(out)?;
    // Of no use any more; if it stays, it is ignored.
    let _ = std::fs::remove_file(out.join(JOURNAL));
    let (skipped, tokenizer) = (done.skipped.kinds(), tokenizer.describe());
    Ok(Imported { manifest, existed: false, kept, skipped, tokenizer })
}

/// The options that the manifest names: those that shards and training rely on. How the text became sequences is not
/// known, so the rest are the defaults.
fn options(config: &ImportConfig, max_seq_length: usize, max_predictions: usize, nsp: bool) -> PrepareConfig {
    PrepareConfig {
        input: config.inputs.clone(),
        vocab: Some(config.vocab.clone()),
        max_seq_length,
        max_predictions,
        nsp,
        masking: Masking::Static,
        ..PrepareConfig::default()
    }
}

fn records(files: &[InputFile]) -> Vec<InputRecord> {
    files.iter().map(|f| InputRecord { path: f.path.clone(), bytes: f.bytes, xxh3: None }).collect()
}

fn progress_of(phase: Phase, train: &[InputFile], eval: &[InputFile]) -> PrepareProgress {
    let bytes_total = train.iter().chain(eval).map(|f| f.bytes).sum();
    PrepareProgress {
        phase,
        bytes_read: 0,
        bytes_total,
        documents: 0,
        sequences: 0,
        tokens: 0,
        invalid_utf8: 0,
    }
}

/// The data that an import would make.
struct Wanted<'a> {
    config: &'a ImportConfig,
    train: &'a [InputFile],
    eval: &'a [InputFile],
    tokenizer: &'a TokenizerFiles,
    contents: &'a Contents<'a>,
}

impl Wanted<'_> {
    /// What lies at `out`, if it is that.
    fn existing(&self, out: &Path) -> Result<Option<Imported>> {
        let found = existing_like(out, &|found| match self.difference(found) {
            None => {
                let evaluated = found.source.iter().flat_map(|source| &source.eval_inputs);
                let inputs: Vec<_> = found.inputs.iter().chain(evaluated).cloned().collect();
                self.contents.difference(&out.join(MANIFEST), &inputs)
            }
            what => Ok(what),
        })?;
        Ok(found.map(|manifest| {
            // Left by an import that was killed in its very last moment.
            let _ = std::fs::remove_file(out.join(JOURNAL));
            let tokenizer = self.tokenizer.describe();
            Imported { manifest, existed: true, kept: 0, skipped: Vec::new(), tokenizer }
        }))
    }

    /// What differs that is known without reading the files.
    fn difference(&self, found: &Manifest) -> Option<String> {
        let Some(source) = &found.source else { return Some("it was prepared from text".into()) };
        if source.format != self.config.format {
            return Some(format!("it was imported from {}", source.format));
        }
        if !self.config.skip_bad && !source.skipped.is_empty() {
            return Some("bad records were left out of it".into());
        }
        source_difference(found, &records(self.train), Some(&self.tokenizer.vocab))
            .or_else(|| tokenizer_difference(found, self.tokenizer.settings))
            .or_else(|| input_difference(&source.eval_inputs, &records(self.eval)))
    }
}

/// A sequence's greatest length, as shards allow it.
fn check_length(field: &str, length: usize) -> std::result::Result<(), String> {
    if (SHORTEST..=LONGEST).contains(&length) {
        return Ok(());
    }
    Err(format!("{field}: {length} values a record, expected {SHORTEST} to {LONGEST}"))
}

/// What to do about a file or record that is bad.
fn bad(path: &Path, what: &str) -> Error {
    let remedy = "fetch or make the file again, or leave such records out with --skip-bad";
    Error::file(path, format!("{what}; {remedy}"))
}

#[cfg(test)]
mod tests;
