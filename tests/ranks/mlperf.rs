//! A run of MLPerf as mpirun starts it.

use super::mpirun::{is_there, mpirun};
use crate::cli::Workplace;
use serde_json::Value;

/// Reached after a few steps.
const CONFIG: &str = r#"
[model]
layers = 1
hidden = 16
heads = 2
intermediate = 32
max_positions = 32

[data]
dir = "shards"

[data.prepare]
input = ["text.txt"]
vocab = "vocab.txt"
max_seq_length = 32
max_predictions = 5
eval_fraction = 0.2

[train]
steps = 400
batch_sequences = 16
eval_every = 80
target_accuracy = 0.2
threads = 1

[optimizer]
kind = "lamb"

[schedule]
lr = 1e-2
warmup_steps = 2
"#;

#[test]
fn the_log_is_the_first_ones() {
    if !is_there() {
        return;
    }
    let place = Workplace::with_corpus();
    place.write("mlperf.toml", CONFIG);
    let said = mpirun(&place, "-n 2 LAUNCHER mlperf --config mlperf.toml --device cpu --run runs/mpi");
    assert_eq!(said.stdout.matches("target accuracy 0.2 reached").count(), 1, "{}", said.stdout);
    said.done();
    let text = std::fs::read_to_string(place.path("runs/mpi/mllog.txt")).unwrap();
    let json = |line: &str| serde_json::from_str(line.strip_prefix(":::MLLOG ").unwrap()).unwrap();
    let log: Vec<Value> = text.lines().map(json).collect();
    for key in ["init_start", "init_stop", "run_start", "run_stop", "seed", "global_batch_size", "eval_samples"] {
        assert_eq!(log.iter().filter(|event| event["key"] == key).count(), 1, "{key}");
    }
    assert_eq!(log.last().unwrap()["metadata"]["status"], "success");
}
