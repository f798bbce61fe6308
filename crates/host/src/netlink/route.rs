//! Links, addresses, routes, neighbours and rules (rtnetlink). Typed requests in, typed listings out.
//! Source of numbers: include/uapi/linux/{rtnetlink,if_link,fib_rules,neighbour}.h.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use super::{
    socket::{NetlinkError, Socket},
    wire::{self, Attributes, Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
};
use crate::names::IfName;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RTNH_F_ONLINK: u32 = 4;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;

/// The kernel's main and local routing tables.
pub const TABLE_MAIN: u32 = 254;
pub const TABLE_LOCAL: u32 = 255;

const IFINFO_BYTES: usize = 16;
const RTMSG_BYTES: usize = 12;
const NDMSG_BYTES: usize = 12;

/// A link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// One end of a cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub name: IfName,
    pub mac: Mac,
    pub mtu: u32,
    /// A chosen interface number; None leaves it to the kernel.
    pub index: Option<u32>,
}

/// What a routing table does with a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Straight out of the interface; the destination itself is the neighbour.
    Link(IfName),
    /// Out of the interface to this neighbour, reachable or not (`onlink`).
    Via(IpAddr, IfName),
    /// Ours: delivered to sockets here.
    Local,
    /// Dropped without a word.
    Blackhole,
    /// Refused with ICMP.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub table: u32,
    pub to: IpAddr,
    pub prefix_bits: u8,
    pub hop: Hop,
}

impl Route {
    pub fn host(to: impl Into<IpAddr>, hop: Hop) -> Route {
        let to = to.into();
        Route { table: TABLE_MAIN, to, prefix_bits: if to.is_ipv4() { 32 } else { 128 }, hop }
    }

    pub fn default_v4(hop: Hop) -> Route {
        Route { table: TABLE_MAIN, to: Ipv4Addr::UNSPECIFIED.into(), prefix_bits: 0, hop }
    }

    pub fn default_v6(hop: Hop) -> Route {
        Route { table: TABLE_MAIN, to: Ipv6Addr::UNSPECIFIED.into(), prefix_bits: 0, hop }
    }

    /// The interface it leads out of.
    pub fn dev(&self) -> Option<&IfName> {
        match &self.hop {
            Hop::Link(dev) | Hop::Via(_, dev) => Some(dev),
            Hop::Local | Hop::Blackhole | Hop::Unreachable => None,
        }
    }

    pub fn local(to: impl Into<IpAddr>) -> Route {
        Route { table: TABLE_LOCAL, ..Route::host(to, Hop::Local) }
    }
}

/// A neighbour that never has to be asked for and never expires.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub at: IfName,
    pub address: IpAddr,
    pub mac: Mac,
}

/// Packets whose mark has these bits look into this table first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkRule {
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
    pub priority: u32,
}

/// Names and numbers of the links of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    by_name: BTreeMap<IfName, u32>,
    by_number: BTreeMap<u32, IfName>,
}

impl Links {
    pub fn index(&self, name: &IfName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub fn name(&self, index: u32) -> Option<IfName> {
        self.by_number.get(&index).cloned()
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&IfName, u32)> {
        self.by_name.iter().map(|(name, index)| (name, *index))
    }

    /// Those whose name starts so.
    pub fn starting<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a IfName> {
        let first = IfName::of_kernel(prefix.to_owned());
        self.by_name.range(first..).map(|(name, _)| name).take_while(move |name| name.as_str().starts_with(prefix))
    }

    pub fn insert(&mut self, name: IfName, index: u32) {
        self.remove(&name);
        self.by_number.insert(index, name.clone());
        self.by_name.insert(name, index);
    }

    pub fn remove(&mut self, name: &IfName) {
        if let Some(index) = self.by_name.remove(name) {
            self.by_number.remove(&index);
        }
    }

    /// A number in this range that no link has: above all others while there is room, so that finding it takes no longer
    /// the more there are.
    pub fn free(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let above = self.by_number.range(range.clone()).next_back().map_or(*range.start(), |(last, _)| last + 1);
        if range.contains(&above) { Some(above) } else { range.into_iter().find(|i| !self.by_number.contains_key(i)) }
    }
}

/// A cable: one end here, the other in `peer_ns` (or here as well). Both ends are born down, see [`up`].
pub fn new_cable(here: &End, there: &End, peer_ns: Option<BorrowedFd<'_>>) -> Message {
    let end = |m: Message, e: &End| {
        m.attr_str(IFLA_IFNAME, e.name.as_str()).attr(IFLA_ADDRESS, &e.mac.0).attr_u32(IFLA_MTU, e.mtu)
    };
    let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).fixed(&ifinfo(here.index.unwrap_or(0), 0, 0));
    end(message, here).nest(IFLA_LINKINFO, |m| {
        m.attr(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                let m = end(m.fixed(&ifinfo(there.index.unwrap_or(0), 0, 0)), there);
                m.maybe(peer_ns, |m, fd| {
                    let fd = u32::try_from(fd.as_fd().as_raw_fd()).expect("an open descriptor is not negative");
                    m.attr_u32(IFLA_NET_NS_FD, fd)
                })
            })
        })
    })
}

/// No link-local address by itself: nothing here speaks neighbour discovery, and each would be a route. To be sent
/// before the link goes up; refused with EAFNOSUPPORT where IPv6 is off.
pub fn no_own_address(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0).fixed(&ifinfo(index, 0, 0)).nest(IFLA_AF_SPEC, |m| {
        m.nest(u16::from(AF_INET6), |m| m.attr_u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE))
    })
}

pub fn up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0).fixed(&ifinfo(index, IFF_UP, IFF_UP))
}

pub fn delete_link(name: &IfName) -> Message {
    Message::new(RTM_DELLINK, 0).fixed(&ifinfo(0, 0, 0)).attr_str(IFLA_IFNAME, name.as_str())
}

/// The number of the link of this name; None when there is none.
pub fn find_link(socket: &mut Socket, name: &IfName) -> Result<Option<u32>, NetlinkError> {
    let request = Message::new(RTM_GETLINK, 0).fixed(&ifinfo(0, 0, 0)).attr_str(IFLA_IFNAME, name.as_str());
    match socket.get("find a link", &request, |_, payload| wire::u32_at(payload, 4)) {
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
        other => other,
    }
}

/// Whether packets pass the link. A cable whose ends were both taken up passes some a moment later: until then the
/// kernel drops what is sent into the end that was up first.
pub fn passes(socket: &mut Socket, name: &IfName) -> Result<bool, NetlinkError> {
    const IF_OPER_UP: u8 = 6;
    let request = Message::new(RTM_GETLINK, 0).fixed(&ifinfo(0, 0, 0)).attr_str(IFLA_IFNAME, name.as_str());
    let state = socket.get("look at a link", &request, |_, payload| {
        Attributes::after(payload, IFINFO_BYTES).get(IFLA_OPERSTATE)?.first().copied()
    })?;
    Ok(state == Some(IF_OPER_UP))
}

pub fn list_links(socket: &mut Socket) -> Result<Links, NetlinkError> {
    let request = Message::new(RTM_GETLINK, 0).fixed(&ifinfo(0, 0, 0));
    let found = socket.dump("list links", &request, |_, payload| {
        let name = Attributes::after(payload, IFINFO_BYTES).text(IFLA_IFNAME)?;
        Some((IfName::of_kernel(name), wire::u32_at(payload, 4)?))
    })?;
    let mut links = Links::default();
    found.into_iter().for_each(|(name, index)| links.insert(name, index));
    Ok(links)
}

/// An address of this machine on the interface, with its full length as prefix and no duplicate detection.
pub fn add_address(index: u32, address: IpAddr) -> Message {
    let (family, bits) = family_of(address);
    let mut fixed = vec![family, bits, 0, 0];
    fixed.extend(index.to_ne_bytes());
    let bytes = octets(address);
    Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        .fixed(&fixed)
        .attr(IFA_LOCAL, &bytes)
        .attr(IFA_ADDRESS, &bytes)
        .attr_u32(IFA_FLAGS, IFA_F_NODAD)
}

/// Adds the route, or puts it in the place of the one to the same destination.
pub fn set_route(route: &Route, links: &Links) -> Option<Message> {
    route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, links)
}

pub fn delete_route(route: &Route, links: &Links) -> Option<Message> {
    route_message(RTM_DELROUTE, 0, route, links)
}

fn route_message(kind: u16, flags: u16, route: &Route, links: &Links) -> Option<Message> {
    let (family, _) = family_of(route.to);
    let (oif, gateway, scope, route_type, flag) = match &route.hop {
        Hop::Link(dev) => (Some(links.index(dev)?), None, RT_SCOPE_LINK, RTN_UNICAST, 0),
        Hop::Via(gateway, dev) => (Some(links.index(dev)?), Some(*gateway), 0, RTN_UNICAST, RTNH_F_ONLINK),
        Hop::Local => (Some(LOOPBACK), None, RT_SCOPE_HOST, RTN_LOCAL, 0),
        Hop::Blackhole => (None, None, 0, RTN_BLACKHOLE, 0),
        Hop::Unreachable => (None, None, 0, RTN_UNREACHABLE, 0),
    };
    let short_table = u8::try_from(route.table).unwrap_or(0);
    let mut fixed = vec![family, route.prefix_bits, 0, 0, short_table, RTPROT_STATIC, scope, route_type];
    fixed.extend(flag.to_ne_bytes());
    Some(
        Message::new(kind, flags)
            .fixed(&fixed)
            .attr_u32(RTA_TABLE, route.table)
            .maybe((route.prefix_bits > 0).then_some(route.to), |m, to| m.attr(RTA_DST, &octets(to)))
            .maybe(oif, |m, oif| m.attr_u32(RTA_OIF, oif))
            .maybe(gateway, |m, gateway| m.attr(RTA_GATEWAY, &octets(gateway))),
    )
}

/// The routes that somebody (we) set; those the kernel made by itself are left out.
pub fn list_routes(socket: &mut Socket, links: &Links) -> Result<Vec<Route>, NetlinkError> {
    let request = Message::new(RTM_GETROUTE, 0).fixed(&[0; RTMSG_BYTES]);
    socket.dump("list routes", &request, |_, payload| {
        let &[family, prefix_bits, _, _, table, protocol, _, route_type] = payload.get(..8)? else { return None };
        if protocol != RTPROT_STATIC {
            return None;
        }
        let attributes = Attributes::after(payload, RTMSG_BYTES);
        let dev = || links.name(attributes.u32(RTA_OIF)?);
        let hop = match (route_type, attributes.get(RTA_GATEWAY)) {
            (RTN_UNICAST, Some(gateway)) => Hop::Via(address(gateway)?, dev()?),
            (RTN_UNICAST, None) => Hop::Link(dev()?),
            (RTN_LOCAL, _) => Hop::Local,
            (RTN_BLACKHOLE, _) => Hop::Blackhole,
            (RTN_UNREACHABLE, _) => Hop::Unreachable,
            _ => return None,
        };
        let any = if family == AF_INET { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let to = attributes.get(RTA_DST).map_or(Some(any), address)?;
        Some(Route { table: attributes.u32(RTA_TABLE).unwrap_or(u32::from(table)), to, prefix_bits, hop })
    })
}

pub fn set_neighbour(neighbour: &Neighbour, links: &Links) -> Option<Message> {
    let message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
    Some(neighbour_message(message, neighbour, links)?.attr(NDA_LLADDR, &neighbour.mac.0))
}

pub fn delete_neighbour(neighbour: &Neighbour, links: &Links) -> Option<Message> {
    neighbour_message(Message::new(RTM_DELNEIGH, 0), neighbour, links)
}

fn neighbour_message(message: Message, neighbour: &Neighbour, links: &Links) -> Option<Message> {
    let mut fixed = vec![family_of(neighbour.address).0, 0, 0, 0];
    fixed.extend(links.index(&neighbour.at)?.to_ne_bytes());
    fixed.extend(NUD_PERMANENT.to_ne_bytes());
    fixed.extend([0, 0]);
    Some(message.fixed(&fixed).attr(NDA_DST, &octets(neighbour.address)))
}

/// The permanent neighbours.
pub fn list_neighbours(socket: &mut Socket, links: &Links) -> Result<Vec<Neighbour>, NetlinkError> {
    let request = Message::new(RTM_GETNEIGH, 0).fixed(&[0; NDMSG_BYTES]);
    socket.dump("list neighbours", &request, |_, payload| {
        if wire::u16_at(payload, 8)? != NUD_PERMANENT {
            return None;
        }
        let attributes = Attributes::after(payload, NDMSG_BYTES);
        Some(Neighbour {
            at: links.name(wire::u32_at(payload, 4)?)?,
            address: address(attributes.get(NDA_DST)?)?,
            mac: Mac(attributes.get(NDA_LLADDR)?.try_into().ok()?),
        })
    })
}

pub fn add_mark_rule(rule: MarkRule) -> Message {
    let mut fixed = [0; RTMSG_BYTES];
    fixed[0] = AF_INET;
    fixed[7] = FR_ACT_TO_TBL;
    Message::new(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
        .fixed(&fixed)
        .attr_u32(FRA_PRIORITY, rule.priority)
        .attr_u32(FRA_FWMARK, rule.mark)
        .attr_u32(FRA_FWMASK, rule.mask)
        .attr_u32(FRA_TABLE, rule.table)
}

pub fn list_mark_rules(socket: &mut Socket) -> Result<Vec<MarkRule>, NetlinkError> {
    let mut fixed = [0; RTMSG_BYTES];
    fixed[0] = AF_INET;
    socket.dump("list rules", &Message::new(RTM_GETRULE, 0).fixed(&fixed), |_, payload| {
        let attributes = Attributes::after(payload, RTMSG_BYTES);
        Some(MarkRule {
            mark: attributes.u32(FRA_FWMARK)?,
            mask: attributes.u32(FRA_FWMASK)?,
            table: attributes.u32(FRA_TABLE)?,
            priority: attributes.u32(FRA_PRIORITY)?,
        })
    })
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_BLACKHOLE: u8 = 6;
const RTN_UNREACHABLE: u8 = 7;
/// `lo` is number 1 in every network namespace.
pub const LOOPBACK: u32 = 1;

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFO_BYTES] {
    let mut fixed = [0; IFINFO_BYTES];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn family_of(address: IpAddr) -> (u8, u8) {
    match address {
        IpAddr::V4(_) => (AF_INET, 32),
        IpAddr::V6(_) => (AF_INET6, 128),
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).into()),
        _ => None,
    }
}
