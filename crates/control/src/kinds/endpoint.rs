//! A consumer's end of Private Service Connect, be it a forwarding rule or a network endpoint group: an address of a
//! subnet, and a connection to a service attachment.
//!
//! An endpoint does not hold its attachment: the attachment may be deleted, and the endpoint is then CLOSED for good. So
//! the attachment is no [`crate::kind::Reference`]; it is looked up once, when the endpoint is made.

use std::net::Ipv4Addr;

use model::{
    fault::Fault,
    id::{EndpointId, ResourceId},
    lb,
    name::Link,
    planned::host::Reach,
    psc::{self, ConnectionStatus, ServiceAttachment},
    vpc::PortRange,
};

use crate::{
    kind::{Kind, Record},
    kinds::{
        holding::{self, Claim},
        place,
        service_attachment::{self, Round},
        subnetwork,
    },
    ops::{Change, Txn},
    plan,
    psc::Reach as Decides,
    random,
    world::{PscConnection, World},
};

/// What is the same of both kinds.
#[derive(Clone, Copy)]
pub struct Endpoint<'w> {
    pub id: EndpointId,
    pub link: &'w Link,
    pub network: &'w Link,
    pub subnetwork: &'w Link,
    pub address: Ipv4Addr,
    pub attachment: &'w Link,
    dials: Dials<'w>,
}

/// Who reaches the address.
#[derive(Clone, Copy)]
enum Dials<'w> {
    Vms(&'w Record<lb::ForwardingRule>),
    /// The load balancer, at this port if one is named.
    Balancer(Option<u16>),
}

impl<'w> Endpoint<'w> {
    /// None for the front of a load balancer.
    pub fn of_rule(rule: &'w Record<lb::ForwardingRule>) -> Option<Endpoint<'w>> {
        let lb::Target::ServiceAttachment { attachment, .. } = &rule.spec.target else { return None };
        let lb::ForwardingRule { network, subnetwork, address, .. } = &rule.spec;
        let (id, link, dials) = (EndpointId(rule.id.0), &rule.link, Dials::Vms(rule));
        Some(Endpoint { id, link, network, subnetwork, address: *address, attachment, dials })
    }

    /// None for a serverless group.
    pub fn of_group(group: &'w Record<lb::NetworkEndpointGroup>) -> Option<Endpoint<'w>> {
        let lb::PscBackend { attachment, network, subnetwork, address, port, .. } = group.spec.psc()?;
        let (id, link, dials) = (EndpointId(group.id.0), &group.link, Dials::Balancer(*port));
        Some(Endpoint { id, link, network, subnetwork, address: *address, attachment, dials })
    }

    pub fn by_id(world: &'w World, id: EndpointId) -> Option<Endpoint<'w>> {
        let rule = world.by_id::<lb::ForwardingRule>(id.0).and_then(Endpoint::of_rule);
        rule.or_else(|| world.by_id::<lb::NetworkEndpointGroup>(id.0).and_then(Endpoint::of_group))
    }

    /// The one that has this address of a network.
    pub fn at(world: &'w World, network: &Link, address: Ipv4Addr) -> Option<Endpoint<'w>> {
        let rule = world.at::<lb::ForwardingRule>(network, address).and_then(Endpoint::of_rule);
        rule.or_else(|| world.at::<lb::NetworkEndpointGroup>(network, address).and_then(Endpoint::of_group))
    }

    /// All of a network.
    pub fn all(world: &'w World, network: &'w Link) -> impl Iterator<Item = Endpoint<'w>> {
        let rules = world.users::<lb::ForwardingRule>(network).filter_map(Endpoint::of_rule);
        rules.chain(world.users::<lb::NetworkEndpointGroup>(network).filter_map(Endpoint::of_group))
    }

    /// From where the address is reached, by the ports of the producer's service where they are known. None where nothing
    /// can reach it: a balancer has no address to dial from without an active proxy-only subnet.
    pub fn reach(&self, ports: Option<PortRange>, world: &World) -> Option<Reach> {
        match self.dials {
            Dials::Vms(rule) => plan::reach(rule),
            Dials::Balancer(port) => {
                let proxies = subnetwork::active_proxy_subnet(self.network, self.link, world)?;
                let port = port.or_else(|| ports.map(port_of)).unwrap_or(1);
                Some(Reach::Balancer { from: proxies.spec.range.usable().next()?, port })
            }
        }
    }
}

/// The port that a group dials which names none. Source: network endpoint groups, `pscData.producerPort`.
fn port_of(ports: PortRange) -> u16 {
    if (ports.first..=ports.last).contains(&443) { 443 } else { ports.first }
}

/// The address of a new endpoint or front, and the reservation that it falls under.
pub(super) fn admit_address(
    me: &Link,
    (network, subnetwork): (&Link, &Link),
    wanted: Ipv4Addr,
    world: &World,
) -> Result<(Ipv4Addr, Option<Link>), Fault> {
    place::same_project("network", me, network)?;
    let subnet = place::ordinary_subnet("subnetwork", me, subnetwork, network, world)?;
    holding::claim(Claim::Use, "IPAddress", wanted, me, subnet, world)
}

/// A new endpoint joins its attachment, which decides on it at once. `field` is the one that names the attachment, `mine`
/// the word for what the endpoint is.
pub(super) fn connect<K: Kind>(
    record: &Record<K>,
    (network, attachment): (&Link, &Link),
    (field, mine): (&str, &str),
    world: &World,
    txn: &mut Txn,
) -> Result<(), Fault> {
    place::same_region(field, "service attachment", &record.link, mine, attachment)?;
    let target = world.get::<ServiceAttachment>(attachment).ok_or_else(|| Fault::not_found(attachment))?;
    let consumer_network_id = world.network_id(network).ok_or_else(|| place::missing("network", "network", network))?;
    let producer_network = service_attachment::network_of(target, world)?;
    // Source: PSC endpoints, "Limitations".
    if producer_network == consumer_network_id {
        let why = format!("The service attachment must not be in the same VPC network as the {mine}.");
        return Err(Fault::invalid_value(field, &attachment.url(), &why));
    }
    let joining = PscConnection {
        attachment: attachment.clone(),
        attachment_id: target.id,
        producer_network,
        connection: psc::Connection {
            endpoint: EndpointId(record.id.0),
            rule: record.link.clone(),
            consumer_network: network.clone(),
            consumer_network_id,
            connection_id: ResourceId(random::resource_id()),
            status: ConnectionStatus::Pending,
            nats: Vec::new(),
            created: record.created,
        },
    };
    Round { joining: Some(joining), ..Round::new(target, Decides::Waiting) }.settle(world, txn);
    Ok(())
}

/// An endpoint goes, if it is one: its place and, after quarantine, its NAT address fall to others.
pub(super) fn disconnect<K: Kind>(record: &Record<K>, world: &World, txn: &mut Txn) {
    let Some(gone) = world.connections.get(&EndpointId(record.id.0)) else { return };
    txn.push(Change::NoConnection(gone.connection.endpoint));
    for nat in &gone.connection.nats {
        service_attachment::quarantine(gone.producer_network, *nat, txn);
    }
    let attachment = world.get::<ServiceAttachment>(&gone.attachment).filter(|a| a.id == gone.attachment_id);
    if let Some(attachment) = attachment {
        let leaving = Some(gone.connection.endpoint);
        Round { leaving, ..Round::new(attachment, Decides::Waiting) }.settle(world, txn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_dials_https_where_the_producer_has_it_and_its_first_port_otherwise() {
        for (first, last, port) in [(80, 80, 80), (443, 443, 443), (400, 500, 443), (8_080, 8_090, 8_080)] {
            assert_eq!(port_of(PortRange { first, last }), port);
        }
    }
}
