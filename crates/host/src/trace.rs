//! Which rules a packet met: the kernel's own trace of one port's TCP segments in one namespace.
//!
//! Open it before the traffic. It changes no rule of ours and leaves nothing behind, however its process ends: the table
//! that asks the kernel to tell is bound to a socket.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use crate::{
    capture::Headers,
    names::IfName,
    netlink::{
        route::{self, Links},
        socket::{Family, NetlinkError, Socket},
        trace::{self, Decision, Event},
    },
    netns::{Netns, NetnsError},
};

/// Events of one trace; later ones are not kept.
const EVENTS_MAX: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("cannot trace in namespace {namespace}")]
    Netlink { namespace: String, source: NetlinkError },
    #[error("cannot hear the trace of namespace {namespace}")]
    Hear { namespace: String, source: io::Error },
}

/// A packet's way through one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    pub input: Option<IfName>,
    pub output: Option<IfName>,
    /// As it came.
    pub came: Headers,
    /// As it was when the last chain looked at it: addresses are translated by then.
    pub left: Headers,
    /// The rules that matched, as (chain, comment), in order.
    pub met: Vec<(String, String)>,
    /// Chain and rule that dropped it; the rule is `policy` where no rule decided.
    pub dropped: Option<(String, String)>,
}

#[derive(Debug)]
pub struct Trace {
    namespace: String,
    /// Holds the table that asks.
    _owner: Socket,
    events: Socket,
    rules: BTreeMap<(String, u64), String>,
    links: Links,
    heard: Vec<Event>,
}

impl Trace {
    /// Tells of every TCP segment from or to this port that enters the namespace from now on.
    pub fn start(netns: &Netns, port: u16) -> Result<Trace, TraceError> {
        let namespace = netns.name().to_owned();
        let netlink = |source| TraceError::Netlink { namespace: namespace.clone(), source };
        let opened = netns.run(|| -> Result<_, NetlinkError> {
            let links = route::list_links(&mut Socket::open(Family::Route)?)?;
            let (mut owner, events) = (Socket::open(Family::Netfilter)?, Socket::open(Family::Netfilter)?);
            events.join(trace::GROUP)?;
            let rules = trace::rules(&mut owner)?;
            trace::start(&mut owner, port)?;
            Ok(Trace { namespace: netns.name().to_owned(), _owner: owner, events, rules, links, heard: Vec::new() })
        })?;
        opened.map_err(netlink)
    }

    /// The ways of all packets so far, in the order in which they came; returns once nothing was heard for `quiet`, and
    /// after `at_most` in any case.
    pub fn passages(&mut self, quiet: Duration, at_most: Duration) -> Result<Vec<Passage>, TraceError> {
        let deadline = Instant::now() + at_most;
        while self.heard.len() < EVENTS_MAX && Instant::now() < deadline {
            match self.events.event(quiet) {
                Ok(Some(datagram)) => self.heard.extend(trace::events(&datagram)),
                Ok(None) => break,
                Err(source) => return Err(TraceError::Hear { namespace: self.namespace.clone(), source }),
            }
        }
        // The kernel's number of a packet is free again when the packet is gone; each begins in the table that asks.
        let asks = |event: &Event| event.table.starts_with(trace::TABLE_PREFIX);
        let mut packets: Vec<(u32, Vec<&Event>)> = Vec::new();
        for event in &self.heard {
            match packets.iter_mut().rev().find(|(packet, _)| *packet == event.packet) {
                Some((_, events)) if !asks(event) || events.last().is_some_and(|last| asks(last)) => events.push(event),
                Some(_) | None => packets.push((event.packet, vec![event])),
            }
        }
        Ok(packets.iter().filter_map(|(_, events)| self.passage(events)).collect())
    }

    fn passage(&self, events: &[&Event]) -> Option<Passage> {
        let mut headers = events.iter().filter_map(|e| Headers::of_packet(e.packet_bytes.as_deref()?));
        let came = headers.next()?;
        let name = |index: Option<u32>| index.and_then(|index| self.links.name(index));
        let rule = |event: &Event| match event.rule {
            Some(handle) => self.rules.get(&(event.table.clone(), handle)).cloned().unwrap_or_default(),
            None => "policy".to_owned(),
        };
        let ours = |event: &&&Event| !event.table.starts_with(trace::TABLE_PREFIX);
        let matched = events.iter().filter(ours).filter(|e| e.rule.is_some());
        let dropped = events.iter().find(|e| e.decision == Decision::Drop);
        Some(Passage {
            input: events.iter().find_map(|e| name(e.input)),
            output: events.iter().rev().find_map(|e| name(e.output)),
            came,
            left: headers.next_back().unwrap_or(came),
            met: matched.map(|e| (e.chain.clone(), rule(e))).collect(),
            dropped: dropped.map(|e| (e.chain.clone(), rule(e))),
        })
    }
}
