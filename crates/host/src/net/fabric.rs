//! The namespace between proxy and containers, as the kernel should hold it. Pure.
//!
//! Nothing is forwarded here: the proxy's process lives in this namespace and dials from addresses that are local. So a
//! container can reach the metadata address and answer who called it, and nothing else; least of all another container.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
};

use model::planned::host::FabricPlan;

use super::{rules::*, state::Wanted};
use crate::{
    names::{self, PORT_PREFIX},
    netlink::{
        expr::{Comparison, Load, Step, Verdict},
        nft::{Field, HookKind, HookPoint, Policy, Rule, Table, TableFamily},
        route::{Hop, Route, TABLE_LOCAL},
    },
};

/// From where the proxy dials for itself: startup probes, and requests that came through no VPC. Containers have the
/// addresses from `::2` on.
pub const OWN: Ipv6Addr = Ipv6Addr::new(0xfda3, 0xe722, 0x0ac3, 1, 0, 0, 0, 1);

/// Bits of the source prefixes: the rest is the client's IPv4 address.
const SOURCE_PREFIX_BITS: u8 = 96;

pub fn fabric(plan: &FabricPlan) -> Wanted {
    let source = |prefix: &Ipv6Addr| Route {
        table: TABLE_LOCAL,
        to: (*prefix).into(),
        prefix_bits: SOURCE_PREFIX_BITS,
        hop: Hop::Local,
    };
    Wanted {
        routes: plan.sources.values().map(source).collect(),
        neighbours: BTreeSet::new(),
        mark_rules: BTreeSet::new(),
        tables: vec![table(plan)],
    }
}

fn table(plan: &FabricPlan) -> Table {
    let seats = || plan.ports.iter().map(|(id, port)| (names::port(id).padded(), port));
    let v4 = seats().map(|(name, port)| point(key(&[&name, &port.v4.octets()])));
    let v6 = seats().map(|(name, port)| point(key(&[&name, &port.v6.octets()])));
    let name = Field::InterfaceName;
    let sets = BTreeMap::from([
        ("ports4".to_owned(), points(vec![name, Field::Ipv4], None, v4)),
        ("ports6".to_owned(), points(vec![name, Field::Ipv6], None, v6)),
    ]);
    let filter = HookKind::Filter;
    let chains = BTreeMap::from(
        [
            ("raw", base(filter, HookPoint::Prerouting, PRIORITY_RAW, Policy::Accept, raw())),
            ("input", base(filter, HookPoint::Input, PRIORITY_FILTER, Policy::Drop, input())),
            ("forward", base(filter, HookPoint::Forward, PRIORITY_FILTER, Policy::Drop, Vec::new())),
        ]
        .map(|(name, chain)| (name.to_owned(), chain)),
    );
    Table { family: TableFamily::Inet, name: "fabric", timeouts: BTreeSet::new(), sets, chains }
}

fn family(number: u8) -> Step {
    Step::Compare(Load::NfProto, Comparison::Equal, vec![number])
}

fn raw() -> Vec<Rule> {
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    let spoofed = |proto, load, set| {
        let steps = [from_any(PORT_PREFIX), family(proto), stranger(&[Load::InputName, load], set)];
        rule("a port speaks from its own addresses only", steps, Verdict::Drop)
    };
    vec![spoofed(NFPROTO_IPV4, Load::SourceIp, "ports4"), spoofed(NFPROTO_IPV6, Load::SourceIp6, "ports6")]
}

/// Without connection tracking: a container's segment that does not open a connection can only belong to one that the
/// proxy opened, for the source is its own and the socket on our side must exist.
fn input() -> Vec<Rule> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    const NFPROTO_IPV4: u8 = 2;
    let opens = Step::Masked(Load::TcpFlags, vec![SYN | ACK], Comparison::NotEqual, vec![SYN]);
    let local = rule("our own", [from(&names::loopback())], Verdict::Accept);
    let answers = rule("answers to the proxy", [from_any(PORT_PREFIX), protocol(TCP), opens], Verdict::Accept);
    // The address compares the IPv4 header's bytes, which an IPv6 packet has not.
    let metadata = metadata_rules(PORT_PREFIX).into_iter().map(|mut r| {
        r.steps.insert(0, family(NFPROTO_IPV4));
        r
    });
    [local, answers].into_iter().chain(metadata).collect()
}
