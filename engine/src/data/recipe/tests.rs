//! Against vectors that Python made from the recipe's description; see tools/mlperf_vectors.py.

use super::*;
use crate::data::masking::Masker;
use crate::data::prepare::prepare;
use crate::data::shards::{Dataset, SplitName};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::PathBuf;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A file of tests/data/mlperf, unpacked.
pub(crate) fn vectors(name: &str) -> Vec<u8> {
    let bytes = std::fs::read(in_vectors(name)).unwrap();
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

fn in_vectors(name: &str) -> PathBuf {
    PathBuf::from(ROOT).join("tests/data/mlperf").join(name)
}

fn vocab_path() -> PathBuf {
    PathBuf::from(ROOT).join("data/vocab.txt")
}

/// One run of the reference and what it writes.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    text: String,
    length: usize,
    predictions: usize,
    dupes: usize,
    short: f64,
    share: f64,
    seed: u64,
}

impl Case {
    fn all() -> Vec<Self> {
        serde_json::from_slice(&vectors("cases.json")).unwrap()
    }

    fn config(&self) -> PrepareConfig {
        PrepareConfig {
            input: vec![in_vectors(&self.text)],
            vocab: Some(vocab_path()),
            max_seq_length: self.length,
            max_predictions: self.predictions,
            dupe_factor: self.dupes,
            short_seq_prob: self.short,
            masked_lm_prob: self.share,
            seed: self.seed,
            ..PrepareConfig::of(crate::config::Recipe::Mlperf)
        }
    }

    fn records(&self) -> Vec<Record> {
        let text = String::from_utf8(vectors(&format!("{}.jsonl.gz", self.name))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Input ids, start of segment B, next-sentence label, masked positions, labels: a record of the reference without its
/// padding.
type Record = (Vec<u32>, usize, u32, Vec<u32>, Vec<u32>);

/// What training sees of a split, in order.
fn records(dir: &Path, split: SplitName) -> Vec<Record> {
    let data = Dataset::open(dir, split).unwrap();
    let masker = Masker::new(&data);
    (0..data.len())
        .map(|i| {
            let sequence = data.get(i).unwrap();
            let masked = masker.train(&sequence, 1, 0, i as u64);
            let types = masked.types.iter().filter(|&&t| t == 0).count();
            assert_eq!(types, sequence.segment_b_start);
            (masked.tokens, types, masked.nsp_label.unwrap(), masked.mlm_positions, masked.mlm_labels)
        })
        .collect()
}

fn same(got: &[Record], want: &[Record], name: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "{name}: sequence {i}");
    }
    assert_eq!(got.len(), want.len(), "{name}");
}

#[test]
fn sequences_masks_labels_and_order_are_the_references() {
    let dir = tempfile::tempdir().unwrap();
    for case in Case::all() {
        let out = dir.path().join(&case.name);
        prepare(&case.config(), &out, 2, &|_| {}).unwrap();
        let want = case.records();
        assert!(want.len() > 30 && want.iter().any(|r| r.2 == 0) && want.iter().any(|r| r.2 == 1));
        same(&records(&out, SplitName::Train), &want, &case.name);
    }
}

#[test]
fn each_file_starts_afresh_and_files_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let cases = Case::all();
    let case = cases.iter().find(|case| case.name == "alone").unwrap();
    let text = case.config().input[0].clone();
    let gz = dir.path().join("again.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &vectors(&case.text)).unwrap();
    std::fs::write(&gz, encoder.finish().unwrap()).unwrap();
    let blank = dir.path().join("blank");
    std::fs::write(&blank, "\n\u{200b}\n").unwrap();
    let longer = in_vectors("text.txt");
    let want = case.records();
    let mut bytes = Vec::new();
    for threads in [1, 3] {
        let out = dir.path().join(format!("data{threads}"));
        let input = vec![text.clone(), longer.clone(), blank.clone(), gz.clone()];
        let manifest = prepare(&PrepareConfig { input, ..case.config() }, &out, threads, &|_| {}).unwrap();
        let got = records(&out, SplitName::Train);
        same(&got[..want.len()], &want, "first file");
        same(&got[got.len() - want.len()..], &want, "last file");
        assert_eq!(manifest.documents, manifest.train.documents);
        bytes.push(std::fs::read(out.join("train-00000.shard")).unwrap());
    }
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn the_evaluation_text_is_thinned_as_the_reference_thins_it() {
    let dir = tempfile::tempdir().unwrap();
    let cases = Case::all();
    let case = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
    let (train, eval) = (case("alone"), case("short"));
    let all = eval.records();
    for wanted in [7, 100, all.len() + 50] {
        let config = PrepareConfig {
            input: train.config().input,
            eval_input: Some(in_vectors("text.txt")),
            eval_records: wanted,
            ..eval.config()
        };
        let out = dir.path().join(wanted.to_string());
        prepare(&config, &out, 2, &|_| {}).unwrap();
        let want: Vec<Record> = (0..wanted).map(|i| all[i * all.len() / wanted].clone()).collect();
        same(&records(&out, SplitName::Eval), &want, "evaluation");
    }
    let picks: Vec<usize> = picked(10, 4).collect();
    assert_eq!(picks, [0, 2, 5, 7]);
}

/// The ids of some lines.
#[derive(serde::Deserialize)]
struct TokenVectors {
    lines: Vec<(String, Vec<u32>)>,
    /// See `code_points_digest` of the script.
    code_points: String,
}

#[test]
fn odd_text_becomes_the_references_tokens() {
    let vocab = Vocab::load(&vocab_path()).unwrap();
    let want: TokenVectors = serde_json::from_slice(&vectors("tokens.json.gz")).unwrap();
    let mut tokenizer = ReferenceTokenizer::new(&vocab, true);
    for _ in 0..2 {
        for (line, want) in &want.lines {
            let mut got = Vec::new();
            tokenizer.encode(line, &mut got);
            assert_eq!(&got, want, "{line:?}");
        }
    }
    let mut digest = Sha256::new();
    let mut ids = Vec::new();
    for c in ('\0'..='\u{2fa1f}').chain('\u{e0000}'..='\u{e01ff}') {
        ids.clear();
        tokenizer.encode(&format!("a{c}B"), &mut ids);
        ids.push(u32::MAX);
        digest.update(bytemuck::cast_slice::<u32, u8>(&ids));
    }
    let hex: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, want.code_points);
}

#[test]
fn without_do_lower_case_only_control_characters_ideographs_and_punctuation_are_looked_at() {
    let tokens =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Caf", "##é", "caf", "##e", "A", "##Σ", ",", "里"];
    let vocab = Vocab::from_tokens(tokens.map(String::from).into()).unwrap();
    let ids = |names: &str| names.split(' ').map(|t| vocab.id(t).unwrap()).collect::<Vec<u32>>();
    for (lowercase, want) in
        [(false, "Caf ##é , A ##Σ 里 A [UNK]"), (true, "caf ##e , [UNK] 里 [UNK] caf ##e")]
    {
        let mut got = Vec::new();
        let mut tokenizer = ReferenceTokenizer::new(&vocab, lowercase);
        tokenizer.encode("Café,AΣ里A CAFE\u{301}", &mut got);
        tokenizer.encode("", &mut got);
        assert_eq!(got, ids(want), "lowercase {lowercase}");
    }
}

#[test]
fn bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let good = file("good", b"A sentence.\nAnother.\n");
    let base = Case::all()[0].config();
    let with = |input: Vec<PathBuf>, eval_input| PrepareConfig { input, eval_input, ..base.clone() };
    for (config, want) in [
        (
            with(vec![good.clone(), file("latin", b"fine\ncaf\xe9\n")], None),
            "latin: line 2, byte 4: not UTF-8",
        ),
        (with(vec![file("x.jsonl", b"{}")], None), "x.jsonl: is JSON Lines, Parquet or a table"),
        (with(vec![file("blank", b" \n\n")], None), "blank: holds no text"),
        (
            with(vec![good.clone()], Some(good.clone())),
            "good: is the evaluation text and among the training text",
        ),
        (with(vec![good.clone()], Some(dir.path().into())), "is a folder; the evaluation text is one file"),
        (with(vec![good.clone()], Some(file("empty", b"\n"))), "empty: holds no text"),
        (
            with(vec![file("cut.gz", &std::fs::read(in_vectors("tokens.json.gz")).unwrap()[..40])], None),
            "cut.gz: cannot decompress",
        ),
    ] {
        let error = prepare(&config, &dir.path().join("data"), 1, &|_| {}).map(drop).unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{error}");
    }
}
