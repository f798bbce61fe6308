//! Whether the kernel holds what the plans say, read anew by netlink dumps: nothing that was remembered is believed, and
//! nothing is changed. What workloads do inside their own namespaces is theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use model::{
    id::{NetworkId, WorkloadId},
    planned::{
        guest::Realm,
        host::{Attach, Difference},
    },
};

use super::{
    FABRIC_SYSCTLS, Hands, ROUTER_SYSCTLS, is_kept,
    vpcs::{Vpc, ends_of},
};
use crate::{
    names::{self, IfName},
    net::{
        cable, fabric,
        kernel::{KernelError, Space},
        pieces::Link,
        state::{self, Step, Wanted},
        vpc::{self, Zones},
    },
    netlink::route::{Hop, Neighbour, Route},
};

/// What is known of a workload's cable.
#[derive(Clone, Copy, Debug)]
pub enum Lies<'a> {
    /// It must lie, as this attachment means it.
    So(&'a Attach),
    /// It may lie: its workload is about to go, or nobody has said yet how it should lie.
    Perhaps,
}

impl Hands {
    /// The differences, none when the kernel equals the plans; and how many namespaces were looked at.
    pub fn verify(&self, workloads: &BTreeMap<WorkloadId, Lies<'_>>) -> Result<(usize, Vec<Difference>), KernelError> {
        let pinned: BTreeSet<String> = self.pins.names()?.into_iter().collect();
        let mut wanted = self.wanted_spaces();
        // Made when somebody needs it.
        wanted.extend(self.vpcs.keys().map(|n| names::relay_ns(*n)).filter(|name| pinned.contains(name)));
        let mut differences = Vec::new();
        let mut tell = |namespace: &str, what: String| {
            differences.push(Difference { namespace: namespace.to_owned(), what });
        };
        for strange in pinned.difference(&wanted) {
            tell(strange, "the namespace is in no plan".to_owned());
        }
        for name in &wanted {
            match self.pins.open(name)? {
                None => tell(name, "the namespace is missing".to_owned()),
                Some(netns) => {
                    let mut view = View { name, hands: self, space: Space::enter(netns)?, workloads };
                    view.look()?.into_iter().for_each(|what| tell(name, what));
                }
            }
        }
        Ok((wanted.len(), differences))
    }

    /// Names of all namespaces that the plans ask for; a router is there also for a link alone.
    fn wanted_spaces(&self) -> BTreeSet<String> {
        let of = |(network, vpc): (&NetworkId, &Vpc)| {
            let others = vpc.links().map(|link| match link {
                Link::ToProducer(other) | Link::FromConsumer(other) => other,
            });
            let edge = vpc.has_edge().then(|| names::edge_ns(*network));
            others.chain([*network]).map(names::vpc_ns).chain(edge).collect::<Vec<_>>()
        };
        self.vpcs.iter().flat_map(of).chain([names::FABRIC_NS.to_owned()]).collect()
    }
}

/// One namespace, looked at with sockets of its own.
struct View<'a> {
    name: &'a str,
    hands: &'a Hands,
    space: Space,
    workloads: &'a BTreeMap<WorkloadId, Lies<'a>>,
}

impl View<'_> {
    fn look(&mut self) -> Result<Vec<String>, KernelError> {
        let hands = self.hands;
        let router = names::network_of(self.name);
        let plan = router.and_then(|network| hands.vpcs.get(&network)).map(Vpc::plan);
        let edge =
            hands.vpcs.iter().find(|(network, _)| names::edge_ns(**network) == self.name).map(|(_, vpc)| vpc.plan());
        let relay = hands.vpcs.keys().any(|network| names::relay_ns(*network) == self.name);
        let wanted = match (router, plan, edge) {
            (Some(_), Some(plan), _) => Some(vpc::router(plan, &zones(&self.space))),
            // A router that is there for the link to somebody else's endpoint has no rules of its own.
            (Some(_), None, _) => None,
            (None, _, Some(plan)) => Some(vpc::edge(plan)),
            (None, _, None) if relay => Some(vpc::relay()),
            (None, _, None) => Some(fabric::fabric(&hands.fabric)),
        };
        let mut said = self.links(router);
        if let Some(wanted) = &wanted {
            said.extend(self.contents(wanted)?);
        }
        if edge.is_none() && !relay {
            said.extend(self.cables()?);
            let forward = if plan.is_some() { "1" } else { "0" };
            let settings = if router.is_some() { ROUTER_SYSCTLS } else { FABRIC_SYSCTLS };
            said.extend(self.settings(&[&[("ipv4/ip_forward", forward)], settings].concat())?);
        }
        Ok(said)
    }

    fn contents(&mut self, wanted: &Wanted) -> Result<Vec<String>, KernelError> {
        let found = self.space.read(wanted)?;
        Ok(state::diff(wanted, &found).iter().map(words).collect())
    }

    /// Interfaces by name.
    fn links(&self, router: Option<NetworkId>) -> Vec<String> {
        let mut wanted: BTreeSet<IfName> = match router {
            Some(network) => self.router_links(network),
            None if self.name == names::FABRIC_NS => BTreeSet::new(),
            None => [names::to_vpc()].into(),
        };
        wanted.extend(self.here().map(|(id, _)| names::port(id)));
        let perhaps: BTreeSet<IfName> = self.workloads.keys().map(names::port).chain([names::to_relay()]).collect();
        // Others are not ours to judge: the kernel makes some by itself.
        let ours = |name: &&IfName| is_kept(name) || name.as_str().starts_with(names::PORT_PREFIX);
        let found: BTreeSet<&IfName> = self.space.links().iter().map(|(name, _)| name).collect();
        let missing = wanted.iter().filter(|name| !found.contains(name));
        let strange =
            found.iter().copied().filter(ours).filter(|name| !wanted.contains(*name) && !perhaps.contains(*name));
        let missing = missing.map(|name| format!("interface {name} is missing"));
        missing.chain(strange.map(|name| format!("interface {name} is in no plan"))).collect()
    }

    fn router_links(&self, network: NetworkId) -> BTreeSet<IfName> {
        let mut wanted = BTreeSet::from(names::mux());
        for (other, vpc) in &self.hands.vpcs {
            wanted.extend((*other == network && vpc.has_edge()).then(names::to_edge));
            // Links are asked for at either end.
            for (consumer, producer) in vpc.links().map(|link| ends_of(*other, link)) {
                wanted.extend((consumer == network).then(|| names::outgoing(producer)));
                wanted.extend((producer == network).then(|| names::incoming(consumer)));
            }
        }
        wanted
    }

    /// Workloads whose cables must end here.
    fn here(&self) -> impl Iterator<Item = (&WorkloadId, &Attach)> {
        let of = |(id, lies)| match lies {
            &Lies::So(attach) if names::realm_ns(realm_of(attach)) == self.name => Some((id, attach)),
            Lies::So(_) | Lies::Perhaps => None,
        };
        self.workloads.iter().filter_map(of)
    }

    /// Routes and neighbours of workloads' cables, on our side.
    fn cables(&mut self) -> Result<Vec<String>, KernelError> {
        let (routes, neighbours) = self.space.ports()?;
        let wanted: Vec<_> = self.here().map(|(id, attach)| cable::cable(id, attach)).collect();
        let no_route = wanted.iter().flat_map(|c| &c.router_routes).filter(|r| !routes.contains(r));
        let no_neighbour = wanted.iter().flat_map(|c| &c.router_neighbours).filter(|n| !neighbours.contains(n));
        Ok(no_route.map(|r| format!("{} is missing", route(r))).chain(no_neighbour.map(missing)).collect())
    }

    fn settings(&self, wanted: &[(&str, &str)]) -> Result<Vec<String>, KernelError> {
        let found = self.space.netns().run(|| {
            let read = |key: &str| fs::read_to_string(Path::new("/proc/sys/net").join(key)).unwrap_or_default();
            wanted.iter().map(|(key, _)| read(key)).collect::<Vec<_>>()
        })?;
        // Values of several words come back with other spaces between them.
        let differs = |((_, wanted), found): &(&(&str, &str), String)| !found.split_whitespace().eq(wanted.split(' '));
        let differing = wanted.iter().zip(found).filter(differs);
        Ok(differing.map(|((key, wanted), found)| format!("{key} is {:?}, not {wanted:?}", found.trim())).collect())
    }
}

/// The number of each consumer's link, as the kernel lists it.
fn zones(space: &Space) -> Zones {
    let zone = |(name, index)| Some((names::linked(names::INCOMING_PREFIX, name)?, vpc::zone_of(index)?));
    space.links().iter().filter_map(zone).collect()
}

fn realm_of(attach: &Attach) -> Realm {
    match attach {
        Attach::Vpc { network, .. } => Realm::Vpc(*network),
        Attach::Fabric(_) => Realm::Fabric,
    }
}

/// A step that would be taken to mend it, as what is wrong.
fn words(step: &Step<'_>) -> String {
    match step {
        Step::SetRoute(r) => format!("{} is missing", route(r)),
        Step::DeleteRoute(r) => format!("{} is in no plan", route(r)),
        Step::SetNeighbour(n) => missing(n),
        Step::DeleteNeighbour(n) => format!("neighbour {} at {} is in no plan", n.address, n.at),
        Step::AddMarkRule(_) => "the rule that routes by mark is missing".to_owned(),
        Step::NewTable(t) => format!("table {} is missing", t.name),
        Step::NewTimeouts(t, timeouts) => format!("table {} has no timeouts {}", t.name, timeouts.name()),
        Step::NewSet(t, name, _) => format!("table {} has no set {name}", t.name),
        Step::DeleteSet(t, name) => format!("set {name} of table {} is in no plan", t.name),
        Step::DeleteElements(t, name, _, gone) => {
            format!("set {name} of table {} has {} elements that are in no plan", t.name, gone.len())
        }
        Step::AddElements(t, name, _, new) => format!("set {name} of table {} lacks {} elements", t.name, new.len()),
        Step::NewChain(t, name, _) => format!("table {} has no chain {name}", t.name),
        Step::Refill(t, name, _) => format!("chain {name} of table {} holds other rules", t.name),
        Step::Flush(t, name) => format!("chain {name} of table {} is in no plan", t.name),
    }
}

fn missing(neighbour: &Neighbour) -> String {
    format!("neighbour {} at {} is missing", neighbour.address, neighbour.at)
}

fn route(route: &Route) -> String {
    let leads = match &route.hop {
        Hop::Link(dev) => format!("out of {dev}"),
        Hop::Via(hop, dev) => format!("to {hop} at {dev}"),
        Hop::Local => "to itself".to_owned(),
        Hop::Blackhole => "nowhere".to_owned(),
        Hop::Unreachable => "to a refusal".to_owned(),
    };
    format!("the route of {}/{} {leads}", route.to, route.prefix_bits)
}
