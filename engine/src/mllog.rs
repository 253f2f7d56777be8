//! `RUN/mllog.txt`: the events of a run in MLPerf's log format, one `:::MLLOG {json}` a line (mlcommons/logging,
//! mlperf_logging/mllog/mllog.py).

use crate::error::{During, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The keys of a BERT log, in the order in which a run writes most of them.
#[allow(missing_docs)]
pub mod keys {
    pub const CACHE_CLEAR: &str = "cache_clear";
    pub const INIT_START: &str = "init_start";
    pub const SUBMISSION_ORG: &str = "submission_org";
    pub const SUBMISSION_PLATFORM: &str = "submission_platform";
    pub const SUBMISSION_DIVISION: &str = "submission_division";
    pub const SUBMISSION_STATUS: &str = "submission_status";
    pub const SUBMISSION_BENCHMARK: &str = "submission_benchmark";
    pub const SEED: &str = "seed";
    pub const GLOBAL_BATCH_SIZE: &str = "global_batch_size";
    pub const GRADIENT_ACCUMULATION_STEPS: &str = "gradient_accumulation_steps";
    pub const OPT_BASE_LEARNING_RATE: &str = "opt_base_learning_rate";
    pub const OPT_LAMB_EPSILON: &str = "opt_lamb_epsilon";
    pub const OPT_LAMB_BETA_1: &str = "opt_lamb_beta_1";
    pub const OPT_LAMB_BETA_2: &str = "opt_lamb_beta_2";
    pub const OPT_LAMB_WEIGHT_DECAY_RATE: &str = "opt_lamb_weight_decay_rate";
    pub const OPT_LEARNING_RATE_TRAINING_STEPS: &str = "opt_learning_rate_training_steps";
    pub const OPT_LEARNING_RATE_WARMUP_STEPS: &str = "opt_learning_rate_warmup_steps";
    pub const NUM_WARMUP_STEPS: &str = "num_warmup_steps";
    pub const START_WARMUP_STEP: &str = "start_warmup_step";
    pub const INIT_STOP: &str = "init_stop";
    pub const RUN_START: &str = "run_start";
    pub const TRAIN_SAMPLES: &str = "train_samples";
    pub const EVAL_SAMPLES: &str = "eval_samples";
    pub const EPOCH_START: &str = "epoch_start";
    pub const EPOCH_STOP: &str = "epoch_stop";
    pub const BLOCK_START: &str = "block_start";
    pub const BLOCK_STOP: &str = "block_stop";
    pub const EVAL_START: &str = "eval_start";
    pub const EVAL_STOP: &str = "eval_stop";
    pub const EVAL_ACCURACY: &str = "eval_accuracy";
    pub const RUN_STOP: &str = "run_stop";
    /// Not demanded by any rule: throughput and loss on the way.
    pub const TRACKED_STATS: &str = "tracked_stats";

    /// Metadata: the epoch; in BERT's logs the sequences trained on.
    pub const EPOCH_NUM: &str = "epoch_num";
    /// Metadata of a block.
    pub const FIRST_EPOCH_NUM: &str = "first_epoch_num";
    /// Metadata of a block.
    pub const EPOCH_COUNT: &str = "epoch_count";
    /// Metadata of a block.
    pub const SAMPLES_COUNT: &str = "samples_count";
    /// Metadata of run_stop: [`SUCCESS`] or [`ABORTED`].
    pub const STATUS: &str = "status";
    /// The target was reached.
    pub const SUCCESS: &str = "success";
    /// It was not.
    pub const ABORTED: &str = "aborted";
}

#[derive(Serialize)]
struct Line<'a> {
    namespace: &'static str,
    time_ms: u64,
    event_type: &'static str,
    key: &'a str,
    value: Value,
    metadata: Map<String, Value>,
}

/// An open log. Each line is handed to the system as it is written.
#[derive(Debug)]
pub struct MlLog {
    file: File,
    path: PathBuf,
}

impl MlLog {
    /// Opens a run's log: anew, or, on resume, to append; a line torn by a kill is removed then.
    ///
    /// # Errors
    /// What the system answers.
    pub fn open(run: &Path, resume: bool) -> Result<Self> {
        fs::create_dir_all(run).during("cannot create", run)?;
        let path = run.join("mllog.txt");
        let mut options = OpenOptions::new();
        let file = if resume { options.append(true) } else { options.write(true).truncate(true) };
        let file = file.create(true).open(&path).during("cannot open", &path)?;
        if resume {
            let whole = whole_lines(&path)?;
            file.set_len(whole).during("cannot write", &path)?;
        }
        Ok(Self { file, path })
    }

    /// Lines of another time than now: of what was before the log could be opened, or is written when something else is
    /// known.
    pub fn at(&mut self, time: SystemTime) -> At<'_> {
        At { log: self, time }
    }

    /// The beginning of an interval, now.
    ///
    /// # Errors
    /// What the system answers, as on a full disk.
    #[track_caller]
    pub fn start(&mut self, key: &str, value: impl Into<Value>, metadata: &[(&str, Value)]) -> Result<()> {
        self.at(SystemTime::now()).start(key, value, metadata)
    }

    /// The end of an interval, now.
    ///
    /// # Errors
    /// What the system answers, as on a full disk.
    #[track_caller]
    pub fn end(&mut self, key: &str, value: impl Into<Value>, metadata: &[(&str, Value)]) -> Result<()> {
        self.at(SystemTime::now()).end(key, value, metadata)
    }

    /// A single fact, now.
    ///
    /// # Errors
    /// What the system answers, as on a full disk.
    #[track_caller]
    pub fn point(&mut self, key: &str, value: impl Into<Value>, metadata: &[(&str, Value)]) -> Result<()> {
        self.at(SystemTime::now()).point(key, value, metadata)
    }
}

/// A log and a time, at which what is written happened.
#[derive(Debug)]
pub struct At<'a> {
    log: &'a mut MlLog,
    time: SystemTime,
}

impl At<'_> {
    /// The beginning of an interval. Metadata gets the caller's file and line besides.
    ///
    /// # Errors
    /// What the system answers, as on a full disk.
    #[track_caller]
    pub fn start(self, key: &str, value: impl Into<Value>, metadata: &[(&str, Value)]) -> Result<()> {
        self.write("INTERVAL_START", key, value.into(), metadata)
    }

    /// The end of an interval.
    ///
    /// # Errors
    /// What the system answers, as on a full disk.
    #[track_caller]
    pub fn end(self, key: &str, value: impl Into<Value>, metadata: &[(&str, Value)]) -> Result<()> {
        self.write("INTERVAL_END", key, value.into(), metadata)
    }

    /// A single fact.
    ///
    /// # Errors
    /// What the system answers, as on a full disk.
    #[track_caller]
    pub fn point(self, key: &str, value: impl Into<Value>, metadata: &[(&str, Value)]) -> Result<()> {
        self.write("POINT_IN_TIME", key, value.into(), metadata)
    }

    #[track_caller]
    fn write(
        self,
        event_type: &'static str,
        key: &str,
        value: Value,
        metadata: &[(&str, Value)],
    ) -> Result<()> {
        let Self { log: MlLog { file, path }, time } = self;
        let time_ms = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let caller = Location::caller();
        let place = [("file", caller.file().into()), ("lineno", caller.line().into())];
        let metadata = place.iter().chain(metadata).map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let line = Line { namespace: "", time_ms, event_type, key, value, metadata };
        let json = serde_json::to_string(&line).map_err(std::io::Error::from);
        let line = format!(":::MLLOG {}\n", json.during("cannot write", path)?);
        file.write_all(line.as_bytes()).during("cannot write", path)
    }
}

/// Bytes up to the last end of line.
fn whole_lines(path: &Path) -> Result<u64> {
    let content = match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        other => other.during("cannot read", path)?,
    };
    Ok(content.iter().rposition(|&b| b == b'\n').map_or(0, |end| end as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    fn lines(run: &Path) -> Vec<Value> {
        let text = fs::read_to_string(run.join("mllog.txt")).unwrap();
        text.lines().map(|l| serde_json::from_str(l.strip_prefix(":::MLLOG ").unwrap()).unwrap()).collect()
    }

    #[test]
    fn a_line_has_what_the_checker_reads_and_the_callers_place() {
        let run = TempDir::new().unwrap();
        let mut log = MlLog::open(run.path(), false).unwrap();
        log.start(keys::INIT_START, Value::Null, &[]).unwrap();
        let line = line!() + 1;
        log.point(keys::EVAL_ACCURACY, 0.5, &[(keys::EPOCH_NUM, 150_000.into())]).unwrap();
        log.end(keys::RUN_STOP, Value::Null, &[(keys::STATUS, keys::SUCCESS.into())]).unwrap();

        let lines = lines(run.path());
        let types: Vec<_> = lines.iter().map(|l| l["event_type"].as_str().unwrap()).collect();
        assert_eq!(types, ["INTERVAL_START", "POINT_IN_TIME", "INTERVAL_END"]);
        assert_eq!(lines[1]["metadata"], json!({"file": file!(), "lineno": line, "epoch_num": 150_000}));
        assert_eq!((&lines[1]["key"], &lines[1]["value"]), (&json!("eval_accuracy"), &json!(0.5)));
        assert_eq!((&lines[0]["namespace"], &lines[0]["value"]), (&json!(""), &json!(null)));
        assert!(lines[0]["time_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }

    #[test]
    fn what_was_before_the_log_keeps_its_time() {
        let run = TempDir::new().unwrap();
        let time = UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123);
        let mut log = MlLog::open(run.path(), false).unwrap();
        log.at(time).point(keys::CACHE_CLEAR, true, &[]).unwrap();
        log.at(time).start(keys::INIT_START, (), &[]).unwrap();
        assert!(lines(run.path()).iter().all(|l| l["time_ms"] == json!(1_700_000_000_123_u64)));
    }

    #[test]
    fn a_resume_appends_after_the_last_whole_line_and_a_new_run_starts_anew() {
        let run = TempDir::new().unwrap();
        MlLog::open(run.path(), true).unwrap().point(keys::SEED, 1, &[]).unwrap();
        let path = run.path().join("mllog.txt");
        let torn = fs::read_to_string(&path).unwrap() + ":::MLLOG {\"namesp";
        fs::write(&path, torn).unwrap();
        MlLog::open(run.path(), true).unwrap().point(keys::SEED, 2, &[]).unwrap();
        assert_eq!(
            lines(run.path()).iter().map(|l| l["value"].clone()).collect::<Vec<_>>(),
            [json!(1), json!(2)]
        );
        MlLog::open(run.path(), false).unwrap().point(keys::SEED, 3, &[]).unwrap();
        assert_eq!(lines(run.path()).len(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_with_a_remedy() {
        let run = TempDir::new().unwrap();
        std::os::unix::fs::symlink("/dev/full", run.path().join("mllog.txt")).unwrap();
        let error =
            MlLog::open(run.path(), false).unwrap().point(keys::SEED, 1, &[]).unwrap_err().to_string();
        assert!(error.contains("mllog.txt: cannot write") && error.contains("free some space"), "{error}");
    }
}
