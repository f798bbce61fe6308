//! Cloud Run: the part that both API versions share — who asks, operations, policies, locations.
//!
//! v1 (Knative objects, what gcloud speaks) is in [`super::run_v1`], v2 in [`super::run_v2`]; they are two views of the
//! services in [`control::run`].

use std::time::Duration;

use control::{
    ops::{Caller, Control},
    run::{Client, Outcome, RunOperation, View},
    world::{ServiceRecord, World},
};
use http::Method;
use model::{fault::Fault, name::Region, project::REGIONS, run::ServiceKey};
use serde_json::{Value, json};

use super::{Cloud, policy, run_v1, run_v2};
use crate::{
    call::{Answer, Api, BoxFuture, Call, blocking},
    error,
    reply::Reply,
};

/// What `:wait` waits for when it is not told. Source: Cloud Run's clients ask for 10 s.
const WAIT_DEFAULT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Run(pub Cloud);

/// One call, with everything its handlers need.
pub(super) struct Asked<'a> {
    pub call: &'a Call,
    pub caller: &'a Caller,
    pub control: &'a Control,
    pub view: View,
}

impl Api for Run {
    fn serve(&self, call: Call) -> BoxFuture<'_, Answer> {
        let me = self.clone();
        Box::pin(async move {
            if let (&Method::POST, Some("wait")) = (&call.method, call.verb()) {
                return me.wait(&call).await;
            }
            blocking(move || me.answer(&call)).await
        })
    }
}

impl Run {
    fn caller(&self, call: &Call) -> Result<(View, Caller), Fault> {
        let (view, method) = match call.path.first().is_some_and(|version| version == "v2") {
            true => (View::V2, "google.cloud.run.v2.Services"),
            false => (View::V1, "google.cloud.run.v1.Services"),
        };
        Ok((view, self.0.caller(call, method)?))
    }

    fn answer(&self, call: &Call) -> Answer {
        let (view, caller) = self.caller(call)?;
        let asked = Asked { call, caller: &caller, control: &self.0.control, view };
        match (&call.method, call.parts().as_slice(), call.verb()) {
            (_, ["v1" | "v2", "projects", project, "locations", region, "operations", rest @ ..], None) => {
                asked.operations(project, region, rest)
            }
            (&Method::GET, ["v1" | "v2", "projects", project, "locations"], None) => asked.locations(project),
            (_, ["v1", "projects", project, "locations" | "regions", region, "services", name], Some(verb))
            | (_, ["v2", "projects", project, "locations", region, "services", name], Some(verb)) => {
                asked.policy(project, region, name, verb)
            }
            _ if view == View::V2 => run_v2::route(&asked),
            _ => run_v1::route(&asked),
        }
    }

    /// `POST …/operations/ID:wait`.
    async fn wait(&self, call: &Call) -> Answer {
        let parts = call.parts();
        let ["v1" | "v2", "projects", project, "locations", region, "operations", id] = parts.as_slice() else {
            return Err(error::unknown_method());
        };
        let (view, caller) = self.caller(call)?;
        let asked = Asked { call, caller: &caller, control: &self.0.control, view };
        let client = asked.client();
        let operation = client.operation(project, &asked.region(region)?, id)?;
        let timeout = timeout(asked.body()?["timeout"].as_str())?;
        let outcome = client.wait(&operation, timeout).await;
        Ok(Reply::json(asked.operation(&asked.control.read(), &operation, outcome)))
    }
}

impl<'a> Asked<'a> {
    pub fn client(&self) -> Client<'a> {
        Client { control: self.control, caller: self.caller, view: self.view }
    }

    pub fn region(&self, text: &str) -> Result<Region, Fault> {
        text.parse().map_err(|_| Fault::invalid(format!("Location {text} is not a location.")))
    }

    pub fn key(&self, project: &str, region: &str, name: &str) -> Result<ServiceKey, Fault> {
        self.client().key(project, &self.region(region)?, name)
    }

    pub fn body(&self) -> Result<Value, Fault> {
        self.call.json()
    }

    fn locations(&self, project: &str) -> Answer {
        let world = self.control.read();
        let project =
            world.project(project).ok_or_else(|| error::denied(error::Family::Run, "run.locations.list", project))?;
        let need = control::kind::Need::on("run.locations.list", format!("projects/{}", project.id));
        self.control
            .authorize(&world, self.caller, &[need])
            .map_err(|need| error::denied(error::Family::Run, need.permission, &need.resource))?;
        let location = |(name, ..): &(&str, &str, &[&str])| {
            json!({
                "name": format!("projects/{}/locations/{name}", project.id),
                "locationId": name,
                "displayName": name,
                "labels": {"cloud.googleapis.com/region": name},
            })
        };
        Ok(Reply::json(json!({"locations": REGIONS.iter().map(location).collect::<Vec<_>>()})))
    }

    fn policy(&self, project: &str, region: &str, name: &str, verb: &str) -> Answer {
        let key = self.key(project, region, name)?;
        let body = self.body()?;
        match (&self.call.method, verb) {
            (&Method::GET, "getIamPolicy") => {
                policy::check_requested_version(&self.call.query, &body)?;
                Ok(Reply::json(policy::render(&self.client().policy(&key)?)))
            }
            (&Method::POST, "setIamPolicy") => {
                let asked = policy::asked(&body)?;
                Ok(Reply::json(policy::render(&self.client().set_policy(&key, &asked.bindings, &asked.etag)?)))
            }
            (&Method::POST, "testIamPermissions") => {
                policy::test(self.control, self.call, self.caller, &key.to_string())
            }
            _ => Err(error::unknown_method()),
        }
    }

    fn operations(&self, project: &str, region: &str, rest: &[&str]) -> Answer {
        let region = self.region(region)?;
        let client = self.client();
        match (&self.call.method, rest) {
            (&Method::GET, []) => {
                let found = client.operations(project, &region)?;
                let world = self.control.read();
                let shown: Vec<Value> =
                    found.iter().map(|o| self.operation(&world, o, control::run::outcome(&world, o))).collect();
                Ok(Reply::json(if shown.is_empty() { json!({}) } else { json!({"operations": shown}) }))
            }
            (&Method::GET, [id]) => {
                let operation = client.operation(project, &region, id)?;
                let world = self.control.read();
                Ok(Reply::json(self.operation(&world, &operation, control::run::outcome(&world, &operation))))
            }
            (&Method::DELETE, [id]) => {
                client.delete_operation(project, &region, id)?;
                Ok(Reply::json(json!({})))
            }
            _ => Err(error::unknown_method()),
        }
    }

    /// An operation in this view: its metadata and its response are the service.
    pub fn operation(&self, world: &World, operation: &RunOperation, outcome: Outcome) -> Value {
        let (project, region) = (&operation.service.project, &operation.service.region);
        let mut shown = json!({"name": format!("projects/{project}/locations/{region}/operations/{}", operation.id)});
        let service = |s: &ServiceRecord| self.shown(world, s, operation.deleted.is_some());
        match outcome {
            Outcome::Running(now) => shown["metadata"] = service(&now),
            Outcome::Done(now) => {
                shown["metadata"] = service(&now);
                shown["done"] = true.into();
                shown["response"] = service(&now);
            }
            Outcome::Failed { code, message, service: now } => {
                if let Some(now) = now {
                    shown["metadata"] = service(&now);
                }
                shown["done"] = true.into();
                shown["error"] = json!({"code": code.grpc(), "message": message});
            }
        }
        shown
    }

    /// A service in this view, with its type.
    fn shown(&self, world: &World, service: &ServiceRecord, deleted: bool) -> Value {
        let (kind, mut value) = match self.view {
            View::V1 => ("type.googleapis.com/google.cloud.run.v1.Service", run_v1::show::service(world, service)),
            View::V2 => ("type.googleapis.com/google.cloud.run.v2.Service", run_v2::show::service(world, service)),
        };
        if deleted && self.view == View::V2 {
            value["deleteTime"] = service.updated.rfc3339_us().into();
        }
        let mut typed = json!({"@type": kind});
        if let (Some(typed), Value::Object(fields)) = (typed.as_object_mut(), value) {
            typed.extend(fields);
        }
        typed
    }
}

/// A duration such as `10s`.
fn timeout(text: Option<&str>) -> Result<Duration, Fault> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(WAIT_DEFAULT) };
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    seconds.filter(|s| s.is_finite() && (0.0..1e6).contains(s)).map(Duration::from_secs_f64).ok_or_else(|| {
        Fault::invalid(format!("Invalid value at 'timeout' (type.googleapis.com/google.protobuf.Duration), \"{text}\""))
    })
}
