//! Which of a job's processes this one is: told by mpirun, srun, torchrun or our own launcher through the environment.

use anyhow::{Result, bail};
use engine::dist::Place;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Set by [`crate::spawn`] for its workers.
pub const RANK: &str = "LAUNCHER_RANK";
/// Likewise.
pub const WORLD: &str = "LAUNCHER_WORLD";
/// Likewise.
pub const LOCAL_RANK: &str = "LAUNCHER_LOCAL_RANK";
/// Likewise.
pub const LOCAL_WORLD: &str = "LAUNCHER_LOCAL_WORLD";
/// `host:port` of rank 0, likewise.
pub const MEET: &str = "LAUNCHER_MEET";
/// The file descriptor of rank 0's listener at that address, likewise: of a port that was found free and then closed
/// somebody else might take hold.
pub const LISTENER: &str = "LAUNCHER_LISTENER";
/// Keeps jobs and strangers apart, likewise.
pub const TOKEN: &str = "LAUNCHER_TOKEN";
/// What the user gives all processes of a job, for the same.
pub const GIVEN_TOKEN: &str = "BERT_JOB_TOKEN";
/// Fewest bytes of it.
const SHORTEST_TOKEN: usize = 16;

/// Ports for meetings whose address nobody gave.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// Who started this process as one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// [`crate::spawn`].
    Own,
    /// torchrun.
    Torchrun,
    /// mpirun of Open MPI.
    OpenMpi,
    /// mpirun of MPICH and its relatives.
    Pmi,
    /// srun.
    Slurm,
}

impl Starter {
    /// Whether it stays as long as its processes, and ends them when it ends. The variables of torchrun are also set by hand, in
    /// a shell that may be left.
    pub fn ends_its_own(self) -> bool {
        matches!(self, Self::OpenMpi | Self::Pmi | Self::Slurm)
    }
}

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub starter: Starter,
    pub place: Place,
    /// `host:port` of rank 0.
    pub meet: Option<String>,
    /// `host:port` of the machine where mpirun runs, which is rank 0's as a rule.
    pub near: Option<String>,
    pub token: String,
    /// Whether the token is made of nothing but what others may know, as the job's number.
    pub guessable: bool,
    /// Whether all that the starter has started take part.
    pub whole: bool,
}

/// What this process should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Train alone.
    Alone,
    /// Train as one of several.
    Rank(Found),
    /// Start `count` workers here, of which the first is rank `first` of `world`.
    Spawn { count: usize, first: usize, world: usize, meet: Option<String>, token: String },
    /// Nothing: there are more processes than asked for.
    Leave,
}

/// A starter, and its variables of rank, world, local rank and local world.
type Kind = (Starter, [&'static str; 4]);

/// All of them.
const KINDS: [Kind; 5] = [
    (Starter::Own, [RANK, WORLD, LOCAL_RANK, LOCAL_WORLD]),
    (Starter::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    (
        Starter::OpenMpi,
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    ),
    (Starter::Pmi, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    // A batch script has SLURM_PROCID too; only srun counts a step's tasks.
    (Starter::Slurm, ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""]),
];

/// What the variables of one starter say.
struct Said {
    starter: Starter,
    rank: usize,
    world: usize,
    /// Rank on this machine, and number of processes there.
    local: [Option<usize>; 2],
}

/// Reads an environment, in which `PID` and `PARENT` are this process's number and its parent's.
pub struct Environment<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.text(name) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{name} is {value:?} in the environment, expected a number"),
        }
    }

    /// The process's place, if it is one of several. A starter inside another one passes the outer one's variables on: srun
    /// starts the daemons of mpirun, and either of them starts torchrun. [`KINDS`] are in the order from the inside, except that
    /// a process which is itself a task of srun has no other starter in between.
    pub fn find(&self, host: &str) -> Result<Option<Found>> {
        let own_task = self.text("SLURM_TASK_PID").is_some_and(|pid| self.text("PID") == Some(pid));
        let mut kinds = KINDS;
        if own_task {
            kinds[1..].rotate_right(1);
        }
        let mut innermost = None;
        for kind in kinds {
            innermost = self.said_by(kind)?;
            if innermost.is_some() {
                break;
            }
        }
        let Some(Said { starter, rank, world, local }) = innermost else { return Ok(None) };
        // srun with Slurm's PMI sets the variables of both, and PMI's know nothing of machines.
        let others = || KINDS.into_iter().filter_map(|kind| self.said_by(kind).ok()?);
        let same = || others().filter(|s| (s.rank, s.world) == (rank, world));
        let [local_rank, local_world] =
            [0, 1].map(|i| local[i].or_else(|| same().find_map(|said| said.local[i])));
        let place = Place {
            rank,
            world,
            local_rank: local_rank.unwrap_or(rank),
            local_world: local_world.unwrap_or(world),
            host: host.to_owned(),
        };
        let job = self.job(starter);
        let one_machine = local_world == Some(world);
        let [meet, near] = self.meet(starter, &place, one_machine, &job)?;
        let (token, guessable) = match (self.text(TOKEN), self.given_token()?) {
            (Some(own), _) => (own, false),
            (None, Some(given)) => (format!("{given} {job} {world}"), false),
            (None, None) => (format!("{job} {world}"), true),
        };
        Ok(Some(Found { starter, place, meet, near, token, guessable, whole: true }))
    }

    fn given_token(&self) -> Result<Option<String>> {
        let given = self.text(GIVEN_TOKEN);
        if let Some(length) = given.as_ref().map(String::len).filter(|length| *length < SHORTEST_TOKEN) {
            bail!(
                "{GIVEN_TOKEN} has {length} bytes and can be guessed; give it at least {SHORTEST_TOKEN}, as `openssl rand \
                 -hex 16` makes them"
            );
        }
        Ok(given)
    }

    /// What one starter's variables say.
    fn said_by(&self, (starter, [rank, world, local_rank, local_world]): Kind) -> Result<Option<Said>> {
        let (Some(rank_value), Some(world_value)) = (self.number(rank)?, self.number(world)?) else {
            return Ok(None);
        };
        if rank_value >= world_value {
            bail!("{rank} is {rank_value} and {world} is {world_value} in the environment: no such rank");
        }
        let local_world = match starter {
            Starter::Slurm => self.slurm_local_world(),
            _ => self.number(local_world)?,
        };
        let local = [self.number(local_rank)?, local_world];
        Ok(Some(Said { starter, rank: rank_value, world: world_value, local }))
    }

    /// `4` of `4(x2)` or `4,3`: tasks on the first node; nodes of a job are alike or nothing here works.
    fn slurm_local_world(&self) -> Option<usize> {
        let tasks = self.text("SLURM_STEP_TASKS_PER_NODE")?;
        tasks.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    /// What the processes of a job, and no others, have in common.
    fn job(&self, starter: Starter) -> String {
        let names: &[&str] = match starter {
            Starter::Own => &[TOKEN],
            Starter::Torchrun => &["TORCHELASTIC_RUN_ID"],
            Starter::OpenMpi => &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri"],
            Starter::Pmi => &["PMI_JOBID", "SLURM_JOB_ID"],
            Starter::Slurm => &["SLURM_JOB_ID"],
        };
        if let Some(id) = names.iter().find_map(|name| self.text(name)) {
            // Of mpirun's processes only those have a step whose machine's daemon srun has started.
            let steps = matches!(starter, Starter::Pmi | Starter::Slurm);
            let step = self.text("SLURM_STEP_ID").filter(|_| steps).unwrap_or_default();
            return format!("{id} {step}");
        }
        // What one process has started on one machine has one parent; on several, an address is given.
        let [address, port, parent] = ["MASTER_ADDR", "MASTER_PORT", "PARENT"].map(|name| self.text(name));
        match address {
            Some(address) => format!("at {address} {}", port.unwrap_or_default()),
            None => format!("parent {}", parent.unwrap_or_default()),
        }
    }

    /// Where rank 0 is, and where it is likely to be. Nowhere else than on this machine where the starter says that all are
    /// on one.
    fn meet(
        &self,
        starter: Starter,
        place: &Place,
        one_machine: bool,
        job: &str,
    ) -> Result<[Option<String>; 2]> {
        const LOOPBACK: &str = "127.0.0.1";
        let port = || {
            let mut hasher = DefaultHasher::new();
            job.hash(&mut hasher);
            PORTS.start + hasher.finish() % (PORTS.end - PORTS.start)
        };
        if let Some(meet) = self.text(MEET) {
            return Ok([Some(meet), None]);
        }
        if let Some(address) = self.text("MASTER_ADDR") {
            let port = self.master_port()?.unwrap_or_else(port);
            let host = if one_machine { LOOPBACK.to_owned() } else { in_brackets(address) };
            return Ok([Some(format!("{host}:{port}")), None]);
        }
        if place.world == place.local_world {
            return Ok([Some(format!("{LOOPBACK}:{}", port())), None]);
        }
        let at = |host: &str| Some(format!("{host}:{}", port()));
        Ok(match starter {
            Starter::Slurm => {
                let nodes = self.text("SLURM_STEP_NODELIST").or_else(|| self.text("SLURM_JOB_NODELIST"));
                [nodes.and_then(|nodes| at(&first_host(&nodes))), None]
            }
            Starter::OpenMpi => [None, self.mpirun_host(place.rank).as_deref().and_then(at)],
            _ => [None, None],
        })
    }

    /// The port that the starter gives to rank 0.
    fn master_port(&self) -> Result<Option<u64>> {
        let Some(given) = self.number("MASTER_PORT")? else { return Ok(None) };
        // torchrun's agent listens at the port itself.
        let taken = usize::from(self.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"));
        if given == 0 || given + taken > usize::from(u16::MAX) {
            bail!(
                "MASTER_PORT is {given} in the environment, expected 1 to {}",
                usize::from(u16::MAX) - taken
            );
        }
        Ok(Some((given + taken) as u64))
    }

    /// The address of the machine where mpirun of Open MPI 4 runs. None to a rank 0 that is on another one.
    fn mpirun_host(&self, rank: usize) -> Option<String> {
        // As in 196.0;tcp://10.0.0.1,10.1.0.1:46871;tcp6://[fd00::2]:39309, of mpirun and of the daemon on this machine.
        let [mpirun, own] = ["OMPI_MCA_orte_hnp_uri", "OMPI_MCA_orte_local_daemon_uri"].map(|n| self.text(n));
        let mpirun = mpirun?;
        let daemon = |uri: &str| uri.split(';').next().map(str::to_owned);
        if rank == 0 && own.is_some_and(|own| daemon(&own) != daemon(&mpirun)) {
            return None;
        }
        let addresses = mpirun.split(';').find_map(|part| part.strip_prefix("tcp://"))?;
        let first = addresses.split([',', ':']).next()?;
        (!first.is_empty()).then(|| first.to_owned())
    }
}

/// On rank 0, once: the ranks are on several machines and their token can be guessed.
pub fn warn_of_strangers() {
    tracing::warn!(
        "the ranks are on several machines and know each other by the job's number, which others can guess: set \
         {GIVEN_TOKEN} for all of them (docs/ranks.md)"
    );
}

/// An address of IPv6 as it stands before a port.
fn in_brackets(address: String) -> String {
    if address.contains(':') && !address.starts_with('[') { format!("[{address}]") } else { address }
}

/// The first of Slurm's compressed list: `gpu[03-07,9],login` begins with `gpu03`.
fn first_host(nodes: &str) -> String {
    let end = nodes.find([',', '[']).unwrap_or(nodes.len());
    let prefix = &nodes[..end];
    match nodes[end..].strip_prefix('[') {
        Some(list) => {
            let number: String = list.chars().take_while(char::is_ascii_digit).collect();
            let suffix: String =
                list.split(']').nth(1).unwrap_or("").chars().take_while(|&c| c != ',').collect();
            format!("{prefix}{number}{suffix}")
        }
        None => prefix.to_owned(),
    }
}

/// The role of a process that finds itself at `found`, where `per_node` processes a machine were asked for with `option`.
pub fn role(found: Option<Found>, per_node: Option<usize>, option: &str) -> Result<Role> {
    let Some(mut found) = found else {
        return Ok(match per_node {
            None | Some(1) => Role::Alone,
            Some(count) => Role::Spawn { count, first: 0, world: count, meet: None, token: String::new() },
        });
    };
    let Place { rank, world, local_rank, local_world, .. } = found.place;
    let wanted = per_node.unwrap_or(local_world);
    if found.starter == Starter::Own || wanted == local_world {
        return Ok(if world == 1 { Role::Alone } else { Role::Rank(found) });
    }
    if local_world == 1 {
        let (first, world) = (rank * wanted, world * wanted);
        return Ok(Role::Spawn {
            count: wanted,
            first,
            world,
            meet: found.meet.or(found.near),
            token: found.token,
        });
    }
    if local_world < wanted {
        bail!(
            "{option} {wanted} asks for {wanted} processes a machine, but {local_world} were started here; start 1 or \
             {wanted} a machine, or ask for {local_world}"
        );
    }
    if rank % local_world != local_rank {
        bail!(
            "rank {rank} is number {local_rank} of {local_world} on its machine: ranks are dealt over machines in turn; \
             start exactly {wanted} a machine, or give mpirun --map-by slot"
        );
    }
    if local_rank >= wanted {
        return Ok(Role::Leave);
    }
    found.place.world = world / local_world * wanted;
    found.place.rank = rank / local_world * wanted + local_rank;
    found.place.local_world = wanted;
    found.whole = false;
    Ok(if found.place.world == 1 { Role::Alone } else { Role::Rank(found) })
}

#[cfg(test)]
mod tests;
