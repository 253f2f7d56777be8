//! Hugging Face model folders: written as BertForPreTraining, read from any BERT.

pub(super) mod config;
mod export;
mod import;
mod names;
mod vocabulary;

pub use export::export;
pub(in crate::checkpoint) use export::export_tensors;
pub(crate) use export::replaceable;
pub use import::{Imported, import};
pub(in crate::checkpoint) use names::canonical;
pub use vocabulary::is_padded;

#[cfg(test)]
mod tests;
