//! `launcher prepare`: text to shards.

use crate::args::PrepareArgs;
use crate::progress::PrepareBar;
use crate::{exit, format};
use engine::Error;
use engine::data::prepare;
use std::io::Write;
use std::time::Instant;

/// Prepares, and prints what was made and how fast.
pub fn run(args: &PrepareArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = args.config();
    config.validate().map_err(as_option)?;
    let bar = PrepareBar::new();
    let started = Instant::now();
    let result = prepare::prepare(&config, &args.out, args.threads, &|p| bar.show(p));
    bar.finish();
    let manifest = result.map_err(as_option)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(exit::DONE)
}

/// Names the options instead of the configuration's keys.
fn as_option(error: Error) -> Error {
    match error {
        Error::Config { key, what } => Error::Config { key: with_options(&key), what: with_options(&what) },
        other => other,
    }
}

/// `data.prepare.max_seq_length` becomes `--max-seq-length`.
fn with_options(text: &str) -> String {
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
        let shown = with_options("data.prepare.max_seq_length: 512, or data.prepare.nsp = false, not a_b");
        assert_eq!(shown, "--max-seq-length: 512, or --nsp = false, not a_b");
    }
}
