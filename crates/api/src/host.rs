//! Whose a request is: the API behind a host name, or behind a path when the host name says nothing.
//!
//! Refuses to know what the APIs do. The names are Google's; a region may stand in front of them.

use model::name::Region;

/// The APIs a door can serve. Which of them it does serve, [`crate::call::Router`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Compute,
    Run,
    Iam,
    IamCredentials,
    ResourceManager,
    ServiceUsage,
    OrgPolicy,
    OsLogin,
    Logging,
    Dns,
    ServiceDirectory,
    /// Opens tunnels to VMs; its clients know another host, see [`Place::Tunnel`].
    Iap,
    /// `oauth2.googleapis.com`, and `www.googleapis.com/oauth2/`.
    OAuth,
    /// `accounts.google.com`: the page where a person says yes.
    Accounts,
}

impl Service {
    pub const ALL: [Service; 13] = [
        Service::Compute,
        Service::Run,
        Service::Iam,
        Service::IamCredentials,
        Service::ResourceManager,
        Service::ServiceUsage,
        Service::OrgPolicy,
        Service::OsLogin,
        Service::Logging,
        Service::Dns,
        Service::ServiceDirectory,
        Service::OAuth,
        Service::Accounts,
    ];

    /// Its global host, which is also its name in Service Usage.
    pub fn host(self) -> &'static str {
        match self {
            Service::Compute => "compute.googleapis.com",
            Service::Run => "run.googleapis.com",
            Service::Iam => "iam.googleapis.com",
            Service::IamCredentials => "iamcredentials.googleapis.com",
            Service::ResourceManager => "cloudresourcemanager.googleapis.com",
            Service::ServiceUsage => "serviceusage.googleapis.com",
            Service::OrgPolicy => "orgpolicy.googleapis.com",
            Service::OsLogin => "oslogin.googleapis.com",
            Service::Logging => "logging.googleapis.com",
            Service::Dns => "dns.googleapis.com",
            Service::ServiceDirectory => "servicedirectory.googleapis.com",
            Service::Iap => "iap.googleapis.com",
            Service::OAuth => "oauth2.googleapis.com",
            Service::Accounts => "accounts.google.com",
        }
    }

    /// Its title in sentences for people. Source: Service Usage, `config.title`.
    pub fn title(self) -> &'static str {
        match self {
            Service::Compute => "Compute Engine API",
            Service::Run => "Cloud Run Admin API",
            Service::Iam => "Identity and Access Management (IAM) API",
            Service::IamCredentials => "IAM Service Account Credentials API",
            Service::ResourceManager => "Cloud Resource Manager API",
            Service::ServiceUsage => "Service Usage API",
            Service::OrgPolicy => "Organization Policy API",
            Service::OsLogin => "Cloud OS Login API",
            Service::Logging => "Cloud Logging API",
            Service::Dns => "Cloud DNS API",
            Service::ServiceDirectory => "Service Directory API",
            Service::Iap => "Cloud Identity-Aware Proxy API",
            Service::OAuth | Service::Accounts => "Google OAuth2 API",
        }
    }
}

/// The API a call is for, and where: `asia-northeast1-run.googleapis.com` carries the region in its name only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiHost {
    pub service: Service,
    pub region: Option<Region>,
}

impl ApiHost {
    pub fn of(service: Service) -> ApiHost {
        ApiHost { service, region: None }
    }
}

/// What a host name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Api(ApiHost),
    /// `www.googleapis.com`: several APIs, told apart by path.
    Www,
    /// A service's own name below `run.app`.
    RunApp,
    /// `tunnel.cloudproxy.app`: WebSockets to VMs.
    Tunnel,
}

/// The host of an authority, lower case, without port and final dot.
pub fn host_of(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Looks a host name up (as [`host_of`] gives it). `None`: not one of Google's that we know, and never to be dialled.
pub fn place(host: &str) -> Option<Place> {
    if host == "www.googleapis.com" {
        return Some(Place::Www);
    }
    if host == "tunnel.cloudproxy.app" {
        return Some(Place::Tunnel);
    }
    if host.strip_suffix(".run.app").is_some_and(|name| !name.is_empty()) {
        return Some(Place::RunApp);
    }
    let exact = |host: &str| Service::ALL.into_iter().find(|s| s.host() == host);
    if let Some(service) = exact(host) {
        return Some(Place::Api(ApiHost::of(service)));
    }
    // Only Run and Logging have regional hosts among ours.
    let (region, rest) = [("-run.", Service::Run), ("-logging.", Service::Logging)]
        .into_iter()
        .find_map(|(mark, service)| host.split_once(mark).map(|(region, rest)| (region, (rest, service))))?;
    let region = (rest.0 == "googleapis.com").then(|| region.parse().ok()).flatten()?;
    Some(Place::Api(ApiHost { service: rest.1, region: Some(region) }))
}

/// Which API a path belongs to when the host does not say: endpoint overrides (`http://127.0.0.1:PORT/…`), and
/// `www.googleapis.com`. Custom verbs count, so `path` is undecoded.
///
/// The paths of different APIs overlap little; where they do, the collection decides.
pub fn by_path(path: &str) -> Option<Service> {
    let (path, verb) = match path.rsplit_once(':') {
        Some((path, verb)) if !verb.contains('/') => (path, verb),
        _ => (path, ""),
    };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    Some(match parts.as_slice() {
        ["compute", "v1", ..] | ["batch", "compute", "v1"] => Service::Compute,
        ["apis", "serving.knative.dev" | "run.googleapis.com" | "domains.cloudrun.com", ..] => Service::Run,
        ["dns", ..] => Service::Dns,
        ["oauth2", ..] | ["token" | "revoke" | "tokeninfo"] => Service::OAuth,
        ["o", "oauth2", ..] => Service::Accounts,
        ["v2", "entries", ..] | ["v2", "monitoredResourceDescriptors"] => Service::Logging,
        ["v2", "projects" | "organizations" | "folders" | "billingAccounts", _, rest @ ..] => match rest {
            ["logs" | "sinks" | "metrics" | "exclusions", ..] => Service::Logging,
            ["policies" | "constraints", ..] => Service::OrgPolicy,
            ["locations", _, "buckets", ..] => Service::Logging,
            ["locations", ..] => Service::Run,
            _ => return None,
        },
        ["v1", "projects", _, "serviceAccounts", _, "allowedLocations"] => Service::IamCredentials,
        ["v1", "projects", _, "serviceAccounts", _] if is_credential_verb(verb) => Service::IamCredentials,
        ["v1", "projects", _, "serviceAccounts" | "roles", ..] | ["v1", "roles" | "permissions", ..] => Service::Iam,
        ["v1", "organizations", _, "roles", ..] => Service::Iam,
        ["v1", "projects", _, "services", ..] | ["v1", "services", ..] => Service::ServiceUsage,
        ["v1", "projects", _, "locations", _, "namespaces", ..] => Service::ServiceDirectory,
        ["v1", "projects", _, "locations", ..] => Service::Run,
        ["v1" | "v1beta" | "v1alpha", "users", ..] => Service::OsLogin,
        ["v1", "operations", name] if !name.starts_with("cp.") => Service::ServiceUsage,
        ["v1", "projects" | "organizations" | "operations", ..] | ["v3", ..] => Service::ResourceManager,
        _ => return None,
    })
}

fn is_credential_verb(verb: &str) -> bool {
    matches!(verb, "generateAccessToken" | "generateIdToken" | "signBlob" | "signJwt")
}

/// The region that gcloud puts in front of the host of a Run endpoint override: `asia-northeast1-run.localhost`.
pub fn override_region(host: &str) -> Option<Region> {
    let label = host.split('.').next()?;
    label.strip_suffix("-run").or_else(|| host.strip_suffix("-localhost"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(service: Service, region: Option<&str>) -> Option<Place> {
        Some(Place::Api(ApiHost { service, region: region.map(|r| r.parse().unwrap()) }))
    }

    #[test]
    fn only_names_we_answer_for_have_a_place() {
        for (host, want) in [
            ("compute.googleapis.com", api(Service::Compute, None)),
            ("run.googleapis.com", api(Service::Run, None)),
            ("asia-northeast1-run.googleapis.com", api(Service::Run, Some("asia-northeast1"))),
            ("us-central1-logging.googleapis.com", api(Service::Logging, Some("us-central1"))),
            ("www.googleapis.com", Some(Place::Www)),
            ("hello-123.asia-northeast1.run.app", Some(Place::RunApp)),
            ("tunnel.cloudproxy.app", Some(Place::Tunnel)),
            ("mtls.tunnel.cloudproxy.app", None),
            ("cloudproxy.app", None),
            (".run.app", None),
            ("run.app", None),
            ("evilrun.app", None),
            ("compute.googleapis.com.evil.example", None),
            ("x-compute.googleapis.com", None),
            ("-run.googleapis.com", None),
            ("asia-northeast1-run.evil.example", None),
            ("metadata.google.internal", None),
            ("169.254.169.254", None),
            ("storage.googleapis.com", None),
            ("", None),
        ] {
            assert_eq!(place(host), want, "{host}");
        }
    }

    #[test]
    fn an_authority_is_compared_without_case_port_and_final_dot() {
        assert_eq!(host_of("Compute.GoogleAPIs.com:443"), "compute.googleapis.com");
        assert_eq!(host_of("compute.googleapis.com."), "compute.googleapis.com");
        assert_eq!(host_of("[::1]:80"), "[::1]");
    }

    #[test]
    fn a_path_names_its_api_when_the_host_does_not() {
        for (path, want) in [
            ("/compute/v1/projects/p/global/networks", Some(Service::Compute)),
            ("/batch/compute/v1", Some(Service::Compute)),
            ("/apis/serving.knative.dev/v1/namespaces/p/services", Some(Service::Run)),
            ("/v1/projects/p/locations/r/services/s:setIamPolicy", Some(Service::Run)),
            ("/v2/projects/p/locations/r/services", Some(Service::Run)),
            ("/v1/projects/p/locations/r/namespaces/n/services/s:resolve", Some(Service::ServiceDirectory)),
            ("/v2/entries:list", Some(Service::Logging)),
            ("/v2/projects/p/logs", Some(Service::Logging)),
            ("/v2/projects/p/policies/run.allowedIngress", Some(Service::OrgPolicy)),
            ("/v1/projects/p/serviceAccounts", Some(Service::Iam)),
            ("/v1/projects/-/serviceAccounts/a@b:generateIdToken", Some(Service::IamCredentials)),
            ("/v1/projects/-/serviceAccounts/a@b/allowedLocations", Some(Service::IamCredentials)),
            ("/v1/projects/p/services/run.googleapis.com:enable", Some(Service::ServiceUsage)),
            ("/v1/projects/p/services:batchEnable", Some(Service::ServiceUsage)),
            ("/v1/operations/cp.1", Some(Service::ResourceManager)),
            ("/v1/operations/acat.p2-1-x", Some(Service::ServiceUsage)),
            ("/v1/projects/p:getIamPolicy", Some(Service::ResourceManager)),
            ("/v1/projects", Some(Service::ResourceManager)),
            ("/v3/effectiveTags", Some(Service::ResourceManager)),
            ("/oauth2/v1/certs", Some(Service::OAuth)),
            ("/token", Some(Service::OAuth)),
            ("/computeMetadata/v1/", None),
            ("/", None),
        ] {
            assert_eq!(by_path(path), want, "{path}");
        }
    }

    #[test]
    fn an_endpoint_override_carries_the_region_in_front_of_its_host() {
        for (host, want) in [
            ("asia-northeast1-run.localhost", Some("asia-northeast1")),
            ("asia-northeast1-localhost", Some("asia-northeast1")),
            ("run.localhost", None),
            ("127.0.0.1", None),
        ] {
            assert_eq!(override_region(host).as_ref().map(Region::as_str), want, "{host}");
        }
    }
}
