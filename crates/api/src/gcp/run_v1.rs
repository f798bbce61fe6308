//! Cloud Run v1: Knative objects under `/apis/serving.knative.dev/v1/` on regional hosts, the same under
//! `/v1/projects/P/locations/R/` on any.
//!
//! [`read`] is the way in, [`show`] the way out, [`annotations`] the part of both that hides in maps of strings.

pub mod annotations;
pub mod read;
pub mod selector;
pub mod show;

use control::{
    run::{Mode, Revise, stale},
    world::{ServiceRecord, World},
};
use http::Method;
use model::{
    fault::{Code, Fault},
    run::{Revision, ServiceKey},
};
use serde_json::{Value, json};

use self::selector::Selector;
use super::run::Asked;
use crate::{call::Answer, error, reply::Reply};

/// Everything of v1 but operations, policies and locations.
pub(super) fn route(asked: &Asked<'_>) -> Answer {
    let parts = asked.call.parts();
    match parts.as_slice() {
        ["apis", "serving.knative.dev", "v1", "namespaces", project, rest @ ..] => {
            let region = asked.call.host.region.as_ref().ok_or_else(regional)?.to_string();
            resource(asked, project, &region, rest)
        }
        ["v1", "projects", project, "locations" | "regions", region, rest @ ..] => {
            resource(asked, project, region, rest)
        }
        ["apis", "run.googleapis.com" | "domains.cloudrun.com", "v1", "namespaces", _, collection, ..] => {
            Err(Fault::not_enforced(collection))
        }
        _ => Err(error::unknown_method()),
    }
}

/// A namespace says nothing of a region; only the host does.
fn regional() -> Fault {
    Fault::new(
        Code::NotFound,
        "notFound",
        "Namespaced methods are served by regional endpoints only, such as us-central1-run.googleapis.com.",
    )
}

fn resource(asked: &Asked<'_>, project: &str, region: &str, rest: &[&str]) -> Answer {
    match (&asked.call.method, rest) {
        (&Method::GET, ["services"]) => list_services(asked, project, region),
        (&Method::POST, ["services"]) => create(asked, project, region),
        (&Method::GET, ["services", name]) => {
            let record = asked.client().get(&asked.key(project, region, name)?)?;
            Ok(Reply::json(show::service(&asked.control.read(), &record)))
        }
        (&Method::PUT, ["services", name]) => replace(asked, &asked.key(project, region, name)?),
        (&Method::DELETE, ["services", name]) => {
            let gone = asked.client().delete(&asked.key(project, region, name)?, mode(asked)?, |_| Ok(()))?;
            Ok(Reply::json(json!({
                "apiVersion": "v1",
                "kind": "Status",
                "status": "Success",
                "details": {"name": gone.key.name, "group": "serving.knative.dev", "kind": "services", "uid": gone.uid},
            })))
        }
        (&Method::GET, ["revisions"]) => list_revisions(asked, project, region),
        (&Method::GET, ["revisions", name]) => {
            let client = asked.client();
            let revision = client.revision(&client.revision_key(project, &asked.region(region)?, name)?)?;
            Ok(Reply::json(show::revision(&asked.control.read(), &revision)))
        }
        (&Method::DELETE, ["revisions", name]) => {
            let client = asked.client();
            let key = client.revision_key(project, &asked.region(region)?, name)?;
            let gone = client.delete_revision(&key, mode(asked)?)?;
            Ok(Reply::json(json!({
                "apiVersion": "v1",
                "kind": "Status",
                "status": "Success",
                "details": {"name": gone.key.name, "group": "serving.knative.dev", "kind": "revisions", "uid": gone.uid},
            })))
        }
        (&Method::GET, ["configurations"]) => {
            list_relatives(asked, project, region, "ConfigurationList", show::configuration)
        }
        (&Method::GET, ["routes"]) => list_relatives(asked, project, region, "RouteList", show::route),
        (&Method::GET, ["configurations", name]) => relative(asked, project, region, name, show::configuration),
        (&Method::GET, ["routes", name]) => relative(asked, project, region, name, show::route),
        (
            _,
            [
                collection @ ("jobs" | "workerpools" | "workerPools" | "executions" | "tasks" | "instances"
                | "domainmappings" | "authorizeddomains"),
                ..,
            ],
        ) => Err(Fault::not_enforced(collection)),
        _ => Err(error::unknown_method()),
    }
}

fn mode(asked: &Asked<'_>) -> Result<Mode, Fault> {
    match asked.call.query.get("dryRun") {
        None | Some("") => Ok(Mode::Commit),
        Some("all") => Ok(Mode::DryRun),
        Some(other) => Err(Fault::invalid(format!("dryRun: '{other}' is not supported; only 'all' is."))),
    }
}

/// The spellings of the request's project that a body may use.
fn namespaces(asked: &Asked<'_>, project: &str) -> Vec<String> {
    let world = asked.control.read();
    match world.project(project) {
        Some(project) => vec![project.id.to_string(), project.number.to_string()],
        None => vec![project.to_owned()],
    }
}

fn create(asked: &Asked<'_>, project: &str, region: &str) -> Answer {
    let body = read::service(asked.body()?, &namespaces(asked, project), region)?;
    let key = asked.key(project, region, &body.name)?;
    let record = asked.client().create(&key, &body.service, mode(asked)?)?;
    Ok(Reply::json(show::service(&asked.control.read(), &record)))
}

fn replace(asked: &Asked<'_>, key: &ServiceKey) -> Answer {
    let body = read::service(asked.body()?, &namespaces(asked, key.project.as_str()), key.region.as_str())?;
    if body.name != key.name {
        return Err(Fault::invalid(format!("metadata.name: '{}' does not match the name of the request.", body.name)));
    }
    let edit = |record: &ServiceRecord| match &body.resource_version {
        Some(given) if show::parse_version(given) != Some(record.version) => {
            let given = show::parse_version(given).map_or(given.clone(), |version| version.to_string());
            Err(stale(record, &given))
        }
        Some(_) | None => Ok(body.service.clone()),
    };
    let record = asked.client().replace(key, Revise::IfChanged, mode(asked)?, edit)?;
    Ok(Reply::json(show::service(&asked.control.read(), &record)))
}

fn services(asked: &Asked<'_>, project: &str, region: &str) -> Result<Vec<ServiceRecord>, Fault> {
    let region = match region {
        "-" => None,
        region => Some(asked.region(region)?),
    };
    asked.client().list(project, region.as_ref())
}

fn list_services(asked: &Asked<'_>, project: &str, region: &str) -> Answer {
    let found = services(asked, project, region)?;
    let world = asked.control.read();
    list(asked, "ServiceList", found.iter().map(|s| show::service(&world, s)).collect())
}

fn list_relatives(
    asked: &Asked<'_>,
    project: &str,
    region: &str,
    kind: &str,
    shape: fn(&World, &ServiceRecord) -> Value,
) -> Answer {
    let found = services(asked, project, region)?;
    let world = asked.control.read();
    list(asked, kind, found.iter().map(|s| shape(&world, s)).collect())
}

fn relative(
    asked: &Asked<'_>,
    project: &str,
    region: &str,
    name: &str,
    shape: fn(&World, &ServiceRecord) -> Value,
) -> Answer {
    let record = asked.client().get(&asked.key(project, region, name)?)?;
    Ok(Reply::json(shape(&asked.control.read(), &record)))
}

fn list_revisions(asked: &Asked<'_>, project: &str, region: &str) -> Answer {
    let found: Vec<Revision> = asked.client().revisions(project, &asked.region(region)?, None)?;
    let world = asked.control.read();
    list(asked, "RevisionList", found.iter().map(|r| show::revision(&world, r)).collect())
}

/// Selects by labels, and cuts a page off: `limit` objects after the one that `continue` names by its uid.
fn list(asked: &Asked<'_>, kind: &str, items: Vec<Value>) -> Answer {
    let query = &asked.call.query;
    let selector = Selector::parse(query.get("labelSelector").unwrap_or(""))?;
    let mut items: Vec<Value> = items.into_iter().filter(|i| selector.matches(&i["metadata"]["labels"])).collect();
    if let Some(after) = query.get("continue").filter(|token| !token.is_empty()) {
        let at = items.iter().position(|i| i["metadata"]["uid"] == after);
        let at = at.ok_or_else(|| Fault::invalid("continue: the token is not one of this list."))?;
        items.drain(..=at);
    }
    let mut meta = json!({});
    if let Some(limit) = query.number("limit")?.filter(|n| *n > 0) {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if items.len() > limit {
            items.truncate(limit);
            meta["continue"] = items[limit - 1]["metadata"]["uid"].clone();
        }
    }
    Ok(Reply::json(json!({"apiVersion": show::SERVING, "kind": kind, "metadata": meta, "items": items})))
}
