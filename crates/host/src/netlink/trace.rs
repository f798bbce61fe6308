//! nf_tables' own account of what a packet met: the table that asks for it, and the events that tell it.
//!
//! Source of numbers: include/uapi/linux/netfilter/nf_tables.h, `nft_trace_attributes`.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    expr::{Comparison, Load, Step},
    nft::{Chain, Hook, HookKind, HookPoint, Policy, Rule, TableFamily, Writer, label_of},
    socket::{NetlinkError, Socket, nfgen},
    wire::{self, Attributes, Message},
};

/// The multicast group of trace events (NFNLGRP_NFTRACE).
pub const GROUP: u32 = 9;
const TRACE: u16 = 10 << 8 | 17;
const GETRULE: u16 = 10 << 8 | 7;
const NFGEN_BYTES: usize = 4;
const IP: u8 = 2;
/// Tables that ask for traces are called so; several may stand side by side.
pub const TABLE_PREFIX: &str = "why-";
const TCP: u8 = 6;
/// Before everything else that looks at a packet.
const PRIORITY_FIRST: i32 = -400;

/// What a rule or a chain decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Accept,
    Drop,
    /// The packet goes on with the next rule, or in this chain.
    GoesOn(Option<String>),
}

/// One step of a packet through the rules of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The same for all events of one packet.
    pub packet: u32,
    pub table: String,
    pub chain: String,
    /// The rule's number in its table; None when the chain's policy decided.
    pub rule: Option<u64>,
    pub decision: Decision,
    /// Interface numbers.
    pub input: Option<u32>,
    pub output: Option<u32>,
    /// The packet from its IPv4 header on, as far as the kernel shows it; told once for each chain with a hook.
    pub packet_bytes: Option<Vec<u8>>,
}

/// Marks every TCP segment from or to this port for tracing, until `owner` is closed: the table is bound to the socket.
pub fn start(owner: &mut Socket, port: u16) -> Result<(), NetlinkError> {
    let hook =
        Hook { kind: HookKind::Filter, at: HookPoint::Prerouting, priority: PRIORITY_FIRST, policy: Policy::Accept };
    let chain = Chain { hook: Some(hook), rules: Vec::new() };
    let rule = |load| Rule {
        comment: "asked about".to_owned(),
        steps: vec![
            Step::Compare(Load::L4Proto, Comparison::Equal, vec![TCP]),
            Step::Compare(load, Comparison::Equal, port.to_be_bytes().to_vec()),
            Step::Trace,
        ],
    };
    // A closed socket's table goes a moment later, so no name is used twice.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{TABLE_PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let table = Writer { family: TableFamily::Ip, table: &name };
    let rules = [Load::SourcePort, Load::DestinationPort].map(rule);
    let mut messages = vec![table.new_owned_table(), table.new_chain("all", chain.hook.as_ref())];
    messages.extend(rules.iter().map(|rule| table.new_rule("all", rule)));
    owner.transaction("trace packets", messages)
}

/// Comments of all IPv4 rules of the namespace by table and number.
pub fn rules(socket: &mut Socket) -> Result<BTreeMap<(String, u64), String>, NetlinkError> {
    let found = socket.dump("list rules", &Message::new(GETRULE, 0).fixed(&nfgen(IP, 0)), |_, payload| {
        let a = Attributes::after(payload, NFGEN_BYTES);
        Some(((a.text(1)?, a.be64(3)?), a.get(7).map(label_of).unwrap_or_default()))
    })?;
    // The digest behind the comment is for machines.
    let comment = |label: String| label.rsplit_once(" #").map_or(label.clone(), |(comment, _)| comment.to_owned());
    Ok(found.into_iter().map(|(at, label)| (at, comment(label))).collect())
}

/// The trace events of a datagram.
pub fn events(datagram: &[u8]) -> impl Iterator<Item = Event> {
    wire::messages(datagram)
        .filter(|m| m.kind == TRACE)
        .filter_map(|m| event(Attributes::after(m.payload, NFGEN_BYTES)))
}

fn event(a: Attributes<'_>) -> Option<Event> {
    const BY_POLICY: u32 = 1;
    let code = a.nested(5).and_then(|verdict| verdict.be32(1)).map(|code| i32::from_ne_bytes(code.to_ne_bytes()));
    let jump = || a.nested(5).and_then(|verdict| verdict.text(2));
    let by_policy = a.be32(4) == Some(BY_POLICY);
    let decision = match (by_policy, code, a.be32(16)) {
        (true, _, Some(0)) | (false, Some(0), _) => Decision::Drop,
        (true, _, Some(_)) | (false, Some(1), _) => Decision::Accept,
        _ => Decision::GoesOn(jump()),
    };
    let bytes = a.get(8).map(|network| [network, a.get(9).unwrap_or_default()].concat());
    Some(Event {
        packet: a.be32(6)?,
        table: a.text(1)?,
        chain: a.text(2)?,
        rule: a.be64(3),
        decision,
        input: a.be32(10),
        output: a.be32(12),
        packet_bytes: bytes,
    })
}
