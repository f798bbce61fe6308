//! Cloud Run services: what users ask for, the revisions that come of it, and the operations that tell how it went.
//!
//! Both API versions are views of one record; this file knows neither's JSON. Start with [`Client`] (the verbs), then
//! [`revise`](Client::replace) (when a revision is made), [`check`] (what may be asked), [`status`] (what is shown) and
//! [`plan`] (what the machine is told). Instances come and go in [`crate::instances`].

pub mod check;
pub mod image;
pub mod plan;
mod relatives;
mod revise;
pub mod status;

use model::{
    fault::{Code, Fault},
    iam::Policy,
    limits,
    name::Region,
    project::{Project, REGIONS},
    run::{Revision, RevisionKey, RevisionState, Service, ServiceKey},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    accounts,
    kind::Need,
    ops::{Caller, Change, Control, Txn},
    policies, projects, random,
    run::{
        revise::{check_traffic_targets, revise},
        status::Tri,
    },
    world::{ServiceRecord, World},
};

const API: &str = "run.googleapis.com";
/// What a write promised: the service as wanted at this generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOperation {
    /// A UUID.
    pub id: String,
    pub service: ServiceKey,
    /// Of the service's incarnation.
    pub uid: String,
    pub generation: u64,
    pub created: Timestamp,
    /// The service as it was when this operation deleted it.
    pub deleted: Option<Box<ServiceRecord>>,
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Running(Box<ServiceRecord>),
    Done(Box<ServiceRecord>),
    Failed { code: Code, message: String, service: Option<Box<ServiceRecord>> },
}

/// Which version's words refusals use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    V1,
    V2,
}

/// Whether a write is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Commit,
    /// Everything is checked and filled in, nothing is stored.
    DryRun,
}

/// Whether a template that did not change still makes a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revise {
    IfChanged,
    Always,
}

/// Somebody who asks for services.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    pub control: &'a Control,
    pub caller: &'a Caller,
    pub view: View,
}

impl Client<'_> {
    /// A project and a region in which the caller holds `permission`, with the API switched on.
    fn enter<'w>(
        &self,
        world: &'w World,
        project: &str,
        permission: &'static str,
        what: &str,
    ) -> Result<&'w Project, Fault> {
        let denied = || self.denied(permission, &format!("{}{what}", self.parent(project)));
        let project = world.project(project).ok_or_else(denied)?;
        let need = Need::on(permission, format!("projects/{}", project.id));
        self.control.authorize(world, self.caller, &[need]).map_err(|_| denied())?;
        projects::require_api(world, project.id.as_str(), API)?;
        Ok(project)
    }

    fn parent(&self, project: &str) -> String {
        match self.view {
            View::V1 => format!("namespaces/{project}"),
            View::V2 => format!("projects/{project}"),
        }
    }

    fn resource(&self, key: &ServiceKey) -> String {
        match self.view {
            View::V1 => format!("namespaces/{}/services/{}", key.project, key.name),
            View::V2 => key.to_string(),
        }
    }

    fn denied(&self, permission: &str, resource: &str) -> Fault {
        let text = format!("Permission '{permission}' denied on resource '{resource}' (or resource may not exist).");
        Fault::new(Code::PermissionDenied, "forbidden", text)
    }

    /// The service, if the caller holds `permission` on it.
    fn reach<'w>(
        &self,
        world: &'w World,
        key: &ServiceKey,
        permission: &'static str,
    ) -> Result<&'w ServiceRecord, Fault> {
        self.open(world, key, permission, &self.resource(key))?;
        world.services.get(key).ok_or_else(|| absent("SERVICE", &key.name, key))
    }

    /// The caller holds `permission` on the service, if there is one, and the project can be used. `resource` is what a
    /// refusal names.
    fn open(&self, world: &World, key: &ServiceKey, permission: &'static str, resource: &str) -> Result<(), Fault> {
        let held = self.control.authorize(world, self.caller, &[Need::on(permission, key)]).is_ok();
        if !held || !world.projects.contains_key(&key.project) {
            return Err(self.denied(permission, resource));
        }
        projects::require_api(world, key.project.as_str(), API)
    }

    /// The key of a service in a path that may name its project by number. A project that does not exist is refused by
    /// what is done with the key, in the words for one that is not the caller's.
    pub fn key(&self, project: &str, region: &Region, name: &str) -> Result<ServiceKey, Fault> {
        let known = self.control.read().project(project).map(|project| project.id.clone());
        let denied = |_| self.denied("run.services.get", &format!("{}/services/{name}", self.parent(project)));
        let project = known.map_or_else(|| project.parse().map_err(denied), Ok)?;
        Ok(ServiceKey { project, region: region.clone(), name: name.to_owned() })
    }

    pub fn get(&self, key: &ServiceKey) -> Result<ServiceRecord, Fault> {
        self.reach(&self.control.read(), key, "run.services.get").cloned()
    }

    /// The services of a project, newest first; of all regions when none is given.
    pub fn list(&self, project: &str, region: Option<&Region>) -> Result<Vec<ServiceRecord>, Fault> {
        let world = self.control.read();
        let project = self.enter(&world, project, "run.services.list", "/services")?;
        let here = |s: &&ServiceRecord| s.key.project == project.id && region.is_none_or(|r| s.key.region == *r);
        let mut found: Vec<ServiceRecord> = world.services.values().filter(here).cloned().collect();
        found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.key.cmp(&b.key)));
        Ok(found)
    }

    /// Creates a service and its first revision.
    pub fn create(&self, key: &ServiceKey, wanted: &Service, mode: Mode) -> Result<ServiceRecord, Fault> {
        self.write(mode, |world, txn| {
            let what = format!("/services/{}", key.name);
            let project = self.enter(world, key.project.as_str(), "run.services.create", &what)?;
            if region_code(&key.region).is_none() {
                return Err(unknown_region(&key.region));
            }
            if world.services.contains_key(key) {
                let text = format!("Resource '{}' already exists.", key.name);
                return Err(Fault::new(Code::AlreadyExists, "alreadyExists", text));
            }
            if wanted.invoker_iam_disabled {
                self.may_open(world, key)?;
            }
            let mut spec = wanted.clone();
            complete(&mut spec, project);
            check::service(&key.name, &spec)?;
            self.act_as(world, project, &spec.template.service_account)?;
            let mut record = ServiceRecord {
                key: key.clone(),
                uid: random::uuid(),
                created: txn.now,
                updated: txn.now,
                generation: 0,
                observed: 0,
                version: 0,
                operation: String::new(),
                spec,
                templates: 0,
                latest_created: None,
                latest_ready: None,
                transitioned: txn.now,
            };
            let email = self.caller.principal.email();
            record.spec.creator = email.to_owned();
            revise(world, txn, &mut record, email)?;
            self.finish_write(world, txn, &mut record)?;
            Ok(record)
        })
    }

    /// Replaces what a user wants of a service. `edit` gets it as it is and gives it as it should be; checking the
    /// version that the client had read is its business.
    ///
    /// A template that differs makes a revision; anything else takes effect on the ones there are. A write that changes
    /// nothing has no effect at all.
    pub fn replace(
        &self,
        key: &ServiceKey,
        revise_when: Revise,
        mode: Mode,
        edit: impl Fn(&ServiceRecord) -> Result<Service, Fault>,
    ) -> Result<ServiceRecord, Fault> {
        self.write(mode, |world, txn| {
            let old = self.reach(world, key, "run.services.update")?;
            let project = world.projects.get(&key.project).ok_or_else(|| absent("SERVICE", &key.name, key))?;
            let mut spec = edit(old)?;
            complete(&mut spec, project);
            spec.creator.clone_from(&old.spec.creator);
            spec.last_modifier.clone_from(&old.spec.last_modifier);
            check::service(&key.name, &spec)?;
            if spec.invoker_iam_disabled != old.spec.invoker_iam_disabled {
                self.may_open(world, key)?;
            }
            self.act_as(world, project, &spec.template.service_account)?;
            let new_template = spec.template != old.spec.template || revise_when == Revise::Always;
            if spec == old.spec && !new_template {
                return Ok(old.clone());
            }
            let mut record = ServiceRecord { spec, updated: txn.now, ..old.clone() };
            if new_template {
                revise(world, txn, &mut record, self.caller.principal.email())?;
            }
            self.finish_write(world, txn, &mut record)?;
            Ok(record)
        })
    }

    /// Deletes a service with its revisions and its policy. The name is free at once. Returns the service as it was.
    pub fn delete(
        &self,
        key: &ServiceKey,
        mode: Mode,
        expect: impl Fn(&ServiceRecord) -> Result<(), Fault>,
    ) -> Result<ServiceRecord, Fault> {
        self.write(mode, |world, txn| {
            let old = self.reach(world, key, "run.services.delete")?;
            expect(old)?;
            for revision in revisions_of(world, key) {
                txn.push(Change::NoRevision(revision.key.clone()));
            }
            let mut gone = old.clone();
            gone.operation = random::uuid();
            txn.push(Change::NoService(key.clone()));
            txn.push(Change::NoPolicy(key.to_string()));
            let operation = RunOperation {
                id: gone.operation.clone(),
                service: key.clone(),
                uid: gone.uid.clone(),
                generation: gone.generation + 1,
                created: txn.now,
                deleted: Some(Box::new(gone.clone())),
            };
            txn.push(Change::RunOperation(Box::new(operation)));
            Ok(gone)
        })
    }

    fn write<T>(&self, mode: Mode, decide: impl Fn(&World, &mut Txn) -> Result<T, Fault>) -> Result<T, Fault> {
        match mode {
            Mode::Commit => self.control.commit(decide).map(|(answer, _)| answer),
            Mode::DryRun => decide(&self.control.read(), &mut Txn::scratch(self.control.now())),
        }
    }

    /// Who switches the invoker check off gives the service to everybody.
    fn may_open(&self, world: &World, key: &ServiceKey) -> Result<(), Fault> {
        let need = Need::on("run.services.setIamPolicy", key);
        let denied = |need: Need| self.denied(need.permission, &self.resource(key));
        self.control.authorize(world, self.caller, &[need]).map(|_| ()).map_err(denied)
    }

    /// The caller must be allowed to act as the revision's account, and Cloud Run to mint for it. Order and sentences
    /// are Cloud Run's; a missing account sounds like a missing right.
    fn act_as(&self, world: &World, project: &Project, email: &str) -> Result<(), Fault> {
        let refuse = |text: String| Fault::new(Code::PermissionDenied, "forbidden", text);
        let denied = || {
            refuse(format!(
                "Permission 'iam.serviceaccounts.actAs' denied on service account {email} (or it may not exist)."
            ))
        };
        let account = world.accounts.get(email).filter(|a| !a.disabled && !a.agent).ok_or_else(denied)?;
        let resource = accounts::resource_name(account);
        let need = Need::on("iam.serviceAccounts.actAs", &resource);
        self.control.authorize(world, self.caller, &[need]).map_err(|_| denied())?;
        // Source: constraint iam.disableCrossProjectServiceAccountUsage, enforced unless an organisation says otherwise.
        if account.project != project.id {
            return Err(denied());
        }
        let agent = projects::run_agent(project);
        if policies::holds(world, &agent, "iam.serviceAccounts.getAccessToken", &resource) {
            return Ok(());
        }
        let agent = agent.email();
        Err(refuse(format!(
            "Google Cloud Run Service Agent does not have permission to get access tokens for the service account \
             {email}. Please give {agent} permission iam.serviceAccounts.getAccessToken on the service account. \
             Alternatively, if the service account is unspecified or in the same project you are deploying in, ensure \
             that the Service Agent is assigned the Google Cloud Run Service Agent role roles/run.serviceAgent."
        )))
    }

    /// What every write of a service ends with: a new generation, a new version, an operation.
    fn finish_write(&self, world: &World, txn: &mut Txn, record: &mut ServiceRecord) -> Result<(), Fault> {
        check_traffic_targets(world, txn, record)?;
        record.generation += 1;
        record.spec.last_modifier = self.caller.principal.email().to_owned();
        record.operation = random::uuid();
        touch(record, txn.now);
        let mut older: Vec<&RunOperation> = world.run_operations.values().filter(|o| o.service == record.key).collect();
        older.sort_by_key(|o| o.created);
        let surplus = (older.len() + 1).saturating_sub(limits::RUN_OPERATIONS_MAX);
        for operation in older.iter().take(surplus) {
            txn.push(Change::NoRunOperation(operation.id.clone()));
        }
        txn.push(Change::RunOperation(Box::new(RunOperation {
            id: record.operation.clone(),
            service: record.key.clone(),
            uid: record.uid.clone(),
            generation: record.generation,
            created: txn.now,
            deleted: None,
        })));
        txn.push(Change::Service(Box::new(record.clone())));
        Ok(())
    }

    /// The allow policy of a service.
    pub fn policy(&self, key: &ServiceKey) -> Result<Policy, Fault> {
        let world = self.control.read();
        let resource = key.to_string();
        let policy =
            self.with_target(key, &resource, |target| policies::get(self.control, &world, self.caller, target))?;
        if world.services.contains_key(key) { Ok(policy) } else { Err(absent("SERVICE", &key.name, key)) }
    }

    pub fn set_policy(&self, key: &ServiceKey, bindings: &[model::iam::Binding], etag: &str) -> Result<Policy, Fault> {
        let resource = key.to_string();
        let exists = |world: &World| match world.services.contains_key(key) {
            true => Ok(()),
            false => Err(absent("SERVICE", &key.name, key)),
        };
        self.with_target(key, &resource, |target| {
            policies::set(self.control, self.caller, target, bindings, etag, exists)
        })
    }

    fn with_target<T>(&self, key: &ServiceKey, resource: &str, act: impl FnOnce(policies::Target<'_>) -> T) -> T {
        act(policies::Target {
            resource,
            place: identity::policy::Place::RunService,
            get: "run.services.getIamPolicy",
            set: "run.services.setIamPolicy",
            denied: &|need| self.denied(need.permission, &self.resource(key)),
        })
    }
}

/// The code of a region in the hosts of its services. None: no region of ours.
pub fn region_code(region: &Region) -> Option<&'static str> {
    REGIONS.iter().find(|(name, ..)| *name == region.as_str()).map(|(_, code, _)| *code)
}

pub fn unknown_region(region: &Region) -> Fault {
    Fault::new(Code::NotFound, "notFound", format!("Location {region} is not found or access is unauthorized."))
}

/// Cloud Run's 404. `kind` is in capitals.
pub fn absent(kind: &str, name: &str, place: &ServiceKey) -> Fault {
    let text = format!(
        "Resource '{name}' of kind '{kind}' in region '{}' in project '{}' does not exist.",
        place.region, place.project
    );
    Fault::new(Code::NotFound, "notFound", text)
}

/// The 409 of a write over a version that is gone. `given` and the current one are in microseconds.
pub fn stale(record: &ServiceRecord, given: &str) -> Fault {
    let text = format!(
        "Conflict for resource '{}': version '{given}' was specified but current version is '{}'.",
        record.key.name, record.version
    );
    Fault::new(Code::Aborted, "conflict", text)
}

/// Revisions of a service, by name.
pub fn revisions_of<'w>(world: &'w World, key: &ServiceKey) -> impl Iterator<Item = &'w Revision> {
    let start = RevisionKey { service: key.clone(), name: String::new() };
    let key = key.clone();
    world.revisions.range(start..).take_while(move |(k, _)| k.service == key).map(|(_, revision)| revision)
}

/// A new version of a record: microseconds, and never the same twice.
fn touch(record: &mut ServiceRecord, now: Timestamp) {
    record.version = u64::try_from(now.0).unwrap_or(0).max(record.version + 1);
}

/// Fills in what depends on the project.
fn complete(spec: &mut Service, project: &Project) {
    if spec.template.service_account.is_empty() {
        spec.template.service_account = project.compute_default_account();
    }
    spec.template.service_account = spec.template.service_account.to_ascii_lowercase();
}

/// How an operation stands.
pub fn outcome(world: &World, operation: &RunOperation) -> Outcome {
    if let Some(deleted) = &operation.deleted {
        return Outcome::Done(deleted.clone());
    }
    let current = world.services.get(&operation.service).filter(|s| s.uid == operation.uid);
    let Some(service) = current else {
        let message = format!("Service '{}' was deleted.", operation.service.name);
        return Outcome::Failed { code: Code::Aborted, message, service: None };
    };
    let shown = Box::new(service.clone());
    // A later write took over; what this one wanted is no longer wanted.
    if service.generation > operation.generation {
        return Outcome::Done(shown);
    }
    let ready = status::conditions(world, service).ready;
    match ready.status {
        Tri::True => Outcome::Done(shown),
        Tri::Unknown => Outcome::Running(shown),
        Tri::False => Outcome::Failed {
            code: Code::FailedPrecondition,
            message: ready.message.unwrap_or_default(),
            service: Some(shown),
        },
    }
}

/// A revision's first instance has passed its startup probe: traffic that follows the latest one follows.
pub fn revision_ready(control: &Control, key: &RevisionKey) -> Result<(), Fault> {
    set_state(control, key, |now| RevisionState::Ready { since: now })
}

/// A revision did not come up. Traffic stays where it was.
pub fn revision_failed(control: &Control, key: &RevisionKey, reason: &str, message: &str) -> Result<(), Fault> {
    set_state(control, key, |now| RevisionState::Failed {
        since: now,
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

fn set_state(control: &Control, key: &RevisionKey, state: impl Fn(Timestamp) -> RevisionState) -> Result<(), Fault> {
    control.commit(|world, txn| {
        let Some(old) = world.revisions.get(key) else { return Ok(()) };
        if old.state != RevisionState::Deploying {
            return Ok(());
        }
        let revision = Revision { state: state(txn.now), ..old.clone() };
        if let Some(service) = world.services.get(&key.service) {
            let mut service = service.clone();
            match revision.state {
                RevisionState::Ready { .. } if is_newer(world, &service, &revision) => {
                    service.latest_ready = Some(key.name.clone());
                }
                RevisionState::Failed { .. } if service.latest_created.as_ref() == Some(&key.name) => {
                    service.observed = service.generation;
                }
                RevisionState::Ready { .. } | RevisionState::Failed { .. } | RevisionState::Deploying => {}
            }
            service.transitioned = txn.now;
            touch(&mut service, txn.now);
            txn.push(Change::Service(Box::new(service)));
        }
        txn.push(Change::Revision(Box::new(revision)));
        Ok(())
    })?;
    control.finished.notify_waiters();
    Ok(())
}

fn is_newer(world: &World, service: &ServiceRecord, revision: &Revision) -> bool {
    let ready = service
        .latest_ready
        .as_ref()
        .and_then(|name| world.revisions.get(&RevisionKey { service: service.key.clone(), name: name.clone() }));
    ready.is_none_or(|r| r.number < revision.number)
}

/// Services whose last write is decided and waits only for the proxy to know it.
pub fn unsettled(world: &World) -> Vec<(ServiceKey, u64)> {
    let waits = |s: &&ServiceRecord| !status::is_deploying(world, s);
    world.unobserved().filter(waits).map(|s| (s.key.clone(), s.generation)).collect()
}

/// The proxy obeys these services at these generations: their operations are done.
pub fn settle(control: &Control, obeyed: &[(ServiceKey, u64)]) -> Result<(), Fault> {
    control.commit(|world, txn| {
        for (key, generation) in obeyed {
            let Some(service) = world.services.get(key) else { continue };
            if service.observed < *generation && *generation <= service.generation {
                let mut service = service.clone();
                service.observed = *generation;
                service.transitioned = txn.now;
                touch(&mut service, txn.now);
                txn.push(Change::Service(Box::new(service)));
            }
        }
        Ok(())
    })?;
    control.finished.notify_waiters();
    Ok(())
}
