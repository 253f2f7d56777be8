//! Rank 0's side: it listens for the others.

use super::door::{Door, Heard, is_open};
use super::lines::send;
use super::secret::{Secret, random};
use super::sockets::{at_port_of, listen, listen_beside, resolve};
use super::{Address, Answer, HELLO, Hello, KNOWN, LOOK, Met, Peer, Streams, Who, error};
use crate::dist::{Place, program};
use crate::{Error, Result};
use std::io::BufReader;
use std::net::TcpStream;
use std::time::Instant;

/// Waits for all other ranks and tells them who is where.
pub fn gather(place: &Place, address: Address, secret: &Secret, data: bool, end: Instant) -> Result<Met> {
    let cannot_listen = |e: std::io::Error| error(format!("rank 0 cannot listen: {e}"));
    let (at, one_machine, text) =
        (resolve(&address.text)?, address.is_of_one_machine(), address.text.clone());
    let control = match address.listener {
        Some(listener) => listener,
        None => listen(&address, at).map_err(|e| {
            error(format!(
                "rank 0 cannot listen on port {} of {}: {e}; set MASTER_PORT to a free one",
                at.port(),
                place.host
            ))
        })?,
    };
    let own = control.local_addr().map_err(cannot_listen)?;
    let listener = data.then(|| listen_beside(own, one_machine)).transpose().map_err(cannot_listen)?;
    let mut door = Door::new(control, true).map_err(cannot_listen)?;
    let mut streams: Streams = (0..place.world).map(|_| None).collect();
    let mut peers: Vec<Option<Peer>> = vec![None; place.world];
    peers[0] = Some(Peer { host: place.host.clone(), address: at_port_of(own, listener.as_ref())? });
    while peers.iter().any(Option::is_none) {
        if Instant::now() >= end {
            return Err(refuse(&streams, missing(place, &text, &peers)));
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
    let session = random().map_err(|e| error(format!("the system gives no random numbers: {e}")))?;
    tell(&streams, &peers, &session)?;
    Ok(Met { control: streams, peers, session, listener })
}

/// Which ranks have not come.
fn missing(place: &Place, address: &str, peers: &[Option<Peer>]) -> String {
    let missing: Vec<String> =
        (0..place.world).filter(|&r| peers[r].is_none()).map(|r| r.to_string()).collect();
    format!(
        "waited at {address} for {} ranks and never heard of {}: were they started, and can they reach {}?",
        place.world,
        missing.join(", "),
        place.host
    )
}

/// Tells all ranks who is where.
fn tell(streams: &Streams, peers: &[Peer], session: &str) -> Result<()> {
    for (rank, reader) in streams.iter().enumerate() {
        if let Some(reader) = reader {
            let answer = Answer::Welcome { peers: peers.to_vec(), session: session.to_owned() };
            send(reader.get_ref(), &answer).map_err(|e| {
                error(format!("rank {rank} on {} left while the job was starting: {e}", peers[rank].host))
            })?;
        }
    }
    Ok(())
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
    } else if who.rank == 0 || streams[who.rank].as_ref().is_some_and(|first| is_open(first.get_ref())) {
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
