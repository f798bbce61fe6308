//! Resource Manager: projects in v1, as gcloud asks for them, and what other clients need of v3.

use std::collections::BTreeMap;

use control::{
    ops::{Caller, Control},
    policies::{self, Target},
    projects::{self, Wanted, invisible},
};
use http::Method;
use identity::policy::Place;
use model::{fault::Fault, project::Project};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Cloud, policy};
use crate::{
    call::{Answer, Call},
    error,
    reply::Reply,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewProjectV1 {
    project_id: String,
    name: Option<String>,
    parent: Option<Parent>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Parent {
    r#type: String,
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewProjectV3 {
    project_id: String,
    display_name: Option<String>,
    parent: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Update {
    name: Option<String>,
    display_name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.cloudresourcemanager.v1.Projects")?;
    let control = &cloud.control;
    match (&call.method, call.parts().as_slice(), call.verb()) {
        (&Method::POST, ["v1", "projects"], None) => {
            let body: NewProjectV1 = call.read()?;
            let parent = body.parent.map(|p| format!("{}s/{}", p.r#type, p.id));
            let wanted = Wanted { id: body.project_id, display_name: body.name, parent, labels: body.labels };
            let project = projects::create(control, &caller, &wanted)?;
            Ok(Reply::json(operation(&project, show_v1)))
        }
        (&Method::POST, ["v3", "projects"], None) => {
            let body: NewProjectV3 = call.read()?;
            let wanted = Wanted {
                id: body.project_id,
                display_name: body.display_name,
                parent: body.parent,
                labels: body.labels,
            };
            let project = projects::create(control, &caller, &wanted)?;
            Ok(Reply::json(operation(&project, show_v3)))
        }
        (&Method::GET, [version @ ("v1" | "v3"), "operations", name], None) => {
            // Creation is finished before it is answered, so its operation is the project itself.
            let number = name.strip_prefix("cp.").ok_or_else(invisible)?;
            let project = projects::get(control, &caller, number)?;
            Ok(Reply::json(operation(&project, if *version == "v1" { show_v1 } else { show_v3 })))
        }
        (&Method::GET, ["v1", "projects"], None) => list(control, call, &caller, show_v1),
        (&Method::GET, ["v3", "projects"], None) | (&Method::GET, ["v3", "projects"], Some("search")) => {
            list(control, call, &caller, show_v3)
        }
        (&Method::GET, ["v1", "projects", name], None) => {
            Ok(Reply::json(show_v1(&projects::get(control, &caller, name)?)))
        }
        (&Method::GET, ["v3", "projects", name], None) => {
            Ok(Reply::json(show_v3(&projects::get(control, &caller, name)?)))
        }
        (&Method::PUT, ["v1", "projects", name], None) => {
            let body: Update = call.read()?;
            let project = projects::update(control, &caller, name, |p| {
                p.display_name = body.name.clone().unwrap_or_else(|| p.id.to_string());
                p.labels = body.labels.clone().unwrap_or_default();
            })?;
            Ok(Reply::json(show_v1(&project)))
        }
        (&Method::PATCH, ["v3", "projects", name], None) => patch(control, call, &caller, name),
        (&Method::DELETE, ["v1", "projects", name], None) => {
            projects::set_active(control, &caller, name, false)?;
            Ok(Reply::json(json!({})))
        }
        (&Method::DELETE, ["v3", "projects", name], None) => {
            let project = projects::set_active(control, &caller, name, false)?;
            Ok(Reply::json(operation(&project, show_v3)))
        }
        (&Method::POST, ["v1", "projects", name], Some("undelete")) => {
            projects::set_active(control, &caller, name, true)?;
            Ok(Reply::json(json!({})))
        }
        (&Method::POST, ["v1" | "v3", "projects", name], Some(verb)) => {
            let project = control.read().project(name).map(|p| format!("projects/{}", p.id));
            let project = project.unwrap_or_else(|| policies::NOWHERE.to_owned());
            policy(control, call, &caller, &project, verb)
        }
        (&Method::GET, ["v1" | "v3", "organizations", id], None) => {
            let world = control.read();
            let resource = format!("organizations/{id}");
            let need = control::kind::Need::on("resourcemanager.organizations.get", &resource);
            control.authorize(&world, &caller, &[need]).map_err(|_| invisible())?;
            Ok(Reply::json(json!({
                "name": resource, "displayName": "tombolo.local", "lifecycleState": "ACTIVE", "state": "ACTIVE",
            })))
        }
        (&Method::POST, ["v1" | "v3", "organizations", id], Some(verb)) => {
            policy(control, call, &caller, &format!("organizations/{id}"), verb)
        }
        (&Method::GET, ["v3", "effectiveTags"], None) => Ok(Reply::json(json!({}))),
        _ => Err(error::unknown_method()),
    }
}

/// `updateMask` names what is meant; without one, what the body has.
fn patch(control: &Control, call: &Call, caller: &Caller, name: &str) -> Answer {
    let body: Update = call.read()?;
    let masked = |field: &str, present: bool| match call.query.get("updateMask") {
        Some(mask) => mask.split(',').any(|m| m == field || m.replace('_', "").eq_ignore_ascii_case(field)),
        None => present,
    };
    let (names, labels) = (masked("displayName", body.display_name.is_some()), masked("labels", body.labels.is_some()));
    let project = projects::update(control, caller, name, |p| {
        if names {
            p.display_name = body.display_name.clone().unwrap_or_default();
        }
        if labels {
            p.labels = body.labels.clone().unwrap_or_default();
        }
    })?;
    Ok(Reply::json(operation(&project, show_v3)))
}

fn policy(control: &Control, call: &Call, caller: &Caller, resource: &str, verb: &str) -> Answer {
    let (get, set) = match resource.split_once('/') {
        Some(("projects", _)) => ("resourcemanager.projects.getIamPolicy", "resourcemanager.projects.setIamPolicy"),
        _ => ("resourcemanager.organizations.getIamPolicy", "resourcemanager.organizations.setIamPolicy"),
    };
    let target = Target { resource, place: Place::Hierarchy, get, set, denied: &|_| invisible() };
    policy::serve(control, call, caller, target, verb, |_| Ok(()))
}

fn list(control: &Control, call: &Call, caller: &Caller, shape: fn(&Project) -> Value) -> Answer {
    let filter = Filter::parse(call.query.get("filter").or(call.query.get("query")).unwrap_or(""))?;
    let parent = call.query.get("parent");
    let all = projects::list(control, caller);
    let wanted = |p: &&Project| filter.matches(p) && parent.is_none_or(|parent| p.parent.as_deref() == Some(parent));
    let shown: Vec<Value> = all.iter().filter(wanted).map(shape).collect();
    Ok(Reply::json(if shown.is_empty() { json!({}) } else { json!({"projects": shown}) }))
}

fn state(project: &Project) -> &'static str {
    if project.active { "ACTIVE" } else { "DELETE_REQUESTED" }
}

/// A project as v1 shows it.
fn show_v1(project: &Project) -> Value {
    let mut shown = json!({
        "projectNumber": project.number.to_string(),
        "projectId": project.id,
        "lifecycleState": state(project),
        "name": project.display_name,
        "createTime": project.created.rfc3339_us(),
    });
    if !project.labels.is_empty() {
        shown["labels"] = json!(project.labels);
    }
    if let Some((kind, id)) = project.parent.as_deref().and_then(|p| p.split_once('/')) {
        shown["parent"] = json!({"type": kind.trim_end_matches('s'), "id": id});
    }
    shown
}

/// A project as v3 shows it.
fn show_v3(project: &Project) -> Value {
    let mut shown = json!({
        "name": format!("projects/{}", project.number),
        "parent": project.parent,
        "projectId": project.id,
        "state": state(project),
        "displayName": project.display_name,
        "createTime": project.created.rfc3339_us(),
        "updateTime": project.created.rfc3339_us(),
    });
    if !project.labels.is_empty() {
        shown["labels"] = json!(project.labels);
    }
    shown
}

fn operation(project: &Project, shape: fn(&Project) -> Value) -> Value {
    let mut response = shape(project);
    response["@type"] = "type.googleapis.com/google.cloudresourcemanager.v1.Project".into();
    json!({
        "name": format!("operations/cp.{}", project.number),
        "done": true,
        "metadata": {
            "@type": "type.googleapis.com/google.cloudresourcemanager.v1.ProjectCreationStatus",
            "createTime": project.created.rfc3339_us(),
            "gettable": true,
            "ready": true,
        },
        "response": response,
    })
}

/// `field:value` terms, all of which must hold. A trailing `*` matches any rest; `=` is another spelling of the colon.
struct Filter(Vec<(String, String)>);

impl Filter {
    fn parse(text: &str) -> Result<Filter, Fault> {
        let term = |term: &str| {
            let (field, value) = term.split_once([':', '='])?;
            let known = [
                "id",
                "projectid",
                "name",
                "displayname",
                "lifecyclestate",
                "state",
                "parent.type",
                "parent.id",
                "parent",
            ];
            let lower = field.to_ascii_lowercase();
            let ok = known.contains(&lower.as_str()) || lower.starts_with("labels.");
            ok.then(|| (lower, value.trim_matches('"').to_ascii_lowercase()))
        };
        let terms = text.split_whitespace().filter(|word| *word != "AND");
        terms
            .map(|word| {
                term(word).ok_or_else(|| Fault::invalid(format!("Field [filter] has issue [Invalid filter: '{word}']")))
            })
            .collect::<Result<_, _>>()
            .map(Filter)
    }

    fn matches(&self, project: &Project) -> bool {
        self.0.iter().all(|(field, pattern)| {
            let parent = project.parent.as_deref().unwrap_or("");
            let (kind, id) = parent.split_once('/').unwrap_or(("", ""));
            let value = match field.as_str() {
                "id" | "projectid" => project.id.as_str(),
                "name" | "displayname" => &project.display_name,
                "lifecyclestate" | "state" => state(project),
                "parent.type" => kind.trim_end_matches('s'),
                "parent.id" => id,
                "parent" => parent,
                label => match label.strip_prefix("labels.").and_then(|key| project.labels.get(key)) {
                    Some(value) => value,
                    None => return false,
                },
            };
            let value = value.to_ascii_lowercase();
            match pattern.strip_suffix('*') {
                Some(prefix) => value.starts_with(prefix),
                None => value == *pattern,
            }
        })
    }
}
