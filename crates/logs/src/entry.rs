//! A LogEntry: the typed envelope its makers fill in, and the JSON that clients read.
//!
//! [`Entry::to_json`] is also the stored form: the filter and the door see exactly what a client would. Fields that
//! have no value are left out, 64-bit integers are strings, and severity DEFAULT is not written (Logging v2, JSON).

use std::{collections::BTreeMap, fmt, str::FromStr};

use model::time::Timestamp;
use serde_json::{Map, Value};

/// An instant in UTC, in nanoseconds since 1970. Entries are finer than the rest of the cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogTime(pub i64);

impl From<Timestamp> for LogTime {
    fn from(t: Timestamp) -> LogTime {
        LogTime(t.0.saturating_mul(1_000))
    }
}

impl LogTime {
    /// RFC 3339 with any offset; `YYYY-MM-DD` alone is midnight UTC.
    pub fn parse(text: &str) -> Option<LogTime> {
        let instant: jiff::Timestamp = match text.parse() {
            Ok(instant) => instant,
            Err(_) if text.len() == 10 => {
                let day: jiff::civil::Date = text.parse().ok()?;
                day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
            }
            Err(_) => return None,
        };
        i64::try_from(instant.as_nanosecond()).ok().map(LogTime)
    }
}

impl fmt::Display for LogTime {
    /// 0, 3, 6 or 9 digits, as many as it takes (protobuf's JSON form of a Timestamp).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or_default();
        write!(f, "{instant:.digits$}", digits = digits(self.0.rem_euclid(1_000_000_000)))
    }
}

fn digits(ns: i64) -> usize {
    match ns {
        0 => 0,
        n if n % 1_000_000 == 0 => 3,
        n if n % 1_000 == 0 => 6,
        _ => 9,
    }
}

/// A length of time as the API writes it: `0.012s`.
pub fn duration_text(ns: u64) -> String {
    let (s, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
    if rest == 0 {
        return format!("{s}s");
    }
    let fraction = format!("{rest:09}");
    let shown = digits(i64::try_from(rest).unwrap_or_default());
    format!("{s}.{}s", &fraction[..shown])
}

/// How grave, from the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    #[default]
    Default,
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl Severity {
    pub const ALL: [Severity; 9] = [
        Severity::Default,
        Severity::Debug,
        Severity::Info,
        Severity::Notice,
        Severity::Warning,
        Severity::Error,
        Severity::Critical,
        Severity::Alert,
        Severity::Emergency,
    ];

    /// The number in `google.logging.type.LogSeverity`.
    pub fn number(self) -> u16 {
        match self {
            Severity::Default => 0,
            Severity::Debug => 100,
            Severity::Info => 200,
            Severity::Notice => 300,
            Severity::Warning => 400,
            Severity::Error => 500,
            Severity::Critical => 600,
            Severity::Alert => 700,
            Severity::Emergency => 800,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Default => "DEFAULT",
            Severity::Debug => "DEBUG",
            Severity::Info => "INFO",
            Severity::Notice => "NOTICE",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
            Severity::Critical => "CRITICAL",
            Severity::Alert => "ALERT",
            Severity::Emergency => "EMERGENCY",
        }
    }
}

/// The text names no severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a severity")]
pub struct SeverityError;

impl FromStr for Severity {
    type Err = SeverityError;
    /// A name in any case, or its number.
    fn from_str(text: &str) -> Result<Severity, SeverityError> {
        let number = text.parse().ok();
        let is = |s: &Severity| text.eq_ignore_ascii_case(s.as_str()) || number == Some(s.number());
        Severity::ALL.into_iter().find(is).ok_or(SeverityError)
    }
}

/// `projects/P/logs/LOG_ID`, with the id in its plain form (`run.googleapis.com/requests`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogName {
    /// `projects/P`.
    pub parent: String,
    pub id: String,
}

impl LogName {
    pub fn in_project(project: impl fmt::Display, id: &str) -> LogName {
        LogName { parent: format!("projects/{project}"), id: id.to_owned() }
    }

    /// Splits a stored name; the id is decoded. `None` if it is no log name.
    pub fn parse(text: &str) -> Option<LogName> {
        let (parent, id) = text.split_once("/logs/")?;
        Some(LogName { parent: parent.to_owned(), id: percent_decode(id) })
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the characters a log id may hold, only the slash is written otherwise in a name.
        write!(f, "{}/logs/{}", self.parent, self.id.replace('/', "%2F"))
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match tail {
            [high, low, after @ ..] if first == b'%' && hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the entry is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `cloud_run_revision`, `gce_subnetwork`, …
    pub kind: String,
    pub labels: BTreeMap<String, String>,
}

impl Resource {
    pub fn new<const N: usize>(kind: &str, labels: [(&str, String); N]) -> Resource {
        let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Resource { kind: kind.to_owned(), labels }
    }
}

/// `httpRequest`. An empty text means "not known" and is not shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRequest {
    pub method: String,
    pub url: String,
    pub request_bytes: u64,
    pub status: u16,
    pub response_bytes: u64,
    pub user_agent: String,
    pub remote_ip: String,
    pub server_ip: String,
    pub referer: String,
    pub latency_ns: Option<u64>,
    pub protocol: String,
}

/// `operation`: which entries belong to one long task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    pub id: String,
    pub producer: String,
    pub first: bool,
    pub last: bool,
}

/// `sourceLocation`: the line of a program that wrote the entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceLocation {
    pub file: String,
    pub line: u64,
    pub function: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    Text(String),
    Json(Map<String, Value>),
    /// With its `@type`.
    Proto(Map<String, Value>),
}

/// One entry, before it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub log_name: LogName,
    pub resource: Resource,
    pub timestamp: LogTime,
    /// When it reached us.
    pub received: LogTime,
    /// Two entries of a project with the same timestamp and insert id are one.
    pub insert_id: String,
    pub severity: Severity,
    pub labels: BTreeMap<String, String>,
    pub http_request: Option<HttpRequest>,
    pub payload: Option<Payload>,
    /// `projects/P/traces/ID`; empty if none.
    pub trace: String,
    pub span_id: String,
    pub trace_sampled: bool,
    pub operation: Option<Operation>,
    pub source_location: Option<SourceLocation>,
}

/// Writes an object, field by field, where a field has a value. Straight to text: every request of the cloud passes
/// here once.
struct Object(String);

impl Object {
    fn new() -> Object {
        Object("{".to_owned())
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        // Keys of ours need no escapes; a label's key goes through `quote`.
        self.0.push('"');
        self.0.push_str(key);
        self.0.push_str("\":");
    }

    fn raw(&mut self, key: &str, json: &str) {
        self.key(key);
        self.0.push_str(json);
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            quote(value, &mut self.0);
        }
    }

    fn int64(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.text(key, &value.to_string());
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.raw(key, "true");
        }
    }

    fn texts(&mut self, key: &str, values: &BTreeMap<String, String>) {
        if values.is_empty() {
            return;
        }
        self.key(key);
        let mut before = '{';
        for (name, value) in values {
            self.0.push(before);
            quote(name, &mut self.0);
            self.0.push(':');
            quote(value, &mut self.0);
            before = ',';
        }
        self.0.push('}');
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A JSON string.
fn quote(text: &str, out: &mut String) {
    let plain = text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\');
    if plain {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&Value::from(text).to_string());
    }
}

impl Entry {
    /// The entry as `entries.list` shows it.
    pub fn to_json(&self) -> Value {
        serde_json::from_str(&self.to_text()).expect("an object is closed and its strings are escaped")
    }

    /// [`Entry::to_json`] as text, without blanks.
    pub fn to_text(&self) -> String {
        let mut out = Object::new();
        out.text("insertId", &self.insert_id);
        if let Some(http) = &self.http_request {
            out.raw("httpRequest", &http.to_text());
        }
        match &self.payload {
            Some(Payload::Text(text)) => out.text("textPayload", text),
            Some(Payload::Json(fields)) => out.raw("jsonPayload", &text_of(fields)),
            Some(Payload::Proto(fields)) => out.raw("protoPayload", &text_of(fields)),
            None => {}
        }
        let mut resource = Object::new();
        resource.text("type", &self.resource.kind);
        resource.texts("labels", &self.resource.labels);
        out.raw("resource", &resource.end());
        out.text("timestamp", &self.timestamp.to_string());
        if self.severity != Severity::Default {
            out.text("severity", self.severity.as_str());
        }
        out.texts("labels", &self.labels);
        out.text("logName", &self.log_name.to_string());
        if let Some(operation) = &self.operation {
            out.raw("operation", &operation.to_text());
        }
        if let Some(location) = &self.source_location {
            out.raw("sourceLocation", &location.to_text());
        }
        out.text("trace", &self.trace);
        out.text("spanId", &self.span_id);
        out.flag("traceSampled", self.trace_sampled);
        out.text("receiveTimestamp", &self.received.to_string());
        out.end()
    }
}

fn text_of(fields: &Map<String, Value>) -> String {
    serde_json::to_string(fields).expect("keys are strings and nothing is written but memory")
}

impl HttpRequest {
    fn to_text(&self) -> String {
        let mut out = Object::new();
        out.text("requestMethod", &self.method);
        out.text("requestUrl", &self.url);
        out.int64("requestSize", self.request_bytes);
        if self.status != 0 {
            out.raw("status", &self.status.to_string());
        }
        out.int64("responseSize", self.response_bytes);
        out.text("userAgent", &self.user_agent);
        out.text("remoteIp", &self.remote_ip);
        out.text("serverIp", &self.server_ip);
        out.text("referer", &self.referer);
        if let Some(ns) = self.latency_ns {
            out.text("latency", &duration_text(ns));
        }
        out.text("protocol", &self.protocol);
        out.end()
    }
}

impl Operation {
    fn to_text(&self) -> String {
        let mut out = Object::new();
        out.text("id", &self.id);
        out.text("producer", &self.producer);
        out.flag("first", self.first);
        out.flag("last", self.last);
        out.end()
    }
}

impl SourceLocation {
    fn to_text(&self) -> String {
        let mut out = Object::new();
        out.text("file", &self.file);
        out.int64("line", self.line);
        out.text("function", &self.function);
        out.end()
    }
}

/// 24 hex digits: seconds, microseconds, chance. Sorts by time. Source: insert ids of Cloud Run's entries.
pub fn insert_id(at: Timestamp, chance: u32) -> String {
    let us = at.0.rem_euclid(1_000_000);
    format!("{:08x}{us:08x}{chance:08x}", at.unix_s() & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_no_more_digits_than_it_takes() {
        for text in [
            "2026-05-07T01:20:11Z",
            "2026-05-07T01:20:11.120Z",
            "2026-05-07T01:20:11.123400Z",
            "2026-05-07T01:20:11.123456789Z",
            "1969-12-31T23:59:59.999999999Z",
        ] {
            assert_eq!(LogTime::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(LogTime::parse("2026-05-07"), LogTime::parse("2026-05-07T09:00:00+09:00"));
        assert_eq!(LogTime::parse("2026-05-07T01:20"), None, "a time without a zone is no instant");
        assert_eq!(LogTime::parse("soon"), None);
    }

    #[test]
    fn a_latency_is_seconds_with_a_unit() {
        let cases =
            [(12_000_000, "0.012s"), (2_602_287_838, "2.602287838s"), (3_000_000_000, "3s"), (1_500, "0.000001500s")];
        for (ns, text) in cases {
            assert_eq!(duration_text(ns), text);
        }
    }

    #[test]
    fn any_text_survives_being_quoted() {
        for text in
            ["", "plain", "a \"quote\"", "back\\slash", "line\nfeed\t\u{1}", "Wörld \u{2028} \u{1f600}", "\u{7f}"]
        {
            let mut out = String::new();
            quote(text, &mut out);
            assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), text);
        }
    }

    #[test]
    fn a_log_name_carries_its_id_encoded() {
        let name = LogName::in_project("p", "run.googleapis.com/varlog/system");
        assert_eq!(name.to_string(), "projects/p/logs/run.googleapis.com%2Fvarlog%2Fsystem");
        assert_eq!(LogName::parse(&name.to_string()), Some(name));
        assert_eq!(percent_decode("100%"), "100%");
    }

    #[test]
    fn severities_are_named_in_any_case_or_numbered() {
        for s in Severity::ALL {
            assert_eq!(s.as_str().to_lowercase().parse(), Ok(s));
            assert_eq!(s.number().to_string().parse(), Ok(s));
        }
        assert_eq!("FATAL".parse::<Severity>(), Err(SeverityError));
    }
}
