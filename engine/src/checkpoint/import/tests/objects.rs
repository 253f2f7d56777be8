//! Checkpoints of TensorFlow 2's objects, written from the twin.

use super::super::sstable::masked;
use super::tables::{add, block, finish, number};
use super::*;

const VALUE: &str = "/.ATTRIBUTES/VARIABLE_VALUE";

/// A field of a message: a number or bytes.
fn field(tag: u64, value: u64) -> Vec<u8> {
    [number(tag << 3), number(value)].concat()
}

fn bytes_field(tag: u64, value: &[u8]) -> Vec<u8> {
    [number(tag << 3 | 2), number(value.len() as u64), value.to_vec()].concat()
}

/// Writes `(key, shape, elements)` as a bundle.
fn write(prefix: &Path, mut variables: Vec<(String, Vec<usize>, Vec<f32>)>) {
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut data, mut entries) = (Vec::new(), vec![(Vec::new(), field(1, 1))]);
    for (key, shape, elements) in &variables {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let dims: Vec<u8> = shape.iter().flat_map(|&n| bytes_field(2, &field(1, n as u64))).collect();
        let mut entry = [field(1, 1), bytes_field(2, &dims), field(4, data.len() as u64)].concat();
        entry.extend(field(5, bytes.len() as u64));
        entry.extend(number(6 << 3 | 5));
        entry.extend(masked(crc32c::crc32c(bytes)).to_le_bytes());
        entries.push((key.clone().into_bytes(), entry));
        data.extend_from_slice(bytes);
    }
    let entries: Vec<(usize, &[u8], &[u8])> =
        entries.iter().map(|(key, value)| (0, key.as_slice(), value.as_slice())).collect();
    let mut file = Vec::new();
    let handle = add(&mut file, &block(&entries), 0);
    fs::write(prefix.with_extension("index"), finish(file, &block(&[(0, b"~", &handle)]))).unwrap();
    fs::write(prefix.with_extension("data-00000-of-00001"), data).unwrap();
}

/// The official encoder's key and shape for one of our tensors, and whether the matrix is transposed.
fn object(name: &str, shape: &[usize]) -> Option<(String, Vec<usize>, bool)> {
    let (heads, size) = (2, 8);
    let below = |key: &str, shape: Vec<usize>, transposed| Some((key.to_owned(), shape, transposed));
    let same = shape.to_vec();
    let reversed: Vec<usize> = shape.iter().rev().copied().collect();
    match name.strip_prefix("bert.")? {
        "embeddings.word_embeddings.weight" => below("layer_with_weights-0/embeddings", same, false),
        "embeddings.position_embeddings.weight" => below("layer_with_weights-1/embeddings", same, false),
        "embeddings.token_type_embeddings.weight" => below("layer_with_weights-2/embeddings", same, false),
        "embeddings.LayerNorm.weight" => below("layer_with_weights-3/gamma", same, false),
        "embeddings.LayerNorm.bias" => below("layer_with_weights-3/beta", same, false),
        "pooler.dense.weight" => below("layer_with_weights-6/kernel", reversed, true),
        "pooler.dense.bias" => below("layer_with_weights-6/bias", same, false),
        rest => {
            let (layer, part) = rest.strip_prefix("encoder.layer.")?.split_once('.')?;
            let layer = layer.parse::<usize>().unwrap() + 4;
            let (part, last) = part.rsplit_once('.')?;
            let (part, shape, last) = match (part, last) {
                ("attention.self.query", "weight") => {
                    ("_attention_layer/_query_dense", vec![16, heads, size], "kernel")
                }
                ("attention.self.key", "weight") => {
                    ("_attention_layer/_key_dense", vec![16, heads, size], "kernel")
                }
                ("attention.self.value", "weight") => {
                    ("_attention_layer/_value_dense", vec![16, heads, size], "kernel")
                }
                ("attention.self.query", _) => ("_attention_layer/_query_dense", vec![heads, size], "bias"),
                ("attention.self.key", _) => ("_attention_layer/_key_dense", vec![heads, size], "bias"),
                ("attention.self.value", _) => ("_attention_layer/_value_dense", vec![heads, size], "bias"),
                ("attention.output.dense", "weight") => {
                    ("_attention_output_dense", vec![heads, size, 16], "kernel")
                }
                ("attention.output.dense", _) => ("_attention_output_dense", same, "bias"),
                ("attention.output.LayerNorm", "weight") => ("_attention_layer_norm", same, "gamma"),
                ("attention.output.LayerNorm", _) => ("_attention_layer_norm", same, "beta"),
                ("intermediate.dense", "weight") => ("_intermediate_dense", reversed, "kernel"),
                ("intermediate.dense", _) => ("_intermediate_dense", same, "bias"),
                ("output.dense", "weight") => ("_output_dense", reversed, "kernel"),
                ("output.dense", _) => ("_output_dense", same, "bias"),
                ("output.LayerNorm", "weight") => ("_output_layer_norm", same, "gamma"),
                _ => ("_output_layer_norm", same, "beta"),
            };
            Some((format!("layer_with_weights-{layer}/{part}/{last}"), shape, last == "kernel"))
        }
    }
}

/// The twin's encoder under TensorFlow 2's names.
fn variables(root: &str) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let twin = twin();
    let mut variables = Vec::new();
    for t in &twin.table.tensors {
        let Some((key, shape, transposed)) = object(&t.name, &t.shape) else { continue };
        let values = &twin.weights[t.range()];
        let values = match *t.shape.as_slice() {
            [outputs, inputs] if transposed => {
                (0..inputs * outputs).map(|i| values[i % outputs * inputs + i / outputs]).collect()
            }
            _ => values.to_vec(),
        };
        variables.push((format!("{root}{key}{VALUE}"), shape, values));
    }
    let slot = format!("{root}layer_with_weights-3/gamma/.OPTIMIZER_SLOT/optimizer/m{VALUE}");
    variables.push((slot, vec![16], vec![0.0; 16]));
    variables.push((format!("save_counter{VALUE}"), vec![], vec![0.0]));
    variables
}

#[test]
fn the_official_encoder_is_read_with_the_heads_that_its_shapes_tell() {
    let dir = TempDir::new().unwrap();
    let prefix = dir.path().join("bert_model");
    let twin = twin();
    for root in ["", "model/", "encoder/"] {
        write(&prefix, variables(root));
        let converted = read(Framework::TensorFlow, &prefix, &Options::default()).unwrap();
        assert_eq!((converted.model.heads, converted.heads_guessed, converted.state), (2, false, 2));
        let encoder = ..twin.table.transform.weight.start;
        assert_eq!(converted.weights[encoder], twin.weights[encoder], "{root}");
        assert_eq!(converted.missing.len(), 7, "{:?}", converted.missing);
        assert!(converted.missing.iter().all(|name| name.starts_with("cls.")), "{:?}", converted.missing);
    }
    let config = dir.path().join("config.json");
    let text = fs::read_to_string(sample("twin/config.json")).unwrap();
    fs::write(&config, text.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 4")).unwrap();
    let message = error(Framework::TensorFlow, &prefix, &Options::default());
    assert!(
        message.contains("num_attention_heads: 4, the tensors of") && message.contains("have 2"),
        "{message}"
    );
}

#[test]
fn other_objects_are_recognized_and_told_how_to_be_converted() {
    let dir = TempDir::new().unwrap();
    let prefix = dir.path().join("bert_model");
    write(&prefix, variables("layer_with_weights-0/"));
    let message = error(Framework::TensorFlow, &prefix, &Options::default());
    assert!(message.contains("TensorFlow 2's objects") && message.contains("import pytorch"), "{message}");
}
