//! Hugging Face model folders: written as BertForPreTraining, read from any BERT.

pub(super) mod config;
mod export;
mod import;
mod names;
mod vocabulary;

pub use export::export;
pub(crate) use export::replaceable;
pub(in crate::checkpoint) use export::{export_new, vacant};
pub use import::{Imported, import};
pub(in crate::checkpoint) use names::canonical;
pub use vocabulary::is_padded;

#[cfg(test)]
mod tests;
