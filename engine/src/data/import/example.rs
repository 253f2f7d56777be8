//! `tf.Example`: the messages of TensorFlow's `example.proto` and `feature.proto`, and a sequence out of one.

use super::record::{Masked, length_of, masks_of};
use super::skipped::{BadKind, Wrong};
use prost::Message;
use std::collections::HashMap;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Example {
    #[prost(message, optional, tag = "1")]
    features: Option<Features>,
}

#[derive(Clone, PartialEq, Message)]
struct Features {
    #[prost(map = "string, message", tag = "1")]
    feature: HashMap<String, Feature>,
}

#[derive(Clone, PartialEq, Message)]
struct Feature {
    #[prost(oneof = "Values", tags = "1, 2, 3")]
    values: Option<Values>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Values {
    #[prost(message, tag = "1")]
    Bytes(BytesList),
    #[prost(message, tag = "2")]
    Floats(FloatList),
    #[prost(message, tag = "3")]
    Ints(Int64List),
}

#[derive(Clone, PartialEq, Message)]
struct BytesList {
    #[prost(bytes = "vec", repeated, tag = "1")]
    value: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct FloatList {
    #[prost(float, repeated, tag = "1")]
    value: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct Int64List {
    #[prost(int64, repeated, tag = "1")]
    value: Vec<i64>,
}

/// The padded lengths that all records of a run share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Of `input_ids`, `input_mask` and `segment_ids`.
    pub sequence: usize,
    /// Of `masked_lm_positions`, `masked_lm_ids` and `masked_lm_weights`.
    pub predictions: usize,
    /// Whether there are `next_sentence_labels`.
    pub labels: bool,
}

/// The tokens' and segments' names: those of the original BERT, and those that its successor in TensorFlow 2 writes with
/// `use_v2_feature_names` (tensorflow/models, `official/nlp/data/create_pretraining_data.py`).
const INPUT_IDS: [&str; 2] = ["input_ids", "input_word_ids"];
const SEGMENT_IDS: [&str; 2] = ["segment_ids", "input_type_ids"];
const LABELS: &str = "next_sentence_labels";

impl Example {
    pub fn parse(record: &[u8]) -> Result<Self, Wrong> {
        Self::decode(record).map_err(|e| {
            Wrong::new(
                BadKind::Undecodable,
                format!("is not a tf.Example: {e}, expected its protocol buffer"),
            )
        })
    }

    /// The padded lengths, if the record has the fields that give them.
    pub fn shape(&self) -> Result<Shape, Wrong> {
        let sequence = self.ints(self.named(INPUT_IDS))?.len();
        let predictions = self.ints("masked_lm_positions")?.len();
        Ok(Shape { sequence, predictions, labels: self.has(LABELS) })
    }

    /// The sequence without padding.
    pub fn sequence(&self, shape: Shape) -> Result<Masked<'_>, Wrong> {
        let ints = |name, expected| {
            let values = self.ints(name)?;
            same_length(name, values.len(), expected).map(|()| values)
        };
        let input_ids = ints(self.named(INPUT_IDS), shape.sequence)?;
        let input_mask = ints("input_mask", shape.sequence)?;
        let segment_ids = ints(self.named(SEGMENT_IDS), shape.sequence)?;
        let positions = ints("masked_lm_positions", shape.predictions)?;
        let labels = ints("masked_lm_ids", shape.predictions)?;
        let weights = self.floats("masked_lm_weights")?;
        same_length("masked_lm_weights", weights.len(), shape.predictions)?;
        let next_sentence_label = match (shape.labels, self.has(LABELS)) {
            (true, _) => Some(ints(LABELS, 1)?[0]),
            (false, false) => None,
            (false, true) => {
                let what = format!("{LABELS}: there, expected none as in the first record of this import");
                return Err(Wrong::new(BadKind::Missing, what));
            }
        };
        let length = length_of(input_mask)?;
        let count = masks_of(weights.iter().map(|&w| f64::from(w)))?;
        Ok(Masked {
            input_ids: &input_ids[..length],
            segment_ids: &segment_ids[..length],
            positions: &positions[..count],
            labels: &labels[..count],
            next_sentence_label,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.features.as_ref().is_some_and(|features| features.feature.contains_key(name))
    }

    /// The first of the names that the record has, or else the first.
    fn named(&self, names: [&'static str; 2]) -> &'static str {
        names.into_iter().find(|name| self.has(name)).unwrap_or(names[0])
    }

    fn ints(&self, name: &str) -> Result<&[i64], Wrong> {
        match self.values(name)? {
            Values::Ints(list) => Ok(&list.value),
            other => Err(other_type(name, other, "an int64_list")),
        }
    }

    fn floats(&self, name: &str) -> Result<&[f32], Wrong> {
        match self.values(name)? {
            Values::Floats(list) => Ok(&list.value),
            other => Err(other_type(name, other, "a float_list")),
        }
    }

    fn values(&self, name: &str) -> Result<&Values, Wrong> {
        let feature = self.features.as_ref().and_then(|features| features.feature.get(name));
        feature.and_then(|feature| feature.values.as_ref()).ok_or_else(|| {
            Wrong::new(BadKind::Missing, format!("{name}: missing, expected among the record's features"))
        })
    }
}

fn same_length(name: &str, found: usize, expected: usize) -> Result<(), Wrong> {
    if found == expected {
        return Ok(());
    }
    let what = format!("{name}: {found} values, expected {expected} as in every record of this import");
    Err(Wrong::new(BadKind::Length, what))
}

fn other_type(name: &str, found: &Values, expected: &str) -> Wrong {
    let found = match found {
        Values::Bytes(_) => "a bytes_list",
        Values::Floats(_) => "a float_list",
        Values::Ints(_) => "an int64_list",
    };
    Wrong::new(BadKind::Missing, format!("{name}: {found}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(value: &[i64]) -> Feature {
        Feature { values: Some(Values::Ints(Int64List { value: value.to_vec() })) }
    }

    /// A record with tokens, segments and labels under these names.
    fn record(ids: &str, segments: &str, labels: Option<&str>) -> Example {
        let weights = Feature { values: Some(Values::Floats(FloatList { value: vec![1.0, 0.0] })) };
        let mut feature = HashMap::from([
            (ids.to_owned(), ints(&[2, 9, 3, 8, 3, 0])),
            ("input_mask".to_owned(), ints(&[1, 1, 1, 1, 1, 0])),
            (segments.to_owned(), ints(&[0, 0, 0, 1, 1, 0])),
            ("masked_lm_positions".to_owned(), ints(&[1, 0])),
            ("masked_lm_ids".to_owned(), ints(&[7, 0])),
            ("masked_lm_weights".to_owned(), weights),
        ]);
        feature.extend(labels.map(|name| (name.to_owned(), ints(&[1]))));
        let written = Example { features: Some(Features { feature }) }.encode_to_vec();
        Example::parse(&written).unwrap()
    }

    #[test]
    fn both_generations_of_names_are_read_and_labels_may_be_missing() {
        let old = record("input_ids", "segment_ids", Some(LABELS));
        let shape = old.shape().unwrap();
        assert_eq!(shape, Shape { sequence: 6, predictions: 2, labels: true });
        let expected = format!("{:?}", old.sequence(shape).unwrap());
        assert!(expected.contains("[2, 9, 3, 8, 3]") && expected.contains("next_sentence_label: Some(1)"));
        let new = record("input_word_ids", "input_type_ids", Some(LABELS));
        assert_eq!(new.shape().unwrap(), shape);
        assert_eq!(format!("{:?}", new.sequence(shape).unwrap()), expected);

        let without = record("input_word_ids", "input_type_ids", None);
        let unlabelled = without.shape().unwrap();
        assert_eq!(unlabelled, Shape { labels: false, ..shape });
        assert_eq!(without.sequence(unlabelled).unwrap().next_sentence_label, None);
        // all records of an import have labels, or none has
        let missing = without.sequence(shape).unwrap_err();
        assert!(missing.what.starts_with("next_sentence_labels: missing"), "{}", missing.what);
        let there = old.sequence(unlabelled).unwrap_err();
        assert!(there.what.starts_with("next_sentence_labels: there, expected none"), "{}", there.what);
    }
}
