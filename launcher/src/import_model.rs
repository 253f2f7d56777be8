//! `launcher import tf-checkpoint` and `import pytorch`: other frameworks' checkpoints to Hugging Face folders.

use crate::args::{GeluForm, ImportModelArgs, PytorchArgs, TfCheckpointArgs};
use crate::{exit, format, model};
use engine::checkpoint::import::{self, Converted, Framework, Options};
use kernels::backend::Gelu;
use std::io::Write;
use std::path::Path;

/// A TensorFlow bundle.
pub fn tf_checkpoint(args: &TfCheckpointArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let converted = convert(Framework::TensorFlow, &args.path, &args.model, args.gelu, out)?;
    let why = match args.gelu {
        Some(_) => "as asked for",
        None => {
            "the form that Google's BERT computes, though its configuration says gelu; --gelu erf for the other"
        }
    };
    finish(&converted, &args.model, why, out)
}

/// A file of `torch.save`.
pub fn pytorch(args: &PytorchArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let converted = convert(Framework::PyTorch, &args.path, &args.model, args.gelu, out)?;
    let why = match (args.gelu, &args.model.config) {
        (Some(_), _) => "as asked for".to_owned(),
        (None, Some(config)) => format!("as {} says", config.display()),
        (None, None) => {
            "Hugging Face's default; --gelu tanh for weights that come from TensorFlow".to_owned()
        }
    };
    finish(&converted, &args.model, &why, out)
}

fn convert(
    framework: Framework,
    path: &Path,
    args: &ImportModelArgs,
    gelu: Option<GeluForm>,
    out: &mut dyn Write,
) -> anyhow::Result<Converted> {
    import::check_target(&args.out)?;
    let gelu = gelu.map(|form| match form {
        GeluForm::Tanh => Gelu::Tanh,
        GeluForm::Erf => Gelu::Erf,
    });
    let options = Options { config: args.config.clone(), vocab: args.vocab.clone(), gelu };
    let converted = import::read(framework, path, &options)?;
    converted.export(&args.out)?;

    let checksums = match converted.has_checksums {
        true => ", checksums right",
        false => "; this layout has no checksums",
    };
    writeln!(out, "{}: {} tensors read{checksums}", path.display(), converted.read)?;
    if converted.state > 0 {
        let count = format::count(converted.state as u64);
        writeln!(out, "left out: {count} tensors of optimizer, training loop or constants")?;
    }
    for (names, what) in [
        (&converted.missing, "missing, to be trained from the start"),
        (&converted.ignored, "not part of the model, left out"),
    ] {
        if !names.is_empty() {
            writeln!(out, "{what}: {}", listed(names))?;
        }
    }
    Ok(converted)
}

/// The first names of a list that may be long.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// Says what was written, and what was assumed.
fn finish(
    converted: &Converted,
    args: &ImportModelArgs,
    why: &str,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let sizes = &converted.model;
    writeln!(out, "{}: {}", args.out.display(), model::describe(sizes, converted.table.parameters()))?;
    if args.config.is_none() {
        writeln!(out, "heads: {}, of 64 each, as no --config was given", sizes.heads)?;
    }
    if converted.cut_rows > 0 {
        let (rows, kept) = (converted.cut_rows, sizes.vocab_size);
        writeln!(
            out,
            "vocabulary: {kept} tokens; {rows} rows of zeros behind them were padding and are left out"
        )?;
    }
    let gelu = match sizes.gelu {
        Gelu::Tanh => "tanh",
        Gelu::Erf => "erf",
    };
    writeln!(out, "gelu: {gelu}, {why}")?;
    if let Some(tokenizer) = &converted.tokenizer {
        writeln!(out, "tokenizer: {}", tokenizer.describe())?;
    }
    if args.vocab.is_none() {
        writeln!(out, "no --vocab was given: fill-mask needs {} beside the weights", model::VOCAB)?;
    }
    Ok(exit::DONE)
}
