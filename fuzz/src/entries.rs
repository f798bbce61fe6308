//! What becomes log entries, and the language they are asked for in.

use std::{collections::BTreeMap, sync::OnceLock};

use logs::{
    Entry, Filter, LogTime,
    lines::{LineNames, line_entry},
    written::Batch,
};
use model::{
    limits::LOG_ENTRY_BYTES_MAX,
    record::{PrintedLine, Stream},
    run::{RevisionKey, ServiceKey},
    time::Timestamp,
};
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

fn names() -> LineNames {
    let service = ServiceKey {
        project: "proj-one".parse().expect("an id"),
        region: "asia-northeast1".parse().expect("a region"),
        name: "hello".to_owned(),
    };
    let user_labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    LineNames {
        revision: RevisionKey { service, name: "hello-00001-abc".to_owned() },
        instance_id: "00ab".into(),
        user_labels,
    }
}

fn line_of(text: &str) -> Entry {
    let line = PrintedLine { at: NOW, stream: Stream::Stdout, text: text.to_owned() };
    line_entry(&line, 7, &names())
}

/// Entries of several shapes, as they are kept.
fn kept() -> &'static [String] {
    static KEPT: OnceLock<Vec<String>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let given = json!({"entries": [
            {"logName": "projects/proj-one/logs/app", "resource": {"type": "global"}, "textPayload": "Hello, Wörld"},
            {"logName": "projects/proj-one/logs/app%2Fx", "resource": {"type": "gce_instance", "labels": {"zone": "z"}},
             "severity": "ERROR", "labels": {"a.b/c": "d"}, "timestamp": "2026-12-31T23:59:59.123456789Z",
             "jsonPayload": {"n": 1.5, "deep": {"list": [1, "two", null, {"three": true}]}, "big": 1e300},
             "httpRequest": {"requestMethod": "GET", "status": 404, "latency": "0.5s", "remoteIp": "10.0.0.1"},
             "trace": "projects/proj-one/traces/abc", "operation": {"id": "o", "first": true}},
        ]});
        let batch: Batch = serde_json::from_value(given).expect("a batch");
        let written = batch.entries(NOW.into(), || "id".to_owned()).into_iter().map(|entry| entry.expect("an entry"));
        written.chain([line_of("plain")]).map(|entry| entry.to_text()).collect()
    })
}

/// A filter: it is understood or refused, and what it says of an entry does not depend on how it is asked.
pub(crate) fn filter(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let filter = match Filter::parse(text) {
        Ok(filter) => filter,
        Err(why) => return assert!(!why.to_string().is_empty(), "a refusal says why"),
    };
    let within = filter.time_range();
    for entry in kept() {
        let value: Value = serde_json::from_str(entry).expect("an entry is JSON");
        let wanted = filter.matches(&value);
        assert_eq!(filter.select(entry).is_some(), wanted, "the text of {entry} says other than its fields");
        let at = value["timestamp"].as_str().and_then(LogTime::parse).expect("an entry has its time");
        assert!(!wanted || within.contains(&at), "{entry} is outside of the times that can match");
    }
}

/// The body of `entries.write`: what is taken can be kept and read again.
pub(crate) fn write(input: &[u8]) {
    let Ok(batch) = serde_json::from_slice(input).and_then(serde_json::from_value::<Batch>) else { return };
    batch.entries(NOW.into(), || "id".to_owned()).into_iter().flatten().for_each(|entry| readable(&entry));
}

/// A line of a container's. It is always an entry.
pub(crate) fn line(input: &[u8]) {
    readable(&line_of(&String::from_utf8_lossy(input)));
}

fn readable(entry: &Entry) {
    let text = entry.to_text();
    let read: Value = serde_json::from_str(&text).expect("an entry is JSON");
    assert_eq!(read, entry.to_json(), "an entry has one form");
    assert!(!text.contains('\n'), "an entry is one line");
    assert!(text.len() <= 8 * LOG_ENTRY_BYTES_MAX, "an entry of {} bytes", text.len());
    let at = read["timestamp"].as_str().and_then(LogTime::parse);
    assert_eq!(at, Some(entry.timestamp), "a time is read back");
    let filter = format!("timestamp=\"{}\" insertId=\"{}\"", read["timestamp"].as_str().unwrap_or_default(), "x");
    let _ = Filter::parse(&filter).map(|filter| filter.select(&text));
}
