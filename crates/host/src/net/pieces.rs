//! What each member of a VPC's plan puts into the kernel, piece by piece. Pure.
//!
//! A plan means the union of its members' pieces and of what [`vpc::router`] puts around them. [`Held`] counts who wants
//! each piece, for some are shared (a consumer's zone, the neighbour behind a producer's link), so that a change costs
//! the members it touches and not those there are.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use model::{
    id::{NetworkId, WorkloadId},
    planned::host::{
        ConsumerEndpoint, FirewallRule, Port, PublishedEndpoint, Reach, Vip, VpcChange, VpcPlan, VpcSettings,
    },
};

use super::{
    cable,
    rules::*,
    state::{Found, Wanted, after},
    vpc::{self, INCOMING_INDEX_BASE, NATS_OF, PSC_MARK, Zones},
};
use crate::{
    names,
    netlink::{
        nft::Element,
        route::{Hop, Neighbour, Route},
    },
};

/// One thing that members want.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Piece {
    Route(Route),
    Neighbour(Neighbour),
    /// In the set of this name.
    Element(Cow<'static, str>, Element),
    /// An address of the proxy's namespace.
    Local(Ipv4Addr),
    Link(Link),
    /// A NAT address that an endpoint holds.
    Nat(Ipv4Addr),
}

/// A cable to another router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    ToProducer(NetworkId),
    FromConsumer(NetworkId),
}

/// Which sets of firewall rules the VMs with a tag belong to.
pub type Tagged = BTreeMap<String, Vec<String>>;

/// Sets by the tags whose carriers they hold.
pub fn tagged(firewall: &[FirewallRule]) -> Tagged {
    let mut sets = Tagged::new();
    for (tag, set) in firewall.iter().flat_map(vpc::tag_sets) {
        sets.entry(tag).or_default().push(set);
    }
    sets
}

fn element(set: impl Into<Cow<'static, str>>, element: Element) -> Piece {
    Piece::Element(set.into(), element)
}

fn port(id: &WorkloadId, port: &Port, tagged: &Tagged) -> Vec<Piece> {
    let address = port.address.octets();
    let seat = element("ports", point(key(&[&names::port(id).padded(), &address])));
    let region = element("region_of", pair(address.to_vec(), port.region.to_ne_bytes().to_vec()));
    [seat, region].into_iter().chain(tag_elements(port, tagged)).collect()
}

fn reached(address: Ipv4Addr, reach: Reach) -> Piece {
    match reach {
        Reach::Everywhere => element("everywhere", point(address.octets().to_vec())),
        Reach::Region(number) => element("regional", point(key(&[&number.to_ne_bytes(), &address.octets()]))),
        Reach::Balancer { from, port } => {
            let dialled = key(&[&from.octets(), &address.octets(), &port.to_be_bytes()]);
            element("backends", point(dialled))
        }
    }
}

/// An address of the proxy's namespace, and the way there.
fn edge_address(address: Ipv4Addr) -> [Piece; 3] {
    [
        Piece::Route(Route::host(address, Hop::Via(HOP.into(), names::to_edge()))),
        Piece::Neighbour(Neighbour { at: names::to_edge(), address: HOP.into(), mac: cable::EDGE_MAC }),
        Piece::Local(address),
    ]
}

fn tag_elements(port: &Port, tagged: &Tagged) -> Vec<Piece> {
    let sets = port.tags.iter().filter_map(|tag| tagged.get(tag)).flatten();
    sets.map(|set| element(set.clone(), point(port.address.octets().to_vec()))).collect()
}

fn vip(vip: &Vip) -> Vec<Piece> {
    let own = [element("vips", service(vip.address, vip.ports)), reached(vip.address, vip.reach)];
    edge_address(vip.address).into_iter().chain(own).collect()
}

fn endpoint(endpoint: &ConsumerEndpoint) -> Vec<Piece> {
    // The load balancer tries in vain what does not forward, as a VM would.
    let mut pieces = match endpoint.reach {
        Reach::Balancer { from, .. } => edge_address(from).to_vec(),
        Reach::Everywhere | Reach::Region(_) => Vec::new(),
    };
    let Some(producer) = endpoint.producer else {
        // An endpoint that does not forward is silent, unlike an address that is nobody's.
        pieces.push(Piece::Route(Route::host(endpoint.address, Hop::Blackhole)));
        return pieces;
    };
    let at = names::outgoing(producer);
    pieces.extend([
        Piece::Link(Link::ToProducer(producer)),
        Piece::Route(Route::host(endpoint.address, Hop::Via(HOP.into(), at.clone()))),
        Piece::Neighbour(Neighbour { at, address: HOP.into(), mac: cable::INCOMING_MAC }),
        reached(endpoint.address, endpoint.reach),
    ]);
    pieces
}

fn published(p: &PublishedEndpoint, zones: &Zones) -> Vec<Piece> {
    let link = names::incoming(p.consumer).padded();
    let dialled = key(&[&link, &p.address.octets()]);
    let mut pieces = vec![
        Piece::Link(Link::FromConsumer(p.consumer)),
        element("dialled", point(dialled.clone())),
        element("vip_of", pair(dialled.clone(), p.vip.octets().to_vec())),
        element("psc_vips", service(p.vip, p.ports)),
    ];
    let zone = zones.get(&p.consumer);
    pieces.extend(zone.map(|zone| element("zone_of", pair(link.to_vec(), zone.to_ne_bytes().to_vec()))));
    for (nat, map) in p.nats.iter().zip(NATS_OF) {
        let source = nat.octets().to_vec();
        pieces.extend([
            Piece::Nat(*nat),
            element(map, pair(dialled.clone(), source.clone())),
            element("nat_at", point(key(&[&link, &source]))),
        ]);
        pieces.extend(zone.map(|zone| {
            let mark = PSC_MARK | (INCOMING_INDEX_BASE + u32::from(*zone));
            element("link_of", pair(source, mark.to_ne_bytes().to_vec()))
        }));
    }
    pieces
}

fn cut(address: Ipv4Addr) -> Piece {
    element("cut", point(address.octets().to_vec()))
}

/// The pieces of every member.
pub fn all<'a>(plan: &'a VpcPlan, zones: &'a Zones) -> impl Iterator<Item = Piece> + 'a {
    let tagged = tagged(&plan.settings.firewall);
    let ports = plan.ports.iter().flat_map(move |(id, p)| port(id, p, &tagged));
    let vips = plan.vips.values().flat_map(vip);
    let endpoints = plan.endpoints.values().flat_map(endpoint);
    let published = plan.published.values().flat_map(|p| published(p, zones));
    ports.chain(vips).chain(endpoints).chain(published).chain(plan.cut.iter().copied().map(cut))
}

/// The links that members which come with a change need.
pub fn links(change: &VpcChange) -> impl Iterator<Item = Link> {
    let producers = change.endpoints.values().flatten().filter_map(|e| e.producer).map(Link::ToProducer);
    producers.chain(change.published.values().flatten().map(|p| Link::FromConsumer(p.consumer)))
}

/// The consumers of which a change speaks, as they were and as they will be.
pub fn consumers<'a>(before: &'a VpcPlan, change: &'a VpcChange) -> impl Iterator<Item = NetworkId> + 'a {
    let published = change.published.iter();
    published.flat_map(|(id, after)| before.published.get(id).into_iter().chain(after).map(|p| p.consumer))
}

/// A plan and how many of its members want each piece, kept in step.
#[derive(Debug)]
pub struct Held {
    plan: VpcPlan,
    tagged: Tagged,
    pieces: BTreeMap<Piece, u32>,
}

/// Part of what a namespace should hold, and the same part of what it holds: everything else stays as it is.
#[derive(Debug, Default, PartialEq)]
pub struct Part {
    pub wanted: Wanted,
    pub found: Found,
}

/// What a change of a plan changes.
#[derive(Debug)]
pub struct Changed {
    pub router: Part,
    /// In the proxy's namespace.
    pub edge: Part,
    /// Links that no member wants any more.
    pub unlinked: Vec<Link>,
    /// NAT addresses that lost their endpoint, or were cut off.
    pub released: BTreeSet<Ipv4Addr>,
    /// How many pieces were looked at: what the change costs here, however many there are.
    pub touched: usize,
}

impl Held {
    pub fn new(plan: VpcPlan, zones: &Zones) -> Held {
        let mut pieces = BTreeMap::new();
        for piece in all(&plan, zones) {
            *pieces.entry(piece).or_default() += 1;
        }
        Held { tagged: tagged(&plan.settings.firewall), plan, pieces }
    }

    pub fn plan(&self) -> &VpcPlan {
        &self.plan
    }

    pub fn wants(&self, link: Link) -> bool {
        self.pieces.contains_key(&Piece::Link(link))
    }

    /// Whether the proxy has a namespace here: somebody wants an address in it.
    pub fn has_edge(&self) -> bool {
        let all = Piece::Local(Ipv4Addr::UNSPECIFIED)..=Piece::Local(Ipv4Addr::BROADCAST);
        self.pieces.range(all).next().is_some()
    }

    pub fn links(&self) -> impl Iterator<Item = Link> {
        let lowest = Piece::Link(Link::ToProducer(NetworkId(0)));
        self.pieces
            .range(lowest..)
            .map_while(|(piece, _)| if let Piece::Link(link) = piece { Some(*link) } else { None })
    }

    /// Takes the change in. `zones` must know the links of all consumers that the change speaks of, as it was and as it
    /// will be.
    pub fn change(&mut self, change: VpcChange, zones: &Zones) -> Changed {
        let mut moves = Moves { pieces: &mut self.pieces, before: BTreeMap::new() };
        let mut part =
            Part { wanted: vpc::shell(), found: Found { tables: vec![Some(Default::default())], ..Found::default() } };
        if let Some(settings) = &change.settings {
            part = frames(&self.plan.settings, settings);
            let tagged = tagged(&settings.firewall);
            // Only rules that name tags make it look at the ports.
            if tagged != self.tagged {
                for port in self.plan.ports.values() {
                    moves.gone(tag_elements(port, &self.tagged));
                    moves.come(tag_elements(port, &tagged));
                }
                self.tagged = tagged;
            }
        }
        let tagged = &self.tagged;
        moves.swap(&self.plan.ports, &change.ports, |id, p| port(id, p, tagged));
        moves.swap(&self.plan.vips, &change.vips, |_, v| vip(v));
        moves.swap(&self.plan.endpoints, &change.endpoints, |_, e| endpoint(e));
        moves.swap(&self.plan.published, &change.published, |_, p| published(p, zones));
        for (address, is_cut) in &change.cut {
            match (self.plan.cut.contains(address), is_cut) {
                (true, false) => moves.gone([cut(*address)]),
                (false, true) => moves.come([cut(*address)]),
                (true, true) | (false, false) => {}
            }
        }
        let newly_cut = change.cut.iter().filter(|(address, is_cut)| **is_cut && !self.plan.cut.contains(*address));
        let released = newly_cut.map(|(address, _)| *address).collect();
        let fixed = change.settings.is_some();
        let changed = Changed { router: part, edge: Part::default(), unlinked: Vec::new(), released, touched: 0 };
        let changed = moves.into_changed(changed, fixed);
        self.plan.change(change);
        changed
    }
}

/// What stands around the members, as it will be and as it was.
fn frames(before: &VpcSettings, now: &VpcSettings) -> Part {
    Part { wanted: vpc::frame(now), found: after(&vpc::frame(before), Found::default()) }
}

/// Pieces on their way, and whether anybody wanted them before.
struct Moves<'a> {
    pieces: &'a mut BTreeMap<Piece, u32>,
    before: BTreeMap<Piece, bool>,
}

impl Moves<'_> {
    fn come(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        for piece in pieces {
            let wanted_by = self.pieces.entry(piece.clone()).or_default();
            self.before.entry(piece).or_insert(*wanted_by > 0);
            *wanted_by += 1;
        }
    }

    fn gone(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        for piece in pieces {
            let Some(wanted_by) = self.pieces.get_mut(&piece) else { continue };
            *wanted_by -= 1;
            if *wanted_by == 0 {
                self.pieces.remove(&piece);
            }
            self.before.entry(piece).or_insert(true);
        }
    }

    fn swap<K: Ord, V>(
        &mut self,
        before: &BTreeMap<K, V>,
        change: &BTreeMap<K, Option<V>>,
        pieces: impl Fn(&K, &V) -> Vec<Piece>,
    ) {
        for (id, after) in change {
            self.gone(before.get(id).map(|member| pieces(id, member)).unwrap_or_default());
            self.come(after.as_ref().map(|member| pieces(id, member)).unwrap_or_default());
        }
    }

    /// `fixed`: the part says itself which sets there are.
    fn into_changed(self, mut changed: Changed, fixed: bool) -> Changed {
        changed.touched = self.before.len();
        for (piece, was) in self.before {
            let is = self.pieces.contains_key(&piece);
            if was == is {
                continue;
            }
            let Part { wanted, found } = &mut changed.router;
            match piece {
                Piece::Route(route) if is => drop(wanted.routes.insert(route)),
                Piece::Route(route) => drop(found.routes.insert(route)),
                Piece::Neighbour(neighbour) if is => drop(wanted.neighbours.insert(neighbour)),
                Piece::Neighbour(neighbour) => drop(found.neighbours.insert(neighbour)),
                Piece::Element(set, element) => change_set(&mut changed.router, &set, element, is, fixed),
                Piece::Local(address) if is => drop(changed.edge.wanted.routes.insert(Route::local(address))),
                Piece::Local(address) => drop(changed.edge.found.routes.insert(Route::local(address))),
                Piece::Link(link) if !is => changed.unlinked.push(link),
                Piece::Nat(address) if !is => drop(changed.released.insert(address)),
                Piece::Link(_) | Piece::Nat(_) => {}
            }
        }
        changed
    }
}

fn change_set(part: &mut Part, name: &str, element: Element, is: bool, fixed: bool) {
    let table = &mut part.wanted.tables[vpc::TABLE];
    let found = part.found.tables[vpc::TABLE].get_or_insert_default();
    if !fixed {
        table.sets.entry(name.to_owned()).or_insert_with(|| vpc::shape(name));
        found.sets.entry(name.to_owned()).or_default();
    }
    // A set that is not there goes, or comes, with all its elements.
    if is && let Some(set) = table.sets.get_mut(name) {
        set.elements.insert(element);
    } else if !is && let Some(set) = found.sets.get_mut(name) {
        set.insert(element);
    }
}

impl Wanted {
    /// Puts in what a member of the plan wants of the router.
    pub(super) fn put(&mut self, piece: Piece) {
        match piece {
            Piece::Route(route) => drop(self.routes.insert(route)),
            Piece::Neighbour(neighbour) => drop(self.neighbours.insert(neighbour)),
            Piece::Element(set, element) => {
                if let Some(set) = self.tables[vpc::TABLE].sets.get_mut(&*set) {
                    set.elements.insert(element);
                }
            }
            Piece::Local(_) | Piece::Link(_) | Piece::Nat(_) => {}
        }
    }
}
