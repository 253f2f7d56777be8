//! The files in which Hugging Face keeps a tokenizer's settings: tokenizer_config.json, tokenizer.json,
//! special_tokens_map.json, added_tokens.json. What they ask for beyond BERT's WordPiece is refused by its name.

use super::settings::PartialSettings;
use crate::data::vocab::{SPECIAL_TOKENS, Vocab};
use crate::error::{During, Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// Classes of `transformers` that are BERT's tokenizer under other names, without the ending `Fast`.
const WORD_PIECE: [&str; 5] =
    ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer"];
/// Classes that take everything from tokenizer.json.
const GENERIC: [&str; 3] = ["PreTrainedTokenizer", "TokenizersBackend", "PreTrainedTokenizerFast"];
/// The longest word in characters, of which the model of `tokenizers` makes more than [UNK].
const LONGEST_WORD: u64 = 100;

/// What the files of a folder say.
#[derive(Debug, Clone, Default)]
pub(super) struct Stated {
    pub settings: PartialSettings,
    /// The files that say something of it.
    pub files: Vec<PathBuf>,
}

impl Stated {
    /// Reads the files of a folder; a folder without them states nothing.
    ///
    /// # Errors
    /// A file that is damaged, that asks for what cannot be reproduced, that contradicts another one, or that is of
    /// another vocabulary.
    pub fn in_folder(dir: &Path, vocab: &Vocab) -> Result<Self> {
        let mut stated = Self::default();
        let path = |name: &str| dir.join(name);
        for name in [SPECIAL_TOKENS_MAP, ADDED_TOKENS] {
            if let Some(json) = Json::read(&path(name))? {
                if name == ADDED_TOKENS {
                    json.known_tokens(json.map.keys())?
                } else {
                    json.special_tokens()?
                }
            }
        }
        if let Some(json) = Json::read(&path(TOKENIZER_CONFIG))? {
            stated.add(json.config(path(TOKENIZER).is_file())?, &json.path)?;
        }
        if let Some(json) = Json::read(&path(TOKENIZER))? {
            json.same_vocabulary(vocab)?;
            stated.add(json.tokenizer()?, &json.path)?;
        }
        Ok(stated)
    }

    /// Adds what another file says. `transformers` would follow tokenizer_config.json where the class is BERT's own, and
    /// tokenizer.json where it is a generic one; here they must agree.
    pub fn add(&mut self, other: PartialSettings, path: &Path) -> Result<()> {
        if other.is_empty() {
            return Ok(());
        }
        let both = self.settings.or(other);
        let effective = |own: PartialSettings| PartialSettings { lowercase: both.lowercase, ..own }.resolve();
        let (mine, theirs) = (effective(self.settings), effective(other));
        let differs = |key: &str, a: bool, b: bool| {
            let first = self.files.first().map_or(Path::new(""), PathBuf::as_path).display();
            Err(Error::file(
                path,
                format!("{key} is {b}, {first} says {a}; correct the one that is wrong, or remove it"),
            ))
        };
        if let (Some(a), Some(b)) = (self.settings.lowercase, other.lowercase)
            && a != b
        {
            return differs("lowercase (do_lower_case)", a, b);
        }
        if self.settings.strip_accents.is_some()
            && other.strip_accents.is_some()
            && mine.strip_accents != theirs.strip_accents
        {
            return differs("strip_accents", mine.strip_accents, theirs.strip_accents);
        }
        if let (Some(a), Some(b)) = (self.settings.tokenize_chinese_chars, other.tokenize_chinese_chars)
            && a != b
        {
            return differs("handle_chinese_chars (tokenize_chinese_chars)", a, b);
        }
        self.settings = both;
        self.files.push(path.to_owned());
        Ok(())
    }
}

/// The tokens of a tokenizer.json, by id, if the text is one.
///
/// # Errors
/// JSON that is no tokenizer.json of a WordPiece model, or whose ids leave some out.
pub(crate) fn tokens_of(path: &Path, text: &str) -> Result<Vec<String>> {
    let json = Json::parse(path, text.as_bytes())?;
    let Some(model) = json.map.get("model").and_then(Value::as_object) else {
        return Err(Error::file(
            path,
            "is JSON and no tokenizer.json (it has no `model`); give the vocab.txt of a WordPiece model",
        ));
    };
    json.word_piece(model)?;
    let vocab = model.get("vocab").and_then(Value::as_object);
    let mut tokens: Vec<(Option<u64>, &String)> =
        vocab.into_iter().flatten().map(|(token, id)| (id.as_u64(), token)).collect();
    tokens.sort_unstable();
    if let Some((want, (id, token))) = (0..).zip(&tokens).find(|(want, (id, _))| *id != Some(*want)) {
        let id = id.map_or("no number".to_owned(), |id| id.to_string());
        let what =
            format!("model.vocab: `{token}` has id {id}, {want} is expected; every id must be there once");
        return Err(Error::file(path, what));
    }
    Ok(tokens.into_iter().map(|(_, token)| token.clone()).collect())
}

/// A JSON object and where it came from.
struct Json {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Json {
    fn read(path: &Path) -> Result<Option<Self>> {
        if !path.is_file() {
            return Ok(None);
        }
        Self::parse(path, &std::fs::read(path).during("cannot read", path)?).map(Some)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_owned(), map }),
            Ok(_) => Err(Error::file(path, "is no JSON object; fetch the file again, or remove it")),
            Err(e) => Err(Error::file(path, format!("is not JSON: {e}; fetch the file again, or remove it"))),
        }
    }

    fn error(&self, what: String) -> Error {
        Error::file(&self.path, what)
    }

    /// A field that asks for what cannot be reproduced.
    fn unknown(&self, key: &str, value: &Value, expected: &str) -> Error {
        let shown: String = value.to_string().chars().take(80).collect();
        self.error(format!(
            "{key}: {shown}, only {expected} can be reproduced; use a model with BERT's WordPiece tokenizer"
        ))
    }

    /// A field with true or false; none where it is missing or null.
    fn boolean(&self, map: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
        match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(self.error(format!("{key}: {value}, expected true or false; correct it"))),
        }
    }

    fn nullable_boolean(&self, map: &Map<String, Value>, key: &str) -> Result<Option<Option<bool>>> {
        let value = self.boolean(map, key)?;
        Ok(map.contains_key(key).then_some(value))
    }

    /// Refuses a value other than `wanted`; a field that is missing or null has it.
    fn only(&self, map: &Map<String, Value>, key: &str, wanted: &Value) -> Result<()> {
        match map.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value == wanted => Ok(()),
            Some(value) => Err(self.unknown(key, value, &wanted.to_string())),
        }
    }

    /// Refuses tokens that are looked for in the text before it is normalized, other than those of every BERT.
    fn known_tokens<'a>(&self, mut tokens: impl Iterator<Item = &'a String>) -> Result<()> {
        match tokens.find(|token| !SPECIAL_TOKENS.contains(&token.as_str())) {
            None => Ok(()),
            Some(token) => Err(self.error(format!(
                "the added token `{token}` is kept whole by this tokenizer, which cannot be reproduced; use a model \
                 without added tokens"
            ))),
        }
    }

    /// The special tokens have BERT's names, and there are no others.
    fn special_tokens(&self) -> Result<()> {
        for name in SPECIAL_TOKENS {
            let key = format!("{}_token", name.trim_matches(['[', ']']).to_lowercase());
            let value = self.map.get(&key).map(|v| v.get("content").unwrap_or(v));
            if let Some(value) = value.filter(|value| !value.is_null() && value.as_str() != Some(name)) {
                return Err(self.unknown(&key, value, name));
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            if let Some(value) = self.map.get(key) {
                self.known_tokens(contents(value).iter())?;
            }
        }
        Ok(())
    }

    /// A tokenizer_config.json.
    fn config(&self, has_tokenizer: bool) -> Result<PartialSettings> {
        if let Some(value) = self.map.get("tokenizer_class").filter(|value| !value.is_null()) {
            let class = value.as_str().unwrap_or_default();
            let generic = has_tokenizer && GENERIC.contains(&class);
            if !generic && !WORD_PIECE.contains(&class.strip_suffix("Fast").unwrap_or(class)) {
                return Err(self.unknown("tokenizer_class", value, "BertTokenizer"));
            }
        }
        self.special_tokens()?;
        if let Some(value) = self.map.get("added_tokens_decoder") {
            self.known_tokens(contents(value).iter())?;
        }
        self.only(&self.map, "do_basic_tokenize", &true.into())?;
        self.only(&self.map, "clean_text", &true.into())?;
        self.only(&self.map, "wordpieces_prefix", &"##".into())?;
        if let Some(value) = self.map.get("never_split") {
            self.known_tokens(contents(value).iter())?;
        }
        Ok(PartialSettings {
            lowercase: self.boolean(&self.map, "do_lower_case")?,
            strip_accents: self.nullable_boolean(&self.map, "strip_accents")?,
            tokenize_chinese_chars: self.boolean(&self.map, "tokenize_chinese_chars")?,
        })
    }

    /// A tokenizer.json.
    fn tokenizer(&self) -> Result<PartialSettings> {
        let empty = Map::new();
        let object = |key: &str| self.map.get(key).and_then(Value::as_object).unwrap_or(&empty);
        self.word_piece(object("model"))?;
        self.only_type("pre_tokenizer", self.map.get("pre_tokenizer"), "pretokenizers", "BertPreTokenizer")?;
        if let Some(tokens) = self.map.get("added_tokens") {
            self.known_tokens(contents(tokens).iter())?;
        }
        match self.map.get("post_processor") {
            None | Some(Value::Null) => {}
            Some(value) if matches!(kind(value), "BertProcessing" | "TemplateProcessing") => {}
            Some(value) => return Err(self.unknown("post_processor", &value["type"], "BertProcessing")),
        }
        let normalizer =
            self.only_type("normalizer", self.map.get("normalizer"), "normalizers", "BertNormalizer")?;
        self.only(normalizer, "clean_text", &true.into())?;
        Ok(PartialSettings {
            lowercase: self.boolean(normalizer, "lowercase")?,
            strip_accents: self.nullable_boolean(normalizer, "strip_accents")?,
            tokenize_chinese_chars: self.boolean(normalizer, "handle_chinese_chars")?,
        })
    }

    /// An object of this type, or a sequence of nothing else, whose elements lie under `list`.
    fn only_type<'a>(
        &self,
        key: &str,
        value: Option<&'a Value>,
        list: &str,
        wanted: &str,
    ) -> Result<&'a Map<String, Value>> {
        let value = value.unwrap_or(&Value::Null);
        let elements = value.get(list).and_then(Value::as_array).filter(|_| kind(value) == "Sequence");
        let single = match elements.map(Vec::as_slice) {
            Some([single]) => single,
            Some(several) => {
                let other = several.iter().find(|value| kind(value) != wanted).unwrap_or(value);
                return Err(self.unknown(key, &other["type"], wanted));
            }
            None => value,
        };
        match single.as_object() {
            Some(object) if kind(single) == wanted => Ok(object),
            _ => Err(self.unknown(key, single.get("type").unwrap_or(&Value::Null), wanted)),
        }
    }

    /// The model of a tokenizer.json. Old files do not name its type.
    fn word_piece(&self, model: &Map<String, Value>) -> Result<()> {
        let has_prefix = model.contains_key("continuing_subword_prefix") && !model.contains_key("merges");
        if !model.contains_key("type") && !has_prefix {
            return Err(self.unknown("model.type", &Value::Null, "WordPiece"));
        }
        self.only(model, "type", &"WordPiece".into())?;
        self.only(model, "unk_token", &"[UNK]".into())?;
        self.only(model, "continuing_subword_prefix", &"##".into())?;
        self.only(model, "max_input_chars_per_word", &LONGEST_WORD.into())
    }

    /// Refuses the tokenizer.json of another vocabulary.
    fn same_vocabulary(&self, vocab: &Vocab) -> Result<()> {
        let Some(theirs) = self.map.get("model").and_then(|m| m.get("vocab")).and_then(Value::as_object)
        else {
            return Ok(()); // what else is wrong with the model is said elsewhere
        };
        let what = if theirs.len() != vocab.len() {
            format!("{} tokens, the vocabulary beside it {}", theirs.len(), vocab.len())
        } else {
            let other = |(token, id): &(&String, &Value)| vocab.id(token).map(u64::from) != id.as_u64();
            let Some((token, id)) = theirs.iter().find(other) else { return Ok(()) };
            let found = vocab.id(token).map_or("none".to_owned(), |id| id.to_string());
            format!("`{token}` has id {id}, in the vocabulary beside it {found}")
        };
        let remedy = "remove the file that is not this model's, or put the vocabulary in a folder of its own";
        Err(self.error(format!("model.vocab: {what}; {remedy}")))
    }
}

/// The name of what a part of a tokenizer.json is.
fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The texts of tokens, in a list or under keys, each a string or an object with `content`.
fn contents(value: &Value) -> Vec<String> {
    let values: Vec<&Value> = match value {
        Value::Array(values) => values.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    let text = |value: &Value| value.get("content").unwrap_or(value).as_str().map(str::to_owned);
    values.into_iter().filter_map(text).collect()
}
