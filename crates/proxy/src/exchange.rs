//! One request at a service, from its arrival to the last byte of its answer: the log's view of it.
//!
//! An [`Exchange`] writes its record when it is dropped, however the request ends. Source: Cloud Run request logs.

use std::{
    net::IpAddr,
    rc::Rc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    header::{REFERER, USER_AGENT},
};
use model::{
    id::{ListenerId, WorkloadId},
    record::RequestRecord,
    run::RevisionKey,
    time::Timestamp,
};

use crate::{
    body::Meter,
    outbox::Outbox,
    plan::Service,
    refusal::Refusal,
    revision::{Instance, Revision, Slot},
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

pub fn wall_now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::default().plus(since)
}

/// What the log wants of a request's head, before the head is rewritten and moved on.
pub struct Head {
    pub method: Method,
    /// As the client wrote it.
    pub url: String,
    pub version: Version,
    pub bytes: u64,
    pub user_agent: Option<HeaderValue>,
    pub referer: Option<HeaderValue>,
}

impl Head {
    pub fn of(parts: &http::request::Parts, scheme: &str, host: &str) -> Head {
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let mut url = String::with_capacity(scheme.len() + 3 + host.len() + path.len());
        for part in [scheme, "://", host, path] {
            url.push_str(part);
        }
        Head {
            method: parts.method.clone(),
            url,
            version: parts.version,
            bytes: request_head_bytes(&parts.method, &parts.uri, &parts.headers),
            user_agent: parts.headers.get(USER_AGENT).cloned(),
            referer: parts.headers.get(REFERER).cloned(),
        }
    }
}

/// One request at one service.
pub struct Exchange {
    outbox: Rc<Outbox>,
    service: Rc<Service>,
    revision: Option<Rc<Revision>>,
    instance: Option<Rc<Instance>>,
    listener: Option<ListenerId>,
    remote: IpAddr,
    arrival: Arrival,
    head: Head,
    trace: Trace,
    upload: Option<Rc<Meter>>,
    status: Option<u16>,
    pub response_bytes: u64,
    refusal: Option<Refusal>,
}

/// Who asks whom.
pub struct Parties {
    pub service: Rc<Service>,
    pub listener: Option<ListenerId>,
    pub remote: IpAddr,
}

impl Exchange {
    pub fn begin(outbox: Rc<Outbox>, parties: Parties, arrival: Arrival, head: Head, trace: Trace) -> Exchange {
        let Parties { service, listener, remote } = parties;
        Exchange {
            outbox,
            service,
            revision: None,
            instance: None,
            listener,
            remote,
            arrival,
            head,
            trace,
            upload: None,
            status: None,
            response_bytes: 0,
            refusal: None,
        }
    }

    pub fn arrived(&self) -> Timestamp {
        self.arrival.wall
    }

    pub fn picked(&mut self, revision: Rc<Revision>) {
        self.revision = Some(revision);
    }

    pub fn uploads(&mut self, meter: Option<Rc<Meter>>) {
        self.upload = meter;
    }

    pub fn sent_to(&mut self, slot: &Slot) {
        self.instance = Some(slot.instance.clone());
    }

    /// The platform answers, or cuts off an answer that has begun.
    pub fn refused(&mut self, refusal: Refusal) {
        self.status = Some(refusal.status().as_u16());
        self.refusal = Some(refusal);
    }

    /// The instance broke off an answer whose head was sent already: the status stays.
    pub fn broken_off(&mut self, slot: &Slot) {
        self.refusal = Some(Refusal::Malformed);
        if let Some(revision) = &self.revision {
            revision.say_broken(&slot.instance);
        }
    }

    /// The head of the answer as it goes to the client.
    pub fn answered(&mut self, response: &http::response::Parts) {
        self.status = Some(response.status.as_u16());
        self.response_bytes += response_head_bytes(response);
    }

    fn record(&mut self) -> RequestRecord {
        let text =
            |value: &Option<HeaderValue>| value.as_ref().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let body = self.upload.as_ref().map_or(0, |meter| meter.bytes.get());
        RequestRecord {
            service: self.service.key.clone(),
            revision: self.revision.as_ref().map(|r| -> RevisionKey { r.key.clone() }),
            instance: self.instance.as_ref().map(|i| -> WorkloadId { i.id.clone() }),
            listener: self.listener,
            arrived: self.arrival.wall,
            latency_ns: u64::try_from(self.arrival.begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
            method: self.head.method.as_str().to_owned(),
            url: std::mem::take(&mut self.head.url),
            protocol: protocol(self.head.version).to_owned(),
            status: self.status.unwrap_or(Refusal::ClientGone.status().as_u16()),
            request_bytes: self.head.bytes + body,
            response_bytes: self.response_bytes,
            user_agent: text(&self.head.user_agent),
            referer: text(&self.head.referer),
            remote: self.remote,
            trace: format!("{:032x}", self.trace.id),
            span: format!("{:016x}", self.trace.span),
            sampled: self.trace.sampled,
            refusal: self.refusal.map(Refusal::log_text),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let record = self.record();
        self.outbox.record(record);
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
