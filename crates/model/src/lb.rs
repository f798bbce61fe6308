//! The internal application load balancer: forwarding rule → HTTP proxy → URL map → backend service → network endpoint
//! group.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{directory::Registration, name::Link, vpc::PortRange};

/// What a backend service sends requests to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkEndpointGroup {
    #[serde(flatten)]
    pub endpoints: Endpoints,
    pub description: Option<String>,
}

/// Told apart by their fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Endpoints {
    PrivateServiceConnect(Box<PscBackend>),
    Serverless(Serverless),
}

/// `networkEndpointType: SERVERLESS`. Exactly one of `service` and `url_mask` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Serverless {
    /// The Cloud Run service in the same project and region. It need not exist.
    pub service: Option<String>,
    pub tag: Option<String>,
    pub url_mask: Option<String>,
}

/// `networkEndpointType: PRIVATE_SERVICE_CONNECT`: an endpoint that only the balancer of its own network may dial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PscBackend {
    pub attachment: Link,
    /// The attachment's link as the caller gave it: `pscTargetService` shows it back unchanged.
    pub written: String,
    pub network: Link,
    pub subnetwork: Link,
    /// Out of the subnetwork, `pscData.consumerPscAddress`.
    pub address: Ipv4Addr,
    /// `pscData.producerPort`; without it the producer's own ports decide.
    pub port: Option<u16>,
}

impl NetworkEndpointGroup {
    pub fn psc(&self) -> Option<&PscBackend> {
        match &self.endpoints {
            Endpoints::PrivateServiceConnect(backend) => Some(backend),
            Endpoints::Serverless(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Protocol {
    Http,
    Https,
    Http2,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendService {
    pub protocol: Protocol,
    pub backends: Vec<Backend>,
    /// How long a backend may take to answer. Only shown back for a serverless one, for which the balancer waits 60
    /// minutes.
    pub timeout_s: u32,
    #[serde(default)]
    pub log: Option<RequestLog>,
    pub description: Option<String>,
}

/// `logConfig`. Source: backend services, "logConfig"; without one nothing is logged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestLog {
    pub enable: bool,
    /// Which part of the requests is logged, 0.0 to 1.0.
    pub sample_rate: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    pub group: Link,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UrlMap {
    pub default_service: Link,
    pub host_rules: Vec<HostRule>,
    pub path_matchers: Vec<PathMatcher>,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRule {
    /// Exact names, or `*` first: `*`, `*.example.com`, `*-shop.example.com`.
    pub hosts: Vec<String>,
    pub path_matcher: String,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathMatcher {
    pub name: String,
    pub default_service: Link,
    pub path_rules: Vec<PathRule>,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathRule {
    /// Start with `/`; `*` only at the end, after a `/`. Longest match wins.
    pub paths: Vec<String>,
    pub service: Link,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetHttpProxy {
    pub url_map: Link,
    pub keepalive_s: Option<u32>,
    pub description: Option<String>,
}

/// A forwarding rule is either the front of a load balancer or a Private Service Connect endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForwardingRule {
    pub address: Ipv4Addr,
    /// The reserved address it came from, which is IN_USE while the rule exists.
    pub reserved: Option<Link>,
    pub network: Link,
    pub subnetwork: Link,
    pub target: Target,
    /// Clients of other regions reach it: `allowGlobalAccess` of a front, `allowPscGlobalAccess` of an endpoint.
    #[serde(default)]
    pub global_access: bool,
    /// Of an endpoint; None on a front, and on endpoints made before there was a Service Directory.
    #[serde(default)]
    pub registration: Option<Registration>,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// `loadBalancingScheme: INTERNAL_MANAGED`.
    HttpProxy { proxy: Link, ports: PortRange },
    /// A consumer endpoint. `target_written` is the link as the caller gave it: `target` shows it back unchanged.
    ServiceAttachment { attachment: Link, written: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Scope;

    #[test]
    fn a_stored_group_is_read_as_what_it_was() {
        let link = |collection| Link::new(&"consumer-1".parse().unwrap(), Scope::Global, collection, "x");
        let psc = PscBackend {
            attachment: link("serviceAttachments"),
            written: "x".into(),
            network: link("networks"),
            subnetwork: link("subnetworks"),
            address: [10, 1, 0, 7].into(),
            port: None,
        };
        let serverless = Serverless { service: Some("s".into()), tag: None, url_mask: None };
        for endpoints in [Endpoints::PrivateServiceConnect(Box::new(psc)), Endpoints::Serverless(serverless)] {
            let group = NetworkEndpointGroup { endpoints, description: Some("d".into()) };
            let stored = serde_json::to_string(&group).unwrap();
            assert_eq!(serde_json::from_str::<NetworkEndpointGroup>(&stored).unwrap(), group, "{stored}");
        }
    }
}
