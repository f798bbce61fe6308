//! What every resource of the Compute API has in common on the wire: how its fields are read, and which the server adds.
//!
//! Start with [`Wire`]. A body is read over all of its fields, also for a patch: the patch is laid over the resource as
//! it is shown, and the whole is read again.

use std::net::Ipv4Addr;

use aws_lc_rs::digest;
use control::{
    kind::{Kind, Record},
    world::World,
};
use identity::base64::{self, Form};
use model::{
    cidr::Cidr,
    fault::{Code, Fault},
    name::{Link, ProjectId, SELF_LINK_ROOT, Scope, is_resource_name},
};
use serde_json::{Map, Value, json};

use super::verbs::{Policies, Visit};
use crate::{
    call::{Answer, Query},
    error, schema,
    support::Admitted,
};

pub(super) type Json = Map<String, Value>;

/// The form of a Compute resource in requests and answers.
pub(super) trait Wire: Kind {
    const SCHEMA: schema::Kind;
    const LEVEL: Level;
    /// The permissions to see one, to see which there are, and to change labels (where there are any).
    const GET: &'static str;
    const LIST: &'static str;
    const SET_LABELS: Option<&'static str> = None;
    const POLICIES: Option<Policies> = None;
    /// How strictly a change must name the state it starts from.
    const LOCK: Lock = Lock::None;
    /// Which of `PATCH` and `PUT` there are, as the type of their operations.
    const PATCH: Option<&'static str> = None;
    const UPDATE: Option<&'static str> = None;
    /// What the operations of creating and deleting one are called.
    const INSERT: &'static str = "insert";
    const DELETE: &'static str = "delete";

    /// Reads what a client wrote. Output-only fields are not looked at.
    fn read(fields: &Fields<'_>) -> Result<Self, Fault>;

    /// Adds what is special to this kind; [`show`] adds the rest.
    fn write(record: &Record<Self>, world: &World, out: &mut Json);

    /// Fields that are shown when nobody said anything about them.
    fn defaults(_record: &Record<Self>) -> Json {
        Map::new()
    }

    /// Carries over from `before` what a change keeps although the wire does not show it, and refuses what only a verb
    /// of its own may change.
    fn follow(&mut self, _before: &Self) -> Result<(), Fault> {
        Ok(())
    }

    /// Makes the shown resource ready for a patch to be laid over it.
    fn align(_shown: &mut Json, _patch: &Json) {}

    /// What a query parameter of `get` adds.
    fn embellish(_query: &Query, _record: &Record<Self>, _world: &World, _shown: &mut Json) -> Result<(), Fault> {
        Ok(())
    }

    /// A method of this kind alone.
    fn verb(_visit: &Visit<'_>, _link: &Link, _verb: &str) -> Answer {
        Err(error::unknown_method())
    }

    /// Something to read below a resource of this kind alone.
    fn part(_visit: &Visit<'_>, _link: &Link, _part: &str) -> Answer {
        Err(error::unknown_method())
    }

    /// The refusal of a resource that is not there.
    fn absent(link: &Link) -> Fault {
        Fault::not_found(link)
    }

    /// The type of the operation that creates one.
    fn insert_verb(&self) -> &'static str {
        Self::INSERT
    }

    /// The type of the operation that deletes one.
    fn delete_verb(&self) -> &'static str {
        Self::DELETE
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Global,
    Region,
    Zone,
}

impl Level {
    pub(super) fn matches(self, scope: &Scope) -> bool {
        match (self, scope) {
            (Level::Global, Scope::Global) | (Level::Region, Scope::Region(_)) | (Level::Zone, Scope::Zone(_)) => true,
            (Level::Global | Level::Region | Level::Zone, _) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// The kind has no fingerprint.
    None,
    /// A fingerprint must fit when it is sent.
    Checked,
    /// A change without a fingerprint is refused.
    Required,
}

// ---- showing ----

/// A resource as the API shows it.
pub(super) fn show<K: Wire>(record: &Record<K>, world: &World) -> Json {
    let link = &record.link;
    let mut out = Map::new();
    out.insert("kind".into(), format!("compute#{}", K::WIRE_KIND).into());
    out.insert("id".into(), record.id.to_string().into());
    out.insert("creationTimestamp".into(), record.created.rfc3339_pacific_ms().into());
    out.insert("name".into(), link.name.clone().into());
    K::write(record, world, &mut out);
    if K::SET_LABELS.is_some() {
        if !record.labels.is_empty() {
            out.insert("labels".into(), json!(record.labels));
        }
        out.insert("labelFingerprint".into(), label_fingerprint(record).into());
    }
    if K::LOCK != Lock::None {
        out.insert("fingerprint".into(), fingerprint(record).into());
    }
    match &link.scope {
        Scope::Global => {}
        Scope::Region(_) => {
            out.insert("region".into(), link.scope_url().into());
        }
        Scope::Zone(_) => {
            out.insert("zone".into(), link.scope_url().into());
        }
    }
    out.insert("selfLink".into(), link.url().into());
    let shown = Admitted::shown(out, &record.inert);
    Admitted::shown(shown, &K::defaults(record))
}

/// The self link whose last segment is the number of this incarnation.
pub(super) fn url_with_id<K: Kind>(record: &Record<K>) -> String {
    Link { name: record.id.to_string(), ..record.link.clone() }.url()
}

pub(super) fn put_some(out: &mut Json, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        out.insert(name.to_owned(), value.into());
    }
}

/// JSON merge: objects field by field, null clears, anything else replaces.
pub(super) fn lay_over(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                match value {
                    Value::Null => {
                        below.remove(name);
                    }
                    value => lay_over(below.entry(name.clone()).or_insert(Value::Null), value),
                }
            }
        }
        (below, above) => *below = above.clone(),
    }
}

// ---- fingerprints ----

/// Changes with every change of the resource.
pub(super) fn fingerprint<K: Kind>(record: &Record<K>) -> String {
    digest_of(&format!("{}/{}", record.id, record.generation))
}

pub(super) fn label_fingerprint<K: Kind>(record: &Record<K>) -> String {
    digest_of(&format!("labels/{}/{}", record.id, record.label_generation))
}

/// Eight opaque bytes that stand for a text.
pub(super) fn digest_of(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    base64::encode(Form::Standard, &digest.as_ref()[..8])
}

/// Whether two fingerprints are the same bytes: gcloud sends back the URL-safe alphabet.
pub(super) fn same_fingerprint(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    plain(one) == plain(other)
}

pub(super) fn stale(message: &str) -> Fault {
    Fault::new(Code::ConditionNotMet, "conditionNotMet", message)
}

// ---- reading ----

/// What reading a body may look at beside the body.
pub(super) struct Around<'a> {
    pub world: &'a World,
    /// The resource that is read.
    pub link: &'a Link,
}

/// The fields of an object in a request body, with the path that error messages name.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    map: &'a Json,
    /// Ends in a dot, unless it is empty.
    path: String,
    pub around: &'a Around<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Json, around: &'a Around<'a>) -> Fields<'a> {
        Fields { map, path: String::new(), around }
    }

    pub(super) fn world(&self) -> &'a World {
        self.around.world
    }

    /// What a link refers to, within the project itself: what stands elsewhere is not looked at before it is known that
    /// the caller may.
    pub(super) fn own<K: Kind>(&self, link: &Link) -> Option<&'a Record<K>> {
        if link.project == self.around.link.project { self.around.world.get::<K>(link) } else { None }
    }

    pub(super) fn fault(&self, name: &str, value: &str, why: &str) -> Fault {
        Fault::invalid_value(&format!("{}{name}", self.path), value, why)
    }

    pub(super) fn required(&self, name: &str) -> Fault {
        Fault::required(&format!("{}{name}", self.path))
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A text; the empty text counts as absent, as everywhere in proto JSON.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(self.fault(name, &other.to_string(), "Must be a string.")),
        }
    }

    /// A text in which the empty one means something other than none.
    pub(super) fn written(&self, name: &str) -> Option<String> {
        self.get(name).and_then(Value::as_str).map(str::to_owned)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.fault(name, &other.to_string(), "Must be true or false.")),
        }
    }

    /// A whole number; int64 and uint64 may come as text.
    pub(super) fn number<N: TryFrom<u64>>(&self, name: &str) -> Result<Option<N>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) | Value::Null => None,
        };
        let number = number.and_then(|n| N::try_from(n).ok());
        number.map(Some).ok_or_else(|| self.fault(name, &bare(value), "Must be a number in the valid range."))
    }

    pub(super) fn fraction(&self, name: &str) -> Result<Option<f64>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.fault(name, &bare(value), "Must be a number."))
    }

    /// One of a closed set of words.
    pub(super) fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Fault> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(self.fault(name, text, "The value is not supported here.")),
        }
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { map, path: format!("{}{name}.", self.path), around: self.around }))
            }
            Some(other) => Err(self.fault(name, &other.to_string(), "Must be an object.")),
        }
    }

    fn items(&self, name: &str) -> Result<&'a [Value], Fault> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.fault(name, &other.to_string(), "Must be a list.")),
        }
    }

    pub(super) fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Fault> {
        let fields = |(i, item): (usize, &'a Value)| match item {
            Value::Object(map) => Ok(Fields { map, path: format!("{}{name}[{i}].", self.path), around: self.around }),
            other => Err(self.fault(&format!("{name}[{i}]"), &other.to_string(), "Must be an object.")),
        };
        self.items(name)?.iter().enumerate().map(fields).collect()
    }

    /// A list of texts, each with its place for messages.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>, Fault> {
        let text = |(i, item): (usize, &'a Value)| {
            item.as_str().ok_or_else(|| self.fault(&format!("{name}[{i}]"), &item.to_string(), "Must be a string."))
        };
        self.items(name)?.iter().enumerate().map(text).collect()
    }

    /// A reference to a resource, in any spelling.
    pub(super) fn link(&self, name: &str) -> Result<Option<Link>, Fault> {
        self.text(name)?.map(|text| self.parse_link(name, text)).transpose()
    }

    pub(super) fn required_link(&self, name: &str) -> Result<Link, Fault> {
        self.link(name)?.ok_or_else(|| self.required(name))
    }

    pub(super) fn links(&self, name: &str) -> Result<Vec<Link>, Fault> {
        let texts = self.texts(name)?;
        texts.iter().enumerate().map(|(i, text)| self.parse_link(&format!("{name}[{i}]"), text)).collect()
    }

    fn parse_link(&self, field: &str, text: &str) -> Result<Link, Fault> {
        parse_link(text, &self.around.link.project, self.world())
            .ok_or_else(|| self.fault(field, text, "The URL is malformed."))
    }

    pub(super) fn address(&self, name: &str) -> Result<Option<Ipv4Addr>, Fault> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse::<Ipv4Addr>() {
            Ok(address) if !address.is_unspecified() => Ok(Some(address)),
            Ok(_) | Err(_) => Err(self.fault(name, text, "Must be a valid IP address.")),
        }
    }

    pub(super) fn cidr(&self, name: &str) -> Result<Option<Cidr>, Fault> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.fault(name, text, "Must be a CIDR address range."))
    }

    pub(super) fn cidrs(&self, name: &str) -> Result<Vec<Cidr>, Fault> {
        let parse = |(i, text): (usize, &&str)| {
            text.parse().map_err(|_| self.fault(&format!("{name}[{i}]"), text, "Must be a CIDR address range."))
        };
        self.texts(name)?.iter().enumerate().map(parse).collect()
    }

    /// The name of a new resource.
    pub(super) fn name(&self) -> Result<&'a str, Fault> {
        let name = self.text("name")?.ok_or_else(|| self.required("name"))?;
        if is_resource_name(name) {
            return Ok(name);
        }
        Err(self.fault("name", name, "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'"))
    }
}

/// A value without the quotes of a text.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Parses a reference: the project by id or number, the resource by name or number.
pub(super) fn parse_link(text: &str, home: &ProjectId, world: &World) -> Option<Link> {
    let path = match text.split_once("/compute/v1/").or_else(|| text.split_once("/compute/beta/")) {
        Some((_, path)) => path,
        None if text.contains("://") => return None,
        None => text,
    };
    let path = path.trim_start_matches('/');
    let by_number = path.strip_prefix("projects/").and_then(|rest| rest.split_once('/')).and_then(|(project, rest)| {
        let is_number = project.bytes().all(|b| b.is_ascii_digit());
        let project = is_number.then(|| world.project(project)).flatten()?;
        Some(format!("projects/{}/{rest}", project.id))
    });
    let mut link = Link::parse(by_number.as_deref().unwrap_or(path), home).ok()?;
    if let Some(name) = name_of_number(&link, world) {
        link.name = name;
    }
    Some(link)
}

/// The name of the resource that a link names by number.
pub(super) fn name_of_number(link: &Link, world: &World) -> Option<String> {
    let id: u64 = link.name.parse().ok()?;
    let first = Link { name: String::new(), ..link.clone() };
    let same = |l: &Link| (&l.project, &l.scope, &l.collection) == (&link.project, &link.scope, &link.collection);
    let siblings = world.objects.range(first..).take_while(|(l, _)| same(l));
    siblings.into_iter().find(|(_, object)| object.id().0 == id).map(|(l, _)| l.name.clone())
}

/// The URL of a project's region or zone, or of the project.
pub(super) fn url(path: impl std::fmt::Display) -> String {
    format!("{SELF_LINK_ROOT}{path}")
}
