//! The part of a configuration that defines the weights a run ends with, for telling whether a run folder belongs
//! to another configuration.

use super::Config;
use sha2::{Digest, Sha256};

/// Keys that define the result: model, data, optimizer and schedule as a whole, and these of `train`. Where a run
/// lies, on what it runs, what it recomputes and how often it logs, evaluates and saves change no weight. `on_nonfinite`
/// decides whether a run goes on at all: one that stopped must be able to resume with `skip`.
const SECTIONS: [&str; 3] = ["model", "optimizer", "schedule"];
const TRAIN: [&str; 5] = ["seed", "steps", "batch_sequences", "batch_tokens", "accumulation"];

impl Config {
    /// SHA-256, in hexadecimal, of everything that defines the result of training: two configurations of one hash
    /// end with the same weights on the same data, wherever they run and whatever they log.
    pub fn hash(&self) -> String {
        let lines: Vec<String> =
            self.defining().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        Sha256::digest(lines.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first key that defines the result and differs, with this value and the other's.
    pub fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let (ours, theirs) = (self.defining(), other.defining());
        let value = |keys: &[(String, String)], key: &str| {
            keys.iter().find(|(k, _)| k == key).map_or("null".to_owned(), |(_, value)| value.clone())
        };
        let mut keys = ours.iter().chain(&theirs).map(|(key, _)| key);
        let key = keys.find(|key| value(&ours, key) != value(&theirs, key))?;
        Some((key.clone(), value(&ours, key), value(&theirs, key)))
    }

    /// Defining keys and their values as JSON, always in the same order. Optional keys of later versions are there where
    /// they are given, so that a configuration without them keeps its hash.
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
