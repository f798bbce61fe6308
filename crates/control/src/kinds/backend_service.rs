//! Regional backend services of the internal application load balancer, with serverless backends only.

use std::collections::BTreeSet;

use model::{fault::Fault, lb, name::Link};

use crate::{
    kind::{Kind, Need, Object, Record, Reference},
    kinds::place,
    ops::Txn,
    world::World,
};

/// What clients send when the user said nothing; the only value a serverless backend may have.
pub const TIMEOUT_S_DEFAULT: u32 = 30;

impl Kind for lb::BackendService {
    const COLLECTION: &'static str = "backendServices";
    const WIRE_KIND: &'static str = "backendService";
    const WORD: &'static str = "backend_service";

    fn wrap(record: Record<Self>) -> Object {
        Object::BackendService(record)
    }

    fn peek(object: &Object) -> Option<&Record<Self>> {
        if let Object::BackendService(record) = object { Some(record) } else { None }
    }

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        needs("compute.regionBackendServices.create", self, me)
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        needs("compute.regionBackendServices.update", self, me)
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionBackendServices.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        self.backends.iter().map(|b| Reference { field: "backends[0].group", to: b.group.clone() }).collect()
    }

    fn check(&self, _: Option<&Self>) -> Result<(), Fault> {
        let mut seen = BTreeSet::new();
        for (i, backend) in self.backends.iter().enumerate() {
            let field = format!("backends[{i}].group");
            place::of_collection(&field, lb::NetworkEndpointGroup::COLLECTION, &backend.group)?;
            if !seen.insert(&backend.group) {
                return Err(Fault::invalid_value(&field, &backend.group.url(), "Duplicate backend group."));
            }
        }
        if self.backends.len() > 1 {
            let value = self.backends[1].group.url();
            let why = "A regional backend service can have only one Serverless network endpoint group.";
            return Err(Fault::invalid_value("backends[1].group", &value, why));
        }
        if self.timeout_s == 0 {
            return Err(Fault::invalid_value("timeoutSec", "0", "Must be at least 1."));
        }
        if !self.backends.is_empty() && self.timeout_s != TIMEOUT_S_DEFAULT {
            let why = "Timeout sec is not supported for a backend service with Serverless network endpoint groups.";
            return Err(Fault::invalid_value("timeoutSec", &self.timeout_s.to_string(), why));
        }
        Ok(())
    }

    fn admit(record: &mut Record<Self>, _: Option<&Record<Self>>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        for (i, backend) in record.spec.backends.iter().enumerate() {
            let field = format!("backends[{i}].group");
            place::same_project(&field, &record.link, &backend.group)?;
            place::same_region(&field, "network endpoint group", &record.link, "backend service", &backend.group)?;
        }
        Ok(())
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}

fn needs(permission: &'static str, service: &lb::BackendService, me: &Link) -> Vec<Need> {
    let groups = service.backends.iter();
    let uses = groups.map(|b| Need::on("compute.regionNetworkEndpointGroups.use", &b.group));
    std::iter::once(Need::on(permission, me)).chain(uses).collect()
}
