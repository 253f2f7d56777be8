//! Which GPU a process takes, and on which cores it runs.
//!
//! A process is kept to the cores next to its GPU, or without one to its share of all, so that its threads and memory stay
//! near what they work for. Where the system does not tell what is near, or refuses, nothing is bound: the process is only
//! slower then.

use anyhow::bail;
use engine::dist::Place;
use kernels::cuda::{self, nccl};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process has cores of its own.
static OWN_CORES: AtomicBool = AtomicBool::new(false);

/// Number of threads for one of `local_world` processes of a machine, where the configuration leaves it open.
pub fn threads(local_world: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if OWN_CORES.load(Ordering::Relaxed) { cores } else { (cores / local_world).max(1) }
}

/// Makes sure that a machine with `gpus` GPUs has enough for `processes`, or that they may share one.
///
/// # Errors
/// Too few, with both numbers.
pub fn check_gpus(processes: usize, gpus: usize) -> anyhow::Result<()> {
    if processes > gpus && !nccl::takes_several_on_one_gpu().unwrap_or(false) {
        bail!(
            "{processes} GPUs are asked for and this machine has {gpus}: ask for {gpus}, or check `nvidia-smi` and \
             CUDA_VISIBLE_DEVICES"
        );
    }
    Ok(())
}

/// The GPU of a process, among the `gpus` that it sees. A starter that shows each process only its own GPU has dealt them
/// out already; whether two have got the same shows when they join.
///
/// # Errors
/// More processes than GPUs, with both numbers.
pub fn gpu_of(place: &Place, gpus: usize) -> anyhow::Result<usize> {
    if gpus > 1 {
        check_gpus(place.local_world, gpus)?;
    }
    Ok(place.local_rank % gpus.max(1))
}

/// Keeps this process to its share of the cores, where there is at least one for each.
pub fn keep_to_own_cores(place: &Place) {
    let cores = allowed();
    if cores.len() >= place.local_world {
        keep_to(&cores[share(cores.len(), place.local_rank, place.local_world)]);
    }
}

/// Keeps this process to the cores next to its GPU: with `divide` to its share of them, as its neighbours have theirs.
pub fn keep_near_gpu(place: &Place, gpus: usize, divide: bool) {
    let near = |rank: usize| cores_near(rank % gpus.max(1));
    let Some(own) = near(place.local_rank) else {
        if divide {
            keep_to_own_cores(place);
        }
        return;
    };
    let allowed = allowed();
    let cores: Vec<usize> = own.iter().copied().filter(|core| allowed.contains(core)).collect();
    if !divide {
        if !cores.is_empty() {
            bind(&cores);
        }
        return;
    }
    // Those whose GPUs lie at the same cores share them.
    let mates: Vec<usize> =
        (0..place.local_world).filter(|&rank| near(rank).as_ref() == Some(&own)).collect();
    let mine = mates.iter().position(|&rank| rank == place.local_rank).unwrap_or(0);
    if cores.len() >= mates.len() {
        keep_to(&cores[share(cores.len(), mine, mates.len())]);
    }
}

fn share(len: usize, rank: usize, world: usize) -> std::ops::Range<usize> {
    rank * len / world..(rank + 1) * len / world
}

/// The cores next to a GPU, as the kernel lists them; none where it does not know.
fn cores_near(gpu: usize) -> Option<Vec<usize>> {
    let id = cuda::pci_bus_id(gpu)?.to_lowercase();
    let folder = std::path::Path::new("/sys/bus/pci/devices").join(id);
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    // -1 where the machine has one node only, or does not tell.
    let node: i32 = read("numa_node")?.trim().parse().ok()?;
    if node < 0 {
        return None;
    }
    parse_list(read("local_cpulist")?.trim()).filter(|cores| !cores.is_empty())
}

/// `0-3,8,10-11` as numbers.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // No machine has more; a damaged file may say anything.
        if last >= 1 << 16 {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

fn keep_to(cores: &[usize]) {
    if bind(cores) {
        OWN_CORES.store(true, Ordering::Relaxed);
    }
}

/// The cores on which this process may run; none where the system does not tell.
fn allowed() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
        (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// Keeps this thread, and those that it starts, to some cores; whether it could.
fn bind(cores: &[usize]) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_setaffinity};
        let mut own = CpuSet::new();
        cores.iter().filter(|&&core| core < CpuSet::MAX_CPU).for_each(|&core| own.set(core));
        !cores.is_empty() && sched_setaffinity(None, &own).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = cores;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(parse_list("0-3,8,10-11"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_list(""), Some(Vec::new()));
        for nonsense in ["a", "1-", "0-99999999999", "3,-1"] {
            assert_eq!(parse_list(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn shares_cover_all_cores_once() {
        for (len, world) in [(8, 3), (7, 7), (64, 8)] {
            let all: Vec<usize> = (0..world).flat_map(|rank| share(len, rank, world)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn more_processes_than_gpus_are_told_with_both_numbers() {
        let place = |local_rank| Place { rank: 8, world: 16, local_rank, local_world: 8, host: "h".into() };
        assert_eq!(gpu_of(&place(5), 8).unwrap(), 5);
        // Each sees its own only.
        assert_eq!(gpu_of(&place(5), 1).unwrap(), 0);
        let said = gpu_of(&place(5), 4).unwrap_err().to_string();
        assert!(said.contains("8 GPUs are asked for and this machine has 4"), "{said}");
    }
}
