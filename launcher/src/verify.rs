//! `launcher verify`: the engine against golden files of another implementation.

use crate::args::{Precision, VerifyArgs, VerifyDevice};
use crate::exit;
use engine::verify::{self, Limits, VerifyLine};
use half::bf16;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Device, Options};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Prints one line for each comparison; the code is 1 where a limit is exceeded.
pub fn run(args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    crate::start_threads(0)?;
    let gpu = match args.device {
        VerifyDevice::Cpu => None,
        VerifyDevice::Cuda => Some(Device::open(0)?),
    };
    let mut exceeded = 0;
    let mut total = 0;
    for file in &args.files {
        writeln!(out, "{}", file.display())?;
        for line in compare(file, args.precision, gpu.as_ref())? {
            total += 1;
            exceeded += usize::from(!line.passed());
            print(&line, out)?;
        }
        out.flush()?;
    }
    if exceeded > 0 {
        writeln!(out, "{exceeded} of {total} comparisons exceed their limit")?;
        return Ok(exit::FAILED);
    }
    writeln!(out, "all {total} comparisons are within their limits")?;
    Ok(exit::DONE)
}

fn compare(file: &Path, precision: Precision, gpu: Option<&Arc<Device>>) -> anyhow::Result<Vec<VerifyLine>> {
    // The heuristic's algorithms: measuring takes longer than the comparisons.
    let options = || Options { measure: false, ..Options::default() };
    Ok(match (precision, gpu) {
        (Precision::F64, None) => verify::run(&|| Ok(Cpu::<f64>::new()), file, Limits::F64)?,
        (Precision::F32, None) => verify::run(&|| Ok(Cpu::<f32>::new()), file, Limits::F32)?,
        (Precision::F32, Some(gpu)) => {
            verify::run(&|| Cuda::<f32>::new(gpu.clone(), options()), file, Limits::F32)?
        }
        (Precision::Bf16, Some(gpu)) => {
            verify::run(&|| Cuda::<bf16>::new(gpu.clone(), options()), file, Limits::BF16)?
        }
        (Precision::Bf16, None) => {
            anyhow::bail!("--precision bf16: the CPU computes in f64 or f32; choose one of them")
        }
        (Precision::F64, Some(_)) => {
            anyhow::bail!("--precision f64: GPUs compute in f32 or bf16; choose one of them")
        }
    })
}

fn print(line: &VerifyLine, out: &mut dyn Write) -> std::io::Result<()> {
    let (what, error, limit) = (line.what, line.error, line.limit);
    let verdict = if line.passed() { "ok".to_owned() } else { format!("EXCEEDED by {}", line.worst) };
    writeln!(out, "  {what:<24} {error:9.2e}  limit {limit:.0e}  {verdict}")
}
