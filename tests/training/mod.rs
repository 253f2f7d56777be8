//! The model as a whole: its gradient, and what may not change it.

mod invariance;
mod model;
pub mod run;
