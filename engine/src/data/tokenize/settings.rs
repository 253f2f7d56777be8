//! How text is normalized before it is cut into word pieces.

use super::census::Census;
use crate::config::PrepareConfig;
use serde::{Deserialize, Serialize};
use std::fmt;
use tokenizers::normalizers::BertNormalizer;

/// The settings of BERT's tokenizer. Control characters are always removed and white space always separates words
/// (Hugging Face's `clean_text`). The default is the uncased tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSettings {
    /// Text becomes lower case (`do_lower_case`).
    pub lowercase: bool,
    /// Accents are removed. Hugging Face's `strip_accents` may be null: it then has the value of `lowercase`.
    pub strip_accents: bool,
    /// Each Chinese character is a word of its own.
    pub tokenize_chinese_chars: bool,
}

impl TokenizerSettings {
    /// Of bert-base-uncased.
    pub const UNCASED: Self = Self { lowercase: true, strip_accents: true, tokenize_chinese_chars: true };
    /// Of bert-base-cased.
    pub const CASED: Self = Self { lowercase: false, strip_accents: false, tokenize_chinese_chars: true };

    /// The first setting that differs: its name, its value here and in `other`.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, bool, bool)> {
        [
            ("do_lower_case", self.lowercase, other.lowercase),
            ("strip_accents", self.strip_accents, other.strip_accents),
            ("tokenize_chinese_chars", self.tokenize_chinese_chars, other.tokenize_chinese_chars),
        ]
        .into_iter()
        .find(|(_, a, b)| a != b)
    }

    /// As Hugging Face writes it: null where it has the value of `lowercase`.
    pub(crate) fn strip_accents_or_null(&self) -> Option<bool> {
        Some(self.strip_accents).filter(|&strip| strip != self.lowercase)
    }

    pub(super) fn normalizer(&self) -> BertNormalizer {
        BertNormalizer::new(true, self.tokenize_chinese_chars, Some(self.strip_accents), self.lowercase)
    }
}

impl Default for TokenizerSettings {
    fn default() -> Self {
        Self::UNCASED
    }
}

impl fmt::Display for TokenizerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.lowercase { "uncased" } else { "cased" })?;
        match (self.lowercase, self.strip_accents) {
            (true, false) => f.write_str(", accents kept")?,
            (false, true) => f.write_str(", accents removed")?,
            _ => {}
        }
        if !self.tokenize_chinese_chars {
            f.write_str(", Chinese characters not apart")?;
        }
        Ok(())
    }
}

/// Settings that somebody states; none where it is left open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartialSettings {
    /// See [`TokenizerSettings::lowercase`].
    pub lowercase: Option<bool>,
    /// See [`TokenizerSettings::strip_accents`]; `Some(None)` is Hugging Face's null.
    pub strip_accents: Option<Option<bool>>,
    /// See [`TokenizerSettings::tokenize_chinese_chars`].
    pub tokenize_chinese_chars: Option<bool>,
}

impl PartialSettings {
    /// What the options of a preparation ask for.
    pub fn of(config: &PrepareConfig) -> Self {
        Self {
            lowercase: config.lowercase,
            strip_accents: config.strip_accents.map(Some),
            tokenize_chinese_chars: config.tokenize_chinese_chars,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These where they say something, else those of `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            lowercase: self.lowercase.or(other.lowercase),
            strip_accents: self.strip_accents.or(other.strip_accents),
            tokenize_chinese_chars: self.tokenize_chinese_chars.or(other.tokenize_chinese_chars),
        }
    }

    /// What is left open is that of the uncased tokenizer, and accents follow the case.
    pub fn resolve(self) -> TokenizerSettings {
        let lowercase = self.lowercase.unwrap_or(true);
        TokenizerSettings {
            lowercase,
            strip_accents: self.strip_accents.flatten().unwrap_or(lowercase),
            tokenize_chinese_chars: self.tokenize_chinese_chars.unwrap_or(true),
        }
    }

    /// As [`Self::resolve`], but what is left open about case and accents the tokens of the vocabulary tell.
    pub(super) fn resolve_by(self, census: &Census) -> TokenizerSettings {
        let lowercase = self.lowercase.unwrap_or(!census.is_cased());
        let kept = (lowercase && census.is_accented()).then_some(false);
        let strip_accents = Some(self.strip_accents.unwrap_or(kept));
        Self { lowercase: Some(lowercase), strip_accents, ..self }.resolve()
    }
}
