//! Every permission that some method of tombolo asks for, by name.
//!
//! The list is closed: a name that is not in it can neither be asked for in code (it does not compile) nor be tested by
//! a client. Who holds what is in `role`. Source: IAM permission reference; names verbatim.

use std::{cmp::Ordering, fmt};

/// A permission of the catalogue, such as `run.routes.invoke`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permission(&'static str);

/// The permission of this name; a name that is not in the catalogue does not compile.
#[macro_export]
macro_rules! permission {
    ($name:literal) => {
        const { $crate::permission::Permission::named($name) }
    };
}

impl Permission {
    /// For [`permission!`](crate::permission!), which runs it in the compiler.
    ///
    /// # Panics
    /// When the catalogue has no such name.
    pub const fn named(name: &str) -> Permission {
        match find(name) {
            Some(at) => Permission(CATALOGUE[at]),
            None => panic!("no such permission in the catalogue"),
        }
    }

    /// A name that came from a client; None when we never ask for it.
    pub fn parse(name: &str) -> Option<Permission> {
        CATALOGUE.binary_search(&name).ok().map(|at| Permission(CATALOGUE[at]))
    }

    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// All of them, sorted by name.
    pub fn all() -> impl Iterator<Item = Permission> {
        CATALOGUE.iter().map(|name| Permission(name))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Binary search that the compiler can run.
const fn find(name: &str) -> Option<usize> {
    let (mut low, mut high) = (0, CATALOGUE.len());
    while low < high {
        let middle = (low + high) / 2;
        match compare(CATALOGUE[middle].as_bytes(), name.as_bytes()) {
            Ordering::Equal => return Some(middle),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    None
}

const fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let mut i = 0;
    while i < a.len() && i < b.len() {
        if a[i] != b[i] {
            return if a[i] < b[i] { Ordering::Less } else { Ordering::Greater };
        }
        i += 1;
    }
    if a.len() == b.len() {
        Ordering::Equal
    } else if a.len() < b.len() {
        Ordering::Less
    } else {
        Ordering::Greater
    }
}

/// Sorted: it is searched by halves.
#[rustfmt::skip]
const CATALOGUE: &[&str] = &[
    "compute.addresses.create",
    "compute.addresses.createInternal",
    "compute.addresses.delete",
    "compute.addresses.deleteInternal",
    "compute.addresses.get",
    "compute.addresses.list",
    "compute.addresses.setLabels",
    "compute.addresses.use",
    "compute.addresses.useInternal",
    "compute.diskTypes.get",
    "compute.diskTypes.list",
    "compute.disks.create",
    "compute.disks.delete",
    "compute.disks.get",
    "compute.disks.getIamPolicy",
    "compute.disks.list",
    "compute.disks.resize",
    "compute.disks.setIamPolicy",
    "compute.disks.setLabels",
    "compute.disks.update",
    "compute.disks.use",
    "compute.disks.useReadOnly",
    "compute.firewalls.create",
    "compute.firewalls.delete",
    "compute.firewalls.get",
    "compute.firewalls.list",
    "compute.firewalls.update",
    "compute.forwardingRules.create",
    "compute.forwardingRules.delete",
    "compute.forwardingRules.get",
    "compute.forwardingRules.list",
    "compute.forwardingRules.pscCreate",
    "compute.forwardingRules.pscDelete",
    "compute.forwardingRules.pscSetLabels",
    "compute.forwardingRules.pscUpdate",
    "compute.forwardingRules.setLabels",
    "compute.forwardingRules.setTarget",
    "compute.forwardingRules.update",
    "compute.forwardingRules.use",
    "compute.globalAddresses.create",
    "compute.globalAddresses.createInternal",
    "compute.globalAddresses.delete",
    "compute.globalAddresses.deleteInternal",
    "compute.globalAddresses.get",
    "compute.globalAddresses.list",
    "compute.globalAddresses.setLabels",
    "compute.globalAddresses.use",
    "compute.globalForwardingRules.create",
    "compute.globalForwardingRules.delete",
    "compute.globalForwardingRules.get",
    "compute.globalForwardingRules.list",
    "compute.globalForwardingRules.pscCreate",
    "compute.globalForwardingRules.pscDelete",
    "compute.globalForwardingRules.pscSetLabels",
    "compute.globalForwardingRules.pscUpdate",
    "compute.globalForwardingRules.setLabels",
    "compute.globalForwardingRules.setTarget",
    "compute.globalForwardingRules.update",
    "compute.globalOperations.delete",
    "compute.globalOperations.get",
    "compute.globalOperations.list",
    "compute.images.get",
    "compute.images.getFromFamily",
    "compute.images.getIamPolicy",
    "compute.images.list",
    "compute.images.setIamPolicy",
    "compute.images.useReadOnly",
    "compute.instances.addAccessConfig",
    "compute.instances.attachDisk",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.deleteAccessConfig",
    "compute.instances.detachDisk",
    "compute.instances.get",
    "compute.instances.getEffectiveFirewalls",
    "compute.instances.getGuestAttributes",
    "compute.instances.getIamPolicy",
    "compute.instances.getSerialPortOutput",
    "compute.instances.list",
    "compute.instances.osAdminLogin",
    "compute.instances.osLogin",
    "compute.instances.reset",
    "compute.instances.setDeletionProtection",
    "compute.instances.setIamPolicy",
    "compute.instances.setLabels",
    "compute.instances.setMachineType",
    "compute.instances.setMetadata",
    "compute.instances.setScheduling",
    "compute.instances.setServiceAccount",
    "compute.instances.setTags",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.instances.update",
    "compute.instances.updateNetworkInterface",
    "compute.instances.use",
    "compute.instances.useReadOnly",
    "compute.machineTypes.get",
    "compute.machineTypes.list",
    "compute.networks.access",
    "compute.networks.create",
    "compute.networks.delete",
    "compute.networks.get",
    "compute.networks.getEffectiveFirewalls",
    "compute.networks.list",
    "compute.networks.setFirewallPolicy",
    "compute.networks.update",
    "compute.networks.updatePolicy",
    "compute.networks.use",
    "compute.networks.useExternalIp",
    "compute.projects.get",
    "compute.projects.setCommonInstanceMetadata",
    "compute.regionBackendServices.create",
    "compute.regionBackendServices.delete",
    "compute.regionBackendServices.get",
    "compute.regionBackendServices.getIamPolicy",
    "compute.regionBackendServices.list",
    "compute.regionBackendServices.setIamPolicy",
    "compute.regionBackendServices.update",
    "compute.regionBackendServices.use",
    "compute.regionNetworkEndpointGroups.attachNetworkEndpoints",
    "compute.regionNetworkEndpointGroups.create",
    "compute.regionNetworkEndpointGroups.delete",
    "compute.regionNetworkEndpointGroups.detachNetworkEndpoints",
    "compute.regionNetworkEndpointGroups.get",
    "compute.regionNetworkEndpointGroups.list",
    "compute.regionNetworkEndpointGroups.use",
    "compute.regionOperations.delete",
    "compute.regionOperations.get",
    "compute.regionOperations.list",
    "compute.regionTargetHttpProxies.create",
    "compute.regionTargetHttpProxies.delete",
    "compute.regionTargetHttpProxies.get",
    "compute.regionTargetHttpProxies.list",
    "compute.regionTargetHttpProxies.setUrlMap",
    "compute.regionTargetHttpProxies.use",
    "compute.regionUrlMaps.create",
    "compute.regionUrlMaps.delete",
    "compute.regionUrlMaps.get",
    "compute.regionUrlMaps.list",
    "compute.regionUrlMaps.update",
    "compute.regionUrlMaps.use",
    "compute.regionUrlMaps.validate",
    "compute.regions.get",
    "compute.regions.list",
    "compute.routes.create",
    "compute.routes.delete",
    "compute.routes.get",
    "compute.routes.list",
    "compute.serviceAttachments.create",
    "compute.serviceAttachments.delete",
    "compute.serviceAttachments.get",
    "compute.serviceAttachments.getIamPolicy",
    "compute.serviceAttachments.list",
    "compute.serviceAttachments.setIamPolicy",
    "compute.serviceAttachments.update",
    "compute.serviceAttachments.use",
    "compute.subnetworks.create",
    "compute.subnetworks.delete",
    "compute.subnetworks.expandIpCidrRange",
    "compute.subnetworks.get",
    "compute.subnetworks.getIamPolicy",
    "compute.subnetworks.list",
    "compute.subnetworks.setIamPolicy",
    "compute.subnetworks.setPrivateIpGoogleAccess",
    "compute.subnetworks.update",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
    "compute.zoneOperations.delete",
    "compute.zoneOperations.get",
    "compute.zoneOperations.list",
    "compute.zones.get",
    "compute.zones.list",
    "dns.managedZones.create",
    "dns.managedZones.get",
    "dns.managedZones.list",
    "dns.networks.bindPrivateDNSZone",
    "dns.resourceRecordSets.list",
    "iam.roles.get",
    "iam.roles.list",
    "iam.serviceAccountKeys.create",
    "iam.serviceAccountKeys.delete",
    "iam.serviceAccountKeys.disable",
    "iam.serviceAccountKeys.enable",
    "iam.serviceAccountKeys.get",
    "iam.serviceAccountKeys.list",
    "iam.serviceAccounts.actAs",
    "iam.serviceAccounts.create",
    "iam.serviceAccounts.delete",
    "iam.serviceAccounts.disable",
    "iam.serviceAccounts.enable",
    "iam.serviceAccounts.get",
    "iam.serviceAccounts.getAccessToken",
    "iam.serviceAccounts.getIamPolicy",
    "iam.serviceAccounts.getOpenIdToken",
    "iam.serviceAccounts.implicitDelegation",
    "iam.serviceAccounts.list",
    "iam.serviceAccounts.setIamPolicy",
    "iam.serviceAccounts.signBlob",
    "iam.serviceAccounts.signJwt",
    "iam.serviceAccounts.undelete",
    "iam.serviceAccounts.update",
    "iap.tunnelInstances.accessViaIAP",
    "iap.tunnelInstances.getIamPolicy",
    "iap.tunnelInstances.setIamPolicy",
    "logging.logEntries.create",
    "logging.logEntries.download",
    "logging.logEntries.list",
    "logging.logEntries.route",
    "logging.logs.delete",
    "logging.logs.list",
    "logging.privateLogEntries.list",
    "logging.views.access",
    "logging.views.get",
    "logging.views.list",
    "orgpolicy.constraints.list",
    "orgpolicy.policies.create",
    "orgpolicy.policies.delete",
    "orgpolicy.policies.list",
    "orgpolicy.policies.update",
    "orgpolicy.policy.get",
    "orgpolicy.policy.set",
    "resourcemanager.folders.get",
    "resourcemanager.folders.getIamPolicy",
    "resourcemanager.folders.list",
    "resourcemanager.folders.setIamPolicy",
    "resourcemanager.organizations.get",
    "resourcemanager.organizations.getIamPolicy",
    "resourcemanager.organizations.setIamPolicy",
    "resourcemanager.projects.create",
    "resourcemanager.projects.delete",
    "resourcemanager.projects.get",
    "resourcemanager.projects.getIamPolicy",
    "resourcemanager.projects.list",
    "resourcemanager.projects.setIamPolicy",
    "resourcemanager.projects.undelete",
    "resourcemanager.projects.update",
    "run.configurations.get",
    "run.configurations.list",
    "run.executions.cancel",
    "run.executions.delete",
    "run.executions.get",
    "run.executions.list",
    "run.jobs.create",
    "run.jobs.delete",
    "run.jobs.get",
    "run.jobs.getIamPolicy",
    "run.jobs.list",
    "run.jobs.run",
    "run.jobs.runWithOverrides",
    "run.jobs.setIamPolicy",
    "run.jobs.update",
    "run.locations.list",
    "run.operations.delete",
    "run.operations.get",
    "run.operations.list",
    "run.revisions.delete",
    "run.revisions.get",
    "run.revisions.list",
    "run.routes.get",
    "run.routes.invoke",
    "run.routes.list",
    "run.services.create",
    "run.services.delete",
    "run.services.get",
    "run.services.getIamPolicy",
    "run.services.list",
    "run.services.setIamPolicy",
    "run.services.update",
    "run.tasks.get",
    "run.tasks.list",
    "servicedirectory.endpoints.create",
    "servicedirectory.endpoints.delete",
    "servicedirectory.endpoints.get",
    "servicedirectory.endpoints.list",
    "servicedirectory.endpoints.update",
    "servicedirectory.locations.get",
    "servicedirectory.locations.list",
    "servicedirectory.namespaces.create",
    "servicedirectory.namespaces.delete",
    "servicedirectory.namespaces.get",
    "servicedirectory.namespaces.list",
    "servicedirectory.networks.attach",
    "servicedirectory.services.create",
    "servicedirectory.services.delete",
    "servicedirectory.services.get",
    "servicedirectory.services.list",
    "servicedirectory.services.resolve",
    "servicedirectory.services.update",
    "serviceusage.operations.get",
    "serviceusage.services.disable",
    "serviceusage.services.enable",
    "serviceusage.services.get",
    "serviceusage.services.list",
    "serviceusage.services.use",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_sorted_and_every_name_is_found_by_compiler_and_parser() {
        assert!(CATALOGUE.is_sorted_by(|a, b| a < b));
        for name in CATALOGUE {
            assert_eq!(Permission::parse(name), Some(Permission::named(name)));
        }
        assert_eq!(permission!("run.routes.invoke").as_str(), "run.routes.invoke");
    }

    #[test]
    fn what_is_in_no_catalogue_is_no_permission() {
        for name in ["", "run.routes", "run.routes.*", "run.routes.invokes", "RUN.ROUTES.INVOKE", "zzz"] {
            assert_eq!(Permission::parse(name), None, "{name}");
        }
    }
}
