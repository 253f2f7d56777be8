//! The side of any other rank: it calls rank 0.

use super::door::Challenge;
use super::lines::{receive_by, send};
use super::secret::{Secret, random};
use super::sockets::{at_port_of, listen_beside, resolve};
use super::{ANSWER, Address, Answer, HELLO, Hello, KNOWN, Met, PAUSE, Streams, Who, error, left};
use crate::Result;
use crate::dist::{Place, program};
use std::io::{BufReader, ErrorKind};
use std::net::TcpStream;
use std::time::Instant;

/// How a call of rank 0 ended.
pub enum Called {
    Met(Met),
    AnotherJob,
    Refused,
    Twice,
}

/// Tells rank 0 where this process is and hears where the others are. None where rank 0 gives up, and says why.
pub fn report(
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
pub fn call(
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
