//! `launcher verify`: the engine against golden files of another implementation.

use crate::args::{Precision, VerifyArgs, VerifyDevice};
use crate::exit;
use engine::verify::{Limits, VerifyLine};
use kernels::cpu::Cpu;
use std::io::Write;
use std::path::Path;

/// Prints one line for each comparison; the code is 1 where a limit is exceeded.
pub fn run(args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    if args.device == VerifyDevice::Cuda {
        anyhow::bail!("not yet");
    }
    let mut exceeded = 0;
    let mut total = 0;
    for file in &args.files {
        writeln!(out, "{}", file.display())?;
        for line in compare(file, args.precision)? {
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

fn compare(file: &Path, precision: Precision) -> anyhow::Result<Vec<VerifyLine>> {
    Ok(match precision {
        Precision::F64 => engine::verify::run(&Cpu::<f64>::new, file, Limits::F64)?,
        Precision::F32 => engine::verify::run(&Cpu::<f32>::new, file, Limits::F32)?,
        Precision::Bf16 => {
            anyhow::bail!("--precision bf16: the CPU computes in f64 or f32; choose one of them")
        }
    })
}

fn print(line: &VerifyLine, out: &mut dyn Write) -> std::io::Result<()> {
    let (what, error, limit) = (line.what, line.error, line.limit);
    let verdict = if line.passed() { "ok".to_owned() } else { format!("EXCEEDED by {}", line.worst) };
    writeln!(out, "  {what:<24} {error:9.2e}  limit {limit:.0e}  {verdict}")
}
