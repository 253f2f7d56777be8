//! What the tokens of a vocabulary tell of the text it was made from.

use crate::data::vocab::Vocab;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::{NormalizedString, Normalizer};

/// A share of upper-case letters below one token in this many is a few odd tokens.
const ODD_CASED: usize = 50;
/// As many tokens that hold accents may be odd ones, however small the vocabulary.
const ODD_ACCENTED: usize = 20;

/// Counts over the tokens, those in brackets (`[CLS]`, `[unused7]`) left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// With upper-case letters, which no lower-cased text produces.
    pub upper: usize,
    /// With letters that have an upper-case form, none of them in upper case.
    pub lower: usize,
    /// With accents, which no text produces whose accents were removed; composed Hangul and vowel signs that are marks
    /// count too.
    pub accented: usize,
    /// With letters beyond ASCII.
    pub beyond_ascii: usize,
}

impl Census {
    pub fn of(vocab: &Vocab) -> Self {
        let mut census = Self::default();
        for token in vocab.tokens().iter().filter(|t| !(t.starts_with('[') && t.ends_with(']'))) {
            if token.chars().any(|c| !c.to_lowercase().eq([c])) {
                census.upper += 1;
            } else if token.chars().any(|c| !c.to_uppercase().eq([c])) {
                census.lower += 1;
            }
            if !token.is_ascii() {
                census.beyond_ascii += usize::from(token.chars().any(|c| !c.is_ascii() && c.is_alphabetic()));
                census.accented += usize::from(is_accented(token));
            }
        }
        census
    }

    /// Whether the text had upper-case letters.
    pub fn is_cased(&self) -> bool {
        self.upper * ODD_CASED > self.upper + self.lower
    }

    /// Whether the text was in lower case: many letters, and as good as none in upper case.
    pub fn is_uncased(&self) -> bool {
        !self.is_cased() && self.lower > ODD_CASED
    }

    /// Whether the text had accents.
    pub fn is_accented(&self) -> bool {
        self.accented > ODD_ACCENTED && self.accented * ODD_ACCENTED > self.beyond_ascii
    }
}

fn is_accented(token: &str) -> bool {
    let mut normalized = NormalizedString::from(token);
    let stripped = BertNormalizer::new(false, false, Some(true), false).normalize(&mut normalized);
    stripped.is_ok() && normalized.get() != token
}
