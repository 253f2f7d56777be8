//! A run folder: its checkpoints, its last measurements, its model.

use crate::format;
use crate::model::{self, CONFIG};
use anyhow::bail;
use engine::checkpoint::{self, hf};
use engine::config::Config;
use engine::error::During;
use engine::files::check_new;
use engine::verify::batches;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// The resolved configuration of a run.
const SETTINGS: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";

/// Whether training has written to this folder.
pub fn is_one(path: &Path) -> bool {
    path.join(SETTINGS).is_file() || path.join(METRICS).is_file() || path.join("checkpoints").is_dir()
}

/// Prints the run's state.
pub fn print(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{}: a run folder", path.display())?;
    let settings = path.join(SETTINGS);
    if settings.is_file() {
        let config = Config::load(Some(&settings), &[])?;
        let batch = match config.train.batch_tokens {
            0 => format!("{} sequences", config.train.batch_sequences),
            tokens => format!("{} tokens", format::count(tokens as u64)),
        };
        let (steps, seed) = (format::count(config.train.steps), config.train.seed);
        writeln!(
            out,
            "configuration: {steps} steps of {batch}, seed {seed}, data {}",
            config.data.dir.display()
        )?;
    }
    print_metrics(path, out)?;
    for (_, folder) in checkpoint::list(path)? {
        match checkpoint::read_state(&folder) {
            Ok(state) => {
                let trained = format::duration(state.train_seconds);
                writeln!(
                    out,
                    "checkpoint: {}, step {}, {trained} of training",
                    folder.display(),
                    state.step
                )?;
            }
            Err(error) => writeln!(out, "checkpoint: {error}")?,
        }
    }
    let folder = model::folder(path);
    if folder.join(CONFIG).is_file() {
        let imported = hf::import(&folder)?;
        writeln!(out, "model: {}", model::describe(&imported.model, imported.table.parameters()))?;
        writeln!(out, "its tensors: launcher inspect {}", folder.display())?;
    }
    Ok(())
}

/// Writes what the run's first steps train on and what its evaluations read to `file`.
pub fn write_batches(path: &Path, batches: u64, file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = path.join(SETTINGS);
    if !settings.is_file() {
        let path = path.display();
        bail!("{path}: holds no {SETTINGS}; --batches needs a run folder, give one");
    }
    check_new(file)?;
    let written = batches::write_batches(file, &Config::load(Some(&settings), &[])?, batches)?;
    let [train, tokens, eval] = [written.train_sequences, written.train_tokens, written.eval_sequences]
        .map(|n| format::count(n as u64));
    let (batches, file) = (format::count(batches), file.display());
    writeln!(
        out,
        "{file}: {batches} batches, {train} sequences, {tokens} tokens; {eval} sequences to evaluate on"
    )?;
    Ok(())
}

/// The last logged step and the last evaluation.
fn print_metrics(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let path = path.join(METRICS);
    if !path.is_file() {
        return Ok(());
    }
    let file = File::open(&path).during("cannot open", &path)?;
    let (mut trained, mut evaluated) = (None, None);
    for line in BufReader::new(file).lines() {
        let line = line.during("cannot read", &path)?;
        // the last line of a killed run may be torn
        let Ok(record) = serde_json::from_str::<Value>(&line) else { continue };
        if record.get("eval_loss").is_some() {
            evaluated = Some(record);
        } else {
            trained = Some(record);
        }
    }
    for (record, what) in [(trained, "last logged step"), (evaluated, "last evaluation")] {
        if let Some(Value::Object(fields)) = record {
            let shown: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name} {}", short(value))).collect();
            writeln!(out, "{what}: {}", shown.join(", "))?;
        }
    }
    Ok(())
}

fn short(value: &Value) -> String {
    match value.as_f64() {
        Some(x) if x != 0.0 && x.abs() < 1e-3 => format!("{x:.3e}"),
        Some(x) if !value.is_u64() => {
            format!("{:.5}", x).trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => value.to_string(),
    }
}
