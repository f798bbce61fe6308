//! What a request costs the proxy, in processor time: a private service, a minted token, one record per request.
//!
//! Everything is in this process and each part on its own thread: the proxy, an instance on `[::1]`, control (which
//! reads the records and throws them away) and a load of keep-alive connections. Only the proxy's thread is measured.
//!
//! `bench_proxy [CONNECTIONS] [SECONDS]` loads it itself; `bench_proxy serve` prints address and token for `wrk`.

use std::{
    error::Error,
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use identity::{
    keys::SigningKey,
    token::{IdClaims, sign_id_token},
};
use model::{
    id::{ListenerId, NetworkId, WorkloadId},
    planned::edge::{
        EdgeInstance, EdgeItem, EdgeRevision, EdgeService, EdgeTraffic, InstancePhase, Invokers, Listener, Route,
        Sockets, ToProxy,
    },
    run::{Ingress, Probe, RevisionKey, ServiceKey},
};

const AUDIENCE: &str = "https://shop-123.asia-northeast1.run.app";
const EMAIL: &str = "till@consumer-1.iam.gserviceaccount.com";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let run_dir = RunDir::new()?;
    let (proxy_thread, address, token) = start(&run_dir.0)?;
    if arguments.first().is_some_and(|a| a == "serve") {
        println!("wrk -c 64 -t 1 -H 'Authorization: Bearer {token}' http://{address}/");
        return Ok(io::stdin().read(&mut [0]).map(drop)?);
    }
    let connections = arguments.first().map_or(Ok(64), |a| a.parse())?;
    let seconds = arguments.get(1).map_or(Ok(5), |a| a.parse())?;
    let answered = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    for _ in 0..connections {
        let (answered, over, token) = (answered.clone(), over.clone(), token.clone());
        thread::Builder::new().stack_size(128 << 10).spawn(move || load(address, &token, &answered, &over))?;
    }
    thread::sleep(Duration::from_secs(1));
    let before = (answered.load(Ordering::Relaxed), cpu(proxy_thread)?, Instant::now());
    thread::sleep(Duration::from_secs(seconds));
    let requests = answered.load(Ordering::Relaxed) - before.0;
    let spent = cpu(proxy_thread)? - before.1;
    let elapsed = before.2.elapsed();
    over.store(true, Ordering::Relaxed);
    let nanos = u64::try_from(spent.as_nanos())? / requests.max(1);
    let rate = requests * 1_000 / u64::try_from(elapsed.as_millis())?;
    println!("{connections} connections: {rate} requests/s, {nanos} ns of processor time per request in the proxy");
    Ok(())
}

struct RunDir(PathBuf);

impl RunDir {
    fn new() -> io::Result<RunDir> {
        let dir = std::env::temp_dir().join(format!("tombolo-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(RunDir(dir))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts every part; returns the proxy's thread, its address and a token that it accepts.
fn start(run_dir: &Path) -> Result<(u32, SocketAddr, String), Box<dyn Error>> {
    let doors = proxy::Doors::bind(run_dir)?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
        proxy::main(doors)
    });
    let instance = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?;
    let port = instance.local_addr()?.port();
    thread::spawn(move || serve_instance(instance));

    let key = SigningKey::generate()?;
    let control = UnixStream::connect(run_dir.join("proxy.sock"))?;
    for item in plan(&key, port)? {
        ipc::send(&control, &ToProxy::Set(item), &[])?;
    }
    ipc::send(&control, &ToProxy::Complete, &[])?;
    ipc::send(&control, &ToProxy::Mark(1), &[])?;
    let _: Option<model::planned::edge::FromProxy> = ipc::read(&mut &control)?;
    thread::spawn(move || io::copy(&mut &control, &mut io::sink()));

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let host = UnixStream::connect(run_dir.join("proxy-sockets.sock"))?;
    ipc::send(&host, &Sockets::Listen(ListenerId(1)), &[listener.as_fd()])?;
    Ok((told.recv()?, address, token(&key)?))
}

fn plan(key: &SigningKey, port: u16) -> Result<Vec<EdgeItem>, Box<dyn Error>> {
    let service =
        ServiceKey { project: "producer-1".parse()?, region: "asia-northeast1".parse()?, name: "shop".into() };
    let revision = RevisionKey { service: service.clone(), name: "shop-00001-abc".into() };
    let instance =
        EdgeInstance { v6: Ipv6Addr::LOCALHOST, v4: Ipv4Addr::LOCALHOST, port, phase: InstancePhase::Serving };
    let listener = Listener {
        network: NetworkId(1),
        address: Ipv4Addr::new(10, 0, 0, 5),
        hosts: vec![],
        matchers: vec![],
        default: Route::Service { service: service.clone(), tag: None },
        keepalive_ms: 600_000,
    };
    let edge_service = EdgeService {
        ingress: Ingress::Internal,
        hosts: vec![],
        audiences: [AUDIENCE.to_owned()].into(),
        invokers: Invokers { emails: [EMAIL.to_owned()].into(), ..Invokers::default() },
        traffic: vec![EdgeTraffic { revision: revision.clone(), percent: 100, tag: None }],
    };
    let edge_revision = EdgeRevision {
        concurrency: 1_000,
        timeout_ms: 300_000,
        probe: Probe::default_for(port),
        queue_wait_ms: 10_000,
        instances_max: 20,
        instances: [(WorkloadId("shop-1".into()), instance)].into(),
    };
    Ok(vec![
        EdgeItem::Keys(vec![key.public().clone()]),
        EdgeItem::Listener(ListenerId(1), Box::new(listener)),
        EdgeItem::Service(service, Box::new(edge_service)),
        EdgeItem::Revision(revision, Box::new(edge_revision)),
    ])
}

fn token(key: &SigningKey) -> Result<String, Box<dyn Error>> {
    let now = i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?;
    Ok(sign_id_token(
        key,
        &IdClaims {
            aud: AUDIENCE.into(),
            azp: Some("123".into()),
            email: Some(EMAIL.into()),
            email_verified: true,
            exp: now + 3_600,
            google: None,
            iat: now,
            iss: "https://accounts.google.com".into(),
            sub: "123".into(),
        },
    ))
}

/// A container of the simplest kind: a fixed answer to whatever ends with an empty line.
fn serve_instance(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        thread::Builder::new().stack_size(128 << 10).spawn(move || {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";
            let mut head = [0; 4_096];
            while stream.read(&mut head).is_ok_and(|n| n > 0) && stream.write_all(answer).is_ok() {}
        })?;
    }
}

fn load(address: SocketAddr, token: &str, answered: &AtomicU64, over: &AtomicBool) -> io::Result<()> {
    let request = format!(
        "GET /hello?x=1 HTTP/1.1\r\nHost: 10.0.0.5\r\nUser-Agent: bench/1\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut answer = [0; 4_096];
    while !over.load(Ordering::Relaxed) {
        stream.write_all(request.as_bytes())?;
        let got = stream.read(&mut answer)?;
        if !answer[..got].starts_with(b"HTTP/1.1 200 ") || !answer[..got].ends_with(b"Hello, world!") {
            return Err(io::Error::other("not the answer of the instance"));
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Processor time of one thread of this process. Source: `/proc/PID/task/TID/schedstat`, first field.
fn cpu(thread: u32) -> Result<Duration, Box<dyn Error>> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"))?;
    let nanos = text.split(' ').next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
