//! `launcher mlperf` with `--device cuda`.

use super::emulated;
use crate::cli::mlperf::place;
use std::fs;

/// Kernels are loaded and algorithms chosen before the clock runs, on made-up tokens, and nothing of them stays. All take the
/// same time here: a product whose operands lie otherwise after the warm-up may have another algorithm, which sums otherwise.
#[test]
fn warming_up_changes_no_bit() {
    let place = place();
    let run =
        "--config mlperf.toml --device cuda --seed 5 --set train.steps=3 --set model.hidden_dropout=0.1";
    let even = [("EMULATOR_EVEN_TIMES", "1")];
    let Some(ran) = emulated(&place, &format!("mlperf {run} --run warm"), &even) else { return };
    assert!(ran.failed().contains("was not reached"));
    emulated(&place, &format!("{run} --run cold"), &even).unwrap().done();
    let weights = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(weights("warm") == weights("cold"));
    let losses = |run: &str| {
        let text = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["loss"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(losses("warm"), losses("cold"));
}
