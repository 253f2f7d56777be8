//! Which files to import.

use super::ImportFormat;
use crate::error::{During, Error, Result};
use crate::files::check_regular;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Folders within folders; more than this is a loop of links.
const DEEPEST_FOLDER: usize = 64;

/// One file to read.
#[derive(Debug, Clone)]
pub(super) struct InputFile {
    pub path: PathBuf,
    /// On disk.
    pub bytes: u64,
    /// When it was last written, in nanoseconds since 1970; 0 where the system does not tell.
    pub modified: u64,
}

/// The files of a list, those of a folder sorted by path. Of a folder every file counts whose name does not begin with a
/// dot or an underscore; for HDF5 the name must also end as one of HDF5.
///
/// # Errors
/// A path that is not there, and a folder without such a file.
pub(super) fn list(inputs: &[PathBuf], format: ImportFormat) -> Result<Vec<InputFile>> {
    let mut files = Vec::new();
    for input in inputs {
        let before = files.len();
        walk(input, 0, format, &mut files)?;
        if files.len() == before {
            let ending = match format {
                ImportFormat::Tfrecord => "",
                ImportFormat::Hdf5 => " with a name that ends in .hdf5, .h5 or .hdf",
            };
            return Err(Error::file(input, format!("the folder holds no file{ending}; name another folder")));
        }
    }
    Ok(files)
}

fn walk(path: &Path, depth: usize, format: ImportFormat, files: &mut Vec<InputFile>) -> Result<()> {
    let metadata = std::fs::metadata(path).during("cannot read the input", path)?;
    if !metadata.is_dir() {
        if depth == 0 || is_wanted(path, format) {
            check_regular(path)?;
            let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let modified = modified.map_or(0, |t| t.as_nanos() as u64);
            files.push(InputFile { path: path.to_owned(), bytes: metadata.len(), modified });
        }
        return Ok(());
    }
    if depth == DEEPEST_FOLDER {
        return Err(Error::file(path, format!("is {depth} folders deep; is there a loop of links?")));
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).during("cannot list the folder", path)? {
        let entry = entry.during("cannot list the folder", path)?;
        if !matches!(entry.file_name().as_encoded_bytes().first(), Some(b'.' | b'_')) {
            entries.push(entry.path());
        }
    }
    entries.sort();
    entries.iter().try_for_each(|entry| walk(entry, depth + 1, format, files))
}

fn is_wanted(path: &Path, format: ImportFormat) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    format == ImportFormat::Tfrecord || matches!(&*extension, "hdf5" | "h5" | "hdf")
}
