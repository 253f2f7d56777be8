//! Runs a reader's inputs in worker processes, counts how they end, and keeps what is a finding.

use crate::Args;
use crate::readers::{Kind, Reader};
use crate::worker::{Input, MEMORY};
use anyhow::Context;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A worker that says nothing for so long hangs. One that runs the launcher waits for it itself, and tells.
const PATIENCE: Duration = Duration::from_secs(20);
const PROGRAM_PATIENCE: Duration = Duration::from_secs(60);
/// Findings of one reader that are printed and kept.
const KEPT: u64 = 20;

/// How inputs ended.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    inputs: u64,
    accepted: u64,
    refused: u64,
    panics: u64,
    hangs: u64,
    over_memory: u64,
    other: u64,
    seconds: f64,
}

impl Tally {
    pub const HEADER: &str =
        "reader                  inputs  accepted   refused  panics  hangs  memory  other  seconds";

    pub fn line(&self, name: &str) -> String {
        let Self { inputs, accepted, refused, panics, hangs, over_memory, other, seconds } = self;
        format!(
            "{name:<20} {inputs:>9} {accepted:>9} {refused:>9} {panics:>7} {hangs:>6} {over_memory:>7} {other:>6} {seconds:>8.1}"
        )
    }

    pub fn findings(&self) -> u64 {
        self.panics + self.hangs + self.over_memory + self.other
    }

    pub fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.panics += other.panics;
        self.hangs += other.hangs;
        self.over_memory += other.over_memory;
        self.other += other.other;
        self.seconds += other.seconds;
    }

    fn count(&mut self, letter: char) -> bool {
        self.inputs += 1;
        let counter = match letter {
            'a' => &mut self.accepted,
            'r' => &mut self.refused,
            'p' => &mut self.panics,
            'h' => &mut self.hangs,
            'm' => &mut self.over_memory,
            _ => &mut self.other,
        };
        *counter += 1;
        !matches!(letter, 'a' | 'r')
    }
}

/// A worker and the lines that it prints.
struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    fn start(args: &Args, reader: &Reader, from: u64, end: u64) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("--worker").args(["--reader", reader.name]).arg("--out").arg(&args.out);
        for (option, value) in [("--seed", args.seed), ("--from", from), ("--inputs", end - from)] {
            command.arg(option).arg(value.to_string());
        }
        // Each of malloc's arenas reserves 64 MiB of address space.
        command.env("MALLOC_ARENA_MAX", "2").env("RAYON_NUM_THREADS", "1").env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(stderr(args, reader))?);
        let mut child = command.spawn().context("cannot start a worker")?;
        let stdout = child.stdout.take().context("a worker has no output")?;
        Ok(Self { child, lines: lines(stdout) })
    }
}

fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Where a worker's standard error goes.
fn stderr(args: &Args, reader: &Reader) -> PathBuf {
    args.out.join("places").join(format!("{}.stderr", reader.name))
}

/// All inputs of a reader.
pub fn reader(args: &Args, reader: &'static Reader) -> anyhow::Result<Tally> {
    fs::create_dir_all(args.out.join("places"))?;
    let (start, end) = (Instant::now(), args.end(reader));
    let patience = match reader.kind {
        Kind::Library => PATIENCE,
        Kind::Program => PROGRAM_PATIENCE,
    };
    let (mut tally, mut next) = (Tally::default(), args.from);
    while next < end {
        let mut worker = Worker::start(args, reader, next, end)?;
        let (letter, message) = loop {
            if next == end {
                break ('a', String::new());
            }
            match worker.lines.recv_timeout(patience) {
                Ok(line) => {
                    let mut words = line.splitn(3, ' ');
                    let letter = words.nth(1).and_then(|word| word.chars().next()).unwrap_or('?');
                    if tally.count(letter) {
                        keep(args, reader, next, letter, words.next().unwrap_or_default(), tally.findings())?;
                    }
                    next += 1;
                }
                Err(RecvTimeoutError::Timeout) => break ('h', "no answer".to_owned()),
                Err(RecvTimeoutError::Disconnected) => break died(args, reader, &mut worker.child)?,
            }
        };
        let _ = worker.child.kill();
        worker.child.wait()?;
        if next < end {
            tally.count(letter);
            keep(args, reader, next, letter, &message, tally.findings())?;
            next += 1;
        }
    }
    tally.seconds = start.elapsed().as_secs_f64();
    Ok(tally)
}

/// What a worker died of.
fn died(args: &Args, reader: &Reader, child: &mut Child) -> anyhow::Result<(char, String)> {
    let status = child.wait()?;
    let said = String::from_utf8_lossy(&fs::read(stderr(args, reader))?).trim().replace('\n', "; ");
    if said.starts_with("error: ") {
        anyhow::bail!("the worker failed: {said}");
    }
    let letter = if said.contains("memory allocation of") { 'm' } else { 'c' };
    Ok((letter, format!("{status}: {said}")))
}

/// Prints a finding, and keeps its file with the command that repeats it.
fn keep(
    args: &Args,
    reader: &'static Reader,
    n: u64,
    letter: char,
    message: &str,
    findings: u64,
) -> anyhow::Result<()> {
    if findings > KEPT {
        return Ok(());
    }
    let what = match letter {
        'p' => "panic",
        'h' => "hang",
        'm' => &format!("more than {} MiB", MEMORY >> 20),
        _ => "other end",
    };
    let input = Input::new(args, reader, n)?;
    let dir = args.out.join("findings").join(format!("{}-{n}", reader.name));
    fs::create_dir_all(&dir)?;
    let repeat =
        format!("bash tools/campaign.sh --reader {} --from {n} --inputs 1 --seed {}", reader.name, args.seed);
    println!(
        "{} {n}: {what}: {message}\n  {}: {}\n  {repeat}",
        reader.name,
        input.path.display(),
        dir.display()
    );
    fs::write(dir.join("finding.txt"), format!("{what}: {message}\n{}\n{repeat}\n", input.path.display()))?;
    let name = input.path.file_name().unwrap_or_default().to_owned();
    fs::write(dir.join(name), input.sealed(Path::new("")))?;
    Ok(())
}
