//! One integration-test binary: parity with the reference, training, command line, GPU, ranks, robustness.

mod cli;
mod gpu;
mod parity;
mod ranks;
mod robustness;
mod training;
