//! What input files hold: a hash of each, by which prepared data is known to be of them. Path, size and time do not tell: an
//! edit may keep the size, and `cp -p` or `touch -r` keep the time.

use super::{Phase, PrepareProgress};
use crate::data::pipeline::ordered;
use crate::data::shards::InputRecord;
use crate::error::{During, Error, Result};
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::Xxh3;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Bytes between two reports of progress.
const REPORT: u64 = 64 << 20;

/// A file that is input.
#[derive(Debug, Clone, Copy)]
pub(in crate::data) struct Source<'a> {
    /// As messages and records name it.
    pub name: &'a Path,
    /// What is opened: the file itself, or where the bytes of a pipe are kept.
    pub on_disk: &'a Path,
    /// Its size as it was found.
    pub bytes: u64,
}

impl<'a> Source<'a> {
    /// A file that is opened under its own name.
    pub fn of(name: &'a Path, bytes: u64) -> Self {
        Self { name, on_disk: name, bytes }
    }
}

/// Files that are input, and what they hold.
pub(in crate::data) struct Contents<'a> {
    files: Vec<Source<'a>>,
    stamps: Vec<Stamp>,
    hashes: OnceLock<Vec<String>>,
    threads: usize,
    progress: &'a (dyn Fn(&PrepareProgress) + Sync),
}

impl<'a> Contents<'a> {
    /// Takes note of when each file was last written.
    pub fn new(
        files: impl Iterator<Item = Source<'a>>,
        threads: usize,
        progress: &'a (dyn Fn(&PrepareProgress) + Sync),
    ) -> Result<Self> {
        let files: Vec<_> = files.collect();
        let stamps = files.iter().map(|file| Stamp::of(file.on_disk)).collect::<Result<_>>()?;
        Ok(Self { files, stamps, hashes: OnceLock::new(), threads, progress })
    }

    /// XXH3 of 128 bits over each file, hexadecimal. The first call reads all of them, side by side.
    pub fn hashes(&self) -> Result<&[String]> {
        if let Some(hashes) = self.hashes.get() {
            return Ok(hashes);
        }
        let read = AtomicU64::new(0);
        let report = || {
            (self.progress)(&PrepareProgress {
                bytes_read: read.load(Relaxed),
                bytes_total: self.files.iter().map(|file| file.bytes).sum(),
                ..PrepareProgress::new(Phase::Hashing, &[])
            });
        };
        let mut hashes = Vec::with_capacity(self.files.len());
        ordered(
            self.threads.min(self.files.len()),
            self.files.len(),
            |emit| self.files.iter().try_for_each(|file| emit(file, 1)),
            || {
                let mut buffer = vec![0; CHUNK];
                let (read, report) = (&read, &report);
                move |file| hash_file(file, &mut buffer, read, report)
            },
            |hash| {
                hashes.push(hash);
                Ok(())
            },
        )?;
        report();
        Ok(self.hashes.get_or_init(|| hashes))
    }

    /// The files as a manifest records them.
    pub fn records(&self) -> Result<Vec<InputRecord>> {
        let files = self.files.iter().zip(self.hashes()?);
        let record = |(file, hash): (&Source<'_>, &String)| InputRecord {
            path: file.name.to_owned(),
            bytes: file.bytes,
            xxh3: Some(hash.clone()),
        };
        Ok(files.map(record).collect())
    }

    /// Makes sure that the files still hold what was hashed, so that all that was made of them since is of that.
    ///
    /// # Errors
    /// The first file that was written meanwhile.
    pub fn check_unchanged(&self) -> Result<()> {
        for ((file, before), hash) in self.files.iter().zip(&self.stamps).zip(self.hashes()?) {
            // A new mode or another link shows in the times as well.
            let same = Stamp::of(file.on_disk)? == *before
                || hash_file(file, &mut vec![0; CHUNK], &AtomicU64::new(0), &|| ())? == *hash;
            if !same || before.bytes != file.bytes {
                return Err(Error::file(
                    file.name,
                    "was written while it was read; start again when nothing writes it any more",
                ));
            }
        }
        Ok(())
    }

    /// What differs between these files and those, of the same names and sizes, that the manifest (or part) at `path` records.
    /// Data prepared by earlier versions has no hashes: there, a file that was written after the data may be another one.
    pub fn difference(&self, path: &Path, found: &[InputRecord]) -> Result<Option<String>> {
        if found.iter().all(|record| record.xxh3.is_some()) {
            return Ok(content_difference(found, &self.records()?));
        }
        let made = nanoseconds(std::fs::metadata(path).during("cannot look at", path)?.modified());
        let newer = self.files.iter().zip(&self.stamps).find(|(_, stamp)| stamp.written() >= made);
        Ok(newer.map(|(file, _)| {
            format!(
                "it was prepared before checksums of the input were kept, and {} was written since: whether it is what the \
                 data was made of cannot be told",
                file.name.display()
            )
        }))
    }
}

/// The first file with another content, of lists with the same names and sizes; none where a hash is missing.
pub(in crate::data) fn content_difference(found: &[InputRecord], now: &[InputRecord]) -> Option<String> {
    let differ = |(there, here): &(&InputRecord, &InputRecord)| {
        there.xxh3.is_some() && here.xxh3.is_some() && there.xxh3 != here.xxh3
    };
    found.iter().zip(now).find(differ).map(|(_, here)| {
        format!(
            "input {} has the same name and size there and here, but another content",
            here.path.display()
        )
    })
}

fn hash_file(source: &Source<'_>, buffer: &mut [u8], read: &AtomicU64, report: &dyn Fn()) -> Result<String> {
    let mut file = File::open(source.on_disk).during("cannot open the input", source.name)?;
    let mut hash = Xxh3::new();
    loop {
        let count = file.read(buffer).during("cannot read the input", source.name)?;
        if count == 0 {
            return Ok(format!("{:032x}", hash.digest128()));
        }
        hash.update(&buffer[..count]);
        let before = read.fetch_add(count as u64, Relaxed);
        if before / REPORT != (before + count as u64) / REPORT {
            report();
        }
    }
}

/// What a file system says of a file; any write changes it.
#[derive(Debug, PartialEq)]
struct Stamp {
    bytes: u64,
    /// In nanoseconds since 1970.
    modified: i128,
    /// When the file was last written or put there, whatever times it was given; 0 where the system does not tell.
    changed: i128,
    /// Which file it is; 0 where the system does not tell.
    id: (u64, u64),
}

impl Stamp {
    fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).during("cannot read the input", path)?;
        let (changed, id) = identity(&metadata);
        Ok(Self { bytes: metadata.len(), modified: nanoseconds(metadata.modified()), changed, id })
    }

    /// When the file was last written or put in its place.
    fn written(&self) -> i128 {
        self.modified.max(self.changed)
    }
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> (i128, (u64, u64)) {
    use std::os::unix::fs::MetadataExt;
    let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    (changed, (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> (i128, (u64, u64)) {
    (0, (0, 0))
}

fn nanoseconds(time: std::io::Result<SystemTime>) -> i128 {
    let time = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, |time| time.as_nanos() as i128)
}
