//! Connections for data, of each rank with each: it calls those before it and hears those after it.

use super::door::{Door, is_open};
use super::lines::send;
use super::secret::{PROOF, Secret};
use super::{LOOK, PAUSE, Peer, error, left};
use crate::Result;
use crate::dist::Place;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// What a rank says to one before it. What this proves it proves in one meeting, for these two ranks; the one that is called takes
/// the first connection with it and no other.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    rank: usize,
    proof: String,
}

/// What the ranks of one meeting know.
pub struct Key {
    pub secret: Secret,
    /// The meeting's number.
    pub session: String,
}

impl Key {
    /// Proves `what`, of a connection from one rank to another.
    fn with<R>(&self, what: &str, from: usize, to: usize, f: impl FnOnce(&Secret, &[&str]) -> R) -> R {
        f(&self.secret, &[what, &self.session, &from.to_string(), &to.to_string()])
    }

    fn hello(&self, from: usize, to: usize) -> Hello {
        Hello { rank: from, proof: self.with("data", from, to, Secret::proof) }
    }

    fn answer(&self, from: usize, to: usize) -> String {
        self.with("data taken", from, to, Secret::proof)
    }
}

/// A connection to a rank that has not answered yet.
struct Call {
    stream: TcpStream,
    heard: Vec<u8>,
}

/// How a call stands.
enum State {
    Waits(Call),
    Taken(TcpStream),
    /// The other end has no room for it, or is not what it should be.
    Lost(String),
}

impl Call {
    fn new(place: &Place, to: usize, peer: &Peer, key: &Key, end: Instant) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&peer.address, left(end))?;
        send(&stream, &key.hello(place.rank, to))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, heard: Vec::new() })
    }

    /// Takes what has come of the answer, and nothing of what follows it.
    fn look(mut self, own: usize, to: usize, key: &Key) -> State {
        let mut buffer = [0; PROOF];
        match self.stream.read(&mut buffer[..PROOF - self.heard.len()]) {
            Ok(0) => return State::Lost("it closed the connection".to_owned()),
            Ok(read) => self.heard.extend_from_slice(&buffer[..read]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return State::Lost(e.to_string()),
        }
        if self.heard.len() < PROOF {
            return State::Waits(self);
        }
        if self.heard != key.answer(own, to).as_bytes() {
            return State::Lost("what listens there is of another job".to_owned());
        }
        match self.stream.set_nonblocking(false) {
            Ok(()) => State::Taken(self.stream),
            Err(e) => State::Lost(e.to_string()),
        }
    }
}

/// Connects this rank with all others, by their numbers; none at its own.
///
/// # Errors
/// A rank that cannot be reached, or that is not there by `end`.
pub fn connect_all(
    place: &Place,
    peers: &[Peer],
    listener: TcpListener,
    key: &Key,
    end: Instant,
) -> Result<Vec<Option<TcpStream>>> {
    let own = place.rank;
    let cannot_reach = |r: usize, why: String| {
        error(format!(
            "{} cannot reach rank {r} at {}: {why}; do firewalls let the ranks talk to each other?",
            place.name(),
            peers[r].address
        ))
    };
    let dial =
        |r: usize| Call::new(place, r, &peers[r], key, end).map_err(|e| cannot_reach(r, e.to_string()));
    let mut streams: Vec<Option<TcpStream>> = (0..place.world).map(|_| None).collect();
    let mut door = Door::new(listener, false).map_err(|e| error(format!("cannot listen: {e}")))?;
    let mut calls = (0..own).map(|r| Ok((r, dial(r)?, None))).collect::<Result<Vec<_>>>()?;
    loop {
        let mut waiting = Vec::new();
        for (r, call, why) in calls {
            match call.look(own, r, key) {
                State::Taken(stream) => streams[r] = Some(stream),
                State::Waits(call) => waiting.push((r, call, why)),
                State::Lost(why) if Instant::now() < end => {
                    std::thread::sleep(PAUSE);
                    waiting.push((r, dial(r)?, Some(why)));
                }
                State::Lost(why) => return Err(cannot_reach(r, why)),
            }
        }
        calls = waiting;
        for heard in door.hear().map_err(|e| error(format!("cannot accept connections: {e}")))? {
            if let Some((r, stream)) = take(place, key, &heard.line, heard.stream, &streams) {
                streams[r] = Some(stream);
            }
        }
        let Some(missing) = (0..place.world).find(|&r| r != own && streams[r].is_none()) else {
            return Ok(streams);
        };
        if Instant::now() >= end {
            let why = calls.into_iter().next().map(|(r, _, why)| (r, why));
            return Err(match why {
                Some((r, why)) => cannot_reach(r, why.unwrap_or_else(|| "it does not answer".to_owned())),
                None => error(format!(
                    "{} never heard from rank {missing} on {}; do firewalls let the ranks talk to each other?",
                    place.name(),
                    peers[missing].host
                )),
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes the connection of a rank after this one that has not called before, or has lost the connection with which it did.
fn take(
    place: &Place,
    key: &Key,
    line: &[u8],
    mut stream: TcpStream,
    streams: &[Option<TcpStream>],
) -> Option<(usize, TcpStream)> {
    let hello: Hello = serde_json::from_slice(line).ok()?;
    let (from, own) = (hello.rank, place.rank);
    let proven = key.with("data", from, own, |secret, what| secret.proves(&hello.proof, what));
    if !proven || !(own + 1..place.world).contains(&from) || streams[from].as_ref().is_some_and(is_open) {
        return None;
    }
    stream.write_all(key.answer(from, own).as_bytes()).ok()?;
    Some((from, stream))
}
