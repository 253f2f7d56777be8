//! Training as one process or as one of several.

use crate::args::PlaceArgs;
use crate::device::{self, Work};
use crate::ranks::{self, Environment, Found, Role, Starter};
use crate::spawn::{self, Crew};
use crate::{exit, signals};
use anyhow::{Context, bail};
use engine::Error;
use engine::config::{self, Config};
use engine::dist::{self, Control, Group};
use kernels::Backend;
use kernels::collective::tcp::Tcp;
use kernels::collective::{HostCollective, Transport};
use kernels::cpu::Cpu;
use kernels::cuda::Device;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What is done in every process of a job.
pub trait Train {
    /// Trains as one of a group; the answer is the exit code.
    fn train<B: Backend<Acc = f32>>(self, backend: B, group: &mut Group<B>) -> anyhow::Result<u8>;
}

/// Training by this process alone.
struct Alone<T>(T);

impl<T: Train> Work for Alone<T> {
    type Result = u8;
    fn on<B: Backend<Acc = f32>>(self, backend: B, _: Option<Arc<Device>>) -> anyhow::Result<u8> {
        self.0.train(backend, &mut Group::solo())
    }
}

/// Trains in the role that this process has: alone, as one of those that mpirun and the like have started, or in
/// workers that are started here. An error of one of several ends all.
pub fn run(place: &PlaceArgs, config: &Config, train: impl Train) -> anyhow::Result<u8> {
    let get = |name: &str| match name {
        "PARENT" => Some(std::os::unix::process::parent_id().to_string()),
        _ => std::env::var(name).ok(),
    };
    let host = sysinfo::System::host_name().unwrap_or_else(|| "this machine".to_owned());
    let found = Environment(&get).find(&host)?;
    let role = ranks::role(found, place.processes.map(|n| n as usize), "--processes")?;
    let wanted = if place.gpus.is_some() { config::Device::Cuda } else { config.train.device };
    if wanted == config::Device::Cuda && (place.gpus.is_some_and(|n| n > 1) || !matches!(role, Role::Alone)) {
        bail!("{}", device::SEVERAL);
    }
    match role {
        Role::Alone => {
            let chosen = device::choose(wanted)?;
            chosen.why.iter().for_each(|line| exit::say(line));
            chosen.run(config, Alone(train))
        }
        Role::Leave => Ok(exit::DONE),
        Role::Spawn { count, first, world, meet, token } => {
            spawn::run(&Crew { count, first, world, meet, token })
        }
        Role::Rank(found) => {
            let mut group = connect(&found, config)?;
            let ended = device::on_cpu(config).and_then(|cpu| train.train(cpu, &mut group));
            if let Some(control) = &group.control {
                match &ended {
                    Ok(_) => control.finish(),
                    Err(e) => match e.downcast_ref::<Error>() {
                        Some(error) => control.fail(error),
                        None => control.fail(&Error::Training(format!("{e:#}"))),
                    },
                }
            }
            ended
        }
    }
}

/// Starts this process's threads, and its watch for signals.
pub fn start<B: Backend>(group: &Group<B>, config: &Config) -> anyhow::Result<()> {
    let local_world = group.control.as_ref().map_or(1, Control::local_world);
    crate::start_threads(threads(config, local_world))?;
    signals::watch(group.is_first())?;
    if !group.is_first() {
        // The first process decides; this one hears from it.
        signals::training_started();
    }
    Ok(())
}

/// Meets the other processes. From here on, what goes wrong anywhere ends all.
fn connect(found: &Found, config: &Config) -> anyhow::Result<Group<Cpu<f32>>> {
    let place = &found.place;
    if found.starter == Starter::Own {
        spawn::end_with_starter();
        spawn::keep_to_own_cores(place.local_rank, place.local_world);
    }
    let mut mpi = over_mpi(found)?;
    let Some(meet) = meeting_place(found, mpi.as_deref_mut())? else {
        bail!(
            "the ranks are on several machines and none knows rank 0's; set MASTER_ADDR for all, as in mpirun -x \
             MASTER_ADDR=node1"
        );
    };
    let deadline = Duration::from_secs(config.ranks.start_seconds);
    let mut meeting = dist::meet(place, &meet, &found.token, mpi.is_none(), deadline)?;
    let on_failure = Box::new(|message: &str, speaks: bool| {
        // A signal that ends rank 0 before training ends all: that is no failure.
        let signal = signals::STOP.load(Ordering::SeqCst);
        if signal != 0 {
            std::process::exit(exit::by_signal(signal).into());
        }
        if speaks {
            exit::say(&format!("error: {message}"));
        }
        std::process::exit(exit::FAILED.into());
    });
    let control =
        Control::start(place, &mut meeting, on_failure).context("cannot watch the other processes")?;
    let transport = match mpi {
        Some(mpi) => mpi,
        None => Box::new(Tcp::new(place.rank, std::mem::take(&mut meeting.data))?),
    };
    let ranks = HostCollective::new(transport)?;
    Ok(Group::new(Box::new(ranks), control))
}

/// The MPI library's connections, where mpirun started this process and this build has them. Processes that are not to
/// take part may not be among mpirun's then.
fn over_mpi(found: &Found) -> anyhow::Result<Option<Box<dyn Transport>>> {
    #[cfg(feature = "mpi")]
    if matches!(found.starter, Starter::OpenMpi | Starter::Pmi) {
        let mpi = kernels::collective::mpi::Mpi::new()?;
        if mpi.world() == found.place.world {
            return Ok(Some(Box::new(mpi)));
        }
        bail!(
            "mpirun started {} processes and {} are to train; over MPI all must: start {} only",
            mpi.world(),
            found.place.world,
            found.place.world
        );
    }
    let _ = found;
    Ok(None)
}

/// Where rank 0 is; over MPI it can tell.
fn meeting_place(
    found: &Found,
    mpi: Option<&mut (dyn Transport + 'static)>,
) -> anyhow::Result<Option<String>> {
    /// Longest name of a machine, with a port.
    const LONGEST: usize = 300;
    let (None, Some(mpi)) = (&found.meet, mpi) else { return Ok(found.meet.clone()) };
    let mut bytes = vec![0; LONGEST];
    if found.place.rank == 0 {
        let port =
            TcpListener::bind("0.0.0.0:0").and_then(|l| l.local_addr()).context("cannot find a free port")?;
        let address = format!("{}:{}", found.place.host, port.port());
        bytes[..address.len().min(LONGEST)]
            .copy_from_slice(&address.as_bytes()[..address.len().min(LONGEST)]);
    }
    let mut parts = vec![LONGEST..LONGEST; found.place.world];
    parts[0] = 0..LONGEST;
    mpi.all_gather(&mut bytes, &parts)?;
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()))
}

/// Threads of one of several processes of a machine: its share of the cores.
fn threads(config: &Config, local_world: usize) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    if config.train.threads > 0 || local_world == 1 {
        config.train.threads
    } else {
        (cores() / local_world).max(1)
    }
}
