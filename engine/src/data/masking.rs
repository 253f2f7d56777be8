//! Which tokens are to be predicted, and what stands in their places: 80 % [MASK], 10 % the token itself, 10 % a token
//! drawn from the whole vocabulary (Devlin et al., 2019).

use crate::data::Sequence;
use crate::data::shards::{Dataset, SequenceRef};
use crate::data::vocab::Vocab;
use kernels::philox::{MASKING, Stream, step_key};
use std::sync::Arc;

/// Key of the masks that every evaluation draws, whatever the run's seed: "EVAL".
const EVAL_SEED: u64 = 0x4556_414C;

/// The rule of masking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskRule {
    /// Share of tokens to predict.
    pub probability: f64,
    /// Most tokens to predict in one sequence.
    pub max_predictions: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
    /// Id of [MASK].
    pub mask: u32,
}

impl MaskRule {
    /// How many of a sequence's tokens are predicted: the share of all its `length` tokens, at least one, at most
    /// `max_predictions`, and never [CLS] or [SEP].
    pub fn count(&self, length: usize, segment_b_start: usize) -> usize {
        let share = (self.probability * length as f64).round_ties_even() as usize;
        share.clamp(1, self.max_predictions.max(1)).min(candidates(length, segment_b_start))
    }

    /// Draws positions, ascending, and calls `f` with each and with what stands there; `None` is the token itself.
    pub fn draw(
        &self,
        length: usize,
        segment_b_start: usize,
        stream: &mut Stream,
        mut f: impl FnMut(usize, Option<u32>),
    ) {
        let count = self.count(length, segment_b_start);
        let all = candidates(length, segment_b_start);
        let mut places: Vec<u32> = (0..all as u32).collect();
        for i in 0..count {
            let j = stream.range(i as u32, all as u32 - 1) as usize;
            places.swap(i, j);
        }
        places.truncate(count);
        places.sort_unstable();
        for place in places {
            f(position_of(place as usize, segment_b_start), self.replacement(stream));
        }
    }

    /// As [`MaskRule::draw`], by words: a token and the pieces that continue it are predicted together or not at all, as with
    /// `do_whole_word_mask` of BERT's create_pretraining_data.py. [`MaskRule::count`] is the most; a word that would exceed
    /// it is passed over, so that there may be fewer, or none. `continues` says whether the token at a position continues
    /// the one before it; a word never goes on in segment B.
    pub fn draw_words(
        &self,
        length: usize,
        segment_b_start: usize,
        continues: impl Fn(usize) -> bool,
        stream: &mut Stream,
        mut f: impl FnMut(usize, Option<u32>),
    ) {
        let count = self.count(length, segment_b_start);
        let mut words: Vec<std::ops::Range<usize>> = Vec::new();
        for place in 0..candidates(length, segment_b_start) {
            let position = position_of(place, segment_b_start);
            match words.last_mut() {
                Some(word) if word.end == position && continues(position) => word.end += 1,
                _ => words.push(position..position + 1),
            }
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(count);
        for i in 0..words.len() {
            if chosen.len() == count {
                break;
            }
            let j = stream.range(i as u32, words.len() as u32 - 1) as usize;
            words.swap(i, j);
            if chosen.len() + words[i].len() <= count {
                chosen.extend(words[i].clone());
            }
        }
        chosen.sort_unstable();
        for position in chosen {
            f(position, self.replacement(stream));
        }
    }

    /// What stands in the place of a token to predict; `None` is the token itself.
    fn replacement(&self, stream: &mut Stream) -> Option<u32> {
        match stream.below(10) {
            0..8 => Some(self.mask),
            8 => None,
            _ => Some(stream.below(self.vocab_size)),
        }
    }
}

/// The position of a token that is neither [CLS] nor [SEP], counted without these: position 0 is [CLS], the one before B is
/// [SEP].
fn position_of(place: usize, segment_b_start: usize) -> usize {
    place + 1 + usize::from(place + 2 >= segment_b_start)
}

/// Of each token of a vocabulary, whether it continues a word.
pub(crate) fn pieces(vocab: &Vocab) -> Arc<[bool]> {
    vocab.tokens().iter().map(|token| token.starts_with("##")).collect()
}

/// Tokens that are neither [CLS] nor [SEP].
fn candidates(length: usize, segment_b_start: usize) -> usize {
    length.saturating_sub(if segment_b_start < length { 3 } else { 2 })
}

/// Masks the sequences of a data set.
#[derive(Debug, Clone)]
pub struct Masker {
    rule: MaskRule,
    /// Where whole words are masked: of each token, whether it continues a word.
    pieces: Option<Arc<[bool]>>,
}

impl Masker {
    /// The rule that the data was prepared with.
    pub fn new(dataset: &Dataset) -> Self {
        let options = &dataset.manifest().options;
        Self {
            rule: MaskRule {
                probability: options.masked_lm_prob,
                max_predictions: options.max_predictions,
                vocab_size: dataset.vocab_size() as u32,
                mask: dataset.vocab().mask,
            },
            pieces: options.whole_word_masking.then(|| pieces(dataset.vocab())),
        }
    }

    /// Tokens of the sequence `index` that are predicted in this epoch. See [`Masker::train`].
    pub fn count(&self, sequence: &SequenceRef<'_>, seed: u64, epoch: u64, index: u64) -> usize {
        match (&sequence.mask, &self.pieces) {
            (Some(mask), _) => mask.positions.len(),
            (None, None) => self.rule.count(sequence.tokens.len(), sequence.segment_b_start),
            // Which words fit depends on the order in which they are drawn.
            (None, Some(_)) => {
                let mut count = 0;
                self.draw(sequence, step_key(seed, epoch), index, |_, _| count += 1);
                count
            }
        }
    }

    /// The sequence `index` as training sees it in this epoch: its stored mask, or one drawn for (seed, epoch, index).
    pub fn train(&self, sequence: &SequenceRef<'_>, seed: u64, epoch: u64, index: u64) -> Sequence {
        self.apply(sequence, step_key(seed, epoch), index)
    }

    /// The sequence `index` as every evaluation sees it.
    pub fn eval(&self, sequence: &SequenceRef<'_>, index: u64) -> Sequence {
        self.apply(sequence, step_key(EVAL_SEED, 0), index)
    }

    fn apply(&self, sequence: &SequenceRef<'_>, key: u64, index: u64) -> Sequence {
        let length = sequence.tokens.len();
        let mut out = Sequence {
            tokens: sequence.tokens.to_vec(),
            types: (0..length).map(|p| u32::from(p >= sequence.segment_b_start)).collect(),
            nsp_label: sequence.nsp,
            ..Sequence::default()
        };
        let mut set = |position: usize, replacement: Option<u32>| {
            out.mlm_positions.push(position as u32);
            out.mlm_labels.push(out.tokens[position]);
            if let Some(token) = replacement {
                out.tokens[position] = token;
            }
        };
        match &sequence.mask {
            Some(mask) => {
                for (i, &position) in mask.positions.iter().enumerate() {
                    set(usize::from(position), Some(mask.tokens.get(i)));
                }
            }
            None => self.draw(sequence, key, index, set),
        }
        out
    }

    /// Draws the mask of a sequence that has none.
    fn draw(&self, sequence: &SequenceRef<'_>, key: u64, index: u64, f: impl FnMut(usize, Option<u32>)) {
        let (tokens, segment_b_start) = (&sequence.tokens, sequence.segment_b_start);
        let mut stream = Stream::new(key, index, MASKING);
        match &self.pieces {
            None => self.rule.draw(tokens.len(), segment_b_start, &mut stream, f),
            Some(pieces) => {
                let continues = |position| pieces.get(tokens.get(position) as usize) == Some(&true);
                self.rule.draw_words(tokens.len(), segment_b_start, continues, &mut stream, f);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: MaskRule = MaskRule { probability: 0.15, max_predictions: 76, vocab_size: 1000, mask: 4 };

    fn draw(length: usize, segment_b: usize, id: u64) -> Vec<(usize, Option<u32>)> {
        let mut out = Vec::new();
        RULE.draw(length, segment_b, &mut Stream::new(1, id, MASKING), |p, r| out.push((p, r)));
        out
    }

    #[test]
    fn counts_follow_the_rule() {
        for (length, segment_b, want) in [
            (512, 200, 76),
            (507, 200, 76),
            (100, 50, 15),
            (10, 5, 2),
            (5, 3, 1),
            (3, 3, 1),
            (2, 2, 0),
            (90, 45, 14),
        ] {
            assert_eq!(RULE.count(length, segment_b), want, "{length}"); // 0.15 * 90 = 13.5 rounds to even: 14
            assert_eq!(draw(length, segment_b, 0).len(), want);
        }
    }

    #[test]
    fn positions_are_uniform_and_never_special_and_replacements_80_10_10() {
        let (mut hits, mut masked, mut kept, mut random, mut draws) = (vec![0; 40], 0, 0, 0, 0);
        for id in 0..20_000 {
            let drawn = draw(40, 15, id);
            assert!(drawn.windows(2).all(|w| w[0].0 < w[1].0));
            for (position, replacement) in drawn {
                hits[position] += 1;
                draws += 1;
                match replacement {
                    Some(4) => masked += 1,
                    None => kept += 1,
                    Some(id) => {
                        assert!(id < 1000);
                        random += 1;
                    }
                }
            }
        }
        assert_eq!((hits[0], hits[14], hits[39]), (0, 0, 0));
        // 20,000 * 6 / 37 = 3243 each, standard deviation 52
        assert!((1..39).filter(|&p| p != 14).all(|p| (2980..3510).contains(&hits[p])), "{hits:?}");
        let share = |n: i32| f64::from(n) / f64::from(draws);
        assert!((share(masked) - 0.8).abs() < 0.005);
        assert!((share(kept) - 0.1).abs() < 0.004);
        assert!((share(random) - 0.1).abs() < 0.004);
        assert_eq!(draw(40, 15, 7), draw(40, 15, 7));
        assert_ne!(draw(40, 15, 7), draw(40, 15, 8));
    }

    /// Draws whole words of a sequence in which these positions continue a word.
    fn draw_words(length: usize, segment_b: usize, pieces: &[usize], id: u64) -> Vec<usize> {
        let mut out = Vec::new();
        let mut stream = Stream::new(1, id, MASKING);
        RULE.draw_words(length, segment_b, |p| pieces.contains(&p), &mut stream, |p, _| out.push(p));
        out
    }

    #[test]
    fn words_are_masked_as_a_whole_or_not_at_all() {
        // Words of up to three tokens; one begins segment B with a piece.
        let pieces: Vec<usize> = (1..100).filter(|p| p % 5 > 2 || *p == 50).collect();
        let mut totals = Vec::new();
        for id in 0..500 {
            let drawn = draw_words(100, 50, &pieces, id);
            assert!(drawn.is_sorted() && drawn.len() <= RULE.count(100, 50), "{drawn:?}");
            assert!(!drawn.iter().any(|p| [0, 49, 99].contains(p)), "{drawn:?}");
            for &p in &drawn {
                let word: Vec<usize> = match p % 5 {
                    2..5 => (p - p % 5 + 2..p - p % 5 + 5).filter(|p| ![49, 99].contains(p)).collect(),
                    _ => vec![p],
                };
                assert!(word.iter().all(|p| drawn.contains(p)), "{p} of {word:?} in {drawn:?}");
            }
            totals.push(drawn.len());
        }
        let mean = totals.iter().sum::<usize>() as f64 / 500.0;
        assert!(mean > 14.9, "{mean} of 15");
        assert_eq!(draw_words(100, 50, &pieces, 3), draw_words(100, 50, &pieces, 3));
        // One token may be masked, and there is but one word, of five.
        assert_eq!(draw_words(7, 7, &[2, 3, 4, 5], 0), [0; 0]);
    }
}
