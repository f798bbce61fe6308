//! Cloud Run v2: a second view of the same services.
//!
//! A v2 body is turned into the Knative object that says the same ([`read`]) and then read by v1, so that there is one
//! set of defaults and rules. [`show`] is the way out.

pub mod read;
pub mod show;

use control::{
    run::{self, Mode, Outcome, Revise, RunOperation},
    world::ServiceRecord,
};
use http::Method;
use model::{
    fault::{Code, Fault},
    run::{RevisionKey, ServiceKey},
};
use serde_json::{Value, json};

use super::{run::Asked, run_v1};
use crate::{
    call::Answer,
    error,
    paging::{Order, Paging},
    reply::Reply,
};

const PAGES: Paging = Paging { size: "pageSize", default: 100, max: 1_000, order: Order::AsGiven };

/// Everything of v2 but operations, policies and locations.
pub(super) fn route(asked: &Asked<'_>) -> Answer {
    let parts = asked.call.parts();
    let ["v2", "projects", project, "locations", region, rest @ ..] = parts.as_slice() else {
        return Err(error::unknown_method());
    };
    match (&asked.call.method, rest) {
        (&Method::POST, ["services"]) => create(asked, project, region),
        (&Method::GET, ["services"]) => list(asked, project, region),
        (&Method::GET, ["services", name]) => {
            let record = asked.client().get(&asked.key(project, region, name)?)?;
            Ok(Reply::json(show::service(&asked.control.read(), &record)))
        }
        (&Method::PATCH, ["services", name]) => patch(asked, &asked.key(project, region, name)?),
        (&Method::DELETE, ["services", name]) => delete(asked, &asked.key(project, region, name)?),
        (&Method::GET, ["services", name, "revisions"]) => {
            let found = asked.client().revisions(
                project,
                &asked.region(region)?,
                Some(name).filter(|n| **n != "-").copied(),
            )?;
            let world = asked.control.read();
            let shown = found.iter().map(|r| (r.uid.clone(), show::revision(&world, r))).collect();
            PAGES.list(&asked.call.query, "revisions", shown)
        }
        (&Method::GET, ["services", name, "revisions", revision]) => {
            let key = revision_key(asked, project, region, name, revision)?;
            let found = asked.client().revision(&key)?;
            Ok(Reply::json(show::revision(&asked.control.read(), &found)))
        }
        (&Method::DELETE, ["services", name, "revisions", revision]) => {
            let key = revision_key(asked, project, region, name, revision)?;
            let gone = asked.client().delete_revision(&key, mode(asked)?)?;
            let mut shown = show::revision(&asked.control.read(), &gone);
            shown["@type"] = "type.googleapis.com/google.cloud.run.v2.Revision".into();
            let name =
                format!("projects/{}/locations/{}/operations/{}", key.service.project, key.service.region, gone.uid);
            Ok(Reply::json(json!({"name": name, "metadata": shown, "done": true, "response": shown})))
        }
        (_, [collection @ ("jobs" | "workerPools" | "instances" | "builds"), ..]) => {
            Err(Fault::not_enforced(collection))
        }
        _ => Err(error::unknown_method()),
    }
}

fn mode(asked: &Asked<'_>) -> Result<Mode, Fault> {
    Ok(if asked.call.query.flag("validateOnly")? == Some(true) { Mode::DryRun } else { Mode::Commit })
}

fn revision_key(
    asked: &Asked<'_>,
    project: &str,
    region: &str,
    service: &str,
    name: &str,
) -> Result<RevisionKey, Fault> {
    Ok(RevisionKey { service: asked.key(project, region, service)?, name: name.to_owned() })
}

/// A v2 body as v1 reads it.
fn as_v1(asked: &Asked<'_>, key: &ServiceKey, body: Value) -> Result<run_v1::read::Asked, Fault> {
    let number = asked.control.read().projects.get(&key.project).map(|p| p.number.to_string()).unwrap_or_default();
    let namespaces = run_v1::read::namespaces(key, number);
    run_v1::read::service(read::to_v1(key, body)?, &namespaces, key.region.as_str())
}

fn create(asked: &Asked<'_>, project: &str, region: &str) -> Answer {
    let id = asked.call.query.get("serviceId").unwrap_or("");
    let key = asked.key(project, region, id)?;
    let service = as_v1(asked, &key, asked.body()?)?.service;
    let record = asked.client().create(&key, &service, mode(asked)?)?;
    operation(asked, &record, mode(asked)?)
}

fn patch(asked: &Asked<'_>, key: &ServiceKey) -> Answer {
    let query = &asked.call.query;
    let body = asked.body()?;
    let mode = mode(asked)?;
    let missing = !asked.control.read().services.contains_key(key);
    if missing && query.flag("allowMissing")? == Some(true) {
        let service = as_v1(asked, key, body)?.service;
        let record = asked.client().create(key, &service, mode)?;
        return operation(asked, &record, mode);
    }
    let revise = if query.flag("forceNewRevision")? == Some(true) { Revise::Always } else { Revise::IfChanged };
    let etag = body["etag"].as_str().unwrap_or_default().to_owned();
    // What a mask leaves out stays as it is shown now.
    let current = asked.client().get(key)?;
    let wanted = match query.get("updateMask").filter(|mask| !mask.is_empty() && *mask != "*") {
        None => body,
        Some(mask) => {
            let mut wanted = show::service(&asked.control.read(), &current);
            read::merge(&mut wanted, &body, mask)?;
            wanted
        }
    };
    let service = as_v1(asked, key, wanted)?.service;
    let masked_over = current.version;
    let record = asked.client().replace(key, revise, mode, |record| {
        check_etag(record, &etag)?;
        // Status moves the version too; only a write in between is in the way.
        if record.generation != current.generation {
            return Err(run::stale(record, &masked_over.to_string()));
        }
        Ok(service.clone())
    })?;
    operation(asked, &record, mode)
}

fn check_etag(record: &ServiceRecord, etag: &str) -> Result<(), Fault> {
    if etag.is_empty() || etag == show::etag(record.version) {
        return Ok(());
    }
    Err(Fault::new(
        Code::Aborted,
        "aborted",
        format!("Conflict for resource '{}': the etag does not match.", record.key.name),
    ))
}

fn delete(asked: &Asked<'_>, key: &ServiceKey) -> Answer {
    let etag = asked.call.query.get("etag").unwrap_or("").to_owned();
    let mode = mode(asked)?;
    let gone = asked.client().delete(key, mode, |record| check_etag(record, &etag))?;
    operation(asked, &gone, mode)
}

/// The operation of a write. One that only validated is not stored and shows what would be.
fn operation(asked: &Asked<'_>, record: &ServiceRecord, mode: Mode) -> Answer {
    let world = asked.control.read();
    let stored = world.run_operations.get(&record.operation).cloned();
    let operation = stored.unwrap_or_else(|| RunOperation {
        id: record.operation.clone(),
        service: record.key.clone(),
        uid: record.uid.clone(),
        generation: record.generation,
        created: record.updated,
        deleted: None,
    });
    let outcome = match mode {
        Mode::Commit => run::outcome(&world, &operation),
        Mode::DryRun => Outcome::Done(Box::new(record.clone())),
    };
    Ok(Reply::json(asked.operation(&world, &operation, outcome)))
}

fn list(asked: &Asked<'_>, project: &str, region: &str) -> Answer {
    if region == "-" {
        return Err(Fault::invalid("The location of services.list cannot be the - wildcard."));
    }
    let found = asked.client().list(project, Some(&asked.region(region)?))?;
    let world = asked.control.read();
    let shown = found.iter().map(|s| (s.uid.clone(), show::service(&world, s)));
    PAGES.list(&asked.call.query, "services", shown.collect())
}
