//! Which fields an entry has, their types, and how a written path becomes a place in the JSON of an entry.
//!
//! Names of the schema may be written in camelCase or snake_case and in any case; keys of labels and of `jsonPayload`
//! must match exactly. Source: Logging query language, "Field path identifiers".

use serde_json::Value;

/// What a field holds, and so how a comparison reads its right side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Bool,
    Severity,
    Duration,
    Timestamp,
    /// A field without a value of its own; only its presence can be asked for.
    Object,
    /// Whatever JSON is there.
    Dynamic,
}

/// What a comparison with a field that is not there means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// Every comparison is false, `!=` too.
    Missing,
    /// As if the default of its type were there.
    Defaulted,
}

/// A path that was found in the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// As in the JSON form.
    pub(super) steps: Vec<Step>,
    pub(super) kind: Kind,
    pub(super) absent: Absent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Exact(String),
    /// A field of a protobuf we have no schema of: compared as [`relaxed`].
    Relaxed(String),
}

enum Node {
    Leaf(Kind),
    /// A union's member: absent means missing.
    Payload(Kind),
    Message(&'static [(&'static str, Node)]),
    /// String keys, string values.
    Labels,
    Struct,
    Proto,
}

use Kind::{Bool, Duration, Number, Text, Timestamp};

/// LogEntry, v2.
const ENTRY: &[(&str, Node)] = &[
    ("logName", Node::Leaf(Text)),
    ("resource", Node::Message(&[("type", Node::Leaf(Text)), ("labels", Node::Labels)])),
    ("timestamp", Node::Leaf(Timestamp)),
    ("receiveTimestamp", Node::Leaf(Timestamp)),
    ("severity", Node::Leaf(Kind::Severity)),
    ("insertId", Node::Leaf(Text)),
    ("httpRequest", Node::Message(HTTP_REQUEST)),
    ("labels", Node::Labels),
    ("metadata", Node::Message(&[("systemLabels", Node::Struct), ("userLabels", Node::Labels)])),
    (
        "operation",
        Node::Message(&[
            ("id", Node::Leaf(Text)),
            ("producer", Node::Leaf(Text)),
            ("first", Node::Leaf(Bool)),
            ("last", Node::Leaf(Bool)),
        ]),
    ),
    ("trace", Node::Leaf(Text)),
    ("spanId", Node::Leaf(Text)),
    ("traceSampled", Node::Leaf(Bool)),
    (
        "sourceLocation",
        Node::Message(&[("file", Node::Leaf(Text)), ("line", Node::Leaf(Number)), ("function", Node::Leaf(Text))]),
    ),
    (
        "split",
        Node::Message(&[("uid", Node::Leaf(Text)), ("index", Node::Leaf(Number)), ("totalSplits", Node::Leaf(Number))]),
    ),
    ("errorGroups", Node::Message(&[("id", Node::Leaf(Text))])),
    ("textPayload", Node::Payload(Text)),
    ("jsonPayload", Node::Struct),
    ("protoPayload", Node::Proto),
];

const HTTP_REQUEST: &[(&str, Node)] = &[
    ("requestMethod", Node::Leaf(Text)),
    ("requestUrl", Node::Leaf(Text)),
    ("requestSize", Node::Leaf(Number)),
    ("status", Node::Leaf(Number)),
    ("responseSize", Node::Leaf(Number)),
    ("userAgent", Node::Leaf(Text)),
    ("remoteIp", Node::Leaf(Text)),
    ("serverIp", Node::Leaf(Text)),
    ("referer", Node::Leaf(Text)),
    ("latency", Node::Leaf(Duration)),
    ("cacheLookup", Node::Leaf(Bool)),
    ("cacheHit", Node::Leaf(Bool)),
    ("cacheValidatedWithOriginServer", Node::Leaf(Bool)),
    ("cacheFillBytes", Node::Leaf(Number)),
    ("protocol", Node::Leaf(Text)),
];

/// The form in which spellings of a schema name are equal.
pub(super) fn relaxed(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

fn child(fields: &'static [(&'static str, Node)], name: &str) -> Option<&'static (&'static str, Node)> {
    let name = relaxed(name);
    fields.iter().find(|(known, _)| relaxed(known) == name)
}

/// Finds a path. The error is the part that is no field.
pub(super) fn resolve(path: &[String]) -> Result<Field, String> {
    let mut steps = Vec::new();
    let mut level = ENTRY;
    for (depth, name) in path.iter().enumerate() {
        let (known, node) = child(level, name).ok_or_else(|| path.join("."))?;
        steps.push(Step::Exact((*known).to_owned()));
        let rest = &path[depth + 1..];
        let exact = |rest: &[String]| rest.iter().cloned().map(Step::Exact).collect::<Vec<_>>();
        let (kind, absent, more) = match node {
            Node::Message(fields) => {
                level = fields;
                continue;
            }
            Node::Leaf(kind) if rest.is_empty() => (*kind, Absent::Defaulted, Vec::new()),
            Node::Payload(kind) if rest.is_empty() => (*kind, Absent::Missing, Vec::new()),
            Node::Leaf(_) | Node::Payload(_) => return Err(path.join(".")),
            Node::Labels | Node::Struct | Node::Proto if rest.is_empty() => (Kind::Object, Absent::Missing, Vec::new()),
            // A label is a text and has no fields. A key with dots in it must be quoted.
            Node::Labels if rest.len() > 1 => return Err(path.join(".")),
            Node::Labels => (Kind::Text, Absent::Missing, exact(rest)),
            Node::Struct => (Kind::Dynamic, Absent::Missing, exact(rest)),
            Node::Proto => {
                let relax = rest.iter().map(|name| Step::Relaxed(relaxed(name))).collect();
                (Kind::Dynamic, Absent::Missing, relax)
            }
        };
        steps.extend(more);
        return Ok(Field { steps, kind, absent });
    }
    Ok(Field { steps, kind: Kind::Object, absent: Absent::Missing })
}

impl Field {
    /// Whether this is the entry's own timestamp.
    pub(super) fn is_timestamp(&self) -> bool {
        matches!(self.steps.as_slice(), [Step::Exact(name)] if name == "timestamp")
    }

    pub(super) fn last_key(&self) -> &str {
        match self.steps.last() {
            Some(Step::Exact(key) | Step::Relaxed(key)) => key,
            None => "",
        }
    }

    /// Whether `test` holds for any value at this place (lists are searched through); `None` if there is none at all.
    pub(super) fn any<'a>(&self, entry: &'a Value, test: &mut dyn FnMut(&'a Value) -> bool) -> Option<bool> {
        walk(entry, &self.steps, test)
    }
}

fn walk<'a>(value: &'a Value, steps: &[Step], test: &mut dyn FnMut(&'a Value) -> bool) -> Option<bool> {
    if let Value::Array(items) = value {
        let mut found = None;
        for item in items {
            match walk(item, steps, test) {
                Some(true) => return Some(true),
                Some(false) => found = Some(false),
                None => {}
            }
        }
        return found;
    }
    let Some((step, rest)) = steps.split_first() else { return Some(test(value)) };
    let object = value.as_object()?;
    let next = match step {
        Step::Exact(key) => object.get(key),
        Step::Relaxed(name) => object.iter().find(|(key, _)| relaxed(key) == *name).map(|(_, value)| value),
    };
    walk(next?, rest, test)
}
