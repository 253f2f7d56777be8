//! The part of a configuration that defines the weights a run ends with, for telling whether processes, or a checkpoint and
//! a run folder, have the same.

use super::Config;
use sha2::{Digest, Sha256};

/// Keys that define the result: model, data, optimizer and schedule as a whole, and these of `train`. Where a run
/// lies, on what it runs, what it recomputes and how often it logs, evaluates and saves change no weight. `on_nonfinite`
/// decides whether a run goes on at all: one that stopped must be able to resume with `skip`.
const SECTIONS: [&str; 3] = ["model", "optimizer", "schedule"];
const TRAIN: [&str; 5] = ["seed", "steps", "batch_sequences", "batch_tokens", "accumulation"];
/// Keys of these sections that did not exist when the first checkpoints were written. At its default such a key is left
/// out of the hash, so that checkpoints written before it existed still belong to their configuration.
const ADDED_LATER: [&str; 9] = [
    "data.prepare.alphabet_limit",
    "data.prepare.whole_word_masking",
    "model.resize_vocab",
    "model.extend_positions",
    "data.prepare.text_field",
    "data.prepare.skip_bad",
    "data.prepare.lowercase",
    "data.prepare.strip_accents",
    "data.prepare.tokenize_chinese_chars",
];

impl Config {
    /// SHA-256, in hexadecimal, of everything that defines the result of training: two configurations of one hash
    /// end with the same weights on the same data, wherever they run and whatever they log.
    pub fn hash(&self) -> String {
        let defaults = Self::default().defining();
        let counts = |(own, default): &(&(String, String), &(String, String))| {
            own != default || !ADDED_LATER.contains(&own.0.as_str())
        };
        let own = self.defining();
        let lines: Vec<String> = own
            .iter()
            .zip(&defaults)
            .filter(counts)
            .map(|((key, value), _)| format!("{key} = {value}\n"))
            .collect();
        Sha256::digest(lines.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Defining keys and their values as JSON, always all and in the same order.
    fn defining(&self) -> Vec<(String, String)> {
        // a configuration holds numbers, texts and paths; a path that is not UTF-8 does not validate
        let json = serde_json::to_value(self).unwrap_or_default();
        let mut keys = Vec::new();
        for section in SECTIONS {
            push(&mut keys, section, &json[section]);
        }
        push(&mut keys, "data.prepare", &json["data"]["prepare"]);
        for key in TRAIN {
            keys.push((format!("train.{key}"), json["train"][key].to_string()));
        }
        keys
    }
}

fn push(keys: &mut Vec<(String, String)>, section: &str, json: &serde_json::Value) {
    let fields = json.as_object().into_iter().flatten();
    keys.extend(fields.map(|(name, value)| (format!("{section}.{name}"), value.to_string())));
}
