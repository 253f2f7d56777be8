//! One column of a CSV or TSV file (RFC 4180), a document a row.

use super::text::names;
use crate::data::pipeline::Stop;
use csv::{ByteRecord, ReaderBuilder, Terminator};
use std::cell::Cell;
use std::io::{self, Read};

/// Follows the last row: where it is not a row of its own, a quote before it was never closed. NUL is not in text.
const END: &[u8] = b"\0end of the table\0";

/// Separates fields: a tab, or what the row of names has: a comma, else a semicolon or a tab.
pub(super) fn delimiter(head: &[u8], tabs: bool) -> u8 {
    let names = head.split(|&b| b == b'\n').next().unwrap_or_default();
    match () {
        () if tabs => b'\t',
        () if names.contains(&b',') => b',',
        () => names.iter().copied().find(|b| b";\t".contains(b)).unwrap_or(b','),
    }
}

/// Looks for the column among the names in the first row.
///
/// # Errors
/// The names that are there, and the remedy.
pub(super) fn check_names(head: &[u8], delimiter: u8, field: Option<&str>) -> Result<(), String> {
    let mut row = ByteRecord::new();
    let read = builder(delimiter).from_reader(head).read_byte_record(&mut row);
    if !read.map_err(|e| e.to_string())? || is_blank(&row) {
        return Ok(());
    }
    let row = without_cr(row);
    match field {
        None => {
            let names = names(row.iter().map(String::from_utf8_lossy));
            Err(format!(
                "is a table; name the column that holds the text with data.prepare.text_field: {names}"
            ))
        }
        Some(field) => column(&row, field).map(drop),
    }
}

fn column(row: &ByteRecord, field: &str) -> Result<usize, String> {
    let mut places = row.iter().enumerate().filter(|(_, name)| *name == field.as_bytes()).map(|(at, _)| at);
    let (first, second) = (places.next(), places.next());
    if second.is_some() {
        return Err(format!("has two columns `{field}`; rename one of them"));
    }
    first.ok_or_else(|| {
        let names = names(row.iter().map(String::from_utf8_lossy));
        format!("has no column `{field}`, only {names}; name one of them with data.prepare.text_field")
    })
}

/// Whether a row is a line with nothing on it.
fn is_blank(row: &ByteRecord) -> bool {
    row.len() == 1 && matches!(row.get(0), Some(b"" | b"\r"))
}

/// Takes the carriage return off a row's end.
fn without_cr(mut row: ByteRecord) -> ByteRecord {
    let last = row.iter().next_back().and_then(|field| field.strip_suffix(b"\r")).map(<[u8]>::to_vec);
    if let Some(last) = last {
        row.truncate(row.len() - 1);
        row.push_field(&last);
    }
    row
}

fn builder(delimiter: u8) -> ReaderBuilder {
    let mut builder = ReaderBuilder::new();
    // Lines end at line feeds alone, so that they can be counted; a carriage return before one is taken off the field.
    let terminator = Terminator::Any(b'\n');
    builder.delimiter(delimiter).terminator(terminator).has_headers(false).flexible(true);
    builder
}

/// Lets so many bytes pass between two calls of `set`.
struct Limited<'a, R>(R, &'a Cell<usize>);

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.1.get());
        if most == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.0.read(&mut buffer[..most])?;
        self.1.set(self.1.get() - count);
        Ok(count)
    }
}

/// The text of a row, or the line where the row begins and what is wrong with it.
pub(super) type Row<'a> = Result<&'a [u8], (u64, String)>;

/// Why a table cannot be read on.
pub(super) enum Broken {
    Stop(Stop),
    /// What is wrong with the file.
    What(String),
    Read(io::Error),
}

/// Calls `on_row` with every row below the names. No row is longer than `longest` bytes.
pub(super) fn read(
    bytes: impl Read,
    delimiter: u8,
    field: &str,
    longest: usize,
    on_row: &mut dyn FnMut(Row<'_>) -> Result<(), Stop>,
) -> Result<(), Broken> {
    let left = Cell::new(longest);
    let end = [b"\n", END, b"\n"].concat();
    let mut reader = builder(delimiter).from_reader(Limited(bytes.chain(&*end), &left));
    let mut row = ByteRecord::new();
    let (mut column_of, mut width) = (None, 0);
    loop {
        let line = reader.position().line();
        left.set(longest);
        let more = reader.read_byte_record(&mut row).map_err(|e| match e.into_kind() {
            csv::ErrorKind::Io(e) if e.kind() == io::ErrorKind::FileTooLarge => Broken::What(format!(
                "line {line}: the row that begins here is longer than {longest} bytes; is a quote never closed? Else \
                 split the text"
            )),
            csv::ErrorKind::Io(e) => Broken::Read(e),
            other => Broken::What(format!("line {line}: {other:?}")),
        })?;
        let last = row.iter().next_back().unwrap_or_default();
        if !more || last == END && row.len() == 1 {
            return Ok(());
        }
        let line_feeds = || row.iter().flatten().filter(|&&b| b == b'\n').count() as u64;
        if last.trim_ascii_end().ends_with(END) {
            let line = reader.position().line() - line_feeds();
            let what =
                format!("line {line}: a quote in the row that begins here is never closed; mend the file");
            return Err(Broken::What(what));
        }
        if is_blank(&row) && width != 1 {
            continue;
        }
        let Some(column) = column_of else {
            let names = without_cr(row.clone());
            column_of = Some(column(&names, field).map_err(Broken::What)?);
            width = names.len();
            continue;
        };
        let text = match row.get(column).filter(|_| row.len() == width) {
            Some(text) if column + 1 == width => Ok(text.strip_suffix(b"\r").unwrap_or(text)),
            Some(text) => Ok(text),
            // The row's last line is the one before the next.
            None => Err((
                reader.position().line() - 1 - line_feeds(),
                format!("{} fields, and {width} names in the first row", row.len()),
            )),
        };
        on_row(text).map_err(Broken::Stop)?;
    }
}
