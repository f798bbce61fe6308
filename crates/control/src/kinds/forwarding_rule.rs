//! Forwarding rules: the front of a load balancer, or a consumer's Private Service Connect endpoint ([`super::endpoint`]).

use model::{
    directory::NAMESPACE_DEFAULT,
    fault::Fault,
    lb::{self, ForwardingRule, Target},
    name::{Link, is_resource_name},
    psc::ServiceAttachment,
};

use crate::{
    directory,
    kind::{Kind, Need, Record, Reference},
    kinds::{endpoint, place, subnetwork},
    ops::Txn,
    world::World,
};

impl Kind for ForwardingRule {
    const COLLECTION: &'static str = "forwardingRules";
    const WIRE_KIND: &'static str = "forwardingRule";
    const WORD: &'static str = "forwarding_rule";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        let mut needs = vec![Need::on("compute.forwardingRules.create", me)];
        match &self.target {
            Target::HttpProxy { proxy, .. } => needs.push(Need::on("compute.regionTargetHttpProxies.use", proxy)),
            Target::ServiceAttachment { .. } => needs.push(Need::on("compute.forwardingRules.pscCreate", me)),
        }
        // Source: only who names a namespace needs this.
        if self.registration.as_ref().is_some_and(|r| r.namespace != NAMESPACE_DEFAULT) {
            needs.push(Need::on("servicedirectory.namespaces.create", format!("projects/{}", me.project)));
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
        let namespace = self.registration.as_ref().map(|r| &r.namespace);
        if let Some(namespace) = namespace.filter(|namespace| !is_resource_name(namespace)) {
            let why = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'";
            return Err(Fault::invalid_value("serviceDirectoryRegistrations[0].namespace", namespace, why));
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
            Target::ServiceAttachment { attachment, .. } => {
                let ends = (&record.spec.network, attachment);
                endpoint::connect(record, ends, ("target", "forwarding rule"), world, txn)?;
                directory::psc::register(record, attachment, world, txn);
                Ok(())
            }
        }
    }

    fn retire(record: &Record<Self>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        endpoint::disconnect(record, world, txn);
        directory::psc::unregister(record, world, txn);
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
    if let (Some(new), Some(old)) = (&new.registration, &old.registration) {
        if new.namespace != old.namespace {
            return Err(place::immutable("serviceDirectoryRegistrations[0].namespace", &new.namespace));
        }
        if new.no_zone != old.no_zone {
            return Err(place::immutable("noAutomateDnsZone", &new.no_zone.to_string()));
        }
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
    let at = (&spec.network, &spec.subnetwork);
    let (address, reservation) = endpoint::admit_address(&record.link, at, spec.address, world)?;
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
