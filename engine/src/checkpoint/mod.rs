//! Checkpoints: all that a run needs to go on, bit for bit, in `RUN/checkpoints/step-00000123/`:
//!
//! - `model.safetensors`: the weights under Hugging Face's names, logical elements only;
//! - `optimizer.safetensors`: the moments, `exp_avg.NAME` and `exp_avg_sq.NAME`;
//! - `config.json`: the model's sizes, as Hugging Face writes them;
//! - `state.json`: [`TrainState`] and the size and checksum of each file.
//!
//! A checkpoint is written under another name, synced and renamed, so a name `step-…` stands for a whole one at any
//! moment. One process trains in a run folder at a time: the trainer locks it.

pub mod hf;
pub mod import;
mod shards;
pub(crate) mod staging;
mod tensor_file;
mod train_state;

pub use staging::Digest;
pub use train_state::TrainState;

use crate::config::ModelConfig;
use crate::error::{During, Error, Result};
use crate::table::{Tensor, TensorTable};
use kernels::cpu::memory::zeros;
use safetensors::Dtype;
use staging::{REPLACED, Staging, discard, read_small, recover, write_file};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tensor_file::TensorFile;
use train_state::{Manifest, STATE};

pub(crate) const MODEL: &str = "model.safetensors";
pub(crate) const CONFIG: &str = "config.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const FIRST_MOMENT: &str = "exp_avg.";
const SECOND_MOMENT: &str = "exp_avg_sq.";
/// A checkpoint's folder is this and its step.
const STEP: &str = "step-";
/// What a damaged checkpoint's name becomes once training goes on from an older one.
const DAMAGED: &str = "damaged-";

/// A checkpoint in memory. The slices have the table's length; padding is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Where training stood.
    pub state: TrainState,
    /// Parameters.
    pub weights: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
}

fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Name, shape and logical elements of every tensor, `prefix` before each name.
fn views<'a>(prefix: &str, table: &'a TensorTable, flat: &'a [f32]) -> Vec<(String, &'a [usize], &'a [f32])> {
    let view = |t: &'a Tensor| (format!("{prefix}{}", t.name), t.shape.as_slice(), &flat[t.range()]);
    table.tensors.iter().map(view).collect()
}

/// Writes the checkpoint of `state.step` and returns its folder; one of the same step is replaced.
///
/// # Errors
/// What the system answers, as on a full disk; earlier checkpoints stay as they are.
///
/// # Panics
/// If a slice does not have the table's length.
pub fn save(
    run: &Path,
    state: &TrainState,
    model: &ModelConfig,
    table: &TensorTable,
    weights: &[f32],
    m: &[f32],
    v: &[f32],
) -> Result<PathBuf> {
    for slice in [weights, m, v] {
        assert_eq!(slice.len(), table.len, "weights and moments have the table's length");
    }
    let staging = Staging::new(&folder(run).join(format!("{STEP}{:08}", state.step)))?;
    let at = |name: &str| staging.path().join(name);
    let mut moments = views(FIRST_MOMENT, table, m);
    moments.extend(views(SECOND_MOMENT, table, v));
    let info = ("format", "pt");
    let files = BTreeMap::from([
        (MODEL.to_owned(), tensor_file::write(&at(MODEL), info, &views("", table, weights))?),
        (OPTIMIZER.to_owned(), tensor_file::write(&at(OPTIMIZER), info, &moments)?),
        (CONFIG.to_owned(), write_file(&at(CONFIG), &hf::config::to_bytes(model, 0))?),
    ]);
    write_file(&at(STATE), &Manifest::new(state, files).seal()?)?;
    staging.commit()
}

/// Reads where training stood, without the weights.
///
/// # Errors
/// A state.json that is missing or damaged.
pub fn read_state(path: &Path) -> Result<TrainState> {
    Ok(Manifest::read(path)?.state)
}

/// Reads and verifies one checkpoint of a model.
///
/// # Errors
/// Names the file and what is wrong with it: missing, cut short, changed, of another model, or not finite.
pub fn load(path: &Path, model: &ModelConfig, table: &TensorTable) -> Result<Checkpoint> {
    let manifest = Manifest::read(path)?;
    let promised = |name: &str| {
        let file = manifest.files.get(name);
        file.ok_or_else(|| {
            Error::file(path.join(STATE), format!("files.{name} is missing; use another checkpoint"))
        })
    };
    let config = path.join(CONFIG);
    let bytes = read_small(&config, hf::config::LIMIT)?;
    verify(&config, &Digest::of(&bytes), promised(CONFIG)?)?;
    hf::config::parse(&config, &bytes)?.same_model(&config, model)?;

    let [mut weights, mut m, mut v] =
        [zeros("weights", table.len)?, zeros("moments", table.len)?, zeros("moments", table.len)?];
    read_tables(&path.join(MODEL), promised(MODEL)?, table, &mut [("", &mut weights)])?;
    let mut moments = [(FIRST_MOMENT, m.as_mut_slice()), (SECOND_MOMENT, v.as_mut_slice())];
    read_tables(&path.join(OPTIMIZER), promised(OPTIMIZER)?, table, &mut moments)?;
    for (file, numbers) in [(MODEL, &weights), (OPTIMIZER, &m), (OPTIMIZER, &v)] {
        let broken = |t: &&Tensor| numbers[t.range()].iter().any(|x| !x.is_finite());
        if let Some(tensor) = table.tensors.iter().find(broken) {
            let what = format!("holds a value of {} that is not finite; use another checkpoint", tensor.name);
            return Err(Error::file(path.join(file), what));
        }
    }
    Ok(Checkpoint { path: path.to_owned(), state: manifest.state, weights, m, v })
}

fn verify(path: &Path, found: &Digest, promised: &Digest) -> Result<()> {
    if found.bytes != promised.bytes {
        let (found, promised) = (found.bytes, promised.bytes);
        return Err(Error::file(
            path,
            format!("damaged: {found} bytes, {STATE} says {promised}; use another checkpoint"),
        ));
    }
    if found.xxh3 != promised.xxh3 {
        let (found, promised) = (&found.xxh3, &promised.xxh3);
        return Err(Error::file(
            path,
            format!("damaged: checksum {found}, {STATE} says {promised}; use another checkpoint"),
        ));
    }
    Ok(())
}

/// Reads a file that holds every tensor of the table once for each prefix, and nothing else.
fn read_tables(
    path: &Path,
    promised: &Digest,
    table: &TensorTable,
    parts: &mut [(&str, &mut [f32])],
) -> Result<()> {
    let size = fs::metadata(path).during("cannot read", path)?.len();
    verify(path, &Digest { bytes: size, xxh3: promised.xxh3.clone() }, promised)?;
    match read_parts(path, table, parts) {
        Ok(found) => verify(path, &found, promised),
        // A changed header can say anything: that it was changed is the better message.
        Err(error) => verify(path, &Digest::of_file(path)?, promised).and(Err(error)),
    }
}

fn read_parts(path: &Path, table: &TensorTable, parts: &mut [(&str, &mut [f32])]) -> Result<Digest> {
    let mut places: HashMap<String, (usize, &Tensor)> = HashMap::new();
    for (part, (prefix, _)) in parts.iter().enumerate() {
        places.extend(table.tensors.iter().map(|t| (format!("{prefix}{}", t.name), (part, t))));
    }
    let mut file = TensorFile::open(path)?;
    for entry in file.entries.clone() {
        let Some((part, tensor)) = places.remove(&entry.name) else {
            return Err(Error::file(
                path,
                format!("{} is no tensor of this model; use another checkpoint", entry.name),
            ));
        };
        if entry.shape != tensor.shape || entry.dtype != Dtype::F32 {
            let (name, dtype, shape, wanted) = (&entry.name, entry.dtype, &entry.shape, &tensor.shape);
            return Err(Error::file(
                path,
                format!(
                    "{name} is {dtype:?} {shape:?}, the model has F32 {wanted:?}; use its own checkpoints"
                ),
            ));
        }
        file.read(&mut parts[part].1[tensor.range()])?;
    }
    if let Some(name) = places.keys().min() {
        let count = places.len();
        return Err(Error::file(
            path,
            format!("{count} tensors are missing, {name} is one; use another checkpoint"),
        ));
    }
    Ok(file.digest())
}

/// The checkpoints of a run by ascending step, whole or not: `(step, folder)`.
///
/// # Errors
/// What the system answers; a run without checkpoints is an empty list.
pub fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = folder(run);
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during("cannot read", &folder)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.during("cannot read", &folder)?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|n| n.strip_prefix(STEP));
        if let Some(step) = digits.and_then(|d| d.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a run has a checkpoint, whole or not; one counts that a killed process was about to replace.
///
/// # Errors
/// What the system answers.
pub fn holds_any(run: &Path) -> Result<bool> {
    let replaced = || {
        let names = fs::read_dir(folder(run)).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let prefix = format!("{REPLACED}{STEP}");
        names.into_iter().any(|name| name.to_str().is_some_and(|name| name.starts_with(&prefix)))
    };
    Ok(!list(run)?.is_empty() || replaced())
}

/// The newest whole checkpoint of a run, or none if it has no checkpoint. For the process that trains: leftovers of
/// killed processes are removed, and damaged checkpoints newer than the one returned are renamed to `damaged-step-…`,
/// so that they neither count for [`prune`] nor stand where training will write again. `warn` gets one line for each.
///
/// # Errors
/// Where there are checkpoints and none can be read: the message names each, and all stay as they are. Where the newest
/// is not damaged, but the system refuses to read it or another version of this program wrote it.
pub fn latest(
    run: &Path,
    model: &ModelConfig,
    table: &TensorTable,
    warn: &mut dyn FnMut(String),
) -> Result<Option<Checkpoint>> {
    let folder = folder(run);
    if !folder.exists() {
        return Ok(None);
    }
    recover(&folder, STEP)?;
    let mut refused: Vec<(PathBuf, Error)> = Vec::new();
    for (step, path) in list(run)?.into_iter().rev() {
        let loaded = load(&path, model, table).and_then(|c| match c.state.step {
            s if s == step => Ok(c),
            s => Err(Error::file(
                path.join(STATE),
                format!("step: {s}, its folder says {step}; rename the folder"),
            )),
        });
        match loaded {
            Ok(checkpoint) => {
                for (path, error) in refused {
                    warn(format!("{error}: skipped{}", set_aside(&path)));
                }
                return Ok(Some(checkpoint));
            }
            Err(error) if is_transient(&error) || Manifest::is_of_another_version(&path) => {
                return Err(error);
            }
            Err(error) => refused.push((path, error)),
        }
    }
    if refused.is_empty() {
        return Ok(None);
    }
    let what: Vec<String> = refused.iter().map(|(_, error)| error.to_string()).collect();
    Err(Error::file(
        &folder,
        format!(
            "none of {} checkpoints can be read ({}); restore one, or remove the folder to start anew",
            refused.len(),
            what.join("; ")
        ),
    ))
}

/// Whether reading may succeed another time: the system refused, and not because something is missing.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => {
            use ErrorKind::{IsADirectory, NotADirectory, NotFound, UnexpectedEof};
            !matches!(source.kind(), NotFound | UnexpectedEof | IsADirectory | NotADirectory)
        }
        _ => false,
    }
}

/// Takes a damaged checkpoint out of the sequence; says under which name it is kept.
fn set_aside(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let names = (0..1000).map(|i| match i {
        0 => format!("{DAMAGED}{name}"),
        i => format!("{DAMAGED}{name}.{i}"),
    });
    let free = names.map(|n| path.with_file_name(n)).find(|p| fs::symlink_metadata(p).is_err());
    match free.map(|to| (fs::rename(path, &to), to)) {
        Some((Ok(()), to)) => format!(" and kept as {}", to.display()),
        _ => String::new(),
    }
}

/// Keeps the `keep` newest checkpoints, at least one, and that of step `best`; removes the others.
///
/// # Errors
/// What the system answers. A kill in between leaves no checkpoint half removed under its name.
pub fn prune(run: &Path, keep: usize, best: Option<u64>) -> Result<()> {
    let all = list(run)?;
    let old = all.len().saturating_sub(keep.max(1));
    for (step, path) in &all[..old] {
        if Some(*step) != best {
            discard(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
