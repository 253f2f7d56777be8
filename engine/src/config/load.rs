//! Reading a configuration: the defaults, then a TOML file, then `key=value` overrides.
//!
//! Settings are kept one by one with the place each came from, so that an error can name it. Relative paths are
//! relative to the current directory, not to the file's.

use super::{Config, PrepareConfig, Preset, Recipe};
use crate::files::{WRITTEN_BY_HAND, read_up_to};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// The one key that is not a field of [`Config`].
const PRESET: &str = "model.preset";
/// Gives the defaults of the keys beside it.
const RECIPE: &str = "data.prepare.recipe";

/// Keys that exclude each other: a setting of one takes the other back to "not given", where only an earlier
/// source (the defaults, or the file under the overrides) gave it.
const EXCLUSIVE: [[&str; 2]; 2] =
    [["train.batch_sequences", "train.batch_tokens"], ["data.prepare.vocab", "data.prepare.train_vocab"]];

impl Config {
    /// Reads a TOML file over the defaults, then overrides of the form `section.key=value` over that, and validates
    /// the result. An override's value is read as TOML or else as a bare string; an empty one takes an optional key
    /// back. `model.preset` gives the sizes that keys beside it override, wherever they stand.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] or [`Error::Config`] that names the file, the line and the key.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let keys = Keys::new()?;
        let mut settings = Settings::default();
        if let Some(path) = file {
            settings.add(read_file(path, &keys)?);
        }
        settings.add(overrides.iter().map(|o| parse_override(o, &keys)).collect::<Result<_>>()?);
        settings.resolve()
    }

    /// The resolved configuration as TOML; [`Config::load`] reads it back to the same.
    ///
    /// # Errors
    /// [`Error::Config`] where TOML cannot hold a value; a validated configuration has none.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config("config", one_line(&e.to_string())))
    }

    /// Reads back what [`Self::to_toml`] wrote; by way of a table, as [`Self::load`] does, so that the code that fills the
    /// structs is compiled once.
    pub(crate) fn from_toml(text: &str) -> Result<Self> {
        let table = toml::from_str(text).map(Value::Table);
        table.and_then(Value::try_into).map_err(|e| Error::config("config", one_line(&e.to_string())))
    }
}

/// Every key and section that a configuration can have.
struct Keys {
    leaves: Vec<String>,
    sections: Vec<String>,
}

impl Keys {
    /// Derived from the default configuration. JSON keeps what TOML omits: optional fields that are none.
    fn new() -> Result<Self> {
        let json = serde_json::to_value(Config::default())
            .map_err(|e| Error::config("config", format!("cannot list the known keys: {e}")))?;
        let mut keys = Self { leaves: vec![PRESET.to_owned()], sections: Vec::new() };
        keys.collect("", &json);
        Ok(keys)
    }

    fn collect(&mut self, at: &str, value: &serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                if !at.is_empty() {
                    self.sections.push(at.to_owned());
                }
                for (name, value) in fields {
                    self.collect(&join(at, name), value);
                }
            }
            _ => self.leaves.push(at.to_owned()),
        }
    }

    fn is_leaf(&self, key: &str) -> bool {
        self.leaves.iter().any(|k| k == key)
    }

    fn is_section(&self, key: &str) -> bool {
        self.sections.iter().any(|k| k == key)
    }

    /// What is wrong with a key, if anything is.
    fn complaint(&self, key: &str) -> Option<String> {
        if self.is_leaf(key) {
            None
        } else if self.is_section(key) {
            Some(format!("`{key}` is a section of keys, such as `{}`", self.first_of(key)))
        } else {
            Some(format!("`{key}` is not a known key; did you mean `{}`?", self.nearest(key)))
        }
    }

    fn first_of<'a>(&'a self, section: &'a str) -> &'a str {
        let inside = |k: &&String| k.starts_with(section) && k[section.len()..].starts_with('.');
        self.leaves.iter().find(inside).map_or(section, String::as_str)
    }

    /// The known key that is most alike, as a whole or in its last part (a key in the wrong section).
    fn nearest(&self, key: &str) -> &str {
        let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
        let likeness = |known: &str| {
            let whole = strsim::normalized_damerau_levenshtein(key, known);
            whole.max(strsim::normalized_damerau_levenshtein(&last(key), &last(known)))
        };
        let best = self.leaves.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        best.map_or(PRESET, String::as_str)
    }
}

/// Where a setting came from.
#[derive(Debug, Clone)]
enum Origin {
    File { path: PathBuf, line: usize },
    Override,
}

impl Origin {
    /// An error about this setting.
    fn error(&self, key: &str, what: String) -> Error {
        match self {
            Self::File { path, line } => Error::file(path, format!("line {line}: {key}: {what}")),
            Self::Override => Error::config(key, what),
        }
    }
}

/// Which keys a file or an override gave, so that what was asked for can be told from a default. `model.preset` gives
/// [`Preset::SIZES`]. It is no setting: configurations that differ in nothing else are equal.
#[derive(Debug, Clone, Default)]
pub struct Given(BTreeMap<String, (String, Origin)>);

impl PartialEq for Given {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Given {
    fn of(settings: &Settings) -> Self {
        let mut given = BTreeMap::new();
        for setting in settings.0.values().filter(|setting| setting.value.is_some()) {
            let source = (setting.key.clone(), setting.origin.clone());
            if setting.key == PRESET {
                for name in Preset::SIZES {
                    given.entry(format!("model.{name}")).or_insert(source.clone());
                }
            } else {
                given.insert(setting.key.clone(), source);
            }
        }
        Self(given)
    }

    /// Whether the key was given.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// An error about the value of a key, at the place that gave it. `what` begins with the value.
    pub(crate) fn error(&self, key: &str, what: String) -> Error {
        match self.0.get(key) {
            Some((source, origin)) if source != key => origin.error(source, format!("gives {key} = {what}")),
            Some((_, origin)) => origin.error(key, what),
            None => Error::config(key, what),
        }
    }
}

#[derive(Clone)]
struct Setting {
    key: String,
    /// None takes an optional key back.
    value: Option<Value>,
    origin: Origin,
}

#[derive(Default)]
struct Settings(BTreeMap<String, Setting>);

impl Settings {
    /// Adds the settings of one source, which win over those of earlier ones.
    fn add(&mut self, source: Vec<Setting>) {
        let given = |key: &str| source.iter().find(|s| s.key == key);
        for [a, b] in EXCLUSIVE {
            for (key, other) in [(a, b), (b, a)] {
                let off = given(key).is_none_or(|s| matches!(s.value, None | Some(Value::Integer(0))));
                if !off && given(other).is_none() {
                    let value = (!is_optional(other)).then_some(Value::Integer(0));
                    let setting = Setting { key: other.to_owned(), value, origin: Origin::Override };
                    self.0.insert(other.to_owned(), setting);
                }
            }
        }
        self.0.extend(source.into_iter().map(|s| (s.key.clone(), s)));
    }

    fn resolve(self) -> Result<Config> {
        let given = Given::of(&self);
        let mut config = Config::default();
        if let Some(Setting { value: Some(preset), origin, .. }) = self.0.get(PRESET) {
            let preset = read_preset(preset).map_err(|what| origin.error(PRESET, what))?;
            config.model = preset.model();
        }
        if let Some(Setting { value: Some(recipe), .. }) = self.0.get(RECIPE) {
            let recipe = recipe.clone().try_into::<Recipe>();
            let recipe = recipe.map_err(|e| Error::config(RECIPE, one_line(e.message())))?;
            config.data.prepare = PrepareConfig::of(recipe);
        }
        let mut table = Table::try_from(&config).map_err(|e| Error::config("config", e.to_string()))?;
        for setting in self.0.values().filter(|s| s.key != PRESET) {
            set(&mut table, &setting.key, setting.value.clone());
        }
        // each value was checked when it was read
        let mut config: Config =
            table.try_into().map_err(|e| Error::config("config", one_line(&e.to_string())))?;
        config.given = given;
        config.validate().map_err(|e| self.locate(e))?;
        Ok(config)
    }

    /// Adds file and line to an error about a key that a file gave.
    fn locate(&self, error: Error) -> Error {
        match error {
            Error::Config { key, what } => match self.0.get(&key) {
                Some(setting) => setting.origin.error(&key, what),
                None => Error::Config { key, what },
            },
            other => other,
        }
    }
}

fn read_file(path: &Path, keys: &Keys) -> Result<Vec<Setting>> {
    let bytes = read_up_to(path, WRITTEN_BY_HAND, "cannot read the configuration")?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(path, format!("byte {at} is not valid UTF-8; save the configuration as UTF-8 text"))
    })?;
    let line_of =
        |byte: usize| 1 + text.as_bytes()[..byte.min(text.len())].iter().filter(|&&b| b == b'\n').count();
    let syntax = |e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_of(span.start));
        let what = match e.message().contains("value was too large") {
            true => {
                format!("a number is too large; the largest one that a configuration holds is {}", i64::MAX)
            }
            false => format!("not valid TOML: {}", one_line(e.message())),
        };
        Error::file(path, format!("line {line}: {what}"))
    };
    let spans = DeTable::parse(&text).map_err(syntax)?;
    let values: Table = toml::from_str(&text).map_err(syntax)?;

    let mut places = Vec::new();
    collect_places("", spans.get_ref(), keys, &mut places);
    if places.is_empty() {
        return Err(Error::file(
            path,
            "holds no settings; a run with all defaults needs no configuration file",
        ));
    }
    let mut settings = Vec::new();
    for (key, byte) in places {
        let origin = Origin::File { path: path.to_owned(), line: line_of(byte) };
        if let Some(what) = keys.complaint(&key) {
            return Err(Error::file(path, format!("line {}: {what}", line_of(byte))));
        }
        // a quoted key with a dot in it is spelled like a known key, but is none
        let value = get(&values, &key).cloned().ok_or_else(|| {
            Error::file(path, format!("line {}: `{key}` must be written without quotes", line_of(byte)))
        })?;
        check(&key, &value).map_err(|what| origin.error(&key, what))?;
        settings.push(Setting { key, value: Some(value), origin });
    }
    Ok(settings)
}

/// Dotted keys and where they stand, in bytes. Descends into every table that is not the value of a known key.
fn collect_places(at: &str, table: &DeTable<'_>, keys: &Keys, places: &mut Vec<(String, usize)>) {
    for (name, value) in table {
        let key = join(at, name.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if keys.is_section(&key) || !(keys.is_leaf(&key) || inner.is_empty()) => {
                collect_places(&key, inner, keys, places);
            }
            _ => places.push((key, name.span().start)),
        }
    }
}

fn parse_override(text: &str, keys: &Keys) -> Result<Setting> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::config(
            text,
            "an override has the form `section.key=value`, as in `train.steps=100`",
        ));
    };
    let (key, value) = (key.trim().to_owned(), value.trim());
    if let Some(what) = keys.complaint(&key) {
        return Err(Error::config("--set", what));
    }
    let setting = |value| Setting { key: key.clone(), value, origin: Origin::Override };
    if value.is_empty() && is_optional(&key) {
        return Ok(setting(None));
    }
    let bare = Value::String(value.to_owned());
    let typed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| bare.clone());
    match check(&key, &typed) {
        Ok(()) => Ok(setting(Some(typed))),
        // a folder named 2024, say
        Err(_) if check(&key, &bare).is_ok() => Ok(setting(Some(bare))),
        Err(what) => Err(Error::config(key, what)),
    }
}

/// Whether a key may be absent.
fn is_optional(key: &str) -> bool {
    Table::try_from(Config::default()).is_ok_and(|defaults| key != PRESET && get(&defaults, key).is_none())
}

/// Whether a key can take a value: says in plain words what it should have been.
fn check(key: &str, value: &Value) -> std::result::Result<(), String> {
    if key == PRESET {
        return read_preset(value).map(|_| ());
    }
    let mut table = Table::new();
    set(&mut table, key, Some(value.clone()));
    table.try_into::<Config>().map(|_| ()).map_err(|e| explain(value, e.message()))
}

fn read_preset(value: &Value) -> std::result::Result<Preset, String> {
    let name = value.as_str().unwrap_or_default();
    let preset = Preset::deserialize(name.into_deserializer());
    preset.map_err(|e: serde::de::value::Error| explain(value, &e.to_string()))
}

/// Turns serde's "invalid type: string "x", expected usize" into words that do not need Rust.
fn explain(value: &Value, message: &str) -> String {
    let shown = one_line(&value.to_string());
    if let Some(beyond) = value.as_str().and_then(beyond_toml) {
        return beyond;
    }
    let Some((_, expected)) = message.rsplit_once("expected ") else {
        return format!("{shown} cannot be used: {}", one_line(message));
    };
    let expected = expected.lines().next().unwrap_or_default().trim();
    if message.contains("unknown variant") {
        let choices: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let name = value.as_str().unwrap_or_default();
        let likeness = |choice: &str| strsim::normalized_damerau_levenshtein(name, choice);
        let nearest = choices.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let nearest = nearest.map_or(String::new(), |n| format!("; the nearest is \"{n}\""));
        return format!("{shown} is not one of {}{nearest}", choices.join(", "));
    }
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "path string" | "a string" | "string only" => "a text in quotes",
        "a sequence" => "a list, as in [\"a\", \"b\"]",
        other => other,
    };
    format!("{shown} is not {expected}")
}

/// What is wrong with a whole number that TOML cannot hold, if the text is one.
fn beyond_toml(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || text.parse::<i64>().is_ok() {
        return None;
    }
    Some(match text.starts_with('-') {
        true => {
            format!("{text} is too small; the smallest number that a configuration holds is {}", i64::MIN)
        }
        false => {
            format!("{text} is too large; the largest number that a configuration holds is {}", i64::MAX)
        }
    })
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// Sets a dotted key, or removes it.
fn set(table: &mut Table, key: &str, value: Option<Value>) {
    match (key.split_once('.'), value) {
        (Some((section, rest)), value) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
        (None, Some(value)) => {
            table.insert(key.to_owned(), value);
        }
        (None, None) => {
            table.remove(key);
        }
    }
}

/// The value of a dotted key.
fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}
