//! The project as Compute sees it, and the metadata that all of its VMs share.

use std::collections::BTreeSet;

use control::{
    kinds::instance::check_metadata,
    operation::OperationState,
    ops::{self, Change},
};
use model::{
    fault::Fault,
    id::ResourceId,
    name::{Link, Scope},
    vm,
};
use serde_json::{Value, json};

use super::{
    instance::{metadata_fingerprint, read_metadata, write_metadata},
    operation,
    verbs::Visit,
    wire::{Around, Fields, same_fingerprint, stale, url},
};
use crate::{call::Answer, reply::Reply};

pub(super) fn get(visit: &Visit<'_>) -> Answer {
    let world = visit.control.read();
    let path = format!("projects/{}", visit.project);
    visit.allow(&world, "compute.projects.get", &path)?;
    let project = world.projects.get(visit.project).ok_or_else(|| Fault::not_found(&path))?;
    Ok(Reply::json(json!({
        "kind": "compute#project",
        "id": project.number.to_string(),
        "creationTimestamp": project.created.rfc3339_pacific_ms(),
        "name": project.id.as_str(),
        "commonInstanceMetadata": write_metadata(&project.common_metadata),
        "quotas": [],
        "selfLink": url(&path),
        "defaultServiceAccount": project.compute_default_account(),
        "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
        "defaultNetworkTier": "PREMIUM",
        "vmDnsSetting": "ZONAL_ONLY",
        "cloudArmorTier": "CA_STANDARD",
    })))
}

pub(super) fn set_metadata(visit: &Visit<'_>) -> Answer {
    let body = visit.body("Metadata")?;
    let given = body.get("fingerprint").and_then(Value::as_str).unwrap_or("");
    let request_id = visit.request_id()?;
    if let Some(earlier) = visit.control.repeated(visit.caller, request_id.as_deref()) {
        return operation::reply(&earlier);
    }
    let call = ops::Call { caller: visit.caller, verb: "setCommonInstanceMetadata", request_id: request_id.as_deref() };
    let target = Link::new(visit.project, Scope::Global, "projects", visit.project.as_str());
    let (operation, _) = visit.control.commit(|world, txn| {
        let path = format!("projects/{}", visit.project);
        visit.allow(world, "compute.projects.setCommonInstanceMetadata", &path)?;
        let mut project = world.projects.get(visit.project).cloned().ok_or_else(|| Fault::not_found(&path))?;
        let items = read_metadata(&Fields::new(&body, &Around { world, link: &target }))?;
        check_metadata(&items)?;
        // Source: setCommonInstanceMetadata; the first write may come without.
        let first = given.is_empty() && project.common_metadata.is_empty();
        if !first && !same_fingerprint(given, &metadata_fingerprint(&project.common_metadata)) {
            return Err(stale("Supplied fingerprint does not match current metadata fingerprint."));
        }
        let number = ResourceId(project.number.0);
        // Metadata can hold a script that runs with the account of every VM, also of those that come later.
        let default = project.compute_default_account();
        let vms = world.all::<vm::Instance>().filter(|vm| vm.link.project == *visit.project);
        let attached = vms.filter_map(|vm| vm.spec.service_account.as_ref()).map(|account| account.email.as_str());
        let emails: BTreeSet<&str> = attached.chain([default.as_str()]).collect();
        let emails: Vec<&str> = emails.into_iter().collect();
        if let Err(fault) = visit.control.authorize_acting(world, visit.caller, &emails) {
            let state = OperationState::Done { at: txn.now, fault: Some(fault) };
            return Ok(call.operation(&target, number, state, txn));
        }
        project.common_metadata = items;
        txn.push(Change::Project(Box::new(project)));
        Ok(call.operation(&target, number, OperationState::Running, txn))
    })?;
    operation::reply(&operation)
}
