//! The ops of BERT training. This crate knows tensors, not BERT.
//!
//! [`Backend`] is the list of ops, each with its backward; [`cpu::Cpu`] runs them on the CPU, generic over
//! `f32` (the product's default without a GPU) and `f64` (the oracle that everything else is compared with);
//! [`cuda::Cuda`] runs them on an NVIDIA GPU, generic over `f32` and `bf16`.

pub mod backend;
pub mod collective;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod limits;
pub mod philox;
pub mod scalar;

pub use backend::Backend;
pub use error::{Error, Result};
pub use scalar::Scalar;
