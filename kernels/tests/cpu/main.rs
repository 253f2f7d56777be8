//! The CPU ops: gradients against finite differences in f64, f32 against f64, and independence of the number of
//! threads, for every op, with sizes that fit no vector and no block.

mod attention;
mod check;
mod elementwise;
mod embedding;
mod layernorm;
mod lengths;
mod linear;
mod loss;
mod optim;
