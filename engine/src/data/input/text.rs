//! The text of a document.

use super::json::{Found, field_of, fields_there, is_lone_surrogate};
use super::{Form, Input, LeftOut, RawDocument};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// Most names that a message lists.
const MOST_NAMES: usize = 12;
/// Most characters of a name in a message.
const LONGEST_NAME: usize = 40;

/// What a document's bytes say.
pub(crate) struct DocumentText<'a> {
    /// Empty where there is none.
    pub text: Cow<'a, str>,
    /// Stretches of invalid UTF-8 and halves of surrogate pairs that were replaced.
    pub invalid: u64,
    /// Whether the field is null.
    pub null: bool,
    /// Why it is left out, if it is bad.
    pub bad: Option<LeftOut>,
}

/// A document's text.
///
/// # Errors
/// A bad row of JSON Lines, unless bad rows are left out.
pub(crate) fn document_text<'a>(
    document: &RawDocument,
    bytes: &'a [u8],
    input: Input<'_>,
) -> Result<DocumentText<'a>> {
    let bytes = &bytes[document.range.clone()];
    // With its end, a line that is cut short would be one with a line feed in a string.
    let bytes = if document.form == Form::Json { bytes.trim_ascii_end() } else { bytes };
    let text = String::from_utf8_lossy(bytes);
    let mut invalid = match &text {
        Cow::Borrowed(_) => 0,
        Cow::Owned(_) => bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count() as u64,
    };
    if document.form == Form::Plain {
        return Ok(DocumentText { text, invalid, null: false, bad: None });
    }
    let field = input.field();
    let found = match &text {
        Cow::Borrowed(text) => field_of(text, field, false),
        Cow::Owned(text) => field_of(text, field, false).map(Found::into_owned),
    };
    let found = match found {
        Err(e) if is_lone_surrogate(&e) => field_of(&text, field, true).map(Found::into_owned),
        other => other,
    };
    let mut result = DocumentText { text: Cow::Borrowed(""), invalid, null: false, bad: None };
    match found {
        Ok(Found::Text(text)) => result.text = text,
        Ok(Found::Raw(bytes)) => {
            (result.text, invalid) = replace_surrogates(&bytes);
            result.invalid += invalid;
        }
        Ok(Found::Null) => result.null = true,
        Err(e) => {
            let what = explain(&text, field, &e, document.line);
            let bad = LeftOut { file: document.file, line: document.line, what };
            if !input.config.skip_bad {
                return Err(bad.error(input.files));
            }
            result.bad = Some(bad);
        }
    }
    Ok(result)
}

fn explain(text: &str, field: &str, error: &serde_json::Error, line: u64) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let there = match message.starts_with("missing field") {
        true => format!(", found {}", names(fields_there(text, field).into_iter().map(Cow::Owned))),
        false => String::new(),
    };
    format!(
        "line {line}, column {}: {message}{there}; each line must be a JSON object with a string `{field}` \
         (data.prepare.text_field names another field)",
        error.column()
    )
}

/// A list of names for a message of one line.
pub(super) fn names<'a>(all: impl ExactSizeIterator<Item = Cow<'a, str>>) -> String {
    let count = all.len();
    let short = |name: Cow<'_, str>| {
        let shown: String = name.chars().take(LONGEST_NAME).collect();
        let more = if shown.len() < name.len() { "…" } else { "" };
        format!("{}{more}", shown.trim_start_matches('\u{feff}').escape_debug())
    };
    let list = all.take(MOST_NAMES).map(short).collect::<Vec<_>>().join(", ");
    match count {
        0 => "none".to_owned(),
        _ if count > MOST_NAMES => format!("{list} and {} more", count - MOST_NAMES),
        _ => list,
    }
}

/// UTF-8 in which halves of surrogate pairs may stand, three bytes each, to text, and how many were replaced.
fn replace_surrogates(bytes: &[u8]) -> (Cow<'static, str>, u64) {
    let (mut clean, mut count, mut at) = (Vec::with_capacity(bytes.len()), 0, 0);
    while let Some(&byte) = bytes.get(at) {
        if byte == 0xed && bytes.get(at + 1).is_some_and(|next| *next >= 0xa0) {
            clean.extend_from_slice("\u{fffd}".as_bytes());
            (count, at) = (count + 1, at + 3);
        } else {
            clean.push(byte);
            at += 1;
        }
    }
    (Cow::Owned(String::from_utf8_lossy(&clean).into_owned()), count)
}

impl LeftOut {
    /// The row as the error that ends all.
    pub(super) fn error(self, files: &[super::InputFile]) -> Error {
        match files.get(self.file) {
            Some(file) => Error::file(
                &file.path,
                format!("{}; or leave such rows out with data.prepare.skip_bad", self.what),
            ),
            None => Error::Training(self.what),
        }
    }
}
