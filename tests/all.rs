//! One integration-test binary: parity, training, command line, robustness.
