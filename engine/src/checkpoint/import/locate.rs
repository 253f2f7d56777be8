//! From what a user names to the files of a checkpoint, and to what lies beside them.

use super::Framework;
use super::shards::{Shard, shard};
use crate::checkpoint::shards::SUFFIX;
use crate::error::{During, Error, Result};
use crate::files::check_regular;
use std::fs;
use std::path::{Path, PathBuf};

/// What a TensorFlow checkpoint's table of contents is called.
pub(super) const INDEX: &str = "index";
/// In which files weights lie.
const WEIGHTS: [&str; 5] = ["safetensors", "bin", "pt", "pth", "ckpt"];
/// What trainers leave beside the weights under such names.
const OTHERS: [&str; 6] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states"];

/// `PREFIX` and `.suffix`, whatever dots the prefix has.
pub(super) fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// The folder that a file lies in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).during("cannot read", folder)?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|p| p.is_file()).collect();
    files.sort();
    Ok(files)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

/// The checkpoint for what a user named: a bundle's prefix, or a file of weights or an index of such files. Of a folder
/// the only one in it.
pub(super) fn checkpoint(framework: Framework, named: &Path) -> Result<PathBuf> {
    match framework {
        Framework::TensorFlow => bundle(named),
        Framework::PyTorch if named.is_dir() => weights(named),
        Framework::PyTorch => check_regular(named).map(|()| named.to_owned()),
    }
}

/// The only one of several names, or a message that lists them.
fn only(folder: &Path, mut found: Vec<PathBuf>, none: &str) -> Result<PathBuf> {
    match (found.len(), found.pop()) {
        (1, Some(path)) => Ok(path),
        (_, None) => Err(Error::file(folder, none)),
        (_, Some(last)) => {
            let names: Vec<&str> = found.iter().map(|path| name(path)).collect();
            let (first, last) = (names.join(", "), name(&last));
            Err(Error::file(
                folder,
                format!("holds {first} and {last}; name one of them instead of the folder"),
            ))
        }
    }
}

/// The file of weights in a folder; of several that belong together their index, or the first of them.
fn weights(folder: &Path) -> Result<PathBuf> {
    let files = files(folder)?;
    let is_weights = |path: &&PathBuf| {
        let other = OTHERS.iter().any(|other| name(path).starts_with(other));
        WEIGHTS.contains(&extension(path)) && !other
    };
    let mut found: Vec<PathBuf> = files.iter().filter(|path| name(path).ends_with(SUFFIX)).cloned().collect();
    let indices = found.len();
    for path in files.iter().filter(is_weights) {
        let covered = match shard(path) {
            None => false,
            Some(Shard { number, stem, .. }) => {
                let of_an_index = |index: &PathBuf| {
                    let whole = format!("{stem}.{}", extension(path));
                    name(index).strip_suffix(SUFFIX) == Some(whole.as_str())
                };
                number != 1 || found[..indices].iter().any(of_an_index)
            }
        };
        if !covered {
            found.push(path.clone());
        }
    }
    let none = match files.iter().any(|path| extension(path) == INDEX) {
        true => {
            "is a folder of a TensorFlow checkpoint; take launcher import tf-checkpoint for it".to_owned()
        }
        false => format!("is a folder without a .{} file; name the file of the weights", WEIGHTS.join(", .")),
    };
    only(folder, found, &none)
}

/// The prefix for what a user named: the prefix, its `.index`, or a folder that holds one, or whose `checkpoint` names one.
fn bundle(named: &Path) -> Result<PathBuf> {
    if named.is_dir() {
        if let Some(latest) = latest(named)? {
            return Ok(latest);
        }
        let found: Vec<PathBuf> = files(named)?
            .into_iter()
            .filter(|path| extension(path) == INDEX)
            .map(|path| path.with_extension(""))
            .collect();
        return only(
            named,
            found,
            "is a folder without a .index file; name the part of the files' names before .index",
        );
    }
    let prefix = match extension(named) {
        INDEX => named.with_extension(""),
        _ => named.to_owned(),
    };
    let index = with_suffix(&prefix, INDEX);
    if index.is_file() {
        return Ok(prefix);
    }
    let found = files(folder(named)).unwrap_or_default();
    let remedy = match found.iter().find(|path| extension(path) == INDEX) {
        Some(path) => format!("name {} instead", path.with_extension("").display()),
        None => "name the part of the files' names before .index".to_owned(),
    };
    Err(Error::file(index, format!("there is no such file; {remedy}")))
}

/// The newest checkpoint of a folder as TensorFlow's file `checkpoint` names it: a line `model_checkpoint_path: "NAME"`.
/// A path from another machine counts by its last part.
fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    let file = folder.join("checkpoint");
    let Ok(text) = fs::read_to_string(&file) else { return Ok(None) };
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("model_checkpoint_path:"));
    let Some(path) = lines.map(|value| Path::new(value.trim().trim_matches('"')).to_owned()).next() else {
        return Ok(None);
    };
    let beside = path.file_name().map(|name| folder.join(name));
    let candidates = [Some(folder.join(&path)), beside];
    let there = |prefix: &PathBuf| with_suffix(prefix, INDEX).is_file();
    if let Some(prefix) = candidates.into_iter().flatten().find(there) {
        return Ok(Some(prefix));
    }
    let what = format!("names {}, of which there is no .index file; name another checkpoint", path.display());
    Err(Error::file(file, what))
}

/// A model's configuration beside its checkpoint.
pub(super) fn config_beside(framework: Framework, checkpoint: &Path) -> Option<PathBuf> {
    // Google's checkpoints come with the second, Hugging Face's with the first
    let names = match framework {
        Framework::PyTorch => ["config.json", "bert_config.json"],
        Framework::TensorFlow => ["bert_config.json", "config.json"],
    };
    names.iter().map(|name| folder(checkpoint).join(name)).find(|path| path.is_file())
}

/// A model's vocabulary beside its checkpoint. Transformers 5 leaves it in tokenizer.json alone.
pub(super) fn vocab_beside(checkpoint: &Path) -> Option<PathBuf> {
    let names = ["vocab.txt", "tokenizer.json"];
    names.iter().map(|name| folder(checkpoint).join(name)).find(|path| path.is_file())
}
