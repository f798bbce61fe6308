//! The load balancer's own log of a request, from the record that is the service's too.
//!
//! Source: internal Application Load Balancer, "Logging and monitoring"; monitored resource `internal_http_lb_rule`.

use std::collections::BTreeMap;

use model::{
    lb::RequestLog,
    name::{ProjectId, Region},
    record::{Front, RequestRecord},
};
use serde_json::{Map, json};

use crate::{
    entry::{Entry, HttpRequest, LogName, Payload, Resource, Severity, insert_id},
    filter::fraction,
    records::{http_request, trace_name},
};

/// The log of requests, by its id.
pub const REQUESTS: &str = "requests";

/// What a request's record does not say of the balancer.
#[derive(Clone, Debug)]
pub struct BalancerNames {
    pub project: ProjectId,
    pub region: Region,
    pub network: String,
    pub forwarding_rule: String,
    pub target_proxy: String,
    pub url_map: String,
    pub backend: Option<BackendNames>,
}

#[derive(Clone, Debug)]
pub struct BackendNames {
    pub service: String,
    pub group: String,
}

/// Whether a request is in the log that its backend service keeps. Depends on nothing but its arguments.
pub fn is_sampled(record: &RequestRecord, log: &RequestLog) -> bool {
    log.enable && fraction(&record.span) < log.sample_rate
}

/// The balancer's entry of a request that came through `front`.
pub fn balanced_entry(record: &RequestRecord, front: &Front, names: &BalancerNames, chance: u32) -> Entry {
    let end = record.end();
    Entry {
        log_name: LogName::in_project(&names.project, REQUESTS),
        resource: resource(front, names),
        timestamp: record.arrived.into(),
        received: end.into(),
        insert_id: insert_id(end, chance),
        severity: if record.status < 400 { Severity::Info } else { Severity::Warning },
        labels: BTreeMap::new(),
        http_request: Some(HttpRequest {
            // What the balancer itself sees, and not what it tells the service.
            remote_ip: front.peer.to_string(),
            ..http_request(record)
        }),
        payload: Some(Payload::Json(payload(record, front))),
        trace: trace_name(&names.project, &record.trace),
        span_id: record.span.clone(),
        trace_sampled: record.sampled,
        operation: None,
        source_location: None,
    }
}

fn resource(front: &Front, names: &BalancerNames) -> Resource {
    let (service, group) = names.backend.as_ref().map_or(("", ""), |b| (&b.service, &b.group));
    let known = |name: &str, kind: &str| if name.is_empty() { "UNKNOWN".to_owned() } else { kind.to_owned() };
    Resource::new(
        "internal_http_lb_rule",
        [
            ("project_id", names.project.to_string()),
            ("network_name", names.network.clone()),
            ("region", names.region.to_string()),
            ("forwarding_rule_name", names.forwarding_rule.clone()),
            ("target_proxy_name", names.target_proxy.clone()),
            ("url_map_name", names.url_map.clone()),
            ("matched_url_path_rule", front.pattern.clone().unwrap_or_else(|| "UNMATCHED".to_owned())),
            ("backend_target_name", service.to_owned()),
            ("backend_target_type", known(service, "BACKEND_SERVICE")),
            ("backend_name", group.to_owned()),
            ("backend_type", known(group, "NETWORK_ENDPOINT_GROUP")),
            ("backend_scope", if group.is_empty() { String::new() } else { names.region.to_string() }),
            ("backend_scope_type", known(group, "REGION")),
        ],
    )
}

/// `proxyStatus` is written where the balancer itself answered: the two errors that its URL map can lead to.
fn payload(record: &RequestRecord, front: &Front) -> Map<String, serde_json::Value> {
    let is_lost = record.service.is_none() && record.refusal.is_some() && record.status == 404;
    let details = match front.backend {
        _ if !is_lost => None,
        Some(_) => Some("serverless_neg_routing_failed"),
        None => Some("fault_filter_abort"),
    };
    let mut payload = Map::new();
    payload.insert("@type".into(), json!("type.googleapis.com/google.cloud.loadbalancing.type.LoadBalancerLogEntry"));
    if let Some(details) = details {
        payload.insert("proxyStatus".into(), json!(format!("error=\"http_request_error\"; details=\"{details}\"")));
    }
    payload
}

#[cfg(test)]
mod tests {
    use model::id::{BackendId, ListenerId};

    use super::*;
    use crate::records::tests::request;

    fn front(backend: Option<BackendId>) -> Front {
        Front { listener: ListenerId(3), peer: ([10, 0, 3, 2], 40_000).into(), backend, pattern: Some("/a/*".into()) }
    }

    fn names(backend: Option<BackendNames>) -> BalancerNames {
        BalancerNames {
            project: "producer-1".parse().expect("an id"),
            region: "asia-northeast1".parse().expect("a region"),
            network: "vpc".to_owned(),
            forwarding_rule: "rule".to_owned(),
            target_proxy: "proxy".to_owned(),
            url_map: "map".to_owned(),
            backend,
        }
    }

    #[test]
    fn a_balancer_names_its_chain_and_the_connection_that_it_sees() {
        let backend = BackendNames { service: "back".to_owned(), group: "neg".to_owned() };
        let want = json!({
            "insertId": "69fbed720001feae00000007",
            "httpRequest": {
                "requestMethod": "GET", "requestUrl": "http://10.1.0.5/", "requestSize": "300", "status": 200,
                "responseSize": "1200", "userAgent": "curl/8.5.0", "remoteIp": "10.0.3.2:40000", "latency": "0.012s",
                "protocol": "HTTP/1.1"
            },
            "resource": {"type": "internal_http_lb_rule", "labels": {
                "project_id": "producer-1", "network_name": "vpc", "region": "asia-northeast1",
                "forwarding_rule_name": "rule", "target_proxy_name": "proxy", "url_map_name": "map",
                "matched_url_path_rule": "/a/*", "backend_target_name": "back", "backend_target_type": "BACKEND_SERVICE",
                "backend_name": "neg", "backend_type": "NETWORK_ENDPOINT_GROUP", "backend_scope": "asia-northeast1",
                "backend_scope_type": "REGION"
            }},
            "timestamp": "2026-05-07T01:40:02.118734Z",
            "severity": "INFO",
            "logName": "projects/producer-1/logs/requests",
            "jsonPayload": {
                "@type": "type.googleapis.com/google.cloud.loadbalancing.type.LoadBalancerLogEntry"
            },
            "trace": "projects/producer-1/traces/1cfb32c24a18378f0c7834bb46ae5ba3",
            "spanId": "8690fc01c12c1a51",
            "receiveTimestamp": "2026-05-07T01:40:02.130734Z"
        });
        assert_eq!(balanced_entry(&request(200), &front(Some(BackendId(7))), &names(Some(backend)), 7).to_json(), want);
    }

    #[test]
    fn a_request_that_reached_no_service_says_where_it_ended() {
        let record = RequestRecord {
            service: None,
            refusal: Some("The requested URL was not found.".to_owned()),
            ..request(404)
        };
        for (backend, want) in [(None, "fault_filter_abort"), (Some(BackendId(7)), "serverless_neg_routing_failed")] {
            let entry = balanced_entry(&record, &front(backend), &names(None), 7).to_json();
            let want = format!("error=\"http_request_error\"; details=\"{want}\"");
            assert_eq!(entry["jsonPayload"]["proxyStatus"], want);
            assert_eq!((&entry["severity"], &entry["httpRequest"]["status"]), (&json!("WARNING"), &json!(404)));
            assert_eq!(entry["resource"]["labels"]["backend_type"], "UNKNOWN");
        }
    }

    #[test]
    fn about_as_many_requests_are_in_the_log_as_its_rate_says() {
        let sampled = |enable, sample_rate| {
            let log = RequestLog { enable, sample_rate };
            let spans = (0..1_000).map(|n| RequestRecord { span: format!("{n:016x}"), ..request(200) });
            spans.filter(|record| is_sampled(record, &log)).count()
        };
        assert_eq!((sampled(true, 1.0), sampled(true, 0.0), sampled(false, 1.0)), (1_000, 0, 0));
        assert!((200..300).contains(&sampled(true, 0.25)), "{}", sampled(true, 0.25));
    }
}
