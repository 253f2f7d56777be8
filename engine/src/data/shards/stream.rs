//! The sequences of shards one after another, one shard mapped at a time.

use super::manifest::ShardEntry;
use super::shard::{Expected, Shard};
use super::writer::Columns;
use crate::error::{Error, Result};
use std::path::Path;

/// Reads shards in order; each is verified when it is opened.
pub(crate) struct SplitStream<'a> {
    dir: &'a Path,
    entries: std::slice::Iter<'a, ShardEntry>,
    expected: &'a Expected,
    /// The shard at hand and the next sequence in it.
    open: Option<(Shard, usize)>,
    bytes_read: u64,
}

impl<'a> SplitStream<'a> {
    /// At the first sequence of the shards `entries` in `dir`.
    pub fn new(dir: &'a Path, entries: &'a [ShardEntry], expected: &'a Expected) -> Self {
        Self { dir, entries: entries.iter(), expected, open: None, bytes_read: 0 }
    }

    /// Adds the next `count` sequences to `columns`.
    ///
    /// # Errors
    /// A damaged shard; fewer sequences than that.
    pub fn take(&mut self, count: u64, columns: &mut Columns) -> Result<()> {
        for _ in 0..count {
            while self.open.as_ref().is_none_or(|(shard, next)| *next == shard.len()) {
                self.open = None; // unmapped before the next one is mapped
                let Some(entry) = self.entries.next() else {
                    return Err(Error::file(self.dir, "has fewer sequences than it says; prepare it again"));
                };
                let shard = Shard::open(self.dir, entry, self.expected)?;
                shard.verify()?;
                self.open = Some((shard, 0));
                self.bytes_read += entry.bytes;
            }
            if let Some((shard, next)) = &mut self.open {
                columns.push_stored(&shard.get(*next)?);
                *next += 1;
                shard.check_reads()?;
            }
        }
        Ok(())
    }

    /// Bytes of the shards opened so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}
