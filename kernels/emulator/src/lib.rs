//! The GPU kernels run on the CPU.
//!
//! `build.rs` compiles `kernels/cu/*.cu` as C++ into a library with the name of NVIDIA's driver, `libcuda.so.1`, beside a
//! `libcublasLt.so.13` and a `libnccl.so.2`. Code that calls the driver runs unchanged: in this process after [`load`], or in
//! a child process whose `LD_LIBRARY_PATH` starts with [`LIBRARIES`].
//!
//! It checks results, never speed. What the device leaves open is drawn from a seed, so that what only happened to work
//! shows as a wrong result:
//!
//! - the threads of a block run in a drawn order from barrier to barrier, the blocks of a grid one after another in a drawn
//!   order;
//! - memory is poisoned (bytes 0xFF: NaN) where it was not written: device buffers, shared memory of each block;
//! - each buffer lies between pages that no one may touch. A bad access, one that is not aligned, a deadlock or a failed
//!   assertion of a kernel is told on standard error with kernel, block and thread, and ends the process;
//! - asynchronous copies of a kernel happen when it waits for them, or at once; the copy engine's and the tensor cores' work at
//!   any time between, and until then what they write is poison;
//! - a stream's work runs when somebody waits for it, in turns with other streams' work.
//!
//! | environment | |
//! | --- | --- |
//! | `EMULATOR_SEED` | of every order that is drawn; 1 |
//! | `EMULATOR_MEMORY` | bytes of a device; 8 GiB |
//! | `EMULATOR_DRIVER` | version of the driver; 13000 |
//! | `EMULATOR_ARCH` | 90 for sm_90; `90,80` for two devices |
//! | `EMULATOR_DEVICES` | as many as there are architectures |
//! | `EMULATOR_FAIL` | `cuMemAlloc_v2:5,cuLaunchKernel:1:700`: the 5th and the 1st call of these fail, the second with error 700 |
//! | `EMULATOR_NCCL_VERSION` | 22807 for 2.28.7; several ranks may share a device from 23000 on, as NVIDIA's |
//! | `EMULATOR_NCCL_ABSENT` | a rank that never joins |
//! | `EMULATOR_NCCL_ERROR` | `1:7`: rank 1's 7th operation fails |
//!
//! Ranks are processes of one machine: the one that makes NCCL's id serves the others on a thread. Calls do not block, so that
//! who does not ask whether NCCL is done goes wrong; sums are added in the order of rings, not of ranks.
//!
//! Not emulated: clusters, cooperative launches, tensor maps of other than two dimensions, peer access, memory pools. A kernel that reads pageable host
//! memory is not found out, nor is a race between threads that no drawn order brings to light.

use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The folder of `libcuda.so.1`, `libcublasLt.so.13` and `libnccl.so.2`.
pub const LIBRARIES: &str = env!("EMULATOR_LIBRARIES");

/// Opens the emulator's libraries, so that those who ask for the driver, for cuBLASLt or for NCCL by name get them. Once; they stay
/// open for as long as the process lives.
///
/// # Panics
/// If a library cannot be opened.
pub fn load() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        // Each under both of its names: some ask for `libcuda.so` first.
        for name in ["libcuda.so.1", "libcuda.so", "libcublasLt.so.13", "libcublasLt.so", "libnccl.so.2"] {
            open(name);
        }
    });
}

/// [`load`], with one device of each of these architectures, as in `[90, 80]`, whatever `EMULATOR_ARCH` says. Before any other
/// call.
///
/// # Panics
/// If a library cannot be opened.
pub fn load_archs(archs: &[u32]) {
    load();
    let path = format!("{LIBRARIES}/libcuda.so.1");
    let text = archs.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let text = std::ffi::CString::new(text).unwrap_or_default();
    // SAFETY: the library is open already; the function has this signature and copies the text.
    unsafe {
        let library = Library::open(Some(&path), RTLD_NOW).unwrap_or_else(|error| panic!("{path}: {error}"));
        let set = library
            .get::<unsafe extern "C" fn(*const std::ffi::c_char)>(b"emulator_set_archs\0")
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        set(text.as_ptr());
        std::mem::forget(library);
    }
}

/// Opens one more library of the folder, with kernels in it, after [`load`].
///
/// # Panics
/// If it cannot be opened.
#[doc(hidden)]
pub fn open(name: &str) {
    let path = format!("{LIBRARIES}/{name}");
    // SAFETY: the libraries are built by this crate; loading them fills the table of kernels and does nothing else.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => std::mem::forget(library),
        Err(error) => panic!("{path}: {error}"),
    }
}
