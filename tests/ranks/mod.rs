//! Several processes that train one model: what they compute, what they leave, how they end when one of them fails.

mod bench;
mod faults;
mod gpus;
mod job;
mod mlperf;
mod mpirun;
mod mpirun_faults;
mod numbers;
mod refusals;
mod strangers;

use crate::cli::{Ran, Workplace};
use std::path::Path;

/// A small model on the corpus of the command-line tests, ten steps, dropout on.
const CONFIG: &str = r#"
[model]
layers = 2
hidden = 32
heads = 2
intermediate = 64
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
run = "run"
steps = 10
batch_sequences = 7
log_every = 1
eval_every = 21
checkpoint_every = 5
threads = 1

[schedule]
lr = 1e-2
warmup_steps = 2
"#;

fn place() -> Workplace {
    let place = Workplace::with_corpus();
    place.write("ranks.toml", CONFIG);
    place
        .line(
            "prepare --input text.txt --vocab vocab.txt --out shards --max-seq-length 32 --eval-fraction 0.2",
        )
        .done();
    place.write("ranks.toml", CONFIG.replace("input = [\"text.txt\"]\nvocab = \"vocab.txt\"\n", ""));
    place
}

/// Trains as `run` with these options.
fn train(place: &Workplace, run: &str, options: &str) -> Ran {
    place.line(&format!("--config ranks.toml --run {run} {options}"))
}

/// What is in metrics.jsonl under a name, of every line that has it.
fn metric(run: &Path, name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line[name].as_f64()).collect()
}

fn model(place: &Workplace, run: &str) -> Vec<u8> {
    std::fs::read(place.path(run).join("model/model.safetensors")).unwrap()
}
