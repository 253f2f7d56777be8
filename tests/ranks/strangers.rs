//! Who else can reach a job while it starts: where its sockets listen, what keeps strangers out, and that they delay nothing.

use super::job::{Job, SOON, errors, one_error, send};
use super::refusals::{Rank, free_port};
use super::{model, place, train};
use crate::cli::{Ran, Workplace};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where a process listens for connections over IPv4, and whether it does so over IPv6.
fn listening(pid: u32) -> (Vec<SocketAddr>, bool) {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = files.filter_map(|file| Some(fs::read_link(file.path()).ok()?.to_str()?.to_owned()));
    let own: Vec<String> = links.collect();
    let table = |name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        let sockets = text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect());
        // 0A is LISTEN.
        let ours =
            |fields: &Vec<String>| fields[3] == "0A" && own.contains(&format!("socket:[{}]", fields[9]));
        sockets.filter(ours).map(|fields| fields[1].clone()).collect::<Vec<String>>()
    };
    let address = |text: &String| {
        let (ip, port) = text.split_once(':').unwrap();
        let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
        SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap()))
    };
    (table("tcp").iter().map(address).collect(), !table("tcp6").is_empty())
}

/// Waits until a process listens at so many addresses.
#[track_caller]
fn wait_to_listen(pid: u32, count: usize) -> Vec<SocketAddr> {
    let begun = Instant::now();
    loop {
        let (found, over_6) = listening(pid);
        assert!(!over_6);
        if found.len() == count {
            return found;
        }
        assert!(begun.elapsed() < SOON, "listens at {found:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All that these say and how they end.
fn ends(children: Vec<Child>) -> Vec<Ran> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ended = |child: Child| {
        let output = child.wait_with_output().unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    children.into_iter().map(ended).collect()
}

/// One of so many ranks, which a starter puts where `command` says. Its run is `run`.
fn rank(place: &Workplace, run: &str, number: usize, world: usize, port: u16) -> Command {
    let mut command = Rank::new(place).command(&place.path("ranks.toml"), number, world, port);
    command.args(["--run", run]);
    command
}

/// One stranger of each kind at an address. Those that are returned stay connected. Where a rank waits for others before it
/// takes connections, the system keeps about a hundred for it.
fn strangers(at: SocketAddr) -> Vec<TcpStream> {
    let words: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\nHost: node1\r\n\r\n",
        b"{\"who\":\"",
        b"{\"who\":\"{}\",\"challenge\":\"00\",\"proof\":\"00\"}\n",
        b"{\"rank\":1,\"proof\":\"00\"}\n",
        &[0xff; 9000],
    ];
    let call = |words: &[u8]| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_millis(10)).ok()?;
        stream.write_all(words).ok()?;
        Some(stream)
    };
    // This one leaves at once.
    drop(call(b""));
    words.into_iter().filter_map(call).collect()
}

#[test]
fn strangers_at_every_socket_delay_and_change_nothing() {
    let place = place();
    train(&place, "alone", "--processes 3").done();
    let port = free_port();
    let start = |number| rank(&place, "disturbed", number, 3, port).spawn().unwrap();
    let mut ranks = vec![start(0)];
    let mut sockets = wait_to_listen(ranks[0].id(), 2);
    ranks.push(start(1));
    sockets.extend(wait_to_listen(ranks[1].id(), 1));
    assert!(sockets.iter().all(|at| at.ip().is_loopback()), "{sockets:?}");
    // The first waves are more than are heard at once, and stay.
    let waves = sockets.iter().cycle().take(25 * sockets.len());
    let silent: Vec<TcpStream> = waves.flat_map(|at| strangers(*at)).collect();
    assert!(silent.len() > 200, "{}", silent.len());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                sockets.iter().for_each(|at| drop(strangers(*at)));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let begun = Instant::now();
        ranks.push(start(2));
        let ended = ends(ranks);
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ran| _ = ran.done());
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    });
    drop(silent);
    assert!(model(&place, "alone") == model(&place, "disturbed"));
}

#[test]
fn workers_of_one_machine_listen_there_only_with_a_token_that_nobody_can_guess() {
    let place = place();
    train(&place, "alone", "--processes 2").done();
    let mut tokens = Vec::new();
    // A worker that is stopped before it has met the other keeps that one waiting; it may come too late.
    let seen = (0..50).any(|attempt| {
        let run = format!("run{attempt}");
        let job = Job::start(&place, &run, "--processes 2");
        job.wait_for_workers(2);
        let workers = job.workers();
        send("STOP", workers[1]);
        tokens.push(token(workers[0]));
        let begun = Instant::now();
        let mut sockets = Vec::new();
        while sockets.len() < 2 && begun.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_millis(2));
            sockets = listening(workers[0]).0;
        }
        let others = [job.pid(), workers[1]].map(|pid| listening(pid).0).concat();
        sockets.extend(others);
        assert!(sockets.iter().all(|at| at.ip().is_loopback()), "{sockets:?}");
        send("CONT", workers[1]);
        let (code, said) = job.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(model(&place, "alone") == model(&place, &run));
        sockets.len() >= 2 && tokens.len() >= 2
    });
    assert!(seen, "no worker was seen before it had met the other");
    assert!(tokens.iter().all(|token| token.len() == 32 && token.chars().all(|c| c.is_ascii_hexdigit())));
    tokens.sort_unstable();
    let drawn = tokens.len();
    tokens.dedup();
    assert_eq!(tokens.len(), drawn);
}

/// A worker's token, which nobody else reads: it stands in the worker's environment, not on its command line.
fn token(worker: u32) -> String {
    let read = |name: &str| {
        String::from_utf8_lossy(&fs::read(format!("/proc/{worker}/{name}")).unwrap()).into_owned()
    };
    let environment = read("environ");
    let token = environment.split('\0').find_map(|variable| variable.strip_prefix("LAUNCHER_TOKEN="));
    let token = token.unwrap_or_else(|| panic!("{environment}")).to_owned();
    assert!(!read("cmdline").contains(&token));
    token
}

/// An address of this machine that others may reach; none if it has no network.
fn outer_address() -> Option<SocketAddr> {
    // Nothing is sent to this address, which is nobody's.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("203.0.113.1:9").ok()?;
    socket.local_addr().ok().filter(|own| !own.ip().is_loopback())
}

/// As on two machines: no variable says how many ranks are here.
#[test]
fn ranks_of_several_machines_listen_where_they_meet_and_are_told_of_a_token_that_can_be_guessed() {
    let Some(outer) = outer_address() else {
        eprintln!("skipped: no network");
        return;
    };
    let place = place();
    train(&place, "own", "--processes 2").done();
    for (run, token, told) in [("guessable", "", true), ("given", "0123456789abcdef", false)] {
        let port = free_port();
        let start = |number| {
            let mut command = rank(&place, run, number, 2, port);
            command.env_remove("LOCAL_RANK").env_remove("LOCAL_WORLD_SIZE");
            command.env("MASTER_ADDR", outer.ip().to_string()).env("BERT_JOB_TOKEN", token).spawn().unwrap()
        };
        let first = start(0);
        let sockets = wait_to_listen(first.id(), 2);
        assert!(sockets.iter().all(|at| at.ip() == outer.ip()), "{sockets:?}");
        assert_eq!(sockets.iter().filter(|at| at.port() == port).count(), 1, "{sockets:?}");
        let ran = ends(vec![first, start(1)]);
        let times = |ran: &Ran| ran.stderr.matches("set BERT_JOB_TOKEN for all of them").count();
        assert_eq!([times(&ran[0]), times(&ran[1])], [usize::from(told), 0], "{}", ran[0].stderr);
        ran.into_iter().for_each(|ran| _ = ran.done());
        assert!(model(&place, "own") == model(&place, run));
    }
}

#[test]
fn a_rank_with_another_token_stays_out() {
    let place = place();
    let port = free_port();
    let start = |number, token| {
        let mut command = rank(&place, "run", number, 2, port);
        command.args(["--set", "ranks.start_seconds=2"]).env("BERT_JOB_TOKEN", token).spawn().unwrap()
    };
    let ran = ends(vec![start(0, "0123456789abcdef"), start(1, "0123456789abcdeF")]);
    assert!(one_error(&ran[0].stderr).contains("never heard of 1"), "{}", ran[0].stderr);
    assert!(one_error(&ran[1].stderr).contains("another job meets there"), "{}", ran[1].stderr);
    assert!(!place.path("run").exists());
    let said = ends(vec![start(0, "secret")]).remove(0).failed();
    assert!(said.contains("BERT_JOB_TOKEN has 6 bytes") && said.contains("openssl rand -hex 16"), "{said}");
}

/// With all variables that torchrun sets, and its store at MASTER_PORT.
#[test]
fn what_torchrun_starts_meets_beside_torchruns_own_store() {
    let place = place();
    train(&place, "own", "--processes 2").done();
    // The next one is for rank 0.
    let port = std::iter::repeat_with(free_port).find(|port| free_port() == port + 1).unwrap();
    let store = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let start = |number: usize| {
        let mut command = rank(&place, "torchrun", number, 2, port);
        command.env("MASTER_ADDR", host.trim()).env("ROLE_RANK", number.to_string());
        for (name, value) in [
            ("GROUP_RANK", "0"),
            ("ROLE_NAME", "default"),
            ("GROUP_WORLD_SIZE", "1"),
            ("ROLE_WORLD_SIZE", "2"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("TORCHELASTIC_MAX_RESTARTS", "0"),
            ("TORCHELASTIC_RUN_ID", "none"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
            ("OMP_NUM_THREADS", "1"),
        ] {
            command.env(name, value);
        }
        command.spawn().unwrap()
    };
    let first = start(0);
    let sockets = wait_to_listen(first.id(), 2);
    // All are on one machine, whatever its name.
    assert!(sockets.iter().all(|at| at.ip().is_loopback()), "{sockets:?}");
    assert!(sockets.iter().any(|at| at.port() == port + 1), "{sockets:?}");
    for ran in ends(vec![first, start(1)]) {
        assert!(errors(&ran.stderr).is_empty() && !ran.stderr.contains("BERT_JOB_TOKEN"), "{}", ran.stderr);
        ran.done();
    }
    drop(store);
    assert!(model(&place, "own") == model(&place, "torchrun"));
}
