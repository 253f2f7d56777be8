//! How far an import is: a file in its staging folder, written anew whenever a shard is closed.

use super::files::InputFile;
use super::skipped::Skipped;
use super::{ImportConfig, ImportFormat, options};
use crate::data::prepare::staging::{JOURNAL, JOURNAL_ASIDE};
use crate::data::shards::{InputRecord, SplitManifest, TextCounts, verify};
use crate::data::vocab::Vocab;
use crate::error::{During, Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Where a block begins in the input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Number of the file.
    pub file: usize,
    /// Number of the record in it.
    pub record: u64,
    /// Of the record in the file, decompressed; TFRecord only.
    pub offset: u64,
}

/// One input file, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    path: PathBuf,
    bytes: u64,
    modified: u64,
    /// See [`InputRecord::xxh3`]. A journal of an earlier version has none and is of no use: path, size and time do not tell
    /// whether a file was edited.
    #[serde(default)]
    xxh3: Option<String>,
}

/// What an import must have in common with the one that left a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    tool_version: String,
    format: ImportFormat,
    vocab_sha256: String,
    train: Vec<FileIdentity>,
    eval: Vec<FileIdentity>,
}

impl Identity {
    /// Of files and what they hold.
    pub fn new(
        config: &ImportConfig,
        [train, eval]: [(&[InputFile], &[InputRecord]); 2],
        vocab: &Vocab,
    ) -> Self {
        let files = |(files, records): (&[InputFile], &[InputRecord])| {
            let identity = |(f, record): (&InputFile, &InputRecord)| FileIdentity {
                path: f.path.clone(),
                bytes: f.bytes,
                modified: f.modified,
                xxh3: record.xxh3.clone(),
            };
            files.iter().zip(records).map(identity).collect()
        };
        Self {
            tool_version: env!("CARGO_PKG_VERSION").into(),
            format: config.format,
            vocab_sha256: vocab.sha256().to_owned(),
            train: files(train),
            eval: files(eval),
        }
    }
}

/// All that an import must know to go on behind its last closed shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub identity: Identity,
    /// Most tokens of a sequence, which every shard says.
    pub max_seq_length: usize,
    /// The split under way: that of evaluation, which comes second.
    pub evaluating: bool,
    /// Where the first block begins that is not wholly in closed shards.
    pub position: Position,
    /// Sequences of that block that are.
    pub stored: u64,
    /// Sequences of this split before that block.
    pub before: u64,
    /// Closed shards.
    pub train: SplitManifest,
    pub eval: SplitManifest,
    /// Of the text before that block, as all that follows.
    pub unigrams: Vec<u64>,
    /// Of both splits.
    #[serde(default)]
    pub texts: [TextCounts; 2],
    pub skipped: Skipped,
    /// Most masks of a sequence.
    pub predictions: usize,
}

impl Journal {
    /// The journal that an import with this identity left in `dir`, if all that it names is whole. Shards that it does not
    /// name are removed.
    pub fn load(
        dir: &Path,
        identity: &Identity,
        vocab: &Vocab,
        (max_seq_length, labels): (usize, bool),
        skip_bad: bool,
    ) -> Result<Option<Self>> {
        let Ok(text) = std::fs::read_to_string(dir.join(JOURNAL)) else { return Ok(None) };
        let journal = text
            .split_once('\n')
            .filter(|(checksum, rest)| *checksum == format!("{:016x}", xxh3_64(rest.as_bytes())))
            .and_then(|(_, rest)| serde_json::from_str::<Self>(rest).ok())
            .filter(|j| j.is_of(identity) && j.unigrams.len() == vocab.len())
            .filter(|j| j.max_seq_length == max_seq_length && (skip_bad || j.skipped.is_empty()));
        let Some(journal) = journal else { return Ok(None) };
        let shards: Vec<_> = journal.train.shards.iter().chain(&journal.eval.shards).cloned().collect();
        let options = options_of(&journal, labels);
        if let Err(error) = verify(dir, &shards, vocab, &options) {
            tracing::warn!("starting over: {error}");
            return Ok(None);
        }
        for entry in std::fs::read_dir(dir).during("cannot list the folder", dir)? {
            let entry = entry.during("cannot list the folder", dir)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".shard") && !shards.iter().any(|shard| shard.file == name) {
                std::fs::remove_file(entry.path()).during("cannot remove", &entry.path())?;
            }
        }
        Ok(Some(journal))
    }

    /// Whether the files that were read already are the same; those that follow may differ.
    fn is_of(&self, now: &Identity) -> bool {
        let was = &self.identity;
        let same = |was: &[FileIdentity], now: &[FileIdentity], done: bool| {
            let begun = self.position != Position::default() || self.stored > 0;
            let read = self.position.file + usize::from(begun);
            if done { was == now } else { was.get(..read).is_some_and(|was| now.get(..read) == Some(was)) }
        };
        (&was.tool_version, was.format, &was.vocab_sha256)
            == (&now.tool_version, now.format, &now.vocab_sha256)
            && same(&was.train, &now.train, self.evaluating)
            && (!self.evaluating || same(&was.eval, &now.eval, false))
    }

    /// Writes the journal, in place of an older one.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let (path, aside) = (dir.join(JOURNAL), dir.join(JOURNAL_ASIDE));
        let text = serde_json::to_string(self).map_err(|e| {
            Error::file(&path, format!("cannot write as JSON: {e}; use paths that are UTF-8"))
        })?;
        let mut file = std::fs::File::create(&aside).during("cannot create", &aside)?;
        let sum = format!("{:016x}\n", xxh3_64(text.as_bytes()));
        file.write_all(sum.as_bytes())
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.sync_all())
            .during("cannot write", &aside)?;
        std::fs::rename(&aside, &path).during("cannot rename", &path)
    }
}

/// What the shards of a journal were written with, by an import of files with or without next-sentence labels.
fn options_of(journal: &Journal, labels: bool) -> crate::config::PrepareConfig {
    let config = ImportConfig {
        format: journal.identity.format,
        inputs: Vec::new(),
        eval: Vec::new(),
        vocab: PathBuf::new(),
        skip_bad: false,
    };
    options(&config, journal.max_seq_length, journal.predictions, labels)
}
