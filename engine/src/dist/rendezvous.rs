//! How the processes of a job find each other: rank 0 listens at an address that all know, the others tell it who they are,
//! and it tells everyone who is where.
//!
//! Strangers may call at the same sockets. A token, which the processes of one job have in common, keeps them and other jobs
//! apart: each side of a connection proves with it and a number of the other side's that it knows it. The token itself never
//! travels, and what a stranger has heard before proves nothing again. Callers are heard all at once ([`door`]).
//!
//! Where the address leads to this machine only, nothing listens elsewhere.

mod door;
mod lines;
mod mesh;
mod secret;

pub use secret::random;

pub(super) use lines::{receive, send};

use super::{Place, program};
use crate::{Error, Result};
use door::{Challenge, Door, Heard};
use lines::receive_by;
use secret::Secret;
use serde::{Deserialize, Serialize};
use std::io::{BufReader, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at a [`Door`].
const LOOK: Duration = Duration::from_millis(5);
/// For one message of a process that has connected.
const ANSWER: Duration = Duration::from_secs(5);

/// What proofs are of: a process that wants to join, and rank 0's answer.
const HELLO: &str = "hello";
const KNOWN: &str = "known";

/// What a process says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Who {
    /// What [`program`] says.
    version: String,
    rank: usize,
    world: usize,
    host: String,
    /// Where it listens for the other ranks; 0 if it does not.
    port: u16,
}

/// What it says first, once it has its [`Challenge`].
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    /// [`Who`], as the text that is proven.
    who: String,
    /// Its own challenge to rank 0.
    challenge: String,
    /// Of [`HELLO`], both challenges and `who`.
    proof: String,
}

/// What rank 0 answers: that it knows the process, or that it does not; then, to one that it knows, one of the others.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Known {
        /// Of [`KNOWN`] and both challenges.
        proof: String,
    },
    /// Of another job: it may be over soon.
    AnotherJob,
    /// All are there.
    Welcome {
        peers: Vec<Peer>,
        /// A number of this meeting only.
        session: String,
    },
    /// The job cannot start; rank 0 says why.
    Refused,
    /// This rank has joined already.
    Twice,
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

    /// Whether it leads to the machine of whoever uses it, so that all ranks are on one. A name may be of the loopback on its
    /// own machine only, as Debian's /etc/hosts has it.
    pub fn is_of_one_machine(&self) -> bool {
        let host = self.text.rsplit_once(':').map_or(&*self.text, |(host, _)| host);
        host == "localhost" || literal(host).is_some_and(|ip| ip.is_loopback())
    }
}

/// A host that is given as a number.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Who is where, and what connects this process with rank 0 or rank 0 with all.
struct Met {
    control: Streams,
    peers: Vec<Peer>,
    session: String,
    /// Where this process listens for the other ranks, if data was asked for.
    listener: Option<TcpListener>,
}

/// Meets the other ranks. With `data`, also connects each with each. None where rank 0 gives up, and says why.
///
/// # Errors
/// If not all are there within `deadline`: the message says which are missing. An address that is taken or cannot be
/// resolved; a process of another program, or with another number of ranks, or that has joined already.
pub fn meet(
    place: &Place,
    address: Address,
    token: &str,
    data: bool,
    deadline: Duration,
) -> Result<Option<Meeting>> {
    let end = Instant::now() + deadline;
    let secret = Secret::new(token);
    let met = match place.rank {
        0 => Some(gather(place, address, &secret, data, end)?),
        _ => report(place, &address, &secret, data, end)?,
    };
    let Some(Met { control, peers, session, listener }) = met else { return Ok(None) };
    let data = match listener {
        Some(listener) => mesh::connect_all(place, &peers, listener, &mesh::Key { secret, session }, end)?,
        None => Vec::new(),
    };
    Ok(Some(Meeting { hosts: peers.into_iter().map(|p| p.host).collect(), control, data }))
}

fn error(what: String) -> Error {
    Error::Training(what)
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let found = address.to_socket_addrs().ok().and_then(|mut all| {
        let first = all.next()?;
        Some(std::iter::once(first).chain(all).find(SocketAddr::is_ipv4).unwrap_or(first))
    });
    found.ok_or_else(|| error(format!("cannot resolve {address}; set MASTER_ADDR and MASTER_PORT")))
}

type Streams = Vec<Option<BufReader<TcpStream>>>;

/// All interfaces of this machine.
fn everywhere(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Rank 0's socket: at the interface whose number is given; at all where it is a name, which may be of another one elsewhere,
/// or where the number is none of this machine, but of what passes connections on to it.
fn listen(address: &Address, at: SocketAddr) -> std::io::Result<TcpListener> {
    let all = SocketAddr::new(everywhere(at.ip()), at.port());
    if address.is_of_one_machine() {
        return TcpListener::bind(at);
    }
    let number = literal(address.text.rsplit_once(':').map_or("", |(host, _)| host));
    match number.map(|_| TcpListener::bind(at)) {
        Some(Err(e)) if e.kind() == ErrorKind::AddrNotAvailable => TcpListener::bind(all),
        Some(bound) => bound,
        None => TcpListener::bind(all),
    }
}

/// A socket for the other ranks at the interface that `own` is of: the one by which this process and rank 0 reach each other.
fn listen_beside(mut own: SocketAddr, one_machine: bool) -> std::io::Result<TcpListener> {
    if own.ip().is_loopback() && !one_machine {
        // They are on one machine with each other, not with all.
        own.set_ip(everywhere(own.ip()));
    }
    own.set_port(0);
    TcpListener::bind(own)
}

/// Rank 0: waits for all others and tells them who is where.
fn gather(place: &Place, address: Address, secret: &Secret, data: bool, end: Instant) -> Result<Met> {
    let cannot_listen = |e: std::io::Error| error(format!("rank 0 cannot listen: {e}"));
    let at = resolve(&address.text)?;
    let one_machine = address.is_of_one_machine();
    let text = address.text.clone();
    let listener = match address.listener {
        Some(listener) => listener,
        None => listen(&address, at).map_err(|e| {
            error(format!(
                "rank 0 cannot listen on port {} of {}: {e}; set MASTER_PORT to a free one",
                at.port(),
                place.host
            ))
        })?,
    };
    let own = listener.local_addr().map_err(cannot_listen)?;
    let listener_for_data =
        data.then(|| listen_beside(own, one_machine)).transpose().map_err(cannot_listen)?;
    let mut door = Door::new(listener, true).map_err(cannot_listen)?;
    let mut streams: Streams = (0..place.world).map(|_| None).collect();
    let mut peers: Vec<Option<Peer>> = vec![None; place.world];
    peers[0] = Some(Peer { host: place.host.clone(), address: at_port_of(own, listener_for_data.as_ref())? });
    while peers.iter().any(Option::is_none) {
        if Instant::now() >= end {
            let missing: Vec<String> =
                (0..place.world).filter(|&r| peers[r].is_none()).map(|r| r.to_string()).collect();
            let why = format!(
                "waited at {text} for {} ranks and never heard of {}: were they started, and can they reach {}?",
                place.world,
                missing.join(", "),
                place.host
            );
            return Err(refuse(&streams, why));
        }
        let heard = door.hear().map_err(|e| error(format!("rank 0 cannot accept connections: {e}")))?;
        if heard.is_empty() {
            std::thread::sleep(LOOK);
        }
        for caller in heard {
            let mut from = caller.from;
            let joins = welcome(place, secret, caller, &streams).map_err(|why| refuse(&streams, why))?;
            if let Some((who, reader)) = joins {
                from.set_port(who.port);
                peers[who.rank] = Some(Peer { host: who.host, address: from });
                streams[who.rank] = Some(reader);
            }
        }
    }
    let peers: Vec<Peer> = peers.into_iter().flatten().collect();
    let session = random().map_err(no_random)?;
    for (rank, reader) in streams.iter().enumerate() {
        if let Some(reader) = reader {
            let answer = Answer::Welcome { peers: peers.clone(), session: session.clone() };
            send(reader.get_ref(), &answer).map_err(|e| {
                error(format!("rank {rank} on {} left while the job was starting: {e}", peers[rank].host))
            })?;
        }
    }
    Ok(Met { control: streams, peers, session, listener: listener_for_data })
}

fn no_random(e: std::io::Error) -> Error {
    error(format!("the system gives no random numbers: {e}"))
}

/// Where the other ranks find a listener of this process, at an address of it.
fn at_port_of(mut own: SocketAddr, listener: Option<&TcpListener>) -> Result<SocketAddr> {
    let port = listener.map(TcpListener::local_addr).transpose();
    own.set_port(
        port.map_err(|e| error(format!("cannot listen for other ranks: {e}")))?.map_or(0, |at| at.port()),
    );
    Ok(own)
}

/// Tells those who are there that nothing comes of it.
fn refuse(streams: &Streams, why: String) -> Error {
    for reader in streams.iter().flatten() {
        let _ = send(reader.get_ref(), &Answer::Refused);
    }
    error(why)
}

/// Answers a process that has said hello. None if it is not one of this job or has joined before, which it is told; or why it
/// cannot be one.
fn welcome(
    place: &Place,
    secret: &Secret,
    caller: Heard,
    streams: &Streams,
) -> std::result::Result<Option<(Who, BufReader<TcpStream>)>, String> {
    let Heard { stream, from, challenge, line } = caller;
    let Ok(hello) = serde_json::from_slice::<Hello>(&line) else {
        return Ok(None); // whoever it was, it did not speak our language
    };
    let Hello { who, challenge: theirs, proof } = &hello;
    if !secret.proves(proof, &[HELLO, &challenge, theirs, who]) {
        let _ = send(&stream, &Answer::AnotherJob);
        return Ok(None);
    }
    let known = Answer::Known { proof: secret.proof(&[KNOWN, &challenge, theirs]) };
    let (Ok(who), Ok(())) = (serde_json::from_str::<Who>(who), send(&stream, &known)) else {
        return Ok(None);
    };
    let version = program();
    let name = format!("rank {} on {}", who.rank, who.host);
    let why = if who.version != version {
        format!(
            "{name} runs program {}, rank 0 program {version}; use the same program on all machines",
            who.version
        )
    } else if who.world != place.world {
        format!("{name} is one of {} ranks, rank 0 of {}", who.world, place.world)
    } else if who.rank >= place.world {
        format!("{name} is beyond the {} ranks", place.world)
    } else if who.rank == 0 || streams[who.rank].as_ref().is_some_and(|first| door::is_open(first.get_ref()))
    {
        tracing::warn!("{name} is there twice: the second one, at {from}, is refused");
        let _ = send(&stream, &Answer::Twice);
        return Ok(None);
    } else {
        // Where it has called before, it has lost that connection.
        return Ok(Some((who, BufReader::new(stream))));
    };
    let _ = send(&stream, &Answer::Refused);
    Err(why)
}

/// How a call of rank 0 ended.
enum Called {
    Met(Met),
    AnotherJob,
    Refused,
    Twice,
}

/// Another rank: tells rank 0 where it is and hears where the others are.
fn report(
    place: &Place,
    address: &Address,
    secret: &Secret,
    data: bool,
    end: Instant,
) -> Result<Option<Met>> {
    let mut why = "nothing answers there".to_owned();
    while Instant::now() < end {
        match call(place, address, secret, data, end) {
            Ok(Called::Met(met)) => return Ok(Some(met)),
            Ok(Called::Refused) => return Ok(None),
            Ok(Called::Twice) => {
                return Err(error(format!("{} is there twice; was the job started twice?", place.name())));
            }
            Ok(Called::AnotherJob) => why = "another job meets there".to_owned(),
            Err(e) => why = e,
        }
        std::thread::sleep(PAUSE);
    }
    Err(error(format!(
        "{} cannot reach rank 0 at {}: {why}; check MASTER_ADDR and MASTER_PORT",
        place.name(),
        address.text
    )))
}

/// One call of rank 0, or why it failed.
fn call(
    place: &Place,
    address: &Address,
    secret: &Secret,
    data: bool,
    end: Instant,
) -> std::result::Result<Called, String> {
    let text = |e: std::io::Error| e.to_string();
    let at = resolve(&address.text).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect_timeout(&at, left(end).min(ANSWER)).map_err(text)?;
    let own = stream.local_addr().map_err(text)?;
    let listener = data.then(|| listen_beside(own, address.is_of_one_machine())).transpose().map_err(text)?;
    let who = Who {
        version: program().to_owned(),
        rank: place.rank,
        world: place.world,
        host: place.host.clone(),
        port: at_port_of(own, listener.as_ref()).map_err(|e| e.to_string())?.port(),
    };
    let mut reader = BufReader::new(stream);
    if !introduce(&mut reader, secret, &who)? {
        return Ok(Called::AnotherJob);
    }
    // Rank 0 answers once all are there, or when it gives up.
    match receive_by::<Answer>(&mut reader, end + ANSWER) {
        Ok(Some(Answer::Welcome { mut peers, session })) if peers.len() == place.world => {
            let reached = reader.get_ref().peer_addr().map_err(text)?;
            for (rank, peer) in peers.iter_mut().enumerate() {
                // Rank 0 is where this process has reached it, and so is one that rank 0 sees on its own machine.
                if rank == 0 || peer.address.ip().is_loopback() {
                    let port = peer.address.port();
                    peer.address = reached;
                    peer.address.set_port(port);
                }
            }
            let mut control: Streams = (0..place.world).map(|_| None).collect();
            control[0] = Some(reader);
            Ok(Called::Met(Met { control, peers, session, listener }))
        }
        Ok(Some(Answer::Refused)) => Ok(Called::Refused),
        Ok(Some(Answer::Twice)) => Ok(Called::Twice),
        Ok(Some(_)) => Err("rank 0 answers nonsense".to_owned()),
        Ok(None) => Err("rank 0 closed the connection".to_owned()),
        Err(e) if e.kind() == ErrorKind::TimedOut => Err("rank 0 still waits for other ranks".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Says hello to rank 0, and whether each knows the other.
fn introduce(
    reader: &mut BufReader<TcpStream>,
    secret: &Secret,
    who: &Who,
) -> std::result::Result<bool, String> {
    let until = Instant::now() + ANSWER;
    let silent = |e: std::io::Error| match e.kind() {
        ErrorKind::TimedOut => "what listens there says nothing".to_owned(),
        ErrorKind::InvalidData => "what listens there is not rank 0".to_owned(),
        _ => e.to_string(),
    };
    let closed = || "rank 0 closed the connection".to_owned();
    let Challenge { challenge } = receive_by(reader, until).map_err(silent)?.ok_or_else(closed)?;
    let own = random().map_err(|e| e.to_string())?;
    let who = serde_json::to_string(who).map_err(|e| e.to_string())?;
    let proof = secret.proof(&[HELLO, &challenge, &own, &who]);
    let hello = Hello { who, challenge: own, proof };
    send(reader.get_ref(), &hello).map_err(|e| e.to_string())?;
    match receive_by(reader, until).map_err(silent)?.ok_or_else(closed)? {
        Answer::Known { proof } => Ok(secret.proves(&proof, &[KNOWN, &challenge, &hello.challenge])),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests;
