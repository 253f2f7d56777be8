//! Hugging Face model folders: written as BertForPreTraining, read from any BERT.

pub(super) mod config;
mod export;
mod import;

pub use export::export;
pub(crate) use export::replaceable;
pub(in crate::checkpoint) use export::{export_new, vacant};
pub(in crate::checkpoint) use import::canonical;
pub use import::{Imported, import};

#[cfg(test)]
mod tests;
