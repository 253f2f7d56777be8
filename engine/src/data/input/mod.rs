//! The input of data preparation: which files, and their documents one after another in bounded pieces.

mod blocks;
mod content;
mod excerpts;
mod files;
mod json;
mod lines;
mod omitted;
mod open;
mod parquet;
mod spool;
mod table;
mod text;
mod utf16;

pub(crate) use blocks::{Block, Blocks, Form, RawDocument};
pub(crate) use files::{InputFile, Remark, list};
pub(crate) use omitted::grouped;
pub use omitted::{LeftOut, Omitted};
pub(crate) use spool::{SPOOLED, Spool, any_stream};
pub(crate) use text::document_text;

use crate::config::{PrepareConfig, Split};
use crate::data::pipeline::{Produced, Stop};
use crate::error::{During, Error, Result};
use files::Format;
use lines::BoundedLines;
use std::fs::File;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// A row of JSON Lines or of a table must be held whole.
const LONGEST_ROW: usize = 64 << 20;

/// The files of the input, and the options that say what of them is text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub files: &'a [InputFile],
    pub config: &'a PrepareConfig,
}

impl<'a> Input<'a> {
    /// The name of the field that holds the text.
    pub fn field(self) -> &'a str {
        self.config.field()
    }
}

/// What a reader has come across.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Bytes read from disk so far.
    pub bytes: AtomicU64,
    omitted: Mutex<Omitted>,
}

impl Seen {
    fn omit(&self, change: impl FnOnce(&mut Omitted)) {
        change(&mut self.omitted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What of the files did not become documents.
    pub fn omitted(&self) -> Omitted {
        self.omitted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A stretch of a document, at most [`Reader::piece`] bytes, or one JSON line.
pub(crate) struct Piece<'a> {
    /// Number of the document, counted over all files.
    pub document: u64,
    pub file: usize,
    /// Line of the file, for messages; 0 where lines mean nothing.
    pub line: u64,
    pub form: Form,
    pub bytes: &'a [u8],
    /// Whether it begins the document.
    pub first: bool,
    /// Whether it ends the document.
    pub last: bool,
}

/// Reads documents out of files, in order.
pub(crate) struct Reader<'a> {
    pub input: Input<'a>,
    /// A longer document is cut into pieces of this many bytes.
    pub piece: usize,
    pub seen: &'a Seen,
    /// Where a compressed Parquet file may be unpacked: that format needs random access.
    pub scratch: &'a Path,
}

/// What a file's reader hands pieces to.
type OnPiece<'a> = &'a mut dyn FnMut(Piece<'_>) -> Produced;

impl Reader<'_> {
    /// Calls `on_piece` with every piece of every document.
    pub fn read(&self, on_piece: OnPiece<'_>) -> Produced {
        let mut document = 0;
        for (index, file) in self.input.files.iter().enumerate() {
            let mut any = false;
            let mut count = |mut piece: Piece<'_>| {
                any = true;
                piece.document = document;
                document += u64::from(piece.last);
                on_piece(piece)
            };
            match file.format {
                Format::Text => self.text(index, file, &mut count)?,
                Format::Json => self.json(index, file, &mut count)?,
                Format::Parquet => self.parquet(index, file, &mut count)?,
                Format::Table(delimiter) => self.table(index, file, delimiter, &mut count)?,
            }
            if !any {
                self.seen.omit(|omitted| omitted.files_without_text += 1);
            }
        }
        Ok(())
    }

    /// A file's bytes, decompressed and in UTF-8.
    pub fn open<'s>(&'s self, file: &InputFile) -> Result<Box<dyn BufRead + 's>> {
        file.open(&self.seen.bytes)
    }

    fn text(&self, index: usize, file: &InputFile, on_piece: OnPiece<'_>) -> Produced {
        let split = self.input.config.split;
        let mut lines = BoundedLines::new(self.open(file)?, self.piece / 4);
        let mut document = Vec::new();
        let (mut first, mut cut_line) = (true, 0);
        let piece = |bytes: &[u8], first, last, on_piece: OnPiece<'_>| {
            on_piece(Piece { document: 0, file: index, line: 0, form: Form::Plain, bytes, first, last })
        };
        while lines.next().map_err(|e| unreadable(e, file))? {
            let line = lines.line();
            if is_blank(line) && (split == Split::Lines || document.is_empty()) {
                if !document.is_empty() {
                    piece(&document, first, true, on_piece)?;
                    document.clear();
                    first = true;
                }
                continue;
            }
            if !document.is_empty() && document.len() + line.len() > self.piece {
                let rest = document.split_off(cut(&document, split));
                // What was read last of the document is the line at hand, or a line that has ended.
                if !document.ends_with(b"\n") && cut_line != lines.number {
                    cut_line = lines.number;
                    self.cut_a_line();
                }
                piece(&document, first, false, on_piece)?;
                document = rest;
                first = false;
            }
            document.extend_from_slice(line);
        }
        if !document.is_empty() {
            piece(&document, first, true, on_piece)?;
        }
        Ok(())
    }

    fn cut_a_line(&self) {
        self.seen.omit(|omitted| {
            omitted.lines_cut += 1;
            omitted.longest_line = omitted.longest_line.max(self.piece as u64);
        });
    }

    fn json(&self, index: usize, file: &InputFile, on_piece: OnPiece<'_>) -> Produced {
        let mut lines = BoundedLines::new(self.open(file)?, LONGEST_ROW);
        let mut too_long = 0;
        while lines.next().map_err(|e| unreadable(e, file))? {
            let line = lines.number;
            if lines.cut || line == too_long {
                let what = format!("line {line} is longer than {LONGEST_ROW} bytes; split the document");
                if line != too_long {
                    self.bad_row(LeftOut { file: index, line, what })?;
                }
                too_long = line;
                continue;
            }
            if !is_blank(lines.line()) {
                let bytes = lines.line();
                let form = Form::Json;
                on_piece(Piece { document: 0, file: index, line, form, bytes, first: true, last: true })?;
            }
        }
        Ok(())
    }

    /// Counts a row that is left out.
    ///
    /// # Errors
    /// The row, unless bad rows are left out.
    fn bad_row(&self, row: LeftOut) -> Produced {
        if !self.input.config.skip_bad {
            return Err(row.error(self.input.files).into());
        }
        self.seen.omit(|omitted| omitted.leave_out(row));
        Ok(())
    }

    /// Hands on the text of a row, in pieces if it is long.
    fn whole_text(&self, index: usize, text: &[u8], on_piece: OnPiece<'_>) -> Produced {
        let split = self.input.config.split;
        let mut rest = text;
        let mut first = true;
        while !rest.is_empty() {
            let end = if rest.len() > self.piece { cut(&rest[..self.piece], split) } else { rest.len() };
            let (bytes, tail) = rest.split_at(end);
            let (form, last) = (Form::Plain, tail.is_empty());
            on_piece(Piece { document: 0, file: index, line: 0, form, bytes, first, last })?;
            (rest, first) = (tail, false);
        }
        Ok(())
    }

    fn table(&self, index: usize, file: &InputFile, delimiter: u8, on_piece: OnPiece<'_>) -> Produced {
        let mut on_row = |row: table::Row<'_>| match row {
            Ok([]) => {
                self.seen.omit(|omitted| omitted.rows_without_text += 1);
                Ok(())
            }
            Ok(text) => self.whole_text(index, text, on_piece),
            Err((line, what)) => {
                self.bad_row(LeftOut { file: index, line, what: format!("line {line}: {what}") })
            }
        };
        let field = self.input.field();
        table::read(self.open(file)?, delimiter, field, LONGEST_ROW, &mut on_row).map_err(|e| match e {
            table::Broken::Stop(stop) => stop,
            table::Broken::What(what) => Error::file(&file.path, what).into(),
            table::Broken::Read(e) => unreadable(e, file),
        })
    }

    fn parquet(&self, index: usize, file: &InputFile, on_piece: OnPiece<'_>) -> Produced {
        let unpacked = match file.is_compressed() {
            false => None,
            true => Some(self.unpack(file)?),
        };
        let mut on_text = |text: Option<&[u8]>| match text {
            Some(text @ [_, ..]) => self.whole_text(index, text, on_piece),
            _ => {
                self.seen.omit(|omitted| omitted.rows_without_text += 1);
                Ok(())
            }
        };
        let read = |bytes| {
            if unpacked.is_none() {
                self.seen.bytes.fetch_add(bytes, Relaxed);
            }
        };
        let path = unpacked.as_deref().unwrap_or(file.on_disk());
        let result = parquet::read(path, &file.path, self.input.field(), &read, &mut on_text);
        if let Some(path) = &unpacked {
            std::fs::remove_file(path).during("cannot remove", path)?;
        }
        result
    }

    fn unpack(&self, file: &InputFile) -> Result<PathBuf> {
        let path = self.scratch.join("input.parquet");
        let mut out = File::create(&path).during("cannot create", &path)?;
        let mut bytes = self.open(file)?;
        loop {
            let piece = bytes.fill_buf().map_err(|e| open::unreadable(e, &file.path, file.compression))?;
            if piece.is_empty() {
                return Ok(path);
            }
            let count = piece.len();
            io::Write::write_all(&mut out, piece).during("cannot write", &path)?;
            bytes.consume(count);
        }
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

/// Where to end a piece of a document that goes on: after its last paragraph, or line, or word, or character.
fn cut(bytes: &[u8], split: Split) -> usize {
    let half = bytes.len() / 2;
    let find = |pattern: &[u8]| {
        let at = bytes[half..].windows(pattern.len()).rposition(|w| w == pattern)?;
        Some(half + at + pattern.len())
    };
    let paragraph = if split == Split::Sentences { find(b"\n\n").or_else(|| find(b"\n\r\n")) } else { None };
    paragraph.or_else(|| find(b"\n")).unwrap_or_else(|| lines::cut_word(bytes))
}

/// An error while reading a file.
pub(crate) fn unreadable(error: io::Error, file: &InputFile) -> Stop {
    Stop::Failed(open::unreadable(error, &file.path, file.compression))
}

#[cfg(test)]
mod tests;
