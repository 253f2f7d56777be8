//! The part of a configuration that defines the weights a run ends with, for telling whether a run folder belongs
//! to another configuration.

use super::Config;
use sha2::{Digest, Sha256};

/// Keys that define the result: model, data, optimizer and schedule as a whole, and these of `train`. Where a run
/// lies, on what it runs, what it recomputes and how often it logs, evaluates and saves change no weight. `on_nonfinite`
/// decides whether a run goes on at all: one that stopped must be able to resume with `skip`.
const SECTIONS: [&str; 3] = ["model", "optimizer", "schedule"];
const TRAIN: [&str; 5] = ["seed", "steps", "batch_sequences", "batch_tokens", "accumulation"];
/// Keys that came after checkpoints had been written, and their defaults, which mean what was done before: these are left
/// out, so that those checkpoints keep their hash.
const LATER: &[(&str, &str)] =
    &[("data.prepare.alphabet_limit", "null"), ("data.prepare.whole_word_masking", "false")];

impl Config {
    /// SHA-256, in hexadecimal, of everything that defines the result of training: two configurations of one hash
    /// end with the same weights on the same data, wherever they run and whatever they log.
    pub fn hash(&self) -> String {
        let is_new = |key: &str, value: &str| LATER.contains(&(key, value));
        let defining = self.defining().into_iter().filter(|(key, value)| !is_new(key, value));
        let lines: Vec<String> = defining.map(|(key, value)| format!("{key} = {value}\n")).collect();
        Sha256::digest(lines.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first key that defines the result and differs, with this value and the other's.
    pub fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let mut pairs = self.defining().into_iter().zip(other.defining());
        let ((key, a), (_, b)) = pairs.find(|(a, b)| a.1 != b.1)?;
        Some((key, a, b))
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
