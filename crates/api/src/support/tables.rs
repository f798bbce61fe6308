//! The tables of [`crate::support`]: one per resource of Compute. Paths look through lists.
//!
//! A field is effective because the typed specs in `model` carry it, or because the door itself acts on it
//! (fingerprints). Everything that stands in no table is refused.

use super::{
    Row::{Effective, Inert, Only, OutputOnly},
    Rows,
};
use crate::schema::Kind;

/// The table of a kind. Cloud Run has none yet: its services are read field by field in its own module.
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
        Kind::RunServiceV1 | Kind::RunServiceV2 => &[],
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
    ("privateIpGoogleAccess", Effective),
    ("privateIpv6GoogleAccess", Only(&["DISABLE_GOOGLE_ACCESS"], "networks carry IPv4 only")),
    ("stackType", Only(&["IPV4_ONLY"], "networks carry IPv4 only")),
    ("enableFlowLogs", Effective),
    ("logConfig.enable", Effective),
    ("logConfig.aggregationInterval", Effective),
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
    ("scheduling.automaticRestart", Inert("there is no other host to restart on")),
    ("scheduling.onHostMaintenance", Inert("there is no other host to move to")),
    ("scheduling.provisioningModel", Only(&["STANDARD"], "no VM is taken away")),
    ("shieldedInstanceConfig", Inert("a system container has no firmware")),
    ("shieldedInstanceIntegrityPolicy", Inert("a system container has no firmware")),
    ("keyRevocationActionType", Only(&["NONE"], "there are no disk keys to revoke")),
    ("reservationAffinity", Inert("there are no reservations")),
];
