//! The internal application load balancer: forwarding rule → HTTP proxy → URL map → backend service → serverless NEG.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{name::Link, vpc::PortRange};

/// A serverless network endpoint group. Exactly one of `service` and `url_mask` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkEndpointGroup {
    /// The Cloud Run service in the same project and region. It need not exist.
    pub service: Option<String>,
    pub tag: Option<String>,
    pub url_mask: Option<String>,
    pub description: Option<String>,
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
    /// Shown back; for a serverless backend the balancer waits 60 minutes whatever stands here.
    pub timeout_s: u32,
    pub description: Option<String>,
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
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// `loadBalancingScheme: INTERNAL_MANAGED`.
    HttpProxy { proxy: Link, ports: PortRange },
    /// A consumer endpoint. `target_written` is the link as the caller gave it: `target` shows it back unchanged.
    ServiceAttachment { attachment: Link, written: String },
}
