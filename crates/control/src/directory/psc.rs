//! What Private Service Connect registers: each endpoint as a service, and the zone that calls it by a name below its
//! producer's domain.
//!
//! Nothing here can fail an endpoint. Source: Private Service Connect, "DNS configuration for services" and "Register
//! endpoints with Service Directory". Whose a domain is: docs/decisions/2026-11-28-domains.md.

use std::collections::BTreeMap;

use model::{
    directory::{self, Endpoint, Namespace, NamespaceName, PSC_ENDPOINT, PSC_PORT, Service, ServiceName, Zone},
    fault::Fault,
    id::{NetworkId, ResourceId},
    lb::ForwardingRule,
    name::Link,
    psc::ServiceAttachment,
};

use crate::{
    kind::Record,
    ops::{Change, Txn},
    policies, projects, random,
    world::World,
};

pub(super) const DNS: &str = "dns.googleapis.com";
/// Source: Cloud DNS, permissions to make a private zone.
const TO_MAKE_A_ZONE: [&str; 2] = ["dns.managedZones.create", "dns.networks.bindPrivateDNSZone"];

/// A project may publish below a domain that is not the cloud's own, while no other project does at, above or below it.
pub(crate) fn admit_domain(attachment: &Record<ServiceAttachment>, world: &World) -> Result<(), Fault> {
    let Some(domain) = &attachment.spec.domain else { return Ok(()) };
    let refused = |why: &str| {
        let why = format!("Please verify ownership of the PTR domain. {why}");
        Err(Fault::invalid_value("domainNames", domain, &why))
    };
    if directory::is_nobodys(domain) {
        return refused("It belongs to the cloud itself.");
    }
    let others = world.all::<ServiceAttachment>().filter(|other| other.link.project != attachment.link.project);
    let mut taken = others.filter_map(|other| other.spec.domain.as_deref());
    if taken.any(|other| directory::overlap(other, domain)) {
        return refused("Another project publishes services at, above or below it.");
    }
    Ok(())
}

fn service_name(rule: &Record<ForwardingRule>) -> Option<ServiceName> {
    let registration = rule.spec.registration.as_ref()?;
    let region = rule.link.scope.region()?;
    let namespace = NamespaceName { project: rule.link.project.clone(), region, name: registration.namespace.clone() };
    Some(ServiceName { namespace, name: rule.link.name.clone() })
}

/// A new endpoint is registered. A service of its name that somebody else made stays theirs.
pub(crate) fn register(rule: &Record<ForwardingRule>, attachment: &Link, world: &World, txn: &mut Txn) {
    let (Some(name), Some(network_id)) = (service_name(rule), world.network_id(&rule.spec.network)) else { return };
    let before = world.directory.namespace(&name.namespace);
    let mut namespace = before.cloned().unwrap_or_else(|| new_namespace(name.namespace.clone(), BTreeMap::new()));
    if namespace.zone.is_none() && wants_zone(rule, world, txn) {
        let domain = world.get::<ServiceAttachment>(attachment).and_then(|attachment| attachment.spec.domain.as_ref());
        namespace.zone = domain.and_then(|domain| zone(domain, (&rule.spec.network, network_id), world, txn));
    }
    if before != Some(&namespace) {
        txn.push(Change::Namespace(Box::new(namespace)));
    }
    if world.directory.service(&name).is_none() {
        let endpoint = Endpoint {
            uid: random::uuid(),
            address: Some(rule.spec.address),
            port: PSC_PORT,
            annotations: BTreeMap::new(),
            network: Some((rule.spec.network.clone(), network_id)),
        };
        let endpoints = BTreeMap::from([(PSC_ENDPOINT.to_owned(), endpoint)]);
        let annotations = BTreeMap::new();
        let service = Service { name, uid: random::uuid(), annotations, rule: Some(rule.id), endpoints };
        txn.push(Change::Registered(Box::new(service)));
    }
}

/// An endpoint goes, and its service with it. The namespace stays, and so does its zone.
pub(crate) fn unregister(rule: &Record<ForwardingRule>, world: &World, txn: &mut Txn) {
    let service = service_name(rule).and_then(|name| world.directory.service(&name));
    if let Some(service) = service.filter(|service| service.rule == Some(rule.id)) {
        txn.push(Change::NoRegistered(service.name.clone()));
    }
}

pub(super) fn new_namespace(name: NamespaceName, labels: BTreeMap<String, String>) -> Namespace {
    Namespace { name, uid: random::uuid(), labels, zone: None }
}

/// Whether the endpoint is to have a name, and whoever makes it may make a zone for it.
fn wants_zone(rule: &Record<ForwardingRule>, world: &World, txn: &Txn) -> bool {
    let (project, id) = (format!("projects/{}", rule.link.project), rule.link.project.as_str());
    let may = |who| TO_MAKE_A_ZONE.into_iter().all(|permission| policies::holds(world, who, permission, &project));
    rule.spec.registration.as_ref().is_some_and(|registration| !registration.no_zone)
        && projects::require_api(world, id, DNS).is_ok()
        && txn.by.as_ref().is_some_and(may)
}

/// None: the network has another zone of the domain.
fn zone(domain: &str, network: (&Link, NetworkId), world: &World, txn: &Txn) -> Option<Zone> {
    let (link, network_id) = network;
    let mut others = world.directory.zones_of(network_id).filter_map(|name| world.directory.zone_in(name, network_id));
    if others.any(|zone| zone.dns_name == domain) {
        return None;
    }
    Some(Zone {
        id: ResourceId(random::resource_id()),
        dns_name: domain.to_owned(),
        network: link.clone(),
        network_id,
        created: txn.now,
    })
}
