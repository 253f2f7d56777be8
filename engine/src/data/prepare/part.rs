//! Preparation over several hosts: each makes every N-th unit of the input (a block, or a file with the recipe `mlperf`)
//! into a folder of its own.
//!
//! A part's folder is `vocab.txt`, shards of its units' sequences in order, and `part.json`, which says how many sequences each
//! unit became. There is no manifest, so nobody trains on a part. [`super::merge`] takes the units of all parts in turn.

use super::contents::Contents;
use super::staging::{self, Staging};
use super::{
    Phase, PrepareProgress, Tokenization, check, contents_of, cores, early_staging, list, make_sequences,
    records, save_vocab, say_remarks, tokenization,
};
use crate::config::PrepareConfig;
use crate::data::input::{InputFile, Omitted};
use crate::data::remarks;
use crate::data::shards::{Manifest, SplitManifest, VOCAB, verify};
use crate::data::tokenize::TokenizerSettings;
use crate::data::vocab::Vocab;
use crate::error::{During, Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use xxhash_rust::xxh3::xxh3_64;

/// What is in a part's folder; its first line is the XXH3 of the others, hexadecimal.
pub(in crate::data) const PART: &str = "part.json";
/// Most parts: a merge has a shard of each open.
const MOST_PARTS: u64 = 1024;
/// Bytes of the shards that a merge has open, one of each part.
const OPEN_SHARDS: usize = 256 << 20;
/// Bytes of a shard of whole data.
const SHARD_BYTES: usize = 64 << 20;

/// Part `part` of `of`, as in `2/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartOf {
    /// From 1 on.
    pub part: u64,
    /// How many there are.
    pub of: u64,
}

impl FromStr for PartOf {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (part, of) = numbers.ok_or("expected I/N, as in 1/4")?;
        match of {
            1..=MOST_PARTS if (1..=of).contains(&part) => Ok(Self { part, of }),
            1..=MOST_PARTS => Err(format!("there is no part {part} of {of}; parts are 1/{of} to {of}/{of}")),
            _ => Err(format!("{of} parts, expected 1 to {MOST_PARTS}")),
        }
    }
}

/// Which units of the input a process makes.
#[derive(Debug, Clone, Copy)]
pub(in crate::data) struct Share {
    first: u64,
    step: u64,
}

impl Share {
    pub const ALL: Self = Self { first: 0, step: 1 };

    fn of(part: PartOf) -> Self {
        Self { first: part.part - 1, step: part.of }
    }

    pub fn is_all(self) -> bool {
        self.step == 1
    }

    /// Whether unit `number` is in it.
    pub fn has(self, number: u64) -> bool {
        number % self.step == self.first
    }

    /// How many of `all` units are in it.
    fn count(self, all: u64) -> u64 {
        all.saturating_sub(self.first).div_ceil(self.step)
    }

    /// Size of shards: as ever for the whole; the more parts, the smaller.
    pub fn shard_bytes(self) -> usize {
        SHARD_BYTES.min(OPEN_SHARDS / self.step as usize)
    }
}

/// What is to be made into sequences, and by whom.
#[derive(Clone, Copy)]
pub(in crate::data) struct Work<'a> {
    pub files: &'a [InputFile],
    pub config: &'a PrepareConfig,
    pub vocab: &'a Vocab,
    pub settings: TokenizerSettings,
    /// Where shards go.
    pub dir: &'a Path,
    pub threads: usize,
    pub progress: &'a (dyn Fn(&PrepareProgress) + Sync),
    pub share: Share,
}

/// What a unit of the input became.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::data) struct Unit {
    /// Whether it is of the evaluation split.
    pub eval: bool,
    pub sequences: u64,
}

/// What a share of the input became, besides shards.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::data) struct Outcome {
    pub documents: u64,
    pub invalid_utf8: u64,
    /// How often each token occurs in the training text.
    pub unigrams: Vec<u64>,
    pub train: SplitManifest,
    pub eval: SplitManifest,
    /// The share's, in order.
    pub units: Vec<Unit>,
    /// Units of the whole input.
    pub all_units: u64,
    /// Of the text of all units, where all of it was read: sizes may agree where texts do not. Hexadecimal.
    pub text_xxh3: Option<String>,
    #[serde(default, skip_serializing_if = "Omitted::is_nothing")]
    pub omitted: Omitted,
}

/// A part of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which one.
    pub number: PartOf,
    /// Options, input and vocabulary of the whole; it has no shards yet.
    pub(super) whole: Manifest,
    pub(super) made: Outcome,
}

impl Part {
    /// Options, input and vocabulary of the whole.
    pub fn whole(&self) -> &Manifest {
        &self.whole
    }

    /// Documents that begin in this part.
    pub fn documents(&self) -> u64 {
        self.made.documents
    }

    /// This part's sequences for training.
    pub fn train(&self) -> &SplitManifest {
        &self.made.train
    }

    /// This part's sequences held out.
    pub fn eval(&self) -> &SplitManifest {
        &self.made.eval
    }

    /// The share of unknown tokens in this part's splits, in a line, and what is wrong with it.
    pub fn unknown_tokens(&self) -> (Option<String>, Vec<String>) {
        let (train, eval) = (&self.made.train, &self.made.eval);
        (remarks::unknown_tokens(train, eval), remarks::many_unknown(train, eval))
    }

    /// Reads a part's folder, without its shards.
    ///
    /// # Errors
    /// No part there, or a text that is not as it was written.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(PART);
        let text = std::fs::read_to_string(&path).during("cannot read the part", &path)?;
        let bad = |what: String| {
            Error::file(&path, format!("{what}; remove the folder and prepare this part again"))
        };
        let (checksum, rest) = text.split_once('\n').unwrap_or_default();
        let want = format!("{:016x}", xxh3_64(rest.as_bytes()));
        if checksum != want {
            return Err(bad(format!("checksum: the text has {want}, not what its first line says: damaged")));
        }
        let part: Self = serde_json::from_str(rest).map_err(|e| bad(e.to_string()))?;
        part.check().map_err(bad)?;
        Ok(part)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let PartOf { part, of } = self.number;
        format!("{part}/{of}").parse::<PartOf>().map_err(|what| format!("number: {what}"))?;
        let (units, want) = (self.made.units.len() as u64, Share::of(self.number).count(self.made.all_units));
        if units != want {
            return Err(format!(
                "units: {units}, expected {want} of {} as part {part} of {of}",
                self.made.all_units
            ));
        }
        for (name, eval, split) in [("train", false, &self.made.train), ("eval", true, &self.made.eval)] {
            let in_units = self.made.units.iter().filter(|unit| unit.eval == eval).map(|unit| unit.sequences);
            let sum = in_units.fold(0u64, u64::saturating_add);
            if sum != split.sequences {
                return Err(format!(
                    "{name}: {} sequences in shards, {sum} in the units of text",
                    split.sequences
                ));
            }
        }
        Ok(())
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(PART);
        let text = serde_json::to_string(self).map_err(|e| {
            Error::file(&path, format!("cannot write as JSON: {e}; use paths that are UTF-8"))
        })?;
        let mut file = std::fs::File::create(&path).during("cannot create", &path)?;
        writeln!(file, "{:016x}", xxh3_64(text.as_bytes()))
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.sync_all())
            .during("cannot write", &path)
    }
}

/// Prepares a part of the input into the folder `out`, which appears when it is complete. All parts of the same input, made
/// with the same options anywhere, are joined by [`super::merge`]. The same part that lies there already is kept.
///
/// # Errors
/// Those of [`super::prepare`], and a vocabulary that is yet to be trained.
pub fn prepare_part(
    config: &PrepareConfig,
    number: PartOf,
    out: &Path,
    threads: usize,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Part> {
    check(config)?;
    let Tokenization { vocab: Some(vocab), settings, .. } = tokenization(config)? else {
        let what = "every part needs the whole vocabulary; train it on one host first (prepare --train-vocab N --input PATH \
                    --out DIR, on all of the text or some of it), then give each part the vocab.txt of that DIR";
        return Err(Error::config("prepare.train_vocab", what));
    };
    let early = early_staging(config, out, progress)?;
    let files = list(config, early.as_ref(), progress)?;
    let mut whole = Manifest::new(config, records(&files));
    whole.set_tokenizer(settings);
    let (threads, share) = (cores(threads), Share::of(number));
    let contents = contents_of(&files, threads, progress)?;
    if let Some(existing) = existing(out, number, &whole, &vocab, &contents)? {
        return Ok(existing);
    }
    let waiting = || progress(&PrepareProgress::new(Phase::Waiting, &files));
    let staging = early.map_or_else(|| Staging::create(out, &waiting), Ok)?;
    if let Some(existing) = existing(out, number, &whole, &vocab, &contents)? {
        return Ok(existing);
    }
    say_remarks(&files);
    whole.inputs = contents.records()?;
    let dir = staging.path();
    save_vocab(&vocab, dir, &mut whole)?;
    let work = Work { files: &files, config, vocab: &vocab, settings, dir, threads, progress, share };
    let made = make_sequences(&work)?;
    contents.check_unchanged()?;
    let part = Part { number, whole, made };
    part.save(dir)?;
    files.iter().try_for_each(InputFile::remove_spooled)?;
    staging.finish(out)?;
    Ok(part)
}

/// The part at `out`, if it is whole and the one wanted; none if there is nothing.
fn existing(
    out: &Path,
    number: PartOf,
    wanted: &Manifest,
    vocab: &Vocab,
    contents: &Contents<'_>,
) -> Result<Option<Part>> {
    if !out.exists() {
        return Ok(None);
    }
    if !out.join(PART).exists() {
        let mut entries = std::fs::read_dir(out).during("cannot list the folder", out)?;
        let what = format!("it holds other files and no {PART}; choose another folder");
        return if entries.next().is_none() { Ok(None) } else { Err(Error::file(out, what)) };
    }
    let part = Part::load(out)?;
    let PartOf { part: there, of } = part.number;
    let difference = match part.number == number {
        false => Some(format!("part {there} of {of} is there, {} of {} wanted", number.part, number.of)),
        true => match difference(&part.whole, wanted, vocab) {
            None => contents.difference(&out.join(PART), &part.whole.inputs)?,
            found => found,
        },
    };
    if let Some(what) = difference {
        let what = format!("holds another part: {what}; choose another folder or remove this one");
        return Err(Error::file(out, what));
    }
    let shards: Vec<_> = part.made.train.shards.iter().chain(&part.made.eval.shards).cloned().collect();
    verify(out, &shards, vocab, &part.whole.options)?;
    check_vocab(out, vocab)?;
    Ok(Some(part))
}

/// What differs between the wholes of two parts, if anything that is known without reading the input.
pub(super) fn difference(found: &Manifest, wanted: &Manifest, vocab: &Vocab) -> Option<String> {
    if found.tool_version != wanted.tool_version {
        let (there, here) = (&found.tool_version, &wanted.tool_version);
        return Some(format!("it was made by version {there}, and {here} is wanted"));
    }
    staging::difference(found, wanted, Some(vocab))
}

/// The vocabulary in a part's folder is that of its shards.
fn check_vocab(dir: &Path, vocab: &Vocab) -> Result<()> {
    let path = dir.join(VOCAB);
    match Vocab::load(&path)?.sha256() == vocab.sha256() {
        true => Ok(()),
        false => Err(Error::file(
            &path,
            "is not the vocabulary of this part; remove the folder and prepare the part again",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_divide_all_units() {
        for (all, of) in [(10, 3), (2, 5), (0, 2), (7, 1)] {
            let shares: Vec<_> = (1..=of).map(|part| Share::of(PartOf { part, of })).collect();
            for number in 0..all {
                assert_eq!(shares.iter().filter(|share| share.has(number)).count(), 1);
            }
            for share in shares {
                assert_eq!(share.count(all), (0..all).filter(|&number| share.has(number)).count() as u64);
            }
        }
    }

    #[test]
    fn parts_are_given_as_fractions() {
        assert_eq!("2/8".parse(), Ok(PartOf { part: 2, of: 8 }));
        for (text, want) in [
            ("0/4", "there is no part 0 of 4; parts are 1/4 to 4/4"),
            ("5/4", "no part 5"),
            ("3", "expected I/N"),
            ("1/", "expected I/N"),
            ("1/0", "0 parts, expected 1 to 1024"),
            ("1/2000", "2000 parts"),
        ] {
            let error = text.parse::<PartOf>().unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
