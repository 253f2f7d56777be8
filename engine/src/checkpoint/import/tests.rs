//! Files of other software against their twin in a Hugging Face folder; damage, bombs and mutations.

use super::*;
use crate::data::{Batch, Sequence};
use crate::model::Bert;
use kernels::cpu::Cpu;
use proptest::prelude::*;
use std::fs;
use tempfile::TempDir;

mod archives;
mod folders;
mod objects;
mod padding;
mod pickles;
mod tables;

/// The committed samples; tools/make_checkpoint_samples.py made them.
pub(super) fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/checkpoints").join(name)
}

fn options() -> Options {
    let [config, vocab] = ["twin/config.json", "twin/vocab.txt"].map(|name| Some(sample(name)));
    Options { config, vocab, ..Options::default() }
}

fn twin() -> hf::Imported {
    hf::import(&sample("twin")).unwrap()
}

#[track_caller]
fn error(framework: Framework, path: &Path, options: &Options) -> String {
    let error = read(framework, path, options).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// The sample bundle in a folder of its own.
fn bundle() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    for name in ["tiny.index", "tiny.data-00000-of-00002", "tiny.data-00001-of-00002"] {
        fs::copy(sample(name), dir.path().join(name)).unwrap();
    }
    let prefix = dir.path().join("tiny");
    (dir, prefix)
}

#[track_caller]
fn assert_is_twin(converted: &Converted) {
    let twin = twin();
    assert_eq!(ModelConfig { gelu: twin.model.gelu, ..converted.model.clone() }, twin.model);
    for tensor in &twin.table.tensors {
        assert_eq!(converted.weights[tensor.range()], twin.weights[tensor.range()], "{}", tensor.name);
    }
    assert_eq!(converted.weights, twin.weights);
    assert!(converted.missing.is_empty(), "{:?}", converted.missing);
}

fn logits(model: &ModelConfig, weights: &[f32]) -> Vec<f64> {
    let sequence = Sequence {
        tokens: vec![2, 5, 9, 4, 12, 3],
        types: vec![0, 0, 0, 1, 1, 1],
        mlm_positions: vec![1, 3],
        mlm_labels: vec![5, 7],
        nsp_label: Some(0),
    };
    let mut bert = Bert::new(Cpu::<f32>::new(), model).unwrap();
    bert.load_weights(weights).unwrap();
    bert.mlm_logits(&Batch::pack(&[sequence], 0, model.max_positions as u32)).unwrap()
}

#[test]
fn a_bundle_is_read_exactly_and_predicts_what_its_twin_does() {
    let converted = read(Framework::TensorFlow, &sample("tiny"), &options()).unwrap();
    assert_is_twin(&converted);
    assert_eq!((converted.read, converted.state, converted.padding), (46, 2 * 46 + 3, None));
    assert!(converted.ignored.is_empty() && converted.has_checksums);
    assert_eq!(converted.model.gelu, Gelu::Tanh);
    let twin = twin();
    assert_eq!(logits(&converted.model, &converted.weights), logits(&twin.model, &twin.weights));
}

#[test]
fn the_number_of_tensors_is_the_benchmarks() {
    let model = ModelConfig { vocab_size: 30522, ..crate::config::Preset::Large.model() };
    let table = TensorTable::new(&model);
    let names: Vec<&str> = table.tensors.iter().map(|t| t.name.as_str()).collect();
    // 5 of the embeddings, 16 a layer, 2 of the pooler, 7 of the heads
    assert_eq!(names.len(), 5 + 24 * 16 + 2 + 7);
    for (theirs, ours, transposed) in [
        ("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings.weight", false),
        ("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight", false),
        (
            "bert/encoder/layer_23/attention/self/key/kernel",
            "bert.encoder.layer.23.attention.self.key.weight",
            true,
        ),
        ("bert/encoder/layer_0/output/LayerNorm/beta", "bert.encoder.layer.0.output.LayerNorm.bias", false),
        ("bert/pooler/dense/bias", "bert.pooler.dense.bias", false),
        ("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight", true),
        ("cls/predictions/output_bias", "cls.predictions.bias", false),
        ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", false),
    ] {
        assert!(names.contains(&ours));
        assert_eq!(names::tensorflow(theirs), Role::Parameter { name: ours.to_owned(), transposed });
    }
    for (name, role) in [
        ("bert/pooler/dense/kernel/adam_m", Role::State),
        ("bert/encoder/layer_1/output/dense/bias/LAMB_1", Role::State),
        ("global_step", Role::State),
        ("bert/encoder/layer_1/crossattention/query/kernel", Role::Foreign),
        ("bert/encoder/layer_01/output/dense/kernel", Role::Foreign),
        ("bert.pooler.dense/kernel", Role::Unknown),
        ("output_weights", Role::Unknown),
        ("bert/embeddings/LayerNorm/kernel", Role::Foreign),
    ] {
        assert_eq!(names::tensorflow(name), role, "{name}");
    }
}

#[test]
fn pytorchs_names_lose_what_wrappers_put_before_them() {
    let pooler = Role::Parameter { name: "bert.pooler.dense.weight".to_owned(), transposed: false };
    for (name, role) in [
        ("pooler.dense.weight", pooler.clone()),
        ("module.module.bert.pooler.dense.weight", pooler.clone()),
        ("module.bert_model_segment.bert.pooler.dense_act.weight", pooler),
        ("_orig_mod.cls.predictions.decoder.weight", Role::Tied(names::WORD)),
        ("heads_only_segment.cls.predictions.decoder.bias", Role::Tied(names::MLM_BIAS)),
        ("embeddings.position_ids", Role::State),
        ("encoder.layer.0.crossattention.self.query.weight", Role::Foreign),
        ("classifier.weight", Role::Unknown),
    ] {
        assert_eq!(names::pytorch(name), role, "{name}");
    }
}

#[test]
fn an_index_with_compressed_blocks_is_the_same() {
    let (_dir, prefix) = bundle();
    fs::copy(sample("tiny-snappy.index"), prefix.with_extension("index")).unwrap();
    assert_is_twin(&read(Framework::TensorFlow, &prefix, &options()).unwrap());
    // the file's name does as well
    assert_is_twin(&read(Framework::TensorFlow, &prefix.with_extension("index"), &options()).unwrap());
}

#[test]
fn both_layouts_of_pytorch_are_read_exactly() {
    for (name, has_checksums) in [("zip.bin", true), ("legacy.bin", false)] {
        let converted = read(Framework::PyTorch, &sample(name), &options()).unwrap();
        assert_is_twin(&converted);
        // the decoder's weight and bias are tied
        assert_eq!(
            (converted.read, converted.state, converted.has_checksums),
            (48, 0, has_checksums),
            "{name}"
        );
        assert_eq!(converted.model.gelu, Gelu::Tanh, "config.json says gelu_new");
    }
}

#[test]
fn nvidias_padded_half_precision_checkpoint_is_cut_to_the_vocabulary() {
    let nvidia = sample("nvidia.pt");
    let converted = read(Framework::PyTorch, &nvidia, &options()).unwrap();
    assert_is_twin(&converted);
    assert_eq!(converted.padding, Some(Padding { tokens: 29, rows: 3, zeros: true, kept: false }));
    // the configuration alone is enough, and so is the vocabulary alone
    let config = Options { vocab: None, ..options() };
    assert_is_twin(&read(Framework::PyTorch, &nvidia, &config).unwrap());
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(sample("twin/config.json")).unwrap();
    fs::write(&path, text.replace("\"vocab_size\": 29", "\"vocab_size\": 32")).unwrap();
    let padded = Options { config: Some(path.clone()), ..options() };
    assert_is_twin(&read(Framework::PyTorch, &nvidia, &padded).unwrap());
    // without either they stay
    let kept = read(Framework::PyTorch, &nvidia, &Options { vocab: None, ..padded }).unwrap();
    assert_eq!((kept.model.vocab_size, kept.padding), (32, None));
    // rows that are not zeros are cut only where they are few
    fs::write(&path, text.replace("\"vocab_size\": 29", "\"vocab_size\": 20")).unwrap();
    let short = Options { config: Some(path), ..Options::default() };
    let message = error(Framework::PyTorch, &nvidia, &short);
    assert!(
        message.contains("vocab_size: 20, the word embeddings have 32 rows, up to row 29 not all 0"),
        "{message}"
    );
}

#[test]
fn an_encoder_without_heads_says_what_is_missing_and_exports_only_what_is_there() {
    let converted = read(Framework::PyTorch, &sample("encoder-bf16.pt"), &options()).unwrap();
    let twin = twin();
    let encoder = ..twin.table.pooler.weight.start;
    assert_eq!(converted.weights[encoder], twin.weights[encoder]);
    assert_eq!(converted.missing.len(), 9, "{:?}", converted.missing);
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("model");
    converted.export(&out).unwrap();
    let imported = hf::import(&out).unwrap();
    assert_eq!(imported.missing, converted.missing);
    assert_eq!(imported.weights, converted.weights);
}

#[test]
fn what_is_exported_is_what_was_read() {
    let dir = TempDir::new().unwrap();
    let without = Options { vocab: None, ..options() };
    for (options, has_vocab) in [(without, false), (options(), true)] {
        let out = dir.path().join(format!("model-{has_vocab}"));
        let converted = read(Framework::TensorFlow, &sample("tiny"), &options).unwrap();
        converted.export(&out).unwrap();
        let imported = hf::import(&out).unwrap();
        assert_eq!((&imported.model, &imported.weights), (&converted.model, &twin().weights));
        assert_eq!(out.join("vocab.txt").exists(), has_vocab);
    }
    let out = dir.path().join("model-true");
    fs::write(out.join("thesis.tex"), "").unwrap();
    assert!(check_target(&out).is_err());
}

#[test]
fn the_activation_is_the_frameworks_the_configurations_or_the_users() {
    let gelu = |framework, name, gelu| {
        let options = Options { gelu, ..options() };
        read(framework, &sample(name), &options).unwrap().model.gelu
    };
    assert_eq!(gelu(Framework::TensorFlow, "tiny", Some(Gelu::Erf)), Gelu::Erf);
    assert_eq!(gelu(Framework::PyTorch, "zip.bin", Some(Gelu::Erf)), Gelu::Erf);
}

#[test]
fn a_configuration_that_does_not_fit_is_an_error_with_both_numbers() {
    let message = error(Framework::TensorFlow, &sample("tiny"), &Options::default());
    assert!(
        message.contains("hidden size 16 is no multiple of 64") && message.contains("--config"),
        "{message}"
    );
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(sample("twin/config.json")).unwrap();
    for (key, right, wrong) in [
        ("num_hidden_layers", 2, 3),
        ("hidden_size", 16, 32),
        ("intermediate_size", 32, 64),
        ("max_position_embeddings", 12, 512),
        ("type_vocab_size", 2, 3),
        ("vocab_size", 29, 30),
    ] {
        fs::write(&path, text.replace(&format!("\"{key}\": {right}"), &format!("\"{key}\": {wrong}")))
            .unwrap();
        let options = Options { config: Some(path.clone()), ..Options::default() };
        let message = error(Framework::TensorFlow, &sample("tiny"), &options);
        let expected =
            format!("{key}: {wrong}, the tensors of {}.index have {right}", sample("tiny").display());
        assert!(message.starts_with(&path.display().to_string()) && message.contains(&expected), "{message}");
    }
    let vocab = dir.path().join("vocab.txt");
    let words = fs::read_to_string(sample("twin/vocab.txt")).unwrap();
    fs::write(&vocab, words + "more\n").unwrap();
    let message = error(Framework::PyTorch, &sample("zip.bin"), &Options { vocab: Some(vocab), ..options() });
    assert!(message.contains("has 30 tokens, the model 29"), "{message}");
}

#[test]
fn paths_that_name_no_checkpoint_get_a_remedy() {
    let (dir, prefix) = bundle();
    let none = Options::default();
    let tensorflow = |path: &Path| error(Framework::TensorFlow, path, &none);
    let instead = format!("name {} instead", prefix.display());
    assert!(tensorflow(&prefix.with_extension("data-00000-of-00002")).contains(&instead));
    assert!(tensorflow(&dir.path().join("none/at")).contains("before .index"));
    fs::remove_file(dir.path().join("tiny.data-00001-of-00002")).unwrap();
    assert!(tensorflow(&prefix).contains("tiny.data-00001-of-00002: cannot read"));
    let pytorch = |path: &Path| error(Framework::PyTorch, path, &none);
    assert!(pytorch(dir.path()).contains("take launcher import tf-checkpoint"), "{}", pytorch(dir.path()));
    assert!(pytorch(&prefix.with_extension("index")).contains("neither a zip archive nor"));
    assert!(pytorch(&dir.path().join("none")).contains("none: cannot read"));
}

#[test]
fn damaged_data_are_named() {
    let (dir, prefix) = bundle();
    let data = dir.path().join("tiny.data-00000-of-00002");
    let whole = fs::read(&data).unwrap();
    let tensorflow = || error(Framework::TensorFlow, &prefix, &options());
    let mut changed = whole.clone();
    changed[10] ^= 1;
    fs::write(&data, changed).unwrap();
    let message = tensorflow();
    assert!(message.contains("of-00002: bert/embeddings/LayerNorm/beta: damaged: checksum "), "{message}");
    fs::write(&data, &whole[..whole.len() / 3]).unwrap();
    assert!(tensorflow().contains("fetch it again"), "{}", tensorflow());

    let path = dir.path().join("zip.bin");
    let whole = fs::read(sample("zip.bin")).unwrap();
    // the pooler's weights stand in the archive as they are; find them and change one
    let twin = twin();
    let pooler: &[u8] = bytemuck::cast_slice(&twin.weights[twin.table.pooler.weight.clone()]);
    let at = whole.windows(pooler.len()).position(|window| window == pooler).unwrap();
    let mut changed = whole.clone();
    changed[at] ^= 1;
    fs::write(&path, changed).unwrap();
    let message = error(Framework::PyTorch, &path, &options());
    assert!(message.contains("bert.pooler.dense.weight: damaged: checksum"), "{message}");
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    assert!(error(Framework::PyTorch, &path, &options()).contains("not a whole zip archive"));
}

#[test]
fn a_file_that_is_cut_short_anywhere_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cut.bin");
    for name in ["zip.bin", "legacy.bin"] {
        let whole = fs::read(sample(name)).unwrap();
        for length in (0..whole.len()).step_by(whole.len() / 60) {
            fs::write(&path, &whole[..length]).unwrap();
            error(Framework::PyTorch, &path, &options());
        }
    }
    let (_dir, prefix) = bundle();
    let whole = fs::read(sample("tiny.index")).unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 60) {
        fs::write(prefix.with_extension("index"), &whole[..length]).unwrap();
        error(Framework::TensorFlow, &prefix, &options());
    }
}

/// Bytes of a file and what they become.
fn mutations(length: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..length, any::<u8>()), 1..6)
}

fn mutated(whole: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for &(at, byte) in changes {
        bytes[at] = byte;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is changed, the answer is a model or a line.
    #[test]
    fn changed_files_never_panic(
        zip in mutations(37_000),
        legacy in mutations(6_000),
        index in mutations(3_500),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("changed.bin");
        for (name, changes) in [("zip.bin", &zip), ("legacy.bin", &legacy)] {
            fs::write(&path, mutated(&fs::read(sample(name)).unwrap(), changes)).unwrap();
            if let Err(e) = read(Framework::PyTorch, &path, &options()) {
                prop_assert!(!e.to_string().contains('\n'), "{}", e);
            }
        }
        let (_dir, prefix) = bundle();
        let changed = mutated(&fs::read(sample("tiny-snappy.index")).unwrap(), &index);
        fs::write(prefix.with_extension("index"), changed).unwrap();
        // every byte of a table's blocks is under a checksum
        if let Err(e) = read(Framework::TensorFlow, &prefix, &options()) {
            prop_assert!(!e.to_string().contains('\n'), "{}", e);
        }
    }
}
