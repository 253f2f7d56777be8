//! `launcher mlperf`: the log of a run as the checker wants it, and the score of ten logs.

use super::{Ran, TINY, Workplace};
use engine::mllog::{MlLog, keys};
use engine::mlperf::report::score;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/mlperf");

/// A place with a configuration whose target is reached after a few steps.
pub fn place() -> Workplace {
    let place = Workplace::with_corpus();
    let config = TINY
        .replace("steps = 8", "steps = 400\neval_every = 80\ntarget_accuracy = 0.2")
        .replace("checkpoint_every = 4", "checkpoint_every = 0")
        .replace("batch_sequences = 4", "batch_sequences = 16");
    place.write("mlperf.toml", config + "\n[optimizer]\nkind = \"lamb\"\n");
    place
}

fn events(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|l| serde_json::from_str(l.strip_prefix(":::MLLOG ").unwrap()).unwrap()).collect()
}

/// Where a key first stands in a log.
#[track_caller]
fn at(events: &[Value], key: &str) -> usize {
    events.iter().position(|e| e["key"] == key).unwrap_or_else(|| panic!("no {key}"))
}

fn values(events: &[Value], key: &str) -> Vec<Value> {
    events.iter().filter(|e| e["key"] == key).map(|e| e["value"].clone()).collect()
}

#[test]
fn a_run_to_the_target_leaves_a_whole_log() {
    let place = place();
    let ran = place.line("mlperf --config mlperf.toml --run first --org Someone");
    assert!(
        ran.stderr.contains("logged as the open division: model.layers is 1, expected 24"),
        "{}",
        ran.stderr
    );
    let said = ran.done();
    assert!(said.contains("target accuracy 0.2 reached: 0.") && said.contains("first/mllog.txt"), "{said}");

    let log = events(&place.path("first/mllog.txt"));
    let order =
        ["cache_clear", "init_start", "submission_division", "seed", "init_stop", "run_start", "block_start"];
    let after = ["eval_start", "eval_accuracy", "eval_stop", "block_stop", "run_stop"];
    let places: Vec<usize> = order.into_iter().chain(after).map(|key| at(&log, key)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(log.last().unwrap()["key"], "run_stop", "nothing is on the clock after the target is reached");
    assert_eq!(log.last().unwrap()["metadata"]["status"], "success");
    // closed_bert.yaml, closed_common.yaml, common.yaml of 4.0.0 and 5.0.0: exactly one of each
    for key in [
        "submission_org",
        "submission_platform",
        "submission_status",
        "submission_benchmark",
        "global_batch_size",
        "gradient_accumulation_steps",
        "opt_base_learning_rate",
        "opt_lamb_epsilon",
        "opt_lamb_beta_1",
        "opt_lamb_beta_2",
        "opt_lamb_weight_decay_rate",
        "opt_learning_rate_training_steps",
        "opt_learning_rate_warmup_steps",
        "num_warmup_steps",
        "start_warmup_step",
        "train_samples",
        "eval_samples",
        "run_start",
        "run_stop",
        "seed",
    ] {
        assert_eq!(values(&log, key).len(), 1, "{key}");
    }
    assert_eq!(values(&log, "submission_org"), [json!("Someone")]);
    assert_eq!(values(&log, "submission_division"), [json!("open")]);
    let accuracies = values(&log, "eval_accuracy");
    assert!(accuracies.last().unwrap().as_f64().unwrap() >= 0.2, "{accuracies:?}");
    let metrics = fs::read_to_string(place.path("first/metrics.jsonl")).unwrap();
    assert!(metrics.contains(&format!("\"eval_mlm_accuracy\":{}", accuracies.last().unwrap())), "{metrics}");

    // another run draws another seed, in a folder of its own
    let error = place.line("mlperf --config mlperf.toml --run first").failed();
    assert!(error.starts_with("first: already holds a run") && error.contains("not resumed"), "{error}");
    place.line("mlperf --config mlperf.toml --run second").done();
    assert_ne!(values(&events(&place.path("second/mllog.txt")), "seed"), values(&log, "seed"));
}

/// The keys of a log that any number of processes writes alike, with their values.
fn same_for_all(log: &[Value]) -> Vec<(Value, Value)> {
    let timed = ["tracked_stats", "submission_platform", "eval_accuracy"];
    let kept = log.iter().filter(|e| !timed.iter().any(|key| e["key"] == *key));
    kept.map(|e| (e["key"].clone(), e["value"].clone())).collect()
}

#[test]
fn of_several_processes_the_first_one_writes_the_log() {
    let place = place();
    place.line("mlperf --config mlperf.toml --run one --seed 5").done();
    let ran = place.line("mlperf --config mlperf.toml --run two --seed 5 --processes 2");
    let said = ran.done();
    assert_eq!(said.matches("target accuracy 0.2 reached").count(), 1, "{said}");
    let [one, two] = ["one", "two"].map(|run| events(&place.path(run).join("mllog.txt")));
    assert_eq!(same_for_all(&one), same_for_all(&two));
    let times: Vec<u64> = two.iter().map(|e| e["time_ms"].as_u64().unwrap()).collect();
    let opened = at(&two, "seed");
    assert!(times[opened..].is_sorted(), "{times:?}");
    // without --seed all have the first one's
    place.line("mlperf --config mlperf.toml --run drawn --processes 2").done();
    assert_eq!(values(&events(&place.path("drawn/mllog.txt")), "seed").len(), 1);
}

#[test]
fn a_run_that_misses_the_target_fails_and_says_so_in_its_log() {
    let place = place();
    let ran = place.line("mlperf --config mlperf.toml --run short --set train.steps=3 --seed 5");
    assert!(ran.stderr.contains("held-out text after step 3"), "{}", ran.stderr);
    let error = ran.failed();
    assert!(
        error.starts_with("the target accuracy of 0.2 was not reached: 0.") && error.contains("48 sequences"),
        "{error}"
    );
    let log = events(&place.path("short/mllog.txt"));
    assert_eq!(log.last().unwrap()["metadata"]["status"], "aborted");
    assert_eq!(values(&log, "seed"), [json!(5)]);
}

#[test]
fn a_preset_says_what_the_log_says() {
    let place = Workplace::with_corpus();
    place
        .line(
            "prepare --input text.txt --vocab vocab.txt --out shards --max-seq-length 32 --eval-fraction 0.2",
        )
        .done();
    let small = "--set model.layers=1 --set model.hidden=16 --set model.heads=2 --set model.intermediate=32";
    let ran =
        place.line(&format!("mlperf --preset 8192 --data shards --run big {small} --set train.steps=1"));
    assert!(ran.failed().contains("was not reached"));
    let log = events(&place.path("big/mllog.txt"));
    let expected = [
        ("global_batch_size", json!(8192)),
        ("gradient_accumulation_steps", json!(1)), // a model this small fits at once
        ("opt_base_learning_rate", json!(2.88293e-3)),
        ("opt_lamb_beta_1", json!(0.88)),
        ("opt_lamb_beta_2", json!(0.88)),
        ("opt_lamb_epsilon", json!(1e-6)),
        ("opt_lamb_weight_decay_rate", json!(0.0166629)),
        ("opt_learning_rate_training_steps", json!(600)),
        ("opt_learning_rate_warmup_steps", json!(287)),
        ("num_warmup_steps", json!(287)),
        ("start_warmup_step", json!(-76)),
    ];
    for (key, value) in expected {
        assert_eq!(values(&log, key), [value], "{key}");
    }
}

/// A shard that is damaged is found out only where the data may be touched.
#[test]
fn the_data_is_opened_after_run_start() {
    let place = place();
    place.line("mlperf --config mlperf.toml --run first --set train.steps=1").failed();
    let shard =
        super::files(&place.path("shards")).into_iter().find(|f| f.to_string_lossy().contains("train"));
    let shard = shard.unwrap();
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    let error = place.line("mlperf --config mlperf.toml --run second").failed();
    assert!(error.contains("damaged"), "{error}");
    let log = events(&place.path("second/mllog.txt"));
    assert_eq!(log.last().unwrap()["key"], "run_start");
}

#[test]
fn what_a_run_is_not_is_refused() {
    let place = place();
    let error = place.line("mlperf --config mlperf.toml --division closed").failed();
    assert!(error.starts_with("--division: closed is not true of this run: model.layers is 1"), "{error}");
    assert!(!place.path("run").exists(), "a refused run leaves no folder");
    let error = place.line("mlperf --preset 512 --data shards").failed();
    assert!(error.starts_with("--preset: 512 is not one of the global batches 256, 448"), "{error}");
    let error = place.line("mlperf --preset 448 --data nowhere").failed();
    assert!(error.contains("nowhere holds no manifest.json"), "{error}");
    let error = place.line("mlperf --config tiny.toml").failed();
    assert!(error.starts_with("train.target_accuracy: is not set"), "{error}");
    assert_eq!(place.line("mlperf --config mlperf.toml --preset 448").code, Some(2));
    assert_eq!(place.run(&["mlperf", "--org", " "]).code, Some(2));
}

fn golden() -> Value {
    serde_json::from_slice(&fs::read(Path::new(GOLDEN).join("verdicts.json")).unwrap()).unwrap()
}

/// Folders scored by MLPerf's own software (tools/mlperf_rcp_vectors.py).
#[test]
fn folders_of_logs_get_the_checkers_verdict_and_score() {
    let place = Workplace::new();
    let folders = golden()["folders"].as_object().unwrap().clone();
    assert_eq!(folders.keys().collect::<Vec<_>>(), ["failing", "scaled", "slow"]);
    for (name, expected) in folders {
        let dir = PathBuf::from(GOLDEN).join(&name);
        let Ran { code, stdout, stderr } = place.run(&["mlperf", "report", dir.to_str().unwrap()]);
        assert_eq!(stdout.lines().filter(|l| l.starts_with("result_")).count(), 10, "{stdout}\n{stderr}");
        let line =
            |label: &str| stdout.lines().find_map(|l| l.strip_prefix(label)).map(str::trim).map(String::from);
        let passed = expected["passed"].as_bool().unwrap();
        assert_eq!(code, Some(if passed { 0 } else { 1 }), "{name}: {stdout}");
        let verdict = if passed { "PASSED" } else { "FAILED" };
        assert_eq!(
            line("RCP test").unwrap(),
            format!("{verdict}: {}", expected["message"].as_str().unwrap())
        );
        let factor = expected["factor"].as_f64().unwrap();
        let scaling = line("scaling").map(|s| s.split(':').next().unwrap().parse::<f64>().unwrap());
        assert_eq!(
            scaling,
            (passed && factor > 1.0).then(|| format!("{factor:.6}").parse().unwrap()),
            "{stdout}"
        );
        let score = line("score").unwrap();
        match passed {
            true => assert_eq!(score, format!("{:.4} min", expected["score"].as_f64().unwrap())),
            false => assert_eq!(score, "none: the RCP test failed"),
        }
    }
}

/// Sample counts at and around every limit, judged by MLPerf's own checker.
#[test]
fn verdicts_are_the_checkers() {
    let cases = golden()["cases"].as_array().unwrap().clone();
    assert!(cases.len() > 100);
    for case in &cases {
        let place = Workplace::new();
        for (i, samples) in case["samples"].as_array().unwrap().iter().enumerate() {
            write_log(&place.path(""), i, &case["batch"], samples);
        }
        let test = score(&place.path("")).unwrap().rcp;
        assert_eq!(test.passed, case["passed"].as_bool().unwrap(), "{case}");
        assert_eq!(test.message, case["message"].as_str().unwrap(), "{case}");
        let factor = case["factor"].as_f64().unwrap();
        assert!(
            (test.scaling - factor).abs() < 1e-9 || test.mean_samples.is_none(),
            "{case}: {}",
            test.scaling
        );
    }
}

/// `result_I.txt` of a run, which did not converge if it has no samples.
fn write_log(dir: &Path, i: usize, batch: &Value, samples: &Value) {
    let mut log = MlLog::open(dir, false).unwrap();
    log.point(keys::SUBMISSION_BENCHMARK, "bert", &[]).unwrap();
    log.point(keys::GLOBAL_BATCH_SIZE, batch.clone(), &[]).unwrap();
    log.start(keys::RUN_START, (), &[]).unwrap();
    let (accuracy, status) = if samples.is_null() { (0.7, keys::ABORTED) } else { (0.72, keys::SUCCESS) };
    let epoch = samples.as_u64().unwrap_or(3_000_000);
    log.point(keys::EVAL_ACCURACY, accuracy, &[(keys::EPOCH_NUM, epoch.into())]).unwrap();
    log.end(keys::RUN_STOP, (), &[(keys::STATUS, status.into())]).unwrap();
    drop(log);
    fs::rename(dir.join("mllog.txt"), dir.join(format!("result_{i}.txt"))).unwrap();
}

#[test]
fn a_truncated_or_odd_log_is_named() {
    let place = Workplace::new();
    for i in 0..10 {
        let log = fs::read_to_string(format!("{GOLDEN}/slow/result_{i}.txt")).unwrap();
        place.write(&format!("logs/result_{i}.txt"), log);
    }
    let path = place.path("logs/result_5.txt");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let ran = place.line("mlperf report logs");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stdout.contains("result_5.txt  no run_stop") && ran.stdout.contains("Insufficient convergence"),
        "{}",
        ran.stdout
    );
    fs::write(&path, whole.replacen("\"time_ms\"", "time_ms", 1)).unwrap();
    let error = place.line("mlperf report logs").failed();
    assert!(error.starts_with("logs/result_5.txt: line 1: not valid JSON"), "{error}");
    let error = place.line("mlperf report nowhere").failed();
    assert!(error.starts_with("nowhere: cannot read the folder"), "{error}");
}

#[test]
fn a_signal_ends_a_run_as_not_converged() {
    let place = place();
    let line =
        "mlperf --config mlperf.toml --run stopped --set train.steps=100000000 --set train.eval_every=0";
    let ran = super::signals::signalled(&place, line, &["TERM"]);
    assert_eq!(ran.code, Some(143), "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("the run counts as not converged"), "{}", ran.stdout);
    let log = events(&place.path("stopped/mllog.txt"));
    assert_eq!(log.last().unwrap()["metadata"]["status"], "aborted");
}

#[test]
fn help_shows_defaults_and_an_example() {
    let place = Workplace::new();
    let help = place.line("mlperf --help").done();
    for part in
        ["--start <DIR>", "--preset <GBS>", "[default: 768]", "[default: unsubmitted]", "Example:", "report"]
    {
        assert!(help.contains(part), "`{part}` is not in:\n{help}");
    }
    let help = place.line("mlperf report --help").done();
    assert!(help.contains("launcher mlperf report results"), "{help}");
}
