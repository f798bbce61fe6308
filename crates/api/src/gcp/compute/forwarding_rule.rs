//! `forwardingRules` on the wire: the front of an internal load balancer, and the PSC endpoint, in one resource.

use std::net::Ipv4Addr;

use control::{
    kind::{Need, Record},
    kinds::holding::UNDECIDED,
    world::World,
};
use model::{
    directory::{NAMESPACE_DEFAULT, Registration},
    fault::Fault,
    id::EndpointId,
    lb::{ForwardingRule, Target},
    name::{Link, Scope, is_resource_name},
    vpc,
};

use serde_json::json;

use super::{
    firewall::parse_ports,
    verbs::Visit,
    wire::{Around, Fields, Json, Level, Lock, Wire, parse_link, put_some, url_with_id},
};
use crate::{call::Answer, error, schema};

impl Wire for ForwardingRule {
    const SCHEMA: schema::Kind = schema::Kind::ForwardingRule;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.forwardingRules.get";
    const LIST: &'static str = "compute.forwardingRules.list";
    const SET_LABELS: Option<&'static str> = Some("compute.forwardingRules.setLabels");
    const LOCK: Lock = Lock::Checked;
    const PATCH: Option<&'static str> = Some("patch");

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let target = read_target(fields)?;
        let (address, reserved) = read_address(fields)?;
        let (network, subnetwork) = read_place(fields, reserved.as_ref())?;
        Ok(ForwardingRule {
            address,
            reserved,
            network,
            subnetwork,
            global_access: read_global_access(fields, &target)?,
            registration: read_registration(fields, &target)?,
            target,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        let spec = &record.spec;
        put_some(out, "description", spec.description.clone());
        out.insert("IPAddress".into(), spec.address.to_string().into());
        out.insert("network".into(), spec.network.url().into());
        out.insert("networkTier".into(), "PREMIUM".into());
        match &spec.target {
            Target::HttpProxy { proxy, ports } => {
                out.entry("description").or_insert_with(|| "".into());
                out.insert("IPProtocol".into(), "TCP".into());
                out.insert("portRange".into(), format!("{}-{}", ports.first, ports.last).into());
                out.insert("loadBalancingScheme".into(), "INTERNAL_MANAGED".into());
                out.insert("subnetwork".into(), spec.subnetwork.url().into());
                out.insert("target".into(), proxy.url().into());
            }
            Target::ServiceAttachment { written, .. } => {
                out.insert("target".into(), written.clone().into());
                if let Some(registration) = &spec.registration {
                    let namespace = json!([{"namespace": registration.namespace}]);
                    out.insert("serviceDirectoryRegistrations".into(), namespace);
                    if registration.no_zone {
                        out.insert("noAutomateDnsZone".into(), true.into());
                    }
                }
                let connection = world.connections.get(&EndpointId(record.id.0)).map(|c| &c.connection);
                put_some(out, "pscConnectionId", connection.map(|c| c.connection_id.to_string()));
                put_some(out, "pscConnectionStatus", connection.map(|c| c.status.as_str()));
            }
        }
        if spec.global_access {
            out.insert(global_access_field(&spec.target).into(), true.into());
        }
        out.insert("selfLinkWithId".into(), url_with_id(record).into());
    }

    /// The subnet of an endpoint and the reservation behind an address are not shown. One that was never registered is not
    /// because it is changed.
    fn follow(&mut self, before: &Self) -> Result<(), Fault> {
        if before.registration.is_none() {
            self.registration = None;
        }
        self.subnetwork = before.subnetwork.clone();
        self.reserved = before.reserved.clone();
        if self.target != before.target {
            let value = match &self.target {
                Target::HttpProxy { proxy, .. } => proxy.url(),
                Target::ServiceAttachment { written, .. } => written.clone(),
            };
            return Err(Fault::invalid_value("target", &value, "The target can only be changed by setTarget."));
        }
        Ok(())
    }

    fn verb(visit: &Visit<'_>, link: &Link, verb: &str) -> Answer {
        match verb {
            "setTarget" => set_target(visit, link),
            _ => Err(error::unknown_method()),
        }
    }

    fn insert_verb(&self) -> &'static str {
        match self.target {
            Target::HttpProxy { .. } => Self::INSERT,
            Target::ServiceAttachment { .. } => "createRegionPscForwardingRule",
        }
    }

    fn delete_verb(&self) -> &'static str {
        match self.target {
            Target::HttpProxy { .. } => Self::DELETE,
            Target::ServiceAttachment { .. } => "deleteRegionPscForwardingRule",
        }
    }
}

/// The target decides which of the two a rule is; each forbids the fields of the other.
fn read_target(fields: &Fields<'_>) -> Result<Target, Fault> {
    let written = fields.text("target")?.ok_or_else(|| fields.required("target"))?;
    let target = fields.required_link("target")?;
    let scheme = fields.text("loadBalancingScheme")?;
    if target.collection == "serviceAttachments" {
        if let Some(scheme) = scheme {
            let why = "Load balancing scheme must be empty for a Private Service Connect forwarding rule.";
            return Err(fields.fault("loadBalancingScheme", scheme, why));
        }
        for absent in ["ports", "portRange"] {
            if fields.has(absent) {
                let why = "Cannot be specified for a Private Service Connect forwarding rule.";
                return Err(fields.fault(absent, "", why));
            }
        }
        return Ok(Target::ServiceAttachment { attachment: target, written: written.to_owned() });
    }
    if scheme != Some("INTERNAL_MANAGED") {
        return Err(Fault::not_enforced("resource.loadBalancingScheme"));
    }
    if fields.has("ports") {
        let why = "Cannot be specified for a forwarding rule with load balancing scheme INTERNAL_MANAGED.";
        return Err(fields.fault("ports", "", why));
    }
    let text = fields.text("portRange")?.ok_or_else(|| fields.required("portRange"))?;
    let ports = parse_ports(text).filter(|range| range.first >= 1 && range.first <= range.last);
    let ports = ports.ok_or_else(|| fields.fault("portRange", text, "Must be a port or a range of ports."))?;
    Ok(Target::HttpProxy { proxy: target, ports })
}

fn global_access_field(target: &Target) -> &'static str {
    match target {
        Target::HttpProxy { .. } => "allowGlobalAccess",
        Target::ServiceAttachment { .. } => "allowPscGlobalAccess",
    }
}

/// Each of the two rules has a field of its own for it and none of the other's.
fn read_global_access(fields: &Fields<'_>, target: &Target) -> Result<bool, Fault> {
    let own = global_access_field(target);
    for other in ["allowGlobalAccess", "allowPscGlobalAccess"] {
        if other != own && fields.flag(other)? == Some(true) {
            return Err(fields.fault(other, "true", "Cannot be specified for this kind of forwarding rule."));
        }
    }
    Ok(fields.flag(own)?.unwrap_or(false))
}

/// An endpoint is registered with Service Directory, in the namespace it names or the one for all.
fn read_registration(fields: &Fields<'_>, target: &Target) -> Result<Option<Registration>, Fault> {
    const FIELD: &str = "serviceDirectoryRegistrations";
    let (no_zone, all) = (fields.flag("noAutomateDnsZone")?.unwrap_or(false), fields.objects(FIELD)?);
    if matches!(target, Target::HttpProxy { .. }) {
        if no_zone {
            let why = "Can only be specified for a Private Service Connect forwarding rule.";
            return Err(fields.fault("noAutomateDnsZone", "true", why));
        }
        return if all.is_empty() { Ok(None) } else { Err(Fault::not_enforced(FIELD)) };
    }
    let namespace = match all.as_slice() {
        [] => None,
        [one] => one.text("namespace")?,
        [_, _, ..] => return Err(fields.fault(FIELD, "", "At most 1 registration is allowed.")),
    };
    Ok(Some(Registration { namespace: namespace.unwrap_or(NAMESPACE_DEFAULT).to_owned(), no_zone }))
}

/// `IPAddress`: a number, a link to a reserved address in any spelling, or its bare name.
fn read_address(fields: &Fields<'_>) -> Result<(Ipv4Addr, Option<Link>), Fault> {
    const FIELD: &str = "IPAddress";
    let Some(text) = fields.text(FIELD)? else { return Ok((UNDECIDED, None)) };
    if text.parse::<Ipv4Addr>().is_ok() {
        return Ok((fields.address(FIELD)?.unwrap_or(UNDECIDED), None));
    }
    let me = fields.around.link;
    let link = if is_resource_name(text) {
        Some(Link::new(&me.project, me.scope.clone(), "addresses", text))
    } else {
        parse_link(text, &me.project, fields.world()).filter(|link| link.collection == "addresses")
    };
    let link = link.ok_or_else(|| fields.fault(FIELD, text, "Must be a valid IP address or an address URL."))?;
    if link.scope != me.scope {
        return Err(fields.fault(FIELD, text, "The address must be in the same region as the forwarding rule."));
    }
    let reserved = fields.own::<vpc::Address>(&link).ok_or_else(|| Fault::not_found(&link))?;
    Ok((reserved.spec.address, Some(link)))
}

/// Network and subnet; each may follow from the other or from the reserved address.
pub(super) fn read_place(fields: &Fields<'_>, reserved: Option<&Link>) -> Result<(Link, Link), Fault> {
    let of_address = reserved.and_then(|link| fields.own::<vpc::Address>(link)).map(|a| a.spec.subnetwork.clone());
    let network = fields.link("network")?;
    let subnetwork = match (fields.link("subnetwork")?, of_address) {
        (Some(given), Some(of_address)) if given != of_address => {
            return Err(fields.fault("subnetwork", &given.url(), "The address belongs to another subnetwork."));
        }
        (Some(given), _) => Some(given),
        (None, Some(of_address)) => Some(of_address),
        (None, None) => unsaid_subnet(fields, network.as_ref())?,
    };
    let Some(subnetwork) = subnetwork else {
        let why = "Subnetwork must be specified for a network in custom subnet mode.";
        return Err(fields.fault("subnetwork", "", why));
    };
    let network = match network {
        Some(network) => network,
        None => {
            let subnet = fields.own::<vpc::Subnetwork>(&subnetwork);
            subnet.map(|s| s.spec.network.clone()).ok_or_else(|| {
                fields.fault("subnetwork", &subnetwork.url(), "The referenced subnetwork resource cannot be found.")
            })?
        }
    };
    Ok((network, subnetwork))
}

/// The subnet of a rule that names none: that of its literal address, or the region's own in an auto-mode network.
fn unsaid_subnet(fields: &Fields<'_>, network: Option<&Link>) -> Result<Option<Link>, Fault> {
    let me = fields.around.link;
    let default = Link::new(&me.project, Scope::Global, "networks", "default");
    let network = network.unwrap_or(&default);
    let world = fields.world();
    let mut subnets = world
        .referrers(network)
        .filter_map(|link| fields.own::<vpc::Subnetwork>(link))
        .filter(|s| s.link.scope == me.scope && s.spec.purpose == vpc::Purpose::Private);
    let is_auto = fields.own::<vpc::Network>(network).is_some_and(|n| n.spec.auto_create_subnetworks);
    let literal = fields.text("IPAddress")?.and_then(|text| text.parse::<Ipv4Addr>().ok());
    let found = match literal {
        Some(address) => subnets.find(|s| s.spec.range.contains(address)),
        None if is_auto => subnets.find(|s| s.link.name == network.name),
        None => None,
    };
    Ok(found.map(|s| s.link.clone()))
}

/// Points the front of a load balancer at another proxy.
fn set_target(visit: &Visit<'_>, link: &Link) -> Answer {
    let body = visit.body("TargetReference")?;
    visit.change_by_needs::<ForwardingRule>(
        link,
        "setTarget",
        |rule| {
            let own = Need::on("compute.forwardingRules.setTarget", link);
            match &rule.target {
                Target::HttpProxy { proxy, .. } => vec![own, Need::on("compute.regionTargetHttpProxies.use", proxy)],
                Target::ServiceAttachment { .. } => vec![own],
            }
        },
        |world, record| {
            let target = Fields::new(&body, &Around { world, link }).required_link("target")?;
            match &mut record.spec.target {
                Target::HttpProxy { proxy, .. } => *proxy = target,
                Target::ServiceAttachment { .. } => {
                    return Err(Fault::invalid_value("target", &target.url(), "Field is immutable."));
                }
            }
            Ok(())
        },
    )
}
