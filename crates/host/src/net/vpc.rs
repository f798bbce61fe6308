//! A VPC's router and the namespace behind it, as the kernel should hold them. Pure; start with [`router`].
//!
//! ```text
//!  VM ── p-… ┐                         ┌ o-<producer> ══ i-<this VPC> in the producer's router
//!  VM ── p-… ┤  consumer: firewall,    ├ edge0 ── vpc0, the namespace of the proxy's sockets, which may dial o-…
//!            │  routes only            ├ iap0 ── vpc0, the namespace of tunnels into this VPC, once one was opened
//!  i-<consumer> ═ producer: zone, DNAT to the VIP, SNAT to the endpoint's NAT address ─ edge0
//!                 replies: marked with their link by the NAT address ─ mux0 ─ forwarded into i-<consumer>
//! ```
//!
//! Two consumers may use one address and one port at once: each link has a tracking zone of its own for the first
//! direction, and replies share zone 0, where the NAT address tells them apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use model::{
    cidr::Cidr,
    id::NetworkId,
    limits,
    planned::host::{FirewallRule, Match, PlannedProtocol, VpcPlan, VpcSettings},
    vpc::{Action, Direction, PortRange},
};

use super::{
    pieces::{self, Piece},
    rules::*,
    state::Wanted,
};
use crate::{
    names::{self, INCOMING_PREFIX, OUTGOING_PREFIX, PORT_PREFIX},
    net::cable,
    netlink::{
        expr::{Comparison, Load, Step, Use, Verdict, state as ct},
        nft::{Chain, Field, HookKind, HookPoint, Policy, Rule, Set, Table, TableFamily, Timeouts},
        route::{Hop, MarkRule, Neighbour, Route},
    },
};

/// Replies to PSC consumers carry this mark and, below it, the number of the interface they must leave by.
pub const PSC_MARK: u32 = 0x1000_0000;
const PSC_LINK_BITS: u32 = 0x0fff_ffff;
/// Routing table of marked replies.
const PSC_TABLE: u32 = 200;
const PSC_RULE_PRIORITY: u32 = 100;

/// The first source port of connections behind an endpoint. Source: PSC, 64 512 ports for each NAT address.
const PSC_PORT_FIRST: u16 = 1_024;

/// Of a port, in network byte order.
const SECOND_BIT: [u8; 2] = 2_u16.to_be_bytes();

/// Links to consumers are numbered: the number is their tracking zone and, added to this, their interface number; so
/// the kernel's list of links is the whole memory of which is which.
pub const INCOMING_INDEX_BASE: u32 = 0x0010_0000;

/// As many consumers as there are zones; zone 0 is everybody's.
pub const INCOMING_NUMBERS: RangeInclusive<u32> = INCOMING_INDEX_BASE + 1..=INCOMING_INDEX_BASE + u16::MAX as u32;

/// The tracking zone that goes with the number of a link from a consumer.
pub fn zone_of(index: u32) -> Option<u16> {
    u16::try_from(index.checked_sub(INCOMING_INDEX_BASE)?).ok()
}

/// The number of each consumer's link.
pub type Zones = BTreeMap<NetworkId, u16>;

/// Where the table of the VPC's rules stands among the router's tables.
pub const TABLE: usize = 0;

/// What the router of a VPC should hold.
pub fn router(plan: &VpcPlan, zones: &Zones) -> Wanted {
    let mut wanted = frame(&plan.settings);
    pieces::all(plan, zones).for_each(|piece| wanted.put(piece));
    wanted
}

/// What a router holds before it has members.
pub fn frame(settings: &VpcSettings) -> Wanted {
    let via_mux = Hop::Via(HOP.into(), names::mux()[0].clone());
    Wanted {
        // What is not in this VPC is nowhere: say so at once instead of letting connections time out.
        routes: [Route::default_v4(Hop::Unreachable), Route { table: PSC_TABLE, ..Route::default_v4(via_mux) }].into(),
        // Whatever leaves by the mux is forwarded into some link: this is the address that every link's far end carries.
        neighbours: [Neighbour { at: names::mux()[0].clone(), address: HOP.into(), mac: cable::ROUTER_MAC }].into(),
        mark_rules: [MarkRule { mark: PSC_MARK, mask: PSC_MARK, table: PSC_TABLE, priority: PSC_RULE_PRIORITY }].into(),
        tables: vec![table(settings), mux_table()],
    }
}

/// No more than the name of the table into which members put their elements.
pub fn shell() -> Wanted {
    let (timeouts, sets, chains) = Default::default();
    let table = Table { family: TableFamily::Ip, name: "vpc", timeouts, sets, chains };
    Wanted { tables: vec![table], ..Wanted::default() }
}

/// What the proxy's namespace should hold: the VIPs and what it dials from as its own addresses, and one way out.
pub fn edge(plan: &VpcPlan) -> Wanted {
    let local = |piece| if let Piece::Local(address) = piece { Some(Route::local(address)) } else { None };
    let mut routes: BTreeSet<_> = pieces::all(plan, &Zones::new()).filter_map(local).collect();
    routes.insert(Route::default_v4(Hop::Via(HOP.into(), names::to_vpc())));
    let neighbours = [Neighbour { at: names::to_vpc(), address: HOP.into(), mac: cable::ROUTER_MAC }].into();
    Wanted { routes, neighbours, mark_rules: BTreeSet::new(), tables: Vec::new() }
}

/// The namespace out of which tunnels reach the VPC: its addresses, and one way out.
pub fn relay() -> Wanted {
    let own = Route { prefix_bits: RELAY_PREFIX_BITS, ..Route::local(RELAY_BASE) };
    let routes = [own, Route::default_v4(Hop::Via(HOP.into(), names::to_vpc()))].into();
    let neighbours = [Neighbour { at: names::to_vpc(), address: HOP.into(), mac: cable::ROUTER_MAC }].into();
    Wanted { routes, neighbours, ..Wanted::default() }
}

/// The way back into it, in the router.
pub fn to_relay() -> ([Route; 1], [Neighbour; 1]) {
    let at = names::to_relay();
    let to = Route { prefix_bits: RELAY_PREFIX_BITS, ..Route::host(RELAY_BASE, Hop::Via(HOP.into(), at.clone())) };
    ([to], [Neighbour { at, address: HOP.into(), mac: cable::RELAY_MAC }])
}

fn relay_range() -> Cidr {
    Cidr::containing(RELAY_BASE, RELAY_PREFIX_BITS)
}

fn table(settings: &VpcSettings) -> Table {
    let timeouts = Timeouts {
        established_s: settings.psc_idle_s,
        transitory_s: u32::try_from(limits::PSC_TRANSITORY.as_secs()).expect("30 seconds"),
    };
    let mut sets: BTreeMap<String, Set> = MEMBER_SETS.iter().map(|name| ((*name).to_owned(), shape(name))).collect();
    sets.insert("relay".to_owned(), address_set([&relay_range()]));
    let mut chains = chains(timeouts);
    let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|d| firewall(&settings.firewall, d, &mut sets));
    chains.insert("ingress".to_owned(), jumped(ingress));
    chains.insert("egress".to_owned(), jumped(egress));
    Table { family: TableFamily::Ip, name: "vpc", timeouts: [timeouts].into(), sets, chains }
}

/// The sets into which members put their elements; beside them those of [`tag_sets`].
const MEMBER_SETS: [&str; 15] = [
    "ports",
    "cut",
    "zone_of",
    "dialled",
    "vip_of",
    NATS_OF[0],
    NATS_OF[1],
    "nat_at",
    "link_of",
    "vips",
    "psc_vips",
    "region_of",
    "regional",
    "everywhere",
    "backends",
];

/// The maps that lead from an endpoint to its first NAT address, and to its second if it has one.
pub const NATS_OF: [&str; 2] = ["nat_of", "other_nat_of"];

/// The set of this name, empty.
pub fn shape(name: &str) -> Set {
    use Field::{InterfaceName, Ipv4, Mark, Port, Zone};
    let (key, value) = match name {
        "ports" | "dialled" | "nat_at" => (vec![InterfaceName, Ipv4], None),
        "vip_of" | "nat_of" | "other_nat_of" => (vec![InterfaceName, Ipv4], Some(Ipv4)),
        "zone_of" => (vec![InterfaceName], Some(Zone)),
        "link_of" | "region_of" => (vec![Ipv4], Some(Mark)),
        "regional" => (vec![Mark, Ipv4], None),
        "backends" => (vec![Ipv4, Ipv4, Port], None),
        "vips" | "psc_vips" => return ranges(vec![Ipv4, Port], []),
        // Addresses that were cut off, those that are reached from every region, and those of the VMs with a tag.
        _ => (vec![Ipv4], None),
    };
    points(key, value, [])
}

/// Everything but the firewall: the same for every VPC.
fn chains(timeouts: Timeouts) -> BTreeMap<String, Chain> {
    let filter = HookKind::Filter;
    let pre = HookPoint::Prerouting;
    let post = HookPoint::Postrouting;
    BTreeMap::from(
        [
            ("raw", base(filter, pre, PRIORITY_RAW, Policy::Accept, raw())),
            ("mark", base(filter, pre, PRIORITY_MANGLE, Policy::Accept, mark())),
            ("dnat", base(HookKind::Nat, pre, PRIORITY_DSTNAT, Policy::Accept, dnat())),
            ("input", base(filter, HookPoint::Input, PRIORITY_FILTER, Policy::Drop, metadata_rules(PORT_PREFIX))),
            ("forward", base(filter, HookPoint::Forward, PRIORITY_FILTER, Policy::Drop, forward())),
            ("output_raw", base(filter, HookPoint::Output, PRIORITY_RAW, Policy::Accept, output_raw())),
            ("output", base(filter, HookPoint::Output, PRIORITY_FILTER, Policy::Drop, output())),
            ("snat", base(HookKind::Nat, post, PRIORITY_SRCNAT, Policy::Accept, snat())),
            ("last", base(filter, post, PRIORITY_LAST, Policy::Accept, last())),
            ("from_consumer", jumped(from_consumer(timeouts))),
            ("from_edge", jumped(from_edge())),
            ("regions", jumped(regions())),
            ("cap", jumped(vec![cap()])),
        ]
        .map(|(name, chain)| (name.to_owned(), chain)),
    )
}

fn raw() -> Vec<Rule> {
    let seat = [Load::InputName, Load::SourceIp];
    vec![
        rule(
            "a port speaks from its own address only",
            [from_any(PORT_PREFIX), stranger(&seat, "ports")],
            Verdict::Drop,
        ),
        rule(
            "the relay speaks from its own addresses only",
            [from(&names::to_relay()), stranger(&[Load::SourceIp], "relay")],
            Verdict::Drop,
        ),
        rule("metadata needs no tracking", [is_v4(Load::DestinationIp, METADATA), Step::NoTrack], Verdict::Accept),
        effect(
            "each consumer has a zone of its own",
            // The comparison is there to spare all other packets the look-up.
            [from_any(INCOMING_PREFIX), Step::Mapped(vec![Load::InputName], "zone_of".to_owned(), Use::OriginalZone)],
        ),
    ]
}

/// After the connection is known, before its addresses are translated back.
fn mark() -> Vec<Rule> {
    let edge = from(&names::to_edge());
    vec![
        rule("cut off", [edge.clone(), member(&[Load::DestinationIp], "cut")], Verdict::Drop),
        effect(
            "only replies to an endpoint find their link",
            [
                edge,
                reply(),
                through_endpoint(),
                Step::Mapped(vec![Load::DestinationIp], "link_of".to_owned(), Use::Mark),
            ],
        ),
    ]
}

fn dnat() -> Vec<Rule> {
    let dialled = vec![Load::InputName, Load::DestinationIp];
    let to_vip = Step::Mapped(dialled, "vip_of".to_owned(), Use::Destination);
    vec![effect("endpoint to vip", [from_any(INCOMING_PREFIX), protocol(TCP), to_vip])]
}

fn snat() -> Vec<Rule> {
    let source = Use::Source { first_port: PSC_PORT_FIRST, last_port: u16::MAX };
    let [to_nat, to_other] =
        NATS_OF.map(|map| Step::Mapped(vec![Load::InputName, Load::CtOriginalDestination], map.to_owned(), source));
    // Linux connects from ports of one parity while it can, so the lowest bit would choose nothing.
    let half = Step::Masked(Load::SourcePort, SECOND_BIT.to_vec(), Comparison::Equal, SECOND_BIT.to_vec());
    vec![
        effect(
            "half of the ports to the other nat address",
            [from_any(INCOMING_PREFIX), protocol(TCP), half, to_other],
        ),
        effect("endpoint to its nat address", [from_any(INCOMING_PREFIX), protocol(TCP), to_nat]),
    ]
}

fn last() -> Vec<Rule> {
    let consumer = from_any(INCOMING_PREFIX);
    let speaks = [Load::InputName, Load::SourceIp];
    vec![
        rule("cut off", [consumer.clone(), member(&[Load::SourceIp], "cut")], Verdict::Drop),
        rule("no consumer's own address gets through", [consumer, stranger(&speaks, "nat_at")], Verdict::Drop),
    ]
}

fn forward() -> Vec<Rule> {
    let edge = names::to_edge();
    vec![
        rule("through an endpoint", [from_any(INCOMING_PREFIX)], Verdict::Goto("from_consumer")),
        rule("from the load balancer", [from(&edge)], Verdict::Goto("from_edge")),
        rule("to an endpoint, from where", [from_any(PORT_PREFIX), to_any(OUTGOING_PREFIX)], Verdict::Jump("regions")),
        rule("to the load balancer, from where", [from_any(PORT_PREFIX), to(&edge)], Verdict::Jump("regions")),
        rule("known", [state(ct::ESTABLISHED | ct::RELATED)], Verdict::Accept),
        rule("out of nowhere", [state(ct::INVALID)], Verdict::Drop),
        rule("a producer opens nothing", [from_any(OUTGOING_PREFIX)], Verdict::Drop),
        rule("connections of this vpc", [], Verdict::Jump("cap")),
        rule("what a vm may send", [from_any(PORT_PREFIX)], Verdict::Jump("egress")),
        rule("what a vm may get", [from_any(PORT_PREFIX), to_any(PORT_PREFIX)], Verdict::Goto("ingress")),
        rule(
            "what a vm may get through the identity-aware proxy",
            [from(&names::to_relay()), to_any(PORT_PREFIX)],
            Verdict::Goto("ingress"),
        ),
        rule("to an endpoint", [from_any(PORT_PREFIX), to_any(OUTGOING_PREFIX)], Verdict::Accept),
        rule(
            "to the load balancer",
            [
                from_any(PORT_PREFIX),
                to(&edge),
                protocol(TCP),
                member(&[Load::DestinationIp, Load::DestinationPort], "vips"),
            ],
            Verdict::Accept,
        ),
    ]
}

/// Asked of every packet, so that a connection ends with the access that it was made with.
fn regions() -> Vec<Rule> {
    let region_of = Step::Mapped(vec![Load::SourceIp], "region_of".to_owned(), Use::Mark);
    let regional = stranger(&[Load::Mark, Load::DestinationIp], "regional");
    vec![
        rule("reached from every region", [member(&[Load::DestinationIp], "everywhere")], Verdict::Return),
        effect("a vm is in a region", [region_of]),
        rule("reached from its own region only", [regional], Verdict::Drop),
    ]
}

fn from_consumer(timeouts: Timeouts) -> Vec<Rule> {
    let service = [Load::DestinationIp, Load::DestinationPort];
    vec![
        rule("to the load balancer and nowhere else", [not_to(&names::to_edge())], Verdict::Drop),
        rule("known", [state(ct::ESTABLISHED), through_endpoint()], Verdict::Accept),
        rule("connections of this vpc", [], Verdict::Jump("cap")),
        rule(
            "new",
            [
                state(ct::NEW),
                member(&[Load::InputName, Load::CtOriginalDestination], "dialled"),
                protocol(TCP),
                member(&service, "psc_vips"),
                Step::Timeout(timeouts.name()),
            ],
            Verdict::Accept,
        ),
        rule("anything else", [], Verdict::Drop),
    ]
}

fn from_edge() -> Vec<Rule> {
    let known = || [state(ct::ESTABLISHED), reply()];
    // Where a reply has lost its mark, its destination is an address of the consumer's; the same address may be a VM
    // here. So translated replies leave by the mux or not at all.
    let [mux, _] = names::mux();
    vec![
        rule("to a consumer", known().into_iter().chain([through_endpoint(), to(&mux)]), Verdict::Accept),
        rule("to a vm", known().into_iter().chain([not_through_endpoint(), to_any(PORT_PREFIX)]), Verdict::Accept),
        rule("opened by others", [not_to_any(OUTGOING_PREFIX)], Verdict::Drop),
        rule("connections of this vpc", [], Verdict::Jump("cap")),
        rule(
            "to a backend",
            [
                state(ct::NEW | ct::ESTABLISHED),
                protocol(TCP),
                member(&[Load::SourceIp, Load::DestinationIp, Load::DestinationPort], "backends"),
            ],
            Verdict::Accept,
        ),
        rule("the load balancer opens nothing else", [], Verdict::Drop),
    ]
}

fn cap() -> Rule {
    rule(
        "as many as a vpc may have",
        [state(ct::NEW), Step::ConnectionsOver(limits::VPC_CONNECTIONS_MAX)],
        Verdict::Drop,
    )
}

fn output_raw() -> Vec<Rule> {
    vec![rule("metadata needs no tracking", [is_v4(Load::SourceIp, METADATA), Step::NoTrack], Verdict::Accept)]
}

/// The router speaks to its own VMs as the metadata server and in ICMP errors, and to nobody else.
fn output() -> Vec<Rule> {
    vec![rule("to a vm", [is_v4(Load::SourceIp, METADATA), to_any(PORT_PREFIX)], Verdict::Accept)]
}

/// Rules of one direction, in order, with their address sets. An allowed ingress is accepted, an allowed egress returns
/// (ingress is still to be asked); at the end stand the implied rules.
fn firewall(all: &[FirewallRule], direction: Direction, sets: &mut BTreeMap<String, Set>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for firewall in all.iter().filter(|rule| rule.direction == direction) {
        let verdict = match (firewall.action, direction) {
            (Action::Deny, _) => Verdict::Drop,
            (Action::Allow, Direction::Ingress) => Verdict::Accept,
            (Action::Allow, Direction::Egress) => Verdict::Return,
        };
        for addresses in address_steps(firewall, sets) {
            for traffic in traffic_steps(&firewall.protocols) {
                rules.push(rule(firewall.name.clone(), addresses.iter().cloned().chain(traffic), verdict.clone()));
            }
        }
    }
    rules.push(match direction {
        Direction::Ingress => rule("implied deny ingress", [], Verdict::Drop),
        Direction::Egress => rule("implied allow egress", [], Verdict::Return),
    });
    rules
}

fn conditions(firewall: &FirewallRule) -> [(&'static str, Load, &Match); 3] {
    let (target, peer) = match firewall.direction {
        Direction::Ingress => (Load::DestinationIp, Load::SourceIp),
        Direction::Egress => (Load::SourceIp, Load::DestinationIp),
    };
    [
        ("targets", target, &firewall.targets),
        ("peers", peer, &firewall.peers),
        ("destinations", Load::DestinationIp, &firewall.destinations),
    ]
}

fn tag_set(firewall: &FirewallRule, part: &str) -> String {
    format!("{}.{part}.tags", firewall.name)
}

/// The sets that hold who carries a tag that the rule names: (tag, set).
pub fn tag_sets(firewall: &FirewallRule) -> Vec<(String, String)> {
    let of = |(part, _, condition): (&str, Load, &Match)| match condition {
        Match::Tagged(_, blocks) if blocks.contains(&Cidr::ALL) => Vec::new(),
        Match::Tagged(tags, _) => tags.iter().map(|tag| (tag.clone(), tag_set(firewall, part))).collect(),
        Match::Any | Match::In(_) => Vec::new(),
    };
    conditions(firewall).into_iter().flat_map(of).collect()
}

/// One rule's steps for every way in which all its conditions on addresses can hold.
fn address_steps(firewall: &FirewallRule, sets: &mut BTreeMap<String, Set>) -> Vec<Vec<Step>> {
    let mut ways = vec![Vec::new()];
    for (part, load, condition) in conditions(firewall) {
        let mut one_of = |name: String, set: Set| {
            let step = member(&[load], &name);
            sets.insert(name, set);
            step
        };
        let ranges = format!("{}.{part}", firewall.name);
        let steps = match condition {
            Match::Any => continue,
            Match::In(blocks) | Match::Tagged(_, blocks) if blocks.contains(&Cidr::ALL) => continue,
            Match::In(blocks) => vec![one_of(ranges, address_set(blocks))],
            Match::Tagged(_, blocks) => {
                let tags = tag_set(firewall, part);
                let tagged = one_of(tags.clone(), shape(&tags));
                let ranges = (!blocks.is_empty()).then(|| one_of(ranges, address_set(blocks)));
                std::iter::once(tagged).chain(ranges).collect()
            }
        };
        let with = |way: &Vec<Step>| steps.iter().map(|s| [way.as_slice(), &[s.clone()]].concat()).collect::<Vec<_>>();
        ways = ways.iter().flat_map(with).collect();
    }
    ways
}

/// One rule for each protocol and port range; a single empty one where everything matches.
fn traffic_steps(protocols: &[PlannedProtocol]) -> Vec<Vec<Step>> {
    if protocols.is_empty() {
        return vec![Vec::new()];
    }
    let each = |p: &PlannedProtocol| -> Vec<Vec<Step>> {
        let of = |range: PortRange| [vec![protocol(p.protocol)], ports(range)].concat();
        if p.ports.is_empty() { vec![vec![protocol(p.protocol)]] } else { p.ports.iter().map(|r| of(*r)).collect() }
    };
    protocols.iter().flat_map(each).collect()
}

/// Replies that left by the mux are put into the link that their mark names: one step, however many consumers.
fn mux_table() -> Table {
    let rules = vec![effect("into the link of the consumer", [Step::ForwardByMark(PSC_LINK_BITS)])];
    let chain = base(HookKind::Filter, HookPoint::Egress("mux0"), PRIORITY_FILTER, Policy::Drop, rules);
    let chains = BTreeMap::from([("egress".to_owned(), chain)]);
    Table { family: TableFamily::Netdev, name: "mux", timeouts: BTreeSet::new(), sets: BTreeMap::new(), chains }
}
