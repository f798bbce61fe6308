//! A guest with a fake control and a fake host. Workloads are loopback addresses: whoever connects from 127.0.0.2 is
//! another workload than whoever connects from 127.0.0.3.

#![allow(dead_code)] // Each test file uses its own part of the scene.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use model::{
    id::NetworkId,
    name::{Link, Scope},
    planned::guest::{
        Account, FromGuest, GuestItem, Identity, Machine, MintRefusal, Minted, Named, Names, Realm, Seat, Sockets,
        ToGuest, Want,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream, unix::OwnedWriteHalf},
    task::JoinHandle,
};

pub const VM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
pub const REALM: Realm = Realm::Vpc(NetworkId(1));
pub const VM_ACCOUNT: &str = "123456789012-compute@developer.gserviceaccount.com";
pub const CONTAINER_ACCOUNT: &str = "robot@producer-1.iam.gserviceaccount.com";

pub fn seat(address: Ipv4Addr) -> Seat {
    Seat { realm: REALM, address }
}

pub fn vm() -> Identity {
    Identity {
        project_id: "consumer-1".into(),
        project_number: 123456789012,
        project_attributes: BTreeMap::from([("ssh-keys".into(), "ada:ssh-ed25519 AAAA".into())]),
        region: "asia-northeast1".into(),
        zone: "asia-northeast1-b".into(),
        account: Some(Account {
            email: VM_ACCOUNT.into(),
            scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
        }),
        machine: Machine::Vm {
            id: 9_007_199_254_740_993,
            name: "test-vm".into(),
            hostname: "test-vm.asia-northeast1-b.c.consumer-1.internal".into(),
            machine_type: "e2-micro".into(),
            tags: vec!["ssh".into(), "web".into()],
            attributes: BTreeMap::from([("startup-script".into(), "echo hi".into())]),
            address: VM,
            gateway: "127.0.0.1".parse().unwrap(),
            netmask: "255.255.255.0".parse().unwrap(),
            mac: "42:01:7f:00:00:02".into(),
            mtu: 1460,
            network: "consumer-vpc".into(),
            image: "projects/debian-cloud/global/images/debian-12".into(),
        },
    }
}

pub fn container() -> Identity {
    Identity {
        project_id: "producer-1".into(),
        project_number: 210987654321,
        project_attributes: BTreeMap::new(),
        region: "asia-northeast1".into(),
        zone: "asia-northeast1-a".into(),
        account: Some(Account {
            email: CONTAINER_ACCOUNT.into(),
            scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
        }),
        machine: Machine::Container { instance_id: "00f1e2d3".repeat(33) },
    }
}

/// How the fake control answers wishes for tokens.
#[derive(Clone, Copy)]
pub enum Minting {
    /// `seat want number`, valid this many seconds.
    Valid(u64),
    Refused(fn() -> MintRefusal),
    Silent,
}

pub struct Scene {
    pub dir: PathBuf,
    pub http: SocketAddr,
    pub dns: SocketAddr,
    pub minting: Arc<Mutex<Minting>>,
    /// Every wish that reached control.
    pub asked: Arc<Mutex<Vec<(Seat, Want)>>>,
    serving: JoinHandle<()>,
    control: Option<Control>,
    host: Option<std::os::unix::net::UnixStream>,
}

struct Control {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    reading: JoinHandle<()>,
    applied: tokio::sync::watch::Receiver<u64>,
    marks: u64,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Scene {
    /// A guest that serves one realm with one VM and one container, and has a control that mints.
    pub async fn open() -> Scene {
        let mut scene = Scene::just_started();
        scene.start_control().await;
        scene.tell_everything().await;
        scene.start_host().await;
        scene
    }

    /// A guest that nobody has said anything to.
    pub fn just_started() -> Scene {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tombolo-guest-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let doors = guest::Doors::bind(&dir).unwrap();
        let serving = tokio::spawn(guest::serve(doors));
        Scene {
            dir,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            dns: SocketAddr::from(([127, 0, 0, 1], 0)),
            minting: Arc::new(Mutex::new(Minting::Valid(3600))),
            asked: Arc::default(),
            serving,
            control: None,
            host: None,
        }
    }

    /// Control says all there is.
    pub async fn tell_everything(&mut self) {
        self.tell(ToGuest::Set(GuestItem::Workload(seat(VM), Box::new(vm())))).await;
        self.tell(ToGuest::Set(GuestItem::Workload(seat(CONTAINER), Box::new(container())))).await;
        let zone = Scope::Zone("us-west1-b".parse().unwrap());
        let link = Link::new(&"consumer-1".parse().unwrap(), zone, "instances", "test-vm");
        let names = vec!["test-vm.c.consumer-1.internal".to_owned()];
        let names = Names { zone: None, names, addresses: vec![VM] };
        self.tell(ToGuest::Set(GuestItem::Names(REALM, Named::Vm(link), names))).await;
        self.tell(ToGuest::Complete).await;
        self.settled().await;
    }

    async fn connect(&self, name: &str) -> UnixStream {
        loop {
            match UnixStream::connect(self.dir.join(name)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub async fn start_control(&mut self) {
        let (mut reader, writer) = self.connect("guest.sock").await.into_split();
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let (send_applied, applied) = tokio::sync::watch::channel(0);
        let (minting, asked, answers) = (self.minting.clone(), self.asked.clone(), writer.clone());
        let reading = tokio::spawn(async move {
            while let Ok(Some(message)) = ipc::read_async(&mut reader).await {
                let FromGuest::Mint { ticket, seat, want } = message else {
                    let FromGuest::Applied(number) = message else { unreachable!() };
                    send_applied.send_replace(number);
                    continue;
                };
                let number = {
                    let mut asked = asked.lock().unwrap();
                    asked.push((seat, want.clone()));
                    asked.len()
                };
                let outcome = match *minting.lock().unwrap() {
                    Minting::Silent => continue,
                    Minting::Refused(why) => Err(why()),
                    Minting::Valid(expires_in_s) => {
                        Ok(Minted { token: format!("{} {want:?} {number}", seat.address), expires_in_s })
                    }
                };
                let answer = ToGuest::Minted { ticket, outcome };
                let _ = ipc::write_async(&mut *answers.lock().await, &answer).await;
            }
        });
        self.control = Some(Control { writer, reading, applied, marks: 0 });
    }

    /// Control dies. Returns when the guest has noticed: minting is then refused at once.
    pub async fn kill_control(&mut self) {
        let control = self.control.take().unwrap();
        control.reading.abort();
        let _ = control.reading.await;
        drop(control.writer);
    }

    pub async fn tell(&mut self, message: ToGuest) {
        let control = self.control.as_ref().unwrap();
        ipc::write_async(&mut *control.writer.lock().await, &message).await.unwrap();
    }

    /// Waits until everything told before holds.
    pub async fn settled(&mut self) {
        let control = self.control.as_mut().unwrap();
        control.marks += 1;
        let mark = ToGuest::Mark(control.marks);
        ipc::write_async(&mut *control.writer.lock().await, &mark).await.unwrap();
        let marks = control.marks;
        control.applied.wait_for(|applied| *applied >= marks).await.unwrap();
    }

    /// A host process connects and passes the sockets of the realm.
    pub async fn start_host(&mut self) {
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (udp, tcp) = both_on_one_port();
        (self.http, self.dns) = (http.local_addr().unwrap(), udp.local_addr().unwrap());
        let host = self.connect("guest-sockets.sock").await.into_std().unwrap();
        host.set_nonblocking(false).unwrap();
        ipc::send(&host, &Sockets::Serve(REALM), &[http.as_fd(), udp.as_fd(), tcp.as_fd()]).unwrap();
        ipc::send(&host, &Sockets::Complete, &[]).unwrap();
        self.host = Some(host);
    }

    pub fn tell_host(&self, message: &Sockets) {
        ipc::send(self.host.as_ref().unwrap(), message, &[]).unwrap();
    }

    pub async fn stream(&self, from: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
        socket.connect(self.http).await.unwrap()
    }

    /// Sends these bytes from this address and returns all that comes back.
    pub async fn raw(&self, from: Ipv4Addr, request: &str) -> Reply {
        let mut stream = self.stream(from).await;
        // A server that has seen enough may close before the last byte.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Reply { head: head.to_owned(), body: body.to_owned() }
    }

    /// A GET as stock clients send it.
    pub async fn get(&self, from: Ipv4Addr, path: &str) -> Reply {
        self.get_with(from, path, "Metadata-Flavor: Google\r\n").await
    }

    pub async fn get_with(&self, from: Ipv4Addr, path: &str, headers: &str) -> Reply {
        let head = format!("GET {path} HTTP/1.1\r\nHost: metadata.google.internal\r\nConnection: close\r\n");
        self.raw(from, &format!("{head}{headers}\r\n")).await
    }
}

/// The port that UDP gets may be taken for TCP: then another one.
fn both_on_one_port() -> (std::net::UdpSocket, std::net::TcpListener) {
    loop {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(tcp) = std::net::TcpListener::bind(udp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

#[derive(Debug)]
pub struct Reply {
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Status and body.
    pub fn said(&self) -> (u16, &str) {
        (self.status(), &self.body)
    }
}
