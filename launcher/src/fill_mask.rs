//! `launcher fill-mask`: the most probable tokens at each [MASK] of a text.

use crate::args::FillMaskArgs;
use crate::device::{self, Work};
use crate::exit;
use crate::model::{Model, useless};
use anyhow::bail;
use engine::config::{Device, Precision};
use engine::data::tokenize::Tokenizer;
use engine::data::vocab::Vocab;
use engine::data::{Batch, Sequence};
use kernels::Backend;
use kernels::cuda;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Prints `top` tokens with their probabilities for each mask, and the text with each filled in.
pub fn run(args: &FillMaskArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    crate::start_threads(0)?;
    if !args.text.contains("[MASK]") {
        bail!("the text holds no [MASK]; write [MASK] where a token is to be predicted");
    }
    let model = Model::load(&args.model)?;
    let files = model.tokenizer()?;
    let said = format!("tokenizer: {}", files.describe());
    if files.inferred {
        exit::say(&said)
    } else {
        tracing::info!("{said}")
    }
    let vocab = files.vocab;
    let mut tokenizer = Tokenizer::new(&vocab, files.settings)?;
    let sequence = sequence(&args.text, &mut tokenizer, &vocab, model.config.max_positions)?;
    let batch = Batch::pack(std::slice::from_ref(&sequence), 0, model.config.max_positions as u32);
    let prediction = Prediction { model: &model, batch: &batch };
    let logits = device::run_on(args.device.wanted(), Precision::Auto, prediction)?;
    if logits.iter().any(|logit| !logit.is_finite()) {
        bail!(useless(&model, "what it answers at [MASK]"));
    }

    let masks = sequence.mlm_positions.len();
    for (number, (logits, &at)) in
        logits.chunks_exact(model.config.vocab_size).zip(&sequence.mlm_positions).enumerate()
    {
        if masks > 1 {
            writeln!(out, "[MASK] {} of {masks}", number + 1)?;
        }
        for (token, probability) in top(&logits[..vocab.len()], args.top) {
            let mut filled = sequence.tokens.clone();
            filled[at as usize] = token as u32;
            let text = tokenizer.decode(&filled[1..filled.len() - 1]);
            let name = vocab.token(token as u32).unwrap_or("[UNK]");
            writeln!(out, "{:7.2}%  {name:<16} {text}", 100.0 * probability)?;
        }
    }
    Ok(exit::DONE)
}

/// Prints a line for each text: the text, and the likeliest tokens at each of its masks. It computes on the CPU. What
/// cannot be answered, such as a text longer than the model takes, gets the reason in place of an answer.
///
/// # Errors
/// A model folder that cannot be read, or without a vocabulary; output that cannot be written.
pub fn answer_all(folder: &Path, texts: &[String], out: &mut dyn Write) -> anyhow::Result<()> {
    const SHOWN: usize = 3;
    let model = Model::load(folder)?;
    let files = model.tokenizer()?;
    let vocab = files.vocab;
    let mut tokenizer = Tokenizer::new(&vocab, files.settings)?;
    for text in texts {
        let answer = match brief_answers(&model, &vocab, &mut tokenizer, text, SHOWN) {
            Ok(answers) => answers.join("; "),
            Err(error) => error.to_string(),
        };
        writeln!(out, "  {text}  ->  {answer}")?;
    }
    Ok(())
}

/// The likeliest tokens of each mask and their probabilities, as one text a mask.
fn brief_answers(
    model: &Model,
    vocab: &Vocab,
    tokenizer: &mut Tokenizer,
    text: &str,
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let sequence = sequence(text, tokenizer, vocab, model.config.max_positions)?;
    let batch = Batch::pack(std::slice::from_ref(&sequence), 0, model.config.max_positions as u32);
    let logits = device::run_on(Device::Cpu, Precision::Auto, Prediction { model, batch: &batch })?;
    if logits.iter().any(|logit| !logit.is_finite()) {
        bail!(useless(model, "what it answers at [MASK]"));
    }
    let of_mask = |logits: &[f64]| {
        let likeliest = top(&logits[..vocab.len()], count).into_iter().map(|(token, probability)| {
            let name = vocab.token(token as u32).unwrap_or("[UNK]");
            format!("{name} {:.0} %", 100.0 * probability)
        });
        likeliest.collect::<Vec<_>>().join(", ")
    };
    Ok(logits.chunks_exact(model.config.vocab_size).map(of_mask).collect())
}

/// What is done on the device: the logits of every mask.
struct Prediction<'a> {
    model: &'a Model,
    batch: &'a Batch,
}

impl Work for Prediction<'_> {
    type Result = Vec<f64>;

    fn on<B: Backend<Acc = f32>>(self, backend: B, _: Option<Arc<cuda::Device>>) -> anyhow::Result<Vec<f64>> {
        Ok(self.model.on(backend)?.mlm_logits(self.batch)?)
    }
}

/// `[CLS] text [SEP]`, each mask a position to predict.
fn sequence(
    text: &str,
    tokenizer: &mut Tokenizer,
    vocab: &Vocab,
    longest: usize,
) -> anyhow::Result<Sequence> {
    let mut tokens = vec![vocab.cls];
    tokenizer.encode_with_specials(text, &mut tokens);
    tokens.push(vocab.sep);
    if tokens.len() > longest {
        let length = tokens.len();
        bail!(
            "the text has {length} tokens with [CLS] and [SEP], the model takes at most {longest}; shorten it"
        );
    }
    let masks = tokens.iter().enumerate().filter(|&(_, &token)| token == vocab.mask);
    let mlm_positions: Vec<u32> = masks.map(|(i, _)| i as u32).collect();
    Ok(Sequence {
        types: vec![0; tokens.len()],
        mlm_labels: vec![0; mlm_positions.len()],
        mlm_positions,
        nsp_label: None,
        tokens,
    })
}

/// The `k` largest logits' indices with their softmax, the largest first, the first of equal ones first.
fn top(logits: &[f64], k: usize) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.iter().take(k).map(|&i| (i, (logits[i] - largest).exp() / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_sorts_by_probability_and_keeps_the_order_of_equals() {
        let found = top(&[0.0, 2f64.ln(), 0.0, 1000f64.ln()], 3);
        assert_eq!(found.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 1, 0]);
        assert!((found[0].1 - 1000.0 / 1004.0).abs() < 1e-12);
        // no overflow, and no more than there are
        let huge = top(&[1e4, 1e4], 5);
        assert_eq!(huge, [(0, 0.5), (1, 0.5)]);
    }
}
