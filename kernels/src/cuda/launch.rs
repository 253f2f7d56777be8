//! Launching a kernel: its arguments are collected one by one in the order of its signature.

use super::device::{Device, lock};
use super::failure::Doing;
use super::memory::{View, ViewMut};
use super::{Cuda, Element};
use crate::backend::Dropout;
use crate::error::check_len;
use crate::{Error, Result};
use cudarc::driver::result as driver;
use cudarc::driver::sys;
use std::ffi::{CString, c_void};

/// Most words of 8 bytes of a kernel's arguments here.
const WORDS: usize = 160;
/// Most arguments of a kernel here.
const ARGS: usize = 40;

/// A value that a kernel takes as it lies in memory.
///
/// # Safety
/// The type has the size and layout of the kernel's parameter, and at most 128 bytes.
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
        check_len(op, "dropout.row_keys", d.row_keys.len(), rows)?;
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
        // SAFETY: `place` has room for A; the driver copies arguments from where they lie, aligned or not
        unsafe { place.as_mut_ptr().cast::<A>().write_unaligned(value) };
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
        stream: sys::CUstream,
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
        beside: Option<sys::CUstream>,
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

/// What one launch asks for.
struct Grid {
    /// Blocks.
    blocks: [u32; 3],
    /// Threads of a block.
    threads: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    shared: u32,
}

/// A kernel that has been launched before.
#[derive(Clone, Copy)]
pub(super) struct Function {
    raw: sys::CUfunction,
    /// Dynamic shared memory that its blocks may have.
    shared: u32,
}

/// Dynamic shared memory that every kernel's blocks may have without being allowed to.
const SHARED: u32 = 48 << 10;

impl Device {
    /// The kernel of that name, which takes arguments of these sizes and `shared` bytes of dynamic shared memory.
    fn function(&self, kernel: &'static str, sizes: &[usize], shared: u32) -> Result<sys::CUfunction> {
        let known = lock(&self.functions).get(kernel).copied();
        if let Some(function) = known.filter(|f| f.shared >= shared) {
            return Ok(function.raw);
        }
        self.leave_graph()?;
        self.bind()?;
        let raw = match known {
            Some(function) => function.raw,
            None => self.find(kernel, sizes)?,
        };
        if shared > SHARED {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as LIMIT;
            // SAFETY: a function of this device's modules
            unsafe { driver::function::set_function_attribute(raw, LIMIT, shared as i32) }
                .doing(&format!("a block of {kernel} cannot have {shared} bytes of shared memory"))?;
        }
        lock(&self.functions).insert(kernel, Function { raw, shared: shared.max(SHARED) });
        Ok(raw)
    }

    /// Whether this GPU runs the kernel of that name: some are compiled for one architecture alone.
    pub(crate) fn has_kernel(&self, kernel: &'static str) -> bool {
        if let Some(&present) = lock(&self.present).get(kernel) {
            return present;
        }
        let present = self.leave_graph().and_then(|()| self.bind()).is_ok() && self.look_up(kernel).is_some();
        lock(&self.present).insert(kernel, present);
        present
    }

    fn look_up(&self, kernel: &str) -> Option<sys::CUfunction> {
        let name = CString::new(kernel).ok()?;
        // SAFETY: the modules live as long as self
        self.modules.iter().find_map(|&m| unsafe { driver::module::get_function(m, name.clone()) }.ok())
    }

    /// Looks a kernel up in the modules and compares its signature with the arguments that it is about to get.
    fn find(&self, kernel: &'static str, sizes: &[usize]) -> Result<sys::CUfunction> {
        let Some(function) = self.look_up(kernel) else {
            return Err(Error::Device(format!("this binary has no kernel {kernel}; build it again")));
        };
        let mut takes = Vec::new();
        let (mut offset, mut size) = (0, 0);
        loop {
            // SAFETY: a function of this device's modules; beyond the last parameter the driver says so
            match unsafe { sys::cuFuncGetParamInfo(function, takes.len(), &mut offset, &mut size) } {
                sys::CUresult::CUDA_SUCCESS => takes.push(size),
                sys::CUresult::CUDA_ERROR_INVALID_VALUE => break,
                error => error.doing_with(|| format!("cannot load {kernel}"))?,
            }
        }
        if takes != sizes {
            return Err(Error::Device(format!(
                "{kernel} takes arguments of {takes:?} bytes and was given {sizes:?}: this binary is broken"
            )));
        }
        Ok(function)
    }

    /// Queues a kernel, in the order of the ops or `beside` them on another stream.
    ///
    /// # Safety
    /// `params` point to values of the types of the kernel's parameters, of these `sizes`; their pointers hold for what it
    /// does.
    unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        beside: Option<sys::CUstream>,
        params: &mut [*mut c_void],
        sizes: &[usize],
    ) -> Result<()> {
        let Grid { blocks, threads, shared } = grid;
        let function = self.function(kernel, sizes, shared)?;
        self.bind()?;
        let dims = |[x, y, z]: [u32; 3]| (x, y, z);
        let (grid, block) = (dims(blocks), dims(threads));
        let mut launch = |stream| {
            // SAFETY: the caller's
            unsafe { driver::launch_kernel(function, grid, block, shared, stream, params) }.doing_with(|| {
                format!("cannot launch {kernel} with {blocks:?} blocks of {threads:?} threads")
            })
        };
        match beside {
            Some(stream) => launch(stream),
            None => self.queue(kernel, || launch(self.compute())),
        }
    }
}

/// The symbol of a kernel for the backend's elements: `kernel!(E, "name")` is `name_f32` or `name_bf16`.
macro_rules! kernel {
    ($element:ty, $($name:literal),+) => {
        match <$element as $crate::cuda::Element>::KIND {
            $crate::cuda::Kind::F32 => concat!($($name,)+ "_f32"),
            $crate::cuda::Kind::Bf16 => concat!($($name,)+ "_bf16"),
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
pub(crate) mod tests {
    use super::super::images::{IMAGES, Image};
    use super::*;
    use std::sync::{Arc, Once};

    /// The GPU, or the emulator with one of compute capability 9.0 and one of 8.0.
    pub(crate) fn open(ordinal: usize) -> Arc<Device> {
        static LOADED: Once = Once::new();
        LOADED.call_once(|| {
            if crate::cuda::count().is_err() {
                emulator::load_archs(&[90, 80]);
            }
        });
        let emulated = [Image::named("emulated")];
        Device::open_with(ordinal, if IMAGES.is_empty() { &emulated } else { IMAGES }).unwrap()
    }

    fn device() -> Arc<Device> {
        open(0)
    }

    #[test]
    fn arguments_that_a_kernel_does_not_take_are_refused() {
        let device = device();
        let launch = || Launch::new(&device, "tanh_forward_f32");
        for wrong in
            [launch().arg(0u64), launch().arg(0u32).arg(0u64), launch().arg(0u64).arg(0u64).arg(1i32)]
        {
            // SAFETY: the kernel is not launched
            let error = unsafe { wrong.run([1; 3], [32, 1, 1], 0) }.unwrap_err().to_string();
            assert!(error.contains("takes arguments of [8, 8] bytes and was given"), "{error}");
        }
        // SAFETY: no element is touched
        unsafe { launch().arg(0u64).arg(0u64).run([1; 3], [32, 1, 1], 0) }.unwrap();
        device.synchronize().unwrap();
    }

    #[test]
    fn a_kernel_that_does_not_exist_is_an_error() {
        let device = device();
        // SAFETY: there is nothing to launch
        let error = unsafe { Launch::new(&device, "no_such_kernel").run([1; 3], [32, 1, 1], 0) }.unwrap_err();
        assert!(error.to_string().contains("no kernel no_such_kernel"), "{error}");
    }
}
