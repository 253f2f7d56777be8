//! Commands of the launcher on damaged files.

use crate::launcher;
use crate::readers::Answer;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the launcher's standard error goes.
const SAID: &str = "said";
/// Options that a damaged configuration must not change: what they ask for takes as long as they say.
const SMALL: &str = "--device cpu --steps 1 --set train.batch_sequences=4 --set train.accumulation=1 --set train.threads=1 \
                     --set train.checkpoint_every=0 --set model.layers=1 --set model.hidden=16 --set model.heads=2 \
                     --set model.intermediate=32 --set model.max_positions=32 --set train.run=run \
                     --set train.batch_tokens=0 --set train.eval_sequences=4 --set data.dir=data \
                     --set data.prepare.dupe_factor=1";

/// Runs the launcher with arguments that are separated by spaces, and `text` behind them.
fn launch(line: &str, text: Option<&str>) -> Answer {
    try_launch(line, text)
        .unwrap_or_else(|error| Answer::Ended(format!("the launcher cannot be run: {error}")))
}

fn try_launch(line: &str, text: Option<&str>) -> std::io::Result<Answer> {
    let mut command = Command::new(launcher());
    command.args(line.split_whitespace()).args(text).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(SAID)?);
    let mut child = command.spawn()?;
    let (start, mut pause) = (Instant::now(), Duration::from_micros(500));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(Answer::Hung);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    };
    let said = String::from_utf8_lossy(&fs::read(SAID)?).into_owned();
    let last = said.lines().last().unwrap_or_default();
    if let Some(panic) = said.lines().find(|line| line.contains("panicked at")) {
        return Ok(Answer::Ended(format!("{panic}: {last}")));
    }
    Ok(match status.code() {
        Some(0) => Answer::Accepted,
        Some(1 | 2) => Answer::Refused(last.to_owned()),
        _ => Answer::Ended(format!("{status}: {last}")),
    })
}

pub fn prepare(file: &Path) -> Answer {
    launch(
        &format!("prepare --input {} --vocab vocab.txt --out out --max-seq-length 32", file.display()),
        None,
    )
}

pub fn prepare_vocabulary(_: &Path) -> Answer {
    launch("prepare --input text.txt --vocab vocab.txt --out out --max-seq-length 32", None)
}

pub fn merge(_: &Path) -> Answer {
    launch("prepare --merge part-1 part-2 --out out", None)
}

pub fn import_tfrecord(file: &Path) -> Answer {
    launch(&format!("import tfrecord {} --vocab import/vocab.txt --out out", file.display()), None)
}

pub fn import_hdf5(file: &Path) -> Answer {
    launch(&format!("import hdf5 {} --vocab import/vocab.txt --out out", file.display()), None)
}

pub fn import_again(_: &Path) -> Answer {
    let eval = "--eval import/tfrecord/part-0.tfrecord";
    launch(
        &format!("import tfrecord import/unpacked.tfrecord {eval} --vocab import/vocab.txt --out imported"),
        None,
    )
}

pub fn import_torch(file: &Path) -> Answer {
    let twin = "--config checkpoints/twin/config.json --vocab checkpoints/twin/vocab.txt";
    launch(&format!("import pytorch {} {twin} --out out", file.display()), None)
}

pub fn import_bundle(_: &Path) -> Answer {
    launch("import tf-checkpoint checkpoints/tiny --config checkpoints/twin/config.json --out out", None)
}

/// The folder of the damaged file.
pub fn inspect(file: &Path) -> Answer {
    launch(&format!("inspect {}", file.parent().unwrap_or(file).display()), None)
}

pub fn inspect_run(_: &Path) -> Answer {
    launch("inspect run", None)
}

/// The damaged file itself.
pub fn inspect_file(file: &Path) -> Answer {
    launch(&format!("inspect {}", file.display()), None)
}

pub fn eval(_: &Path) -> Answer {
    launch("eval --model run/model --data data --split train --sequences 4 --device cpu --threads 1", None)
}

pub fn fill_mask(_: &Path) -> Answer {
    launch("fill-mask --model run/model --device cpu", Some("The cat [MASK] a house."))
}

pub fn verify(file: &Path) -> Answer {
    launch(&format!("verify {} --precision f32", file.display()), None)
}

pub fn plan(file: &Path) -> Answer {
    launch(&format!("plan --step {} --gpus 1,8,64", file.display()), None)
}

pub fn plan_config(file: &Path) -> Answer {
    launch(&format!("plan --rate 700 --rate-batch 32 --gpus 1,8 --config {}", file.display()), None)
}

pub fn bench_lengths(file: &Path) -> Answer {
    launch(
        &format!(
            "bench --config tiny.toml --device cpu --batch 2 --steps 2 --ceiling 16 --lengths {}",
            file.display()
        ),
        None,
    )
}

pub fn report(_: &Path) -> Answer {
    launch("mlperf report mlperf", None)
}

pub fn train(file: &Path) -> Answer {
    launch(&format!("--config {} {SMALL}", file.display()), None)
}

pub fn train_on_data(_: &Path) -> Answer {
    launch(&format!("--config tiny.toml {SMALL}"), None)
}

/// From the last checkpoint, behind which nothing is left to do, or from the one before.
pub fn resume(_: &Path) -> Answer {
    launch("--config tiny.toml --resume", None)
}
