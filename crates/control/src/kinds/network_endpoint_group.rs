//! Serverless network endpoint groups. Immutable; the Cloud Run service need not exist.

use model::{fault::Fault, lb, name::Link};

use crate::{
    kind::{Kind, Need, Object, Record, Reference},
    ops::Txn,
    world::World,
};

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
            (None, Some(mask)) if !mask.contains("<service>") => {
                let why = "The URL mask must contain the placeholder <service>.";
                Err(Fault::invalid_value("cloudRun.urlMask", mask, why))
            }
            (Some(_), None) | (None, Some(_)) => Ok(()),
        }
    }

    fn admit(_: &mut Record<Self>, _: Option<&Record<Self>>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}
