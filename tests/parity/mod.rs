//! Our numbers against a reference implementation's.

mod golden;
pub mod steps;
