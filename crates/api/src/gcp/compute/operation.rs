//! Operations: showing them, waiting for them.

use std::time::Duration;

use control::{
    operation::{Operation, OperationState},
    world::World,
};
use http::Method;
use model::{
    fault::{Code, Fault},
    limits::OPERATION_WAIT_MAX,
    name::{Link, ProjectId, Scope},
};
use serde_json::{Map, Value, json};

use super::{
    Compute, catalogue,
    verbs::Visit,
    wire::{Json, url},
};
use crate::{
    call::{Answer, Call},
    error,
    list::{self, ListQuery, Listed},
    reply::Reply,
    schema::Body,
};

pub(super) fn reply(operation: &Operation) -> Answer {
    Ok(Reply::json(show(operation).into()))
}

/// An operation as the API shows it; every field that gcloud follows is always there.
pub(super) fn show(operation: &Operation) -> Json {
    let scope = format!("projects/{}/{}", operation.project, operation.scope);
    let started = operation.inserted.rfc3339_pacific_ms();
    let mut out = Map::new();
    out.insert("kind".into(), "compute#operation".into());
    out.insert("id".into(), operation.id.to_string().into());
    out.insert("name".into(), operation.name.clone().into());
    out.insert("operationType".into(), operation.verb.clone().into());
    out.insert("targetLink".into(), target_url(&operation.target).into());
    out.insert("targetId".into(), operation.target_id.to_string().into());
    if let Some(id) = &operation.request_id {
        out.insert("clientOperationId".into(), id.clone().into());
    }
    let done = match &operation.state {
        OperationState::Running => None,
        OperationState::Done { at, fault } => Some((at, fault)),
    };
    out.insert("status".into(), if done.is_some() { "DONE" } else { "RUNNING" }.into());
    out.insert("user".into(), operation.user.clone().into());
    out.insert("progress".into(), if done.is_some() { 100 } else { 0 }.into());
    out.insert("insertTime".into(), started.clone().into());
    out.insert("startTime".into(), started.into());
    if let Some((at, fault)) = done {
        out.insert("endTime".into(), at.rfc3339_pacific_ms().into());
        if let Some(fault) = fault {
            out.insert("error".into(), json!({"errors": [{"code": word(fault), "message": fault.message}]}));
            out.insert("httpErrorStatusCode".into(), fault.code.http().into());
            out.insert("httpErrorMessage".into(), http_word(fault.code).into());
        }
    }
    match operation.scope {
        Scope::Global => {}
        Scope::Region(_) => {
            out.insert("region".into(), url(&scope).into());
        }
        Scope::Zone(_) => {
            out.insert("zone".into(), url(&scope).into());
        }
    }
    out.insert("selfLink".into(), url(format!("{scope}/operations/{}", operation.name)).into());
    out
}

/// A project is a target too, and has no collection inside a scope.
fn target_url(target: &Link) -> String {
    if target.collection == "projects" { url(format!("projects/{}", target.name)) } else { target.url() }
}

/// `RESOURCE_IN_USE_BY_ANOTHER_RESOURCE`: the reason in the spelling of operations.
fn word(fault: &Fault) -> String {
    match fault.reason.as_str() {
        "notFound" => "RESOURCE_NOT_FOUND".to_owned(),
        "alreadyExists" => "RESOURCE_ALREADY_EXISTS".to_owned(),
        "invalid" => "INVALID_FIELD_VALUE".to_owned(),
        "forbidden" => "PERMISSIONS_ERROR".to_owned(),
        reason => {
            let mut out = String::new();
            for c in reason.chars() {
                if c.is_ascii_uppercase() && !out.is_empty() {
                    out.push('_');
                }
                out.push(c.to_ascii_uppercase());
            }
            out
        }
    }
}

fn http_word(code: Code) -> &'static str {
    match code.http() {
        400 => "BAD REQUEST",
        403 => "FORBIDDEN",
        404 => "NOT FOUND",
        409 => "CONFLICT",
        412 => "PRECONDITION FAILED",
        503 => "SERVICE UNAVAILABLE",
        _ => "INTERNAL SERVER ERROR",
    }
}

/// Operations of one scope.
pub(super) fn serve(visit: &Visit<'_>, rest: &[&str]) -> Answer {
    let control = visit.control;
    let (get, list, delete) = permissions(&visit.scope);
    match (&visit.call.method, rest) {
        (&Method::GET, []) => {
            let world = control.read();
            visit.allow(&world, list, format!("projects/{}", visit.project))?;
            let query = ListQuery::parse(&visit.call.query, Body::compute("Operation"))?;
            let mine = |o: &&Operation| o.project == *visit.project && o.scope == visit.scope;
            let items = world.operations.values().filter(mine).map(|o| Value::from(show(o))).collect();
            let path = format!("projects/{}/{}/operations", visit.project, visit.scope);
            Ok(Reply::json(list::list(&query, Listed { word: "operation", path: &path }, items)))
        }
        (&Method::GET, [name]) => {
            let world = control.read();
            visit.allow(&world, get, path(visit.project, &visit.scope, name))?;
            reply(find(&world, visit.project, &visit.scope, name)?)
        }
        (&Method::DELETE, [name]) => {
            let (_, _) = control.commit(|world, txn| {
                visit.allow(world, delete, path(visit.project, &visit.scope, name))?;
                let operation = find(world, visit.project, &visit.scope, name)?;
                txn.push(control::ops::Change::NoOperation(operation.name.clone()));
                Ok(())
            })?;
            Ok(Reply::no_content())
        }
        _ => Err(error::unknown_method()),
    }
}

fn permissions(scope: &Scope) -> (&'static str, &'static str, &'static str) {
    match scope {
        Scope::Global => {
            ("compute.globalOperations.get", "compute.globalOperations.list", "compute.globalOperations.delete")
        }
        Scope::Region(_) => {
            ("compute.regionOperations.get", "compute.regionOperations.list", "compute.regionOperations.delete")
        }
        Scope::Zone(_) => {
            ("compute.zoneOperations.get", "compute.zoneOperations.list", "compute.zoneOperations.delete")
        }
    }
}

fn path(project: &ProjectId, scope: &Scope, name: &str) -> String {
    format!("projects/{project}/{scope}/operations/{name}")
}

/// By name, or by number.
fn find<'w>(world: &'w World, project: &ProjectId, scope: &Scope, name: &str) -> Result<&'w Operation, Fault> {
    let by_number = || {
        let id: u64 = name.parse().ok()?;
        world.operations.values().find(|operation| operation.id.0 == id)
    };
    let found = world.operations.get(name).or_else(by_number);
    let here = found.filter(|operation| operation.project == *project && operation.scope == *scope);
    here.ok_or_else(|| Fault::not_found(path(project, scope, name)))
}

/// `POST …/operations/NAME/wait`.
pub(super) struct Wait {
    project: String,
    scope: Vec<String>,
    name: String,
}

impl Wait {
    pub(super) fn asked(call: &Call) -> Option<Wait> {
        let path = call.parts();
        match path.as_slice() {
            ["compute", "v1", "projects", project, scope @ .., "operations", name, "wait"]
                if call.method == Method::POST =>
            {
                let scope = scope.iter().map(|s| (*s).to_owned()).collect();
                Some(Wait { project: (*project).to_owned(), scope, name: (*name).to_owned() })
            }
            _ => None,
        }
    }

    /// Answers when the operation is done, or after two minutes as it then is.
    pub(super) async fn serve(&self, compute: &Compute, call: &Call) -> Answer {
        self.serve_within(compute, call, OPERATION_WAIT_MAX).await
    }

    pub(super) async fn serve_within(&self, compute: &Compute, call: &Call, most: Duration) -> Answer {
        let scope: Vec<&str> = self.scope.iter().map(String::as_str).collect();
        let scope = match scope.as_slice() {
            ["global"] => Scope::Global,
            ["regions", region] => catalogue::region(region)?,
            ["zones", zone] => catalogue::zone(zone)?,
            _ => return Err(error::unknown_method()),
        };
        let control = &compute.0.control;
        let caller = compute.0.caller(call, "compute.v1.operations.Wait")?;
        let project = compute.project(&self.project)?;
        let end = tokio::time::Instant::now() + most;
        let (get, ..) = permissions(&scope);
        loop {
            let finished = control.finished.notified();
            tokio::pin!(finished);
            // From here on a finish is not missed, also one between the look and the wait.
            finished.as_mut().enable();
            let found = {
                let world = control.read();
                let visit = Visit { control, call, caller: &caller, project: &project, scope: scope.clone() };
                visit.allow(&world, get, path(&project, &scope, &self.name))?;
                find(&world, &project, &scope, &self.name)?.clone()
            };
            if found.is_done() || tokio::time::timeout_at(end, finished).await.is_err() {
                return reply(&found);
            }
        }
    }
}
