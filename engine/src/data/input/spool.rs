//! Input that can be read only once: standard input and pipes. It is kept in a file, since text is read several times.

use crate::error::{During, Error, Result};
use std::fs::{File, Metadata};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Names of the files that pipes are kept in begin with this.
pub(crate) const SPOOLED: &str = "input.spooled-";
const BUFFER: usize = 1 << 20;

/// Input that can be read only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// `-` and its other names.
    Standard,
    /// What a shell opened: its number differs from time to time.
    Descriptor,
    /// A named pipe.
    Named,
}

/// Whether a path names a stream.
pub(super) fn stream(path: &Path) -> Option<Stream> {
    let text = path.to_str()?;
    let number = ["/dev/fd/", "/proc/self/fd/"].iter().find_map(|dir| text.strip_prefix(dir));
    match (text, number) {
        ("-" | "/dev/stdin", _) | (_, Some("0")) => Some(Stream::Standard),
        (_, Some(_)) => Some(Stream::Descriptor),
        _ => is_pipe(&std::fs::metadata(path).ok()?).then_some(Stream::Named),
    }
}

/// Whether any of the input can be read only once.
pub(crate) fn any_stream<'a>(mut inputs: impl Iterator<Item = &'a PathBuf>) -> bool {
    inputs.any(|path| stream(path).is_some())
}

#[cfg(unix)]
fn is_pipe(metadata: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_pipe(_: &Metadata) -> bool {
    false
}

/// What is neither a file nor a folder, and what to do about it.
pub(super) fn special(metadata: &Metadata) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if metadata.file_type().is_socket() {
            return "is a socket, which cannot be read as a file; remove it from the input".into();
        }
    }
    match is_pipe(metadata) {
        true => "is a pipe in a folder; name it among the input itself, or remove it".into(),
        false => "is a device, which has no end; name files, folders or pipes".into(),
    }
}

/// Where streams are kept.
pub(crate) struct Spool<'a> {
    dir: Option<&'a Path>,
    /// Gets the number of bytes read so far.
    progress: &'a dyn Fn(u64),
    kept: AtomicUsize,
}

impl<'a> Spool<'a> {
    /// Keeps streams in a folder; without one, a stream is an error.
    pub fn new(dir: Option<&'a Path>, progress: &'a dyn Fn(u64)) -> Self {
        Self { dir, progress, kept: AtomicUsize::new(0) }
    }

    /// Reads a stream to its end. Returns the name that stands for it, and where its bytes lie.
    pub(super) fn keep(&self, path: &Path, stream: Stream) -> Result<(PathBuf, PathBuf)> {
        let number = self.kept.fetch_add(1, Relaxed) + 1;
        let name = match stream {
            Stream::Standard => PathBuf::from("-"),
            Stream::Descriptor => PathBuf::from(format!("pipe-{number}")),
            Stream::Named => path.to_owned(),
        };
        let Some(dir) = self.dir else {
            return Err(Error::file(path, "is a pipe, which can be read only once; name a file"));
        };
        let mut source: Box<dyn Read> = match stream {
            Stream::Standard => {
                let input = std::io::stdin();
                if input.is_terminal() {
                    let what = "standard input is a terminal; pipe text into it, as in zcat text.gz | launcher prepare --input -";
                    return Err(Error::file(name, what));
                }
                Box::new(input.lock())
            }
            _ => Box::new(File::open(path).during("cannot open the input", path)?),
        };
        let kept = dir.join(format!("{SPOOLED}{number}"));
        let mut file = File::create(&kept).during("cannot create", &kept)?;
        let (mut buffer, mut bytes) = (vec![0; BUFFER], 0);
        loop {
            let count = match source.read(&mut buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.during("cannot read the input", &name)?,
            };
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).during("cannot write", &kept)?;
            bytes += count as u64;
            (self.progress)(bytes);
        }
        if bytes == 0 {
            let what = "is empty: nothing came through the pipe, or it was named twice; look at the command that fills it";
            return Err(Error::file(name, what));
        }
        Ok((name, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_by_name_or_kind() {
        for (path, want) in [
            ("-", Some(Stream::Standard)),
            ("/dev/stdin", Some(Stream::Standard)),
            ("/proc/self/fd/0", Some(Stream::Standard)),
            ("/dev/fd/63", Some(Stream::Descriptor)),
            ("./-", None),
            ("/dev/null", None),
            ("/", None),
            ("no such file", None),
        ] {
            assert_eq!(stream(Path::new(path)), want, "{path}");
        }
    }
}
