//! Connection tracking (ctnetlink): entries as data; list, get, delete, and the events of births and deaths.
//! IPv4 only, for that is what a VPC speaks. Source of numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::net::Ipv4Addr;

use super::{
    socket::{NetlinkError, Socket, nfgen},
    wire::{self, Attributes, Message},
};

const SUBSYSTEM: u16 = 1 << 8;
const CT_NEW: u16 = SUBSYSTEM;
const CT_GET: u16 = SUBSYSTEM | 1;
const CT_DELETE: u16 = SUBSYSTEM | 2;
const NFNLGRP_CONNTRACK_NEW: u32 = 1;
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
const AF_INET: u8 = 2;
const NFGEN_BYTES: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_TIMESTAMP: u16 = 20;

/// One direction of a connection. Ports are 0 where the protocol has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
    /// The tracking zone of this direction; 0 is the common one.
    pub zone: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets: u64,
    /// With IP and transport headers.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    /// Tells two connections with one tuple apart.
    pub id: u32,
    pub status: u32,
    /// Seconds until the entry goes, if nothing more is seen.
    pub timeout_s: Option<u32>,
    /// Absent unless the namespace counts.
    pub counters: Option<[Counters; 2]>,
    /// Nanoseconds since 1970; absent unless the namespace keeps time stamps.
    pub started_ns: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Born(Entry),
    Died(Entry),
}

/// Hears of births and deaths from now on.
pub fn subscribe(socket: &Socket) -> Result<(), NetlinkError> {
    socket.join(NFNLGRP_CONNTRACK_NEW)?;
    socket.join(NFNLGRP_CONNTRACK_DESTROY)
}

/// The events in one datagram.
pub fn events(datagram: &[u8]) -> impl Iterator<Item = Event> + '_ {
    wire::messages(datagram).filter_map(|message| match message.kind {
        CT_NEW => read(message.payload).map(Event::Born),
        CT_DELETE => read(message.payload).map(Event::Died),
        _ => None,
    })
}

/// Every entry of the namespace. The kernel walks the machine's whole table for it (about 15 ms when empty).
pub fn list(socket: &mut Socket) -> Result<Vec<Entry>, NetlinkError> {
    let request = Message::new(CT_GET, 0).fixed(&nfgen(AF_INET, 0));
    socket.dump("list connections", &request, |_, payload| read(payload))
}

/// The entry of this connection as it is now; None when it is gone.
pub fn get(socket: &mut Socket, original: &Tuple) -> Result<Option<Entry>, NetlinkError> {
    let request = tuple(Message::new(CT_GET, 0).fixed(&nfgen(AF_INET, 0)), CTA_TUPLE_ORIG, original);
    socket.get("look at a connection", &request, |_, payload| read(payload))
}

/// Forgets the connections for which `wanted` holds; answers how many.
pub fn delete(socket: &mut Socket, wanted: impl Fn(&Entry) -> bool) -> Result<usize, NetlinkError> {
    let doomed: Vec<_> = list(socket)?.into_iter().filter(wanted).collect();
    let mut gone = 0;
    for entry in &doomed {
        let request = Message::new(CT_DELETE, 0).fixed(&nfgen(AF_INET, 0));
        let request = tuple(request, CTA_TUPLE_REPLY, &entry.reply).attr_be32(CTA_ID, entry.id);
        match socket.request("forget a connection", request) {
            Ok(()) => gone += 1,
            // It ended by itself in between.
            Err(e) if e.errno() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(gone)
}

fn tuple(message: Message, kind: u16, tuple: &Tuple) -> Message {
    message.nest(kind, |m| {
        m.nest(1, |m| m.attr(1, &tuple.src.octets()).attr(2, &tuple.dst.octets()))
            .nest(2, |m| m.attr_u8(1, tuple.protocol).attr_be16(2, tuple.src_port).attr_be16(3, tuple.dst_port))
            .maybe((tuple.zone != 0).then_some(tuple.zone), |m, zone| m.attr_be16(CTA_TUPLE_ZONE, zone))
    })
}

fn read(payload: &[u8]) -> Option<Entry> {
    let attributes = Attributes::after(payload, NFGEN_BYTES);
    let counters = |kind| {
        let a = attributes.nested(kind)?;
        Some(Counters { packets: a.be64(1)?, bytes: a.be64(2)? })
    };
    Some(Entry {
        original: read_tuple(attributes.nested(CTA_TUPLE_ORIG)?)?,
        reply: read_tuple(attributes.nested(CTA_TUPLE_REPLY)?)?,
        id: attributes.be32(CTA_ID)?,
        status: attributes.be32(CTA_STATUS).unwrap_or(0),
        timeout_s: attributes.be32(CTA_TIMEOUT),
        counters: counters(CTA_COUNTERS_ORIG).zip(counters(CTA_COUNTERS_REPLY)).map(|(o, r)| [o, r]),
        started_ns: attributes.nested(CTA_TIMESTAMP).and_then(|a| a.be64(1)),
    })
}

fn read_tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let ip = attributes.nested(1)?;
    let transport = attributes.nested(2)?;
    let v4 = |kind| ip.get(kind).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
    Some(Tuple {
        src: v4(1)?,
        dst: v4(2)?,
        protocol: transport.get(1)?.first().copied()?,
        src_port: transport.be16(2).unwrap_or(0),
        dst_port: transport.be16(3).unwrap_or(0),
        zone: attributes.be16(CTA_TUPLE_ZONE).unwrap_or(0),
    })
}
