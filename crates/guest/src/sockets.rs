//! The door through which listening sockets come: the host process makes them inside the routers, where this one may
//! not go.
//!
//! One blocking thread per host connection receives descriptors; the newest connection counts. Start with [`listen`].

use std::{
    collections::HashMap, io, net::Shutdown, os::fd::OwnedFd, os::unix::net::UnixStream as StdStream, sync::Arc,
};

use ipc::Receiver;
use model::planned::guest::{Realm, Sockets};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    ACCEPT_AGAIN, Guest,
    realm::{self, Listeners},
    world::Epoch,
};

/// Frames that wait for the serving thread.
const FRAMES_MAX: usize = 64;

/// A frame and the number of the host connection it came over.
type Numbered = (Epoch, Sockets, Vec<OwnedFd>);

/// Receives listening sockets and serves what connects to them.
pub async fn listen(guest: Arc<Guest>, door: UnixListener) {
    let (sender, mut receiver) = mpsc::channel(FRAMES_MAX);
    let mut realms = Realms { guest, open: HashMap::new() };
    let mut newest: Epoch = 0;
    let mut _current = None;
    loop {
        tokio::select! {
            accepted = door.accept() => {
                let received = accepted.and_then(|(stream, _)| receive(stream, newest + 1, sender.clone()));
                match received {
                    Ok(connection) => {
                        newest += 1;
                        _current = Some(connection);
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
                }
            }
            Some((number, frame, fds)) = receiver.recv() => {
                if number == newest {
                    realms.apply(newest, frame, fds);
                }
            }
        }
    }
}

/// Ends the receiving thread when it is dropped.
struct Connection(StdStream);

impl Drop for Connection {
    fn drop(&mut self) {
        // It fails only on a connection that has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn receive(stream: UnixStream, number: Epoch, sender: mpsc::Sender<Numbered>) -> io::Result<Connection> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let connection = Connection(stream.try_clone()?);
    std::thread::Builder::new().name("listeners".into()).spawn(move || {
        let mut receiver = Receiver::new(stream);
        while let Ok(Some((frame, fds))) = receiver.recv() {
            if sender.blocking_send((number, frame, fds)).is_err() {
                return;
            }
        }
    })?;
    Ok(connection)
}

struct Realms {
    guest: Arc<Guest>,
    /// The tasks of a realm end when they are taken out.
    open: HashMap<Realm, (Epoch, JoinSet<()>)>,
}

impl Realms {
    fn apply(&mut self, epoch: Epoch, frame: Sockets, fds: Vec<OwnedFd>) {
        match frame {
            Sockets::Serve(realm) => match Listeners::adopt(fds) {
                Ok(listeners) => {
                    self.open.insert(realm, (epoch, realm::serve(self.guest.clone(), realm, listeners)));
                }
                // The old sockets, if any, keep serving.
                Err(error) => eprintln!("guest: cannot use the sockets of {realm:?}: {error}"),
            },
            Sockets::Withdraw(realm) => drop(self.open.remove(&realm)),
            Sockets::Complete => self.open.retain(|_, (told_in, _)| *told_in == epoch),
        }
    }
}
