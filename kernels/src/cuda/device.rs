//! One GPU: its context, streams, kernels and memory, over the driver's plain calls.
//!
//! Ops run in order on the compute stream. What other streams do is ordered against it by events, by hand; nothing here
//! synchronizes unless it says so.

use super::images::{ARCHS, IMAGES, Image};
use crate::{Error, Result};
use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The oldest architecture that the kernels are compiled for, as in 8.0.
pub const OLDEST: (i32, i32) = (8, 0);
/// Alignment of scratch, in bytes: what an allocation of the driver has.
const ALIGN: usize = 256;

/// Adds what was being done to an error of the driver.
pub(crate) trait Doing<T> {
    fn doing(self, what: &str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, driver::DriverError> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|error| Error::Device(format!("{what}: {}", describe(error))))
    }
}

impl Doing<()> for sys::CUresult {
    fn doing(self, what: &str) -> Result<()> {
        self.result().doing(what)
    }
}

/// The driver's name of an error and its sentence.
fn describe(error: driver::DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, _>| s.map(|s| s.to_string_lossy().into_owned()).ok();
    let name = text(error.error_name()).unwrap_or_else(|| format!("{:?}", error.0));
    match text(error.error_string()) {
        Some(words) => format!("{words} ({name})"),
        None => name,
    }
}

/// Memory that an op needs while it runs. All ops run on one stream, so that one buffer serves them all.
struct Scratch {
    ptr: u64,
    bytes: usize,
}

/// A GPU.
pub struct Device {
    ordinal: usize,
    name: String,
    arch: (i32, i32),
    multiprocessors: usize,
    context: sys::CUcontext,
    raw: sys::CUdevice,
    compute: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, sys::CUfunction>>,
    scratch: Mutex<Scratch>,
    usage: Mutex<BTreeMap<&'static str, u64>>,
}

// SAFETY: the handles are the driver's, which may be used from any thread; every method makes the context current first.
unsafe impl Send for Device {}
// SAFETY: as above; what this crate itself keeps is behind mutexes.
unsafe impl Sync for Device {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Initializes the driver; the number of GPUs.
///
/// # Errors
/// No driver, one that is too old for this build, no GPU: each with what to do.
pub fn count() -> Result<usize> {
    // SAFETY: only looks for the library
    if !unsafe { sys::is_culib_present() } {
        let what = "no NVIDIA driver (libcuda.so.1) was found; install one, or use --device cpu";
        return Err(Error::Device(what.into()));
    }
    driver::init().doing("the NVIDIA driver cannot start")?;
    match driver::device::get_count().doing("cannot count GPUs")? {
        0 => Err(Error::Device(
            "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES".into(),
        )),
        n => Ok(n as usize),
    }
}

impl Device {
    /// Opens GPU `ordinal` with the kernels in this binary.
    ///
    /// # Errors
    /// Whatever stands in the way, in one line with what to do.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        if IMAGES.is_empty() {
            let what = "this binary was built without GPU kernels; install CUDA's nvcc or run `bash \
                        tools/cuda-toolchain.sh`, and build again";
            return Err(Error::Device(what.into()));
        }
        Self::open_with(ordinal, IMAGES)
    }

    /// Opens GPU `ordinal` with other images of the same kernels.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(ordinal: usize, images: &[Image]) -> Result<Arc<Self>> {
        let count = count()?;
        if ordinal >= count {
            let what = format!("there is no GPU {ordinal}: the driver sees {count}, counted from 0");
            return Err(Error::Device(what));
        }
        let raw = driver::device::get(ordinal as i32).doing("cannot open the GPU")?;
        let name = driver::device::get_name(raw).doing("cannot read the GPU's name")?;
        let attribute = |attribute| {
            // SAFETY: `raw` is a device of the driver
            unsafe { driver::device::get_attribute(raw, attribute) }.doing("cannot read the GPU's attributes")
        };
        let arch = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if arch < OLDEST {
            return Err(Error::Device(format!(
                "GPU {ordinal} ({name}) has compute capability {}.{}; {}.{} or newer is needed",
                arch.0, arch.1, OLDEST.0, OLDEST.1
            )));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        // SAFETY: `raw` is a device of the driver; released on drop
        let context = unsafe { driver::primary_ctx::retain(raw) }
            .doing(&format!("cannot use GPU {ordinal} ({name})"))?;
        // SAFETY: just retained
        unsafe { driver::ctx::set_current(context) }.doing("cannot use the GPU's context")?;
        let compute = driver::stream::create(driver::stream::StreamKind::NonBlocking)
            .doing("cannot create a stream")?;
        let mut device = Self {
            ordinal,
            name,
            arch,
            multiprocessors,
            context,
            raw,
            compute,
            modules: Vec::new(),
            functions: Mutex::default(),
            scratch: Mutex::new(Scratch { ptr: 0, bytes: 0 }),
            usage: Mutex::default(),
        };
        for image in images {
            // SAFETY: a fatbin that nvcc wrote, whole
            let module = unsafe { driver::module::load_data(image.bytes.as_ptr().cast()) }.doing(&format!(
                "the kernels of {} (compiled for {ARCHS}) do not load on GPU {ordinal} ({}, compute capability {}.{})",
                image.name, device.name, arch.0, arch.1
            ))?;
            device.modules.push(module);
        }
        Ok(Arc::new(device))
    }

    /// Makes the device the calling thread's.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: retained until drop
        unsafe { driver::ctx::set_current(self.context) }.doing("cannot use the GPU's context")
    }

    /// The GPU's number, from 0.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, as in (9, 0).
    pub fn arch(&self) -> (i32, i32) {
        self.arch
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// The stream on which ops run.
    pub(crate) fn compute(&self) -> sys::CUstream {
        self.compute
    }

    /// Free and all bytes of the GPU's memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        driver::mem_get_info().doing("cannot read the GPU's memory")
    }

    /// Bytes that this process has allocated, by the names of the buffers.
    pub fn usage(&self) -> Vec<(&'static str, u64)> {
        lock(&self.usage).iter().map(|(&what, &bytes)| (what, bytes)).collect()
    }

    /// Waits for all that was queued.
    ///
    /// # Errors
    /// Also those of ops queued earlier: the GPU works behind the caller.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as self
        unsafe { driver::stream::synchronize(self.compute) }
            .doing("the GPU failed at work queued before (compute-sanitizer tells where)")
    }

    /// Memory of unspecified contents; `what` names it in errors and in the table of memory.
    pub(crate) fn alloc(&self, what: &'static str, bytes: usize) -> Result<u64> {
        if bytes == 0 {
            return Ok(0);
        }
        self.bind()?;
        // SAFETY: freed by `free`
        match unsafe { driver::malloc_sync(bytes) } {
            Ok(ptr) => {
                *lock(&self.usage).entry(what).or_default() += bytes as u64;
                Ok(ptr)
            }
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { what, bytes })
            }
            Err(error) => Err(error).doing(&format!("cannot allocate {bytes} bytes for {what}")),
        }
    }

    /// Gives back memory of [`Self::alloc`]; waits for the GPU.
    pub(crate) fn free(&self, what: &'static str, ptr: u64, bytes: usize) {
        if ptr == 0 {
            return;
        }
        if let Some(used) = lock(&self.usage).get_mut(what) {
            *used = used.saturating_sub(bytes as u64);
        }
        // A failure here has been told by whatever failed before, and a destructor has nobody to tell.
        // SAFETY: allocated by `alloc`, freed once; the driver waits for work that uses it
        let _ = self.bind().map(|()| unsafe { driver::free_sync(ptr) });
    }

    /// The address of `bytes` bytes that the op now being queued may use; the next op's overwrites it. Contents are
    /// unspecified.
    pub(crate) fn scratch(&self, bytes: usize) -> Result<u64> {
        let mut scratch = lock(&self.scratch);
        if scratch.bytes < bytes {
            let wanted = bytes.next_power_of_two().max(1 << 20);
            self.free("scratch of ops", scratch.ptr, scratch.bytes);
            *scratch = Scratch { ptr: 0, bytes: 0 };
            *scratch = Scratch { ptr: self.alloc("scratch of ops", wanted)?, bytes: wanted };
        }
        Ok(scratch.ptr)
    }

    /// Copies from the host, in the order of the ops. `src` may be changed at once.
    pub(crate) fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        if src.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `dst` has src.len() bytes, which the caller checked; pageable memory is read before the call returns
        unsafe { driver::memcpy_htod_async(dst, src, self.compute) }.doing("cannot copy to the GPU")
    }

    /// Copies to the host; waits for the GPU.
    pub(crate) fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        if dst.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `src` has dst.len() bytes, which the caller checked; `dst` outlives the wait below
        unsafe { driver::memcpy_dtoh_async(dst, src, self.compute) }.doing("cannot copy from the GPU")?;
        self.synchronize()
    }

    /// Copies within the GPU, in the order of the ops.
    pub(crate) fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both have `bytes` bytes, which the caller checked
        unsafe { driver::memcpy_dtod_async(dst, src, bytes, self.compute) }
            .doing("cannot copy within the GPU")
    }

    /// Sets every byte, in the order of the ops.
    pub(crate) fn fill(&self, dst: u64, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `dst` has `bytes` bytes, which the caller checked
        unsafe { driver::memset_d8_async(dst, byte, bytes, self.compute) }
            .doing("cannot clear memory of the GPU")
    }

    /// The kernel of that name.
    pub(crate) fn function(&self, kernel: &'static str) -> Result<sys::CUfunction> {
        let mut functions = lock(&self.functions);
        if let Some(&function) = functions.get(kernel) {
            return Ok(function);
        }
        self.bind()?;
        let name = CString::new(kernel).map_err(|_| Error::Device(format!("no kernel {kernel:?}")))?;
        // SAFETY: the modules live as long as self
        let found =
            self.modules.iter().find_map(|&m| unsafe { driver::module::get_function(m, name.clone()) }.ok());
        let Some(function) = found else {
            return Err(Error::Device(format!("this binary has no kernel {kernel}; build it again")));
        };
        functions.insert(kernel, function);
        Ok(function)
    }

    /// Lets blocks of a kernel have `bytes` of dynamic shared memory, which is needed above 48 KiB.
    pub(crate) fn allow_shared(&self, function: sys::CUfunction, bytes: u32) -> Result<()> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
        // SAFETY: a function of this device's modules
        unsafe { driver::function::set_function_attribute(function, SHARED, bytes as i32) }
            .doing(&format!("a block cannot have {bytes} bytes of shared memory"))
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// `params` point to values of the types of the kernel's parameters, whose pointers hold for what it does.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        [grid, block]: [[u32; 3]; 2],
        shared: u32,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        let function = self.function(kernel)?;
        self.bind()?;
        if shared > 48 << 10 {
            self.allow_shared(function, shared)?;
        }
        let dims = |[x, y, z]: [u32; 3]| (x, y, z);
        // SAFETY: the caller's
        unsafe { driver::launch_kernel(function, dims(grid), dims(block), shared, self.compute, params) }
            .doing(&format!("cannot launch {kernel} with {grid:?} blocks of {block:?} threads"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let scratch = std::mem::replace(&mut *lock(&self.scratch), Scratch { ptr: 0, bytes: 0 });
        self.free("scratch of ops", scratch.ptr, scratch.bytes);
        // SAFETY: nothing of this device is used after; a failure has nobody to be told to
        unsafe {
            let _ = driver::stream::synchronize(self.compute);
            let _ = driver::stream::destroy(self.compute);
            for &module in &self.modules {
                let _ = driver::module::unload(module);
            }
            let _ = driver::primary_ctx::release(self.raw);
        }
    }
}

/// Whole units of [`ALIGN`] bytes that `len` elements of `T` take: parts of scratch begin at them.
pub(crate) fn aligned<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGN)
}
