//! Organization Policy v2: the policies of projects and of the organisation. What a policy forbids is decided in
//! `control::org_policies`; constraints that nothing here would obey are refused there.

use control::{
    ops::{Caller, Control},
    org_policies::{self, Named, Write},
};
use http::Method;
use model::{
    fault::Fault,
    orgpolicy::{PSC_CONSUMERS, Place, Rule, Spec},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Cloud;
use crate::{
    call::{Answer, Call},
    error,
    reply::Reply,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    #[serde(default)]
    name: String,
    spec: Option<SpecBody>,
    dry_run_spec: Option<Value>,
    alternate: Option<Value>,
    #[serde(default)]
    etag: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpecBody {
    #[serde(default)]
    rules: Vec<RuleBody>,
    #[serde(default)]
    inherit_from_parent: bool,
    #[serde(default)]
    reset: bool,
    #[serde(default)]
    etag: String,
    /// The server's own; what a client sends is dropped.
    #[serde(rename = "updateTime")]
    _update_time: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleBody {
    values: Option<Values>,
    #[serde(default)]
    allow_all: bool,
    #[serde(default)]
    deny_all: bool,
    enforce: Option<bool>,
    condition: Option<Value>,
    parameters: Option<Value>,
    resource_types: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Values {
    #[serde(default)]
    allowed_values: Vec<String>,
    #[serde(default)]
    denied_values: Vec<String>,
}

impl Body {
    /// The etag of the policy that the client had read, and what it wants instead.
    fn wanted(self) -> Result<(String, Spec), Fault> {
        for (field, value) in [("policy.dryRunSpec", self.dry_run_spec), ("policy.alternate", self.alternate)] {
            if value.is_some_and(|value| !value.is_null()) {
                return Err(Fault::not_enforced(field));
            }
        }
        let spec = self.spec.ok_or_else(|| Fault::invalid("The field 'policy.spec' is required."))?;
        let etag = if self.etag.is_empty() { spec.etag } else { self.etag };
        let rules = spec.rules.into_iter().map(RuleBody::wanted).collect::<Result<_, _>>()?;
        Ok((etag, Spec { rules, inherit: spec.inherit_from_parent, reset: spec.reset }))
    }
}

impl RuleBody {
    fn wanted(self) -> Result<Rule, Fault> {
        for (field, value) in [
            ("policy.spec.rules.condition", self.condition),
            ("policy.spec.rules.parameters", self.parameters),
            ("policy.spec.rules.resourceTypes", self.resource_types),
        ] {
            if value.is_some_and(|value| !value.is_null()) {
                return Err(Fault::not_enforced(field));
            }
        }
        if self.enforce.is_some() {
            return Err(Fault::invalid("A rule of a list constraint cannot have 'enforce'."));
        }
        match (self.values, self.allow_all, self.deny_all) {
            (None, true, false) => Ok(Rule::AllowAll),
            (None, false, true) => Ok(Rule::DenyAll),
            (Some(values), false, false) => {
                Ok(Rule::Values { allowed: places(values.allowed_values)?, denied: places(values.denied_values)? })
            }
            _ => Err(Fault::invalid("A rule must have exactly one of 'values', 'allowAll' and 'denyAll'.")),
        }
    }
}

fn places(values: Vec<String>) -> Result<Vec<Place>, Fault> {
    let place = |value: String| {
        Place::parse(&value).ok_or_else(|| {
            Fault::invalid(format!(
                "Invalid value '{value}' for constraints/{PSC_CONSUMERS}: expected under:organizations/NUMBER, \
                 under:folders/NUMBER or under:projects/PROJECT."
            ))
        })
    };
    values.into_iter().map(place).collect()
}

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.cloud.orgpolicy.v2.OrgPolicy")?;
    let parts = call.parts();
    let ["v2", collection @ ("projects" | "organizations"), id, rest @ ..] = parts.as_slice() else {
        return Err(error::unknown_method());
    };
    let (control, parent) = (&cloud.control, format!("{collection}/{id}"));
    match (&call.method, rest, call.verb()) {
        (&Method::GET, ["policies"], None) => {
            let all = org_policies::list(control, &caller, &parent)?;
            let shown: Vec<Value> = all.iter().map(show).collect();
            Ok(Reply::json(if shown.is_empty() { json!({}) } else { json!({"policies": shown}) }))
        }
        (&Method::POST, ["policies"], None) => create(control, call, &caller, &parent),
        (&Method::GET, ["policies", constraint], None) => {
            Ok(Reply::json(show(&org_policies::get(control, &caller, &parent, constraint)?)))
        }
        (&Method::GET, ["policies", constraint], Some("getEffectivePolicy")) => {
            let (name, rules) = org_policies::effective(control, &caller, &parent, constraint)?;
            Ok(Reply::json(json!({"name": name, "spec": {"rules": show_rules(&rules)}})))
        }
        (&Method::PATCH, ["policies", constraint], None) => update(control, call, &caller, &parent, constraint),
        (&Method::DELETE, ["policies", constraint], None) => {
            let etag = call.query.get("etag").unwrap_or_default();
            org_policies::delete(control, &caller, &parent, constraint, etag)?;
            Ok(Reply::json(json!({})))
        }
        (&Method::GET, ["constraints"], None) => {
            org_policies::may_list_constraints(control, &caller, &parent)?;
            Ok(Reply::json(json!({"constraints": [constraint(&parent)]})))
        }
        (_, ["customConstraints", ..], _) => Err(Fault::not_enforced("customConstraints")),
        _ => Err(error::unknown_method()),
    }
}

fn create(control: &Control, call: &Call, caller: &Caller, parent: &str) -> Answer {
    let body: Body = call.read()?;
    // The name in the body is by id or by number, whatever the path says.
    let constraint = body.name.rsplit_once("/policies/").map(|(_, constraint)| constraint.to_owned());
    let constraint = constraint.filter(|constraint| !constraint.is_empty() && !constraint.contains('/'));
    let name = &body.name;
    let constraint = constraint
        .ok_or_else(|| Fault::invalid(format!("Invalid policy name '{name}': expected PARENT/policies/CONSTRAINT.")))?;
    let (_, spec) = body.wanted()?;
    let made = org_policies::set(control, caller, parent, &constraint, &spec, Write::Create)?;
    Ok(Reply::json(show(&made)))
}

/// The mask can name the one part of a policy that is obeyed, or everything, which is the same.
fn update(control: &Control, call: &Call, caller: &Caller, parent: &str, constraint: &str) -> Answer {
    let body: Body = call.read()?;
    for field in call.query.get("updateMask").unwrap_or("*").split(',') {
        match field {
            "*" | "policy" | "policy.spec" | "spec" => {}
            "policy.dryRunSpec" | "policy.dry_run_spec" | "dryRunSpec" => {
                return Err(Fault::not_enforced("policy.dryRunSpec"));
            }
            _ => return Err(Fault::invalid(format!("Invalid field '{field}' in updateMask."))),
        }
    }
    let (etag, spec) = body.wanted()?;
    let write = Write::Update { etag: &etag };
    Ok(Reply::json(show(&org_policies::set(control, caller, parent, constraint, &spec, write)?)))
}

fn show(named: &Named) -> Value {
    let (policy, etag) = (&named.policy, org_policies::etag(&named.policy));
    let mut spec = json!({"etag": etag, "updateTime": policy.updated.rfc3339_us()});
    if !policy.spec.rules.is_empty() {
        spec["rules"] = show_rules(&policy.spec.rules);
    }
    for (field, set) in [("inheritFromParent", policy.spec.inherit), ("reset", policy.spec.reset)] {
        if set {
            spec[field] = true.into();
        }
    }
    json!({"name": named.name, "spec": spec, "etag": etag})
}

fn show_rules(rules: &[Rule]) -> Value {
    let written = |places: &[Place]| json!(places.iter().map(|place| &place.written).collect::<Vec<_>>());
    let show = |rule: &Rule| match rule {
        Rule::AllowAll => json!({"allowAll": true}),
        Rule::DenyAll => json!({"denyAll": true}),
        Rule::Values { allowed, denied } => {
            let mut values = json!({});
            for (field, places) in [("allowedValues", allowed), ("deniedValues", denied)] {
                if !places.is_empty() {
                    values[field] = written(places);
                }
            }
            json!({"values": values})
        }
    };
    rules.iter().map(show).collect()
}

fn constraint(parent: &str) -> Value {
    json!({
        "name": format!("{parent}/constraints/{PSC_CONSUMERS}"),
        "displayName": "Restrict allowed Private Service Connect Consumers",
        "description": "The organisations, folders and projects whose endpoints may connect to service attachments.",
        "constraintDefault": "ALLOW",
        "listConstraint": {"supportsUnder": true},
    })
}
