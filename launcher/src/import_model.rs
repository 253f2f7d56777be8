//! `launcher import tf-checkpoint` and `import pytorch`: other frameworks' checkpoints to Hugging Face folders.

use crate::args::{GeluForm, ImportModelArgs, PytorchArgs, TfCheckpointArgs, VocabRows};
use crate::{exit, format, model};
use engine::checkpoint::import::{self, Converted, Framework, Options, Padding};
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

/// Files of `torch.save`, or safetensors.
pub fn pytorch(args: &PytorchArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let converted = convert(Framework::PyTorch, &args.path, &args.model, args.gelu, out)?;
    let why = match (args.gelu, &converted.config) {
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
    crate::start_threads(0)?;
    import::check_target(&args.out)?;
    let gelu = gelu.map(|form| match form {
        GeluForm::Tanh => Gelu::Tanh,
        GeluForm::Erf => Gelu::Erf,
    });
    let options = Options {
        config: args.config.clone(),
        vocab: args.vocab.clone(),
        gelu,
        keep_padding: args.vocab_rows == VocabRows::Keep,
    };
    let converted = import::read(framework, path, &options)?;
    converted.export(&args.out)?;

    let checksums = match converted.has_checksums {
        true => ", checksums right",
        false => "; this layout has no checksums",
    };
    writeln!(out, "{}: {} tensors read{checksums}", converted.path.display(), converted.read)?;
    for (what, named, used) in
        [("configuration", &args.config, &converted.config), ("vocabulary", &args.vocab, &converted.vocab)]
    {
        if let (None, Some(found)) = (named, used) {
            writeln!(out, "{what}: {}, found beside it", found.display())?;
        }
    }
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
    if converted.heads_guessed {
        writeln!(
            out,
            "heads: {}, a guess of 64 elements each, as nothing says their number; if it is another, name the model's \
             configuration with --config",
            sizes.heads
        )?;
    }
    if let Some(Padding { tokens, rows, zeros, kept }) = converted.padding {
        let rows = if zeros { format!("{rows} rows of zeros") } else { format!("{rows} rows") };
        let what = match kept {
            true => "are padding and stay",
            false => "are padding and are left out (--vocab-rows keep keeps them)",
        };
        writeln!(out, "vocabulary: {tokens} tokens; {rows} behind them {what}")?;
    }
    let gelu = match sizes.gelu {
        Gelu::Tanh => "tanh",
        Gelu::Erf => "erf",
    };
    writeln!(out, "gelu: {gelu}, {why}")?;
    match &converted.tokenizer {
        Some(tokenizer) => writeln!(out, "tokenizer: {}", tokenizer.describe())?,
        None => writeln!(
            out,
            "no --vocab was given, and none lies beside the checkpoint: fill-mask needs {} beside the weights",
            model::VOCAB
        )?,
    }
    Ok(exit::DONE)
}
