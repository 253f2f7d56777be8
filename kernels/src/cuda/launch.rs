//! Launching a kernel: its arguments are collected one by one in the order of its signature.

use super::device::{Device, Grid};
use super::memory::{View, ViewMut};
use super::{Cuda, Element};
use crate::Result;
use crate::backend::Dropout;
use crate::error::check_len;
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;

/// Most bytes of a kernel's arguments here.
const WORDS: usize = 80;
/// Most arguments of a kernel here.
const ARGS: usize = 40;

/// A value that a kernel takes as it lies in memory.
///
/// # Safety
/// The type has the size and layout of the kernel's parameter, and at most 64 bytes.
pub(crate) unsafe trait Arg: Copy {}
// SAFETY: `int` or `unsigned`
unsafe impl Arg for u32 {}
// SAFETY: `int`
unsafe impl Arg for i32 {}
// SAFETY: `unsigned long long`, or a pointer
unsafe impl Arg for u64 {}
// SAFETY: `float`
unsafe impl Arg for f32 {}
// SAFETY: `double`
unsafe impl Arg for f64 {}
// SAFETY: `struct Dropout` of cu/common/philox.cuh
unsafe impl Arg for DropoutArg {}

/// `struct Dropout` of cu/common/philox.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct DropoutArg {
    row_keys: u64,
    key: u64,
    site: u32,
    threshold: u32,
    scale: f32,
    unused: u32,
}

/// A dropout as kernels take it; `rows` rows need a key each.
pub(crate) fn dropout<E: Element>(
    op: &'static str,
    d: Dropout<'_, Cuda<E>>,
    rows: usize,
) -> Result<DropoutArg> {
    if !d.rate.is_none() {
        check_len(op, "row_keys", d.row_keys.len(), rows)?;
    }
    Ok(DropoutArg {
        row_keys: d.row_keys.ptr(),
        key: d.key,
        site: d.site,
        threshold: d.rate.threshold.into(),
        scale: d.rate.scale() as f32,
        unused: 0,
    })
}

/// A kernel about to be launched.
pub(crate) struct Launch<'d> {
    device: &'d Device,
    kernel: &'static str,
    words: [u64; WORDS],
    used: usize,
    starts: [usize; ARGS],
    sizes: [usize; ARGS],
    args: usize,
}

impl<'d> Launch<'d> {
    /// The kernel of that symbol.
    pub fn new(device: &'d Device, kernel: &'static str) -> Self {
        Self { device, kernel, words: [0; WORDS], used: 0, starts: [0; ARGS], sizes: [0; ARGS], args: 0 }
    }

    /// The next argument.
    pub fn arg<A: Arg>(mut self, value: A) -> Self {
        let words = size_of::<A>().div_ceil(8);
        let place = &mut self.words[self.used..self.used + words];
        // SAFETY: `place` has room for A, and addresses of u64 are aligned enough for every Arg
        unsafe { place.as_mut_ptr().cast::<A>().write(value) };
        self.starts[self.args] = self.used;
        self.sizes[self.args] = size_of::<A>();
        self.args += 1;
        self.used += words;
        self
    }

    /// The next argument: where these elements lie.
    pub fn view<T>(self, view: &View<'_, T>) -> Self {
        self.arg(view.ptr())
    }

    /// The next argument: where these elements lie.
    pub fn view_mut<T>(self, view: &mut ViewMut<'_, T>) -> Self {
        self.arg(view.ptr())
    }

    /// The next argument, a length or an index: `unsigned`.
    pub fn size(self, size: usize) -> Self {
        debug_assert!(u32::try_from(size).is_ok(), "{size} does not fit 32 bits");
        self.arg(size as u32)
    }

    /// Queues it; nothing for an empty grid.
    ///
    /// # Safety
    /// The arguments are those of the kernel's signature, in order, and point to memory of the lengths that it reads and
    /// writes with the other arguments.
    pub unsafe fn run(self, grid: [usize; 3], block: [usize; 3], shared: usize) -> Result<()> {
        // SAFETY: the caller's
        unsafe { self.launch(None, grid, block, shared) }
    }

    /// Queues it on another stream than that of the ops, against which it is ordered by hand; nothing for an empty grid.
    ///
    /// # Safety
    /// As of [`Self::run`].
    pub unsafe fn run_on(
        self,
        stream: CUstream,
        grid: [usize; 3],
        block: [usize; 3],
        shared: usize,
    ) -> Result<()> {
        // SAFETY: the caller's
        unsafe { self.launch(Some(stream), grid, block, shared) }
    }

    /// # Safety
    /// As of [`Self::run`].
    unsafe fn launch(
        mut self,
        beside: Option<CUstream>,
        grid: [usize; 3],
        block: [usize; 3],
        shared: usize,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut params = [std::ptr::null_mut::<c_void>(); ARGS];
        for (param, &start) in params.iter_mut().zip(&self.starts[..self.args]) {
            *param = (&raw mut self.words[start]).cast();
        }
        let dims = |d: [usize; 3]| d.map(|n| n as u32);
        let grid = Grid { blocks: dims(grid), threads: dims(block), shared: shared as u32 };
        // SAFETY: the caller's
        unsafe {
            let (params, sizes) = (&mut params[..self.args], &self.sizes[..self.args]);
            self.device.launch(self.kernel, grid, beside, params, sizes)
        }
    }
}

/// The symbol of a kernel for the backend's elements: `kernel!(E, "name")` is `name_f32` or `name_bf16`.
macro_rules! kernel {
    ($element:ty, $name:literal) => {
        match <$element as $crate::cuda::Element>::KIND {
            $crate::cuda::Kind::F32 => concat!($name, "_f32"),
            $crate::cuda::Kind::Bf16 => concat!($name, "_bf16"),
        }
    };
}
pub(crate) use kernel;
