//! The activity log: what was asked of the APIs, by whom, and how it ended.
//!
//! Start with [`Call::entry`]. Source: Cloud Audit Logs, `google.cloud.audit.AuditLog`.

use std::collections::BTreeMap;

use model::{
    fault::Code,
    name::{Link, ProjectId, Scope},
    time::Timestamp,
};
use serde_json::{Map, Value, json};

use crate::entry::{Entry, LogName, Operation, Payload, Resource, Severity, insert_id};

/// One mutating call at a door.
#[derive(Clone, Debug)]
pub struct Call {
    pub project: ProjectId,
    /// `run.googleapis.com`.
    pub service: String,
    /// `google.cloud.run.v1.Services.CreateService`, `v1.compute.networks.insert`, …
    pub method: String,
    /// As that API's audit entries write it: `namespaces/P/services/S`, `projects/P/global/networks/N`.
    pub resource_name: String,
    /// What the entry is about: type and labels.
    pub resource: Resource,
    pub principal: Principal,
    /// Everything that was checked, granted or not.
    pub permissions: Vec<Checked>,
    pub caller_ip: String,
    pub user_agent: String,
    /// Regions or zones.
    pub locations: Vec<String>,
    /// The body with its `@type`, if it is to be kept.
    pub request: Option<Value>,
    pub response: Option<Value>,
    pub status: Result<(), (Code, String)>,
    /// The long-running operation this call began or ended.
    pub operation: Option<Operation>,
    pub at: Timestamp,
    /// Makes the insert id unique.
    pub chance: u32,
}

#[derive(Clone, Debug)]
pub struct Principal {
    pub email: String,
    /// `user:` or `serviceAccount:` with the email.
    pub subject: String,
}

#[derive(Clone, Debug)]
pub struct Checked {
    pub permission: String,
    pub resource: String,
    pub granted: bool,
}

impl Call {
    /// NOTICE when it was done, ERROR when it was refused or failed.
    pub fn entry(&self) -> Entry {
        let severity = if self.status.is_ok() { Severity::Notice } else { Severity::Error };
        Entry {
            log_name: LogName::in_project(&self.project, "cloudaudit.googleapis.com/activity"),
            resource: self.resource.clone(),
            timestamp: self.at.into(),
            received: self.at.into(),
            insert_id: insert_id(self.at, self.chance),
            severity,
            labels: BTreeMap::new(),
            http_request: None,
            payload: Some(Payload::Proto(self.payload())),
            trace: String::new(),
            span_id: String::new(),
            trace_sampled: false,
            operation: self.operation.clone(),
            source_location: None,
        }
    }

    fn payload(&self) -> Map<String, Value> {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
        put("@type", json!("type.googleapis.com/google.cloud.audit.AuditLog"));
        if let Err((code, message)) = &self.status {
            put("status", json!({"code": code.grpc(), "message": message}));
        }
        put(
            "authenticationInfo",
            json!({"principalEmail": self.principal.email, "principalSubject": self.principal.subject}),
        );
        // The end of an operation is nobody's request.
        let metadata = (!self.caller_ip.is_empty()).then(|| {
            json!({
                "callerIp": self.caller_ip,
                "callerSuppliedUserAgent": self.user_agent,
                "requestAttributes": {"time": self.at.rfc3339_us(), "auth": {}},
                "destinationAttributes": {},
            })
        });
        if let Some(metadata) = metadata {
            put("requestMetadata", metadata);
        }
        put("serviceName", json!(self.service));
        put("methodName", json!(self.method));
        put("authorizationInfo", self.permissions.iter().map(Checked::to_json).collect());
        put("resourceName", json!(self.resource_name));
        if let Some(request) = &self.request {
            put("request", request.clone());
        }
        if let Some(response) = &self.response {
            put("response", response.clone());
        }
        if !self.locations.is_empty() {
            put("resourceLocation", json!({"currentLocations": self.locations}));
        }
        out
    }
}

impl Checked {
    /// `granted` is left out when false, as every false is.
    fn to_json(&self) -> Value {
        let mut out = json!({"resource": self.resource, "permission": self.permission});
        if self.granted {
            out["granted"] = json!(true);
        }
        out["resourceAttributes"] = json!({});
        out["permissionType"] = json!("ADMIN_WRITE");
        out
    }
}

/// The end of a Compute operation: the second entry of the call that began it.
pub fn ended(operation: &Ended<'_>, chance: u32) -> Entry {
    let link = operation.target;
    let method = compute_method(link, operation.verb);
    Call {
        project: link.project.clone(),
        service: COMPUTE.to_owned(),
        method: format!("v1.{method}"),
        resource_name: link.to_string(),
        resource: compute_resource(link, operation.target_id),
        principal: operation.principal.clone(),
        permissions: Vec::new(),
        caller_ip: String::new(),
        user_agent: String::new(),
        locations: locations(link),
        request: Some(json!({"@type": format!("type.googleapis.com/{method}")})),
        response: None,
        status: operation.status.clone(),
        operation: Some(Operation {
            id: operation.name.to_owned(),
            producer: COMPUTE.to_owned(),
            first: false,
            last: true,
        }),
        at: operation.at,
        chance,
    }
    .entry()
}

/// A Compute operation that is done.
#[derive(Clone, Debug)]
pub struct Ended<'a> {
    pub name: &'a str,
    pub target: &'a Link,
    pub target_id: &'a str,
    /// `insert`, `patch`, …; also as operations spell it, with the method in front.
    pub verb: &'a str,
    pub principal: Principal,
    pub status: Result<(), (Code, String)>,
    pub at: Timestamp,
}

const COMPUTE: &str = "compute.googleapis.com";

/// `compute.networks.insert`: the published name of a method. Some collections have a name of their own in regions,
/// others where they are global.
pub fn compute_method(link: &Link, verb: &str) -> String {
    let collection = link.collection.as_str();
    let prefix = match (&link.scope, collection) {
        (
            Scope::Region(_),
            "backendServices" | "healthChecks" | "networkEndpointGroups" | "targetHttpProxies" | "urlMaps",
        )
        | (Scope::Region(_), "operations") => "region",
        (Scope::Global, "addresses" | "forwardingRules" | "operations") => "global",
        (Scope::Zone(_), "operations") => "zone",
        _ => "",
    };
    let collection = match (prefix, collection) {
        ("", collection) => collection.to_owned(),
        (prefix, "operations") => format!("{prefix}Operations"),
        (prefix, collection) => {
            let (first, rest) = collection.split_at(1);
            format!("{prefix}{}{rest}", first.to_uppercase())
        }
    };
    // An operation may name its method whole, or by a word that no method has.
    let verb = verb.rsplit('.').next().unwrap_or(verb);
    let verb = match verb {
        verb if verb.starts_with("create") => "insert",
        verb if verb.starts_with("delete") => "delete",
        verb => verb,
    };
    format!("compute.{collection}.{verb}")
}

/// The monitored resource of a Compute resource. Source: Logging, "Monitored resource types".
pub fn compute_resource(link: &Link, id: &str) -> Resource {
    let (kind, label) = match link.collection.as_str() {
        "networks" => ("gce_network", "network_id"),
        "subnetworks" => ("gce_subnetwork", "subnetwork_id"),
        "addresses" => ("gce_reserved_address", "reserved_address_id"),
        "firewalls" => ("gce_firewall_rule", "firewall_rule_id"),
        "backendServices" => ("gce_backend_service", "backend_service_id"),
        "forwardingRules" => ("gce_forwarding_rule", "forwarding_rule_id"),
        "networkEndpointGroups" => ("gce_network_endpoint_group", "network_endpoint_group_id"),
        "targetHttpProxies" => ("gce_target_http_proxy", "target_http_proxy_id"),
        "urlMaps" => ("gce_url_map", "url_map_id"),
        "instances" => ("gce_instance", "instance_id"),
        "serviceAttachments" => ("gce_service_attachment", "service_attachment_id"),
        "projects" => ("gce_project", "project_id"),
        _ => ("api", "resource_id"),
    };
    let (place, at) = match &link.scope {
        Scope::Zone(zone) => ("zone", zone.to_string()),
        Scope::Region(region) => ("location", region.to_string()),
        Scope::Global => ("location", "global".to_owned()),
    };
    let mut resource = Resource::new(kind, [(label, id.to_owned()), (place, at)]);
    resource.labels.insert("project_id".to_owned(), link.project.to_string());
    resource
}

/// Where a Compute resource is.
pub fn locations(link: &Link) -> Vec<String> {
    match &link.scope {
        Scope::Global => vec!["global".to_owned()],
        Scope::Region(region) => vec![region.to_string()],
        Scope::Zone(zone) => vec![zone.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(status: Result<(), (Code, String)>) -> Value {
        let name = "namespaces/producer-1/services/hello".to_owned();
        Call {
            project: "producer-1".parse().expect("a project id"),
            service: "run.googleapis.com".to_owned(),
            method: "google.cloud.run.v1.Services.CreateService".to_owned(),
            resource_name: name.clone(),
            resource: Resource::new("cloud_run_revision", [("service_name", "hello".to_owned())]),
            principal: Principal { email: "ann@example.com".to_owned(), subject: "user:ann@example.com".to_owned() },
            permissions: vec![Checked {
                permission: "run.services.create".to_owned(),
                resource: name,
                granted: status.is_ok(),
            }],
            caller_ip: "127.0.0.1".to_owned(),
            user_agent: "gcloud".to_owned(),
            locations: vec!["us-central1".to_owned()],
            request: None,
            response: None,
            status,
            operation: None,
            at: Timestamp(1_700_000_000_000_001),
            chance: 7,
        }
        .entry()
        .to_json()
    }

    #[test]
    fn a_call_that_was_done_is_a_notice_with_who_what_and_where() {
        let entry = create(Ok(()));
        assert_eq!(entry["severity"], "NOTICE");
        assert_eq!(entry["logName"], "projects/producer-1/logs/cloudaudit.googleapis.com%2Factivity");
        let payload = &entry["protoPayload"];
        assert_eq!(payload["@type"], "type.googleapis.com/google.cloud.audit.AuditLog");
        assert_eq!(payload["authenticationInfo"]["principalSubject"], "user:ann@example.com");
        assert_eq!(payload["authorizationInfo"][0]["granted"], true);
        assert_eq!(payload["resourceLocation"], json!({"currentLocations": ["us-central1"]}));
        assert_eq!(payload["requestMetadata"]["requestAttributes"]["time"], "2023-11-14T22:13:20.000001Z");
        assert!(payload.get("status").is_none());
    }

    #[test]
    fn a_call_that_was_refused_is_an_error_with_its_status() {
        let entry = create(Err((Code::PermissionDenied, "no".to_owned())));
        assert_eq!(entry["severity"], "ERROR");
        assert_eq!(entry["protoPayload"]["status"], json!({"code": 7, "message": "no"}));
        assert!(entry["protoPayload"]["authorizationInfo"][0].get("granted").is_none());
    }
}
