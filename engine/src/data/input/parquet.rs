//! One column of a Parquet file, one row group after another.

use super::text::names;
use crate::data::pipeline::Produced;
use crate::error::{During, Error};
use parquet::basic::{Compression, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescPtr;
use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

/// Most rows decoded at once, and most bytes of them, as far as can be told before.
const ROWS: usize = 64;
const ROWS_BYTES: usize = 4 << 20;

/// Calls `on_text` with the text of every row, none where it is null, and `on_bytes` with the size of what was read. `path`
/// is what is opened, `name` what messages call it, `field` the column.
pub(super) fn read(
    path: &Path,
    name: &Path,
    field: &str,
    on_bytes: &dyn Fn(u64),
    on_text: &mut dyn FnMut(Option<&[u8]>) -> Produced,
) -> Produced {
    let damaged = |e: ParquetError| {
        Error::file(
            name,
            format!("cannot read this Parquet file: {e}; is it cut short or damaged? Fetch it again"),
        )
    };
    let file = File::open(path).during("cannot open the input", name)?;
    let size = file.metadata().during("cannot read the input", name)?.len();
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(damaged)?;
    let metadata = reader.metadata();
    let column = find(metadata, field).map_err(|what| Error::file(name, what))?;
    let full = metadata.file_metadata().schema_descr().column(column).max_def_level();
    let groups = reader.num_row_groups();
    for group in 0..groups {
        let mut texts = guarded(|| open_column(&reader, group, column)).map_err(damaged)?;
        let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
        let chunk = metadata.row_group(group).column(column);
        let mean = chunk.uncompressed_size().max(0) as usize / chunk.num_values().max(1) as usize;
        let mut longest = mean;
        loop {
            values.clear();
            levels.clear();
            let most = (ROWS_BYTES / longest.max(1)).clamp(1, ROWS);
            let (rows, _, _) = guarded(|| texts.read_records(most, Some(&mut levels), None, &mut values))
                .map_err(damaged)?;
            if rows == 0 {
                break;
            }
            longest = values.iter().map(ByteArray::len).fold(longest, usize::max);
            let mut there = values.iter();
            if full == 0 {
                there.by_ref().try_for_each(|value| on_text(Some(value.data())))?;
            }
            for &level in &levels {
                on_text(if level == full { there.next().map(ByteArray::data) } else { None })?;
            }
        }
        let (done, before) = (group as u64 + 1, group as u64);
        on_bytes(size * done / groups as u64 - size * before / groups as u64);
    }
    if groups == 0 {
        on_bytes(size);
    }
    Ok(())
}

/// The column of that name, if it holds strings that can be read.
fn find(metadata: &ParquetMetaData, field: &str) -> std::result::Result<usize, String> {
    let schema = metadata.file_metadata().schema_descr();
    let remedy = "name the one to train on with data.prepare.text_field";
    let Some(index) = schema.columns().iter().position(|c| c.path().string() == field) else {
        let within = format!("{field}.");
        let is_list = |c: &ColumnDescPtr| c.path().string().starts_with(&within) && c.max_rep_level() > 0;
        if schema.columns().iter().any(is_list) {
            return Err(format!(
                "column `{field}` holds lists; write a column of strings, one a row, or {remedy}"
            ));
        }
        let names = names(schema.columns().iter().map(|c| c.path().string().into()));
        return Err(format!("has no column `{field}`, only {names}; {remedy}"));
    };
    let column = schema.column(index);
    if column.max_rep_level() > 0 {
        return Err(format!(
            "column `{field}` holds lists; write a column of strings, one a row, or {remedy}"
        ));
    }
    let decimal = matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }));
    if column.physical_type() != Type::BYTE_ARRAY || decimal {
        let kind = if decimal { "DECIMAL".to_owned() } else { column.physical_type().to_string() };
        return Err(format!("column `{field}` holds {kind}, not strings; {remedy}"));
    }
    let codecs = metadata.row_groups().iter().map(|group| group.column(index).compression());
    if let Some(codec @ (Compression::BROTLI(_) | Compression::LZO)) =
        codecs.into_iter().find(|c| matches!(c, Compression::BROTLI(_) | Compression::LZO))
    {
        let codec = codec.to_string();
        let codec = codec.split('(').next().unwrap_or_default();
        return Err(format!(
            "column `{field}` is compressed with {codec}, which is not read; write the file again with zstd or snappy"
        ));
    }
    Ok(index)
}

fn open_column(
    reader: &SerializedFileReader<File>,
    group: usize,
    column: usize,
) -> Result<ColumnReaderImpl<ByteArrayType>> {
    match reader.get_row_group(group)?.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(texts) => Ok(texts),
        _ => Err(ParquetError::General("the column does not hold strings".into())),
    }
}

/// The crate may panic on a damaged file; that must neither end a program that only reads one nor fill its standard
/// error.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                usual(panic);
            }
        }));
    });
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(false);
    result.unwrap_or_else(|_| Err(ParquetError::General("its bytes make no sense".into())))
}

thread_local! {
    /// Whether a panic of this thread is one that [`guarded`] turns into an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}
