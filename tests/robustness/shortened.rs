//! Files that another process cuts short while they are mapped.

use super::Workplace;
use crate::cli::corpus;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

/// A run that ends only when something ends it.
const ENDLESS: &str = "--config tiny.toml --steps 1000000 --set train.log_every=1 --set train.eval_every=0 \
                       --set train.checkpoint_every=5";

fn cut(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length / 16).unwrap();
}

/// Starts a run, cuts a shard short after its 20th step and gives what is said from then on.
fn disturbed(place: &Workplace, line: &str, shard: &str) -> (Option<i32>, String) {
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while stderr.read_line(&mut said).unwrap() > 0 && !said.contains(" 20/1000000") {}
    cut(&place.path(shard));
    stderr.read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn place() -> Workplace {
    let place = Workplace::with_corpus();
    place.write("text.txt", corpus(2000));
    place
        .line(
            "prepare --input text.txt --vocab vocab.txt --out shards --max-seq-length 32 --max-predictions 5 \
             --eval-fraction 0.2",
        )
        .done();
    place
}

#[test]
fn a_shard_cut_short_ends_a_run_with_its_name_and_the_last_checkpoint_holds() {
    let place = place();
    let (code, said) = disturbed(&place, ENDLESS, "shards/train-00000.shard");
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: shards/train-00000.shard: was cut short from "), "{said}");
    assert!(last.contains("while it was in use") && last.contains("--resume"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!place.path("run/model").exists());
    let checkpoints = super::names(&place.path("run/checkpoints"));
    assert!(checkpoints.iter().all(|name| name.starts_with("step-")) && !checkpoints.is_empty());
    place.line(&format!("inspect run/checkpoints/{}", checkpoints.last().unwrap())).done();
}

#[test]
fn of_several_ranks_one_speaks() {
    let place = place();
    let (code, said) = disturbed(&place, &format!("{ENDLESS} --processes 2"), "shards/train-00000.shard");
    assert_eq!(code, Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error:")).collect();
    assert!(errors.len() == 1 && errors[0].contains("shards/train-00000.shard: was cut short"), "{said}");
}

#[test]
fn a_cut_that_no_read_meets_is_noticed_before_a_checkpoint() {
    let place = place();
    // The held-out text is read only at the end, which never comes.
    let (code, said) = disturbed(&place, ENDLESS, "shards/eval-00000.shard");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.lines().last().unwrap().contains("shards/eval-00000.shard: was cut short"), "{said}");
}
