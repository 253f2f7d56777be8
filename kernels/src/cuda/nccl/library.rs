//! NCCL as a library: the calls that we make, found at run time, and its errors in words. Names, numbers and layouts are those
//! of nccl.h from 2.18 on.

use crate::{Error, Result};
use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// The oldest version whose calls and whose configuration are those here.
pub const OLDEST: i32 = 21_800;
/// The first version that takes several ranks on one GPU.
pub const SEVERAL_ON_ONE_GPU: i32 = 23_000;
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
const REMEDY: &str = "install NCCL 2.18 or newer (as with `pip install nvidia-nccl-cu13`), and put the folder of libnccl.so.2 \
                      into LD_LIBRARY_PATH";

/// `ncclComm_t`.
pub(super) type Handle = *mut c_void;
/// `ncclResult_t`.
pub(super) type Code = c_int;
pub(super) const SUCCESS: Code = 0;
pub(super) const REMOTE_ERROR: Code = 6;
pub(super) const IN_PROGRESS: Code = 7;
/// `ncclRedOp_t`: the sum.
pub(super) const SUM: c_int = 0;

/// `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Type {
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
}

/// `ncclUniqueId`: what the ranks of one communicator have in common.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub [u8; 128]);

/// `ncclConfig_t` as of 2.18; newer versions fill up what they have added since.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once; all else is NCCL's choice.
    pub fn not_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST as u32,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal: fn($($arg:ty),*) -> $answer:ty;)*) => {
        /// The calls, which live as long as the process.
        pub(super) struct Calls {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($arg),*) -> $answer,)*
            /// As in 22807 for 2.28.7.
            pub version: i32,
        }

        impl Calls {
            /// Finds the calls. The error names the first that is missing.
            ///
            /// # Safety
            /// The library is NCCL of at least [`OLDEST`].
            unsafe fn find(library: &Library, version: i32) -> std::result::Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of nccl.h
                    $($field: *unsafe { library.get($symbol) }.map_err(|_| $symbol)?,)*
                    version,
                })
            }
        }
    };
}

type Stream = cudarc::driver::sys::CUstream;
calls! {
    get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> Code;
    init_rank = "ncclCommInitRankConfig": fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Code;
    /// Send, receive, count, type, operation.
    all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> Code;
    /// Send, receive, count, type, operation, root.
    reduce = "ncclReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Handle, Stream) -> Code;
    /// Send, receive, count, type, root.
    broadcast = "ncclBroadcast": fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> Code;
    group_start = "ncclGroupStart": fn() -> Code;
    group_end = "ncclGroupEnd": fn() -> Code;
    get_async_error = "ncclCommGetAsyncError": fn(Handle, *mut Code) -> Code;
    finalize = "ncclCommFinalize": fn(Handle) -> Code;
    destroy = "ncclCommDestroy": fn(Handle) -> Code;
    abort = "ncclCommAbort": fn(Handle) -> Code;
    get_error_string = "ncclGetErrorString": fn(Code) -> *const c_char;
    get_last_error = "ncclGetLastError": fn(Handle) -> *const c_char;
}

impl Calls {
    /// A code in words, with what NCCL says of the last error.
    pub fn words(&self, code: Code, comm: Handle) -> String {
        let text = |p: *const c_char| {
            // SAFETY: NCCL's strings end with 0, and stay until the next error of this thread
            (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) }.to_string_lossy().trim().to_owned())
        };
        // SAFETY: any code may be asked for
        let name = text(unsafe { (self.get_error_string)(code) }).unwrap_or_else(|| format!("error {code}"));
        // SAFETY: the communicator is alive or null, for which NCCL answers too
        match text(unsafe { (self.get_last_error)(comm) }).filter(|said| !said.is_empty()) {
            Some(said) => format!("{name}: {said}"),
            None => name,
        }
    }

    /// An error that says what was being done.
    pub fn error(&self, what: &str, code: Code, comm: Handle) -> Error {
        Error::Ranks(format!(
            "NCCL {}: {what}: {} (NCCL_DEBUG=INFO tells more)",
            dotted(self.version),
            self.words(code, comm)
        ))
    }

    /// The code as a result.
    pub fn check(&self, what: &str, code: Code) -> Result<()> {
        if code == SUCCESS { Ok(()) } else { Err(self.error(what, code, std::ptr::null_mut())) }
    }
}

/// A version of NCCL as people write it.
pub fn dotted(version: i32) -> String {
    // Up to 2.8 the code had one digit less.
    match version < 10_000 {
        true => format!("{}.{}.{}", version / 1000, version / 100 % 10, version % 100),
        false => format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100),
    }
}

/// The version of the NCCL that is found, as in 22807 for 2.28.7.
///
/// # Errors
/// None is found, or one that is too old, with what to install.
pub fn version() -> Result<i32> {
    library().map(|calls| calls.version)
}

/// The library, opened at the first call.
///
/// # Errors
/// As [`version`].
pub(super) fn library() -> Result<&'static Calls> {
    static FOUND: OnceLock<std::result::Result<Calls, String>> = OnceLock::new();
    FOUND.get_or_init(open).as_ref().map_err(|why| Error::Device(why.clone()))
}

fn open() -> std::result::Result<Calls, String> {
    // SAFETY: NCCL's start-up code only sets up its own state
    let opened = NAMES.iter().map(|name| unsafe { Library::new(*name) });
    let mut why = String::new();
    let mut found = None;
    for library in opened {
        match library {
            Ok(library) => {
                found = Some(library);
                break;
            }
            Err(error) if why.is_empty() => why = error.to_string(),
            Err(_) => {}
        }
    }
    let Some(library) = found else {
        return Err(format!(
            "NCCL (libnccl.so.2) was not found, which several GPUs need and one does not ({why}); {REMEDY}"
        ));
    };
    let broken = |symbol: &str| format!("the libnccl that was found has no {symbol}; {REMEDY}");
    let mut version = 0;
    // SAFETY: every version of the library has this function
    let answer = unsafe {
        let get: libloading::os::unix::Symbol<unsafe extern "C" fn(*mut c_int) -> Code> =
            library.get("ncclGetVersion").map_err(|_| broken("ncclGetVersion"))?;
        get(&mut version)
    };
    if answer != SUCCESS || version < OLDEST {
        return Err(format!(
            "the NCCL that was found has version {}, which is too old; {REMEDY}",
            dotted(version)
        ));
    }
    // SAFETY: just found to be new enough
    let calls = unsafe { Calls::find(&library, version) }.map_err(broken)?;
    // Never closed: the functions are used until the process ends.
    std::mem::forget(library);
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_lies_as_nccl_has_it() {
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(std::mem::offset_of!(Config, split_share), 40);
    }

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!([2_708, 21_805, 22_807, 23_007].map(dotted), ["2.7.8", "2.18.5", "2.28.7", "2.30.7"]);
    }
}
