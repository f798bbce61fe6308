//! From what a container prints to entries: a line is an entry, and a line that is a JSON object is a structured one.
//!
//! Start with [`line_entry`]; [`system_entry`] is what the platform says beside it. Source: Cloud Run "Writing container logs", Logging agent "Special fields". Left in the
//! payload as written, though the real cloud moves them out: `httpRequest`, `logging.googleapis.com/operation` and
//! `logging.googleapis.com/sourceLocation`.

use std::collections::BTreeMap;

use model::{
    record::{PrintedLine, Stream},
    run::RevisionKey,
    time::Timestamp,
};
use serde_json::{Map, Value};

use crate::entry::{Entry, LogName, LogTime, Payload, Resource, Severity, insert_id};

/// Who printed a line.
#[derive(Clone, Debug)]
pub struct LineNames {
    pub revision: RevisionKey,
    /// The id that the instance's own metadata server shows.
    pub instance_id: String,
    pub user_labels: BTreeMap<String, String>,
}

/// The entry of one line. Its number keeps lines of the same instant in their order.
pub fn line_entry(line: &PrintedLine, number: u64, names: &LineNames) -> Entry {
    let id = match line.stream {
        Stream::Stdout => "run.googleapis.com/stdout",
        Stream::Stderr => "run.googleapis.com/stderr",
    };
    let order = u32::try_from(number % (1 << 32)).expect("less than 2^32");
    let mut entry = entry(id, names, line.at, order);
    match serde_json::from_str(&line.text) {
        Ok(Value::Object(fields)) => structure(&mut entry, fields),
        // Numbers, lists and what is no JSON stay text.
        Ok(_) | Err(_) => entry.payload = Some(Payload::Text(line.text.clone())),
    }
    entry
}

/// What the platform says about an instance. Source: Cloud Run, `varlog/system`.
pub fn system_entry(text: String, severity: Severity, names: &LineNames, at: Timestamp, chance: u32) -> Entry {
    let payload = Some(Payload::Text(text));
    Entry { severity, payload, ..entry("run.googleapis.com/varlog/system", names, at, chance) }
}

fn entry(id: &str, names: &LineNames, at: Timestamp, chance: u32) -> Entry {
    let service = &names.revision.service;
    let mut labels = names.user_labels.clone();
    labels.insert("instanceId".to_owned(), names.instance_id.clone());
    Entry {
        log_name: LogName::in_project(&service.project, id),
        resource: Resource::new(
            "cloud_run_revision",
            [
                ("project_id", service.project.to_string()),
                ("location", service.region.to_string()),
                ("service_name", service.name.clone()),
                ("configuration_name", service.name.clone()),
                ("revision_name", names.revision.name.clone()),
            ],
        ),
        timestamp: at.into(),
        received: at.into(),
        insert_id: insert_id(at, chance),
        severity: Severity::Default,
        labels,
        http_request: None,
        payload: None,
        trace: String::new(),
        span_id: String::new(),
        trace_sampled: false,
        operation: None,
        source_location: None,
    }
}

/// Moves the special fields out of the payload. One of the wrong type stays where it is.
fn structure(entry: &mut Entry, mut fields: Map<String, Value>) {
    if let Some(text) = take_text(&mut fields, "severity") {
        entry.severity = severity(&text);
    }
    if let Some(time) = fields.get("time").and_then(Value::as_str).and_then(LogTime::parse) {
        entry.timestamp = time;
        fields.shift_remove("time");
    }
    let project = entry.log_name.parent.clone();
    if let Some(trace) = take_text(&mut fields, "logging.googleapis.com/trace") {
        entry.trace = if trace.contains('/') { trace } else { format!("{project}/traces/{trace}") };
    }
    if let Some(span) = take_text(&mut fields, "logging.googleapis.com/spanId") {
        entry.span_id = span;
    }
    if let Some(id) = take_text(&mut fields, "logging.googleapis.com/insertId") {
        entry.insert_id = id;
    }
    if let Some(Value::Bool(sampled)) = fields.get("logging.googleapis.com/trace_sampled") {
        entry.trace_sampled = *sampled;
        fields.shift_remove("logging.googleapis.com/trace_sampled");
    }
    if let Some(labels) = fields.get("logging.googleapis.com/labels").and_then(texts) {
        entry.labels.extend(labels);
        fields.shift_remove("logging.googleapis.com/labels");
    }
    entry.payload = Some(match fields.get("message") {
        Some(Value::String(text)) if fields.len() == 1 => Payload::Text(text.clone()),
        _ => Payload::Json(fields),
    });
}

fn take_text(fields: &mut Map<String, Value>, key: &str) -> Option<String> {
    let text = fields.get(key)?.as_str()?.to_owned();
    fields.shift_remove(key);
    Some(text)
}

fn texts(value: &Value) -> Option<BTreeMap<String, String>> {
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    value.as_object()?.iter().map(text).collect()
}

/// Names of severities as programs write them.
fn severity(text: &str) -> Severity {
    let upper = text.to_ascii_uppercase();
    match upper.as_str() {
        "WARN" => Severity::Warning,
        "ERR" => Severity::Error,
        "FATAL" => Severity::Critical,
        "TRACE" => Severity::Debug,
        name => name.parse().unwrap_or(Severity::Default),
    }
}

#[cfg(test)]
mod tests {
    use model::run::ServiceKey;
    use serde_json::json;

    use super::*;

    fn read(line: &str) -> Value {
        let service = ServiceKey {
            project: "producer-1".parse().expect("an id"),
            region: "us-central1".parse().expect("a region"),
            name: "hello".to_owned(),
        };
        let names = LineNames {
            revision: RevisionKey { service, name: "hello-00001-abc".to_owned() },
            instance_id: "00ab".to_owned(),
            user_labels: BTreeMap::new(),
        };
        let (at, text) = (Timestamp(1_700_000_000_000_001), line.to_owned());
        line_entry(&PrintedLine { at, stream: Stream::Stderr, text }, 1, &names).to_json()
    }

    #[test]
    fn a_plain_line_is_text_without_severity_also_on_stderr() {
        let entry = read("something broke");
        assert_eq!(entry["textPayload"], "something broke");
        assert_eq!(entry["logName"], "projects/producer-1/logs/run.googleapis.com%2Fstderr");
        assert_eq!(entry["labels"], json!({"instanceId": "00ab"}));
        assert_eq!(entry["resource"]["labels"]["revision_name"], "hello-00001-abc");
        assert_eq!((entry.get("severity"), entry.get("trace")), (None, None));
    }

    #[test]
    fn what_is_json_but_no_object_stays_text() {
        for line in ["42", "[1]", "\"x\"", "null", "{broken"] {
            assert_eq!(read(line)["textPayload"], line);
        }
    }

    #[test]
    fn an_object_is_a_payload_and_its_special_fields_move_out() {
        let line = json!({
            "severity": "warn", "message": "m", "n": 1, "time": "2025-10-15T02:26:00.5Z", "level": "x",
            "logging.googleapis.com/trace": "abc", "logging.googleapis.com/spanId": "s",
            "logging.googleapis.com/trace_sampled": true, "logging.googleapis.com/labels": {"a": "b"},
            "logging.googleapis.com/insertId": "id"
        });
        let entry = read(&line.to_string());
        assert_eq!(entry["jsonPayload"], json!({"message": "m", "n": 1, "level": "x"}));
        assert_eq!(entry["severity"], "WARNING");
        assert_eq!(entry["timestamp"], "2025-10-15T02:26:00.500Z");
        assert_eq!(entry["trace"], "projects/producer-1/traces/abc");
        assert_eq!(
            (&entry["spanId"], &entry["traceSampled"], &entry["insertId"]),
            (&json!("s"), &json!(true), &json!("id"))
        );
        assert_eq!(entry["labels"], json!({"a": "b", "instanceId": "00ab"}));
    }

    #[test]
    fn a_message_that_is_alone_is_text() {
        assert_eq!(read(r#"{"severity":"ERROR","message":"only"}"#)["textPayload"], "only");
        assert_eq!(read(r#"{"message":5}"#)["jsonPayload"], json!({"message": 5}));
    }

    #[test]
    fn a_special_field_of_the_wrong_type_stays() {
        let entry = read(r#"{"severity":3,"time":"noon","logging.googleapis.com/labels":{"a":1}}"#);
        assert_eq!(entry["jsonPayload"].as_object().map(Map::len), Some(3));
        assert_eq!(read(r#"{"severity":"LOUD","a":1}"#).get("severity"), None);
    }
}
