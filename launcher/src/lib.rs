//! The command line of the engine: training, and the subcommands prepare, import, inspect, eval, fill-mask, verify,
//! mlperf, plan, bench and doctor.
//!
//! One file per subcommand. What a command is asked for goes to standard output; progress, messages and errors go
//! to standard error.

pub mod args;
mod bench;
mod device;
mod doctor;
mod eval;
mod exit;
mod fill_mask;
mod format;
mod import;
mod import_model;
mod inspect;
mod job;
mod logging;
mod memory_table;
mod mlperf;
mod model;
mod placement;
mod plan;
mod prepare;
mod progress;
mod ranks;
mod signals;
mod spawn;
mod train;
mod verify;

use args::{Cli, Command};
use clap::Parser;
use kernels::limits;
use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::thread::available_parallelism;

/// Parses the command line, runs it, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // help and version end here too, with code 0
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    logging::start();
    signals::outlive_file_limits();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = run(&cli, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?));
    exit::report(result)
}

/// Runs one command. What it was asked for goes to `out`; the answer is the exit code.
fn run(cli: &Cli, out: &mut dyn Write) -> anyhow::Result<u8> {
    match &cli.command {
        None => train::run(&cli.train, out),
        Some(Command::Prepare(args)) => prepare::run(args, out),
        Some(Command::Import(args)) => import::run(args, out),
        Some(Command::Inspect(args)) => inspect::run(args, out),
        Some(Command::Eval(args)) => eval::run(args, out),
        Some(Command::FillMask(args)) => fill_mask::run(args, out),
        Some(Command::Verify(args)) => verify::run(args, out),
        Some(Command::Mlperf(args)) => mlperf::run(args, out),
        Some(Command::Plan(args)) => plan::run(args, out),
        Some(Command::Bench(args)) => bench::run(args, out),
        Some(Command::Doctor(args)) => doctor::run(args, out),
    }
}

/// Starts the threads that all computation shares; 0 is one for each core. To be called before anything computes: left to
/// start by themselves, they end the process where the system refuses them.
fn start_threads(threads: usize) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("compute-{i}"));
    pool.build_global().map_err(|e| {
        let count = if threads > 0 { threads } else { available_parallelism().map_or(1, usize::from) };
        anyhow::anyhow!(limits::refused(&format!("{count} threads"), &e))
    })?;
    tracing::info!("{} threads", rayon::current_num_threads());
    Ok(())
}
