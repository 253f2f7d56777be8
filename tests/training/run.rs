//! Whole runs through the trainer: what they leave, and that stopping and resuming changes no byte.

use engine::config::{
    Config, DataConfig, ModelConfig, OptimizerKind, PrepareConfig, Preset, ScheduleConfig, ScheduleKind,
    TrainConfig,
};
use engine::data::prepare::PrepareProgress;
use engine::metrics::{EvalRecord, TrainRecord};
use engine::trainer::{self, Ending, Observer, Options, Outcome, RunInfo, StepProgress};
use kernels::Backend;
use kernels::cpu::Cpu;
use kernels::philox::Stream;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

/// Records what it hears, and raises a signal after a given step.
struct Recorder<'a> {
    stop: &'a AtomicI32,
    stop_after: Option<u64>,
    records: Vec<TrainRecord>,
    evaluations: Vec<EvalRecord>,
    messages: Vec<String>,
}

impl Observer for Recorder<'_> {
    fn message(&mut self, line: &str) {
        self.messages.push(line.to_owned());
    }
    fn preparing(&mut self, _: &PrepareProgress) {}
    fn started(&mut self, _: &RunInfo) {}
    fn step(&mut self, record: &TrainRecord, progress: &StepProgress) {
        self.records.push(record.clone());
        if self.stop_after == Some(progress.step) {
            self.stop.store(15, Ordering::Relaxed);
        }
    }
    fn evaluated(&mut self, record: &EvalRecord) {
        self.evaluations.push(record.clone());
    }
}

/// Sentences over a small vocabulary in which each word tells the next.
pub fn write_corpus(dir: &Path) {
    let words = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "star"];
    let mut stream = Stream::new(3, 1, 96);
    let mut text = String::new();
    for _ in 0..60 {
        for _ in 0..8 {
            let first = stream.below(words.len() as u32) as usize;
            let sentence: Vec<&str> =
                (0..4 + stream.below(5) as usize).map(|i| words[(first + i) % words.len()]).collect();
            writeln!(text, "{} .", sentence.join(" ")).unwrap();
        }
        text.push('\n');
    }
    std::fs::write(dir.join("corpus.txt"), text).unwrap();
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."];
    std::fs::write(dir.join("vocab.txt"), [&specials[..], &words].concat().join("\n") + "\n").unwrap();
}

fn config(dir: &Path, run: &str) -> Config {
    Config {
        model: ModelConfig {
            layers: 2,
            hidden: 16,
            heads: 2,
            intermediate: 32,
            max_positions: 32,
            ..Preset::Tiny.model()
        },
        data: DataConfig {
            dir: dir.join("data"),
            prepare: PrepareConfig {
                input: vec![dir.join("corpus.txt")],
                vocab: Some(dir.join("vocab.txt")),
                max_seq_length: 32,
                eval_fraction: 0.1,
                ..PrepareConfig::default()
            },
        },
        train: TrainConfig {
            run: dir.join(run),
            steps: 24,
            batch_sequences: 8,
            accumulation: 2,
            log_every: 3,
            eval_every: 64,
            checkpoint_every: 5,
            ..TrainConfig::default()
        },
        schedule: ScheduleConfig { lr: 5e-3, warmup_steps: 4, ..ScheduleConfig::default() },
        ..Config::default()
    }
}

fn train(
    config: &Config,
    resume: bool,
    stop_after: Option<u64>,
) -> engine::Result<(Outcome, Vec<TrainRecord>)> {
    train_on(Cpu::<f32>::new(), config, resume, stop_after)
}

/// Trains on a device; the outcome and the record of each step.
pub fn train_on<B: Backend<Acc = f32>>(
    backend: B,
    config: &Config,
    resume: bool,
    stop_after: Option<u64>,
) -> engine::Result<(Outcome, Vec<TrainRecord>)> {
    let stop = AtomicI32::new(0);
    let mut recorder =
        Recorder { stop: &stop, stop_after, records: vec![], evaluations: vec![], messages: vec![] };
    let outcome =
        trainer::train(backend, config, &Options { resume, stop: &stop, mlperf: None }, &mut recorder)?;
    Ok((outcome, recorder.records))
}

/// metrics.jsonl without the fields that measure time.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            for key in ["tokens_per_second", "seconds", "model_tflops", "eval_seconds"] {
                value.as_object_mut().unwrap().remove(key);
            }
            value
        })
        .collect()
}

#[test]
fn stopped_and_resumed_at_any_step_ends_byte_equal() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let whole = config(dir.path(), "whole");
    let (outcome, records) = train(&whole, false, None).unwrap();
    assert_eq!(outcome.ending, Ending::Finished);
    assert_eq!(records.len(), 24);
    assert!(records[23].mlm_loss < records[0].mlm_loss);
    let model = |run: &Path| std::fs::read(run.join("model/model.safetensors")).unwrap();
    for stops in [vec![1], vec![7, 8, 16], vec![23], vec![24]] {
        let pieces = config(dir.path(), &format!("pieces-{}", stops[0]));
        let mut resume = false;
        for &stop in &stops {
            let (outcome, _) = train(&pieces, resume, Some(stop)).unwrap();
            // also in the last step, before its evaluation
            assert_eq!(outcome.ending, Ending::Stopped(15));
            resume = true;
        }
        let (outcome, _) = train(&pieces, true, None).unwrap();
        assert_eq!(outcome.ending, Ending::Finished);
        assert!(model(&whole.train.run) == model(&pieces.train.run), "stopped after {stops:?}");
        assert_eq!(metrics(&whole.train.run), metrics(&pieces.train.run), "stopped after {stops:?}");
    }
}

#[test]
fn a_run_leaves_everything_that_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let config = config(dir.path(), "run");
    train(&config, false, None).unwrap();
    let run = &config.train.run;
    for file in [
        "config.toml",
        "metrics.jsonl",
        "mllog.txt",
        "report.html",
        "model/config.json",
        "model/model.safetensors",
        "model/vocab.txt",
        "model/tokenizer_config.json",
    ] {
        assert!(std::fs::metadata(run.join(file)).unwrap().len() > 0, "{file}");
    }
    assert!(run.join("tensorboard").read_dir().unwrap().next().is_some());
    let lines = metrics(run);
    let keys = ["step", "loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "lr", "grad_norm"];
    assert!(keys.iter().all(|k| lines[0][k].is_number()), "{}", lines[0]);
    assert!(lines.iter().any(|l| l["eval_mlm_accuracy"].is_number()));
    let log = std::fs::read_to_string(run.join("mllog.txt")).unwrap();
    let at = |key: &str| {
        log.find(&format!("\"key\":\"{key}\"")).or_else(|| log.find(&format!("\"key\": \"{key}\"")))
    };
    let order = ["init_start", "init_stop", "run_start", "eval_start", "eval_accuracy", "run_stop"];
    assert!(order.is_sorted_by_key(|k| at(k).unwrap_or_else(|| panic!("no {k} in {log}"))));
    // The resolved configuration is a configuration.
    let resolved = Config::load(Some(&run.join("config.toml")), &[]).unwrap();
    assert_eq!(resolved.model.vocab_size, 18);

    let error = train(&config, false, None).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    let mut other = config.clone();
    other.data.prepare.max_seq_length = 24;
    let error = train(&other, true, None).unwrap_err().to_string();
    assert!(error.contains("max_seq_length") && error.contains("24"), "{error}");
}

/// The names in a run's folder of checkpoints.
fn checkpoints(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A rate at which one update makes the weights useless, though not infinite.
pub fn hopeless(dir: &Path, run: &str) -> Config {
    let mut config = config(dir, run);
    (config.schedule.lr, config.schedule.warmup_steps, config.optimizer.clip_norm) = (1e30, 0, 0.0);
    config.schedule.kind = ScheduleKind::Constant;
    (config.train.checkpoint_every, config.train.eval_every) = (0, 0);
    config
}

#[test]
fn a_non_finite_loss_ends_the_run_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let mut config = hopeless(dir.path(), "stop");
    let error = train(&config, false, None).unwrap_err().to_string();
    assert!(error.starts_with("step 2: the gradient of ") && error.contains("is not finite"), "{error}");
    // A checkpoint of such weights is not written: it would take the place of a good one.
    config.train.run = dir.path().join("saved");
    config.train.checkpoint_every = 1;
    let error = train(&config, false, None).unwrap_err().to_string();
    assert!(error.starts_with("step 1: with the weights after its update the loss of a held-out"), "{error}");
    assert!(error.contains("1e30") && error.contains("a lower schedule.lr"), "{error}");
    assert!(checkpoints(&config.train.run).is_empty());
    // Nor is what an evaluation finds useless.
    config.train.run = dir.path().join("evaluated");
    (config.train.checkpoint_every, config.train.eval_every) = (0, 8);
    let error = train(&config, false, None).unwrap_err().to_string();
    assert!(error.starts_with("step 1: the loss on held-out text is not finite"), "{error}");
    assert_eq!(metrics(&config.train.run).last().unwrap().get("eval_loss"), Some(&serde_json::Value::Null));
    assert!(!config.train.run.join("model").exists());
}

#[test]
fn skipping_gives_up_after_the_limit_and_exports_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let mut config = hopeless(dir.path(), "skip");
    config.train.on_nonfinite = engine::config::OnNonFinite::Skip;
    for limit in [20, 3] {
        config.train.run = dir.path().join(format!("skip-{limit}"));
        config.train.nonfinite_limit = limit;
        let error = train(&config, false, None).unwrap_err().to_string();
        let told = format!("{limit} updates in a row were skipped (train.nonfinite_limit = {limit})");
        assert!(error.starts_with(&format!("step {}: ", limit + 1)) && error.contains(&told), "{error}");
        assert!(error.contains("learning rate 1e30") && error.contains("a lower schedule.lr"), "{error}");
        assert!(!config.train.run.join("model").exists() && checkpoints(&config.train.run).is_empty());
    }
    // A run that is over before.
    (config.train.steps, config.train.nonfinite_limit) = (5, 20);
    config.train.run = dir.path().join("short");
    let error = train(&config, false, None).unwrap_err().to_string();
    let parts = ["step 5: the loss on held-out text", "after 4 updates in a row that were skipped"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    config.data.dir = dir.path().join("nothing-held-out");
    config.data.prepare.eval_fraction = 0.0;
    config.train.run = dir.path().join("unseen");
    let error = train(&config, false, None).unwrap_err().to_string();
    assert!(error.starts_with("step 5: ") && error.contains("of a training sequence"), "{error}");
    assert!(!config.train.run.join("model").exists());
}

/// A run that skips a batch now and then: one document alone reaches positions whose embeddings overflow.
pub fn overflowing(dir: &Path, run: &str) -> Config {
    write_corpus(dir);
    let short = "red green blue .\none two three .\n\n".repeat(90);
    let sentence = "cat dog bird sun moon star cat dog bird sun moon star .\n";
    let long = format!("{sentence}{sentence}\n").repeat(4);
    std::fs::write(dir.join("corpus.txt"), short + &long).unwrap();
    let mut config = config(dir, run);
    (config.data.prepare.eval_fraction, config.data.prepare.short_seq_prob) = (0.0, 0.0);
    config.model.vocab_size = 18;
    let table = engine::table::TensorTable::new(&config.model);
    let mut weights = engine::model::init::weights(&table, 0.02, 1).unwrap();
    let positions = table.find("bert.embeddings.position_embeddings.weight").unwrap().range();
    weights[positions][24 * 16..].fill(3e38);
    let start = dir.join("start");
    let vocab = engine::data::vocab::Vocab::load(&dir.join("vocab.txt")).unwrap();
    engine::checkpoint::hf::export(&start, &config.model, &table, &weights, &vocab, Default::default())
        .unwrap();
    config.model.init_from = Some(start);
    config.train.on_nonfinite = engine::config::OnNonFinite::Skip;
    config.train.eval_every = 0;
    config
}

#[test]
fn a_batch_that_overflows_is_skipped_and_the_others_train() {
    let dir = tempfile::tempdir().unwrap();
    let config = overflowing(dir.path(), "run");
    let (outcome, records) = train(&config, false, None).unwrap();
    let skipped = records[23].skipped;
    assert!(outcome.ending == Ending::Finished && (1..20).contains(&skipped), "{skipped}");
    let state = engine::checkpoint::read_state(&config.train.run.join("checkpoints/step-00000024")).unwrap();
    assert!(state.updates == 24 - skipped && state.skipped == skipped);
}

/// A finished run that is given more steps.
#[test]
fn a_finished_run_goes_on_as_one_longer_run_would() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let model = |run: &Path| std::fs::read(run.join("model/model.safetensors")).unwrap();
    let losses =
        |run: &Path| metrics(run).into_iter().filter(|l| l.get("loss").is_some()).collect::<Vec<_>>();
    for (kind, total) in [(ScheduleKind::Constant, 0), (ScheduleKind::Linear, 40)] {
        let mut whole = config(dir.path(), &format!("whole-{kind:?}"));
        (whole.schedule.kind, whole.schedule.total_steps) = (kind, total);
        train(&whole, false, None).unwrap();
        let mut parts = whole.clone();
        parts.train.run = dir.path().join(format!("parts-{kind:?}"));
        parts.train.steps = 9;
        train(&parts, false, None).unwrap();
        let first = model(&parts.train.run);
        parts.train.steps = 24;
        let said = messages(&parts, Some(15)).unwrap();
        assert!(said.contains(&"train.steps: 9 -> 24".to_owned()), "{said:?}");
        assert!(!said.iter().any(|line| line.contains("learning rate")), "{said:?}");
        // Until it is done, the folder has the model that was there.
        assert!(model(&parts.train.run) == first);
        let said = messages(&parts, None).unwrap();
        assert!(!said.iter().any(|line| line.contains("->")), "told once: {said:?}");
        assert!(model(&whole.train.run) == model(&parts.train.run), "{kind:?}");
        assert_eq!(losses(&whole.train.run), losses(&parts.train.run));
        let resolved = std::fs::read_to_string(parts.train.run.join("config.toml")).unwrap();
        assert!(resolved.starts_with("# step 9, train.steps: 9 -> 24\n"), "{resolved}");
        let report = std::fs::read_to_string(parts.train.run.join("report.html")).unwrap();
        assert!(report.contains("step 9, train.steps: 9 -&gt; 24"));
    }
    // A decay that ended: the rate before and after is told.
    let mut decayed = config(dir.path(), "decayed");
    decayed.train.steps = 12;
    train(&decayed, false, None).unwrap();
    decayed.train.steps = 24;
    let said = messages(&decayed, None).unwrap().join("\n");
    let rates = "the learning rate was 6.250e-4 in step 12 and is 3.000e-3 in step 13: the schedule now ends at step 24, \
                 before at step 12; schedule.total_steps=12 keeps the old end";
    assert!(said.contains(rates), "{said}");
}

/// What a run says when it goes on; it is stopped after a step, or not.
fn messages(config: &Config, stop_after: Option<u64>) -> engine::Result<Vec<String>> {
    let stop = AtomicI32::new(0);
    let mut recorder =
        Recorder { stop: &stop, stop_after, records: vec![], evaluations: vec![], messages: vec![] };
    trainer::train(
        Cpu::<f32>::new(),
        config,
        &Options { resume: true, stop: &stop, mlperf: None },
        &mut recorder,
    )?;
    Ok(recorder.messages)
}

#[test]
fn what_the_state_allows_may_change_where_a_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    write_corpus(dir.path());
    let mut config = config(dir.path(), "run");
    config.train.steps = 12;
    train(&config, false, None).unwrap();
    let run = config.train.run.clone();
    let refused: [(&dyn Fn(&mut Config), [&str; 2]); 5] = [
        (&|c| c.train.seed = 2, ["train.seed = 1, now 2", "order of the data"]),
        (&|c| c.model.layers = 3, ["model.layers = 2, now 3", "defines the model"]),
        (&|c| c.optimizer.kind = OptimizerKind::Lamb, ["optimizer.kind = adamw, now lamb", "moments"]),
        (&|c| c.train.steps = 7, ["train.steps: 7 is less than the 12 steps", "model.init_from"]),
        (&|c| c.schedule.lr = 1e-3, ["schedule.lr: 0.001 now, 0.005 before", "all 12 steps"]),
    ];
    for (change, parts) in refused {
        let mut other = config.clone();
        change(&mut other);
        let error = train(&other, true, None).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let before = std::fs::read(run.join("config.toml")).unwrap();
    config.train.steps = 30;
    (config.train.batch_sequences, config.train.accumulation) = (12, 3);
    (config.optimizer.weight_decay, config.model.hidden_dropout) = (0.1, 0.0);
    (config.train.log_every, config.schedule.lr) = (1, 1e-3);
    let said = messages(&config, None).unwrap();
    for line in [
        "train.batch_sequences: 8 -> 12",
        "train.accumulation: 2 -> 3",
        "optimizer.weight_decay: 0.01 -> 0.1",
        "model.hidden_dropout: 0.1 -> 0.0",
        "train.log_every: 3 -> 1",
        "train.steps: 12 -> 30",
        "schedule.lr: 0.005 -> 0.001",
    ] {
        assert!(said.iter().any(|l| l == line), "no `{line}` in {said:?}");
    }
    let resolved = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(
        resolved.contains("# step 12, train.batch_sequences: 8 -> 12\n") && resolved.as_bytes() != before
    );
    assert_eq!(Config::load(Some(&run.join("config.toml")), &[]).unwrap().train.batch_sequences, 12);
    // Every sequence of an epoch has its turn, whatever the batches.
    let state = engine::checkpoint::read_state(&run.join("checkpoints/step-00000030")).unwrap();
    let sequences = engine::data::Manifest::load(&config.data.dir).unwrap().train.sequences;
    assert_eq!(state.samples, 12 * 8 + 18 * 12);
    assert_eq!(state.loader.epoch * sequences + state.loader.cursor, state.samples);
    // The first run's lines are there still.
    let steps: Vec<u64> = metrics(&run).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted() && steps.starts_with(&[3, 6]) && steps.ends_with(&[29, 30, 30]), "{steps:?}");
}
