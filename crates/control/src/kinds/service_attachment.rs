//! Service attachments, and the settling of their connections. The decision is [`crate::psc::settle`]'s; here it gets
//! the free NAT addresses and its outcome becomes changes of the store.

use std::{collections::BTreeSet, iter, mem, net::Ipv4Addr};

use model::{
    cidr::Cidr,
    directory::domain_fault,
    fault::{Code, Fault},
    id::{EndpointId, NetworkId},
    lb::{ForwardingRule, Target},
    limits,
    name::Link,
    psc::{Connection, ConnectionStatus, Consumer, Quarantined, ServiceAttachment},
    time::Timestamp,
    vpc::{self, Purpose},
};

use crate::{
    directory,
    kind::{Kind, Need, Record, Reference},
    kinds::place,
    ops::{Change, Txn},
    org_policies::Effective,
    psc::{self, Reach},
    world::{PscConnection, World},
};

impl Kind for ServiceAttachment {
    const COLLECTION: &'static str = "serviceAttachments";
    const WIRE_KIND: &'static str = "serviceAttachment";
    const WORD: &'static str = "service_attachment";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        needs("compute.serviceAttachments.create", self, me)
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        needs("compute.serviceAttachments.update", self, me)
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.serviceAttachments.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        let subnets = self.nat_subnets.iter().map(|to| Reference { field: "natSubnets[0]", to: to.clone() });
        std::iter::once(Reference { field: "targetService", to: self.target.clone() }).chain(subnets).collect()
    }

    fn check(&self, old: Option<&Self>) -> Result<(), Fault> {
        place::of_collection("targetService", ForwardingRule::COLLECTION, &self.target)?;
        if self.nat_subnets.is_empty() {
            return Err(Fault::required("natSubnets"));
        }
        let mut seen = BTreeSet::new();
        for (i, subnet) in self.nat_subnets.iter().enumerate() {
            let field = format!("natSubnets[{i}]");
            place::of_collection(&field, vpc::Subnetwork::COLLECTION, subnet)?;
            if !seen.insert(subnet) {
                return Err(Fault::invalid_value(&field, &subnet.url(), "Duplicate NAT subnetwork."));
            }
        }
        let field = "natIpsPerEndpoint";
        if !(1..=2).contains(&self.nats_each()) {
            return Err(Fault::invalid_value(field, &self.nats_each().to_string(), "It must be 1 or 2."));
        }
        if old.is_some_and(|old| old.nats_each() > self.nats_each()) {
            let why = "The number of NAT IP addresses per endpoint can only be increased.";
            return Err(Fault::invalid_value(field, &self.nats_each().to_string(), why));
        }
        if let Some(domain) = &self.domain
            && let Some(why) = domain_fault(domain)
        {
            return Err(Fault::invalid_value("domainNames", domain, why));
        }
        if old.is_some_and(|old| old.domain != self.domain) {
            return Err(place::immutable("domainNames", self.domain.as_deref().unwrap_or_default()));
        }
        check_lists(self)
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        let network = admit_target(record, old, world)?;
        for (i, subnet) in record.spec.nat_subnets.iter().enumerate() {
            admit_nat_subnet(&format!("natSubnets[{i}]"), record, subnet, &network, world)?;
        }
        let Some(old) = old else { return directory::psc::admit_domain(record, world) };
        keep_used_subnets(record, old, world)?;
        if record.spec != old.spec {
            let reach = if record.spec.reconcile { Reach::Decided } else { Reach::Waiting };
            let all_served = Round::new(record, reach).settle(world, txn);
            // More addresses for each connection are promised only where all that have a place get theirs.
            if !all_served && record.spec.nats_each() > old.spec.nats_each() {
                let why = "Insufficient IPv4 capacity on NAT subnetworks for the requested Service Attachment update";
                return Err(Fault::new(Code::InvalidArgument, "invalid", why));
            }
        }
        Ok(())
    }

    /// Every connection is CLOSED, for good: an attachment made anew under the name does not open it again.
    fn retire(record: &Record<Self>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        for connection in connections(record, world) {
            let mut closed = connection.clone();
            closed.connection.status = ConnectionStatus::Closed;
            for nat in mem::take(&mut closed.connection.nats) {
                quarantine(closed.producer_network, nat, txn);
            }
            txn.push(Change::Connection(Box::new(closed)));
        }
        Ok(())
    }
}

fn needs(permission: &'static str, attachment: &ServiceAttachment, me: &Link) -> Vec<Need> {
    let own = [Need::on(permission, me), Need::on("compute.forwardingRules.use", &attachment.target)];
    let subnets = attachment.nat_subnets.iter().map(|s| Need::on("compute.subnetworks.use", s));
    own.into_iter().chain(subnets).collect()
}

fn check_lists(spec: &ServiceAttachment) -> Result<(), Fault> {
    for (field, len, max) in [
        ("consumerAcceptLists", spec.accept.len(), limits::PSC_ACCEPT_ENTRIES_MAX),
        ("consumerRejectLists", spec.reject.len(), limits::PSC_REJECT_ENTRIES_MAX),
    ] {
        if len > max {
            return Err(Fault::invalid_value(field, &len.to_string(), &format!("At most {max} entries are allowed.")));
        }
    }
    for entry in &spec.accept {
        if entry.limit == 0 {
            let field = "consumerAcceptLists[0].connectionLimit";
            return Err(Fault::invalid_value(field, "0", "The connection limit must be at least 1."));
        }
    }
    no_duplicates("consumerAcceptLists", spec.accept.iter().map(|e| &e.consumer))?;
    no_duplicates("consumerRejectLists", spec.reject.iter())?;
    let mut all = spec.accept.iter().map(|e| &e.consumer).chain(&spec.reject);
    let Some(first) = all.next() else { return Ok(()) };
    match all.find(|c| mem::discriminant(*c) != mem::discriminant(first)) {
        Some(odd) => {
            let why = "The accept and reject lists must contain either only projects or only networks.";
            Err(Fault::invalid_value("consumerAcceptLists", &consumer_text(odd), why))
        }
        None => Ok(()),
    }
}

fn no_duplicates<'a>(field: &str, consumers: impl Iterator<Item = &'a Consumer>) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for consumer in consumers {
        // A project by id and the same by number are one consumer.
        let same = match consumer {
            Consumer::Project { id, .. } => id.to_string(),
            Consumer::Network(link) => link.to_string(),
        };
        if !seen.insert(same) {
            return Err(Fault::invalid_value(field, &consumer_text(consumer), "Duplicate consumer."));
        }
    }
    Ok(())
}

fn consumer_text(consumer: &Consumer) -> String {
    match consumer {
        Consumer::Project { written, .. } => written.clone(),
        Consumer::Network(link) => link.url(),
    }
}

/// The target is the front of a load balancer here; returns its network, which a change must keep.
fn admit_target(
    record: &Record<ServiceAttachment>,
    old: Option<&Record<ServiceAttachment>>,
    world: &World,
) -> Result<Link, Fault> {
    let target = &record.spec.target;
    place::same_project("targetService", &record.link, target)?;
    place::same_region("targetService", "target service", &record.link, "service attachment", target)?;
    let rule = world.get::<ForwardingRule>(target).ok_or_else(|| Fault::not_found(target))?;
    if matches!(rule.spec.target, Target::ServiceAttachment { .. }) {
        let why = "The target service must be a forwarding rule of an internal load balancer.";
        return Err(Fault::invalid_value("targetService", &target.url(), why));
    }
    let before = old.and_then(|old| world.get::<ForwardingRule>(&old.spec.target));
    if before.is_some_and(|before| before.spec.network != rule.spec.network) {
        let why = "The target service must stay in the network of the service attachment.";
        return Err(Fault::invalid_value("targetService", &target.url(), why));
    }
    if before.is_some_and(|before| before.spec.global_access != rule.spec.global_access) {
        let why = "The target service must keep the global access setting of the one before.";
        return Err(Fault::invalid_value("targetService", &target.url(), why));
    }
    Ok(rule.spec.network.clone())
}

fn admit_nat_subnet(
    field: &str,
    record: &Record<ServiceAttachment>,
    link: &Link,
    network: &Link,
    world: &World,
) -> Result<(), Fault> {
    place::same_project(field, &record.link, link)?;
    place::same_region(field, "NAT subnetwork", &record.link, "service attachment", link)?;
    let subnet = world.get::<vpc::Subnetwork>(link).ok_or_else(|| place::missing(field, "subnetwork", link))?;
    if subnet.spec.purpose != Purpose::PrivateServiceConnect {
        let why = "The NAT subnetwork must have purpose=PRIVATE_SERVICE_CONNECT.";
        return Err(Fault::invalid_value(field, &link.url(), why));
    }
    if subnet.spec.network != *network {
        let why = "The NAT subnetwork must be in the same network as the target service.";
        return Err(Fault::invalid_value(field, &link.url(), why));
    }
    let mut users = world.referrers(link).filter(|user| user.collection == ServiceAttachment::COLLECTION);
    match users.find(|user| **user != record.link) {
        Some(other) => Err(Fault::in_use(vpc::Subnetwork::WORD, link, other)),
        None => Ok(()),
    }
}

/// A NAT subnet out of which an address is in use may not be taken off the list.
fn keep_used_subnets(
    record: &Record<ServiceAttachment>,
    old: &Record<ServiceAttachment>,
    world: &World,
) -> Result<(), Fault> {
    let removed = old.spec.nat_subnets.iter().filter(|s| !record.spec.nat_subnets.contains(s));
    for subnet in removed.filter_map(|link| world.get::<vpc::Subnetwork>(link)) {
        let mut held = connections(record, world).flat_map(|c| &c.connection.nats);
        if held.any(|nat| subnet.spec.range.contains(*nat)) {
            return Err(Fault::in_use(vpc::Subnetwork::WORD, &subnet.link, &record.link));
        }
    }
    Ok(())
}

/// The VPC of the attachment's target.
pub(crate) fn network_of(attachment: &Record<ServiceAttachment>, world: &World) -> Result<NetworkId, Fault> {
    let target = &attachment.spec.target;
    let rule = world.get::<ForwardingRule>(target).ok_or_else(|| Fault::not_found(target))?;
    world.network_id(&rule.spec.network).ok_or_else(|| Fault::not_found(&rule.spec.network))
}

/// The connections of this incarnation of the attachment, oldest first.
pub fn connections<'w>(
    attachment: &Record<ServiceAttachment>,
    world: &'w World,
) -> impl Iterator<Item = &'w PscConnection> + use<'w> {
    world.connections.of_attachment(attachment.id)
}

/// Keeps a released NAT address from its next tenant while replies to the last one may still be on their way.
pub(crate) fn quarantine(network: NetworkId, address: Ipv4Addr, txn: &mut Txn) {
    let until = txn.steady.plus(txn.nat_rest);
    txn.push(Change::Quarantine(network, Quarantined { address, until }));
}

/// One settling of an attachment, and what is new in it.
pub(crate) struct Round<'a> {
    pub attachment: &'a Record<ServiceAttachment>,
    pub reach: Reach,
    pub joining: Option<PscConnection>,
    pub leaving: Option<EndpointId>,
    /// A NAT subnet as it will be after this transaction.
    pub resized: Option<&'a Record<vpc::Subnetwork>>,
}

impl<'a> Round<'a> {
    pub(crate) fn new(attachment: &'a Record<ServiceAttachment>, reach: Reach) -> Round<'a> {
        Round { attachment, reach, joining: None, leaving: None, resized: None }
    }

    /// Whether everybody whom it looked at and who has a place has all NAT addresses that the attachment promises.
    pub(crate) fn settle(self, world: &World, txn: &mut Txn) -> bool {
        if self.concerns_nobody_else(world, txn.steady) {
            return self.settle_one(world, txn);
        }
        let mut before: Vec<PscConnection> = connections(self.attachment, world)
            .filter(|c| Some(c.connection.endpoint) != self.leaving)
            .chain(&self.joining)
            .cloned()
            .collect();
        let Some(network) = before.first().map(|c| c.producer_network) else { return true };
        lift_quarantine(network, world, txn);
        let most = before.len() * self.attachment.spec.nats_each();
        let free = self.free_addresses(network, most, world, txn.steady);
        let asked = before.iter().map(|c| c.connection.clone()).collect();
        let policy = self.policy(world);
        let permits = |c: &Connection| policy.permits(world, &c.rule.project);
        let settled = psc::settle(&self.attachment.spec, &permits, self.reach, asked, free);
        for address in settled.released {
            quarantine(network, address, txn);
        }
        let all_served = settled.connections.iter().all(is_served);
        for (connection, after) in before.iter_mut().zip(settled.connections) {
            let is_new = self.joining.as_ref().is_some_and(|j| j.connection.endpoint == after.endpoint);
            if is_new || connection.connection != after {
                connection.connection = after;
                txn.push(Change::Connection(Box::new(connection.clone())));
            }
        }
        all_served
    }

    /// One comes or goes, nobody waits for a place or an address, and none has just fallen free: then nothing changes for
    /// the others, however many they are, and they need not be looked at.
    fn concerns_nobody_else(&self, world: &World, now: Timestamp) -> bool {
        self.reach == Reach::Waiting
            && self.resized.is_none()
            && (self.joining.is_some() || self.leaving.is_some())
            && !world.connections.any_waits(self.attachment.id)
            && world.quarantine.over(now).next().is_none()
    }

    fn settle_one(self, world: &World, txn: &mut Txn) -> bool {
        let policy = self.policy(world);
        let Some(mut joining) = self.joining else { return true };
        let ranges = self.attachment.spec.nat_subnets.iter().filter_map(|l| world.get::<vpc::Subnetwork>(l));
        let free = ranges.flat_map(|s| free_of(s.spec.range, joining.producer_network, world));
        let free = free.take(self.attachment.spec.nats_each()).collect();
        let taken = |consumer: &Consumer| world.connections.taken(self.attachment.id, consumer);
        let permits = |c: &Connection| policy.permits(world, &c.rule.project);
        joining.connection = psc::join(&self.attachment.spec, &permits, joining.connection, taken, free);
        let all_served = is_served(&joining.connection);
        txn.push(Change::Connection(Box::new(joining)));
        all_served
    }

    fn policy(&self, world: &World) -> Effective {
        Effective::on_consumers_of(world, &self.attachment.link.project)
    }

    /// NAT addresses that nobody holds and that are not in quarantine: the subnets in their order, each from its lowest
    /// address.
    fn free_addresses(&self, network: NetworkId, most: usize, world: &World, now: Timestamp) -> Vec<Ipv4Addr> {
        let used: BTreeSet<&Ipv4Addr> =
            world.connections.of_producer(network).flat_map(|c| &c.connection.nats).collect();
        let quarantined =
            |address: &Ipv4Addr| world.quarantine.get(&(network, *address)).is_some_and(|q| !q.is_over(now));
        let ranges = self.attachment.spec.nat_subnets.iter().filter_map(|link| match self.resized {
            Some(resized) if resized.link == *link => Some(resized.spec.range),
            Some(_) | None => world.get::<vpc::Subnetwork>(link).map(|s| s.spec.range),
        });
        let addresses = ranges.flat_map(|range| range.usable());
        addresses.filter(|a| !used.contains(a) && !quarantined(a)).take(most).collect()
    }
}

fn is_served(connection: &Connection) -> bool {
    connection.status != ConnectionStatus::NeedsAttention
}

/// The addresses of the range that are neither held nor in quarantine, lowest first.
fn free_of(range: Cidr, network: NetworkId, world: &World) -> impl Iterator<Item = Ipv4Addr> {
    let mut next = range.usable().next();
    iter::from_fn(move || {
        let free = lowest_free(range, next?, network, world)?;
        next = u32::from(free).checked_add(1).map(Ipv4Addr::from);
        Some(free)
    })
}

/// The lowest of them from this address on.
fn lowest_free(range: Cidr, from: Ipv4Addr, network: NetworkId, world: &World) -> Option<Ipv4Addr> {
    let mut address = from;
    loop {
        let unheld = world.connections.nats(network).map_or(Some(address), |held| held.free_from(address))?;
        let rested = world.quarantine.free_from(network, unheld)?;
        if !range.is_usable(rested) {
            return None;
        }
        if rested == unheld {
            return Some(rested);
        }
        address = rested;
    }
}

/// Forgets the quarantines of a network that are over.
fn lift_quarantine(network: NetworkId, world: &World, txn: &mut Txn) {
    let all = world.quarantine.range((network, Ipv4Addr::UNSPECIFIED)..=(network, Ipv4Addr::BROADCAST));
    let is_new = |address: Ipv4Addr, txn: &Txn| {
        txn.changes().iter().any(|c| matches!(c, Change::Quarantine(n, q) if *n == network && q.address == address))
    };
    for ((_, address), _) in all.filter(|(_, q)| q.is_over(txn.steady)).collect::<Vec<_>>() {
        if !is_new(*address, txn) {
            txn.push(Change::NoQuarantine(network, *address));
        }
    }
}

/// Hands addresses that left quarantine to the endpoints that wait for one.
pub fn relieve(world: &World, txn: &mut Txn) {
    let waiting: BTreeSet<&Link> = world.connections.with_waiting().map(|c| &c.attachment).collect();
    for attachment in waiting.into_iter().filter_map(|link| world.get::<ServiceAttachment>(link)) {
        Round::new(attachment, Reach::Waiting).settle(world, txn);
    }
}

/// The refusal of a list entry whose project does not exist.
pub fn unknown_consumer(written: &str) -> Fault {
    Fault::new(Code::NotFound, "notFound", format!("The resource 'projects/{written}' was not found"))
}
