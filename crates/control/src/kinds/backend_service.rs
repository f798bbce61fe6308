//! Regional backend services of the internal application load balancer: with one serverless backend, or with one that is
//! a Private Service Connect endpoint.

use std::collections::BTreeSet;

use model::{fault::Fault, lb, name::Link};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::place,
    ops::Txn,
    world::World,
};

/// What clients send when the user said nothing, in seconds; the only value a serverless backend may have.
pub const TIMEOUT_S_DEFAULT: u32 = 30;

impl Kind for lb::BackendService {
    const COLLECTION: &'static str = "backendServices";
    const WIRE_KIND: &'static str = "backendService";
    const WORD: &'static str = "backend_service";

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
        if let Some(log) = self.log
            && !(0.0..=1.0).contains(&log.sample_rate)
        {
            let why = "Must be between 0.0 and 1.0.";
            return Err(Fault::invalid_value("logConfig.sampleRate", &log.sample_rate.to_string(), why));
        }
        if self.timeout_s == 0 {
            return Err(Fault::invalid_value("timeoutSec", "0", "Must be at least 1."));
        }
        Ok(())
    }

    fn admit(record: &mut Record<Self>, _: Option<&Record<Self>>, world: &World, _: &mut Txn) -> Result<(), Fault> {
        for (i, backend) in record.spec.backends.iter().enumerate() {
            let field = format!("backends[{i}].group");
            place::same_project(&field, &record.link, &backend.group)?;
            place::same_region(&field, "network endpoint group", &record.link, "backend service", &backend.group)?;
        }
        let is_psc = |b: &lb::Backend| {
            world.get::<lb::NetworkEndpointGroup>(&b.group).is_some_and(|group| group.spec.psc().is_some())
        };
        admit_backends(&record.spec, is_psc)?;
        match record.spec.backends.first() {
            Some(backend) if is_psc(backend) => admit_psc(record),
            Some(_) | None => Ok(()),
        }
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}

/// What the kinds of backends allow. That there is one of each kind at most is also why there is nothing to balance.
fn admit_backends(spec: &lb::BackendService, is_psc: impl Fn(&lb::Backend) -> bool) -> Result<(), Fault> {
    let Some(first) = spec.backends.first() else { return Ok(()) };
    if let Some(second) = spec.backends.get(1) {
        let why = match (is_psc(first), is_psc(second)) {
            (true, true) => {
                "A regional backend service can have only one Private Service Connect network endpoint group."
            }
            (false, false) => "A regional backend service can have only one Serverless network endpoint group.",
            (true, false) | (false, true) => {
                "Network endpoint groups of different types cannot be backends of one backend service."
            }
        };
        return Err(Fault::invalid_value("backends[1].group", &second.group.url(), why));
    }
    if !is_psc(first) && spec.timeout_s != TIMEOUT_S_DEFAULT {
        let why = "Timeout sec is not supported for a backend service with Serverless network endpoint groups.";
        return Err(Fault::invalid_value("timeoutSec", &spec.timeout_s.to_string(), why));
    }
    Ok(())
}

/// What says nothing of a serverless backend, and would say something of a Private Service Connect endpoint.
fn admit_psc(record: &Record<lb::BackendService>) -> Result<(), Fault> {
    if record.spec.protocol != lb::Protocol::Http {
        return Err(Fault::not_enforced("resource.protocol"));
    }
    if record.inert.contains_key("circuitBreakers") {
        return Err(Fault::not_enforced("resource.circuitBreakers"));
    }
    let scaler = record.inert.get("backends").and_then(|backends| backends.get(0)?.get("capacityScaler"));
    match scaler.filter(|scaler| scaler.as_f64() != Some(1.0)) {
        Some(scaler) => {
            let why = "Capacity scaler is not supported for a Private Service Connect network endpoint group.";
            Err(Fault::invalid_value("backends[0].capacityScaler", &scaler.to_string(), why))
        }
        None => Ok(()),
    }
}

fn needs(permission: &'static str, service: &lb::BackendService, me: &Link) -> Vec<Need> {
    let groups = service.backends.iter();
    let uses = groups.map(|b| Need::on("compute.regionNetworkEndpointGroups.use", &b.group));
    std::iter::once(Need::on(permission, me)).chain(uses).collect()
}
