//! Words of the text that the vocabulary has no tokens for.

use crate::data::shards::TextCounts;
use crate::data::tokenize::is_separator;

/// The share of unknown tokens from which on something is wrong with text or vocabulary. BERT's own vocabulary leaves far
/// less than 1 % of English text unknown.
const MANY: f64 = 0.05;
/// Most examples of a stretch.
const EXAMPLES: usize = 8;
/// Characters of a word that is an example; of a longer one the first unknown character is.
const LONGEST: usize = 24;
/// Words that are looked at.
const LOOKED_AT: usize = 500;

/// Whether unknown tokens are too many.
pub(in crate::data) fn are_many(counts: &TextCounts) -> bool {
    counts.unknown as f64 > MANY * counts.tokens as f64
}

/// Adds a stretch of text's counts to those of the stretches before it, with some of its words that are unknown where these
/// are many. `is_unknown` says whether a token of a word is [UNK].
pub(in crate::data) fn add(
    all: &mut TextCounts,
    mut counts: TextCounts,
    text: &str,
    is_unknown: impl FnMut(&str) -> bool,
) {
    if are_many(&counts) && all.examples.len() < EXAMPLES {
        counts.examples = examples(text, is_unknown);
    }
    all.add(&counts);
}

fn examples(text: &str, mut is_unknown: impl FnMut(&str) -> bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in text.split(is_separator).filter(|word| !word.is_empty()).take(LOOKED_AT) {
        let example = match word.char_indices().nth(LONGEST) {
            None => Some(word.trim_matches(|c: char| c.is_ascii_punctuation())),
            Some((end, _)) => {
                let mut characters = word[..end].char_indices();
                characters
                    .find(|(at, c)| is_unknown(&word[*at..at + c.len_utf8()]))
                    .map(|(at, c)| &word[at..at + c.len_utf8()])
            }
        };
        let Some(example) = example.filter(|example| !example.is_empty() && is_unknown(example)) else {
            continue;
        };
        if !found.iter().any(|known| known == example) {
            found.push(example.to_owned());
        }
        if found.len() == EXAMPLES {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_words_or_the_characters_of_stretches_without_spaces() {
        let ideographs = "的".repeat(30) + "一";
        let text = format!("the यह वाक्य, the यह {ideographs} end");
        let counts = TextCounts { tokens: 100, unknown: 6, ..TextCounts::default() };
        let unknown = |word: &str| !word.is_ascii();
        assert_eq!(examples(&text, unknown), ["यह", "वाक्य", "的"]);
        let mut all = TextCounts::default();
        add(&mut all, TextCounts { unknown: 5, ..counts.clone() }, &text, unknown);
        assert_eq!(all, TextCounts { unknown: 5, ..counts.clone() });
        add(&mut all, counts, &text, unknown);
        all.examples.sort();
        assert_eq!((all.tokens, all.unknown, &*all.examples.join(" ")), (200, 11, "यह वाक्य 的"));
    }
}
