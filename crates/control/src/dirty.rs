//! What a commit makes the planner look at again: the keys of the plans that may be different, found from the change and
//! from who refers to what it changes. Pure; start with [`Dirty::note`].
//!
//! A key too many costs a comparison; a key too few would leave a rule that no packet obeys. So a change is noted with
//! the world as it was, for what goes, and names what comes by itself. Two kinds of change are not followed to their
//! ends, and everything is planned anew: a project that is changed or goes (its metadata and its number stand in every
//! identity and host name, and what belongs to one that is on its way out is in no plan), and a store that another
//! process wrote to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use model::{
    directory::{Namespace, ServiceName},
    id::{EndpointId, ListenerId, NetworkId, ResourceId, WorkloadId},
    lb,
    name::Link,
    planned::{edge::EdgeKey, guest::Named},
    psc::ServiceAttachment,
    run::{RevisionKey, ServiceKey},
    vm, vpc,
};

use crate::{
    change::Change,
    kind::{Object, Record, Stored},
    kinds::{endpoint::Endpoint, instance},
    run,
    world::{Holder, PscConnection, SeatRecord, World},
};

/// Keys of plans that may have changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dirty {
    pub everything: bool,
    pub vpcs: BTreeMap<NetworkId, Members>,
    /// Their sandboxes, and who they are for the metadata server.
    pub workloads: BTreeSet<WorkloadId>,
    pub fabric: bool,
    pub edge: BTreeSet<EdgeKey>,
    /// What may be called differently in a network.
    pub names: BTreeSet<(NetworkId, Named)>,
}

/// Members of one VPC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    /// The VPC came, goes, or changed itself.
    pub whole: bool,
    pub settings: bool,
    pub ports: BTreeSet<WorkloadId>,
    pub vips: BTreeSet<ListenerId>,
    pub endpoints: BTreeSet<EndpointId>,
    pub published: BTreeSet<EndpointId>,
    pub cut: BTreeSet<Ipv4Addr>,
}

impl Dirty {
    /// How many keys there are to plan, unless it is everything.
    pub fn keys(&self) -> usize {
        let members = |m: &Members| {
            usize::from(m.whole)
                + usize::from(m.settings)
                + m.ports.len()
                + m.vips.len()
                + m.endpoints.len()
                + m.published.len()
                + m.cut.len()
        };
        self.vpcs.values().map(members).sum::<usize>()
            + self.workloads.len()
            + usize::from(self.fabric)
            + self.edge.len()
            + self.names.len()
    }

    pub fn merge(&mut self, other: Dirty) {
        self.everything |= other.everything;
        self.fabric |= other.fabric;
        self.workloads.extend(other.workloads);
        self.edge.extend(other.edge);
        self.names.extend(other.names);
        for (network, members) in other.vpcs {
            let mine = self.vpc(network);
            mine.whole |= members.whole;
            mine.settings |= members.settings;
            mine.ports.extend(members.ports);
            mine.vips.extend(members.vips);
            mine.endpoints.extend(members.endpoints);
            mine.published.extend(members.published);
            mine.cut.extend(members.cut);
        }
    }

    pub fn vpc(&mut self, network: NetworkId) -> &mut Members {
        self.vpcs.entry(network).or_default()
    }

    /// Notes what this change makes different. `world` has not taken it in yet, but all changes before it.
    pub fn note(&mut self, world: &World, change: &Change) {
        match change {
            Change::Object(object) => self.object(world, world.objects.get(object.link()), Some(object)),
            Change::NoObject(link) => self.object(world, world.objects.get(link), None),
            Change::Connection(new) => {
                world.connections.get(&new.connection.endpoint).into_iter().for_each(|old| self.connection(old));
                self.connection(new);
            }
            Change::NoConnection(id) => world.connections.get(id).into_iter().for_each(|old| self.connection(old)),
            Change::Quarantine(network, q) => drop(self.vpc(*network).cut.insert(q.address)),
            Change::NoQuarantine(network, address) => drop(self.vpc(*network).cut.insert(*address)),
            Change::Project(project) => self.everything |= world.projects.contains_key(&project.id),
            Change::NoProject(_) => self.everything = true,
            Change::Service(service) => self.service(world, &service.key),
            Change::NoService(key) => self.service(world, key),
            Change::Revision(revision) => self.revision(world, &revision.key),
            Change::NoRevision(key) => self.revision(world, key),
            Change::Seat(new) => {
                world.seats.get(&new.workload).into_iter().for_each(|old| self.seat(world, old));
                self.seat(world, new);
            }
            Change::NoSeat(id) => world.seats.get(id).into_iter().for_each(|old| self.seat(world, old)),
            // Which instances run it is known by its digest only; an image comes before them.
            Change::Image(_) => self.workloads.extend(world.seats.containers().map(|seat| seat.workload.clone())),
            Change::Policy(name, _) | Change::NoPolicy(name) => self.policy(world, name),
            // Any policy may name it, and what it gives goes to the account that has the address now.
            Change::Account(_) | Change::NoAccount(_) => {
                self.edge.extend(world.services.keys().cloned().map(EdgeKey::Service));
            }
            Change::Namespace(new) => {
                let old = world.directory.namespace(&new.name);
                if old.and_then(|old| old.zone.as_ref()) != new.zone.as_ref() {
                    old.into_iter().for_each(|old| self.zone(world, old));
                    self.zone(world, new);
                }
            }
            Change::NoNamespace(name) => {
                world.directory.namespace(name).into_iter().for_each(|old| self.zone(world, old));
            }
            Change::Registered(service) => self.registered(world, &service.name),
            Change::NoRegistered(name) => self.registered(world, name),
            Change::Login(_)
            | Change::Operation(_)
            | Change::NoOperation(_)
            | Change::RunOperation(_)
            | Change::NoRunOperation(_)
            | Change::AccountKey(_)
            | Change::NoAccountKey { .. }
            | Change::Secrets(_)
            | Change::SystemKey(..)
            | Change::NoSystemKey(_)
            | Change::Revoked(..)
            | Change::NoRevoked(_)
            // What a policy forbids is decided when a connection is, and stands in the connection.
            | Change::OrgPolicy(..)
            | Change::NoOrgPolicy(_) => {}
        }
    }

    fn object(&mut self, world: &World, old: Option<&Object>, new: Option<&Object>) {
        for object in old.into_iter().chain(new) {
            match object {
                Object::Network(network) => self.network(world, network),
                Object::Subnetwork(subnet) => {
                    self.of(world, &subnet.spec.network, |m| m.settings = true);
                    if old.is_some() && new.is_some() {
                        self.vms(world, &subnet.link);
                    }
                    if subnet.spec.purpose == vpc::Purpose::RegionalManagedProxy {
                        self.groups(world, &subnet.spec.network);
                    }
                }
                Object::Firewall(firewall) => self.of(world, &firewall.spec.network, |m| m.settings = true),
                Object::Instance(vm) => self.vm(world, vm, old.is_none() || new.is_none()),
                Object::ForwardingRule(rule) => self.rule(world, rule),
                Object::ServiceAttachment(attachment) => {
                    let target =
                        |o: Option<&Object>| o.and_then(ServiceAttachment::peek).map(|a| a.spec.target.clone());
                    if target(old) != target(new) {
                        self.attachment(world, attachment.id);
                    }
                }
                Object::NetworkEndpointGroup(group) => {
                    if let Some(endpoint) = Endpoint::of_group(group) {
                        self.endpoint(world, &endpoint);
                    }
                    self.chain(world, &group.link);
                }
                Object::BackendService(_) | Object::UrlMap(_) | Object::TargetHttpProxy(_) => {
                    self.chain(world, object.link());
                }
                Object::Address(_) => {}
            }
        }
        let front = |o: Option<&Object>| {
            let rule = &o.and_then(lb::ForwardingRule::peek)?.spec;
            if let lb::Target::HttpProxy { ports, .. } = &rule.target { Some((rule.address, *ports)) } else { None }
        };
        if let Some(link) = old.or(new).map(Object::link)
            && front(old) != front(new)
        {
            world.users::<ServiceAttachment>(link).for_each(|a| self.attachment(world, a.id));
        }
    }

    fn of(&mut self, world: &World, network: &Link, note: impl FnOnce(&mut Members)) {
        if let Some(id) = world.network_id(network) {
            note(self.vpc(id));
        }
    }

    fn network(&mut self, world: &World, network: &Record<vpc::Network>) {
        let id = NetworkId(network.id.0);
        self.vpc(id).whole = true;
        self.edge.insert(EdgeKey::Network(id));
        self.fabric = true;
        self.vms(world, &network.link);
        let zones = world.directory.zones_of(id).filter_map(|name| world.directory.namespace(name));
        zones.for_each(|namespace| self.zone(world, namespace));
    }

    /// A namespace in the network that has its zone: the zone, and all names in it.
    fn zone(&mut self, world: &World, namespace: &Namespace) {
        let Some(zone) = &namespace.zone else { return };
        self.names.insert((zone.network_id, Named::Namespace(namespace.name.clone())));
        let services = world.directory.services(&namespace.name);
        self.names.extend(services.map(|service| (zone.network_id, Named::Service(service.name.clone()))));
    }

    fn registered(&mut self, world: &World, name: &ServiceName) {
        if let Some(zone) = world.directory.namespace(&name.namespace).and_then(|n| n.zone.as_ref()) {
            self.names.insert((zone.network_id, Named::Service(name.clone())));
        }
    }

    /// The sandboxes and identities of VMs that refer to a network or a subnet: its MTU, range or name is in them.
    fn vms(&mut self, world: &World, link: &Link) {
        self.workloads.extend(world.users::<vm::Instance>(link).map(instance::workload));
    }

    fn vm(&mut self, world: &World, vm: &Record<vm::Instance>, comes_or_goes: bool) {
        let workload = instance::workload(vm);
        self.workloads.insert(workload.clone());
        if let Some(id) = world.network_id(&vm.spec.network) {
            self.vpc(id).ports.insert(workload);
            if comes_or_goes {
                self.names.insert((id, Named::Vm(vm.link.clone())));
            }
        }
    }

    fn rule(&mut self, world: &World, rule: &Record<lb::ForwardingRule>) {
        if let Some(endpoint) = Endpoint::of_rule(rule) {
            return self.endpoint(world, &endpoint);
        }
        let listener = ListenerId(rule.id.0);
        self.of(world, &rule.spec.network, |m| {
            m.vips.insert(listener);
        });
        self.edge.insert(EdgeKey::Listener(listener));
    }

    /// Both of its ends.
    fn endpoint(&mut self, world: &World, endpoint: &Endpoint<'_>) {
        self.of(world, endpoint.network, |m| {
            m.endpoints.insert(endpoint.id);
        });
        world.connections.get(&endpoint.id).into_iter().for_each(|c| self.connection(c));
    }

    /// Network endpoint groups are dialled from an address of a proxy-only subnet.
    fn groups(&mut self, world: &World, network: &Link) {
        let groups = world.users::<lb::NetworkEndpointGroup>(network).map(|group| EndpointId(group.id.0));
        self.of(world, network, |m| m.endpoints.extend(groups));
    }

    fn connection(&mut self, c: &PscConnection) {
        self.vpc(c.connection.consumer_network_id).endpoints.insert(c.connection.endpoint);
        self.vpc(c.producer_network).published.insert(c.connection.endpoint);
    }

    fn attachment(&mut self, world: &World, id: ResourceId) {
        world.connections.of_attachment(id).for_each(|c| self.connection(c));
    }

    /// Listeners whose chain leads to this link of it.
    fn chain(&mut self, world: &World, link: &Link) {
        for user in world.referrers(link) {
            match world.objects.get(user) {
                Some(Object::ForwardingRule(rule)) => drop(self.edge.insert(EdgeKey::Listener(ListenerId(rule.id.0)))),
                Some(Object::TargetHttpProxy(_) | Object::UrlMap(_) | Object::BackendService(_)) => {
                    self.chain(world, user);
                }
                _ => {}
            }
        }
    }

    fn service(&mut self, world: &World, key: &ServiceKey) {
        self.edge.insert(EdgeKey::Service(key.clone()));
        self.edge.extend(run::revisions_of(world, key).map(|r| EdgeKey::Revision(r.key.clone())));
    }

    fn revision(&mut self, world: &World, key: &RevisionKey) {
        self.edge.insert(EdgeKey::Revision(key.clone()));
        self.edge.insert(EdgeKey::Service(key.service.clone()));
        self.workloads.extend(world.seats.of_revision(key).map(|seat| seat.workload.clone()));
    }

    fn seat(&mut self, world: &World, seat: &SeatRecord) {
        self.workloads.insert(seat.workload.clone());
        match &seat.holder {
            Holder::Vm(link) => {
                let network = world.get::<vm::Instance>(link).map(|vm| &vm.spec.network);
                if let Some(network) = network {
                    self.of(world, network, |m| {
                        m.ports.insert(seat.workload.clone());
                    });
                }
            }
            Holder::Container { revision, .. } => {
                self.fabric = true;
                self.edge.insert(EdgeKey::Revision(revision.clone()));
            }
        }
    }

    /// Who may call services: a policy of the service, of its project, or of an organisation above it.
    fn policy(&mut self, world: &World, resource: &str) {
        let speaks = |key: &ServiceKey| {
            resource == key.to_string()
                || resource.strip_prefix("projects/").is_none_or(|project| project == key.project.as_str())
        };
        self.edge.extend(world.services.keys().filter(|key| speaks(key)).map(|key| EdgeKey::Service(key.clone())));
    }
}

#[cfg(test)]
mod tests;
