//! What happened: the records that the hands and the proxy emit. Sources know no log format; control turns these into
//! the entries of the Logging API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::{
    id::{BackendId, ListenerId, NetworkId, WorkloadId},
    run::{RevisionKey, ServiceKey},
    time::Timestamp,
};

/// One HTTP request that reached a service or a load balancer's route (also when it was refused there).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// None when the load balancer found none.
    pub service: Option<ServiceKey>,
    /// None when no revision was picked.
    pub revision: Option<RevisionKey>,
    /// The instance that handled it; none for 401, 403, 429, …
    pub instance: Option<WorkloadId>,
    /// None for a request that came through no load balancer.
    pub front: Option<Front>,
    pub arrived: Timestamp,
    pub latency_ns: u64,
    pub method: String,
    /// Scheme, host, path and query as the client wrote them.
    pub url: String,
    pub protocol: String,
    pub status: u16,
    /// Bytes including heads.
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub user_agent: Option<String>,
    pub referer: Option<String>,
    /// The client as the service's front end sees it: `fda3:…` with the NAT address in the low 32 bits behind a PSC
    /// endpoint.
    pub remote: IpAddr,
    /// 32 hex digits and 16 hex digits.
    pub trace: String,
    pub span: String,
    pub sampled: bool,
    /// Why the platform, not the container, answered.
    pub refusal: Option<String>,
}

impl RequestRecord {
    /// When the last byte of its answer was sent.
    pub fn end(&self) -> Timestamp {
        self.arrived.plus(std::time::Duration::from_nanos(self.latency_ns))
    }
}

/// How a request came through a load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Front {
    pub listener: ListenerId,
    /// The other end of the connection, as the listening socket shows it: behind a PSC endpoint a NAT address and the
    /// port that the translation chose.
    pub peer: SocketAddr,
    /// Where the URL map led; None when nothing is behind it.
    pub backend: Option<BackendId>,
    /// The pattern of the path rule that led there; None for a default.
    pub pattern: Option<String>,
}

/// One direction of one flow during one interval, as the router of a VPC counted it. A connection through an endpoint is
/// a flow of the producer's VPC too, from the NAT address to the load balancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    pub network: NetworkId,
    pub protocol: u8,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    /// 0 where the protocol has none.
    pub src_port: u16,
    pub dst_port: u16,
    /// Of this interval only. Bytes are payload: IP and TCP headers without options are taken off.
    pub packets: u64,
    pub bytes: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    /// The first record of the flow: sampling keeps it always.
    pub opening: bool,
    /// Which end of the flow this is: true when `src` opened it.
    pub forward: bool,
}

/// A TCP connection through an endpoint, on both sides of the producer's translation. Told at its birth, and to every
/// control that comes while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    /// The producer's.
    pub network: NetworkId,
    /// The consumer's VM.
    pub consumer: SocketAddrV4,
    /// What it dialled.
    pub endpoint: SocketAddrV4,
    /// The other end of the connection as the load balancer's socket shows it.
    pub nat: SocketAddrV4,
    /// The load balancer's own end.
    pub target: SocketAddrV4,
    /// When it was heard of, which is after the connection began.
    pub at: Timestamp,
}

/// Where a program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line that a container printed, without its line feed, or a piece of one that was too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrintedLine {
    /// When it was read.
    pub at: Timestamp,
    pub stream: Stream,
    /// What is no UTF-8 is replaced.
    pub text: String,
}

/// Consecutive lines of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Printed {
    pub workload: WorkloadId,
    /// The number of the first of these lines; a container's first line has number 0.
    pub first: u64,
    /// Lines before the first that came faster than they could be kept.
    pub lost: u64,
    pub lines: Vec<PrintedLine>,
}

impl Printed {
    /// The number of the line that comes after these.
    pub fn next(&self) -> u64 {
        self.first + u64::try_from(self.lines.len()).unwrap_or(u64::MAX)
    }
}

/// Flow events were lost between these instants (the kernel's buffer overflowed); said in the log rather than hidden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowGap {
    pub network: Option<NetworkId>,
    pub from: Timestamp,
    pub to: Timestamp,
}
