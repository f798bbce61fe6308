//! Listening sockets from the host process, which makes them inside the routers, where this one may not go.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use ipc::{Handed, HandedDoor};
use model::planned::guest::{Realm, Sockets};
use tokio::{net::UnixListener, task::JoinSet};

use crate::{
    Guest,
    realm::{self, Listeners},
    world::Epoch,
};

/// Receives listening sockets and serves what connects to them.
pub async fn listen(guest: Arc<Guest>, door: UnixListener) {
    let mut door = HandedDoor::new(door);
    let mut realms = Realms { guest, open: HashMap::new() };
    loop {
        let Handed { connection, frame, fds } = door.next().await;
        realms.apply(connection, frame, fds);
    }
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
