//! Short excerpts of the documents read last, for blocks that hold too few documents to draw random next segments from.

use super::lines::cut_word;
use super::{Form, Input, Piece, RawDocument, cut, document_text};
use crate::config::Split;
use crate::data::tokenize::floor_char_boundary;
use std::collections::VecDeque;

/// Bytes of one excerpt.
const EXCERPT: usize = 16 << 10;
/// Bytes of all.
const ALL: usize = 256 << 10;
/// Most excerpts of one document, so that a long one leaves room for others.
const OF_ONE_DOCUMENT: usize = 4;
/// How far a cut is moved to the end of a line.
const LONGEST_LINE: usize = 2 << 10;

struct Excerpt {
    document: u64,
    file: usize,
    line: u64,
    form: Form,
    bytes: Vec<u8>,
}

/// The last documents' excerpts.
#[derive(Default)]
pub(super) struct Excerpts {
    recent: VecDeque<Excerpt>,
    bytes: usize,
}

impl Excerpts {
    /// Remembers the middle of a piece.
    pub fn remember(&mut self, piece: &Piece<'_>, input: Input<'_>) {
        let mut buffer = Vec::new();
        let of_it = |e: &Excerpt| e.document == piece.document;
        if self.recent.iter().filter(|e| of_it(e)).count() >= OF_ONE_DOCUMENT
            && let Some(oldest) = self.recent.iter().position(of_it)
        {
            buffer = self.forget(oldest);
        }
        while self.bytes + EXCERPT.min(piece.bytes.len()) > ALL && !self.recent.is_empty() {
            buffer = self.forget(0);
        }
        let mut form = piece.form;
        if form == Form::Json && piece.bytes.len() > EXCERPT {
            let document = RawDocument::of(piece, 0..piece.bytes.len());
            // What is wrong with the document is said where it is used.
            let Ok(read) = document_text(&document, piece.bytes, input) else { return };
            buffer.extend_from_slice(middle(read.text.as_bytes()));
            form = Form::Plain;
        } else {
            buffer.extend_from_slice(middle(piece.bytes));
        }
        self.bytes += buffer.len();
        let (document, file, line) = (piece.document, piece.file, piece.line);
        self.recent.push_back(Excerpt { document, file, line, form, bytes: buffer });
    }

    fn forget(&mut self, index: usize) -> Vec<u8> {
        let mut buffer = self.recent.remove(index).map(|e| e.bytes).unwrap_or_default();
        self.bytes -= buffer.len();
        buffer.clear();
        buffer
    }

    /// Adds what is remembered of other documents to a block's, as guests.
    pub fn add_to(&self, bytes: &mut Vec<u8>, documents: &mut Vec<RawDocument>) {
        let own = documents.len();
        for excerpt in &self.recent {
            let Excerpt { document, file, line, form, .. } = *excerpt;
            if documents[..own].iter().all(|d| d.document != document) {
                let range = bytes.len()..bytes.len() + excerpt.bytes.len();
                bytes.extend_from_slice(&excerpt.bytes);
                documents.push(RawDocument { range, form, document, file, line, first: false, guest: true });
            }
        }
    }
}

/// At most [`EXCERPT`] bytes of the middle, whole lines where they are short, else whole words or characters.
fn middle(bytes: &[u8]) -> &[u8] {
    if bytes.len() <= EXCERPT {
        return bytes;
    }
    let from = (bytes.len() - EXCERPT) / 2;
    let near = &bytes[from..from + LONGEST_LINE];
    let start = match near.iter().position(|&b| b == b'\n') {
        Some(at) => from + at + 1,
        None if near.iter().any(u8::is_ascii_whitespace) => from + cut_word(near),
        None => floor_char_boundary(bytes, from),
    };
    let rest = &bytes[start..start + EXCERPT - LONGEST_LINE];
    &rest[..cut(rest, Split::Lines)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PrepareConfig;
    use crate::data::input::text::DocumentText;

    #[test]
    fn excerpts_are_whole_lines_words_or_characters() {
        let lines = "a line of some words\n".repeat(5000);
        let words = "wörter ünd ".repeat(9000);
        let solid = "ü".repeat(50_000);
        for text in [&lines, &words, &solid] {
            let excerpt = std::str::from_utf8(middle(text.as_bytes())).unwrap();
            assert!((EXCERPT / 3..=EXCERPT).contains(&excerpt.len()), "{}", excerpt.len());
        }
        assert!(middle(lines.as_bytes()).starts_with(b"a line"));
        assert!(middle(lines.as_bytes()).ends_with(b"words\n"));
        assert!(!middle(words.as_bytes()).starts_with(" ".as_bytes()));
        assert_eq!(middle(b"short"), b"short");
    }

    #[test]
    fn the_newest_are_kept_and_own_text_is_no_guest() {
        let text = "a line of some words\n".repeat(5000);
        let json = format!("{{\"text\": \"{}\"}}", "word ".repeat(9000));
        let mut excerpts = Excerpts::default();
        let input = Input { files: &[], config: &PrepareConfig::default() };
        for document in 0..40 {
            let (form, bytes) = if document % 2 == 0 { (Form::Plain, &text) } else { (Form::Json, &json) };
            let bytes = bytes.as_bytes();
            for _ in 0..9 {
                let piece = Piece { document, file: 0, line: 1, form, bytes, first: false, last: false };
                excerpts.remember(&piece, input);
                assert!(excerpts.bytes <= ALL);
                assert_eq!(excerpts.bytes, excerpts.recent.iter().map(|e| e.bytes.len()).sum::<usize>());
            }
        }
        let piece = Piece {
            document: 39,
            file: 0,
            line: 1,
            form: Form::Plain,
            bytes: b"own",
            first: true,
            last: true,
        };
        let mut documents = vec![RawDocument::of(&piece, 0..3)];
        let mut bytes = b"own".to_vec();
        excerpts.add_to(&mut bytes, &mut documents);
        let guests: Vec<u64> = documents[1..].iter().map(|d| d.document).collect();
        assert!(guests.len() >= 12 && guests.iter().all(|d| (34..39).contains(d)), "{guests:?}");
        for guest in &documents[1..] {
            assert!(guest.guest && guest.form == Form::Plain);
            let DocumentText { text, invalid, .. } = document_text(guest, &bytes, input).unwrap();
            assert!(text.len() > EXCERPT / 3 && text.contains("word") && !text.contains('{') && invalid == 0);
        }
    }
}
