//! The golden files and whole steps, against the reference and against the CPU.

use super::cuda;
use engine::verify::{self, Limits, VerifyLine};
use std::path::Path;

const FILES: [&str; 4] = ["tiny-erf", "odd-tanh", "head64-tanh", "fresh-erf"];

#[test]
fn every_golden_file_agrees_in_f32() {
    for name in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/{name}.safetensors"));
        let lines = verify::run(&cuda::<f32>, &path, Limits::F32).unwrap();
        assert_eq!(lines.len(), 8);
        for VerifyLine { what, worst, error, limit, .. } in &lines {
            println!("{name}: {what}: {error:.2e} of {limit:.0e} at {worst}");
            assert!(error <= limit, "{name}: {what}: {error:.2e} over {limit:.0e} at {worst}");
        }
    }
}
