//! Checkpoints of other frameworks become model folders that the other commands take.

use super::{Workplace, files};
use std::fs;
use std::path::{Path, PathBuf};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/checkpoints").join(name)
}

/// `import KIND SAMPLE --out model` and more arguments, with the samples' configuration and vocabulary.
fn import(place: &Workplace, kind: &str, name: &str, more: &str) -> super::Ran {
    let [path, config, vocab] =
        [name, "twin/config.json", "twin/vocab.txt"].map(|name| sample(name).display().to_string());
    let mut args = vec!["import", kind, &path, "--config", &config, "--vocab", &vocab, "--out", "model"];
    args.extend(more.split_whitespace());
    place.run(&args)
}

#[test]
fn every_kind_of_checkpoint_becomes_the_same_model() {
    let place = Workplace::new();
    let predict =
        |model: &str| place.run(&["fill-mask", "--model", model, "the [MASK] sees a [MASK]."]).done();
    let expected = predict(&sample("twin").display().to_string());
    for (kind, name, words) in [
        (
            "tf-checkpoint",
            "tiny",
            "46 tensors read, checksums right|left out: 95 tensors|gelu: tanh, the form that",
        ),
        ("pytorch", "zip.bin", "48 tensors read, checksums right|config.json says"),
        ("pytorch", "legacy.bin", "48 tensors read; this layout has no checksums|gelu: tanh, as "),
        (
            "pytorch",
            "nvidia.pt",
            "vocabulary: 29 tokens; 3 rows of zeros behind them are padding and are left out",
        ),
    ] {
        let _ = fs::remove_dir_all(place.path("model"));
        let said = import(&place, kind, name, "").done();
        for word in words.split('|').chain(["BERT, 2 layers of 16 (2 heads"]) {
            assert!(said.contains(word), "`{word}` is not in:\n{said}");
        }
        assert_eq!(predict("model"), expected, "{name}");
    }
    fs::remove_dir_all(place.path("model")).unwrap();
    let said = import(&place, "tf-checkpoint", "tiny", "--gelu erf").done();
    assert!(said.contains("gelu: erf, as asked for"), "{said}");
    assert_ne!(predict("model"), expected);
}

#[test]
fn an_encoder_without_heads_is_a_start_for_training_and_says_what_is_missing() {
    let place = Workplace::with_corpus();
    let said = import(&place, "pytorch", "encoder-bf16.pt", "").done();
    assert!(said.contains("missing, to be trained from the start: bert.pooler.dense.weight, "), "{said}");
    let message = place.line("fill-mask --model model [MASK]").failed();
    assert!(message.contains("has no MLM head"), "{message}");
    assert!(place.line("inspect model").done().contains("missing: bert.pooler.dense.weight, "));
}

#[test]
fn an_imported_model_starts_a_run() {
    let place = Workplace::with_corpus();
    import(&place, "tf-checkpoint", "tiny", "").done();
    // the samples' 29 tokens and 12 positions
    place.write("words.txt", fs::read(sample("twin/vocab.txt")).unwrap());
    let said = place.line(
        "--config tiny.toml --set model.init_from=model --set data.prepare.vocab=words.txt --set model.layers=2 \
         --set model.max_positions=12 --set data.prepare.max_seq_length=12 --steps 2",
    );
    said.done();
    assert!(place.path("run/model/model.safetensors").is_file());
    assert!(place.line("eval --model run/model --data shards").done().contains("accuracy"));
}

#[test]
fn what_cannot_be_imported_is_one_line_and_leaves_nothing() {
    let place = Workplace::new();
    let line = |name: &str| {
        place.line(&format!("import tf-checkpoint {} --out model", sample(name).display())).failed()
    };
    assert!(line("nothing").contains("nothing.index: there is no such file; name "), "{}", line("nothing"));
    assert!(line("tiny").contains("name the model's configuration with --config"), "{}", line("tiny"));
    assert!(line("").contains("holds tiny-snappy and tiny; name one of them"), "{}", line(""));
    place.write("evil.pt", b"\x80\x02cposix\nsystem\nX\x08\0\0\0touch me\x85R.");
    let message = import(&place, "pytorch", "zip.bin", "--vocab none.txt").code;
    assert_eq!(message, Some(2), "--vocab twice");
    let message = place.line("import pytorch evil.pt --out model").failed();
    assert!(message.starts_with("evil.pt: is neither a zip archive nor"), "{message}");
    assert_eq!(files(&place.path("")), [place.path("evil.pt")]);

    place.write("model/thesis.tex", "");
    let message = import(&place, "pytorch", "zip.bin", "").failed();
    assert!(message.contains("holds `thesis.tex`"), "{message}");
}

#[test]
fn inspect_lists_a_checkpoints_tensors_and_what_becomes_of_them() {
    let place = Workplace::new();
    let inspect = |name: &str| place.run(&["inspect", &sample(name).display().to_string()]).done();
    let shown = inspect("tiny.index");
    for words in [
        "a TensorFlow checkpoint; launcher import tf-checkpoint",
        "bert/encoder/layer_1/intermediate/dense/kernel 16 x 32 F32 bert.encoder.layer.1.intermediate.dense.weight, transposed",
        "global_step scalar INT64 state of",
        "141 tensors",
    ] {
        let found =
            shown.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").contains(words));
        assert!(found, "`{words}` is not in:\n{shown}");
    }
    let shown = inspect("nvidia.pt");
    assert!(
        shown.contains("F16") && shown.contains("tied to bert.embeddings.word_embeddings.weight"),
        "{shown}"
    );
}

#[test]
fn help_says_what_each_option_is_when_left_out() {
    let place = Workplace::new();
    for kind in ["tf-checkpoint", "pytorch"] {
        let help = place.line(&format!("import {kind} --help")).done();
        for word in [
            "--out <DIR>",
            "--config <FILE>",
            "--vocab <FILE>",
            "--vocab-rows",
            "--gelu",
            "tanh",
            "erf",
            "beside",
            "Example:",
        ] {
            assert!(help.contains(word), "`{word}` is not in the help of {kind}:\n{help}");
        }
    }
    for line in
        ["import", "import tf-checkpoint a", "import pytorch --out b", "import pytorch a --out b --gelu relu"]
    {
        assert_eq!(place.line(line).code, Some(2), "{line}");
    }
}

#[test]
fn a_folder_is_imported_with_what_lies_in_it() {
    let place = Workplace::new();
    for (from, to) in [
        ("zip.bin", "there/pytorch_model.bin"),
        ("twin/config.json", "there/config.json"),
        ("twin/vocab.txt", "there/vocab.txt"),
    ] {
        place.write(to, fs::read(sample(from)).unwrap());
    }
    let said = place.line("import pytorch there --out model").done();
    for words in [
        "there/pytorch_model.bin: 48 tensors read",
        "configuration: there/config.json, found beside it",
        "vocabulary: there/vocab.txt, found beside it",
        "gelu: tanh, as there/config.json says",
    ] {
        assert!(said.contains(words), "`{words}` is not in:\n{said}");
    }
    assert!(!said.contains("heads:"), "{said}");
    place.line("fill-mask --model model [MASK]").done();
    let message = place.line("fill-mask --model there [MASK]").failed();
    assert!(message.contains("import pytorch there --out"), "{message}");
}

/// Trains the corpus's model, in `run/model`, with rows of padding behind the vocabulary.
fn padded() -> (Workplace, usize, usize) {
    let place = Workplace::with_corpus();
    let tokens = super::vocabulary().lines().count();
    let rows = (tokens + 1).next_multiple_of(8);
    place.line(&format!("--config tiny.toml --steps 2 --set model.vocab_size={rows}")).done();
    (place, tokens, rows)
}

fn config(place: &Workplace, model: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(place.path(model).join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_padded_vocabulary_predicts_evaluates_and_starts_runs() {
    let (place, tokens, rows) = padded();
    assert_eq!(config(&place, "run/model")["vocab_size"], rows);
    place.line("fill-mask --model run/model [MASK]").done();
    place.line("eval --model run/model --data shards").done();
    // a checkpoint has no vocabulary beside it
    place.line("eval --model run/checkpoints/step-00000002 --data shards").done();

    let from = |run: &str, dir: &str, more: &str| {
        place.line(&format!("--config tiny.toml --steps 1 --run {run} --set model.init_from={dir} {more}"))
    };
    for (run, dir) in [("a", "run/model"), ("b", "run/checkpoints/step-00000002")] {
        let ran = from(run, dir, "");
        let cut = format!("{} rows behind its {tokens} tokens are padding and are left out", rows - tokens);
        assert!(ran.stderr.contains(&cut), "{}", ran.stderr);
        ran.done();
        assert_eq!(config(&place, &format!("{run}/model"))["vocab_size"], tokens);
        place.line(&format!("eval --model {run}/model --data shards")).done();
    }
    let model = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("a") == model("b"));
    let kept = from("c", "run/model", &format!("--set model.vocab_size={rows}"));
    assert!(kept.stderr.contains("rows of padding behind"), "{}", kept.stderr);
    kept.done();
    assert_eq!(config(&place, "c/model")["vocab_size"], rows);
    // it goes on with its own sizes
    from("c", "run/model", &format!("--set model.vocab_size={rows} --resume")).done();

    let message = from("d", "run/model", "--set model.vocab_size=1000").failed();
    assert!(
        message.starts_with("model.vocab_size: 1000 is neither the number of the data's tokens"),
        "{message}"
    );
    let message = place.line("--config tiny.toml --steps 1 --run d --set model.vocab_size=1000").failed();
    assert!(message.contains("1000 differs from the data's vocabulary"), "{message}");
}

#[test]
fn a_vocabulary_of_another_size_is_refused_by_every_command() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let tokens = super::vocabulary().lines().count();
    place.write("run/model/vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n");
    for line in [
        "fill-mask --model run/model [MASK]",
        "eval --model run/model --data shards",
        "inspect run/model",
        "--config tiny.toml --run two --set model.init_from=run/model",
    ] {
        let message = place.line(line).failed();
        assert!(
            message.contains(&format!("vocab.txt: has 6 tokens, the model {tokens}")),
            "{line}: {message}"
        );
    }
    let model = sample("zip.bin").display().to_string();
    let config = sample("twin/config.json").display().to_string();
    let out = ["--config", &config, "--vocab", "run/model/vocab.txt", "--out", "model"];
    let message = place.run(&[&["import", "pytorch", &model][..], &out].concat()).failed();
    assert!(message.contains("vocab_size: 29") || message.contains("6 tokens"), "{message}");
    assert!(message.contains("29 rows") && !place.path("model").exists(), "{message}");
}

#[test]
fn keys_that_contradict_the_model_are_refused() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let bare = super::TINY.split_once("[data]").unwrap().1;
    place.write("bare.toml", format!("[data]{bare}"));
    let from = |run: &str, more: &str| {
        place
            .line(&format!("--config bare.toml --steps 1 --run {run} --set model.init_from=run/model {more}"))
    };
    for (key, given, has) in [
        ("layers", "12", "1"),
        ("hidden", "48", "16"),
        ("heads", "4", "2"),
        ("intermediate", "64", "32"),
        ("type_vocab", "3", "2"),
        ("gelu", "erf", "tanh"),
        ("layer_norm_eps", "1e-6", "1e-12"),
    ] {
        let message = from("no", &format!("--set model.{key}={given}")).failed();
        assert!(message.starts_with(&format!("model.{key}: ")), "{message}");
        for part in [given, has, "the model in run/model has", "leave the key out"] {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
    // a default is no contradiction when it was given, nor a preset
    let message = from("no", "--set model.preset=large").failed();
    assert!(message.starts_with("model.preset: gives model."), "{message}");
    place.write("given.toml", format!("[model]\nlayers = 7\n\n[data]{bare}"));
    let message = place.line("--config given.toml --run no --set model.init_from=run/model").failed();
    assert!(
        message.starts_with("given.toml: line 2: model.layers: 7, the model in run/model has 1"),
        "{message}"
    );
    assert!(!place.path("no").exists());

    from("yes", "--set model.hidden_dropout=0 --set model.layers=1").done();
    let resolved = fs::read_to_string(place.path("yes/config.toml")).unwrap();
    assert!(resolved.contains("hidden = 16") && resolved.contains("hidden_dropout = 0.0"), "{resolved}");
    // a run's own resolved configuration begins another
    place.line("--config yes/config.toml --run again").done();
    // resuming is not affected, and says what it does not use
    let resumed = from("yes", "--set model.hidden_dropout=0 --set model.layers=9 --resume");
    assert!(resumed.stderr.contains("model.layers: 9 is not used"), "{}", resumed.stderr);
    resumed.done();
}

#[test]
fn positions_are_cut_and_extended_when_asked_for() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    place.write(
        "short.toml",
        super::TINY
            .replace("max_positions = 32", "max_positions = 24")
            .replace("= 32\nmax_pred", "= 24\nmax_pred"),
    );
    let said =
        place.line("--config short.toml --data short --run cut --steps 1 --set model.init_from=run/model");
    assert!(said.stderr.contains("the first 24 of its 32 position embeddings are kept"), "{}", said.stderr);
    said.done();
    assert_eq!(config(&place, "cut/model")["max_position_embeddings"], 24);

    let long = "--config tiny.toml --steps 1 --set model.init_from=run/model --set model.max_positions=80";
    let message = place.line(&format!("{long} --run no")).failed();
    assert!(message.starts_with("model.max_positions: 80, the model in run/model has 32"), "{message}");
    assert!(message.contains("model.extend_positions"), "{message}");
    for (how, words) in
        [("tile", "are repeated up to 80"), ("random", "position embeddings 32 to 79 start anew")]
    {
        let said = place.line(&format!("{long} --run {how} --set model.extend_positions={how}"));
        assert!(said.stderr.contains(words), "{}", said.stderr);
        said.done();
        assert_eq!(config(&place, &format!("{how}/model"))["max_position_embeddings"], 80);
    }
    let message = place.line("--config tiny.toml --run no --set model.extend_positions=tile").failed();
    assert!(message.starts_with("model.extend_positions: changes a model that is there"), "{message}");
}

#[test]
fn new_tokens_behind_the_vocabulary_get_rows_when_asked_for() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let words = super::vocabulary();
    let tokens = words.lines().count();
    place.write("more.txt", format!("{words}zebra\nyak\n"));
    place.write("other.txt", format!("zebra\n{words}"));
    let from = |vocab: &str, run: &str, more: &str| {
        place.line(&format!(
            "--config tiny.toml --steps 1 --data {run}.data --run {run} --set data.prepare.vocab={vocab} \
             --set model.init_from=run/model {more}"
        ))
    };
    let message = from("more.txt", "no", "").failed();
    let counts =
        format!("its model has {tokens} tokens, the data's vocabulary {}; for 2 new ones", tokens + 2);
    assert!(message.contains(&counts) && message.contains("model.resize_vocab"), "{message}");
    for how in ["mean", "random"] {
        let said = from("more.txt", how, &format!("--set model.resize_vocab={how}"));
        let words = format!("2 rows behind its {tokens} start");
        assert!(said.stderr.contains(&words), "{}", said.stderr);
        said.done();
        assert_eq!(config(&place, &format!("{how}/model"))["vocab_size"], tokens + 2);
        place.line(&format!("fill-mask --model {how}/model [MASK]")).done();
    }
    let message = from("other.txt", "other", "--set model.resize_vocab=mean").failed();
    let first = words.lines().next().unwrap();
    assert!(message.contains(&format!("it has {tokens} tokens, the data's {}", tokens + 1)), "{message}");
    assert!(message.contains(&format!("token 0 is `{first}`, there it is `zebra`")), "{message}");
}
