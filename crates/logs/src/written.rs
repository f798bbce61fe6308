//! Entries that users write: from the JSON of `entries.write` to [`Entry`], or why not.
//!
//! Knows neither who may write nor which projects exist. Start with [`Batch`]. Source: Logging v2, entries.write.

use std::collections::BTreeMap;

use model::limits::{LOG_ENTRY_BYTES_MAX, LOG_ENTRY_LABELS_MAX, LOG_ID_BYTES_MAX, LOG_LABEL_KEY_BYTES_MAX};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    Entry, LogName, LogTime, Payload, Resource, Severity,
    entry::{HttpRequest, Operation, SourceLocation},
};

/// The body of `entries.write`. Fields go by either of their names, as in all JSON of protocol buffers: Google's own
/// Python library says `dry_run` beside `partialSuccess`. Source: protobuf.dev, ProtoJSON format.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Batch {
    #[serde(default, alias = "log_name")]
    log_name: String,
    #[serde(default)]
    resource: Option<Monitored>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    entries: Vec<Map<String, Value>>,
    /// The good entries are written although there are bad ones.
    #[serde(default, alias = "partial_success")]
    pub partial_success: bool,
    /// Nothing is written.
    #[serde(default, alias = "dry_run")]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Monitored {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    #[serde(default, alias = "log_name")]
    log_name: String,
    #[serde(default)]
    resource: Option<Monitored>,
    #[serde(default)]
    timestamp: Option<String>,
    /// Ours to say; accepted, as clients send back what they read.
    #[serde(default, rename = "receiveTimestamp", alias = "receive_timestamp")]
    _receive_timestamp: Option<String>,
    #[serde(default)]
    severity: Option<Value>,
    #[serde(default, alias = "insert_id")]
    insert_id: String,
    #[serde(default, alias = "http_request")]
    http_request: Option<GivenRequest>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    operation: Option<GivenOperation>,
    #[serde(default, alias = "source_location")]
    source_location: Option<GivenLocation>,
    #[serde(default)]
    trace: String,
    #[serde(default, alias = "span_id")]
    span_id: String,
    #[serde(default, alias = "trace_sampled")]
    trace_sampled: bool,
    #[serde(default, alias = "text_payload")]
    text_payload: Option<String>,
    #[serde(default, alias = "json_payload")]
    json_payload: Option<Map<String, Value>>,
    #[serde(default, alias = "proto_payload")]
    proto_payload: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct GivenRequest {
    #[serde(alias = "request_method")]
    request_method: String,
    #[serde(alias = "request_url")]
    request_url: String,
    #[serde(alias = "request_size")]
    request_size: Int64,
    status: u16,
    #[serde(alias = "response_size")]
    response_size: Int64,
    #[serde(alias = "user_agent")]
    user_agent: String,
    #[serde(alias = "remote_ip")]
    remote_ip: String,
    #[serde(alias = "server_ip")]
    server_ip: String,
    referer: String,
    latency: Option<String>,
    protocol: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct GivenOperation {
    id: String,
    producer: String,
    first: bool,
    last: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct GivenLocation {
    file: String,
    line: Int64,
    function: String,
}

/// A text of digits or a number, as protobuf's JSON allows.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Int64 {
    Number(u64),
    Text(String),
}

impl Default for Int64 {
    fn default() -> Int64 {
        Int64::Number(0)
    }
}

impl Int64 {
    fn value(&self, field: &str) -> Result<u64, String> {
        match self {
            Int64::Number(n) => Ok(*n),
            Int64::Text(text) => text.parse().map_err(|_| format!("{field} is not a number")),
        }
    }
}

impl Batch {
    /// Every entry with its defaults, or why it cannot be written. Entries of one batch keep their order.
    /// `number` makes insert ids; each call gives another.
    pub fn entries(&self, now: LogTime, mut number: impl FnMut() -> String) -> Vec<Result<Entry, String>> {
        self.entries.iter().map(|entry| self.entry(entry.clone(), now, number())).collect()
    }

    fn entry(&self, fields: Map<String, Value>, now: LogTime, insert_id: String) -> Result<Entry, String> {
        let given: Given = serde_json::from_value(Value::Object(fields)).map_err(|why| why.to_string())?;
        let log_name = log_name(if given.log_name.is_empty() { &self.log_name } else { &given.log_name })?;
        let resource = given.resource.as_ref().or(self.resource.as_ref()).ok_or("resource is required")?;
        let mut labels = self.labels.clone();
        labels.extend(given.labels.clone());
        check_labels(&labels)?;
        check_labels(&resource.labels)?;
        let entry = Entry {
            log_name,
            resource: Resource { kind: resource.kind.clone(), labels: resource.labels.clone() },
            timestamp: given.timestamp.as_deref().map_or(Ok(now), timestamp)?,
            received: now,
            insert_id: if given.insert_id.is_empty() { insert_id } else { given.insert_id.clone() },
            severity: given.severity.as_ref().map_or(Ok(Severity::Default), severity)?,
            labels,
            http_request: given.http_request.as_ref().map(GivenRequest::read).transpose()?,
            payload: given.payload()?,
            trace: given.trace,
            span_id: given.span_id,
            trace_sampled: given.trace_sampled,
            operation: given.operation.map(|o| Operation {
                id: o.id,
                producer: o.producer,
                first: o.first,
                last: o.last,
            }),
            source_location: given.source_location.map(GivenLocation::read).transpose()?,
        };
        match entry.to_text().len() {
            bytes if bytes > LOG_ENTRY_BYTES_MAX => {
                Err(format!("Log entry with size {bytes} bytes exceeds maximum size of {LOG_ENTRY_BYTES_MAX} bytes"))
            }
            _ => Ok(entry),
        }
    }
}

impl Given {
    fn payload(&self) -> Result<Option<Payload>, String> {
        match (&self.text_payload, &self.json_payload, &self.proto_payload) {
            (None, None, None) => Ok(None),
            (Some(text), None, None) => Ok(Some(Payload::Text(text.clone()))),
            (None, Some(fields), None) => Ok(Some(Payload::Json(fields.clone()))),
            (None, None, Some(fields)) if fields.get("@type").is_some_and(Value::is_string) => {
                Ok(Some(Payload::Proto(fields.clone())))
            }
            (None, None, Some(_)) => Err("protoPayload needs an '@type'".to_owned()),
            _ => Err("oneof field 'payload' is already set".to_owned()),
        }
    }
}

impl GivenRequest {
    fn read(&self) -> Result<HttpRequest, String> {
        let latency_ns = self.latency.as_deref().map(|text| {
            let ns = crate::filter::duration_ns(text).and_then(|ns| u64::try_from(ns).ok());
            ns.ok_or_else(|| format!("'{text}' is not a duration"))
        });
        Ok(HttpRequest {
            method: self.request_method.clone(),
            url: self.request_url.clone(),
            request_bytes: self.request_size.value("requestSize")?,
            status: self.status,
            response_bytes: self.response_size.value("responseSize")?,
            user_agent: self.user_agent.clone(),
            remote_ip: self.remote_ip.clone(),
            server_ip: self.server_ip.clone(),
            referer: self.referer.clone(),
            latency_ns: latency_ns.transpose()?,
            protocol: self.protocol.clone(),
        })
    }
}

impl GivenLocation {
    fn read(self) -> Result<SourceLocation, String> {
        Ok(SourceLocation { line: self.line.value("line")?, file: self.file, function: self.function })
    }
}

/// Source: LogEntry.logName, fewer than 512 characters of `[A-Za-z0-9/_.-]` in the id.
fn log_name(text: &str) -> Result<LogName, String> {
    let name = LogName::parse(text).ok_or_else(|| format!("'{text}' is not a log name"))?;
    let plain = name.id.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_.-".contains(&b));
    match plain && !name.id.is_empty() && name.id.len() < LOG_ID_BYTES_MAX {
        true => Ok(name),
        false => Err(format!("'{text}' is not a log name")),
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > LOG_ENTRY_LABELS_MAX {
        return Err(format!("an entry has at most {LOG_ENTRY_LABELS_MAX} labels"));
    }
    match labels.keys().find(|key| key.is_empty() || key.len() > LOG_LABEL_KEY_BYTES_MAX) {
        Some(key) => Err(format!("'{}' is no key of a label", key.chars().take(64).collect::<String>())),
        None => Ok(()),
    }
}

fn timestamp(text: &str) -> Result<LogTime, String> {
    LogTime::parse(text).ok_or_else(|| format!("'{text}' is not a timestamp"))
}

fn severity(value: &Value) -> Result<Severity, String> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(|_| format!("'{text}' is not a severity"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: LogTime = LogTime(1_800_000_000_000_000_000);

    fn entries(body: Value) -> Vec<Result<Entry, String>> {
        let mut count = 0;
        let number = || {
            count += 1;
            format!("id-{count}")
        };
        serde_json::from_value::<Batch>(body).expect("a body").entries(NOW, number)
    }

    #[test]
    fn a_field_goes_by_either_of_its_names() {
        let body = json!({"log_name": "projects/p/logs/l", "dry_run": true, "partial_success": true,
                          "resource": {"type": "global"}, "entries": [{"text_payload": "hello", "insert_id": "mine"}]});
        let batch: Batch = serde_json::from_value(body.clone()).expect("a body");
        assert!(batch.dry_run && batch.partial_success);
        let shown = entries(body).remove(0).expect("a good entry").to_json();
        assert_eq!((&shown["textPayload"], &shown["insertId"]), (&json!("hello"), &json!("mine")));
    }

    #[test]
    fn an_entry_takes_what_it_lacks_from_its_batch_and_its_own_labels_win() {
        let all = entries(json!({
            "logName": "projects/p/logs/my-log", "resource": {"type": "global"}, "labels": {"a": "batch", "b": "batch"},
            "entries": [
                {"textPayload": "hello", "labels": {"a": "own"}, "severity": "notice"},
                {"logName": "projects/p/logs/other%2Flog", "jsonPayload": {"n": 1}, "insertId": "mine", "severity": 500,
                 "timestamp": "2026-11-28T01:02:03.5Z", "resource": {"type": "generic_node", "labels": {"node_id": "n"}},
                 "httpRequest": {"status": 404, "requestSize": "12", "latency": "0.5s"},
                 "sourceLocation": {"file": "a.py", "line": "7", "function": "f"}, "trace": "t", "traceSampled": true},
            ],
        }));
        let shown: Vec<Value> = all.into_iter().map(|e| e.expect("a good entry").to_json()).collect();
        assert_eq!(shown[0]["labels"], json!({"a": "own", "b": "batch"}));
        assert_eq!((&shown[0]["insertId"], &shown[0]["severity"]), (&json!("id-1"), &json!("NOTICE")));
        assert_eq!(
            (&shown[0]["logName"], &shown[0]["timestamp"]),
            (&json!("projects/p/logs/my-log"), &json!(NOW.to_string()))
        );
        assert_eq!(shown[1]["logName"], "projects/p/logs/other%2Flog");
        assert_eq!(shown[1]["httpRequest"], json!({"requestSize": "12", "status": 404, "latency": "0.500s"}));
        assert_eq!(shown[1]["sourceLocation"], json!({"file": "a.py", "line": "7", "function": "f"}));
        assert_eq!((&shown[1]["insertId"], &shown[1]["severity"]), (&json!("mine"), &json!("ERROR")));
        assert_eq!(shown[1]["receiveTimestamp"], NOW.to_string());
    }

    #[test]
    fn each_bad_entry_says_why_and_spoils_no_other() {
        let good = json!({"textPayload": "x"});
        let with = |field: &str, value: Value| {
            let mut entry = good.clone();
            entry[field] = value;
            entry
        };
        let long = "x".repeat(300 << 10);
        for (entry, why) in [
            (with("thud", json!(1)), "unknown field `thud`"),
            (with("jsonPayload", json!({})), "already set"),
            (json!({"protoPayload": {"a": 1}}), "@type"),
            (with("severity", json!("LOUD")), "'LOUD' is not a severity"),
            (with("timestamp", json!("yesterday")), "'yesterday' is not a timestamp"),
            (with("logName", json!("my-log")), "is not a log name"),
            (with("logName", json!("projects/p/logs/a b")), "is not a log name"),
            (with("labels", json!({"": "x"})), "no key of a label"),
            (
                with("labels", json!((0..65).map(|n| (n.to_string(), "x".to_owned())).collect::<BTreeMap<_, _>>())),
                "at most 64",
            ),
            (with("httpRequest", json!({"latency": "soon"})), "is not a duration"),
            (with("httpRequest", json!({"cacheHit": true})), "unknown field `cacheHit`"),
            (json!({"textPayload": long}), "exceeds maximum size"),
        ] {
            let all = entries(json!({
                "logName": "projects/p/logs/l", "resource": {"type": "global"}, "entries": [good, entry, good],
            }));
            assert!(all[0].is_ok() && all[2].is_ok());
            let said = all[1].as_ref().expect_err(why);
            assert!(said.contains(why), "{why}: {said}");
        }
        let said = entries(json!({"logName": "projects/p/logs/l", "entries": [good]}));
        assert_eq!(said[0].as_ref().expect_err("no resource"), "resource is required");
    }
}
