//! One request at a service, from its arrival to the last byte of its answer: the log's view of it.
//!
//! An [`Exchange`] writes its record when it is dropped, however the request ends. Source: Cloud Run request logs.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use http::{
    HeaderMap, Method, Uri, Version,
    header::{REFERER, USER_AGENT},
};
use model::{
    id::{BackendId, ListenerId, WorkloadId},
    planned::edge::Listener,
    run::{RevisionKey, ServiceKey},
    time::Timestamp,
};
use serde::{Serialize, Serializer};

use crate::{
    body::Meter,
    outbox::Outbox,
    plan::Service,
    refusal::Refusal,
    revision::{Instance, Revision, Slot},
    route::Place,
    trace::Trace,
};

/// When a request's head was read, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub wall: Timestamp,
    pub begun: Instant,
}

impl Arrival {
    pub fn now() -> Arrival {
        Arrival { wall: wall_now(), begun: Instant::now() }
    }
}

fn wall_now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::default().plus(since)
}

/// What the log wants of a request's head, before the head is rewritten and moved on. Copies: a slice of the head would
/// keep all of it in memory for as long as the record waits.
pub struct Head {
    method: Method,
    /// As the client wrote it.
    url: String,
    version: Version,
    bytes: u64,
    user_agent: Option<String>,
    referer: Option<String>,
}

impl Head {
    pub fn of(parts: &http::request::Parts, scheme: &str, host: &str) -> Head {
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let mut url = String::with_capacity(scheme.len() + 3 + host.len() + path.len());
        for part in [scheme, "://", host, path] {
            url.push_str(part);
        }
        let text = |name| parts.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        Head {
            method: parts.method.clone(),
            url,
            version: parts.version,
            bytes: request_head_bytes(&parts.method, &parts.uri, &parts.headers),
            user_agent: text(USER_AGENT),
            referer: text(REFERER),
        }
    }
}

/// One request at one service, while it lasts.
pub struct Exchange {
    outbox: Rc<Outbox>,
    /// None only inside `drop`.
    entry: Option<Box<Entry>>,
}

/// What will be a [`model::record::RequestRecord`]: it is written as one, straight from what the proxy has at hand.
pub struct Entry {
    service: Option<Rc<Service>>,
    revision: Option<Rc<Revision>>,
    instance: Option<Rc<Instance>>,
    front: Option<Front>,
    remote: IpAddr,
    arrival: Arrival,
    latency_ns: u64,
    head: Head,
    trace: Trace,
    upload: Option<Rc<Meter>>,
    status: Option<u16>,
    response_bytes: u64,
    refusal: Option<Refusal>,
}

/// Who asks whom.
pub struct Parties {
    pub service: Option<Rc<Service>>,
    pub front: Option<Front>,
    pub remote: IpAddr,
}

/// How a request came through a load balancer.
pub struct Front {
    pub id: ListenerId,
    /// As it was when the request came.
    pub listener: Rc<Listener>,
    pub place: Place,
    pub peer: SocketAddr,
}

/// The fields of [`model::record::Front`], borrowed.
#[derive(Serialize)]
struct FrontRecord<'a> {
    listener: ListenerId,
    peer: SocketAddr,
    backend: Option<BackendId>,
    pattern: Option<&'a str>,
}

impl Front {
    fn record(&self) -> FrontRecord<'_> {
        FrontRecord {
            listener: self.id,
            peer: self.peer,
            backend: self.place.branch(&self.listener).backend,
            pattern: self.place.pattern(&self.listener),
        }
    }
}

impl Exchange {
    pub fn begin(outbox: Rc<Outbox>, parties: Parties, arrival: Arrival, head: Head, trace: Trace) -> Exchange {
        let Parties { service, front, remote } = parties;
        let entry = Entry {
            service,
            revision: None,
            instance: None,
            front,
            remote,
            arrival,
            latency_ns: 0,
            head,
            trace,
            upload: None,
            status: None,
            response_bytes: 0,
            refusal: None,
        };
        Exchange { outbox, entry: Some(Box::new(entry)) }
    }

    fn entry(&mut self) -> &mut Entry {
        self.entry.as_mut().expect("only drop takes the entry")
    }

    pub fn arrived(&mut self) -> Timestamp {
        self.entry().arrival.wall
    }

    pub fn picked(&mut self, revision: Rc<Revision>) {
        self.entry().revision = Some(revision);
    }

    pub fn uploads(&mut self, meter: Option<Rc<Meter>>) {
        self.entry().upload = meter;
    }

    pub fn sent_to(&mut self, slot: &Slot) {
        self.entry().instance = Some(slot.instance.clone());
    }

    /// The platform answers, or cuts off an answer that has begun.
    pub fn refused(&mut self, refusal: Refusal) {
        let entry = self.entry();
        entry.status = Some(refusal.status().as_u16());
        entry.refusal = Some(refusal);
    }

    /// The instance broke off an answer whose head was sent already: the status stays.
    pub fn broken_off(&mut self, slot: &Slot) {
        let entry = self.entry();
        entry.refusal = Some(Refusal::Malformed);
        if let Some(revision) = &entry.revision {
            revision.say_broken(&slot.instance);
        }
    }

    /// The head of the answer as it goes to the client.
    pub fn answered(&mut self, response: &http::response::Parts) {
        let entry = self.entry();
        entry.status = Some(response.status.as_u16());
        entry.response_bytes += response_head_bytes(response);
    }

    /// Bytes of the answer's body.
    pub fn sends(&mut self, bytes: usize) {
        self.entry().response_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(mut entry) = self.entry.take() {
            entry.latency_ns = u64::try_from(entry.arrival.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.outbox.record(entry);
        }
    }
}

/// The fields of [`model::record::RequestRecord`], borrowed.
#[derive(Serialize)]
struct Record<'a> {
    service: Option<&'a ServiceKey>,
    revision: Option<&'a RevisionKey>,
    instance: Option<&'a WorkloadId>,
    front: Option<FrontRecord<'a>>,
    arrived: Timestamp,
    latency_ns: u64,
    method: &'a str,
    url: &'a str,
    protocol: &'a str,
    status: u16,
    request_bytes: u64,
    response_bytes: u64,
    user_agent: Option<&'a str>,
    referer: Option<&'a str>,
    remote: IpAddr,
    trace: &'a str,
    span: &'a str,
    sampled: bool,
    refusal: Option<String>,
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (trace, span) = (self.trace.id_hex(), self.trace.span_hex());
        let body = self.upload.as_ref().map_or(0, |meter| meter.bytes.get());
        let record = Record {
            service: self.service.as_ref().map(|service| &service.key),
            revision: self.revision.as_ref().map(|revision| &revision.key),
            instance: self.instance.as_ref().map(|instance| &instance.id),
            front: self.front.as_ref().map(Front::record),
            arrived: self.arrival.wall,
            latency_ns: self.latency_ns,
            method: self.head.method.as_str(),
            url: &self.head.url,
            protocol: protocol(self.head.version),
            status: self.status.unwrap_or(Refusal::ClientGone.status().as_u16()),
            request_bytes: self.head.bytes + body,
            response_bytes: self.response_bytes,
            user_agent: self.head.user_agent.as_deref(),
            referer: self.head.referer.as_deref(),
            remote: self.remote,
            trace: trace.as_str(),
            span: span.as_str(),
            sampled: self.trace.sampled,
            refusal: self.refusal.map(Refusal::log_text),
        };
        record.serialize(serializer)
    }
}

fn protocol(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" }
}

fn fields_bytes(headers: &HeaderMap) -> usize {
    // A name, a colon, a space, a value, CR and LF; at the end CR and LF.
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() + 2
}

fn request_head_bytes(method: &Method, uri: &Uri, headers: &HeaderMap) -> u64 {
    let target = uri.path_and_query().map_or(1, |p| p.as_str().len());
    let line = method.as_str().len() + 1 + target + " HTTP/1.1\r\n".len();
    u64::try_from(line + fields_bytes(headers)).unwrap_or(u64::MAX)
}

fn response_head_bytes(response: &http::response::Parts) -> u64 {
    let reason = response.status.canonical_reason().map_or(0, str::len);
    let line = "HTTP/1.1 200 \r\n".len() + reason;
    // hyper adds the date.
    let date = if response.headers.contains_key(http::header::DATE) {
        0
    } else {
        "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n".len()
    };
    u64::try_from(line + date + fields_bytes(&response.headers)).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use model::{
        id::NetworkId,
        planned::edge::{Branch, EdgeService, FromProxy, Invokers, Matcher, Route},
        record,
        run::Ingress,
    };

    use super::*;
    use crate::{outbox::Frame, route::choose};

    /// A request for this path that was refused, over already.
    pub(crate) fn refused(outbox: &Rc<Outbox>, path: &str) {
        exchange(outbox, path).refused(Refusal::Forbidden);
    }

    fn exchange(outbox: &Rc<Outbox>, path: &str) -> Exchange {
        let key = ServiceKey {
            project: "producer-1".parse().unwrap(),
            region: "asia-northeast1".parse().unwrap(),
            name: "shop".into(),
        };
        let plan = EdgeService {
            ingress: Ingress::All,
            hosts: vec![],
            audiences: Default::default(),
            invokers: Invokers::default(),
            traffic: vec![],
        };
        let service = Rc::new(Service { key, plan });
        let to = |backend| Branch { backend, route: Route::NoBackend };
        let listener = Listener {
            network: NetworkId(1),
            address: [10, 0, 0, 5].into(),
            hosts: vec![("h".into(), 0)],
            matchers: vec![Matcher { paths: vec![("/a".into(), to(Some(BackendId(7))))], default: to(None) }],
            default: to(None),
            keepalive_ms: 1,
        };
        let place = choose(&listener, "h", path.split('?').next().unwrap());
        let front =
            Front { id: ListenerId(3), listener: Rc::new(listener), place, peer: ([10, 0, 3, 2], 40_000).into() };
        let parties = Parties { service: Some(service), front: Some(front), remote: [10, 0, 3, 2].into() };
        let request = http::Request::post(path).header("referer", "r\u{e9}").body(()).unwrap();
        let head = Head::of(&request.into_parts().0, "http", "h");
        let trace = Trace { id: 0xabc, span: 0xdef, sampled: true };
        Exchange::begin(outbox.clone(), parties, Arrival::now(), head, trace)
    }

    #[test]
    fn what_is_written_is_exactly_a_request_record() {
        let mut exchange = exchange(&Rc::default(), "/a?b");
        exchange.refused(Refusal::Forbidden);
        let entry = exchange.entry.take().unwrap();
        let written = serde_json::to_value(Frame::Records(vec![entry])).unwrap();
        let read: FromProxy = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), written, "no field more and none less");
        let FromProxy::Requests(records) = read else { panic!("{read:?}") };
        let record = &records[0];
        let service = record.service.as_ref().unwrap();
        assert_eq!((service.name.as_str(), record.status, record.url.as_str()), ("shop", 403, "http://h/a?b"));
        let front = record::Front {
            listener: ListenerId(3),
            peer: ([10, 0, 3, 2], 40_000).into(),
            backend: Some(BackendId(7)),
            pattern: Some("/a".into()),
        };
        assert_eq!(record.front, Some(front));
        assert_eq!(record.trace, format!("{:032x}", 0xabc));
        assert_eq!(record.span, format!("{:016x}", 0xdef));
    }
}
