//! What a configuration must fulfil before anything is done with it.

use super::{
    Config, DataConfig, Masking, ModelConfig, OptimizerConfig, PrepareConfig, RanksConfig, Recipe,
    ScheduleConfig, ScheduleKind, Split, TrainConfig,
};
use crate::{Error, Result};
use std::ops::RangeInclusive;
use std::path::Path;

/// The dropout generator counts heads in 16 bits ([`kernels::philox`]).
const MAX_HEADS: usize = (1 << 16) - 1;
/// The dropout generator counts blocks of 64 keys in 14 bits.
const MAX_POSITIONS: usize = 1 << 20;
/// Shorter sequences hold no text to learn from.
const MIN_SEQ_LENGTH: usize = 8;
/// Shards keep positions in 16 bits.
const MAX_SEQ_LENGTH: usize = (1 << 16) - 1;
/// Token ids are kept in 32 bits; no vocabulary in use comes near this.
const MAX_VOCAB: usize = 1 << 24;
/// [PAD], [UNK], [CLS], [SEP], [MASK] and one token to learn.
const MIN_VOCAB: usize = 6;
/// Characters that a vocabulary may be limited to.
const ALPHABET: RangeInclusive<usize> = 1..=1_000_000;
/// Sizes of a vocabulary that is trained: fewer tokens cannot hold the letters.
const TRAINED_VOCAB: RangeInclusive<usize> = 100..=1_000_000;
/// Some text must remain to train on.
const MAX_EVAL_FRACTION: f64 = 0.999;
/// No machine holds more; keeps every size of the tensor table far from overflow.
const MAX_PARAMETERS: f64 = 1e12;
/// More sequences than any evaluation reads.
const MAX_EVAL_RECORDS: usize = 1 << 32;
/// More threads than any machine has cores are a mistake.
const MAX_THREADS: usize = 4096;

impl Config {
    /// Checks every value, and those that must agree with one another. What only the data can tell (the
    /// vocabulary's size, the longest sequence of shards that exist already) is checked where they are opened.
    ///
    /// # Errors
    /// [`Error::Config`] with the key, the number and the remedy.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.data.validate()?;
        self.train.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.ranks.validate()?;
        self.agree()
    }

    /// What one section demands of another.
    fn agree(&self) -> Result<()> {
        let (model, prepare, train) = (&self.model, &self.data.prepare, &self.train);
        let sequences = train.batch_sequences.max(train.batch_tokens);
        if sequences as u128 * model.max_positions as u128 > 1 << 32 {
            let key = if train.batch_tokens > 0 { "train.batch_tokens" } else { "train.batch_sequences" };
            let positions = model.max_positions;
            return wrong(
                key,
                format!("{sequences} times model.max_positions = {positions} must be at most 2^32"),
            );
        }
        if prepare.input.is_empty() {
            return Ok(());
        }
        let length = prepare.max_seq_length;
        if length > model.max_positions {
            let positions = model.max_positions;
            return wrong(
                "data.prepare.max_seq_length",
                format!(
                    "{length} is more than model.max_positions = {positions}; lower it or raise model.max_positions"
                ),
            );
        }
        if train.batch_tokens > 0 && train.batch_tokens < length {
            let tokens = train.batch_tokens;
            return wrong(
                "train.batch_tokens",
                format!(
                    "{tokens} is less than one sequence of data.prepare.max_seq_length = {length} tokens"
                ),
            );
        }
        if prepare.nsp && model.type_vocab < 2 {
            let types = model.type_vocab;
            return wrong(
                "model.type_vocab",
                format!("{types} is too few for sentence pairs; use 2, or data.prepare.nsp = false"),
            );
        }
        if train.target_accuracy.is_some() && prepare.eval_fraction == 0.0 && prepare.eval_input.is_none() {
            return wrong(
                "train.target_accuracy",
                match prepare.recipe {
                    Recipe::Standard => "needs held-out text; set data.prepare.eval_fraction above 0",
                    Recipe::Mlperf => "needs held-out text; give it as data.prepare.eval_input",
                },
            );
        }
        Ok(())
    }
}

impl ModelConfig {
    /// Checks the model's sizes. A `vocab_size` of 0 is allowed: it is taken from the data.
    ///
    /// # Errors
    /// [`Error::Config`] with the key under `model`.
    pub fn validate(&self) -> Result<()> {
        within("model.layers", self.layers, 1..=65_536)?;
        within("model.heads", self.heads, 1..=MAX_HEADS)?;
        within("model.hidden", self.hidden, 2..=1 << 24)?;
        within("model.intermediate", self.intermediate, 1..=1 << 26)?;
        within("model.max_positions", self.max_positions, 1..=MAX_POSITIONS)?;
        within("model.type_vocab", self.type_vocab, 1..=65_536)?;
        if self.vocab_size != 0 {
            within("model.vocab_size", self.vocab_size, MIN_VOCAB..=MAX_VOCAB)?;
        }
        self.check_head_size()?;
        let parameters = self.approximate_parameters();
        if parameters > MAX_PARAMETERS {
            return wrong(
                "model.hidden",
                format!("the model would have {parameters:.1e} parameters, 1e12 at most"),
            );
        }
        share("model.hidden_dropout", self.hidden_dropout)?;
        share("model.attention_dropout", self.attention_dropout)?;
        positive("model.layer_norm_eps", self.layer_norm_eps)?;
        positive("model.initializer_range", self.initializer_range)?;
        for (key, given) in [
            ("model.resize_vocab", self.resize_vocab.is_some()),
            ("model.extend_positions", self.extend_positions.is_some()),
        ] {
            if given && self.init_from.is_none() {
                return wrong(
                    key,
                    "changes a model that is there; name it with model.init_from, or leave it out",
                );
            }
        }
        self.init_from.as_deref().map_or(Ok(()), |path| path_ok("model.init_from", path))
    }

    /// Heads of equal and even size.
    fn check_head_size(&self) -> Result<()> {
        let (hidden, heads) = (self.hidden, self.heads);
        if hidden % (2 * heads) == 0 {
            return Ok(());
        }
        let why = if hidden % heads == 0 {
            format!("gives heads of odd size {} with model.heads = {heads}", hidden / heads)
        } else {
            format!("is not divisible by model.heads = {heads}")
        };
        let below = hidden / (2 * heads) * (2 * heads);
        let above = below + 2 * heads;
        let nearest = if below > 0 && hidden - below <= above - hidden { below } else { above };
        wrong("model.hidden", format!("{hidden} {why}; the nearest valid value is {nearest}"))
    }

    fn approximate_parameters(&self) -> f64 {
        let [h, f, layers, rows] = [
            self.hidden,
            self.intermediate,
            self.layers,
            self.vocab_size + self.max_positions + self.type_vocab,
        ]
        .map(|n| n as f64);
        layers * (4.0 * h * h + 2.0 * h * f) + rows * h
    }
}

impl DataConfig {
    fn validate(&self) -> Result<()> {
        path_ok("data.dir", &self.dir)?;
        self.prepare.check()?;
        if self.prepare.input.is_empty() { Ok(()) } else { self.prepare.check_input() }
    }
}

impl PrepareConfig {
    /// Checks the options of a preparation that is to be run: unlike [`Config::validate`] it demands an input.
    ///
    /// # Errors
    /// [`Error::Config`] with the key under `data.prepare`.
    pub fn validate(&self) -> Result<()> {
        self.check()?;
        self.check_input()
    }

    fn check(&self) -> Result<()> {
        within("data.prepare.max_seq_length", self.max_seq_length, MIN_SEQ_LENGTH..=MAX_SEQ_LENGTH)?;
        within("data.prepare.dupe_factor", self.dupe_factor, 1..=65_535)?;
        within("data.prepare.max_predictions", self.max_predictions, 1..=MAX_SEQ_LENGTH)?;
        let p = self.masked_lm_prob;
        if !(p > 0.0 && p <= 1.0) {
            return wrong(
                "data.prepare.masked_lm_prob",
                format!("{p} must be above 0 and at most 1, as 0.15"),
            );
        }
        let p = self.short_seq_prob;
        if !(0.0..=1.0).contains(&p) {
            return wrong("data.prepare.short_seq_prob", format!("{p} must lie between 0 and 1"));
        }
        let fraction = self.eval_fraction;
        if !(0.0..=MAX_EVAL_FRACTION).contains(&fraction) {
            return wrong(
                "data.prepare.eval_fraction",
                format!("{fraction} must lie between 0 and {MAX_EVAL_FRACTION}"),
            );
        }
        seed("data.prepare.seed", self.seed)?;
        if let Some(size) = self.train_vocab {
            within("data.prepare.train_vocab", size, TRAINED_VOCAB)?;
        }
        if let Some(limit) = self.alphabet_limit {
            within("data.prepare.alphabet_limit", limit, ALPHABET)?;
            if self.train_vocab.is_none() {
                return wrong(
                    "data.prepare.alphabet_limit",
                    format!(
                        "{limit} is for a vocabulary that is trained; give data.prepare.train_vocab, or leave this out"
                    ),
                );
            }
        }
        within("data.prepare.eval_records", self.eval_records, 1..=MAX_EVAL_RECORDS)?;
        if self.text_field.as_deref() == Some("") {
            return wrong("data.prepare.text_field", "is empty; name the field that holds the text");
        }
        self.check_recipe()
    }

    /// Refuses options that the recipe leaves no room for.
    pub(crate) fn check_recipe(&self) -> Result<()> {
        if self.recipe == Recipe::Standard {
            return match &self.eval_input {
                None => Ok(()),
                Some(_) => wrong(
                    "data.prepare.eval_input",
                    "is for data.prepare.recipe mlperf; hold out a part of the text with data.prepare.eval_fraction",
                ),
            };
        }
        let contradicts = |what: &str, remedy: &str| {
            format!("{what} contradicts data.prepare.recipe mlperf, {remedy}; leave this option out")
        };
        if self.split != Split::Lines {
            let why = "which reads one sentence a line and a blank line between documents";
            return wrong("data.prepare.split", contradicts("sentences", why));
        }
        if !self.nsp {
            return wrong("data.prepare.nsp", contradicts("false", "which makes sentence pairs"));
        }
        if self.text_field.is_some() || self.skip_bad {
            let key = if self.skip_bad { "skip_bad" } else { "text_field" };
            let why = "which reads plain text and no rows";
            return wrong(&format!("data.prepare.{key}"), contradicts("it", why));
        }
        if self.masking != Masking::Static {
            return wrong(
                "data.prepare.masking",
                contradicts("dynamic", "which stores the reference's masks"),
            );
        }
        if self.whole_word_masking {
            let why = "whose reference tool masks single tokens";
            return wrong("data.prepare.whole_word_masking", contradicts("true", why));
        }
        if self.eval_fraction != 0.0 {
            let why = "which holds out the text of data.prepare.eval_input and no other";
            return wrong("data.prepare.eval_fraction", contradicts(&self.eval_fraction.to_string(), why));
        }
        self.eval_input.as_deref().map_or(Ok(()), |path| path_ok("data.prepare.eval_input", path))
    }

    fn check_input(&self) -> Result<()> {
        if self.input.is_empty() {
            return wrong("data.prepare.input", "names no file or folder to prepare");
        }
        self.input.iter().try_for_each(|path| path_ok("data.prepare.input", path))?;
        match (&self.vocab, self.train_vocab) {
            (Some(path), None) => path_ok("data.prepare.vocab", path),
            (None, Some(_)) => Ok(()),
            (None, None) => wrong(
                "data.prepare.vocab",
                "is not given; name a vocab.txt, or set data.prepare.train_vocab to train one of that many tokens",
            ),
            (Some(_), Some(size)) => wrong(
                "data.prepare.train_vocab",
                format!("{size} is given beside data.prepare.vocab; keep one of the two"),
            ),
        }
    }
}

impl TrainConfig {
    fn validate(&self) -> Result<()> {
        path_ok("train.run", &self.run)?;
        within("train.steps", self.steps, 1..=1 << 40)?;
        seed("train.seed", self.seed)?;
        let parts = self.accumulation;
        match (self.batch_sequences, self.batch_tokens) {
            (0, 0) => return wrong("train.batch_sequences", "is 0; set it, or train.batch_tokens, above 0"),
            (0, tokens) => within("train.accumulation", parts, 1..=tokens)?,
            (sequences, 0) => {
                within("train.accumulation", parts, 1..=sequences)?;
                if sequences % parts != 0 {
                    let next = sequences.next_multiple_of(parts);
                    return wrong(
                        "train.batch_sequences",
                        format!(
                            "{sequences} is not divisible by train.accumulation = {parts}; the next multiple is {next}"
                        ),
                    );
                }
            }
            (sequences, tokens) => {
                return wrong(
                    "train.batch_tokens",
                    format!(
                        "{tokens} is given beside train.batch_sequences = {sequences}; set one of the two to 0"
                    ),
                );
            }
        }
        within("train.log_every", self.log_every, 1..=u64::MAX)?;
        within("train.keep_checkpoints", self.keep_checkpoints, 1..=usize::MAX)?;
        within("train.nonfinite_limit", self.nonfinite_limit, 1..=u64::MAX)?;
        within("train.threads", self.threads, 0..=MAX_THREADS)?;
        if let Some(text) = self.fill_mask.iter().find(|text| !text.contains("[MASK]")) {
            return wrong("train.fill_mask", format!("\"{text}\" holds no [MASK] for the model to answer"));
        }
        match self.target_accuracy {
            Some(a) if !(a > 0.0 && a <= 1.0) => {
                wrong("train.target_accuracy", format!("{a} must be above 0 and at most 1, as 0.72"))
            }
            _ => Ok(()),
        }
    }
}

impl OptimizerConfig {
    fn validate(&self) -> Result<()> {
        share("optimizer.beta1", self.beta1)?;
        share("optimizer.beta2", self.beta2)?;
        positive("optimizer.eps", self.eps)?;
        not_negative("optimizer.weight_decay", self.weight_decay)?;
        not_negative("optimizer.clip_norm", self.clip_norm)
    }
}

impl RanksConfig {
    /// A day is more than anyone waits.
    fn validate(&self) -> Result<()> {
        const DAY: u64 = 86_400;
        within("ranks.start_seconds", self.start_seconds, 1..=DAY)?;
        within("ranks.hang_seconds", self.hang_seconds, 2..=DAY)
    }
}

impl ScheduleConfig {
    /// A run that is shorter than its warmup is allowed (a trial of few steps); a decay that is, is not.
    fn validate(&self) -> Result<()> {
        not_negative("schedule.lr", self.lr)?;
        not_negative("schedule.end_lr", self.end_lr)?;
        positive("schedule.power", self.power)?;
        within("schedule.warmup_steps", self.warmup_steps, 0..=1 << 40)?;
        within("schedule.start_warmup_step", self.start_warmup_step, -(1 << 40)..=1 << 40)?;
        within("schedule.total_steps", self.total_steps, 0..=1 << 40)?;
        let end = self.start_warmup_step + self.warmup_steps;
        let decays = self.kind != ScheduleKind::Constant && self.total_steps > 0;
        if decays && end > self.total_steps as i64 {
            let total = self.total_steps;
            return wrong(
                "schedule.warmup_steps",
                format!(
                    "the warmup ends at step {end}, after the decay's end, schedule.total_steps = {total}"
                ),
            );
        }
        Ok(())
    }
}

fn wrong(key: &str, what: impl Into<String>) -> Result<()> {
    Err(Error::config(key, what))
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    if range.contains(&value) {
        Ok(())
    } else if value < *range.start() {
        wrong(key, format!("{value} is too small; the smallest valid value is {}", range.start()))
    } else {
        wrong(key, format!("{value} is too large; the largest valid value is {}", range.end()))
    }
}

/// In [0, 1).
fn share(key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        Ok(())
    } else {
        wrong(key, format!("{value} must be at least 0 and below 1"))
    }
}

fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        wrong(key, format!("{value} must be finite and above 0"))
    }
}

fn not_negative(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        wrong(key, format!("{value} must be finite and not negative"))
    }
}

/// TOML's integers are signed.
fn seed(key: &str, value: u64) -> Result<()> {
    within(key, value, 0..=i64::MAX as u64)
}

fn path_ok(key: &str, path: &Path) -> Result<()> {
    match path.to_str() {
        Some("") => wrong(key, "is an empty path"),
        Some(_) => Ok(()),
        None => wrong(key, format!("{} is not a path in UTF-8; rename it", path.display())),
    }
}
