//! One integration-test binary: parity with the reference, training, command line, robustness.

mod cli;
mod parity;
mod robustness;
mod training;
