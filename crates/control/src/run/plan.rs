//! Cloud Run's part of the plans: what a container is started with, what the proxy knows of services, what an instance
//! may learn about itself. Pure functions of the world.

use std::collections::{BTreeMap, BTreeSet};

use identity::policy;
use model::{
    id::WorkloadId,
    limits::{RUN_INSTANCES_MAX_DEFAULT, RUN_QUEUE_WAIT_MIN, SANDBOX_PIDS_MAX},
    planned::{
        edge::{EdgeInstance, EdgeRevision, EdgeService, EdgeTraffic},
        guest::{Account, Identity, Machine, Realm, Seat},
        host::{Attach, FabricPort, Process, Rootfs, SandboxLimits, SandboxPlan},
    },
    run::{Audiences, Revision, RevisionKey, RevisionState, ServiceKey},
};

use super::status;
use crate::{
    ops::policy_chain,
    tokens::CLOUD_PLATFORM,
    world::{Holder, ImageRecord, SeatRecord, ServiceRecord, World},
};

/// A container instance; None when its revision or image is gone.
pub fn sandbox(world: &World, seat: &SeatRecord) -> Option<SandboxPlan> {
    let Holder::Container { revision, v6, v4, .. } = &seat.holder else { return None };
    let revision = world.revisions.get(revision)?;
    let image = world.images.values().find(|i| i.digest == revision.image_digest)?;
    let container = &revision.template.container;
    Some(SandboxPlan {
        incarnation: seat.incarnation,
        attach: Attach::Fabric(FabricPort { v6: *v6, v4: *v4 }),
        rootfs: Rootfs::Layers(image.layers.clone()),
        process: process(revision, image),
        // Source: Cloud Run, the hostname of an instance is localhost.
        hostname: "localhost".to_owned(),
        search: Vec::new(),
        limits: SandboxLimits {
            cpu_millis: container.cpu_millis,
            memory_bytes: container.memory_bytes,
            pids: SANDBOX_PIDS_MAX,
        },
        uid_base: seat.uid_base,
    })
}

/// Source: container contract; Kubernetes' rule for command and args: a command drops the image's CMD, args alone
/// replace it.
fn process(revision: &Revision, image: &ImageRecord) -> Process {
    let c = &revision.template.container;
    let (head, tail) = match (c.command.is_empty(), c.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &c.args),
        (false, _) => (&c.command, &c.args),
    };
    let cwd = c.working_dir.clone().unwrap_or_else(|| image.working_dir.clone());
    Process::Run {
        argv: head.iter().chain(tail).cloned().collect(),
        env: environment(revision, image),
        cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
        user: image.user.clone(),
    }
}

/// The image's variables, over them the user's, over them the platform's. Values are literal: nothing is expanded.
fn environment(revision: &Revision, image: &ImageRecord) -> Vec<(String, String)> {
    let service = &revision.key.service.name;
    let c = &revision.template.container;
    let own = [
        ("PORT", c.port.to_string()),
        ("K_SERVICE", service.clone()),
        ("K_REVISION", revision.key.name.clone()),
        ("K_CONFIGURATION", service.clone()),
    ];
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    if !image.env.iter().any(|(name, _)| name == "PATH") {
        env.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    let root = image.user.is_empty() || image.user == "root" || image.user == "0";
    env.insert("HOME".into(), if root { "/root" } else { "/" }.into());
    env.extend(image.env.iter().cloned());
    env.extend(c.env.iter().cloned());
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    env.into_iter().collect()
}

/// A service as the proxy knows it; None while its project is on its way out.
pub fn service(world: &World, record: &ServiceRecord) -> Option<EdgeService> {
    let project = world.projects.get(&record.key.project).filter(|project| project.active)?;
    let hosts = status::hosts(project, &record.key);
    let spec = &record.spec;
    let chain = policy_chain(world, &record.key.to_string());
    let traffic = status::targets(world, record).into_iter();
    Some(EdgeService {
        ingress: spec.ingress,
        hosts: if spec.default_url_disabled { Vec::new() } else { hosts.all().cloned().collect() },
        audiences: audiences(record, &hosts),
        invokers: policy::invokers(&chain, spec.invoker_iam_disabled, &|email| {
            world.accounts.get(email).map(|account| account.unique_id.clone())
        }),
        traffic: traffic.map(|t| EdgeTraffic { revision: t.revision, percent: t.percent, tag: t.tag }).collect(),
    })
}

/// Every URL of the service and of its tags, with and without a final slash, and the audiences its users chose.
fn audiences(record: &ServiceRecord, hosts: &status::Hosts) -> Audiences {
    let mut audiences: Audiences = record.spec.custom_audiences.iter().cloned().collect();
    let tags: BTreeSet<&str> = record.spec.traffic.iter().filter_map(|t| t.tag.as_deref()).collect();
    for host in hosts.all() {
        let tagged = tags.iter().map(|tag| format!("https://{tag}---{host}"));
        for url in tagged.chain([format!("https://{host}")]) {
            audiences.insert(format!("{url}/"));
            audiences.insert(url);
        }
    }
    audiences
}

/// A revision as the proxy knows it, with its instances.
pub fn revision(
    world: &World,
    key: &RevisionKey,
    instances: BTreeMap<WorkloadId, EdgeInstance>,
) -> Option<EdgeRevision> {
    let revision = world.revisions.get(key)?;
    let template = &revision.template;
    let startable = !matches!(revision.state, RevisionState::Failed { .. });
    Some(EdgeRevision {
        concurrency: template.concurrency,
        timeout_ms: u64::from(template.timeout_s) * 1_000,
        probe: template.container.startup_probe.clone(),
        queue_wait_ms: queue_wait_ms(revision),
        instances_max: if startable { bounds(world, key).max } else { 0 },
        instances,
    })
}

/// Source: Cloud Run, a request waits up to 3.5 start-up times, at least 10 s. The deployment's own start is the
/// measure.
fn queue_wait_ms(revision: &Revision) -> u64 {
    let least = u64::try_from(RUN_QUEUE_WAIT_MIN.as_millis()).unwrap_or(u64::MAX);
    let started = match &revision.state {
        RevisionState::Ready { since } => since.since(revision.created),
        RevisionState::Deploying | RevisionState::Failed { .. } => std::time::Duration::ZERO,
    };
    let start = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
    // A deployment that had to wait for something else says little about a start.
    (start.saturating_mul(7) / 2).clamp(least, 60_000)
}

/// How many instances a revision may and must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub min: u32,
    pub max: u32,
    /// It gets traffic or has a tag. What serves nobody is wound down.
    pub serving: bool,
}

/// Source: Cloud Run, revision and service level scaling; the service's numbers are shared out by traffic percent,
/// rounded up.
pub fn bounds(world: &World, key: &RevisionKey) -> Bounds {
    let none = Bounds { min: 0, max: 0, serving: false };
    let (Some(revision), Some(service)) = (world.revisions.get(key), world.services.get(&key.service)) else {
        return none;
    };
    if !world.is_active(&key.service.project) {
        return none;
    }
    let targets = status::targets(world, service);
    let mine: Vec<_> = targets.iter().filter(|t| t.revision == *key).collect();
    let percent: u32 = mine.iter().map(|t| u32::from(t.percent)).sum();
    let share = |total: u32| total.saturating_mul(percent).div_ceil(100);
    let own = revision.template.scaling.max.unwrap_or(RUN_INSTANCES_MAX_DEFAULT);
    let max = match service.spec.scaling.max {
        Some(total) => own.min(share(total).max(1)),
        None => own,
    };
    let serving = !mine.is_empty();
    let min = if serving { revision.template.scaling.min.max(share(service.spec.scaling.min)) } else { 0 };
    Bounds { min: min.min(max), max, serving }
}

/// What an instance may learn about itself.
pub fn identity(world: &World, seat: &SeatRecord) -> Option<(Seat, Identity)> {
    let Holder::Container { revision, v4, instance_id, .. } = &seat.holder else { return None };
    let ServiceKey { project, region, .. } = &revision.service;
    let project = world.projects.get(project)?;
    let template = &world.revisions.get(revision)?.template;
    let identity = Identity {
        project_id: project.id.to_string(),
        project_number: project.number.0,
        project_attributes: BTreeMap::new(),
        region: region.to_string(),
        // Source: metadata server of Cloud Run, `instance/zone` is the region with a 1 behind it.
        zone: format!("{region}-1"),
        account: Some(Account { email: template.service_account.clone(), scopes: vec![CLOUD_PLATFORM.to_owned()] }),
        machine: Machine::Container { instance_id: instance_id.clone() },
    };
    Some((Seat { realm: Realm::Fabric, address: *v4 }, identity))
}
