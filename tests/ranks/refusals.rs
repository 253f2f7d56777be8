//! Ranks that differ, or that cannot start, are refused with one message. They are started by hand, with torchrun's variables.

use super::job::one_error;
use super::place;
use crate::cli::{Workplace, corpus, vocabulary};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// One rank of several: its program, its folder and its options.
pub(super) struct Rank {
    pub(super) program: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) options: &'static str,
}

impl Rank {
    pub(super) fn new(place: &Workplace) -> Self {
        Self { program: env!("CARGO_BIN_EXE_launcher").into(), folder: place.path(""), options: "" }
    }

    pub(super) fn command(&self, config: &Path, rank: usize, world: usize, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(config).args(["--device", "cpu"]).args(self.options.split_whitespace());
        command.current_dir(&self.folder).stdin(Stdio::null()).env_remove("RUST_LOG");
        for name in ["RANK", "LOCAL_RANK"] {
            command.env(name, rank.to_string());
        }
        for name in ["WORLD_SIZE", "LOCAL_WORLD_SIZE"] {
            command.env(name, world.to_string());
        }
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Not one that the system gives to whoever asks for any, which may happen before rank 0 listens.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = (std::process::id() % 100) as u16 * 100;
    let ports = std::iter::repeat_with(|| 10_000 + own + NEXT.fetch_add(1, Ordering::Relaxed) % 100);
    ports.take(100).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

/// The one message of ranks none of which may succeed.
#[track_caller]
fn refused(place: &Workplace, ranks: &[Rank]) -> String {
    let port = free_port();
    let config = place.path("ranks.toml");
    let start = |(i, rank): (usize, &Rank)| rank.command(&config, i, ranks.len(), port).spawn().unwrap();
    let started: Vec<_> = ranks.iter().enumerate().map(start).collect();
    let mut said = String::new();
    for child in started {
        let output = child.wait_with_output().unwrap();
        said += &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
    }
    assert!(!place.path("run").exists(), "{said}");
    one_error(&said).to_owned()
}

#[track_caller]
fn names_both(error: &str, what: &str, values: [&str; 2]) {
    assert!(error.contains("rank 1 on ") && error.contains("rank 0"), "{error}");
    assert!(error.contains(what), "{error}");
    assert!(values.iter().all(|value| error.contains(value)), "{values:?}: {error}");
}

#[test]
fn another_program_is_refused() {
    let place = place();
    let other = place.path("another-build");
    fs::copy(env!("CARGO_BIN_EXE_launcher"), &other).unwrap();
    let mut bytes = fs::read(&other).unwrap();
    // Behind all that is loaded.
    bytes.extend(b"built elsewhere");
    fs::write(&other, bytes).unwrap();
    let error = refused(&place, &[Rank::new(&place), Rank { program: other, ..Rank::new(&place) }]);
    names_both(&error, "runs program ", [" of build ", "use the same program on all machines"]);
    let builds: Vec<&str> = error.split(" of build ").skip(1).map(|rest| &rest[..16]).collect();
    assert!(builds.len() == 2 && builds[0] != builds[1], "{error}");
}

#[test]
fn another_configuration_is_refused() {
    let place = place();
    let error =
        refused(&place, &[Rank::new(&place), Rank { options: "--set schedule.lr=0.5", ..Rank::new(&place) }]);
    names_both(&error, "has another configuration than rank 0: ", [" and ", "start all ranks with the same"]);
    let (_, hashes) = error.split_once("than rank 0: ").unwrap();
    let hashes: Vec<&str> = hashes.split([' ', ';']).filter(|word| word.len() == 64).collect();
    assert!(hashes.len() == 2 && hashes[0] != hashes[1], "{error}");
}

/// What a manifest has under a name.
fn recorded(place: &Workplace, folder: &str, name: &str) -> String {
    let text = fs::read_to_string(place.path(folder).join("shards/manifest.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[name].as_str().unwrap().to_owned()
}

/// A rank whose folder `shards` was made of other text or by another vocabulary.
fn with_data(place: &Workplace, text: &str, vocab: &str, options: &str) -> Rank {
    place.write("elsewhere/text.txt", text);
    place.write("elsewhere/vocab.txt", vocab);
    let made = "prepare --input elsewhere/text.txt --vocab elsewhere/vocab.txt --out elsewhere/shards \
                --max-seq-length 32 --eval-fraction 0.2";
    place.line(&format!("{made} {options}")).done();
    Rank { folder: place.path("elsewhere"), ..Rank::new(place) }
}

#[test]
fn other_data_is_refused() {
    let place = place();
    let other = with_data(&place, &corpus(61), &vocabulary(), "");
    let error = refused(&place, &[Rank::new(&place), other]);
    names_both(&error, "has another prepared data than rank 0: ", [" and ", "start all ranks with the same"]);
}

#[test]
fn another_vocabulary_is_refused() {
    let place = place();
    let other = with_data(&place, &corpus(60), &(vocabulary() + "unheardof\n"), "");
    let hashes = ["", "elsewhere"].map(|folder| recorded(&place, folder, "vocab_sha256"));
    let error = refused(&place, &[Rank::new(&place), other]);
    names_both(&error, "has another vocabulary than rank 0: ", [&hashes[0], &hashes[1]]);
}

/// The sequences are the same here, what the model would say of itself is not.
#[test]
fn another_tokenizer_is_refused() {
    let place = place();
    let other = with_data(&place, &corpus(60), &vocabulary(), "--strip-accents false");
    let error = refused(&place, &[Rank::new(&place), other]);
    names_both(&error, "has another tokenizer than rank 0: ", ["uncased, accents kept", " and uncased; "]);
}

/// Rank 1 never gets to the end of reading its data: the others do not wait for ever.
#[test]
fn a_rank_that_hangs_at_the_start_is_named() {
    let place = place();
    fs::create_dir_all(place.path("elsewhere/shards")).unwrap();
    let pipe = place.path("elsewhere/shards/manifest.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let options = "--set ranks.start_seconds=3 --set ranks.hang_seconds=2";
    let ranks = [
        Rank { options, ..Rank::new(&place) },
        Rank { options, folder: place.path("elsewhere"), ..Rank::new(&place) },
    ];
    let error = refused(&place, &ranks);
    assert!(error.contains("rank 1 on "), "{error}");
    assert!(error.contains("hangs: the others have waited for it for 3 s"), "{error}");
}
