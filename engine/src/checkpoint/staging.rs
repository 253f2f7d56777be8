//! Folders that appear whole or not at all: written beside their place, synced, then renamed.

use crate::error::{During, Error, Result};
use crate::files::{behind_link, parent, read_up_to};
use crate::lock::FolderLock;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Being written. Worthless if the process ended.
const TEMPORARY: &str = ".tmp-";
/// Being replaced. Goes back to its place if the replacement did not arrive.
pub(super) const REPLACED: &str = ".old-";
/// Being removed.
const REMOVED: &str = ".trash-";

/// Size and checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Size.
    pub bytes: u64,
    /// XXH3-64 of the content, 16 hexadecimal digits.
    pub xxh3: String,
}

impl Digest {
    pub(super) fn new(bytes: u64, hash: &Xxh3) -> Self {
        Self { bytes, xxh3: hex(hash.digest()) }
    }

    /// Of a file, read in pieces.
    pub(super) fn of_file(path: &Path) -> Result<Self> {
        let mut file = File::open(path).during("cannot open", path)?;
        let (mut hash, mut bytes, mut piece) = (Box::<Xxh3>::default(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece).during("cannot read", path)? {
                0 => return Ok(Self::new(bytes, &hash)),
                n => {
                    hash.update(&piece[..n]);
                    bytes += n as u64;
                }
            }
        }
    }

    /// Of a content in memory.
    pub(super) fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, xxh3: hex(xxhash_rust::xxh3::xxh3_64(content)) }
    }
}

/// A checksum as it is written.
pub(super) fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

/// A file under construction whose checksum is taken on the way.
pub(super) struct HashedFile {
    file: File,
    path: PathBuf,
    hash: Box<Xxh3>,
    bytes: u64,
}

impl HashedFile {
    /// Creates a file that is not there yet: whatever has its name, a link say, stays as it is.
    pub(super) fn create(path: &Path) -> Result<Self> {
        File::create_new(path).during("cannot create", path).map(|file| Self::of(file, path))
    }

    /// A file that is open for writing, and what messages call it.
    pub(super) fn of(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), hash: Box::default(), bytes: 0 }
    }

    /// Writes through to the file; callers hand over large pieces.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<()> {
        /// Small enough to be in the cache still when it is hashed.
        const PIECE: usize = 1 << 20;
        for piece in data.chunks(PIECE) {
            self.file.write_all(piece).during("cannot write", &self.path)?;
            self.hash.update(piece);
        }
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Waits until the content is on the disk.
    pub(super) fn finish(self) -> Result<Digest> {
        self.file.sync_all().during("cannot write", &self.path)?;
        Ok(Digest::new(self.bytes, &self.hash))
    }
}

/// Writes and syncs a small file.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<Digest> {
    let mut file = HashedFile::create(path)?;
    file.write(content)?;
    file.finish()
}

/// Reads a file that is never larger than `limit` bytes unless it is damaged.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let size = fs::metadata(path).during("cannot read", path)?.len();
    if size > limit {
        return Err(Error::file(
            path,
            format!("holds {size} bytes, at most {limit} are expected: not this kind of file; restore it"),
        ));
    }
    read_up_to(path, limit, "cannot read")
}

/// Makes a folder's entries durable. File systems that cannot sync a folder keep them in order by themselves.
fn sync_folder(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    match synced {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other.during("cannot sync", path),
    }
}

fn beside(target: &Path, prefix: &str, name: &OsStr) -> PathBuf {
    let mut full = OsString::from(prefix);
    full.push(name);
    parent(target).join(full)
}

/// Removes a file or a folder with all that it holds, if there is one.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.during("cannot remove", path)
}

/// Removes a folder in which nothing but files of these names lies.
fn remove_own(folder: &Path, files: &[&str]) -> Result<()> {
    for entry in fs::read_dir(folder).during("cannot list the folder", folder)? {
        let entry = entry.during("cannot list the folder", folder)?;
        let name = entry.file_name();
        if !files.iter().any(|file| name == *file) {
            let name = name.to_string_lossy();
            return Err(Error::file(folder, format!("holds `{name}` and is in the way; move it away")));
        }
        fs::remove_file(entry.path()).during("cannot remove", &entry.path())?;
    }
    fs::remove_dir(folder).during("cannot remove", folder)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// A folder under construction. Dropped before [`Staging::commit`], it leaves nothing behind.
pub(super) struct Staging {
    temporary: PathBuf,
    replaced: PathBuf,
    target: PathBuf,
    /// Whether `temporary` is this one's.
    begun: bool,
    /// Of a folder beside which others may lie; in its own folders a run has no rivals.
    _lock: Option<FolderLock>,
}

impl Staging {
    /// Starts a folder of a run that will be `target`, in place of what is there, and clears what a killed process left of
    /// an earlier attempt.
    pub(super) fn new(target: &Path) -> Result<Self> {
        let mut staging = Self::beside(target)?;
        remove(&staging.temporary)?;
        restore(&staging.replaced, target)?;
        fs::create_dir(&staging.temporary).during("cannot create", &staging.temporary)?;
        staging.begun = true;
        Ok(staging)
    }

    /// Starts a folder anywhere that will be `target`, where nothing is or an empty folder. Of what a killed process left
    /// of an earlier attempt, only files of these names are removed.
    pub(super) fn fresh(target: &Path, files: &[&str]) -> Result<Self> {
        let mut staging = Self::beside(&behind_link(target))?;
        let temporary = &staging.temporary;
        if let Err(e) = fs::create_dir(temporary) {
            if e.kind() != io::ErrorKind::AlreadyExists {
                return Err(e).during("cannot create", temporary);
            }
            let left = FolderLock::take(temporary).during("cannot open the folder", temporary)?;
            let Some(_left) = left else {
                let what = "another process is writing this folder; wait for it, or stop it";
                return Err(Error::file(target, what));
            };
            remove_own(temporary, files)?;
            fs::create_dir(temporary).during("cannot create", temporary)?;
        }
        staging.begun = true;
        let temporary = &staging.temporary;
        staging._lock = FolderLock::take(temporary).during("cannot open the folder", temporary)?;
        Ok(staging)
    }

    fn beside(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(Error::file(
                target,
                "is not the name of a folder that can be written; name a folder",
            ));
        };
        let holder = parent(target);
        if !holder.is_dir() {
            fs::create_dir_all(holder).during("cannot create", holder)?;
            sync_folder(parent(holder))?;
        }
        Ok(Self {
            temporary: beside(target, TEMPORARY, name),
            replaced: beside(target, REPLACED, name),
            target: target.to_owned(),
            begun: false,
            _lock: None,
        })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Puts a [`Self::fresh`] folder in its place. The system refuses where that is not empty any more.
    pub(super) fn commit_fresh(mut self) -> Result<PathBuf> {
        sync_folder(&self.temporary)?;
        fs::rename(&self.temporary, &self.target).during("cannot rename the new folder to", &self.target)?;
        self.begun = false;
        sync_folder(parent(&self.target))?;
        Ok(std::mem::take(&mut self.target))
    }

    /// Puts the folder in its place. At any moment a kill leaves the old folder or the new one recoverable: see
    /// [`recover`].
    pub(super) fn commit(mut self) -> Result<PathBuf> {
        sync_folder(&self.temporary)?;
        if exists(&self.target) {
            fs::rename(&self.target, &self.replaced).during("cannot rename", &self.target)?;
        }
        if let Err(e) = fs::rename(&self.temporary, &self.target) {
            restore(&self.replaced, &self.target)?;
            return Err(e).during("cannot rename", &self.temporary);
        }
        self.begun = false;
        sync_folder(parent(&self.target))?;
        remove(&self.replaced)?;
        Ok(std::mem::take(&mut self.target))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.begun {
            // The error that brought us here is the one to report; the next attempt removes the rest.
            let _ = remove(&self.temporary);
        }
    }
}

/// Puts a replaced folder back if nothing took its place, or removes it.
fn restore(replaced: &Path, target: &Path) -> Result<()> {
    if !exists(replaced) {
        return Ok(());
    }
    if exists(target) {
        return remove(replaced);
    }
    fs::rename(replaced, target).during("cannot rename", replaced)
}

/// Clears what killed processes left in a folder of staged folders whose names begin with `own`.
pub(super) fn recover(folder: &Path, own: &str) -> Result<()> {
    for entry in fs::read_dir(folder).during("cannot read", folder)? {
        let entry = entry.during("cannot read", folder)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let target = |prefix| name.strip_prefix(prefix).filter(|target| target.starts_with(own));
        if let Some(target) = target(REPLACED) {
            restore(&entry.path(), &folder.join(target))?;
        } else if target(TEMPORARY).or(target(REMOVED)).is_some() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder: its name goes first, so that a kill in between leaves no half of it under a valid name.
pub(super) fn discard(path: &Path) -> Result<()> {
    let Some(name) = path.file_name() else { return Ok(()) };
    let trash = beside(path, REMOVED, name);
    remove(&trash)?;
    fs::rename(path, &trash).during("cannot rename", path)?;
    remove(&trash)
}

/// Writes a file of a run beside its place and renames it there.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "is not the name of a file; name a file"));
    };
    let temporary = beside(path, TEMPORARY, name);
    remove(&temporary)?;
    write_file(&temporary, content)?;
    fs::rename(&temporary, path).during("cannot rename", &temporary)?;
    sync_folder(parent(path))
}
