//! The scene of a test: hands on a run directory of its own, and VMs.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use host::{
    capture::Capture,
    hands::Hands,
    names::{self, IfName},
    netns::{Netns, Pins},
};
use model::{
    id::{EndpointId, NetworkId, WorkloadId},
    planned::{guest::Realm, host::Attach},
};
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use crate::tcp::Server;

/// A state that a test waits for must come within this.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection that must not come about is tried.
pub const SILENCE: Duration = Duration::from_millis(400);
pub const MTU: u16 = 1_460;

/// Waits until the condition holds; fails the test when it does not within [`PATIENCE`].
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Its namespaces go with it, also when the test panics; then it checks that nothing of it is left.
pub struct Lab {
    run_dir: PathBuf,
    hands: Option<Hands>,
    vms: Pins,
}

impl Lab {
    /// Panics without root: a test that cannot look at the kernel has not passed.
    pub fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let run_dir = std::env::temp_dir().join(format!("tombolo-lab-{}-{number}", std::process::id()));
        fs::create_dir_all(&run_dir).expect("the temporary directory is writable");
        let hands = Hands::open(&run_dir).expect("the run directory is new");
        let vms = Pins::under(&run_dir.join("vms")).expect("the run directory is new");
        Lab { run_dir, hands: Some(hands), vms }
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub fn hands(&mut self) -> &mut Hands {
        self.hands.as_mut().expect("hands are missing only inside restart")
    }

    /// The host process dies and another takes over: nothing is remembered but what the kernel holds.
    pub fn restart(&mut self) {
        self.hands = None;
        self.hands = Some(Hands::open(&self.run_dir).expect("it was open before"));
    }

    /// A VM: a plain network namespace, wired as a sandbox would be.
    pub fn vm(&mut self, network: u64, name: &str, address: &str) -> Vm {
        let address: Ipv4Addr = address.parse().expect("the test writes addresses");
        let gateway = Ipv4Addr::from(u32::from(address) & 0xffff_ff00 | 1);
        let attach = Attach::Vpc { network: NetworkId(network), address, gateway, mtu: MTU };
        self.workload(name, attach, Realm::Vpc(NetworkId(network)), address)
    }

    pub fn workload(&mut self, name: &str, attach: Attach, realm: Realm, address: Ipv4Addr) -> Vm {
        let id = WorkloadId(name.to_owned());
        let netns = self.vms.create(name).expect("the lab runs as root");
        let inside = self.vms.open(name).expect("just made").expect("just made");
        self.hands().wire(&id, &attach, inside).expect("the cable can be laid");
        Vm { id, realm, address, netns }
    }

    /// A capture in one of the host's namespaces.
    pub fn capture(&mut self, namespace: &str, name: &IfName) -> Capture {
        let netns = self.hands().pins().open(namespace).expect("pins are readable").expect("the namespace exists");
        Capture::start(&netns, name).expect("the interface exists")
    }

    /// A connection from the load balancer of a network to the backend with number 1, within `wait`.
    pub fn dial_backend(&mut self, network: u64, wait: Duration) -> io::Result<TcpStream> {
        let begun = self.hands().dial_backend(NetworkId(network), EndpointId(1)).expect("namespaces can be entered");
        connected(begun.ok_or(io::ErrorKind::NotFound)??, wait)
    }

    /// An echo server on a VIP, where the proxy would listen.
    pub fn serve_vip(&mut self, network: u64, at: &str) -> Server {
        let at: SocketAddrV4 = at.parse().expect("the test writes addresses");
        let fd = self.hands().listen(NetworkId(network), at).expect("the proxy namespace exists").expect("a free port");
        Server::on(TcpListener::from(fd)).expect("a listening socket")
    }
}

/// Waits for a connection that the hands have begun.
pub fn connected(begun: OwnedFd, wait: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::from(begun);
    let deadline = Instant::now() + wait;
    while stream.peer_addr().is_err() {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.hands = None;
        for pins in [Pins::under(&self.run_dir), Ok(self.vms.clone())].into_iter().flatten() {
            for name in pins.names().unwrap_or_default() {
                let _ = pins.delete(&name);
            }
        }
        let _ = fs::remove_dir_all(&self.run_dir);
        let left = leaks(&self.run_dir);
        assert!(thread::panicking() || left.is_empty(), "left behind: {left:?}");
    }
}

/// What of this run directory is still there: mounts, files, rules in the machine's own namespace.
fn leaks(run_dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let name = run_dir.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned));
    if run_dir.exists() {
        left.push(name);
    }
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let links = links.map(|e| e.file_name().to_string_lossy().into_owned());
    let ours = |n: &String| {
        [names::PORT_PREFIX, names::INCOMING_PREFIX, names::OUTGOING_PREFIX].iter().any(|p| n.starts_with(p))
    };
    left.extend(links.filter(ours));
    left
}

/// A test VM (or container).
pub struct Vm {
    pub id: WorkloadId,
    pub realm: Realm,
    pub address: Ipv4Addr,
    netns: Netns,
}

impl Vm {
    /// One that somebody else wired.
    pub fn of(id: WorkloadId, realm: Realm, address: Ipv4Addr, netns: Netns) -> Vm {
        Vm { id, realm, address, netns }
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The router's end of its cable.
    pub fn port(&self) -> IfName {
        names::port(&self.id)
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("the namespace lives as long as the VM")
    }

    /// An echo server on all addresses.
    pub fn serve(&self, port: u16) -> Server {
        let listener = self.inside(|| TcpListener::bind(("0.0.0.0", port))).expect("a free port");
        Server::on(listener).expect("a listening socket")
    }

    /// Connects, within [`PATIENCE`].
    pub fn connect(&self, to: &str) -> io::Result<TcpStream> {
        self.dial(to, PATIENCE)
    }

    /// What came instead of a connection within [`SILENCE`]; `TimedOut` where nothing came. Fails the test when the
    /// connection comes about.
    pub fn refused(&self, to: &str) -> io::Error {
        match self.dial(to, SILENCE) {
            Ok(_) => panic!("{} reaches {to}", self.id),
            Err(error) => error,
        }
    }

    fn dial(&self, to: &str, wait: Duration) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().expect("the test writes addresses");
        self.inside(|| {
            let stream = TcpStream::connect_timeout(&to, wait)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// Connects from a chosen source port.
    pub fn connect_from(&self, port: u16, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddrV4 = to.parse().expect("the test writes addresses");
        let socket = self.inside(|| {
            let socket: OwnedFd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
            rustix::net::bind(&socket, &SocketAddrV4::new(self.address, port))?;
            rustix::net::connect(&socket, &to)?;
            io::Result::Ok(socket)
        })?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Puts a packet on the VM's cable as it is, whatever source it claims.
    pub fn forge(&self, packet: &[u8], to: Ipv4Addr) {
        self.inside(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
            rustix::net::sendto(&socket, packet, rustix::net::SendFlags::empty(), &SocketAddrV4::new(to, 0))
        })
        .expect("root may send what it likes");
    }
}
