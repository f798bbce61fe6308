//! From what the data plane saw to entries in Google's shapes. Pure: names, chance and time come in as arguments.
//!
//! Start with [`request_entry`]. Source: Cloud Run "Logging".

use std::collections::BTreeMap;

use model::{name::ProjectId, record::RequestRecord};

use crate::entry::{Entry, HttpRequest, LogName, Payload, Resource, Severity, insert_id};

/// The log of requests, by its id.
pub const REQUESTS: &str = "run.googleapis.com/requests";

/// What a request's record does not say.
#[derive(Clone, Debug, Default)]
pub struct RunNames {
    /// Labels of the revision, copied into each of its entries.
    pub user_labels: BTreeMap<String, String>,
    /// The id that the instance's own metadata server shows.
    pub instance_id: Option<String>,
}

/// The entry in the service's request log; none for a request that found no service. It is dated by the request's
/// arrival and numbered by its end.
pub fn request_entry(record: &RequestRecord, names: &RunNames, chance: u32) -> Option<Entry> {
    let service = record.service.as_ref()?;
    let revision = record.revision.as_ref().map_or("", |r| &r.name);
    let mut labels = names.user_labels.clone();
    if let (Some(_), Some(id)) = (&record.instance, &names.instance_id) {
        labels.insert("instanceId".to_owned(), id.clone());
    }
    let end = record.end();
    Some(Entry {
        log_name: LogName::in_project(&service.project, REQUESTS),
        resource: Resource::new(
            "cloud_run_revision",
            [
                ("project_id", service.project.to_string()),
                ("location", service.region.to_string()),
                ("service_name", service.name.clone()),
                ("configuration_name", service.name.clone()),
                ("revision_name", revision.to_owned()),
            ],
        ),
        timestamp: record.arrived.into(),
        received: end.into(),
        insert_id: insert_id(end, chance),
        severity: severity_of(record.status),
        labels,
        http_request: Some(http_request(record)),
        payload: record.refusal.clone().map(Payload::Text),
        trace: trace_name(&service.project, &record.trace),
        span_id: record.span.clone(),
        trace_sampled: record.sampled,
        operation: None,
        source_location: None,
    })
}

/// A trace as an entry of a project names it. Empty for an empty id.
pub fn trace_name(project: &ProjectId, id: &str) -> String {
    if id.is_empty() { String::new() } else { format!("projects/{project}/traces/{id}") }
}

fn severity_of(status: u16) -> Severity {
    match status {
        0..400 => Severity::Info,
        400..500 => Severity::Warning,
        500.. => Severity::Error,
    }
}

pub(crate) fn http_request(record: &RequestRecord) -> HttpRequest {
    HttpRequest {
        method: record.method.clone(),
        url: record.url.clone(),
        request_bytes: record.request_bytes,
        status: record.status,
        response_bytes: record.response_bytes,
        user_agent: record.user_agent.clone().unwrap_or_default(),
        remote_ip: record.remote.to_string(),
        // A private path has no public front end.
        server_ip: String::new(),
        referer: record.referer.clone().unwrap_or_default(),
        latency_ns: Some(record.latency_ns),
        protocol: record.protocol.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use model::{
        id::WorkloadId,
        run::{RevisionKey, ServiceKey},
        time::Timestamp,
    };
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).expect("a time")
    }

    pub(crate) fn request(status: u16) -> RequestRecord {
        let service = ServiceKey {
            project: "producer-1".parse().expect("an id"),
            region: "asia-northeast1".parse().expect("a region"),
            name: "hello-service".to_owned(),
        };
        RequestRecord {
            revision: Some(RevisionKey { service: service.clone(), name: "hello-service-00001-abc".to_owned() }),
            service: Some(service),
            instance: Some(WorkloadId("i-1".to_owned())),
            front: None,
            arrived: at("2026-05-07T01:40:02.118734Z"),
            latency_ns: 12_000_000,
            method: "GET".to_owned(),
            url: "http://10.1.0.5/".to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            status,
            request_bytes: 300,
            response_bytes: 1_200,
            user_agent: Some("curl/8.5.0".to_owned()),
            referer: None,
            remote: "fda3:e722:ac3:cc00:22b:7027:a00:302".parse().expect("an address"),
            trace: "1cfb32c24a18378f0c7834bb46ae5ba3".to_owned(),
            span: "8690fc01c12c1a51".to_owned(),
            sampled: false,
            refusal: None,
        }
    }

    #[test]
    fn a_request_through_an_endpoint_is_logged_as_the_front_end_saw_it() {
        let names = RunNames { user_labels: BTreeMap::new(), instance_id: Some("00ab".to_owned()) };
        let want = json!({
            "insertId": "69fbed720001feae00000007",
            "httpRequest": {
                "requestMethod": "GET", "requestUrl": "http://10.1.0.5/", "requestSize": "300", "status": 200,
                "responseSize": "1200", "userAgent": "curl/8.5.0",
                "remoteIp": "fda3:e722:ac3:cc00:22b:7027:a00:302", "latency": "0.012s", "protocol": "HTTP/1.1"
            },
            "resource": {"type": "cloud_run_revision", "labels": {
                "configuration_name": "hello-service", "location": "asia-northeast1", "project_id": "producer-1",
                "revision_name": "hello-service-00001-abc", "service_name": "hello-service"
            }},
            "timestamp": "2026-05-07T01:40:02.118734Z",
            "severity": "INFO",
            "labels": {"instanceId": "00ab"},
            "logName": "projects/producer-1/logs/run.googleapis.com%2Frequests",
            "trace": "projects/producer-1/traces/1cfb32c24a18378f0c7834bb46ae5ba3",
            "spanId": "8690fc01c12c1a51",
            "receiveTimestamp": "2026-05-07T01:40:02.130734Z"
        });
        assert_eq!(request_entry(&request(200), &names, 7).expect("a service").to_json(), want);
    }

    #[test]
    fn a_status_decides_the_severity() {
        let severity = |status| request_entry(&request(status), &RunNames::default(), 0).expect("a service").severity;
        let cases = [(101, Severity::Info), (399, Severity::Info), (400, Severity::Warning), (499, Severity::Warning)];
        for (status, want) in cases.into_iter().chain([(500, Severity::Error), (504, Severity::Error)]) {
            assert_eq!(severity(status), want, "{status}");
        }
    }

    #[test]
    fn a_refused_request_has_no_instance_and_says_why() {
        let record = RequestRecord { instance: None, refusal: Some("no instance".to_owned()), ..request(429) };
        let names = RunNames { instance_id: Some("00ab".to_owned()), ..RunNames::default() };
        let entry = request_entry(&record, &names, 0).expect("a service").to_json();
        assert_eq!(entry.get("labels"), None);
        assert_eq!(entry["textPayload"], "no instance");
    }
}
