//! Networks, subnets, addresses and firewall rules as the user declares them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{cidr::Cidr, name::Link};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// One /20 per region out of 10.128.0.0/9, made and removed with the network.
    pub auto_create_subnetworks: bool,
    pub mtu: u16,
    pub description: Option<String>,
}

/// What a subnet's addresses are for. Source: subnetworks `purpose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Purpose {
    Private,
    RegionalManagedProxy,
    PrivateServiceConnect,
}

/// Which of the proxy-only subnets of a network and region is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProxyRole {
    Active,
    Backup,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subnetwork {
    pub network: Link,
    pub range: Cidr,
    pub purpose: Purpose,
    /// Set exactly for [`Purpose::RegionalManagedProxy`].
    pub role: Option<ProxyRole>,
    pub private_ip_google_access: bool,
    pub flow_logs: Option<FlowLogs>,
    pub description: Option<String>,
}

/// `logConfig` of a subnet. Source: VPC Flow Logs, "Customizing".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowLogs {
    pub enable: bool,
    pub interval_s: u32,
    /// 0.0 to 1.0; the share of flow intervals that is written.
    pub sampling: f64,
    pub metadata: FlowMetadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FlowMetadata {
    ExcludeAllMetadata,
    IncludeAllMetadata,
}

/// A reserved internal address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Address {
    pub address: Ipv4Addr,
    pub subnetwork: Link,
    pub description: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    // Deny sorts first: at equal priority it wins.
    Deny,
    Allow,
}

/// One protocol of a rule, with its ports. No ports means all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProtocolPorts {
    /// IANA number; `None` is `all`.
    pub protocol: Option<u8>,
    /// The text the user wrote (`tcp`, `6`, `all`), shown back to them.
    pub written: String,
    pub ports: Vec<PortRange>,
}

/// Inclusive on both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// A VPC firewall rule. Source: VPC firewall rules; implied rules are in the planner, not here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Firewall {
    pub network: Link,
    pub direction: Direction,
    /// 0 to 65535, lower wins.
    pub priority: u16,
    pub action: Action,
    pub protocols: Vec<ProtocolPorts>,
    /// Ingress only. Ranges and tags are alternatives; both empty means 0.0.0.0/0.
    pub source_ranges: Vec<Cidr>,
    pub source_tags: Vec<String>,
    /// Empty means every destination.
    pub destination_ranges: Vec<Cidr>,
    /// Empty means every VM of the network.
    pub target_tags: Vec<String>,
    pub disabled: bool,
    pub description: Option<String>,
}
