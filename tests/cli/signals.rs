//! A signal ends training with a checkpoint, and what follows goes on from it.

use super::{Ran, Workplace};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs a command, sends the signals one after another once it has trained a step, and waits.
pub fn signalled(place: &Workplace, line: &str, signals: &[&str]) -> Ran {
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut child = place.interruptible(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let mut wait_for = |word: &str, said: &mut String| {
        while !said.lines().last().is_some_and(|l| l.contains(word)) {
            assert!(stderr.read_line(said).unwrap() > 0, "ended before `{word}`:\n{said}");
        }
    };
    wait_for("step ", &mut said);
    for (number, signal) in signals.iter().enumerate() {
        if number > 0 {
            wait_for("again to end at once", &mut said);
        }
        Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
    }
    stderr.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    Ran { code: output.status.code(), stdout, stderr: said }
}

#[test]
fn each_signal_ends_training_with_a_checkpoint_and_its_own_code() {
    let place = Workplace::with_corpus();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let line =
            format!("--config tiny.toml --run {signal} --steps 100000000 --set train.checkpoint_every=0");
        let ran = signalled(&place, &line, &[signal]);
        assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(&format!("SIG{signal}: ending with a checkpoint")), "{}", ran.stderr);
        let checkpoints = fs::read_dir(place.path(signal).join("checkpoints")).unwrap().count();
        assert_eq!(checkpoints, 1, "after SIG{signal}");
    }
}

#[test]
fn a_run_that_a_signal_ended_goes_on_where_it_stood() {
    let place = Workplace::with_corpus();
    let config = "--config tiny.toml --steps 1000 --set train.log_every=5 --set train.checkpoint_every=200";
    place.line(&format!("{config} --run whole")).done();
    let ran = signalled(&place, &format!("{config} --run parts"), &["TERM"]);
    assert_eq!(ran.code, Some(143), "{}\n{}", ran.stdout, ran.stderr);
    let again = place.line(&format!("{config} --run parts"));
    assert!(again.failed().contains("--resume"), "a run folder in use must not be trained in anew");
    place.line(&format!("{config} --run parts --resume")).done();
    let model = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("whole") == model("parts"), "the resumed run ended with other weights");
}

#[test]
fn a_signal_that_was_ignored_from_the_start_stays_ignored() {
    let place = Workplace::with_corpus();
    // as nohup does; the run must end by itself
    let launcher = env!("CARGO_BIN_EXE_launcher");
    let script = format!(
        "trap '' HUP; {launcher} --config tiny.toml --steps 20 & pid=$!; for i in 1 2 3 4 5; do kill -HUP $pid; \
         sleep 0.02; done; wait $pid"
    );
    let status =
        Command::new("bash").args(["-c", &script]).current_dir(place.path("")).output().unwrap().status;
    assert_eq!(status.code(), Some(0));
    assert!(place.path("run/model/model.safetensors").is_file());
}

/// A step of a minute or more: many small parts.
const LONG: &str = "--config tiny.toml --steps 100 --set train.batch_sequences=20000 --set train.accumulation=2500 \
                    --set model.layers=4 --set model.hidden=256 --set model.intermediate=1024";

/// Starts a run whose first step takes long, and sends it signals in the middle of it, all before it can answer the first.
fn in_a_long_step(place: &Workplace, line: &str, signals: &[&str]) -> Ran {
    let log = || fs::read_to_string(place.path("run/mllog.txt")).unwrap_or_default();
    let runs = || log().matches("\"run_start\"").count();
    let before = runs();
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut child = place.interruptible(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // From here on a signal asks for a checkpoint.
    while runs() == before {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its first step");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(500));
    for signal in ["STOP"].iter().chain(signals).chain(&["CONT"]) {
        Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_signal_does_not_wait_for_a_long_step_which_the_resumed_run_takes_again() {
    let place = Workplace::with_corpus();
    let ran = in_a_long_step(&place, LONG, &["TERM"]);
    assert_eq!(ran.code, Some(143), "{}\n{}", ran.stdout, ran.stderr);
    // Had it waited for the step, the checkpoint were that of step 1.
    assert!(ran.stderr.contains("step 1 was under way and is dropped"), "{}", ran.stderr);
    assert!(ran.stdout.contains("after step 0;") && place.path("run/checkpoints/step-00000000").is_dir());
    let ran = in_a_long_step(&place, &format!("{LONG} --resume"), &["INT"]);
    assert_eq!(ran.code, Some(130), "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("resumed from run/checkpoints/step-00000000"), "{}", ran.stderr);
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let place = Workplace::with_corpus();
    // Its checkpoint, of 150 MB, takes longer than the answer to a second signal.
    let line = format!("{LONG} --set model.hidden=512 --set model.heads=8 --set model.intermediate=2048");
    let ran = in_a_long_step(&place, &line, &["INT", "TERM"]);
    assert!(matches!(ran.code, Some(130 | 143)), "{:?}\n{}\n{}", ran.code, ran.stdout, ran.stderr);
    let checkpoints = fs::read_dir(place.path("run/checkpoints")).into_iter().flatten();
    let whole =
        checkpoints.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("step-"));
    assert!(ran.stdout.is_empty() && whole.count() == 0, "{}", ran.stdout);
}

#[test]
fn a_signal_does_not_wait_for_an_evaluation_which_the_resumed_run_repeats() {
    let place = Workplace::with_corpus();
    place.write("text.txt", super::corpus(40_000));
    let config = "--config tiny.toml --steps 2 --set train.log_every=1 --set train.eval_every=4 --set data.prepare.eval_fraction=0.95";
    place.line(&format!("{config} --run whole")).done();
    for (step, signal, option) in [(1, "TERM", ""), (2, "INT", "--resume")] {
        let ran = signalled(&place, &format!("{config} --run parts {option}"), &[signal]);
        assert!(matches!(ran.code, Some(130 | 143)), "{:?}\n{}\n{}", ran.code, ran.stdout, ran.stderr);
        // the first repeats nothing, the second the first one's
        assert_eq!(ran.stderr.matches("held-out text after step").count(), step - 1, "{}", ran.stderr);
    }
    place.line(&format!("{config} --run parts --resume")).done();
    let read = |file: &str| ["whole", "parts"].map(|run| fs::read(place.path(run).join(file)).unwrap());
    let [whole, parts] = read("model/model.safetensors");
    assert!(whole == parts, "the resumed run ended with other weights");
    let evaluations = |bytes: Vec<u8>| -> Vec<String> {
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines().filter(|line| line.contains("eval_loss"));
        lines.map(|line| line.split("\"eval_seconds").next().unwrap().to_owned()).collect()
    };
    let [whole, parts] = read("metrics.jsonl").map(evaluations);
    assert_eq!((whole.len(), whole), (2, parts));
}
