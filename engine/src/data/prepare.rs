//! Text to prepared data: one thread reads, all tokenize and cut sequences, one writes, in bounded memory.
//!
//! The unit of work is a block of about 2 MB of whole documents. Blocks and what is drawn for them do not depend on
//! the number of threads, and results are written in the order of blocks, so neither do the bytes written.

pub(in crate::data) mod contents;
mod held_out;
mod merge;
pub(in crate::data) mod part;
pub(in crate::data) mod staging;
mod standard;
mod tokenization;
pub(in crate::data) mod unknown;

pub use merge::merge;
pub use part::{Part, PartOf, prepare_part};
pub(crate) use standard::BUDGET;
pub use tokenization::{Tokenization, tokenization};

use crate::config::{PrepareConfig, Recipe};
use crate::data::input::{self, InputFile, Remark, Spool, any_stream};
use crate::data::recipe;
use crate::data::shards::{InputRecord, MANIFEST, Manifest, VOCAB};
use crate::data::vocab::{Vocab, train_files};
use crate::error::{During, Error, Result};
use crate::files::check_utf8;
use contents::{Contents, Source};
use part::{Outcome, Share, Work};
use staging::Staging;
use std::path::Path;

/// What preparation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading a pipe into a file.
    Receiving,
    /// Reading the input to know by its content whether data is of it.
    Hashing,
    /// Counting words to train a vocabulary.
    Vocabulary,
    /// Making sequences.
    Sequences,
    /// Reading sequences that other software made.
    Importing,
    /// Joining what several hosts prepared.
    Merging,
    /// Waiting for another process that prepares the same folder.
    Waiting,
}

/// How far preparation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareProgress {
    /// What is being done; each phase reads the whole input.
    pub phase: Phase,
    /// Bytes of input done in this phase, as on disk.
    pub bytes_read: u64,
    /// Bytes of all input, as on disk.
    pub bytes_total: u64,
    /// Documents done.
    pub documents: u64,
    /// Sequences made.
    pub sequences: u64,
    /// Tokens of these sequences.
    pub tokens: u64,
    /// Invalid stretches of UTF-8 replaced.
    pub invalid_utf8: u64,
}

impl PrepareProgress {
    pub(crate) fn new(phase: Phase, files: &[InputFile]) -> Self {
        let bytes_total = files.iter().map(|f| f.bytes).sum();
        Self { phase, bytes_read: 0, bytes_total, documents: 0, sequences: 0, tokens: 0, invalid_utf8: 0 }
    }
}

/// Prepares the input into the folder `out`, which appears when it is complete. `threads` 0 is one per core. Data that
/// already lies there whole and was made in the same way of the same content is kept and its manifest returned.
///
/// # Errors
/// Bad options or input; a folder `out` that holds anything else, or damaged data; input that is written meanwhile.
pub fn prepare(
    config: &PrepareConfig,
    out: &Path,
    threads: usize,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Manifest> {
    check(config)?;
    let threads = cores(threads);
    let Tokenization { vocab, settings, .. } = tokenization(config)?;
    let early = early_staging(config, out, progress)?;
    let files = list(config, early.as_ref(), progress)?;
    let mut manifest = Manifest::new(config, records(&files));
    manifest.set_tokenizer(settings);
    let contents = contents_of(&files, threads, progress)?;
    if let Some(existing) = staging::existing(out, &manifest, vocab.as_ref(), &contents)? {
        return Ok(existing);
    }
    let waiting = || progress(&PrepareProgress::new(Phase::Waiting, &files));
    let staging = early.map_or_else(|| Staging::create(out, &waiting), Ok)?;
    // Another process may have made it meanwhile.
    if let Some(existing) = staging::existing(out, &manifest, vocab.as_ref(), &contents)? {
        return Ok(existing);
    }
    say_remarks(&files);
    manifest.inputs = contents.records()?;
    let dir = staging.path();
    let vocab = match (vocab, config.train_vocab) {
        (Some(vocab), _) => vocab,
        (None, size) => {
            let text = &files[..files.len() - usize::from(config.eval_input.is_some())];
            let (vocab, alphabet) = train_files(text, config, size.unwrap_or(0), dir, threads, progress)?;
            manifest.alphabet = Some(alphabet);
            vocab
        }
    };
    save_vocab(&vocab, dir, &mut manifest)?;
    let share = Share::ALL;
    let work = Work { files: &files, config, vocab: &vocab, settings, dir, threads, progress, share };
    let outcome = make_sequences(&work)?;
    fill(&mut manifest, outcome)?;
    contents.check_unchanged()?;
    manifest.save(dir)?;
    files.iter().try_for_each(InputFile::remove_spooled)?;
    staging.finish(out)?;
    Ok(manifest)
}

/// The staging folder, where some of the input comes through a pipe: that is read once, into this folder, before anything
/// else.
fn early_staging(
    config: &PrepareConfig,
    out: &Path,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Option<Staging>> {
    let waiting = || progress(&PrepareProgress::new(Phase::Waiting, &[]));
    let streams = any_stream(config.input.iter().chain(&config.eval_input));
    streams.then(|| Staging::create(out, &waiting)).transpose()
}

/// Says once how files are read of which the user may think otherwise.
fn say_remarks(files: &[InputFile]) {
    for (remark, what) in [
        (
            Remark::LooksLikeJson,
            "the lines look like JSON objects and are trained on as text, names and braces too; name the file .jsonl to \
             read one field",
        ),
        (Remark::ReadAsJson, "the lines are JSON objects, so the file is read as JSON Lines"),
    ] {
        let mut such = files.iter().filter(|file| file.remark == Some(remark));
        if let Some(first) = such.next() {
            let more = match such.count() {
                0 => String::new(),
                more => format!(" ({more} more such files)"),
            };
            tracing::warn!("{}: {what}{more}", first.path.display());
        }
    }
}

/// As many threads as asked for, or one a core for 0.
fn cores(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Writes the vocabulary into a data folder, and its size and hash into the manifest.
fn save_vocab(vocab: &Vocab, dir: &Path, manifest: &mut Manifest) -> Result<()> {
    let path = dir.join(VOCAB);
    vocab.save(&path)?;
    std::fs::File::open(&path).and_then(|f| f.sync_all()).during("cannot write", &path)?;
    manifest.vocab_size = vocab.len();
    manifest.vocab_sha256 = vocab.sha256().to_owned();
    Ok(())
}

fn make_sequences(work: &Work<'_>) -> Result<Outcome> {
    match work.config.recipe {
        Recipe::Standard => standard::make_sequences(work),
        Recipe::Mlperf => recipe::make_sequences(work),
    }
}

/// Completes a manifest with what was made of the whole input.
fn fill(manifest: &mut Manifest, outcome: Outcome) -> Result<()> {
    manifest.documents = outcome.documents;
    manifest.invalid_utf8 = outcome.invalid_utf8;
    manifest.omitted = outcome.omitted;
    manifest.unigram_entropy = entropy(&outcome.unigrams);
    (manifest.train, manifest.eval) = (outcome.train, outcome.eval);
    for split in [&mut manifest.train, &mut manifest.eval] {
        if let Some(text) = split.text.as_mut().filter(|text| !unknown::are_many(text)) {
            text.examples.clear();
        }
    }
    match (manifest.train.sequences, manifest.inputs.first()) {
        (0, Some(input)) => {
            let has_text = manifest.train.text.as_ref().is_some_and(|text| text.tokens > 0);
            let what = match manifest.options.recipe {
                Recipe::Standard if has_text => {
                    "the text to train on is a single token, of which no sentence pair can be made; give more text, or \
                     prepare without pairs (--no-nsp)"
                }
                Recipe::Standard => "the input holds no text; give files with words in them",
                Recipe::Mlperf => recipe::NO_TEXT,
            };
            let remarks = manifest.remarks().into_iter().map(|line| format!(" ({line})")).collect::<String>();
            Err(Error::file(&input.path, format!("{what}{remarks}")))
        }
        _ => Ok(()),
    }
}

/// What of the data differs from what `config` would make, if anything: a key of the configuration, and what it is about
/// it. Text and vocabulary are looked at where they are still there.
pub(crate) fn outdated(
    folder: &Path,
    config: &PrepareConfig,
    threads: usize,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Option<(String, String)>> {
    let (manifest, dir) = (&Manifest::load(folder)?, folder.display());
    if let Some((key, there, here)) = staging::option_difference(&manifest.options, config) {
        return Ok(Some((key, format!("is {here}, but {dir} was prepared with {there}"))));
    }
    let (vocab, settings) = tokenization::as_far_as_known(config, manifest.tokenizer())?;
    if manifest.omitted.left_out > 0 && !config.skip_bad {
        return Ok(Some(("skip_bad".into(), format!("is false, but bad rows were left out of {dir}"))));
    }
    if let Some((key, there, here)) = manifest.tokenizer().difference(&settings) {
        let key = if key == "do_lower_case" { "lowercase" } else { key };
        return Ok(Some((key.to_owned(), format!("is {here}, but {dir} was prepared with {there}"))));
    }
    let paths = config.input.iter().chain(&config.eval_input);
    // What came through a pipe is gone.
    let is_there = paths.clone().all(|path| path.exists()) && !any_stream(paths);
    let inputs = if is_there { records(&list(config, None, &|_| ())?) } else { manifest.inputs.clone() };
    let mut what = staging::source_difference(manifest, &inputs, vocab.as_ref());
    if what.is_none() {
        // Of names and sizes that are the same; where some are gone, the others are looked at.
        let (inputs, found): (Vec<_>, Vec<_>) = inputs
            .into_iter()
            .zip(manifest.inputs.iter().cloned())
            .filter(|(input, _)| is_there || input.path.is_file())
            .unzip();
        let files = inputs.iter().map(|input| Source::of(&input.path, input.bytes));
        what = Contents::new(files, threads, progress)?.difference(&folder.join(MANIFEST), &found)?;
    }
    Ok(what.map(|what| ("input".to_owned(), format!("is not what {dir} was prepared from ({what})"))))
}

fn contents_of<'a>(
    files: &'a [InputFile],
    threads: usize,
    progress: &'a (dyn Fn(&PrepareProgress) + Sync),
) -> Result<Contents<'a>> {
    let source =
        |file: &'a InputFile| Source { name: &file.path, on_disk: file.on_disk(), bytes: file.bytes };
    Contents::new(files.iter().map(source), threads, progress)
}

/// All files that the data is made of: the input, then the evaluation text if there is one.
fn list(
    config: &PrepareConfig,
    staging: Option<&Staging>,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Vec<InputFile>> {
    let received = |bytes| {
        let done = PrepareProgress::new(Phase::Receiving, &[]);
        progress(&PrepareProgress { bytes_read: bytes, bytes_total: bytes, ..done });
    };
    let spool = Spool::new(staging.map(Staging::path), &received);
    let mut files = input::list(&config.input, config, &spool)?;
    if let Some(eval) = &config.eval_input {
        if eval.is_dir() {
            return Err(Error::file(eval, "is a folder; the evaluation text is one file"));
        }
        files.extend(input::list(std::slice::from_ref(eval), config, &spool)?);
    }
    files.iter().try_for_each(|file| check_utf8(&file.path))?;
    Ok(files)
}

fn records(files: &[InputFile]) -> Vec<InputRecord> {
    files.iter().map(|f| InputRecord { path: f.path.clone(), bytes: f.bytes, xxh3: None }).collect()
}

fn check(config: &PrepareConfig) -> Result<()> {
    let wrong = |key: &str, what: String| Err(Error::config(format!("prepare.{key}"), what));
    if config.vocab.is_some() == config.train_vocab.is_some() {
        let count = if config.vocab.is_some() { "both" } else { "neither" };
        return wrong("vocab", format!("{count} of vocab and train_vocab given; give one of them"));
    }
    let (length, most) = (config.max_seq_length, u16::MAX);
    if !(8..=usize::from(most)).contains(&length) {
        return wrong("max_seq_length", format!("{length}, expected 8 to {most}"));
    }
    if config.dupe_factor == 0 {
        return wrong("dupe_factor", "0, expected at least 1".into());
    }
    if config.max_predictions == 0 {
        return wrong("max_predictions", "0, expected at least 1".into());
    }
    for (key, value, most) in [
        ("masked_lm_prob", config.masked_lm_prob, 1.0),
        ("short_seq_prob", config.short_seq_prob, 1.0),
        ("eval_fraction", config.eval_fraction, 0.999),
    ] {
        if !(0.0..=most).contains(&value) {
            return wrong(key, format!("{value}, expected 0 to {most}"));
        }
    }
    config.check_recipe()
}

/// Entropy of a distribution given by counts, in nats.
pub(crate) fn entropy(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / total).map(|p| p * -p.ln()).sum::<f64>().max(0.0)
}

#[cfg(test)]
pub(crate) mod tests;
