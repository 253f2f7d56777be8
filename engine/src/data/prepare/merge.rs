//! Parts of data, prepared on several hosts, to the data that one host would have prepared.

use super::contents::content_difference;
use super::part::{Outcome, Part, difference};
use super::staging::{self, Staging};
use super::{Phase, PrepareProgress, fill, save_vocab};
use crate::data::shards::{
    Columns, Expected, Manifest, ShardEntry, SplitStream, SplitWriter, TextCounts, VOCAB,
};
use crate::data::vocab::Vocab;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Sequences handed to the shard writer at once.
const CHUNK: u64 = 4096;

/// A part and where it lies.
type Found = (PathBuf, Part);

/// Joins parts that [`super::prepare_part`] made, given in any order, into the folder `out`, which appears when it is complete:
/// byte for byte what one host would have prepared, with the input's paths as the first part's host had them. A shard is
/// verified before anything is taken from it, and one of each part is open at a time.
///
/// # Errors
/// A part that is missing, given twice, damaged or of other data; a folder `out` that holds anything else.
pub fn merge(dirs: &[PathBuf], out: &Path, progress: &(dyn Fn(&PrepareProgress) + Sync)) -> Result<Manifest> {
    let parts = gather(dirs)?;
    let Some((first, Part { whole, .. })) = parts.first() else {
        return Err(Error::config("prepare.merge", "names no part; give the folders of all parts"));
    };
    let vocab = Vocab::load(&first.join(VOCAB))?;
    check_alike(&parts, &vocab)?;
    let mut manifest = whole.clone();
    let existing = || {
        staging::existing_like(out, &|found| {
            let known = staging::difference(found, whole, Some(&vocab));
            Ok(known.or_else(|| content_of(found, whole)))
        })
    };
    if let Some(existing) = existing()? {
        return Ok(existing);
    }
    let staging = Staging::create(out, &|| progress(&PrepareProgress::new(Phase::Waiting, &[])))?;
    if let Some(existing) = existing()? {
        return Ok(existing);
    }
    let dir = staging.path();
    save_vocab(&vocab, dir, &mut manifest)?;
    let outcome = copy(&parts, &vocab, dir, progress)?;
    fill(&mut manifest, outcome)?;
    manifest.save(dir)?;
    staging.finish(out)?;
    Ok(manifest)
}

/// What differs in the content of the input, if anything, or why it cannot be told.
fn content_of(found: &Manifest, whole: &Manifest) -> Option<String> {
    let known = |manifest: &Manifest| manifest.inputs.iter().all(|input| input.xxh3.is_some());
    match known(found) && known(whole) {
        true => content_difference(&found.inputs, &whole.inputs),
        false => Some(
            "it or the parts were prepared before checksums of the input were kept: whether they are of the same text \
             cannot be told"
                .into(),
        ),
    }
}

/// Reads all parts and puts them in order.
fn gather(dirs: &[PathBuf]) -> Result<Vec<Found>> {
    let mut parts: Vec<Found> = Vec::new();
    for dir in dirs {
        let part = Part::load(dir)?;
        let number = part.number;
        if let Some((other, first)) = parts.first().filter(|(_, first)| first.number.of != number.of) {
            let what = format!(
                "is one of {} parts, {} one of {}; give the parts of one division",
                number.of,
                other.display(),
                first.number.of
            );
            return Err(Error::file(dir, what));
        }
        if let Some((other, _)) = parts.iter().find(|(_, other)| other.number == number) {
            let what = format!(
                "is part {} of {}, as is {}; give each part once",
                number.part,
                number.of,
                other.display()
            );
            return Err(Error::file(dir, what));
        }
        parts.push((dir.clone(), part));
    }
    parts.sort_by_key(|(_, part)| part.number.part);
    let of = parts.first().map_or(0, |(_, part)| part.number.of);
    let has = |number| parts.iter().any(|(_, part)| part.number.part == number);
    match (1..=of).find(|&number| !has(number)) {
        Some(number) => Err(Error::config(
            "prepare.merge",
            format!("part {number} of {of} is missing; give the folders of all {of} parts"),
        )),
        None => Ok(parts),
    }
}

/// All parts are of the same data, made in the same way by this program's version.
fn check_alike(parts: &[Found], vocab: &Vocab) -> Result<()> {
    let Some((first, Part { whole, made, .. })) = parts.first() else { return Ok(()) };
    let mut wanted = Manifest::new(&whole.options, whole.inputs.clone());
    wanted.vocab_sha256 = vocab.sha256().to_owned();
    wanted.set_tokenizer(whole.tokenizer());
    for (dir, part) in parts {
        let found = &part.made;
        let known = difference(&part.whole, &wanted, vocab);
        let content = || content_difference(&part.whole.inputs, &wanted.inputs);
        let difference = known.or_else(content).or_else(|| {
            let text = (found.all_units, &found.text_xxh3) != (made.all_units, &made.text_xxh3);
            let words = found.unigrams.len() != vocab.len();
            (text || words)
                .then(|| "the files have the same names and sizes, but another text there".to_owned())
        });
        if let Some(what) = difference {
            let what = format!(
                "is part {} of other data than {}: {what}; prepare the parts from the same files with the same options",
                part.number.part,
                first.display()
            );
            return Err(Error::file(dir, what));
        }
    }
    Ok(())
}

/// One part's sequences, as far as they are not taken yet.
struct Rest<'a> {
    splits: [SplitStream<'a>; 2],
    part: &'a Part,
}

/// Takes the units of all parts in turn.
fn copy(
    parts: &[Found],
    vocab: &Vocab,
    dir: &Path,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Outcome> {
    let Some((_, Part { whole, made: first, .. })) = parts.first() else { return Ok(Outcome::default()) };
    let options = &whole.options;
    let masks = options.masking == crate::config::Masking::Static;
    let writer = |name| SplitWriter::new(dir, name, vocab, options.max_seq_length, options.nsp, masks);
    let mut writers = [writer("train"), writer("eval")];
    let expected = Expected::new(vocab, options);
    let mut rests: Vec<Rest<'_>> = parts
        .iter()
        .map(|(dir, part)| {
            let stream = |shards| SplitStream::new(dir, shards, &expected);
            Rest { splits: [stream(&part.made.train.shards), stream(&part.made.eval.shards)], part }
        })
        .collect();
    let mut outcome = Outcome { unigrams: vec![0; vocab.len()], ..Outcome::default() };
    let mut done = PrepareProgress::new(Phase::Merging, &[]);
    let bytes = |shards: &[ShardEntry]| shards.iter().map(|shard| shard.bytes).sum::<u64>();
    let mut texts = [Some(TextCounts::default()), Some(TextCounts::default())];
    for (_, Part { made, .. }) in parts {
        done.bytes_total += bytes(&made.train.shards) + bytes(&made.eval.shards);
        done.documents += made.documents;
        done.invalid_utf8 += made.invalid_utf8;
        outcome.omitted.add(&made.omitted);
        outcome.unigrams.iter_mut().zip(&made.unigrams).for_each(|(sum, &count)| *sum += count);
        for (writer, split) in writers.iter_mut().zip([&made.train, &made.eval]) {
            writer.append(&Columns::new(vocab.len()), split.documents)?;
        }
        for (sum, split) in texts.iter_mut().zip([&made.train, &made.eval]) {
            *sum = sum.take().zip(split.text.as_ref()).map(|(mut sum, text)| {
                sum.add(text);
                sum
            });
        }
    }
    (outcome.documents, outcome.invalid_utf8) = (done.documents, done.invalid_utf8);
    let mut columns = Columns::new(vocab.len());
    for number in 0..first.all_units {
        let rest = &mut rests[(number % parts.len() as u64) as usize];
        // `Part::load` has checked that each part has as many units as its share.
        let unit = rest.part.made.units[(number / parts.len() as u64) as usize];
        let split = usize::from(unit.eval);
        let mut left = unit.sequences;
        while left > 0 {
            let count = left.min(CHUNK);
            columns.clear();
            rest.splits[split].take(count, &mut columns)?;
            writers[split].append(&columns, 0)?;
            done.sequences += count;
            done.tokens += columns.tokens() as u64;
            left -= count;
        }
        done.bytes_read = rests.iter().flat_map(|rest| &rest.splits).map(SplitStream::bytes_read).sum();
        progress(&done);
    }
    let [train, eval] = writers;
    (outcome.train, outcome.eval) = (train.finish()?, eval.finish()?);
    [outcome.train.text, outcome.eval.text] = texts;
    Ok(outcome)
}

#[cfg(test)]
mod tests;
