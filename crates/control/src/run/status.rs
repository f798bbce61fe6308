//! What is shown of services and revisions beside what users asked for: conditions, addresses, who gets which traffic.
//!
//! Everything here follows from the world; nothing of it is stored.

use model::{
    project::Project,
    run::{Revision, RevisionKey, RevisionState, ServiceKey},
    time::Timestamp,
};

use crate::{
    run::region_code,
    world::{ServiceRecord, World},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tri {
    True,
    False,
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub status: Tri,
    /// Empty unless something is wrong or under way.
    pub reason: Option<String>,
    pub message: Option<String>,
    pub since: Timestamp,
}

/// The three conditions of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    pub ready: Condition,
    pub configurations_ready: Condition,
    pub routes_ready: Condition,
}

fn newest<'w>(world: &'w World, service: &ServiceRecord) -> Option<&'w Revision> {
    let name = service.latest_created.clone()?;
    world.revisions.get(&RevisionKey { service: service.key.clone(), name })
}

/// Whether the newest revision has yet to show that it works.
pub fn is_deploying(world: &World, service: &ServiceRecord) -> bool {
    newest(world, service).is_some_and(|r| r.state == RevisionState::Deploying)
}

/// Source: Cloud Run, conditions; on a first deployment all three fail together, later the routes stay as they were.
pub fn conditions(world: &World, service: &ServiceRecord) -> Conditions {
    let since = service.transitioned;
    let plain = |status| Condition { status, reason: None, message: None, since };
    let waiting =
        |message: &str| Condition { status: Tri::Unknown, reason: None, message: Some(message.to_owned()), since };
    let routes = || if service.latest_ready.is_some() { plain(Tri::True) } else { waiting("") };
    match newest(world, service).map(|r| (&r.key, &r.state)) {
        Some((_, RevisionState::Failed { since, reason, message })) => {
            let name = service.latest_created.as_deref().unwrap_or_default();
            let failed = Condition {
                status: Tri::False,
                reason: Some(reason.clone()),
                message: Some(format!("Revision '{name}' is not ready and cannot serve traffic. {message}")),
                since: *since,
            };
            let routes_ready = if service.latest_ready.is_some() { routes() } else { failed.clone() };
            Conditions { ready: failed.clone(), configurations_ready: failed, routes_ready }
        }
        Some((_, RevisionState::Deploying)) => Conditions {
            ready: waiting("Deploying Revision."),
            configurations_ready: waiting("Deploying Revision."),
            routes_ready: routes(),
        },
        Some((_, RevisionState::Ready { .. })) | None if service.observed < service.generation => Conditions {
            ready: waiting("Routing traffic."),
            configurations_ready: plain(Tri::True),
            routes_ready: waiting("Routing traffic."),
        },
        Some((_, RevisionState::Ready { .. })) | None => Conditions {
            ready: plain(Tri::True),
            configurations_ready: plain(Tri::True),
            routes_ready: plain(Tri::True),
        },
    }
}

/// The generation that the conditions speak of: a failure and a finished deployment are about the newest one.
pub fn observed_generation(service: &ServiceRecord) -> u64 {
    service.generation
}

/// One line of resolved traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub revision: RevisionKey,
    pub percent: u8,
    pub tag: Option<String>,
    /// It follows the latest ready revision.
    pub latest: bool,
}

/// Where traffic goes: what follows the latest revision goes to the latest that is ready. Lines that lead nowhere yet
/// are left out.
pub fn targets(world: &World, service: &ServiceRecord) -> Vec<Target> {
    let line = |t: &model::run::TrafficTarget| {
        let name = t.revision.clone().or_else(|| service.latest_ready.clone())?;
        let revision = RevisionKey { service: service.key.clone(), name };
        let exists = world.revisions.contains_key(&revision) || service.latest_ready.as_ref() == Some(&revision.name);
        exists.then(|| Target { revision, percent: t.percent, tag: t.tag.clone(), latest: t.revision.is_none() })
    };
    service.spec.traffic.iter().filter_map(line).collect()
}

/// The host names of a service: `service-NUMBER.region.run.app` first, then the one with the project's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// None where the label would be longer than DNS allows.
    pub deterministic: Option<String>,
    pub hashed: String,
}

pub fn hosts(project: &Project, key: &ServiceKey) -> Hosts {
    let label = format!("{}-{}", key.name, project.number);
    let code = region_code(&key.region).unwrap_or("xx");
    Hosts {
        deterministic: (label.len() <= 63).then(|| format!("{label}.{}.run.app", key.region)),
        hashed: format!("{}-{}-{code}.a.run.app", key.name, project.url_hash),
    }
}

impl Hosts {
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.deterministic.iter().chain([&self.hashed])
    }
}

/// The addresses that a service shows. One that was never ready has no `url` and no hashed address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub url: Option<String>,
    pub urls: Vec<String>,
}

pub fn addresses(world: &World, service: &ServiceRecord) -> Addresses {
    let Some(project) = world.projects.get(&service.key.project) else { return Addresses::default() };
    if service.spec.default_url_disabled {
        return Addresses::default();
    }
    let hosts = hosts(project, &service.key);
    let url = format!("https://{}", hosts.hashed);
    let ready = service.latest_ready.is_some();
    let mut urls: Vec<String> = hosts.deterministic.iter().map(|host| format!("https://{host}")).collect();
    if ready {
        urls.push(url.clone());
    }
    Addresses { url: ready.then_some(url), urls }
}

/// The URL of a tag, in the form with the hash.
pub fn tag_url(project: &Project, key: &ServiceKey, tag: &str) -> String {
    format!("https://{tag}---{}", hosts(project, key).hashed)
}

/// Whether a revision has a place to run in at all, now.
pub fn has_instances(world: &World, key: &RevisionKey) -> bool {
    world.seats.of_revision(key).next().is_some()
}

/// A revision's seconds from its making to `since`, as its messages say them.
pub fn seconds(revision: &Revision, since: Timestamp) -> String {
    let hundredths = since.since(revision.created).as_millis() / 10;
    format!("{}.{:02}s", hundredths / 100, hundredths % 100)
}
