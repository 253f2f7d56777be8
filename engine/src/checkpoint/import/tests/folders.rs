//! What users name besides a file: folders, indices, one of several files; and what lies beside.

use super::*;
use crate::table::Tensor;
use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A folder with the twin's config.json and vocab.txt, and more files `(name, bytes)`.
fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for name in ["config.json", "vocab.txt"] {
        fs::copy(sample("twin").join(name), dir.path().join(name)).unwrap();
    }
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Tensors of the twin that are `chosen`, as safetensors under other names.
fn safetensors(chosen: impl Fn(&str) -> bool, rename: impl Fn(&str) -> String) -> Vec<u8> {
    let twin = twin();
    let tensors = twin.table.tensors.iter().filter(|t| chosen(&t.name));
    let views = tensors.map(|t: &Tensor| {
        let bytes = bytemuck::cast_slice(&twin.weights[t.range()]);
        (rename(&t.name), TensorView::new(Dtype::F32, t.shape.clone(), bytes).unwrap())
    });
    ::safetensors::serialize(views, None).unwrap()
}

fn all(rename: impl Fn(&str) -> String) -> Vec<u8> {
    safetensors(|_| true, rename)
}

/// The old layout of `torch.save`, each tensor with a storage of its own.
fn saved(chosen: impl Fn(&str) -> bool) -> Vec<u8> {
    let twin = twin();
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |n: usize| [b"J", &(n as i32).to_le_bytes()[..]].concat();
    let tuple = |values: &[usize]| {
        [b"(".to_vec(), values.iter().flat_map(|&n| int(n)).collect(), b"t".to_vec()].concat()
    };
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    file.extend([text("little_endian"), b"\x88s.\x80\x02}(".to_vec()].concat());
    let (mut keys, mut elements) = (b"\x80\x02](".to_vec(), Vec::new());
    for (i, t) in twin.table.tensors.iter().enumerate().filter(|(_, t)| chosen(&t.name)) {
        let (key, strides) =
            (text(&i.to_string()), if t.shape.len() == 2 { vec![t.shape[1], 1] } else { vec![1] });
        file.extend(
            [text(&t.name), b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(), text("storage")].concat(),
        );
        file.extend([b"ctorch\nFloatStorage\n".to_vec(), key.clone(), text("cpu"), int(t.len())].concat());
        file.extend(
            [b"NtQ".to_vec(), int(0), tuple(&t.shape), tuple(&strides), b"\x89NtR".to_vec()].concat(),
        );
        keys.extend(key);
        elements.extend((t.len() as i64).to_le_bytes());
        elements.extend_from_slice(bytemuck::cast_slice(&twin.weights[t.range()]));
    }
    [file, b"u.".to_vec(), keys, b"e.".to_vec(), elements].concat()
}

#[track_caller]
fn is_twin(path: &Path) -> Converted {
    let converted = read(Framework::PyTorch, path, &Options::default()).unwrap();
    assert_is_twin(&converted);
    converted
}

#[track_caller]
fn refused(path: &Path, expected: &str) {
    let message = error(Framework::PyTorch, path, &Options::default());
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_folder_is_taken_with_the_configuration_and_the_vocabulary_in_it() {
    let weights = fs::read(sample("zip.bin")).unwrap();
    let dir =
        folder(&[("pytorch_model.bin", weights), ("training_args.bin", vec![]), ("optimizer.pt", vec![])]);
    let converted = is_twin(dir.path());
    assert_eq!(converted.path, dir.path().join("pytorch_model.bin"));
    assert_eq!(converted.config, Some(dir.path().join("config.json")));
    assert_eq!(converted.vocab, Some(dir.path().join("vocab.txt")));
    assert!(!converted.heads_guessed);
    // the file's name does as well
    is_twin(&dir.path().join("pytorch_model.bin"));
    let out = dir.path().join("out");
    converted.export(&out).unwrap();
    assert!(out.join("vocab.txt").is_file());

    fs::write(dir.path().join("model.safetensors"), all(str::to_owned)).unwrap();
    refused(dir.path(), "holds model.safetensors and pytorch_model.bin; name one of them");
    is_twin(&dir.path().join("model.safetensors"));
    refused(&sample("twin/../nothing"), "cannot read");
    let empty = folder(&[]);
    refused(empty.path(), "is a folder without a .safetensors, .bin, .pt, .pth, .ckpt file");
}

#[test]
fn safetensors_have_wrapped_names_or_none_of_the_prefix() {
    for (name, rename) in [
        ("a.safetensors", (&|name: &str| format!("module.{name}")) as &dyn Fn(&str) -> String),
        ("b.safetensors", &|name| format!("model.{name}")),
        ("c.safetensors", &|name| format!("bert.{name}")),
        // told by its content
        ("d.ckpt", &|name| name.strip_prefix("bert.").unwrap_or(name).to_owned()),
    ] {
        is_twin(folder(&[(name, all(rename))]).path());
    }
    let twice = twin();
    let view = |t: &Tensor| {
        TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&twice.weights[t.range()])).unwrap()
    };
    let mut named: Vec<_> = twice.table.tensors.iter().map(|t| (t.name.clone(), view(t))).collect();
    let pooler = twice.table.find("bert.pooler.dense.bias").unwrap();
    named.push(("module.pooler.dense.bias".to_owned(), view(pooler)));
    let dir = folder(&[("model.safetensors", ::safetensors::serialize(named, None).unwrap())]);
    refused(dir.path(), "are the same tensor; remove one");
    let message = hf::import(dir.path()).unwrap_err().to_string();
    assert!(message.contains("are the same tensor; remove one"), "{message}");
}

fn first(name: &str) -> bool {
    name.starts_with("bert.encoder.layer.0.") || name.starts_with("cls.")
}

/// Two files with their index.
fn sharded(stem: &str, extension: &str, parts: [Vec<u8>; 2]) -> TempDir {
    let names = [1, 2].map(|number| format!("{stem}-{number:05}-of-00002.{extension}"));
    let file = |name: &str| Value::from(names[usize::from(!first(name))].clone());
    let map: serde_json::Map<_, _> =
        twin().table.tensors.iter().map(|t| (t.name.clone(), file(&t.name))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    let [a, b] = parts;
    folder(&[(&names[0], a), (&names[1], b), (&format!("{stem}.{extension}.index.json"), index.into_bytes())])
}

#[test]
fn weights_in_several_files_are_read_by_their_index() {
    let parts = || [safetensors(first, str::to_owned), safetensors(|name| !first(name), str::to_owned)];
    let dir = sharded("model", "safetensors", parts());
    is_twin(dir.path());
    is_twin(&dir.path().join("model.safetensors.index.json"));
    is_twin(&dir.path().join("model-00002-of-00002.safetensors"));
    let imported = hf::import(dir.path()).unwrap();
    assert_eq!((imported.weights, imported.missing), (twin().weights, vec![]));

    // without the index a file's name says that it is one of several
    fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    is_twin(dir.path());
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    refused(dir.path(), "model-00002-of-00002.safetensors: is missing");

    let pickles = [saved(first), saved(|name| !first(name))];
    let dir = sharded("pytorch_model", "bin", pickles);
    is_twin(dir.path());
    let message = hf::import(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("only pytorch_model.bin.index.json; ") && message.contains("import pytorch"),
        "{message}"
    );
}

#[test]
fn an_index_that_does_not_fit_is_an_error() {
    let [a, b] = [safetensors(first, str::to_owned), safetensors(|name| !first(name), str::to_owned)];
    let dir = sharded("model", "safetensors", [a, b.clone()]);
    let both = |expected: &str| {
        refused(dir.path(), expected);
        let message = hf::import(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), b).unwrap();
    both("model-00001-of-00002.safetensors: holds no ");
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "../config.json"}}"#).unwrap();
    both("weight_map.a: ../config.json, which does not lie beside it");
    fs::write(&index, "{}").unwrap();
    both("is no index of a model's files");
}

#[test]
fn a_folder_of_a_bundle_names_its_newest_checkpoint() {
    let (dir, prefix) = bundle();
    let read = || super::read(Framework::TensorFlow, dir.path(), &options());
    assert_is_twin(&read().unwrap());
    // what lies beside is used, Google's name first
    for (from, to) in [("config.json", "bert_config.json"), ("vocab.txt", "vocab.txt")] {
        fs::copy(sample("twin").join(from), dir.path().join(to)).unwrap();
    }
    let converted = super::read(Framework::TensorFlow, dir.path(), &Options::default()).unwrap();
    assert_is_twin(&converted);
    assert_eq!(converted.config, Some(dir.path().join("bert_config.json")));

    fs::copy(prefix.with_extension("index"), dir.path().join("older.index")).unwrap();
    let message = read().unwrap_err().to_string();
    assert!(message.contains("holds older and tiny; name one of them"), "{message}");
    let checkpoint = dir.path().join("checkpoint");
    fs::write(
        &checkpoint,
        "model_checkpoint_path: \"/elsewhere/tiny\"\nall_model_checkpoint_paths: \"older\"\n",
    )
    .unwrap();
    assert_is_twin(&read().unwrap());
    fs::write(&checkpoint, "model_checkpoint_path: \"gone\"\n").unwrap();
    let message = read().unwrap_err().to_string();
    assert!(message.contains("checkpoint: names gone, of which there is no .index file"), "{message}");
}

#[test]
fn heads_are_guessed_only_where_nothing_says_them() {
    let config = |hidden: usize| ModelConfig {
        layers: 1,
        hidden,
        heads: 1,
        intermediate: 4,
        max_positions: 8,
        vocab_size: 8,
        ..ModelConfig::default()
    };
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.safetensors");
    let write = |hidden| {
        let table = TensorTable::new(&config(hidden));
        let zeros = vec![0u8; 4 * table.len];
        let view = |t: &Tensor| TensorView::new(Dtype::F32, t.shape.clone(), &zeros[..4 * t.len()]).unwrap();
        let views = table.tensors.iter().map(|t| (t.name.clone(), view(t)));
        fs::write(&path, ::safetensors::serialize(views, None).unwrap()).unwrap();
    };
    write(128);
    let converted = read(Framework::PyTorch, &path, &Options::default()).unwrap();
    assert_eq!((converted.model.heads, converted.heads_guessed), (2, true));
    write(64);
    refused(&path, "hidden size 64 is less than that of any published BERT");
    write(96);
    refused(&path, "hidden size 96 is no multiple of 64");
}
