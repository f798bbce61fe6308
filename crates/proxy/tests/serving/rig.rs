//! A proxy in this thread, with a control process, a host, instances and clients that the test plays.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::TokioIo;
use model::{
    id::{BackendId, EndpointId, ListenerId, NetworkId, WorkloadId},
    planned::edge::{
        Branch, DialBackend, EdgeInstance, EdgeItem, EdgeKey, EdgeRevision, EdgeService, EdgeTraffic, FromProxy,
        InstancePhase, Invokers, Listener, Route, Sockets, ToProxy,
    },
    record::RequestRecord,
    run::{Ingress, Probe, RevisionKey, ServiceKey},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream, unix::OwnedWriteHalf},
    sync::Notify,
    task::LocalSet,
};

/// No wait of a test is this long unless it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
pub const LISTENER: ListenerId = ListenerId(7);
pub const BACKEND_SERVICE: BackendId = BackendId(8);
pub const NETWORK: NetworkId = NetworkId(1);
pub const BACKEND: EndpointId = EndpointId(9);

pub fn run<F: Future<Output = ()>>(scene: impl FnOnce(Rig) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let rig = Rig::start().await;
        scene(rig).await;
    });
}

pub async fn patiently<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub struct Rig {
    dir: PathBuf,
    pub control: Control,
    host: StdUnixStream,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Rig {
    async fn start() -> Rig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tombolo-proxy-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let doors = proxy::Doors::bind(&dir).unwrap();
        tokio::task::spawn_local(async { proxy::serve(doors).await.unwrap() });
        let control = Control::connect(&dir).await;
        let host = StdUnixStream::connect(dir.join("proxy-sockets.sock")).unwrap();
        Rig { dir, control, host }
    }

    /// A control process that comes after the present one.
    pub async fn new_control(&mut self) {
        self.control = Control::connect(&self.dir).await;
    }

    pub fn lose_control(&mut self) {
        self.control.writer = None;
        self.control.reading.abort();
    }

    /// A listening socket for the rule, handed over as the host does.
    pub async fn listen(&self) -> SocketAddr {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        ipc::send(&self.host, &Sockets::Listen(LISTENER), &[socket.as_fd()]).unwrap();
        drop(socket);
        address
    }

    pub fn unlisten(&self) {
        ipc::send(&self.host, &Sockets::Unlisten(LISTENER), &[]).unwrap();
    }

    /// The host makes connections to the backend at this address. Returns how often it was asked, and for what last.
    pub fn host_dials(&self, backend: SocketAddr) -> Dialled {
        let asked = Dialled::default();
        let door = StdUnixListener::bind(self.dir.join("host-backends.sock")).unwrap();
        let memory = asked.clone();
        std::thread::spawn(move || {
            for stream in door.incoming() {
                let stream = stream.unwrap();
                let question = ipc::Receiver::new(stream.try_clone().unwrap()).recv::<DialBackend>();
                let Ok(Some((question, _))) = question else { continue };
                memory.lock().unwrap().push(question);
                let begun = begin(backend).map_err(|e| e.to_string());
                let _ = ipc::answer_socket(&stream, begun);
            }
        });
        asked
    }

    /// A listener whose one backend is a Private Service Connect endpoint.
    pub async fn balancer(&self, timeout_ms: u64) -> SocketAddr {
        let default = lead(Route::Endpoint { endpoint: BACKEND, timeout_ms });
        self.control.set(EdgeItem::Listener(LISTENER, Box::new(Listener { default, ..listener() }))).await;
        self.control.send(&ToProxy::Complete).await;
        self.control.mark().await;
        self.listen().await
    }

    /// A connection from the door.
    pub async fn outside(&self) -> UnixStream {
        UnixStream::connect(self.dir.join("proxy-outside.sock")).await.unwrap()
    }

    /// One listener and one public service with one revision at these instances.
    pub async fn shop(&self, instances: &[(&str, SocketAddr)]) -> SocketAddr {
        self.shop_with(public(), revision(instances)).await
    }

    pub async fn shop_with(&self, service: EdgeService, revision: EdgeRevision) -> SocketAddr {
        self.tell_everything(service, revision).await;
        self.listen().await
    }

    /// Control says all there is.
    pub async fn tell_everything(&self, service: EdgeService, revision: EdgeRevision) {
        self.control.set(EdgeItem::Listener(LISTENER, Box::new(listener()))).await;
        self.control.set(EdgeItem::Service(shop(), Box::new(service))).await;
        self.control.set(EdgeItem::Revision(shop_1(), Box::new(revision))).await;
        self.control.send(&ToProxy::Complete).await;
        self.control.mark().await;
    }
}

/// What the host was asked for.
pub type Dialled = Arc<Mutex<Vec<DialBackend>>>;

/// A socket that is being connected.
fn begin(to: SocketAddr) -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

pub struct Control {
    writer: Option<RefCell<OwnedWriteHalf>>,
    inbox: Rc<Inbox>,
    mark: Cell<u64>,
    reading: tokio::task::AbortHandle,
}

#[derive(Default)]
struct Inbox {
    messages: RefCell<Vec<FromProxy>>,
    came: Notify,
}

impl Control {
    async fn connect(dir: &std::path::Path) -> Control {
        let (mut reader, writer) = UnixStream::connect(dir.join("proxy.sock")).await.unwrap().into_split();
        let inbox = Rc::new(Inbox::default());
        let filled = inbox.clone();
        let reading = tokio::task::spawn_local(async move {
            while let Ok(Some(message)) = ipc::read_async(&mut reader).await {
                filled.messages.borrow_mut().push(message);
                filled.came.notify_waiters();
            }
        });
        Control { writer: Some(RefCell::new(writer)), inbox, mark: Cell::new(0), reading: reading.abort_handle() }
    }

    #[expect(clippy::await_holding_refcell_ref, reason = "one scene, one writer")]
    pub async fn send(&self, message: &ToProxy) {
        let mut writer = self.writer.as_ref().unwrap().borrow_mut();
        ipc::write_async(&mut *writer, message).await.unwrap();
    }

    pub async fn set(&self, item: EdgeItem) {
        self.send(&ToProxy::Set(item)).await;
    }

    pub async fn unset(&self, key: EdgeKey) {
        self.send(&ToProxy::Unset(key)).await;
    }

    /// Returns once everything sent before holds.
    pub async fn mark(&self) {
        let number = self.mark.get() + 1;
        self.mark.set(number);
        self.send(&ToProxy::Mark(number)).await;
        self.hears("Applied", |m| matches!(m, FromProxy::Applied(n) if *n == number).then_some(())).await;
    }

    /// Waits for a message, among those that came already too.
    pub async fn hears<T>(&self, what: &str, pick: impl Fn(&FromProxy) -> Option<T>) -> T {
        patiently(what, async {
            loop {
                let came = self.inbox.came.notified();
                if let Some(found) = self.inbox.messages.borrow().iter().find_map(&pick) {
                    return found;
                }
                came.await;
            }
        })
        .await
    }

    pub fn heard<T>(&self, pick: impl Fn(&FromProxy) -> Option<T>) -> Vec<T> {
        self.inbox.messages.borrow().iter().filter_map(pick).collect()
    }

    pub fn forget(&self) {
        self.inbox.messages.borrow_mut().clear();
    }

    /// Waits until this many request records have come, and returns them all.
    pub async fn records(&self, count: usize) -> Vec<RequestRecord> {
        patiently("records", async {
            loop {
                let came = self.inbox.came.notified();
                let records = self.records_so_far();
                if records.len() >= count {
                    return records;
                }
                came.await;
            }
        })
        .await
    }

    pub fn records_so_far(&self) -> Vec<RequestRecord> {
        let batches = self.heard(|m| match m {
            FromProxy::Requests(batch) => Some(batch.clone()),
            _ => None,
        });
        batches.concat()
    }
}

pub fn shop() -> ServiceKey {
    ServiceKey {
        project: "producer-1".parse().unwrap(),
        region: "asia-northeast1".parse().unwrap(),
        name: "shop".into(),
    }
}

pub fn shop_1() -> RevisionKey {
    RevisionKey { service: shop(), name: "shop-00001-abc".into() }
}

pub fn lead(route: Route) -> Branch {
    Branch { backend: Some(BACKEND_SERVICE), route }
}

pub fn listener() -> Listener {
    Listener {
        network: NETWORK,
        address: Ipv4Addr::new(10, 0, 0, 5),
        hosts: vec![],
        matchers: vec![],
        default: lead(Route::Service { service: shop(), tag: None }),
        keepalive_ms: 600_000,
    }
}

pub fn public() -> EdgeService {
    EdgeService {
        ingress: Ingress::All,
        hosts: vec!["shop-123.asia-northeast1.run.app".into()],
        audiences: ["https://shop-123.asia-northeast1.run.app".to_owned()].into(),
        invokers: Invokers { everyone: true, ..Invokers::default() },
        traffic: vec![EdgeTraffic { revision: shop_1(), percent: 100, tag: None }],
    }
}

/// A revision whose instances are up already.
pub fn revision(instances: &[(&str, SocketAddr)]) -> EdgeRevision {
    let instances = instances.iter().map(|(id, at)| (WorkloadId((*id).into()), instance(*at, InstancePhase::Serving)));
    EdgeRevision {
        concurrency: 80,
        timeout_ms: 60_000,
        probe: Probe::default_for(8080),
        queue_wait_ms: 10_000,
        instances_max: 20,
        instances: instances.collect::<BTreeMap<_, _>>(),
    }
}

/// Where nobody listens.
pub fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap()
}

pub fn instance(at: SocketAddr, phase: InstancePhase) -> EdgeInstance {
    EdgeInstance { v6: Ipv6Addr::LOCALHOST, v4: Ipv4Addr::LOCALHOST, port: at.port(), phase }
}

/// What a container saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub peer: SocketAddr,
}

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// A container that answers "hello" and remembers what it was asked.
pub struct Container {
    pub address: SocketAddr,
    pub seen: Rc<RefCell<Vec<Seen>>>,
    pub connections: Rc<Cell<u32>>,
}

impl Container {
    pub async fn hello() -> Container {
        Container::at("[::1]:0").await
    }

    pub async fn at(address: &str) -> Container {
        let seen: Rc<RefCell<Vec<Seen>>> = Rc::default();
        let memory = seen.clone();
        let (address, connections) = serve_at(address, move |request, peer| {
            let memory = memory.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let line = format!("{} {}", parts.method, parts.uri);
                memory.borrow_mut().push(Seen { line, headers: parts.headers, body, peer });
                Response::new(full("hello"))
            }
        })
        .await;
        Container { address, seen, connections }
    }

    pub fn last(&self) -> Seen {
        self.seen.borrow().last().expect("the container was asked").clone()
    }
}

/// A container that answers as the scene says.
pub async fn serve_at<F: Future<Output = Response<Body>> + 'static>(
    address: &str,
    answer: impl Fn(Request<Incoming>, SocketAddr) -> F + Clone + 'static,
) -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Rc::new(Cell::new(0));
    let counter = connections.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            counter.set(counter.get() + 1);
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request, peer);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::task::spawn_local(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, connections)
}

/// A container that answers every connection's first bytes with these and closes.
pub async fn raw_container(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    address
}

/// Sends bytes and returns everything that comes back until the end.
pub async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = patiently("an answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

/// A keep-alive client.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        Client::over(stream).await
    }

    pub async fn over(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static) -> Client {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Client { sender }
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.ask(Request::get(path).header("host", "10.0.0.5").body(Full::default()).unwrap()).await
    }

    pub async fn get_with(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::get(path).header("host", "10.0.0.5");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.ask(request.body(Full::default()).unwrap()).await
    }

    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Answer {
        self.try_ask(request).await.expect("the proxy answers")
    }

    pub async fn try_ask(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        patiently("an answer", async {
            self.sender.ready().await?;
            let (parts, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        })
        .await
    }
}
