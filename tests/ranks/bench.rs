//! Steps of several processes, timed: what `launcher bench` tells of them, and that `launcher plan` reads it.

use super::job::{mpirun_is_there, one_error};
use super::mpirun::mpirun;
use super::place;
use crate::gpu::emulated;
use serde_json::Value;

const LINE: &str = "bench --config ranks.toml --set model.vocab_size=100 --steps 3 --batch 4 --ceiling 64";

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value:#}"))
}

/// Gradients were on their way, some of that beside backward, and the sums are those of both processes.
#[track_caller]
fn check(told: &Value) {
    assert_eq!((told["gpus"].as_u64(), told["batch"].as_u64()), (Some(2), Some(8)), "{told:#}");
    let (rate, ms) = (number(told, "sequences_per_second"), number(told, "ms"));
    assert!((rate * ms / 8e3 - 1.0).abs() < 1e-9, "{told:#}");
    let together = &told["together"];
    let [way, after] = ["gradients_ms", "gradients_after_backward_ms"].map(|key| number(together, key));
    assert!(way > 0.0 && after >= 0.0 && number(together, "weights_ms") > 0.0, "{told:#}");
    let beside = number(together, "gradients_beside_backward");
    assert!((beside - (1.0 - after / way).clamp(0.0, 1.0)).abs() < 1e-9, "{told:#}");
    assert!(together["slowest_rank"].as_u64().unwrap() < 2, "{told:#}");
}

#[test]
fn steps_of_two_processes_are_timed_and_planned_with() {
    let place = place();
    let said = place.line(&format!("{LINE} --device cpu --processes 2 --json")).done();
    check(&serde_json::from_str(&said).unwrap());
    place.write("step.json", &said);
    let planned = place.line("plan --step step.json --config ranks.toml --fixed-ms 0.001 --gpus 2,4").done();
    assert!(planned.starts_with("one GPU: 0.00 ms a micro-batch"), "{planned}");

    let table = place.line(&format!("{LINE} --device cpu --processes 2")).done();
    for (name, text) in [
        ("a step", "4 sequences"),
        ("processes", "2 processes over TCP"),
        ("gradients", "% beside backward"),
        ("weights", "ms on their way"),
        ("slowest rank", "% over the mean"),
    ] {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{table}"));
        assert!(line.contains(text), "{line}");
    }
    let alone = place.line(&format!("{LINE} --device cpu")).done();
    assert!(!alone.contains("on their way"), "{alone}");
}

#[test]
fn what_mpirun_starts_is_timed_as_well() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let said = mpirun(&place, &format!("-n 2 LAUNCHER {LINE} --device cpu --json"));
    check(&serde_json::from_str(&said.done()).unwrap());
    let said = mpirun(&place, &format!("-n 1 LAUNCHER {LINE} : -n 1 LAUNCHER {LINE} --set model.hidden=64"));
    assert!(one_error(&said.stderr).contains("rank 1 on ") && said.code != Some(0), "{}", said.stderr);
}

/// The rows of a profile add up to the step, what travels after backward included.
#[test]
fn steps_of_two_gpus_are_profiled() {
    let place = place();
    let line = format!("{LINE} --gpus 2 --profile --json");
    let Some(ran) = emulated(&place, &line, &[("EMULATOR_DEVICES", "2")]) else { return };
    let told: Value = serde_json::from_str(&ran.done()).unwrap();
    check(&told);
    let profile = &told["profile"];
    let ops = profile["ops"].as_array().unwrap();
    let row = |name: &str| ops.iter().find(|op| op["op"] == name).unwrap_or_else(|| panic!("{profile:#}"));
    let together = &told["together"];
    for (op, key) in [
        ("gradients on their way after backward", "gradients_after_backward_ms"),
        ("weights on their way", "weights_ms"),
    ] {
        assert_eq!(number(row(op), "ms"), number(together, key));
    }
    let sum: f64 = ops.iter().map(|op| number(op, "ms")).sum();
    assert!((sum + number(profile, "in_no_kernel_ms") - number(&told, "ms")).abs() < 1e-6 * sum, "{told:#}");
}
