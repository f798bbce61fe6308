//! Connections to instances and to backends: made from the endpoint's own address, kept, reused by the same source only.
//!
//! Start with [`dial`] and [`Pool`].

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use model::{
    limits::{UPSTREAM_CONNECT_MAX, UPSTREAM_IDLE, UPSTREAM_IDLE_MAX},
    planned::edge::EdgeInstance,
};
use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream};

use crate::body::Upload;

pub type Sender = SendRequest<Upload>;

/// Over which address family an instance listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V6,
    V4,
}

/// The source address of a request that came through a VPC: its prefix with the client's IPv4 address in the low 32
/// bits.
pub fn source(prefix: Ipv6Addr, peer: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from((u128::from(prefix) & !u128::from(u32::MAX)) | u128::from(u32::from(peer)))
}

/// Connects without a limit of time. `from` need not be an address of this machine, only routed to it.
pub async fn dial(to: SocketAddr, from: Option<Ipv6Addr>) -> io::Result<TcpStream> {
    let socket = match to.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    tune(&socket)?;
    if let (Some(from), IpAddr::V6(_)) = (from, to.ip()) {
        sockopt::set_ipv6_freebind(&socket, true)?;
        socket.bind(SocketAddr::from((from, 0)))?;
    }
    socket.connect(to).await
}

/// No delay, and cubic: bbr without its own packet scheduler reaches two thirds of the throughput on a fast local link.
/// A machine that does not allow cubic keeps its default.
pub fn tune(socket: impl std::os::fd::AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    let _ = sockopt::set_tcp_congestion(&socket, "cubic");
    Ok(())
}

/// A new connection to an instance. Learns the family when it is not known yet.
pub async fn connect(
    instance: &EdgeInstance,
    family: Option<Family>,
    from: Option<Ipv6Addr>,
) -> io::Result<(Sender, Family)> {
    let reach = async |family| {
        let to = match family {
            Family::V6 => SocketAddr::from((instance.v6, instance.port)),
            Family::V4 => SocketAddr::from((instance.v4, instance.port)),
        };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(UPSTREAM_CONNECT_MAX, dial(to, from)).await.map_err(late)?
    };
    let (stream, family) = match family {
        Some(family) => (reach(family).await?, family),
        None => match reach(Family::V6).await {
            Ok(stream) => (stream, Family::V6),
            Err(_) => (reach(Family::V4).await?, Family::V4),
        },
    };
    Ok((speak(stream).await?, family))
}

/// Begins to speak HTTP/1.1 on a connection.
pub async fn speak(stream: TcpStream) -> io::Result<Sender> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::task::spawn_local(async move {
        // How it ends is seen by whoever holds the sender.
        let _ = connection.await;
    });
    Ok(sender)
}

/// Idle connections to one instance or backend. A connection's source address belongs to one endpoint and is used for no other.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Kept>>,
}

struct Kept {
    from: Option<Ipv6Addr>,
    sender: Sender,
    since: Instant,
}

impl Pool {
    /// The connection from this source that was used last, if it can take a request now.
    pub fn take(&self, from: Option<Ipv6Addr>) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let at = idle.iter().rposition(|kept| kept.from == from && kept.sender.is_ready())?;
        Some(idle.remove(at).sender)
    }

    pub fn put(&self, from: Option<Ipv6Addr>, sender: Sender, now: Instant) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= UPSTREAM_IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Kept { from, sender, since: now });
    }

    pub fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty()
    }

    pub fn close(&self) {
        self.idle.borrow_mut().clear();
    }

    pub fn tick(&self, now: Instant) {
        let old = |kept: &Kept| now.saturating_duration_since(kept.since) >= UPSTREAM_IDLE;
        self.idle.borrow_mut().retain(|kept| !kept.sender.is_closed() && !old(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_carries_the_endpoints_address_in_its_low_32_bits() {
        let prefix = "fda3:e722:ac3:cc00:22b:7027::".parse().unwrap();
        let want: Ipv6Addr = "fda3:e722:ac3:cc00:22b:7027:a00:302".parse().unwrap();
        assert_eq!(source(prefix, [10, 0, 3, 2].into()), want);
        assert_eq!(source("fda3:e722:ac3:cc00:22b:7027:ffff:ffff".parse().unwrap(), [10, 0, 3, 2].into()), want);
    }
}
