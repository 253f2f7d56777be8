//! What is done by one process or by one of several.

use crate::args::{Device as Choice, PlaceArgs};
use crate::device::{self, Work};
use crate::ranks::{self, Environment, Found, Role, Starter};
use crate::spawn::{self, Crew};
use crate::{exit, placement, signals};
use anyhow::{Context, anyhow, bail};
use engine::Error;
use engine::config::{Config, Device as Wanted, Precision};
use engine::dist::{self, Address, Control, End, Group, Limits};
use half::bf16;
use kernels::Backend;
use kernels::collective::tcp::Tcp;
use kernels::collective::{Collective, HostCollective, Transport};
use kernels::cuda::{self, Cuda, Device, Element, Nccl, nccl};
use kernels::limits;
use std::net::TcpListener;
use std::os::unix::process::parent_id;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Between two looks after the process that has started this one.
const ORPHANED: Duration = Duration::from_millis(500);

/// What is done in every process of a job.
pub trait Task {
    /// Whether it leaves a run folder.
    const LEAVES_RUN: bool;
    /// Does it as one of a group, whose GPU, if it is one, is behind `backend`; the answer is the exit code.
    fn run<B: Backend<Acc = f32>>(
        self,
        backend: B,
        gpu: Option<Arc<Device>>,
        group: &mut Group<B>,
    ) -> anyhow::Result<u8>;
}

/// A task of this process alone.
struct Alone<T>(T);

impl<T: Task> Work for Alone<T> {
    type Result = u8;
    fn on<B: Backend<Acc = f32>>(self, backend: B, gpu: Option<Arc<Device>>) -> anyhow::Result<u8> {
        self.0.run(backend, gpu, &mut Group::solo())
    }
}

/// Does a task in the role that this process has: alone, as one of those that mpirun and the like have started, or in
/// workers that are started here. An error of one of several ends all.
pub fn run<T: Task>(place: &PlaceArgs, config: &Config, task: T) -> anyhow::Result<u8> {
    if let (Some(gpus), Some(Choice::Cpu)) = (place.gpus, place.device) {
        bail!(
            "--gpus {gpus}: asks for GPUs, and --device for the CPU; leave one out, or give --processes {gpus} for as many \
             processes on the CPU"
        );
    }
    let get = |name: &str| match name {
        "PID" => Some(std::process::id().to_string()),
        "PARENT" => Some(parent_id().to_string()),
        _ => std::env::var(name).ok(),
    };
    let host = sysinfo::System::host_name().unwrap_or_else(|| "this machine".to_owned());
    let found = Environment(&get).find(&host)?;
    let started = found.as_ref().is_some_and(|found| found.starter.ends_its_own());
    let guessable = found.as_ref().is_some_and(|found| found.guessable);
    let option = if place.gpus.is_some() { "--gpus" } else { "--processes" };
    let role = ranks::role(found, place.gpus.or(place.processes).map(|n| n as usize), option)?;
    let wanted = if place.gpus.is_some() { Wanted::Cuda } else { config.train.device };
    match role {
        Role::Alone => {
            let chosen = device::choose(wanted)?;
            chosen.why.iter().for_each(|line| exit::say(line));
            chosen.run(config, T::LEAVES_RUN, Alone(task))
        }
        Role::Leave => Ok(exit::DONE),
        Role::Spawn { count, first, world, meet, token } => {
            if wanted == Wanted::Cuda {
                // Said once, here, instead of by every worker.
                placement::check_gpus(count, cuda::count()?)?;
                nccl::version()?;
            }
            if guessable && first == 0 && world > count {
                ranks::warn_of_strangers();
            }
            spawn::run(&Crew { count, first, world, meet, token, started })
        }
        Role::Rank(found) => {
            // Processes that are asked for as such share the machine's cores.
            let wanted =
                if place.processes.is_some() && wanted == Wanted::Auto { Wanted::Cpu } else { wanted };
            match join(&found, wanted, config)? {
                Some(joined) => as_rank(&found, wanted, config, joined, task),
                None => Ok(exit::FAILED),
            }
        }
    }
}

/// Starts this process's threads, and its watch for signals; that of one of several has begun when they met.
pub fn start<B: Backend>(group: &Group<B>, config: &Config) -> anyhow::Result<()> {
    start_threads(group, config)?;
    if group.control.is_none() {
        signals::watch(true)?;
    }
    if !group.is_first() {
        // The first process decides; this one hears from it.
        signals::training_started();
    }
    Ok(())
}

/// Starts this process's threads: its share of the machine's.
pub fn start_threads<B: Backend>(group: &Group<B>, config: &Config) -> anyhow::Result<()> {
    let local_world = group.control.as_ref().map_or(1, Control::local_world);
    crate::start_threads(threads(config, local_world))
}

/// The other processes, met.
struct Joined {
    transport: Box<dyn Transport>,
    control: Control,
}

/// How this process ends where another one, or an error of its own, ends all.
struct Ending;

impl End for Ending {
    fn say(&self, why: &str) {
        exit::say(&format!("error: {why}"));
    }

    fn leave(&self, signal: Option<i32>) {
        // Without the libraries' exit handlers: a GPU's may wait for work that waits for a rank which is gone.
        signal_hook::low_level::exit(signal.map_or(exit::FAILED, exit::by_signal).into());
    }
}

/// Meets the other processes; none if rank 0 gives up, which says why. From here on, what goes wrong anywhere ends all.
fn join(found: &Found, wanted: Wanted, config: &Config) -> anyhow::Result<Option<Joined>> {
    let place = &found.place;
    if found.starter == Starter::Own {
        spawn::end_with_starter()?;
    }
    let met = Arc::new(OnceLock::new());
    if found.starter.ends_its_own() {
        end_without_starter(met.clone())?;
    }
    let mut mpi = if wanted == Wanted::Cpu { over_mpi(found)? } else { None };
    let Some(meet) = meeting_place(found, mpi.as_deref_mut(), spawn::listener())? else {
        bail!(
            "the ranks are on several machines and none knows rank 0's; set MASTER_ADDR for all, as in mpirun -x \
             MASTER_ADDR=node1"
        );
    };
    if found.guessable && place.rank == 0 && !meet.is_of_one_machine() {
        ranks::warn_of_strangers();
    }
    let start = Duration::from_secs(config.ranks.start_seconds);
    let Some(mut meeting) = dist::meet(place, meet, &found.token, mpi.is_none(), start)? else {
        return Ok(None);
    };
    let limits = Limits { start, hang: Duration::from_secs(config.ranks.hang_seconds) };
    let control = Control::start(place, &mut meeting, limits, Box::new(Ending))
        .map_err(|e| anyhow!(limits::refused("the threads that watch the other processes", &e)))?;
    let (interrupted, asked) = (control.clone(), control.clone());
    signals::before_end(move |signal| interrupted.interrupt(signal));
    signals::when_asked(move |signal| asked.ask_to_stop(signal));
    signals::watch(place.rank == 0)?;
    let _ = met.set(control.clone());
    let transport = match mpi {
        Some(mpi) => mpi,
        None => Box::new(Tcp::new(place.rank, std::mem::take(&mut meeting.data))?),
    };
    Ok(Some(Joined { transport, control }))
}

/// Ends this process, or the job once it has `met`, when what has started it, and would end it with the others, is gone.
fn end_without_starter(met: Arc<OnceLock<Control>>) -> anyhow::Result<()> {
    let parent = parent_id();
    let watch = move || {
        while parent_id() == parent {
            std::thread::sleep(ORPHANED);
        }
        if let Some(control) = met.get() {
            control.fail(&Error::Training(format!("process {parent}, which had started it, is gone")));
        }
        signal_hook::low_level::exit(exit::FAILED.into());
    };
    let started = std::thread::Builder::new().name("starter".to_owned()).spawn(watch);
    started.map(drop).map_err(|e| anyhow!(limits::refused("the thread that watches the starter", &e)))
}

/// Does a task as one of several, on what all of them have.
fn as_rank<T: Task>(
    found: &Found,
    wanted: Wanted,
    config: &Config,
    joined: Joined,
    task: T,
) -> anyhow::Result<u8> {
    let Joined { mut transport, control } = joined;
    let gpu = match gpu(found, wanted, transport.as_mut()) {
        Ok(gpu) => gpu,
        Err(error) => return ended(&control, Err(error)),
    };
    let Some(gpu) = gpu else {
        if found.starter == Starter::Own {
            placement::keep_to_own_cores(&found.place);
        }
        if wanted == Wanted::Auto {
            transport = match over_mpi(found) {
                Ok(mpi) => mpi.unwrap_or(transport),
                Err(error) => return ended(&control, Err(error)),
            };
        }
        let ranks = || Ok((device::on_cpu(config)?, HostCollective::new(transport)?));
        return task_with(control, None, ranks, task);
    };
    let patience = Duration::from_secs(config.ranks.start_seconds);
    let (own, leaves) = (Some(gpu.clone()), T::LEAVES_RUN);
    match config.train.precision {
        Precision::F32 => {
            task_with(control, own, || on_gpu::<f32>(config, gpu, leaves, transport, patience), task)
        }
        Precision::Auto | Precision::Bf16 => {
            task_with(control, own, || on_gpu::<bf16>(config, gpu, leaves, transport, patience), task)
        }
    }
}

/// A GPU as a backend, and the ranks on theirs.
fn on_gpu<E: Element>(
    config: &Config,
    gpu: Arc<Device>,
    leaves_run: bool,
    transport: Box<dyn Transport>,
    patience: Duration,
) -> anyhow::Result<(Cuda<E>, Nccl)> {
    // The ranks first: who fails alone does so after all have heard of all.
    let ranks = Nccl::new(gpu.clone(), transport, patience)?;
    let options = device::options(config, &gpu, leaves_run);
    Ok((Cuda::new(gpu, options)?, ranks))
}

/// Does a task on a backend with its ranks, or ends all because there are none.
fn task_with<B: Backend<Acc = f32>, C: Collective<B> + 'static>(
    control: Control,
    gpu: Option<Arc<Device>>,
    ranks: impl FnOnce() -> anyhow::Result<(B, C)>,
    task: impl Task,
) -> anyhow::Result<u8> {
    let (backend, ranks) = match ranks() {
        Ok(both) => both,
        Err(error) => return ended(&control, Err(error)),
    };
    let mut group = Group::new(Box::new(ranks), control);
    let result = task.run(backend, gpu, &mut group);
    match &group.control {
        Some(control) => ended(control, result),
        None => result,
    }
}

/// Tells the others how this process ended.
fn ended(control: &Control, result: anyhow::Result<u8>) -> anyhow::Result<u8> {
    match &result {
        Ok(_) => control.finish(),
        Err(e) => match e.downcast_ref::<Error>() {
            Some(error) => control.fail(error),
            None => control.fail(&Error::Training(format!("{e:#}"))),
        },
    }
    result
}

/// This process's GPU, with its cores; none if it is to train on the CPU. Where nothing was said, all train on GPUs if every
/// process has one.
fn gpu(found: &Found, wanted: Wanted, transport: &mut dyn Transport) -> anyhow::Result<Option<Arc<Device>>> {
    if wanted == Wanted::Cpu {
        return Ok(None);
    }
    let place = &found.place;
    let open = || {
        let gpus = cuda::count()?;
        let ordinal = placement::gpu_of(place, gpus)?;
        nccl::version()?;
        anyhow::Ok((gpus, Device::open(ordinal)?))
    };
    let place_near = |(gpus, gpu)| {
        placement::keep_near_gpu(place, gpus, found.starter == Starter::Own);
        Some(gpu)
    };
    let own = open();
    if wanted == Wanted::Cuda {
        return own.map(place_near).map_err(|error| anyhow!("{error}; `launcher doctor` tells more"));
    }
    let mut have = vec![0; place.world];
    have[place.rank] = u8::from(own.is_ok());
    let parts: Vec<_> = (0..place.world).map(|rank| rank..rank + 1).collect();
    transport.all_gather(&mut have, &parts)?;
    let without = have.iter().position(|&has| has == 0);
    if place.rank == 0 {
        match (&own, without) {
            (_, None) => exit::say(&format!("device auto: {} GPUs", place.world)),
            (Err(error), _) => exit::say(&format!("device auto: the CPU, because {error}")),
            (Ok(_), Some(rank)) => {
                exit::say(&format!("device auto: the CPU, because rank {rank} has no GPU"))
            }
        }
    }
    Ok(own.ok().filter(|_| without.is_none()).and_then(place_near))
}

/// The MPI library's connections, for CPUs, where mpirun started this process and this build has them. What mpirun starts
/// takes part in MPI as a whole or not at all: where some are to leave, the others talk over TCP.
fn over_mpi(found: &Found) -> anyhow::Result<Option<Box<dyn Transport>>> {
    #[cfg(feature = "mpi")]
    if matches!(found.starter, Starter::OpenMpi | Starter::Pmi) && found.whole {
        let mpi = kernels::collective::mpi::Mpi::new()?;
        if mpi.world() == found.place.world {
            return Ok(Some(Box::new(mpi)));
        }
        bail!(
            "mpirun started {} processes and this program's MPI library sees {}: use the mpirun of the library that it \
             was built with",
            found.place.world,
            mpi.world()
        );
    }
    let _ = found;
    Ok(None)
}

/// Where rank 0 is, with its listener where there is one already; over MPI it can tell.
fn meeting_place(
    found: &Found,
    mpi: Option<&mut (dyn Transport + 'static)>,
    listener: Option<TcpListener>,
) -> anyhow::Result<Option<Address>> {
    /// Longest name of a machine, with a port.
    const LONGEST: usize = 300;
    let (None, Some(mpi)) = (&found.meet, mpi) else {
        let text = found.meet.clone().or_else(|| found.near.clone());
        return Ok(text.map(|text| Address { text, listener }));
    };
    let (mut bytes, mut listener) = (vec![0; LONGEST], None);
    if found.place.rank == 0 {
        let free = TcpListener::bind("0.0.0.0:0").context("cannot find a free port")?;
        let port = free.local_addr().context("cannot find a free port")?.port();
        listener = Some(free);
        let address = format!("{}:{port}", found.place.host);
        bytes[..address.len().min(LONGEST)]
            .copy_from_slice(&address.as_bytes()[..address.len().min(LONGEST)]);
    }
    let mut parts = vec![LONGEST..LONGEST; found.place.world];
    parts[0] = 0..LONGEST;
    mpi.all_gather(&mut bytes, &parts)?;
    let text = String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
    Ok(Some(Address { text, listener }))
}

/// Threads of one of several processes of a machine: its share of the cores.
fn threads(config: &Config, local_world: usize) -> usize {
    match config.train.threads {
        0 if local_world > 1 => placement::threads(local_world),
        said => said,
    }
}
