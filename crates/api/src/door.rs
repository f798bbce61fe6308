//! One TCP listener behind which every API lives.
//!
//! It is a proxy that never forwards: `CONNECT host:443` and `GET http://host/…` end here, and so do plain requests of
//! clients whose endpoint was overridden. A host that is not ours is refused; nothing leaves the machine, because
//! nothing here can dial. Start with [`Door::bind`], then `Connection::run`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use model::{
    fault::{Code, Fault},
    limits::{
        API_BODY_BYTES_MAX, API_BODY_READ_MAX, API_CONNECTIONS_MAX, API_HEAD_BYTES_MAX, API_HEADERS_MAX,
        API_LARGE_BODIES_MAX, API_SMALL_BODY_BYTES, HEAD_READ_MAX,
    },
    planned::edge::Outside,
    time::Timestamp,
};

use crate::{
    batch,
    call::{BoxFuture, Call, CallHeaders, Parts, Router},
    error::{self, Dialect},
    host::{self, ApiHost, Place, Service},
    relay::{early::Early, websocket},
    reply::{Format, Reply},
    stall::NoStall,
    tls::Authority,
};

/// A byte stream in both directions, with TLS already taken off.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where connections to services' own names (`*.run.app`) go on: the proxy, over its Unix socket.
pub trait Beyond: Send + Sync {
    /// Carries the stream until either side ends. `first` is what the proxy is told before the client's bytes.
    fn carry(&self, first: Outside, client: Box<dyn Stream>) -> BoxFuture<'_, io::Result<()>>;
}

/// Where WebSockets to `tunnel.cloudproxy.app` go on.
pub trait Tunnels: Send + Sync {
    /// Decides about a handshake that is one by its form.
    ///
    /// # Errors
    /// A credential that is none, a path or parameters that make no sense. Whether the caller may reach the VM, and
    /// whether there is one, is said over the WebSocket.
    fn open(&self, call: Call) -> Result<Carry, Fault>;
}

/// Serves an agreed WebSocket to its end.
pub type Carry = Box<dyn FnOnce(Box<dyn Stream>) -> BoxFuture<'static, ()> + Send>;

/// Everything the door needs, handed over by the composition root.
pub struct Rooms {
    pub router: Router,
    pub beyond: Arc<dyn Beyond>,
    pub tunnels: Arc<dyn Tunnels>,
    pub authority: Authority,
    /// Reads the wall clock.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

pub struct Door {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    router: Arc<Router>,
    beyond: Arc<dyn Beyond>,
    tunnels: Arc<dyn Tunnels>,
    authority: Authority,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    connections: Arc<Semaphore>,
    large_bodies: Semaphore,
}

impl Door {
    /// Listens on `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// An address that cannot be had, or is not on the loopback interface: the door trusts its network.
    pub async fn bind(address: SocketAddr, rooms: Rooms) -> io::Result<Door> {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the door listens on loopback only"));
        }
        let listener = TcpListener::bind(address).await?;
        let Rooms { router, beyond, tunnels, authority, now } = rooms;
        let shared = Arc::new(Shared {
            router: Arc::new(router),
            beyond,
            tunnels,
            authority,
            now,
            connections: Arc::new(Semaphore::new(API_CONNECTIONS_MAX)),
            large_bodies: Semaphore::new(API_LARGE_BODIES_MAX),
        });
        Ok(Door { listener, shared })
    }

    /// # Errors
    /// Only what the kernel says about a socket that is bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// Accepts and serves for ever. Dropping the future closes every connection.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.welcome(&mut connections, stream, peer),
                    // Out of file descriptors, most likely: the backlog waits while connections end.
                    Err(_) => sleep(Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    fn welcome(&self, connections: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr) {
        let Ok(permit) = self.shared.connections.clone().try_acquire_owned() else {
            // Best effort: a client that does not take these few bytes at once sees a closed connection.
            let _ =
                stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            return;
        };
        let connection = Connection { shared: self.shared.clone(), peer: peer.ip() };
        connections.spawn(async move {
            connection.run(stream).await;
            drop(permit);
        });
    }
}

#[derive(Clone)]
struct Connection {
    shared: Arc<Shared>,
    peer: IpAddr,
}

/// What a `CONNECT` asked for, waiting for hyper to hand the stream over.
type Tunnel = Arc<Mutex<Option<(String, OnUpgrade)>>>;

/// The same for a WebSocket that was agreed on.
type Socket = Arc<Mutex<Option<(Carry, OnUpgrade)>>>;

/// The stream below TLS and HTTP.
type Inner = tokio_rustls::server::TlsStream<TcpStream>;

/// How requests arrive on a stream.
#[derive(Clone)]
enum Arrival {
    /// At the listener: `CONNECT`, absolute form and origin form.
    Open(Tunnel),
    /// Inside TLS for this host.
    Inside(Arc<str>, Socket),
}

impl Connection {
    /// Serves the first stream, and what a `CONNECT` in it opened.
    async fn run(self, stream: TcpStream) {
        // Answers are written whole: waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        let tunnel = Tunnel::default();
        self.http(NoStall::new(stream), Arrival::Open(tunnel.clone())).await;
        let opened = tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((host, upgrade)) = opened {
            self.inside(host, upgrade).await;
        }
    }

    /// Ends TLS for `host` and serves what is inside.
    async fn inside(&self, host: String, upgrade: OnUpgrade) {
        let Ok(upgraded) = upgrade.await else { return };
        // Nothing may precede the client's TLS greeting, and no client sends that before it has read our 200.
        let Ok(parts) = upgraded.downcast::<TokioIo<NoStall<TcpStream>>>() else { return };
        if !parts.read_buf.is_empty() {
            return;
        }
        let stream = parts.io.into_inner().inner;
        let Ok(config) = self.shared.authority.server_config(&host, (self.shared.now)()) else { return };
        let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
        let Ok(Ok(stream)) = timeout(HEAD_READ_MAX, handshake).await else { return };
        if host::place(&host) == Some(Place::RunApp) {
            let first = Outside { peer: self.peer, scheme: "https".into() };
            // Either side may hang up whenever it likes; there is nobody to tell.
            let _ = self.shared.beyond.carry(first, Box::new(stream)).await;
            return;
        }
        let socket = Socket::default();
        self.http(NoStall::new(stream), Arrival::Inside(host.into(), socket.clone())).await;
        let agreed = socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((carry, upgrade)) = agreed
            && let Ok(upgraded) = upgrade.await
            && let Ok(parts) = upgraded.downcast::<TokioIo<NoStall<Inner>>>()
        {
            // A client may talk before it has read our 101. From here on it may also be slow: the relay has bounds.
            carry(Box::new(Early::new(parts.read_buf, parts.io.into_inner().inner))).await;
        }
    }

    async fn http(&self, stream: impl Stream + 'static, arrival: Arrival) {
        let service = service_fn(|request| {
            let (connection, arrival) = (self.clone(), arrival.clone());
            async move { Ok::<_, std::convert::Infallible>(connection.answer(request, arrival).await) }
        });
        // Errors here are clients that went away or broke the protocol; hyper has answered what could be answered.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_READ_MAX)
            .max_header_size(API_HEAD_BYTES_MAX)
            .max_headers(API_HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }

    async fn answer(&self, request: Request<Incoming>, arrival: Arrival) -> Response<Full<Bytes>> {
        if request.method() == Method::CONNECT {
            return match arrival {
                Arrival::Open(tunnel) => self.connect(request, &tunnel),
                Arrival::Inside(..) => refusal(StatusCode::METHOD_NOT_ALLOWED, "no CONNECT inside a tunnel"),
            };
        }
        if let Arrival::Inside(host, socket) = &arrival
            && host::place(host) == Some(Place::Tunnel)
        {
            return self.websocket(request, socket);
        }
        match self.destination(&request, &arrival) {
            Ok(host) => self.call(host, request).await,
            Err(response) => *response,
        }
    }

    /// Agrees to a tunnel to one of our names, and to nothing else.
    fn connect(&self, request: Request<Incoming>, tunnel: &Tunnel) -> Response<Full<Bytes>> {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let host = host::host_of(&authority);
        let served = match host::place(&host) {
            Some(Place::Api(api)) => self.shared.router.serves(api.service),
            Some(Place::Www | Place::RunApp | Place::Tunnel) => true,
            None => false,
        };
        if !served || request.uri().port_u16() != Some(443) {
            let text = format!("{authority} is not a part of this cloud, and this proxy connects to nothing else");
            return refusal(StatusCode::FORBIDDEN, &text);
        }
        let upgrade = hyper::upgrade::on(request);
        *tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some((host, upgrade));
        Response::new(Full::default())
    }

    /// Agrees to a WebSocket.
    fn websocket(&self, mut request: Request<Incoming>, socket: &Socket) -> Response<Full<Bytes>> {
        let Some(agreed) = websocket::handshake(request.method(), request.headers()) else {
            return refusal(StatusCode::BAD_REQUEST, "no handshake of a WebSocket for the relay");
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, _) = request.into_parts();
        let parts = Parts {
            host: ApiHost::of(Service::Iap),
            method: head.method,
            headers: CallHeaders::read(&head.headers),
            body: Bytes::new(),
            peer: self.peer,
            now: (self.shared.now)(),
        };
        match Call::new(parts, &head.uri).and_then(|call| self.shared.tunnels.open(call)) {
            Ok(carry) => {
                *socket.lock().unwrap_or_else(PoisonError::into_inner) = Some((carry, upgrade));
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().extend(agreed);
                response
            }
            Err(fault) => response(error::render(Dialect::Plain, &fault), &Format::default()),
        }
    }

    /// The API a request is for, or the answer to a request that is for none.
    fn destination(
        &self,
        request: &Request<Incoming>,
        arrival: &Arrival,
    ) -> Result<ApiHost, Box<Response<Full<Bytes>>>> {
        let named = request.headers().get(header::HOST).and_then(|v| v.to_str().ok()).map(host::host_of);
        let path = request.uri().path();
        let (host, known) = match (arrival, request.uri().authority()) {
            (Arrival::Inside(host, _), _) => {
                // One connection, one name: a request for another one was misled (RFC 9110, 15.5.20).
                if named.is_some_and(|named| named != **host) {
                    return Err(Box::new(refusal(
                        StatusCode::MISDIRECTED_REQUEST,
                        "this connection is for another host",
                    )));
                }
                (host.to_string(), Known::ByName)
            }
            (Arrival::Open(_), Some(authority)) => (host::host_of(authority.as_str()), Known::ByName),
            (Arrival::Open(_), None) => (named.unwrap_or_default(), Known::ByNameOrPath),
        };
        match (host::place(&host), known) {
            (Some(Place::Api(api)), _) => Ok(api),
            (Some(Place::Www), _) => Ok(ApiHost::of(host::by_path(path).unwrap_or(Service::OAuth))),
            (Some(Place::RunApp), _) => Err(Box::new(to_https(&host, request.uri()))),
            (Some(Place::Tunnel), _) => {
                Err(Box::new(refusal(StatusCode::UPGRADE_REQUIRED, "tunnels are WebSockets over TLS")))
            }
            (None, Known::ByName) => {
                let text = format!("{host} is not a part of this cloud, and this proxy connects to nothing else");
                Err(Box::new(refusal(StatusCode::FORBIDDEN, &text)))
            }
            (None, Known::ByNameOrPath) => match host::by_path(path) {
                Some(service) => Ok(ApiHost { service, region: host::override_region(&host) }),
                None => Err(Box::new(refusal(StatusCode::NOT_FOUND, "no API has this path"))),
            },
        }
    }

    async fn call(&self, host: ApiHost, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let version = head.uri.path().split('/').nth(1);
        let dialect = Dialect::of(&host, version);
        let served = async {
            let parts = Parts {
                host,
                method: head.method,
                headers: CallHeaders::read(&head.headers),
                body: self.body(body).await?,
                peer: self.peer,
                now: (self.shared.now)(),
            };
            let call = Call::new(parts, &head.uri)?;
            let format = Format::parse(&call.query)?;
            let reply = match (&call.method, call.parts().as_slice()) {
                (&Method::POST, ["batch", "compute", "v1"]) => batch::serve(&self.shared.router, &call).await,
                _ => self.shared.router.serve(call).await,
            };
            Ok::<_, Fault>((reply?, format))
        };
        let (reply, format) = served.await.unwrap_or_else(|fault| (error::render(dialect, &fault), Format::default()));
        response(reply, &format)
    }

    /// Reads a body within its limits of size and time.
    async fn body(&self, body: Incoming) -> Result<Bytes, Fault> {
        let most = u64::try_from(API_BODY_BYTES_MAX).unwrap_or(u64::MAX);
        let size = body.size_hint();
        if size.lower() > most {
            return Err(too_large());
        }
        let read = async {
            let _place = match size.upper() {
                Some(upper) if upper <= API_SMALL_BODY_BYTES => None,
                Some(_) | None => Some(self.shared.large_bodies.acquire().await),
            };
            Limited::new(body, API_BODY_BYTES_MAX).collect().await
        };
        match timeout(API_BODY_READ_MAX, read).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(why)) if why.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Fault::invalid("The request body could not be read.")),
            Err(_) => Err(Fault::invalid("The request body did not arrive in time.")),
        }
    }
}

#[derive(Clone, Copy)]
enum Known {
    ByName,
    ByNameOrPath,
}

fn too_large() -> Fault {
    let message = format!("Request payload size exceeds the limit: {API_BODY_BYTES_MAX} bytes.");
    Fault::new(Code::InvalidArgument, "uploadTooLarge", message)
}

fn response(reply: Reply, format: &Format) -> Response<Full<Bytes>> {
    let (status, headers, body) = reply.render(format);
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let map = response.headers_mut();
    map.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    map.extend(headers);
    response
}

/// An answer of the door itself, before any API is known.
fn refusal(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Services answer over TLS only. Source: Cloud Run, "HTTP requests are redirected to HTTPS".
fn to_https(host: &str, uri: &http::Uri) -> Response<Full<Bytes>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut response = refusal(StatusCode::FOUND, "use https");
    if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{path}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
