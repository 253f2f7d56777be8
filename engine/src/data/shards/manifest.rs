//! What prepared data is: `manifest.json`.

use crate::config::PrepareConfig;
use crate::data::import::ImportSource;
use crate::data::input::{Omitted, grouped};
use crate::data::prepare::part::PART;
use crate::data::tokenize::TokenizerSettings;
use crate::error::{During, Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Name of the manifest in a data folder.
pub const MANIFEST: &str = "manifest.json";
/// Name of the vocabulary in a data folder.
pub const VOCAB: &str = "vocab.txt";
pub(super) const MANIFEST_VERSION: u32 = 1;
/// A manifest begins with this, 16 hexadecimal digits, and what they are the XXH3 of: all that follows them.
const CHECKSUM_PREFIX: &str = "{\n  \"checksum\": \"";
const CHECKSUM_DIGITS: usize = 16;

/// What a data folder holds and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// XXH3 of the manifest's text behind this field.
    checksum: String,
    /// Of the format.
    pub version: u32,
    /// Of the program that wrote it.
    pub tool_version: String,
    /// Tokens of the vocabulary, which is in `vocab.txt`.
    pub vocab_size: usize,
    /// See [`crate::data::vocab::Vocab::sha256`].
    pub vocab_sha256: String,
    /// How text was normalized; none, as in data made before there was a choice, is the uncased tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokenizer: Option<TokenizerSettings>,
    /// How the data was made.
    pub options: PrepareConfig,
    /// What it was made of; the evaluation text, where `options` name one, comes last.
    pub inputs: Vec<InputRecord>,
    /// What software made the sequences, where they were imported: `options` then says only what is known of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ImportSource>,
    /// Documents read, empty ones included.
    pub documents: u64,
    /// Invalid stretches of UTF-8 that were replaced by U+FFFD.
    pub invalid_utf8: u64,
    /// What of the input was passed over or cut.
    #[serde(default, skip_serializing_if = "Omitted::is_nothing")]
    pub omitted: Omitted,
    /// What a vocabulary was trained on, where `options` ask for that. Data prepared by earlier versions does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alphabet: Option<Alphabet>,
    /// Entropy in nats of the distribution of single tokens in the training text: the loss of a model that has learnt
    /// nothing but how frequent each token is.
    pub unigram_entropy: f64,
    /// For training.
    pub train: SplitManifest,
    /// Held out.
    pub eval: SplitManifest,
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRecord {
    /// As found.
    pub path: PathBuf,
    /// On disk.
    pub bytes: u64,
    /// XXH3 of 128 bits over the file as it lies on disk, hexadecimal: paths and sizes may agree where contents do not. None in
    /// data prepared by earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xxh3: Option<String>,
}

/// Characters of the text that a vocabulary was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alphabet {
    /// Different characters in the text.
    pub characters: u64,
    /// Of these, the most frequent ones, which are in the vocabulary.
    pub kept: u64,
    /// Tokens that are one character: each character that is kept, and its form with `##` where it continues a word.
    pub tokens: u64,
}

/// What a split's text became, to see whether it is what was meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextCounts {
    /// Tokens without special ones, [UNK] included. Of text that is used several times each is counted once; of imported
    /// sequences, all are.
    pub tokens: u64,
    /// Of these, [UNK].
    pub unknown: u64,
    /// Sentences with a token in them; 0 where sequences were imported.
    pub sentences: u64,
    /// Some words or characters that became [UNK], of stretches of text where many did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// Most examples that are kept.
const EXAMPLES: usize = 8;

impl TextCounts {
    /// Adds what another stretch of the text became. Of all examples those with the smallest hashes stay, so that neither
    /// the number of threads nor that of parts makes a difference.
    pub(crate) fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.unknown += other.unknown;
        self.sentences += other.sentences;
        for example in &other.examples {
            if !self.examples.contains(example) {
                self.examples.push(example.clone());
            }
        }
        self.examples.sort_by_cached_key(|example| xxh3_64(example.as_bytes()));
        self.examples.truncate(EXAMPLES);
    }
}

/// The shards of one split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitManifest {
    /// Documents with text.
    pub documents: u64,
    /// Sequences of all shards.
    pub sequences: u64,
    /// Tokens of all shards, special ones included.
    pub tokens: u64,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// How long sequences are.
    pub lengths: Lengths,
    /// What the text became. Data prepared by earlier versions does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextCounts>,
    /// Sentence pairs whose second segment is random, where they are labelled. Data prepared by earlier versions does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_next: Option<u64>,
    /// In order.
    pub shards: Vec<ShardEntry>,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Name in the data folder.
    pub file: String,
    /// Sequences in it.
    pub sequences: u64,
    /// Tokens in it.
    pub tokens: u64,
    /// Size of the file.
    pub bytes: u64,
    /// XXH3 of its header, which holds the XXH3 of the rest; hexadecimal.
    pub xxh3: String,
}

/// A histogram of sequence lengths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Width of a bin.
    pub width: usize,
    /// Sequences of `i * width + 1` to `(i + 1) * width` tokens.
    pub counts: Vec<u64>,
}

impl Lengths {
    /// Up to 32 bins for sequences up to `max_seq_length` tokens.
    pub fn new(max_seq_length: usize) -> Self {
        let width = max_seq_length.div_ceil(32).max(1);
        Self { width, counts: vec![0; max_seq_length.div_ceil(width)] }
    }

    pub(super) fn add(&mut self, length: usize) {
        self.counts[(length - 1) / self.width] += 1;
    }
}

impl Manifest {
    /// A manifest with nothing in it yet.
    pub(crate) fn new(options: &PrepareConfig, inputs: Vec<InputRecord>) -> Self {
        Self {
            checksum: "0".repeat(CHECKSUM_DIGITS),
            version: MANIFEST_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            vocab_size: 0,
            vocab_sha256: String::new(),
            tokenizer: None,
            options: options.clone(),
            inputs,
            source: None,
            documents: 0,
            invalid_utf8: 0,
            omitted: Omitted::default(),
            alphabet: None,
            unigram_entropy: 0.0,
            train: SplitManifest::default(),
            eval: SplitManifest::default(),
        }
    }

    /// Reads and verifies the manifest of a data folder.
    ///
    /// # Errors
    /// No manifest, another version, or a text that is not as it was written.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !path.exists() && dir.join(PART).exists() {
            let what = format!(
                "holds {PART} and no {MANIFEST}: it is one part of prepared data; join all parts with launcher prepare --merge"
            );
            return Err(Error::file(dir, what));
        }
        let text = std::fs::read_to_string(&path).during("cannot read the data's manifest", &path)?;
        let bad = |what: String| {
            Error::file(
                &path,
                format!("{what}; restore the file, or remove the folder and prepare the data again"),
            )
        };
        let rest = text.strip_prefix(CHECKSUM_PREFIX).filter(|rest| rest.is_char_boundary(CHECKSUM_DIGITS));
        let Some((checksum, rest)) = rest.map(|rest| rest.split_at(CHECKSUM_DIGITS)) else {
            return Err(bad("checksum: missing where a manifest begins".into()));
        };
        let want = format!("{:016x}", xxh3_64(rest.as_bytes()));
        if checksum != want {
            let found = checksum.escape_default();
            return Err(bad(format!("checksum: {found}, the text has {want}: damaged or edited by hand")));
        }
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version = serde_json::from_str::<Version>(&text).map_err(|e| bad(e.to_string()))?.version;
        if version != MANIFEST_VERSION {
            return Err(bad(format!("version: {version}, this program reads {MANIFEST_VERSION}")));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        manifest.check().map_err(bad)?;
        Ok(manifest)
    }

    /// What became of the input besides text, a line each; empty where all of it is as it was.
    pub fn remarks(&self) -> Vec<String> {
        let mut lines = self.omitted.remarks(|file| self.inputs.get(file).map(|input| input.path.as_path()));
        if self.invalid_utf8 > 0 {
            let count = grouped(self.invalid_utf8);
            lines.push(format!("{count} stretches of bytes were not UTF-8 and were replaced by U+FFFD"));
        }
        lines
    }

    /// How the text was normalized.
    pub fn tokenizer(&self) -> TokenizerSettings {
        self.tokenizer.unwrap_or_default()
    }

    pub(crate) fn set_tokenizer(&mut self, settings: TokenizerSettings) {
        self.tokenizer = Some(settings).filter(|settings| *settings != TokenizerSettings::default());
    }

    /// Whether a file is a manifest, whole or not.
    pub(crate) fn is_one(path: &Path) -> bool {
        let mut start = [0; CHECKSUM_PREFIX.len()];
        let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && start == CHECKSUM_PREFIX.as_bytes()
    }

    /// Of what training reads: the vocabulary, its tokenizer and the shards' contents; hexadecimal.
    pub fn data_hash(&self) -> String {
        let shards = self.train.shards.iter().chain(&self.eval.shards);
        let mut text = shards.fold(self.vocab_sha256.clone(), |text, shard| text + " " + &shard.xxh3);
        if let Some(settings) = &self.tokenizer {
            text += &format!(" {settings}");
        }
        format!("{:016x}", xxh3_64(text.as_bytes()))
    }

    /// The manifest's text, with its checksum set.
    pub(super) fn seal(&mut self) -> serde_json::Result<String> {
        let text = |manifest: &Self| serde_json::to_string_pretty(manifest).map(|text| text + "\n");
        // What stands there, a part.json's for example, may have another length.
        self.checksum = "0".repeat(CHECKSUM_DIGITS);
        let rest = text(self)?.split_off(CHECKSUM_PREFIX.len() + CHECKSUM_DIGITS);
        self.checksum = format!("{:016x}", xxh3_64(rest.as_bytes()));
        text(self)
    }

    /// Writes the manifest into a data folder and has it on disk.
    pub(crate) fn save(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        let text = self.seal().map_err(|e| {
            Error::file(&path, format!("cannot write as JSON: {e}; use paths that are UTF-8"))
        })?;
        let mut file = std::fs::File::create(&path).during("cannot create", &path)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).during("cannot write", &path)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let longest = self.options.max_seq_length;
        if !(8..=usize::from(u16::MAX)).contains(&longest) {
            return Err(format!("options.max_seq_length: {longest}, expected 8 to {}", u16::MAX));
        }
        for (name, split) in [("train", &self.train), ("eval", &self.eval)] {
            if split.longest > longest {
                let found = split.longest;
                return Err(format!("{name}.longest: {found}, options.max_seq_length is {longest}"));
            }
            let sum = |count: fn(&ShardEntry) -> u64| {
                split.shards.iter().try_fold(0u64, |sum, shard| sum.checked_add(count(shard)))
            };
            if sum(|s| s.sequences) != Some(split.sequences) || sum(|s| s.tokens) != Some(split.tokens) {
                let (sequences, tokens) = (split.sequences, split.tokens);
                return Err(format!(
                    "{name}: {sequences} sequences and {tokens} tokens are not the sums over its shards"
                ));
            }
            for shard in &split.shards {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if shard.file.is_empty() || shard.file.starts_with('.') || !shard.file.chars().all(plain) {
                    return Err(format!(
                        "{name}.shards: `{}` is not a file name",
                        shard.file.escape_default()
                    ));
                }
            }
        }
        Ok(())
    }
}
