//! Flow records of one VPC, from the births and deaths that connection tracking tells and, between them, from looking at
//! the living flows one by one (a listing walks the machine's whole table).
//!
//! Only flows of the VPC itself: what a consumer's connection looks like inside a producer is nobody's log there. A flow
//! is two records, one for each direction, as the VPC's addresses see it. [`Ledger`] is pure; [`watch`] is the thread.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::SyncSender,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use model::{
    id::NetworkId,
    record::{FlowGap, FlowRecord},
    time::Timestamp,
};

use super::kernel::KernelError;
use crate::netlink::{
    conntrack::{self, Counters, Entry, Event, Tuple},
    socket::{Family, NetlinkError, Socket},
};
use crate::netns::Netns;

/// Flows one VPC's ledger follows; later ones are a gap in the log. Source: as many as the VPC may have.
const FLOWS_MAX: u32 = model::limits::VPC_CONNECTIONS_MAX;
/// How long the thread waits for events before it looks at its clock and whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a flow thread says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Flows(Vec<FlowRecord>),
    Gap(FlowGap),
}

/// What is known of the living flows.
#[derive(Debug)]
pub struct Ledger {
    network: NetworkId,
    flows: BTreeMap<(u32, Tuple), Flow>,
}

#[derive(Debug)]
struct Flow {
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
        // Another zone is a consumer's connection through an endpoint.
        if entry.original.zone != 0 {
            return true;
        }
        if u32::try_from(self.flows.len()).is_ok_and(|flows| flows >= FLOWS_MAX) {
            return false;
        }
        let since = entry
            .started_ns
            .filter(|_| opening)
            .map_or(now, |ns| Timestamp(i64::try_from(ns / 1_000).unwrap_or(i64::MAX)));
        self.flows.insert((entry.id, entry.original), Flow { recorded, since, opening });
        true
    }

    /// What the flow did since its last record: nothing, or a record for each direction that moved.
    pub fn counted(&mut self, entry: &Entry, now: Timestamp) -> Vec<FlowRecord> {
        let Some(flow) = self.flows.get_mut(&(entry.id, entry.original)) else { return Vec::new() };
        let Some(counters) = entry.counters else { return Vec::new() };
        let mut records = Vec::new();
        for (i, forward) in [(0, true), (1, false)] {
            let packets = counters[i].packets.saturating_sub(flow.recorded[i].packets);
            let bytes = counters[i].bytes.saturating_sub(flow.recorded[i].bytes);
            if packets > 0 {
                records.push(record(self.network, &entry.original, flow, forward, Counters { packets, bytes }, now));
            }
        }
        if !records.is_empty() {
            *flow = Flow { recorded: counters, since: now, opening: false };
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

fn record(
    network: NetworkId,
    tuple: &Tuple,
    flow: &Flow,
    forward: bool,
    moved: Counters,
    now: Timestamp,
) -> FlowRecord {
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

/// IP and transport headers without options.
fn header_bytes(protocol: u8) -> u64 {
    match protocol {
        6 => 40,
        17 | 1 => 28,
        _ => 20,
    }
}

/// A running flow thread; it ends when dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on standard error; there is nothing to clean up after it.
            let _ = thread.join();
        }
    }
}

/// Follows the flows of the router in `netns`, a record for each every `interval`. What does not fit into `out` is told
/// as a gap.
pub fn watch(
    network: NetworkId,
    netns: &Netns,
    interval: Duration,
    out: SyncSender<Said>,
) -> Result<Watch, KernelError> {
    let wrap = |source| KernelError::Netlink { namespace: netns.name().to_owned(), source };
    let [events, asks] = netns.run(|| [Socket::open(Family::Netfilter), Socket::open(Family::Netfilter)])?;
    let (events, asks) = (events.map_err(wrap)?, asks.map_err(wrap)?);
    conntrack::subscribe(&events).map_err(wrap)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut watcher = Watcher {
        ledger: Ledger::new(network),
        events,
        asks,
        out,
        interval,
        lost_since: None,
        heard: now(),
        stop: stop.clone(),
    };
    let thread = thread::spawn(move || watcher.run());
    Ok(Watch { stop, thread: Some(thread) })
}

struct Watcher {
    ledger: Ledger,
    events: Socket,
    asks: Socket,
    out: SyncSender<Said>,
    interval: Duration,
    /// Since when records are missing.
    lost_since: Option<Timestamp>,
    /// When events were last heard without loss.
    heard: Timestamp,
    stop: Arc<AtomicBool>,
}

impl Watcher {
    fn run(&mut self) {
        // Flows that live already: opened while nobody listened.
        self.resync();
        let mut next = Instant::now() + self.interval;
        while !self.stop.load(Ordering::Relaxed) {
            let wait = LOOK_EVERY.min(next.saturating_duration_since(Instant::now()));
            match self.events.event(wait) {
                Ok(Some(datagram)) => self.hear(&datagram),
                Ok(None) => self.heard = now(),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.lost_since.get_or_insert(self.heard);
                    self.resync();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
            if Instant::now() >= next {
                self.interval_ends();
                next = Instant::now() + self.interval;
            }
        }
    }

    fn hear(&mut self, datagram: &[u8]) {
        let at = now();
        let mut records = Vec::new();
        for event in conntrack::events(datagram) {
            match event {
                Event::Born(entry) => {
                    if !self.ledger.born(&entry, at) {
                        self.lost_since.get_or_insert(at);
                    }
                }
                Event::Died(entry) => records.extend(self.ledger.died(&entry, at)),
            }
        }
        self.say(records);
    }

    fn interval_ends(&mut self) {
        let mut records = Vec::new();
        for key in self.ledger.living() {
            match conntrack::get(&mut self.asks, &key.1) {
                Ok(Some(entry)) if entry.id == key.0 => records.extend(self.ledger.counted(&entry, now())),
                // Gone, with its last words still to be heard; or its tuple is another's by now.
                Ok(_) => {}
                Err(_) => {
                    self.lost_since.get_or_insert(now());
                }
            }
        }
        self.say(records);
        self.tell_gap();
    }

    /// Compares with what the kernel holds: flows we missed are followed from here on, those that are gone are let go.
    fn resync(&mut self) {
        let listed: Result<Vec<Entry>, NetlinkError> = conntrack::list(&mut self.asks);
        let Ok(entries) = listed else { return };
        let at = now();
        for key in self.ledger.living() {
            if !entries.iter().any(|e| (e.id, e.original) == key) {
                self.ledger.forget(&key);
            }
        }
        for entry in &entries {
            self.ledger.met(entry, at);
        }
    }

    fn say(&mut self, records: Vec<FlowRecord>) {
        if !records.is_empty() && self.out.try_send(Said::Flows(records)).is_err() {
            self.lost_since.get_or_insert(self.heard);
        }
    }

    fn tell_gap(&mut self) {
        let Some(from) = self.lost_since else { return };
        let gap = FlowGap { network: Some(self.ledger.network), from, to: now() };
        if self.out.try_send(Said::Gap(gap)).is_ok() {
            self.lost_since = None;
        }
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
    fn a_connection_through_an_endpoint_is_no_flow_of_the_producer() {
        let mut ledger = Ledger::new(NetworkId(1));
        assert!(ledger.born(&entry([1, 1], 3), Timestamp(10)));
        assert!(ledger.living().is_empty());
    }

    #[test]
    fn a_flow_met_on_the_way_tells_only_what_it_does_from_then_on() {
        let mut ledger = Ledger::new(NetworkId(1));
        assert!(ledger.met(&entry([100, 90], 0), Timestamp(10)));
        let records = ledger.counted(&entry([101, 90], 0), Timestamp(20));
        assert_eq!(records.iter().map(|r| (r.packets, r.opening)).collect::<Vec<_>>(), [(1, false)]);
    }
}
