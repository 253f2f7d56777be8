//! MLPerf Training's BERT benchmark (rulesets 4.0.0 and 5.0.0): presets, the closed division's conditions, what a log
//! says about a submission, and the score of a folder of logs.

mod cache;
mod closed;
pub mod presets;
pub mod rcp;
pub mod report;

pub use closed::deviation;
pub use presets::Preset;

use crate::config::Config;
use crate::data::shards::Manifest;
use crate::mllog::{MlLog, keys};
use crate::{Error, Result};
use std::path::Path;
use std::time::SystemTime;

/// Masked-token accuracy that ends a run.
pub const TARGET: f64 = 0.720;
/// Held-out sequences of one evaluation in the closed division.
pub const EVAL_SEQUENCES: u64 = 10_000;
/// Runs that make a result.
pub const RUNS: usize = 10;

/// The rules that a log claims to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// The reference's model, data and procedure; hyperparameters are free.
    Closed,
    /// Anything that is measured in the same way.
    Open,
}

impl Division {
    /// As a log writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// What a log says about a submission, besides the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// Who runs it.
    pub org: String,
    /// The system's name; the device's description if there is none.
    pub platform: Option<String>,
    /// `cloud`, `onprem`, `preview` or `research`.
    pub status: String,
    /// None for closed where the run fulfils its conditions, open elsewhere.
    pub division: Option<Division>,
    /// Whether the seed comes from the system's randomness, as the closed division demands.
    pub system_seed: bool,
}

/// What was done before a run's log could be opened.
pub(crate) struct Begun {
    division: Division,
    cleared: bool,
    cleared_at: SystemTime,
}

impl Submission {
    /// Puts the data out of the system's cache. From here on initialization counts.
    pub(crate) fn begin(&self, data: &Path, manifest: &Manifest) -> Result<Begun> {
        let cleared = cache::clear(data, manifest)?;
        Ok(Begun { division: Division::Open, cleared, cleared_at: SystemTime::now() })
    }

    /// Decides the division of a resolved configuration; the text is why a run that did not choose is in the open one.
    ///
    /// # Errors
    /// The closed division was asked for, and this run is not in it.
    pub(crate) fn decide(
        &self,
        begun: &mut Begun,
        config: &Config,
        manifest: &Manifest,
    ) -> Result<Option<String>> {
        let deviation = deviation(config, manifest, self.system_seed);
        begun.division = match (self.division, &deviation) {
            (Some(Division::Open), _) | (None, Some(_)) => Division::Open,
            (_, None) => Division::Closed,
            (Some(Division::Closed), Some(what)) => {
                let what = format!("closed is not true of this run: {what}; or log it as --division open");
                return Err(Error::config("--division", what));
            }
        };
        Ok(deviation.filter(|_| self.division.is_none()))
    }

    /// The first lines of a run's log: what was done at which time, and by whom. `device` stands for a platform without
    /// a name.
    pub(crate) fn log(&self, begun: &Begun, log: &mut MlLog, device: &str) -> Result<()> {
        log.at(begun.cleared_at).point(keys::CACHE_CLEAR, begun.cleared, &[])?;
        log.at(begun.cleared_at).start(keys::INIT_START, (), &[])?;
        let platform = self.platform.as_deref().unwrap_or(device);
        log.point(keys::SUBMISSION_BENCHMARK, "bert", &[])?;
        log.point(keys::SUBMISSION_DIVISION, begun.division.name(), &[])?;
        log.point(keys::SUBMISSION_ORG, self.org.as_str(), &[])?;
        log.point(keys::SUBMISSION_PLATFORM, platform, &[])?;
        log.point(keys::SUBMISSION_STATUS, self.status.as_str(), &[])
    }
}

impl Begun {
    /// Whether no byte of the data was left in the cache, as far as the system tells.
    pub(crate) fn cleared(&self) -> bool {
        self.cleared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PrepareConfig;

    fn submission(division: Option<Division>) -> Submission {
        let [org, status] = ["us", "research"].map(str::to_owned);
        Submission { org, platform: None, status, division, system_seed: true }
    }

    /// The division that a run is logged as, and what is said about it.
    fn decide(asked: Option<Division>, config: &Config) -> Result<(Division, Option<String>)> {
        let manifest = Manifest::new(&PrepareConfig::default(), Vec::new());
        let dir = tempfile::tempdir().unwrap();
        let submission = submission(asked);
        let mut begun = submission.begin(dir.path(), &manifest)?;
        let said = submission.decide(&mut begun, config, &manifest)?;
        Ok((begun.division, said))
    }

    #[test]
    fn closed_is_never_logged_of_a_run_that_is_open() {
        let base = Config::default();
        let (division, said) = decide(None, &base).unwrap();
        assert_eq!((division, said.as_deref()), (Division::Open, Some("model.layers is 12, expected 24")));
        assert_eq!(decide(Some(Division::Open), &base).unwrap(), (Division::Open, None));
        let error = decide(Some(Division::Closed), &base).unwrap_err().to_string();
        assert!(error.contains("model.layers is 12") && error.ends_with("--division open"), "{error}");
    }

    #[test]
    fn a_closed_run_is_closed_unless_open_is_asked_for() {
        let (config, manifest) = closed::tests::closed();
        let dir = tempfile::tempdir().unwrap();
        for (asked, logged) in
            [(None, "closed"), (Some(Division::Closed), "closed"), (Some(Division::Open), "open")]
        {
            let submission = submission(asked);
            let mut begun = submission.begin(dir.path(), &manifest).unwrap();
            assert_eq!(submission.decide(&mut begun, &config, &manifest).unwrap(), None);
            let mut log = MlLog::open(dir.path(), false).unwrap();
            submission.log(&begun, &mut log, "a device").unwrap();
            let text = std::fs::read_to_string(dir.path().join("mllog.txt")).unwrap();
            let value = |key: &str| {
                let line = text.lines().find(|l| l.contains(&format!("\"{key}\""))).unwrap();
                let json: serde_json::Value =
                    serde_json::from_str(line.strip_prefix(":::MLLOG ").unwrap()).unwrap();
                json["value"].clone()
            };
            assert_eq!(value(keys::SUBMISSION_DIVISION), logged);
            assert_eq!(value(keys::SUBMISSION_PLATFORM), "a device");
            assert_eq!(value(keys::CACHE_CLEAR), true, "no shard, nothing in the cache");
        }
    }
}
