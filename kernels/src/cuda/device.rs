//! One GPU: its context, streams, kernels and memory, over the driver's plain calls.
//!
//! Ops run in order on the compute stream. What other streams do is ordered against it by events, by hand; nothing here
//! synchronizes unless it says so.

use super::failure::Doing;
use super::images::{ARCHS, IMAGES, Image};
use super::launch::Function;
use super::probe::runs;
use super::{events, gemm, graph, profile};
use crate::{Error, Result};
use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The oldest architecture that the kernels are compiled for, as in 8.0.
pub const OLDEST: (i32, i32) = (8, 0);
/// The oldest driver that runs this build, as [`driver_version`] counts: libraries and kernels are those of CUDA 13.
pub const OLDEST_DRIVER: i32 = 13000;
/// Alignment of scratch, in bytes: what an allocation of the driver has.
const ALIGN: usize = 256;

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
    copies: sys::CUstream,
    pub(super) modules: Vec<sys::CUmodule>,
    pub(super) functions: Mutex<HashMap<&'static str, Function>>,
    pub(super) present: Mutex<HashMap<&'static str, bool>>,
    scratch: Mutex<Scratch>,
    usage: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) events: Mutex<events::Pool>,
    pub(super) graphs: Mutex<graph::Graphs>,
    pub(super) state: graph::State,
    pub(super) profile: profile::Profile,
}

// SAFETY: the handles are the driver's, which may be used from any thread; every method makes the context current first.
unsafe impl Send for Device {}
// SAFETY: as above; what this crate itself keeps is behind mutexes.
unsafe impl Sync for Device {}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest CUDA that the driver can run, as in 13000 for 13.0.
///
/// # Errors
/// No driver.
pub fn driver_version() -> Result<i32> {
    // SAFETY: only looks for the library
    if !unsafe { sys::is_culib_present() } {
        let what =
            "no NVIDIA driver (libcuda.so.1) was found; install version 580 or newer, or use --device cpu";
        return Err(Error::Device(what.into()));
    }
    let mut version = 0;
    // SAFETY: the library is there, and every version of it has this function
    unsafe { sys::cuDriverGetVersion(&mut version) }.doing("cannot read the NVIDIA driver's version")?;
    Ok(version)
}

/// Initializes the driver; the number of GPUs.
///
/// # Errors
/// No driver, one that is too old for this build, no GPU: each with what to do.
pub fn count() -> Result<usize> {
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        return Err(Error::Device(format!(
            "the NVIDIA driver is too old: it runs CUDA {}, and this build needs {}; install version 580 or newer",
            dotted(version),
            dotted(OLDEST_DRIVER)
        )));
    }
    driver::init().doing("the NVIDIA driver cannot start")?;
    match driver::device::get_count().doing("cannot count GPUs")? {
        0 => Err(Error::Device(
            "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES".into(),
        )),
        n => Ok(n as usize),
    }
}

/// Where GPU `ordinal` is on the bus, as the system's files name it; none where the driver does not tell.
pub fn pci_bus_id(ordinal: usize) -> Option<String> {
    count().ok().filter(|&count| ordinal < count)?;
    let gpu = driver::device::get(ordinal as i32).ok()?;
    let mut text = [0u8; 32];
    // SAFETY: `text` has room for as many bytes as are said
    let answer = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, gpu) };
    answer.result().ok()?;
    std::ffi::CStr::from_bytes_until_nul(&text).ok()?.to_str().ok().map(str::to_owned)
}

/// A version of CUDA as people write it.
pub(super) fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Device {
    /// Opens GPU `ordinal` with the kernels in this binary, if cuBLASLt is there too.
    ///
    /// # Errors
    /// Whatever stands in the way, in one line with what to do.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        // Who has no GPU needs no compiler.
        count()?;
        if IMAGES.is_empty() {
            let what = "this binary was built without GPU kernels; install CUDA's nvcc or run `bash \
                        tools/cuda-toolchain.sh`, and build again";
            return Err(Error::Device(what.into()));
        }
        gemm::version()?;
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
        let copies = driver::stream::create(driver::stream::StreamKind::NonBlocking)
            .doing("cannot create a stream")?;
        let mut device = Self {
            ordinal,
            name,
            arch,
            multiprocessors,
            context,
            raw,
            compute,
            copies,
            modules: Vec::new(),
            functions: Mutex::default(),
            present: Mutex::default(),
            scratch: Mutex::new(Scratch { ptr: 0, bytes: 0 }),
            usage: Mutex::default(),
            events: Mutex::default(),
            graphs: Mutex::default(),
            state: graph::State::default(),
            profile: profile::Profile::default(),
        };
        for image in images.iter().filter(|image| image.only.is_none_or(|only| runs(only, arch))) {
            // SAFETY: a fatbin that nvcc wrote, whole
            let module = unsafe { driver::module::load_data(image.bytes.as_ptr().cast()) }.doing_with(|| format!(
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

    /// The stream of copies beside the ops.
    pub(crate) fn copies(&self) -> sys::CUstream {
        self.copies
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
        self.leave_graph()?;
        self.bind()?;
        // SAFETY: the stream lives as long as self
        unsafe { driver::stream::synchronize(self.compute) }.doing("the GPU failed at work queued before")
    }

    /// Memory of unspecified contents; `what` names it in errors and in the table of memory.
    pub(crate) fn alloc(&self, what: &'static str, bytes: usize) -> Result<u64> {
        if bytes == 0 {
            return Ok(0);
        }
        self.leave_graph()?;
        self.bind()?;
        // SAFETY: freed by `free`
        match unsafe { driver::malloc_sync(bytes) } {
            Ok(ptr) => {
                *lock(&self.usage).entry(what).or_default() += bytes as u64;
                Ok(ptr)
            }
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = driver::mem_get_info().unwrap_or((0, 0));
                let held = lock(&self.usage).values().sum();
                Err(Error::DeviceMemory { what, bytes, gpu: self.ordinal, free, total, held })
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
        let _ = self.synchronize();
        // SAFETY: the stream lives as long as self
        let _ = unsafe { driver::stream::synchronize(self.copies) };
        // SAFETY: allocated by `alloc`, freed once; nothing on either stream uses it any more
        let _ = unsafe { driver::free_sync(ptr) };
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
        self.leave_graph()?;
        self.bind()?;
        // SAFETY: `dst` has src.len() bytes, which the caller checked; pageable memory is read before the call returns
        unsafe { driver::memcpy_htod_async(dst, src, self.compute) }.doing("cannot copy to the GPU")
    }

    /// Copies to the host; waits for the GPU.
    pub(crate) fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        if dst.is_empty() {
            return Ok(());
        }
        self.leave_graph()?;
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
        self.queue("copy", || {
            // SAFETY: both have `bytes` bytes, which the caller checked
            unsafe { driver::memcpy_dtod_async(dst, src, bytes, self.compute) }
                .doing("cannot copy within the GPU")
        })
    }

    /// Sets every byte, in the order of the ops.
    pub(crate) fn fill(&self, dst: u64, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        self.queue("fill", || {
            // SAFETY: `dst` has `bytes` bytes, which the caller checked
            unsafe { driver::memset_d8_async(dst, byte, bytes, self.compute) }
                .doing("cannot clear memory of the GPU")
        })
    }

    /// The GPU's own number, the same in every process.
    pub(super) fn uuid(&self) -> Result<[u8; 16]> {
        let uuid = driver::device::get_uuid(self.raw).doing("cannot read the GPU's number")?;
        Ok(uuid.bytes.map(|byte| byte as u8))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let scratch = std::mem::replace(&mut *lock(&self.scratch), Scratch { ptr: 0, bytes: 0 });
        let _ = self.bind();
        self.drop_graphs();
        self.free("scratch of ops", scratch.ptr, scratch.bytes);
        // SAFETY: nothing of this device is used after; a failure has nobody to be told to
        unsafe {
            let _ = driver::stream::synchronize(self.compute);
            let _ = driver::stream::synchronize(self.copies);
            self.forget_times();
            lock(&self.events).clear();
            let _ = driver::stream::destroy(self.compute);
            let _ = driver::stream::destroy(self.copies);
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
