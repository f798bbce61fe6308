//! Serverless network endpoint groups. Immutable; the Cloud Run service need not exist.

use model::{fault::Fault, lb, name::Link};

use crate::{
    kind::{Kind, Need, Object, Record, Reference},
    ops::Txn,
    world::World,
};

/// No host and path that a client sends is longer. Source: the load balancer's limit of a request's head.
const URL_MASK_BYTES_MAX: usize = 1_024;

impl Kind for lb::NetworkEndpointGroup {
    const COLLECTION: &'static str = "networkEndpointGroups";
    const WIRE_KIND: &'static str = "networkEndpointGroup";
    const WORD: &'static str = "network_endpoint_group";

    fn wrap(record: Record<Self>) -> Object {
        Object::NetworkEndpointGroup(record)
    }

    fn peek(object: &Object) -> Option<&Record<Self>> {
        if let Object::NetworkEndpointGroup(record) = object { Some(record) } else { None }
    }

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionNetworkEndpointGroups.create", me)]
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionNetworkEndpointGroups.create", me)]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionNetworkEndpointGroups.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        Vec::new()
    }

    fn check(&self, _: Option<&Self>) -> Result<(), Fault> {
        match (&self.service, &self.url_mask) {
            (Some(service), Some(_)) => {
                let why = "Exactly one of service and urlMask may be specified.";
                Err(Fault::invalid_value("cloudRun.service", service, why))
            }
            (None, None) => {
                let why = "Either service or urlMask must be specified.";
                Err(Fault::invalid_value("cloudRun.service", "", why))
            }
            (None, Some(mask)) => match wrong_with(mask) {
                Some(why) => Err(Fault::invalid_value("cloudRun.urlMask", mask, why)),
                None if self.tag.is_some() => Err(Fault::not_enforced("resource.cloudRun.tag")),
                None => Ok(()),
            },
            (Some(_), None) => Ok(()),
        }
    }

    fn admit(_: &mut Record<Self>, _: Option<&Record<Self>>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}

/// Why no URL could ever be read by this mask.
fn wrong_with(mask: &str) -> Option<&'static str> {
    let placeholders = mask.matches("<service>").count() + mask.matches("<tag>").count();
    if mask.len() > URL_MASK_BYTES_MAX {
        return Some("The URL mask is too long.");
    }
    if !mask.contains("<service>") {
        return Some("The URL mask must contain the placeholder <service>.");
    }
    if mask.matches("<service>").count() > 1 || mask.matches("<tag>").count() > 1 {
        return Some("Each placeholder may occur once in the URL mask.");
    }
    if placeholders != mask.matches('<').count() || placeholders != mask.matches('>').count() {
        return Some("The URL mask may contain no placeholder but <service> and <tag>.");
    }
    // Only the host and the path of a request are looked at.
    if mask.contains("://") || mask.contains(['?', '#']) || mask.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Some("The URL mask must be a host, a path or both, without scheme and query.");
    }
    None
}
