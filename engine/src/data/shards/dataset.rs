//! All shards of a split, as one list of sequences.

use super::manifest::{MANIFEST, Manifest, ShardEntry, SplitManifest, VOCAB};
use super::shard::{Expected, SequenceRef, Shard};
use crate::config::PrepareConfig;
use crate::data::vocab::Vocab;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Which part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SplitName {
    Train,
    Eval,
}

/// A split of prepared data, mapped into memory.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    split: SplitName,
    manifest: Manifest,
    vocab: Vocab,
    shards: Vec<Shard>,
    /// First sequence of each shard.
    starts: Vec<usize>,
    len: usize,
}

impl Dataset {
    /// Opens a data folder: manifest and vocabulary are verified, of each shard its size and header. Sequences are checked
    /// when they are read, so that none makes a reader fail; whether they are those that were written, only
    /// [`Dataset::verify`] tells.
    ///
    /// # Errors
    /// Anything missing, damaged as far as was looked, or not of one piece. A split without sequences is none.
    pub fn open(dir: &Path, split: SplitName) -> Result<Self> {
        let manifest = Manifest::load(dir)?;
        let vocab = Vocab::load(&dir.join(VOCAB))?;
        if vocab.sha256() != manifest.vocab_sha256 || vocab.len() != manifest.vocab_size {
            let what = format!(
                "is not the vocabulary of this data: sha256 {}, {MANIFEST} says {}; restore it, or remove the folder and prepare the data again",
                vocab.sha256(),
                manifest.vocab_sha256
            );
            return Err(Error::file(dir.join(VOCAB), what));
        }
        let shards = open_shards(dir, &Self::split_of(&manifest, split).shards, &vocab, &manifest.options)?;
        let mut len = 0;
        let starts = shards.iter().map(|shard| (len, len += shard.len()).0).collect();
        Ok(Self { dir: dir.to_owned(), split, manifest, vocab, shards, starts, len })
    }

    /// Opens a data folder and verifies all of the split.
    ///
    /// # Errors
    /// Those of [`Dataset::open`] and [`Dataset::verify`].
    pub fn open_verified(dir: &Path, split: SplitName) -> Result<Self> {
        let dataset = Self::open(dir, split)?;
        dataset.verify(&|_| ())?;
        Ok(dataset)
    }

    /// Verifies all bytes of the split, on all threads: checksums, offsets, ids. Calls `done` with the bytes of each shard
    /// that was found right.
    ///
    /// # Errors
    /// The first shard that is damaged, in their order.
    pub fn verify(&self, done: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let found: Vec<_> = (0..self.shards.len())
            .into_par_iter()
            .map(|shard| self.verify_shard(shard).map(|()| done(self.split().shards[shard].bytes)))
            .collect();
        found.into_iter().collect()
    }

    /// Verifies one shard.
    pub(super) fn verify_shard(&self, shard: usize) -> Result<()> {
        let shard = &self.shards[shard];
        shard.verify()?;
        let longest = shard.longest();
        shard.check_reads()?;
        match longest {
            longest if longest > self.longest() => Err(self.too_long(longest)),
            _ => Ok(()),
        }
    }

    /// The manifest is of other shards: memory is planned with what it says.
    fn too_long(&self, length: usize) -> Error {
        let what =
            format!("says that no sequence is longer than {} tokens, one has {length}", self.longest());
        Error::file(self.dir.join(MANIFEST), format!("{what}; remove the folder and prepare the data again"))
    }

    fn split_of(manifest: &Manifest, split: SplitName) -> &SplitManifest {
        match split {
            SplitName::Train => &manifest.train,
            SplitName::Eval => &manifest.eval,
        }
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sequence `i`; panics past the end, as a slice does.
    ///
    /// # Errors
    /// The sequence is damaged; what is said is what [`Dataset::verify`] says of its shard.
    pub fn get(&self, i: usize) -> Result<SequenceRef<'_>> {
        let shard = self.starts.partition_point(|&start| start <= i) - 1;
        let sequence = self.shards[shard].get(i - self.starts[shard])?;
        match sequence.tokens.len() {
            length if length > self.longest() => Err(self.too_long(length)),
            _ => Ok(sequence),
        }
    }

    /// Whether all that was read so far was there: after sequences were read, before what came of them is used. Asks no
    /// file system.
    ///
    /// # Errors
    /// A shard was shortened while it was in use.
    pub fn check_reads(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_reads)
    }

    /// Whether all shards still have their length: before what was learned of them is kept.
    ///
    /// # Errors
    /// A shard was shortened while it was in use.
    pub fn check_files(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_file)
    }

    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// How the data was made.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Counts of this split.
    pub fn split(&self) -> &SplitManifest {
        Self::split_of(&self.manifest, self.split)
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.split().longest
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.split().shards.iter().map(|shard| shard.bytes).sum()
    }
}

/// Verifies shards that no manifest names yet.
///
/// # Errors
/// Those of [`Dataset::open_verified`].
pub(crate) fn verify(
    dir: &Path,
    shards: &[ShardEntry],
    vocab: &Vocab,
    options: &PrepareConfig,
) -> Result<()> {
    let found: Vec<_> = open_shards(dir, shards, vocab, options)?.par_iter().map(Shard::verify).collect();
    found.into_iter().collect()
}

fn open_shards(
    dir: &Path,
    entries: &[ShardEntry],
    vocab: &Vocab,
    options: &PrepareConfig,
) -> Result<Vec<Shard>> {
    let expected = Expected::new(vocab, options);
    let shards: Vec<_> = entries.par_iter().map(|entry| Shard::open(dir, entry, &expected)).collect();
    // Collected first, so that the first error in the order of shards wins.
    shards.into_iter().collect()
}
