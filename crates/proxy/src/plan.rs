//! The last plan: what control said, indexed for requests. Survives control.
//!
//! Start with [`Plan::set`]; requests read through the small lookups below it.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv6Addr,
    rc::Rc,
};

use model::{
    id::{ListenerId, NetworkId},
    planned::edge::{EdgeItem, EdgeKey, EdgeService, Listener},
    run::{RevisionKey, ServiceKey},
};

use crate::{invoker::Gate, outbox::Outbox, revision::Revision, route};

/// A service under its name.
pub struct Service {
    pub key: ServiceKey,
    pub plan: EdgeService,
}

pub struct Plan {
    outbox: Rc<Outbox>,
    pub gate: Gate,
    networks: HashMap<NetworkId, Ipv6Addr>,
    listeners: HashMap<ListenerId, Rc<Listener>>,
    services: HashMap<ServiceKey, Rc<Service>>,
    revisions: HashMap<RevisionKey, Rc<Revision>>,
    /// `run.app` host names, without tags.
    hosts: HashMap<String, ServiceKey>,
    /// What the present control process has set.
    fresh: BTreeSet<EdgeKey>,
    fresh_keys: bool,
}

impl Plan {
    pub fn new(outbox: Rc<Outbox>) -> Plan {
        Plan {
            outbox,
            gate: Gate::new(),
            networks: HashMap::new(),
            listeners: HashMap::new(),
            services: HashMap::new(),
            revisions: HashMap::new(),
            hosts: HashMap::new(),
            fresh: BTreeSet::new(),
            fresh_keys: false,
        }
    }

    pub fn network(&self, id: NetworkId) -> Option<Ipv6Addr> {
        self.networks.get(&id).copied()
    }

    pub fn listener(&self, id: ListenerId) -> Option<Rc<Listener>> {
        self.listeners.get(&id).cloned()
    }

    pub fn service(&self, key: &ServiceKey) -> Option<Rc<Service>> {
        self.services.get(key).cloned()
    }

    pub fn revision(&self, key: &RevisionKey) -> Option<Rc<Revision>> {
        self.revisions.get(key).cloned()
    }

    pub fn revisions(&self) -> impl Iterator<Item = &Rc<Revision>> {
        self.revisions.values()
    }

    /// The service behind a `run.app` host and the tag in it.
    pub fn by_host<'a>(&self, host: &'a str) -> Option<(Rc<Service>, Option<&'a str>)> {
        if let Some(key) = self.hosts.get(host) {
            return Some((self.service(key)?, None));
        }
        let (tag, rest) = route::split_tag(host)?;
        Some((self.service(self.hosts.get(rest)?)?, Some(tag)))
    }

    /// A control process begins to send everything.
    pub fn begin(&mut self) {
        self.fresh.clear();
        self.fresh_keys = false;
    }

    pub fn set(&mut self, item: EdgeItem) {
        match item {
            EdgeItem::Network(id, prefix) => {
                self.fresh.insert(EdgeKey::Network(id));
                self.networks.insert(id, prefix);
            }
            EdgeItem::Listener(id, listener) => {
                self.fresh.insert(EdgeKey::Listener(id));
                self.listeners.insert(id, Rc::new(*listener));
            }
            EdgeItem::Service(key, plan) => {
                self.fresh.insert(EdgeKey::Service(key.clone()));
                self.forget_hosts(&key);
                for host in &plan.hosts {
                    self.hosts.insert(host.to_ascii_lowercase(), key.clone());
                }
                self.services.insert(key.clone(), Rc::new(Service { key, plan: *plan }));
            }
            EdgeItem::Revision(key, plan) => {
                self.fresh.insert(EdgeKey::Revision(key.clone()));
                match self.revisions.get(&key) {
                    Some(revision) => revision.set(*plan),
                    None => {
                        let revision = Revision::new(key.clone(), *plan, self.outbox.clone());
                        self.revisions.insert(key, revision);
                    }
                }
            }
            EdgeItem::Keys(keys) => {
                self.fresh_keys = true;
                self.gate.set_keys(keys);
            }
        }
    }

    pub fn unset(&mut self, key: &EdgeKey) {
        self.fresh.remove(key);
        match key {
            EdgeKey::Network(id) => {
                self.networks.remove(id);
            }
            EdgeKey::Listener(id) => {
                self.listeners.remove(id);
            }
            EdgeKey::Service(key) => {
                self.forget_hosts(key);
                self.services.remove(key);
            }
            EdgeKey::Revision(key) => {
                if let Some(revision) = self.revisions.remove(key) {
                    revision.retire();
                }
            }
        }
    }

    /// Everything was sent: what was not is gone.
    pub fn complete(&mut self) {
        let known = (self.networks.keys().map(|id| EdgeKey::Network(*id)))
            .chain(self.listeners.keys().map(|id| EdgeKey::Listener(*id)))
            .chain(self.services.keys().cloned().map(EdgeKey::Service))
            .chain(self.revisions.keys().cloned().map(EdgeKey::Revision));
        let stale: Vec<EdgeKey> = known.filter(|key| !self.fresh.contains(key)).collect();
        for key in &stale {
            self.unset(key);
        }
        if !self.fresh_keys {
            self.gate.set_keys(Vec::new());
        }
    }

    fn forget_hosts(&mut self, key: &ServiceKey) {
        if let Some(old) = self.services.get(key) {
            for host in &old.plan.hosts {
                let host = host.to_ascii_lowercase();
                if self.hosts.get(&host) == Some(key) {
                    self.hosts.remove(&host);
                }
            }
        }
    }
}
