//! `launcher import`: what other software made.

use crate::args::{ImportArgs, ImportDataArgs, ImportKind};
use crate::progress::PrepareBar;
use crate::{exit, format, import_model, prepare};
use engine::data::import::{self, ImportConfig, ImportFormat, Imported};
use std::io::Write;
use std::time::Instant;

/// Imports what the arguments name.
pub fn run(args: &ImportArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    match &args.kind {
        ImportKind::Tfrecord(args) => data(args, ImportFormat::Tfrecord, out),
        ImportKind::Hdf5(args) => data(args, ImportFormat::Hdf5, out),
        ImportKind::TfCheckpoint(args) => import_model::tf_checkpoint(args, out),
        ImportKind::Pytorch(args) => import_model::pytorch(args, out),
    }
}

/// Imports sequences, and prints what they were, what was left out and how fast.
fn data(args: &ImportDataArgs, format: ImportFormat, out: &mut dyn Write) -> anyhow::Result<u8> {
    crate::start_threads(args.threads)?;
    let config = ImportConfig {
        format,
        inputs: args.input.clone(),
        eval: args.eval.clone(),
        vocab: args.vocab.clone(),
        skip_bad: args.skip_bad,
    };
    let bar = PrepareBar::new();
    let started = Instant::now();
    let result = import::import(&config, &args.out, args.threads, &|p| bar.show(p));
    bar.finish();
    let imported = result?;
    print(&imported, args, started.elapsed().as_secs_f64(), out)?;
    Ok(exit::DONE)
}

fn print(
    imported: &Imported,
    args: &ImportDataArgs,
    seconds: f64,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let manifest = &imported.manifest;
    let (train, eval) = (&manifest.train, &manifest.eval);
    let [sequences, held_out, tokens] =
        [train.sequences, eval.sequences, train.tokens + eval.tokens].map(format::count);
    let dir = args.out.display();
    writeln!(out, "{dir}: {sequences} sequences to train on, {held_out} to evaluate on, {tokens} tokens")?;
    if let Some(source) = &manifest.source {
        let layouts = source.layouts.iter().map(|(layout, files)| format!("{layout}: {files}"));
        writeln!(out, "{} files by layout: {}", source.format, layouts.collect::<Vec<_>>().join(", "))?;
    }
    if !manifest.options.nsp {
        writeln!(out, "the sequences have no next-sentence labels: they train the masked-token head only")?;
    }
    writeln!(out, "tokenizer: {}", imported.tokenizer)?;
    prepare::print_remarks(manifest, out)?;
    for skipped in &imported.skipped {
        writeln!(
            out,
            "left out, {}: {}; first {}",
            skipped.kind,
            format::count(skipped.count),
            skipped.first
        )?;
    }
    if imported.existed {
        writeln!(out, "it was there already, imported from the same files")?;
        return Ok(());
    }
    if imported.kept > 0 {
        writeln!(out, "went on behind {} sequences of an earlier import", format::count(imported.kept))?;
    }
    let inputs = manifest.inputs.iter().chain(manifest.source.iter().flat_map(|s| &s.eval_inputs));
    let bytes = inputs.map(|input| input.bytes).sum::<u64>() as f64;
    write!(out, "{}B of input in {}", format::short(bytes), format::duration(seconds))?;
    match imported.kept {
        0 => writeln!(out, " ({:.1} MB/s)", bytes / seconds / 1e6)?,
        _ => writeln!(out)?,
    }
    Ok(())
}
