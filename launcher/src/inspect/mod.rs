//! `launcher inspect`: says what a folder or file is and what it holds.

mod foreign;
mod histogram;
mod run_folder;
mod shards;
mod tensors;

use crate::args::InspectArgs;
use crate::model::{CONFIG, WEIGHTS};
use crate::{exit, format, model};
use anyhow::bail;
use engine::checkpoint::import::Framework;
use engine::checkpoint::{self, hf};
use engine::data::tokenize::TokenizerFiles;
use std::io::Write;
use std::path::Path;

/// Prints what the path is, then its content.
pub fn run(args: &InspectArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    crate::start_threads(0)?;
    let path = args.path.as_path();
    if let (Some(batches), Some(file)) = (args.batches, &args.out) {
        run_folder::write_batches(path, batches, file, out)?;
        return Ok(exit::DONE);
    }
    let has = |name: &str| path.join(name).is_file();
    if !path.exists() {
        bail!("{}: there is no such file or folder; check the path", path.display());
    } else if path.is_file() {
        file(path, out)?;
    } else if has("manifest.json") {
        shards::print(path, out)?;
    } else if has("state.json") {
        checkpoint(path, out)?;
    } else if has(CONFIG) || has(WEIGHTS) {
        writeln!(out, "{}: a model folder", path.display())?;
        model_folder(path, out)?;
    } else if run_folder::is_one(path) {
        run_folder::print(path, out)?;
    } else {
        bail!(
            "{}: holds none of manifest.json (shards), state.json (checkpoint), {CONFIG} (model) and config.toml (run); \
             name one of those folders, or a .safetensors file",
            path.display()
        );
    }
    Ok(exit::DONE)
}

fn file(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match path.file_name().and_then(|name| name.to_str()) {
        Some("manifest.json") => shards::print(folder, out),
        Some(name) if name.ends_with(".safetensors") => {
            writeln!(out, "{}: a safetensors file", path.display())?;
            tensors::print_table(path, out)
        }
        Some(name) if name.ends_with(".index") => foreign::print(Framework::TensorFlow, path, out),
        Some(name) if [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)) => {
            foreign::print(Framework::PyTorch, path, out)
        }
        _ => bail!(
            "{}: is no .safetensors, .index, .bin, .pt or manifest.json file; name one, or a folder",
            path.display()
        ),
    }
}

/// Sizes, what is missing or unknown, and the tensors.
fn model_folder(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let imported = hf::import(path)?;
    writeln!(out, "{}", model::describe(&imported.model, imported.table.parameters()))?;
    match TokenizerFiles::of_model(path) {
        Ok(Some(tokenizer)) => writeln!(out, "tokenizer: {}", tokenizer.describe())?,
        Ok(None) => {}
        Err(error) => writeln!(out, "tokenizer: {error}")?,
    }
    for (names, what) in [(&imported.missing, "missing"), (&imported.ignored, "not part of the model")] {
        if !names.is_empty() {
            writeln!(out, "{what}: {}", names.join(", "))?;
        }
    }
    for file in &imported.files {
        writeln!(out)?;
        if imported.files.len() > 1 {
            writeln!(out, "{}", file.display())?;
        }
        tensors::print_table(file, out)?;
    }
    Ok(())
}

fn checkpoint(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let state = checkpoint::read_state(path)?;
    writeln!(out, "{}: a checkpoint", path.display())?;
    let count = format::count;
    writeln!(
        out,
        "step {} ({} updates, {} skipped), {} sequences, {} tokens, {} of training",
        count(state.step),
        count(state.updates),
        count(state.skipped),
        count(state.samples),
        count(state.tokens),
        format::duration(state.train_seconds)
    )?;
    let (epoch, cursor) = (state.loader.epoch, count(state.loader.cursor));
    writeln!(out, "loader: epoch {epoch}, sequence {cursor}; seed {}", state.seed)?;
    if let Some(best) = state.best_accuracy {
        writeln!(out, "best MLM accuracy so far: {best:.4}")?;
    }
    writeln!(out, "configuration {}, data {}", state.config_hash, state.data_hash)?;
    let optimizer = path.join("optimizer.safetensors");
    for (prefix, what) in [("exp_avg.", "first moments"), ("exp_avg_sq.", "second moments")] {
        writeln!(out, "{what}: {}", tensors::summary(&optimizer, prefix)?)?;
    }
    model_folder(path, out)
}
