//! The door over real loopback sockets: what clients see, what hostile ones see, and that nothing leaves.

#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use api::{
    call::{Answer, Api, BoxFuture, Call, Router},
    door::{Beyond, Carry, Door, Rooms, Stream, Tunnels},
    host::Service,
    reply::Reply,
    tls::Authority,
};
use model::{
    fault::{Code, Fault},
    limits,
    planned::edge::Outside,
    time::Timestamp,
};

/// Answers with what it was asked.
struct Echo;

impl Api for Echo {
    fn serve(&self, call: Call) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            Ok(Reply::json(json!({
                "service": call.host.service.host(),
                "region": call.host.region.as_ref().map(ToString::to_string),
                "method": call.method.as_str(),
                "path": call.path.join("/"),
                "verb": call.verb(),
                "body": String::from_utf8_lossy(&call.body),
            })))
        })
    }
}

/// Stands for the proxy: says what it was told, then sends back what it reads.
struct Mirror;

impl Beyond for Mirror {
    fn carry(&self, first: Outside, client: Box<dyn Stream>) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async move {
            let (mut read, mut write) = tokio::io::split(client);
            write.write_all(format!("{} {}\n", first.scheme, first.peer).as_bytes()).await?;
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        })
    }
}

impl Tunnels for Mirror {
    fn open(&self, call: Call) -> Result<Carry, Fault> {
        if call.bearer() != Some("good") {
            return Err(Fault::new(Code::Unauthenticated, "authError", "Invalid Credentials"));
        }
        Ok(Box::new(|stream| {
            Box::pin(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            })
        }))
    }
}

/// A door that is open as long as this value lives.
struct Cloud {
    address: SocketAddr,
    ca_pem: String,
    dir: PathBuf,
    door: AbortHandle,
}

impl Cloud {
    async fn open() -> Cloud {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tombolo-door-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut router = Router::new();
        for service in [Service::Compute, Service::Run, Service::Logging, Service::OAuth] {
            router = router.with(service, Arc::new(Echo));
        }
        let rooms = Rooms {
            router,
            beyond: Arc::new(Mirror),
            tunnels: Arc::new(Mirror),
            authority: Authority::open(&dir).unwrap(),
            now: Box::new(|| Timestamp::parse_rfc3339(&now_rfc3339()).unwrap()),
        };
        let door = Door::bind("127.0.0.1:0".parse().unwrap(), rooms).await.unwrap();
        let (address, ca_pem) = (door.local_addr().unwrap(), door.authority().ca_pem().to_owned());
        Cloud { address, ca_pem, dir, door: tokio::spawn(door.run()).abort_handle() }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// `CONNECT`, then TLS that trusts our authority alone.
    async fn tunnel(&self, host: &str) -> TlsStream<TcpStream> {
        let mut stream = self.dial().await;
        stream.write_all(format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Sends bytes, closes its side, and gives back everything that comes.
    async fn says(&self, request: &[u8]) -> String {
        let mut stream = self.dial().await;
        // A refusal may close the connection while we are still writing.
        let _ = stream.write_all(request).await;
        let mut out = Vec::new();
        let _ = stream.read_to_end(&mut out).await;
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.door.abort();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn now_rfc3339() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_unix_s(i64::try_from(since.as_secs()).unwrap()).rfc3339_us()
}

struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Reads one answer with a content length, and not a byte more.
async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Got {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer has a head"));
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    Got { status, head, body }
}

#[tokio::test]
async fn a_client_that_trusts_our_authority_reaches_an_api_through_connect() {
    let cloud = Cloud::open().await;
    let mut tls = cloud.tunnel("asia-northeast1-run.googleapis.com").await;
    assert_eq!(tls.get_ref().1.alpn_protocol(), None);
    for n in 0..3 {
        let body = format!("{{\"n\":{n}}}");
        let length = body.len();
        tls.write_all(
            format!("POST /apis/serving.knative.dev/v1/namespaces/p/services?alt=json HTTP/1.1\r\nHost: asia-northeast1-run.googleapis.com\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes(),
        )
        .await
        .unwrap();
        let got = read_answer(&mut tls).await;
        assert_eq!(
            got.json(),
            json!({"service": "run.googleapis.com", "region": "asia-northeast1", "method": "POST",
                   "path": "apis/serving.knative.dev/v1/namespaces/p/services", "verb": null, "body": body})
        );
        assert!(got.head.contains("content-type: application/json; charset=UTF-8\r\n"));
    }
}

#[tokio::test]
async fn absolute_form_and_endpoint_overrides_reach_the_same_apis() {
    let cloud = Cloud::open().await;
    for (target, host, service, region) in [
        (
            "http://compute.googleapis.com/compute/v1/projects/p",
            "compute.googleapis.com",
            "compute.googleapis.com",
            None,
        ),
        ("http://www.googleapis.com/compute/v1/projects/p", "www.googleapis.com", "compute.googleapis.com", None),
        ("http://www.googleapis.com/oauth2/v1/certs", "www.googleapis.com", "oauth2.googleapis.com", None),
        ("/compute/v1/projects/p", "127.0.0.1:4000", "compute.googleapis.com", None),
        ("/v2/entries:list", "localhost", "logging.googleapis.com", None),
        (
            "/apis/serving.knative.dev/v1/x",
            "asia-northeast1-run.localhost:4000",
            "run.googleapis.com",
            Some("asia-northeast1"),
        ),
        ("/v2/projects/p/locations/r/services", "run.googleapis.com", "run.googleapis.com", None),
    ] {
        let mut stream = cloud.dial().await;
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let got = read_answer(&mut stream).await;
        assert_eq!(got.status, 200, "{target}");
        assert_eq!((&got.json()["service"], &got.json()["region"]), (&json!(service), &json!(region)), "{target}");
    }
}

#[tokio::test]
async fn a_service_of_our_own_gets_the_raw_stream_and_the_proxy_is_told_the_peer() {
    let cloud = Cloud::open().await;
    let mut tls = BufReader::new(cloud.tunnel("hello-123.asia-northeast1.run.app").await);
    let mut line = String::new();
    tls.read_line(&mut line).await.unwrap();
    assert_eq!(line, "https 127.0.0.1\n");
    tls.write_all(b"any bytes\n").await.unwrap();
    line.clear();
    tls.read_line(&mut line).await.unwrap();
    assert_eq!(line, "any bytes\n");
}

#[tokio::test]
async fn a_service_asked_without_tls_points_to_https() {
    let cloud = Cloud::open().await;
    let mut stream = cloud.dial().await;
    stream.write_all(b"GET http://hello-1.r.run.app/a?b=c HTTP/1.1\r\nHost: hello-1.r.run.app\r\n\r\n").await.unwrap();
    let got = read_answer(&mut stream).await;
    assert_eq!(got.status, 302);
    assert!(got.head.contains("location: https://hello-1.r.run.app/a?b=c\r\n"), "{}", got.head);
}

#[tokio::test]
async fn a_batch_is_served_part_by_part() {
    let cloud = Cloud::open().await;
    let mut tls = cloud.tunnel("compute.googleapis.com").await;
    let part = |n| {
        format!(
            "--===b==\nContent-Type: application/http\nContent-ID: <u+{n}>\n\nGET /compute/v1/projects/p/{n} HTTP/1.1\nHost: x\n\n"
        )
    };
    let body = format!("{}{}--===b==--\n", part(1), part(2));
    let length = body.len();
    tls.write_all(format!("POST /batch/compute/v1 HTTP/1.1\r\nHost: compute.googleapis.com\r\nContent-Type: multipart/mixed; boundary=\"===b==\"\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes()).await.unwrap();
    let got = read_answer(&mut tls).await;
    let text = String::from_utf8(got.body).unwrap();
    assert_eq!(got.status, 200);
    assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{text}");
    assert!(text.contains("Content-ID: <response-u+2>"), "{text}");
}

#[tokio::test]
async fn no_other_host_is_reached_by_any_way_of_asking() {
    let cloud = Cloud::open().await;
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = outside.local_addr().unwrap();
    for request in [
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
        format!("CONNECT localhost:{} HTTP/1.1\r\nHost: compute.googleapis.com\r\n\r\n", target.port()),
        "CONNECT metadata.google.internal:80 HTTP/1.1\r\n\r\n".into(),
        "CONNECT 169.254.169.254:443 HTTP/1.1\r\n\r\n".into(),
        "CONNECT example.com:443 HTTP/1.1\r\nHost: compute.googleapis.com:443\r\n\r\n".into(),
        "CONNECT storage.googleapis.com:443 HTTP/1.1\r\n\r\n".into(),
        // A name of ours, but an API that this cloud does not serve, and ports that are not TLS.
        "CONNECT iam.googleapis.com:443 HTTP/1.1\r\n\r\n".into(),
        "CONNECT compute.googleapis.com:80 HTTP/1.1\r\n\r\n".into(),
        format!("CONNECT compute.googleapis.com:{} HTTP/1.1\r\n\r\n", target.port()),
        format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n"),
        format!("GET http://{target}/compute/v1/projects/p HTTP/1.1\r\nHost: compute.googleapis.com\r\n\r\n"),
        "GET http://metadata.google.internal/computeMetadata/v1/ HTTP/1.1\r\nMetadata-Flavor: Google\r\n\r\n".into(),
        "GET http://example.com:443@compute.googleapis.com.evil.example/ HTTP/1.1\r\n\r\n".into(),
    ] {
        let mut stream = cloud.dial().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let got = read_answer(&mut stream).await;
        assert_eq!(got.status, 403, "{request}");
        assert!(String::from_utf8_lossy(&got.body).contains("connects to nothing else"), "{request}");
    }
    let nobody = outside.into_std().unwrap();
    assert_eq!(nobody.accept().map(|_| ()).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_request_for_another_host_inside_a_tunnel_is_misdirected() {
    let cloud = Cloud::open().await;
    let mut tls = cloud.tunnel("compute.googleapis.com").await;
    tls.write_all(b"GET /v2/entries:list HTTP/1.1\r\nHost: logging.googleapis.com\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut tls).await.status, 421);
    tls.write_all(b"CONNECT logging.googleapis.com:443 HTTP/1.1\r\nHost: compute.googleapis.com\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(read_answer(&mut tls).await.status, 405);
}

#[tokio::test]
async fn heads_that_are_too_big_or_broken_are_refused() {
    let cloud = Cloud::open().await;
    let long = "x".repeat(limits::API_HEAD_BYTES_MAX);
    let many = "a: b\r\n".repeat(limits::API_HEADERS_MAX + 1);
    for (request, status) in [
        (format!("GET /compute/v1 HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), "431"),
        (format!("GET /compute/v1 HTTP/1.1\r\n{many}\r\n"), "431"),
        ("\u{16}\u{3}\u{1}\r\n\r\n".into(), "400"),
        ("GET /compute/v1 HTTP/1.1\r\nHost : a\r\n\r\n".into(), "400"),
        ("GET /compute/v1\u{0} HTTP/1.1\r\n\r\n".into(), "400"),
        ("POST /compute/v1 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".into(), "400"),
        ("POST /compute/v1 HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n".into(), "400"),
    ] {
        let answer = cloud.says(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{:.60}: {answer:.60}", request);
    }
}

#[tokio::test]
async fn a_request_hidden_behind_two_lengths_is_never_served() {
    let cloud = Cloud::open().await;
    let hidden = "GET /compute/v1/hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    for lengths in
        ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"]
    {
        let request = format!("POST /compute/v1/seen HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n0\r\n\r\n{hidden}");
        let answer = cloud.says(request.as_bytes()).await;
        assert!(!answer.contains("hidden"), "{lengths}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths}: {answer}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_announced_or_not() {
    let cloud = Cloud::open().await;
    let announced =
        format!("POST /compute/v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", limits::API_BODY_BYTES_MAX + 1);
    let mut stream = cloud.dial().await;
    stream.write_all(announced.as_bytes()).await.unwrap();
    let got = read_answer(&mut stream).await;
    assert_eq!((got.status, &got.json()["error"]["errors"][0]["reason"]), (400, &json!("uploadTooLarge")));

    let mut stream = cloud.dial().await;
    stream.write_all(b"POST /compute/v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    for _ in 0..limits::API_BODY_BYTES_MAX / (1 << 20) {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    // One byte too many.
    stream.write_all(b"1\r\nx\r\n").await.unwrap();
    assert_eq!(
        read_answer(&mut stream).await.json()["error"]["message"],
        "Request payload size exceeds the limit: 10485760 bytes."
    );
}

#[tokio::test]
async fn bytes_sent_ahead_of_a_tunnel_close_it() {
    let cloud = Cloud::open().await;
    let answer =
        cloud.says(b"CONNECT compute.googleapis.com:443 HTTP/1.1\r\n\r\nGET /compute/v1 HTTP/1.1\r\n\r\n").await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_turned_away_and_a_free_place_is_used_again() {
    let cloud = Cloud::open().await;
    let mut idle = Vec::new();
    for _ in 0..limits::API_CONNECTIONS_MAX {
        idle.push(cloud.dial().await);
    }
    // The one before the limit is served, so all before it have their places.
    let last = idle.last_mut().unwrap();
    last.write_all(b"GET /compute/v1 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(last).await.status, 200);
    assert!(cloud.says(b"").await.starts_with("HTTP/1.1 503 "));
    drop(idle);
    loop {
        let mut stream = cloud.dial().await;
        let asked = stream.write_all(b"GET /compute/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let mut answer = String::new();
        if asked.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200 ") {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_door_opens_on_loopback_only() {
    let dir = std::env::temp_dir().join(format!("tombolo-door-wide-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let authority = Authority::open(&dir).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let rooms = Rooms {
        router: Router::new(),
        beyond: Arc::new(Mirror),
        tunnels: Arc::new(Mirror),
        authority,
        now: Box::new(|| Timestamp(0)),
    };
    assert!(Door::bind("0.0.0.0:0".parse().unwrap(), rooms).await.is_err());
}

#[test]
fn a_client_that_never_ends_its_head_or_its_greeting_is_let_go() {
    // With a paused clock the runtime jumps to the next timer as soon as nobody has anything to do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let cloud = Cloud::open().await;
        assert_eq!(cloud.says(b"GET /compute/v1 HTTP/1.1\r\nHost: a\r\n").await, "");
        let started = tokio::time::Instant::now();
        let answer = cloud.says(b"CONNECT compute.googleapis.com:443 HTTP/1.1\r\n\r\n").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(started.elapsed() >= limits::HEAD_READ_MAX, "let go before its time");
    });
}

#[tokio::test]
async fn a_websocket_of_the_relay_is_agreed_on_with_a_credential_and_then_carried() {
    let cloud = Cloud::open().await;
    let ask = |token: &str, more: &str| {
        format!(
            "GET /v4/connect HTTP/1.1\r\nHost: tunnel.cloudproxy.app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        )
    };
    let whole = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: relay.tunnel.cloudproxy.app\r\n";
    for (request, status) in [
        (ask("good", whole), "101"),
        (ask("bad", whole), "401"),
        (ask("good", "Sec-WebSocket-Version: 13\r\n"), "400"),
        (ask("good", "Sec-WebSocket-Version: 12\r\nSec-WebSocket-Protocol: relay.tunnel.cloudproxy.app\r\n"), "400"),
        (ask("good", whole).replace("Upgrade: websocket", "Upgrade: h2c"), "400"),
        (ask("good", whole).replace("GET", "POST"), "400"),
    ] {
        let mut stream = cloud.tunnel("tunnel.cloudproxy.app").await;
        // What comes with the head is not lost.
        stream.write_all(format!("{request}early").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert_eq!(head.split(' ').nth(1), Some(status), "{request}\n{head}");
        if status == "101" {
            assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
            let mut echo = [0; 9];
            stream.write_all(b"late").await.unwrap();
            stream.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"earlylate");
        }
    }
    let plain = cloud
        .says(b"GET http://tunnel.cloudproxy.app/v4/connect HTTP/1.1\r\nHost: tunnel.cloudproxy.app\r\n\r\n")
        .await;
    assert!(plain.starts_with("HTTP/1.1 426"), "{plain}");
}
