//! Service Directory, and which of its namespaces a network sees as private zones.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    directory::{Namespace, NamespaceName, Service, ServiceName, Zone},
    id::NetworkId,
    name::{ProjectId, Region},
};

/// Read it by its methods; changes of the store alone write it.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    namespaces: BTreeMap<NamespaceName, Namespace>,
    services: BTreeMap<ServiceName, Service>,
    zones: BTreeMap<NetworkId, BTreeSet<NamespaceName>>,
}

impl Directory {
    pub fn namespace(&self, name: &NamespaceName) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// Those of a project in one region, by name.
    pub fn namespaces(&self, project: &ProjectId, region: &Region) -> impl Iterator<Item = &Namespace> {
        let first = NamespaceName { project: project.clone(), region: region.clone(), name: String::new() };
        let here = move |n: &&Namespace| n.name.project == *project && n.name.region == *region;
        self.namespaces.range(first..).map(|(_, namespace)| namespace).take_while(here)
    }

    /// Those of a project, by region and name.
    pub fn all_of(&self, project: &ProjectId) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values().filter(move |n| n.name.project == *project)
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Those of a namespace, by name.
    pub fn services(&self, namespace: &NamespaceName) -> impl Iterator<Item = &Service> {
        let first = ServiceName { namespace: namespace.clone(), name: String::new() };
        let here = move |s: &&Service| s.name.namespace == *namespace;
        self.services.range(first..).map(|(_, service)| service).take_while(here)
    }

    /// The zone of a namespace, where it has one in this network.
    pub fn zone_in(&self, namespace: &NamespaceName, network: NetworkId) -> Option<&Zone> {
        self.namespaces.get(namespace)?.zone.as_ref().filter(|zone| zone.network_id == network)
    }

    /// The namespaces that have a zone in a network.
    pub fn zones_of(&self, network: NetworkId) -> impl Iterator<Item = &NamespaceName> {
        self.zones.get(&network).into_iter().flatten()
    }

    pub(crate) fn put_namespace(&mut self, namespace: Namespace) {
        self.take_namespace(&namespace.name);
        if let Some(zone) = &namespace.zone {
            self.zones.entry(zone.network_id).or_default().insert(namespace.name.clone());
        }
        self.namespaces.insert(namespace.name.clone(), namespace);
    }

    pub(crate) fn take_namespace(&mut self, name: &NamespaceName) {
        let Some(zone) = self.namespaces.remove(name).and_then(|namespace| namespace.zone) else { return };
        if let Some(names) = self.zones.get_mut(&zone.network_id) {
            names.remove(name);
            if names.is_empty() {
                self.zones.remove(&zone.network_id);
            }
        }
    }

    pub(crate) fn put(&mut self, service: Service) {
        self.services.insert(service.name.clone(), service);
    }

    pub(crate) fn take(&mut self, name: &ServiceName) {
        self.services.remove(name);
    }
}
