//! The door through which listening sockets come: the host process makes them where this one may not.
//!
//! One blocking thread per host connection receives descriptors; the newest connection counts. Start with [`listen`].

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use ipc::Receiver;
use model::{id::ListenerId, limits::LB_KEEPALIVE_DEFAULT, planned::edge::Sockets};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    task::AbortHandle,
};

use crate::{
    Proxy, accept_again,
    client::{self, Arrived, Origin},
    header::Hop,
    upstream::tune,
};

/// Frames that wait for the proxy's thread.
const FRAMES_MAX: usize = 64;

/// A frame and the number of the host connection it came over.
type Numbered = (u64, Sockets, Vec<OwnedFd>);

/// Receives listening sockets and serves what connects to them.
pub async fn listen(proxy: Rc<Proxy>, door: UnixListener) {
    let (sender, mut receiver) = mpsc::channel(FRAMES_MAX);
    let mut open = Listeners { proxy, open: HashMap::new() };
    let mut newest = 0;
    loop {
        tokio::select! {
            accepted = door.accept() => match accepted.and_then(|(stream, _)| receive(stream, newest + 1, sender.clone())) {
                Ok(()) => {
                    newest += 1;
                    open.begin();
                }
                Err(_) => accept_again().await,
            },
            Some((number, frame, fds)) = receiver.recv() => {
                if number == newest {
                    open.apply(frame, fds);
                }
            }
        }
    }
}

fn receive(stream: UnixStream, number: u64, sender: mpsc::Sender<Numbered>) -> io::Result<()> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    std::thread::Builder::new().name("listeners".into()).spawn(move || {
        let mut receiver = Receiver::new(stream);
        while let Ok(Some((frame, fds))) = receiver.recv() {
            if sender.blocking_send((number, frame, fds)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

struct Open {
    accepting: AbortHandle,
    /// Named since the present host process connected.
    fresh: bool,
}

struct Listeners {
    proxy: Rc<Proxy>,
    open: HashMap<ListenerId, Open>,
}

impl Listeners {
    fn begin(&mut self) {
        for open in self.open.values_mut() {
            open.fresh = false;
        }
    }

    fn apply(&mut self, frame: Sockets, fds: Vec<OwnedFd>) {
        match frame {
            Sockets::Listen(id) => {
                // A frame without its socket is a defect of the host; the old socket keeps serving.
                let Some(listener) = fds.into_iter().next().and_then(|fd| adopt(fd).ok()) else { return };
                let accepting = tokio::task::spawn_local(accept(self.proxy.clone(), id, listener)).abort_handle();
                if let Some(old) = self.open.insert(id, Open { accepting, fresh: true }) {
                    old.accepting.abort();
                }
            }
            Sockets::Unlisten(id) => self.close(id),
            Sockets::Complete => {
                let stale: Vec<_> = self.open.iter().filter(|(_, open)| !open.fresh).map(|(id, _)| *id).collect();
                for id in stale {
                    self.close(id);
                }
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
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => greet(&proxy, id, stream, peer.ip().to_canonical()),
            // Out of descriptors, most likely: try again when some may be free, without spinning.
            Err(_) => accept_again().await,
        }
    }
}

fn greet(proxy: &Rc<Proxy>, id: ListenerId, stream: TcpStream, peer: IpAddr) {
    if proxy.clients.is_full() {
        // The answer fits into any socket buffer; whoever cannot take it is only closed.
        let _ = stream.try_write(crate::FULL.as_bytes());
        return;
    }
    let plan = proxy.plan.borrow().listener(id);
    let vip = plan.as_ref().map(|listener| IpAddr::V4(listener.address));
    let keepalive = plan.as_ref().map_or(LB_KEEPALIVE_DEFAULT, |listener| Duration::from_millis(listener.keepalive_ms));
    let arrived = Arrived {
        hop: Hop::new(peer, vip, "http"),
        origin: Origin::Listener { id, network: plan.map(|listener| listener.network), peer },
        keepalive_s: keepalive.as_secs(),
    };
    let enrolled = client::enroll(proxy, arrived);
    tokio::task::spawn_local(client::serve(proxy.clone(), stream, enrolled));
}
