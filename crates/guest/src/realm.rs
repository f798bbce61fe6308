//! The listening sockets of one realm and the tasks that serve them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use model::{
    limits::{
        DNS_CONNECTIONS_MAX, DNS_IDLE_MAX, DNS_QUERY_BYTES_MAX, METADATA_CONNECTIONS_PER_PEER_MAX,
        METADATA_CONNECTIONS_PER_REALM_MAX, METADATA_WRITE_MAX,
    },
    planned::guest::{Realm, Seat},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use crate::{
    ACCEPT_AGAIN, Guest,
    dns::{self, Transport},
    http,
};

/// What the host makes in a router: HTTP, DNS over UDP, DNS over TCP, in this order.
pub struct Listeners {
    http: TcpListener,
    dns_udp: UdpSocket,
    dns_tcp: TcpListener,
}

impl Listeners {
    pub fn adopt(fds: Vec<OwnedFd>) -> io::Result<Listeners> {
        let [http, dns_udp, dns_tcp] = <[OwnedFd; 3]>::try_from(fds)
            .map_err(|fds| io::Error::new(io::ErrorKind::InvalidData, format!("{} sockets, not three", fds.len())))?;
        let dns_udp = std::net::UdpSocket::from(dns_udp);
        dns_udp.set_nonblocking(true)?;
        let dns_udp = UdpSocket::from_std(dns_udp)?;
        Ok(Listeners { http: listener(http)?, dns_udp, dns_tcp: listener(dns_tcp)? })
    }
}

fn listener(fd: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves the realm until the set is dropped, open connections included.
pub fn serve(guest: Arc<Guest>, realm: Realm, listeners: Listeners) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Listeners { http, dns_udp, dns_tcp } = listeners;
    tasks.spawn(serve_http(guest.clone(), realm, http));
    tasks.spawn(serve_dns_udp(guest.clone(), realm, dns_udp));
    tasks.spawn(serve_dns_tcp(guest, realm, dns_tcp));
    tasks
}

async fn serve_http(guest: Arc<Guest>, realm: Realm, listener: TcpListener) {
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        let Some((stream, address)) = accept(&listener, &mut connections).await else { continue };
        // Over a limit the connection is closed unanswered: whoever opens that many reads no answers.
        if connections.len() >= METADATA_CONNECTIONS_PER_REALM_MAX {
            continue;
        }
        if let Some(place) = places.take(address) {
            let seat = Seat { realm, address };
            let guest = guest.clone();
            connections.spawn(async move {
                http::connection(guest, seat, stream).await;
                drop(place);
            });
        }
    }
}

/// The next connection with its IPv4 peer, while those that ended are cleared away.
async fn accept(listener: &TcpListener, connections: &mut JoinSet<()>) -> Option<(TcpStream, Ipv4Addr)> {
    let accepted = tokio::select! {
        accepted = listener.accept() => accepted,
        Some(_) = connections.join_next() => return None,
    };
    match accepted {
        Ok((stream, peer)) => {
            let millis = u32::try_from(METADATA_WRITE_MAX.as_millis()).expect("a minute in milliseconds");
            let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, millis);
            let _ = stream.set_nodelay(true);
            Some((stream, v4(peer)?))
        }
        Err(_) => {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

fn v4(peer: SocketAddr) -> Option<Ipv4Addr> {
    match peer.ip().to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Connections by peer.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<HashMap<Ipv4Addr, usize>>>);

struct Place {
    places: Places,
    peer: Ipv4Addr,
}

impl Places {
    fn take(&self, peer: Ipv4Addr) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer).or_default();
        if *count >= METADATA_CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

async fn serve_dns_udp(guest: Arc<Guest>, realm: Realm, socket: UdpSocket) {
    let mut query = vec![0; DNS_QUERY_BYTES_MAX];
    loop {
        let Ok((len, peer)) = socket.recv_from(&mut query).await else {
            // The interface went down, perhaps; the socket goes on, and should it not, we do not spin.
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        if let Some(answer) = dns::answer(&*guest.world.zone(realm).await, &query[..len], Transport::Udp) {
            // A full socket buffer loses it, as the network might; the client asks again.
            let _ = socket.try_send_to(&answer, peer);
        }
    }
}

async fn serve_dns_tcp(guest: Arc<Guest>, realm: Realm, listener: TcpListener) {
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        let Some((mut stream, peer)) = accept(&listener, &mut connections).await else { continue };
        if connections.len() >= DNS_CONNECTIONS_MAX {
            continue;
        }
        if let Some(place) = places.take(peer) {
            let guest = guest.clone();
            connections.spawn(async move {
                while let Ok(Ok(true)) = timeout(DNS_IDLE_MAX, converse(&guest, realm, &mut stream)).await {}
                drop(place);
            });
        }
    }
}

/// One query and its answer, each after its length (RFC 7766). False when the conversation is over.
async fn converse(guest: &Guest, realm: Realm, stream: &mut TcpStream) -> io::Result<bool> {
    let len = usize::from(stream.read_u16().await?);
    if len > DNS_QUERY_BYTES_MAX {
        return Ok(false);
    }
    let mut query = vec![0; len];
    stream.read_exact(&mut query).await?;
    let Some(answer) = dns::answer(&*guest.world.zone(realm).await, &query, Transport::Tcp) else { return Ok(false) };
    let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend(answer);
    stream.write_all(&framed).await?;
    Ok(true)
}
