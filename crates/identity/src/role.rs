//! The predefined roles and what each holds.
//!
//! A role is written down as patterns over the permission catalogue, so it holds exactly those of its permissions that
//! tombolo can ever ask for. Source: IAM, predefined roles and basic roles.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::permission::Permission;

/// A predefined role.
#[derive(Debug, PartialEq, Eq)]
pub struct Role {
    /// `roles/run.invoker`.
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub stage: Stage,
    /// Sorted by name.
    pub permissions: Vec<Permission>,
}

/// Launch stage, as `roles.get` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Ga,
    Beta,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Ga => "GA",
            Stage::Beta => "BETA",
        }
    }
}

impl Role {
    /// By full name, `roles/…`.
    pub fn find(name: &str) -> Option<&'static Role> {
        ROLES.get(name)
    }

    /// Every predefined role, by name.
    pub fn all() -> impl Iterator<Item = &'static Role> {
        ROLES.values()
    }

    pub fn holds(&self, permission: Permission) -> bool {
        self.permissions.binary_search(&permission).is_ok()
    }

    /// Owner, editor and viewer: grantable on projects, folders and organisations only.
    pub fn is_basic(&self) -> bool {
        matches!(self.name, "roles/owner" | "roles/editor" | "roles/viewer")
    }
}

static ROLES: LazyLock<BTreeMap<&'static str, Role>> = LazyLock::new(|| {
    let build = |row: &Row| Role {
        name: row.name,
        title: row.title,
        description: row.description,
        stage: row.stage,
        permissions: Permission::all().filter(|p| row.holds(*p)).collect(),
    };
    TABLE.iter().map(|row| (row.name, build(row))).collect()
});

struct Row {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    stage: Stage,
    /// Patterns `service.resource.verb`. A part is a name, `{a,b}`, or ends with `*`.
    holds: &'static [&'static str],
    /// Taken away again.
    without: &'static [&'static str],
}

impl Row {
    fn holds(&self, permission: Permission) -> bool {
        let matched = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, permission));
        matched(self.holds) && !matched(self.without)
    }
}

fn matches(pattern: &str, permission: Permission) -> bool {
    let part_matches = |(pattern, name): (&str, &str)| {
        alternatives(pattern).any(|one| match one.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == one,
        })
    };
    pattern.split('.').zip(permission.as_str().split('.')).all(part_matches)
}

fn alternatives(part: &str) -> std::str::Split<'_, char> {
    part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(part).split(',')
}

const fn role(
    name: &'static str,
    title: &'static str,
    description: &'static str,
    holds: &'static [&'static str],
) -> Row {
    Row { name, title, description, stage: Stage::Ga, holds, without: &[] }
}

impl Row {
    const fn without(self, without: &'static [&'static str]) -> Row {
        Row { without, ..self }
    }
}

const PROJECTS: &str = "resourcemanager.projects.{get,list}";
const SERVICES: &str = "serviceusage.services.{get,list}";
/// To read them. No basic role sets one: the Organization Policy Administrator does.
const ORG_POLICY_LISTS: &str = "orgpolicy.{constraints,policies}.list";
const ORG_POLICY: &str = "orgpolicy.policy.get";
const COMPUTE_PLACES: &str = "compute.{regions,zones}.{get,list}";
const COMPUTE_OPERATIONS: &str = "compute.{globalOperations,regionOperations,zoneOperations}.{get,list}";

const VIEWER: &[&str] = &[
    "compute.*.{get*,list*}",
    "compute.{disks,images}.useReadOnly",
    "compute.regionUrlMaps.validate",
    "dns.*.{get,list}",
    "iam.{roles,serviceAccountKeys}.{get,list}",
    "iam.serviceAccounts.{get,getIamPolicy,list}",
    "logging.logEntries.{download,list}",
    "logging.logs.list",
    "logging.views.{get,list}",
    ORG_POLICY_LISTS,
    ORG_POLICY,
    "resourcemanager.projects.{get,getIamPolicy,list}",
    "run.*.{get*,list}",
    "servicedirectory.*.{get,list,resolve}",
    "serviceusage.operations.get",
    SERVICES,
];

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // ---- basic ----
    role("roles/viewer", "Viewer", "Sees most resources.", VIEWER),
    role("roles/editor", "Editor", "Sees, makes, changes and deletes most resources.", &[
        "compute.*.*",
        "dns.*.*",
        "iam.roles.{get,list}",
        "iam.serviceAccountKeys.*",
        "iam.serviceAccounts.{actAs,create,delete,disable,enable,get,getIamPolicy,list,update}",
        "logging.logEntries.*", "logging.logs.*", "logging.views.{get,list}",
        ORG_POLICY_LISTS, ORG_POLICY,
        "resourcemanager.projects.{get,getIamPolicy,list,update}",
        "run.*.*",
        "servicedirectory.*.*",
        "serviceusage.*.*",
    ]).without(&["*.*.setIamPolicy"]),
    role("roles/owner", "Owner", "Everything in a project, its policies included, but never another's token.", &[
        "compute.*.*",
        "dns.*.*",
        "iam.*.*",
        "iap.*.*",
        "logging.*.*",
        ORG_POLICY_LISTS, ORG_POLICY,
        "resourcemanager.projects.{delete,get,getIamPolicy,list,setIamPolicy,undelete,update}",
        "run.*.*",
        "servicedirectory.*.*",
        "serviceusage.*.*",
    ]).without(&["iam.serviceAccounts.{getAccessToken,getOpenIdToken,implicitDelegation,signBlob,signJwt}"]),
    role("roles/browser", "Browser", "Walks the hierarchy, without the resources in it.", &[
        "resourcemanager.folders.{get,list}", "resourcemanager.organizations.get",
        "resourcemanager.projects.{get,getIamPolicy,list}",
    ]),

    // ---- Cloud Run ----
    role("roles/run.admin", "Cloud Run Admin", "Everything of Cloud Run.", &["run.*.*", PROJECTS]),
    role("roles/run.developer", "Cloud Run Developer",
        "Everything of Cloud Run but its policies.", &["run.*.*", PROJECTS])
        .without(&["run.*.setIamPolicy"]),
    role("roles/run.viewer", "Cloud Run Viewer",
        "Sees Cloud Run resources and their policies.", &["run.*.{get*,list}", PROJECTS]),
    role("roles/run.invoker", "Cloud Run Invoker",
        "Calls services and runs jobs.", &["run.routes.invoke", "run.jobs.run"]),
    role("roles/run.servicesInvoker", "Cloud Run Service Invoker", "Calls services.", &["run.routes.invoke"]),
    role("roles/run.jobsExecutor", "Cloud Run Jobs Executor",
        "Runs and cancels jobs.", &["run.executions.cancel", "run.jobs.run"]),
    role("roles/run.jobsExecutorWithOverrides", "Cloud Run Jobs Executor With Overrides",
        "Runs jobs, also with other arguments, and cancels them.",
        &["run.executions.cancel", "run.jobs.{run,runWithOverrides}"]),
    role("roles/run.serviceAgent", "Cloud Run Service Agent", "What Cloud Run itself needs in a project.", &[
        "compute.addresses.{create,createInternal,delete,deleteInternal,get,list}",
        "compute.{globalOperations,regionOperations,zoneOperations}.get",
        "compute.networks.{access,get}", "compute.subnetworks.{get,use}",
        "iam.serviceAccounts.{actAs,getAccessToken,getOpenIdToken,signBlob}",
        "resourcemanager.projects.{get,getIamPolicy,list}",
        "run.routes.invoke", "serviceusage.services.{get,use}",
    ]),

    // ---- Compute ----
    role("roles/compute.admin", "Compute Admin", "Everything of Compute Engine.", &["compute.*.*", PROJECTS, SERVICES]),
    role("roles/compute.viewer", "Compute Viewer", "Sees Compute Engine resources, not the data in them.", &[
        "compute.*.{get*,list*}", "compute.regionUrlMaps.validate", PROJECTS, SERVICES,
    ]),
    role("roles/compute.networkAdmin", "Compute Network Admin", "Networks and load balancers, not firewall rules.", &[
        COMPUTE_OPERATIONS, COMPUTE_PLACES, PROJECTS, SERVICES,
        "compute.{addresses,forwardingRules,globalAddresses,globalForwardingRules}.*",
        "compute.{networks,regionBackendServices,regionTargetHttpProxies,regionUrlMaps,routes}.*",
        "compute.{serviceAttachments,subnetworks}.*",
        "compute.firewalls.{get,list}",
        "compute.instances.{get,getGuestAttributes,getSerialPortOutput,list,use,useReadOnly}",
        "compute.machineTypes.{get,list}", "compute.projects.get",
        "compute.regionNetworkEndpointGroups.{get,list,use}",
        "servicedirectory.{namespaces,services}.{create,delete}",
    ]),
    role("roles/compute.networkUser", "Compute Network User", "Uses a shared network.", &[
        COMPUTE_PLACES, PROJECTS, SERVICES,
        "compute.addresses.{createInternal,deleteInternal,get,list,useInternal}",
        "compute.{firewalls,routes,serviceAttachments}.{get,list}",
        "compute.networks.{access,get,getEffectiveFirewalls,list,use,useExternalIp}", "compute.projects.get",
        "compute.subnetworks.{get,list,use,useExternalIp}",
    ]),
    role("roles/compute.networkViewer", "Compute Network Viewer", "Sees networking resources.", &[
        COMPUTE_PLACES, PROJECTS, SERVICES,
        "compute.{globalOperations,regionOperations,zoneOperations}.{get,list}",
        "compute.{addresses,firewalls,forwardingRules,globalAddresses,globalForwardingRules}.{get,list}",
        "compute.{machineTypes,regionBackendServices,regionTargetHttpProxies,regionUrlMaps,routes}.{get,list}",
        "compute.{serviceAttachments,subnetworks}.{get,list}",
        "compute.instances.{get,getGuestAttributes,getSerialPortOutput,list}",
        "compute.networks.{get,getEffectiveFirewalls,list}", "compute.projects.get",
    ]),
    role("roles/compute.loadBalancerAdmin", "Compute Load Balancer Admin",
        "Load balancers and what they consist of.", &[
        COMPUTE_OPERATIONS, PROJECTS, SERVICES,
        "compute.{addresses,forwardingRules,globalAddresses,globalForwardingRules}.*",
        "compute.{regionBackendServices,regionNetworkEndpointGroups,regionTargetHttpProxies,regionUrlMaps}.*",
        "compute.instances.{get,list,use,useReadOnly}", "compute.{networks,subnetworks}.{get,list,use}",
        "compute.projects.get",
    ]),
    role("roles/compute.securityAdmin", "Compute Security Admin", "Firewall rules and certificates.", &[
        COMPUTE_OPERATIONS, COMPUTE_PLACES, PROJECTS, SERVICES,
        "compute.firewalls.*", "compute.instances.{getEffectiveFirewalls,list}",
        "compute.networks.{get,getEffectiveFirewalls,list,updatePolicy}", "compute.projects.get",
        "compute.regionBackendServices.list", "compute.{routes,subnetworks}.{get,list}",
    ]),
    role("roles/compute.instanceAdmin.v1", "Compute Instance Admin (v1)", "Virtual machines, disks and images.", &[
        COMPUTE_OPERATIONS, COMPUTE_PLACES, PROJECTS, SERVICES,
        "compute.{disks,images,instances}.*", "compute.{diskTypes,machineTypes}.{get,list}",
        "compute.addresses.{createInternal,deleteInternal,get,list,use,useInternal}",
        "compute.{firewalls,forwardingRules,globalForwardingRules}.{get,list}",
        "compute.globalAddresses.{get,list,use}", "compute.{networks,subnetworks}.{get,list,use,useExternalIp}",
        "compute.projects.{get,setCommonInstanceMetadata}",
        "compute.{regionBackendServices,regionTargetHttpProxies,regionUrlMaps,routes,serviceAttachments}.{get,list}",
        "compute.regionNetworkEndpointGroups.*",
    ]),
    role("roles/compute.osLogin", "Compute OS Login", "Logs in to virtual machines.", &[
        "compute.instances.{get,list,osLogin}", "compute.projects.get", PROJECTS, SERVICES,
    ]),
    role("roles/compute.osAdminLogin", "Compute OS Admin Login", "Logs in to virtual machines as administrator.", &[
        "compute.instances.{get,list,osAdminLogin,osLogin}", "compute.projects.get", PROJECTS, SERVICES,
    ]),
    role("roles/compute.serviceAgent", "Compute Engine Service Agent",
        "What Compute Engine itself needs in a project.", &[
        "compute.*.*", "iam.serviceAccounts.{actAs,getAccessToken,getOpenIdToken}", PROJECTS, SERVICES,
    ]).without(&["*.*.setIamPolicy"]),

    // ---- DNS, Service Directory ----
    role("roles/dns.admin", "DNS Administrator", "Everything of Cloud DNS.",
        &["compute.networks.{get,list}", "dns.*.*", PROJECTS]),
    role("roles/dns.reader", "DNS Reader", "Sees zones and their records.", &["compute.networks.get", "dns.*.{get,list}"]),
    role("roles/servicedirectory.admin", "Service Directory Admin", "Everything of Service Directory.",
        &["servicedirectory.*.*", PROJECTS]),
    role("roles/servicedirectory.editor", "Service Directory Editor", "Registers services.",
        &["servicedirectory.*.*", PROJECTS]),
    role("roles/servicedirectory.viewer", "Service Directory Viewer", "Sees and resolves services.",
        &["servicedirectory.{endpoints,locations,namespaces}.{get,list}",
        "servicedirectory.services.{get,list,resolve}", PROJECTS]),
    role("roles/servicedirectory.networkAttacher", "Service Directory Network Attacher",
        "Registers endpoints in a network.", &["servicedirectory.networks.attach", PROJECTS]),

    // ---- IAM ----
    role("roles/iam.serviceAccountUser", "Service Account User", "Attaches service accounts to workloads.",
        &["iam.serviceAccounts.{actAs,get,list}", PROJECTS]),
    role("roles/iam.serviceAccountTokenCreator", "Service Account Token Creator", "Speaks as service accounts.", &[
        "iam.serviceAccounts.{get,getAccessToken,getOpenIdToken,implicitDelegation,list,signBlob,signJwt}", PROJECTS,
    ]),
    role("roles/iam.serviceAccountOpenIdTokenCreator", "Service Account OpenID Connect Identity Token Creator",
        "Makes ID tokens of service accounts.", &["iam.serviceAccounts.getOpenIdToken"]),
    role("roles/iam.workloadIdentityUser", "Workload Identity User", "Speaks as service accounts from outside.",
        &["iam.serviceAccounts.{get,getAccessToken,getOpenIdToken,list}"]),
    role("roles/iam.serviceAccountAdmin", "Service Account Admin", "Makes and manages service accounts.", &[
        "iam.serviceAccounts.{create,delete,disable,enable,get,getIamPolicy,list,setIamPolicy,undelete,update}",
        PROJECTS,
    ]),
    role("roles/iam.serviceAccountCreator", "Create Service Accounts", "Makes service accounts.",
        &["iam.serviceAccounts.{create,get,list}", PROJECTS]),
    role("roles/iam.serviceAccountDeleter", "Delete Service Accounts", "Deletes service accounts.",
        &["iam.serviceAccounts.{delete,get,list}", PROJECTS]),
    role("roles/iam.serviceAccountViewer", "View Service Accounts", "Sees service accounts, their keys and policies.",
        &["iam.serviceAccountKeys.{get,list}", "iam.serviceAccounts.{get,getIamPolicy,list}", PROJECTS]),
    role("roles/iam.serviceAccountKeyAdmin", "Service Account Key Admin", "Makes and revokes keys of service accounts.",
        &["iam.serviceAccountKeys.*", "iam.serviceAccounts.{get,list}", PROJECTS]),
    role("roles/iam.roleViewer", "Role Viewer",
        "Sees roles.", &["iam.roles.{get,list}", "resourcemanager.projects.{get,getIamPolicy}"]),
    role("roles/iam.securityReviewer", "Security Reviewer", "Lists resources and sees their policies.",
        &["*.*.{getIamPolicy,list}", "iam.{roles,serviceAccountKeys,serviceAccounts}.get", "resourcemanager.*.get"])
        .without(&["logging.*.list"]),
    role("roles/iam.securityAdmin", "Security Admin", "Lists resources, sees and sets their policies.",
        &["*.*.{getIamPolicy,list,setIamPolicy}", "iam.{roles,serviceAccountKeys,serviceAccounts}.get",
        "resourcemanager.*.get"])
        .without(&["logging.*.list"]),

    // ---- Resource Manager, service usage ----
    role("roles/resourcemanager.projectIamAdmin", "Project IAM Admin", "Sees and sets the policies of projects.",
        &["resourcemanager.projects.{get,getIamPolicy,setIamPolicy}"]),
    role("roles/resourcemanager.projectCreator", "Project Creator", "Makes projects.",
        &["resourcemanager.organizations.get", "resourcemanager.projects.create"]),
    role("roles/resourcemanager.projectDeleter", "Project Deleter", "Deletes projects.",
        &["resourcemanager.projects.{delete,get}"]),
    role("roles/resourcemanager.organizationAdmin", "Organization Administrator", "Policies of the whole hierarchy.", &[
        "resourcemanager.{folders,projects}.{get,getIamPolicy,list,setIamPolicy}",
        "resourcemanager.organizations.{get,getIamPolicy,setIamPolicy}",
    ]),
    role("roles/orgpolicy.policyAdmin", "Organization Policy Administrator", "Sets organisation policies.",
        &["orgpolicy.*.*"]),
    role("roles/orgpolicy.policyViewer", "Organization Policy Viewer", "Sees organisation policies.",
        &[ORG_POLICY_LISTS, ORG_POLICY]),
    role("roles/serviceusage.serviceUsageAdmin", "Service Usage Admin", "Enables and disables APIs.",
        &["serviceusage.*.*"]),
    role("roles/serviceusage.serviceUsageConsumer", "Service Usage Consumer", "Uses a project's APIs and quota.",
        &["serviceusage.operations.get", "serviceusage.services.{get,list,use}"]),
    role("roles/serviceusage.serviceUsageViewer", "Service Usage Viewer", "Sees which APIs are enabled.",
        &["serviceusage.operations.get", SERVICES]),

    // ---- logging, IAP ----
    role("roles/logging.viewer", "Logs Viewer", "Reads all logs but private ones.",
        &["logging.{logEntries,logs}.list", "logging.views.{get,list}", "resourcemanager.projects.get"]),
    role("roles/logging.privateLogViewer", "Private Logs Viewer", "Reads all logs.", &[
        "logging.{logEntries,logs,privateLogEntries}.list", "logging.views.{access,get,list}",
        "resourcemanager.projects.get",
    ]),
    role("roles/logging.viewAccessor", "Logs View Accessor", "Reads logs through a view.",
        &["logging.logEntries.download", "logging.views.access"]),
    role("roles/logging.logWriter", "Logs Writer", "Writes log entries.", &["logging.logEntries.{create,route}"]),
    role("roles/logging.admin", "Logging Admin", "Everything of Cloud Logging.", &["logging.*.*", PROJECTS]),
    role("roles/iap.tunnelResourceAccessor", "IAP-secured Tunnel User", "Opens tunnels to virtual machines.",
        &["iap.tunnelInstances.accessViaIAP"]),
    role("roles/iap.admin", "IAP Policy Admin", "Sets who may use the Identity-Aware Proxy.",
        &["iap.tunnelInstances.{getIamPolicy,setIamPolicy}"]),

    // ---- roles of services that are not here: they can be granted, as scripts do, and hold nothing here ----
    role("roles/artifactregistry.reader", "Artifact Registry Reader", "Reads repositories.", &[]),
    role("roles/artifactregistry.writer", "Artifact Registry Writer", "Reads and writes repositories.", &[]),
    role("roles/cloudtrace.agent", "Cloud Trace Agent", "Writes traces.", &[]),
    role("roles/monitoring.metricWriter", "Monitoring Metric Writer", "Writes metrics.", &[]),
    role("roles/pubsub.publisher", "Pub/Sub Publisher", "Publishes messages.", &[]),
    role("roles/secretmanager.secretAccessor", "Secret Manager Secret Accessor", "Reads secrets.", &[]),
    role("roles/storage.objectViewer", "Storage Object Viewer", "Reads objects.", &[]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_names_only_what_exists() {
        for row in TABLE {
            for pattern in row.holds.iter().chain(row.without) {
                let parts: Vec<Vec<&str>> = pattern.split('.').map(|part| alternatives(part).collect()).collect();
                let [services, resources, verbs] = &parts[..] else { panic!("{}: {pattern}", row.name) };
                for (service, resource, verb) in services
                    .iter()
                    .flat_map(|s| resources.iter().flat_map(move |r| verbs.iter().map(move |v| (s, r, v))))
                {
                    let one = format!("{service}.{resource}.{verb}");
                    assert!(Permission::all().any(|p| matches(&one, p)), "{}: {one} is nothing", row.name);
                }
            }
        }
    }

    #[test]
    fn every_permission_can_be_granted_by_some_role() {
        for permission in Permission::all() {
            assert!(Role::all().any(|role| role.holds(permission)), "{permission}");
        }
    }

    #[test]
    fn the_basic_roles_hold_what_google_says() {
        // (permission, viewer, editor, owner)
        for (name, viewer, editor, owner) in [
            ("run.services.create", false, true, true),
            ("run.services.update", false, true, true),
            ("run.services.get", true, true, true),
            ("run.routes.invoke", false, true, true),
            ("run.jobs.run", false, true, true),
            ("run.services.setIamPolicy", false, false, true),
            ("iam.serviceAccounts.actAs", false, true, true),
            ("iam.serviceAccounts.create", false, true, true),
            ("iam.serviceAccountKeys.create", false, true, true),
            ("iam.serviceAccountKeys.list", true, true, true),
            ("iam.serviceAccounts.getAccessToken", false, false, false),
            ("iam.serviceAccounts.getOpenIdToken", false, false, false),
            ("iam.serviceAccounts.signBlob", false, false, false),
            ("iam.serviceAccounts.signJwt", false, false, false),
            ("iam.serviceAccounts.implicitDelegation", false, false, false),
            ("iam.serviceAccounts.setIamPolicy", false, false, true),
            ("iam.serviceAccounts.undelete", false, false, true),
            ("resourcemanager.projects.setIamPolicy", false, false, true),
            ("resourcemanager.projects.delete", false, false, true),
            ("resourcemanager.projects.undelete", false, false, true),
            ("resourcemanager.projects.update", false, true, true),
            ("resourcemanager.projects.create", false, false, false),
            ("resourcemanager.organizations.get", false, false, false),
            ("orgpolicy.policy.get", true, true, true),
            ("orgpolicy.policy.set", false, false, false),
            ("serviceusage.services.enable", false, true, true),
            ("serviceusage.services.list", true, true, true),
            ("iap.tunnelInstances.accessViaIAP", false, false, true),
            ("logging.logEntries.list", true, true, true),
            ("logging.logEntries.create", false, true, true),
            ("logging.privateLogEntries.list", false, false, true),
            ("logging.views.access", false, false, true),
            ("compute.serviceAttachments.get", true, true, true),
            ("compute.serviceAttachments.create", false, true, true),
            ("compute.subnetworks.setIamPolicy", false, false, true),
            ("compute.images.useReadOnly", true, true, true),
            ("compute.instances.useReadOnly", false, true, true),
            ("compute.regionUrlMaps.validate", true, true, true),
        ] {
            let permission = Permission::parse(name).unwrap();
            let holds = |role: &str| Role::find(role).unwrap().holds(permission);
            let seen = (holds("roles/viewer"), holds("roles/editor"), holds("roles/owner"));
            assert_eq!(seen, (viewer, editor, owner), "{name}");
        }
    }

    #[test]
    fn basic_roles_are_nested() {
        let of = |name: &str| Role::find(name).unwrap();
        assert!(of("roles/viewer").permissions.iter().all(|p| of("roles/editor").holds(*p)));
        assert!(of("roles/editor").permissions.iter().all(|p| of("roles/owner").holds(*p)));
    }

    #[test]
    fn small_roles_hold_exactly_their_permissions() {
        for (name, permissions) in [
            ("roles/run.invoker", &["run.jobs.run", "run.routes.invoke"][..]),
            (
                "roles/iam.serviceAccountUser",
                &[
                    "iam.serviceAccounts.actAs",
                    "iam.serviceAccounts.get",
                    "iam.serviceAccounts.list",
                    "resourcemanager.projects.get",
                    "resourcemanager.projects.list",
                ],
            ),
            ("roles/iam.serviceAccountOpenIdTokenCreator", &["iam.serviceAccounts.getOpenIdToken"]),
            ("roles/iap.tunnelResourceAccessor", &["iap.tunnelInstances.accessViaIAP"]),
            ("roles/logging.logWriter", &["logging.logEntries.create", "logging.logEntries.route"]),
            (
                "roles/resourcemanager.projectCreator",
                &["resourcemanager.organizations.get", "resourcemanager.projects.create"],
            ),
            ("roles/storage.objectViewer", &[]),
        ] {
            let seen: Vec<&str> = Role::find(name).unwrap().permissions.iter().map(|p| p.as_str()).collect();
            assert_eq!(seen, permissions, "{name}");
        }
    }

    #[test]
    fn nearly_equal_roles_differ_where_it_matters() {
        for (name, permission, holds) in [
            ("roles/run.admin", "run.services.setIamPolicy", true),
            ("roles/run.developer", "run.services.setIamPolicy", false),
            ("roles/run.developer", "run.services.update", true),
            ("roles/run.admin", "iam.serviceAccounts.actAs", false),
            ("roles/run.viewer", "run.services.getIamPolicy", true),
            ("roles/run.viewer", "run.routes.invoke", false),
            ("roles/run.serviceAgent", "iam.serviceAccounts.getOpenIdToken", true),
            ("roles/compute.networkAdmin", "compute.firewalls.create", false),
            ("roles/compute.securityAdmin", "compute.firewalls.create", true),
            ("roles/compute.networkAdmin", "compute.regionNetworkEndpointGroups.create", false),
            ("roles/compute.loadBalancerAdmin", "compute.regionNetworkEndpointGroups.create", true),
            ("roles/compute.networkAdmin", "compute.serviceAttachments.create", true),
            ("roles/compute.networkUser", "compute.subnetworks.use", true),
            ("roles/compute.networkUser", "compute.forwardingRules.create", false),
            ("roles/compute.instanceAdmin.v1", "compute.instances.create", true),
            ("roles/compute.instanceAdmin.v1", "compute.firewalls.create", false),
            ("roles/iam.securityAdmin", "run.services.setIamPolicy", true),
            ("roles/iam.securityReviewer", "run.services.setIamPolicy", false),
            ("roles/iam.securityReviewer", "logging.logEntries.list", false),
            ("roles/logging.viewer", "logging.privateLogEntries.list", false),
            ("roles/logging.privateLogViewer", "logging.privateLogEntries.list", true),
        ] {
            let permission = Permission::parse(permission).unwrap();
            assert_eq!(Role::find(name).unwrap().holds(permission), holds, "{name} {permission}");
        }
    }
}
