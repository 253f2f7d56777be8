//! The split of documents into training and evaluation.

use crate::config::PrepareConfig;
use crate::data::input::{RawDocument, Reader, document_text};
use crate::data::pipeline::Stop;
use crate::error::Result;
use kernels::philox::{splitmix64, step_key};

/// Separates the draws of the split from all others: "SPLIT".
const SPLIT_SEED: u64 = 0x53_504C_4954;

/// Which documents are held out: those whose draw is below the fraction, one of them changed if else one part would be
/// empty.
pub(super) struct HeldOut {
    seed: u64,
    fraction: f64,
    /// A document and where it goes.
    forced: Option<(u64, bool)>,
}

impl HeldOut {
    /// Reads documents until there is one for each part; to the end only where the draws leave one part empty.
    pub fn new(reader: &Reader<'_>, config: &PrepareConfig) -> Result<Self> {
        let mut rule = Self { seed: config.seed ^ SPLIT_SEED, fraction: config.eval_fraction, forced: None };
        if rule.fraction == 0.0 {
            return Ok(rule);
        }
        let mut with_text = 0u64;
        let (mut lowest, mut highest) = ((f64::INFINITY, 0), (f64::NEG_INFINITY, 0));
        let outcome = reader.read(&mut |piece| {
            let document = RawDocument::of(&piece, 0..piece.bytes.len());
            if !piece.first || document_text(&document, piece.bytes, reader.input)?.text.trim().is_empty() {
                return Ok(());
            }
            with_text += 1;
            let draw = (rule.draw(piece.document), piece.document);
            lowest = if draw.0 < lowest.0 { draw } else { lowest };
            highest = if draw.0 > highest.0 { draw } else { highest };
            if lowest.0 < rule.fraction && highest.0 >= rule.fraction { Err(Stop::Enough) } else { Ok(()) }
        });
        match outcome {
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Enough) => {}
            Ok(()) if highest.0 < rule.fraction => rule.forced = Some((highest.1, false)),
            Ok(()) if with_text > 1 => rule.forced = Some((lowest.1, true)),
            Ok(()) => {}
        }
        Ok(rule)
    }

    fn draw(&self, document: u64) -> f64 {
        (splitmix64(step_key(self.seed, document)) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    pub fn is_eval(&self, document: u64) -> bool {
        match self.forced {
            Some((forced, eval)) if forced == document => eval,
            _ => self.draw(document) < self.fraction,
        }
    }
}
