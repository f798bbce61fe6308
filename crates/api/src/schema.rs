//! Which fields a request may have, and of which type: Google's own schemas, reduced to facts.
//!
//! Refuses to know what a field means; whether we obey it is the business of [`crate::support`]. The facts lie in
//! `schema/*.json`, made by `schema/reduce.py`. Start with [`check`].

use std::{collections::BTreeMap, fmt, sync::OnceLock};

use serde::Deserialize;
use serde_json::Value;

use model::fault::Fault;

use crate::{
    error,
    mask::{Mask, invalid_field_selection},
};

/// Violations told at once; a body with more is wrong enough.
const VIOLATIONS_MAX: usize = 32;

/// A resource whose fields are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Network,
    Subnetwork,
    Address,
    Firewall,
    NetworkEndpointGroup,
    BackendService,
    UrlMap,
    TargetHttpProxy,
    ForwardingRule,
    ServiceAttachment,
    Instance,
    RunServiceV1,
    RunServiceV2,
}

impl Kind {
    pub const COMPUTE: [Kind; 11] = [
        Kind::Network,
        Kind::Subnetwork,
        Kind::Address,
        Kind::Firewall,
        Kind::NetworkEndpointGroup,
        Kind::BackendService,
        Kind::UrlMap,
        Kind::TargetHttpProxy,
        Kind::ForwardingRule,
        Kind::ServiceAttachment,
        Kind::Instance,
    ];

    /// The collection in URLs.
    pub fn collection(self) -> &'static str {
        match self {
            Kind::Network => "networks",
            Kind::Subnetwork => "subnetworks",
            Kind::Address => "addresses",
            Kind::Firewall => "firewalls",
            Kind::NetworkEndpointGroup => "networkEndpointGroups",
            Kind::BackendService => "backendServices",
            Kind::UrlMap => "urlMaps",
            Kind::TargetHttpProxy => "targetHttpProxies",
            Kind::ForwardingRule => "forwardingRules",
            Kind::ServiceAttachment => "serviceAttachments",
            Kind::Instance => "instances",
            Kind::RunServiceV1 | Kind::RunServiceV2 => "services",
        }
    }

    /// The resource's word in `kind`: `compute#network`, `compute#networkList`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Network => "network",
            Kind::Subnetwork => "subnetwork",
            Kind::Address => "address",
            Kind::Firewall => "firewall",
            Kind::NetworkEndpointGroup => "networkEndpointGroup",
            Kind::BackendService => "backendService",
            Kind::UrlMap => "urlMap",
            Kind::TargetHttpProxy => "targetHttpProxy",
            Kind::ForwardingRule => "forwardingRule",
            Kind::ServiceAttachment => "serviceAttachment",
            Kind::Instance => "instance",
            Kind::RunServiceV1 | Kind::RunServiceV2 => "service",
        }
    }

    pub fn body(self) -> Body {
        match self {
            Kind::Network => Body::compute("Network"),
            Kind::Subnetwork => Body::compute("Subnetwork"),
            Kind::Address => Body::compute("Address"),
            Kind::Firewall => Body::compute("Firewall"),
            Kind::NetworkEndpointGroup => Body::compute("NetworkEndpointGroup"),
            Kind::BackendService => Body::compute("BackendService"),
            Kind::UrlMap => Body::compute("UrlMap"),
            Kind::TargetHttpProxy => Body::compute("TargetHttpProxy"),
            Kind::ForwardingRule => Body::compute("ForwardingRule"),
            Kind::ServiceAttachment => Body::compute("ServiceAttachment"),
            Kind::Instance => Body::compute("Instance"),
            Kind::RunServiceV1 => Body { schema: Schema::RunV1, name: "Service", root: "service" },
            Kind::RunServiceV2 => Body { schema: Schema::RunV2, name: "GoogleCloudRunV2Service", root: "service" },
        }
    }
}

/// A request body: its type, and the name under which messages speak of it (`resource` in Compute).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub schema: Schema,
    pub name: &'static str,
    pub root: &'static str,
}

impl Body {
    /// A body of Compute v1, such as `RegionSetLabelsRequest`.
    pub const fn compute(name: &'static str) -> Body {
        Body { schema: Schema::ComputeV1, name, root: "resource" }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    ComputeV1,
    RunV1,
    RunV2,
}

impl Schema {
    fn package(self) -> &'static str {
        match self {
            Schema::ComputeV1 => "google.cloud.compute.v1",
            Schema::RunV1 => "google.cloud.run.v1",
            Schema::RunV2 => "google.cloud.run.v2",
        }
    }

    fn types(self) -> &'static Types {
        static COMPUTE_V1: OnceLock<Types> = OnceLock::new();
        static RUN_V1: OnceLock<Types> = OnceLock::new();
        static RUN_V2: OnceLock<Types> = OnceLock::new();
        let (cell, text) = match self {
            Schema::ComputeV1 => (&COMPUTE_V1, include_str!("../schema/compute.v1.json")),
            Schema::RunV1 => (&RUN_V1, include_str!("../schema/run.v1.json")),
            Schema::RunV2 => (&RUN_V2, include_str!("../schema/run.v2.json")),
        };
        cell.get_or_init(|| {
            #[derive(Deserialize)]
            struct File {
                types: BTreeMap<String, BTreeMap<String, String>>,
            }
            let file: File = serde_json::from_str(text).expect("the schema files are compiled in and tested");
            let parse = |fields: BTreeMap<String, String>| {
                fields.into_iter().map(|(name, text)| (name, Field::parse(&text))).collect()
            };
            file.types.into_iter().map(|(name, fields)| (name, parse(fields))).collect()
        })
    }

    /// The fields of a type. `None` if the schema has no such type.
    pub fn fields(self, name: &str) -> Option<&'static BTreeMap<String, Field>> {
        self.types().get(name)
    }
}

type Types = BTreeMap<String, BTreeMap<String, Field>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub ty: Type,
    /// Only the server sets it; what a client sends is ignored.
    pub output_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    String,
    Bytes,
    Bool,
    /// Inclusive bounds, and the word of error messages.
    Int {
        min: i128,
        max: i128,
        word: &'static str,
    },
    Float {
        word: &'static str,
    },
    Any,
    Enum(Vec<String>),
    List(Box<Type>),
    Map(Box<Type>),
    /// Another type of the same schema.
    Object(String),
}

impl Field {
    /// The little language of `schema/reduce.py`.
    fn parse(text: &str) -> Field {
        match text.strip_suffix('!') {
            Some(text) => Field { ty: Type::parse(text), output_only: true },
            None => Field { ty: Type::parse(text), output_only: false },
        }
    }
}

impl Type {
    fn parse(text: &str) -> Type {
        let inside = |open, close| text.strip_prefix(open).and_then(|text: &str| text.strip_suffix(close));
        if let Some(item) = inside('[', ']') {
            return Type::List(Box::new(Type::parse(item)));
        }
        if let Some(item) = inside('{', '}') {
            return Type::Map(Box::new(Type::parse(item)));
        }
        if let Some(names) = text.strip_prefix("enum:") {
            return Type::Enum(names.split('|').map(str::to_owned).collect());
        }
        match text {
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "bool" => Type::Bool,
            "int32" => Type::Int { min: i32::MIN.into(), max: i32::MAX.into(), word: "TYPE_INT32" },
            "uint32" => Type::Int { min: 0, max: u32::MAX.into(), word: "TYPE_UINT32" },
            "int64" => Type::Int { min: i64::MIN.into(), max: i64::MAX.into(), word: "TYPE_INT64" },
            "uint64" => Type::Int { min: 0, max: u64::MAX.into(), word: "TYPE_UINT64" },
            "float" => Type::Float { word: "TYPE_FLOAT" },
            "double" => Type::Float { word: "TYPE_DOUBLE" },
            "any" => Type::Any,
            name => Type::Object(name.to_owned()),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Bool => f.write_str("bool"),
            Type::Int { word, .. } | Type::Float { word } => {
                f.write_str(&word.trim_start_matches("TYPE_").to_ascii_lowercase())
            }
            Type::Any => f.write_str("any"),
            Type::Enum(_) => f.write_str("enum"),
            Type::List(item) => write!(f, "[{item}]"),
            Type::Map(item) => write!(f, "{{{item}}}"),
            Type::Object(name) => f.write_str(name),
        }
    }
}

/// Checks the body of a request that creates or changes a `kind`.
///
/// # Errors
/// 400 with every violation: unknown fields, values of a wrong type, unknown enum values.
pub fn check(kind: Kind, value: &Value) -> Result<(), Fault> {
    check_body(kind.body(), value)
}

/// Checks any body.
///
/// # Errors
/// As [`check`].
pub fn check_body(body: Body, value: &Value) -> Result<(), Fault> {
    let mut checker = Checker { schema: body.schema, violations: Vec::new() };
    checker.value(
        &Type::Object(body.name.to_owned()),
        value,
        &Place { path: body.root.to_owned(), owner: "", field: "" },
    );
    let violations = checker.violations;
    if violations.is_empty() {
        return Ok(());
    }
    let message: Vec<&str> = violations.iter().map(|(_, why)| why.as_str()).collect();
    Err(Fault::invalid(message.join("\n")).with_detail(error::bad_request(&violations)))
}

/// Refuses a `fields` parameter that names a field which answers of this type cannot have.
///
/// # Errors
/// 400 `invalidParameter`, naming the first such field.
pub fn check_mask(body: Body, mask: &Mask) -> Result<(), Fault> {
    let unknown = mask.paths().into_iter().find(|path| {
        let names: Vec<String> = path.split('/').map(str::to_owned).collect();
        !has_path(body, &names)
    });
    unknown.map_or(Ok(()), |path| Err(invalid_field_selection(&path)))
}

/// Whether a resource of this type can have a value at `path`, looking through lists.
pub fn has_path(body: Body, path: &[String]) -> bool {
    let start = Type::Object(body.name.to_owned());
    path.iter().try_fold(start, |ty, name| step(body.schema, &ty, name)).is_some()
}

/// The type of `name` within `ty`, looking through lists.
fn step(schema: Schema, ty: &Type, name: &str) -> Option<Type> {
    match ty {
        Type::List(item) => step(schema, item, name),
        Type::Map(item) => Some((**item).clone()),
        Type::Object(_) if name == "*" => Some(Type::Any),
        Type::Object(object) => schema.fields(object)?.get(name).map(|field| field.ty.clone()),
        Type::Any => Some(Type::Any),
        Type::String | Type::Bytes | Type::Bool | Type::Int { .. } | Type::Float { .. } | Type::Enum(_) => None,
    }
}

/// Where a value stands: its path in a message, and the field it belongs to.
struct Place<'a> {
    path: String,
    owner: &'a str,
    field: &'a str,
}

struct Checker {
    schema: Schema,
    /// Path and description.
    violations: Vec<(String, String)>,
}

impl Checker {
    fn value(&mut self, ty: &Type, value: &Value, place: &Place<'_>) {
        // In proto JSON, null is an unset field of any type.
        if value.is_null() {
            return;
        }
        match ty {
            Type::Any => {}
            Type::String | Type::Bytes => self.expect(value.is_string(), value, place, || scalar(ty).into()),
            Type::Bool => self.expect(value.is_boolean(), value, place, || scalar(ty).into()),
            Type::Int { min, max, word } => {
                let fits = integer(value).is_some_and(|n| (*min..=*max).contains(&n));
                self.expect(fits, value, place, || (*word).into());
            }
            Type::Float { word } => {
                let is_number = value.is_number() || value.as_str().is_some_and(|text| text.parse::<f64>().is_ok());
                self.expect(is_number, value, place, || (*word).into());
            }
            Type::Enum(names) => {
                // Clients write "" for an enum they do not set.
                let known = value.as_str().is_some_and(|text| text.is_empty() || names.iter().any(|n| n == text));
                let package = self.schema.package();
                self.expect(known, value, place, || {
                    format!("type.googleapis.com/{package}.{}.{}", place.owner, upper_first(place.field))
                });
            }
            Type::List(item) => self.list(item, value, place),
            Type::Map(item) => self.map(item, value, place),
            Type::Object(name) => self.object(name, value, place),
        }
    }

    fn list(&mut self, item: &Type, value: &Value, place: &Place<'_>) {
        match value.as_array() {
            Some(items) => {
                for (n, value) in items.iter().enumerate() {
                    self.value(item, value, &Place { path: format!("{}[{n}]", place.path), ..*place });
                }
            }
            None => self.not_a_list(value, place),
        }
    }

    fn map(&mut self, item: &Type, value: &Value, place: &Place<'_>) {
        match value.as_object() {
            Some(entries) => {
                for (n, value) in entries.values().enumerate() {
                    self.value(item, value, &Place { path: format!("{}[{n}].value", place.path), ..*place });
                }
            }
            None => self.expect(false, value, place, || "Map".into()),
        }
    }

    fn object(&mut self, name: &str, value: &Value, place: &Place<'_>) {
        let Some(entries) = value.as_object() else {
            let package = self.schema.package();
            return self.expect(false, value, place, || format!("type.googleapis.com/{package}.{name}"));
        };
        let Some(fields) = self.schema.fields(name) else { return };
        for (key, value) in entries {
            match fields.get(key) {
                Some(field) => {
                    let path = format!("{}.{}", place.path, snake_case(key));
                    self.value(&field.ty, value, &Place { path, owner: name, field: key });
                }
                None => {
                    let at = &place.path;
                    let why =
                        format!("Invalid JSON payload received. Unknown name \"{key}\" at '{at}': Cannot find field.");
                    self.violation(at.clone(), why);
                }
            }
        }
    }

    fn not_a_list(&mut self, value: &Value, place: &Place<'_>) {
        let (at, field) = (&place.path, place.field);
        let why = match value {
            Value::Object(_) => format!(
                "Invalid JSON payload received. Unknown name \"{field}\" at '{at}': Proto field is not repeating, cannot start object."
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                format!("Invalid value at '{at}', {value}")
            }
        };
        self.violation(at.clone(), why);
    }

    fn expect(&mut self, holds: bool, value: &Value, place: &Place<'_>, ty: impl FnOnce() -> String) {
        if !holds {
            let shown: String = value.to_string().chars().take(200).collect();
            self.violation(place.path.clone(), format!("Invalid value at '{}' ({}), {shown}", place.path, ty()));
        }
    }

    fn violation(&mut self, path: String, why: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push((path, why));
        }
    }
}

fn scalar(ty: &Type) -> &'static str {
    match ty {
        Type::Bool => "TYPE_BOOL",
        Type::Bytes => "TYPE_BYTES",
        _ => "TYPE_STRING",
    }
}

/// An integer in proto JSON: a number without fraction, or its decimal text.
pub fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => {
            number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).or_else(|| {
                // 5.0 and 5e3 are integers; the text of a float is exact enough to tell.
                number
                    .as_f64()
                    .filter(|n| n.fract() == 0.0 && n.abs() < 9e15)
                    .and_then(|n| format!("{n:.0}").parse().ok())
            })
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Messages name fields as the proto does: `networkInterfaces` is `network_interfaces`.
fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut after_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && after_lower {
            out.push('_');
        }
        after_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn upper_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_that_a_schema_names_is_in_it() {
        fn names<'a>(ty: &'a Type, out: &mut Vec<&'a str>) {
            match ty {
                Type::List(item) | Type::Map(item) => names(item, out),
                Type::Object(name) => out.push(name),
                _ => {}
            }
        }
        for schema in [Schema::ComputeV1, Schema::RunV1, Schema::RunV2] {
            for (owner, fields) in schema.types() {
                for (field, spec) in fields {
                    let mut found = Vec::new();
                    names(&spec.ty, &mut found);
                    for name in found {
                        assert!(schema.fields(name).is_some(), "{owner}.{field}: {name}");
                    }
                }
            }
        }
        for kind in Kind::COMPUTE.into_iter().chain([Kind::RunServiceV1, Kind::RunServiceV2]) {
            assert!(kind.body().schema.fields(kind.body().name).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn what_clients_send_passes() {
        for (kind, body) in [
            (
                Kind::Network,
                json!({"name": "n", "mtu": "1460", "autoCreateSubnetworks": false, "routingConfig": {"routingMode": "REGIONAL"}}),
            ),
            (
                Kind::Network,
                json!({"mtu": 1460.0, "id": 12345678901234567890_u64, "peerings": null, "description": ""}),
            ),
            (Kind::ForwardingRule, json!({"loadBalancingScheme": "", "IPAddress": "10.0.0.1", "labels": {"a": "b"}})),
            (Kind::ServiceAttachment, json!({"consumerAcceptLists": [{"projectIdOrNum": "p", "connectionLimit": 10}]})),
            (
                Kind::Instance,
                json!({"networkInterfaces": [{"network": "n"}], "metadata": {"items": [{"key": "k", "value": "v"}]}}),
            ),
            (
                Kind::RunServiceV1,
                json!({"apiVersion": "serving.knative.dev/v1", "metadata": {"annotations": {"a/b": "c"}},
                "spec": {"template": {"spec": {"containers": [{"image": "i", "resources": {"limits": {"cpu": "1"}}}]}}}}),
            ),
            (Kind::RunServiceV2, json!({"template": {"containers": [{"image": "i"}], "timeout": "300s"}})),
        ] {
            assert_eq!(check(kind, &body), Ok(()), "{body}");
        }
    }

    #[test]
    fn what_no_field_is_or_fits_is_refused_in_googles_words() {
        const CONTAINERS: &str = "service.spec.template.spec.containers[0]";
        for (kind, body, want) in [
            (Kind::Network, json!({"x": 1}), "Invalid JSON payload received. Unknown name \"x\" at 'resource': Cannot find field.".to_owned()),
            (Kind::Instance, json!({"networkInterfaces": [{}, {"network_ip": "x"}]}),
                "Invalid JSON payload received. Unknown name \"network_ip\" at 'resource.network_interfaces[1]': Cannot find field.".into()),
            (Kind::Network, json!({"mtu": "abc"}), "Invalid value at 'resource.mtu' (TYPE_INT32), \"abc\"".into()),
            (Kind::Network, json!({"mtu": 1.5}), "Invalid value at 'resource.mtu' (TYPE_INT32), 1.5".into()),
            (Kind::Network, json!({"mtu": 3_000_000_000_u32}), "Invalid value at 'resource.mtu' (TYPE_INT32), 3000000000".into()),
            (Kind::Network, json!({"name": 5}), "Invalid value at 'resource.name' (TYPE_STRING), 5".into()),
            (Kind::Network, json!({"autoCreateSubnetworks": "false"}), "Invalid value at 'resource.auto_create_subnetworks' (TYPE_BOOL), \"false\"".into()),
            (Kind::Subnetwork, json!({"purpose": "BOGUS"}),
                "Invalid value at 'resource.purpose' (type.googleapis.com/google.cloud.compute.v1.Subnetwork.Purpose), \"BOGUS\"".into()),
            (Kind::ForwardingRule, json!({"labels": {"a": 1}}), "Invalid value at 'resource.labels[0].value' (TYPE_STRING), 1".into()),
            (Kind::ServiceAttachment, json!({"natSubnets": "s"}), "Invalid value at 'resource.nat_subnets', \"s\"".into()),
            (Kind::Network, json!([]), "Invalid value at 'resource' (type.googleapis.com/google.cloud.compute.v1.Network), []".into()),
            (Kind::RunServiceV1, json!({"spec": {"template": {"spec": {"containers": [{"y": 1}]}}}}),
                format!("Invalid JSON payload received. Unknown name \"y\" at '{CONTAINERS}': Cannot find field.")),
        ] {
            let fault = check(kind, &body).expect_err(&body.to_string());
            assert_eq!(fault.message, want);
        }
    }

    #[test]
    fn every_violation_is_told_at_once_and_a_flood_is_cut() {
        let fault = check(Kind::Network, &json!({"x": 1, "mtu": true})).unwrap_err();
        assert_eq!(fault.message.lines().count(), 2);
        assert_eq!(fault.details[0]["fieldViolations"][1]["field"], "resource.mtu");
        let flood: Value = (0..1000).map(|n| (format!("x{n}"), json!(1))).collect::<serde_json::Map<_, _>>().into();
        assert_eq!(check(Kind::Network, &flood).unwrap_err().message.lines().count(), VIOLATIONS_MAX);
    }

    #[test]
    fn a_field_selection_must_name_fields_that_answers_have() {
        let check = |text| check_mask(Kind::Instance.body(), &Mask::parse(text).unwrap());
        for good in ["name", "networkInterfaces/networkIP", "labels/anything", "*", "*/x", "tags(items,fingerprint)"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["foo", "networkInterfaces/foo", "name/foo"] {
            assert_eq!(check(bad).unwrap_err().message, format!("Invalid field selection {bad}"));
        }
    }
}
