//! Where ranks listen: nowhere else than the others come from, as far as that is known.

use super::{Address, error, literal};
use crate::Result;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

/// The number of an address, of IPv4 where it has one.
pub fn resolve(address: &str) -> Result<SocketAddr> {
    let found = address.to_socket_addrs().ok().and_then(|mut all| {
        let first = all.next()?;
        Some(std::iter::once(first).chain(all).find(SocketAddr::is_ipv4).unwrap_or(first))
    });
    found.ok_or_else(|| error(format!("cannot resolve {address}; set MASTER_ADDR and MASTER_PORT")))
}

/// All interfaces of this machine.
fn everywhere(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Rank 0's socket: at the interface whose number is given; at all where it is a name, which may be of another one elsewhere,
/// or where the number is none of this machine, but of what passes connections on to it.
pub fn listen(address: &Address, at: SocketAddr) -> std::io::Result<TcpListener> {
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
pub fn listen_beside(mut own: SocketAddr, one_machine: bool) -> std::io::Result<TcpListener> {
    if own.ip().is_loopback() && !one_machine {
        // They are on one machine with each other, not with all.
        own.set_ip(everywhere(own.ip()));
    }
    own.set_port(0);
    TcpListener::bind(own)
}

/// Where the other ranks find a listener of this process, at an address of it.
pub fn at_port_of(mut own: SocketAddr, listener: Option<&TcpListener>) -> Result<SocketAddr> {
    let port = listener.map(TcpListener::local_addr).transpose();
    own.set_port(
        port.map_err(|e| error(format!("cannot listen for other ranks: {e}")))?.map_or(0, |at| at.port()),
    );
    Ok(own)
}
