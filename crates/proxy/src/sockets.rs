//! Listening sockets from the host process, which makes them where this one may not. Start with [`listen`].

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use ipc::{Handed, HandedDoor};
use model::{id::ListenerId, limits::LB_KEEPALIVE_DEFAULT, planned::edge::Sockets};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    task::AbortHandle,
};

use crate::{
    Proxy, accept_again,
    client::{self, Arrived, Origin},
    header::Hop,
    upstream::tune,
};

/// Receives listening sockets and serves what connects to them.
pub async fn listen(proxy: Rc<Proxy>, door: UnixListener) {
    let mut door = HandedDoor::new(door);
    let mut open = Listeners { proxy, open: HashMap::new() };
    loop {
        let Handed { connection, frame, fds } = door.next().await;
        open.apply(connection, frame, fds);
    }
}

struct Open {
    accepting: AbortHandle,
    /// The host's connection that named it last.
    told_in: u64,
}

struct Listeners {
    proxy: Rc<Proxy>,
    open: HashMap<ListenerId, Open>,
}

impl Listeners {
    fn apply(&mut self, connection: u64, frame: Sockets, fds: Vec<OwnedFd>) {
        match frame {
            Sockets::Listen(id) => {
                // A frame without its socket is a defect of the host; the old socket keeps serving.
                let Some(listener) = fds.into_iter().next().and_then(|fd| adopt(fd).ok()) else { return };
                let accepting = tokio::task::spawn_local(accept(self.proxy.clone(), id, listener)).abort_handle();
                if let Some(old) = self.open.insert(id, Open { accepting, told_in: connection }) {
                    old.accepting.abort();
                }
            }
            Sockets::Unlisten(id) => self.close(id),
            Sockets::Complete => {
                let stale = self.open.iter().filter(|(_, open)| open.told_in != connection).map(|(id, _)| *id);
                stale.collect::<Vec<_>>().into_iter().for_each(|id| self.close(id));
            }
        }
    }

    fn close(&mut self, id: ListenerId) {
        if let Some(open) = self.open.remove(&id) {
            open.accepting.abort();
            self.proxy.clients.close_listener(id);
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for open in self.open.values() {
            open.accepting.abort();
        }
    }
}

/// Accepted sockets inherit what is set here.
fn adopt(fd: OwnedFd) -> io::Result<TcpListener> {
    let listener = StdListener::from(fd);
    listener.set_nonblocking(true)?;
    tune(&listener)?;
    TcpListener::from_std(listener)
}

async fn accept(proxy: Rc<Proxy>, id: ListenerId, listener: TcpListener) {
    // After a start nothing is known yet: until it is, connections wait in the kernel's queue, unanswered.
    proxy.told.wait().await;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => greet(&proxy, id, stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            // Out of descriptors, most likely: try again when some may be free, without spinning.
            Err(_) => accept_again().await,
        }
    }
}

fn greet(proxy: &Rc<Proxy>, id: ListenerId, stream: TcpStream, peer: SocketAddr) {
    if proxy.clients.is_full() {
        // The answer fits into any socket buffer; whoever cannot take it is only closed.
        let _ = stream.try_write(crate::FULL.as_bytes());
        return;
    }
    let plan = proxy.plan.borrow().listener(id);
    let vip = plan.as_ref().map(|listener| IpAddr::V4(listener.address));
    let keepalive = plan.as_ref().map_or(LB_KEEPALIVE_DEFAULT, |listener| Duration::from_millis(listener.keepalive_ms));
    let arrived = Arrived {
        hop: Hop::new(peer.ip(), vip, "http"),
        origin: Origin::Listener { id, network: plan.map(|listener| listener.network), peer },
        keepalive_s: keepalive.as_secs(),
    };
    let enrolled = client::enroll(proxy, arrived);
    tokio::task::spawn_local(client::serve(proxy.clone(), stream, enrolled));
}
