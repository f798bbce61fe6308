//! Connections into VMs for the tunnels of the Identity-Aware Proxy: who carries them has no network of its own.

use std::{
    io,
    net::SocketAddrV4,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::mpsc::SyncSender,
};

use model::{
    id::WorkloadId,
    planned::host::{Attach, Dial, Dialled},
};

use super::{Agent, CellError, Heard, TAKE_MAX, chain};
use crate::sandboxes::Sandboxes;

/// Takes one question from each connection. Control alone may connect, so they are read one after the other.
pub(super) fn accept(listener: &UnixListener, tell: &SyncSender<Heard>) {
    for stream in listener.incoming() {
        let read = stream.and_then(|stream| {
            stream.set_read_timeout(Some(TAKE_MAX))?;
            stream.set_write_timeout(Some(TAKE_MAX))?;
            let mut receiver = ipc::Receiver::new(stream.try_clone()?);
            Ok((stream, receiver.recv::<Dial>()?))
        });
        match read {
            Ok((stream, Some((dial, _)))) => {
                if tell.send(Heard::Dial(stream, dial)).is_err() {
                    return;
                }
            }
            // One that ended without a question, or that was none.
            Ok((_, None)) => {}
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}

impl<S: Sandboxes> Agent<S> {
    pub(super) fn dial(&mut self, stream: &UnixStream, dial: &Dial) {
        // Who asked and went away needs no answer.
        let _ = match self.connect(&dial.workload, dial.port) {
            Ok(Ok(socket)) => ipc::send(stream, &Dialled::Begun, &[socket.as_fd()]),
            Ok(Err(error)) => refuse(stream, error.to_string()),
            Err(error) => refuse(stream, chain(&error)),
        };
    }

    /// To the workload's own address in the network it is attached to, and to no other.
    fn connect(&mut self, workload: &WorkloadId, port: u16) -> Result<io::Result<OwnedFd>, CellError> {
        let attach = self.workloads.get(workload).filter(|w| w.is_running()).and_then(|w| w.attach());
        let Some(Attach::Vpc { network, address, .. }) = attach else {
            return Ok(Err(io::Error::new(io::ErrorKind::NotFound, format!("no VM {workload} runs here"))));
        };
        let (network, to) = (*network, SocketAddrV4::new(*address, port));
        Ok(self.hands.dial(network, to)?)
    }
}

fn refuse(stream: &UnixStream, why: String) -> io::Result<()> {
    ipc::send(stream, &Dialled::Refused { why }, &[])
}
