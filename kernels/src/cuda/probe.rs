//! What training on a GPU needs and what of it is there: for `launcher doctor`, and to decide whether there is a GPU to use.
//! Nothing here panics or fails: what is missing is part of the answer.

use super::device::{OLDEST, dotted, driver_version};
use super::gemm;
use super::images::{ARCHS, COMPILER, IMAGES, Resources, resources};
use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};
use std::path::{Path, PathBuf};

/// Something that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is missing or wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Trouble {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Option<Self> {
        Some(Self { problem: problem.into(), remedy: remedy.into() })
    }

    /// An error of this crate, which names the remedy after a semicolon.
    fn of(error: &crate::Error) -> Option<Self> {
        let text = error.to_string();
        match text.split_once("; ") {
            Some((problem, remedy)) => Self::new(problem, remedy),
            None => Self::new(text, "`nvidia-smi` shows the state of driver and GPUs"),
        }
    }
}

/// The NVIDIA driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverProbe {
    /// The newest CUDA that it runs, as in `13.0`.
    pub cuda: Option<String>,
    /// Its own version, as in `580.65.06`.
    pub release: Option<String>,
    /// None if it can be used.
    pub trouble: Option<Trouble>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuProbe {
    /// Its number, from 0.
    pub ordinal: usize,
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, as in (9, 0).
    pub capability: (i32, i32),
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of it that nobody holds; none if the GPU cannot be opened.
    pub free: Option<u64>,
    /// None if it can be used.
    pub trouble: Option<Trouble>,
}

/// A library that is loaded when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryProbe {
    /// The file that was found.
    pub path: Option<PathBuf>,
    /// As in `13.0.2`.
    pub version: Option<String>,
    /// None if it can be used.
    pub trouble: Option<Trouble>,
}

/// The kernels in this binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelsProbe {
    /// The architectures they are compiled for, as in `80,90a`.
    pub archs: &'static str,
    /// The compiler's release, as in `13.0`.
    pub compiler: &'static str,
    /// Number of files of kernels.
    pub files: usize,
    /// What each kernel takes on each architecture.
    pub resources: Vec<Resources>,
    /// None if there are kernels.
    pub trouble: Option<Trouble>,
}

/// What training on a GPU needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The driver.
    pub driver: DriverProbe,
    /// What the driver sees.
    pub gpus: Vec<GpuProbe>,
    /// The library of products.
    pub cublaslt: LibraryProbe,
    /// The library of reductions over GPUs, which a single GPU does not need.
    pub nccl: LibraryProbe,
    /// The kernels in this binary.
    pub kernels: KernelsProbe,
}

impl Probe {
    /// What keeps GPU `ordinal` from being used; none if it can be.
    pub fn trouble(&self, ordinal: usize) -> Option<Trouble> {
        let gpu = match self.gpus.get(ordinal) {
            Some(gpu) => gpu.trouble.clone(),
            None => Trouble::new(
                format!("there is no GPU {ordinal}: the driver sees {}", self.gpus.len()),
                "check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
            ),
        };
        let parts = [&self.driver.trouble, &gpu, &self.cublaslt.trouble, &self.kernels.trouble];
        parts.into_iter().flatten().next().cloned()
    }
}

/// Looks at everything. Opens every GPU for a moment, which takes a few tenths of a second each.
pub fn probe() -> Probe {
    let driver = driver_probe();
    let gpus = if driver.trouble.is_none() { gpus() } else { Vec::new() };
    let trouble = IMAGES.is_empty().then(|| Trouble {
        problem: "this binary was built without GPU kernels".into(),
        remedy: "install CUDA's nvcc or run `bash tools/cuda-toolchain.sh`, and build again".into(),
    });
    let (files, resources) = (IMAGES.len(), resources());
    let kernels = KernelsProbe { archs: ARCHS, compiler: COMPILER, files, resources, trouble };
    Probe { driver, gpus, cublaslt: cublaslt(), nccl: nccl(), kernels }
}

fn driver_probe() -> DriverProbe {
    let release = std::fs::read_to_string("/proc/driver/nvidia/version").ok().and_then(|text| release(&text));
    match (driver_version(), super::count()) {
        (Ok(version), count) => {
            let trouble = count.err().as_ref().and_then(Trouble::of);
            DriverProbe { cuda: Some(dotted(version)), release, trouble }
        }
        (Err(error), _) => DriverProbe { cuda: None, release, trouble: Trouble::of(&error) },
    }
}

/// The driver's version in the words of its kernel module.
fn release(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

fn gpus() -> Vec<GpuProbe> {
    let count = super::count().unwrap_or(0);
    (0..count).filter_map(|ordinal| gpu(ordinal).ok()).collect()
}

fn gpu(ordinal: usize) -> Result<GpuProbe, driver::DriverError> {
    let raw = driver::device::get(ordinal as i32)?;
    // SAFETY: `raw` is a device of the driver
    let attribute = |attribute| unsafe { driver::device::get_attribute(raw, attribute) };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let (free, busy) = match free(raw) {
        Ok(free) => (Some(free as u64), None),
        Err(error) => {
            use super::failure::Doing;
            let error = Err::<(), _>(error).doing(&format!("GPU {ordinal} cannot be opened")).err();
            (None, error.as_ref().and_then(Trouble::of))
        }
    };
    Ok(GpuProbe {
        ordinal,
        name: driver::device::get_name(raw)?,
        capability,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        // SAFETY: as above
        memory: unsafe { driver::device::total_mem(raw) }? as u64,
        free,
        trouble: unfit(ordinal, capability).or(busy),
    })
}

/// Free bytes of a GPU, for which it is opened.
fn free(raw: CUdevice) -> Result<usize, driver::DriverError> {
    let before = driver::ctx::get_current()?;
    // SAFETY: `raw` is a device of the driver; released below, when the thread has its own context back
    unsafe {
        let context = driver::primary_ctx::retain(raw)?;
        let free = driver::ctx::set_current(context).and_then(|()| driver::mem_get_info());
        let _ = driver::ctx::set_current(before.unwrap_or(std::ptr::null_mut()));
        let _ = driver::primary_ctx::release(raw);
        free.map(|(free, _)| free)
    }
}

/// Why kernels do not run on a GPU of this compute capability.
fn unfit(ordinal: usize, (major, minor): (i32, i32)) -> Option<Trouble> {
    if (major, minor) < OLDEST {
        return Trouble::new(
            format!(
                "GPU {ordinal} has compute capability {major}.{minor}, and {}.{} is needed",
                OLDEST.0, OLDEST.1
            ),
            "use a newer GPU, or --device cpu",
        );
    }
    if IMAGES.is_empty() || ARCHS.split(',').any(|arch| runs(arch.trim(), (major, minor))) {
        return None;
    }
    Trouble::new(
        format!(
            "GPU {ordinal} has compute capability {major}.{minor}, and the kernels are compiled for {ARCHS}"
        ),
        format!("build again with BERT_CUDA_ARCHS={ARCHS},{major}{minor}"),
    )
}

/// Whether code for an architecture, as in `80` or `90a`, runs on a GPU: on later ones of the same generation, but with a
/// letter on that one alone.
pub(super) fn runs(arch: &str, (major, minor): (i32, i32)) -> bool {
    let digits = arch.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let Ok(number) = digits.parse::<i32>() else { return false };
    let (of, least) = (number / 10, number % 10);
    of == major && if digits == arch { least <= minor } else { least == minor }
}

fn cublaslt() -> LibraryProbe {
    match gemm::version() {
        Ok(version) => {
            LibraryProbe { path: loaded("libcublasLt"), version: Some(gemm::dotted(version)), trouble: None }
        }
        Err(error) => {
            LibraryProbe { path: loaded("libcublasLt"), version: None, trouble: Trouble::of(&error) }
        }
    }
}

fn nccl() -> LibraryProbe {
    match super::nccl::version() {
        Ok(version) => LibraryProbe {
            path: loaded("libnccl"),
            version: Some(super::nccl::dotted(version)),
            trouble: None,
        },
        Err(error) => LibraryProbe { path: loaded("libnccl"), version: None, trouble: Trouble::of(&error) },
    }
}

/// The file of a library that this process has loaded.
fn loaded(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_it = |path: &&Path| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}.so")))
    };
    paths.find(is_it).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_generation() {
        let on = |arch| [(8, 0), (8, 9), (9, 0), (10, 0)].map(|gpu| runs(arch, gpu));
        assert_eq!(on("80"), [true, true, false, false]);
        assert_eq!(on("86"), [false, true, false, false]);
        assert_eq!(on("90a"), [false, false, true, false]);
        assert_eq!(on("100"), [false, false, false, true]);
        assert_eq!(on("all"), [false; 4]);
    }

    #[test]
    fn the_drivers_version_is_read() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@host)\nGCC 12.2.0";
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n";
        assert_eq!(release(open).as_deref(), Some("580.65.06"));
        assert_eq!(release(closed).as_deref(), Some("535.104.05"));
        assert_eq!(release("NVRM version: none"), None);
    }
}
