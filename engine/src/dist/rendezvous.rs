//! How the processes of a job find each other: rank 0 listens at an address that all know, the others tell it who they are,
//! and it tells everyone who is where.
//!
//! Strangers may call at the same sockets. A token, which the processes of one job have in common, keeps them and other jobs
//! apart: each side of a connection proves with it and a number of the other side's that it knows it. The token itself never
//! travels, and what a stranger has heard before proves nothing again. Callers are heard all at once ([`door`]).
//!
//! Where the address leads to this machine only, nothing listens elsewhere.

mod door;
mod first;
mod lines;
mod mesh;
mod other;
mod secret;
mod sockets;

pub use secret::random;

pub(super) use lines::{receive, send};

use super::Place;
use crate::{Error, Result};
use secret::Secret;
use serde::{Deserialize, Serialize};
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at a [`door::Door`].
const LOOK: Duration = Duration::from_millis(5);
/// For one message of a process that has connected.
const ANSWER: Duration = Duration::from_secs(5);

/// What proofs are of: a process that wants to join, and rank 0's answer.
const HELLO: &str = "hello";
const KNOWN: &str = "known";

/// What a process says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Who {
    /// What [`super::program`] says.
    version: String,
    rank: usize,
    world: usize,
    host: String,
    /// Where it listens for the other ranks; 0 if it does not.
    port: u16,
}

/// What it says first, once it has its [`door::Challenge`].
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
        0 => Some(first::gather(place, address, &secret, data, end)?),
        _ => other::report(place, &address, &secret, data, end)?,
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

type Streams = Vec<Option<BufReader<TcpStream>>>;

#[cfg(test)]
mod tests;
