//! The folder that data is prepared in before it gets its name.

use super::contents::Contents;
use super::part::PART;
use crate::config::PrepareConfig;
use crate::data::input::SPOOLED;
use crate::data::shards::{Dataset, InputRecord, MANIFEST, Manifest, SplitName, VOCAB};
use crate::data::tokenize::TokenizerSettings;
use crate::data::vocab::Vocab;
use crate::error::{During, Error, Result};
use crate::files::{behind_link, check_no_mount};
use crate::lock::FolderLock;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often to look whether another process is done.
const PAUSE: Duration = Duration::from_millis(100);

/// How far an import is, in its folder; see `data/import/journal.rs`.
pub(in crate::data) const JOURNAL: &str = "import.journal";
/// The journal while it is written.
pub(in crate::data) const JOURNAL_ASIDE: &str = "import.journal.new";

/// `OUT.preparing`. Removed when dropped unfinished.
pub(in crate::data) struct Staging {
    path: PathBuf,
    finished: bool,
    _lock: FolderLock,
}

impl Staging {
    /// Creates the folder, in place of one that a killed run left. While another process prepares there, calls
    /// `waiting` now and then; what is at `out` may be finished afterwards.
    pub fn create(out: &Path, waiting: &dyn Fn()) -> Result<Self> {
        let staging = Self::enter(out, waiting)?;
        staging.empty()?;
        Ok(staging)
    }

    /// As [`Staging::create`], with what a killed run left still in it.
    pub fn enter(out: &Path, waiting: &dyn Fn()) -> Result<Self> {
        let out = &behind_link(out);
        let name =
            out.file_name().ok_or_else(|| Error::file(out, "is not a folder's name; choose another"))?;
        let mut name = name.to_owned();
        name.push(".preparing");
        if let Ok(there) = std::fs::metadata(out) {
            check_no_mount(out, &there)?;
        }
        let path = out.with_file_name(name);
        if let Some(parent) = parent(&path) {
            std::fs::create_dir_all(parent).during("cannot create the folder", parent)?;
        }
        loop {
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                other => other.during("cannot create the folder", &path)?,
            }
            match FolderLock::take(&path) {
                Ok(Some(lock)) if lock.is_of(&path) => {
                    return Ok(Self { path, finished: false, _lock: lock });
                }
                // The other process has just given it its final name, or removed it.
                Ok(Some(_)) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e).during("cannot open the folder", &path),
                Ok(None) => {
                    waiting();
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what an earlier run left.
    pub fn empty(&self) -> Result<()> {
        empty(&self.path)
    }

    /// From here on a failure leaves the folder, for the next run to go on from.
    pub fn keep(&mut self) {
        self.finished = true;
    }

    /// Gives the folder its name, once all in it is on disk.
    pub fn finish(mut self, out: &Path) -> Result<()> {
        let out = &behind_link(out);
        sync(&self.path)?;
        if out.exists() {
            std::fs::remove_dir(out).during("cannot replace the empty folder", out)?;
        }
        std::fs::rename(&self.path, out).during("cannot rename the prepared data to this folder", out)?;
        self.finished = true;
        parent(out).map_or(Ok(()), sync)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.finished {
            // Whatever stays is removed by the next run; the error that led here matters more.
            let _ = empty(&self.path).and_then(|()| {
                std::fs::remove_dir(&self.path).during("cannot remove the folder", &self.path)
            });
        }
    }
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn sync(dir: &Path) -> Result<()> {
    // Only Unix opens folders as files; elsewhere the system's journal has to do.
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).during("cannot write the folder", dir)
    } else {
        Ok(())
    }
}

/// Empties a folder of what preparation writes; anything else in it is an error.
fn empty(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).during("cannot list the folder", path)? {
        let entry = entry.during("cannot list the folder", path)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let shard = (name.starts_with("train-") || name.starts_with("eval-")) && name.ends_with(".shard");
        let known = [VOCAB, MANIFEST, PART, JOURNAL, JOURNAL_ASIDE, "input.parquet"];
        if !shard && !name.starts_with(SPOOLED) && !known.contains(&&*name) {
            let what =
                format!("holds `{name}`, which no preparation wrote; move it away, then remove the folder");
            return Err(Error::file(path, what));
        }
        std::fs::remove_file(entry.path()).during("cannot remove", &entry.path())?;
    }
    Ok(())
}

/// The manifest of finished data at `out`, if it is whole and what `wanted` would become of these contents; none if there is
/// nothing.
pub(super) fn existing(
    out: &Path,
    wanted: &Manifest,
    vocab: Option<&Vocab>,
    contents: &Contents<'_>,
) -> Result<Option<Manifest>> {
    existing_like(out, &|found| match difference(found, wanted, vocab) {
        None => contents.difference(&out.join(MANIFEST), &found.inputs),
        found => Ok(found),
    })
}

/// The manifest of finished data at `out`, if it is whole and `difference` finds none; none if there is nothing.
pub(in crate::data) fn existing_like(
    out: &Path,
    difference: &dyn Fn(&Manifest) -> Result<Option<String>>,
) -> Result<Option<Manifest>> {
    if !out.exists() {
        return Ok(None);
    }
    // What a part's folder is, its missing manifest says.
    if !out.join(MANIFEST).exists() && !out.join(PART).exists() {
        let mut entries = std::fs::read_dir(out).during("cannot list the folder", out)?;
        let remedy = format!("it holds other files and no {MANIFEST}; choose another folder");
        return if entries.next().is_none() { Ok(None) } else { Err(Error::file(out, remedy)) };
    }
    let found = Manifest::load(out)?;
    match difference(&found)? {
        None => {
            for split in [SplitName::Train, SplitName::Eval] {
                Dataset::open_verified(out, split)?;
            }
            Ok(Some(found))
        }
        Some(what) => {
            let what =
                format!("holds data prepared otherwise: {what}; choose another folder or remove this one");
            Err(Error::file(out, what))
        }
    }
}

/// What differs, if anything that is known without reading the input; where that lies does not matter.
pub(super) fn difference(found: &Manifest, wanted: &Manifest, vocab: Option<&Vocab>) -> Option<String> {
    if found.source.is_some() {
        return Some("it was imported".into());
    }
    if found.omitted.left_out > 0 && !wanted.options.skip_bad {
        return Some("bad rows were left out of it (skip_bad)".into());
    }
    match option_difference(&found.options, &wanted.options) {
        Some((key, there, here)) => Some(format!("{key} is {there} there and {here} here")),
        None => source_difference(found, &wanted.inputs, vocab)
            .or_else(|| tokenizer_difference(found, wanted.tokenizer())),
    }
}

/// How text is normalized otherwise, if it is.
pub(in crate::data) fn tokenizer_difference(found: &Manifest, wanted: TokenizerSettings) -> Option<String> {
    let (key, there, here) = found.tokenizer().difference(&wanted)?;
    Some(format!("{key} is {there} there and {here} here"))
}

/// The first option that makes other data: its name, its value there and here. Where text and vocabulary lie makes no
/// difference, and what became of the options of the tokenizer the manifest says.
pub(super) fn option_difference(
    there: &PrepareConfig,
    here: &PrepareConfig,
) -> Option<(String, Value, Value)> {
    let options = |options: &PrepareConfig| {
        let mut options = options.clone();
        (options.input, options.vocab, options.eval_input) = (Vec::new(), None, None);
        // Without a name it is that of old; what was left out, the manifest says.
        (options.text_field, options.skip_bad) = (Some(options.field().to_owned()), false);
        (options.lowercase, options.strip_accents, options.tokenize_chinese_chars) = (None, None, None);
        serde_json::to_value(options).unwrap_or_default()
    };
    let (there, here) = (options(there), options(here));
    let (key, value) =
        here.as_object()?.iter().find(|(key, value)| there.get(key.as_str()) != Some(value))?;
    Some((key.clone(), there.get(key).cloned().unwrap_or_default(), value.clone()))
}

/// What differs in the files and the vocabulary that data was made of, as far as it is known without reading the files.
pub(in crate::data) fn source_difference(
    found: &Manifest,
    inputs: &[InputRecord],
    vocab: Option<&Vocab>,
) -> Option<String> {
    if let Some(vocab) = vocab.filter(|vocab| vocab.sha256() != found.vocab_sha256) {
        return Some(format!("vocabulary {} there and {} here", found.vocab_sha256, vocab.sha256()));
    }
    input_difference(&found.inputs, inputs)
}

/// What differs in lists of files; their names and sizes count, not where they lie. What they hold is for [`Contents`].
pub(in crate::data) fn input_difference(found: &[InputRecord], inputs: &[InputRecord]) -> Option<String> {
    let names = |inputs: &[InputRecord]| -> Vec<_> {
        inputs.iter().map(|i| (i.path.file_name().map(ToOwned::to_owned), i.bytes)).collect()
    };
    let (ours, theirs) = (names(inputs), names(found));
    (ours != theirs).then(|| match ours.iter().zip(&theirs).find(|(a, b)| a != b) {
        Some(((ours, bytes), (theirs, other_bytes))) => {
            let name = |n: &Option<OsString>| n.as_deref().unwrap_or_default().to_string_lossy().into_owned();
            format!("input {} of {other_bytes} bytes there, {} of {bytes} here", name(theirs), name(ours))
        }
        None => format!("{} input files there and {} here", theirs.len(), ours.len()),
    })
}
