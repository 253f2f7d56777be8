//! A listening socket, at which strangers may call as well as the ranks of the job. All callers are heard at once, so that
//! one that says nothing, or too much, keeps nobody waiting.

use super::lines::send;
use super::{ANSWER, secret};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

/// Most callers that are heard at once. The one that has been silent longest leaves when another comes: a rank speaks at once,
/// and calls again if it could not.
const MOST: usize = 128;
/// Longest first line of a caller, in bytes.
const LONGEST: usize = 4096;

/// What is said to a caller first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Challenge {
    /// A number for this connection only: what proves something with it proves nothing in another one.
    pub challenge: String,
}

/// A connection whose first line is not complete.
struct Caller {
    stream: TcpStream,
    from: SocketAddr,
    challenge: String,
    line: Vec<u8>,
    until: Instant,
}

/// A connection with its first line.
pub struct Heard {
    pub stream: TcpStream,
    pub from: SocketAddr,
    /// What was said to it; nothing if the door gives no challenge.
    pub challenge: String,
    pub line: Vec<u8>,
}

/// See the module.
pub struct Door {
    listener: TcpListener,
    challenges: bool,
    waiting: VecDeque<Caller>,
}

impl Door {
    /// At a listening socket. With `challenges` every caller is given a number of its own first.
    ///
    /// # Errors
    /// If the socket cannot be set up.
    pub fn new(listener: TcpListener, challenges: bool) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, challenges, waiting: VecDeque::new() })
    }

    /// The callers that have said a line since. Waits for none.
    ///
    /// # Errors
    /// If the system takes no connections any more.
    pub fn hear(&mut self) -> std::io::Result<Vec<Heard>> {
        let mut heard = Vec::new();
        for caller in std::mem::take(&mut self.waiting) {
            self.listen_to(caller, &mut heard);
        }
        for _ in 0..MOST {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    if let Some(caller) = self.let_in(stream, from)? {
                        self.listen_to(caller, &mut heard);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // What is wrong with a connection that has gone before it was taken says nothing of the next one.
                Err(e) if of_the_connection(e.kind()) => {}
                // The system has no file left: strangers give theirs back.
                Err(_) if self.waiting.pop_front().is_some() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(heard)
    }

    /// None where the caller has gone.
    fn let_in(&self, stream: TcpStream, from: SocketAddr) -> std::io::Result<Option<Caller>> {
        let challenge = if self.challenges { secret::random()? } else { String::new() };
        // A connection takes a first message of this length at once.
        let greeted = stream.set_nonblocking(true).and_then(|()| match self.challenges {
            true => send(&stream, &Challenge { challenge: challenge.clone() }),
            false => Ok(()),
        });
        let until = Instant::now() + ANSWER;
        Ok(greeted.is_ok().then_some(Caller { stream, from, challenge, line: Vec::new(), until }))
    }

    /// Takes what a caller has said. It goes if it has gone, says what is no line, or has had its time.
    fn listen_to(&mut self, mut caller: Caller, heard: &mut Vec<Heard>) {
        let mut buffer = [0; LONGEST];
        loop {
            match caller.stream.read(&mut buffer[..LONGEST - caller.line.len()]) {
                Ok(0) => return,
                Ok(read) => caller.line.extend_from_slice(&buffer[..read]),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < caller.until => break,
                Err(_) => return,
            }
            match caller.line.iter().position(|&byte| byte == b'\n') {
                Some(end) if end + 1 == caller.line.len() => {
                    if caller.stream.set_nonblocking(false).is_ok() {
                        let Caller { stream, from, challenge, line, .. } = caller;
                        heard.push(Heard { stream, from, challenge, line });
                    }
                    return;
                }
                // A rank waits for an answer to its first line, which is short.
                Some(_) => return,
                None if caller.line.len() == LONGEST => return,
                None => {}
            }
        }
        if self.waiting.len() == MOST {
            self.waiting.pop_front();
        }
        self.waiting.push_back(caller);
    }
}

fn of_the_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Interrupted
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}

/// Whether the other end of a connection is there still. Takes nothing of what it has sent.
pub fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let open = match peeked {
        Ok(bytes) => bytes > 0,
        Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    };
    open && stream.set_nonblocking(false).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    fn door(challenges: bool) -> (Door, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Door::new(listener, challenges).unwrap(), address)
    }

    /// What is heard next.
    #[track_caller]
    fn next(door: &mut Door) -> Heard {
        for _ in 0..1000 {
            if let Some(heard) = door.hear().unwrap().pop() {
                return heard;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing was heard");
    }

    #[test]
    fn whoever_speaks_is_heard_beside_many_who_do_not() {
        let (mut door, address) = door(false);
        let strangers: Vec<TcpStream> = (0..2 * MOST)
            .map(|i| {
                let mut stranger = TcpStream::connect(address).unwrap();
                stranger.write_all([&b""[..], b"{\"ra", &[0; 100], &[255; 3]][i % 4]).unwrap();
                assert!(door.hear().unwrap().is_empty());
                stranger
            })
            .collect();
        assert_eq!(door.waiting.len(), MOST);
        let mut rank = TcpStream::connect(address).unwrap();
        rank.write_all(b"hel").unwrap();
        assert!(door.hear().unwrap().is_empty());
        rank.write_all(b"lo\n").unwrap();
        let heard = next(&mut door);
        assert_eq!((heard.from, &heard.line[..]), (rank.local_addr().unwrap(), &b"hello\n"[..]));
        assert!(door.waiting.len() < MOST);
        drop(strangers);
        while !door.waiting.is_empty() {
            assert!(door.hear().unwrap().is_empty());
        }
    }

    #[test]
    fn whoever_says_too_much_or_nothing_in_time_leaves() {
        let (mut door, address) = door(false);
        for words in [&[b'x'; LONGEST][..], b"hello\nand more", b"\n\n"] {
            let mut stranger = TcpStream::connect(address).unwrap();
            stranger.write_all(words).unwrap();
            let mut heard = door.hear().unwrap().len();
            while !door.waiting.is_empty() {
                heard += door.hear().unwrap().len();
            }
            assert_eq!(heard, 0, "{} bytes", words.len());
        }
        let silent = TcpStream::connect(address).unwrap();
        assert!(door.hear().unwrap().is_empty());
        assert_eq!(door.waiting.len(), 1);
        door.waiting[0].until = Instant::now();
        assert!(door.hear().unwrap().is_empty() && door.waiting.is_empty());
        drop(silent);
    }

    #[test]
    fn every_caller_has_a_challenge_of_its_own() {
        let (mut door, address) = door(true);
        let mut challenges = Vec::new();
        for _ in 0..2 {
            let mut rank = TcpStream::connect(address).unwrap();
            rank.write_all(b"hello\n").unwrap();
            let heard = next(&mut door);
            let mut said = vec![0; heard.challenge.len() + 20];
            let read = rank.read(&mut said).unwrap();
            let said: Challenge = serde_json::from_slice(&said[..read]).unwrap();
            assert_eq!(said.challenge, heard.challenge);
            challenges.push(said.challenge);
        }
        assert!(challenges[0] != challenges[1] && !challenges[0].is_empty());
    }

    #[test]
    fn a_connection_is_open_until_its_other_end_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own, _) = listener.accept().unwrap();
        assert!(is_open(&own));
        other.write_all(b"x").unwrap();
        assert!(is_open(&own));
        let mut byte = [0];
        (&own).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        drop(other);
        while is_open(&own) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
