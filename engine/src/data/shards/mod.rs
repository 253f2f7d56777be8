//! Prepared data: `manifest.json`, `vocab.txt` and shards of sequences, memory-mapped and read in place.

mod dataset;
mod format;
mod manifest;
mod shard;
mod stream;
mod verification;
mod writer;

pub(crate) use dataset::verify;
pub use dataset::{Dataset, SplitName};
pub use manifest::{
    Alphabet, InputRecord, Lengths, MANIFEST, Manifest, ShardEntry, SplitManifest, TextCounts, VOCAB,
};
pub(crate) use shard::Expected;
pub use shard::{SequenceRef, StaticMask, Tokens};
pub(crate) use stream::SplitStream;
pub use verification::Verification;
pub(crate) use writer::{Columns, SplitWriter};

#[cfg(test)]
mod tests;
