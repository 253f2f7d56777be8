//! Prose to sentences, by rules for English: end marks followed by space and something that can begin a sentence,
//! except after abbreviations and initials. Paragraphs end at blank lines.

/// Words before a full stop that rarely ends a sentence.
const ABBREVIATIONS: [&str; 62] = [
    "mr", "mrs", "ms", "messrs", "mme", "mlle", "dr", "prof", "rev", "hon", "st", "gen", "col", "maj",
    "capt", "cpt", "lt", "sgt", "adm", "cmdr", "gov", "sen", "rep", "pres", "supt", "esq", "mt", "ft", "vs",
    "viz", "cf", "al", "ed", "eds", "fig", "figs", "vol", "vols", "ch", "sec", "art", "pp", "approx", "dept",
    "est", "ave", "blvd", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sept", "sep", "oct", "nov",
    "dec", "ca", "e.g", "i.e",
];
/// Abbreviations only before a number.
const BEFORE_NUMBER: [&str; 6] = ["no", "nos", "p", "art", "op", "par"];
/// Words that begin a sentence even after an abbreviation such as "U.S." or "a.m.".
const STARTERS: [&str; 40] = [
    "a", "after", "all", "although", "an", "and", "as", "at", "but", "by", "during", "each", "for", "from",
    "he", "her", "his", "how", "however", "if", "in", "it", "its", "many", "my", "on", "our", "she", "since",
    "some", "that", "the", "there", "these", "they", "this", "we", "when", "while", "you",
];

/// Calls `f` with every sentence, trimmed and not empty.
pub(crate) fn for_each_sentence<'a>(text: &'a str, mut f: impl FnMut(&'a str)) {
    let mut start = 0;
    let mut at = 0;
    while let Some(found) = text[at..].find(['.', '!', '?', '…', '。', '！', '？', '\n']) {
        let mark = at + found;
        let c = text[mark..].chars().next().unwrap_or('.');
        at = mark + c.len_utf8();
        let end = match c {
            '\n' => blank_line(&text[at..]).then_some(mark),
            '。' | '！' | '？' => Some(skip_closing(text, at)),
            _ => ends_sentence(text, start, mark, at),
        };
        if let Some(end) = end {
            emit(&text[start..end], &mut f);
            (start, at) = (end, at.max(end));
        }
    }
    emit(&text[start..], &mut f);
}

fn emit<'a>(sentence: &'a str, f: &mut impl FnMut(&'a str)) {
    let sentence = sentence.trim();
    if !sentence.is_empty() {
        f(sentence);
    }
}

/// Whether the line that begins here is blank.
fn blank_line(rest: &str) -> bool {
    rest.find(|c: char| c == '\n' || !c.is_whitespace()).is_none_or(|i| rest[i..].starts_with('\n'))
}

/// The end of the closing quotes and brackets at `at`.
fn skip_closing(text: &str, at: usize) -> usize {
    let closing = |c: char| matches!(c, '"' | '\'' | '”' | '’' | ')' | ']' | '»' | '」' | '』' | '）');
    text[at..].find(|c| !closing(c)).map_or(text.len(), |i| at + i)
}

/// If the mark at `mark..at` ends the sentence that began at `start`: where it ends.
fn ends_sentence(text: &str, start: usize, mark: usize, at: usize) -> Option<usize> {
    let marks = |c: char| matches!(c, '.' | '!' | '?' | '…');
    if text[at..].starts_with(marks) {
        return None; // the last of several decides
    }
    let end = skip_closing(text, at);
    let rest = &text[end..];
    let after = rest.trim_start();
    if after.is_empty() {
        return Some(end);
    }
    if after.len() == rest.len() {
        return None; // no space: a decimal, a host name, "e.g."
    }
    let opening = |c: char| matches!(c, '"' | '\'' | '“' | '‘' | '(' | '[' | '«');
    let next = after.trim_start_matches(opening);
    let first = next.chars().next()?;
    if first.is_lowercase() || matches!(first, ',' | ';' | ':') {
        return None;
    }
    let is_full_stop = text[mark..].starts_with('.');
    let closed = end > at; // "…he said." He: quotes end a sentence whatever word they close
    (!is_full_stop || closed || !is_abbreviation(&text[start..mark], next)).then_some(end)
}

/// Whether the full stop after `before` belongs to an abbreviation or initial, given what follows.
fn is_abbreviation(before: &str, next: &str) -> bool {
    let not_word = |c: char| !(c.is_alphanumeric() || c == '.');
    let word = &before
        [before.rfind(not_word).map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8))..];
    let mut letters = word.chars();
    let (first, second) = (letters.next(), letters.next());
    if second.is_none() && first.is_some_and(|c| c.is_uppercase() && c != 'I') {
        return true;
    }
    let lower = word.to_lowercase();
    if ABBREVIATIONS.contains(&lower.as_str()) {
        return true;
    }
    if BEFORE_NUMBER.contains(&lower.as_str()) {
        return next.starts_with(|c: char| c.is_ascii_digit());
    }
    let dotted = word.contains('.')
        && word
            .split('.')
            .all(|part| part.chars().count() == 1 && !part.starts_with(|c: char| c.is_ascii_digit()));
    let next_word = next.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("").to_lowercase();
    dotted && !STARTERS.contains(&next_word.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        for_each_sentence(text, |s| out.push(s));
        out
    }

    #[test]
    fn english() {
        for (text, count) in [
            ("Call me Ishmael. Some years ago, I went to sea.", 2),
            ("Mr. Smith met Dr. J. R. Jones. They talked.", 2),
            ("It cost 3.14 dollars. No. 5 was sold. No. He kept it.", 4),
            ("\"Is it so?\" he asked. \"It is!\" She left.", 3),
            ("He paused... then spoke. He paused... Then he spoke.", 3),
            ("The U.S. Army came. It was the U.S. They saw it at 5 p.m. We left.", 4),
            ("See e.g. Figure 2. (It is small.) Next.", 3),
            ("He said \"no.\" Then he went.", 2),
            ("It was I. The end.", 2),
            ("A heading\n\nThe text under it goes\non. And on.", 3),
            ("A heading\r\n \r\nText", 2),
            ("吃饭。睡觉。", 2),
            ("   \n\n ", 0),
            ("What?! Really?", 2),
        ] {
            assert_eq!(split(text).len(), count, "{:?}", split(text));
        }
    }

    proptest! {
        #[test]
        fn nothing_but_whitespace_is_lost(text in "[A-Za-z0-9 .!?\"'()\n…。é,]{0,80}|\\PC{0,40}") {
            let kept: String = split(&text).concat().split_whitespace().collect();
            prop_assert_eq!(kept, text.split_whitespace().collect::<String>());
        }
    }
}
