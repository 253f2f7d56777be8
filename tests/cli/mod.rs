//! The binary as a user runs it: arguments, exit codes, output, files.

mod bad_input;
mod batches;
mod cased;
mod data_truth;
mod end_to_end;
mod import;
mod import_model;
pub mod mlperf;
mod mlperf_data;
mod nonsense;
mod overwrite;
mod parts;
mod plan;
mod sharing;
mod signals;
mod text_input;
mod usage;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// How a command ended.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The one line that a command that must fail says.
    #[track_caller]
    pub fn failed(self) -> String {
        assert_eq!(self.code, Some(1), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        let line = self.stderr.lines().last().unwrap_or_default().to_owned();
        let message = line.strip_prefix("error: ").unwrap_or_else(|| panic!("stderr:\n{}", self.stderr));
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        message.to_owned()
    }
}

/// A folder to run commands in.
pub struct Workplace {
    dir: TempDir,
}

impl Workplace {
    pub fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_launcher"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    /// As [`Self::command`], with no signal ignored: whoever runs the tests may ignore SIGINT (a shell does so for what it
    /// runs in the background), and the launcher would go on ignoring it.
    pub fn interruptible(&self, args: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,TERM,HUP", env!("CARGO_BIN_EXE_launcher")]);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// As [`Self::run`], the arguments separated by spaces.
    pub fn line(&self, line: &str) -> Ran {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// A corpus in `text.txt`, its vocabulary in `vocab.txt` and a tiny model's configuration in `tiny.toml`.
    pub fn with_corpus() -> Self {
        let place = Self::new();
        place.write("vocab.txt", vocabulary());
        place.write("text.txt", corpus(60));
        place.write("tiny.toml", TINY);
        place
    }
}

/// Trains in a second or two.
const TINY: &str = r#"
[model]
layers = 1
hidden = 16
heads = 2
intermediate = 32
max_positions = 32

[data]
dir = "shards"

[data.prepare]
input = ["text.txt"]
vocab = "vocab.txt"
max_seq_length = 32
max_predictions = 5
eval_fraction = 0.2

[train]
run = "run"
device = "cpu"
steps = 8
batch_sequences = 4
log_every = 2
checkpoint_every = 4
threads = 1

[schedule]
lr = 1e-2
warmup_steps = 2
"#;

const SUBJECTS: [&str; 6] = ["cat", "dog", "king", "ship", "river", "child"];
const VERBS: [&str; 5] = ["sees", "finds", "follows", "leaves", "hears"];
const OBJECTS: [&str; 6] = ["house", "mountain", "song", "road", "garden", "star"];

pub fn vocabulary() -> String {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "and", "."];
    let words = special.into_iter().chain(SUBJECTS).chain(VERBS).chain(OBJECTS);
    words.map(|word| format!("{word}\n")).collect()
}

/// Documents of a few sentences, one a line.
pub fn corpus(documents: usize) -> String {
    let mut text = String::new();
    for d in 0..documents {
        for s in 0..4 + d % 3 {
            let i = 7 * d + 3 * s;
            let (subject, verb, object) = (SUBJECTS[i % 6], VERBS[(i / 2) % 5], OBJECTS[(i / 3) % 6]);
            writeln!(text, "The {subject} {verb} a {object} and the {object} {verb} the {subject}.").unwrap();
        }
        text.push('\n');
    }
    text
}

/// All files below a folder.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
