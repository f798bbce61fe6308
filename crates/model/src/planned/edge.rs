//! Plans for the proxy: load balancer and serverless front end in one hop.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{BackendId, EndpointId, ListenerId, NetworkId, WorkloadId},
    name::{ProjectId, Region},
    record::RequestRecord,
    run::{Ingress, Probe, RevisionKey, ServiceKey},
};

/// One thing the proxy knows. Setting it again replaces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EdgeItem {
    /// The /96 from which requests that came through this VPC dial the containers.
    Network(NetworkId, Ipv6Addr),
    Listener(ListenerId, Box<Listener>),
    Service(ServiceKey, Box<EdgeService>),
    Revision(RevisionKey, Box<EdgeRevision>),
    /// Public keys that sign ID tokens, by `kid`.
    Keys(Vec<PublicKey>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EdgeKey {
    Network(NetworkId),
    Listener(ListenerId),
    Service(ServiceKey),
    Revision(RevisionKey),
}

/// A forwarding rule with its whole chain resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub network: NetworkId,
    pub address: Ipv4Addr,
    /// Host patterns to matcher numbers; exact beats wildcard, the longest suffix wins.
    pub hosts: Vec<(String, usize)>,
    pub matchers: Vec<Matcher>,
    pub default: Branch,
    pub keepalive_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matcher {
    /// `/a`, `/a/*`, `/*`; the longest match wins.
    pub paths: Vec<(String, Branch)>,
    pub default: Branch,
}

/// Where a URL map leads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// The backend service, by whose settings requests are logged; None when it has no backend.
    pub backend: Option<BackendId>,
    pub route: Route,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Route {
    /// A serverless NEG naming a service; the service need not exist.
    Service { service: ServiceKey, tag: Option<String> },
    /// A serverless NEG with a URL mask such as `<service>.example.com/<tag>` or `/<service>`.
    Mask { project: ProjectId, region: Region, mask: String },
    /// A Private Service Connect NEG in the listener's network, and how long it may take to answer.
    Endpoint { endpoint: EndpointId, timeout_ms: u64 },
    /// A backend service without backends: 404 `fault filter abort`.
    NoBackend,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeService {
    pub ingress: Ingress,
    /// `run.app` host names of the service, without tags. Empty when its default URLs are disabled.
    pub hosts: Vec<String>,
    /// Exact audiences that an ID token may carry, with and without a trailing slash, tag URLs included.
    pub audiences: BTreeSet<String>,
    pub invokers: Invokers,
    pub traffic: Vec<EdgeTraffic>,
}

/// Who holds `run.routes.invoke`, over the whole hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invokers {
    /// `allUsers`, or the invoker check is switched off: headers pass untouched.
    pub everyone: bool,
    pub all_authenticated: bool,
    /// E-mail addresses of users, lower case.
    pub emails: BTreeSet<String>,
    /// E-mail addresses of service accounts, lower case, by unique id: who deletes an account and makes another one of
    /// its name does not have the first one back.
    pub accounts: BTreeMap<String, String>,
    /// Domains of `domain:` members.
    pub domains: BTreeSet<String>,
}

impl Invokers {
    /// Whether a caller may invoke, by the subject of its token and its verified address, lower case.
    pub fn admits(&self, subject: &str, email: Option<&str>) -> bool {
        if self.everyone || self.all_authenticated {
            return true;
        }
        // Source: Cloud Run's front end, a token without an address is of its subject.
        let account = self.accounts.get(subject);
        if account.is_some_and(|address| email.is_none_or(|email| email == address)) {
            return true;
        }
        let Some(email) = email else { return false };
        let domain = email.rsplit_once('@').map(|(_, domain)| domain);
        self.emails.contains(email) || domain.is_some_and(|d| self.domains.contains(d))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeTraffic {
    pub revision: RevisionKey,
    pub percent: u8,
    pub tag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeRevision {
    pub concurrency: u32,
    pub timeout_ms: u64,
    pub probe: Probe,
    /// How long a request may wait for an instance before 429.
    pub queue_wait_ms: u64,
    /// Every instance at most; 0 means nothing can be started (a failed revision) and requests get 503 at once.
    pub instances_max: u32,
    pub instances: BTreeMap<WorkloadId, EdgeInstance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeInstance {
    pub v6: Ipv6Addr,
    pub v4: Ipv4Addr,
    pub port: u16,
    pub phase: InstancePhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstancePhase {
    /// Probe it (the sandbox may not even exist yet); route to it as soon as the probe succeeds.
    Starting,
    Serving,
    /// No new requests; report [`FromProxy::Drained`] when the last one has ended.
    Draining,
}

/// An RSA public key for RS256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    pub kid: String,
    /// base64url, without padding, big-endian: the `n` and `e` of a JWK.
    pub n: String,
    pub e: String,
}

/// Control to proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToProxy {
    Set(EdgeItem),
    Unset(EdgeKey),
    /// Close every client connection of this VPC that comes from this address (a NAT address that lost its endpoint).
    CloseClients {
        network: NetworkId,
        peer: Ipv4Addr,
    },
    /// Answer [`FromProxy::Applied`] with this number once everything before it holds for the next request.
    Mark(u64),
    /// Everything was sent since the connection was made; forget items not set since then.
    Complete,
}

/// Proxy to control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromProxy {
    Applied(u64),
    /// Requests that wait or run, sent when something waits without room and when numbers change, at most every 50 ms.
    Demand {
        revision: RevisionKey,
        waiting: u32,
        in_flight: u32,
    },
    Probed {
        instance: WorkloadId,
        revision: RevisionKey,
        outcome: ProbeOutcome,
    },
    /// The instance is idle and has been for this long; sent when a second or more has passed since the last word.
    Idle {
        instance: WorkloadId,
        revision: RevisionKey,
        idle_ms: u64,
    },
    Drained {
        instance: WorkloadId,
    },
    /// The instance closed the connection or answered garbage.
    Broken {
        instance: WorkloadId,
        revision: RevisionKey,
    },
    Requests(Vec<RequestRecord>),
    /// Request records that did not fit into the queue.
    Lost {
        records: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeOutcome {
    Ready {
        over_v6: bool,
        took_ms: u64,
    },
    /// The revision's probe failed its last allowed time.
    Failed {
        attempts: u32,
        why: String,
    },
}

/// Host to proxy: a frame with the listening socket beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    /// One descriptor: a TCP socket listening on the rule's address and port inside the proxy namespace.
    Listen(ListenerId),
    Unlisten(ListenerId),
    /// No listener but those sent since the connection was made.
    Complete,
}

/// Proxy to host, on a connection of its own: a connection to a backend is wanted. Not to an address: which one it is,
/// and from which address of the network's balancer it is dialled, is the host's to know. The answer is a socket that may
/// still be connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialBackend {
    pub network: NetworkId,
    pub endpoint: EndpointId,
}

/// First line of a connection that the door hands to the proxy over its Unix socket, as JSON and a newline; after it
/// follow the client's plain HTTP/1.1 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Where the client is, as the door saw it.
    pub peer: std::net::IpAddr,
    /// `https` when the door ended TLS.
    pub scheme: String,
}
