//! What we do with each legal field: obey it, show it back, or refuse it. Never accept it and ignore it.
//!
//! The tables in [`tables`] are the promise of `docs/compat.md`, which is generated from them. Refuses to check types
//! and names ([`crate::schema`] has done so before) and to know what values mean. Start with [`admit`].

pub mod tables;

use serde_json::{Map, Value};

use model::fault::Fault;

use crate::{
    gcp::run_v1::annotations,
    schema::{Kind, Schema, Type},
};
use tables::table;

/// What becomes of a field. A field without a row is refused unless its value says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Packets, identities or answers follow it. Covers everything below it.
    Effective,
    /// The server's own; what a client sends is dropped. Most such fields need no row: the schema says so.
    OutputOnly,
    /// Kept and shown back; it has nothing here that it could change, for the reason given.
    Inert(&'static str),
    /// As inert, for a field that has a place in the typed specs of `model` and goes there.
    Kept(&'static str),
    /// Effective, as far as this reason says.
    Within(&'static str),
    /// As inert, but only with one of these values, which describe how things are here anyway.
    Only(&'static [&'static str], &'static str),
}

/// The fields of a request, apart by what becomes of them. Lists keep their length on both sides, so that
/// [`Admitted::shown`] can lay one over the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admitted {
    pub effective: Map<String, Value>,
    pub inert: Map<String, Value>,
}

impl Admitted {
    /// What to show back: the rendered resource with the inert fields laid under it.
    pub fn shown(rendered: Map<String, Value>, inert: &Map<String, Value>) -> Map<String, Value> {
        let mut shown = rendered;
        lay_under(&mut shown, inert);
        shown
    }
}

/// Fields of `under` that `over` lacks, at every depth; positions of lists correspond.
fn lay_under(over: &mut Map<String, Value>, under: &Map<String, Value>) {
    for (name, below) in under {
        match over.get_mut(name) {
            None => {
                over.insert(name.clone(), below.clone());
            }
            Some(above) => lay_value_under(above, below),
        }
    }
}

fn lay_value_under(over: &mut Value, under: &Value) {
    match (over, under) {
        (Value::Object(over), Value::Object(under)) => lay_under(over, under),
        (Value::Array(over), Value::Array(under)) => {
            for (over, under) in over.iter_mut().zip(under) {
                lay_value_under(over, under);
            }
        }
        _ => {}
    }
}

/// Sorts the fields of a checked body.
///
/// # Errors
/// [`Fault::not_enforced`], naming every field that is set and that we would not obey.
pub fn admit(kind: Kind, body: Value) -> Result<Admitted, Fault> {
    let body_type = kind.body();
    let Value::Object(fields) = body else { return Ok(Admitted::default()) };
    let mut sorter = Sorter { schema: body_type.schema, table: table(kind), refused: Vec::new() };
    let admitted = sorter.object(body_type.name, "", fields);
    if sorter.refused.is_empty() { Ok(admitted) } else { Err(Fault::not_enforced(&sorter.refused.join("', '"))) }
}

/// Whether a value says no more than leaving the field out would.
pub fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_default),
    }
}

/// A table row's path and what it says.
pub type Rows = &'static [(&'static str, Row)];

fn row(table: Rows, path: &str) -> Option<Row> {
    table.iter().find(|(p, _)| *p == path).map(|(_, row)| *row)
}

fn has_rows_below(table: Rows, path: &str) -> bool {
    table.iter().any(|(p, _)| p.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

struct Sorter {
    schema: Schema,
    table: Rows,
    refused: Vec<String>,
}

impl Sorter {
    fn object(&mut self, name: &str, prefix: &str, fields: Map<String, Value>) -> Admitted {
        let known = self.schema.fields(name);
        let mut out = Admitted::default();
        for (field, value) in fields {
            let path = if prefix.is_empty() { field.clone() } else { format!("{prefix}.{field}") };
            let spec = known.and_then(|known| known.get(&field));
            match row(self.table, &path) {
                Some(Row::Effective | Row::Kept(_) | Row::Within(_)) => {
                    out.effective.insert(field, value);
                }
                Some(Row::OutputOnly) => {}
                Some(Row::Inert(_)) => {
                    out.inert.insert(field, value);
                }
                Some(Row::Only(values, _)) if values.contains(&text(&value).as_str()) => {
                    out.inert.insert(field, value);
                }
                None if spec.is_some_and(|spec| spec.output_only) => {}
                None if has_rows_below(self.table, &path) => {
                    if let Some(spec) = spec {
                        self.below(&spec.ty, &path, field, value, &mut out);
                    }
                }
                Some(Row::Only(..)) | None => {
                    if !is_default(&value) && !self.refused.contains(&path) {
                        self.refused.push(path);
                    }
                }
            }
        }
        out
    }

    /// Sorts an object, or each object of a list, whose fields have rows of their own.
    fn below(&mut self, ty: &Type, path: &str, field: String, value: Value, out: &mut Admitted) {
        match (ty, value) {
            (Type::Object(name), Value::Object(fields)) => {
                let below = self.object(name, path, fields);
                out.effective.insert(field.clone(), below.effective.into());
                if !below.inert.is_empty() {
                    out.inert.insert(field, below.inert.into());
                }
            }
            (Type::List(item), Value::Array(items)) => {
                let Type::Object(name) = &**item else { return };
                let below: Vec<Admitted> = items
                    .into_iter()
                    .map(|item| match item {
                        Value::Object(fields) => self.object(name, path, fields),
                        _ => Admitted::default(),
                    })
                    .collect();
                let some_inert = below.iter().any(|item| !item.inert.is_empty());
                let (effective, inert): (Vec<Value>, Vec<Value>) =
                    below.into_iter().map(|item| (item.effective.into(), item.inert.into())).unzip();
                out.effective.insert(field.clone(), effective.into());
                if some_inert {
                    out.inert.insert(field, inert.into());
                }
            }
            // Null, which is an unset field.
            _ => {}
        }
    }
}

/// A scalar as its text.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

// ---- the document ----

/// `docs/compat.md`.
pub fn compat_markdown() -> String {
    let mut out = String::from(
        "# What tombolo obeys\n\n\
         Generated from the tables in `crates/api/src/support/tables.rs` and `crates/api/src/gcp/run_v1/annotations.rs`; do \
         not edit.\n\n\
         Every field of Google's API that is not obeyed is either *shown back* (there is nothing here that it could \
         change) or *refused* with 501 as soon as it is set to something. Nothing is accepted and then ignored. Unknown \
         fields are refused with 400, as Google does.\n",
    );
    for kind in Kind::COMPUTE {
        out.push_str(&section(kind.collection(), kind));
    }
    out.push_str(&section("Cloud Run services, v1", Kind::RunServiceV1));
    out.push_str(&annotations_section("Annotations of a Cloud Run service", annotations::OF_SERVICE));
    out.push_str(&annotations_section("Annotations of a Cloud Run revision template", annotations::OF_TEMPLATE));
    out.push_str(&section("Cloud Run services, v2", Kind::RunServiceV2));
    out.push_str(NAMES);
    out
}

/// The two APIs that have no table: what is in them is little.
const NAMES: &str = "
## Service Directory v1

| Field | What becomes of it |
|---|---|
| `namespaceId`, `serviceId`, `endpointId` | obeyed |
| `endpoint.address` | obeyed, but IPv4 only |
| `endpoint.network` | obeyed |
| `endpoint.port` | shown back: whoever resolves reads it |
| `endpoint.annotations`, `service.annotations` | shown back: whoever resolves reads them |
| `namespace.labels` | shown back: nothing selects by labels |

Refused: `filter`, `orderBy`, `endpointFilter`, changes of `namespace.labels`, policies of namespaces and services. v1beta1
is not served. What a forwarding rule registered is changed and deleted by nobody but with it.

## Cloud DNS v1

`managedZones.list`, `managedZones.get` and `resourceRecordSets.list` show the zones that endpoints of Private Service
Connect brought. Refused: making, changing and deleting zones and records, policies, response policies.
";

/// Annotations of Google's that stand in no table are refused; those of others are kept for whoever wrote them.
fn annotations_section(title: &str, table: Rows) -> String {
    let mut out = format!("\n## {title}\n\n| Annotation | What becomes of it |\n|---|---|\n");
    for (name, row) in table {
        if let Some(what) = what_becomes(*row) {
            out.push_str(&format!("| `{name}` | {what} |\n"));
        }
    }
    out.push_str("\nRefused: all others of Google's. Annotations of other origin are shown back.\n");
    out
}

/// None: the field is the server's own.
fn what_becomes(row: Row) -> Option<String> {
    match row {
        Row::Effective => Some("obeyed".to_owned()),
        Row::Within(why) => Some(format!("obeyed, but {why}")),
        Row::Inert(why) | Row::Kept(why) => Some(format!("shown back: {why}")),
        Row::Only(values, why) => Some(format!("only `{}`: {why}", values.join("`, `"))),
        Row::OutputOnly => None,
    }
}

fn section(title: &str, kind: Kind) -> String {
    let body = kind.body();
    let mut lines = Lines { schema: body.schema, table: table(kind), rows: String::new(), refused: Vec::new() };
    lines.object(body.name, "");
    let mut out = format!("\n## {title}\n\n| Field | What becomes of it |\n|---|---|\n{}", lines.rows);
    if !lines.refused.is_empty() {
        out.push_str(&format!("\nRefused: {}.\n", lines.refused.join(", ")));
    }
    out
}

struct Lines {
    schema: Schema,
    table: Rows,
    rows: String,
    refused: Vec<String>,
}

impl Lines {
    fn object(&mut self, name: &str, prefix: &str) {
        let Some(fields) = self.schema.fields(name) else { return };
        for (field, spec) in fields {
            let path = if prefix.is_empty() { field.clone() } else { format!("{prefix}.{field}") };
            let what = match row(self.table, &path) {
                Some(row) => match what_becomes(row) {
                    Some(what) => what,
                    None => continue,
                },
                None if spec.output_only => continue,
                None if has_rows_below(self.table, &path) => {
                    match &spec.ty {
                        Type::Object(name) => self.object(name, &path),
                        Type::List(item) => {
                            if let Type::Object(name) = &**item {
                                self.object(name, &path);
                            }
                        }
                        _ => {}
                    }
                    continue;
                }
                None => {
                    self.refused.push(format!("`{path}`"));
                    continue;
                }
            };
            self.rows.push_str(&format!("| `{path}` | {what} |\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn every_row_names_a_field_that_exists() {
        for kind in Kind::COMPUTE.into_iter().chain([Kind::RunServiceV1, Kind::RunServiceV2]) {
            let body = kind.body();
            for (path, _) in table(kind) {
                let mut ty = Type::Object(body.name.to_owned());
                for name in path.split('.') {
                    let item = if let Type::List(item) = ty { *item } else { ty };
                    let Type::Object(object) = item else { panic!("{kind:?}: {path} goes below a scalar") };
                    let field = body.schema.fields(&object).unwrap().get(name);
                    ty = field.unwrap_or_else(|| panic!("{kind:?} has no {path}")).ty.clone();
                }
            }
        }
    }

    #[test]
    fn no_row_hides_another() {
        for kind in Kind::COMPUTE.into_iter().chain([Kind::RunServiceV1, Kind::RunServiceV2]) {
            for (path, _) in table(kind) {
                assert!(!has_rows_below(table(kind), path), "{kind:?}: {path} covers what is below it");
                assert_eq!(table(kind).iter().filter(|(p, _)| p == path).count(), 1, "{kind:?}: {path} twice");
            }
        }
    }

    #[test]
    fn fields_go_where_the_table_says() {
        let body = json!({
            "kind": "compute#backendService", "id": "1", "selfLink": "s", "name": "b", "timeoutSec": 30,
            "fingerprint": "AA==", "enableCDN": false, "healthChecks": [], "iap": {"enabled": false},
            "sessionAffinity": "NONE",
            "backends": [{"group": "g", "balancingMode": "UTILIZATION", "failover": false}, {"group": "h"}],
        });
        let admitted = admit(Kind::BackendService, body).unwrap();
        assert_eq!(
            Value::from(admitted.effective),
            json!({"name": "b", "timeoutSec": 30, "fingerprint": "AA==", "backends": [{"group": "g"}, {"group": "h"}]})
        );
        assert_eq!(
            Value::from(admitted.inert),
            json!({"sessionAffinity": "NONE", "backends": [{"balancingMode": "UTILIZATION"}, {}]})
        );
    }

    #[test]
    fn a_legal_field_that_we_would_not_obey_is_refused_by_name() {
        for (kind, body, field) in [
            (Kind::Network, json!({"enableUlaInternalIpv6": true}), "enableUlaInternalIpv6"),
            (Kind::Subnetwork, json!({"stackType": "IPV4_IPV6"}), "stackType"),
            (Kind::Firewall, json!({"logConfig": {"enable": true}}), "logConfig"),
            (
                Kind::UrlMap,
                json!({"pathMatchers": [{"name": "m", "routeRules": [{"priority": 1}]}]}),
                "pathMatchers.routeRules",
            ),
            (
                Kind::BackendService,
                json!({"enableCDN": true, "outlierDetection": {"consecutiveErrors": 5}}),
                "enableCDN', 'outlierDetection",
            ),
            (
                Kind::ServiceAttachment,
                json!({"consumerAcceptLists": [{"endpointUrl": "e"}]}),
                "consumerAcceptLists.endpointUrl",
            ),
        ] {
            assert_eq!(admit(kind, body), Err(Fault::not_enforced(field)), "{field}");
        }
    }

    #[test]
    fn an_explicit_empty_value_of_an_obeyed_field_survives() {
        let admitted = admit(Kind::ServiceAttachment, json!({"consumerAcceptLists": [], "description": ""})).unwrap();
        assert_eq!(Value::from(admitted.effective), json!({"consumerAcceptLists": [], "description": ""}));
    }

    #[test]
    fn inert_fields_are_shown_under_the_rendered_ones() {
        let rendered = object(json!({"name": "b", "backends": [{"group": "g"}]}));
        let inert = object(
            json!({"name": "x", "sessionAffinity": "NONE", "backends": [{"balancingMode": "RATE"}, {"description": "gone"}]}),
        );
        assert_eq!(
            Value::from(Admitted::shown(rendered, &inert)),
            json!({"name": "b", "backends": [{"group": "g", "balancingMode": "RATE"}], "sessionAffinity": "NONE"})
        );
    }

    /// `GOLDEN=accept cargo test -p api compat` rewrites the document.
    #[test]
    fn the_compatibility_document_says_what_the_tables_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compat.md");
        if std::env::var_os("GOLDEN").is_some_and(|v| v == "accept") {
            std::fs::write(&path, compat_markdown()).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == compat_markdown(),
            "docs/compat.md is stale: run this test with GOLDEN=accept and read the diff"
        );
    }
}
