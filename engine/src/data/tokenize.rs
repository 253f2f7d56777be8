//! BERT's tokenization: clean, space out CJK, strip accents, lowercase, split at punctuation, WordPiece; what of it is
//! done the [settings](TokenizerSettings) say.
//!
//! The work is the crate `tokenizers`'. With any settings it is local to stretches without whitespace, and splitting at
//! ASCII punctuation changes nothing either: such a mark is a word by itself, no accent joins what stands before it,
//! and letters become lower case one by one. So the text is cut there, a table remembers what became of a piece, and
//! the crate runs only on pieces not seen before.

mod census;
pub(crate) mod files;
mod load;
mod settings;

pub use load::TokenizerFiles;
pub use settings::{PartialSettings, TokenizerSettings};

use crate::data::vocab::{SPECIAL_TOKENS, Vocab};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Longer pieces are rare and not remembered.
const LONGEST_CACHED: usize = 48;
/// When this many pieces are remembered, all are forgotten (about 10 MB).
const CACHE_ENTRIES: usize = 1 << 17;
/// The crate takes 30 bytes a byte: longer stretches without space or punctuation are cut. See [`cut`].
const LONGEST_PIECE: usize = 8192;

/// Text to token ids and back. Cheap to clone: the vocabulary is shared.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    cache: HashMap<Box<str>, (u32, u32), BuildHasherDefault<PieceHasher>>,
    cached_ids: Vec<u32>,
}

struct Shared {
    model: WordPiece,
    settings: TokenizerSettings,
    tokens: Vec<String>,
    special: [u32; SPECIAL_TOKENS.len()],
    unk: u32,
}

impl Tokenizer {
    /// A tokenizer of this vocabulary, for text that is normalized so.
    pub fn new(vocab: &Vocab, settings: TokenizerSettings) -> Result<Self> {
        let tokens = vocab.tokens().to_vec();
        let model = word_piece(&tokens).map_err(|e| Error::config("vocabulary", e.to_string()))?;
        let special = [vocab.pad, vocab.unk, vocab.cls, vocab.sep, vocab.mask];
        let shared = Arc::new(Shared { model, settings, tokens, special, unk: vocab.unk });
        Ok(Self { shared, cache: HashMap::default(), cached_ids: Vec::new() })
    }

    /// Appends the ids of a text, without [CLS] and [SEP]. Special tokens written in the text are ordinary text.
    pub fn encode(&mut self, text: &str, out: &mut Vec<u32>) {
        for piece in text.split(is_separator) {
            if !piece.is_empty() {
                self.encode_piece(piece, out);
            }
        }
    }

    /// As [`Tokenizer::encode`], but `[MASK]` and the other special tokens written in the text stay themselves.
    pub fn encode_with_specials(&mut self, text: &str, out: &mut Vec<u32>) {
        let mut rest = text;
        let next = |rest: &str| {
            let places = SPECIAL_TOKENS.iter().enumerate();
            places.filter_map(|(k, name)| rest.find(name).map(|at| (at, k))).min()
        };
        while let Some((at, k)) = next(rest) {
            self.encode(&rest[..at], out);
            out.push(self.shared.special[k]);
            rest = &rest[at + SPECIAL_TOKENS[k].len()..];
        }
        self.encode(rest, out);
    }

    /// Tokens joined by spaces, `##` pieces joined to what they continue. An id past the vocabulary reads `[UNK]`.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        for &id in ids {
            let token =
                self.shared.tokens.get(id as usize).unwrap_or(&self.shared.tokens[self.shared.unk as usize]);
            match token.strip_prefix("##") {
                Some(rest) if !text.is_empty() && !rest.is_empty() => text.push_str(rest),
                _ => {
                    if !text.is_empty() {
                        text.push(' ');
                    }
                    text.push_str(token);
                }
            }
        }
        text
    }

    fn encode_piece(&mut self, piece: &str, out: &mut Vec<u32>) {
        if let Some(&(start, end)) = self.cache.get(piece) {
            out.extend_from_slice(&self.cached_ids[start as usize..end as usize]);
            return;
        }
        let first = out.len();
        let mut rest = piece;
        while !rest.is_empty() {
            let end = match rest.bytes().position(|b| b.is_ascii_punctuation()) {
                Some(0) => 1,
                Some(at) => at,
                None => rest.len(),
            };
            let (part, after) = rest.split_at(end);
            if part.len() == piece.len() {
                self.encode_new(part, out)
            } else {
                self.encode_piece(part, out)
            }
            rest = after;
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

    fn encode_new(&self, mut piece: &str, out: &mut Vec<u32>) {
        let settings = &self.shared.settings;
        while !piece.is_empty() {
            let (head, tail) = piece.split_at(cut(piece, settings));
            for_each_word(head, settings, |word| match self.shared.model.tokenize(word) {
                Ok(tokens) => out.extend(tokens.iter().map(|t| t.id)),
                Err(_) => out.push(self.shared.unk),
            });
            piece = tail;
        }
    }
}

fn word_piece(tokens: &[String]) -> tokenizers::Result<WordPiece> {
    let mut ids = WordPiece::read_bytes(&[])?; // the crate's own type of hash table
    ids.extend(tokens.iter().cloned().zip(0..));
    WordPiece::builder().vocab(ids).build()
}

/// Calls `f` with every word of a text, normalized and split as BERT does before WordPiece.
pub(crate) fn for_each_word(text: &str, settings: &TokenizerSettings, mut f: impl FnMut(&str)) {
    let mut normalized = NormalizedString::from(text);
    let mut pre_tokenized = match settings.normalizer().normalize(&mut normalized) {
        Ok(()) => PreTokenizedString::from(normalized),
        Err(_) => return f(text),
    };
    if BertPreTokenizer.pre_tokenize(&mut pre_tokenized).is_err() {
        return f(text);
    }
    for (word, _, _) in pre_tokenized.get_splits(OffsetReferential::Normalized, OffsetType::None) {
        f(word);
    }
}

/// Whitespace that the normalizer turns into a space. It first drops control characters, U+000B, U+000C and U+0085
/// among them, so those join what they stand between.
pub(crate) fn is_separator(c: char) -> bool {
    match c {
        ' ' | '\t' | '\n' | '\r' => true,
        '\u{b}' | '\u{c}' | '\u{85}' => false,
        _ => !c.is_ascii() && c.is_whitespace(),
    }
}

/// Length of the part of a piece to tokenize at once: all of it, or up to [`LONGEST_PIECE`] bytes. A long piece is
/// cut before an ideograph, which is a word by itself, or where it is none, before a mark of Chinese or Japanese
/// punctuation, so nothing changes; without one near, the cut splits a stretch of thousands of characters, whose
/// words over 100 characters are [UNK] anyway.
pub(crate) fn cut(piece: &str, settings: &TokenizerSettings) -> usize {
    if piece.len() <= LONGEST_PIECE {
        return piece.len();
    }
    let end = floor_char_boundary(piece.as_bytes(), LONGEST_PIECE);
    let is_word = |c: char| match settings.tokenize_chinese_chars {
        true => ('\u{4e00}'..='\u{9fff}').contains(&c),
        false => matches!(c, '、' | '。' | '，' | '「' | '」' | '！' | '？'),
    };
    piece[..end].char_indices().rev().find(|&(at, c)| at > 0 && is_word(c)).map_or(end, |(at, _)| at)
}

/// The largest place at or before `at` where no UTF-8 character is cut; `at` where there is none nearby.
pub(crate) fn floor_char_boundary(bytes: &[u8], at: usize) -> usize {
    let continuation = |i: &usize| bytes.get(*i).is_some_and(|b| b & 0xc0 == 0x80);
    (at.saturating_sub(3)..=at).rev().find(|i| !continuation(i)).unwrap_or(at)
}

/// XXH3 of the piece.
#[derive(Clone, Default)]
pub(crate) struct PieceHasher(u64);

impl Hasher for PieceHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// `str` ends with such a byte; one string is hashed at a time, so it says nothing.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod file_tests;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::normalizers::BertNormalizer;

    /// Letters, some words and pieces of words. Of lower case, but for a few.
    pub(crate) fn small_vocab() -> Vocab {
        let words = "the of and to in a is that it for was on quick brown fox jump ##s ##ed ##ing over lazy dog . , ! ? \
                     ' \" ( ) - [ ] 。 ü 野 里 か ##な cls mask one two three four five six seven eight nine ten";
        let letters = ('a'..='z').chain('0'..='9').chain(['é', 'ß', 'ω']);
        let mut tokens: Vec<String> = SPECIAL_TOKENS.map(String::from).into();
        tokens.extend(letters.clone().map(|c| format!("##{c}")));
        tokens.extend(letters.map(|c| c.to_string()));
        for word in words.split_whitespace() {
            if !tokens.iter().any(|t| t == word) {
                tokens.push(word.into());
            }
        }
        Vocab::from_tokens(tokens).unwrap()
    }

    fn encode(text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        Tokenizer::new(&small_vocab(), TokenizerSettings::UNCASED).unwrap().encode(text, &mut out);
        out
    }

    /// The whole line through the crate at once.
    fn reference(vocab: &Vocab, normalizer: BertNormalizer, text: &str) -> Vec<u32> {
        let mut tokenizer = tokenizers::TokenizerBuilder::new()
            .with_model(word_piece(vocab.tokens()).unwrap())
            .with_normalizer(Some(normalizer))
            .with_pre_tokenizer(Some(BertPreTokenizer))
            .with_post_processor(None::<tokenizers::processors::bert::BertProcessing>)
            .with_decoder(None::<tokenizers::decoders::wordpiece::WordPiece>)
            .build()
            .unwrap();
        tokenizer.with_truncation(None).unwrap();
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn words_pieces_and_specials() {
        let vocab = small_vocab();
        let mut tokenizer = Tokenizer::new(&vocab, TokenizerSettings::UNCASED).unwrap();
        let mut ids = Vec::new();
        tokenizer.encode("The QUICK fox, jumping", &mut ids);
        assert_eq!(tokenizer.decode(&ids), "the quick fox , jumping");
        assert_eq!(ids.len(), 6);
        ids.clear();
        tokenizer.encode("is [MASK].", &mut ids);
        assert_eq!(tokenizer.decode(&ids), "is [ mask ] .");
        ids.clear();
        tokenizer.encode_with_specials("is [MASK][SEP].", &mut ids);
        assert_eq!(ids, ["is", "[MASK]", "[SEP]", "."].map(|t| vocab.id(t).unwrap()));
        assert_eq!(tokenizer.decode(&[u32::MAX]), "[UNK]");
    }

    #[test]
    fn long_stretches_are_cut_where_it_changes_nothing() {
        let vocab = small_vocab();
        let text = "野里".repeat(9000) + &"a,".repeat(9000);
        assert_eq!(encode(&text), reference(&vocab, BertNormalizer::default(), &text));
        assert!(encode(&"x".repeat(100_000)).iter().all(|&id| id == vocab.unk));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn equals_the_crate_on_the_whole_line(
            parts in prop::collection::vec(prop_oneof![
                Just("The quick".to_owned()), Just(" ".to_owned()), Just(",".to_owned()), Just("jumping".to_owned()),
                "[a-zA-Z0-9 .,'!-]{0,12}",
                "\\PC{0,6}",
                prop::sample::select(vec![
                    "\u{0}", "\u{b}", "\u{c}", "\u{85}", "\t", "\r\n", "\u{a0}", "\u{1680}", "\u{180e}", "\u{2003}",
                    "\u{2028}", "\u{2029}", "\u{202f}", "\u{205f}", "\u{3000}", "\u{200b}", "\u{200d}", "\u{feff}",
                    "\u{301}", "\u{338}", "\u{327}\u{301}", "e\u{301}", "\u{e9}", "İ", "ẞ", "Σ", "ς", "Ω", "\u{212b}",
                    "野里", "かな", "。", "\u{903}", "😀", "👩\u{200d}👩\u{200d}👧", "\u{fffd}", "\u{ad}", "ﬁ", "한국",
                    "\u{1f3fb}", "\u{20dd}", "\u{e000}", "\u{378}", "\u{37e}", "\u{1fef}", "\u{2260}", "A\u{30a}",
                ]).prop_map(String::from),
                any::<char>().prop_map(String::from),
            ], 0..12),
            lowercase: bool, strip_accents: bool, tokenize_chinese_chars: bool,
        ) {
            let text = parts.concat();
            let vocab = small_vocab();
            let settings = TokenizerSettings { lowercase, strip_accents, tokenize_chinese_chars };
            let normalizer =
                BertNormalizer::new(true, tokenize_chinese_chars, Some(strip_accents), lowercase);
            let want = reference(&vocab, normalizer, &text);
            let mut tokenizer = Tokenizer::new(&vocab, settings).unwrap();
            for _ in 0..2 {
                let mut got = Vec::new();
                tokenizer.encode(&text, &mut got);
                prop_assert_eq!(&got, &want);
            }
        }
    }
}
