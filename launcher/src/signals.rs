//! SIGINT, SIGTERM, SIGHUP and SIGUSR1: while a run trains, the first one asks it to end with a checkpoint of the last whole
//! step, the second ends the process; at any other time the first one ends it.

use crate::exit;
use kernels::limits;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

/// The signals that ask to end. SIGUSR1 is what mpirun passes on without ending anything itself, and what Slurm is told to send
/// some time before a job's end.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGUSR1];

/// The number of the signal that asks training to end; 0 until there is one.
pub static STOP: AtomicI32 = AtomicI32::new(0);

static TRAINING: AtomicBool = AtomicBool::new(false);

/// See [`before_end`].
static BEFORE_END: OnceLock<Box<dyn Fn(i32) + Send + Sync>> = OnceLock::new();

/// See [`when_asked`].
static WHEN_ASKED: OnceLock<Box<dyn Fn(i32) + Send + Sync>> = OnceLock::new();

/// Has `f` called with the number of the signal that asks training to end, as soon as it comes. The first one that is given
/// stays.
pub fn when_asked(f: impl Fn(i32) + Send + Sync + 'static) {
    let _ = WHEN_ASKED.set(Box::new(f));
}

/// Has `f` called with the number of the signal that ends this process at once, just before. The first one that is given
/// stays.
pub fn before_end(f: impl Fn(i32) + Send + Sync + 'static) {
    let _ = BEFORE_END.set(Box::new(f));
}

/// Watches for signals on a thread of its own, and says so if this process `speaks`.
///
/// # Errors
/// If the system refuses the handlers or the thread.
pub fn watch(speaks: bool) -> anyhow::Result<()> {
    let ignored = ignored();
    let wanted = ENDING.into_iter().filter(|&n| ignored & (1 << (n - 1)) == 0);
    let mut signals = Signals::new(wanted).map_err(|e| anyhow::anyhow!("cannot watch for signals: {e}"))?;
    start(move || {
        for number in signals.forever() {
            if !TRAINING.load(Ordering::SeqCst) || STOP.swap(number, Ordering::SeqCst) != 0 {
                if let Some(f) = BEFORE_END.get() {
                    f(number);
                }
                std::process::exit(exit::by_signal(number).into());
            }
            if let Some(f) = WHEN_ASKED.get() {
                f(number);
            }
            if !speaks {
                continue;
            }
            let name = signal_hook::low_level::signal_name(number).unwrap_or("signal");
            exit::say(&format!(
                "{name}: ending with a checkpoint of the last whole step; again to end at once"
            ));
        }
    })
}

/// The signals that come to this process, for it to pass on. It does not end by them.
///
/// # Errors
/// If the system refuses the handlers or the thread.
pub fn pass_on() -> anyhow::Result<std::sync::mpsc::Receiver<i32>> {
    let ignored = ignored();
    let wanted = ENDING.into_iter().filter(|&n| ignored & (1 << (n - 1)) == 0);
    let mut signals = Signals::new(wanted).map_err(|e| anyhow::anyhow!("cannot watch for signals: {e}"))?;
    let (send, receive) = std::sync::mpsc::channel();
    start(move || signals.forever().take_while(|&n| send.send(n).is_ok()).for_each(drop))?;
    Ok(receive)
}

fn start(f: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let started = std::thread::Builder::new().name("signals".to_owned()).spawn(f);
    started.map(drop).map_err(|e| anyhow::anyhow!(limits::refused("the thread that watches for signals", &e)))
}

/// A write beyond the limit on the size of files (`ulimit -f`) fails, which names the file, instead of ending the
/// process.
pub fn outlive_file_limits() {
    // without the handler such a write ends the process, as it does by default
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// From here on a signal waits for a checkpoint.
pub fn training_started() {
    TRAINING.store(true, Ordering::SeqCst);
}

/// The signals that this process was started to ignore, bit `n - 1` for number n: `nohup` ignores SIGHUP, a shell
/// script SIGINT of what it runs in the background. They stay ignored. Where the system does not tell, none.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}
