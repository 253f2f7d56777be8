//! What is to be said about prepared data before anybody trains on it.

use super::prepare::unknown;
use super::shards::{Alphabet, Manifest, SplitManifest, TextCounts};
use crate::config::Split;

/// The share of random next segments from which on a model learns nothing from the labels. Half of them are random where
/// documents have many sentences.
const NEARLY_ALL: f64 = 0.9;
/// Tokens of a line on average from which on it is hardly a sentence: English sentences have about 25.
const LONG_LINE: u64 = 100;

impl Manifest {
    /// The share of unknown tokens in each split, in a line; none where the data does not say.
    pub fn unknown_tokens(&self) -> Option<String> {
        unknown_tokens(&self.train, &self.eval)
    }

    /// What its maker may not have meant, each in a line that says what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.vocabulary().into_iter().collect();
        lines.extend(many_unknown(&self.train, &self.eval));
        // Where other software made the sequences, how it did is its business.
        if self.source.is_none() {
            lines.extend(self.pairs(&self.train));
            lines.extend(self.long_lines());
        }
        lines.extend(self.nothing_held_out());
        lines.extend(self.old_version());
        lines
    }

    /// A vocabulary that is smaller than was asked for, or lacks characters.
    fn vocabulary(&self) -> Option<String> {
        let asked = self.options.train_vocab? as u64;
        let size = self.vocab_size as u64;
        let Some(Alphabet { characters, kept, tokens }) = self.alphabet else {
            return (size < asked)
                .then(|| format!("the vocabulary has {size} of the {asked} tokens asked for"));
        };
        let mut reasons = Vec::new();
        if kept < characters {
            let why = match self.options.alphabet_limit {
                Some(limit) if kept == limit as u64 => "the limit of its alphabet".to_owned(),
                _ => format!("{asked} tokens have no room for more beside the 5 special ones"),
            };
            let unknown = self.train.text.as_ref().map_or(String::new(), |text| {
                format!(", which leaves {} of the text's tokens unknown", share(text.unknown, text.tokens))
            });
            reasons.push(format!("{kept} of the text's {characters} characters are in it ({why}){unknown}"));
        }
        if size < asked {
            let rest = match kept < characters {
                true => String::new(),
                false => format!("the text has {characters} characters, all of them in it, and "),
            };
            reasons.push(format!(
                "it has {size} of the {asked} tokens asked for: {rest}no other piece of a word occurs twice"
            ));
        } else if kept == characters && tokens * 2 > asked {
            reasons.push(format!(
                "{tokens} of its {size} tokens are single characters; limit its alphabet to leave rare ones out \
                 (--alphabet-limit N), or ask for more tokens"
            ));
        }
        (!reasons.is_empty()).then(|| format!("the vocabulary: {}", reasons.join("; ")))
    }

    /// Pairs of which nearly all, or nearly none, are random.
    fn pairs(&self, split: &SplitManifest) -> Option<String> {
        let (random, pairs) = (split.random_next?, split.sequences);
        if pairs == 0 {
            return None;
        }
        if random as f64 > NEARLY_ALL * pairs as f64 {
            let text = split.text.as_ref().filter(|_| split.documents > 0).map_or(String::new(), |text| {
                let each = text.sentences as f64 / split.documents as f64;
                format!(", as documents have {each:.1} sentences on average")
            });
            return Some(format!(
                "{} of the sentence pairs have a random second segment{text}: the labels say nothing; keep blank lines for the \
                 ends of documents, split prose with --split sentences, or give --no-nsp",
                share(random, pairs)
            ));
        }
        if split.documents != 1 {
            return None;
        }
        Some(match random {
            0 => "the text to train on is one document with no other text to draw random next segments from: in every pair B \
                  follows A, and the labels say nothing; give more documents, separated by blank lines or files, or --no-nsp"
                .to_owned(),
            _ => format!(
                "the text to train on is one document: random next sentences come from elsewhere in it ({} of the pairs); \
                 separate documents by blank lines or files, or give --no-nsp",
                share(random, pairs)
            ),
        })
    }

    /// Lines that are hardly sentences.
    fn long_lines(&self) -> Option<String> {
        let text = self.train.text.as_ref()?;
        let wrong = self.options.nsp && self.options.split == Split::Lines && text.sentences > 0;
        let mean = text.tokens.checked_div(text.sentences).filter(|&mean| wrong && mean > LONG_LINE)?;
        Some(format!(
            "lines have {mean} tokens on average, and each was taken for a sentence; for prose give --split sentences"
        ))
    }

    /// Held-out text that was asked for and is not there.
    fn nothing_held_out(&self) -> Option<String> {
        let fraction = self.options.eval_fraction;
        if self.eval.sequences > 0 || fraction == 0.0 || self.source.is_some() {
            return None;
        }
        let documents = match self.train.documents {
            1 => "1 document".to_owned(),
            n => format!("{n} documents"),
        };
        Some(format!(
            "no text is held out, though a share of {fraction} was asked for: documents are held out as a whole, and there is \
             text in {documents} only; separate documents by blank lines or files, or set the share to 0 (--eval-fraction 0) \
             to train without evaluation"
        ))
    }

    fn old_version(&self) -> Option<String> {
        let mut inputs = self.inputs.iter().chain(self.source.iter().flat_map(|source| &source.eval_inputs));
        inputs.any(|input| input.xxh3.is_none()).then(|| {
            "it was prepared before checksums of the input were kept: of what content it was made cannot be told; prepare it \
             anew to be sure"
                .to_owned()
        })
    }
}

/// The splits whose text is known, and their names.
fn texts<'a>(train: &'a SplitManifest, eval: &'a SplitManifest) -> Vec<(&'a TextCounts, &'static str)> {
    let splits = [(train, "the text to train on"), (eval, "the held-out text")];
    let known = |(split, name): (&'a SplitManifest, _)| Some((split.text.as_ref()?, name));
    splits.into_iter().filter_map(known).filter(|(text, _)| text.tokens > 0).collect()
}

pub(super) fn unknown_tokens(train: &SplitManifest, eval: &SplitManifest) -> Option<String> {
    let texts = texts(train, eval);
    let shares: Vec<String> =
        texts.iter().map(|(text, name)| format!("{} of {name}", share(text.unknown, text.tokens))).collect();
    (!shares.is_empty()).then(|| format!("unknown tokens: {}", shares.join(", ")))
}

/// A line for each split with too many unknown tokens.
pub(super) fn many_unknown(train: &SplitManifest, eval: &SplitManifest) -> Vec<String> {
    let texts = texts(train, eval).into_iter().filter(|(text, _)| unknown::are_many(text));
    texts.map(|(text, name)| say_many_unknown(text, name)).collect()
}

fn say_many_unknown(text: &TextCounts, name: &str) -> String {
    let examples: Vec<String> = text.examples.iter().map(|example| format!("`{example}`")).collect();
    let such = if examples.is_empty() { String::new() } else { format!(", such as {}", examples.join(" ")) };
    format!(
        "{} of the tokens of {name} are [UNK]{such}: the vocabulary may be of another language, script or letter case, or too \
         small; give the one that belongs to the text (--vocab), or train one (--train-vocab)",
        share(text.unknown, text.tokens)
    )
}

/// A share in percent.
fn share(part: u64, whole: u64) -> String {
    let percent = 100.0 * part as f64 / whole.max(1) as f64;
    match percent {
        p if part > 0 && p < 0.01 => "less than 0.01%".to_owned(),
        p => format!("{p:.2}%"),
    }
}
