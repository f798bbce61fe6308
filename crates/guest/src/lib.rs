//! The server behind 169.254.169.254: metadata, tokens and names for workloads.
//!
//! It parses what strangers send, so it holds no key and no privilege. Who asks is known by the router in which the
//! listening socket was made and by the source address, which that router's first firewall rule ties to an interface;
//! no header, path or name can say otherwise. Tokens are minted by control, for the seat that asked.
//!
//! Thinking is apart from acting: [`tree`] and [`metadata`] turn an identity and a request head into a step, [`dns`]
//! turns bytes into bytes. Acting starts at [`serve`]: `link` talks with control, `sockets` takes listeners from the
//! host, `realm` and `http` serve them.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use model::limits::TOLD_MAX;
use tokio::net::UnixListener;

use crate::{mint::Mints, world::World};

pub mod dns;
pub mod metadata;
pub mod page;
pub mod tree;

mod http;
mod link;
mod mint;
mod realm;
mod sockets;
mod world;

/// Where workloads find it.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Wait after a failed accept: out of descriptors, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// The Unix sockets at which the cloud's other processes find the guest server. Bound while there is still the privilege
/// to make them, inside a tokio runtime.
#[derive(Debug)]
pub struct Doors {
    control: UnixListener,
    host: UnixListener,
}

impl Doors {
    /// Binds `guest.sock` and `guest-sockets.sock`; what a dead server left there is replaced.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn bind(run_dir: &Path) -> Result<Doors, GuestError> {
        let control = listen(run_dir.join("guest.sock"))?;
        Ok(Doors { control, host: listen(run_dir.join("guest-sockets.sock"))? })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// What every connection shares.
struct Guest {
    world: World,
    mints: Mints,
}

/// Serves until dropped. Call it in a tokio runtime with I/O and time.
pub async fn serve(doors: Doors) {
    let guest = Arc::new(Guest { world: World::new(TOLD_MAX), mints: Mints::default() });
    tokio::join!(link::listen(guest.clone(), doors.control), sockets::listen(guest, doors.host));
}

fn listen(path: PathBuf) -> Result<UnixListener, GuestError> {
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(GuestError::Listen { path, source }),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(&path).map_err(|source| GuestError::Listen { path, source })
}
