//! Private Service Connect connections, and who finds them by what.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Deref,
};

use model::{
    id::{EndpointId, NetworkId, ResourceId},
    name::{Link, ProjectId},
    psc::{ConnectionStatus, Consumer},
    time::Timestamp,
};

use super::{PscConnection, Runs};

/// Read it as a map; write it by [`Connections::put`] and [`Connections::take`], which keep the indexes.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    all: BTreeMap<EndpointId, PscConnection>,
    by_attachment: BTreeMap<ResourceId, Crowd>,
    by_producer: BTreeMap<NetworkId, Nats>,
}

/// Of one attachment.
#[derive(Clone, Debug, Default)]
struct Crowd {
    oldest_first: BTreeSet<(Timestamp, EndpointId)>,
    /// How many have a place, by the project and by the network of the consumer.
    projects: BTreeMap<ProjectId, u32>,
    networks: BTreeMap<Link, u32>,
    waiting: u32,
}

/// Into one VPC.
#[derive(Clone, Debug, Default)]
struct Nats {
    endpoints: BTreeSet<EndpointId>,
    by_address: BTreeMap<Ipv4Addr, EndpointId>,
    held: Runs,
}

impl Deref for Connections {
    type Target = BTreeMap<EndpointId, PscConnection>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Connections {
    /// The connections of one incarnation of an attachment, oldest first.
    pub fn of_attachment(&self, id: ResourceId) -> impl Iterator<Item = &PscConnection> {
        let all = self.by_attachment.get(&id).into_iter().flat_map(|crowd| &crowd.oldest_first);
        all.filter_map(|(_, endpoint)| self.all.get(endpoint))
    }

    /// Whether a connection of the attachment waits for a place or for a NAT address.
    pub fn any_waits(&self, attachment: ResourceId) -> bool {
        self.by_attachment.get(&attachment).is_some_and(|crowd| crowd.waiting > 0)
    }

    /// Attachments of which a connection waits for a place or for a NAT address.
    pub fn with_waiting(&self) -> impl Iterator<Item = &PscConnection> {
        let crowds = self.by_attachment.values().filter(|crowd| crowd.waiting > 0);
        crowds.filter_map(|crowd| self.all.get(&crowd.oldest_first.first()?.1))
    }

    /// How many places at the attachment the consumer has taken.
    pub fn taken(&self, attachment: ResourceId, consumer: &Consumer) -> u32 {
        let Some(crowd) = self.by_attachment.get(&attachment) else { return 0 };
        let taken = match consumer {
            Consumer::Project { id, .. } => crowd.projects.get(id),
            Consumer::Network(link) => crowd.networks.get(link),
        };
        taken.copied().unwrap_or(0)
    }

    /// The connections into one VPC.
    pub fn of_producer(&self, network: NetworkId) -> impl Iterator<Item = &PscConnection> {
        let all = self.by_producer.get(&network).into_iter().flat_map(|nats| &nats.endpoints);
        all.filter_map(|endpoint| self.all.get(endpoint))
    }

    /// The connection that has this NAT address in one VPC.
    pub fn behind(&self, network: NetworkId, nat: Ipv4Addr) -> Option<&PscConnection> {
        self.all.get(self.by_producer.get(&network)?.by_address.get(&nat)?)
    }

    /// The NAT addresses that are held in one VPC.
    pub fn nats(&self, network: NetworkId) -> Option<&Runs> {
        self.by_producer.get(&network).map(|nats| &nats.held)
    }

    pub(crate) fn put(&mut self, c: PscConnection) {
        let endpoint = c.connection.endpoint;
        self.take(endpoint);
        let nats = self.by_producer.entry(c.producer_network).or_default();
        nats.endpoints.insert(endpoint);
        for nat in &c.connection.nats {
            nats.held.insert(*nat);
            nats.by_address.insert(*nat, endpoint);
        }
        let crowd = self.by_attachment.entry(c.attachment_id).or_default();
        crowd.oldest_first.insert((c.connection.created, endpoint));
        crowd.waiting += u32::from(waits(&c));
        if c.connection.status.has_place() {
            *crowd.projects.entry(c.connection.rule.project.clone()).or_default() += 1;
            *crowd.networks.entry(c.connection.consumer_network.clone()).or_default() += 1;
        }
        self.all.insert(endpoint, c);
    }

    pub(crate) fn take(&mut self, endpoint: EndpointId) {
        let Some(c) = self.all.remove(&endpoint) else { return };
        if let Some(nats) = self.by_producer.get_mut(&c.producer_network) {
            nats.endpoints.remove(&endpoint);
            for nat in &c.connection.nats {
                nats.held.remove(*nat);
                nats.by_address.remove(nat);
            }
            if nats.endpoints.is_empty() {
                self.by_producer.remove(&c.producer_network);
            }
        }
        let Some(crowd) = self.by_attachment.get_mut(&c.attachment_id) else { return };
        crowd.oldest_first.remove(&(c.connection.created, endpoint));
        crowd.waiting -= u32::from(waits(&c));
        if c.connection.status.has_place() {
            one_less(&mut crowd.projects, &c.connection.rule.project);
            one_less(&mut crowd.networks, &c.connection.consumer_network);
        }
        if crowd.oldest_first.is_empty() {
            self.by_attachment.remove(&c.attachment_id);
        }
    }
}

fn waits(c: &PscConnection) -> bool {
    matches!(c.connection.status, ConnectionStatus::Pending | ConnectionStatus::NeedsAttention)
}

fn one_less<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
