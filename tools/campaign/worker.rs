//! A process that reads inputs one after another and prints a line for each: its number, how it ended, a message.

use crate::mutate::{Draw, mutate};
use crate::readers::{Answer, Reader};
use crate::seal::{Seal, seal};
use crate::{Args, samples};
use anyhow::Context;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Address space of a worker, and of each launcher that it starts.
pub const MEMORY: u64 = 2 << 30;

/// The last panic of any thread.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// An input: which sample is damaged, and the bytes that take its place.
pub struct Input {
    pub path: &'static Path,
    seal: Seal,
    sample: Vec<u8>,
    bytes: Vec<u8>,
}

impl Input {
    /// Input `n` of a reader.
    pub fn new(args: &Args, reader: &Reader, n: u64) -> anyhow::Result<Self> {
        let sample = |(path, _): &(&str, Seal)| {
            let path = args.out.join("samples").join(path);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut draw = Draw::new(args.seed, reader.name, n);
        let chosen = &reader.files[draw.below(reader.files.len())];
        let (bytes, other) = (sample(chosen)?, sample(&reader.files[draw.below(reader.files.len())])?);
        let damaged = mutate(&mut draw, &bytes, &other);
        Ok(Self { path: Path::new(chosen.0), seal: chosen.1, sample: bytes, bytes: damaged })
    }

    /// Its bytes, checksums set right, and those of the files beside `path` that name them.
    pub fn sealed(mut self, path: &Path) -> Vec<u8> {
        seal(self.seal, &mut self.bytes, &self.sample, path);
        self.bytes
    }

    /// Writes it to the current folder.
    fn write(self) -> anyhow::Result<()> {
        let path = self.path;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, self.sealed(path)).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Where a reader's inputs are written and read.
fn place(args: &Args, reader: &Reader) -> PathBuf {
    args.out.join("places").join(reader.name)
}

/// Reads the inputs of one reader.
pub fn run(args: &Args, reader: &'static Reader) -> anyhow::Result<()> {
    let out = fs::canonicalize(&args.out)?;
    let args = Args { out, ..args.clone() };
    let place = place(&args, reader);
    fs::create_dir_all(&place)?;
    std::env::set_current_dir(&place)?;
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    setrlimit(Resource::As, limit).context("cannot limit the address space")?;
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        if let Ok(mut last) = PANIC.lock() {
            last.get_or_insert_with(|| panic.to_string());
        }
    }));
    let mut out = std::io::stdout().lock();
    for n in args.from..args.from + args.inputs {
        lay_out(&args, reader)?;
        let input = Input::new(&args, reader, n)?;
        let path = input.path;
        input.write()?;
        let answer = catch_unwind(AssertUnwindSafe(|| (reader.read)(path)));
        let panic = PANIC.lock().ok().and_then(|mut last| last.take());
        let (letter, message) = match (answer, panic) {
            (_, Some(panic)) => ('p', panic),
            (Err(_), None) => ('p', "a panic without a message".to_owned()),
            (Ok(Answer::Accepted), _) => ('a', String::new()),
            (Ok(Answer::Refused(message)), _) => ('r', message),
            (Ok(Answer::Hung), _) => ('h', String::new()),
            (Ok(Answer::Ended(message)), _) if message.contains("panicked at") => ('p', message),
            (Ok(Answer::Ended(message)), _) if message.contains("memory allocation of") => ('m', message),
            (Ok(Answer::Ended(message)), _) => ('c', message),
        };
        writeln!(out, "{n} {letter} {}", message.replace(['\n', '\r'], "; "))?;
        out.flush()?;
    }
    Ok(())
}

/// Has the current folder hold the reader's samples and nothing else.
fn lay_out(args: &Args, reader: &Reader) -> anyhow::Result<()> {
    for entry in fs::read_dir(".")? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    let samples = args.out.join("samples");
    for name in reader.beside {
        samples::copy(&samples.join(name), Path::new(name))?;
    }
    Ok(())
}
