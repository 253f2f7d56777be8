//! Trains a WordPiece vocabulary, by the crate `tokenizers`, on word counts gathered in one pass.

use super::{SPECIAL_TOKENS, Vocab};
use crate::config::PrepareConfig;
use crate::data::input::{Block, Blocks, Input, InputFile, Reader, Seen, document_text};
use crate::data::pipeline::ordered;
use crate::data::prepare::{BUDGET, Phase, PrepareProgress};
use crate::data::shards::Alphabet;
use crate::data::tokenize::{
    PartialSettings, PieceHasher, TokenizerSettings, cut, for_each_word, is_separator,
};
use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};

/// Bytes of text counted at once.
const BLOCK: usize = 2 << 20;
/// Sizes that can be asked for.
const SIZES: std::ops::RangeInclusive<usize> = 100..=1_000_000;
/// A pair is merged only if it occurs this often.
const MIN_FREQUENCY: u64 = 2;
/// WordPiece makes longer words [UNK].
const LONGEST_WORD: usize = 100;
/// When more distinct words are counted, the rarest are forgotten (about 200 MB).
const MOST_COUNTED: usize = 2 << 20;
/// The most frequent words that are trained on; the trainer takes about 600 bytes a word.
const MOST_TRAINED: usize = 1 << 19;

type Counts = HashMap<String, u64, BuildHasherDefault<PieceHasher>>;

/// Trains a vocabulary of at most `size` tokens on the input: the special tokens, single characters, then what merges
/// of frequent pairs give; it says which characters it holds. The same input gives the same vocabulary. `scratch` is a
/// folder for compressed Parquet.
pub(crate) fn train_files(
    files: &[InputFile],
    config: &PrepareConfig,
    size: usize,
    scratch: &Path,
    threads: usize,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<(Vocab, Alphabet)> {
    if !SIZES.contains(&size) {
        let what = format!("{size}, expected {} to {}", SIZES.start(), SIZES.end());
        return Err(Error::config("prepare.train_vocab", what));
    }
    let counts = count_words(files, config, scratch, threads, progress)?;
    train_limited(counts, size, config.alphabet_limit)
}

fn count_words(
    files: &[InputFile],
    config: &PrepareConfig,
    scratch: &Path,
    threads: usize,
    progress: &(dyn Fn(&PrepareProgress) + Sync),
) -> Result<Counts> {
    let (input, seen) = (Input { files, config }, &Seen::default());
    let reader = Reader { input, piece: BLOCK, seen, scratch };
    let settings = &PartialSettings::of(config).resolve();
    let mut done = PrepareProgress::new(Phase::Vocabulary, files);
    let mut counts = Counts::default();
    ordered(
        threads,
        (BUDGET / 6).min((threads + 2) * BLOCK),
        |emit| {
            let mut blocks = Blocks::new(
                BLOCK,
                || seen.bytes.load(Relaxed),
                |block: Block| {
                    let cost = block.bytes.len();
                    emit(block, cost)
                },
            );
            reader.read(&mut |piece| blocks.add(&piece, false))?;
            blocks.finish()
        },
        || |block| count_block(&block, input, settings),
        |(block_counts, documents, bytes): (Counts, u64, u64)| {
            for (word, count) in block_counts {
                *counts.entry(word).or_default() += count;
            }
            forget_rare(&mut counts, MOST_COUNTED);
            done.documents += documents;
            done.bytes_read = bytes;
            progress(&done);
            Ok(())
        },
    )?;
    Ok(counts)
}

fn count_block(block: &Block, input: Input<'_>, settings: &TokenizerSettings) -> Result<(Counts, u64, u64)> {
    let mut chunks: HashMap<String, u64, BuildHasherDefault<PieceHasher>> = HashMap::default();
    let mut documents = 0;
    for document in &block.documents {
        let text = document_text(document, &block.bytes, input)?.text;
        documents += u64::from(document.first);
        for chunk in text.split(is_separator).filter(|chunk| !chunk.is_empty()) {
            match chunks.get_mut(chunk) {
                Some(count) => *count += 1,
                None => drop(chunks.insert(chunk.to_owned(), 1)),
            }
        }
    }
    let mut words = Counts::default();
    for (chunk, count) in chunks {
        let mut rest = chunk.as_str();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(cut(rest, settings));
            for_each_word(head, settings, |word| {
                if word.chars().nth(LONGEST_WORD).is_none() {
                    *words.entry(word.to_owned()).or_default() += count;
                }
            });
            rest = tail;
        }
    }
    Ok((words, documents, block.bytes_read))
}

/// Forgets words of the lowest counts until at most half of `most` are left, if there are more than `most`.
fn forget_rare(counts: &mut Counts, most: usize) {
    if counts.len() > most {
        let mut sorted: Vec<u64> = counts.values().copied().collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let least = sorted[most / 2];
        // Of those that count the same as the first to go, the first by name stay.
        let room = most / 2 - sorted.partition_point(|&count| count > least);
        let mut ties: Vec<String> =
            counts.iter().filter(|&(_, &n)| n == least).map(|(w, _)| w.clone()).collect();
        ties.sort_unstable();
        let end = ties.get(room).cloned().unwrap_or_default();
        counts.retain(|word, count| *count > least || (*count == least && *word < end));
    }
}

/// Trains a vocabulary of at most `size` tokens on words and their counts, in any order. Words are taken as they are,
/// so they should be normalized as BERT does.
pub fn train(words: impl IntoIterator<Item = (String, u64)>, size: usize) -> Result<Vocab> {
    Ok(train_limited(words, size, None)?.0)
}

/// As [`train`], with at most `limit` characters, and how many it holds.
fn train_limited(
    words: impl IntoIterator<Item = (String, u64)>,
    size: usize,
    limit: Option<usize>,
) -> Result<(Vocab, Alphabet)> {
    let mut words: Vec<(String, u64)> = words.into_iter().filter(|(word, _)| !word.is_empty()).collect();
    words.sort_unstable();
    words.dedup_by(|later, first| {
        let same = later.0 == first.0;
        first.1 += if same { later.1 } else { 0 };
        same
    });
    words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let (Singles { alphabet, inner }, characters) = singles(&words, size, limit);
    words.retain(|(word, _)| word.chars().all(|c| alphabet.contains(&c)));
    words.truncate(MOST_TRAINED);
    if words.is_empty() {
        return Err(Error::config("prepare.train_vocab", "the input holds no word to train a vocabulary on"));
    }
    // The trainer adds up counts in i32.
    let total =
        |words: &[(String, u64)]| words.iter().map(|(w, n)| w.len() as u128 * u128::from(*n)).sum::<u128>();
    while total(&words) > i32::MAX as u128 {
        words.iter_mut().for_each(|(_, count)| *count = count.div_ceil(2));
    }
    // The trainer numbers `##c` in the order of a hash table, and breaks ties by number: numbered here first, they and
    // all that follows are the same in every run.
    let first = SPECIAL_TOKENS.map(String::from).into_iter();
    let singles = alphabet.iter().map(char::to_string).chain(inner.iter().map(|c| format!("##{c}")));
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .min_frequency(MIN_FREQUENCY)
        .vocab_size(size)
        .continuing_subword_prefix("##".into())
        .special_tokens(first.chain(singles).map(|token| AddedToken::from(token, true)).collect())
        .build();
    let mut model = BPE::default();
    trainer
        .do_train(&words.into_iter().map(|(word, count)| (word.into(), count)).collect(), &mut model)
        .map_err(|e| Error::config("prepare.train_vocab", e.to_string()))?;
    let mut tokens: Vec<(u32, String)> =
        model.get_vocab().into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    let vocab = Vocab::from_tokens(tokens.into_iter().map(|(_, token)| token).collect())?;
    let (kept, singles) = (alphabet.len() as u64, (alphabet.len() + inner.len()) as u64);
    Ok((vocab, Alphabet { characters: characters as u64, kept, tokens: singles }))
}

/// Tokens of one character.
struct Singles {
    alphabet: BTreeSet<char>,
    /// Those that continue a word that is trained on: tokens with `##`.
    inner: BTreeSet<char>,
}

impl Singles {
    /// Of these characters, on words in the order in which they are trained on.
    fn new(words: &[(String, u64)], characters: &[char]) -> Self {
        let alphabet: BTreeSet<char> = characters.iter().copied().collect();
        let known =
            words.iter().map(|(word, _)| word).filter(|word| word.chars().all(|c| alphabet.contains(&c)));
        let inner = known.take(MOST_TRAINED).flat_map(|word| word.chars().skip(1)).collect();
        Self { alphabet, inner }
    }

    fn len(&self) -> usize {
        self.alphabet.len() + self.inner.len()
    }
}

/// The most frequent characters, at most `limit` of them and as many as `size` tokens have room for, and the number of all.
/// A text with any other character in a word is [UNK] there, which is why rare ones are kept where there is room.
fn singles(words: &[(String, u64)], size: usize, limit: Option<usize>) -> (Singles, usize) {
    let characters = by_frequency(words);
    let room = size.saturating_sub(SPECIAL_TOKENS.len());
    let most = limit.unwrap_or(usize::MAX).min(characters.len());
    let mut best = Singles::new(words, &characters[..most]);
    if best.len() <= room {
        return (best, characters.len());
    }
    // Half of the room always fits.
    let (mut low, mut high) = ((room / 2).min(most - 1), most - 1);
    best = Singles::new(words, &characters[..low]);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let singles = Singles::new(words, &characters[..middle]);
        if singles.len() <= room {
            (low, best) = (middle, singles);
        } else {
            high = middle - 1;
        }
    }
    (best, characters.len())
}

/// All characters, the most frequent ones first.
fn by_frequency(words: &[(String, u64)]) -> Vec<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for (word, count) in words {
        for c in word.chars() {
            *counts.entry(c).or_default() += count;
        }
    }
    let mut sorted: Vec<(char, u64)> = counts.into_iter().collect();
    sorted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    sorted.into_iter().map(|(c, _)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Many ties: all counts are small.
    fn words() -> Vec<(String, u64)> {
        let mut stream = kernels::philox::Stream::new(1, 0, 9);
        (0..3000)
            .map(|_| {
                let word =
                    (0..stream.range(1, 9)).map(|_| char::from(b'a' + stream.below(26) as u8)).collect();
                (word, u64::from(stream.range(1, 4)))
            })
            .collect()
    }

    #[test]
    fn the_same_words_give_the_same_vocabulary() {
        let first = train(words(), 800).unwrap();
        assert_eq!(first.len(), 800);
        assert_eq!(first.tokens()[..5], SPECIAL_TOKENS);
        for _ in 0..10 {
            let mut shuffled = words();
            shuffled.reverse();
            assert_eq!(train(shuffled, 800).unwrap().sha256(), first.sha256());
        }
    }

    #[test]
    fn frequent_words_become_tokens_and_counts_beyond_i32_do_not_overflow() {
        let counts =
            [("whale", 3_000_000_000u64), ("whales", 2_000_000_000), ("ship", 1_500_000_000), ("sh", 5)];
        let vocab = train(counts.map(|(w, n)| (w.to_owned(), n)), 100).unwrap();
        for token in ["whale", "ship", "##s", "w"] {
            assert!(vocab.id(token).is_some(), "{token} in {:?}", vocab.tokens());
        }
        assert!(train([], 100).is_err());
    }

    /// Ideographs, which are words by themselves, the first ones most often.
    fn ideographs(count: u32) -> Vec<(String, u64)> {
        let character = |i| char::from_u32(0x4e00 + i).unwrap().to_string();
        (0..count).map(|i| (character(i), u64::from(count - i))).collect()
    }

    #[test]
    fn the_alphabet_is_limited_by_the_room_and_by_the_limit_alone() {
        for (count, size, limit, want) in [
            // (characters in the vocabulary, its tokens)
            (937, 3000, None, (937, 942)),
            (3000, 21_128, None, (3000, 3005)),
            (3000, 1000, None, (995, 1000)),
            (3000, 21_128, Some(50), (50, 55)),
            (3000, 100, Some(5000), (95, 100)),
        ] {
            let (vocab, alphabet) = train_limited(ideographs(count), size, limit).unwrap();
            let known = Alphabet { characters: count.into(), kept: want.0, tokens: want.0 };
            assert_eq!((alphabet, vocab.len()), (known, want.1), "{count} {size} {limit:?}");
            let last = char::from_u32(0x4e00 + want.0 as u32 - 1).unwrap().to_string();
            assert!(vocab.id(&last).is_some(), "the most frequent ones are kept");
        }
        // Letters need room for their form within a word too, and the size asked for is reached.
        for size in [100, 300, 800] {
            let (vocab, alphabet) =
                train_limited(words().into_iter().chain(ideographs(200)), size, None).unwrap();
            assert_eq!((alphabet.characters, vocab.len()), (226, size));
            assert!(alphabet.tokens + 5 <= size as u64);
        }
    }

    #[test]
    fn rare_words_are_forgotten_first() {
        let mut counts: Counts = (0..100u64).map(|i| (i.to_string(), i)).collect();
        forget_rare(&mut counts, 60);
        assert!(counts.len() == 30 && counts.contains_key("99") && !counts.contains_key("5"));
        let mut equal: Counts = (0..100u64).map(|i| (format!("{i:02}"), 7)).collect();
        forget_rare(&mut equal, 60);
        assert!(equal.len() == 30 && equal.contains_key("29") && !equal.contains_key("30"));
    }
}
