//! What the files hold after starts, resumes and failures.

use super::*;
use serde_json::json;
use tempfile::TempDir;

fn train(step: u64) -> TrainRecord {
    TrainRecord { step, loss: 10.0 / step as f64, nsp_loss: Some(0.5), ..TrainRecord::default() }
}

fn eval(step: u64) -> EvalRecord {
    EvalRecord { step, eval_loss: 3.0, ..EvalRecord::default() }
}

fn text(run: &Path) -> String {
    fs::read_to_string(run.join(FILE)).unwrap()
}

fn steps(run: &Path) -> Vec<u64> {
    let line = |l: &str| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap();
    text(run).lines().map(line).collect()
}

fn write(run: &Path, resume: Option<u64>, steps: std::ops::RangeInclusive<u64>) {
    let mut log = MetricsLog::open(run, resume).unwrap();
    for step in steps {
        log.train(&train(step)).unwrap();
    }
}

#[test]
fn records_have_exactly_the_documented_keys() {
    let keys = |record: Value| record.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        keys(serde_json::to_value(train(1)).unwrap()),
        "grad_norm loss lr mlm_accuracy mlm_loss model_tflops nsp_accuracy nsp_loss samples seconds skipped step \
         tokens_per_second"
    );
    assert_eq!(
        keys(serde_json::to_value(eval(1)).unwrap()),
        "eval_loss eval_mlm_accuracy eval_mlm_loss eval_nsp_accuracy eval_nsp_loss eval_perplexity eval_seconds \
         eval_sequences samples step"
    );
}

#[test]
fn numbers_that_are_not_finite_are_null() {
    let run = TempDir::new().unwrap();
    let mut log = MetricsLog::open(run.path(), None).unwrap();
    log.train(&TrainRecord { loss: f64::NAN, grad_norm: f64::INFINITY, ..train(1) }).unwrap();
    let line: Value = serde_json::from_str(&text(run.path())).unwrap();
    assert_eq!(
        (&line["loss"], &line["grad_norm"], &line["nsp_loss"]),
        (&json!(null), &json!(null), &json!(0.5))
    );
}

#[test]
fn a_resumed_run_has_each_step_once() {
    let run = TempDir::new().unwrap();
    write(run.path(), None, 1..=9);
    // A torn last line, as a kill leaves it, and one in the middle that the disk damaged.
    let torn = text(run.path()).replace("\"step\":3", "\"stop\":3") + "{\"step\":10,\"lo";
    fs::write(run.path().join(FILE), torn).unwrap();
    write(run.path(), Some(6), 7..=8);
    assert_eq!(steps(run.path()), [1, 2, 4, 5, 6, 7, 8]);
    write(run.path(), Some(8), 9..=9);
    assert_eq!(steps(run.path()), [1, 2, 4, 5, 6, 7, 8, 9]);
    assert_eq!(fs::read_dir(run.path().join("tensorboard")).unwrap().count(), 3);
}

#[test]
fn a_whole_last_line_without_its_end_of_line_is_torn_too() {
    let run = TempDir::new().unwrap();
    write(run.path(), None, 1..=2);
    fs::write(run.path().join(FILE), text(run.path()).trim_end()).unwrap();
    write(run.path(), Some(2), 2..=3);
    assert_eq!(steps(run.path()), [1, 2, 3]);
}

#[test]
fn a_new_run_starts_with_an_empty_file_and_a_resume_without_one_works() {
    let run = TempDir::new().unwrap();
    write(run.path(), Some(3), 4..=5);
    assert_eq!(steps(run.path()), [4, 5]);
    write(run.path(), None, 1..=1);
    assert_eq!(steps(run.path()), [1]);
}

#[test]
fn tags_are_grouped_by_training_and_evaluation() {
    let fields = |record: Value| scalars(record.as_object().unwrap());
    let of_training = fields(serde_json::to_value(train(4)).unwrap());
    assert!(of_training.contains(&("train/loss".into(), 2.5)));
    assert!(!of_training.iter().any(|(tag, _)| tag.ends_with("step") || tag.ends_with("nsp_accuracy")));
    let of_evaluation = fields(serde_json::to_value(eval(4)).unwrap());
    assert!(of_evaluation.contains(&("eval/loss".into(), 3.0)));
    assert!(of_evaluation.iter().all(|(tag, _)| tag.starts_with("eval/")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_with_a_remedy() {
    let run = TempDir::new().unwrap();
    std::os::unix::fs::symlink("/dev/full", run.path().join(FILE)).unwrap();
    let mut log = MetricsLog::open(run.path(), None).unwrap();
    let error = log.train(&train(1)).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl: cannot write") && error.contains("free some space"), "{error}");
}

#[test]
fn a_run_folder_that_is_a_file_is_an_error_that_names_it() {
    let run = TempDir::new().unwrap();
    fs::write(run.path().join("run"), "").unwrap();
    let error = MetricsLog::open(&run.path().join("run"), None).unwrap_err().to_string();
    assert!(error.contains("run: cannot create"), "{error}");
    fs::write(run.path().join("tensorboard"), "").unwrap();
    let error = MetricsLog::open(run.path(), None).unwrap_err().to_string();
    assert!(error.contains("tensorboard: cannot create"), "{error}");
}
