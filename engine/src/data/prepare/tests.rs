//! Whole preparations of generated text.

use super::*;
use crate::config::{Masking, Split};
use crate::data::shards::{Dataset, SplitName};
use crate::data::tokenize::tests::small_vocab;
use crate::data::tokenize::{Tokenizer, TokenizerSettings};
use kernels::philox::Stream;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

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
    let config = with_files(dir.path(), &PrepareConfig { eval_fraction: 0.0, ..PrepareConfig::default() });
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
    let count = std::sync::atomic::AtomicUsize::new(0);
    let again = prepare(&config, &out, 1, &|_| _ = count.fetch_add(1, Relaxed)).unwrap();
    assert_eq!((again, count.into_inner()), (Manifest::load(&out).unwrap(), 0));
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
