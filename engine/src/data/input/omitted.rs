//! What of the input did not become text.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// What of the input was passed over or cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Omitted {
    /// Files that are empty, or hold nothing but white space, or no row.
    pub files_without_text: u64,
    /// Rows of JSON Lines, Parquet and tables whose text is null, or in tables empty.
    pub rows_without_text: u64,
    /// Bad rows, which were left out because `skip_bad` was asked for.
    pub left_out: u64,
    /// The first of them.
    pub first_left_out: Option<LeftOut>,
    /// Lines of plain text that were cut because they are longer than `longest_line`.
    pub lines_cut: u64,
    /// In bytes; 0 if no line was cut.
    pub longest_line: u64,
}

/// A bad row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The file's place among the inputs.
    pub file: usize,
    /// Where the row begins.
    pub line: u64,
    /// What is wrong with it, and where.
    pub what: String,
}

impl Omitted {
    /// Whether all of the input became text.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what was passed over of other input.
    pub(crate) fn add(&mut self, other: &Self) {
        self.files_without_text += other.files_without_text;
        self.rows_without_text += other.rows_without_text;
        self.left_out += other.left_out;
        self.lines_cut += other.lines_cut;
        self.longest_line = self.longest_line.max(other.longest_line);
        let first = [self.first_left_out.take(), other.first_left_out.clone()];
        self.first_left_out = first.into_iter().flatten().min();
    }

    pub(crate) fn leave_out(&mut self, row: LeftOut) {
        self.add(&Self { left_out: 1, first_left_out: Some(row), ..Self::default() });
    }

    /// In words, a line each; `name_of` gives the path of an input.
    pub fn remarks<'a>(&self, name_of: impl Fn(usize) -> Option<&'a Path>) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |count: u64, one: &str, more: &str, rest: &str| match count {
            0 => {}
            1 => lines.push(format!("1 {one}{rest}")),
            _ => lines.push(format!("{} {more}{rest}", grouped(count))),
        };
        say(self.files_without_text, "file", "files", " held no text");
        say(self.rows_without_text, "row", "rows", " held no text (null or empty)");
        let first = self.first_left_out.as_ref().map_or(String::new(), |row| {
            let path = name_of(row.file).map_or(String::new(), |path| format!("{}: ", path.display()));
            format!("; the first: {path}{}", row.what)
        });
        say(self.left_out, "bad row was", "bad rows were", &format!(" left out{first}"));
        let limit = format!(" longer than {} bytes and cut between words", grouped(self.longest_line));
        say(self.lines_cut, "line was", "lines were", &limit);
        lines
    }
}

/// A number with commas between thousands.
pub(crate) fn grouped(n: u64) -> String {
    match n {
        0..1000 => n.to_string(),
        _ => format!("{},{:03}", grouped(n / 1000), n % 1000),
    }
}
