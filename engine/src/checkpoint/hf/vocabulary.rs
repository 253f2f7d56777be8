//! A vocabulary beside a model, and the rows of padding behind it.

use crate::error::{During, Error, Result};
use std::fs;
use std::path::Path;

pub(super) const VOCAB: &str = "vocab.txt";
/// Tokens that Hugging Face's programs keep apart from vocab.txt.
const ADDED: &str = "added_tokens.json";
/// Word embeddings are padded to multiples of these: 8 in NVIDIA's BERT, 64 or 128 in others; Megatron-LM pads to 128 times
/// the number of GPUs that share a layer.
const MULTIPLES: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];
/// Padding is at most this share of the tokens, or one row less than the smallest multiple.
const MOST: usize = 8;

/// Whether word embeddings of `rows` rows can be those of `tokens` tokens with padding behind them: the next multiple of a
/// power of two from 8 to 1024, and at most an eighth more. More than that is another vocabulary's.
pub fn is_padded(tokens: usize, rows: usize) -> bool {
    let excess = rows.saturating_sub(tokens);
    let little = excess > 0 && excess <= (tokens / MOST).max(MULTIPLES[0] - 1);
    little && MULTIPLES.iter().any(|&multiple| tokens.next_multiple_of(multiple) == rows)
}

/// Number of lines of a vocabulary, empty ones at its end not counted.
pub(super) fn tokens_in(bytes: &[u8]) -> usize {
    let lines = bytes.split(|&b| b == b'\n');
    let used = lines.enumerate().filter(|(_, line)| !line.trim_ascii_end().is_empty());
    used.last().map_or(0, |(number, _)| number + 1)
}

/// Refuses a vocabulary beside a model that is not of its size, padding aside. `is_zero` tells whether a row of the word
/// embeddings is all 0, as padding may be whatever its length.
pub(super) fn check_beside(dir: &Path, rows: usize, is_zero: impl Fn(usize) -> bool) -> Result<()> {
    let path = dir.join(VOCAB);
    if !path.is_file() {
        return Ok(());
    }
    let tokens = tokens_in(&fs::read(&path).during("cannot read the vocabulary", &path)?);
    if tokens == rows || is_padded(tokens, rows) || tokens < rows && (tokens..rows).all(is_zero) {
        return Ok(());
    }
    let remedy = match dir.join(ADDED).is_file() && tokens < rows {
        true => format!("append the tokens of {ADDED} to it in the order of their numbers"),
        false => "put the vocabulary there that the model was trained with".to_owned(),
    };
    Err(Error::file(
        path,
        format!("has {tokens} tokens, the model {rows} (vocab_size in config.json); {remedy}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_a_handy_multiple_and_little() {
        for (tokens, rows) in
            [(30_522, 30_528), (30_522, 30_592), (30_522, 30_720), (28_996, 29_056), (29, 32)]
        {
            assert!(is_padded(tokens, rows), "{tokens} in {rows}");
        }
        for (tokens, rows) in [
            (30_522, 30_522),
            (30_528, 30_522),
            (30_522, 30_524),
            (30_522, 30_536),
            (91, 30_522),
            (91, 30_528),
            (91, 128),
        ] {
            assert!(!is_padded(tokens, rows), "{tokens} in {rows}");
        }
    }

    #[test]
    fn lines_are_tokens_whatever_stands_at_the_end() {
        for (text, tokens) in [("", 0), ("a", 1), ("a\n", 1), ("a\r\nb\r\n", 2), ("a\n\nb\n\n\n", 3)] {
            assert_eq!(tokens_in(text.as_bytes()), tokens, "{text:?}");
        }
    }
}
