//! How our namespaces and interfaces are called. Captures and `doctor` name them, so the rules are public, pure and
//! stable: a restarted host finds again what it made.

use std::fmt;

use model::{
    id::{NetworkId, WorkloadId},
    planned::guest::Realm,
};

/// Longest interface name. Source: the kernel's IFNAMSIZ, 16 with the final NUL.
pub const IFNAME_BYTES_MAX: usize = 15;

/// An interface name of at most [`IFNAME_BYTES_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    fn ours(name: String) -> IfName {
        debug_assert!(name.len() <= IFNAME_BYTES_MAX, "{name} is too long for an interface");
        IfName(name)
    }

    /// A name the kernel told us, which is valid by that.
    pub(crate) fn of_kernel(name: String) -> IfName {
        IfName(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As the kernel compares it: sixteen bytes, filled up with zeros.
    pub(crate) fn padded(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..self.0.len()].copy_from_slice(self.0.as_bytes());
        bytes
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Interfaces whose name starts with this are cables to workloads.
pub const PORT_PREFIX: &str = "p-";
/// … to producers (in a consumer's router).
pub const OUTGOING_PREFIX: &str = "o-";
/// … from consumers (in a producer's router).
pub const INCOMING_PREFIX: &str = "i-";

/// The router of a VPC.
pub fn vpc_ns(network: NetworkId) -> String {
    format!("vpc-{network}")
}

/// The namespace in which the proxy's listeners of a VPC live.
pub fn edge_ns(network: NetworkId) -> String {
    format!("edge-{network}")
}

/// The namespace out of which tunnels of the Identity-Aware Proxy reach the VMs of a VPC.
pub fn relay_ns(network: NetworkId) -> String {
    format!("iap-{network}")
}

/// The namespace between proxy and containers.
pub const FABRIC_NS: &str = "fabric";

pub fn realm_ns(realm: Realm) -> String {
    match realm {
        Realm::Vpc(network) => vpc_ns(network),
        Realm::Fabric => FABRIC_NS.to_owned(),
    }
}

/// The router's end of a workload's cable: its id where it fits, else the id's beginning and a hash of all of it.
pub fn port(workload: &WorkloadId) -> IfName {
    let id = workload.0.as_str();
    if id.len() + PORT_PREFIX.len() <= IFNAME_BYTES_MAX {
        return IfName::ours(format!("{PORT_PREFIX}{id}"));
    }
    let head: String = id.chars().take(4).collect();
    // `~` occurs in no id, so a hashed name never meets a plain one.
    IfName::ours(format!("{PORT_PREFIX}{head}~{:08x}", fnv1a(id.as_bytes()) & 0xffff_ffff))
}

/// The workload's end.
pub fn workload_port(realm: Realm) -> IfName {
    IfName::ours(match realm {
        Realm::Vpc(_) => "ens4".to_owned(),
        Realm::Fabric => "eth0".to_owned(),
    })
}

/// In a consumer's router: the PSC link to this producer.
pub fn outgoing(producer: NetworkId) -> IfName {
    IfName::ours(format!("{OUTGOING_PREFIX}{}", base36(producer.0)))
}

/// In a producer's router: the PSC link from this consumer.
pub fn incoming(consumer: NetworkId) -> IfName {
    IfName::ours(format!("{INCOMING_PREFIX}{}", base36(consumer.0)))
}

/// The network at the other end of a PSC link, by the name of an interface with this prefix.
pub fn linked(prefix: &str, name: &IfName) -> Option<NetworkId> {
    u64::from_str_radix(name.as_str().strip_prefix(prefix)?, 36).ok().map(NetworkId)
}

/// The network whose router this namespace is.
pub fn network_of(namespace: &str) -> Option<NetworkId> {
    namespace.strip_prefix("vpc-")?.parse().ok().map(NetworkId)
}

/// In a router: towards the proxy's namespace.
pub fn to_edge() -> IfName {
    IfName::ours("edge0".to_owned())
}

/// In a router: towards the relay's namespace.
pub fn to_relay() -> IfName {
    IfName::ours("iap0".to_owned())
}

/// In the proxy's namespace and in the relay's: towards the router.
pub fn to_vpc() -> IfName {
    IfName::ours("vpc0".to_owned())
}

/// In a router: where replies to PSC consumers leave, to be forwarded by their mark. Its other end hears nothing.
pub fn mux() -> [IfName; 2] {
    ["mux0", "mux1"].map(|name| IfName::ours(name.to_owned()))
}

pub fn loopback() -> IfName {
    IfName::ours("lo".to_owned())
}

/// A u64 has at most 13 digits in this base, so that a prefix of two fits before it.
fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(number % 36).expect("below 36");
        digits.push(char::from_digit(digit, 36).expect("below 36"));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// 64-bit FNV-1a. Not for security: ids come from control and are unique.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_fits_into_an_interface_name() {
        let widest = NetworkId(u64::MAX);
        let long = WorkloadId("a".repeat(32));
        for name in [port(&long), outgoing(widest), incoming(widest), to_edge(), to_relay(), to_vpc(), mux()[0].clone()]
        {
            assert!(name.as_str().len() <= IFNAME_BYTES_MAX, "{name}");
        }
        assert_eq!(incoming(widest).as_str(), "i-3w5e11264sgsf");
    }

    #[test]
    fn two_long_ids_with_one_beginning_get_two_names() {
        let [a, b] = ["shop-web-container-00001", "shop-web-container-00002"].map(|id| port(&WorkloadId(id.into())));
        assert_ne!(a, b);
        assert_eq!(port(&WorkloadId("till".into())).as_str(), "p-till");
    }
}
