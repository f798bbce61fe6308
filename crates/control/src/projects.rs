//! Projects, the APIs enabled on them, and the first minutes of a cloud.
//!
//! Start with [`bootstrap`] (the organisation and the first principal), then [`create`] and [`enable`]. Every API asks
//! [`require_api`] before it looks at anything of a project.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    fault::{Code, Fault},
    iam::{Policy, Principal, ServiceAccount},
    name::{ProjectId, ProjectNumber},
    project::Project,
};

use crate::{
    accounts,
    kind::Need,
    ops::{Caller, Change, Control, Txn},
    policies, random,
    world::World,
};

/// The one organisation of a cloud. Every project lies in it.
pub const ORGANIZATION: &str = "organizations/123450001";
/// Who owns a new cloud unless the operator names somebody else.
pub const ADMIN_DEFAULT: &str = "admin@tombolo.local";

/// Service names we know, with the titles of their messages. The first twelve answer; the others can be enabled (scripts
/// do that as a matter of course) and have no host here.
pub const APIS: &[Api] = &[
    api("cloudresourcemanager.googleapis.com", "Cloud Resource Manager API"),
    api("compute.googleapis.com", "Compute Engine API"),
    api("dns.googleapis.com", "Cloud DNS API"),
    api("iam.googleapis.com", "Identity and Access Management (IAM) API"),
    api("iamcredentials.googleapis.com", "IAM Service Account Credentials API"),
    api("iap.googleapis.com", "Cloud Identity-Aware Proxy API"),
    api("logging.googleapis.com", "Cloud Logging API"),
    api("orgpolicy.googleapis.com", "Organization Policy API"),
    api("oslogin.googleapis.com", "Cloud OS Login API"),
    api("run.googleapis.com", "Cloud Run Admin API"),
    api("servicedirectory.googleapis.com", "Service Directory API"),
    api("serviceusage.googleapis.com", "Service Usage API"),
    api("apigee.googleapis.com", "Apigee API"),
    api("artifactregistry.googleapis.com", "Artifact Registry API"),
    api("cloudapis.googleapis.com", "Google Cloud APIs"),
    api("cloudbilling.googleapis.com", "Cloud Billing API"),
    api("cloudbuild.googleapis.com", "Cloud Build API"),
    api("cloudscheduler.googleapis.com", "Cloud Scheduler API"),
    api("cloudtasks.googleapis.com", "Cloud Tasks API"),
    api("connectors.googleapis.com", "Connectors API"),
    api("container.googleapis.com", "Kubernetes Engine API"),
    api("containerregistry.googleapis.com", "Container Registry API"),
    api("eventarc.googleapis.com", "Eventarc API"),
    api("monitoring.googleapis.com", "Cloud Monitoring API"),
    api("networkconnectivity.googleapis.com", "Network Connectivity API"),
    api("networkmanagement.googleapis.com", "Network Management API"),
    api("networksecurity.googleapis.com", "Network Security API"),
    api("networkservices.googleapis.com", "Network Services API"),
    api("policysimulator.googleapis.com", "Policy Simulator API"),
    api("policytroubleshooter.googleapis.com", "Policy Troubleshooter API"),
    api("pubsub.googleapis.com", "Cloud Pub/Sub API"),
    api("recommender.googleapis.com", "Recommender API"),
    api("runtimeconfig.googleapis.com", "Cloud Runtime Configuration API"),
    api("secretmanager.googleapis.com", "Secret Manager API"),
    api("servicemanagement.googleapis.com", "Service Management API"),
    api("servicenetworking.googleapis.com", "Service Networking API"),
    api("storage.googleapis.com", "Cloud Storage API"),
    api("vpcaccess.googleapis.com", "Serverless VPC Access API"),
];

/// Service agents that come with an API: the API, the domain of `service-NUMBER@…`, the role on the project.
/// Source: IAM, "Service agents".
const AGENTS: &[(&str, &str, &str)] = &[
    ("run.googleapis.com", "serverless-robot-prod.iam.gserviceaccount.com", "roles/run.serviceAgent"),
    ("compute.googleapis.com", "compute-system.iam.gserviceaccount.com", "roles/compute.serviceAgent"),
];

/// APIs that answer for a project without having been enabled on it: without them nothing could be enabled.
const ALWAYS_ON: &[&str] = &[
    "cloudresourcemanager.googleapis.com",
    "serviceusage.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    pub name: &'static str,
    pub title: &'static str,
}

const fn api(name: &'static str, title: &'static str) -> Api {
    Api { name, title }
}

pub fn find_api(name: &str) -> Option<&'static Api> {
    APIS.iter().find(|api| api.name == name)
}

/// Makes the first principal the owner of the organisation. Does nothing in a cloud that has one.
pub fn bootstrap(control: &Control, admin: Option<&str>) -> Result<(), Fault> {
    let member = format!("user:{}", admin.unwrap_or(ADMIN_DEFAULT).to_ascii_lowercase());
    control.commit(|world, txn| {
        if world.policies.contains_key(ORGANIZATION) {
            return Ok(());
        }
        let mut policy = Policy::default();
        for role in ["roles/owner", "roles/resourcemanager.organizationAdmin", "roles/resourcemanager.projectCreator"] {
            policies::grant(&mut policy, role, &member, txn.now);
        }
        txn.push(Change::Policy(ORGANIZATION.to_owned(), policy));
        Ok(())
    })?;
    Ok(())
}

/// A project that somebody wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub id: String,
    /// None: the id.
    pub display_name: Option<String>,
    /// `organizations/N`; None: the cloud's organisation.
    pub parent: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// The one refusal of Resource Manager, also for a project that does not exist: it does not tell who may not see.
pub fn invisible() -> Fault {
    Fault::new(Code::PermissionDenied, "forbidden", "The caller does not have permission")
}

pub fn create(control: &Control, caller: &Caller, wanted: &Wanted) -> Result<Project, Fault> {
    let parent = wanted.parent.as_deref().unwrap_or(ORGANIZATION);
    if parent != ORGANIZATION {
        return Err(invisible());
    }
    control
        .authorize(&control.read(), caller, &[Need::on("resourcemanager.projects.create", parent)])
        .map_err(|_| invisible())?;
    let id: ProjectId = wanted.id.parse().map_err(|_| {
        Fault::invalid("field [project_id] has issue [project_id must be 6 to 30 lowercase letters, digits, or hyphens, starting with a letter and not ending with a hyphen]")
    })?;
    let (project, _) = control.commit(|world, txn| {
        if world.projects.contains_key(&id) {
            return Err(Fault::new(Code::AlreadyExists, "alreadyExists", "Requested entity already exists"));
        }
        let project = Project {
            id: id.clone(),
            number: fresh_number(world),
            display_name: wanted.display_name.clone().unwrap_or_else(|| id.to_string()),
            created: txn.now,
            labels: wanted.labels.clone(),
            parent: Some(parent.to_owned()),
            active: true,
            enabled: BTreeSet::new(),
            common_metadata: BTreeMap::new(),
            url_hash: random::text(b"abcdefghijklmnopqrstuvwxyz234567", 10),
        };
        let mut policy = Policy::default();
        policies::grant(&mut policy, "roles/owner", &caller.principal.member(), txn.now);
        txn.push(Change::Policy(format!("projects/{id}"), policy));
        txn.push(Change::Project(Box::new(project.clone())));
        Ok(project)
    })?;
    Ok(project)
}

fn fresh_number(world: &World) -> ProjectNumber {
    loop {
        let number = 100_000_000_000 + random::resource_id() % 900_000_000_000;
        if world.project(&number.to_string()).is_none() {
            return ProjectNumber(number);
        }
    }
}

/// A project by id or number, if the caller may see it.
pub fn get(control: &Control, caller: &Caller, name: &str) -> Result<Project, Fault> {
    let world = control.read();
    visible(control, &world, caller, name, "resourcemanager.projects.get").cloned()
}

/// The project of this name on which the caller holds `permission`.
fn visible<'w>(
    control: &Control,
    world: &'w World,
    caller: &Caller,
    name: &str,
    permission: &'static str,
) -> Result<&'w Project, Fault> {
    let project = world.project(name).ok_or_else(invisible)?;
    let need = Need::on(permission, format!("projects/{}", project.id));
    control.authorize(world, caller, &[need]).map_err(|_| invisible())?;
    Ok(project)
}

/// All projects that the caller may see, by id.
pub fn list(control: &Control, caller: &Caller) -> Vec<Project> {
    let world = control.read();
    let may = |p: &&Project| {
        let need = Need::on("resourcemanager.projects.get", format!("projects/{}", p.id));
        control.authorize(&world, caller, &[need]).is_ok()
    };
    world.projects.values().filter(may).cloned().collect()
}

/// Marks a project for deletion. It keeps its name, its number and all that was made in it, of which nothing runs or
/// answers until `undelete` takes it back.
/// Source: Resource Manager, 30 days of DELETE_REQUESTED.
pub fn set_active(control: &Control, caller: &Caller, name: &str, active: bool) -> Result<Project, Fault> {
    let permission = if active { "resourcemanager.projects.undelete" } else { "resourcemanager.projects.delete" };
    let (project, _) = control.commit(|world, txn| {
        let project = visible(control, world, caller, name, permission)?;
        if project.active == active {
            let text = if active { "active" } else { "not active" };
            return Err(Fault::new(
                Code::FailedPrecondition,
                "failedPrecondition",
                format!("The project '{}' is already {text}.", project.id),
            ));
        }
        let project = Project { active, ..project.clone() };
        txn.push(Change::Project(Box::new(project.clone())));
        Ok(project)
    })?;
    Ok(project)
}

/// Changes what a user may change of a project.
pub fn update(control: &Control, caller: &Caller, name: &str, edit: impl Fn(&mut Project)) -> Result<Project, Fault> {
    let (project, _) = control.commit(|world, txn| {
        let mut project = visible(control, world, caller, name, "resourcemanager.projects.update")?.clone();
        edit(&mut project);
        txn.push(Change::Project(Box::new(project.clone())));
        Ok(project)
    })?;
    Ok(project)
}

/// What Service Usage says when it does not know a service, or will not say.
fn unknown_service(names: &[&str]) -> Fault {
    let names = names.join(", ");
    Fault::new(Code::NotFound, "notFound", format!("Not found or permission denied for service(s): {names}."))
        .with_detail(serde_json::json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "SERVICE_CONFIG_NOT_FOUND_OR_PERMISSION_DENIED",
            "domain": "serviceusage.googleapis.com",
            "metadata": {"services": names},
        }))
}

/// Service Usage's refusal for a project that the caller may not touch, or that does not exist.
fn usage_denied(permission: &str, name: &str) -> Fault {
    Fault::permission_denied(permission, &format!("projects/{name}"))
}

fn usage_project<'w>(
    control: &Control,
    world: &'w World,
    caller: &Caller,
    name: &str,
    permission: &'static str,
) -> Result<&'w Project, Fault> {
    let project = visible(control, world, caller, name, permission).map_err(|_| usage_denied(permission, name))?;
    require_active(project)?;
    Ok(project)
}

/// A project and one of the APIs that there are, for whoever may see whether it is enabled.
pub fn usage(control: &Control, caller: &Caller, name: &str, api: &str) -> Result<(Project, &'static Api), Fault> {
    let world = control.read();
    let project = usage_project(control, &world, caller, name, "serviceusage.services.get")?;
    let api = find_api(api).ok_or_else(|| unknown_service(&[api]))?;
    Ok((project.clone(), api))
}

pub fn usage_list(control: &Control, caller: &Caller, name: &str) -> Result<Project, Fault> {
    let world = control.read();
    usage_project(control, &world, caller, name, "serviceusage.services.list").cloned()
}

/// Enables APIs, all or none. Compute and Run bring the default service account and their service agents.
/// Returns the project and whether anything changed.
pub fn enable(control: &Control, caller: &Caller, name: &str, apis: &[String]) -> Result<(Project, bool), Fault> {
    let unknown: Vec<&str> = apis.iter().map(String::as_str).filter(|a| find_api(a).is_none()).collect();
    let (answer, _) = control.commit(|world, txn| {
        let old = usage_project(control, world, caller, name, "serviceusage.services.enable")?;
        if !unknown.is_empty() {
            return Err(unknown_service(&unknown));
        }
        let mut project = old.clone();
        project.enabled.extend(apis.iter().cloned());
        if project == *old {
            return Ok((project, false));
        }
        provision(world, txn, &project);
        txn.push(Change::Project(Box::new(project.clone())));
        Ok((project, true))
    })?;
    Ok(answer)
}

/// The accounts that enabled APIs bring, with their grants; each is granted its role once, when it is made.
fn provision(world: &World, txn: &mut Txn, project: &Project) {
    let resource = format!("projects/{}", project.id);
    let mut policy = world.policies.get(&resource).cloned().unwrap_or_default();
    let number = project.number;
    let mut make = |email: String, display_name: &str, role: &str, agent: bool| {
        if world.accounts.contains_key(&email) {
            return;
        }
        policies::grant(&mut policy, role, &format!("serviceAccount:{email}"), txn.now);
        txn.push(Change::Account(Box::new(ServiceAccount {
            unique_id: accounts::fresh_unique_id(world),
            email,
            project: project.id.clone(),
            display_name: display_name.to_owned(),
            description: String::new(),
            disabled: false,
            created: txn.now,
            agent,
        })));
    };
    if ["compute.googleapis.com", "run.googleapis.com"].iter().any(|api| project.enabled.contains(*api)) {
        make(project.compute_default_account(), "Compute Engine default service account", "roles/editor", false);
        make(format!("{number}@cloudservices.gserviceaccount.com"), "Google APIs Service Agent", "roles/editor", true);
    }
    for (api, domain, role) in AGENTS {
        if project.enabled.contains(*api) {
            make(format!("service-{number}@{domain}"), "Service Agent", role, true);
        }
    }
    txn.push(Change::Policy(resource, policy));
}

/// Switches an API off. What was made through it stays, out of reach.
pub fn disable(control: &Control, caller: &Caller, name: &str, api: &str) -> Result<Project, Fault> {
    let (project, _) = control.commit(|world, txn| {
        let mut project = usage_project(control, world, caller, name, "serviceusage.services.disable")?.clone();
        let known = find_api(api).ok_or_else(|| unknown_service(&[api]))?;
        if project.enabled.remove(known.name) {
            txn.push(Change::Project(Box::new(project.clone())));
        }
        Ok(project)
    })?;
    Ok(project)
}

/// The refusal of every API that is not enabled on a project; gcloud offers to enable it when it reads this sentence.
pub fn require_api(world: &World, project: &str, api: &str) -> Result<(), Fault> {
    let Some(project) = world.project(project) else { return Ok(()) };
    require_active(project)?;
    if ALWAYS_ON.contains(&api) || project.enabled.contains(api) {
        return Ok(());
    }
    let title = find_api(api).map_or(api, |a| a.title);
    let number = project.number;
    let url = format!("https://console.developers.google.com/apis/api/{api}/overview?project={number}");
    let text = format!(
        "{title} has not been used in project {number} before or it is disabled. Enable it by visiting {url} then retry. \
         If you enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
    );
    let metadata = serde_json::json!({
        "service": api, "serviceTitle": title, "consumer": format!("projects/{number}"),
        "containerInfo": number.to_string(), "activationUrl": url,
    });
    Err(not_configured(text, ("Google developers console API activation", &url), "SERVICE_DISABLED", metadata))
}

/// A refusal by Google's API front end; `help` is a description and where it leads.
fn not_configured(text: String, help: (&str, &str), reason: &str, metadata: serde_json::Value) -> Fault {
    let (description, url) = help;
    Fault::new(Code::PermissionDenied, "accessNotConfigured", text)
        .with_detail(serde_json::json!({
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{"description": description, "url": url}],
        }))
        .with_detail(serde_json::json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": "googleapis.com",
            "metadata": metadata,
        }))
}

/// The refusal of every API for a project whose deletion was requested. Source: Google's API front end.
pub fn require_active(project: &Project) -> Result<(), Fault> {
    if project.active {
        return Ok(());
    }
    const UNDELETE: &str = "https://console.developers.google.com/iam-admin/projects?pendingDeletion=true";
    let number = project.number;
    let text = format!(
        "Project #{number} has been scheduled for deletion and cannot be used for API calls. Visit {UNDELETE} to undelete \
         the project."
    );
    let help = ("Google developers console", UNDELETE);
    let metadata = serde_json::json!({"consumer": format!("projects/{number}")});
    Err(not_configured(text, help, "CONSUMER_INVALID", metadata))
}

/// The service agent of Cloud Run, which pulls images and mints for instances.
pub fn run_agent(project: &Project) -> Principal {
    let email = format!("service-{}@serverless-robot-prod.iam.gserviceaccount.com", project.number);
    Principal::ServiceAccount { email, unique_id: String::new() }
}
