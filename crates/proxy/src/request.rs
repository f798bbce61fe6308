//! One request, from its head to its answer: the order of the checks is the front end's.
//!
//! sane → route (404) → ingress (404) → invoker (401, 403) → revision → instance (429, 503) → container → timeout (504).
//! Start with [`handle`]. A route to a backend ends here: [`crate::backend`].

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, HOST, UPGRADE},
    request::Parts,
};
use hyper::body::{Body, Incoming};
use model::{limits::RUN_BODY_BYTES_MAX, planned::edge::Route, run::Ingress};

use crate::{
    Proxy, backend,
    body::{Deadline, Meter, Place, Reply, Source, Upload},
    client::{Client, Origin, Turn},
    exchange::{Arrival, Exchange, Front, Head, Parties},
    header,
    plan::Service,
    refusal::Refusal,
    revision::{NoSlot, Revision, Slot},
    route,
    trace::Trace,
    upstream::{self, Family},
};

/// An answer on its way. Boxed: it takes 3 KiB, which a connection without a request does without.
pub type Answer = Pin<Box<dyn Future<Output = Result<Response<Reply>, Infallible>>>>;

/// Answers one request.
pub fn handle(proxy: &Rc<Proxy>, client: &Rc<Client>, request: Request<Incoming>) -> Answer {
    let arrival = Arrival::now();
    let turn = Turn::begin(proxy.clone(), client.clone());
    let (mut parts, body) = request.into_parts();
    let trace = Trace::of(&parts.headers, &proxy.dice);
    let ours = Ours { trace, turn };
    let at_once = |response| -> Answer { Box::pin(std::future::ready(Ok(response))) };
    let host = match sane(&mut parts) {
        Ok(host) => host,
        Err(refusal) => return at_once(refuse(refusal, &parts.uri, None, ours)),
    };
    let front = front(proxy, &client.origin, &host, parts.uri.path());
    let found = find(proxy, &client.origin, front.as_ref(), &host, parts.uri.path());
    let (service, remote) = match &found {
        Ok(Found::Service(found)) => (Some(found.service.clone()), found.remote),
        // The balancer's log may want it.
        Ok(Found::Backend(_)) => (None, client.origin.peer()),
        Err(_) if front.is_some() => (None, client.origin.peer()),
        Err(refusal) => return at_once(refuse(*refusal, &parts.uri, None, ours)),
    };
    let scheme = match &client.origin {
        Origin::Listener { .. } => "http",
        Origin::Outside { scheme, .. } => scheme,
    };
    let head = Head::of(&parts, scheme, host.to_str().unwrap_or_default());
    let parties = Parties { service, front, remote };
    let exchange = Exchange::begin(proxy.outbox.clone(), parties, arrival, head, trace);
    match found {
        Ok(Found::Service(found)) => Box::pin(serve(proxy.clone(), found, exchange, (parts, body), ours)),
        Ok(Found::Backend(target)) => Box::pin(balance(proxy.clone(), target, exchange, (parts, body), ours)),
        Err(refusal) => at_once(refuse(refusal, &parts.uri, Some(exchange), ours)),
    }
}

/// A request that a service's instance answers.
async fn serve(
    proxy: Rc<Proxy>,
    found: Reached,
    mut exchange: Exchange,
    asked: (Parts, Incoming),
    ours: Ours,
) -> Result<Response<Reply>, Infallible> {
    let uri = asked.0.uri.clone();
    Ok(match pass_on(&proxy, &found, &mut exchange, &ours, asked).await {
        Ok((mut answer, source)) => {
            header::to_client(&mut answer.headers, &ours.turn.client.hop, ours.trace);
            exchange.answered(&answer);
            Response::from_parts(answer, Reply::stream(source, exchange, ours.turn))
        }
        Err(refusal) => refuse(refusal, &uri, Some(exchange), ours),
    })
}

/// A request that another front end answers.
async fn balance(
    proxy: Rc<Proxy>,
    target: backend::Target,
    mut exchange: Exchange,
    asked: (Parts, Incoming),
    ours: Ours,
) -> Result<Response<Reply>, Infallible> {
    let uri = asked.0.uri.clone();
    Ok(match backend::pass_on(&proxy, target, &mut exchange, &ours.turn, asked).await {
        Ok((mut answer, source)) => {
            header::from_backend(&mut answer.headers, &ours.turn.client.hop);
            exchange.answered(&answer);
            Response::from_parts(answer, Reply::stream(source, exchange, ours.turn))
        }
        Err(refusal) => refuse(refusal, &uri, Some(exchange), ours),
    })
}

/// What our own answer needs.
struct Ours {
    trace: Trace,
    turn: Turn,
}

fn refuse(refusal: Refusal, uri: &Uri, exchange: Option<Exchange>, ours: Ours) -> Response<Reply> {
    let Ours { trace, turn } = ours;
    let text = refusal.body(uri.path());
    let mut headers = HeaderMap::new();
    refusal.headers(&mut headers);
    header::to_client(&mut headers, &turn.client.hop, trace);
    let mut exchange = exchange;
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = refusal.status();
    parts.headers = headers;
    if let Some(exchange) = &mut exchange {
        exchange.answered(&parts);
        exchange.refused(refusal);
        exchange.sends(text.len());
    }
    Response::from_parts(parts, Reply::text(text, exchange, turn))
}

/// Refuses what may not be passed on, and gives the request one host and the form in which origins expect it.
fn sane(parts: &mut Parts) -> Result<HeaderValue, Refusal> {
    if parts.method == Method::TRACE || parts.method == Method::CONNECT {
        return Err(Refusal::Method);
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next().ok_or(Refusal::BadRequest)?.clone();
    if hosts.next().is_some() {
        return Err(Refusal::BadRequest);
    }
    // A request in absolute form names its host itself, and `Host` gives way (RFC 9112, 3.2.2).
    let host = match parts.uri.authority() {
        Some(authority) => {
            let named = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, named)| named);
            let host = HeaderValue::from_str(named).map_err(|_| Refusal::BadRequest)?;
            parts.headers.insert(HOST, host.clone());
            parts.uri = match parts.uri.path_and_query() {
                Some(path) => path.as_str().parse().map_err(|_| Refusal::BadRequest)?,
                None => Uri::from_static("/"),
            };
            host
        }
        None => host,
    };
    let plain = |b: &u8| b.is_ascii_graphic() && !b"/?#@,\\<>\"".contains(b);
    let whole = !host.is_empty() && host.as_bytes().iter().all(plain);
    if whole { Ok(host) } else { Err(Refusal::BadRequest) }
}

/// Where a request's route leads.
enum Found {
    Service(Reached),
    Backend(backend::Target),
}

/// The service a request reached.
struct Reached {
    service: Rc<Service>,
    tag: Option<String>,
    /// The client as the log shows it.
    remote: IpAddr,
    /// From where instances are dialled.
    from: Option<Ipv6Addr>,
}

/// The balancer's part: where its URL map leads.
fn front(proxy: &Proxy, origin: &Origin, host: &HeaderValue, path: &str) -> Option<Front> {
    let Origin::Listener { id, peer, .. } = origin else { return None };
    let listener = proxy.plan.borrow().listener(*id)?;
    let place = route::choose(&listener, host.to_str().ok()?, path);
    Some(Front { id: *id, listener, place, peer: *peer })
}

/// Service and ingress setting: whoever fails here learns nothing, is in no service's log and starts no instance.
fn find(
    proxy: &Proxy,
    origin: &Origin,
    front: Option<&Front>,
    host: &HeaderValue,
    path: &str,
) -> Result<Found, Refusal> {
    let host = host.to_str().map_err(|_| Refusal::BadRequest)?;
    let plan = proxy.plan.borrow();
    match origin {
        Origin::Listener { peer, .. } => {
            let Front { listener, place, .. } = front.ok_or(Refusal::NoBackend)?;
            let (service, tag) = match &place.branch(listener).route {
                Route::Service { service, tag } => (plan.service(service), tag.clone()),
                mask @ Route::Mask { .. } => {
                    let target = route::resolve(mask, host, path).ok_or(Refusal::NotFound)?;
                    (plan.service(&target.service), target.tag)
                }
                Route::Endpoint { endpoint, timeout_ms } => {
                    let (network, timeout) = (listener.network, Duration::from_millis(*timeout_ms));
                    return Ok(Found::Backend(backend::Target { network, endpoint: *endpoint, timeout }));
                }
                Route::NoBackend => return Err(Refusal::NoBackend),
            };
            let service = service.ok_or(Refusal::NotFound)?;
            match service.plan.ingress {
                Ingress::All | Ingress::Internal | Ingress::InternalAndCloudLoadBalancing => {}
                Ingress::None => return Err(Refusal::NotFound),
            }
            let peer = peer.ip();
            let from = match (plan.network(listener.network), peer) {
                (Some(prefix), IpAddr::V4(peer)) => Some(upstream::source(prefix, peer)),
                (Some(_) | None, IpAddr::V4(_) | IpAddr::V6(_)) => None,
            };
            Ok(Found::Service(Reached { service, tag, remote: from.map_or(peer, IpAddr::V6), from }))
        }
        Origin::Outside { peer, .. } => {
            let name = route::without_port(host).to_ascii_lowercase();
            let (service, tag) = plan.by_host(&name).ok_or(Refusal::NotFound)?;
            match service.plan.ingress {
                Ingress::All => {}
                Ingress::Internal | Ingress::InternalAndCloudLoadBalancing | Ingress::None => {
                    return Err(Refusal::NotFound);
                }
            }
            Ok(Found::Service(Reached { service, tag: tag.map(str::to_owned), remote: *peer, from: None }))
        }
    }
}

/// Everything between the route and the container's answer.
async fn pass_on(
    proxy: &Proxy,
    found: &Reached,
    exchange: &mut Exchange,
    ours: &Ours,
    (mut parts, body): (Parts, Incoming),
) -> Result<(http::response::Parts, Source), Refusal> {
    let revision = {
        let plan = proxy.plan.borrow();
        let service = &found.service.plan;
        plan.gate.check(service, &mut parts.headers, exchange.arrived())?;
        let split = route::split(&service.traffic, found.tag.as_deref(), proxy.dice.percent());
        let key = split.ok_or(Refusal::NotFound)?;
        plan.revision(key).ok_or(Refusal::RevisionFailed)?
    };
    exchange.picked(revision.clone());
    if wants_websocket(&parts.headers) {
        return Err(Refusal::UpgradeUnsupported);
    }
    if body.size_hint().lower() > RUN_BODY_BYTES_MAX {
        return Err(Refusal::BodyTooLarge);
    }
    let timeout = revision.timeout();
    ours.turn.limit(timeout);
    let mut deadline: Deadline = Box::pin(tokio::time::sleep(timeout));
    header::to_container(&mut parts.headers, &ours.turn.client.hop, ours.trace);
    parts.version = Version::HTTP_11;
    let is_head = parts.method == Method::HEAD;
    let (upload, meter) = Upload::new(body, RUN_BODY_BYTES_MAX);
    exchange.uploads(meter.clone());
    let errand = Errand { revision: &revision, from: found.from, meter };
    let sent = tokio::select! {
        biased;
        sent = errand.run(Request::from_parts(parts, upload), exchange) => sent?,
        () = deadline.as_mut() => return Err(Refusal::Timeout),
    };
    let (answer, inner) = sent.response.into_parts();
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        revision.say_broken(&sent.slot.instance);
        return Err(Refusal::Malformed);
    }
    if !is_head && answer.headers.contains_key(CONTENT_LENGTH) && inner.size_hint().lower() > RUN_BODY_BYTES_MAX {
        return Err(Refusal::ResponseTooLarge);
    }
    let place = Place::Instance(sent.slot);
    Ok((answer, Source { inner, sender: sent.sender, from: sent.from, deadline, place }))
}

/// Other upgrades may be ignored (RFC 9110, 7.8), and clients offer `h2c` by habit.
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Carries a request to an instance of one revision.
struct Errand<'a> {
    revision: &'a Rc<Revision>,
    from: Option<Ipv6Addr>,
    meter: Option<Rc<Meter>>,
}

struct Sent {
    response: Response<Incoming>,
    sender: upstream::Sender,
    from: Option<Ipv6Addr>,
    slot: Slot,
}

impl Errand<'_> {
    async fn slot(&self) -> Result<Slot, Refusal> {
        self.revision.slot().await.map_err(|why| match why {
            NoSlot::TimedOut | NoSlot::QueueFull => Refusal::NoInstance,
            NoSlot::Failed => Refusal::RevisionFailed,
        })
    }

    /// Sends, and tries once more if not a byte of the request had left.
    async fn run(&self, request: Request<Upload>, exchange: &mut Exchange) -> Result<Sent, Refusal> {
        let mut slot = self.slot().await?;
        let mut request = request;
        let mut is_retry = false;
        loop {
            let from = self.from.filter(|_| slot.instance.family.get() != Some(Family::V4));
            let kept = if is_retry { None } else { slot.instance.pool.take(from) };
            let sender = match kept {
                Some(sender) => Ok((sender, from)),
                None => self.connect(&slot, from).await,
            };
            let Ok((mut sender, from)) = sender else {
                self.revision.lose(&slot.instance);
                if is_retry {
                    return Err(Refusal::Malformed);
                }
                drop(slot);
                slot = self.slot().await?;
                is_retry = true;
                continue;
            };
            exchange.sent_to(&slot);
            let mut failed = match sender.try_send_request(request).await {
                Ok(response) => return Ok(Sent { response, sender, from, slot }),
                Err(failed) => failed,
            };
            match failed.take_message() {
                Some(unsent) if !is_retry => {
                    request = unsent;
                    is_retry = true;
                }
                Some(_) | None => return Err(self.why_failed(&slot)),
            }
        }
    }

    async fn connect(
        &self,
        slot: &Slot,
        from: Option<Ipv6Addr>,
    ) -> std::io::Result<(upstream::Sender, Option<Ipv6Addr>)> {
        let instance = &slot.instance;
        let (sender, family) = upstream::connect(&instance.address(), instance.family.get(), from).await?;
        instance.family.set(Some(family));
        Ok((sender, from.filter(|_| family == Family::V6)))
    }

    fn why_failed(&self, slot: &Slot) -> Refusal {
        if let Some(meter) = &self.meter {
            if meter.too_large.get() {
                return Refusal::BodyTooLarge;
            }
            if meter.broken.get() {
                return Refusal::ClientGone;
            }
        }
        self.revision.say_broken(&slot.instance);
        Refusal::Malformed
    }
}
