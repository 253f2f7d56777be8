//! Prepared data is what the text says: edits are noticed, and what may not have been meant is told.

use super::{Workplace, corpus};
use std::fs;

const PREPARE: &str = "prepare --input text.txt --vocab vocab.txt --max-seq-length 32 --out shards";

/// Replaces a word by one of the same length, and puts the file's time back.
fn edit_in_place(place: &Workplace, name: &str) {
    let path = place.path(name);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("cat", "dog", 1)).unwrap();
    assert_ne!(fs::read_to_string(&path).unwrap(), text);
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
}

#[test]
fn an_edit_of_the_same_length_is_noticed_by_prepare_and_by_training() {
    let place = Workplace::with_corpus();
    let prepare = format!("{PREPARE} --max-predictions 5 --eval-fraction 0.2");
    place.line(&prepare).done();
    assert!(place.line(&prepare).done().contains("it was there already"));
    place.line("--config tiny.toml --steps 2").done();
    edit_in_place(&place, "text.txt");
    let error = place.line(&prepare).failed();
    assert_eq!(
        error,
        "shards: holds data prepared otherwise: input text.txt has the same name and size there and here, but \
         another content; choose another folder or remove this one"
    );
    for line in ["--config tiny.toml --run other", "--config tiny.toml --steps 2 --resume"] {
        let error = place.line(line).failed();
        assert!(error.starts_with("data.prepare.input: is not what shards was prepared from ("), "{error}");
        assert!(error.contains("text.txt has the same name and size") && error.contains("--data"), "{error}");
    }
    // The data stays of use where the text is not.
    fs::remove_file(place.path("text.txt")).unwrap();
    let ran = place.line("--config tiny.toml --run other --steps 2");
    assert!(ran.stderr.contains("text.txt is not here to compare"), "{}", ran.stderr);
    ran.done();
}

#[test]
fn an_edit_of_the_evaluation_text_is_noticed() {
    let place = Workplace::with_corpus();
    place.write("eval.txt", corpus(9));
    let prepare = format!("{PREPARE} --recipe mlperf --eval-input eval.txt --eval-records 9");
    place.line(&prepare).done();
    assert!(place.line(&prepare).done().contains("it was there already"));
    edit_in_place(&place, "eval.txt");
    let error = place.line(&prepare).failed();
    assert!(
        error.contains("shards: holds data prepared otherwise: input eval.txt has the same name"),
        "{error}"
    );
}

#[test]
fn a_vocabulary_has_the_size_asked_for_or_a_reason() {
    let place = Workplace::with_corpus();
    let ideograph = |i: u32| char::from_u32(0x4e00 + i % 1500).unwrap();
    let text: String =
        (0..9000).map(|i| format!("{}{}", ideograph(i * 7), if i % 9 == 0 { "。\n" } else { "" })).collect();
    place.write("text.txt", text);
    let prepare = "prepare --input text.txt --max-seq-length 32 --no-nsp --eval-fraction 0 --out";
    let said = place.line(&format!("{prepare} all --train-vocab 3000")).done();
    assert!(said.contains("unknown tokens: 0.00% of the text to train on"), "{said}");
    assert!(
        said.contains(
            "warning: the vocabulary: it has 1506 of the 3000 tokens asked for: the text has 1501 characters, all of them in \
             it, and no other piece of a word occurs twice"
        ),
        "{said}"
    );
    let said = place.line(&format!("{prepare} some --train-vocab 3000 --alphabet-limit 700")).done();
    assert!(
        said.contains("700 of the text's 1501 characters are in it (the limit of its alphabet), "),
        "{said}"
    );
    assert!(said.contains("of the tokens of the text to train on are [UNK], such as `"), "{said}");
    let again = place.line("inspect some").done();
    assert!(
        said.lines().filter(|line| line.starts_with("warning: ")).all(|line| again.contains(line)),
        "{again}"
    );
    let said = place.line(&format!("{prepare} few --train-vocab 1000")).done();
    assert!(said.contains("995 of the text's 1501 characters are in it (1000 tokens have no room"), "{said}");
    let ran = place.line(&format!("{prepare} none --vocab vocab.txt --alphabet-limit 700"));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
}

#[test]
fn a_run_says_what_it_trains_on_and_that_it_evaluates_nothing() {
    let place = Workplace::with_corpus();
    // Three of six subjects, two in a sentence of twelve tokens.
    let one = ["dog", "cat", "king"].iter().fold(corpus(60), |text, word| text.replace(word, "lynx"));
    place.write("text.txt", one.replace("\n\n", "\n"));
    let ran = place.line("--config tiny.toml --steps 2");
    for part in [
        "shards: unknown tokens: ",
        "warning: shards: ",
        "of the tokens of the text to train on are [UNK], such as `lynx`",
        "no text is held out, though a share of 0.2 was asked for",
        "there is text in 1 document only",
        "shards holds no held-out text: this run is not evaluated",
    ] {
        assert!(ran.stderr.contains(part), "`{part}` is not in: {}", ran.stderr);
    }
    ran.done();
    let error = place.line("--config tiny.toml --run other --set train.target_accuracy=0.5").failed();
    assert!(error.contains("of text in two documents or more"), "{error}");
}

#[test]
fn whole_words_are_masked_in_training_and_evaluation() {
    let place = Workplace::with_corpus();
    let vocab = fs::read_to_string(place.path("vocab.txt")).unwrap().replace("dog\n", "do\n##g\n##gs\n");
    place.write("vocab.txt", vocab);
    place.line(&format!("{PREPARE} --max-predictions 5 --eval-fraction 0.2 --whole-word-masking")).done();
    assert!(place.line("inspect shards").done().contains("dynamic masks of whole words of 0.15"));
    let error = place.line("--config tiny.toml").failed();
    assert!(
        error.starts_with("data.prepare.whole_word_masking: is false, but shards was prepared with true"),
        "{error}"
    );
    let train = "--config tiny.toml --set data.prepare.whole_word_masking=true";
    place.line(train).done();
    place.line("eval --model run --data shards").done();
    let error = place.line(&format!("{PREPARE} --recipe mlperf --whole-word-masking")).failed();
    assert!(error.starts_with("--whole-word-masking: true contradicts --recipe mlperf"), "{error}");
}
