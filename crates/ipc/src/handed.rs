//! The receiving side of descriptors that a privileged process makes where the receiver may not go: listening sockets,
//! most of all. One blocking thread per connection receives; the newest connection counts.

use std::{io, net::Shutdown, os::fd::OwnedFd, os::unix::net::UnixStream as StdStream, time::Duration};

use serde::de::DeserializeOwned;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use crate::Receiver;

/// Frames that wait for whoever asks for the next one.
const FRAMES_MAX: usize = 64;
/// Wait after a failed accept: out of descriptors, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// One frame, and what came beside it.
#[derive(Debug)]
pub struct Handed<T> {
    /// Counts the sender's connections: what an earlier one handed over and this one has not repeated by its last word is
    /// no longer wanted.
    pub connection: u64,
    pub frame: T,
    pub fds: Vec<OwnedFd>,
}

/// A Unix socket at which frames with descriptors arrive.
#[derive(Debug)]
pub struct HandedDoor<T> {
    door: UnixListener,
    sender: mpsc::Sender<Handed<T>>,
    frames: mpsc::Receiver<Handed<T>>,
    newest: u64,
    current: Option<Connection>,
}

impl<T: DeserializeOwned + Send + 'static> HandedDoor<T> {
    pub fn new(door: UnixListener) -> HandedDoor<T> {
        let (sender, frames) = mpsc::channel(FRAMES_MAX);
        HandedDoor { door, sender, frames, newest: 0, current: None }
    }

    /// The next frame of the newest connection, for as long as it takes. Cancel-safe.
    pub async fn next(&mut self) -> Handed<T> {
        loop {
            tokio::select! {
                accepted = self.door.accept() => {
                    let number = self.newest + 1;
                    match accepted.and_then(|(stream, _)| receive(stream, number, self.sender.clone())) {
                        Ok(connection) => {
                            self.newest = number;
                            self.current = Some(connection);
                        }
                        Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
                    }
                }
                Some(handed) = self.frames.recv() => {
                    if handed.connection == self.newest {
                        return handed;
                    }
                }
            }
        }
    }
}

/// Ends the receiving thread when it is dropped.
#[derive(Debug)]
struct Connection(StdStream);

impl Drop for Connection {
    fn drop(&mut self) {
        // It fails only on a connection that has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn receive<T>(stream: UnixStream, number: u64, sender: mpsc::Sender<Handed<T>>) -> io::Result<Connection>
where
    T: DeserializeOwned + Send + 'static,
{
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let connection = Connection(stream.try_clone()?);
    std::thread::Builder::new().name("handed".into()).spawn(move || {
        let mut receiver = Receiver::new(stream);
        while let Ok(Some((frame, fds))) = receiver.recv() {
            if sender.blocking_send(Handed { connection: number, frame, fds }).is_err() {
                return;
            }
        }
    })?;
    Ok(connection)
}
