//! Client connections: who they are, how long they may be silent, and how they are told to go.
//!
//! The table counts every connection and can close any of them; hyper speaks HTTP on them. Start with [`serve`].

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use model::{
    id::{ListenerId, NetworkId},
    limits::{HEAD_READ_MAX, LB_CONNECTIONS_MAX, LB_HEADER_BYTES_MAX, LB_HEADERS_MAX},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};

use crate::{Proxy, header::Hop, request};

/// Where a connection came in.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Through a forwarding rule of a VPC.
    Listener { id: ListenerId, network: Option<NetworkId>, peer: SocketAddr },
    /// Through the door, from outside every VPC.
    Outside { peer: IpAddr, scheme: String },
}

impl Origin {
    pub fn peer(&self) -> IpAddr {
        match self {
            Origin::Listener { peer, .. } => peer.ip(),
            Origin::Outside { peer, .. } => *peer,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// Some bytes of a request's head are here.
    Reading,
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    No,
    /// After the present answer.
    Soon,
    Now,
}

/// One client connection.
pub struct Client {
    pub origin: Origin,
    pub hop: Hop,
    keepalive_s: u64,
    phase: Cell<Phase>,
    /// The tick at which the phase began.
    since: Cell<u64>,
    /// The tick at which a request that still runs is cut off: a client that reads nothing holds its place no longer.
    deadline: Cell<u64>,
    close: Cell<Close>,
    told: Notify,
}

impl Client {
    fn tell(&self, close: Close) {
        if self.close.get() != Close::Now {
            self.close.set(close);
            self.told.notify_one();
        }
    }

    fn enter(&self, phase: Phase, tick: u64) {
        self.phase.set(phase);
        self.since.set(tick);
    }

    fn is_overdue(&self, tick: u64) -> bool {
        let age = tick.saturating_sub(self.since.get());
        match self.phase.get() {
            Phase::Idle => age > self.keepalive_s,
            Phase::Reading => age > HEAD_READ_MAX.as_secs(),
            Phase::Busy => tick > self.deadline.get(),
        }
    }
}

/// All client connections, and a clock that counts seconds.
#[derive(Default)]
pub struct Clients {
    next: Cell<u64>,
    tick: Cell<u64>,
    open: RefCell<HashMap<u64, Rc<Client>>>,
}

impl Clients {
    pub fn is_full(&self) -> bool {
        self.open.borrow().len() >= LB_CONNECTIONS_MAX
    }

    /// Once a second: closes whoever has been silent for too long.
    pub fn tick(&self) {
        let tick = self.tick.get() + 1;
        self.tick.set(tick);
        for client in self.open.borrow().values().filter(|client| client.is_overdue(tick)) {
            client.tell(Close::Now);
        }
    }

    /// Closes the connections of this VPC from this address, and returns when they are closed.
    pub async fn close_peer(&self, network: NetworkId, address: Ipv4Addr) {
        let is_meant = |client: &Client| {
            let Origin::Listener { network: of, peer, .. } = &client.origin else { return false };
            *of == Some(network) && peer.ip() == IpAddr::V4(address)
        };
        self.close_all(is_meant).await;
    }

    async fn close_all(&self, is_meant: impl Fn(&Client) -> bool) {
        loop {
            let mut left = false;
            for client in self.open.borrow().values().filter(|client| is_meant(client)) {
                client.tell(Close::Now);
                left = true;
            }
            if !left {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The rule is gone: its idle connections close now and busy ones after their answer.
    pub fn close_listener(&self, listener: ListenerId) {
        for client in self.open.borrow().values() {
            if matches!(&client.origin, Origin::Listener { id, .. } if *id == listener) {
                client.tell(Close::Soon);
            }
        }
    }
}

/// While it lives the connection is busy with a request.
pub struct Turn {
    proxy: Rc<Proxy>,
    pub client: Rc<Client>,
}

impl Turn {
    pub fn begin(proxy: Rc<Proxy>, client: Rc<Client>) -> Turn {
        client.enter(Phase::Busy, proxy.clients.tick.get());
        client.deadline.set(u64::MAX);
        Turn { proxy, client }
    }

    /// The request is cut off when it has lasted this long, whatever the client does.
    pub fn limit(&self, most: std::time::Duration) {
        // A second for the polite answer, and one for the coarse clock.
        self.client.deadline.set(self.proxy.clients.tick.get() + most.as_secs() + 2);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.client.enter(Phase::Idle, self.proxy.clients.tick.get());
    }
}

struct Entry {
    proxy: Rc<Proxy>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.proxy.clients.open.borrow_mut().remove(&self.number);
    }
}

/// What a connection is before it has said anything.
pub struct Arrived {
    pub origin: Origin,
    pub hop: Hop,
    pub keepalive_s: u64,
}

/// A connection that is in the table.
pub struct Enrolled {
    client: Rc<Client>,
    entry: Entry,
}

/// Puts a connection into the table, in the same breath as it is accepted: from here on it can be closed.
pub fn enroll(proxy: &Rc<Proxy>, arrived: Arrived) -> Enrolled {
    let Arrived { origin, hop, keepalive_s } = arrived;
    let client = Rc::new(Client {
        origin,
        hop,
        keepalive_s,
        phase: Cell::new(Phase::Idle),
        since: Cell::new(proxy.clients.tick.get()),
        deadline: Cell::new(u64::MAX),
        close: Cell::new(Close::No),
        told: Notify::new(),
    });
    let number = proxy.clients.next.get();
    proxy.clients.next.set(number + 1);
    proxy.clients.open.borrow_mut().insert(number, client.clone());
    Enrolled { client, entry: Entry { proxy: proxy.clone(), number } }
}

/// Speaks HTTP/1 with one client until either has enough.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(proxy: Rc<Proxy>, stream: S, enrolled: Enrolled) {
    let Enrolled { client, entry: _entry } = enrolled;
    let io = Watched { inner: TokioIo::new(stream), proxy: proxy.clone(), client: client.clone() };
    let service = service_fn(|asked| request::handle(&proxy, &client, asked));
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(LB_HEADER_BYTES_MAX)
            .max_header_size(LB_HEADER_BYTES_MAX)
            .max_headers(LB_HEADERS_MAX)
            .half_close(false)
            .serve_connection(io, service)
    );
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = client.told.notified() => match client.close.get() {
                Close::Now => return,
                Close::Soon => connection.as_mut().graceful_shutdown(),
                Close::No => {}
            },
        }
    }
}

/// A connection's bytes, with a note when some arrive.
struct Watched<S> {
    inner: TokioIo<S>,
    proxy: Rc<Proxy>,
    client: Rc<Client>,
}

impl<S: AsyncRead + Unpin> Read for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() && self.client.phase.get() == Phase::Idle {
            self.client.enter(Phase::Reading, self.proxy.clients.tick.get());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> Write for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}
