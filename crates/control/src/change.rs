//! What can be written: every key of the store and its value, in one place.
//!
//! Refuses to know why something changes ([`crate::ops`]) and how it is made durable (`store`).

use identity::keys::StoredKey;
use model::{
    directory::{self, NamespaceName, ServiceName},
    iam::{Policy, ServiceAccount},
    id::{EndpointId, NetworkId, WorkloadId},
    login::LoginProfile,
    name::Link,
    orgpolicy::OrgPolicy,
    project::Project,
    psc::Quarantined,
    run::{Revision, RevisionKey, ServiceKey},
    time::Timestamp,
};

use crate::{
    accounts::AccountKey,
    kind::Object,
    operation::Operation,
    run::RunOperation,
    tokens::Secrets,
    world::{ImageRecord, PscConnection, SeatRecord, ServiceRecord, World},
};

/// One change of the stored state. The variants are the key layout: each has one key, and no other code writes keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Object(Box<Object>),
    NoObject(Link),
    Connection(Box<PscConnection>),
    NoConnection(EndpointId),
    Quarantine(NetworkId, Quarantined),
    NoQuarantine(NetworkId, std::net::Ipv4Addr),
    Project(Box<Project>),
    NoProject(model::name::ProjectId),
    Service(Box<ServiceRecord>),
    NoService(ServiceKey),
    Revision(Box<Revision>),
    NoRevision(RevisionKey),
    Seat(Box<SeatRecord>),
    NoSeat(WorkloadId),
    Image(Box<ImageRecord>),
    Policy(String, Policy),
    NoPolicy(String),
    OrgPolicy(String, Box<OrgPolicy>),
    NoOrgPolicy(String),
    /// Of Service Directory.
    Namespace(Box<directory::Namespace>),
    NoNamespace(NamespaceName),
    Registered(Box<directory::Service>),
    NoRegistered(ServiceName),
    Account(Box<ServiceAccount>),
    NoAccount(String),
    Login(Box<LoginProfile>),
    Operation(Box<Operation>),
    NoOperation(String),
    RunOperation(Box<RunOperation>),
    NoRunOperation(String),
    /// The public half of a key that a service account's owner holds.
    AccountKey(Box<AccountKey>),
    NoAccountKey {
        email: String,
        kid: String,
    },
    /// Private: what control signs and seals with. Never leaves it.
    Secrets(Box<Secrets>),
    /// Private: the key with which control signs in an account's name (`signJwt`, `signBlob`), by e-mail address.
    SystemKey(String, StoredKey),
    NoSystemKey(String),
    /// A credential that was taken back before its time, by its digest, until it would have expired.
    Revoked(String, Timestamp),
    NoRevoked(String),
}

impl Change {
    pub(crate) fn key(&self) -> String {
        match self {
            Change::Object(o) => format!("object/{}", o.link()),
            Change::NoObject(link) => format!("object/{link}"),
            Change::Connection(c) => format!("connection/{}", c.connection.endpoint),
            Change::NoConnection(id) => format!("connection/{id}"),
            Change::Quarantine(network, q) => format!("quarantine/{network}/{}", q.address),
            Change::NoQuarantine(network, address) => format!("quarantine/{network}/{address}"),
            Change::Project(p) => format!("project/{}", p.id),
            Change::NoProject(id) => format!("project/{id}"),
            Change::Service(s) => format!("service/{}", s.key),
            Change::NoService(key) => format!("service/{key}"),
            Change::Revision(r) => format!("revision/{}", r.key),
            Change::NoRevision(key) => format!("revision/{key}"),
            Change::Seat(s) => format!("seat/{}", s.workload),
            Change::NoSeat(id) => format!("seat/{id}"),
            Change::Image(i) => format!("image/{}", i.name),
            Change::Policy(name, _) | Change::NoPolicy(name) => format!("policy/{name}"),
            Change::OrgPolicy(name, _) | Change::NoOrgPolicy(name) => format!("org-policy/{name}"),
            Change::Namespace(n) => format!("namespace/{}", n.name),
            Change::NoNamespace(name) => format!("namespace/{name}"),
            Change::Registered(s) => format!("registered/{}", s.name),
            Change::NoRegistered(name) => format!("registered/{name}"),
            Change::Account(a) => format!("account/{}", a.email),
            Change::NoAccount(email) => format!("account/{email}"),
            Change::Login(l) => format!("login/{}", l.email),
            Change::Operation(o) => format!("operation/{}", o.name),
            Change::NoOperation(name) => format!("operation/{name}"),
            Change::RunOperation(o) => format!("run-operation/{}", o.id),
            Change::NoRunOperation(id) => format!("run-operation/{id}"),
            Change::AccountKey(k) => format!("account-key/{}/{}", k.email, k.public.kid),
            Change::NoAccountKey { email, kid } => format!("account-key/{email}/{kid}"),
            Change::Secrets(_) => "secret/cloud".to_owned(),
            Change::SystemKey(email, _) | Change::NoSystemKey(email) => format!("system-key/{email}"),
            Change::Revoked(digest, _) | Change::NoRevoked(digest) => format!("revoked/{digest}"),
        }
    }

    /// The stored value; None deletes the key.
    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        fn json<T: serde::Serialize>(value: &T) -> Option<Vec<u8>> {
            Some(serde_json::to_vec(value).expect("stored types have string keys and no failing serializer"))
        }
        match self {
            Change::Object(v) => json(v),
            Change::Connection(v) => json(v),
            Change::Quarantine(network, v) => json(&(network, v)),
            Change::Project(v) => json(v),
            Change::Service(v) => json(v),
            Change::Revision(v) => json(v),
            Change::Seat(v) => json(v),
            Change::Image(v) => json(v),
            Change::Policy(name, v) => json(&(name, v)),
            Change::OrgPolicy(name, v) => json(&(name, v)),
            Change::Namespace(v) => json(v),
            Change::Registered(v) => json(v),
            Change::Account(v) => json(v),
            Change::Login(v) => json(v),
            Change::Operation(v) => json(v),
            Change::RunOperation(v) => json(v),
            Change::AccountKey(v) => json(v),
            Change::Secrets(v) => json(v),
            Change::SystemKey(email, key) => json(&(email, key)),
            Change::Revoked(digest, until) => json(&(digest, until)),
            Change::NoObject(_)
            | Change::NoConnection(_)
            | Change::NoQuarantine(..)
            | Change::NoProject(_)
            | Change::NoService(_)
            | Change::NoRevision(_)
            | Change::NoSeat(_)
            | Change::NoPolicy(_)
            | Change::NoOrgPolicy(_)
            | Change::NoNamespace(_)
            | Change::NoRegistered(_)
            | Change::NoAccount(_)
            | Change::NoOperation(_)
            | Change::NoRunOperation(_)
            | Change::NoAccountKey { .. }
            | Change::NoSystemKey(_)
            | Change::NoRevoked(_) => None,
        }
    }

    /// Reads back what [`Change::key`] and [`Change::value`] wrote. None: not one of our keys.
    pub(crate) fn parse(key: &str, value: &[u8]) -> Result<Option<Change>, serde_json::Error> {
        let from = serde_json::from_slice;
        Ok(Some(match key.split_once('/').map_or(key, |(area, _)| area) {
            "object" => Change::Object(serde_json::from_slice(value)?),
            "connection" => Change::Connection(serde_json::from_slice(value)?),
            "quarantine" => {
                let (network, q) = serde_json::from_slice(value)?;
                Change::Quarantine(network, q)
            }
            "project" => Change::Project(serde_json::from_slice(value)?),
            "service" => Change::Service(serde_json::from_slice(value)?),
            "revision" => Change::Revision(serde_json::from_slice(value)?),
            "seat" => Change::Seat(serde_json::from_slice(value)?),
            "image" => Change::Image(serde_json::from_slice(value)?),
            "policy" => {
                let (name, policy) = from(value)?;
                Change::Policy(name, policy)
            }
            "org-policy" => {
                let (name, policy) = serde_json::from_slice(value)?;
                Change::OrgPolicy(name, Box::new(policy))
            }
            "namespace" => Change::Namespace(serde_json::from_slice(value)?),
            "registered" => Change::Registered(serde_json::from_slice(value)?),
            "account" => Change::Account(serde_json::from_slice(value)?),
            "login" => Change::Login(serde_json::from_slice(value)?),
            "operation" => Change::Operation(serde_json::from_slice(value)?),
            "run-operation" => Change::RunOperation(serde_json::from_slice(value)?),
            "account-key" => Change::AccountKey(serde_json::from_slice(value)?),
            "secret" => Change::Secrets(serde_json::from_slice(value)?),
            "system-key" => {
                let (email, key) = serde_json::from_slice(value)?;
                Change::SystemKey(email, key)
            }
            "revoked" => {
                let (digest, until) = serde_json::from_slice(value)?;
                Change::Revoked(digest, until)
            }
            _ => return Ok(None),
        }))
    }

    pub(crate) fn apply(self, world: &mut World) {
        match self {
            Change::Object(o) => world.put_object(*o),
            Change::NoObject(link) => world.remove_object(&link),
            Change::Connection(c) => world.connections.put(*c),
            Change::NoConnection(id) => world.connections.take(id),
            Change::Quarantine(network, q) => world.quarantine.put(network, q),
            Change::NoQuarantine(network, address) => world.quarantine.take(network, address),
            Change::Project(p) => world.put_project(*p),
            Change::NoProject(id) => world.remove_project(&id),
            Change::Service(s) => world.put_service(*s),
            Change::NoService(key) => world.remove_service(&key),
            Change::Revision(r) => {
                world.revisions.insert(r.key.clone(), *r);
            }
            Change::NoRevision(key) => {
                world.revisions.remove(&key);
            }
            Change::Seat(s) => world.seats.put(*s),
            Change::NoSeat(id) => world.seats.take(&id),
            Change::Image(i) => {
                world.images.insert(i.name.clone(), *i);
            }
            Change::Policy(name, policy) => {
                world.policies.insert(name, policy);
            }
            Change::NoPolicy(name) => {
                world.policies.remove(&name);
            }
            Change::OrgPolicy(name, policy) => {
                world.org_policies.insert(name, *policy);
            }
            Change::NoOrgPolicy(name) => {
                world.org_policies.remove(&name);
            }
            Change::Namespace(n) => world.directory.put_namespace(*n),
            Change::NoNamespace(name) => world.directory.take_namespace(&name),
            Change::Registered(s) => world.directory.put(*s),
            Change::NoRegistered(name) => world.directory.take(&name),
            Change::Account(a) => {
                world.accounts.insert(a.email.clone(), *a);
            }
            Change::NoAccount(email) => {
                world.accounts.remove(&email);
            }
            Change::Login(l) => {
                world.logins.insert(l.email.clone(), *l);
            }
            Change::Operation(o) => world.put_operation(*o),
            Change::NoOperation(name) => world.remove_operation(&name),
            Change::RunOperation(o) => {
                world.run_operations.insert(o.id.clone(), *o);
            }
            Change::NoRunOperation(id) => {
                world.run_operations.remove(&id);
            }
            Change::AccountKey(k) => {
                world.account_keys.insert((k.email.clone(), k.public.kid.clone()), *k);
            }
            Change::NoAccountKey { email, kid } => {
                world.account_keys.remove(&(email, kid));
            }
            Change::Secrets(s) => world.secrets = Some(*s),
            Change::SystemKey(email, key) => {
                world.system_keys.insert(email, key);
            }
            Change::NoSystemKey(email) => {
                world.system_keys.remove(&email);
            }
            Change::Revoked(digest, until) => {
                world.revoked.insert(digest, until);
            }
            Change::NoRevoked(digest) => {
                world.revoked.remove(&digest);
            }
        }
    }
}
