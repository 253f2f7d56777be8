//! One field of a JSON object, found without building the rest.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::{Formatter, Result as Shown};

/// What a field holds.
pub(super) enum Found<'a> {
    Null,
    Text(Cow<'a, str>),
    /// A string with halves of surrogate pairs, as three bytes each.
    Raw(Vec<u8>),
}

impl Found<'_> {
    pub fn into_owned<'b>(self) -> Found<'b> {
        match self {
            Self::Null => Found::Null,
            Self::Text(text) => Found::Text(Cow::Owned(text.into_owned())),
            Self::Raw(bytes) => Found::Raw(bytes),
        }
    }
}

/// The string at `path`, names separated by dots, of the object that is all of `text`. A name may hold dots too. With
/// `raw`, the string may hold halves of surrogate pairs.
pub(super) fn field_of<'a>(text: &'a str, path: &str, raw: bool) -> serde_json::Result<Found<'a>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let found = Object { path, raw, is_whole: true }.deserialize(&mut json)?;
    json.end()?;
    found.ok_or_else(|| Error::custom("missing"))
}

pub(super) fn is_lone_surrogate(error: &serde_json::Error) -> bool {
    let message = error.to_string();
    message.starts_with("lone leading surrogate") || message.starts_with("unexpected end of hex escape")
}

/// The names beside which `path` was not found.
pub(super) fn fields_there(text: &str, path: &str) -> Vec<String> {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut inside = String::new();
    for name in path.split('.') {
        match value.get_mut(name).map(Value::take) {
            Some(inner @ Value::Object(_)) => {
                inside = inside + name + ".";
                value = inner;
            }
            _ => break,
        }
    }
    value.as_object().into_iter().flatten().map(|(name, _)| format!("{inside}{name}")).collect()
}

/// An object that holds the field, or, if it is not the whole, null.
struct Object<'p> {
    path: &'p str,
    raw: bool,
    is_whole: bool,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Option<Found<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Option<Found<'de>>;

    fn expecting(&self, f: &mut Formatter<'_>) -> Shown {
        f.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        match self.is_whole {
            true => Err(E::invalid_type(serde::de::Unexpected::Other("null"), &self)),
            false => Ok(Some(Found::Null)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { path, raw, is_whole } = self;
        let mut found = None;
        while let Some(name) = map.next_key_seed(Name(path))? {
            let value = match name {
                Match::Field => Some(map.next_value_seed(Text { raw })?),
                Match::Around(path) => map.next_value_seed(Object { path, raw, is_whole: false })?,
                Match::Other => {
                    map.next_value::<IgnoredAny>()?;
                    None
                }
            };
            if value.is_some() && found.is_some() {
                return Err(A::Error::custom(format_args!("duplicate field `{path}`")));
            }
            found = found.or(value);
        }
        match found {
            None if is_whole => Err(A::Error::custom(format_args!("missing field `{path}`"))),
            other => Ok(other),
        }
    }
}

/// What a name is to a path.
enum Match<'p> {
    Field,
    /// Of an object that may hold what is left of the path.
    Around(&'p str),
    Other,
}

struct Name<'p>(&'p str);

impl<'de, 'p> DeserializeSeed<'de> for Name<'p> {
    type Value = Match<'p>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_identifier(self)
    }
}

impl<'p> Visitor<'_> for Name<'p> {
    type Value = Match<'p>;

    fn expecting(&self, f: &mut Formatter<'_>) -> Shown {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let around = || self.0.strip_prefix(name)?.strip_prefix('.');
        Ok(match around() {
            _ if name == self.0 => Match::Field,
            Some(rest) => Match::Around(rest),
            None => Match::Other,
        })
    }
}

/// A string or null.
struct Text {
    raw: bool,
}

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut Formatter<'_>) -> Shown {
        f.write_str("a string")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Found::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Found::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        if self.raw { d.deserialize_bytes(self) } else { d.deserialize_str(self) }
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Found::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Found::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Found::Raw(bytes.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, path: &str) -> Result<String, String> {
        match field_of(text, path, false) {
            Ok(Found::Text(text)) => Ok(text.into_owned()),
            Ok(Found::Null) => Ok("null".into()),
            Ok(Found::Raw(_)) => unreachable!(),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn fields_are_found_by_path_and_dotted_name() {
        for (text, path, want) in [
            (r#"{"a": {"b": "x", "c": 1}, "b": "y"}"#, "a.b", "x"),
            (r#"{"a": {"b": "x"}, "b": "y"}"#, "b", "y"),
            (r#"{"a.b": "x\n", "a": {"c": []}}"#, "a.b", "x\n"),
            (r#"{"a": {"b.c": {"d": "x"}}}"#, "a.b.c.d", "x"),
            (r#"{"a": null}"#, "a.b", "null"),
            (r#"{"ab": "n", "a": "x"}"#, "a", "x"),
        ] {
            assert_eq!(get(text, path).as_deref(), Ok(want), "{text}");
        }
        for (text, path, want) in [
            (r#"["x"]"#, "text", "invalid type: sequence, expected an object"),
            (r#""x""#, "text", "invalid type: string \"x\", expected an object"),
            ("null", "text", "invalid type: null, expected an object"),
            ("{}", "text", "missing field `text`"),
            (r#"{"a": {"c": "x"}}"#, "a.b", "missing field `a.b`"),
            (r#"{"a": "x"}"#, "a.b", "invalid type: string \"x\", expected an object"),
            (r#"{"text": ["x"]}"#, "text", "invalid type: sequence, expected a string"),
            (r#"{"text": "x", "text": "y"}"#, "text", "duplicate field `text`"),
            (r#"{"text": "x"} {"text": "y"}"#, "text", "trailing characters"),
            (r#"{"text": "\ud800"}"#, "text", "end of hex escape"),
        ] {
            let error = get(text, path).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert_eq!(fields_there(r#"{"a": {"c": "x", "d": 1}, "e": 2}"#, "a.b"), ["a.c", "a.d"]);
    }
}
