//! What a request costs the proxy, in processor time: a private service, a minted token that is checked, one structured
//! record per request; beside HAProxy with its HTTP log on, which checks nobody.
//!
//! The proxy, an instance on `[::1]` and control (which reads the records and throws them away) are threads of this
//! process; only the proxy's thread is measured. HAProxy forwards to the same instance, and the same load meets both.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::SystemTime,
};

use identity::{
    keys::SigningKey,
    token::{IdClaims, sign_id_token},
};
use model::{
    id::{BackendId, ListenerId, NetworkId, WorkloadId},
    planned::edge::{
        Branch, EdgeInstance, EdgeItem, EdgeRevision, EdgeService, EdgeTraffic, InstancePhase, Invokers, Listener,
        Route, Sockets, ToProxy,
    },
    run::{Ingress, Probe, RevisionKey, ServiceKey},
};

use crate::{
    Outcome, Tools,
    haproxy::HaProxy,
    report::{Aim, Row, Spread},
};

const AUDIENCE: &str = "https://shop-123.asia-northeast1.run.app";
const EMAIL: &str = "till@consumer-1.iam.gserviceaccount.com";
/// Rounds in which both take turns, after one that is not counted.
const ROUNDS: usize = 16;
const SECONDS: &str = "1s";

/// A running proxy with all that it needs.
struct Ours {
    thread: u32,
    address: SocketAddr,
    instance: SocketAddr,
    token: String,
}

pub fn bench(tools: &Tools) -> Outcome<Vec<Row>> {
    let dir = tools.scratch.join("proxy");
    fs::create_dir_all(&dir)?;
    let ours = start(&dir)?;
    let haproxy = HaProxy::start(&dir, ours.instance)?;
    let own = format!("/proc/self/task/{}/schedstat", ours.thread);
    let theirs = format!("/proc/{}/schedstat", haproxy.pid());
    let (mut spent, mut peer) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let measured =
            (per_request(ours.address, &ours.token, &own)?, per_request(haproxy.address, &ours.token, &theirs)?);
        if round > 0 {
            spent.push(measured.0);
            peer.push(measured.1);
        }
    }
    let peer = Some(("HAProxy", Spread::of(peer)));
    let promise = "processor time of the proxy per request";
    Ok(vec![Row { promise, aim: Aim::OfPeer(1.2), unit: "µs", ours: Spread::of(spent), peer }])
}

/// Loads the proxy at `address` for a while; microseconds of processor time per request of the thread behind `schedstat`.
fn per_request(address: SocketAddr, token: &str, schedstat: &str) -> Outcome<f64> {
    let before = cpu_ns(schedstat)?;
    let mut wrk = Command::new("wrk");
    wrk.args(["-t", "1", "-c", "64", "-d", SECONDS, "-H", &format!("Authorization: Bearer {token}")]);
    let output =
        wrk.arg(format!("http://{address}/hello?x=1")).output().map_err(|e| format!("cannot start wrk: {e}"))?;
    let spent = cpu_ns(schedstat)? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("not every request was answered well:\n{text}").into());
    }
    let requests = text.lines().find_map(|l| l.trim().split_once(" requests in ")).ok_or("no count from wrk")?;
    Ok(spent / requests.0.parse::<f64>()? / 1e3)
}

/// Nanoseconds on a processor. Source: `/proc/PID/schedstat`, first field; of one thread.
fn cpu_ns(schedstat: &str) -> Outcome<f64> {
    let text = fs::read_to_string(schedstat)?;
    Ok(text.split(' ').next().ok_or("an empty schedstat")?.parse()?)
}

/// Starts every part.
fn start(run_dir: &Path) -> Outcome<Ours> {
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
    Ok(Ours {
        thread: told.recv()?,
        address,
        instance: SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        token: token(&key)?,
    })
}

fn plan(key: &SigningKey, port: u16) -> Outcome<Vec<EdgeItem>> {
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
        default: Branch { backend: Some(BackendId(1)), route: Route::Service { service: service.clone(), tag: None } },
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

fn token(key: &SigningKey) -> Outcome<String> {
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
