//! The emulator itself: what is right runs right, and what is wrong shows.

mod faults;
mod gpu;
mod hopper;
mod memory;
mod order;
mod products;
mod threads;
