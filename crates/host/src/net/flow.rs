//! Flow records of one VPC, from the births and deaths that connection tracking tells and, between them, from looking at
//! the living flows one by one (a listing walks the machine's whole table).
//!
//! A flow is two records, one for each direction, as the VPC's addresses see it: that of a consumer's connection comes from
//! the NAT address. What joins it to the consumer's own flow is told beside it ([`Mapped`]) and stands in no log.
//! [`Ledger`] is pure; [`watch`] is the thread.

mod watch;

use std::{collections::BTreeMap, net::SocketAddrV4, time::SystemTime};

use model::{
    id::NetworkId,
    record::{FlowGap, FlowRecord, Mapped},
    time::Timestamp,
};

pub use self::watch::{Tuning, Watch, watch};
use crate::netlink::conntrack::{Counters, Entry, Tuple};

/// Flows one VPC's ledger follows; later ones are a gap in the log. Source: as many as the VPC may have.
const FLOWS_MAX: u32 = model::limits::VPC_CONNECTIONS_MAX;

/// What a flow thread says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Flows(Vec<FlowRecord>),
    Gap(FlowGap),
    Mapped(Vec<Mapped>),
}

/// What is known of the living flows.
#[derive(Debug)]
pub struct Ledger {
    network: NetworkId,
    flows: BTreeMap<(u32, Tuple), Flow>,
}

#[derive(Debug)]
struct Flow {
    /// Its original direction, as the VPC sees it.
    seen: Tuple,
    born: Timestamp,
    /// What was recorded already, original direction first.
    recorded: [Counters; 2],
    since: Timestamp,
    opening: bool,
}

impl Ledger {
    pub fn new(network: NetworkId) -> Ledger {
        Ledger { network, flows: BTreeMap::new() }
    }

    /// Flows to ask the kernel about at the end of an interval.
    pub fn living(&self) -> Vec<(u32, Tuple)> {
        self.flows.keys().copied().collect()
    }

    /// False when there is no room to follow it.
    pub fn born(&mut self, entry: &Entry, now: Timestamp) -> bool {
        self.follow(entry, [Counters::default(); 2], true, now)
    }

    /// A flow that lived before we listened: what it has counted so far is not ours to tell.
    pub fn met(&mut self, entry: &Entry, now: Timestamp) -> bool {
        let key = (entry.id, entry.original);
        self.flows.contains_key(&key) || self.follow(entry, entry.counters.unwrap_or_default(), false, now)
    }

    fn follow(&mut self, entry: &Entry, recorded: [Counters; 2], opening: bool, now: Timestamp) -> bool {
        if u32::try_from(self.flows.len()).is_ok_and(|flows| flows >= FLOWS_MAX) {
            return false;
        }
        let born = began(entry).unwrap_or(now);
        let since = if opening { born } else { now };
        let flow = Flow { seen: seen(entry), born, recorded, since, opening };
        self.flows.insert((entry.id, entry.original), flow);
        true
    }

    /// What joins this flow to the consumer's, if it is one through an endpoint.
    pub fn mapped(&self, key: &(u32, Tuple)) -> Option<Mapped> {
        let flow = self.flows.get(key).filter(|_| key.1.zone != 0 && key.1.protocol == TCP)?;
        let [(consumer, endpoint), (nat, target)] =
            [&key.1, &flow.seen].map(|t| (SocketAddrV4::new(t.src, t.src_port), SocketAddrV4::new(t.dst, t.dst_port)));
        Some(Mapped { network: self.network, consumer, endpoint, nat, target, at: flow.born })
    }

    /// What the flow did since its last record: nothing, or a record for each direction that moved.
    pub fn counted(&mut self, entry: &Entry, now: Timestamp) -> Vec<FlowRecord> {
        let Some(flow) = self.flows.get_mut(&(entry.id, entry.original)) else { return Vec::new() };
        let Some(counters) = entry.counters else { return Vec::new() };
        // The kernel says so in every answer, but not at a birth, which may be heard of late.
        if let Some(began) = began(entry).filter(|_| flow.opening) {
            flow.since = began;
        }
        let mut records = Vec::new();
        for (i, forward) in [(0, true), (1, false)] {
            let packets = counters[i].packets.saturating_sub(flow.recorded[i].packets);
            let bytes = counters[i].bytes.saturating_sub(flow.recorded[i].bytes);
            if packets > 0 {
                records.push(record(self.network, flow, forward, Counters { packets, bytes }, now));
            }
        }
        if !records.is_empty() {
            *flow = Flow { recorded: counters, since: now, opening: false, ..*flow };
        }
        records
    }

    /// The last records of a flow.
    pub fn died(&mut self, entry: &Entry, now: Timestamp) -> Vec<FlowRecord> {
        let records = self.counted(entry, now);
        self.flows.remove(&(entry.id, entry.original));
        records
    }

    /// A flow that vanished without a word.
    pub fn forget(&mut self, key: &(u32, Tuple)) {
        self.flows.remove(key);
    }
}

/// When a connection began, where the kernel says it.
fn began(entry: &Entry) -> Option<Timestamp> {
    entry.started_ns.map(|ns| Timestamp(i64::try_from(ns / 1_000).unwrap_or(i64::MAX)))
}

/// The original direction of a connection. Another zone than the common one is a consumer's connection through an endpoint,
/// which the VPC sees translated: replies go where it seems to come from.
fn seen(entry: &Entry) -> Tuple {
    match entry.original.zone {
        0 => entry.original,
        _ => {
            let Tuple { src, dst, src_port, dst_port, .. } = entry.reply;
            Tuple { src: dst, dst: src, src_port: dst_port, dst_port: src_port, ..entry.reply }
        }
    }
}

fn record(network: NetworkId, flow: &Flow, forward: bool, moved: Counters, now: Timestamp) -> FlowRecord {
    let tuple = &flow.seen;
    let [from, to] = [(tuple.src, tuple.src_port), (tuple.dst, tuple.dst_port)];
    let (src, dst) = if forward { (from, to) } else { (to, from) };
    FlowRecord {
        network,
        protocol: tuple.protocol,
        src: src.0,
        dst: dst.0,
        src_port: src.1,
        dst_port: dst.1,
        packets: moved.packets,
        bytes: moved.bytes.saturating_sub(moved.packets.saturating_mul(header_bytes(tuple.protocol))),
        first: flow.since,
        last: now,
        opening: flow.opening,
        forward,
    }
}

/// IANA number.
const TCP: u8 = 6;

/// IP and transport headers without options.
fn header_bytes(protocol: u8) -> u64 {
    match protocol {
        6 => 40,
        17 | 1 => 28,
        _ => 20,
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(packets: [u64; 2], zone: u16) -> Entry {
        let original = Tuple {
            src: "10.1.0.2".parse().unwrap(),
            dst: "10.1.0.5".parse().unwrap(),
            protocol: 6,
            src_port: 40_000,
            dst_port: 80,
            zone,
        };
        let reply = Tuple { src: original.dst, dst: original.src, src_port: 80, dst_port: 40_000, ..original };
        let counters = Some(packets.map(|packets| Counters { packets, bytes: packets * 60 }));
        Entry { original, reply, id: 7, status: 0, timeout_s: None, counters, started_ns: None }
    }

    #[test]
    fn each_interval_tells_what_moved_in_it_and_the_first_is_marked() {
        let mut ledger = Ledger::new(NetworkId(1));
        assert!(ledger.born(&entry([0, 0], 0), Timestamp(10)));
        let told = |records: Vec<FlowRecord>| -> Vec<_> {
            records.iter().map(|r| (r.src.octets()[3], r.packets, r.bytes, r.opening, r.first.0)).collect()
        };
        assert_eq!(
            told(ledger.counted(&entry([3, 2], 0), Timestamp(20))),
            [(2, 3, 60, true, 10), (5, 2, 40, true, 10)]
        );
        assert_eq!(told(ledger.counted(&entry([3, 2], 0), Timestamp(30))), [], "an idle flow says nothing");
        assert_eq!(told(ledger.died(&entry([4, 2], 0), Timestamp(40))), [(2, 1, 20, false, 20)]);
        assert!(ledger.living().is_empty());
    }

    #[test]
    fn a_connection_through_an_endpoint_is_the_producers_flow_as_it_looks_behind_the_translation() {
        let mut ledger = Ledger::new(NetworkId(1));
        let at = |a: &str| -> SocketAddrV4 { a.parse().unwrap() };
        let mut through = entry([2, 1], 3);
        let (nat, vip) = (at("10.0.3.2:1024"), at("10.0.1.2:80"));
        through.reply = Tuple {
            src: *vip.ip(),
            dst: *nat.ip(),
            src_port: vip.port(),
            dst_port: nat.port(),
            zone: 0,
            ..through.reply
        };
        assert!(ledger.born(&through, Timestamp(10)));
        assert!(ledger.born(&entry([1, 1], 0), Timestamp(11)));
        let ends = |r: &FlowRecord| (SocketAddrV4::new(r.src, r.src_port), SocketAddrV4::new(r.dst, r.dst_port));
        let records = ledger.counted(&through, Timestamp(20));
        assert_eq!(records.iter().map(ends).collect::<Vec<_>>(), [(nat, vip), (vip, nat)]);
        let mapped: Vec<_> = ledger.living().iter().filter_map(|key| ledger.mapped(key)).collect();
        let (consumer, endpoint) = (at("10.1.0.2:40000"), at("10.1.0.5:80"));
        let want = Mapped { network: NetworkId(1), consumer, endpoint, nat, target: vip, at: Timestamp(10) };
        assert_eq!(mapped, [want], "what stays within the VPC is not translated");
    }

    #[test]
    fn a_flow_begins_when_the_kernel_says_and_not_when_its_birth_was_heard_of() {
        let mut ledger = Ledger::new(NetworkId(1));
        assert!(ledger.born(&entry([1, 1], 0), Timestamp(500)));
        let started = |packets| Entry { started_ns: Some(10_000), ..entry(packets, 0) };
        let firsts = |records: Vec<FlowRecord>| records.iter().map(|r| r.first.0).collect::<Vec<_>>();
        assert_eq!(firsts(ledger.counted(&started([2, 1]), Timestamp(600))), [10, 10]);
        assert_eq!(firsts(ledger.died(&started([3, 2]), Timestamp(700))), [600, 600]);
    }

    #[test]
    fn a_flow_met_on_the_way_tells_only_what_it_does_from_then_on() {
        let mut ledger = Ledger::new(NetworkId(1));
        assert!(ledger.met(&entry([100, 90], 0), Timestamp(10)));
        let records = ledger.counted(&entry([101, 90], 0), Timestamp(20));
        assert_eq!(records.iter().map(|r| (r.packets, r.opening)).collect::<Vec<_>>(), [(1, false)]);
    }
}
