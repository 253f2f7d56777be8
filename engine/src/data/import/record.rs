//! From a masked sequence to what shards store: the original tokens, and what stood in the masked places.

use super::skipped::{BadKind, Wrong};
use crate::data::shards::{Columns, TextCounts};
use crate::data::vocab::Vocab;

/// A sequence as other software stores it, without padding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masked<'a> {
    /// [CLS] A [SEP] B [SEP], masked.
    pub input_ids: &'a [i64],
    /// 0 for [CLS] A [SEP], 1 for B [SEP].
    pub segment_ids: &'a [i64],
    /// Masked positions.
    pub positions: &'a [i64],
    /// The tokens that stood there.
    pub labels: &'a [i64],
    /// 0: B follows A; 1: B is random. None where that was not to be learnt: then there need be no B.
    pub next_sentence_label: Option<i64>,
}

/// Checks sequences and stores them.
pub(super) struct Store<'a> {
    vocab: &'a Vocab,
    /// Longest sequence.
    max_seq_length: usize,
    tokens: Vec<u32>,
    masks: Vec<(usize, u32)>,
    /// Of the sequences added since this was last taken.
    pub text: TextCounts,
}

impl<'a> Store<'a> {
    pub fn new(vocab: &'a Vocab, max_seq_length: usize) -> Self {
        Self { vocab, max_seq_length, tokens: Vec::new(), masks: Vec::new(), text: TextCounts::default() }
    }

    /// Adds the sequence to `columns` and its tokens, without the special ones, to the counts `unigrams`, where there are
    /// any. Nothing is added where it returns what is wrong.
    pub fn add(
        &mut self,
        sequence: &Masked<'_>,
        columns: &mut Columns,
        unigrams: &mut [u32],
    ) -> Result<usize, Wrong> {
        self.read_tokens(sequence)?;
        self.read_masks(sequence)?;
        let alone = sequence.next_sentence_label.is_none();
        let segment_b = self.check_structure(sequence.segment_ids, alone)?;
        let label = match sequence.next_sentence_label {
            None => None,
            Some(label @ (0 | 1)) => Some(label == 1),
            Some(label) => {
                let what = format!("next_sentence_labels: {label}, expected 0 or 1");
                return Err(Wrong::new(BadKind::Label, what));
            }
        };
        columns.push(&self.tokens, segment_b, label);
        for &(position, replacement) in &self.masks {
            columns.push_mask(position, replacement);
        }
        columns.end_mask(self.masks.len());
        let Vocab { pad, cls, sep, mask, unk, .. } = self.vocab;
        let special = [pad, cls, sep, mask];
        for token in self.tokens.iter().filter(|token| !special.contains(token)) {
            self.text.tokens += 1;
            self.text.unknown += u64::from(token == unk);
            if !unigrams.is_empty() {
                unigrams[*token as usize] += 1;
            }
        }
        Ok(self.masks.len())
    }

    fn read_tokens(&mut self, sequence: &Masked<'_>) -> Result<(), Wrong> {
        let length = sequence.input_ids.len();
        if !(3..=self.max_seq_length).contains(&length) {
            let most = self.max_seq_length;
            let what = format!("input_ids: a sequence of {length} tokens, expected 3 to {most}");
            return Err(Wrong::new(BadKind::Length, what));
        }
        if sequence.segment_ids.len() != length {
            let found = sequence.segment_ids.len();
            let what = format!("segment_ids: {found} values, expected {length}, one for each token");
            return Err(Wrong::new(BadKind::Length, what));
        }
        self.tokens.clear();
        for (i, &id) in sequence.input_ids.iter().enumerate() {
            self.tokens.push(self.id(id).ok_or_else(|| self.beyond("input_ids", i, id))?);
        }
        Ok(())
    }

    /// Puts the original tokens in their places and keeps what stood there, by position.
    fn read_masks(&mut self, sequence: &Masked<'_>) -> Result<(), Wrong> {
        let (positions, labels) = (sequence.positions, sequence.labels);
        if positions.len() != labels.len() {
            let (found, expected) = (labels.len(), positions.len());
            let what = format!("masked_lm_ids: {found} values, expected {expected}, one for each position");
            return Err(Wrong::new(BadKind::Length, what));
        }
        let length = self.tokens.len();
        self.masks.clear();
        for (i, (&position, &label)) in positions.iter().zip(labels).enumerate() {
            let place = usize::try_from(position).ok().filter(|p| (1..length).contains(p));
            let Some(place) = place else {
                let last = length - 1;
                let what = format!(
                    "masked_lm_positions[{i}]: {position}, expected 1 to {last} in a sequence of {length} tokens"
                );
                return Err(Wrong::new(BadKind::Position, what));
            };
            let label = self.id(label).ok_or_else(|| self.beyond("masked_lm_ids", i, label))?;
            self.masks.push((place, self.tokens[place]));
            self.tokens[place] = label;
        }
        if !self.masks.is_sorted_by_key(|mask| mask.0) {
            self.masks.sort_unstable_by_key(|mask| mask.0);
        }
        match self.masks.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(()),
            Some(pair) => {
                let what = format!("masked_lm_positions: {} stands there twice, expected once", pair[0].0);
                Err(Wrong::new(BadKind::Position, what))
            }
        }
    }

    /// Where segment B begins, if [CLS] and [SEP] stand where the segments say. Segment A may be `alone`.
    fn check_structure(&self, segments: &[i64], alone: bool) -> Result<usize, Wrong> {
        let wrong = |what: String| Err(Wrong::new(BadKind::Structure, what));
        let (tokens, length) = (&self.tokens, self.tokens.len());
        let segment_b = segments.iter().position(|&s| s != 0).unwrap_or(length);
        let ends = if alone { length } else { length.saturating_sub(1) };
        if !(2..=ends).contains(&segment_b) {
            return wrong(format!(
                "segment_ids: segment B begins at {segment_b} of {length} tokens, expected 2 to {}",
                length - 1
            ));
        }
        if let Some(i) = (segment_b..length).find(|&i| segments[i] != 1) {
            return wrong(format!(
                "segment_ids[{i}]: {}, expected 1 from {segment_b} to the end of the sequence",
                segments[i]
            ));
        }
        let (cls, sep) = (self.vocab.cls, self.vocab.sep);
        let ends = [(0, "[CLS]", cls), (segment_b - 1, "[SEP]", sep), (length - 1, "[SEP]", sep)];
        for (place, name, id) in ends {
            if self.masks.binary_search_by_key(&place, |mask| mask.0).is_ok() {
                let what =
                    format!("masked_lm_positions: {place} is the place of {name}, which is never masked");
                return Err(Wrong::new(BadKind::Position, what));
            }
            if tokens[place] != id {
                return wrong(format!(
                    "input_ids[{place}]: {}, expected {name}, which is {id}",
                    tokens[place]
                ));
            }
        }
        Ok(segment_b)
    }

    fn id(&self, id: i64) -> Option<u32> {
        u32::try_from(id).ok().filter(|&id| (id as usize) < self.vocab.len())
    }

    fn beyond(&self, field: &str, i: usize, id: i64) -> Wrong {
        let size = self.vocab.len();
        Wrong::new(
            BadKind::Id,
            format!("{field}[{i}]: {id}, expected 0 to {}, an id of the vocabulary", size - 1),
        )
    }
}

/// The tokens of a padded sequence: the length that `input_mask` says.
pub(super) fn length_of(input_mask: &[i64]) -> Result<usize, Wrong> {
    let length = input_mask.iter().position(|&m| m != 1).unwrap_or(input_mask.len());
    match (length..input_mask.len()).find(|&i| input_mask[i] != 0) {
        None => Ok(length),
        Some(i) => {
            let what = format!("input_mask[{i}]: {}, expected ones and then zeros", input_mask[i]);
            Err(Wrong::new(BadKind::Length, what))
        }
    }
}

/// The masks of a padded list: as many as have weight 1.
pub(super) fn masks_of(weights: impl ExactSizeIterator<Item = f64> + Clone) -> Result<usize, Wrong> {
    let count = weights.clone().position(|w| w != 1.0).unwrap_or(weights.len());
    match weights.clone().enumerate().skip(count).find(|(_, w)| *w != 0.0) {
        None => Ok(count),
        Some((i, w)) => {
            let what = format!("masked_lm_weights[{i}]: {w}, expected ones and then zeros");
            Err(Wrong::new(BadKind::Length, what))
        }
    }
}
