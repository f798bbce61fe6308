//! Backends that are no service of this front end: Private Service Connect endpoints, behind which another balancer
//! answers. Plain HTTP/1.1 over connections that the host begins, because this process has no network of a consumer.
//!
//! Start with [`pass_on`]. What fails is answered in Envoy's words. Source: Envoy, router filter and response flags.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode, Version, request::Parts};
use hyper::body::Incoming;
use model::{
    id::{EndpointId, NetworkId},
    limits::{BACKEND_CONNECT_MAX, BACKEND_DIALS_MAX, BACKEND_REQUESTS_MAX, BACKEND_UPLOAD_MAX},
    planned::edge::DialBackend,
};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

use crate::{
    Proxy,
    body::{Deadline, Meter, Place, Source, Upload},
    client::Turn,
    exchange::Exchange,
    header,
    refusal::{Refusal, Reset},
    request::wants_websocket,
    upstream::{self, Pool, Sender},
};

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub network: NetworkId,
    pub endpoint: EndpointId,
    pub timeout: Duration,
}

/// All backends that were asked lately.
pub struct Backends {
    host: PathBuf,
    /// Questions to the host.
    dials: Arc<Semaphore>,
    known: RefCell<HashMap<EndpointId, Rc<Backend>>>,
}

#[derive(Default)]
struct Backend {
    pool: Pool,
    requests: Cell<usize>,
}

/// The right to send one request to a backend.
pub struct Seat(Rc<Backend>);

impl Seat {
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}

impl Backends {
    pub fn new(host: PathBuf) -> Backends {
        Backends { host, dials: Arc::new(Semaphore::new(BACKEND_DIALS_MAX)), known: RefCell::default() }
    }

    fn seat(&self, endpoint: EndpointId) -> Result<Seat, Refusal> {
        let backend = self.known.borrow_mut().entry(endpoint).or_default().clone();
        if backend.requests.get() >= BACKEND_REQUESTS_MAX {
            return Err(Refusal::Reset(Reset::Overflow));
        }
        backend.requests.set(backend.requests.get() + 1);
        Ok(Seat(backend))
    }

    /// Once a second: kept connections that are too old, and backends that nobody asks any more.
    pub fn tick(&self, now: Instant) {
        let mut known = self.known.borrow_mut();
        known.values().for_each(|backend| backend.pool.tick(now));
        known.retain(|_, backend| backend.requests.get() > 0 || !backend.pool.is_empty());
    }

    async fn connect(&self, target: Target) -> Result<Sender, Reset> {
        let connected = timeout(BACKEND_CONNECT_MAX, async {
            let stream = self.dial(target).await.map_err(|_| Reset::NoSocket)?;
            let refused = stream.writable().await.and_then(|()| stream.take_error());
            match refused {
                Ok(None) => upstream::speak(stream).await.map_err(|_| Reset::ConnectionFailure),
                Ok(Some(_)) | Err(_) => Err(Reset::ConnectionFailure),
            }
        });
        connected.await.unwrap_or(Err(Reset::ConnectionTimeout))
    }

    /// A connection that the host has begun.
    async fn dial(&self, target: Target) -> io::Result<TcpStream> {
        let turn = self.dials.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (path, question) = (self.host.clone(), DialBackend { network: target.network, endpoint: target.endpoint });
        let ask = move || {
            // Until it is answered, also when nobody waits for the answer any more.
            let _turn = turn;
            ipc::ask_socket(&path, &question, BACKEND_CONNECT_MAX)
        };
        let stream = TcpStream::from_std(tokio::task::spawn_blocking(ask).await??.into())?;
        upstream::tune(&stream)?;
        Ok(stream)
    }
}

/// Sends a request to a backend and waits for the head of its answer.
pub async fn pass_on(
    proxy: &Proxy,
    target: Target,
    exchange: &mut Exchange,
    turn: &Turn,
    (mut parts, body): (Parts, Incoming),
) -> Result<(http::response::Parts, Source), Refusal> {
    if wants_websocket(&parts.headers) {
        return Err(Refusal::UpgradeUnsupported);
    }
    let seat = proxy.backends.seat(target.endpoint)?;
    header::to_backend(&mut parts.headers, &turn.client.hop);
    parts.version = Version::HTTP_11;
    let (upload, meter) = Upload::new(body, u64::MAX);
    exchange.uploads(meter.clone());
    turn.limit(if meter.is_some() { BACKEND_UPLOAD_MAX + target.timeout } else { target.timeout });
    let mut deadline = deadline(target.timeout, meter.clone());
    let errand = Errand { proxy, target, seat: &seat, meter: meter.as_deref() };
    let (response, sender) = tokio::select! {
        biased;
        sent = errand.run(Request::from_parts(parts, upload)) => sent?,
        () = deadline.as_mut() => {
            // One that is silent may be cut off, and then the connections kept to it are silent too.
            seat.pool().close();
            return Err(Refusal::Timeout);
        }
    };
    if meter.is_none_or(|meter| meter.done.get()) {
        turn.limit(target.timeout);
    }
    let (answer, inner) = response.into_parts();
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::Reset(Reset::ProtocolError));
    }
    Ok((answer, Source { inner, sender, from: None, deadline, place: Place::Backend(seat) }))
}

/// From the end of the request to the end of the answer. Source: `backendServices.timeoutSec`.
fn deadline(limit: Duration, meter: Option<Rc<Meter>>) -> Deadline {
    Box::pin(async move {
        if let Some(meter) = meter {
            // One that takes too long is over too.
            let _ = timeout(BACKEND_UPLOAD_MAX, meter.over()).await;
        }
        tokio::time::sleep(limit).await;
    })
}

/// Carries one request to a backend.
struct Errand<'a> {
    proxy: &'a Proxy,
    target: Target,
    seat: &'a Seat,
    meter: Option<&'a Meter>,
}

impl Errand<'_> {
    /// Sends, and tries once more if not a byte of the request had left. A backend that is silent is not asked again.
    async fn run(&self, request: Request<Upload>) -> Result<(Response<Incoming>, Sender), Refusal> {
        let mut request = request;
        let mut is_retry = false;
        loop {
            let kept = if is_retry { None } else { self.seat.pool().take(None) };
            let sender = match kept {
                Some(sender) => Ok(sender),
                None => self.proxy.backends.connect(self.target).await,
            };
            let mut sender = match sender {
                Ok(sender) => sender,
                Err(Reset::ConnectionFailure) if !is_retry => {
                    is_retry = true;
                    continue;
                }
                Err(reset) => return Err(Refusal::Reset(reset)),
            };
            let mut failed = match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(failed) => failed,
            };
            match failed.take_message() {
                Some(unsent) if !is_retry => {
                    request = unsent;
                    is_retry = true;
                }
                Some(_) | None => return Err(self.why_failed(failed.error())),
            }
        }
    }

    fn why_failed(&self, error: &hyper::Error) -> Refusal {
        if self.meter.is_some_and(|meter| meter.broken.get()) {
            return Refusal::ClientGone;
        }
        let reset = if error.is_parse() { Reset::ProtocolError } else { Reset::ConnectionTermination };
        Refusal::Reset(reset)
    }
}
