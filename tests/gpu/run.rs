//! Training with `--device cuda`, as a user runs it.

use super::emulated;
use crate::cli::Workplace;
use serde_json::Value;
use std::fs;

const STILL: &str =
    "--set train.log_every=1 --set model.hidden_dropout=0.1 --set model.attention_dropout=0.1";

/// Losses by step.
fn losses(place: &Workplace, run: &str) -> Vec<f64> {
    let text = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter_map(|r| r["loss"].as_f64()).collect()
}

fn weights(place: &Workplace, run: &str) -> Vec<u8> {
    fs::read(place.path(run).join("model/model.safetensors")).unwrap()
}

/// Trains on the emulated GPU; false where there are no kernels.
#[track_caller]
fn train(place: &Workplace, run: &str, more: &str, environment: &[(&str, &str)]) -> bool {
    let line = format!("--config tiny.toml --device cuda --run {run} {STILL} {more}");
    emulated(place, &line, environment).map(|ran| ran.done()).is_some()
}

#[test]
fn training_follows_the_cpu() {
    let place = Workplace::with_corpus();
    place.line(&format!("--config tiny.toml --run cpu {STILL}")).done();
    let cpu = losses(&place, "cpu");
    assert_eq!(cpu.len(), 8);
    for (precision, band) in [("f32", 1e-4), ("bf16", 0.03)] {
        if !train(&place, precision, &format!("--set train.precision={precision}"), &[]) {
            return;
        }
        let gpu = losses(&place, precision);
        assert_eq!(gpu.len(), cpu.len());
        for (step, (gpu, cpu)) in gpu.iter().zip(&cpu).enumerate() {
            assert!(
                (gpu - cpu).abs() < band * cpu,
                "{precision}, step {}: {gpu}, on the CPU {cpu}",
                step + 1
            );
        }
        assert!(weights(&place, precision) != weights(&place, "cpu"), "other sums have other bits");
    }
}

#[test]
fn what_may_change_no_bit_changes_none() {
    let place = Workplace::with_corpus();
    if !train(&place, "plain", "", &[]) {
        return;
    }
    let plain = weights(&place, "plain");
    for (run, more, seed) in [
        ("again", "", "1"),
        // another order of threads, blocks and streams
        ("seed", "", "7"),
        ("graph", "--set train.graph=true", "1"),
        ("recompute", "--set train.recompute=layer", "1"),
    ] {
        train(&place, run, more, &[("EMULATOR_SEED", seed)]);
        assert!(weights(&place, run) == plain, "{run}: other weights");
    }
}

#[test]
fn a_run_goes_on_where_it_was() {
    let place = Workplace::with_corpus();
    if !train(&place, "whole", "", &[]) {
        return;
    }
    assert!(train(&place, "parts", "", &[]));
    // as if it had ended at step 4
    fs::remove_dir_all(place.path("parts/checkpoints/step-00000008")).unwrap();
    fs::remove_dir_all(place.path("parts/model")).unwrap();
    assert!(train(&place, "parts", "--resume", &[]));
    assert!(weights(&place, "parts") == weights(&place, "whole"));
}

#[test]
fn steps_are_timed_and_kernels_listed() {
    let place = Workplace::with_corpus();
    let line = "bench --config tiny.toml --device cuda --set model.vocab_size=100 --steps 2 --batch 3 --ceiling 64 --profile \
                --json";
    let Some(ran) = emulated(&place, line, &[]) else { return };
    let told: Value = serde_json::from_str(&ran.done()).unwrap();
    assert_eq!((told["batch"].as_u64(), told["tokens"].as_u64()), (Some(3), Some(96)));
    assert!(told["memory_bytes"].as_u64().unwrap() > 100_000);
    // Ops and what no kernel took add up to the step, and what is known of each op's work was counted.
    let profile = &told["profile"];
    let ops = profile["ops"].as_array().unwrap();
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"));
    let sum: f64 = ops.iter().map(|op| number(op, "ms")).sum();
    let step = number(&told, "ms");
    assert!((sum + number(profile, "in_no_kernel_ms") - step).abs() < 1e-6 * step, "{told:#}");
    let op = |name: &str| {
        let starts = |op: &&Value| op["op"].as_str().unwrap().starts_with(name);
        ops.iter().find(starts).unwrap_or_else(|| panic!("no {name} in {profile:#}"))
    };
    for name in ["attention_forward", "attention_backward", "linear_wgrad 96 x "] {
        assert!(number(op(name), "flops") > 0.0 && number(op(name), "bytes") > 0.0, "{name}");
    }
    assert!(number(op("clear"), "bytes") >= 4.0 * number(&told, "parameters"));
    for op in ops.iter().filter(|op| number(op, "bytes") > 0.0 && number(op, "ms") > 0.0) {
        assert!(number(op, "share_of_bound") > 0.0 && op["bound"].is_string(), "{op}");
    }
    let cpu = place
        .line("bench --config tiny.toml --set model.vocab_size=100 --steps 2 --batch 3 --lengths mlperf")
        .done();
    assert!(cpu.contains("sequences/s") && cpu.contains("CPU, 32 bits"), "{cpu}");
    let error = place.line("bench --config tiny.toml --profile --steps 1").failed();
    assert!(error.starts_with("--profile: only GPUs"), "{error}");
}
