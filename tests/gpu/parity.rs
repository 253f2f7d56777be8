//! The golden files and whole steps, against the reference and against the CPU.

use super::{cuda, device};
use crate::parity::steps;
use crate::training::model;
use engine::config::{ModelConfig, Recompute};
use engine::verify::{self, Limits, VerifyLine};
use half::bf16;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Options, Tiles};
use std::path::Path;

const FILES: [&str; 4] = ["tiny-erf", "odd-tanh", "head64-tanh", "fresh-erf"];

#[test]
fn every_golden_file_agrees_in_f32() {
    for name in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/{name}.safetensors"));
        let lines = verify::run(&|| Ok(cuda::<f32>()), &path, Limits::F32).unwrap();
        assert_eq!(lines.len(), 8);
        for VerifyLine { what, worst, error, limit, .. } in &lines {
            println!("{name}: {what}: {error:.2e} of {limit:.0e} at {worst}");
            assert!(error <= limit, "{name}: {what}: {error:.2e} over {limit:.0e} at {worst}");
        }
    }
}

#[test]
fn every_golden_file_agrees_in_bf16() {
    agree_in_bf16(&FILES, cuda);
}

/// With our own products and what they fuse, where sizes allow.
#[test]
fn golden_files_agree_with_our_own_products() {
    let tiles = Tiles { columns: 128, parts: 1 };
    let options = || Options { measure: false, own: Some(tiles), ..Options::default() };
    agree_in_bf16(&["tiny-erf", "head64-tanh"], || Cuda::new(device(), options()).unwrap());
}

fn agree_in_bf16(files: &[&str], make: impl Fn() -> Cuda<bf16>) {
    for name in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/{name}.safetensors"));
        let lines = verify::run(&|| Ok(make()), &path, Limits::BF16).unwrap();
        assert_eq!(lines.len(), 7);
        for VerifyLine { what, worst, error, limit, .. } in &lines {
            println!("{name}: {what}: {error:.2e} of {limit:.0e} at {worst}");
        }
        let exceeded: Vec<_> = lines.iter().filter(|line| !line.passed()).collect();
        assert!(exceeded.is_empty(), "{name}: {exceeded:?}");
    }
}

/// Steps with dropout on: the same masks, and losses that differ by rounding only.
#[test]
fn losses_over_steps_are_the_cpus() {
    follow_the_cpu(&model::config(), 8);
}

/// As above, with heads of the size that the kernels on tensor cores are for.
#[test]
fn losses_on_tensor_cores_are_the_cpus() {
    let config =
        ModelConfig { hidden: 128, heads: 2, intermediate: 192, initializer_range: 0.1, ..model::config() };
    follow_the_cpu(&config, 4);
}

fn follow_the_cpu(config: &ModelConfig, steps: usize) {
    let batches = steps::batches(37);
    let cpu = steps::losses(Cpu::<f32>::new(), config, Recompute::None, &batches, steps);
    let single = steps::losses(cuda::<f32>(), config, Recompute::None, &batches, steps);
    println!("f32: {:.2e} apart", steps::apart(&single, &cpu));
    assert!(steps::apart(&single, &cpu) < 1e-4, "{single:?} {cpu:?}");
    let [kept, recomputed] = [Recompute::None, Recompute::Layer]
        .map(|recompute| steps::losses(cuda::<bf16>(), config, recompute, &batches, steps));
    assert_eq!(kept, recomputed);
    println!("bf16: {:.2e} apart", steps::apart(&kept, &cpu));
    assert!(steps::apart(&kept, &cpu) < 2e-2, "{kept:?} {cpu:?}");
}
