//! The golden files in both precisions, and that `verify` can fail.

use engine::verify::{self, Limits, VerifyLine};
use kernels::cpu::Cpu;
use std::path::{Path, PathBuf};

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
    for name in ["tiny-erf", "odd-tanh", "head64-tanh"] {
        assert_passed(&verify::run(&Cpu::<f64>::new, &golden(name), Limits::F64).unwrap());
    }
}

#[test]
fn every_golden_file_agrees_in_f32() {
    for name in ["tiny-erf", "odd-tanh", "head64-tanh"] {
        assert_passed(&verify::run(&Cpu::<f32>::new, &golden(name), Limits::F32).unwrap());
    }
}

/// One wrong bit high in one reference number is seen, and a cut-off file is an error that names it.
#[test]
fn a_changed_reference_fails_and_a_cut_one_is_an_error() {
    let mut bytes = std::fs::read(golden("tiny-erf")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let name = "grad.bert.encoder.layer.0.intermediate.dense.weight";
    let at = 8 + header + metadata.info(name).unwrap().data_offsets.0;
    bytes[at + 7] ^= 0x40;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let lines = verify::run(&Cpu::<f64>::new, &path, Limits::F64).unwrap();
    let failed: Vec<_> = lines.iter().filter(|l| !l.passed()).map(|l| l.what).collect();
    assert_eq!(failed, ["gradients"]);

    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = verify::run(&Cpu::<f64>::new, &path, Limits::F64).unwrap_err().to_string();
    assert!(error.contains("changed.safetensors"), "{error}");
}
