//! The plan of one VPC, and what turns one plan into the next: a change names only the members that it touches.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use crate::{
    cidr::Cidr,
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    vpc::{Action, Direction, PortRange},
};

/// One VPC's router and, when it has a load balancer, the namespace in which the proxy's sockets live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VpcPlan {
    pub settings: VpcSettings,
    pub ports: BTreeMap<WorkloadId, Port>,
    /// Load balancer addresses of this VPC. Nothing else is routed into the proxy namespace.
    pub vips: BTreeMap<ListenerId, Vip>,
    /// Consumer side: endpoint addresses in this VPC.
    pub endpoints: BTreeMap<EndpointId, ConsumerEndpoint>,
    /// Producer side: endpoints of other VPCs that may pass into this one, all of them ACCEPTED.
    pub published: BTreeMap<EndpointId, PublishedEndpoint>,
    /// NAT addresses whose packets are dropped in both directions, tracked or not: their endpoint was cut off or is gone.
    pub cut: BTreeSet<Ipv4Addr>,
}

/// What a VPC has one of, however many members it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VpcSettings {
    pub mtu: u16,
    /// In the order in which they are tried: priority, then deny before allow, then name. Implied rules excluded.
    pub firewall: Vec<FirewallRule>,
    /// Count flows and report them.
    pub flow_logs: bool,
    /// Seconds between two records of a living flow; the shortest interval any subnet asks for.
    pub flow_interval_s: u32,
    /// Idle limit of established PSC connections into this VPC, in seconds; [`crate::limits::PSC_IDLE`] outside tests.
    pub psc_idle_s: u32,
}

/// A VM at the router. The cable itself comes with the workload's cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The one address that it may speak from.
    pub address: Ipv4Addr,
    /// By which firewall rules know it.
    pub tags: BTreeSet<String>,
    /// Of its zone, by [`crate::project::region_number`].
    pub region: u32,
}

/// From where in its own VPC an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    Everywhere,
    /// From VMs of this region, by number.
    Region(u32),
    /// From no VM, only from the network's own load balancer, which dials this port from this address.
    Balancer {
        from: Ipv4Addr,
        port: u16,
    },
}

impl Port {
    /// A VM without tags, in the first region.
    pub fn at(address: Ipv4Addr) -> Port {
        Port { address, tags: BTreeSet::new(), region: 1 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirewallRule {
    /// Unique in the VPC; for people who read the kernel's tables.
    pub name: String,
    pub direction: Direction,
    pub action: Action,
    pub targets: Match,
    /// Sources of an ingress rule, destinations of an egress rule.
    pub peers: Match,
    /// Destinations of an ingress rule; `Any` otherwise.
    pub destinations: Match,
    /// Empty means every protocol.
    pub protocols: Vec<PlannedProtocol>,
}

/// An address condition. `In` of nothing matches nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Match {
    Any,
    In(BTreeSet<Cidr>),
    /// The addresses of VMs that carry one of these tags, and those in these ranges. Who carries a tag is said by
    /// [`VpcPlan::ports`], so that a VM that comes changes no rule.
    Tagged(BTreeSet<String>, BTreeSet<Cidr>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedProtocol {
    /// IANA number.
    pub protocol: u8,
    /// Destination ports; empty means all.
    pub ports: Vec<PortRange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    pub address: Ipv4Addr,
    pub ports: PortRange,
    pub reach: Reach,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerEndpoint {
    pub address: Ipv4Addr,
    /// The producer's VPC when the connection forwards. None: packets to the address vanish, without RST or ICMP.
    pub producer: Option<NetworkId>,
    pub reach: Reach,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedEndpoint {
    pub consumer: NetworkId,
    /// The address consumers dial; translated to `vip`.
    pub address: Ipv4Addr,
    /// The sources that everything behind the endpoint gets in this VPC: one or two, which share the connections.
    pub nats: Vec<Ipv4Addr>,
    pub vip: Ipv4Addr,
    pub ports: PortRange,
}

/// What turns one [`VpcPlan`] into another: each member that is different, as it will be, or None for one that goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VpcChange {
    pub settings: Option<VpcSettings>,
    pub ports: BTreeMap<WorkloadId, Option<Port>>,
    pub vips: BTreeMap<ListenerId, Option<Vip>>,
    pub endpoints: BTreeMap<EndpointId, Option<ConsumerEndpoint>>,
    pub published: BTreeMap<EndpointId, Option<PublishedEndpoint>>,
    /// Whether the address is cut off.
    pub cut: BTreeMap<Ipv4Addr, bool>,
}

impl VpcChange {
    /// From one whole plan to another; this alone looks at every member.
    pub fn between(before: &VpcPlan, after: &VpcPlan) -> VpcChange {
        VpcChange {
            settings: (before.settings != after.settings).then(|| after.settings.clone()),
            ports: different(&before.ports, &after.ports),
            vips: different(&before.vips, &after.vips),
            endpoints: different(&before.endpoints, &after.endpoints),
            published: different(&before.published, &after.published),
            cut: before.cut.symmetric_difference(&after.cut).map(|a| (*a, after.cut.contains(a))).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.settings.is_none() && self.members() == 0
    }

    /// How many members it touches.
    pub fn members(&self) -> usize {
        self.ports.len() + self.vips.len() + self.endpoints.len() + self.published.len() + self.cut.len()
    }
}

impl VpcPlan {
    /// Makes it the plan that the change leads to.
    pub fn change(&mut self, change: VpcChange) {
        if let Some(settings) = change.settings {
            self.settings = settings;
        }
        put(&mut self.ports, change.ports);
        put(&mut self.vips, change.vips);
        put(&mut self.endpoints, change.endpoints);
        put(&mut self.published, change.published);
        for (address, is_cut) in change.cut {
            if is_cut {
                self.cut.insert(address)
            } else {
                self.cut.remove(&address)
            };
        }
    }
}

fn different<K: Ord + Clone, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let set = after.iter().filter(|(key, value)| before.get(*key) != Some(*value));
    let set = set.map(|(key, value)| (key.clone(), Some(value.clone())));
    let unset = before.keys().filter(|key| !after.contains_key(*key));
    set.chain(unset.map(|key| (key.clone(), None))).collect()
}

fn put<K: Ord, V>(members: &mut BTreeMap<K, V>, change: BTreeMap<K, Option<V>>) {
    for (key, value) in change {
        match value {
            Some(value) => members.insert(key, value),
            None => members.remove(&key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ports: &[(&str, u8)], cut: &[u8]) -> VpcPlan {
        let address = |n: &u8| Ipv4Addr::new(10, 0, 0, *n);
        VpcPlan {
            ports: ports.iter().map(|(id, n)| (WorkloadId((*id).to_owned()), Port::at(address(n)))).collect(),
            cut: cut.iter().map(address).collect(),
            ..VpcPlan::default()
        }
    }

    #[test]
    fn a_change_names_what_is_different_and_leads_from_one_plan_to_the_other() {
        let [before, after] =
            [plan(&[("a", 2), ("b", 3), ("c", 4)], &[9]), plan(&[("a", 2), ("b", 5), ("d", 6)], &[8])];
        let change = VpcChange::between(&before, &after);
        assert_eq!((change.ports.len(), change.cut.len(), change.members()), (3, 2, 5));
        let mut changed = before.clone();
        changed.change(change);
        assert_eq!(changed, after);
        assert!(VpcChange::between(&after, &after).is_empty());
    }

    #[test]
    fn a_change_survives_the_way_to_the_host() {
        let change = VpcChange::between(&plan(&[("a", 2)], &[9]), &plan(&[("b", 3)], &[]));
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<VpcChange>(&text).unwrap(), change);
    }
}
