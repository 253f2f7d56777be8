//! state.json: where training stands, and the checksums that tell a whole checkpoint from a damaged one.

use super::staging::{Digest, hex, read_small};
use crate::config::OptimizerKind;
use crate::data::LoaderState;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Name of the file in a checkpoint.
pub(super) const STATE: &str = "state.json";
/// Changes when an older program could misread a checkpoint.
const VERSION: u64 = 1;
/// The checksum's digits, as they stand while it is computed.
const NO_CHECKSUM: &str = "0000000000000000";
/// What follows the checksum's digits.
const ENDING: &[u8] = b"\"\n}\n";
/// state.json has about 1 KB.
const LIMIT: u64 = 1 << 20;

/// All of a run's state that is neither weights nor moments.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainState {
    /// Updates attempted so far.
    pub step: u64,
    /// Updates applied: the optimizer's bias correction counts these.
    pub updates: u64,
    /// Updates skipped because of a non-finite loss or gradient.
    pub skipped: u64,
    /// The last so many steps were skipped, one after another.
    #[serde(default)]
    pub skipped_in_a_row: u64,
    /// Sequences trained on.
    pub samples: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// The loader's next sequence.
    pub loader: LoaderState,
    /// The run's seed.
    pub seed: u64,
    /// Which optimizer the moments are of; none in a checkpoint of an older program.
    #[serde(default)]
    pub optimizer: Option<OptimizerKind>,
    /// Hash of the resolved configuration.
    pub config_hash: String,
    /// Hash of the data's manifest.
    pub data_hash: String,
    /// Best MLM accuracy of an evaluation so far.
    pub best_accuracy: Option<f64>,
    /// The step of that evaluation.
    pub best_step: Option<u64>,
    /// Whether the evaluation after this step is still to be done: a signal came first.
    #[serde(default)]
    pub eval_due: bool,
    /// Seconds spent in training, earlier processes of the run included.
    pub train_seconds: f64,
}

/// The content of state.json. Its last entry is the checksum of all bytes before and after the checksum's digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u64,
    tool: String,
    pub(super) state: TrainState,
    pub(super) files: BTreeMap<String, Digest>,
    xxh3: String,
}

impl Manifest {
    pub(super) fn new(state: &TrainState, files: BTreeMap<String, Digest>) -> Self {
        Self {
            version: VERSION,
            tool: format!("launcher {}", env!("CARGO_PKG_VERSION")),
            state: state.clone(),
            files,
            xxh3: NO_CHECKSUM.to_owned(),
        }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// A time or accuracy that is not a finite number, which JSON could not hold.
    pub(super) fn seal(&self) -> Result<Vec<u8>> {
        let state = &self.state;
        if !state.train_seconds.is_finite() || state.best_accuracy.is_some_and(|a| !a.is_finite()) {
            let (seconds, best) = (state.train_seconds, state.best_accuracy);
            return Err(Error::Training(format!(
                "no checkpoint of step {}: train_seconds {seconds} and best_accuracy {best:?} must be finite",
                state.step
            )));
        }
        let json = serde_json::to_vec_pretty(self);
        let mut bytes = json.map_err(|e| Error::Training(format!("cannot describe the checkpoint: {e}")))?;
        bytes.push(b'\n');
        let checksum = hex(xxh3_64(&bytes));
        let digits = bytes.len() - ENDING.len() - checksum.len()..bytes.len() - ENDING.len();
        bytes[digits].copy_from_slice(checksum.as_bytes());
        Ok(bytes)
    }

    /// Reads and checks the state.json of a checkpoint's folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE);
        Self::unseal(&path, read_small(&path, LIMIT)?)
    }

    /// Whether a checkpoint is whole as far as state.json tells, but of another version of the format.
    pub(super) fn is_of_another_version(folder: &Path) -> bool {
        let path = folder.join(STATE);
        let json = read_small(&path, LIMIT).and_then(|bytes| Self::json(&path, bytes));
        json.is_ok_and(|json| json["version"].as_u64() != Some(VERSION))
    }

    fn damaged(path: &Path, what: &str) -> Error {
        Error::file(path, format!("damaged: {what}; use another checkpoint"))
    }

    /// The file's content, if its checksum is right.
    fn json(path: &Path, mut bytes: Vec<u8>) -> Result<serde_json::Value> {
        let damaged = |what: &str| Self::damaged(path, what);
        let Some(start) = bytes.len().checked_sub(ENDING.len() + NO_CHECKSUM.len()) else {
            return Err(damaged(&format!("{} bytes are too few", bytes.len())));
        };
        let digits = start..start + NO_CHECKSUM.len();
        let written = bytes[digits.clone()].to_vec();
        bytes[digits].copy_from_slice(NO_CHECKSUM.as_bytes());
        let computed = hex(xxh3_64(&bytes));
        if !bytes.ends_with(ENDING) || computed.as_bytes() != written {
            let written = String::from_utf8_lossy(&written);
            return Err(damaged(&format!("checksum {computed}, its last line says {written:?}")));
        }
        serde_json::from_slice(&bytes).map_err(|e| damaged(&e.to_string()))
    }

    fn unseal(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let json = Self::json(path, bytes)?;
        let version = json["version"].as_u64();
        if version != Some(VERSION) {
            let found = version.map_or("none".to_owned(), |v| v.to_string());
            return Err(Error::file(
                path,
                format!("version: {found}, this program reads {VERSION}; use the program that wrote it"),
            ));
        }
        serde_json::from_value(json).map_err(|e| Self::damaged(path, &e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let state = TrainState {
            step: u64::MAX,
            seed: (1 << 60) + 1,
            best_accuracy: Some(0.1 + 0.2),
            train_seconds: 1.0 / 3.0,
            config_hash: "a\"b".into(),
            ..TrainState::default()
        };
        Manifest::new(&state, BTreeMap::from([("x".to_owned(), Digest::of(b"x"))]))
    }

    #[test]
    fn what_was_sealed_comes_back_exactly() {
        let written = manifest();
        let read = Manifest::unseal(Path::new("s"), written.seal().unwrap()).unwrap();
        assert_eq!(read, written);
    }

    #[test]
    fn every_single_changed_byte_and_every_cut_is_noticed() {
        let bytes = manifest().seal().unwrap();
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[i] ^= 1 << bit;
                assert!(Manifest::unseal(Path::new("s"), changed).is_err(), "byte {i} bit {bit}");
            }
            assert!(Manifest::unseal(Path::new("s"), bytes[..i].to_vec()).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let newer = Manifest { version: 2, ..manifest() };
        let error = Manifest::unseal(Path::new("s"), newer.seal().unwrap()).unwrap_err().to_string();
        assert!(error.contains("version: 2, this program reads 1"), "{error}");
    }

    #[test]
    fn a_number_that_json_cannot_hold_is_refused() {
        let mut bad = manifest();
        bad.state.train_seconds = f64::NAN;
        assert!(bad.seal().unwrap_err().to_string().contains("train_seconds NaN"));
    }
}
