//! A long campaign of damaged files over every reader: `bash tools/campaign.sh --help`.
//!
//! Each reader gets the same number of inputs. Input N of a reader is one of its sample files with a few changes, and
//! depends on the seed, the reader and N alone, so any input can be had again. Readers run in processes of their own with
//! 2 GiB of address space: a process that dies, or says nothing for 20 seconds, is a finding, and another one goes on
//! behind that input. `library` readers call the engine, `program` readers run the launcher on the damaged file.

mod library;
mod mutate;
mod program;
mod readers;
mod samples;
mod seal;
mod supervise;
mod worker;

use clap::Parser;
use readers::{Kind, READERS, Reader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

/// Reads damaged files with every reader and counts how that ends
#[derive(Debug, Clone, Parser)]
#[command(after_help = "\
Examples:
  bash tools/campaign.sh --inputs 2000
  bash tools/campaign.sh --reader hdf5 --from 41300
  bash tools/campaign.sh --reader hdf5 --from 41377 --inputs 1

Exit codes: 0 nothing found; 1 findings, or the campaign itself failed; 2 wrong usage. A finding is a panic, a hang, \
too much memory, or an exit code beside 0, 1 and 2; its file, and how to repeat it, lie in OUT/findings.")]
pub struct Args {
    /// Only this reader; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    reader: Vec<String>,
    /// Print the readers' names and end
    #[arg(long)]
    list: bool,
    /// The first input
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Inputs for each library reader
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    inputs: u64,
    /// Inputs for each program reader [default: a tenth of --inputs, or --inputs where a reader is named]
    #[arg(long, value_name = "N")]
    program_inputs: Option<u64>,
    /// Seed of all changes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Readers at work at the same time [default: one a core]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of samples, scratch files and findings; one in memory is many times faster
    #[arg(long, value_name = "DIR", default_value = "/dev/shm/campaign")]
    out: PathBuf,
    /// Set by the campaign for the processes that it starts.
    #[arg(long, hide = true)]
    worker: bool,
}

impl Args {
    /// Inputs behind the last of a reader.
    fn end(&self, reader: &Reader) -> u64 {
        let fewer = if self.reader.is_empty() { self.inputs.div_ceil(10) } else { self.inputs };
        self.from
            + match reader.kind {
                Kind::Library => self.inputs,
                Kind::Program => self.program_inputs.unwrap_or(fewer),
            }
    }
}

/// The launcher that program readers run.
fn launcher() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_launcher"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        READERS.iter().for_each(|reader| println!("{}", reader.name));
        return ExitCode::SUCCESS;
    }
    let chosen = match choose(&args.reader) {
        Ok(chosen) => chosen,
        Err(unknown) => {
            eprintln!("error: there is no reader {unknown}; --list prints their names");
            return ExitCode::from(2);
        }
    };
    let result =
        if args.worker { worker::run(&args, chosen[0]).map(|()| 0) } else { campaign(&args, &chosen) };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn choose(names: &[String]) -> Result<Vec<&'static Reader>, &str> {
    if names.is_empty() {
        return Ok(READERS.iter().collect());
    }
    names.iter().map(|name| READERS.iter().find(|r| r.name == *name).ok_or(name.as_str())).collect()
}

/// Runs the chosen readers, some at a time, and prints a line for each as it ends. The answer is the number of findings.
fn campaign(args: &Args, chosen: &[&'static Reader]) -> anyhow::Result<u64> {
    samples::make(&args.out)?;
    println!(
        "seed {}, inputs from {}, samples in {}",
        args.seed,
        args.from,
        args.out.join("samples").display()
    );
    println!("{}", supervise::Tally::HEADER);
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let (next, total) = (Mutex::new(chosen.iter()), Mutex::new((supervise::Tally::default(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(chosen.len()) {
            scope.spawn(|| {
                loop {
                    let Some(reader) = next.lock().ok().and_then(|mut next| next.next().copied()) else {
                        break;
                    };
                    let result = supervise::reader(args, reader);
                    let Ok(mut total) = total.lock() else { break };
                    match result {
                        Ok(tally) => {
                            println!("{}", tally.line(reader.name));
                            total.0.add(&tally);
                        }
                        Err(error) => total.1.push(format!("{}: {error:#}", reader.name)),
                    }
                }
            });
        }
    });
    let (tally, failed) = total.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!("{}", tally.line("all"));
    if let Some(first) = failed.first() {
        anyhow::bail!("{first}{}", if failed.len() > 1 { " (and others)" } else { "" });
    }
    Ok(tally.findings())
}
