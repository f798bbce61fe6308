//! Service Directory v1. Who may register what is decided in `control::directory`; what a private zone shows of it, DNS
//! answers.

use std::collections::BTreeMap;

use control::{
    directory::{Asked, EndpointDraft, Location},
    ops::{Caller, Control},
    world::World,
};
use http::Method;
use model::{
    directory::{Endpoint, Namespace, Service},
    fault::{Code, Fault},
    limits::{DIRECTORY_RESOLVED_DEFAULT, DIRECTORY_RESOLVED_MAX},
    project::REGIONS,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Cloud;
use crate::{
    call::{Answer, Call, Query},
    error,
    paging::{Order, Paging},
    reply::Reply,
};

const PAGES: Paging = Paging { size: "pageSize", default: 100, max: 1_000, order: Order::ByKey };

/// Any resource: each has some of these. What is the server's own is dropped.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    #[serde(rename = "name")]
    _name: Option<Value>,
    #[serde(rename = "uid")]
    _uid: Option<Value>,
    #[serde(rename = "endpoints")]
    _endpoints: Option<Value>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    annotations: Option<BTreeMap<String, String>>,
    address: Option<String>,
    port: Option<u16>,
    network: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResolveBody {
    max_endpoints: Option<i64>,
    #[serde(default)]
    endpoint_filter: String,
}

impl Body {
    /// Of an endpoint. The fields that a mask leaves out stay as they are.
    fn draft(self, mask: Option<&[&str]>) -> Result<EndpointDraft, Fault> {
        let in_mask = |field: &str| mask.is_none_or(|mask| mask.contains(&field));
        let address = match self.address.as_deref().unwrap_or_default() {
            "" => None,
            text => match text.parse::<std::net::IpAddr>() {
                Ok(std::net::IpAddr::V4(address)) => Some(address),
                // Networks carry IPv4 only.
                Ok(std::net::IpAddr::V6(_)) => return Err(Fault::not_enforced("endpoint.address")),
                Err(_) => return Err(Fault::invalid(format!("Invalid address '{text}'."))),
            },
        };
        Ok(EndpointDraft {
            address: in_mask("address").then_some(address),
            port: in_mask("port").then(|| self.port.unwrap_or(0)),
            annotations: in_mask("annotations").then(|| self.annotations.unwrap_or_default()),
            network: self.network.filter(|network| !network.is_empty()),
        })
    }
}

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.cloud.servicedirectory.v1")?;
    let parts = call.parts();
    let ["v1", "projects", project, "locations", rest @ ..] = parts.as_slice() else {
        return Err(error::unknown_method());
    };
    if matches!(call.verb(), Some("getIamPolicy" | "setIamPolicy" | "testIamPermissions")) {
        return Err(Fault::not_enforced("policies of namespaces and services"));
    }
    let asked = |region| Asked { control: &cloud.control, caller: &caller, at: Location { project, region } };
    match (rest, call.verb()) {
        ([], None) if call.method == Method::GET => locations(&cloud.control, &caller, project),
        ([region], None) if call.method == Method::GET => {
            let project = asked(region).may("servicedirectory.locations.get")?;
            Ok(Reply::json(location(project.as_str(), region)))
        }
        ([region, "namespaces", rest @ ..], None) => namespaces(call, &asked(region), rest),
        ([region, "namespaces", namespace, "services", name], Some("resolve")) if call.method == Method::POST => {
            resolve(call, &asked(region), (namespace, name))
        }
        _ => Err(error::unknown_method()),
    }
}

fn locations(control: &Control, caller: &Caller, project: &str) -> Answer {
    let at = Location { project, region: REGIONS[0].0 };
    let project = Asked { control, caller, at }.may("servicedirectory.locations.list")?;
    let all: Vec<Value> = REGIONS.iter().map(|(name, ..)| location(project.as_str(), name)).collect();
    Ok(Reply::json(json!({"locations": all})))
}

fn namespaces(call: &Call, asked: &Asked<'_>, rest: &[&str]) -> Answer {
    match (&call.method, rest) {
        (&Method::GET, []) => list(call, "namespaces", asked.namespaces()?.iter().map(namespace)),
        (&Method::POST, []) => {
            let body: Body = call.read()?;
            Ok(Reply::json(namespace(&asked.create_namespace(id(&call.query, "namespaceId"), &body.labels)?)))
        }
        (&Method::GET, [name]) => Ok(Reply::json(namespace(&asked.namespace(name)?))),
        (&Method::PATCH, [_]) => Err(Fault::not_enforced("namespace.labels")),
        (&Method::DELETE, [name]) => nothing(asked.delete_namespace(name)),
        (_, [namespace, "services", rest @ ..]) => services(call, asked, namespace, rest),
        _ => Err(error::unknown_method()),
    }
}

fn services(call: &Call, asked: &Asked<'_>, within: &str, rest: &[&str]) -> Answer {
    match (&call.method, rest) {
        (&Method::GET, []) => list(call, "services", asked.services(within)?.iter().map(service)),
        (&Method::POST, []) => {
            let annotations = call.read::<Body>()?.annotations.unwrap_or_default();
            let name = (within, id(&call.query, "serviceId"));
            Ok(Reply::json(service(&asked.create_service(name, &annotations)?)))
        }
        (&Method::GET, [name]) => {
            Ok(Reply::json(service(&asked.service((within, name), "servicedirectory.services.get")?)))
        }
        (&Method::PATCH, [name]) => {
            let annotations = call.read::<Body>()?.annotations.unwrap_or_default();
            let mask = mask(&call.query, &["annotations"])?;
            let annotations = (!mask.is_empty()).then_some(&annotations);
            Ok(Reply::json(service(&asked.update_service((within, name), annotations)?)))
        }
        (&Method::DELETE, [name]) => nothing(asked.delete_service((within, name))),
        (_, [name, "endpoints", rest @ ..]) => endpoints(call, asked, (within, name), rest),
        _ => Err(error::unknown_method()),
    }
}

fn endpoints(call: &Call, asked: &Asked<'_>, of: (&str, &str), rest: &[&str]) -> Answer {
    let show = |service: &Service, name: &str| {
        let world = asked.control.read();
        let found = service.endpoints.get(name).map(|e| endpoint(&world, service, name, e));
        let text = || format!("Resource '{}/endpoints/{name}' was not found", service.name);
        found.map(Reply::json).ok_or_else(|| Fault::new(Code::NotFound, "notFound", text()))
    };
    match (&call.method, rest) {
        (&Method::GET, []) => {
            let found = asked.service(of, "servicedirectory.endpoints.list")?;
            list(call, "endpoints", all_endpoints(&asked.control.read(), &found))
        }
        (&Method::POST, []) => {
            let (name, draft) = (id(&call.query, "endpointId"), call.read::<Body>()?.draft(None)?);
            show(&asked.create_endpoint(of, name, &draft)?, name)
        }
        (&Method::GET, [name]) => show(&asked.service(of, "servicedirectory.endpoints.get")?, name),
        (&Method::PATCH, [name]) => {
            let mask = mask(&call.query, &["annotations", "address", "port"])?;
            show(&asked.update_endpoint(of, name, &call.read::<Body>()?.draft(Some(&mask))?)?, name)
        }
        (&Method::DELETE, [name]) => nothing(asked.delete_endpoint(of, name)),
        _ => Err(error::unknown_method()),
    }
}

/// Source: `services.resolve`, with its bounds for the number of endpoints.
fn resolve(call: &Call, asked: &Asked<'_>, name: (&str, &str)) -> Answer {
    let body: ResolveBody = call.read()?;
    if !body.endpoint_filter.is_empty() {
        return Err(Fault::not_enforced("endpointFilter"));
    }
    let asked_for = body.max_endpoints.and_then(|max| usize::try_from(max).ok()).filter(|max| *max > 0);
    let max = asked_for.unwrap_or(DIRECTORY_RESOLVED_DEFAULT).min(DIRECTORY_RESOLVED_MAX);
    let found = asked.service(name, "servicedirectory.services.resolve")?;
    let mut shown = service(&found);
    if !found.endpoints.is_empty() {
        shown["endpoints"] = all_endpoints(&asked.control.read(), &found).take(max).collect();
    }
    Ok(Reply::json(json!({"service": shown})))
}

fn id<'a>(query: &'a Query, name: &str) -> &'a str {
    query.get(name).unwrap_or_default()
}

fn nothing(done: Result<(), Fault>) -> Answer {
    done.map(|()| Reply::json(json!({})))
}

/// The fields to change, which must be told.
fn mask<'a>(query: &'a Query, known: &[&str]) -> Result<Vec<&'a str>, Fault> {
    let mask = query.get("updateMask").unwrap_or_default();
    if mask.is_empty() {
        return Err(Fault::invalid("The field 'update_mask' is required."));
    }
    let fields: Vec<&str> = mask.split(',').collect();
    match fields.iter().find(|field| !known.contains(field)) {
        Some(other) => Err(Fault::invalid(format!("Invalid field '{other}' in update_mask."))),
        None => Ok(fields),
    }
}

fn list(call: &Call, field: &str, items: impl Iterator<Item = Value>) -> Answer {
    for unknown in ["filter", "orderBy"] {
        if call.query.get(unknown).is_some_and(|text| !text.is_empty()) {
            return Err(Fault::not_enforced(unknown));
        }
    }
    let name = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
    PAGES.list(&call.query, field, items.map(|item| (name(&item), item)).collect())
}

fn location(project: &str, region: &str) -> Value {
    json!({"name": format!("projects/{project}/locations/{region}"), "locationId": region})
}

fn namespace(namespace: &Namespace) -> Value {
    let mut shown = json!({"name": namespace.name.to_string(), "uid": namespace.uid});
    if !namespace.labels.is_empty() {
        shown["labels"] = json!(namespace.labels);
    }
    shown
}

/// Without its endpoints, which only `resolve` shows.
fn service(service: &Service) -> Value {
    let mut shown = json!({"name": service.name.to_string(), "uid": service.uid});
    if !service.annotations.is_empty() {
        shown["annotations"] = json!(service.annotations);
    }
    shown
}

fn all_endpoints<'a>(world: &'a World, service: &'a Service) -> impl Iterator<Item = Value> + 'a {
    service.endpoints.iter().map(|(name, e)| endpoint(world, service, name, e))
}

fn endpoint(world: &World, service: &Service, name: &str, endpoint: &Endpoint) -> Value {
    let mut shown = json!({"name": format!("{}/endpoints/{name}", service.name), "uid": endpoint.uid});
    if let Some(address) = endpoint.address {
        shown["address"] = address.to_string().into();
    }
    if endpoint.port != 0 {
        shown["port"] = endpoint.port.into();
    }
    if !endpoint.annotations.is_empty() {
        shown["annotations"] = json!(endpoint.annotations);
    }
    if let Some((network, _)) = &endpoint.network {
        let number = world.projects.get(&network.project).map_or(0, |project| project.number.0);
        shown["network"] = format!("projects/{number}/locations/global/networks/{}", network.name).into();
    }
    shown
}
