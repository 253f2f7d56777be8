//! Text whose case and accents are kept, from vocabulary to answers, and what contradicts it.

use super::{Ran, Workplace, corpus, vocabulary};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The corpus with names in it, and its vocabulary.
fn place() -> Workplace {
    let place = Workplace::with_corpus();
    let named = |text: String| text.replace("king", "King").replace("river", "Éire").replace("road", "café");
    place.write("text.txt", named(corpus(60)));
    place.write("vocab.txt", named(vocabulary()) + "The\n");
    place
}

/// A command that must succeed and says this line.
#[track_caller]
fn told(ran: Ran, line: &str) {
    assert!(ran.stderr.contains(line), "{}", ran.stderr);
    ran.done();
}

const OPTIONS: &str = "--max-seq-length 32 --max-predictions 5 --eval-fraction 0.2";

fn tokenizer_config(place: &Workplace, model: &str) -> Value {
    let text = fs::read_to_string(place.path(model).join("tokenizer_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_cased_vocabulary_serves_the_whole_way() {
    let place = place();
    let prepare = |options: &str| place.line(&format!("prepare --input text.txt {OPTIONS} {options}"));
    let want = "tokenizer: cased, as vocab.txt suggests: 3 of 27 tokens hold upper-case letters\n";
    told(prepare("--vocab vocab.txt --out shards"), want);
    let said = place.line("inspect shards").done();
    assert!(
        said.contains("\ntokenizer: cased\n") && said.contains(" The ") && !said.contains("[UNK]"),
        "{said}"
    );

    place.line("--config tiny.toml --steps 4 --set data.prepare.lowercase=false").done();
    let config = tokenizer_config(&place, "run/model");
    assert_eq!((&config["do_lower_case"], &config["strip_accents"]), (&Value::Bool(false), &Value::Null));
    let said = place.run(&["fill-mask", "--model", "run", "--top", "27", "The King of Éire sees a [MASK]."]);
    let said = said.done();
    assert!(said.contains("The King [UNK] Éire sees a café .") && said.contains("%  King "), "{said}");
    assert!(place.line("eval --model run --data shards").done().contains("\ntokenizer     cased\n"));
    assert!(
        place.line("inspect run/model").done().contains("tokenizer: cased, as run/model/tokenizer_config")
    );
    place.line("--config tiny.toml --steps 2 --run second --set model.init_from=run/model").done();

    // the model's folder is a vocabulary too, and its settings come along
    let want = "tokenizer: cased, as run/model/tokenizer_config.json says\n";
    told(prepare("--vocab run/model --out again"), want);
    assert!(place.line("eval --model run --data again").done().contains("accuracy"));

    // the same data for whoever asks for it, and other data where accents go
    assert!(prepare("--vocab vocab.txt --cased --out shards").done().contains("it was there already"));
    let message = prepare("--vocab vocab.txt --strip-accents true --out shards").failed();
    assert!(message.contains("strip_accents is false there and true here"), "{message}");
    prepare("--vocab vocab.txt --strip-accents true --out bare").done();
    assert!(place.line("inspect bare").done().contains("\ntokenizer: cased, accents removed\n"));
    let message = place.line("eval --model run --data bare").failed();
    let want = "bare: prepared with strip_accents true, run/model has false (as run/model/tokenizer_config.json says); \
                prepare it with --vocab run/model";
    assert_eq!(message, want);
    let start = "--config tiny.toml --data bare --set data.prepare.lowercase=false \
                 --set data.prepare.strip_accents=true";
    let message =
        place.line(&format!("{start} --steps 2 --run third --set model.init_from=run/model")).failed();
    let want = "run/model: strip_accents is false (as run/model/tokenizer_config.json says), the data was prepared with true";
    assert!(message.starts_with(want), "{message}");
    let message = place.line(&format!("{start} --run run --steps 4 --resume")).failed();
    let [key, now] = ["data.prepare.strip_accents = ", ", now true"];
    assert!(message.contains(key) && message.contains(now), "{message}");
    let message = place.line("--config tiny.toml --steps 2 --data bare --run third").failed();
    assert!(
        message.starts_with("data.prepare.strip_accents: is false, but bare was prepared with true"),
        "{message}"
    );
    place.line(&format!("{start} --steps 2 --run third")).done();
    assert_eq!(tokenizer_config(&place, "third/model")["strip_accents"], true);
}

#[test]
fn settings_that_contradict_the_vocabulary_are_counted() {
    let place = place();
    let prepare =
        |options: &str| place.line(&format!("prepare --input text.txt --out data {options}")).failed();
    let message = prepare("--vocab vocab.txt --uncased");
    assert_eq!(
        message,
        "--cased or --uncased: vocab.txt is a cased vocabulary, and text becomes lower case (as asked for): 3 of its 27 \
         tokens hold upper-case letters and would never be produced; give --cased, correct what says otherwise, or name \
         an uncased vocabulary"
    );
    place.write("folder/vocab.txt", fs::read(place.path("vocab.txt")).unwrap());
    place.write("folder/tokenizer_config.json", r#"{"do_lower_case": true}"#);
    let message = prepare("--vocab folder/vocab.txt");
    assert!(message.contains("(as folder/tokenizer_config.json says): 3 of its 27 tokens"), "{message}");
    let uncased = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/vocab.txt").display().to_string();
    let message = prepare(&format!("--vocab {uncased} --cased"));
    assert!(
        message.contains("is an uncased vocabulary, and text keeps its case (as asked for): 0 of its 30522")
    );
    assert!(message.ends_with("leave out --cased, or name a cased vocabulary"), "{message}");
    let message = prepare("--recipe mlperf --vocab vocab.txt --strip-accents true");
    assert!(
        message.starts_with("--strip-accents: true contradicts --recipe mlperf, whose tool"),
        "{message}"
    );
    assert_eq!(
        place.line("prepare --input text.txt --vocab vocab.txt --out data --cased --uncased").code,
        Some(2)
    );
    assert!(!place.path("data").exists());

    for (name, content, want) in [
        ("model.bin", &b"PK\x03\x04\0\0"[..], "model.bin: is a binary file, not a vocabulary"),
        ("empty/readme", b"", "empty: is a folder that holds no vocab.txt and no tokenizer.json; give"),
        ("vocab.json", b"{\"a\": 1}", "vocab.json: is JSON and no tokenizer.json"),
    ] {
        place.write(name, content);
        let message = prepare(&format!("--vocab {}", name.split('/').next().unwrap()));
        assert!(message.starts_with(want), "{message}");
    }
}

#[test]
fn a_vocabulary_is_trained_cased_and_stays_so() {
    let place = place();
    let ran = place.line("prepare --input text.txt --train-vocab 100 --cased --out own");
    told(ran, "tokenizer: cased, as asked for\n");
    let tokens = fs::read_to_string(place.path("own/vocab.txt")).unwrap();
    for token in ["The", "King", "Éi", "café"] {
        assert!(tokens.lines().any(|line| line == token), "no {token} in\n{tokens}");
    }
    let ran = place.line("prepare --input text.txt --vocab own/vocab.txt --out again");
    told(ran, "tokenizer: cased, as own/manifest.json says\n");
    let ran = place.line("prepare --input text.txt --train-vocab 100 --out other");
    told(ran, "tokenizer: uncased, as a new vocabulary is by default\n");
    assert!(
        !fs::read_to_string(place.path("other/vocab.txt"))
            .unwrap()
            .lines()
            .skip(5)
            .any(|token| token.contains(['T', 'K', 'É', 'é']))
    );
}

#[test]
fn parts_of_other_settings_are_not_merged() {
    let place = place();
    let part = |part: &str, options: &str| {
        place.line(&format!(
            "prepare --input text.txt --vocab vocab.txt --part {part}/2 --out part-{part} {options}"
        ))
    };
    part("1", "").done();
    part("2", "--strip-accents true").done();
    let message = place.line("prepare --merge part-1 part-2 --out data").failed();
    assert!(message.contains("strip_accents is true there and false here"), "{message}");
    fs::remove_dir_all(place.path("part-2")).unwrap();
    part("2", "").done();
    place.line("prepare --merge part-1 part-2 --out data").done();
    assert!(place.line("inspect data").done().contains("\ntokenizer: cased\n"));
}

#[test]
fn an_imported_checkpoint_gets_the_settings_of_its_files_or_its_vocabulary() {
    let place = Workplace::new();
    let sample = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/data/checkpoints")
            .join(name)
            .display()
            .to_string()
    };
    let vocab = fs::read_to_string(sample("twin/vocab.txt")).unwrap();
    place.write("bert-vocab.txt", vocab.replace("the\n", "The\n").replace("king\n", "King\n"));
    let import = |out: &str, vocab: &[&str]| {
        let (path, config) = (sample("zip.bin"), sample("twin/config.json"));
        let args = ["import", "pytorch", &path, "--config", &config, "--out", out];
        place.run(&[&args[..], vocab].concat())
    };
    let said = import("model", &["--vocab", "bert-vocab.txt"]).done();
    assert!(said.contains("tokenizer: cased, as bert-vocab.txt suggests: 2 of 29 tokens hold"), "{said}");
    assert_eq!(tokenizer_config(&place, "model")["do_lower_case"], false);
    let said = place.run(&["fill-mask", "--model", "model", "The [MASK] sees The King"]).done();
    assert!(said.contains(" sees The King"), "{said}");

    place.write("tokenizer_config.json", r#"{"do_lower_case": false, "strip_accents": true}"#);
    let said = import("second", &["--vocab", "bert-vocab.txt"]).done();
    assert!(said.contains("tokenizer: cased, accents removed, as tokenizer_config.json says"), "{said}");
    assert_eq!(tokenizer_config(&place, "second")["strip_accents"], true);
    place.write("tokenizer_config.json", r#"{"do_lower_case": true}"#);
    let message = import("third", &["--vocab", "bert-vocab.txt"]).failed();
    assert!(
        message.contains("2 of its 29 tokens") && message.ends_with("correct the file that says otherwise")
    );

    // a folder as transformers 5 leaves it: its tokenizer.json is vocabulary and settings
    let ids: serde_json::Map<String, Value> =
        vocab.lines().map(str::to_owned).zip((0..).map(Value::from)).collect();
    let tokenizer = serde_json::json!({
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": false, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": ids},
    });
    place.write("new/tokenizer.json", tokenizer.to_string());
    place
        .write("new/tokenizer_config.json", r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true}"#);
    place.write("new/config.json", fs::read(sample("twin/config.json")).unwrap());
    place.write("new/pytorch_model.bin", fs::read(sample("zip.bin")).unwrap());
    let said = place.line("import pytorch new --out fourth").done();
    assert!(said.contains("tokenizer: uncased, accents kept, as new/tokenizer_config.json and "), "{said}");
    assert_eq!(fs::read_to_string(place.path("fourth/vocab.txt")).unwrap(), vocab);
    assert_eq!(tokenizer_config(&place, "fourth")["strip_accents"], false);

    // without a vocabulary nobody knows, and nothing is claimed
    import("bare", &[]).done();
    assert!(!place.path("bare/tokenizer_config.json").exists());
    place.write("bare/vocab.txt", fs::read(place.path("bert-vocab.txt")).unwrap());
    let ran = place.run(&["fill-mask", "--model", "bare", "The [MASK]"]);
    assert!(ran.stderr.contains("tokenizer: cased, as bare/vocab.txt suggests"), "{}", ran.stderr);
    ran.done();
}
