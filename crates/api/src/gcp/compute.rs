//! Compute Engine v1: networks, load balancing, Private Service Connect and VMs.
//!
//! Start with [`Compute`], which finds the project and the collection of a call; [`verbs`] holds what every collection
//! can do, [`wire`] how resources look, and each kind has a file with its fields. What is decided about them is
//! decided in `control`.

mod address;
mod backend_service;
mod catalogue;
mod firewall;
mod forwarding_rule;
mod instance;
mod network;
mod network_endpoint_group;
mod operation;
mod project;
mod service_attachment;
mod subnetwork;
mod target_http_proxy;
mod url_map;
mod verbs;
mod wire;

use control::{ops::Caller, projects};
use http::Method;
use model::{
    fault::Fault,
    lb,
    name::{ProjectId, Scope},
    psc, vm, vpc,
};

use self::verbs::Visit;
use super::Cloud;
use crate::{
    call::{Answer, Api, BoxFuture, Call, blocking},
    error,
    host::Service,
};

/// The Compute API.
#[derive(Clone)]
pub struct Compute(pub Cloud);

impl Api for Compute {
    fn serve(&self, call: Call) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            if let Some(wait) = operation::Wait::asked(&call) {
                return wait.serve(self, &call).await;
            }
            if call.method == Method::GET {
                return self.answer(&call);
            }
            let me = self.clone();
            blocking(move || me.answer(&call)).await
        })
    }
}

/// Runs `$body` with `$K` as the kind of a collection; `None` when there is no such collection.
macro_rules! with_kind {
    ($collection:expr, $K:ident => $body:expr) => {
        with_kind!(@ $collection, $K => $body;
            "networks" => vpc::Network, "subnetworks" => vpc::Subnetwork, "addresses" => vpc::Address,
            "firewalls" => vpc::Firewall, "networkEndpointGroups" => lb::NetworkEndpointGroup,
            "backendServices" => lb::BackendService, "urlMaps" => lb::UrlMap,
            "targetHttpProxies" => lb::TargetHttpProxy, "forwardingRules" => lb::ForwardingRule,
            "serviceAttachments" => psc::ServiceAttachment, "instances" => vm::Instance)
    };
    (@ $collection:expr, $K:ident => $body:expr; $($name:literal => $kind:ty),*) => {
        match $collection {
            $($name => {
                type $K = $kind;
                Some($body)
            })*
            _ => None,
        }
    };
}

impl Compute {
    fn answer(&self, call: &Call) -> Answer {
        let caller = self.0.caller(call, &method_name(call))?;
        let path = call.parts();
        let ["compute", "v1", "projects", project, rest @ ..] = path.as_slice() else {
            return Err(error::unknown_method());
        };
        if let Some(answer) = catalogue::public_image(&call.method, project, rest) {
            return answer;
        }
        let project = self.project(project)?;
        self.route(&Asked { call, caller: &caller, project: &project }, rest)
    }

    /// The project of a path, by id or number, with the API enabled.
    fn project(&self, name: &str) -> Result<ProjectId, Fault> {
        let world = self.0.control.read();
        let project = world.project(name).ok_or_else(|| Fault::not_found(format!("projects/{name}")))?;
        projects::require_api(&world, project.id.as_str(), Service::Compute.host())?;
        Ok(project.id.clone())
    }

    fn route(&self, asked: &Asked<'_>, rest: &[&str]) -> Answer {
        let visit = |scope| Visit {
            control: &self.0.control,
            call: asked.call,
            caller: asked.caller,
            project: asked.project,
            scope,
        };
        let global = visit(Scope::Global);
        match (&asked.call.method, rest) {
            (&Method::GET, []) => project::get(&global),
            (&Method::POST, ["setCommonInstanceMetadata"]) => project::set_metadata(&global),
            (&Method::GET, ["aggregated", "machineTypes"]) => catalogue::machine_types_everywhere(&global),
            (&Method::GET, ["aggregated", collection]) => {
                with_kind!(*collection, K => global.aggregated::<K>()).unwrap_or_else(unknown)
            }
            (&Method::GET, ["regions", rest @ ..]) if rest.len() < 2 => catalogue::regions(&global, rest),
            (&Method::GET, ["zones", rest @ ..]) if rest.len() < 2 => catalogue::zones(&global, rest),
            (_, ["global", rest @ ..]) => collection(&global, rest),
            (_, ["regions", region, rest @ ..]) => collection(&visit(catalogue::region(region)?), rest),
            (_, ["zones", zone, rest @ ..]) => collection(&visit(catalogue::zone(zone)?), rest),
            _ => unknown(),
        }
    }
}

/// A call with what was found out about it.
struct Asked<'a> {
    call: &'a Call,
    caller: &'a Caller,
    project: &'a ProjectId,
}

fn collection(visit: &Visit<'_>, rest: &[&str]) -> Answer {
    match rest {
        ["operations", rest @ ..] => operation::serve(visit, rest),
        ["machineTypes", rest @ ..] => catalogue::machine_types(visit, rest),
        [collection, rest @ ..] => with_kind!(*collection, K => visit.collection::<K>(rest)).unwrap_or_else(unknown),
        [] => unknown(),
    }
}

fn unknown() -> Answer {
    Err(error::unknown_method())
}

/// `compute.v1.NetworksService.insert`-like, for refused credentials.
fn method_name(call: &Call) -> String {
    let is_scope = |s: &&&str| !["compute", "v1", "projects", "global", "regions", "zones", "aggregated"].contains(*s);
    let parts = call.parts();
    let collection = parts.iter().skip(4).find(|s| is_scope(s)).copied().unwrap_or("projects");
    let verb = match call.method {
        Method::GET => "Get",
        Method::POST => "Insert",
        Method::PATCH => "Patch",
        Method::PUT => "Update",
        _ => "Delete",
    };
    format!("compute.v1.{collection}.{verb}")
}
