//! Which files the input is, and how each is read.

use super::content::{Content, content_of, markup};
use super::open::{Compression, Encoding, open, unreadable};
use super::spool::{self, Spool};
use super::table;
use crate::config::PrepareConfig;
use crate::error::{During, Error, Result};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

/// Folders within folders; more than this is a loop of links.
const DEEPEST_FOLDER: usize = 64;
/// Bytes that a file is judged by.
const HEAD: usize = 64 << 10;
/// Lines that tell JSON Lines from text.
const JSON_LINES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
    Parquet,
    /// CSV and TSV: rows of fields separated by this byte, below a row of names.
    Table(u8),
}

/// What the user should know about how a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remark {
    /// Its lines look like JSON, and it is read as text.
    LooksLikeJson,
    /// Its name does not say so, and it is read as JSON Lines.
    ReadAsJson,
}

/// One file to read.
#[derive(Debug, Clone)]
pub(crate) struct InputFile {
    /// As messages and records name it.
    pub path: PathBuf,
    /// On disk, compressed.
    pub bytes: u64,
    pub remark: Option<Remark>,
    /// Where the bytes lie that came through a pipe.
    spooled: Option<PathBuf>,
    pub(super) format: Format,
    pub(super) compression: Compression,
    pub(super) encoding: Encoding,
}

impl InputFile {
    /// Whether it is read as plain text.
    pub fn is_plain_text(&self) -> bool {
        self.format == Format::Text
    }

    /// Whether it holds more than its bytes on disk.
    pub fn is_compressed(&self) -> bool {
        self.compression != Compression::None
    }

    /// What to open: the file itself, or where a pipe's bytes are kept.
    pub fn on_disk(&self) -> &Path {
        self.spooled.as_deref().unwrap_or(&self.path)
    }

    /// Removes what was kept of a pipe.
    pub fn remove_spooled(&self) -> Result<()> {
        self.spooled.as_ref().map_or(Ok(()), |path| std::fs::remove_file(path).during("cannot remove", path))
    }

    /// Its bytes, decompressed and in UTF-8.
    pub(super) fn open<'a>(&self, bytes_read: &'a AtomicU64) -> Result<Box<dyn BufRead + 'a>> {
        open(self.on_disk(), &self.path, self.compression, self.encoding, bytes_read)
    }
}

/// The files of a list of files, folders and pipes; those of a folder sorted by path. Names in a folder that begin with a
/// dot are passed over. A pipe is read to its end.
///
/// # Errors
/// What is not there or cannot be read, and what is not text.
pub(crate) fn list(inputs: &[PathBuf], config: &PrepareConfig, spool: &Spool<'_>) -> Result<Vec<InputFile>> {
    if inputs.is_empty() {
        return Err(Error::config("prepare.input", "names no file; give files or folders of text"));
    }
    let mut files = Vec::new();
    for input in inputs {
        if let Some(stream) = spool::stream(input) {
            let (path, kept) = spool.keep(input, stream)?;
            files.push(look(&path, Some(kept), config)?);
            continue;
        }
        let before = files.len();
        walk(input, 0, config, &mut files)?;
        if files.len() == before {
            return Err(Error::file(
                input,
                "the folder holds no file; put text, .jsonl or .parquet files there",
            ));
        }
    }
    Ok(files)
}

fn walk(path: &Path, depth: usize, config: &PrepareConfig, files: &mut Vec<InputFile>) -> Result<()> {
    if path.to_str().is_none() {
        return Err(Error::file(path, "has a name that is not UTF-8, which no manifest can hold; rename it"));
    }
    let metadata = std::fs::metadata(path).during("cannot read the input", path)?;
    if metadata.is_file() {
        files.push(look(path, None, config)?);
        return Ok(());
    }
    if !metadata.is_dir() {
        return Err(Error::file(path, spool::special(&metadata)));
    }
    if depth == DEEPEST_FOLDER {
        return Err(Error::file(path, format!("is {depth} folders deep; is there a loop of links?")));
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).during("cannot list the folder", path)? {
        let entry = entry.during("cannot list the folder", path)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push(entry.path());
        }
    }
    entries.sort();
    entries.iter().try_for_each(|entry| walk(entry, depth + 1, config, files))
}

/// Looks at the first bytes of a file that messages call `path`.
fn look(path: &Path, spooled: Option<PathBuf>, config: &PrepareConfig) -> Result<InputFile> {
    let on_disk = spooled.as_deref().unwrap_or(path);
    let bytes = std::fs::metadata(on_disk).during("cannot read the input", path)?.len();
    let wrong = |what: String| Error::file(path, what);
    let read = |compression, encoding| {
        let (counter, mut head) = (AtomicU64::new(0), Vec::new());
        let bytes = open(on_disk, path, compression, encoding, &counter)?;
        bytes.take(HEAD as u64).read_to_end(&mut head).map_err(|e| unreadable(e, path, compression))?;
        Ok::<_, Error>(head)
    };
    let mut head = read(Compression::None, Encoding::Utf8)?;
    let compression = Compression::of(&head);
    if compression != Compression::None {
        head = read(compression, Encoding::Utf8)?;
        if Compression::of(&head) != Compression::None {
            return Err(wrong("is compressed twice; decompress it once".into()));
        }
    }
    let content = content_of(&head).map_err(wrong)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (extension, packed) = extension(&name);
    let mut file = InputFile {
        path: path.to_owned(),
        bytes,
        remark: None,
        format: Format::Parquet,
        compression,
        encoding: Encoding::Utf8,
        spooled: None,
    };
    if let Content::Text(encoding) = content {
        if encoding != Encoding::Utf8 {
            head = read(compression, encoding)?;
            content_of(&head).map_err(wrong)?;
        }
        if let Some(what) = markup(&head) {
            return Err(wrong(what));
        }
        if let Some(suffix) =
            packed.filter(|_| compression == Compression::None && !head.trim_ascii().is_empty())
        {
            return Err(wrong(format!(
                "cannot decompress: the name ends in .{suffix}, and the file is not compressed; is it damaged? Fetch it \
                 again, or, if it is the text that is meant, take .{suffix} off its name"
            )));
        }
        file.encoding = encoding;
        file.format = match extension {
            Some("jsonl" | "json" | "ndjson") => Format::Json,
            Some("csv" | "tsv") => Format::Table(table::delimiter(&head, extension == Some("tsv"))),
            Some("parquet") if !head.trim_ascii().is_empty() => {
                let what = "cannot read this Parquet file: it does not begin with PAR1; is it damaged, or something else? \
                            Fetch it again, or give text another name";
                return Err(wrong(what.into()));
            }
            _ => Format::Text,
        };
        match file.format {
            Format::Json if is_array(&head) => {
                let what = "is one JSON array; make JSON Lines of it, one object a line: jq -c '.[]' FILE > FILE.jsonl";
                return Err(wrong(what.into()));
            }
            Format::Table(delimiter) => {
                table::check_names(&head, delimiter, config.text_field.as_deref()).map_err(wrong)?
            }
            Format::Text if is_json_lines(&head) => {
                let named_text = matches!(extension, Some("txt" | "text" | "md"));
                file.remark = Some(if named_text { Remark::LooksLikeJson } else { Remark::ReadAsJson });
                file.format = if named_text { Format::Text } else { Format::Json };
            }
            _ => {}
        }
    }
    Ok(InputFile { spooled, ..file })
}

/// Of a name in lower case, the ending before those of compression, and the last of these.
fn extension(mut name: &str) -> (Option<&str>, Option<&str>) {
    let mut packed = None;
    while let Some((rest, suffix @ ("gz" | "gzip" | "zst" | "zstd" | "bz2" | "xz"))) = name.rsplit_once('.') {
        packed = packed.or(Some(suffix));
        name = rest;
    }
    (name.rsplit_once('.').map(|(_, extension)| extension), packed)
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    head.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

/// Whether JSON is one array: over several lines, or in the only one.
fn is_array(head: &[u8]) -> bool {
    let mut lines = lines(head);
    match (lines.next(), lines.next()) {
        (Some(first), next) => first.starts_with(b"[") && (next.is_none() || !first.ends_with(b"]")),
        _ => false,
    }
}

/// Whether the first lines, as far as they are whole, are JSON objects with fields.
fn is_json_lines(head: &[u8]) -> bool {
    let is_object = |line: &[u8]| {
        let object = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>;
        line.starts_with(b"{") && matches!(object(line), Ok(fields) if !fields.is_empty())
    };
    let mut lines = lines(head).peekable();
    let mut any = false;
    for _ in 0..JSON_LINES {
        match lines.next() {
            None => break,
            // May be cut by the end of what is looked at.
            Some(line) if lines.peek().is_none() && head.len() == HEAD => {
                return any || line.starts_with(b"{\"");
            }
            Some(line) if is_object(line) => any = true,
            Some(_) => return false,
        }
    }
    any
}
