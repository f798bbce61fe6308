//! Forwarding rules: the front of a load balancer, or a consumer's Private Service Connect endpoint.
//!
//! An endpoint does not hold its attachment: the attachment may be deleted, and the endpoint is then CLOSED for good.
//! So the attachment is no [`Reference`]; it is looked up once, when the endpoint is made.

use model::{
    fault::Fault,
    id::{EndpointId, ResourceId},
    lb::{self, ForwardingRule, Target},
    name::Link,
    psc::{self, ConnectionStatus, ServiceAttachment},
};

use crate::{
    kind::{Kind, Need, Object, Record, Reference},
    kinds::{
        holding::{self, Claim},
        place,
        service_attachment::{self, Round},
        subnetwork,
    },
    ops::{Change, Txn},
    psc::Reach,
    random,
    world::{PscConnection, World},
};

impl Kind for ForwardingRule {
    const COLLECTION: &'static str = "forwardingRules";
    const WIRE_KIND: &'static str = "forwardingRule";
    const WORD: &'static str = "forwarding_rule";

    fn wrap(record: Record<Self>) -> Object {
        Object::ForwardingRule(record)
    }

    fn peek(object: &Object) -> Option<&Record<Self>> {
        if let Object::ForwardingRule(record) = object { Some(record) } else { None }
    }

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        let mut needs = vec![Need::on("compute.forwardingRules.create", me)];
        match &self.target {
            Target::HttpProxy { proxy, .. } => needs.push(Need::on("compute.regionTargetHttpProxies.use", proxy)),
            Target::ServiceAttachment { .. } => needs.push(Need::on("compute.forwardingRules.pscCreate", me)),
        }
        needs.push(Need::on("compute.networks.use", &self.network));
        needs.push(Need::on("compute.subnetworks.use", &self.subnetwork));
        needs.extend(self.reserved.iter().map(|address| Need::on("compute.addresses.useInternal", address)));
        needs
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        let own = Need::on("compute.forwardingRules.update", me);
        match &self.target {
            Target::HttpProxy { proxy, .. } => vec![own, Need::on("compute.regionTargetHttpProxies.use", proxy)],
            Target::ServiceAttachment { .. } => vec![own, Need::on("compute.forwardingRules.pscUpdate", me)],
        }
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        let own = Need::on("compute.forwardingRules.delete", me);
        match &self.target {
            Target::HttpProxy { .. } => vec![own],
            Target::ServiceAttachment { .. } => vec![own, Need::on("compute.forwardingRules.pscDelete", me)],
        }
    }

    fn references(&self) -> Vec<Reference> {
        let mut all = vec![
            Reference { field: "network", to: self.network.clone() },
            Reference { field: "subnetwork", to: self.subnetwork.clone() },
        ];
        all.extend(self.reserved.clone().map(|to| Reference { field: "IPAddress", to }));
        if let Target::HttpProxy { proxy, .. } = &self.target {
            all.push(Reference { field: "target", to: proxy.clone() });
        }
        all
    }

    fn check(&self, old: Option<&Self>) -> Result<(), Fault> {
        match &self.target {
            Target::HttpProxy { proxy, .. } => {
                place::of_collection("target", lb::TargetHttpProxy::COLLECTION, proxy)?;
            }
            Target::ServiceAttachment { attachment, .. } => {
                place::of_collection("target", ServiceAttachment::COLLECTION, attachment)?;
            }
        }
        old.map_or(Ok(()), |old| check_change(self, old))
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        if let Target::HttpProxy { proxy, .. } = &record.spec.target {
            place::same_project("target", &record.link, proxy)?;
            place::same_region("target", "target", &record.link, "forwarding rule", proxy)?;
        }
        admit_global_access(record, world)?;
        if old.is_some() {
            return Ok(());
        }
        admit_address(record, world)?;
        match &record.spec.target {
            Target::HttpProxy { proxy, .. } => admit_front(record, proxy, world),
            Target::ServiceAttachment { attachment, .. } => connect(record, attachment, world, txn),
        }
    }

    fn retire(record: &Record<Self>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        if let Some(connection) = world.connections.get(&EndpointId(record.id.0)) {
            disconnect(connection, world, txn);
        }
        Ok(())
    }
}

fn check_change(new: &ForwardingRule, old: &ForwardingRule) -> Result<(), Fault> {
    if new.network != old.network {
        return Err(place::immutable("network", &new.network.url()));
    }
    if new.subnetwork != old.subnetwork {
        return Err(place::immutable("subnetwork", &new.subnetwork.url()));
    }
    if new.address != old.address {
        return Err(place::immutable("IPAddress", &new.address.to_string()));
    }
    match (&new.target, &old.target) {
        // Source: forwardingRules of scheme INTERNAL_MANAGED; only that of an endpoint can be changed.
        (Target::HttpProxy { .. }, Target::HttpProxy { .. }) if new.global_access != old.global_access => {
            Err(place::immutable("allowGlobalAccess", &new.global_access.to_string()))
        }
        (Target::HttpProxy { ports: new, .. }, Target::HttpProxy { ports: old, .. }) if new == old => Ok(()),
        (Target::HttpProxy { ports, .. }, Target::HttpProxy { .. }) => {
            Err(place::immutable("portRange", &format!("{}-{}", ports.first, ports.last)))
        }
        (Target::ServiceAttachment { attachment: new, written }, Target::ServiceAttachment { attachment: old, .. }) => {
            if new == old {
                Ok(())
            } else {
                Err(place::immutable("target", written))
            }
        }
        (Target::HttpProxy { proxy, .. }, Target::ServiceAttachment { .. }) => {
            Err(place::immutable("target", &proxy.url()))
        }
        (Target::ServiceAttachment { written, .. }, Target::HttpProxy { .. }) => {
            Err(place::immutable("target", written))
        }
    }
}

/// An endpoint can be reached from no more regions than the front that it leads to. Source: PSC, "Global access".
fn admit_global_access(record: &Record<ForwardingRule>, world: &World) -> Result<(), Fault> {
    let Target::ServiceAttachment { attachment, .. } = &record.spec.target else { return Ok(()) };
    let published = world.get::<ServiceAttachment>(attachment);
    let front = published.and_then(|attachment| world.get::<ForwardingRule>(&attachment.spec.target));
    if record.spec.global_access && front.is_some_and(|front| !front.spec.global_access) {
        return Err(Fault::invalid(
            "Private Service Connect global access is not supported for the given forwarding rule, since its producer \
             service does not support consumer global access.",
        ));
    }
    Ok(())
}

fn admit_address(record: &mut Record<ForwardingRule>, world: &World) -> Result<(), Fault> {
    let spec = &record.spec;
    place::same_project("network", &record.link, &spec.network)?;
    let subnet = place::ordinary_subnet("subnetwork", &record.link, &spec.subnetwork, &spec.network, world)?;
    let (address, reservation) = holding::claim(Claim::Use, "IPAddress", spec.address, &record.link, subnet, world)?;
    record.spec.address = address;
    // A literal address that happens to be reserved uses the reservation, as an address link does.
    record.spec.reserved = reservation;
    Ok(())
}

fn admit_front(record: &Record<ForwardingRule>, proxy: &Link, world: &World) -> Result<(), Fault> {
    if subnetwork::active_proxy_subnet(&record.spec.network, &record.link, world).is_some() {
        return Ok(());
    }
    let why = "An active proxy-only subnetwork is required in the same region and VPC as the forwarding rule.";
    Err(Fault::invalid_value("target", &proxy.url(), why))
}

/// A new endpoint joins its attachment, which decides on it at once.
fn connect(record: &Record<ForwardingRule>, attachment: &Link, world: &World, txn: &mut Txn) -> Result<(), Fault> {
    place::same_region("target", "service attachment", &record.link, "forwarding rule", attachment)?;
    let target = world.get::<ServiceAttachment>(attachment).ok_or_else(|| Fault::not_found(attachment))?;
    let consumer_network_id = world
        .network_id(&record.spec.network)
        .ok_or_else(|| place::missing("network", "network", &record.spec.network))?;
    let producer_network = service_attachment::network_of(target, world)?;
    let joining = PscConnection {
        attachment: attachment.clone(),
        attachment_id: target.id,
        producer_network,
        connection: psc::Connection {
            endpoint: EndpointId(record.id.0),
            rule: record.link.clone(),
            consumer_network: record.spec.network.clone(),
            consumer_network_id,
            connection_id: ResourceId(random::resource_id()),
            status: ConnectionStatus::Pending,
            nat: None,
            created: record.created,
        },
    };
    Round { joining: Some(joining), ..Round::new(target, Reach::Waiting) }.settle(world, txn);
    Ok(())
}

/// An endpoint goes: its place and, after quarantine, its NAT address fall to others.
fn disconnect(gone: &PscConnection, world: &World, txn: &mut Txn) {
    txn.push(Change::NoConnection(gone.connection.endpoint));
    if let Some(nat) = gone.connection.nat {
        service_attachment::quarantine(gone.producer_network, nat, txn);
    }
    let attachment = world.get::<ServiceAttachment>(&gone.attachment).filter(|a| a.id == gone.attachment_id);
    if let Some(attachment) = attachment {
        Round { leaving: Some(gone.connection.endpoint), ..Round::new(attachment, Reach::Waiting) }.settle(world, txn);
    }
}
