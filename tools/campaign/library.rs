//! Readers of the engine, called as its users call them.

use crate::readers::Answer;
use engine::checkpoint::import::{Framework, Options};
use engine::checkpoint::{self, hf};
use engine::config::{Config, PrepareConfig, Recipe, Split};
use engine::data::import::{ImportConfig, ImportFormat, import};
use engine::data::prepare::{merge, prepare};
use engine::data::tokenize::Tokenizer;
use engine::data::vocab::Vocab;
use engine::data::{Dataset, SplitName};
use engine::metrics::MetricsLog;
use engine::plan::Measured;
use engine::report::{self, ReportSummary};
use engine::table::TensorTable;
use engine::{mlperf, verify};
use kernels::cpu::Cpu;
use std::path::{Path, PathBuf};

const OUT: &str = "out";

fn answer<T>(result: engine::Result<T>) -> Answer {
    match result {
        Ok(_) => Answer::Accepted,
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// Data that was just written must be whole.
fn accepted(dir: &Path) -> Answer {
    for split in [SplitName::Train, SplitName::Eval] {
        if let Err(error) = read_all(dir, split) {
            return Answer::Ended(format!("what was written is refused: {error}"));
        }
    }
    Answer::Accepted
}

fn read_all(dir: &Path, split: SplitName) -> engine::Result<()> {
    let data = Dataset::open(dir, split)?;
    (0..data.len()).try_for_each(|i| data.get(i).map(drop))?;
    data.verify(&|_| ())
}

fn prepared(config: &PrepareConfig) -> Answer {
    match prepare(config, Path::new(OUT), 1, &|_| ()) {
        Ok(_) => accepted(Path::new(OUT)),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

fn options(file: &Path, recipe: Recipe) -> PrepareConfig {
    let vocab = Some("vocab.txt".into());
    PrepareConfig { input: vec![file.to_owned()], vocab, max_seq_length: 32, ..PrepareConfig::of(recipe) }
}

pub fn lines(file: &Path) -> Answer {
    prepared(&PrepareConfig { eval_fraction: 0.2, ..options(file, Recipe::Standard) })
}

pub fn sentences(file: &Path) -> Answer {
    prepared(&PrepareConfig {
        split: Split::Sentences,
        eval_fraction: 0.0,
        ..options(file, Recipe::Standard)
    })
}

pub fn recipe(file: &Path) -> Answer {
    prepared(&PrepareConfig { dupe_factor: 2, ..options(file, Recipe::Mlperf) })
}

pub fn train_vocabulary(file: &Path) -> Answer {
    let train_vocab = Some(120);
    prepared(&PrepareConfig { vocab: None, train_vocab, ..options(file, Recipe::Standard) })
}

pub fn vocabulary(file: &Path) -> Answer {
    answer(Vocab::load(file).and_then(|vocab| {
        let mut ids = Vec::new();
        Tokenizer::new(&vocab)?
            .encode_with_specials("The cat [MASK] a house, \u{1f600} na\u{ef}ve 47.", &mut ids);
        Ok(Tokenizer::new(&vocab)?.decode(&ids))
    }))
}

pub fn config(file: &Path) -> Answer {
    answer(Config::load(Some(file), &["train.steps=3".into()]).and_then(|config| {
        config.validate()?;
        config.to_toml()
    }))
}

pub fn shards(_: &Path) -> Answer {
    answer(
        [SplitName::Train, SplitName::Eval]
            .into_iter()
            .try_for_each(|split| read_all(Path::new("data"), split)),
    )
}

pub fn parts(_: &Path) -> Answer {
    let parts = ["part-1", "part-2"].map(PathBuf::from);
    match merge(&parts, Path::new(OUT), &|_| ()) {
        Ok(_) => accepted(Path::new(OUT)),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

fn imported(file: &Path, format: ImportFormat) -> Answer {
    let mut answer = Answer::Accepted;
    for skip_bad in [false, true] {
        let vocab = "import/vocab.txt".into();
        let config =
            ImportConfig { format, inputs: vec![file.to_owned()], eval: Vec::new(), vocab, skip_bad };
        let out = if skip_bad { "out-skipped" } else { OUT };
        answer = match import(&config, Path::new(out), 1, &|_| ()) {
            Ok(_) => accepted(Path::new(out)),
            Err(error) => Answer::Refused(error.to_string()),
        };
        if matches!(answer, Answer::Ended(_)) {
            return answer;
        }
    }
    answer
}

pub fn tfrecord(file: &Path) -> Answer {
    imported(file, ImportFormat::Tfrecord)
}

pub fn hdf5(file: &Path) -> Answer {
    imported(file, ImportFormat::Hdf5)
}

/// An import that ended at bad evaluation data, with good ones.
pub fn journal(_: &Path) -> Answer {
    let config = ImportConfig {
        format: ImportFormat::Tfrecord,
        inputs: vec!["import/unpacked.tfrecord".into()],
        eval: vec!["import/tfrecord/part-0.tfrecord".into()],
        vocab: "import/vocab.txt".into(),
        skip_bad: false,
    };
    match import(&config, Path::new("imported"), 1, &|_| ()) {
        Ok(_) => accepted(Path::new("imported")),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

pub fn checkpoint(file: &Path) -> Answer {
    let dir = file.parent().unwrap_or(file);
    answer(Config::load(Some(Path::new("run/config.toml")), &[]).and_then(|config| {
        checkpoint::list(Path::new("run"))?;
        checkpoint::read_state(dir)?;
        checkpoint::load(dir, &config.model, &TensorTable::new(&config.model))
    }))
}

pub fn model(_: &Path) -> Answer {
    let dir = Path::new("run/model");
    answer(hf::import(dir).and_then(|imported| {
        imported.check_finite(dir)?;
        Vocab::load(&dir.join("vocab.txt"))
    }))
}

fn foreign(framework: Framework, path: &Path) -> Answer {
    let twin = |name| Some(Path::new("checkpoints/twin").join(name));
    let options = Options { config: twin("config.json"), vocab: twin("vocab.txt"), gelu: None };
    let bare = Options { config: None, vocab: None, gelu: None };
    let _ = checkpoint::import::list(framework, path);
    let _ = checkpoint::import::read(framework, path, &bare);
    answer(checkpoint::import::read(framework, path, &options))
}

pub fn torch(file: &Path) -> Answer {
    foreign(Framework::PyTorch, file)
}

pub fn bundle(file: &Path) -> Answer {
    let snappy = file.to_string_lossy().contains("snappy");
    if snappy && let Err(error) = std::fs::copy(file, "checkpoints/tiny.index") {
        return Answer::Ended(format!("the campaign cannot copy {}: {error}", file.display()));
    }
    foreign(Framework::TensorFlow, Path::new("checkpoints/tiny"))
}

pub fn golden(file: &Path) -> Answer {
    answer(verify::run(&|| Ok(Cpu::<f32>::new()), file, verify::Limits::F32))
}

pub fn logs(_: &Path) -> Answer {
    answer(mlperf::report::score(Path::new("mlperf")))
}

pub fn step(file: &Path) -> Answer {
    answer(Measured::read(file))
}

pub fn metrics(_: &Path) -> Answer {
    let run = Path::new("run");
    answer(report::write(run, &ReportSummary::default()).and_then(|_| MetricsLog::open(run, Some(2))))
}
