//! Messages between processes: one JSON value a line.

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// Longest message.
const LONGEST: u64 = 1 << 20;

/// Sends one line.
pub fn send<T: Serialize>(mut stream: &TcpStream, message: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives one line; none at the end of the connection.
pub fn receive<T: for<'de> Deserialize<'de>>(
    reader: &mut BufReader<TcpStream>,
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    if reader.take(LONGEST).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// As [`receive`], of a process that may send slowly or never: all of the line has arrived at `end`, or it is an error of the
/// kind [`ErrorKind::TimedOut`].
pub fn receive_by<T: for<'de> Deserialize<'de>>(
    reader: &mut BufReader<TcpStream>,
    end: Instant,
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        reader.get_ref().set_read_timeout(Some(left))?;
        let arrived = match reader.fill_buf() {
            Ok(arrived) => arrived,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if arrived.is_empty() {
            return Ok(None);
        }
        let newline = arrived.iter().position(|&byte| byte == b'\n');
        let taken = newline.map_or(arrived.len(), |at| at + 1);
        line.extend_from_slice(&arrived[..taken]);
        reader.consume(taken);
        if newline.is_some() {
            return Ok(Some(serde_json::from_slice(&line)?));
        }
        if line.len() as u64 > LONGEST {
            return Err(Error::new(ErrorKind::InvalidData, "a message without an end"));
        }
    }
}
