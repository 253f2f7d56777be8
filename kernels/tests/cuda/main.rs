//! The CUDA ops against the f64 oracle, which is the CPU backend, on the same rounded inputs: on the GPU where there is
//! one, else on the emulator, which runs the same kernels and the same launches on the CPU. `REQUIRE_GPU=1` takes no emulator.
//!
//! The rule: the error's norm is at most twice that of rounding the exact answer to the output's type. Outputs are poisoned
//! before each op, and sizes fit no vector and no block.

mod attention;
mod attention_sm90;
mod check;
mod elementwise;
mod embedding;
mod layernorm;
mod lengths;
mod linear;
mod loss;
mod nccl;
mod nonfinite;
mod optim;
mod probe;
mod resources;
mod rows;
mod side;
mod transfer;
