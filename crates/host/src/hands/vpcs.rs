//! VPCs: routers, the links between them, and the namespaces behind them, made to hold what the plans say.
//!
//! A change costs what it changes. Everything is looked at, the kernel included, only when a VPC is first heard of, and
//! when nobody can say what the kernel holds: something failed half-way, or the other end of a link took it along.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use model::{
    id::NetworkId,
    planned::host::{CellId, VpcChange, VpcPlan},
};

use super::{EDGE_SYSCTLS, Hands};
use crate::{
    names::{self, IfName},
    net::{
        cable,
        kernel::{KernelError, Space},
        pieces::{self, Held, Link, Part},
        vpc::{self, INCOMING_NUMBERS, Zones},
    },
    netlink::{
        conntrack,
        route::{self, End, LOOPBACK},
    },
};

/// A VPC that is planned.
pub(super) struct Vpc {
    held: Held,
    /// The kernel holds what `held` says, as far as anybody knows.
    holds: bool,
    /// It forwards, and whether it counts flows.
    open: Option<bool>,
    /// NAT addresses whose connections are still to be forgotten.
    released: BTreeSet<Ipv4Addr>,
}

impl Vpc {
    pub(super) fn plan(&self) -> &VpcPlan {
        self.held.plan()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = Link> {
        self.held.links()
    }

    pub(super) fn has_edge(&self) -> bool {
        self.held.has_edge()
    }
}

impl Hands {
    /// Makes the VPC's router, its links and its proxy namespace hold what the plan says.
    pub fn apply_vpc(&mut self, network: NetworkId, plan: &VpcPlan) -> Result<(), KernelError> {
        if let Some(vpc) = self.vpcs.get(&network) {
            let change = VpcChange::between(vpc.held.plan(), plan);
            return self.change_vpc(network, change);
        }
        let held = Held::new(plan.clone(), &Zones::new());
        self.vpcs.insert(network, Vpc { held, holds: false, open: None, released: plan.cut.clone() });
        self.converge_vpc(network)
    }

    /// The same for the plan that the change leads to. It must have been applied whole before.
    pub fn change_vpc(&mut self, network: NetworkId, change: VpcChange) -> Result<(), KernelError> {
        let links: BTreeSet<Link> = pieces::links(&change).collect();
        let consumers: Vec<NetworkId> = match self.vpcs.get(&network) {
            None => return Err(unsupported(network, "a change of a VPC that is not here")),
            Some(vpc) => pieces::consumers(vpc.held.plan(), &change).collect(),
        };
        let holds = self.vpcs.get_mut(&network).is_some_and(|vpc| std::mem::replace(&mut vpc.holds, false));
        let laid = if holds { links.into_iter().try_for_each(|link| self.link(network, link)) } else { Ok(()) };
        let zones = consumers.into_iter().filter_map(|c| Some((c, self.zone(network, c)?))).collect();
        let had_edge = self.vpcs.get(&network).is_some_and(Vpc::has_edge);
        let Some(vpc) = self.vpcs.get_mut(&network) else { return laid };
        // Whatever fails from here on, the plan is the new one.
        let changed = vpc.held.change(change, &zones);
        vpc.released.extend(changed.released);
        laid?;
        if !holds {
            return self.converge_vpc(network);
        }
        let has_edge = vpc.has_edge();
        if has_edge {
            self.edge(network, had_edge.then_some(&changed.edge))?;
        }
        self.space_mut(&names::vpc_ns(network)).change(&changed.router)?;
        self.settings(network)?;
        self.forget_connections(network)?;
        if had_edge && !has_edge {
            self.drop_edge(network)?;
        }
        for link in changed.unlinked {
            let (consumer, producer) = ends_of(network, link);
            self.prune(consumer, producer)?;
        }
        self.holds(network);
        Ok(())
    }

    /// Compares everything with the kernel.
    fn converge_vpc(&mut self, network: NetworkId) -> Result<(), KernelError> {
        let Some(vpc) = self.vpcs.get(&network) else { return Ok(()) };
        let links: Vec<Link> = vpc.held.links().collect();
        let (plan, has_edge) = (vpc.held.plan().clone(), vpc.has_edge());
        self.router(network)?;
        links.into_iter().try_for_each(|link| self.link(network, link))?;
        if has_edge {
            self.edge(network, None)?;
        }
        let zones = self.zones(network);
        self.space_mut(&names::vpc_ns(network)).converge(&vpc::router(&plan, &zones))?;
        self.settings(network)?;
        self.forget_connections(network)?;
        if !has_edge {
            self.drop_edge(network)?;
        }
        if let Some(vpc) = self.vpcs.get_mut(&network) {
            vpc.held = Held::new(plan, &zones);
        }
        self.prune_all()?;
        self.holds(network);
        Ok(())
    }

    fn holds(&mut self, network: NetworkId) {
        if let Some(vpc) = self.vpcs.get_mut(&network) {
            vpc.holds = true;
        }
    }

    fn plan(&self, network: NetworkId) -> Option<&VpcPlan> {
        self.vpcs.get(&network).map(|vpc| vpc.held.plan())
    }

    /// Takes a VPC down with everything in it.
    pub fn remove_vpc(&mut self, network: NetworkId) -> Result<(), KernelError> {
        self.vpcs.remove(&network);
        self.drop_router(network)?;
        self.prune_all()
    }

    /// Takes down every VPC that is in no plan. The fabric stays: the proxy lives in it.
    pub fn retain(&mut self) -> Result<(), KernelError> {
        let spaces = |n: &NetworkId| [names::vpc_ns(*n), names::edge_ns(*n), names::relay_ns(*n)];
        let wanted: BTreeSet<String> = self.vpcs.keys().flat_map(spaces).collect();
        for name in self.pins.names()? {
            match names::network_of(&name) {
                _ if name == names::FABRIC_NS || wanted.contains(&name) => {}
                Some(network) => self.remove_vpc(network)?,
                None => self.delete_space(&name)?,
            }
        }
        Ok(())
    }

    // ---- routers ----

    /// The proxy's namespace. `change` is what changes in one that is there; None compares all of it.
    fn edge(&mut self, network: NetworkId, change: Option<&Part>) -> Result<(), KernelError> {
        let name = names::edge_ns(network);
        if !self.spaces.contains_key(&name) {
            let mut space = self.enter(&name, EDGE_SYSCTLS, EDGE_SYSCTLS)?;
            space.requests(vec![("take lo up".to_owned(), route::up(LOOPBACK))])?;
            self.spaces.insert(name.clone(), space);
        }
        let mut edge = self.spaces.remove(&name).expect("inserted above");
        let laid = self.lay_edge(network, &mut edge, change);
        self.spaces.insert(name, edge);
        laid
    }

    fn lay_edge(&mut self, network: NetworkId, edge: &mut Space, change: Option<&Part>) -> Result<(), KernelError> {
        let Some(wanted) =
            self.plan(network).map(|plan| (plan.settings.mtu, change.is_none().then(|| vpc::edge(plan))))
        else {
            return Ok(());
        };
        let router = self.space_mut(&names::vpc_ns(network));
        if edge.links().index(&names::to_vpc()).is_none() {
            router.cut(&names::to_edge())?;
            let here = End { name: names::to_edge(), mac: cable::ROUTER_MAC, mtu: cable::INNER_MTU, index: None };
            let mtu = u32::from(wanted.0);
            let there = End { name: names::to_vpc(), mac: cable::EDGE_MAC, mtu, index: None };
            router.lay(&here, &there, Some(edge))?;
        }
        match (wanted.1, change) {
            (Some(wanted), _) => edge.converge(&wanted)?,
            (None, Some(part)) => edge.change(part)?,
            (None, None) => 0,
        };
        Ok(())
    }

    fn drop_edge(&mut self, network: NetworkId) -> Result<(), KernelError> {
        self.space_mut(&names::vpc_ns(network)).cut(&names::to_edge())?;
        self.delete_space(&names::edge_ns(network))
    }

    fn drop_router(&mut self, network: NetworkId) -> Result<(), KernelError> {
        if self.pins.open(&names::vpc_ns(network))?.is_some() {
            let links: Vec<_> =
                self.router(network)?.links().iter().filter_map(|(name, _)| ends(network, name)).collect();
            for (consumer, producer) in links {
                self.unlink(consumer, producer)?;
                // What the other end's router holds about the link is no longer what it should.
                for end in [consumer, producer] {
                    if let Some(vpc) = self.vpcs.get_mut(&end) {
                        vpc.holds = false;
                    }
                }
            }
        }
        self.delete_space(&names::edge_ns(network))?;
        self.delete_space(&names::relay_ns(network))?;
        self.delete_space(&names::vpc_ns(network))
    }

    /// What depends on the plan but is neither rule nor route. Forwarding comes last: until here nothing passed.
    fn settings(&mut self, network: NetworkId) -> Result<(), KernelError> {
        let Some(Vpc { held, open, .. }) = self.vpcs.get(&network) else { return Ok(()) };
        let (open, counts) = (*open, held.plan().settings.flow_logs);
        let counted = if counts { "1" } else { "0" };
        let netns = self.space_mut(&names::vpc_ns(network)).netns();
        if open != Some(counts) {
            netns
                .sysctls(&[("netfilter/nf_conntrack_acct", counted), ("netfilter/nf_conntrack_timestamp", counted)])?;
        }
        if open.is_none() {
            netns.sysctls(&[("ipv4/ip_forward", "1")])?;
        }
        if let Some(vpc) = self.vpcs.get_mut(&network) {
            vpc.open = Some(counts);
        }
        Ok(())
    }

    // ---- PSC links ----

    /// Lays the cable between two routers unless it lies.
    fn link(&mut self, network: NetworkId, link: Link) -> Result<(), KernelError> {
        let (consumer, producer) = ends_of(network, link);
        self.router(consumer)?;
        let links = self.router(producer)?.links();
        if links.index(&names::incoming(consumer)).is_some() {
            return Ok(());
        }
        let index = links.free(INCOMING_NUMBERS);
        let index = index.ok_or_else(|| unsupported(producer, "more than 65535 consumer networks"))?;
        let end = |name, mac, index| End { name, mac, mtu: cable::INNER_MTU, index };
        let here = end(names::incoming(consumer), cable::INCOMING_MAC, Some(index));
        let there = end(names::outgoing(producer), cable::ROUTER_MAC, None);
        // Control refuses such an endpoint. A plan that has one all the same may not end the host.
        if consumer == producer {
            return self.space_mut(&names::vpc_ns(producer)).lay(&here, &there, None);
        }
        let name = names::vpc_ns(consumer);
        let mut peer = self.spaces.remove(&name).expect("entered above");
        let laid = self.space_mut(&names::vpc_ns(producer)).lay(&here, &there, Some(&mut peer));
        self.spaces.insert(name, peer);
        laid
    }

    fn unlink(&mut self, consumer: NetworkId, producer: NetworkId) -> Result<(), KernelError> {
        self.router(producer)?.cut(&names::incoming(consumer))?;
        self.router(consumer)?.lost(&names::outgoing(producer));
        Ok(())
    }

    /// The number of a consumer's link to this producer.
    fn zone(&self, producer: NetworkId, consumer: NetworkId) -> Option<u16> {
        let index = self.spaces.get(&names::vpc_ns(producer))?.links().index(&names::incoming(consumer))?;
        vpc::zone_of(index)
    }

    fn zones(&self, producer: NetworkId) -> Zones {
        let Some(space) = self.spaces.get(&names::vpc_ns(producer)) else { return BTreeMap::new() };
        let consumers =
            space.links().starting(names::INCOMING_PREFIX).filter_map(|n| names::linked(names::INCOMING_PREFIX, n));
        consumers.filter_map(|consumer| Some((consumer, self.zone(producer, consumer)?))).collect()
    }

    /// Takes the link away unless one of its ends wants it, and routers that were there only for it.
    fn prune(&mut self, consumer: NetworkId, producer: NetworkId) -> Result<(), KernelError> {
        let asked = self.vpcs.get(&consumer).is_some_and(|v| v.held.wants(Link::ToProducer(producer)));
        let offered = self.vpcs.get(&producer).is_some_and(|v| v.held.wants(Link::FromConsumer(consumer)));
        if asked || offered {
            return Ok(());
        }
        self.unlink(consumer, producer)?;
        [consumer, producer].into_iter().try_for_each(|network| self.drop_idle(network))
    }

    fn prune_all(&mut self) -> Result<(), KernelError> {
        let routers = || self.spaces.iter().filter_map(|(name, space)| Some((names::network_of(name)?, space)));
        let ends_at = |(network, space): (NetworkId, &Space)| -> Vec<_> {
            space.links().iter().filter_map(|(name, _)| ends(network, name)).collect()
        };
        let links: BTreeSet<_> = routers().flat_map(ends_at).collect();
        let networks: Vec<_> = routers().map(|(network, _)| network).collect();
        links.into_iter().try_for_each(|(consumer, producer)| self.prune(consumer, producer))?;
        networks.into_iter().try_for_each(|network| self.drop_idle(network))
    }

    /// Deletes a router that is in no plan, has no link and no workload.
    fn drop_idle(&mut self, network: NetworkId) -> Result<(), KernelError> {
        let name = names::vpc_ns(network);
        let used = [names::INCOMING_PREFIX, names::OUTGOING_PREFIX, names::PORT_PREFIX];
        match self.spaces.get(&name) {
            Some(space) if used.iter().all(|prefix| space.links().starting(prefix).next().is_none()) => {}
            Some(_) | None => return Ok(()),
        }
        if self.vpcs.contains_key(&network) { Ok(()) } else { self.delete_space(&name) }
    }

    /// Forgets the connections behind NAT addresses that were released, so that their next tenant starts clean.
    fn forget_connections(&mut self, network: NetworkId) -> Result<(), KernelError> {
        let Some(nats) = self.vpcs.get(&network).map(|vpc| vpc.released.clone()).filter(|nats| !nats.is_empty()) else {
            return Ok(());
        };
        let name = names::vpc_ns(network);
        let wanted = |e: &conntrack::Entry| e.original.zone != 0 && nats.contains(&e.reply.dst);
        conntrack::delete(self.space_mut(&name).netfilter()?, wanted)
            .map_err(|source| KernelError::Netlink { namespace: name, source })?;
        if let Some(vpc) = self.vpcs.get_mut(&network) {
            vpc.released.clear();
        }
        Ok(())
    }
}

fn unsupported(network: NetworkId, what: &str) -> KernelError {
    KernelError::Unsupported { cell: CellId::Vpc(network), what: what.to_owned() }
}

/// Consumer and producer of a link of this network's.
pub(super) fn ends_of(network: NetworkId, link: Link) -> (NetworkId, NetworkId) {
    match link {
        Link::ToProducer(producer) => (network, producer),
        Link::FromConsumer(consumer) => (consumer, network),
    }
}

/// Consumer and producer of the link that this interface of `network`'s router is an end of.
fn ends(network: NetworkId, name: &IfName) -> Option<(NetworkId, NetworkId)> {
    let outgoing = names::linked(names::OUTGOING_PREFIX, name).map(|producer| (network, producer));
    outgoing.or_else(|| names::linked(names::INCOMING_PREFIX, name).map(|consumer| (consumer, network)))
}
