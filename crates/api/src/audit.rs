//! The activity log's door: every call that changes something is written down here, whichever API it is for.
//!
//! A call is recognised by its method and path; what was asked of IAM in its course comes along in its
//! [`Caller`](control::ops::Caller). Calls that nobody is known to have made are refused before any of that and leave no
//! entry. Start with [`Audit::begin`].

use std::sync::{Arc, OnceLock};

use control::{
    ops::{Caller, Control},
    random,
    world::World,
};
use http::Method;
use logs::{
    Journal, Resource,
    audit::{self, Checked, Principal},
    entry::Operation,
};
use model::{
    limits::AUDIT_REQUEST_BYTES_MAX,
    name::{Link, ProjectId},
    time::Timestamp,
};
use serde_json::{Value, json};

use crate::{
    call::{Answer, Call},
    host::Service,
    reply::Content,
};

/// Who a call turned out to be from; told by whoever checks the credential.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<OnceLock<Caller>>);

impl Witness {
    pub fn tell(&self, caller: &Caller) {
        // A call has one caller; a second look at the same credential finds the same.
        let _ = self.0.set(caller.clone());
    }
}

pub struct Audit {
    pub control: Arc<Control>,
    pub journal: Arc<Journal>,
}

/// A call on its way.
pub struct Begun {
    act: Act,
    witness: Witness,
    service: Service,
    request: Option<Value>,
    caller_ip: String,
    user_agent: String,
    at: Timestamp,
}

/// What a call does, as its API's entries name it.
#[derive(Clone, Debug, PartialEq)]
struct Act {
    method: String,
    /// The type of its body.
    request: String,
    on: On,
}

#[derive(Clone, Debug, PartialEq)]
enum On {
    /// A resource of Compute. One that is being made has its name in the body.
    Compute(Link),
    /// `projects/P` of Compute.
    ComputeProject(String),
    /// Cloud Run: project, region, service, and whether its name is written as v1 does.
    Run {
        project: String,
        region: String,
        service: String,
        v1: bool,
    },
    /// A service account of any project, by address or id; or the project in which one is made.
    Account {
        project: String,
        account: Option<String>,
    },
    Project(String),
    OrgPolicy {
        project: String,
        constraint: String,
    },
    Usage {
        project: String,
        api: String,
    },
    /// An account in a project's VMs.
    Login {
        project: String,
        user: String,
    },
    /// Service Directory: a project, and what is in it, by its full name after the project's.
    Directory {
        project: String,
        below: String,
    },
}

impl Audit {
    /// None for what changes nothing.
    pub fn begin(&self, call: &Call) -> Option<Begun> {
        if call.method == Method::GET {
            return None;
        }
        let body = call.json().ok();
        let act = act(&self.control.read(), call, body.as_ref().unwrap_or(&Value::Null))?;
        // Bodies without end belong into no log; a call says what it did without one.
        let request = body.filter(|_| call.body.len() <= AUDIT_REQUEST_BYTES_MAX).and_then(|mut body| {
            let fields = body.as_object_mut()?;
            fields.shift_insert(0, "@type".to_owned(), json!(format!("type.googleapis.com/{}", act.request)));
            Some(body)
        });
        Some(Begun {
            act,
            witness: call.witness.clone(),
            service: call.host.service,
            request,
            caller_ip: call.peer.to_string(),
            user_agent: call.headers.user_agent.clone().unwrap_or_default(),
            at: call.now,
        })
    }

    pub fn end(&self, begun: Begun, answer: &Answer) {
        let Some(caller) = begun.witness.0.get() else { return };
        let world = self.control.read();
        let reply = match answer.as_ref().map(|reply| &reply.content) {
            Ok(Content::Json(value)) => value,
            Ok(_) | Err(_) => &Value::Null,
        };
        let Some((project, about)) = about(&world, &begun.act.on, reply) else { return };
        let permissions = caller.trail.checked().into_iter().map(|checked| Checked {
            permission: checked.permission.to_owned(),
            resource: checked.resource,
            granted: checked.granted,
        });
        let entry = audit::Call {
            project,
            service: begun.service.host().to_owned(),
            method: begun.act.method,
            resource_name: about.name,
            resource: about.resource,
            principal: Principal { email: caller.principal.email().to_owned(), subject: caller.principal.member() },
            permissions: permissions.collect(),
            caller_ip: begun.caller_ip,
            user_agent: begun.user_agent,
            locations: about.locations,
            request: begun.request,
            // A new key's private half stands in an answer.
            response: None,
            status: answer.as_ref().map(drop).map_err(|fault| (fault.code, fault.message.clone())),
            operation: operation(begun.service, reply),
            at: begun.at,
            chance: random::number(),
        };
        self.journal.append(&[entry.entry()]);
    }
}

/// What a Compute call began; its end is told when it comes.
fn operation(service: Service, reply: &Value) -> Option<Operation> {
    if service != Service::Compute || reply["kind"] != "compute#operation" {
        return None;
    }
    let id = reply["name"].as_str()?.to_owned();
    Some(Operation { id, producer: Service::Compute.host().to_owned(), first: true, last: false })
}

struct About {
    name: String,
    resource: Resource,
    locations: Vec<String>,
}

/// Whose log an entry belongs to and what it is about. None: there is no such project, or none yet.
fn about(world: &World, on: &On, reply: &Value) -> Option<(ProjectId, About)> {
    let known = |name: &str| world.project(name).map(|project| project.id.clone());
    Some(match on {
        On::Compute(link) => {
            let object = world.objects.get(link).map(control::kind::Object::id);
            let id = object.map(|id| id.to_string()).or_else(|| reply["targetId"].as_str().map(str::to_owned));
            let resource = audit::compute_resource(link, id.as_deref().unwrap_or_default());
            (link.project.clone(), About { name: link.to_string(), resource, locations: audit::locations(link) })
        }
        On::ComputeProject(name) | On::Project(name) => {
            let id = known(name)?;
            (id.clone(), About { name: format!("projects/{id}"), resource: project(&id), locations: vec![] })
        }
        On::OrgPolicy { project: name, constraint } => {
            let found = world.project(name)?;
            let name = format!("projects/{}/policies/{constraint}", found.number);
            (found.id.clone(), About { name, resource: project(&found.id), locations: vec![] })
        }
        On::Run { project, region, service, v1 } => {
            let id = known(project)?;
            let name = match v1 {
                true => format!("namespaces/{id}/services/{service}"),
                false => format!("projects/{id}/locations/{region}/services/{service}"),
            };
            let resource = Resource::new(
                "cloud_run_revision",
                [
                    ("project_id", id.to_string()),
                    ("location", region.clone()),
                    ("service_name", service.clone()),
                    ("configuration_name", String::new()),
                    ("revision_name", String::new()),
                ],
            );
            (id, About { name, resource, locations: vec![region.clone()] })
        }
        On::Account { project: name, account } => {
            let account = account.as_deref().or_else(|| reply["email"].as_str());
            let find =
                |account| control::accounts::find(world, control::accounts::AccountName { project: name, account });
            match account.and_then(find) {
                Some(account) => {
                    let labels = [
                        ("project_id", account.project.to_string()),
                        ("email_id", account.email.clone()),
                        ("unique_id", account.unique_id.clone()),
                    ];
                    let name = format!("projects/-/serviceAccounts/{}", account.unique_id);
                    let resource = Resource::new("service_account", labels);
                    (account.project.clone(), About { name, resource, locations: vec![] })
                }
                None => {
                    // One that has just been deleted, or never was.
                    let id = known(name).or_else(|| known(account?.split_once('@')?.1.split_once('.')?.0))?;
                    let labels = [
                        ("project_id", id.to_string()),
                        ("email_id", account.unwrap_or_default().to_owned()),
                        ("unique_id", String::new()),
                    ];
                    let named = account.map(|account| format!("projects/-/serviceAccounts/{account}"));
                    let name = named.unwrap_or_else(|| format!("projects/{id}"));
                    (id, About { name, resource: Resource::new("service_account", labels), locations: vec![] })
                }
            }
        }
        On::Directory { project, below } => {
            let id = known(project)?;
            let region = below.split('/').nth(1)?.to_owned();
            let (name, resource) = (format!("projects/{id}/{below}"), audited(&id, Service::ServiceDirectory));
            (id, About { name, resource, locations: vec![region] })
        }
        On::Usage { project, api } => {
            let found = world.project(project)?;
            let name = format!("projects/{}/services/{api}", found.number);
            let resource = audited(&found.id, Service::ServiceUsage);
            (found.id.clone(), About { name, resource, locations: vec![] })
        }
        On::Login { project, user } => {
            let id = known(project)?;
            let resource = audited(&id, Service::OsLogin);
            (id, About { name: format!("users/{user}"), resource, locations: vec![] })
        }
    })
}

/// What has no resource of its own in a log.
fn audited(project: &ProjectId, service: Service) -> Resource {
    let labels =
        [("project_id", project.to_string()), ("service", service.host().to_owned()), ("method", String::new())];
    Resource::new("audited_resource", labels)
}

fn project(id: &ProjectId) -> Resource {
    Resource::new("project", [("project_id", id.to_string())])
}

/// Recognises a call. The names are those of the APIs' published methods.
fn act(world: &World, call: &Call, body: &Value) -> Option<Act> {
    let (parts, verb) = (call.parts(), call.verb());
    match call.host.service {
        Service::Compute => compute(world, call, &parts, body),
        Service::Run => run(call, &parts, verb, body),
        Service::Iam => iam(&call.method, &parts, verb),
        Service::ResourceManager => resource_manager(&call.method, &parts, verb, body),
        Service::ServiceUsage => service_usage(&call.method, &parts, verb),
        // They change nothing that is stored for others to find.
        Service::IamCredentials | Service::Logging | Service::OAuth | Service::Accounts => None,
        Service::OrgPolicy => org_policy(&call.method, &parts, body),
        Service::OsLogin => os_login(call, &parts, verb),
        Service::ServiceDirectory => service_directory(call, &parts, verb),
        // Nothing can be changed there.
        Service::Dns | Service::Iap => None,
    }
}

fn compute(world: &World, call: &Call, parts: &[&str], body: &Value) -> Option<Act> {
    let ["compute", "v1", "projects", project, rest @ ..] = parts else { return None };
    let act = |method: String, on: On| Act { request: method.replacen("v1.", "", 1), method, on };
    if let ["setCommonInstanceMetadata"] = rest {
        let on = On::ComputeProject((*project).to_owned());
        return Some(act("v1.compute.projects.setCommonInstanceMetadata".to_owned(), on));
    }
    let id = world.project(project)?.id.clone();
    let (scope, rest) = match rest {
        ["global", rest @ ..] => ("global".to_owned(), rest),
        [kind @ ("regions" | "zones"), place, rest @ ..] => (format!("{kind}/{place}"), rest),
        _ => return None,
    };
    let (collection, name, verb) = match (&call.method, rest) {
        (&Method::POST, [collection]) => (collection, body["name"].as_str().unwrap_or_default(), "insert"),
        (&Method::DELETE, [collection, name]) => (collection, *name, "delete"),
        (&Method::PATCH, [collection, name]) => (collection, *name, "patch"),
        (&Method::PUT, [collection, name]) => (collection, *name, "update"),
        (&Method::POST, [_, _, "testIamPermissions" | "getIamPolicy" | "wait"]) => return None,
        (&Method::POST, [collection, name, verb]) => (collection, *name, *verb),
        _ => return None,
    };
    let link = Link::parse(&format!("projects/{id}/{scope}/{collection}/{name}"), &id).ok()?;
    Some(act(format!("v1.{}", audit::compute_method(&link, verb)), On::Compute(link)))
}

fn run(call: &Call, parts: &[&str], verb: Option<&str>, body: &Value) -> Option<Act> {
    let (v1, project, region, rest) = match parts {
        ["apis", "serving.knative.dev", "v1", "namespaces", project, rest @ ..] => {
            (true, *project, call.host.region.as_ref().map(ToString::to_string).unwrap_or_default(), rest)
        }
        ["v1", "projects", project, "locations" | "regions", region, rest @ ..] => {
            (true, *project, (*region).to_owned(), rest)
        }
        ["v2", "projects", project, "locations", region, rest @ ..] => (false, *project, (*region).to_owned(), rest),
        _ => return None,
    };
    let (kind, name, service) = match (&call.method, rest, verb) {
        (&Method::POST, ["services"], None) if v1 => {
            ("Services", "CreateService", body["metadata"]["name"].as_str().unwrap_or_default())
        }
        (&Method::POST, ["services"], None) => {
            ("Services", "CreateService", call.query.get("serviceId").unwrap_or_default())
        }
        (&Method::PUT, ["services", service], None) => ("Services", "ReplaceService", *service),
        (&Method::PATCH, ["services", service], None) => ("Services", "UpdateService", *service),
        (&Method::DELETE, ["services", service], None) => ("Services", "DeleteService", *service),
        (&Method::POST, ["services", service], Some("setIamPolicy")) => ("Services", "SetIamPolicy", *service),
        (&Method::DELETE, ["revisions", revision], None) => ("Revisions", "DeleteRevision", *revision),
        (&Method::DELETE, ["services", _, "revisions", revision], None) => ("Revisions", "DeleteRevision", *revision),
        _ => return None,
    };
    let version = if v1 { "v1" } else { "v2" };
    Some(Act {
        method: format!("google.cloud.run.{version}.{kind}.{name}"),
        request: format!("google.cloud.run.{version}.{name}Request"),
        on: On::Run { project: project.to_owned(), region, service: service.to_owned(), v1 },
    })
}

fn iam(method: &Method, parts: &[&str], verb: Option<&str>) -> Option<Act> {
    let ["v1", "projects", project, "serviceAccounts", rest @ ..] = parts else { return None };
    let (name, account) = match (method, rest, verb) {
        (&Method::POST, [], None) => ("CreateServiceAccount", None),
        (&Method::PATCH, [account], None) => ("PatchServiceAccount", Some(account)),
        (&Method::PUT, [account], None) => ("UpdateServiceAccount", Some(account)),
        (&Method::DELETE, [account], None) => ("DeleteServiceAccount", Some(account)),
        (&Method::POST, [account], Some("disable")) => ("DisableServiceAccount", Some(account)),
        (&Method::POST, [account], Some("enable")) => ("EnableServiceAccount", Some(account)),
        (&Method::POST, [account], Some("setIamPolicy")) => ("SetIAMPolicy", Some(account)),
        (&Method::POST, [account, "keys"], None) => ("CreateServiceAccountKey", Some(account)),
        (&Method::DELETE, [account, "keys", _], None) => ("DeleteServiceAccountKey", Some(account)),
        (&Method::POST, [account, "keys", _], Some("disable")) => ("DisableServiceAccountKey", Some(account)),
        (&Method::POST, [account, "keys", _], Some("enable")) => ("EnableServiceAccountKey", Some(account)),
        _ => return None,
    };
    Some(Act {
        method: format!("google.iam.admin.v1.{name}"),
        request: format!("google.iam.admin.v1.{name}Request"),
        on: On::Account { project: (*project).to_owned(), account: account.map(|a| (*a).to_owned()) },
    })
}

fn resource_manager(method: &Method, parts: &[&str], verb: Option<&str>, body: &Value) -> Option<Act> {
    let [version @ ("v1" | "v3"), "projects", rest @ ..] = parts else { return None };
    let (name, project) = match (method, rest, verb) {
        (&Method::POST, [], None) => ("CreateProject", body["projectId"].as_str().unwrap_or_default()),
        (&Method::PUT | &Method::PATCH, [project], None) => ("UpdateProject", *project),
        (&Method::DELETE, [project], None) => ("DeleteProject", *project),
        (&Method::POST, [project], Some("undelete")) => ("UndeleteProject", *project),
        (&Method::POST, [project], Some("setIamPolicy")) => ("SetIamPolicy", *project),
        _ => return None,
    };
    Some(Act {
        // Source: Resource Manager's entries have the bare name.
        method: name.to_owned(),
        request: format!("google.cloudresourcemanager.{version}.{name}Request"),
        on: On::Project(project.to_owned()),
    })
}

/// An organisation has no log here; what is set on it is in none.
fn org_policy(method: &Method, parts: &[&str], body: &Value) -> Option<Act> {
    let ["v2", "projects", project, "policies", rest @ ..] = parts else { return None };
    let (name, constraint) = match (method, rest) {
        (&Method::POST, []) => ("CreatePolicy", body["name"].as_str().unwrap_or_default().rsplit('/').next()?),
        (&Method::PATCH, [constraint]) => ("UpdatePolicy", *constraint),
        (&Method::DELETE, [constraint]) => ("DeletePolicy", *constraint),
        _ => return None,
    };
    Some(Act {
        method: format!("google.cloud.orgpolicy.v2.OrgPolicy.{name}"),
        request: format!("google.cloud.orgpolicy.v2.{name}Request"),
        on: On::OrgPolicy { project: (*project).to_owned(), constraint: constraint.to_owned() },
    })
}

/// A profile is nobody's but its owner's; what makes or ends an account in a project's VMs is in the project's log.
fn os_login(call: &Call, parts: &[&str], verb: Option<&str>) -> Option<Act> {
    let [_, "users", user, rest @ ..] = parts else { return None };
    let (name, project) = match (&call.method, rest, verb) {
        (&Method::POST, [], Some("importSshPublicKey")) => ("ImportSshPublicKey", call.query.get("projectId")?),
        (&Method::POST, ["projects", project], None) => ("ProvisionPosixAccount", *project),
        (&Method::DELETE, ["projects", project], None) => ("DeletePosixAccount", *project),
        _ => return None,
    };
    Some(Act {
        method: format!("google.cloud.oslogin.v1.OsLoginService.{name}"),
        request: format!("google.cloud.oslogin.v1.{name}Request"),
        on: On::Login { project: project.to_owned(), user: (*user).to_owned() },
    })
}

fn service_usage(method: &Method, parts: &[&str], verb: Option<&str>) -> Option<Act> {
    let (name, project, api) = match (method, parts, verb) {
        (&Method::POST, ["v1", "projects", project, "services", api], Some("enable")) => {
            ("EnableService", project, *api)
        }
        (&Method::POST, ["v1", "projects", project, "services", api], Some("disable")) => {
            ("DisableService", project, *api)
        }
        (&Method::POST, ["v1", "projects", project, "services"], Some("batchEnable")) => {
            ("BatchEnableServices", project, "-")
        }
        _ => return None,
    };
    Some(Act {
        method: format!("google.api.serviceusage.v1.ServiceUsage.{name}"),
        request: format!("google.api.serviceusage.v1.{name}Request"),
        on: On::Usage { project: (*project).to_owned(), api: api.to_owned() },
    })
}

fn service_directory(call: &Call, parts: &[&str], verb: Option<&str>) -> Option<Act> {
    let ["v1", "projects", project, below @ ..] = parts else { return None };
    let (deed, collection, made) = match (&call.method, below, verb) {
        (&Method::POST, ["locations", _, "namespaces"], None) => ("Create", "namespaces", "namespaceId"),
        (&Method::POST, [.., "services"], None) => ("Create", "services", "serviceId"),
        (&Method::POST, [.., "endpoints"], None) => ("Create", "endpoints", "endpointId"),
        (&Method::PATCH, [.., collection, _], None) => ("Update", *collection, ""),
        (&Method::DELETE, [.., collection, _], None) => ("Delete", *collection, ""),
        _ => return None,
    };
    let kind = match collection {
        "namespaces" => "Namespace",
        "services" => "Service",
        "endpoints" => "Endpoint",
        _ => return None,
    };
    let mut below = below.join("/");
    if !made.is_empty() {
        below = format!("{below}/{}", call.query.get(made).unwrap_or_default());
    }
    Some(Act {
        method: format!("google.cloud.servicedirectory.v1.RegistrationService.{deed}{kind}"),
        request: format!("google.cloud.servicedirectory.v1.{deed}{kind}Request"),
        on: On::Directory { project: (*project).to_owned(), below },
    })
}
