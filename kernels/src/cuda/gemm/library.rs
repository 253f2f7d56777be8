//! cuBLASLt as a library: whether it is there, its handle, its errors.

use super::Shape;
use crate::cuda::device::Device;
use crate::{Error, Result};
use cudarc::cublaslt::{result, sys};
use std::ffi::CStr;

/// The major version whose functions are called.
pub(crate) const MAJOR: usize = 13;

/// What cuBLASLt did not do, in its words.
pub(super) type Refusal = String;

/// The version of the cuBLASLt that is found, as in 130002 for 13.0.2.
///
/// # Errors
/// None is found, or one of another major version than this build's.
pub(crate) fn version() -> Result<usize> {
    const REMEDY: &str = "install CUDA 13's libraries (as with `pip install nvidia-cublas`), and put the folder of \
                          libcublasLt.so.13 into LD_LIBRARY_PATH";
    // SAFETY: only looks for the library
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(format!("cuBLASLt (libcublasLt.so.{MAJOR}) was not found; {REMEDY}")));
    }
    // SAFETY: the library is there, and every version of it has this function
    let version = unsafe { sys::cublasLtGetVersion() };
    if version / 10_000 != MAJOR {
        return Err(Error::Device(format!(
            "the cuBLASLt that was found has version {}, and this build needs {MAJOR}; {REMEDY}",
            dotted(version)
        )));
    }
    Ok(version)
}

/// A version of cuBLASLt as people write it.
pub(crate) fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// The library's handle.
pub(super) struct Library {
    pub handle: sys::cublasLtHandle_t,
    pub version: usize,
}

// SAFETY: the library may be called with one handle from any thread
unsafe impl Send for Library {}
// SAFETY: as above
unsafe impl Sync for Library {}

impl Library {
    pub fn open(device: &Device) -> Result<Self> {
        let version = version()?;
        device.bind()?;
        let handle = result::create_handle()
            .map_err(|error| Error::Device(format!("cuBLASLt cannot start: {}", words(error.0))))?;
        Ok(Self { handle, version })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // A destructor has nobody to tell of a failure.
        // SAFETY: created in `open`, destroyed once
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The library's name of a status.
pub(super) fn words(status: sys::cublasStatus_t) -> Refusal {
    // SAFETY: any status may be asked for; the answer is a string that is never freed
    let name = unsafe { sys::cublasLtGetStatusName(status) };
    if name.is_null() {
        return format!("{status:?}");
    }
    // SAFETY: as above
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// An error that names the product.
pub(super) fn explain(shape: Shape, why: Refusal) -> Error {
    let Shape { family, rows, inputs, outputs, .. } = shape;
    Error::Device(format!(
        "{} of {rows} rows, {inputs} inputs and {outputs} outputs: cuBLASLt says {why}",
        family.name()
    ))
}
