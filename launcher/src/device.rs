//! The device that a command computes on, and why.

use crate::exit;
use anyhow::bail;
use engine::config::{Config, Device as Wanted, Precision};
use half::bf16;
use kernels::Backend;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Device, Options};
use std::path::PathBuf;
use std::sync::Arc;

/// Something that runs on any device.
pub trait Work {
    /// What it gives.
    type Result;
    /// Runs it. The GPU is the one behind `backend`, if it is one.
    fn on<B: Backend<Acc = f32>>(self, backend: B, gpu: Option<Arc<Device>>) -> anyhow::Result<Self::Result>;
}

/// What [`choose`] found.
pub struct Chosen {
    /// None is the CPU.
    gpu: Option<Arc<Device>>,
    /// A line for the user where the choice was ours.
    pub why: Option<String>,
}

/// Takes the GPU where it was asked for, or where nothing was and one can be had.
///
/// # Errors
/// A GPU was asked for and there is none that works: why, and what to do.
pub fn choose(wanted: Wanted) -> anyhow::Result<Chosen> {
    if wanted == Wanted::Cpu {
        return Ok(Chosen::cpu(None));
    }
    match (Device::open(0), wanted) {
        (Ok(gpu), Wanted::Auto) => {
            let why = format!("device auto: GPU 0, {}", gpu.name());
            Ok(Chosen { gpu: Some(gpu), why: Some(why) })
        }
        (Ok(gpu), _) => Ok(Chosen { gpu: Some(gpu), why: None }),
        (Err(error), Wanted::Auto) => {
            // What to do about it is the doctor's to tell: a machine without a GPU is no fault.
            let error = error.to_string();
            let why = error.split("; ").next().unwrap_or_default();
            Ok(Chosen::cpu(Some(format!("device auto: the CPU, because {why}"))))
        }
        (Err(error), _) => bail!("{error}; `launcher doctor` tells more"),
    }
}

/// The CPU as a backend.
///
/// # Errors
/// The configuration wants bf16.
pub fn on_cpu(config: &Config) -> anyhow::Result<Cpu<f32>> {
    if config.train.precision == Precision::Bf16 {
        bail!("train.precision: bf16 is for GPUs, the CPU computes in f32; leave it out or say f32");
    }
    Ok(Cpu::new())
}

/// How a GPU is used by a run, or by something that leaves none. The algorithms that are chosen by measuring are kept with the
/// run, so that it goes on with the same ones, and with the user's caches, so that a run of the same configuration on the
/// same machine ends with the same bits.
pub fn options(config: &Config, gpu: &Device, leaves_run: bool) -> Options {
    let words: Vec<&str> =
        gpu.name().split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let name = format!("products-gpu{}-{}.txt", gpu.ordinal(), words.join("-"));
    let own = leaves_run.then(|| config.train.run.join(&name));
    let cache = caches().map(|dir| dir.join("bert-launcher").join(&name));
    Options {
        graph: config.train.graph,
        choices: own.into_iter().chain(cache).collect(),
        ..Options::default()
    }
}

/// The folder of the user's caches, as the XDG base directory specification has it.
fn caches() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))
}

/// Runs something that leaves no run, where it is wanted.
///
/// # Errors
/// Those of [`choose`] and [`Chosen::run`].
pub fn run_on<W: Work>(wanted: Wanted, precision: Precision, work: W) -> anyhow::Result<W::Result> {
    let chosen = choose(wanted)?;
    if chosen.gpu.is_none() && precision == Precision::Bf16 {
        bail!("--precision: bf16 is for GPUs, the CPU computes in f32; leave it out or say f32");
    }
    chosen.why.iter().for_each(|line| exit::say(line));
    let mut config = Config::default();
    config.train.precision = precision;
    chosen.run(&config, false, work)
}

impl Chosen {
    /// The CPU.
    pub fn cpu(why: Option<String>) -> Self {
        Self { gpu: None, why }
    }

    /// Runs something there, in the precision of the configuration.
    ///
    /// # Errors
    /// bf16 on the CPU, cuBLASLt that is missing, and those of the work.
    pub fn run<W: Work>(self, config: &Config, leaves_run: bool, work: W) -> anyhow::Result<W::Result> {
        let Some(gpu) = self.gpu else {
            return work.on(on_cpu(config)?, None);
        };
        let options = options(config, &gpu, leaves_run);
        match config.train.precision {
            Precision::F32 => work.on(Cuda::<f32>::new(gpu.clone(), options)?, Some(gpu)),
            Precision::Auto | Precision::Bf16 => work.on(Cuda::<bf16>::new(gpu.clone(), options)?, Some(gpu)),
        }
    }
}
