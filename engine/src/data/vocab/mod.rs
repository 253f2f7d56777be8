//! A WordPiece vocabulary: one token a line, the line's number is the token's id.

mod train;

pub use train::train;
pub(crate) use train::train_files;

use crate::data::tokenize::files::tokens_of;
use crate::error::{During, Error, Result};
use crate::files::{WRITTEN_BY_HAND, read_up_to};
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
    /// Reads a vocab.txt, or the vocabulary of a WordPiece model's tokenizer.json. A mark of byte order at the beginning is
    /// no part of the first token.
    ///
    /// # Errors
    /// A file that cannot be read, is empty or not UTF-8, has an empty line or one token twice, or lacks a special
    /// token; a folder, a binary file, the JSON of another tokenizer.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let tokens = match tokens_of_json(path, text)? {
            Some(tokens) => tokens,
            None => {
                let text = text.strip_suffix('\n').unwrap_or(text);
                if text.is_empty() { Vec::new() } else { text.split('\n').map(trim_cr).collect() }
            }
        };
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

    /// The content of a vocab.txt.
    pub fn to_text(&self) -> String {
        self.tokens.join("\n") + "\n"
    }

    /// Writes a vocab.txt.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_text()).during("cannot write the vocabulary", path)
    }
}

/// A file that may be a vocabulary, as text.
fn read_text(path: &Path) -> Result<String> {
    const REMEDY: &str = "give a vocab.txt: UTF-8 text, one token a line";
    if path.is_dir() {
        return Err(Error::file(path, format!("is a folder, not a vocabulary; {REMEDY}")));
    }
    let bytes = read_up_to(path, WRITTEN_BY_HAND, "cannot read the vocabulary")?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::file(path, format!("is text in UTF-16; {REMEDY}")));
    }
    if let Some(at) = bytes.iter().position(|&b| b == 0) {
        return Err(Error::file(
            path,
            format!("is a binary file, not a vocabulary (byte {at} is 0); {REMEDY}"),
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&b| b == b'\n').count();
        Error::file(path, format!("line {line} is not UTF-8; save the vocabulary as UTF-8, one token a line"))
    })
}

/// The tokens of a tokenizer.json; none where the text is no JSON. A token may begin with a brace as JSON does.
fn tokens_of_json(path: &Path, text: &str) -> Result<Option<Vec<String>>> {
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let is_json = text.trim_start().starts_with('{')
        && (named || serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| json.is_object()));
    if is_json { tokens_of(path, text).map(Some) } else { Ok(None) }
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
    fn a_mark_of_byte_order_and_a_tokenizer_json_change_nothing() {
        let tokens = SPECIAL_TOKENS.iter().copied().chain(["{", "##b"]);
        let plain = load(tokens.clone().collect::<Vec<_>>().join("\n").as_bytes()).unwrap();
        let marked = "\u{feff}".to_owned() + &tokens.clone().collect::<Vec<_>>().join("\r\n");
        let ids: serde_json::Map<_, _> = tokens.zip(0..).map(|(t, id)| (t.to_owned(), id.into())).collect();
        let json = serde_json::json!({ "model": { "type": "WordPiece", "vocab": ids } }).to_string();
        for text in [marked, json] {
            assert_eq!(load(text.as_bytes()).unwrap().sha256(), plain.sha256());
        }
    }

    #[test]
    fn a_folder_is_named_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let message = Vocab::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains("is a folder, not a vocabulary; give a vocab.txt"), "{message}");
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        for (bytes, want) in [
            (&b""[..], "holds no token"),
            (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "no `[MASK]`"),
            (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "lines 6 and 8 both hold `a`"),
            (b"[PAD]\n\n[UNK]\n", "line 2 is empty"),
            (b"[PAD]\n[UNK]\n\xff\n", "line 3 is not UTF-8"),
            (b"[PAD]\n[UNK]\n\0\n", "is a binary file, not a vocabulary (byte 12 is 0)"),
            (b"\xff\xfe[\0P\0", "is text in UTF-16"),
            (b"{\"a\": 1, \"b\": 2}", "is JSON and no tokenizer.json"),
            (
                b"{\"model\": {\"type\": \"BPE\", \"vocab\": {}}}",
                "type: \"BPE\", only \"WordPiece\" can be reproduced",
            ),
            (
                b"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0, \"b\": 2}}}",
                "`b` has id 2, 1 is expected",
            ),
        ] {
            let message = load(bytes).unwrap_err().to_string();
            assert!(message.contains(want) && message.contains("vocab.txt"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
