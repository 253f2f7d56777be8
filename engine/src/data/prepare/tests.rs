//! Whole preparations of generated text.

use super::*;
use crate::config::{Masking, Split};
use crate::data::shards::{Dataset, SplitName};
use crate::data::tokenize::tests::small_vocab;
use crate::data::tokenize::{Tokenizer, TokenizerSettings};
use kernels::philox::Stream;
use std::path::PathBuf;

/// `documents` documents of sentences of small words, in BERT's format.
pub(super) fn text(documents: usize, seed: u64) -> String {
    let words =
        ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "one", "two", "three", "was"];
    let mut s = Stream::new(seed, 0, 9);
    let mut out = String::new();
    for _ in 0..documents {
        for _ in 0..s.range(1, 12) {
            for _ in 0..s.range(1, 15) {
                out.push_str(words[s.below(words.len() as u32) as usize]);
                out.push(' ');
            }
            out.push_str(".\n");
        }
        out.push('\n');
    }
    out
}

/// Prepares generated text below `dir` and returns the data folder.
pub(crate) fn prepare_sample(dir: &Path, config: &PrepareConfig, documents: usize) -> PathBuf {
    std::fs::write(dir.join("input.txt"), text(documents, 3)).unwrap();
    let out = dir.join("data");
    prepare(&with_files(dir, config), &out, 2, &|_| {}).unwrap();
    out
}

pub(super) fn with_files(dir: &Path, config: &PrepareConfig) -> PrepareConfig {
    small_vocab().save(&dir.join("words.txt")).unwrap();
    PrepareConfig { input: vec![dir.join("input.txt")], vocab: Some(dir.join("words.txt")), ..config.clone() }
}

pub(super) fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // More than one block, a document longer than a block among them.
    let long = "one two three four five six seven .\n".repeat(150_000);
    std::fs::write(dir.path().join("input.txt"), text(30_000, 1) + &long + "\n" + &text(300, 2)).unwrap();
    let config = PrepareConfig { masking: Masking::Static, max_seq_length: 64, ..PrepareConfig::default() };
    let config = with_files(dir.path(), &config);
    let outputs = [1, 2, 4].map(|threads| {
        let out = dir.path().join(format!("data{threads}"));
        prepare(&config, &out, threads, &|_| {}).unwrap();
        files(&out)
    });
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2]);
    let seed = PrepareConfig { seed: 7, ..config };
    prepare(&seed, &dir.path().join("other"), 2, &|_| {}).unwrap();
    assert_ne!(files(&dir.path().join("other")), outputs[0]);
}

#[test]
fn random_next_segments_of_long_documents_come_from_other_documents() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["one", "two", "three"];
    let mut input = Vec::new();
    for word in words {
        let path = dir.path().join(format!("{word}.txt"));
        std::fs::write(&path, format!("The {word} {word} {word} {word}. ").repeat(120_000)).unwrap();
        input.push(path);
    }
    let config = PrepareConfig { split: Split::Sentences, eval_fraction: 0.0, ..PrepareConfig::default() };
    let config = PrepareConfig { input, max_seq_length: 64, ..with_files(dir.path(), &config) };
    let out = dir.path().join("data");
    prepare(&config, &out, 2, &|_| {}).unwrap();
    let data = Dataset::open(&out, SplitName::Train).unwrap();
    let ids = words.map(|word| data.vocab().id(word).unwrap());
    let mut from = [[0usize; 3]; 3]; // segment A's word, that of a random segment B
    for i in 0..data.len() {
        let sequence = data.get(i).unwrap();
        let tokens = sequence.tokens.to_vec();
        let (a, b) = tokens.split_at(sequence.segment_b_start);
        let of = |segment: &[u32]| ids.iter().position(|id| segment.contains(id)).unwrap();
        if sequence.nsp == Some(1) {
            from[of(a)][of(b)] += 1;
        } else {
            assert_eq!(of(a), of(b));
        }
    }
    let sum = |a: usize| from[a].iter().sum::<usize>();
    assert!((0..3).all(|a| sum(a) > 5000), "{from:?}");
    // The first document has no other before it.
    assert_eq!(sum(0), from[0][0], "{from:?}");
    assert_eq!(from[1], [sum(1), 0, 0]);
    assert!(from[2][0] * 3 > sum(2) && from[2][1] * 3 > sum(2) && from[2][2] == 0, "{from:?}");
}

#[test]
fn counts_add_up_and_evaluation_text_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    // A word that names its document, so that a sequence says where it is from.
    let digits = |d: usize| format!("{d}");
    let text: String = (0..400)
        .map(|d| format!("the dog was {} .\nthe fox was {} .\n\n", digits(d + 1000), digits(d + 1000)))
        .collect();
    std::fs::write(dir.path().join("input.txt"), text).unwrap();
    let config = PrepareConfig { eval_fraction: 0.1, ..PrepareConfig::default() };
    let out = dir.path().join("data");
    let last = std::sync::Mutex::new(None);
    let manifest =
        prepare(&with_files(dir.path(), &config), &out, 2, &|p| *last.lock().unwrap() = Some(p.clone()))
            .unwrap();
    let progress = last.into_inner().unwrap().unwrap();
    assert_eq!((progress.bytes_read, progress.documents), (progress.bytes_total, 400));
    assert_eq!(progress.sequences, manifest.train.sequences + manifest.eval.sequences);
    assert_eq!((manifest.documents, manifest.train.documents + manifest.eval.documents), (400, 400));
    assert!((20..60).contains(&manifest.eval.documents)); // 40, standard deviation 6
    let numbers = |split| {
        let data = Dataset::open(&out, split).unwrap();
        let tokenizer = Tokenizer::new(data.vocab(), TokenizerSettings::UNCASED).unwrap();
        let text: Vec<String> =
            (0..data.len()).map(|i| tokenizer.decode(&data.get(i).unwrap().tokens.to_vec())).collect();
        let words = text.iter().flat_map(|t| t.split(' ')).filter_map(|w| w.parse::<u32>().ok());
        words.filter(|&n| n >= 1000).collect::<std::collections::BTreeSet<u32>>()
    };
    let (train, eval) = (numbers(SplitName::Train), numbers(SplitName::Eval));
    assert!(train.is_disjoint(&eval));
    assert_eq!(train.len() as u64, manifest.train.documents);
    assert_eq!(eval.len() as u64, manifest.eval.documents);
}

#[test]
fn few_documents_still_leave_one_for_each_part() {
    let dir = tempfile::tempdir().unwrap();
    for (documents, fraction, want) in
        [(2, 0.001, (1, 1)), (5, 0.001, (4, 1)), (5, 0.999, (1, 4)), (1, 0.999, (1, 0)), (3, 0.0, (3, 0))]
    {
        std::fs::write(dir.path().join("input.txt"), text(documents, 4)).unwrap();
        let config = PrepareConfig { eval_fraction: fraction, ..PrepareConfig::default() };
        let out = dir.path().join(format!("data{documents}-{fraction}"));
        let manifest = prepare(&with_files(dir.path(), &config), &out, 1, &|_| {}).unwrap();
        assert_eq!((manifest.train.documents, manifest.eval.documents), want);
    }
}

#[test]
fn entropy_is_that_of_the_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("input.txt"), "the dog the dog\nthe fox the fox\n").unwrap();
    let config = PrepareConfig { eval_fraction: 0.0, nsp: false, ..PrepareConfig::default() };
    let config = with_files(dir.path(), &config);
    let manifest = prepare(&config, &dir.path().join("data"), 1, &|_| {}).unwrap();
    assert!((manifest.unigram_entropy - 1.5 * 2f64.ln()).abs() < 1e-12);
}

#[test]
fn stored_masks_follow_the_rule_and_dynamic_data_is_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let build = |masking, name: &str| {
        let config = PrepareConfig { masking, max_seq_length: 64, ..PrepareConfig::default() };
        std::fs::create_dir(dir.path().join(name)).unwrap();
        Dataset::open(&prepare_sample(&dir.path().join(name), &config, 300), SplitName::Train).unwrap()
    };
    let (fixed, dynamic) = (build(Masking::Static, "static"), build(Masking::Dynamic, "dynamic"));
    let vocab = fixed.vocab();
    let (mut masks, mut labels) = (0, 0);
    for i in 0..fixed.len() {
        let (sequence, other) = (fixed.get(i).unwrap(), dynamic.get(i).unwrap());
        assert_eq!(sequence.tokens, other.tokens);
        assert!(other.mask.is_none());
        let mask = sequence.mask.unwrap();
        let length = sequence.tokens.len();
        assert_eq!(
            mask.positions.len(),
            ((0.15 * length as f64).round_ties_even() as usize).max(1).min(length - 3)
        );
        for (k, &position) in mask.positions.iter().enumerate() {
            let original = sequence.tokens.get(usize::from(position));
            assert!(original != vocab.cls && original != vocab.sep);
            masks += usize::from(mask.tokens.get(k) == vocab.mask);
            labels += 1;
        }
    }
    assert!((0.75..0.85).contains(&(masks as f64 / labels as f64)));
}

#[test]
fn each_use_of_a_document_is_cut_anew_and_prose_is_split() {
    let dir = tempfile::tempdir().unwrap();
    let prose = text(40, 9).replace('\n', " ");
    std::fs::write(dir.path().join("input.txt"), prose).unwrap();
    let config = PrepareConfig {
        dupe_factor: 3,
        split: Split::Sentences,
        nsp: false,
        max_seq_length: 32,
        short_seq_prob: 0.5,
        ..PrepareConfig::default()
    };
    let out = dir.path().join("data");
    let manifest = prepare(&with_files(dir.path(), &config), &out, 2, &|_| {}).unwrap();
    let data = Dataset::open(&out, SplitName::Train).unwrap();
    let lengths: Vec<usize> = (0..data.len()).map(|i| data.get(i).unwrap().tokens.len()).collect();
    assert!(lengths.chunks(data.len() / 3).take(3).collect::<std::collections::HashSet<_>>().len() > 1);
    // Every token three times, with [CLS] and [SEP] around each sequence.
    assert_eq!((manifest.train.tokens as usize - 2 * data.len()) % 3, 0);
    for (i, &length) in lengths.iter().enumerate() {
        let sequence = data.get(i).unwrap();
        assert!(sequence.nsp.is_none() && sequence.segment_b_start == length);
    }
}

#[test]
fn finished_data_is_kept_and_other_data_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_files(dir.path(), &PrepareConfig::default());
    let out = prepare_sample(dir.path(), &config, 20);
    let before = files(&out);
    let again = prepare(&config, &out, 1, &|p| assert_eq!(p.phase, Phase::Hashing)).unwrap();
    assert_eq!(again, Manifest::load(&out).unwrap());
    let refuse = |config: &PrepareConfig, out: &Path, want: &str| {
        let message = prepare(config, out, 1, &|_| {}).unwrap_err().to_string();
        assert!(message.contains(want) && !message.contains('\n'), "{message}");
    };
    refuse(&PrepareConfig { seed: 1, ..config.clone() }, &out, "seed is 12345 there and 1 here");
    std::fs::write(dir.path().join("input.txt"), text(21, 3)).unwrap();
    refuse(&config, &out, "input input.txt of");
    refuse(&config, dir.path(), "holds other files and no manifest.json");
    assert_eq!(files(&out), before);

    // What a killed run left is replaced, anything else is not touched.
    let left = dir.path().join("new.preparing");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("train-00000.shard"), "half").unwrap();
    std::fs::write(left.join("precious"), "mine").unwrap();
    refuse(&config, &dir.path().join("new"), "holds `precious`");
    std::fs::remove_file(left.join("precious")).unwrap();
    std::fs::create_dir(dir.path().join("new")).unwrap();
    prepare(&config, &dir.path().join("new"), 1, &|_| {}).unwrap();
    assert!(!left.exists());
}

#[test]
fn bad_options_and_failures_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = with_files(dir.path(), &PrepareConfig::default());
    std::fs::write(dir.path().join("input.txt"), "\n \n\u{200b}\n").unwrap();
    let out = dir.path().join("data");
    for (config, want) in [
        (PrepareConfig { vocab: None, ..good.clone() }, "prepare.vocab: neither"),
        (PrepareConfig { train_vocab: Some(200), ..good.clone() }, "prepare.vocab: both"),
        (
            PrepareConfig { vocab: None, train_vocab: Some(7), ..good.clone() },
            "prepare.train_vocab: 7, expected 100",
        ),
        (
            PrepareConfig { max_seq_length: 70_000, ..good.clone() },
            "prepare.max_seq_length: 70000, expected 8 to 65535",
        ),
        (PrepareConfig { eval_fraction: f64::NAN, ..good.clone() }, "prepare.eval_fraction: NaN"),
        (PrepareConfig { dupe_factor: 0, ..good.clone() }, "prepare.dupe_factor"),
        (PrepareConfig { input: vec![], ..good.clone() }, "prepare.input"),
        (
            PrepareConfig { input: vec![dir.path().join("none.txt")], ..good.clone() },
            "none.txt: cannot read the input",
        ),
        (good.clone(), "input.txt: the input holds no text"),
    ] {
        let message = prepare(&config, &out, 1, &|_| {}).unwrap_err().to_string();
        assert!(message.contains(want) && !message.contains('\n'), "{message}");
        assert!(!out.exists() && !dir.path().join("data.preparing").exists());
    }
}

#[test]
fn a_trained_vocabulary_is_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let words = std::fs::read_to_string(dir.path().join("input.txt")).unwrap_or_else(|_| text(3000, 8));
    std::fs::write(dir.path().join("input.txt"), words).unwrap();
    let input = vec![dir.path().join("input.txt")];
    let config = PrepareConfig { input, train_vocab: Some(120), ..PrepareConfig::default() };
    let outputs = [1, 3].map(|threads| {
        let out = dir.path().join(format!("data{threads}"));
        prepare(&config, &out, threads, &|_| {}).unwrap();
        files(&out)
    });
    assert!(outputs[0] == outputs[1]);
    let vocab = Vocab::load(&dir.path().join("data1").join(VOCAB)).unwrap();
    assert!(vocab.id("quick").is_some() && vocab.len() <= 120);
}

#[test]
fn json_lines_are_named_when_wrong_and_invalid_utf8_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let config = with_files(dir.path(), &PrepareConfig { eval_fraction: 0.0, ..PrepareConfig::default() });
    let config = PrepareConfig { input: vec![path.clone()], ..config };
    let row = b"{\"id\": 1, \"text\": \"the \\u0022dog\\u0022\\nwas lazy\"}\n".as_slice();
    for (bad, want) in [
        (b"{\"id\": 1}\n".as_slice(), "missing field `text`"),
        (b"{\"text\": 3}\n", "invalid type"),
        (b"{\"text\": \"cut", "EOF while parsing a string"),
        (b"[1]\n", "line 3"),
        (b"nonsense\n", "expected"),
    ] {
        std::fs::write(&path, [row, b"\n", bad].concat()).unwrap();
        let message = prepare(&config, &dir.path().join("bad"), 2, &|_| {}).unwrap_err().to_string();
        assert!(message.contains("rows.jsonl: line 3, column ") && message.contains(want), "{message}");
    }
    let broken = b"{\"text\": \"the \xff\xfe quick \xe2\x82 fox\"}\n";
    std::fs::write(&path, [row, b"{\"text\": null}\n", broken, row].concat()).unwrap();
    let out = dir.path().join("data");
    let manifest = prepare(&config, &out, 2, &|_| {}).unwrap();
    assert_eq!((manifest.documents, manifest.train.documents, manifest.invalid_utf8), (4, 3, 3));
    let data = Dataset::open(&out, SplitName::Train).unwrap();
    let tokenizer = Tokenizer::new(data.vocab(), TokenizerSettings::UNCASED).unwrap();
    let text: String =
        (0..data.len()).map(|i| tokenizer.decode(&data.get(i).unwrap().tokens.to_vec()) + "\n").collect();
    assert!(text.contains("the \" dog \"") && text.contains("the quick fox"), "{text}");
}

/// Replaces a word by one of the same length, and puts the file's time back.
fn edit_in_place(path: &Path) {
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let edited = text.replacen("the", "was", 1);
    assert_ne!(edited, text);
    std::fs::write(path, edited).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

#[test]
fn an_edit_that_keeps_size_and_time_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_files(dir.path(), &PrepareConfig::default());
    let (input, out) = (dir.path().join("input.txt"), prepare_sample(dir.path(), &config, 20));
    let part = dir.path().join("part");
    let number = "1/2".parse().unwrap();
    prepare_part(&config, number, &part, 1, &|_| {}).unwrap();
    let said = || {
        let whole = prepare(&config, &out, 1, &|_| {}).map(drop);
        let part = prepare_part(&config, number, &part, 1, &|_| {}).map(drop);
        let outdated = outdated(&out, &config, 1, &|_| {}).unwrap().map(|(_, what)| what);
        [whole.err().map(|e| e.to_string()), part.err().map(|e| e.to_string()), outdated]
    };
    assert_eq!(said(), [None, None, None]);
    // The same text at another time and in another place is the same.
    std::fs::write(&input, std::fs::read(&input).unwrap()).unwrap();
    std::fs::create_dir(dir.path().join("there")).unwrap();
    std::fs::copy(&input, dir.path().join("there/input.txt")).unwrap();
    let moved = PrepareConfig { input: vec![dir.path().join("there")], ..config.clone() };
    assert_eq!(said(), [None, None, None]);
    prepare(&moved, &out, 1, &|_| {}).unwrap();

    edit_in_place(&input);
    for message in said() {
        let message = message.unwrap();
        assert!(
            message.contains("input.txt has the same name and size there and here, but another content"),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
    prepare(&moved, &out, 1, &|_| {}).unwrap();
    std::fs::remove_file(&input).unwrap();
    assert_eq!(outdated(&out, &config, 1, &|_| {}).unwrap(), None);
}

#[test]
fn of_data_without_checksums_the_times_decide() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_files(dir.path(), &PrepareConfig::default());
    let (input, out) = (dir.path().join("input.txt"), prepare_sample(dir.path(), &config, 20));
    let mut manifest = Manifest::load(&out).unwrap();
    manifest.inputs[0].xxh3 = None;
    std::thread::sleep(std::time::Duration::from_millis(20));
    manifest.save(&out).unwrap();
    let kept = prepare(&config, &out, 1, &|_| {}).unwrap();
    assert!(kept.warnings().iter().any(|line| line.contains("before checksums of the input were kept")));
    std::thread::sleep(std::time::Duration::from_millis(20));
    edit_in_place(&input);
    let message = prepare(&config, &out, 1, &|_| {}).unwrap_err().to_string();
    assert!(
        message.contains("input.txt was written since") && message.contains("cannot be told"),
        "{message}"
    );
}

#[test]
fn text_that_is_written_while_it_is_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_files(dir.path(), &PrepareConfig::default());
    let (input, out) = (dir.path().join("input.txt"), dir.path().join("data"));
    std::fs::write(&input, text(20, 3)).unwrap();
    let message = prepare(&config, &out, 1, &|progress| {
        if progress.phase == Phase::Sequences {
            edit_in_place(&input);
        }
    })
    .unwrap_err()
    .to_string();
    assert!(message.contains("input.txt: was written while it was read"), "{message}");
    assert!(!out.exists() && !dir.path().join("data.preparing").exists());
}

#[test]
fn unknown_tokens_are_counted_by_split_and_named_where_they_are_many() {
    let dir = tempfile::tempdir().unwrap();
    // Half of the documents are of a script that the vocabulary does not hold.
    let foreign = "the dog was यह वाक्य\nthe fox was दूसरा\n\n";
    std::fs::write(dir.path().join("input.txt"), foreign.repeat(50) + &text(10, 3)).unwrap();
    let config = with_files(dir.path(), &PrepareConfig { eval_fraction: 0.2, ..PrepareConfig::default() });
    let made = [1, 3].map(|threads| {
        let out = dir.path().join(format!("data{threads}"));
        prepare(&config, &out, threads, &|_| {}).unwrap()
    });
    assert_eq!(made[0], made[1]);
    let manifest = &made[0];
    let tokenizer = |text: &str| {
        let mut ids = Vec::new();
        Tokenizer::new(&small_vocab(), Default::default()).unwrap().encode(text, &mut ids);
        ids
    };
    let (train, eval) = (manifest.train.text.clone().unwrap(), manifest.eval.text.clone().unwrap());
    let all = tokenizer(&std::fs::read_to_string(dir.path().join("input.txt")).unwrap());
    let unknown = all.iter().filter(|&&id| id == small_vocab().unk).count() as u64;
    assert_eq!((train.tokens + eval.tokens, train.unknown + eval.unknown), (all.len() as u64, unknown));
    assert!(unknown >= 150 && eval.unknown > 0);
    let words = ["दूसरा", "यह", "वाक्य"];
    let mut examples = train.examples.clone();
    examples.sort();
    assert_eq!(examples, words);
    let line = manifest.unknown_tokens().unwrap();
    assert!(
        line.contains("% of the text to train on, ") && line.ends_with("% of the held-out text"),
        "{line}"
    );
    let warnings = manifest.warnings();
    let said = |part: &str| warnings.iter().filter(|line| line.contains(part)).count();
    assert_eq!((said("of the text to train on are [UNK]"), said("of the held-out text are [UNK]")), (1, 1));
    assert!(words.iter().all(|word| said(&format!("`{word}`")) > 0), "{warnings:?}");

    std::fs::write(dir.path().join("input.txt"), text(50, 3)).unwrap();
    let manifest = prepare(&config, &dir.path().join("known"), 1, &|_| {}).unwrap();
    assert_eq!(manifest.unknown_tokens().unwrap().matches("0.00%").count(), 2);
    assert_eq!(manifest.warnings(), [""; 0]);
}

#[test]
fn pairs_and_held_out_text_that_are_not_what_was_meant_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_files(dir.path(), &PrepareConfig { max_seq_length: 64, ..PrepareConfig::default() });
    let warnings = |text: &str, config: &PrepareConfig| {
        std::fs::write(dir.path().join("input.txt"), text).unwrap();
        let out = dir.path().join("data");
        let manifest = prepare(config, &out, 1, &|_| {});
        std::fs::remove_dir_all(out).ok();
        manifest.map(|manifest| manifest.warnings()).unwrap_or_else(|error| vec![error.to_string()])
    };
    let spaced = text(100, 3).replace('\n', "\n\n");
    let one = text(300, 3).replace("\n\n", "\n");
    let prose: String =
        text(900, 3).lines().collect::<Vec<_>>().chunks(60).map(|c| c.join(" ") + "\n\n").collect();
    for (text, wanted) in [
        (
            &spaced,
            &["100.00% of the sentence pairs have a random second segment, as documents have 1.0 sentences"]
                [..],
        ),
        (
            &one,
            &[
                "the text to train on is one document",
                "no text is held out, though a share of 0.02 was asked for",
            ],
        ),
        (&prose, &["tokens on average, and each was taken for a sentence"]),
        (
            &"the dog .\nthe fox .\n".to_owned(),
            &["no other text to draw random next segments from", "no text is held out"],
        ),
        (&text(100, 3), &[]),
    ] {
        let said = warnings(text, &config);
        assert_eq!(said.len(), wanted.len(), "{said:#?}");
        assert!(said.iter().zip(wanted).all(|(said, wanted)| said.contains(wanted)), "{said:#?}");
    }
    let full = PrepareConfig { nsp: false, eval_fraction: 0.0, ..config };
    assert_eq!(warnings(&one, &full), [""; 0]);
}

#[test]
fn stored_masks_of_whole_words_leave_no_word_half() {
    let dir = tempfile::tempdir().unwrap();
    let text = "jumping jumped the fox jumps over jumping dogs and foxes .\nthe quick jumping of a dog .\n\n"
        .repeat(40);
    std::fs::write(dir.path().join("input.txt"), text).unwrap();
    let config = PrepareConfig { whole_word_masking: true, max_seq_length: 48, ..PrepareConfig::default() };
    let out = dir.path().join("data");
    for masking in [Masking::Static, Masking::Dynamic] {
        let config = with_files(dir.path(), &PrepareConfig { masking, ..config.clone() });
        prepare(&config, &out, 1, &|_| {}).unwrap();
        let data = Dataset::open(&out, SplitName::Train).unwrap();
        let masker = crate::data::masking::Masker::new(&data);
        let mut pieces = 0;
        for i in 0..data.len() {
            let sequence = data.get(i).unwrap();
            let tokens = sequence.tokens.to_vec();
            let masked = masker.train(&sequence, 1, 2, i as u64);
            assert_eq!(masked.mlm_positions.len(), masker.count(&sequence, 1, 2, i as u64));
            let is_piece = |p: usize| data.vocab().token(tokens[p]).unwrap().starts_with("##");
            for p in (2..tokens.len()).filter(|&p| is_piece(p) && p != sequence.segment_b_start) {
                let has = |p: usize| masked.mlm_positions.contains(&(p as u32));
                assert_eq!(has(p), has(p - 1), "{masking:?}, sequence {i}, position {p}");
                pieces += usize::from(has(p));
            }
        }
        assert!(pieces > 20);
        std::fs::remove_dir_all(&out).unwrap();
    }
}
