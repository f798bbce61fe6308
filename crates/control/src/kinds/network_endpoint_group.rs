//! Network endpoint groups, immutable: serverless ones, whose Cloud Run service need not exist, and those that are a
//! Private Service Connect endpoint for a load balancer ([`super::endpoint`]).

use model::{fault::Fault, lb, name::Link, psc::ServiceAttachment};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::{endpoint, place},
    ops::Txn,
    world::World,
};

/// No host and path that a client sends is longer. Source: the load balancer's limit of a request's head.
const URL_MASK_BYTES_MAX: usize = 1_024;

impl Kind for lb::NetworkEndpointGroup {
    const COLLECTION: &'static str = "networkEndpointGroups";
    const WIRE_KIND: &'static str = "networkEndpointGroup";
    const WORD: &'static str = "network_endpoint_group";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        let own = Need::on("compute.regionNetworkEndpointGroups.create", me);
        let uses = self.psc().map(|psc| {
            [Need::on("compute.networks.use", &psc.network), Need::on("compute.subnetworks.use", &psc.subnetwork)]
        });
        std::iter::once(own).chain(uses.into_iter().flatten()).collect()
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionNetworkEndpointGroups.create", me)]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionNetworkEndpointGroups.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        let Some(psc) = self.psc() else { return Vec::new() };
        vec![
            Reference { field: "network", to: psc.network.clone() },
            Reference { field: "subnetwork", to: psc.subnetwork.clone() },
        ]
    }

    fn check(&self, _: Option<&Self>) -> Result<(), Fault> {
        match &self.endpoints {
            lb::Endpoints::Serverless(serverless) => check_serverless(serverless),
            lb::Endpoints::PrivateServiceConnect(psc) => {
                place::of_collection("pscTargetService", ServiceAttachment::COLLECTION, &psc.attachment)
            }
        }
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        if old.is_some() {
            return Ok(());
        }
        let link = record.link.clone();
        let lb::Endpoints::PrivateServiceConnect(psc) = &mut record.spec.endpoints else { return Ok(()) };
        psc.address = endpoint::admit_address(&link, (&psc.network, &psc.subnetwork), psc.address, world)?.0;
        let (network, attachment) = (psc.network.clone(), psc.attachment.clone());
        let words = ("pscTargetService", "network endpoint group");
        endpoint::connect(record, (&network, &attachment), words, world, txn)
    }

    fn retire(record: &Record<Self>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        endpoint::disconnect(record, world, txn);
        Ok(())
    }
}

fn check_serverless(group: &lb::Serverless) -> Result<(), Fault> {
    match (&group.service, &group.url_mask) {
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
            None if group.tag.is_some() => Err(Fault::not_enforced("resource.cloudRun.tag")),
            None => Ok(()),
        },
        (Some(_), None) => Ok(()),
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
