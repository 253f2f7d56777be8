//! The ids that Hugging Face's tokenizer gives, and settings from files.

use super::*;
use crate::error::Error;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// See tools/tokenizer_vectors.py.
#[derive(serde::Deserialize)]
struct Vectors {
    vocabularies: HashMap<String, Vec<String>>,
    lines: Vec<String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    vocabulary: String,
    lowercase: bool,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: bool,
    ids: Vec<Vec<u32>>,
}

fn vectors() -> Vectors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizer/vectors.json.gz");
    serde_json::from_reader(GzDecoder::new(fs::File::open(path).unwrap())).unwrap()
}

#[test]
fn ids_are_those_of_hugging_face_with_every_setting() {
    let Vectors { vocabularies, lines, cases } = vectors();
    assert_eq!(cases.len(), 2 * 2 * 3 * 2);
    for case in cases {
        let vocab = Vocab::from_tokens(vocabularies[&case.vocabulary].clone()).unwrap();
        let settings = PartialSettings {
            lowercase: Some(case.lowercase),
            strip_accents: Some(case.strip_accents),
            tokenize_chinese_chars: Some(case.tokenize_chinese_chars),
        };
        let mut tokenizer = Tokenizer::new(&vocab, settings.resolve()).unwrap();
        // Once anew, once from the table of pieces.
        for _ in 0..2 {
            for (line, want) in lines.iter().zip(&case.ids) {
                let mut got = Vec::new();
                tokenizer.encode(line, &mut got);
                assert_eq!(&got, want, "{} {settings:?} {line:?}", case.vocabulary);
            }
        }
    }
}

#[test]
fn stretches_without_a_word_boundary_are_cut_at_punctuation_where_ideographs_are_none() {
    let vocab = super::tests::small_vocab();
    let settings = TokenizerSettings { tokenize_chinese_chars: false, ..TokenizerSettings::UNCASED };
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    let mut tokenizer = Tokenizer::new(&vocab, settings).unwrap();
    let sentence = "野里か。";
    tokenizer.encode(&sentence.repeat(2000), &mut whole);
    (0..2000).for_each(|_| tokenizer.encode(sentence, &mut parts));
    assert_eq!(whole, parts);
}

/// A folder with a vocabulary.
struct Folder(TempDir);

impl Folder {
    fn new(vocabulary: &str) -> Self {
        let folder = Self(TempDir::new().unwrap());
        Vocab::from_tokens(vectors().vocabularies[vocabulary].clone())
            .unwrap()
            .save(&folder.path("vocab.txt"))
            .unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, value: &Value) {
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    fn load(&self, wanted: PartialSettings) -> Result<TokenizerFiles> {
        TokenizerFiles::load(self.0.path(), None, wanted)
    }

    fn settings(&self) -> TokenizerSettings {
        self.load(PartialSettings::default()).unwrap().settings
    }

    fn error(&self) -> String {
        let error: Error = self.load(PartialSettings::default()).unwrap_err();
        let message = error.to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    }
}

fn normalizer(lowercase: bool, strip_accents: Option<bool>, chinese: bool) -> Value {
    json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": chinese,
        "strip_accents": strip_accents, "lowercase": lowercase,
    })
}

/// A tokenizer.json of the vectors' vocabulary.
fn tokenizer_json(vocabulary: &str, normalizer: Value) -> Value {
    let ids: serde_json::Map<String, Value> =
        vectors().vocabularies[vocabulary].iter().cloned().zip((0..).map(Value::from)).collect();
    json!({
        "added_tokens": [{"id": 0, "content": "[PAD]", "special": true}],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing"},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    })
}

fn settings(lowercase: bool, strip_accents: bool, tokenize_chinese_chars: bool) -> TokenizerSettings {
    TokenizerSettings { lowercase, strip_accents, tokenize_chinese_chars }
}

#[test]
fn both_of_hugging_faces_files_are_read() {
    let folder = Folder::new("cased");
    for (config, want) in [
        (json!({"do_lower_case": false}), settings(false, false, true)),
        (json!({"do_lower_case": true}), settings(true, true, true)),
        (json!({"do_lower_case": true, "strip_accents": null}), settings(true, true, true)),
        (json!({"do_lower_case": true, "strip_accents": false}), settings(true, false, true)),
        (
            json!({"do_lower_case": false, "strip_accents": true, "tokenize_chinese_chars": false}),
            settings(false, true, false),
        ),
        (
            json!({"tokenizer_class": "DistilBertTokenizerFast", "never_split": null, "do_lower_case": false,
                   "unk_token": {"content": "[UNK]"}, "added_tokens_decoder": {"0": {"content": "[PAD]"}}}),
            settings(false, false, true),
        ),
    ] {
        folder.write("tokenizer_config.json", &config);
        assert_eq!(folder.settings(), want, "{config}");
    }
    fs::remove_file(folder.path("tokenizer_config.json")).unwrap();
    for (normalizer, want) in [
        (normalizer(false, None, true), settings(false, false, true)),
        (normalizer(true, Some(false), false), settings(true, false, false)),
        (
            json!({"type": "Sequence", "normalizers": [normalizer(false, Some(true), true)]}),
            settings(false, true, true),
        ),
    ] {
        folder.write("tokenizer.json", &tokenizer_json("cased", normalizer));
        assert_eq!(folder.settings(), want);
    }
    // transformers 5 writes no vocab.txt
    fs::remove_file(folder.path("vocab.txt")).unwrap();
    let files = folder.load(PartialSettings::default()).unwrap();
    assert_eq!(files.vocab.tokens(), vectors().vocabularies["cased"]);
    folder.write("tokenizer_config.json", &json!({"tokenizer_class": "TokenizersBackend"}));
    assert_eq!(folder.settings(), settings(false, true, true));
}

#[test]
fn files_that_contradict_each_other_are_named_with_both_values() {
    let folder = Folder::new("cased");
    for (config, normalizer, want) in [
        (
            json!({"do_lower_case": true}),
            normalizer(false, None, true),
            "lowercase (do_lower_case) is false, ",
        ),
        (
            json!({"do_lower_case": false, "strip_accents": true}),
            normalizer(false, None, true),
            "strip_accents is false, ",
        ),
        (
            json!({"do_lower_case": false, "tokenize_chinese_chars": false}),
            normalizer(false, None, true),
            "handle_chinese_chars (tokenize_chinese_chars) is true, ",
        ),
    ] {
        folder.write("tokenizer_config.json", &config);
        folder.write("tokenizer.json", &tokenizer_json("cased", normalizer));
        let message = folder.error();
        assert!(message.contains("tokenizer.json: ") && message.contains(want), "{message}");
        assert!(message.contains("tokenizer_config.json says "), "{message}");
    }
    // null means what it comes to
    folder.write("tokenizer_config.json", &json!({"do_lower_case": false, "strip_accents": false}));
    folder.write("tokenizer.json", &tokenizer_json("cased", normalizer(false, None, true)));
    assert_eq!(folder.settings(), TokenizerSettings::CASED);
    folder.write("tokenizer.json", &tokenizer_json("uncased", normalizer(false, None, true)));
    assert!(folder.error().contains("model.vocab: 241 tokens, the vocabulary beside it 361"));
}

#[test]
fn what_cannot_be_reproduced_is_refused_by_its_name() {
    let folder = Folder::new("cased");
    for (config, want) in [
        (
            json!({"tokenizer_class": "RobertaTokenizer"}),
            "tokenizer_class: \"RobertaTokenizer\", only BertTokenizer",
        ),
        (json!({"tokenizer_class": "TokenizersBackend"}), "tokenizer_class: "),
        (json!({"never_split": ["C++"]}), "`C++`"),
        (json!({"do_basic_tokenize": false}), "do_basic_tokenize: false, only true"),
        (json!({"unk_token": "<unk>"}), "unk_token: \"<unk>\", only [UNK]"),
        (json!({"additional_special_tokens": ["<user>"]}), "the added token `<user>`"),
        (json!({"added_tokens_decoder": {"7": {"content": "@USER"}}}), "the added token `@USER`"),
        (json!({"do_lower_case": "yes"}), "do_lower_case: \"yes\", expected true or false"),
        (json!([1]), "is no JSON object"),
    ] {
        folder.write("tokenizer_config.json", &config);
        let message = folder.error();
        assert!(message.contains("tokenizer_config.json: ") && message.contains(want), "{message}");
    }
    fs::remove_file(folder.path("tokenizer_config.json")).unwrap();
    let good = tokenizer_json("cased", normalizer(false, None, true));
    for (path, value, want) in [
        ("/normalizer", json!({"type": "NFC"}), "normalizer: \"NFC\", only BertNormalizer"),
        ("/normalizer", Value::Null, "normalizer: null, only BertNormalizer"),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, normalizer(false, None, true)]}),
            "normalizer: \"NFKC\"",
        ),
        ("/normalizer/clean_text", json!(false), "clean_text: false, only true"),
        ("/pre_tokenizer/type", json!("ByteLevel"), "pre_tokenizer: \"ByteLevel\", only BertPreTokenizer"),
        ("/post_processor/type", json!("RobertaProcessing"), "post_processor: \"RobertaProcessing\""),
        ("/model/type", json!("Unigram"), "type: \"Unigram\", only \"WordPiece\""),
        ("/model/unk_token", json!("<unk>"), "unk_token: \"<unk>\""),
        ("/model/max_input_chars_per_word", json!(200), "max_input_chars_per_word: 200, only 100"),
        ("/added_tokens/0/content", json!("<x>"), "the added token `<x>`"),
    ] {
        let mut json = good.clone();
        *json.pointer_mut(path).unwrap() = value;
        folder.write("tokenizer.json", &json);
        let message = folder.error();
        assert!(message.contains("tokenizer.json: ") && message.contains(want), "{path}: {message}");
    }
    fs::remove_file(folder.path("tokenizer.json")).unwrap();
    folder.write("added_tokens.json", &json!({"[CLS]": 2, "<ent>": 361}));
    assert!(folder.error().contains("added_tokens.json: the added token `<ent>`"));
}

#[test]
fn a_bare_vocabulary_tells_its_case_and_contradictions_are_counted() {
    let load = |name: &str, lowercase| {
        Folder::new(name).load(PartialSettings { lowercase, ..PartialSettings::default() }).unwrap()
    };
    let (cased, uncased) = (load("cased", None), load("uncased", None));
    assert_eq!((cased.settings, uncased.settings), (TokenizerSettings::CASED, TokenizerSettings::UNCASED));
    let said = cased.describe();
    assert!(
        said.starts_with("cased, as ") && said.contains(" of 361 tokens hold upper-case letters"),
        "{said}"
    );
    assert!(cased.contradiction().is_none() && uncased.contradiction().is_none());

    let what = load("cased", Some(true)).contradiction().unwrap();
    assert!(what.contains("is a cased vocabulary") && what.contains("(as asked for): "), "{what}");
    assert!(
        what.contains(" of its 361 tokens hold upper-case letters and would never be produced"),
        "{what}"
    );
    let what = load("uncased", Some(false)).contradiction().unwrap();
    assert!(what.contains("is an uncased vocabulary") && what.contains("0 of its 241 tokens"), "{what}");

    // a model's own files are followed, with a remark
    let folder = Folder::new("uncased");
    folder.write("tokenizer_config.json", &json!({"do_lower_case": false}));
    let files = folder.load(PartialSettings::default()).unwrap();
    assert!(files.contradiction().is_none());
    assert!(files.describe().contains("words with upper-case letters become [UNK]"), "{}", files.describe());
}

#[test]
fn an_uncased_vocabulary_with_accents_keeps_them() {
    let mut tokens: Vec<String> = SPECIAL_TOKENS.map(String::from).into();
    tokens.extend((0..60).map(|i| format!("wört{i}")));
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vocab.txt");
    Vocab::from_tokens(tokens).unwrap().save(&path).unwrap();
    let load = |strip: Option<bool>| {
        let wanted = PartialSettings { strip_accents: strip.map(Some), ..PartialSettings::default() };
        TokenizerFiles::load(&path, None, wanted).unwrap()
    };
    assert_eq!(load(None).settings.to_string(), "uncased, accents kept");
    assert!(load(Some(true)).describe().contains("60 of 65 tokens of "));
    // as Hugging Face does where the case is stated
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": true}"#).unwrap();
    assert_eq!(load(None).settings, TokenizerSettings::UNCASED);
}
