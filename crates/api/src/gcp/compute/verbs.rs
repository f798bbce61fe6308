//! What every collection can do: insert, get, list, patch, update, delete, labels and policies.

use control::{
    kind::{Need, Record},
    ops::{self, Caller, Control, Draft},
    policies::Target,
    world::World,
};
use http::Method;
use identity::policy::Place;
use model::{
    fault::Fault,
    name::{Link, ProjectId, Scope},
};
use serde_json::{Map, Value};

use super::{
    catalogue, operation,
    wire::{
        Around, Fields, Json, Lock, Wire, fingerprint, label_fingerprint, lay_over, name_of_number, same_fingerprint,
        show, stale,
    },
};
use crate::{
    call::{Answer, Call},
    error::{self, Family},
    gcp::policy,
    list::{self, ListQuery, Listed},
    reply::Reply,
    schema::{self, Body},
    support::{self, Admitted},
};

/// Labels of one resource, and characters of a key or value. Source: Compute, "Requirements for labels".
const LABELS_MAX: usize = 64;
const LABEL_CHARS_MAX: usize = 63;

/// One call, in one scope of one project.
pub(super) struct Visit<'a> {
    pub control: &'a Control,
    pub call: &'a Call,
    pub caller: &'a Caller,
    pub project: &'a ProjectId,
    pub scope: Scope,
}

impl Visit<'_> {
    pub(super) fn collection<K: Wire>(&self, rest: &[&str]) -> Answer {
        if !K::LEVEL.matches(&self.scope) {
            return Err(error::unknown_method());
        }
        match (&self.call.method, rest) {
            (&Method::GET, []) => self.list::<K>(),
            (&Method::POST, []) => self.insert::<K>(),
            (&Method::GET, [name]) => self.get::<K>(&self.link::<K>(name)),
            (&Method::DELETE, [name]) => self.delete::<K>(&self.link::<K>(name)),
            (&Method::PATCH, [name]) => match K::PATCH {
                Some(verb) => self.patch::<K>(&self.link::<K>(name), verb),
                None => Err(error::unknown_method()),
            },
            (&Method::PUT, [name]) => match K::UPDATE {
                Some(verb) => self.update::<K>(&self.link::<K>(name), verb),
                None => Err(error::unknown_method()),
            },
            (&Method::POST, [name, "setLabels"]) => self.set_labels::<K>(&self.link::<K>(name)),
            (&Method::GET, [name, verb @ "getIamPolicy"]) | (&Method::POST, [name, verb @ "setIamPolicy"]) => {
                self.policy::<K>(&self.link::<K>(name), verb)
            }
            (&Method::POST, [name, "testIamPermissions"]) => {
                policy::test(self.control, self.call, self.caller, &self.link::<K>(name).to_string())
            }
            (&Method::GET, [name, part]) => K::part(self, &self.link::<K>(name), part),
            (&Method::POST, [name, verb]) => K::verb(self, &self.link::<K>(name), verb),
            _ => Err(error::unknown_method()),
        }
    }

    /// The resource a path names, by name or number.
    fn link<K: Wire>(&self, name: &str) -> Link {
        let link = Link::new(self.project, self.scope.clone(), K::COLLECTION, name);
        match name_of_number(&link, &self.control.read()) {
            Some(name) => Link { name, ..link },
            None => link,
        }
    }

    pub(super) fn allow(&self, world: &World, permission: &'static str, on: impl ToString) -> Result<(), Fault> {
        self.control.authorize_compute(world, self.caller, &[Need::on(permission, on)]).map(drop)
    }

    /// `requestId`: a repeat of it is answered with the first operation.
    pub(super) fn request_id(&self) -> Result<Option<String>, Fault> {
        let Some(id) = self.call.query.get("requestId").filter(|id| !id.is_empty()) else { return Ok(None) };
        let dashes = [8, 13, 18, 23];
        let is_uuid = id.len() == 36
            && id.bytes().enumerate().all(|(i, b)| if dashes.contains(&i) { b == b'-' } else { b.is_ascii_hexdigit() });
        if is_uuid && id.bytes().any(|b| b != b'0' && b != b'-') {
            return Ok(Some(id.to_ascii_lowercase()));
        }
        let why = "Must be a valid, non-zero UUID.";
        Err(Fault::invalid(format!("Invalid value for field 'requestId': '{id}'. {why}")))
    }

    /// A body of a method of its own, checked against its schema.
    pub(super) fn body(&self, name: &'static str) -> Result<Json, Fault> {
        let body = self.call.json()?;
        schema::check_body(Body::compute(name), &body)?;
        match body {
            Value::Object(map) => Ok(map),
            _ => Ok(Map::new()),
        }
    }

    // ---- reading ----

    fn get<K: Wire>(&self, link: &Link) -> Answer {
        let world = self.control.read();
        self.allow(&world, K::GET, link)?;
        let record = world.get::<K>(link).ok_or_else(|| K::absent(link))?;
        let mut shown = show(record, &world);
        K::embellish(&self.call.query, record, &world, &mut shown)?;
        Ok(Reply::json(shown.into()))
    }

    fn list<K: Wire>(&self) -> Answer {
        let world = self.control.read();
        self.allow(&world, K::LIST, format!("projects/{}", self.project))?;
        let query = ListQuery::parse(&self.call.query, K::SCHEMA.body())?;
        let first = Link::new(self.project, self.scope.clone(), K::COLLECTION, "");
        let same =
            |l: &Link| (&l.project, &l.scope, &l.collection) == (&first.project, &first.scope, &first.collection);
        let records = world.objects.range(first.clone()..).take_while(|(link, _)| same(link));
        let items = records.filter_map(|(_, object)| K::peek(object)).map(|r| Value::from(show(r, &world))).collect();
        let path = format!("projects/{}/{}/{}", self.project, self.scope, K::COLLECTION);
        Ok(Reply::json(list::list(&query, Listed { word: K::WIRE_KIND, path: &path }, items)))
    }

    pub(super) fn aggregated<K: Wire>(&self) -> Answer {
        let world = self.control.read();
        self.allow(&world, K::LIST, format!("projects/{}", self.project))?;
        let query = ListQuery::parse(&self.call.query, K::SCHEMA.body())?;
        let mine = world.all::<K>().filter(|record| record.link.project == *self.project);
        let items = mine.map(|r| (r.link.scope.clone(), Value::from(show(r, &world)))).collect();
        let path = format!("projects/{}/aggregated/{}", self.project, K::COLLECTION);
        let scopes = catalogue::scopes();
        Ok(Reply::json(list::aggregated(&query, Listed { word: K::WIRE_KIND, path: &path }, &scopes, items)))
    }

    // ---- writing ----

    fn insert<K: Wire>(&self) -> Answer {
        let body = self.call.json()?;
        schema::check(K::SCHEMA, &body)?;
        let labels = if K::SET_LABELS.is_some() { take_labels(&body)? } else { Default::default() };
        let admitted = support::admit(K::SCHEMA, body)?;
        let request_id = self.request_id()?;
        let draft = {
            let world = self.control.read();
            let unnamed = Link::new(self.project, self.scope.clone(), K::COLLECTION, "");
            let name = Fields::new(&admitted.effective, &Around { world: &world, link: &unnamed }).name()?.to_owned();
            let link = Link { name, ..unnamed };
            if let (false, Some(permission)) = (labels.is_empty(), K::SET_LABELS) {
                self.allow(&world, permission, &link)?;
            }
            let whole = Admitted::shown(admitted.effective.clone(), &admitted.inert);
            let spec = K::read(&Fields::new(&whole, &Around { world: &world, link: &link }))?;
            let verb = spec.insert_verb();
            Draft { link, labels, spec, inert: without_labels(admitted.inert), verb, request_id }
        };
        operation::reply(&self.control.insert(self.caller, draft)?)
    }

    fn delete<K: Wire>(&self, link: &Link) -> Answer {
        let request_id = self.request_id()?;
        let verb = self.control.read().get::<K>(link).map_or(K::DELETE, |record| record.spec.delete_verb());
        let call = ops::Call { caller: self.caller, verb, request_id: request_id.as_deref() };
        operation::reply(&self.control.delete::<K>(call, link)?)
    }

    /// Lays the body over the resource as it is shown, and reads the whole.
    fn patch<K: Wire>(&self, link: &Link, verb: &str) -> Answer {
        let body = self.call.json()?;
        schema::check(K::SCHEMA, &body)?;
        let admitted = support::admit(K::SCHEMA, body)?;
        self.change::<K>(link, verb, |world, record| {
            check_fingerprint(record, &admitted.effective)?;
            let mut whole = Map::new();
            K::write(record, world, &mut whole);
            let mut patch = admitted.effective.clone();
            patch.remove("name");
            K::align(&mut whole, &patch);
            let mut whole = Value::Object(whole);
            lay_over(&mut whole, &Value::Object(patch));
            let Value::Object(whole) = whole else { return Ok(()) };
            let mut spec = K::read(&Fields::new(&whole, &Around { world, link }))?;
            spec.follow(&record.spec)?;
            record.spec = spec;
            let mut inert = Value::Object(std::mem::take(&mut record.inert));
            lay_over(&mut inert, &Value::Object(without_labels(admitted.inert.clone())));
            if let Value::Object(inert) = inert {
                record.inert = inert;
            }
            Ok(())
        })
    }

    /// Replaces the whole resource by the body.
    fn update<K: Wire>(&self, link: &Link, verb: &str) -> Answer {
        let body = self.call.json()?;
        schema::check(K::SCHEMA, &body)?;
        let admitted = support::admit(K::SCHEMA, body)?;
        self.change::<K>(link, verb, |world, record| {
            check_fingerprint(record, &admitted.effective)?;
            let mut spec = K::read(&Fields::new(&admitted.effective, &Around { world, link }))?;
            spec.follow(&record.spec)?;
            record.spec = spec;
            record.inert = without_labels(admitted.inert.clone());
            Ok(())
        })
    }

    /// A change with the permissions of the kind's own update.
    pub(super) fn change<K: Wire>(
        &self,
        link: &Link,
        verb: &str,
        edit: impl Fn(&World, &mut Record<K>) -> Result<(), Fault>,
    ) -> Answer {
        let request_id = self.request_id()?;
        let call = ops::Call { caller: self.caller, verb, request_id: request_id.as_deref() };
        operation::reply(&self.control.change(call, link, edit)?)
    }

    /// A change by a verb that has a permission of its own, on the resource.
    pub(super) fn change_by<K: Wire>(
        &self,
        link: &Link,
        verb: &str,
        permission: &'static str,
        edit: impl Fn(&World, &mut Record<K>) -> Result<(), Fault>,
    ) -> Answer {
        self.change_by_needs(link, verb, |_: &K| vec![Need::on(permission, link)], edit)
    }

    /// A change by a verb whose permissions depend on what the resource refers to.
    pub(super) fn change_by_needs<K: Wire>(
        &self,
        link: &Link,
        verb: &str,
        needs: impl Fn(&K) -> Vec<Need>,
        edit: impl Fn(&World, &mut Record<K>) -> Result<(), Fault>,
    ) -> Answer {
        let request_id = self.request_id()?;
        let call = ops::Call { caller: self.caller, verb, request_id: request_id.as_deref() };
        operation::reply(&self.control.change_by(call, link, needs, edit)?)
    }

    fn set_labels<K: Wire>(&self, link: &Link) -> Answer {
        let Some(permission) = K::SET_LABELS else { return Err(error::unknown_method()) };
        let body = self.body("RegionSetLabelsRequest")?;
        let labels = take_labels(&Value::Object(body.clone()))?;
        let given = body.get("labelFingerprint").and_then(Value::as_str).unwrap_or("").to_owned();
        self.change_by::<K>(link, "setLabels", permission, |_, record| {
            // Whoever never saw labels has no fingerprint of them.
            let unseen = given.is_empty() && record.label_generation == 1;
            if !unseen && !same_fingerprint(&given, &label_fingerprint(record)) {
                return Err(stale("Labels fingerprint either invalid or resource labels have changed"));
            }
            record.labels = labels.clone();
            record.label_generation += 1;
            Ok(())
        })
    }

    // ---- policies ----

    fn policy<K: Wire>(&self, link: &Link, verb: &str) -> Answer {
        let Some(Policies { get, set }) = K::POLICIES else { return Err(error::unknown_method()) };
        let resource = &link.to_string();
        let denied = &|need: &Need| error::denied(Family::Compute, need.permission, &need.resource);
        let target = Target { resource, place: Place::Resource, get, set, denied };
        let exists = |world: &World| world.get::<K>(link).map(drop).ok_or_else(|| K::absent(link));
        policy::serve(self.control, self.call, self.caller, target, verb, exists)
    }
}

/// The permissions to read and write the policy of a kind's resources.
#[derive(Clone, Copy)]
pub(super) struct Policies {
    pub get: &'static str,
    pub set: &'static str,
}

fn check_fingerprint<K: Wire>(record: &Record<K>, body: &Json) -> Result<(), Fault> {
    let given = body.get("fingerprint").and_then(Value::as_str).filter(|text| !text.is_empty());
    match (K::LOCK, given) {
        (Lock::None, _) | (Lock::Checked, None) => Ok(()),
        (Lock::Required, None) => Err(Fault::required("fingerprint")),
        (Lock::Checked | Lock::Required, Some(given)) if same_fingerprint(given, &fingerprint(record)) => Ok(()),
        (Lock::Checked | Lock::Required, Some(_)) => Err(stale("Invalid fingerprint.")),
    }
}

/// The labels of a body, within their rules.
fn take_labels(body: &Value) -> Result<std::collections::BTreeMap<String, String>, Fault> {
    let Some(Value::Object(labels)) = body.get("labels") else { return Ok(Default::default()) };
    if labels.len() > LABELS_MAX {
        let why = format!("At most {LABELS_MAX} labels may be set.");
        return Err(Fault::invalid_value("labels", &labels.len().to_string(), &why));
    }
    let is_text = |text: &str| {
        let rest = |c: char| (c.is_alphabetic() && !c.is_uppercase()) || c.is_numeric() || c == '_' || c == '-';
        text.chars().count() <= LABEL_CHARS_MAX && text.chars().all(rest)
    };
    let mut all = std::collections::BTreeMap::new();
    for (key, value) in labels {
        let value = value.as_str().unwrap_or_default();
        if !key.starts_with(char::is_lowercase) || !is_text(key) {
            return Err(Fault::invalid_value(
                "labels",
                key,
                "Label keys must match '[\\p{Ll}\\p{Lo}][\\p{Ll}\\p{Lo}\\p{N}_-]{0,62}'.",
            ));
        }
        if !is_text(value) {
            return Err(Fault::invalid_value(
                "labels",
                value,
                "Label values must match '[\\p{Ll}\\p{Lo}\\p{N}_-]{0,63}'.",
            ));
        }
        all.insert(key.clone(), value.to_owned());
    }
    Ok(all)
}

/// Labels have a place of their own in a record.
fn without_labels(mut inert: Json) -> Json {
    inert.remove("labels");
    inert
}
