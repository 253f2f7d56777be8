//! One body of an op's test for both sides: the GPU (or its emulator) and the oracle.

use crate::check::distance;
use bytemuck::Pod;
use kernels::backend::Dropout;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element};
use kernels::philox::DropoutRate;
use kernels::{Backend, Scalar};
use std::ops::Range;

/// A backend whose elements can be made from numbers.
pub trait Side: Backend {
    /// Rounds.
    fn elem(x: f64) -> Self::Elem;
}

impl<T: Scalar> Side for Cpu<T> {
    fn elem(x: f64) -> T {
        T::from_f64(x)
    }
}

impl<E: Element> Side for Cuda<E> {
    fn elem(x: f64) -> E {
        E::from_f32(x as f32)
    }
}

/// How much further off than one rounding the f32 sum of a column may be: it is rounded, up or down, at each of about 60
/// additions from the first to the last (the rows of a thread, the threads of a block, the blocks), the square root of which
/// is 8, twice.
pub const SUM: f64 = 16.0;

/// Compares means of rows of elements about 1: their sums cancel, so that they are off by units in the last place of the
/// elements, not of the mean.
#[track_caller]
pub fn close_means(what: &str, got: &[f64], exact: &[f64]) {
    let (error, size) = (distance(got, exact), (exact.len() as f64).sqrt());
    assert!(error <= f64::from(f32::EPSILON) * size, "{what}: off by {error}");
}

/// Numbers in a backend's memory, beginning some elements past an address that vectors may start at.
pub struct Buffer<B: Backend, T: Pod + Send + Sync> {
    memory: B::Mem<T>,
    past: usize,
}

impl<B: Side, T: Pod + Send + Sync> Buffer<B, T> {
    /// These.
    pub fn new(b: &B, values: &[T], past: usize) -> Self {
        let mut memory = b.zeros("a test's buffer", past + values.len()).unwrap();
        b.upload(B::at_mut(&mut memory, past..past + values.len()), values).unwrap();
        Self { memory, past }
    }

    fn range(&self) -> Range<usize> {
        self.past..B::len(&self.memory)
    }

    /// All of it.
    pub fn at(&self) -> B::Ref<'_, T> {
        B::at(&self.memory, self.range())
    }

    /// All of it.
    pub fn at_mut(&mut self) -> B::Mut<'_, T> {
        let range = self.range();
        B::at_mut(&mut self.memory, range)
    }
}

/// Elements.
pub fn elems<B: Side>(b: &B, values: &[f64], past: usize) -> Buffer<B, B::Elem> {
    Buffer::new(b, &values.iter().map(|&x| B::elem(x)).collect::<Vec<_>>(), past)
}

/// Statistics or gradients of parameters.
pub fn accs<B: Side>(b: &B, values: &[f64]) -> Buffer<B, B::Acc> {
    Buffer::new(b, &values.iter().map(|&x| B::Acc::from_f64(x)).collect::<Vec<_>>(), 0)
}

/// Indices.
pub fn indices<B: Side>(b: &B, values: &[u32]) -> Buffer<B, u32> {
    Buffer::new(b, values, 0)
}

/// What no op may leave as it is.
pub fn poison<B: Side>(b: &B, len: usize, past: usize) -> Buffer<B, B::Elem> {
    elems(b, &vec![f64::NAN; len], past)
}

/// What no op may leave as it is.
pub fn poison_accs<B: Side>(b: &B, len: usize) -> Buffer<B, B::Acc> {
    accs(b, &vec![f64::NAN; len])
}

/// Elements on the host, widened.
pub fn read<B: Side>(b: &B, buffer: &Buffer<B, B::Elem>) -> Vec<f64> {
    let mut host = vec![0.0; buffer.range().len()];
    b.download_elems(buffer.at(), &mut host).unwrap();
    host
}

/// Statistics or gradients on the host, widened.
pub fn read_accs<B: Side>(b: &B, buffer: &Buffer<B, B::Acc>) -> Vec<f64> {
    let mut host = vec![B::Acc::ZERO; buffer.range().len()];
    b.download(buffer.at(), &mut host).unwrap();
    host.into_iter().map(Scalar::to_f64).collect()
}

/// Dropout at rate `p` under fixed keys.
pub fn dropout<B: Side>(p: f64, row_keys: &Buffer<B, u32>) -> Dropout<'_, B> {
    Dropout { rate: DropoutRate::new(p), key: 0x5eed, site: 11, row_keys: row_keys.at() }
}

/// Which elements are 0.
pub fn zeros(x: &[f64]) -> Vec<bool> {
    x.iter().map(|&x| x == 0.0).collect()
}

/// `from` to `from + len`.
pub fn span(from: usize, len: usize) -> Range<usize> {
    from..from + len
}
