//! The tables of [`crate::support`]: one per resource of Compute. Paths look through lists.
//!
//! A field is effective because the typed specs in `model` carry it, or because the door itself acts on it
//! (fingerprints). Everything that stands in no table is refused.

use super::{
    Row::{Effective, Inert, Kept, Only, OutputOnly, Within},
    Rows,
};
use crate::schema::Kind;

/// The table of a kind.
pub fn table(kind: Kind) -> Rows {
    match kind {
        Kind::Network => NETWORK,
        Kind::Subnetwork => SUBNETWORK,
        Kind::Address => ADDRESS,
        Kind::Firewall => FIREWALL,
        Kind::NetworkEndpointGroup => NETWORK_ENDPOINT_GROUP,
        Kind::BackendService => BACKEND_SERVICE,
        Kind::UrlMap => URL_MAP,
        Kind::TargetHttpProxy => TARGET_HTTP_PROXY,
        Kind::ForwardingRule => FORWARDING_RULE,
        Kind::ServiceAttachment => SERVICE_ATTACHMENT,
        Kind::Instance => INSTANCE,
        Kind::RunServiceV1 => RUN_SERVICE_V1,
        Kind::RunServiceV2 => RUN_SERVICE_V2,
    }
}

const LABELS: &str = "nothing selects by labels";
const NO_DYNAMIC_ROUTES: &str = "there are no dynamic routes whose spread it would change";
const ONE_ENDPOINT: &str = "a serverless backend is a single endpoint";
const NO_DISK: &str = "a VM is a system container with one built-in root file system";

const NETWORK: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("autoCreateSubnetworks", Effective),
    ("mtu", Effective),
    ("routingConfig.routingMode", Inert(NO_DYNAMIC_ROUTES)),
    ("routingConfig.bgpBestPathSelectionMode", Inert(NO_DYNAMIC_ROUTES)),
    (
        "networkFirewallPolicyEnforcementOrder",
        Only(&["AFTER_CLASSIC_FIREWALL"], "there are no firewall policies to put first"),
    ),
];

const SUBNETWORK: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("network", Effective),
    ("region", OutputOnly),
    ("ipCidrRange", Effective),
    ("purpose", Effective),
    ("role", Effective),
    ("privateIpGoogleAccess", Kept("no way leads from a network to Google's APIs that it would open")),
    ("privateIpv6GoogleAccess", Only(&["DISABLE_GOOGLE_ACCESS"], "networks carry IPv4 only")),
    ("stackType", Only(&["IPV4_ONLY"], "networks carry IPv4 only")),
    ("enableFlowLogs", Effective),
    ("logConfig.enable", Effective),
    ("logConfig.aggregationInterval", Within("the shortest interval among a network's subnets holds for all of them")),
    ("logConfig.flowSampling", Effective),
    ("logConfig.metadata", Effective),
    ("logConfig.filterExpr", Only(&["true"], "every flow is a candidate")),
    ("fingerprint", Effective),
];

const ADDRESS: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("address", Effective),
    ("addressType", Effective),
    ("subnetwork", Effective),
    ("purpose", Only(&["GCE_ENDPOINT"], "the purpose of every reserved address here")),
    ("networkTier", Only(&["PREMIUM"], "what internal addresses report")),
    ("ipVersion", Only(&["IPV4"], "networks carry IPv4 only")),
    ("labels", Inert(LABELS)),
    ("labelFingerprint", OutputOnly),
];

const FIREWALL: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("network", Effective),
    ("direction", Effective),
    ("priority", Effective),
    ("allowed", Effective),
    ("denied", Effective),
    ("sourceRanges", Effective),
    ("sourceTags", Effective),
    ("destinationRanges", Effective),
    ("targetTags", Effective),
    ("disabled", Effective),
];

const NETWORK_ENDPOINT_GROUP: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("networkEndpointType", Effective),
    ("cloudRun", Effective),
    ("annotations", Inert("metadata for people and tools")),
];

const BACKEND_SERVICE: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("protocol", Effective),
    ("loadBalancingScheme", Effective),
    ("timeoutSec", Effective),
    ("backends.group", Effective),
    ("backends.description", Inert("a text for people")),
    ("backends.balancingMode", Inert(ONE_ENDPOINT)),
    ("backends.capacityScaler", Inert(ONE_ENDPOINT)),
    ("sessionAffinity", Inert(ONE_ENDPOINT)),
    ("affinityCookieTtlSec", Inert(ONE_ENDPOINT)),
    ("localityLbPolicy", Inert(ONE_ENDPOINT)),
    ("circuitBreakers", Inert(ONE_ENDPOINT)),
    ("connectionDraining", Inert("requests in flight always run to their end")),
    ("port", Inert("serverless endpoint groups have no ports")),
    ("portName", Inert("serverless endpoint groups have no ports")),
    ("ipAddressSelectionPolicy", Only(&["IPV4_ONLY"], "networks carry IPv4 only")),
    ("fingerprint", Effective),
];

const URL_MAP: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("defaultService", Effective),
    ("hostRules", Effective),
    ("pathMatchers.name", Effective),
    ("pathMatchers.description", Effective),
    ("pathMatchers.defaultService", Effective),
    ("pathMatchers.pathRules.paths", Effective),
    ("pathMatchers.pathRules.service", Effective),
    ("fingerprint", Effective),
];

const TARGET_HTTP_PROXY: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("urlMap", Effective),
    ("httpKeepAliveTimeoutSec", Effective),
    ("fingerprint", Effective),
];

const FORWARDING_RULE: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("IPAddress", Effective),
    ("IPProtocol", Only(&["TCP"], "what load balancers and endpoints here speak")),
    ("loadBalancingScheme", Effective),
    ("portRange", Effective),
    ("ports", Effective),
    ("target", Effective),
    ("network", Effective),
    ("subnetwork", Effective),
    ("allowGlobalAccess", Effective),
    ("allowPscGlobalAccess", Effective),
    ("networkTier", Only(&["PREMIUM"], "what internal rules report")),
    ("ipVersion", Only(&["IPV4"], "networks carry IPv4 only")),
    ("noAutomateDnsZone", Inert("no DNS zone is made for an endpoint either way")),
    ("labels", Inert(LABELS)),
    ("labelFingerprint", OutputOnly),
    ("fingerprint", Effective),
];

const SERVICE_ATTACHMENT: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("targetService", Effective),
    ("producerForwardingRule", Effective),
    ("connectionPreference", Effective),
    ("natSubnets", Effective),
    ("consumerAcceptLists.projectIdOrNum", Effective),
    ("consumerAcceptLists.networkUrl", Effective),
    ("consumerAcceptLists.connectionLimit", Effective),
    ("consumerRejectLists", Effective),
    ("reconcileConnections", Effective),
    ("natIpsPerEndpoint", Only(&["1"], "every endpoint gets one address")),
    (
        "enableProxyProtocol",
        Only(&["false"], "an attachment leads to an Application Load Balancer, which takes no PROXY protocol"),
    ),
    ("propagatedConnectionLimit", Inert("no connection is propagated to other networks")),
    ("metadata", Inert("metadata for people and tools")),
    ("fingerprint", Effective),
];

const INSTANCE: Rows = &[
    ("name", Effective),
    ("description", Effective),
    ("machineType", Effective),
    ("networkInterfaces.network", Effective),
    ("networkInterfaces.subnetwork", Effective),
    ("networkInterfaces.networkIP", Effective),
    ("networkInterfaces.stackType", Only(&["IPV4_ONLY"], "networks carry IPv4 only")),
    ("networkInterfaces.nicType", Inert("there is one kind of network interface")),
    ("networkInterfaces.fingerprint", OutputOnly),
    ("tags", Effective),
    ("metadata", Effective),
    ("serviceAccounts", Effective),
    ("labels", Effective),
    ("labelFingerprint", OutputOnly),
    ("fingerprint", OutputOnly),
    ("disks.autoDelete", Inert(NO_DISK)),
    ("disks.boot", Inert(NO_DISK)),
    ("disks.deviceName", Inert(NO_DISK)),
    ("disks.diskSizeGb", Inert(NO_DISK)),
    ("disks.initializeParams.diskSizeGb", Inert(NO_DISK)),
    ("disks.initializeParams.diskType", Inert(NO_DISK)),
    ("disks.initializeParams.sourceImage", Inert(NO_DISK)),
    ("disks.interface", Inert(NO_DISK)),
    ("disks.mode", Only(&["READ_WRITE"], NO_DISK)),
    ("disks.type", Only(&["PERSISTENT"], NO_DISK)),
    ("scheduling.automaticRestart", Effective),
    ("scheduling.onHostMaintenance", Inert("there is no other host to move to")),
    ("scheduling.provisioningModel", Only(&["STANDARD"], "no VM is taken away")),
    ("shieldedInstanceConfig", Inert("a system container has no firmware")),
    ("shieldedInstanceIntegrityPolicy", Inert("a system container has no firmware")),
    ("keyRevocationActionType", Only(&["NONE"], "there are no disk keys to revoke")),
    ("reservationAffinity", Inert("there are no reservations")),
];

pub const CLIENT: &str = "a note of the client's";
pub const ALWAYS_CPU: &str = "an instance has the CPU of its limit while it starts, serves and idles";
pub const ONE_ENVIRONMENT: &str = "there is one environment; the least memory of gen2 is asked for";
pub const STAGES: &str = "a stage opens nothing here that is closed without it";
const ONE_SUCCESS: &str = "one success is what counts";

/// Annotations are rows of their own in `gcp/run_v1/annotations.rs`.
const RUN_SERVICE_V1: Rows = &[
    ("apiVersion", Effective),
    ("kind", Effective),
    ("metadata.name", Effective),
    ("metadata.namespace", Effective),
    ("metadata.labels", Effective),
    ("metadata.annotations", Effective),
    ("metadata.resourceVersion", Effective),
    ("metadata.uid", OutputOnly),
    ("metadata.selfLink", OutputOnly),
    ("metadata.generation", OutputOnly),
    ("metadata.creationTimestamp", OutputOnly),
    ("metadata.deletionTimestamp", OutputOnly),
    ("status", OutputOnly),
    ("spec.template.metadata.name", Effective),
    ("spec.template.metadata.namespace", OutputOnly),
    ("spec.template.metadata.labels", Effective),
    ("spec.template.metadata.annotations", Effective),
    ("spec.template.metadata.uid", OutputOnly),
    ("spec.template.metadata.selfLink", OutputOnly),
    ("spec.template.metadata.generation", OutputOnly),
    ("spec.template.metadata.resourceVersion", OutputOnly),
    ("spec.template.metadata.creationTimestamp", OutputOnly),
    ("spec.template.spec.containerConcurrency", Effective),
    ("spec.template.spec.timeoutSeconds", Effective),
    ("spec.template.spec.serviceAccountName", Effective),
    ("spec.template.spec.containers.name", Effective),
    ("spec.template.spec.containers.image", Effective),
    ("spec.template.spec.containers.command", Effective),
    ("spec.template.spec.containers.args", Effective),
    ("spec.template.spec.containers.env.name", Effective),
    ("spec.template.spec.containers.env.value", Effective),
    ("spec.template.spec.containers.workingDir", Effective),
    ("spec.template.spec.containers.ports.name", Effective),
    ("spec.template.spec.containers.ports.containerPort", Effective),
    ("spec.template.spec.containers.ports.protocol", Only(&["TCP"], "containers serve HTTP")),
    ("spec.template.spec.containers.resources.limits", Effective),
    ("spec.template.spec.containers.startupProbe.initialDelaySeconds", Effective),
    ("spec.template.spec.containers.startupProbe.timeoutSeconds", Effective),
    ("spec.template.spec.containers.startupProbe.periodSeconds", Effective),
    ("spec.template.spec.containers.startupProbe.failureThreshold", Effective),
    ("spec.template.spec.containers.startupProbe.successThreshold", Only(&["1"], ONE_SUCCESS)),
    ("spec.template.spec.containers.startupProbe.tcpSocket.port", Effective),
    ("spec.template.spec.containers.startupProbe.httpGet.path", Effective),
    ("spec.template.spec.containers.startupProbe.httpGet.port", Effective),
    ("spec.template.spec.containers.startupProbe.httpGet.httpHeaders.name", Effective),
    ("spec.template.spec.containers.startupProbe.httpGet.httpHeaders.value", Effective),
    ("spec.traffic.revisionName", Effective),
    ("spec.traffic.latestRevision", Effective),
    ("spec.traffic.percent", Effective),
    ("spec.traffic.tag", Effective),
];

const RUN_SERVICE_V2: Rows = &[
    ("name", OutputOnly),
    ("etag", Effective),
    ("labels", Effective),
    ("annotations", Kept("metadata for people and tools")),
    ("client", Kept(CLIENT)),
    ("clientVersion", Kept(CLIENT)),
    ("description", Effective),
    ("ingress", Effective),
    ("launchStage", Kept(STAGES)),
    ("invokerIamDisabled", Effective),
    ("defaultUriDisabled", Effective),
    ("customAudiences", Effective),
    ("scaling.minInstanceCount", Effective),
    ("scaling.maxInstanceCount", Effective),
    ("scaling.scalingMode", Only(&["SCALING_MODE_UNSPECIFIED", "AUTOMATIC"], "instances follow demand")),
    ("template.revision", Effective),
    ("template.labels", Effective),
    ("template.annotations", Kept("metadata for people and tools")),
    ("template.client", Kept(CLIENT)),
    ("template.clientVersion", Kept(CLIENT)),
    ("template.scaling.minInstanceCount", Effective),
    ("template.scaling.maxInstanceCount", Effective),
    ("template.timeout", Effective),
    ("template.serviceAccount", Effective),
    ("template.executionEnvironment", Kept(ONE_ENVIRONMENT)),
    ("template.maxInstanceRequestConcurrency", Effective),
    ("template.containers.name", Effective),
    ("template.containers.image", Effective),
    ("template.containers.command", Effective),
    ("template.containers.args", Effective),
    ("template.containers.env.name", Effective),
    ("template.containers.env.value", Effective),
    ("template.containers.workingDir", Effective),
    ("template.containers.ports.name", Effective),
    ("template.containers.ports.containerPort", Effective),
    ("template.containers.resources.limits", Effective),
    ("template.containers.resources.cpuIdle", Kept(ALWAYS_CPU)),
    ("template.containers.resources.startupCpuBoost", Kept(ALWAYS_CPU)),
    ("template.containers.startupProbe.initialDelaySeconds", Effective),
    ("template.containers.startupProbe.timeoutSeconds", Effective),
    ("template.containers.startupProbe.periodSeconds", Effective),
    ("template.containers.startupProbe.failureThreshold", Effective),
    ("template.containers.startupProbe.tcpSocket.port", Effective),
    ("template.containers.startupProbe.httpGet.path", Effective),
    ("template.containers.startupProbe.httpGet.port", Effective),
    ("template.containers.startupProbe.httpGet.httpHeaders.name", Effective),
    ("template.containers.startupProbe.httpGet.httpHeaders.value", Effective),
    ("traffic.type", Effective),
    ("traffic.revision", Effective),
    ("traffic.percent", Effective),
    ("traffic.tag", Effective),
];
