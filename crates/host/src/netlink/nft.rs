//! nf_tables objects: tables, chains, rules, sets, maps, ct timeouts; as data, as messages, and read back.
//!
//! The reader answers the same types that the writer takes, so that "the kernel equals the plan" is an `==`.
//! Source of numbers: include/uapi/linux/netfilter/nf_tables.h.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    expr::{self, NFTA_DATA_VALUE, OBJECT_CT_TIMEOUT, Step},
    socket::{NetlinkError, Socket, nfgen},
    wire::{Attributes, Message, NLM_F_APPEND, NLM_F_CREATE},
};
use crate::names::fnv1a;

const SUBSYSTEM: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const GETSET: u16 = SUBSYSTEM | 10;
const DELSET: u16 = SUBSYSTEM | 11;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const NEWOBJ: u16 = SUBSYSTEM | 18;
const GETOBJ: u16 = SUBSYSTEM | 19;

const NFGEN_BYTES: usize = 4;
/// Elements in one message: a list of them must fit into an attribute, whose length is 16 bits.
const ELEMENTS_MAX: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFamily {
    Inet,
    Ip,
    Netdev,
}

impl TableFamily {
    fn number(self) -> u8 {
        match self {
            TableFamily::Inet => 1,
            TableFamily::Ip => 2,
            TableFamily::Netdev => 5,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            TableFamily::Inet => "inet",
            TableFamily::Ip => "ip",
            TableFamily::Netdev => "netdev",
        }
    }
}

/// A table's whole content. Tables are never deleted: their ct timeout objects hold the limits of living connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: TableFamily,
    pub name: &'static str,
    pub timeouts: BTreeSet<Timeouts>,
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
}

/// A ct timeout object for TCP. Its name says its values, so changing them makes a new one and living connections keep
/// what they were born with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeouts {
    pub established_s: u32,
    pub transitory_s: u32,
}

impl Timeouts {
    pub fn name(self) -> String {
        format!("psc-{}-{}", self.established_s, self.transitory_s)
    }
}

/// One field of a key or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    InterfaceName,
    Ipv4,
    Ipv6,
    Port,
    Mark,
    Zone,
}

impl Field {
    /// Bytes it has, and the number by which `nft list` knows how to print it.
    fn shape(self) -> (usize, u32) {
        match self {
            Field::InterfaceName => (16, 41),
            Field::Ipv4 => (4, 7),
            Field::Ipv6 => (16, 8),
            Field::Port => (2, 13),
            Field::Mark => (4, 19),
            Field::Zone => (2, 4),
        }
    }

    pub fn bytes(self) -> usize {
        self.shape().0
    }

    pub fn text(self) -> &'static str {
        match self {
            Field::InterfaceName => "ifname",
            Field::Ipv4 => "ipv4_addr",
            Field::Ipv6 => "ipv6_addr",
            Field::Port => "inet_service",
            Field::Mark => "mark",
            Field::Zone => "zone",
        }
    }
}

/// Whether elements are points or ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Points,
    Ranges,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub key: Vec<Field>,
    /// A map's value.
    pub value: Option<Field>,
    pub extent: Extent,
    pub elements: BTreeSet<Element>,
}

/// An element as the kernel holds it: fields side by side, each filled up to four bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<u8>,
    /// The last key of the range, inclusive. None for points.
    pub last: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// None for a chain that is only jumped to.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub at: HookPoint,
    pub priority: i32,
    pub policy: Policy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Leaving this device.
    Egress(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Accept,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Why it is there; `nft list ruleset` shows it.
    pub comment: String,
    pub steps: Vec<Step>,
}

impl Rule {
    /// What the kernel keeps beside the rule: the comment and a digest of the program, by which a reader knows it again
    /// without understanding expressions.
    pub fn label(&self) -> String {
        let program = expr::encode(Message::new(0, 0), &self.steps).finish(0);
        let mut label = self.comment.clone();
        label
            .truncate((0..=COMMENT_BYTES_MAX.min(label.len())).rev().find(|i| label.is_char_boundary(*i)).unwrap_or(0));
        format!("{label} #{:016x}", fnv1a(&program))
    }
}

/// Source: user data of a rule is at most 256 bytes (NFT_USERDATA_MAXLEN), less a header, the digest and a NUL.
const COMMENT_BYTES_MAX: usize = 220;

/// A table as it was read back: rules by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableFound {
    pub timeouts: BTreeSet<String>,
    /// Elements, and whether the set is a constant of another shape is not asked: shapes follow from names.
    pub sets: BTreeMap<String, BTreeSet<Element>>,
    pub chains: BTreeMap<String, Vec<String>>,
}

/// Messages about one table.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'t> {
    pub family: TableFamily,
    pub table: &'t str,
}

impl Writer<'_> {
    fn message(self, kind: u16, flags: u16) -> Message {
        Message::new(kind, flags).fixed(&nfgen(self.family.number(), 0)).attr_str(1, self.table)
    }

    pub fn new_table(self) -> Message {
        self.message(NEWTABLE, NLM_F_CREATE)
    }

    /// A table that goes with the socket that made it, however that ends. Source: NFT_TABLE_F_OWNER, Linux 5.12.
    pub fn new_owned_table(self) -> Message {
        const OWNER: u32 = 0x2;
        self.new_table().attr_be32(2, OWNER)
    }

    pub fn new_chain(self, name: &str, hook: Option<&Hook>) -> Message {
        self.message(NEWCHAIN, NLM_F_CREATE).attr_str(3, name).maybe(hook, |m, hook| {
            let number = match (self.family, hook.at) {
                (TableFamily::Netdev, _) => 1,
                (TableFamily::Inet | TableFamily::Ip, HookPoint::Prerouting | HookPoint::Egress(_)) => 0,
                (TableFamily::Inet | TableFamily::Ip, HookPoint::Input) => 1,
                (TableFamily::Inet | TableFamily::Ip, HookPoint::Forward) => 2,
                (TableFamily::Inet | TableFamily::Ip, HookPoint::Output) => 3,
                (TableFamily::Inet | TableFamily::Ip, HookPoint::Postrouting) => 4,
            };
            let device = match hook.at {
                HookPoint::Egress(device) => Some(device),
                _ => None,
            };
            let kind = match hook.kind {
                HookKind::Filter => "filter",
                HookKind::Nat => "nat",
            };
            m.nest(4, |m| {
                let m = m.attr_be32(1, number).attr(2, &hook.priority.to_be_bytes());
                m.maybe(device, |m, device| m.attr_str(3, device))
            })
            .attr_be32(5, u32::from(hook.policy == Policy::Accept))
            .attr_str(7, kind)
        })
    }

    pub fn new_rule(self, chain: &str, rule: &Rule) -> Message {
        let label = rule.label();
        // The form of nft's own comments: type 0, length, text with its NUL.
        let mut comment = vec![0, u8::try_from(label.len() + 1).expect("labels are cut to fit")];
        comment.extend(label.as_bytes());
        comment.push(0);
        self.message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
            .attr_str(2, chain)
            .nest(4, |m| expr::encode(m, &rule.steps))
            .attr(7, &comment)
    }

    /// Removes all rules of the chain.
    pub fn flush_chain(self, chain: &str) -> Message {
        self.message(DELRULE, 0).attr_str(2, chain)
    }

    pub fn new_timeouts(self, timeouts: Timeouts) -> Message {
        const IPPROTO_TCP: u8 = 6;
        const L3_IPV4: u16 = 2;
        self.message(NEWOBJ, NLM_F_CREATE).attr_str(2, &timeouts.name()).attr_be32(3, OBJECT_CT_TIMEOUT).nest(4, |m| {
            m.attr_be16(1, L3_IPV4).attr_u8(2, IPPROTO_TCP).nest(3, |m| {
                // syn_sent, syn_recv, established, fin_wait, close_wait, last_ack, time_wait, close, syn_sent2,
                // retransmissions, unacknowledged: numbered from 1 in this order.
                let t = timeouts.transitory_s;
                let e = timeouts.established_s;
                let close = t.min(10);
                m.each((1..).zip([t, t, e, t, t, t, t, close, t, e, e]), |m, (i, s)| m.attr_be32(i, s))
            })
        })
    }

    pub fn new_set(self, name: &str, set: &Set, id: u32) -> Message {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const CONCAT: u32 = 0x80;
        let several = set.key.len() > 1;
        let mut flags = 0;
        flags |= if set.extent == Extent::Ranges { INTERVAL } else { 0 };
        flags |= if set.value.is_some() { MAP } else { 0 };
        flags |= if several { CONCAT } else { 0 };
        let bytes = |f: Field| u32::try_from(f.shape().0.next_multiple_of(4)).expect("fields are small");
        // A key of several fields is filled up to registers; one of a single field has its own length.
        let key_bytes = if several {
            set.key.iter().map(|f| bytes(*f)).sum()
        } else {
            u32::try_from(set.key.iter().map(|f| f.shape().0).sum::<usize>()).expect("fields are small")
        };
        let key_type = set.key.iter().fold(0, |t, f| t << 6 | f.shape().1);
        self.message(NEWSET, NLM_F_CREATE)
            .attr_str(2, name)
            .attr_be32(3, flags)
            .attr_be32(4, key_type)
            .attr_be32(5, key_bytes)
            .maybe(set.value, |m, value| {
                let (len, kind) = value.shape();
                m.attr_be32(6, kind).attr_be32(7, u32::try_from(len).expect("fields are small"))
            })
            .maybe(several.then_some(&set.key), |m, key| {
                m.nest(9, |m| {
                    m.nest(2, |m| {
                        m.each(key, |m, f| {
                            m.nest(1, |m| m.attr_be32(1, u32::try_from(f.shape().0).expect("fields are small")))
                        })
                    })
                })
            })
            .attr_be32(10, id)
    }

    pub fn delete_set(self, name: &str) -> Message {
        self.message(DELSET, 0).attr_str(2, name)
    }

    pub fn add_elements<'a>(self, set: &str, shape: &Set, add: impl IntoIterator<Item = &'a Element>) -> Vec<Message> {
        self.elements(NEWSETELEM, NLM_F_CREATE, set, shape, add)
    }

    pub fn delete_elements<'a>(
        self,
        set: &str,
        shape: &Set,
        gone: impl IntoIterator<Item = &'a Element>,
    ) -> Vec<Message> {
        self.elements(DELSETELEM, 0, set, shape, gone)
    }

    fn elements<'a>(
        self,
        kind: u16,
        flags: u16,
        set: &str,
        shape: &Set,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> Vec<Message> {
        let wire: Vec<WireElement> = elements.into_iter().flat_map(|e| WireElement::of(shape, e)).collect();
        wire.chunks(ELEMENTS_MAX)
            .map(|chunk| {
                self.message(kind, flags).attr_str(2, set).nest(3, |m| m.each(chunk, |m, e| m.nest(1, |m| e.encode(m))))
            })
            .collect()
    }
}

/// Flag of the element that ends a range in a set of one field.
const INTERVAL_END: u32 = 1;

/// An element as it travels: a range of a single field is two of these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WireElement {
    key: Vec<u8>,
    end: bool,
    last: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

impl WireElement {
    fn of(shape: &Set, element: &Element) -> Vec<WireElement> {
        let Element { key, last, value } = element.clone();
        if shape.key.len() > 1 || shape.extent == Extent::Points {
            return vec![WireElement { key, end: false, last, value }];
        }
        let after = last.and_then(|last| successor(&last));
        let mut pair = vec![WireElement { key, end: false, last: None, value }];
        pair.extend(after.map(|key| WireElement { key, end: true, last: None, value: None }));
        pair
    }

    fn encode(&self, message: Message) -> Message {
        let data = |m: Message, kind, bytes: &[u8]| m.nest(kind, |m| m.attr(NFTA_DATA_VALUE, bytes));
        data(message, 1, &self.key)
            .maybe(self.end.then_some(INTERVAL_END), |m, flag| m.attr_be32(3, flag))
            .maybe(self.value.as_deref(), |m, value| data(m, 2, value))
            .maybe(self.last.as_deref(), |m, last| data(m, 10, last))
    }

    fn read(attributes: Attributes<'_>) -> Option<WireElement> {
        let data = |kind| attributes.nested(kind)?.get(NFTA_DATA_VALUE).map(<[u8]>::to_vec);
        let end = attributes.be32(3).unwrap_or(0) & INTERVAL_END != 0;
        Some(WireElement { key: data(1)?, end, last: data(10), value: data(2) })
    }
}

/// The next number of the same length; None after the greatest.
fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    shifted(bytes, 0xff, |b| b.wrapping_add(1))
}

fn predecessor(bytes: &[u8]) -> Option<Vec<u8>> {
    shifted(bytes, 0, |b| b.wrapping_sub(1))
}

fn shifted(bytes: &[u8], carry_at: u8, step: impl Fn(u8) -> u8) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        let carries = *byte == carry_at;
        *byte = step(*byte);
        if !carries {
            return Some(next);
        }
    }
    None
}

/// Joins starts and ends of ranges again. `ranges` says whether the set has ranges of one field.
fn joined(mut wire: Vec<WireElement>, ranges: bool) -> BTreeSet<Element> {
    if !ranges {
        return wire.into_iter().map(|e| Element { key: e.key, last: e.last, value: e.value }).collect();
    }
    // Where one range ends and the next begins at the same key, the end comes first.
    wire.sort_by(|a, b| a.key.cmp(&b.key).then(b.end.cmp(&a.end)));
    let mut elements = BTreeSet::new();
    let mut rest = wire.into_iter().peekable();
    while let Some(start) = rest.next() {
        if start.end {
            continue;
        }
        let last = rest.peek().filter(|e| e.end).and_then(|e| predecessor(&e.key));
        let last = last.unwrap_or_else(|| vec![0xff; start.key.len()]);
        elements.insert(Element { key: start.key, last: Some(last), value: start.value });
    }
    elements
}

/// Reads a table back; None when there is none.
pub fn read_table(socket: &mut Socket, writer: Writer<'_>) -> Result<Option<TableFound>, NetlinkError> {
    let family = writer.family.number();
    let ask = |kind| Message::new(kind, 0).fixed(&nfgen(family, 0)).attr_str(1, writer.table);
    let own = |payload: &[u8]| Attributes::after(payload, NFGEN_BYTES).text(1).as_deref() == Some(writer.table);
    let tables = socket.dump("list tables", &ask(GETTABLE), |_, p| own(p).then_some(()))?;
    if tables.is_empty() {
        return Ok(None);
    }
    let mut found = TableFound::default();
    let chains = socket.dump("list chains", &ask(GETCHAIN), |_, p| {
        own(p).then(|| Attributes::after(p, NFGEN_BYTES).text(3)).flatten()
    })?;
    found.chains = chains.into_iter().map(|name| (name, Vec::new())).collect();
    let rules = socket.dump("list rules", &ask(GETRULE), |_, p| {
        let a = Attributes::after(p, NFGEN_BYTES);
        own(p).then(|| Some((a.text(2)?, a.get(7).map(label_of).unwrap_or_default()))).flatten()
    })?;
    for (chain, label) in rules {
        found.chains.entry(chain).or_default().push(label);
    }
    let objects = socket.dump("list objects", &ask(GETOBJ), |_, p| {
        own(p).then(|| Attributes::after(p, NFGEN_BYTES).text(2)).flatten()
    })?;
    found.timeouts = objects.into_iter().collect();
    let sets = socket.dump("list sets", &ask(GETSET), |_, p| {
        let a = Attributes::after(p, NFGEN_BYTES);
        own(p).then(|| Some((a.text(2)?, a.be32(3).unwrap_or(0)))).flatten()
    })?;
    for (name, flags) in sets {
        let lists = socket.dump("list elements", &ask(GETSETELEM).attr_str(2, &name), |_, p| {
            let list = Attributes::after(p, NFGEN_BYTES).nested(3)?;
            Some(list.iter().filter_map(|(_, e)| WireElement::read(Attributes(e))).collect::<Vec<_>>())
        })?;
        let ranges = flags & 0x4 != 0 && flags & 0x80 == 0;
        found.sets.insert(name, joined(lists.into_iter().flatten().collect(), ranges));
    }
    Ok(Some(found))
}

pub(super) fn label_of(user_data: &[u8]) -> String {
    let text = user_data.get(2..user_data.len().saturating_sub(1)).unwrap_or(&[]);
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: [u8; 4], last: [u8; 4]) -> Element {
        Element { key: key.to_vec(), last: Some(last.to_vec()), value: None }
    }

    #[test]
    fn ranges_of_one_field_survive_the_way_as_starts_and_ends() {
        let elements = BTreeSet::from([
            range([0, 0, 0, 0], [9, 255, 255, 255]),
            range([10, 0, 0, 0], [10, 0, 0, 255]),
            range([10, 0, 2, 0], [10, 0, 2, 0]),
            range([240, 0, 0, 0], [255, 255, 255, 255]),
        ]);
        let shape = Set { key: vec![Field::Ipv4], value: None, extent: Extent::Ranges, elements: elements.clone() };
        let wire: Vec<_> = elements.iter().flat_map(|e| WireElement::of(&shape, e)).collect();
        assert_eq!(wire.len(), 7, "the greatest address has no successor and so no end");
        assert_eq!(joined(wire, true), elements);
    }

    #[test]
    fn a_rule_of_another_program_has_another_label() {
        let rule = |over| Rule { comment: "cap".into(), steps: vec![Step::ConnectionsOver(over)] };
        assert_ne!(rule(1).label(), rule(2).label());
        assert!(Rule { comment: "é".repeat(300), steps: vec![] }.label().len() < 250);
    }
}
