//! Jobs of several processes, each this program with a part to play.

use kernels::collective::tcp::Tcp;
use kernels::cuda::{Device, IMAGES, Image, Nccl, count};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const BODY: &str = "nccl::rank_of_a_job";
const SCENARIO: &str = "NCCL_TEST_SCENARIO";
const RANK: &str = "NCCL_TEST_RANK";
const WORLD: &str = "NCCL_TEST_WORLD";
const FOLDER: &str = "NCCL_TEST_FOLDER";
/// After that a job hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// Processes about to be started.
#[derive(Clone)]
pub struct Job {
    scenario: &'static str,
    world: usize,
    variables: Vec<(&'static str, String)>,
}

/// How one process ended.
pub struct Ended {
    pub well: bool,
    pub said: String,
}

impl Job {
    /// On the GPUs, or on the emulator; none where the GPUs are too few.
    pub fn new(scenario: &'static str, world: usize) -> Option<Self> {
        let shares = std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok_and(|v| v == "1");
        match real_gpus() {
            Some(gpus) if gpus < world && !shares => {
                println!(
                    "skipped: {world} ranks and {gpus} GPUs; NCCL 2.30 takes several on one with NCCL_MULTI_RANK_GPU_ENABLE=1"
                );
                None
            }
            Some(_) => Some(Self { scenario, world, variables: Vec::new() }),
            None => Self::emulated(scenario, world),
        }
    }

    /// On the emulator; none where there are GPUs.
    pub fn emulated(scenario: &'static str, world: usize) -> Option<Self> {
        if real_gpus().is_some() {
            println!("skipped: for the emulator only");
            return None;
        }
        let job = Self { scenario, world, variables: Vec::new() };
        Some(job.set("EMULATOR_DEVICES", &world.to_string()).set("NCCL_MULTI_RANK_GPU_ENABLE", "0"))
    }

    /// With a variable in the environment.
    pub fn set(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(n, _)| *n != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Runs all processes to their end, each of which must come by itself.
    pub fn run(self) -> Vec<Ended> {
        let folder = Folder::new();
        let mut children: Vec<Child> = (0..self.world).map(|rank| self.start(rank, &folder.0)).collect();
        let readers: Vec<_> = children
            .iter_mut()
            .map(|child| (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap())))
            .collect();
        let begun = Instant::now();
        let mut hung = false;
        while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
            if begun.elapsed() > DEADLINE {
                hung = true;
                children.iter_mut().for_each(|child| _ = child.kill());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended: Vec<Ended> = children
            .iter_mut()
            .zip(readers)
            .map(|(child, (out, err))| Ended {
                well: child.wait().unwrap().success(),
                said: out.join().unwrap() + &err.join().unwrap(),
            })
            .collect();
        let all = || ended.iter().map(|e| e.said.as_str()).collect::<Vec<_>>().join("\n--\n");
        assert!(!hung, "{} ranks of {:?} hang:\n{}", self.world, self.scenario, all());
        ended
    }

    fn start(&self, rank: usize, folder: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args([BODY, "--exact", "--ignored", "--nocapture"])
            .env(SCENARIO, self.scenario)
            .env(RANK, rank.to_string())
            .env(WORLD, self.world.to_string())
            .env(FOLDER, folder)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn read(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// The GPUs of this machine, where there are any and the emulator is not loaded.
fn real_gpus() -> Option<usize> {
    let device = crate::check::device();
    (!device.name().to_lowercase().contains("emulat")).then(|| count().unwrap())
}

/// Where ranks leave their ports.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static MADE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nccl-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One of a job's processes, seen from inside.
pub struct Rank {
    pub scenario: String,
    pub rank: usize,
    pub world: usize,
    folder: PathBuf,
    device: OnceLock<Arc<Device>>,
}

impl Rank {
    /// What the environment says; none if this process was not started by a [`Job`].
    pub fn from_environment() -> Option<Self> {
        let get = |name: &str| std::env::var(name).ok();
        let number = |name: &str| get(name)?.parse().ok();
        Some(Self {
            scenario: get(SCENARIO)?,
            rank: number(RANK)?,
            world: number(WORLD)?,
            folder: get(FOLDER)?.into(),
            device: OnceLock::new(),
        })
    }

    /// This rank's GPU, or the emulator's: of the ops and of what ranks exchange.
    pub fn device(&self) -> Arc<Device> {
        self.device.get_or_init(|| self.open()).clone()
    }

    fn open(&self) -> Arc<Device> {
        if count().is_err() {
            // Without it, what is missing is really missing.
            match std::env::var_os("WITHOUT_NCCL") {
                Some(_) => ["libcuda.so.1", "libcuda.so", "libcublasLt.so.13", "libcublasLt.so"]
                    .into_iter()
                    .for_each(emulator::open),
                None => emulator::load(),
            }
        }
        let ordinal = self.rank % count().unwrap();
        match IMAGES.is_empty() {
            true => Device::open_with(ordinal, &[Image::named("emulated")]).unwrap(),
            false => Device::open(ordinal).unwrap(),
        }
    }

    /// Joins the other ranks.
    pub fn join(&self, patience: Duration) -> kernels::Result<Nccl> {
        let device = self.device();
        Nccl::new(device, Box::new(self.connect()), patience)
    }

    /// Connects to those before it and accepts those after it.
    fn connect(&self) -> Tcp {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (hidden, shown) =
            (self.folder.join(format!("{}.new", self.rank)), self.folder.join(self.rank.to_string()));
        std::fs::write(&hidden, listener.local_addr().unwrap().to_string()).unwrap();
        std::fs::rename(hidden, shown).unwrap();
        let mut peers: Vec<Option<TcpStream>> = (0..self.world).map(|_| None).collect();
        for (r, peer) in peers.iter_mut().enumerate().take(self.rank) {
            let place = self.folder.join(r.to_string());
            while !place.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut stream = TcpStream::connect(std::fs::read_to_string(place).unwrap()).unwrap();
            stream.write_all(&[self.rank as u8]).unwrap();
            *peer = Some(stream);
        }
        for _ in self.rank + 1..self.world {
            let (mut stream, _) = listener.accept().unwrap();
            let mut rank = [0];
            stream.read_exact(&mut rank).unwrap();
            peers[usize::from(rank[0])] = Some(stream);
        }
        Tcp::new(self.rank, peers).unwrap()
    }
}
