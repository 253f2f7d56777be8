//! The `text` column of a Parquet file, one row group after another.

use crate::data::pipeline::Produced;
use crate::error::{During, Error};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

/// Rows decoded at once.
const ROWS: usize = 64;

/// Calls `on_text` with every text that is not null, and `on_bytes` with the size of what was read. `path` is what is
/// opened, `name` what messages call it.
pub(super) fn read(
    path: &Path,
    name: &Path,
    on_bytes: &dyn Fn(u64),
    on_text: &mut dyn FnMut(&[u8]) -> Produced,
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
    let schema = reader.metadata().file_metadata().schema_descr();
    let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
    let Some(column) = names.iter().position(|n| n == "text") else {
        let what = format!("has no column `text`, only {}; rename the one to train on", names.join(", "));
        return Err(Error::file(name, what).into());
    };
    let groups = reader.num_row_groups();
    for group in 0..groups {
        let mut texts = guarded(|| open_column(&reader, group, column)).map_err(damaged)?;
        let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
        loop {
            values.clear();
            levels.clear();
            let (rows, _, _) = guarded(|| texts.read_records(ROWS, Some(&mut levels), None, &mut values))
                .map_err(damaged)?;
            if rows == 0 {
                break;
            }
            for value in &values {
                on_text(value.data())?;
            }
        }
        let (done, before) = (group as u64 + 1, group as u64);
        on_bytes(size * done / groups as u64 - size * before / groups as u64);
    }
    Ok(())
}

fn open_column(
    reader: &SerializedFileReader<File>,
    group: usize,
    column: usize,
) -> Result<ColumnReaderImpl<ByteArrayType>> {
    match reader.get_row_group(group)?.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(texts) => Ok(texts),
        _ => Err(ParquetError::General("column `text` does not hold strings".into())),
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
