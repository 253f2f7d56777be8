//! Every kernel and every family of products on one GPU, at BERT-large shapes in bf16: `cargo bench --bench gpu_ops`.
//!
//! Times are the GPU's, by events, with a cold second-level cache. The table at the end has each op's median, the bytes or
//! operations that bound it, counted as `launcher bench --profile` counts them, and the share of the ceiling that is measured
//! first: a device-to-device copy, or a product of 8192 x 8192 x 8192.
//!
//! With `BENCH_TINY=1`, and under `cargo test`, all of it runs once at sizes for the emulator. Without a GPU it says so.

mod harness;
mod layers;
mod optimizers;
mod products;

use harness::{Bench, Shape};
use kernels::Backend;
use kernels::cuda::{Cuda, Device, IMAGES, Image, Options};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let benching = args.iter().any(|arg| arg == "--bench");
    let tiny = !benching || std::env::var_os("BENCH_TINY").is_some_and(|v| v != "0");
    // What `cargo test` is asked to run may be something else.
    let mut filters = args.iter().filter(|arg| !arg.starts_with('-'));
    if !benching && filters.clone().next().is_some() && !filters.any(|f| "gpu_ops".contains(f.as_str())) {
        return ExitCode::SUCCESS;
    }
    let device = match open(tiny) {
        Ok(device) => device,
        Err(error) => {
            println!("no GPU: {error}");
            return ExitCode::SUCCESS;
        }
    };
    match run(device, benching, tiny) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The GPU; at tiny sizes the emulator where there is none.
fn open(tiny: bool) -> kernels::Result<Arc<Device>> {
    if tiny && kernels::cuda::count().is_err() {
        emulator::load();
        if IMAGES.is_empty() {
            return Device::open_with(0, &[Image::named("emulated")]);
        }
    }
    Device::open(0)
}

fn run(device: Arc<Device>, benching: bool, tiny: bool) -> kernels::Result<()> {
    let cuda = Cuda::new(device, Options::default())?;
    let mut bench = Bench::new(&cuda, if tiny { Shape::TINY } else { Shape::LARGE }, benching, tiny)?;
    bench.ceilings()?;
    layers::embedding(&mut bench)?;
    layers::layernorm(&mut bench)?;
    layers::elementwise(&mut bench)?;
    layers::attention(&mut bench)?;
    layers::heads(&mut bench)?;
    products::linear(&mut bench)?;
    optimizers::over_all_parameters(&mut bench)?;
    // Times of small sizes, or of the emulator, say nothing of a GPU's.
    if benching {
        bench.table()
    } else {
        println!("gpu_ops: every op ran on {}", cuda.describe())
    }
    Ok(())
}
