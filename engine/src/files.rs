//! Files and folders that a user names: what a command makes there is never put in place of something else, and what it
//! reads there ends.

use crate::error::{During, Error, Result};
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Names of a folder's content that a message shows.
const SHOWN: usize = 3;

/// Most bytes of a file that people write: a configuration, lengths, a step's measurement.
pub(crate) const WRITTEN_BY_HAND: u64 = 64 << 20;

/// Reads a file that is never longer than `limit` bytes unless it is of another kind: a device may have no end.
/// `action` is as in "cannot read the configuration".
///
/// # Errors
/// What the system answers; a file that is longer.
pub(crate) fn read_up_to(path: &Path, limit: u64, action: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).during(action, path)?;
    file.take(limit + 1).read_to_end(&mut bytes).during(action, path)?;
    if bytes.len() as u64 > limit {
        let what =
            format!("is longer than {limit} bytes, the most expected: not this kind of file; name another");
        return Err(Error::file(path, what));
    }
    Ok(bytes)
}

/// Refuses what cannot be read at any place of it: a pipe, which may keep a reader waiting for ever, or a device.
///
/// # Errors
/// No file of this name.
pub(crate) fn check_regular(path: &Path) -> Result<()> {
    let there = fs::metadata(path).during("cannot read", path)?;
    match there.is_file() || there.is_dir() {
        true => Ok(()),
        false => Err(Error::file(path, "is a pipe or a device; write its content to a file and name that")),
    }
}

/// Refuses, before any work, a file that [`write_new`] would refuse.
///
/// # Errors
/// Something of this name is there, or the folder that it would lie in is not. A device or a pipe is taken.
pub fn check_new(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(there) => check_there(path, &there),
        // A link that leads nowhere has the name, too.
        Err(_) if fs::symlink_metadata(path).is_ok() => Err(taken(path)),
        Err(_) => {
            let folder = parent(path);
            fs::metadata(folder).during("cannot write to the folder", folder)?;
            check_writable(folder, "cannot write to the folder")
        }
    }
}

fn check_there(path: &Path, there: &Metadata) -> Result<()> {
    if there.is_dir() {
        return Err(Error::file(path, "is a folder; name a file in it"));
    }
    if there.is_file() { Err(taken(path)) } else { Ok(()) }
}

fn taken(path: &Path) -> Error {
    Error::file(path, "is there already and would be lost; choose another name, or remove it")
}

/// Writes a file that is not there yet, whole or not at all; or to a device or a pipe.
///
/// # Errors
/// Something of this name is there; what the system answers.
pub fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    if let Ok(there) = fs::metadata(path) {
        check_there(path, &there)?;
        let file = File::options().write(true).open(path);
        return file.and_then(|mut file| file.write_all(content)).during("cannot write", path);
    }
    let mut file = match File::options().write(true).create_new(true).open(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(taken(path)),
        other => other.during("cannot write", path)?,
    };
    let written = file.write_all(content);
    if written.is_err() {
        // Half a file is of no use; the error that led here matters more.
        let _ = fs::remove_file(path);
    }
    written.during("cannot write", path)
}

/// Refuses a folder, which a command is to make, where anything is already; `option` names it. An empty folder is taken.
///
/// # Errors
/// What is there: the folder's content, a file, a link that leads nowhere, a mount point.
pub(crate) fn check_vacant(dir: &Path, option: &str) -> Result<()> {
    let Ok(there) = fs::metadata(dir) else {
        return match fs::symlink_metadata(dir) {
            Ok(_) => Err(Error::file(dir, "is a link that leads nowhere; remove it or choose another place")),
            Err(_) => check_writable(dir, "cannot create"),
        };
    };
    if !there.is_dir() {
        return Err(Error::file(dir, "is there and is no folder; remove it or choose another place"));
    }
    if let Some(names) = content(dir)? {
        let remedy = format!("choose another folder with {option}, or remove this one");
        return Err(Error::file(dir, format!("holds {names}, which would be lost; {remedy}")));
    }
    check_no_mount(dir, &there)
}

/// The first names in a folder; none if it is empty.
fn content(dir: &Path) -> Result<Option<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).during("cannot list the folder", dir)? {
        let entry = entry.during("cannot list the folder", dir)?;
        names.push(format!("`{}`", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    Ok(match (names.len(), more) {
        (0, _) => None,
        (_, 0) => Some(shown),
        _ => Some(format!("{shown} and {more} more")),
    })
}

/// An empty folder gives its name to the one that was made beside it, which a mount point cannot.
pub(crate) fn check_no_mount(dir: &Path, there: &Metadata) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let real = fs::canonicalize(dir).during("cannot read", dir)?;
        if fs::metadata(parent(&real)).is_ok_and(|above| above.dev() != there.dev()) {
            let what = "is a mount point, and what is made beside it cannot be put in its place; name a folder inside it";
            return Err(Error::file(dir, what));
        }
    }
    let _ = (dir, there);
    Ok(())
}

/// Refuses a folder that this process may not write to or, where it is not there, not make: before any work. Some file
/// systems say so only later. `action` is as in "cannot create".
///
/// # Errors
/// What the system answers.
pub(crate) fn check_writable(dir: &Path, action: &'static str) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let there = dir.ancestors().find(|dir| fs::metadata(dir).is_ok()).unwrap_or(Path::new(""));
        let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        if !there.is_dir() {
            return Err(ErrorKind::NotADirectory.into()).during(action, dir);
        }
        let Ok(name) = std::ffi::CString::new(there.as_os_str().as_bytes()) else { return Ok(()) };
        // SAFETY: the call reads a string that ends with a zero and is alive
        if unsafe { libc::access(name.as_ptr(), libc::W_OK | libc::X_OK) } != 0 {
            return Err(std::io::Error::last_os_error()).during(action, dir);
        }
    }
    let _ = (dir, action);
    Ok(())
}

/// Refuses a path that JSON cannot hold, as that of an input in a manifest: before any work.
///
/// # Errors
/// It is not UTF-8.
pub(crate) fn check_utf8(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => {
            Err(Error::file(path, "its name is not UTF-8, and the data's manifest must hold it; rename it"))
        }
    }
}

/// Where a new folder is to lie: a link to a folder stays, and what it leads to gives its name.
pub(crate) fn behind_link(path: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink());
    let real = if is_link { fs::canonicalize(path).ok() } else { None };
    real.unwrap_or_else(|| path.to_owned())
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// A path as the system resolves it, as far as it is there; the rest as it is written.
pub(crate) fn real(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        let start = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        if let Ok(real) = fs::canonicalize(start) {
            return missing.iter().rev().fold(real, |path, name| match Path::new(name) {
                up if up == Path::new("..") => parent(&path).to_owned(),
                name => path.join(name),
            });
        }
        let (Some(above), Some(name)) = (there.parent(), there.components().next_back()) else {
            return path.to_owned();
        };
        missing.push(name.as_os_str().to_owned());
        there = above;
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_that_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let [file, private, link, nowhere, folder] =
            ["file", "private", "link", "nowhere", "folder"].map(|name| dir.path().join(name));
        fs::write(&file, "mine").unwrap();
        fs::write(&private, "mine").unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&file, &link).unwrap();
        symlink(dir.path().join("none"), &nowhere).unwrap();
        fs::create_dir(&folder).unwrap();
        for path in [&file, &private, &link, &nowhere, &folder] {
            for result in [check_new(path), write_new(path, b"other")] {
                let said = result.unwrap_err().to_string();
                let name = path.display().to_string();
                assert!(
                    said.starts_with(&name)
                        && (said.contains("would be lost") || said.contains("is a folder")),
                    "{said}"
                );
            }
        }
        assert!([file, private].iter().all(|path| fs::read(path).unwrap() == b"mine"));
        assert!(!dir.path().join("none").exists());
        let below = dir.path().join("none/file");
        assert!(check_new(&below).unwrap_err().to_string().contains("No such file"));
    }

    #[test]
    fn what_is_not_there_is_written_and_a_device_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        check_new(&path).unwrap();
        write_new(&path, b"content").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        check_new(Path::new("/dev/null")).unwrap();
        write_new(Path::new("/dev/null"), b"content").unwrap();
        if Path::new("/dev/full").exists() {
            assert!(
                write_new(Path::new("/dev/full"), b"content")
                    .unwrap_err()
                    .to_string()
                    .contains("No space left")
            );
        }
    }

    #[test]
    fn a_folder_below_a_file_cannot_be_made() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        check_writable(&dir.path().join("a/b/c"), "cannot create").unwrap();
        check_writable(Path::new("none"), "cannot create").unwrap();
        let said = check_writable(&dir.path().join("file/b"), "cannot create").unwrap_err().to_string();
        assert!(
            said.contains("file/b: cannot create: ") && said.contains("a part of this path is a file"),
            "{said}"
        );
    }

    #[test]
    fn what_has_no_end_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_up_to(&path, 5, "cannot read").unwrap(), b"12345");
        assert!(read_up_to(&path, 4, "cannot read").unwrap_err().to_string().contains("longer than 4 bytes"));
        check_regular(&path).unwrap();
        if Path::new("/dev/zero").exists() {
            assert!(read_up_to(Path::new("/dev/zero"), 1000, "cannot read").is_err());
            assert!(check_regular(Path::new("/dev/zero")).unwrap_err().to_string().contains("a device"));
        }
    }

    #[test]
    fn a_folder_is_vacant_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("empty")).unwrap();
        symlink(at("empty"), at("link")).unwrap();
        for name in ["empty", "link", "none"] {
            check_vacant(&at(name), "--out").unwrap();
        }
        for name in ["a", "b", "c", "d"] {
            fs::create_dir_all(at("full")).unwrap();
            fs::write(at("full").join(name), "").unwrap();
        }
        symlink(at("none"), at("nowhere")).unwrap();
        for (name, what) in [
            ("full", "holds `a`, `b`, `c` and 1 more, which would be lost; choose another folder with --out"),
            ("full/a", "is no folder"),
            ("nowhere", "is a link that leads nowhere"),
        ] {
            let said = check_vacant(&at(name), "--out").unwrap_err().to_string();
            assert!(said.contains(what), "{said}");
        }
        if Path::new("/proc/1").exists() {
            assert!(check_no_mount(Path::new("/proc"), &fs::metadata("/proc").unwrap()).is_err());
        }
    }

    #[test]
    fn paths_are_resolved_as_far_as_they_exist() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(base.join("a")).unwrap();
        symlink(base.join("a"), base.join("b")).unwrap();
        assert_eq!(real(&base.join("b/none/c")), base.join("a/none/c"));
        assert_eq!(real(&base.join("b/none/../c")), base.join("a/c"));
        assert_eq!(real(&base.join("b/.")), base.join("a"));
        assert_eq!(real(Path::new("none")), fs::canonicalize(".").unwrap().join("none"));
    }
}
