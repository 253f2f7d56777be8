//! Text in, trained model out, and every command on what training leaves.

use super::{SUBJECTS, TINY, Workplace, files};
use std::fs;

#[test]
fn from_text_to_answers() {
    let place = Workplace::with_corpus();

    let ran = place.line(
        "prepare --input text.txt --vocab vocab.txt --out shards --max-seq-length 32 \
                          --max-predictions 5 --eval-fraction 0.2",
    );
    let said = ran.done();
    assert!(said.contains("shards: 60 documents, ") && said.contains(" MB/s)"), "{said}");

    let said = place.line("inspect shards").done();
    for part in
        ["a folder of shards", "60 documents", "vocabulary of 26 tokens", "unigram entropy", "█", "[CLS] "]
    {
        assert!(said.contains(part), "`{part}` is not in:\n{said}");
    }
    assert!(said.contains("[MASK:"), "no mask shown:\n{said}");

    let ran = place.line("--config tiny.toml --run elsewhere --steps 6 --seed 7 --set train.log_every=3");
    assert!(ran.stderr.contains("step 3/6  loss ") && ran.stderr.contains(" tok/s  left "), "{}", ran.stderr);
    let said = ran.done();
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("done: 6 steps") && last.contains("elsewhere/model"), "{last}");
    let written = fs::read_to_string(place.path("elsewhere/config.toml")).unwrap();
    assert!(written.contains("seed = 7") && written.contains("vocab_size = 26"), "{written}");
    let metrics = fs::read_to_string(place.path("elsewhere/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|l| l.contains("\"mlm_loss\"")).count(), 2, "{metrics}");

    let said = place.line("inspect elsewhere").done();
    assert!(
        said.contains("a run folder") && said.contains("step-00000006") && said.contains("last evaluation"),
        "{said}"
    );
    let said = place.line("inspect elsewhere/model").done();
    assert!(said.contains("1 layers of 16") && said.contains("bert.pooler.dense.weight"), "{said}");
    assert_eq!(said.lines().last().unwrap(), "30 tensors, 3,852 elements, 15.4kB");
    let said = place.line("inspect elsewhere/checkpoints/step-00000006").done();
    assert!(
        said.contains("step 6 (6 updates, 0 skipped), 24 sequences")
            && said.contains("second moments: 3,852"),
        "{said}"
    );
    let said = place.line("inspect elsewhere/model/model.safetensors").done();
    assert!(said.contains("a safetensors file") && said.contains("16 x 16"), "{said}");

    place.line("eval --model elsewhere --data shards --dump-batch first.safetensors").done();
    let said = place.line("inspect first.safetensors").done();
    for part in ["batch0.labels", "batch0.next_sentence_label", "mlm_loss", "nsp_loss"] {
        assert!(said.contains(part), "`{part}` is not in:\n{said}");
    }

    // the same numbers as the run's own last evaluation, whatever the batches
    let said = place.line("eval --model elsewhere --data shards --batch-sequences 3").done();
    let number =
        |name: &str| said.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse::<f64>().unwrap();
    let logged: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    for (line, key) in [
        ("MLM loss", "eval_mlm_loss"),
        ("MLM accuracy", "eval_mlm_accuracy"),
        ("NSP loss", "eval_nsp_loss"),
        ("NSP accuracy", "eval_nsp_accuracy"),
    ] {
        assert!((number(line) - logged[key].as_f64().unwrap()).abs() < 1e-4, "{line}: {said}\n{logged}");
    }
    assert!((number("perplexity") - number("MLM loss").exp()).abs() < 0.01, "{said}");
    let said = place.line("eval --model elsewhere --data shards --split train --sequences 5").done();
    assert!(said.contains("train split: 5 sequences"), "{said}");

    let said =
        place.run(&["fill-mask", "--model", "elsewhere", "--top", "3", "The [MASK] sees a house."]).done();
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.lines().all(|l| l.contains('%') && l.contains(" sees a house .")), "{said}");
    let said = place.run(&["fill-mask", "--model", "elsewhere", "[MASK] and [MASK]"]).done();
    assert_eq!(said.lines().count(), 2 * (1 + 5), "{said}");
}

#[test]
fn what_is_learned_comes_back_as_an_answer() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 300 --set model.hidden=32 --set train.checkpoint_every=0").done();
    let text = "The [MASK] sees a house and the house sees the king.";
    let said = place.run(&["fill-mask", "--model", "run", "--top", "6", text]).done();
    let answers: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let subjects = answers.iter().filter(|a| SUBJECTS.contains(a)).count();
    assert!(subjects >= 5, "subjects are expected where a subject stands: {answers:?}");
}

#[test]
fn training_prepares_once_and_a_second_run_reuses_it() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let before: Vec<_> =
        files(&place.path("shards")).iter().map(|f| fs::metadata(f).unwrap().modified().unwrap()).collect();
    place.line("--config tiny.toml --steps 2 --run again").done();
    let after: Vec<_> =
        files(&place.path("shards")).iter().map(|f| fs::metadata(f).unwrap().modified().unwrap()).collect();
    assert_eq!(before, after);
    let model = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("run") == model("again"), "two runs of one configuration differ");
}

#[test]
fn a_trained_vocabulary_serves_the_whole_way() {
    let place = Workplace::with_corpus();
    place.line("prepare --input text.txt --train-vocab 100 --out own --max-seq-length 32 --no-nsp --masking static").done();
    assert!(place.line("inspect own").done().contains("full sentences of at most 32 tokens, static masks"));
    let config = TINY.replace("input = [\"text.txt\"]\nvocab = \"vocab.txt\"\n", "");
    place.write("own.toml", config);
    place.line("--config own.toml --data own --run own-run --steps 2").done();
    let said = place.line("eval --model own-run --data own --split train").done();
    assert!(said.contains("MLM loss") && !said.contains("NSP"), "{said}");
}

#[test]
fn a_single_document_is_said_to_be_one() {
    let place = Workplace::with_corpus();
    let one = |option: &str| {
        place.line(&format!("prepare --input book.txt --vocab vocab.txt --out data{option} {option}"))
    };
    place.write("book.txt", super::corpus(60).replace("\n\n", "\n"));
    assert!(one("").done().contains("the text to train on is one document"));
    assert!(!one("--no-nsp").done().contains("one document"));
    assert!(
        !place.line("prepare --input text.txt --vocab vocab.txt --out many").done().contains("one document")
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 1").done();
    // `head` takes one line and closes the pipe
    let launcher = env!("CARGO_BIN_EXE_launcher");
    let script = format!("{launcher} inspect run/model | head -n 1; echo ${{PIPESTATUS[0]}}");
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(place.path(""))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "run/model: a model folder\n0\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
