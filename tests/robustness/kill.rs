//! A process that ends at any moment, by `kill -9` or by a signal it may answer, leaves a state to go on from.

use super::{Result, TRAIN, Workplace, leftovers, names, undisturbed};
use kernels::philox::Stream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Kills of one test run; `LAUNCHER_KILLS` asks for more.
fn wanted() -> usize {
    std::env::var("LAUNCHER_KILLS").map_or(10, |n| n.parse().expect("LAUNCHER_KILLS is a number"))
}

fn start(place: &Workplace) -> Child {
    let line = format!("{TRAIN} --resume");
    let args: Vec<&str> = line.split_whitespace().collect();
    place.interruptible(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits up to `limit`; whether the process still runs then.
fn runs_after(child: &mut Child, limit: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1).min(limit));
    }
    true
}

/// How far a run that was killed had come.
fn phase(place: &Workplace) -> &'static str {
    let (run, checkpoints) = (place.path("run"), names(&place.path("run/checkpoints")));
    if names(&run).iter().any(|n| n == "model" || n == ".tmp-model") {
        "export"
    } else if checkpoints.iter().any(|n| n.starts_with('.')) {
        "saving"
    } else if !checkpoints.is_empty() {
        "steps after a checkpoint"
    } else if run.join("metrics.jsonl").exists() {
        "first steps"
    } else if place.path("shards").exists() {
        "start"
    } else if place.path("shards.preparing").exists() {
        "preparation"
    } else {
        "before preparation"
    }
}

/// Interrupts runs with `interrupt` until it has happened `wanted` times, and compares each run's end with that of
/// one left alone. `interrupt` gets the process, which still runs, and its number, and tells whether it ended it.
fn interrupted(seed: u64, wanted: usize, interrupt: impl Fn(&mut Child, usize) -> bool) {
    let (_, expected) = undisturbed();
    let place = Workplace::with_corpus();
    let started = Instant::now();
    place.line(TRAIN).done();
    let whole = started.elapsed();

    let mut moments = Stream::new(seed, 0, 95);
    let (mut done, mut rounds, mut phases) = (0, 0, Vec::new());
    while done < wanted {
        let place = Workplace::with_corpus();
        rounds += 1;
        assert!(rounds < 20 * wanted, "only {done} interruptions in {rounds} runs");
        loop {
            let mut child = start(&place);
            let moment = whole.mul_f64(moments.uniform());
            if done < wanted && runs_after(&mut child, moment) && interrupt(&mut child, done) {
                child.wait().unwrap();
                phases.push(phase(&place));
                done += 1;
            } else {
                let status = child.wait().unwrap();
                assert_eq!(status.code(), Some(0), "after {done} interruptions: {phases:?}");
                break;
            }
        }
        Result::of(&place.path("run")).assert_equal(&expected, &format!("after {phases:?}"));
        assert_eq!(leftovers(&place.path("")), Vec::<String>::new(), "after {phases:?}");
    }
    eprintln!("{done} interruptions in {rounds} runs of {:.0} ms: {phases:?}", whole.as_secs_f64() * 1e3);
}

#[test]
fn killed_at_random_moments_and_resumed_a_run_ends_byte_equal() {
    interrupted(7, wanted(), |child, _| {
        child.kill().unwrap();
        child.wait().unwrap().signal() == Some(9)
    });
}

#[test]
fn ended_by_signals_at_random_moments_and_resumed_a_run_ends_byte_equal() {
    interrupted(8, wanted(), |child, number| {
        let (signal, code) = if number % 2 == 0 { ("-TERM", 143) } else { ("-INT", 130) };
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        // before the handlers are there the signal ends the process itself; after the last step the run ends well
        let early = status.signal().is_some_and(|n| n + 128 == code);
        assert!(early || [Some(0), Some(code)].contains(&status.code()), "{signal}: {status}");
        status.code() != Some(0)
    });
}

#[test]
fn a_preparation_that_was_killed_starts_over() {
    let place = Workplace::new();
    place.write("vocab.txt", crate::cli::vocabulary());
    // some hundred milliseconds of work
    place.write("text.txt", crate::cli::corpus(20_000));
    let line = "prepare --input text.txt --vocab vocab.txt --max-seq-length 32 --threads 1 --out";
    let started = Instant::now();
    place.line(&format!("{line} whole")).done();
    let whole = started.elapsed();
    let mut killed = 0;
    for tenth in 1..10 {
        let args: Vec<&str> = line.split_whitespace().chain(["parts"]).collect();
        let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if runs_after(&mut child, whole.mul_f64(f64::from(tenth) / 10.0)) {
            child.kill().unwrap();
        }
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
        assert!(!place.path("parts").exists() || place.path("parts/manifest.json").exists());
    }
    assert!(killed > 0, "no kill met the process");
    place.line(&format!("{line} parts")).done();
    for file in names(&place.path("whole")) {
        let read = |dir: &str| std::fs::read(place.path(dir).join(&file)).unwrap();
        assert!(read("whole") == read("parts"), "{file} differs after {killed} kills");
    }
    assert_eq!(leftovers(&place.path("")), Vec::<String>::new());
}
