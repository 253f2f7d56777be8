//! A folder of shards: counts, lengths, and one sequence with its masks.

use super::histogram;
use crate::format;
use crate::prepare;
use crate::progress::BytesBar;
use engine::data::Sequence;
use engine::data::import::ImportSource;
use engine::data::masking::Masker;
use engine::data::shards::{Dataset, Manifest, SplitName};
use std::io::Write;
use std::path::Path;

/// Prints the manifest's numbers, and verifies every byte of the shards.
pub fn print(dir: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let manifest = Manifest::load(dir)?;
    writeln!(out, "{}: a folder of shards", dir.display())?;
    print_origin(&manifest, out)?;
    prepare::print_remarks(&manifest, out)?;
    for (split, name) in [(SplitName::Train, "train"), (SplitName::Eval, "eval")] {
        let data = Dataset::open(dir, split)?;
        let bar = BytesBar::new(data.bytes(), "verifying");
        let verified = data.verify(&|bytes| bar.advance(bytes));
        bar.finish();
        verified?;
        let counts = data.split();
        let documents = match manifest.source {
            None => format!(", {} documents", format::count(counts.documents)),
            Some(_) => String::new(),
        };
        writeln!(
            out,
            "\n{name}: {} sequences, {} tokens{documents}; checksums right, shards: {}",
            format::count(counts.sequences),
            format::count(counts.tokens),
            counts.shards.len()
        )?;
        if data.is_empty() {
            continue;
        }
        let mean = counts.tokens as f64 / counts.sequences as f64;
        writeln!(out, "tokens of a sequence, {mean:.1} on average:")?;
        histogram::print(&counts.lengths, counts.longest, out)?;
        print_sample(&data, out)?;
    }
    Ok(())
}

/// Where the shards came from, and how they were made.
fn print_origin(manifest: &Manifest, out: &mut dyn Write) -> anyhow::Result<()> {
    let options = &manifest.options;
    let bytes: u64 = manifest.inputs.iter().map(|input| input.bytes).sum();
    let (files, documents) = (format::count(manifest.inputs.len() as u64), format::count(manifest.documents));
    let documents =
        if manifest.source.is_none() { format!(", {documents} documents") } else { String::new() };
    writeln!(out, "from {files} files, {}B{documents}", format::short(bytes as f64))?;
    let hash: String = manifest.vocab_sha256.chars().take(16).collect();
    let entropy = manifest.unigram_entropy;
    writeln!(
        out,
        "vocabulary of {} tokens, sha256 {hash}…; unigram entropy {entropy:.3} nats",
        manifest.vocab_size
    )?;
    writeln!(out, "tokenizer: {}", manifest.tokenizer())?;
    if let Some(source) = &manifest.source {
        return print_source(manifest, source, out);
    }
    let pairs = if options.nsp { "sentence pairs" } else { "full sentences" };
    let masks = format!("{:?}", options.masking).to_lowercase();
    let masks = format!("{masks} masks{}", if options.whole_word_masking { " of whole words" } else { "" });
    writeln!(
        out,
        "{pairs} of at most {} tokens, {masks} of {}, each document used {} times, seed {}",
        options.max_seq_length, options.masked_lm_prob, options.dupe_factor, options.seed
    )?;
    Ok(())
}

/// Which other software's files the shards were imported from, and what was left out.
fn print_source(manifest: &Manifest, source: &ImportSource, out: &mut dyn Write) -> anyhow::Result<()> {
    let options = &manifest.options;
    let layouts: Vec<_> = source.layouts.iter().map(|(layout, files)| format!("{layout}: {files}")).collect();
    writeln!(
        out,
        "imported from {} files ({}): sentence pairs of at most {} tokens with at most {} masks each",
        source.format,
        layouts.join(", "),
        options.max_seq_length,
        options.max_predictions
    )?;
    for (kind, &count) in &source.skipped {
        writeln!(out, "left out, {kind}: {}", format::count(count))?;
    }
    Ok(())
}

/// The split's first sequence with the masks that an evaluation draws.
fn print_sample(data: &Dataset, out: &mut dyn Write) -> anyhow::Result<()> {
    let sequence = Masker::new(data).eval(&data.get(0)?, 0);
    let label = match sequence.nsp_label {
        Some(0) => ", B follows A",
        Some(_) => ", B is random",
        None => "",
    };
    writeln!(out, "first sequence, [what the model sees:what it must say]{label}:")?;
    writeln!(out, "  {}", shown(&sequence, |id| data.vocab().token(id).unwrap_or("[UNK]")))?;
    Ok(())
}

/// Tokens joined by spaces, pieces joined to what they continue; a token to predict as `[seen:right]`.
fn shown<'a>(sequence: &Sequence, token: impl Fn(u32) -> &'a str) -> String {
    let mut text = String::new();
    let mut masks = sequence.mlm_positions.iter().zip(&sequence.mlm_labels).peekable();
    for (position, &id) in sequence.tokens.iter().enumerate() {
        let seen = token(id);
        let (name, joined) = match masks.next_if(|(p, _)| **p as usize == position) {
            Some((_, &label)) => {
                // `[MASK]` in brackets of its own would be hard to read
                let seen = seen.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(seen);
                (format!("[{seen}:{}]", token(label)), false)
            }
            None => match seen.strip_prefix("##") {
                Some(rest) if !rest.is_empty() => (rest.to_owned(), true),
                _ => (seen.to_owned(), false),
            },
        };
        if position > 0 && !joined {
            text.push(' ');
        }
        text.push_str(&name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_shown_with_what_stood_there() {
        let names = ["[CLS]", "[SEP]", "[MASK]", "jump", "##ing", "fox"];
        let sequence = Sequence {
            tokens: vec![0, 3, 4, 2, 5, 5, 1],
            types: vec![0; 7],
            mlm_positions: vec![3, 5],
            mlm_labels: vec![4, 3],
            nsp_label: None,
        };
        assert_eq!(
            shown(&sequence, |id| names[id as usize]),
            "[CLS] jumping [MASK:##ing] fox [fox:jump] [SEP]"
        );
    }
}
