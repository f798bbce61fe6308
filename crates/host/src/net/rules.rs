//! The words in which our rules are written: small constructors for steps, keys and hooks.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::{cidr::Cidr, vpc::PortRange};

use crate::{
    names::IfName,
    netlink::{
        expr::{CT_REPLY, Comparison, Found, Load, Step, Verdict},
        nft::{Chain, Element, Extent, Field, Hook, HookKind, HookPoint, Policy, Rule, Set},
    },
};

/// Where workloads find metadata and DNS; an address of every router that has workloads.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The neighbour behind every cable of ours. It is on the wire nowhere but in frames' destinations.
pub const HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 9, 9);
pub const HOP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Where tunnels of the Identity-Aware Proxy come from, as firewall rules name it, and the address that ours have.
/// Source: IAP, "TCP forwarding", 35.235.240.0/20.
pub const RELAY_BASE: Ipv4Addr = Ipv4Addr::new(35, 235, 240, 0);
pub const RELAY_PREFIX_BITS: u8 = 20;
pub const RELAY: Ipv4Addr = Ipv4Addr::new(35, 235, 240, 1);

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Hook priorities. Source: include/uapi/linux/netfilter_ipv4.h; connection tracking sits at -200.
pub const PRIORITY_RAW: i32 = -300;
pub const PRIORITY_MANGLE: i32 = -150;
pub const PRIORITY_DSTNAT: i32 = -100;
pub const PRIORITY_FILTER: i32 = 0;
pub const PRIORITY_SRCNAT: i32 = 100;
/// After translation, before the connection is confirmed.
pub const PRIORITY_LAST: i32 = 200;

pub fn rule(comment: impl Into<String>, steps: impl IntoIterator<Item = Step>, verdict: Verdict) -> Rule {
    let steps = steps.into_iter().chain([Step::Verdict(verdict)]).collect();
    Rule { comment: comment.into(), steps }
}

/// A rule that sets something and lets the packet go on.
pub fn effect(comment: &str, steps: impl IntoIterator<Item = Step>) -> Rule {
    Rule { comment: comment.to_owned(), steps: steps.into_iter().collect() }
}

pub fn base(kind: HookKind, at: HookPoint, priority: i32, policy: Policy, rules: Vec<Rule>) -> Chain {
    Chain { hook: Some(Hook { kind, at, priority, policy }), rules }
}

pub fn jumped(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules }
}

/// The packet came in by an interface whose name starts so.
pub fn from_any(prefix: &str) -> Step {
    Step::Compare(Load::InputName, Comparison::Equal, prefix.as_bytes().to_vec())
}

pub fn to_any(prefix: &str) -> Step {
    Step::Compare(Load::OutputName, Comparison::Equal, prefix.as_bytes().to_vec())
}

pub fn from(name: &IfName) -> Step {
    Step::Compare(Load::InputName, Comparison::Equal, name.padded().to_vec())
}

pub fn to(name: &IfName) -> Step {
    Step::Compare(Load::OutputName, Comparison::Equal, name.padded().to_vec())
}

pub fn not_to(name: &IfName) -> Step {
    Step::Compare(Load::OutputName, Comparison::NotEqual, name.padded().to_vec())
}

pub fn not_to_any(prefix: &str) -> Step {
    Step::Compare(Load::OutputName, Comparison::NotEqual, prefix.as_bytes().to_vec())
}

pub fn protocol(number: u8) -> Step {
    Step::Compare(Load::L4Proto, Comparison::Equal, vec![number])
}

pub fn port(number: u16) -> Step {
    Step::Compare(Load::DestinationPort, Comparison::Equal, number.to_be_bytes().to_vec())
}

pub fn ports(range: PortRange) -> Vec<Step> {
    let compare = |comparison, port: u16| Step::Compare(Load::DestinationPort, comparison, port.to_be_bytes().to_vec());
    match range {
        PortRange { first: 0, last: u16::MAX } => Vec::new(),
        PortRange { first, last } if first == last => vec![compare(Comparison::Equal, first)],
        PortRange { first, last } => vec![compare(Comparison::AtLeast, first), compare(Comparison::AtMost, last)],
    }
}

pub fn is_v4(load: Load, address: Ipv4Addr) -> Step {
    Step::Compare(load, Comparison::Equal, address.octets().to_vec())
}

/// Any of these bits of the connection's state.
pub fn state(bits: u32) -> Step {
    Step::Masked(Load::CtState, bits.to_ne_bytes().to_vec(), Comparison::NotEqual, vec![0; 4])
}

/// The connection came through an endpoint: only those have a zone. Whether an address was translated says nothing, for
/// an endpoint may have the VIP's own address and its client the NAT address.
pub fn through_endpoint() -> Step {
    Step::Compare(Load::CtOriginalZone, Comparison::NotEqual, vec![0; 2])
}

pub fn not_through_endpoint() -> Step {
    Step::Compare(Load::CtOriginalZone, Comparison::Equal, vec![0; 2])
}

pub fn reply() -> Step {
    Step::Compare(Load::CtDirection, Comparison::Equal, vec![CT_REPLY])
}

pub fn member(loads: &[Load], set: &str) -> Step {
    Step::Member(loads.to_vec(), Found::In, set.to_owned())
}

pub fn stranger(loads: &[Load], set: &str) -> Step {
    Step::Member(loads.to_vec(), Found::NotIn, set.to_owned())
}

/// The two ways by which a workload may speak to its router; everything else to the router is dropped.
pub fn metadata_rules(ports: &str) -> Vec<Rule> {
    let open = |comment: &str, number, at| {
        let steps = [from_any(ports), is_v4(Load::DestinationIp, METADATA), protocol(number), port(at)];
        rule(comment, steps, Verdict::Accept)
    };
    vec![open("metadata", TCP, 80), open("dns", UDP, 53), open("dns over tcp", TCP, 53)]
}

pub fn points(key: Vec<Field>, value: Option<Field>, elements: impl IntoIterator<Item = Element>) -> Set {
    Set { key, value, extent: Extent::Points, elements: elements.into_iter().collect() }
}

pub fn ranges(key: Vec<Field>, elements: impl IntoIterator<Item = Element>) -> Set {
    Set { key, value: None, extent: Extent::Ranges, elements: elements.into_iter().collect() }
}

/// A key of several fields side by side; each argument is one field.
pub fn key(fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        bytes.extend_from_slice(field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

pub fn point(key: Vec<u8>) -> Element {
    Element { key, last: None, value: None }
}

pub fn pair(key: Vec<u8>, value: Vec<u8>) -> Element {
    Element { key, last: None, value: Some(value) }
}

/// A set of addresses as disjoint ranges that do not touch: overlapping and neighbouring blocks are one element, for
/// the kernel refuses elements that overlap.
pub fn address_set<'a>(blocks: impl IntoIterator<Item = &'a Cidr>) -> Set {
    let mut sorted: Vec<_> = blocks.into_iter().map(|c| (u32::from(c.base()), u32::from(c.last()))).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let elements = merged.into_iter().map(|(first, last)| Element {
        key: first.to_be_bytes().to_vec(),
        last: Some(last.to_be_bytes().to_vec()),
        value: None,
    });
    ranges(vec![Field::Ipv4], elements)
}

/// An address with a range of ports.
pub fn service(address: Ipv4Addr, ports: PortRange) -> Element {
    let at = |port: u16| key(&[&address.octets(), &port.to_be_bytes()]);
    Element { key: at(ports.first), last: Some(at(ports.last)), value: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_overlap_or_touch_become_one_range() {
        let blocks: Vec<Cidr> = ["10.0.0.0/25", "10.0.0.128/25", "10.0.0.7/32", "0.0.0.0/8", "255.255.255.255/32"]
            .map(|b| b.parse().unwrap())
            .to_vec();
        let ranges: Vec<_> = address_set(&blocks).elements.into_iter().map(|e| (e.key, e.last.unwrap())).collect();
        assert_eq!(
            ranges,
            [
                (vec![0, 0, 0, 0], vec![0, 255, 255, 255]),
                (vec![10, 0, 0, 0], vec![10, 0, 0, 255]),
                (vec![255; 4], vec![255; 4])
            ]
        );
    }
}
