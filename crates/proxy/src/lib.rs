//! The proxy process: internal application load balancer and serverless front end, fused into one hop.
//!
//! It holds sockets that others made, a plan that control sent and public keys; it can neither mint a token nor open a
//! port below 1024, and it serves on when control is gone. One thread does everything, so state is plain cells.
//!
//! Start with [`request`] (one request), then [`revision`] (which instance), [`route`] (which service),
//! [`invoker`] (who may), [`backend`] (a service that another balancer publishes). [`control`], [`sockets`] and [`outside`] are the three doors.

mod backend;
mod body;
mod client;
mod control;
mod exchange;
mod header;
mod invoker;
mod outbox;
mod outside;
mod plan;
mod probe;
mod refusal;
mod request;
mod revision;
pub mod route;
mod sockets;
mod trace;
mod upstream;

use std::{
    cell::RefCell,
    io,
    os::unix::net::UnixListener as StdListener,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use ipc::Told;
use model::limits::TOLD_MAX;
use tokio::{net::UnixListener, task::LocalSet};

use crate::{backend::Backends, client::Clients, outbox::Outbox, plan::Plan, trace::Dice};

/// What a client hears when no more connections fit.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\nServer: Google Frontend\r\nContent-Type: text/plain\r\n\
                    Content-Length: 20\r\nConnection: close\r\n\r\ntoo many connections";

/// The three Unix sockets at which the proxy is reached. Bound while the process may still write the run directory.
#[derive(Debug)]
pub struct Doors {
    control: StdListener,
    sockets: StdListener,
    outside: StdListener,
    /// Where the host is asked for connections to backends.
    backends: PathBuf,
}

impl Doors {
    /// Binds `proxy.sock`, `proxy-sockets.sock` and `proxy-outside.sock`; what a dead proxy left there is replaced.
    pub fn bind(run_dir: &Path) -> io::Result<Doors> {
        let bind = |name: &str| {
            let path = run_dir.join(name);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
            let listener = StdListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let control = bind("proxy.sock")?;
        let backends = run_dir.join("host-backends.sock");
        Ok(Doors { control, sockets: bind("proxy-sockets.sock")?, outside: bind("proxy-outside.sock")?, backends })
    }
}

/// Everything of one proxy.
struct Proxy {
    outbox: Rc<Outbox>,
    plan: RefCell<Plan>,
    clients: Clients,
    backends: Backends,
    dice: Dice,
    /// Whether control has sent a whole plan yet.
    told: Told,
}

/// Runs the proxy in this process until it is killed. The caller has entered the fabric's network namespace and given
/// up its privileges.
pub fn main(doors: Doors) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(doors))
}

/// [`main`] inside a runtime: a `LocalSet` on a current-thread runtime. Never returns but with an error of the doors.
pub async fn serve(doors: Doors) -> io::Result<()> {
    let outbox = Rc::new(Outbox::default());
    let proxy = Rc::new(Proxy {
        plan: RefCell::new(Plan::new(outbox.clone())),
        outbox,
        clients: Clients::default(),
        backends: Backends::new(doors.backends),
        dice: Dice::seeded(),
        told: Told::within(TOLD_MAX),
    });
    let control = UnixListener::from_std(doors.control)?;
    let sockets = UnixListener::from_std(doors.sockets)?;
    let outside = UnixListener::from_std(doors.outside)?;
    tokio::join!(
        control::listen(proxy.clone(), control),
        sockets::listen(proxy.clone(), sockets),
        outside::listen(proxy.clone(), outside),
        tick(proxy),
    );
    Ok(())
}

/// The slow clock: silent clients, idle instances, old connections.
async fn tick(proxy: Rc<Proxy>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        proxy.clients.tick();
        for revision in proxy.plan.borrow().revisions() {
            revision.tick(Instant::now());
        }
        proxy.backends.tick(Instant::now());
    }
}

/// After a failed accept, which is mostly a lack of descriptors: a pause, so that it does not spin.
async fn accept_again() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_when_no_connection_fits_is_as_long_as_it_says() {
        let (head, body) = super::FULL.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}
