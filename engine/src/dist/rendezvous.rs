//! How the processes of a job find each other: rank 0 listens at an address that all know, the others tell it who they are,
//! and it tells everyone who is where. A token keeps two jobs on one address apart.

use super::{Place, program};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// For one message of a process that has connected.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest message.
const LONGEST: u64 = 1 << 20;

/// What a process says first.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    token: String,
    /// What [`program`] says.
    version: String,
    rank: usize,
    world: usize,
    host: String,
    /// Where it listens for the other ranks.
    port: u16,
}

/// What rank 0 answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Welcome {
        peers: Vec<Peer>,
    },
    /// Of another job: it may be over soon.
    AnotherJob,
    /// The job cannot start; rank 0 says why.
    Refused,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Peer {
    host: String,
    address: SocketAddr,
}

/// All processes, connected.
pub struct Meeting {
    /// Name of each rank's machine.
    pub hosts: Vec<String>,
    /// For control: on rank 0 to every other rank, else to rank 0 only.
    pub(super) control: Vec<Option<BufReader<TcpStream>>>,
    /// For data, to every other rank; none at the own place. Empty if none were asked for.
    pub data: Vec<Option<TcpStream>>,
}

/// Where the ranks meet.
#[derive(Debug)]
pub struct Address {
    /// `host:port` of rank 0.
    pub text: String,
    /// Rank 0's, where it listens there already.
    pub listener: Option<TcpListener>,
}

impl Address {
    /// An address where rank 0 has yet to listen.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), listener: None }
    }
}

/// Meets the other ranks. With `data`, also connects each with each. None where rank 0 gives up, and says why.
///
/// # Errors
/// If not all are there within `deadline`: the message says which are missing. An address that is taken or cannot be
/// resolved; a process of another program, or with another number of ranks.
pub fn meet(
    place: &Place,
    address: Address,
    token: &str,
    data: bool,
    deadline: Duration,
) -> Result<Option<Meeting>> {
    let end = Instant::now() + deadline;
    let failed =
        |what: &str, e: &std::io::Error| Error::Training(format!("{}: cannot {what}: {e}", place.name()));
    let listener = TcpListener::bind(("0.0.0.0", 0)).map_err(|e| failed("listen for other ranks", &e))?;
    let port = listener.local_addr().map_err(|e| failed("listen for other ranks", &e))?.port();
    let met = match place.rank {
        0 => Some(gather(place, address, token, port, end)?),
        _ => report(place, &address.text, token, port, end)?,
    };
    let Some((control, peers)) = met else { return Ok(None) };
    let data = if data { connect_all(place, &peers, &listener, token, end)? } else { Vec::new() };
    Ok(Some(Meeting { hosts: peers.into_iter().map(|p| p.host).collect(), control, data }))
}

fn error(what: String) -> Error {
    Error::Training(what)
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Sends one line.
pub(super) fn send<T: Serialize>(mut stream: &TcpStream, message: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives one line; none at the end of the connection.
pub(super) fn receive<T: for<'de> Deserialize<'de>>(
    reader: &mut BufReader<TcpStream>,
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    if reader.take(LONGEST).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let found = address.to_socket_addrs().ok().and_then(|mut all| {
        let first = all.next()?;
        Some(std::iter::once(first).chain(all).find(SocketAddr::is_ipv4).unwrap_or(first))
    });
    found.ok_or_else(|| error(format!("cannot resolve {address}; set MASTER_ADDR and MASTER_PORT")))
}

type Streams = Vec<Option<BufReader<TcpStream>>>;

/// Rank 0: waits for all others and tells them who is where.
fn gather(
    place: &Place,
    address: Address,
    token: &str,
    data_port: u16,
    end: Instant,
) -> Result<(Streams, Vec<Peer>)> {
    let Address { text: address, listener } = address;
    let at = resolve(&address)?;
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind(("0.0.0.0", at.port())).map_err(|e| {
            error(format!(
                "rank 0 cannot listen on port {} of {}: {e}; set MASTER_PORT to a free one",
                at.port(),
                place.host
            ))
        })?,
    };
    listener.set_nonblocking(true).map_err(|e| error(format!("rank 0 cannot listen: {e}")))?;
    let mut streams: Streams = (0..place.world).map(|_| None).collect();
    let mut peers: Vec<Option<Peer>> = vec![None; place.world];
    peers[0] = Some(Peer { host: place.host.clone(), address: SocketAddr::new(at.ip(), data_port) });
    while peers.iter().any(Option::is_none) {
        if Instant::now() >= end {
            let missing: Vec<String> =
                (0..place.world).filter(|&r| peers[r].is_none()).map(|r| r.to_string()).collect();
            let why = format!(
                "waited at {address} for {} ranks and never heard of {}: were they started, and can they reach {}?",
                place.world,
                missing.join(", "),
                place.host
            );
            return Err(refuse(&streams, why));
        }
        match listener.accept() {
            Ok((stream, from)) => {
                let heard = welcome(place, token, stream, &peers).map_err(|why| refuse(&streams, why))?;
                if let Some((hello, reader)) = heard {
                    let address = SocketAddr::new(from.ip(), hello.port);
                    peers[hello.rank] = Some(Peer { host: hello.host, address });
                    streams[hello.rank] = Some(reader);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE / 10),
            Err(e) => return Err(error(format!("rank 0 cannot accept connections: {e}"))),
        }
    }
    let peers: Vec<Peer> = peers.into_iter().flatten().collect();
    for (rank, reader) in streams.iter().enumerate() {
        if let Some(reader) = reader {
            let answer = Answer::Welcome { peers: peers.clone() };
            send(reader.get_ref(), &answer).map_err(|e| {
                error(format!("rank {rank} on {} left while the job was starting: {e}", peers[rank].host))
            })?;
        }
    }
    Ok((streams, peers))
}

/// Tells those who are there that nothing comes of it.
fn refuse(streams: &Streams, why: String) -> Error {
    for reader in streams.iter().flatten() {
        let _ = send(reader.get_ref(), &Answer::Refused);
    }
    error(why)
}

/// Hears a process that has connected. None if it is not one of this job, which it is told; or why it cannot be one.
fn welcome(
    place: &Place,
    token: &str,
    stream: TcpStream,
    peers: &[Option<Peer>],
) -> std::result::Result<Option<(Hello, BufReader<TcpStream>)>, String> {
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(ANSWER)));
    let mut reader = BufReader::new(stream);
    let Ok(Some(hello)) = ready.and_then(|()| receive::<Hello>(&mut reader)) else {
        return Ok(None); // whoever it was, it did not speak our language
    };
    if hello.token != token {
        let _ = send(reader.get_ref(), &Answer::AnotherJob);
        return Ok(None);
    }
    let version = program();
    let name = format!("rank {} on {}", hello.rank, hello.host);
    let why = if hello.version != version {
        format!(
            "{name} runs program {}, rank 0 program {version}; use the same program on all machines",
            hello.version
        )
    } else if hello.world != place.world {
        format!("{name} is one of {} ranks, rank 0 of {}", hello.world, place.world)
    } else if hello.rank >= place.world {
        format!("{name} is beyond the {} ranks", place.world)
    } else if peers[hello.rank].is_some() {
        format!("{name} is there twice; was the job started twice?")
    } else {
        return Ok(Some((hello, reader)));
    };
    let _ = send(reader.get_ref(), &Answer::Refused);
    Err(why)
}

/// Another rank: tells rank 0 where it is and hears where the others are.
fn report(
    place: &Place,
    address: &str,
    token: &str,
    port: u16,
    end: Instant,
) -> Result<Option<(Streams, Vec<Peer>)>> {
    let hello = Hello {
        token: token.to_owned(),
        version: program().to_owned(),
        rank: place.rank,
        world: place.world,
        host: place.host.clone(),
        port,
    };
    let mut why = "nothing answers there".to_owned();
    while Instant::now() < end {
        let tried = resolve(address)
            .map_err(|e| e.to_string())
            .and_then(|at| TcpStream::connect_timeout(&at, left(end).min(ANSWER)).map_err(|e| e.to_string()));
        match tried.and_then(|stream| introduce(stream, &hello, end)) {
            Ok((reader, Answer::Welcome { peers })) if peers.len() == place.world => {
                let mut streams: Streams = (0..place.world).map(|_| None).collect();
                streams[0] = Some(reader);
                return Ok(Some((streams, peers)));
            }
            Ok((_, Answer::Refused)) => return Ok(None),
            Ok(_) => why = "another job meets there".to_owned(),
            Err(e) => why = e,
        }
        std::thread::sleep(PAUSE);
    }
    Err(error(format!(
        "{} cannot reach rank 0 at {address}: {why}; check MASTER_ADDR and MASTER_PORT",
        place.name()
    )))
}

fn introduce(
    stream: TcpStream,
    hello: &Hello,
    end: Instant,
) -> std::result::Result<(BufReader<TcpStream>, Answer), String> {
    // Rank 0 answers once all are there, or when it gives up.
    stream.set_read_timeout(Some(left(end) + ANSWER)).map_err(|e| e.to_string())?;
    send(&stream, hello).map_err(|e| e.to_string())?;
    let mut reader = BufReader::new(stream);
    match receive::<Answer>(&mut reader) {
        Ok(Some(answer)) => Ok((reader, answer)),
        Ok(None) => Err("rank 0 closed the connection".to_owned()),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err("rank 0 still waits for other ranks".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Every rank connects to those before it and accepts those after it.
fn connect_all(
    place: &Place,
    peers: &[Peer],
    listener: &TcpListener,
    token: &str,
    end: Instant,
) -> Result<Vec<Option<TcpStream>>> {
    let key = xxhash_rust::xxh3::xxh3_64(token.as_bytes()).to_be_bytes();
    let mut streams: Vec<Option<TcpStream>> = (0..place.world).map(|_| None).collect();
    let to = |r: usize, e: &std::io::Error| {
        error(format!(
            "{} cannot reach rank {r} at {}: {e}; do firewalls let the ranks talk to each other?",
            place.name(),
            peers[r].address
        ))
    };
    for (r, peer) in peers.iter().enumerate().take(place.rank) {
        // An address that rank 0 saw as its own is the one by which we reached it.
        let address = if peer.address.ip().is_unspecified() {
            SocketAddr::new(IpAddr::from([127, 0, 0, 1]), peer.address.port())
        } else {
            peer.address
        };
        let mut stream = TcpStream::connect_timeout(&address, left(end)).map_err(|e| to(r, &e))?;
        let mut hello = key.to_vec();
        hello.extend((place.rank as u32).to_be_bytes());
        stream.write_all(&hello).map_err(|e| to(r, &e))?;
        streams[r] = Some(stream);
    }
    listener.set_nonblocking(true).map_err(|e| error(format!("cannot listen: {e}")))?;
    while let Some(missing) = (place.rank + 1..place.world).find(|&r| streams[r].is_none()) {
        if Instant::now() >= end {
            return Err(error(format!(
                "{} never heard from rank {missing} on {}; do firewalls let the ranks talk to each other?",
                place.name(),
                peers[missing].host
            )));
        }
        match listener.accept() {
            Ok((mut stream, _)) => {
                let mut hello = [0; 12];
                let ready =
                    stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(ANSWER)));
                let heard = ready.and_then(|()| stream.read_exact(&mut hello));
                let rank = u32::from_be_bytes([hello[8], hello[9], hello[10], hello[11]]) as usize;
                if heard.is_ok() && hello[..8] == key && (place.rank + 1..place.world).contains(&rank) {
                    streams[rank] = Some(stream);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE / 20),
            Err(e) => return Err(error(format!("cannot accept connections: {e}"))),
        }
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rank: usize, world: usize) -> Place {
        Place { rank, world, local_rank: rank, local_world: world, host: format!("h{rank}") }
    }

    fn meet_all(places: Vec<(Place, &str)>, seconds: u64) -> Vec<Result<Option<Meeting>>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let text = listener.local_addr().unwrap().to_string();
        // Of the first rank 0; closed where there is none.
        let mut listener = places.iter().any(|(place, _)| place.rank == 0).then_some(listener);
        std::thread::scope(|scope| {
            let deadline = Duration::from_secs(seconds);
            let mut start = |(place, token): (Place, _)| {
                let listener = if place.rank == 0 { listener.take() } else { None };
                let address = Address { text: text.clone(), listener };
                scope.spawn(move || meet(&place, address, token, true, deadline))
            };
            let threads: Vec<_> = places.into_iter().map(&mut start).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_are_connected_with_all() {
        // The last comes first.
        let meetings = meet_all((0..4).rev().map(|r| (place(r, 4), "t")).collect(), 20);
        let mut meetings: Vec<Meeting> = meetings.into_iter().map(|m| m.unwrap().unwrap()).rev().collect();
        for (a, meeting) in meetings.iter().enumerate() {
            assert_eq!(meeting.hosts, ["h0", "h1", "h2", "h3"]);
            for b in 0..4 {
                assert_eq!(meeting.data[b].is_some(), a != b);
                assert_eq!(meeting.control[b].is_some(), a != b && (a == 0 || b == 0));
            }
        }
        let mut to = meetings[1].data[3].take().unwrap();
        to.write_all(b"from 1").unwrap();
        let mut got = [0; 6];
        meetings[3].data[1].as_mut().unwrap().read_exact(&mut got).unwrap();
        assert_eq!(&got, b"from 1");
    }

    #[test]
    fn missing_ranks_are_named() {
        let errors = meet_all(vec![(place(0, 4), "t"), (place(2, 4), "t")], 1);
        let said = errors[0].as_ref().err().unwrap().to_string();
        assert!(said.contains("never heard of 1, 3"), "{said}");
        // One message is enough.
        assert!(matches!(errors[1], Ok(None)));
        let alone = meet_all(vec![(place(2, 4), "t")], 1);
        let said = alone[0].as_ref().err().unwrap().to_string();
        assert!(said.contains("rank 2 on h2 cannot reach rank 0") && said.contains("MASTER_ADDR"), "{said}");
    }

    #[test]
    fn other_jobs_other_worlds_and_doubles_are_told_apart() {
        let results = meet_all(vec![(place(0, 2), "a"), (place(1, 2), "a"), (place(1, 2), "b")], 2);
        assert!(matches!(results[..2], [Ok(Some(_)), Ok(Some(_))]));
        assert!(results[2].as_ref().err().unwrap().to_string().contains("cannot reach rank 0"));

        let results = meet_all(vec![(place(0, 2), "a"), (place(1, 3), "a")], 2);
        let said = results[0].as_ref().err().unwrap().to_string();
        assert!(said.contains("rank 1 on h1 is one of 3 ranks, rank 0 of 2"), "{said}");
        assert!(matches!(results[1], Ok(None)));
    }
}
