//! A WordPiece vocabulary: one token a line, the line's number is the token's id.

mod train;

pub use train::train;
pub(crate) use train::train_files;

use crate::error::{During, Error, Result};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// The tokens that every vocabulary must hold, in the order in which a trained vocabulary starts.
pub const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Tokens and their ids. Holds the five special tokens, no duplicates and no empty token.
#[derive(Debug, Clone)]
pub struct Vocab {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    sha256: String,
    /// Id of `[PAD]`.
    pub pad: u32,
    /// Id of `[UNK]`.
    pub unk: u32,
    /// Id of `[CLS]`.
    pub cls: u32,
    /// Id of `[SEP]`.
    pub sep: u32,
    /// Id of `[MASK]`.
    pub mask: u32,
}

impl Vocab {
    /// Reads a vocab.txt.
    ///
    /// # Errors
    /// A file that cannot be read, is empty or not UTF-8, has an empty line or one token twice, or lacks a special
    /// token.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).during("cannot read the vocabulary", path)?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|&&b| b == b'\n').count();
            Error::file(
                path,
                format!("line {line} is not UTF-8; save the vocabulary as UTF-8, one token a line"),
            )
        })?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let tokens = if text.is_empty() { Vec::new() } else { text.split('\n').map(trim_cr).collect() };
        Self::build(tokens, |what| Error::file(path, what))
    }

    /// Takes tokens in the order of their ids; the errors of [`Vocab::load`].
    pub fn from_tokens(tokens: Vec<String>) -> Result<Self> {
        Self::build(tokens, |what| Error::config("vocabulary", what))
    }

    fn build(tokens: Vec<String>, error: impl Fn(String) -> Error) -> Result<Self> {
        if tokens.is_empty() {
            return Err(error("holds no token; a vocabulary has one token a line".into()));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut digest = Sha256::new();
        for (i, token) in tokens.iter().enumerate() {
            let line = i + 1;
            if token.is_empty() {
                return Err(error(format!("line {line} is empty; every line must hold one token")));
            }
            if let Some(first) = ids.insert(token.clone(), i as u32) {
                let first = first + 1;
                return Err(error(format!(
                    "lines {first} and {line} both hold `{token}`; remove one of them"
                )));
            }
            digest.update(token);
            digest.update("\n");
        }
        let special = |name: &str| {
            ids.get(name).copied().ok_or_else(|| {
                error(format!("has no `{name}`; a BERT vocabulary holds {}", SPECIAL_TOKENS.join(" ")))
            })
        };
        let [pad, unk, cls, sep, mask] = SPECIAL_TOKENS.map(special);
        let (pad, unk, cls, sep, mask) = (pad?, unk?, cls?, sep?, mask?);
        let sha256 = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self { tokens, ids, sha256, pad, unk, cls, sep, mask })
    }

    /// All tokens, by id.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Number of tokens.
    #[allow(clippy::len_without_is_empty, reason = "a vocabulary is never empty")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The token of an id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// Hexadecimal SHA-256 of the tokens, each followed by a newline: the hash of vocab.txt where that has Unix line
    /// ends.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Writes a vocab.txt.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = self.tokens.join("\n");
        text.push('\n');
        std::fs::write(path, text).during("cannot write the vocabulary", path)
    }
}

fn trim_cr(line: &str) -> String {
    line.strip_suffix('\r').unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: &[u8]) -> Result<Vocab> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocab.txt");
        std::fs::write(&path, bytes).unwrap();
        Vocab::load(&path)
    }

    #[test]
    fn saving_and_loading_keeps_tokens_and_hash_whatever_the_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocab.txt");
        let tokens: Vec<String> =
            SPECIAL_TOKENS.iter().copied().chain(["a", "##b"]).map(String::from).collect();
        let vocab = Vocab::from_tokens(tokens.clone()).unwrap();
        vocab.save(&path).unwrap();
        let again = Vocab::load(&path).unwrap();
        assert_eq!(again.tokens(), tokens);
        assert_eq!(again.sha256(), vocab.sha256());
        assert_eq!((again.mask, again.id("##b"), again.token(5)), (4, Some(6), Some("a")));
        let windows = load(tokens.join("\r\n").as_bytes()).unwrap();
        assert_eq!(windows.sha256(), vocab.sha256());
        let digest = Sha256::digest(std::fs::read(&path).unwrap());
        assert_eq!(vocab.sha256(), digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        for (bytes, want) in [
            (&b""[..], "holds no token"),
            (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "no `[MASK]`"),
            (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "lines 6 and 8 both hold `a`"),
            (b"[PAD]\n\n[UNK]\n", "line 2 is empty"),
            (b"[PAD]\n[UNK]\n\xff\n", "line 3 is not UTF-8"),
        ] {
            let message = load(bytes).unwrap_err().to_string();
            assert!(message.contains(want) && message.contains("vocab.txt"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
