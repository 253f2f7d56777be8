//! `launcher doctor`: what this machine and this build have for training.

use crate::args::DoctorArgs;
use crate::{exit, format};
use kernels::Backend;
use kernels::cpu::Cpu;
use kernels::cuda::{GpuProbe, KernelsProbe, LibraryProbe, Probe, Trouble, probe};
use std::collections::BTreeSet;
use std::io::Write;

/// Prints one line for each thing, what is wrong with it, and what to do.
pub fn run(args: &DoctorArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let found = probe();
    writeln!(out, "{:<10} {}", "launcher", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "{:<10} {}", "CPU", Cpu::<f32>::new().describe().trim_start_matches("CPU, "))?;
    tell(out, "driver", driver(&found), found.driver.trouble.as_ref())?;
    for gpu in &found.gpus {
        tell(out, "GPU", describe(gpu), gpu.trouble.as_ref())?;
    }
    tell(out, "cuBLASLt", library(&found.cublaslt), found.cublaslt.trouble.as_ref())?;
    tell(out, "NCCL", library(&found.nccl), found.nccl.trouble.as_ref())?;
    tell(out, "kernels", kernels(&found.kernels), found.kernels.trouble.as_ref())?;
    let mpi = if cfg!(feature = "mpi") {
        "collectives of the MPI library"
    } else {
        "none (feature `mpi` is off); processes talk over TCP"
    };
    writeln!(out, "{:<10} {mpi}", "MPI")?;
    if args.kernels {
        list(out, &found.kernels)?;
    }
    let trouble = found.trouble(0);
    writeln!(
        out,
        "\n{}",
        match &trouble {
            None => "--device cuda and --device auto train on GPU 0.".to_owned(),
            Some(t) => format!("--device auto trains on the CPU; --device cuda is refused: {}.", t.problem),
        }
    )?;
    Ok(if trouble.is_some() && !found.gpus.is_empty() { exit::FAILED } else { exit::DONE })
}

fn tell(
    out: &mut dyn Write,
    name: &str,
    what: Option<String>,
    trouble: Option<&Trouble>,
) -> std::io::Result<()> {
    if let Some(what) = what {
        writeln!(out, "{name:<10} {what}")?;
    }
    if let Some(Trouble { problem, remedy }) = trouble {
        writeln!(out, "{name:<10} {problem}")?;
        writeln!(out, "{:<10}   {remedy}", "")?;
    }
    Ok(())
}

fn driver(found: &Probe) -> Option<String> {
    let cuda = found.driver.cuda.as_ref()?;
    let release = found.driver.release.as_ref().map_or(String::new(), |r| format!("{r}, "));
    Some(format!("{release}CUDA up to {cuda}"))
}

fn describe(gpu: &GpuProbe) -> Option<String> {
    let GpuProbe { ordinal, name, capability: (major, minor), multiprocessors, memory, free, .. } = gpu;
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let free = free.map_or(String::new(), |free| format!(", {} free", gib(free)));
    Some(format!(
        "{ordinal}: {name}, compute capability {major}.{minor}, {multiprocessors} multiprocessors, {}{free}",
        gib(*memory)
    ))
}

fn library(library: &LibraryProbe) -> Option<String> {
    let version = library.version.as_ref()?;
    let path = library.path.as_ref().map_or(String::new(), |path| format!(", {}", path.display()));
    Some(format!("{version}{path}"))
}

fn kernels(kernels: &KernelsProbe) -> Option<String> {
    if kernels.trouble.is_some() {
        return None;
    }
    let targets: Vec<String> = kernels.archs.split(',').map(|arch| format!("sm_{}", arch.trim())).collect();
    let names: BTreeSet<&str> = kernels.resources.iter().map(|r| &*r.kernel).collect();
    let spilled = kernels.resources.iter().filter(|r| r.spills > 0).count();
    Some(format!(
        "{} in {} files for {}, nvcc {}, {spilled} with spilled registers",
        format::count(names.len() as u64),
        kernels.files,
        targets.join(" and "),
        kernels.compiler,
    ))
}

fn list(out: &mut dyn Write, kernels: &KernelsProbe) -> std::io::Result<()> {
    writeln!(out, "\n{:<44} {:>7} {:>9} {:>7} {:>7}", "kernel", "target", "registers", "shared", "spills")?;
    for r in &kernels.resources {
        writeln!(out, "{:<44} {:>7} {:>9} {:>7} {:>7}", r.kernel, r.arch, r.registers, r.shared, r.spills)?;
    }
    Ok(())
}
