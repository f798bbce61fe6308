//! Everything known, in memory, as of one revision of the store.
//!
//! The world is rebuilt from the store when control starts and follows every commit after that. Planners read it; only
//! [`crate::ops`] changes it, by committing. What is asked for often is found by an index, so that one change costs no
//! more where much exists.

mod connections;
mod directory;
mod quarantine;
mod runs;
mod seats;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use identity::keys::StoredKey;
use model::{
    iam::{Policy, ServiceAccount},
    id::{NetworkId, ResourceId, WorkloadId},
    login::LoginProfile,
    name::{Link, ProjectId, ProjectNumber},
    orgpolicy::OrgPolicy,
    project::Project,
    psc::Connection,
    run::{Revision, RevisionKey, ServiceKey},
    time::Timestamp,
    vpc,
};
use serde::{Deserialize, Serialize};

pub use self::{connections::Connections, directory::Directory, quarantine::Quarantine, runs::Runs, seats::Seats};
use crate::{
    accounts::AccountKey,
    kind::{Kind, Object, Record},
    operation::Operation,
    run::RunOperation,
    tokens::Secrets,
};

#[derive(Clone, Debug, Default)]
pub struct World {
    /// Of the store; generation of every plan made from this world.
    pub revision: u64,
    pub projects: BTreeMap<ProjectId, Project>,
    pub objects: BTreeMap<Link, Object>,
    pub connections: Connections,
    /// NAT addresses in quarantine, by the network they belong to.
    pub quarantine: Quarantine,
    pub directory: Directory,
    pub services: BTreeMap<ServiceKey, ServiceRecord>,
    pub revisions: BTreeMap<RevisionKey, Revision>,
    pub seats: Seats,
    pub images: BTreeMap<String, ImageRecord>,
    /// Policies by full resource name (`projects/P`, `projects/P/locations/R/services/S`, `projects/P/serviceAccounts/E`,
    /// `organizations/N`).
    pub policies: BTreeMap<String, Policy>,
    /// By full name, `projects/ID/policies/CONSTRAINT` or `organizations/N/policies/CONSTRAINT`.
    pub org_policies: BTreeMap<String, OrgPolicy>,
    pub accounts: BTreeMap<String, ServiceAccount>,
    /// By e-mail address.
    pub logins: BTreeMap<String, LoginProfile>,
    pub operations: BTreeMap<String, Operation>,
    /// By id, a UUID.
    pub run_operations: BTreeMap<String, RunOperation>,
    /// Public halves of the keys that owners of service accounts hold, by e-mail address and kid.
    pub account_keys: BTreeMap<(String, String), AccountKey>,
    /// None only before the first start has made them.
    pub(crate) secrets: Option<Secrets>,
    pub(crate) system_keys: BTreeMap<String, StoredKey>,
    pub(crate) revoked: BTreeMap<String, Timestamp>,
    /// Who refers to whom, kept with every change: `referrers[target][collection]` are the links that name it.
    referrers: BTreeMap<Link, BTreeMap<String, BTreeSet<Link>>>,
    by_id: BTreeMap<ResourceId, Link>,
    /// Who holds which address of a subnet.
    held: BTreeMap<Link, Held>,
    /// Services whose last write the proxy may not know yet.
    unobserved: BTreeSet<ServiceKey>,
    numbers: BTreeMap<ProjectNumber, ProjectId>,
    /// Names of the operations that are not done, by target.
    running: BTreeMap<Link, BTreeSet<String>>,
    /// Names of operations by who asked for them and the request's id.
    requests: BTreeMap<(String, String), String>,
}

/// Addresses of one subnet.
#[derive(Clone, Debug, Default)]
struct Held {
    by_address: BTreeMap<Ipv4Addr, BTreeSet<Link>>,
    runs: Runs,
}

/// A connection with the attachment it targets. The id tells a re-created attachment from the one that was deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PscConnection {
    pub attachment: Link,
    pub attachment_id: model::id::ResourceId,
    /// The VPC of the attachment's target.
    pub producer_network: NetworkId,
    pub connection: Connection,
}

/// A Cloud Run service as stored: the wanted part and its history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub key: ServiceKey,
    pub uid: String,
    pub created: model::time::Timestamp,
    pub updated: model::time::Timestamp,
    /// +1 with every change of the spec.
    pub generation: u64,
    /// The generation that the proxy obeys, or that has failed.
    pub observed: u64,
    /// Changes with every write, status included: microseconds since 1970. Shown as `resourceVersion`.
    pub version: u64,
    /// The operation of the last write, `run.googleapis.com/operation-id`.
    pub operation: String,
    pub spec: model::run::Service,
    /// Templates so far; the last revision's number.
    pub templates: u32,
    pub latest_created: Option<String>,
    pub latest_ready: Option<String>,
    /// When Ready last changed.
    pub transitioned: model::time::Timestamp,
}

/// Where a workload sits: decided once, so that the hands never choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeatRecord {
    pub workload: WorkloadId,
    pub uid_base: u32,
    pub incarnation: u32,
    pub holder: Holder,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Holder {
    Vm(Link),
    Container {
        revision: RevisionKey,
        v6: std::net::Ipv6Addr,
        v4: std::net::Ipv4Addr,
        /// The log label `instanceId`.
        instance_id: String,
        created: model::time::Timestamp,
    },
}

/// A container image that is unpacked on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// As users name it, without `@digest`.
    pub name: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
    pub layers: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub user: String,
}

impl World {
    pub fn get<K: Kind>(&self, link: &Link) -> Option<&Record<K>> {
        self.objects.get(link).and_then(K::peek)
    }

    /// All records of one kind, in link order.
    pub fn all<K: Kind>(&self) -> impl Iterator<Item = &Record<K>> {
        self.objects.values().filter_map(K::peek)
    }

    pub fn project(&self, name: &str) -> Option<&Project> {
        if let Ok(number) = name.parse::<u64>() {
            return self.numbers.get(&ProjectNumber(number)).and_then(|id| self.projects.get(id));
        }
        self.projects.get(&name.parse().ok()?)
    }

    /// Whether what belongs to a project runs and is reachable: not once its deletion was requested.
    pub fn is_active(&self, project: &ProjectId) -> bool {
        self.projects.get(project).is_some_and(|project| project.active)
    }

    pub fn network_id(&self, link: &Link) -> Option<NetworkId> {
        self.get::<vpc::Network>(link).map(|n| NetworkId(n.id.0))
    }

    /// The record of this kind with this id.
    pub fn by_id<K: Kind>(&self, id: u64) -> Option<&Record<K>> {
        self.get(self.by_id.get(&ResourceId(id))?)
    }

    /// The resources whose spec names `target`, by collection and then by link.
    pub fn referrers(&self, target: &Link) -> impl Iterator<Item = &Link> {
        self.referrers.get(target).into_iter().flat_map(BTreeMap::values).flatten()
    }

    /// The resources of one kind whose spec names `target`, in link order.
    pub fn users<'w, K: Kind>(&'w self, target: &Link) -> impl Iterator<Item = &'w Record<K>> {
        let users = self.referrers.get(target).and_then(|all| all.get(K::COLLECTION));
        users.into_iter().flatten().filter_map(|link| self.get(link))
    }

    /// The resources that hold this address of a subnet, in link order.
    pub fn holders(&self, subnet: &Link, address: Ipv4Addr) -> impl Iterator<Item = &Link> {
        self.held.get(subnet).and_then(|held| held.by_address.get(&address)).into_iter().flatten()
    }

    /// What holds this address of a network and is of this kind.
    pub fn at<K: Kind>(&self, network: &Link, address: Ipv4Addr) -> Option<&Record<K>> {
        self.holders(&self.subnet_of(network, address)?.link, address).find_map(|link| self.get(link))
    }

    /// The subnet of a network in which this address is.
    pub fn subnet_of(&self, network: &Link, address: Ipv4Addr) -> Option<&Record<vpc::Subnetwork>> {
        self.users::<vpc::Subnetwork>(network).find(|subnet| subnet.spec.range.contains(address))
    }

    /// The lowest address from this one on that nobody holds.
    pub fn free_address(&self, subnet: &Link, from: Ipv4Addr) -> Option<Ipv4Addr> {
        self.held.get(subnet).map_or(Some(from), |held| held.runs.free_from(from))
    }

    /// Services whose last write the proxy may not know yet.
    pub fn unobserved(&self) -> impl Iterator<Item = &ServiceRecord> {
        self.unobserved.iter().filter_map(|key| self.services.get(key))
    }

    pub(crate) fn put_object(&mut self, object: Object) {
        let link = object.link().clone();
        self.remove_object(&link);
        for reference in object.references() {
            let users = self.referrers.entry(reference.to).or_default();
            users.entry(link.collection.clone()).or_default().insert(link.clone());
        }
        self.by_id.insert(object.id(), link.clone());
        if let Some((subnet, address)) = object.held_address() {
            let held = self.held.entry(subnet.clone()).or_default();
            held.by_address.entry(address).or_default().insert(link.clone());
            held.runs.insert(address);
        }
        self.objects.insert(link, object);
    }

    pub(crate) fn remove_object(&mut self, link: &Link) {
        let Some(old) = self.objects.remove(link) else { return };
        self.by_id.remove(&old.id());
        if let Some((subnet, address)) = old.held_address() {
            self.let_go(subnet, address, link);
        }
        for reference in old.references() {
            let Some(users) = self.referrers.get_mut(&reference.to) else { continue };
            if let Some(links) = users.get_mut(&link.collection) {
                links.remove(link);
                if links.is_empty() {
                    users.remove(&link.collection);
                }
            }
            if users.is_empty() {
                self.referrers.remove(&reference.to);
            }
        }
    }

    fn let_go(&mut self, subnet: &Link, address: Ipv4Addr, link: &Link) {
        let Some(held) = self.held.get_mut(subnet) else { return };
        let Some(holders) = held.by_address.get_mut(&address) else { return };
        holders.remove(link);
        if holders.is_empty() {
            held.by_address.remove(&address);
            held.runs.remove(address);
        }
        if held.by_address.is_empty() {
            self.held.remove(subnet);
        }
    }

    /// Names of the operations that are not done.
    pub fn running(&self) -> impl Iterator<Item = &String> {
        self.running.values().flatten()
    }

    /// The operations on a resource that are not done.
    pub fn running_on(&self, target: &Link) -> impl Iterator<Item = &Operation> {
        self.running.get(target).into_iter().flatten().filter_map(|name| self.operations.get(name))
    }

    pub(crate) fn put_operation(&mut self, operation: Operation) {
        self.remove_operation(&operation.name);
        if !operation.is_done() {
            self.running.entry(operation.target.clone()).or_default().insert(operation.name.clone());
        }
        if let Some(id) = &operation.request_id {
            self.requests.insert((operation.user.clone(), id.clone()), operation.name.clone());
        }
        self.operations.insert(operation.name.clone(), operation);
    }

    pub(crate) fn remove_operation(&mut self, name: &str) {
        let Some(old) = self.operations.remove(name) else { return };
        if let Some(names) = self.running.get_mut(&old.target) {
            names.remove(name);
            if names.is_empty() {
                self.running.remove(&old.target);
            }
        }
        if let Some(id) = old.request_id {
            self.requests.remove(&(old.user, id));
        }
    }

    /// The operation that a request of this user with this id began.
    pub fn requested(&self, user: &str, request_id: &str) -> Option<&Operation> {
        self.operations.get(self.requests.get(&(user.to_owned(), request_id.to_owned()))?)
    }

    pub(crate) fn put_service(&mut self, service: ServiceRecord) {
        if service.observed < service.generation {
            self.unobserved.insert(service.key.clone());
        } else {
            self.unobserved.remove(&service.key);
        }
        self.services.insert(service.key.clone(), service);
    }

    pub(crate) fn remove_service(&mut self, key: &ServiceKey) {
        self.unobserved.remove(key);
        self.services.remove(key);
    }

    pub(crate) fn put_project(&mut self, project: Project) {
        self.numbers.insert(project.number, project.id.clone());
        self.projects.insert(project.id.clone(), project);
    }

    pub(crate) fn remove_project(&mut self, id: &ProjectId) {
        if let Some(old) = self.projects.remove(id) {
            self.numbers.remove(&old.number);
        }
    }
}
