//! The GPU engine as a whole, on the emulator of kernels/emulator: the same kernels, launches and driver calls as on a GPU,
//! computed by the CPU. A GPU, where there is one, is tested by kernels/tests/cuda and by the bundle of tools/gpu-bundle.sh.

mod faults;
mod mlperf;
mod parity;
mod predict;
mod run;
mod trainer;

use crate::cli::{Ran, Workplace};
use kernels::cuda::{Cuda, Device, Element, IMAGES, Image, Options};
use std::sync::Arc;

/// The emulated GPU, in this process.
fn device() -> Arc<Device> {
    emulator::load();
    if IMAGES.is_empty() {
        // The emulator finds kernels by their names.
        return Device::open_with(0, &[Image::named("emulated")]).unwrap();
    }
    Device::open(0).unwrap()
}

/// A backend on it. What cuBLASLt's heuristic answers first is taken: times mean nothing here.
fn cuda<E: Element>() -> Cuda<E> {
    Cuda::new(device(), Options { measure: false, ..Options::default() }).unwrap()
}

/// Runs the launcher with the emulator in place of the driver, and what else the environment is to say. None where the
/// binary was built without kernels: it then refuses every GPU.
pub fn emulated(place: &Workplace, line: &str, environment: &[(&str, &str)]) -> Option<Ran> {
    if IMAGES.is_empty() {
        println!("skipped: built without nvcc");
        return None;
    }
    let mut command = place.command(&line.split_whitespace().collect::<Vec<_>>());
    command.env("LD_LIBRARY_PATH", emulator::LIBRARIES).env("XDG_CACHE_HOME", place.path("caches"));
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some(Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
}
