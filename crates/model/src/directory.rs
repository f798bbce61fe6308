//! Service Directory: what is registered under which name, and the private DNS zone that shows a namespace to a network.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{
    id::{NetworkId, ResourceId},
    limits::DNS_TTL_NAME_S,
    name::{Link, ProjectId, Region},
    time::Timestamp,
};

/// Where Private Service Connect registers endpoints unless they say otherwise.
pub const NAMESPACE_DEFAULT: &str = "goog-psc-default";
/// The one endpoint of a service that Private Service Connect registers, and its port.
pub const PSC_ENDPOINT: &str = "default";
pub const PSC_PORT: u16 = 443;

/// `projects/P/locations/R/namespaces/N`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespaceName {
    pub project: ProjectId,
    pub region: Region,
    pub name: String,
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}/locations/{}/namespaces/{}", self.project, self.region, self.name)
    }
}

/// `projects/P/locations/R/namespaces/N/services/S`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    pub namespace: NamespaceName,
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/services/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    pub name: NamespaceName,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// At most one, named `NAMESPACE--REGION`.
    pub zone: Option<Zone>,
}

impl Namespace {
    /// What Cloud DNS calls its zone.
    pub fn zone_name(&self) -> String {
        format!("{}--{}", self.name.name, self.name.region)
    }
}

/// A private zone that answers for everything below its name, in one network, with the services of a namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Zone {
    pub id: ResourceId,
    /// Lower case, with the final dot.
    pub dns_name: String,
    pub network: Link,
    pub network_id: NetworkId,
    pub created: Timestamp,
}

impl Zone {
    /// As the resolver holds it: without the final dot.
    pub fn apex(&self) -> &str {
        self.dns_name.strip_suffix('.').unwrap_or(&self.dns_name)
    }
}

/// The name server of private zones and the mailbox of who runs it. Source: Cloud DNS, SOA of a private zone.
pub const ZONE_SERVER: &str = "ns-gcp-private.googledomains.com.";
pub const ZONE_MAILBOX: &str = "cloud-dns-hostmaster.google.com.";
/// Seconds that its NS and SOA records may be remembered. Source: Cloud DNS.
pub const ZONE_TTL_S: u32 = 21_600;
/// Serial, refresh, retry, expire, and for how long a name may be remembered as missing. The last is Cloud DNS's 300
/// there; here a name answers as soon as its endpoint is made.
pub const ZONE_SOA: [u32; 5] = [1, 21_600, 3_600, 259_200, DNS_TTL_NAME_S];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: ServiceName,
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    /// The forwarding rule that registered it, and takes it away when it goes.
    pub rule: Option<ResourceId>,
    pub endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub uid: String,
    pub address: Option<Ipv4Addr>,
    pub port: u16,
    pub annotations: BTreeMap<String, String>,
    /// The network it is in, and which network that was when it was registered.
    pub network: Option<(Link, NetworkId)>,
}

/// What an endpoint of Private Service Connect wants of Service Directory and DNS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub namespace: String,
    /// `noAutomateDnsZone`.
    pub no_zone: bool,
}

/// What is wrong with the domain of a service attachment; None: nothing. Source: RFC 1035, and service attachments,
/// "domainNames".
pub fn domain_fault(domain: &str) -> Option<&'static str> {
    let Some(apex) = domain.strip_suffix('.') else {
        return Some("Must be a fully qualified domain name that ends with a dot.");
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.len() > 254 || !apex.split('.').all(label) {
        return Some("Must be a domain name in lower case.");
    }
    (!apex.contains('.')).then_some("Must be below a top-level domain.")
}

/// Domains that belong to the cloud itself or to Google, with everything below them.
const NOBODYS: &[&str] = &[
    "internal",
    "local",
    "localhost",
    "arpa",
    "google",
    "goog",
    "google.com",
    "googleapis.com",
    "googleusercontent.com",
    "googledomains.com",
    "gserviceaccount.com",
    "gstatic.com",
    "gcr.io",
    "pkg.dev",
    "run.app",
    "a.run.app",
    "appspot.com",
    "cloudfunctions.net",
    "cloudproxy.app",
    "web.app",
    "firebaseapp.com",
];

/// Whether no project can prove that a domain, with the final dot, is its own.
pub fn is_nobodys(domain: &str) -> bool {
    NOBODYS.iter().any(|reserved| is_at_or_below(domain, &format!("{reserved}.")))
}

/// Whether two domains, with the final dot, are one or one stands above the other.
pub fn overlap(one: &str, other: &str) -> bool {
    is_at_or_below(one, other) || is_at_or_below(other, one)
}

fn is_at_or_below(domain: &str, above: &str) -> bool {
    domain.strip_suffix(above).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_lower_case_below_a_top_level_domain_and_ends_with_a_dot() {
        for good in ["p.example.com.", "example.com.", "asia-northeast1.p.example.com.", "1.2."] {
            assert_eq!(domain_fault(good), None, "{good}");
        }
        let long = format!("{}example.com.", "a.".repeat(130));
        let long_label = format!("{}.com.", "a".repeat(64));
        for bad in
            ["", ".", "com.", "p.example.com", "P.example.com.", "p..com.", "-p.com.", "p_.com.", &long, &long_label]
        {
            assert!(domain_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn domains_of_the_cloud_and_of_google_are_nobodys_and_those_beside_them_are_free() {
        for reserved in ["c.p.internal.", "google.internal.", "p.googleapis.com.", "googleapis.com.", "x.a.run.app."] {
            assert!(is_nobodys(reserved), "{reserved}");
        }
        for free in ["notgoogleapis.com.", "internal.example.com.", "run.app.example.com.", "p.example.com."] {
            assert!(!is_nobodys(free), "{free}");
        }
        assert!(overlap("p.example.com.", "example.com.") && overlap("example.com.", "p.example.com."));
        assert!(overlap("example.com.", "example.com.") && !overlap("xexample.com.", "example.com."));
    }
}
