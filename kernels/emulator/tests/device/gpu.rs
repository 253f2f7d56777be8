//! A few calls of the driver API, safe enough for tests.

use bytemuck::Pod;
use cudarc::driver::{DriverError, result, sys};
use std::ffi::{CString, c_void};
use std::sync::OnceLock;

/// Opens the emulator and makes its device the calling thread's.
pub fn open() {
    static CONTEXT: OnceLock<usize> = OnceLock::new();
    let context = *CONTEXT.get_or_init(|| {
        emulator::load();
        emulator::open("libemulator_tests.so");
        result::init().unwrap();
        // SAFETY: the device is the one that was just asked for.
        unsafe { result::primary_ctx::retain(result::device::get(0).unwrap()).unwrap() as usize }
    });
    // SAFETY: the context is never released.
    unsafe { result::ctx::set_current(context as sys::CUcontext).unwrap() };
}

pub struct Buffer<T> {
    pub at: u64,
    pub len: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Not written: poison.
    pub fn fresh(len: usize) -> Self {
        open();
        // SAFETY: allocates, and touches nothing.
        let at = unsafe { result::malloc_sync(len * size_of::<T>()).unwrap() };
        Self { at, len, of: std::marker::PhantomData }
    }

    pub fn from(values: &[T]) -> Self {
        let buffer = Self::fresh(values.len());
        // SAFETY: the buffer has just been made for these values.
        unsafe { result::memcpy_htod_sync(buffer.at, values).unwrap() };
        buffer
    }

    /// A blocking copy: it waits for the default stream only.
    pub fn read(&self) -> Vec<T> {
        let mut values = vec![T::zeroed(); self.len];
        // SAFETY: both sides have this length.
        unsafe { result::memcpy_dtoh_sync(&mut values, self.at).unwrap() };
        values
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `fresh`, freed once.
        unsafe { result::free_sync(self.at).unwrap() };
    }
}

/// Pinned host memory.
pub struct Pinned(*mut f32, usize);

impl Pinned {
    pub fn new(len: usize) -> Self {
        open();
        // SAFETY: allocates, and touches nothing.
        Self(unsafe { result::malloc_host(len * 4, 0).unwrap().cast() }, len)
    }
    pub fn values(&mut self) -> &mut [f32] {
        // SAFETY: the allocation is that long; no copy runs while no call of the driver does.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        unsafe { result::free_host(self.0.cast()).unwrap() };
    }
}

pub struct Stream(pub sys::CUstream);

impl Stream {
    pub fn new() -> Self {
        open();
        Self(result::stream::create(result::stream::StreamKind::NonBlocking).unwrap())
    }
    pub fn wait(&self) {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.0).unwrap() };
    }
    pub fn upload(&self, to: &Buffer<f32>, from: &mut Pinned) {
        // SAFETY: the caller keeps both until the stream is done.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to.at, from.0.cast(), from.1 * 4, self.0).result().unwrap() };
    }
    pub fn download(&self, to: &mut Pinned, from: &Buffer<f32>) {
        // SAFETY: as above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.0.cast(), from.at, to.1 * 4, self.0).result().unwrap() };
    }
    /// Work queued here from now on comes after what `other` has now.
    pub fn after(&self, other: &Stream) {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
        // SAFETY: streams and event live; a destroyed event may still be waited for.
        unsafe {
            result::event::record(event, other.0).unwrap();
            result::stream::wait_event(self.0, event, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                .unwrap();
            result::event::destroy(event).unwrap();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        unsafe { result::stream::destroy(self.0).unwrap() };
    }
}

/// A parameter's bytes.
pub fn arg<T: Pod>(value: T) -> Vec<u8> {
    bytemuck::bytes_of(&value).to_vec()
}

pub fn function(name: &str) -> Result<sys::CUfunction, DriverError> {
    open();
    static MODULE: OnceLock<usize> = OnceLock::new();
    // SAFETY: the emulator does not read the image; the module is never unloaded.
    let module =
        *MODULE.get_or_init(|| unsafe { result::module::load_data([0u8].as_ptr().cast()).unwrap() as usize });
    // SAFETY: as above.
    unsafe { result::module::get_function(module as sys::CUmodule, CString::new(name).unwrap()) }
}

/// Queues a kernel with `shared` bytes of dynamic shared memory.
pub fn try_launch(
    stream: &Stream,
    name: &str,
    grid: (u32, u32, u32),
    block: (u32, u32, u32),
    shared: u32,
    args: &[Vec<u8>],
) -> Result<(), DriverError> {
    let mut args = args.to_vec();
    let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|a| a.as_mut_ptr().cast()).collect();
    // SAFETY: each argument has the size of its parameter; kernels that are wrong are caught by the emulator.
    unsafe { result::launch_kernel(function(name)?, grid, block, shared, stream.0, &mut pointers) }
}

/// Queues a kernel of one dimension.
pub fn launch(stream: &Stream, name: &str, grid: u32, block: u32, args: &[Vec<u8>]) {
    try_launch(stream, name, (grid, 1, 1), (block, 1, 1), 0, args).unwrap();
}
