//! Results that come a step later change no file and no message.

use super::setup;
use super::{Ending, Observer, Options, Outcome, RunInfo, StepProgress, run};
use crate::config::{Config, ModelConfig, OnNonFinite, Preset};
use crate::data::prepare::PrepareProgress;
use crate::dist::Group;
use crate::metrics::{EvalRecord, TrainRecord};
use kernels::cpu::Cpu;
use kernels::philox::Stream;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

/// Hears everything, and raises a signal after a given step.
#[derive(Default)]
struct Recorder {
    stop: AtomicI32,
    stop_after: Option<u64>,
    said: Vec<String>,
}

struct Listener<'a>(&'a AtomicI32, Option<u64>, &'a mut Vec<String>);

impl Observer for Listener<'_> {
    fn message(&mut self, line: &str) {
        // Only the first run of a folder prepares its data.
        if !line.starts_with("tokenizer: ") && !line.contains("unknown tokens: ") {
            self.2.push(line.to_owned());
        }
    }
    fn preparing(&mut self, _: &PrepareProgress) {}
    fn started(&mut self, _: &RunInfo) {}
    fn step(&mut self, r: &TrainRecord, progress: &StepProgress) {
        self.2.push(format!("{} {} {:?} {} {}", r.step, r.loss, r.grad_norm, r.lr, progress.logged));
        if self.1 == Some(progress.step) {
            self.0.store(15, Ordering::Relaxed);
        }
    }
    fn evaluated(&mut self, r: &EvalRecord) {
        self.2.push(format!("{} {} {}", r.step, r.eval_loss, r.eval_mlm_accuracy));
    }
}

fn write_corpus(dir: &Path) {
    let words = ["red", "green", "blue", "one", "two", "three", "cat", "dog"];
    let mut stream = Stream::new(3, 1, 96);
    let mut text = String::new();
    for line in 0..200 {
        let first = stream.below(8) as usize;
        let sentence: Vec<&str> = (0..4 + stream.below(5) as usize).map(|i| words[(first + i) % 8]).collect();
        writeln!(text, "{} .{}", sentence.join(" "), if line % 8 == 7 { "\n" } else { "" }).unwrap();
    }
    std::fs::write(dir.join("corpus.txt"), text).unwrap();
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."];
    std::fs::write(dir.join("vocab.txt"), [&specials[..], &words].concat().join("\n") + "\n").unwrap();
}

fn config(dir: &Path, run: &str) -> Config {
    let model = ModelConfig {
        layers: 2,
        hidden: 16,
        heads: 2,
        intermediate: 32,
        max_positions: 32,
        ..Preset::Tiny.model()
    };
    let mut config = Config { model, ..Config::default() };
    config.data.dir = dir.join("data");
    config.data.prepare.input = vec![dir.join("corpus.txt")];
    config.data.prepare.vocab = Some(dir.join("vocab.txt"));
    config.data.prepare.max_seq_length = 32;
    config.data.prepare.eval_fraction = 0.1;
    config.train.run = dir.join(run);
    config.train.steps = 23;
    config.train.batch_sequences = 8;
    config.train.log_every = 3;
    config.train.eval_every = 56;
    config.train.checkpoint_every = 5;
    config.schedule.lr = 5e-3;
    config
}

impl Recorder {
    fn train(&mut self, config: &Config, resume: bool, late: bool) -> crate::Result<Outcome> {
        let Self { stop, stop_after, said } = self;
        let mut listener = Listener(stop, *stop_after, said);
        let options = Options { resume, stop, mlperf: None };
        let mut group = Group::solo();
        let prepared = setup::prepare(&mut group, Cpu::<f32>::new(), config, &options, &mut listener)?;
        run::run_pipelined(&mut group, prepared, &options, &mut listener, late)
    }
}

/// metrics.jsonl without the fields that measure time.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let untimed = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["tokens_per_second", "seconds", "model_tflops", "eval_seconds"] {
            value.as_object_mut().unwrap().remove(key);
        }
        value
    };
    text.lines().map(untimed).collect()
}

/// Keys and values of mllog.txt that are neither times nor speeds.
fn events(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("mllog.txt")).unwrap();
    let event = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
        let value = json["value"].get("train_loss").unwrap_or(&json["value"]);
        let timed = json["value"].get("throughput").is_some() && json["value"].get("train_loss").is_none();
        let place: Vec<_> = ["step", "epoch_num", "status"].map(|k| json["metadata"][k].to_string()).into();
        format!("{} {} {place:?}", json["key"], if timed { &serde_json::Value::Null } else { value })
    };
    text.lines().map(event).collect()
}

fn checkpoints(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> =
        std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    let read = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
    all.iter().map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), read(path))).collect()
}

fn model(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).unwrap()
}

#[test]
fn results_that_come_later_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    for parts in [1, 2, 4] {
        let mut runs = Vec::new();
        for late in [false, true] {
            let mut config = config(dir.path(), &format!("{parts}-{late}"));
            config.train.accumulation = parts;
            let mut heard = Recorder::default();
            let outcome = heard.train(&config, false, late).unwrap();
            assert_eq!(outcome.ending, Ending::Finished);
            let steps = heard.said.iter().filter(|line| line.ends_with("true") || line.ends_with("false"));
            assert_eq!(steps.count(), 23);
            let run = config.train.run;
            let state = crate::checkpoint::read_state(&run.join("checkpoints/step-00000023")).unwrap();
            assert!(state.updates == 23 && state.train_seconds > 0.0);
            let place = (state.step, state.samples, state.tokens, state.loader, state.best_step);
            runs.push((heard.said, metrics(&run), events(&run), checkpoints(&run), model(&run), place));
        }
        let [at_once, later] = &runs[..] else { panic!() };
        assert_eq!(at_once.0, later.0);
        assert_eq!(at_once.1, later.1);
        assert_eq!(at_once.2, later.2);
        assert!(at_once.3 == later.3 && at_once.4 == later.4);
        assert_eq!(at_once.5, later.5);
    }
}

/// The step that is queued when the signal is seen still counts.
#[test]
fn a_signal_ends_a_run_after_the_step_that_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let whole = config(dir.path(), "whole");
    Recorder::default().train(&whole, false, false).unwrap();
    for (stop_after, ended) in [(2, 3), (4, 5), (5, 5), (7, 7), (22, 23)] {
        let pieces = config(dir.path(), &format!("stopped-{stop_after}"));
        let mut heard = Recorder { stop_after: Some(stop_after), ..Recorder::default() };
        let outcome = heard.train(&pieces, false, true).unwrap();
        assert_eq!(outcome.ending, Ending::Stopped(15));
        assert!(outcome.summary.contains(&format!("after step {ended};")), "{}", outcome.summary);
        Recorder::default().train(&pieces, true, true).unwrap();
        assert!(model(&whole.train.run) == model(&pieces.train.run), "stopped after {stop_after}");
        assert_eq!(metrics(&whole.train.run), metrics(&pieces.train.run), "stopped after {stop_after}");
    }
}

/// The next step has overwritten the gradients by the time that a step is found not to be finite.
#[test]
fn what_is_not_finite_is_told_alike() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    for on_nonfinite in [OnNonFinite::Stop, OnNonFinite::Skip] {
        let told = [false, true].map(|late| {
            let mut config = config(dir.path(), &format!("{on_nonfinite:?}-{late}"));
            (config.schedule.lr, config.optimizer.clip_norm) = (1e30, 0.0);
            (config.train.on_nonfinite, config.train.checkpoint_every) = (on_nonfinite, 2);
            let mut heard = Recorder::default();
            let ended = heard.train(&config, false, late).map(|outcome| outcome.ending);
            let ended = format!("{ended:?}").replace(&config.train.run.display().to_string(), "RUN");
            (ended, heard.said, metrics(&config.train.run))
        });
        assert_eq!(told[0], told[1]);
        let all = told[0].1.join("\n") + &told[0].0;
        assert!(
            all.contains("the gradient of bert.embeddings.word_embeddings.weight is not finite"),
            "{all}"
        );
    }
}

/// In these tests all data is verified beside the training.
#[test]
fn damage_found_while_training_ends_the_run_and_leaves_nothing_as_finished() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let whole = config(dir.path(), "whole");
    Recorder::default().train(&whole, false, false).unwrap();
    let shard = dir.path().join("data/train-00000.shard");
    let mut bytes = std::fs::read(&shard).unwrap();
    // A masked position that could be one, or a token: no sequence shows it.
    let last = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    bytes[last] ^= 1;
    std::fs::remove_file(&shard).unwrap();
    std::fs::write(&shard, bytes).unwrap();
    let mut damaged = config(dir.path(), "damaged");
    damaged.train.eval_every = 0;
    for checkpoint_every in [5, 0] {
        damaged.train.checkpoint_every = checkpoint_every;
        damaged.train.run = dir.path().join(format!("damaged-{checkpoint_every}"));
        let mut heard = Recorder::default();
        let error = heard.train(&damaged, false, false).unwrap_err().to_string();
        assert!(error.contains("train-00000.shard") && error.contains("damaged: checksum"), "{error}");
        assert!(crate::checkpoint::list(&damaged.train.run).unwrap().is_empty());
        assert!(!damaged.train.run.join("model").exists());
        let events = events(&damaged.train.run);
        assert!(!events.iter().any(|event| event.contains("run_stop")), "{events:?}");
    }
}
