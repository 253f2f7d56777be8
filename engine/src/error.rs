//! What can go wrong outside an op. Each message is one line that names the file, the field and the number, and
//! says what to do.

use std::path::{Path, PathBuf};

/// Failure of preparing data, training, or reading and writing a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {action}: {source}{}", path.display(), hint(action, source))]
    Io {
        /// What was being done, as in "cannot create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The field, the number found and expected, and the remedy.
        what: String,
    },
    /// A configuration value is wrong.
    #[error("{key}: {what}")]
    Config {
        /// The dotted key.
        key: String,
        /// The value, what is expected, and the remedy.
        what: String,
    },
    /// An op failed.
    #[error(transparent)]
    Op(#[from] kernels::Error),
    /// A pass was given up between two layers, as whoever asked for it wanted. The trainer answers it with a checkpoint.
    #[error("given up because a signal came; nothing was changed")]
    Stopped,
    /// Training cannot go on (non-finite loss, for example).
    #[error("{0}")]
    Training(String),
}

/// Result of the engine.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A file that does not hold what it should.
    pub fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into() }
    }

    /// A wrong configuration value.
    pub fn config(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Config { key: key.into(), what: what.into() }
    }
}

/// Names the file in an I/O error: `File::open(p).during("cannot open", p)?`.
pub trait During<T> {
    /// Adds what was being done and to which path.
    fn during(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}

/// Whether something is to be read, by the action's words; what is only opened may be either.
fn reads(action: &str) -> bool {
    ["cannot read", "cannot list", "cannot map", "cannot decompress", "cannot open the"]
        .iter()
        .any(|words| action.starts_with(words))
}

fn hint(action: &str, source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::*;
    match source.kind() {
        PermissionDenied if reads(action) => {
            "; you may not read it: change its permissions, or run this as a user who may"
        }
        PermissionDenied if action == "cannot open" => "; change its permissions, or choose another path",
        IsADirectory if reads(action) => "; it is a folder, name a file",
        InvalidFilename => "; choose a shorter name",
        StorageFull | QuotaExceeded => {
            "; free some space or choose another folder, nothing written before is lost"
        }
        PermissionDenied | ReadOnlyFilesystem => {
            "; choose a folder that you may write to, or change its permissions"
        }
        FileTooLarge => {
            "; raise the limit on the size of files (ulimit -f) or choose another file system, nothing written \
             before is lost"
        }
        NotADirectory => "; a part of this path is a file, choose another path",
        AlreadyExists => "; something else has this name, choose another",
        IsADirectory => "; a folder has the name of this file, move it away",
        NotFound => "; check the path",
        OutOfMemory => "; free memory, or choose smaller sizes",
        // EIO
        _ if source.raw_os_error() == Some(5) => "; the disk or its connection fails: check the system's log",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error as System, ErrorKind};

    #[test]
    fn the_remedy_is_that_of_what_was_being_done() {
        let said = |action, kind: ErrorKind| {
            std::io::Result::<()>::Err(System::from(kind))
                .during(action, Path::new("a"))
                .unwrap_err()
                .to_string()
        };
        for (action, kind, remedy) in [
            ("cannot read the configuration", ErrorKind::PermissionDenied, "you may not read it"),
            ("cannot list the folder", ErrorKind::PermissionDenied, "you may not read it"),
            ("cannot create", ErrorKind::PermissionDenied, "choose a folder that you may write to"),
            ("cannot read", ErrorKind::IsADirectory, "it is a folder, name a file"),
            ("cannot create", ErrorKind::IsADirectory, "a folder has the name of this file, move it away"),
            ("cannot write", ErrorKind::StorageFull, "free some space"),
        ] {
            let said = said(action, kind);
            assert!(said.starts_with(&format!("a: {action}: ")) && said.contains(remedy), "{said}");
        }
    }
}
