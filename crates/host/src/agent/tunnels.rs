//! Connections for those who have no network of their own: into VMs for the tunnels of the Identity-Aware Proxy, and to
//! backends for the load balancer.

use std::{
    net::SocketAddrV4,
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::mpsc::{SyncSender, sync_channel},
};

use model::planned::{
    edge::DialBackend,
    host::{Attach, Dial},
};
use serde::de::DeserializeOwned;

use super::{Agent, Heard, TAKE_MAX, chain};
use crate::sandboxes::Sandboxes;

/// A socket that may still be connecting, or why there is none.
pub(super) type Outcome = Result<OwnedFd, String>;

/// Takes one question from each connection. One process alone may connect, so they are read and answered one after the
/// other: whoever asks more waits longer, and nobody else does.
pub(super) fn accept<Q: DeserializeOwned>(
    listener: &UnixListener,
    tell: &SyncSender<Heard>,
    ask: fn(Q, SyncSender<Outcome>) -> Heard,
) {
    for stream in listener.incoming() {
        let read = stream.and_then(|stream| {
            stream.set_read_timeout(Some(TAKE_MAX))?;
            stream.set_write_timeout(Some(TAKE_MAX))?;
            let mut receiver = ipc::Receiver::new(stream.try_clone()?);
            Ok((stream, receiver.recv::<Q>()?))
        });
        match read {
            Ok((stream, Some((question, _)))) => {
                let (answer, answered) = sync_channel(1);
                if tell.send(ask(question, answer)).is_err() {
                    return;
                }
                let Ok(outcome) = answered.recv() else { return };
                // Who asked and went away needs no answer.
                let _ = ipc::answer_socket(&stream, outcome);
            }
            // One that ended without a question, or that was none.
            Ok((_, None)) => {}
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}

impl<S: Sandboxes> Agent<S> {
    /// To the workload's own address in the network it is attached to, and to no other.
    pub(super) fn dial(&mut self, Dial { workload, port }: &Dial) -> Outcome {
        let attach = self.workloads.get(workload).filter(|w| w.is_running()).and_then(|w| w.attach());
        let Some(Attach::Vpc { network, address, .. }) = attach else {
            return Err(format!("no VM {workload} runs here"));
        };
        let (network, to) = (*network, SocketAddrV4::new(*address, *port));
        self.hands.dial(network, to).map_err(|error| chain(&error))?.map_err(|error| error.to_string())
    }

    pub(super) fn dial_backend(&mut self, DialBackend { network, endpoint }: DialBackend) -> Outcome {
        match self.hands.dial_backend(network, endpoint).map_err(|error| chain(&error))? {
            Some(begun) => begun.map_err(|error| error.to_string()),
            None => Err(format!("the load balancer of network {network} has no backend {endpoint}")),
        }
    }
}
