//! `launcher prepare`: text to shards.

use crate::args::PrepareArgs;
use crate::progress::PrepareBar;
use crate::{exit, format};
use engine::Error;
use engine::data::Manifest;
use engine::data::prepare::{self, Part, PrepareProgress};
use engine::data::shards::SplitManifest;
use std::io::Write;
use std::time::Instant;

/// Prepares all or a part, or merges parts, and prints what was made and how fast.
pub fn run(args: &PrepareArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    crate::start_threads(args.threads)?;
    let config = args.config();
    let bar = PrepareBar::new();
    let started = Instant::now();
    let show = |p: &PrepareProgress| bar.show(p);
    let whole = |manifest| Made::Whole(Box::new(manifest));
    let made = if !args.merge.is_empty() {
        prepare::merge(&args.merge, &args.out, &show).map(whole)
    } else {
        config.validate().map_err(as_option)?;
        // What is wrong with it, the preparation says, after what is wrong with the input.
        if let Ok(tokenization) = prepare::tokenization(&config) {
            exit::say(&tokenization.told);
        }
        match args.part {
            Some(part) => prepare::prepare_part(&config, part, &args.out, args.threads, &show)
                .map(|part| Made::Part(Box::new(part))),
            None => prepare::prepare(&config, &args.out, args.threads, &show).map(whole),
        }
    };
    bar.finish();
    let made = made.map_err(as_option)?;
    let seconds = started.elapsed().as_secs_f64();
    made.print(args, out)?;
    if !bar.has_begun() {
        writeln!(out, "it was there already, made in the same way")?;
        return Ok(exit::DONE);
    }
    let (bytes, what) = match args.merge.is_empty() {
        true => (made.whole().inputs.iter().map(|input| input.bytes).sum(), "input"),
        false => (made.shard_bytes(), "shards"),
    };
    let (size, rate) = (format::short(bytes as f64), bytes as f64 / seconds / 1e6);
    writeln!(out, "{size}B of {what} in {} ({rate:.1} MB/s)", format::duration(seconds))?;
    Ok(exit::DONE)
}

/// What was made.
enum Made {
    Whole(Box<Manifest>),
    Part(Box<Part>),
}

impl Made {
    fn whole(&self) -> &Manifest {
        match self {
            Self::Whole(manifest) => manifest,
            Self::Part(part) => part.whole(),
        }
    }

    /// Documents, and the training and evaluation splits.
    fn contents(&self) -> (u64, &SplitManifest, &SplitManifest) {
        match self {
            Self::Whole(manifest) => (manifest.documents, &manifest.train, &manifest.eval),
            Self::Part(part) => (part.documents(), part.train(), part.eval()),
        }
    }

    fn shard_bytes(&self) -> u64 {
        let (_, train, eval) = self.contents();
        train.shards.iter().chain(&eval.shards).map(|shard| shard.bytes).sum()
    }

    fn print(&self, args: &PrepareArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let dir = args.out.display();
        let (documents, train, eval) = self.contents();
        let [documents, sequences, tokens, held_out] =
            [documents, train.sequences + eval.sequences, train.tokens + eval.tokens, eval.sequences]
                .map(format::count);
        let name = match args.part {
            Some(part) => format!("part {} of {}: ", part.part, part.of),
            None => String::new(),
        };
        writeln!(
            out,
            "{dir}: {name}{documents} documents, {sequences} sequences ({held_out} held out), {tokens} tokens"
        )?;
        match self {
            Self::Whole(manifest) => print_remarks(manifest, out)?,
            Self::Part(part) => {
                let (line, warnings) = part.unknown_tokens();
                print_lines(line, warnings, out)?;
            }
        }
        if let Some(part) = args.part {
            writeln!(out, "when all {} are made: launcher prepare --merge DIR... --out DIR", part.of)?;
        }
        Ok(())
    }
}

/// What became of the input, the share of unknown tokens, and all that may be wrong with the data.
pub fn print_remarks(manifest: &Manifest, out: &mut dyn Write) -> anyhow::Result<()> {
    for line in manifest.remarks() {
        writeln!(out, "{line}")?;
    }
    print_lines(manifest.unknown_tokens(), manifest.warnings(), out)
}

fn print_lines(line: Option<String>, warnings: Vec<String>, out: &mut dyn Write) -> anyhow::Result<()> {
    line.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    warnings.iter().try_for_each(|line| writeln!(out, "warning: {line}"))?;
    Ok(())
}

/// Names the options instead of the configuration's keys.
fn as_option(error: Error) -> Error {
    match error {
        Error::Config { key, what } => {
            let name = key.strip_prefix("data.").unwrap_or(&key).strip_prefix("prepare.");
            let key = match name {
                Some("lowercase") => "--cased or --uncased".to_owned(),
                Some(name) => format!("--{}", name.replace('_', "-")),
                None => key.clone(),
            };
            Error::Config { key, what: with_options(&what) }
        }
        Error::File { path, what } => Error::File { path, what: with_options(&what) },
        other => other,
    }
}

/// `data.prepare.max_seq_length` becomes `--max-seq-length`.
fn with_options(text: &str) -> String {
    let text = text
        .replace("set data.prepare.lowercase = false", "give --cased")
        .replace("data.prepare.lowercase", "--cased");
    let mut parts = text.split("data.prepare.");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(part.len());
        result.push_str("--");
        result.push_str(&part[..end].replace('_', "-"));
        result.push_str(&part[end..]);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_options() {
        for key in ["prepare.max_seq_length", "data.prepare.max_seq_length"] {
            let error =
                as_option(Error::config(key, "512 is too much; set data.prepare.train_vocab, not a_b"));
            assert_eq!(error.to_string(), "--max-seq-length: 512 is too much; set --train-vocab, not a_b");
        }
        let error = Error::config("data.prepare.lowercase", "no; set data.prepare.lowercase = false");
        assert_eq!(as_option(error).to_string(), "--cased or --uncased: no; give --cased");
    }
}
