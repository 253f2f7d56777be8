//! What can go wrong in an op, and the checks that all devices share.

use std::ops::Range;

/// Failure of an op or of a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A buffer has another length than the op's sizes ask for.
    #[error("{op}: `{arg}` has {got} elements, expected {want}")]
    Length {
        /// The op.
        op: &'static str,
        /// The argument's field name.
        arg: &'static str,
        /// Its length.
        got: usize,
        /// The length that the op's sizes ask for.
        want: usize,
    },
    /// A size or value that the op cannot take.
    #[error("{op}: {what}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// What is not supported, with the number.
        what: String,
    },
    /// Another process of the job cannot be reached.
    #[error("rank {rank} is gone: {why}")]
    RankLost {
        /// The process.
        rank: usize,
        /// How it showed.
        why: String,
    },
    /// A collective operation failed.
    #[error("{0}")]
    Ranks(String),
    /// A GPU, its driver or one of its libraries fails or is missing; says what to do where something can be done.
    #[error("{0}")]
    Device(String),
    /// The device has less memory than asked for.
    #[error("cannot allocate {bytes} bytes for {what}; free memory, or choose a smaller model or batch")]
    OutOfMemory {
        /// Name of the buffer.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The same, of a GPU.
    #[error(
        "cannot allocate {bytes} bytes for {what}: of the {total} bytes of GPU {gpu} {free} are free, and this process \
         holds {held}; choose a smaller model or batch, or end what else uses the GPU (`nvidia-smi` shows it)"
    )]
    DeviceMemory {
        /// Name of the buffer.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The GPU's number.
        gpu: usize,
        /// Bytes of it that nobody holds.
        free: usize,
        /// Bytes that it has.
        total: usize,
        /// Bytes in buffers of this process.
        held: u64,
    },
}

/// Result of an op.
pub type Result<T> = std::result::Result<T, Error>;

/// Checks a buffer's length against the op's sizes.
pub(crate) fn check_len(op: &'static str, arg: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::Length { op, arg, got, want }) }
}

/// Checks a range of the flat table of gradients.
pub(crate) fn check_range(
    op: &'static str,
    arg: &'static str,
    table: usize,
    range: &Range<usize>,
    want: usize,
) -> Result<()> {
    check_len(op, arg, range.len(), want)?;
    if range.end > table {
        let what = format!("`{arg}` ends at {} in a table of {table} elements", range.end);
        return Err(Error::Unsupported { op, what });
    }
    Ok(())
}

/// Number of rows in a table, whose length must be a whole number of rows.
pub(crate) fn check_table(op: &'static str, arg: &'static str, len: usize, cols: usize) -> Result<usize> {
    if cols == 0 {
        return Err(Error::Unsupported { op, what: format!("rows of `{arg}` have 0 columns") });
    }
    check_len(op, arg, len, len / cols * cols)?;
    Ok(len / cols)
}
