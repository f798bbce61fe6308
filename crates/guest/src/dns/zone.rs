//! The names of one realm: the cloud's own, and those of private zones.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::{
    op::Query,
    rr::{Name, RData, Record, RecordType, rdata},
};
use model::{
    directory::{ZONE_MAILBOX, ZONE_SERVER, ZONE_SOA, ZONE_TTL_S},
    limits::{DNS_TTL_METADATA_S, DNS_TTL_NAME_S},
    planned::guest::Names,
};

/// The name of the metadata server, everywhere.
pub(super) const METADATA: &str = "metadata.google.internal";
/// What it is called for short, where a client asks without its search list.
const METADATA_SHORT: &str = "metadata";

/// The names of a realm, ready for looking up.
#[derive(Clone, Debug)]
pub struct Zone {
    own: Tree,
    /// Of the cloud's own names only.
    reverse: HashMap<Ipv4Addr, BTreeSet<String>>,
    /// By apex: what is in a private zone, and how much is said to be.
    private: HashMap<String, (usize, Tree)>,
    /// There is no other name.
    whole: bool,
}

/// Names that have addresses.
#[derive(Clone, Debug, Default)]
struct Tree {
    /// Who has a name, and how many say so: a name may come to its next holder before it leaves the last one.
    forward: HashMap<String, BTreeMap<Ipv4Addr, usize>>,
    /// Names that stand above one that has an address, and how many do: they exist too.
    above: HashMap<String, usize>,
}

impl Tree {
    /// Whether it is news.
    fn put(&mut self, name: &str, address: Ipv4Addr) -> bool {
        let said = self.forward.entry(name.to_owned()).or_default().entry(address).or_default();
        *said += 1;
        if *said > 1 {
            return false;
        }
        for parent in parents(name) {
            *self.above.entry(parent.to_owned()).or_default() += 1;
        }
        true
    }

    /// Whether nobody says so any more.
    fn take(&mut self, name: &str, address: Ipv4Addr) -> bool {
        let Some(addresses) = self.forward.get_mut(name) else { return false };
        let Some(said) = addresses.get_mut(&address) else { return false };
        *said -= 1;
        if *said > 0 {
            return false;
        }
        addresses.remove(&address);
        if addresses.is_empty() {
            self.forward.remove(name);
        }
        for parent in parents(name) {
            if let Some(below) = self.above.get_mut(parent) {
                *below -= 1;
                if *below == 0 {
                    self.above.remove(parent);
                }
            }
        }
        true
    }

    /// None: there is no such name.
    fn addresses(&self, name: &str) -> Option<impl Iterator<Item = Ipv4Addr>> {
        let addresses = self.forward.get(name);
        (addresses.is_some() || self.above.contains_key(name))
            .then(|| addresses.into_iter().flat_map(BTreeMap::keys).copied())
    }
}

impl Default for Zone {
    /// The metadata server's names, which nobody else can have.
    fn default() -> Zone {
        let (own, private) = (Tree::default(), HashMap::new());
        let mut zone = Zone { own, reverse: HashMap::new(), private, whole: true };
        zone.put(METADATA, crate::ADDRESS);
        zone.put(METADATA_SHORT, crate::ADDRESS);
        zone
    }
}

impl Zone {
    /// As long as nobody has said which names there are: those that are known, and no word on others.
    pub fn incomplete(self) -> Zone {
        Zone { whole: false, ..self }
    }

    pub fn add(&mut self, names: &Names) {
        let Names { zone, names, addresses } = names;
        let pairs = names.iter().flat_map(|name| addresses.iter().map(move |address| (name, *address)));
        match zone {
            Some(apex) => {
                let (said, tree) = self.private.entry(apex.clone()).or_default();
                *said += 1;
                for (name, address) in pairs {
                    tree.put(name, address);
                }
            }
            None => pairs.filter(|(name, _)| is_free(name)).for_each(|(name, address)| self.put(name, address)),
        }
    }

    fn put(&mut self, name: &str, address: Ipv4Addr) {
        if self.own.put(name, address) {
            self.reverse.entry(address).or_default().insert(name.to_owned());
        }
    }

    /// Takes back what [`Zone::add`] gave.
    pub fn remove(&mut self, names: &Names) {
        let Names { zone, names, addresses } = names;
        let pairs = names.iter().flat_map(|name| addresses.iter().map(move |address| (name, *address)));
        let Some(apex) = zone else {
            return pairs.filter(|(name, _)| is_free(name)).for_each(|(name, address)| self.take(name, address));
        };
        let Some((said, tree)) = self.private.get_mut(apex) else { return };
        for (name, address) in pairs {
            tree.take(name, address);
        }
        *said -= 1;
        if *said == 0 {
            self.private.remove(apex);
        }
    }

    fn take(&mut self, name: &str, address: Ipv4Addr) {
        if self.own.take(name, address)
            && let Some(names) = self.reverse.get_mut(&address)
        {
            names.remove(name);
            if names.is_empty() {
                self.reverse.remove(&address);
            }
        }
    }

    pub(super) fn look_up(&self, query: &Query) -> Found {
        let name = query.name().to_ascii().to_ascii_lowercase();
        let (name, kind) = (name.strip_suffix('.').unwrap_or(&name), query.query_type());
        // Of several names the longest says most: it has the zone in it.
        let longest = |address| self.reverse.get(&address)?.iter().max_by_key(|name| name.len());
        if let Some(host) = reverse_address(query.name()).and_then(longest) {
            return match (kind, Name::from_ascii(format!("{host}."))) {
                (RecordType::PTR | RecordType::ANY, Ok(host)) => {
                    Found::Records(vec![RData::PTR(rdata::PTR(host))], ttl(name))
                }
                (_, _) => Found::NoData(None),
            };
        }
        // The longest of the private zones that the name is in answers for it, and no other does.
        let private = std::iter::once(name).chain(parents(name)).find_map(|apex| self.private.get_key_value(apex));
        if let Some((apex, (_, tree))) = private {
            return match in_private_zone(apex, tree, name, kind) {
                Found::NoName(_) if !self.whole => Found::NotKnown,
                found => found,
            };
        }
        match (self.own.addresses(name), kind) {
            // Two VMs of one name in different zones share their global name: the lowest address has it.
            (Some(mut all), RecordType::A | RecordType::ANY) => {
                all.next().map_or(Found::NoData(None), |a| Found::Records(vec![RData::A(rdata::A(a))], ttl(name)))
            }
            (Some(_), _) => Found::NoData(None),
            (None, _) if self.whole => Found::NoName(None),
            (None, _) => Found::NotKnown,
        }
    }
}

fn in_private_zone(apex: &str, tree: &Tree, name: &str, kind: RecordType) -> Found {
    let soa = soa(apex);
    if name == apex {
        return match (kind, soa) {
            (RecordType::SOA | RecordType::ANY, Some(soa)) => Found::Records(vec![soa.data], ZONE_TTL_S),
            (RecordType::NS, _) => match Name::from_ascii(ZONE_SERVER) {
                Ok(server) => Found::Records(vec![RData::NS(rdata::NS(server))], ZONE_TTL_S),
                Err(_) => Found::NoData(None),
            },
            (_, soa) => Found::NoData(soa.map(Box::new)),
        };
    }
    let Some(addresses) = tree.addresses(name) else { return Found::NoName(soa.map(Box::new)) };
    let addresses: Vec<RData> = addresses.map(|address| RData::A(rdata::A(address))).collect();
    match kind {
        RecordType::A | RecordType::ANY if !addresses.is_empty() => Found::Records(addresses, DNS_TTL_NAME_S),
        _ => Found::NoData(soa.map(Box::new)),
    }
}

/// As it stands beside an answer that there is nothing, which may be remembered for as long.
fn soa(apex: &str) -> Option<Record> {
    let names = [&format!("{apex}."), ZONE_SERVER, ZONE_MAILBOX].map(Name::from_ascii);
    let [Ok(apex), Ok(server), Ok(mailbox)] = names else { return None };
    let [serial, refresh, retry, expire, minimum] = ZONE_SOA;
    let seconds = |s: u32| i32::try_from(s).unwrap_or(i32::MAX);
    let soa = rdata::SOA::new(server, mailbox, serial, seconds(refresh), seconds(retry), seconds(expire), minimum);
    Some(Record::from_rdata(apex, minimum, RData::SOA(soa)))
}

pub(super) enum Found {
    Records(Vec<RData>, u32),
    /// The name exists and has no such record. With the start of the private zone that says so.
    NoData(Option<Box<Record>>),
    NoName(Option<Box<Record>>),
    /// It may exist.
    NotKnown,
}

/// Nobody but the metadata server has its names.
fn is_free(name: &str) -> bool {
    name != METADATA && name != METADATA_SHORT
}

/// The names above a name.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.'), |(_, parent)| parent.split_once('.')).map(|(_, parent)| parent)
}

fn ttl(name: &str) -> u32 {
    if is_free(name) { DNS_TTL_NAME_S } else { DNS_TTL_METADATA_S }
}

fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let net = name.parse_arpa_name().ok()?;
    match net.addr() {
        IpAddr::V4(address) if net.prefix_len() == 32 => Some(address),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
