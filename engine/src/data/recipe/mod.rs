//! MLPerf's data recipe: text to the sequences, masks and labels of the benchmark's reference tool, in its order.
//!
//! The tool is run once a part of the text, so each file starts from a fresh generator and its pairs stay together; files
//! are made side by side and written in the order given. The evaluation text becomes the evaluation split, thinned as the
//! reference thins it.

mod mlperf;
mod python_random;
#[cfg(test)]
mod tests;
mod tokenize;
mod unicode;

use crate::config::PrepareConfig;
use crate::data::input::{Input, InputFile, Omitted, Reader, Seen, unreadable};
use crate::data::pipeline::{Stop, ordered};
use crate::data::prepare::part::{Outcome, Share, Unit, Work};
use crate::data::prepare::{Phase, PrepareProgress, unknown};
use crate::data::shards::{Columns, SplitWriter, TextCounts};
use crate::data::vocab::Vocab;
use crate::error::{Error, Result};
use mlperf::{Documents, Made, make, picked};
use std::io::{BufRead, Read};
use std::path::Path;
use tokenize::ReferenceTokenizer;

/// Memory for files under way, in bytes. One file is always under way, however large: its pairs are shuffled as a whole.
const BUDGET: u64 = 640 << 20;
/// Pairs handed to the shard writer at once.
const CHUNK: usize = 4096;
/// A line is tokenized as a whole: the reference knows no other way.
const LONGEST_LINE: usize = 64 << 20;

/// A file to make sequences of.
struct Job {
    /// Its place among the files.
    number: usize,
    /// Whether it is the evaluation text.
    eval: bool,
}

/// What a file became.
struct Done {
    job: Job,
    made: Made,
    text: TextCounts,
    bytes_read: u64,
}

/// Makes the sequences of the files that are this process's. The last file is the evaluation text if the configuration names
/// one.
pub(super) fn make_sequences(work: &Work<'_>) -> Result<Outcome> {
    let Work { files, config, vocab, settings, dir, threads, progress, share } = *work;
    check_files(files, config)?;
    let mut sink = Sink::new(work);
    let first_eval = files.len() - usize::from(config.eval_input.is_some());
    ordered(
        threads,
        BUDGET as usize,
        |emit| {
            files.iter().enumerate().filter(|(number, _)| share.has(*number as u64)).try_for_each(
                |(number, file)| {
                    let cost = memory(file, config).min(BUDGET) as usize;
                    emit(Job { number, eval: number >= first_eval }, cost)
                },
            )
        },
        || {
            let mut tokenizer = ReferenceTokenizer::new(vocab, settings.lowercase);
            move |job: Job| {
                let (input, seen) = (Input { files, config }, Seen::default());
                let reader = Reader { input, piece: 0, seen: &seen, scratch: dir };
                let (documents, text) = read(reader, job.number, &mut tokenizer, vocab.unk)?;
                let made = make(documents, config, vocab);
                Ok(Done { job, made, text, bytes_read: seen.bytes.into_inner() })
            }
        },
        |done| {
            sink.take(&done)?;
            progress(&sink.done);
            Ok(())
        },
    )?;
    sink.finish()
}

/// The files that are a share's.
fn own(files: &[InputFile], share: Share) -> Vec<InputFile> {
    let numbered = files.iter().enumerate();
    numbered.filter(|(number, _)| share.has(*number as u64)).map(|(_, file)| file.clone()).collect()
}

/// Where the sequences of all files go.
struct Sink<'a> {
    files: &'a [InputFile],
    config: &'a PrepareConfig,
    vocab: &'a Vocab,
    train: SplitWriter<'a>,
    eval: SplitWriter<'a>,
    /// Of both splits.
    texts: [TextCounts; 2],
    outcome: Outcome,
    done: PrepareProgress,
}

impl<'a> Sink<'a> {
    fn new(work: &Work<'a>) -> Self {
        let Work { files, config, vocab, dir, share, .. } = *work;
        let writer = |name| {
            SplitWriter::new(dir, name, vocab, config.max_seq_length, true, true)
                .with_shard_bytes(share.shard_bytes())
        };
        let done = PrepareProgress::new(Phase::Sequences, &own(files, share));
        let outcome =
            Outcome { unigrams: vec![0; vocab.len()], all_units: files.len() as u64, ..Outcome::default() };
        let (train, eval, texts) = (writer("train"), writer("eval"), Default::default());
        Self { files, config, vocab, train, eval, texts, outcome, done }
    }

    fn take(&mut self, Done { job, made, text, bytes_read }: &Done) -> Result<()> {
        let before = self.done.sequences;
        self.texts[usize::from(job.eval)].add(text);
        if job.eval {
            if made.len() == 0 {
                return Err(no_text(&self.files[job.number]));
            }
            self.write(made, picked(made.len(), self.config.eval_records), true)?;
        } else {
            let files_without_text = u64::from(made.documents.len() == 0);
            self.outcome.omitted.add(&Omitted { files_without_text, ..Omitted::default() });
            made.documents.tokens.iter().for_each(|&t| self.outcome.unigrams[t as usize] += 1);
            self.write(made, 0..made.len(), false)?;
        }
        self.outcome.units.push(Unit { eval: job.eval, sequences: self.done.sequences - before });
        self.done.bytes_read += bytes_read;
        self.done.documents += made.documents.len() as u64;
        Ok(())
    }

    /// Appends the pairs of these numbers to a split.
    fn write(&mut self, made: &Made, pairs: impl Iterator<Item = usize>, eval: bool) -> Result<()> {
        let split = if eval { &mut self.eval } else { &mut self.train };
        let mut pairs = pairs.peekable();
        let mut sequence = Vec::new();
        let mut documents = made.documents.len() as u64;
        while pairs.peek().is_some() {
            let mut columns = Columns::new(self.vocab.len());
            pairs.by_ref().take(CHUNK).for_each(|pair| made.store(pair, &mut sequence, &mut columns));
            split.append(&columns, std::mem::take(&mut documents))?;
            self.done.sequences += columns.len() as u64;
            self.done.tokens += columns.tokens() as u64;
        }
        Ok(())
    }

    fn finish(self) -> Result<Outcome> {
        let (mut train, mut eval) = (self.train.finish()?, self.eval.finish()?);
        [train.text, eval.text] = self.texts.map(Some);
        Ok(Outcome { documents: self.done.documents, train, eval, ..self.outcome })
    }
}

/// Of a file, or of all of them.
pub(super) const NO_TEXT: &str =
    "holds no text; give a file with one sentence a line, a blank line between documents";

fn no_text(file: &InputFile) -> Error {
    Error::file(&file.path, NO_TEXT)
}

/// Plain text only, and no evaluation text to train on.
fn check_files(files: &[InputFile], config: &PrepareConfig) -> Result<()> {
    if let Some(file) = files.iter().find(|file| !file.is_plain_text()) {
        let what =
            "is JSON Lines, Parquet or a table; the recipe mlperf reads plain text, one sentence a line";
        return Err(Error::file(&file.path, what));
    }
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    match (&config.eval_input, files.split_last()) {
        (Some(_), Some((eval, train))) if train.iter().any(|file| same(&file.path, &eval.path)) => {
            Err(Error::file(
                &eval.path,
                "is the evaluation text and among the training text too; remove it there",
            ))
        }
        _ => Ok(()),
    }
}

/// What a file takes while it is under way, nearly: 4 bytes a token, of which there is one in 4 bytes of text; each time the
/// text is used, 6 bytes a mask and 24 a pair, of half the greatest length. Text that is compressed is taken to be four times
/// as long.
fn memory(file: &InputFile, config: &PrepareConfig) -> u64 {
    let text = file.bytes.saturating_mul(if file.is_compressed() { 4 } else { 1 });
    let used = config.masked_lm_prob * 2.0 + 12.0 / config.max_seq_length as f64;
    (text as f64 * (1.5 + config.dupe_factor as f64 * used)) as u64
}

/// Tokenizes a file: a sentence a line, a blank line between documents.
fn read(
    reader: Reader<'_>,
    number: usize,
    tokenizer: &mut ReferenceTokenizer<'_>,
    unk: u32,
) -> Result<(Documents, TextCounts)> {
    let file = &reader.input.files[number];
    let mut input = reader.open(file)?;
    let (mut documents, mut counts) = (Documents::default(), TextCounts::default());
    let (mut line, mut number) = (Vec::new(), 0u64);
    loop {
        line.clear();
        let mut bounded = (&mut input).take(LONGEST_LINE as u64 + 1);
        let read = bounded.read_until(b'\n', &mut line).map_err(|e| match unreadable(e, file) {
            Stop::Failed(error) => error,
            Stop::Enough => no_text(file),
        })?;
        if read == 0 {
            break;
        }
        number += 1;
        if read > LONGEST_LINE {
            let what =
                format!("line {number} is longer than {LONGEST_LINE} bytes; split it, one sentence a line");
            return Err(Error::file(&file.path, what));
        }
        let text = std::str::from_utf8(&line).map_err(|e| {
            let byte = e.valid_up_to() + 1;
            let what = format!(
                "line {number}, byte {byte}: not UTF-8, at which the reference tool stops too; convert the text"
            );
            Error::file(&file.path, what)
        })?;
        if text.chars().all(is_stripped) {
            documents.end_document();
            continue;
        }
        let before = documents.tokens.len();
        tokenizer.encode(text, &mut documents.tokens);
        count(&mut counts, &documents.tokens[before..], text, tokenizer, unk);
        documents.end_sentence();
        if u32::try_from(documents.tokens.len() * 2).is_err() {
            let what =
                format!("line {number}: more than 2^31 tokens; split the text into files, as its parts are");
            return Err(Error::file(&file.path, what));
        }
    }
    documents.end_document();
    Ok((documents, counts))
}

/// Counts the tokens of a line.
fn count(
    counts: &mut TextCounts,
    tokens: &[u32],
    text: &str,
    tokenizer: &mut ReferenceTokenizer<'_>,
    unk: u32,
) {
    let unknown = tokens.iter().filter(|&&token| token == unk).count() as u64;
    let (tokens, sentences) = (tokens.len() as u64, u64::from(!tokens.is_empty()));
    let line = TextCounts { tokens, unknown, sentences, ..TextCounts::default() };
    unknown::add(counts, line, text, |word| {
        let mut ids = Vec::new();
        tokenizer.encode(word, &mut ids);
        ids.contains(&unk)
    });
}

/// What Python's `str.strip` removes.
fn is_stripped(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
