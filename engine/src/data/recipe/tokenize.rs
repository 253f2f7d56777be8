//! Tokenization as the reference's `FullTokenizer` does it, with `do_lower_case` or without.
//!
//! [`crate::data::tokenize`] differs in what the crate behind it does: words of more than 100 characters are [UNK] there and
//! more than 200 here; private-use and unassigned characters are dropped there and kept here; a capital sigma that ends a
//! word becomes σ there and ς here; U+2B820 to U+2B91F are no ideographs there; categories are those of Unicode 8 there and of
//! Unicode 11 here; stretches of more than 8,192 bytes are cut there.

use super::unicode;
use crate::data::tokenize::{PieceHasher, is_separator};
use crate::data::vocab::Vocab;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use unicode_normalization::UnicodeNormalization;

/// A word of more characters is [UNK]: the reference's `max_input_chars_per_word`.
const LONGEST_WORD: usize = 200;
/// Longer pieces are rare and not remembered.
const LONGEST_CACHED: usize = 48;
/// When this many pieces are remembered, all are forgotten (about 10 MB).
const CACHE_ENTRIES: usize = 1 << 17;
/// The only character whose lower case depends on those around it.
const SIGMA: char = 'Σ';

/// Lines of text to token ids.
pub(super) struct ReferenceTokenizer<'a> {
    vocab: &'a Vocab,
    /// Whether text becomes lower case and loses its accents.
    lowercase: bool,
    /// Characters of the longest token.
    longest_token: usize,
    /// What became of a piece: a range of `cached_ids`.
    cache: HashMap<Box<str>, (u32, u32), BuildHasherDefault<PieceHasher>>,
    cached_ids: Vec<u32>,
    buffer: String,
}

impl<'a> ReferenceTokenizer<'a> {
    pub fn new(vocab: &'a Vocab, lowercase: bool) -> Self {
        let longest_token = vocab.tokens().iter().map(|t| t.chars().count()).max().unwrap_or(0);
        Self {
            vocab,
            lowercase,
            longest_token,
            cache: HashMap::default(),
            cached_ids: Vec::new(),
            buffer: String::new(),
        }
    }

    /// Appends the ids of a line's tokens. White space separates words whatever else happens, so it comes first.
    pub fn encode(&mut self, line: &str, out: &mut Vec<u32>) {
        for piece in line.split(is_separator).filter(|piece| !piece.is_empty()) {
            self.encode_piece(piece, out);
        }
    }

    /// A piece is cut around ASCII punctuation, which nothing reaches across but the rule for [`SIGMA`].
    fn encode_piece(&mut self, piece: &str, out: &mut Vec<u32>) {
        if let Some(&(start, end)) = self.cache.get(piece) {
            out.extend_from_slice(&self.cached_ids[start as usize..end as usize]);
            return;
        }
        let first = out.len();
        let is_cut = |b: u8| b.is_ascii_punctuation();
        if piece.len() == 1 || piece.contains(SIGMA) || !piece.bytes().any(is_cut) {
            self.encode_new(piece, out);
        } else {
            let mut rest = piece;
            while !rest.is_empty() {
                let end = match rest.bytes().position(is_cut) {
                    Some(0) => 1,
                    Some(at) => at,
                    None => rest.len(),
                };
                let (part, after) = rest.split_at(end);
                self.encode_piece(part, out);
                rest = after;
            }
        }
        if piece.len() <= LONGEST_CACHED {
            if self.cache.len() == CACHE_ENTRIES {
                self.cache.clear();
                self.cached_ids.clear();
            }
            let start = self.cached_ids.len() as u32;
            self.cached_ids.extend_from_slice(&out[first..]);
            self.cache.insert(piece.into(), (start, self.cached_ids.len() as u32));
        }
    }

    /// Drops what `_clean_text` drops and makes each ideograph a word.
    fn encode_new(&mut self, piece: &str, out: &mut Vec<u32>) {
        let mut word = String::with_capacity(piece.len());
        for c in piece.chars().filter(|&c| c != '\0' && c != '\u{fffd}' && !unicode::is_control(c)) {
            if is_ideograph(c) {
                self.encode_word(&std::mem::take(&mut word), out);
                self.encode_word(c.encode_utf8(&mut [0; 4]), out);
            } else {
                word.push(c);
            }
        }
        self.encode_word(&word, out);
    }

    /// Lower case without accents if wanted, punctuation marks apart.
    fn encode_word(&mut self, word: &str, out: &mut Vec<u32>) {
        if !self.lowercase {
            return self.split_punctuation(word.chars(), out);
        }
        let lower = lowercase(word);
        self.split_punctuation(lower.nfd().filter(|&c| !unicode::is_nonspacing_mark(c)), out);
    }

    fn split_punctuation(&mut self, word: impl Iterator<Item = char>, out: &mut Vec<u32>) {
        let mut part = std::mem::take(&mut self.buffer);
        part.clear();
        for c in word {
            if is_punctuation(c) {
                self.word_pieces(&part, out);
                self.word_pieces(c.encode_utf8(&mut [0; 4]), out);
                part.clear();
            } else {
                part.push(c);
            }
        }
        self.word_pieces(&part, out);
        self.buffer = part;
    }

    /// The longest token that the rest begins with, again and again; [UNK] for all of it where there is none.
    fn word_pieces(&self, word: &str, out: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let first = out.len();
        let mut at = 0;
        let mut candidate = String::new();
        if word.chars().count() <= LONGEST_WORD {
            while let Some((end, id)) = self.longest_match(word, at, &mut candidate) {
                out.push(id);
                at = end;
            }
        }
        if at < word.len() {
            out.truncate(first);
            out.push(self.vocab.unk);
        }
    }

    /// Where the longest token that begins at `at` ends, and its id.
    fn longest_match(&self, word: &str, at: usize, candidate: &mut String) -> Option<(usize, u32)> {
        candidate.clear();
        if at > 0 {
            candidate.push_str("##");
        }
        let prefix = candidate.len();
        candidate.extend(word[at..].chars().take(self.longest_token));
        while candidate.len() > prefix {
            if let Some(id) = self.vocab.id(candidate) {
                return Some((at + candidate.len() - prefix, id));
            }
            candidate.pop();
        }
        None
    }
}

/// `str.lower` of Python 3.7: characters newer than it stay as they are.
fn lowercase(word: &str) -> String {
    let mut lower = String::with_capacity(word.len());
    for stretch in word.split_inclusive(unicode::is_unassigned) {
        let known = stretch.trim_end_matches(unicode::is_unassigned);
        lower.push_str(&known.to_lowercase());
        lower.push_str(&stretch[known.len()..]);
    }
    lower
}

/// `_is_chinese_char`.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f | 0x2b740..=0x2b81f
        | 0x2b820..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

/// `_is_punctuation`.
fn is_punctuation(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_punctuation() } else { unicode::is_punctuation(c) }
}
