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
        ("pytorch", "nvidia.pt", "vocabulary: 29 tokens; 3 rows of zeros"),
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
    assert!(line("").contains("is a folder, not a checkpoint's prefix; name "), "{}", line(""));
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
            "--gelu",
            "tanh",
            "erf",
            "[default: none",
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
