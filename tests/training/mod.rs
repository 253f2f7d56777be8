//! The model as a whole: its gradient, and what may not change it.

mod invariance;
pub mod model;
pub mod run;
