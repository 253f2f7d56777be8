//! The golden files in both precisions, and that `verify` can fail.

use engine::verify::{self, Limits, VerifyLine};
use kernels::Backend;
use kernels::cpu::Cpu;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const FILES: [&str; 4] = ["tiny-erf", "odd-tanh", "head64-tanh", "fresh-erf"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(format!("{name}.safetensors"))
}

fn assert_passed(lines: &[VerifyLine]) {
    assert_eq!(lines.len(), 8);
    for line in lines {
        let VerifyLine { what, worst, error, limit, .. } = line;
        assert!(line.passed(), "{what}: {error:.2e} over {limit:.0e} at {worst}");
    }
}

#[test]
fn every_golden_file_agrees_in_f64() {
    for name in FILES {
        assert_passed(&verify::run(&|| Ok(Cpu::<f64>::new()), &golden(name), Limits::F64).unwrap());
    }
}

#[test]
fn every_golden_file_agrees_in_f32() {
    for name in FILES {
        assert_passed(&verify::run(&|| Ok(Cpu::<f32>::new()), &golden(name), Limits::F32).unwrap());
    }
}

/// A golden file changed in one of its tensors' bytes or in its header.
struct Changed {
    header: Value,
    data: Vec<u8>,
}

impl Changed {
    fn new(name: &str) -> Self {
        let bytes = std::fs::read(golden(name)).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    /// Sets the first number of an f64 tensor.
    fn set(mut self, tensor: &str, value: f64) -> Self {
        let at = self.header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        self.data[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn config(mut self, key: &str, value: Value) -> Self {
        let text = &mut self.header["__metadata__"]["config"];
        let mut config: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        config[key] = value;
        *text = config.to_string().into();
        self
    }

    fn reshape(mut self, tensor: &str, shape: Value) -> Self {
        self.header[tensor]["shape"] = shape;
        self
    }

    /// Scales the numbers of an f64 tensor.
    fn scale(mut self, tensor: &str, by: impl Fn(usize) -> f64) -> Self {
        let range = &self.header[tensor]["data_offsets"];
        let [start, end] = [0, 1].map(|i| range[i].as_u64().unwrap() as usize);
        for (i, bytes) in self.data[start..end].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = (f64::from_le_bytes(*bytes) * by(i)).to_le_bytes();
        }
        self
    }

    fn verify(&self) -> engine::Result<Vec<VerifyLine>> {
        self.verify_on(&|| Ok(Cpu::<f64>::new()), Limits::F64)
    }

    fn verify_on<B: Backend>(
        &self,
        backend: &dyn Fn() -> kernels::Result<B>,
        limits: Limits,
    ) -> engine::Result<Vec<VerifyLine>> {
        let mut header = serde_json::to_vec(&self.header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("changed.safetensors");
        let bytes = [&(header.len() as u64).to_le_bytes(), &header[..], &self.data].concat();
        std::fs::write(&path, bytes).unwrap();
        verify::run(backend, &path, limits)
    }

    fn exceeded(&self) -> Vec<&'static str> {
        self.verify().unwrap().iter().filter(|l| !l.passed()).map(|l| l.what).collect()
    }

    fn error(&self) -> String {
        let error = self.verify().unwrap_err().to_string();
        assert!(error.contains("changed.safetensors: ") && !error.contains('\n'), "{error}");
        error
    }
}

#[test]
fn a_wrong_number_is_seen() {
    let layer = "grad.bert.encoder.layer.0";
    let gradient = |name: &str, value| Changed::new("tiny-erf").set(&format!("{layer}.{name}"), value);
    assert_eq!(gradient("intermediate.dense.weight", 0.5).exceeded(), ["gradients"]);
    // 0 in exact arithmetic, and therefore compared with the whole gradient: not with leniency
    assert_eq!(gradient("attention.self.key.bias", 1e-15).exceeded(), [""; 0]);
    assert_eq!(gradient("attention.self.key.bias", 1e-8).exceeded(), ["gradients"]);
    assert_eq!(Changed::new("tiny-erf").set("hidden.1", f64::NAN).exceeded(), ["hidden states"]);
    assert_eq!(Changed::new("tiny-erf").set("loss", 0.0).exceeded(), ["losses"]);
    assert_eq!(Changed::new("tiny-erf").set("lamb.lrs", 1e-9).exceeded(), ["LAMB losses"]);
}

/// bf16's limits, on a backend that is far within them: they see what is wrong with the reference.
#[test]
fn directions_and_lengths_of_gradients_are_seen() {
    let exceeded = |changed: Changed| {
        let lines = changed.verify_on(&|| Ok(Cpu::<f32>::new()), Limits::BF16).unwrap();
        assert_eq!(lines.len(), 7);
        lines.iter().filter(|l| !l.passed()).map(|l| l.what).collect::<Vec<_>>()
    };
    let (angle, length) = ("gradients: 1 - cosine", "gradients: norms");
    let tensor = "grad.bert.encoder.layer.0.intermediate.dense.weight";
    let scaled = |by: &dyn Fn(usize) -> f64| exceeded(Changed::new("tiny-erf").scale(tensor, by));
    for name in FILES {
        assert_eq!(exceeded(Changed::new(name)), [""; 0], "{name}");
    }
    assert_eq!(scaled(&|_| 1.009), [""; 0]);
    assert_eq!(scaled(&|_| 1.011), [length]);
    assert_eq!(scaled(&|_| 0.989), [length]);
    // elements off by this share in turn up and down: the angle's cosine is about 1 - share^2 / 2
    let turned = |share: f64| scaled(&|i| if i % 2 == 0 { 1.0 + share } else { 1.0 - share });
    assert!(!turned(0.03).contains(&angle));
    assert!(turned(0.06).contains(&angle));
    assert_eq!(scaled(&|_| -1.0), [angle]);
    assert_eq!(scaled(&|_| f64::NAN), [angle, length]);
    assert_eq!(scaled(&|_| 0.0), [angle, length]);
    // The gradient of a key's bias is 0 but for rounding, in the reference too: it has no direction.
    let bias = "grad.bert.encoder.layer.0.attention.self.key.bias";
    assert_eq!(exceeded(Changed::new("tiny-erf").scale(bias, |_| -3.0)), [""; 0]);
    assert_eq!(exceeded(Changed::new("tiny-erf").set(bias, 0.1)), [angle, length]);
}

#[test]
fn a_file_that_contradicts_itself_is_an_error() {
    for (key, value, said) in [
        ("num_hidden_layers", json!(1), "config says 1 layers"),
        ("num_hidden_layers", json!(1_000_000_000), "has no tensor"),
        ("num_attention_heads", json!(3), "over 3 heads"),
        ("intermediate_size", json!(1u64 << 50), "config says [1125899906842624, 32]"),
        ("max_position_embeddings", json!(u64::MAX), "config says [18446744073709551615, 32]"),
        ("layer_norm_eps", json!(-1.0), "layer_norm_eps is -1"),
        ("hidden_act", json!("relu"), "hidden_act is `relu`"),
    ] {
        let error = Changed::new("tiny-erf").config(key, value).error();
        assert!(error.contains(said), "{error}");
    }
    for (tensor, shape) in [
        ("hidden.1", json!([51, 32])),
        ("hidden.1", json!([32, 17, 3])),
        ("loss", json!([1, 1])),
        ("seq_relationship_logits", json!([2, 3])),
        ("grad.bert.pooler.dense.weight", json!([1024])),
        ("lamb.param.bert.pooler.dense.weight", json!([16, 64])),
        ("batch0.input_ids", json!([51])),
    ] {
        let error = Changed::new("tiny-erf").reshape(tensor, shape).error();
        assert!(error.contains(tensor) && error.contains("has shape"), "{error}");
    }
}

#[test]
fn a_cut_file_is_an_error() {
    let bytes = std::fs::read(golden("tiny-erf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.safetensors");
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = verify::run(&|| Ok(Cpu::<f64>::new()), &path, Limits::F64).unwrap_err().to_string();
        assert!(error.contains("changed.safetensors: not a safetensors file"), "{error}");
    }
}
