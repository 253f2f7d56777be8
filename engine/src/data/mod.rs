//! Text to batches: preparation, shards, masking, the loader.

pub mod batch;
pub mod import;
mod input;
pub mod loader;
pub mod masking;
mod permutation;
mod pipeline;
pub mod prepare;
mod recipe;
mod remarks;
mod sentences;
mod sequences;
pub mod shards;
pub mod tokenize;
pub mod vocab;

pub use batch::{Batch, GroupedRows, Sequence};
pub use input::{LeftOut, Omitted};
pub use loader::{GlobalBatch, Loader, LoaderConfig};
pub use shards::{Dataset, Manifest, SplitName};

use serde::{Deserialize, Serialize};

/// Where a loader stands: all that a checkpoint must keep to go on with the very next sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Sequences of this pass that were handed out, over all ranks.
    pub cursor: u64,
}
