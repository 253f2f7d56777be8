//! Text to batches: preparation, shards, masking, the loader.

pub mod batch;

pub use batch::{Batch, GroupedRows, Sequence};

use serde::{Deserialize, Serialize};

/// Where a loader stands: all that a checkpoint must keep to go on with the very next sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Sequences of this pass that were handed out, over all ranks.
    pub cursor: u64,
}
