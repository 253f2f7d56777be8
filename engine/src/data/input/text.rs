//! The text of a document.

use super::{Form, InputFile, RawDocument};
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;

/// A row of JSON Lines; `text` must be there but may be null.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    text: Option<Cow<'a, str>>,
}

fn nullable<'de: 'a, 'a, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Cow<'a, str>>, D::Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Ok(Option::<Text<'a>>::deserialize(d)?.map(|text| text.0))
}

/// A document's text, and how many stretches of invalid UTF-8 were replaced in it.
pub(crate) fn document_text<'a>(
    document: &RawDocument,
    bytes: &'a [u8],
    files: &[InputFile],
) -> Result<(Cow<'a, str>, u64)> {
    let bytes = &bytes[document.range.clone()];
    let text = String::from_utf8_lossy(bytes);
    let invalid = match &text {
        Cow::Borrowed(_) => 0,
        Cow::Owned(_) => bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count() as u64,
    };
    if document.form == Form::Plain {
        return Ok((text, invalid));
    }
    let error = |e: serde_json::Error| {
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        let what = format!(
            "line {}, column {}: {message}; each line must be a JSON object with a string `text`",
            document.line,
            e.column()
        );
        Error::file(&files[document.file].path, what)
    };
    let text = match text {
        Cow::Borrowed(text) => serde_json::from_str::<Row<'a>>(text).map_err(error)?.text,
        Cow::Owned(text) => {
            let row: Row<'_> = serde_json::from_str(&text).map_err(error)?;
            row.text.map(|text| Cow::Owned(text.into_owned()))
        }
    };
    Ok((text.unwrap_or_default(), invalid))
}
