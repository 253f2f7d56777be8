//! BERT and its training, generic over a [`kernels::Backend`].

pub mod activations;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod device_batch;
pub mod dist;
pub mod error;
pub mod files;
mod lock;
pub mod mapped;
pub mod memory;
pub mod metrics;
pub mod mllog;
pub mod mlperf;
pub mod model;

pub mod optim;
pub mod plan;
pub mod report;
pub mod step;
pub mod table;
pub mod trainer;
pub mod verify;

pub use error::{Error, Result};
