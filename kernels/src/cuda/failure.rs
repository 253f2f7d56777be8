//! Errors of the driver in words, with what to do where something can be done.

use crate::{Error, Result};
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

/// Adds what was being done to an error of the driver.
pub(crate) trait Doing<T>: Sized {
    fn doing(self, what: &str) -> Result<T> {
        self.doing_with(|| what.to_owned())
    }

    /// The same where the words have to be put together, which no success pays for.
    fn doing_with(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, DriverError> {
    fn doing_with(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Device(format!("{}: {}", what(), describe(error))))
    }
}

impl Doing<()> for CUresult {
    fn doing_with(self, what: impl FnOnce() -> String) -> Result<()> {
        self.result().doing_with(what)
    }
}

/// The driver's name of an error and its sentence, and what to do.
fn describe(error: DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, _>| s.map(|s| s.to_string_lossy().into_owned()).ok();
    let name = text(error.error_name()).unwrap_or_else(|| format!("{:?}", error.0));
    let words = match text(error.error_string()) {
        Some(words) => format!("{words} ({name})"),
        None => name,
    };
    match remedy(error.0) {
        Some(remedy) => format!("{words}; {remedy}"),
        None => words,
    }
}

fn remedy(error: CUresult) -> Option<&'static str> {
    use CUresult::*;
    Some(match error {
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the GPU for itself, or its compute mode forbids use: `nvidia-smi` shows both"
        }
        CUDA_ERROR_OUT_OF_MEMORY => "`nvidia-smi` shows which processes hold the GPU's memory",
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_LAUNCH_FAILED => {
            "a kernel failed and nothing more can be done on the GPU by this process: `compute-sanitizer` tells where"
        }
        CUDA_ERROR_ECC_UNCORRECTABLE | CUDA_ERROR_UNKNOWN | CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "the GPU may be lost: the kernel's log (`dmesg`, lines with Xid) says why; resume from a checkpoint"
        }
        CUDA_ERROR_NO_DEVICE => "check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
        CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_INVALID_SOURCE | CUDA_ERROR_INVALID_IMAGE => {
            "build again with this GPU's architecture in BERT_CUDA_ARCHS"
        }
        CUDA_ERROR_STUB_LIBRARY => {
            "this is the toolkit's stub of the driver, which is for building only: take its folder out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's library and its kernel module differ: restart the machine, or install one version of both"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => "the machine's NVIDIA fabric manager may not be running",
        CUDA_ERROR_OPERATING_SYSTEM | CUDA_ERROR_NOT_PERMITTED => {
            "this process may lack permission for /dev/nvidia*"
        }
        _ => return None,
    })
}
