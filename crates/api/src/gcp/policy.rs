//! Allow policies and permission tests as JSON, the same for every API that has them.

use std::collections::BTreeSet;

use control::{
    ops::{Caller, Control},
    policies::{self, Target},
    world::World,
};
use identity::policy;
use model::{
    fault::Fault,
    iam::{Binding, Condition, Policy},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    call::{Answer, Call, Query},
    error,
    reply::Reply,
};

/// Reads or sets the policy of a resource, or tests permissions on it. `exists` refuses a resource that is not there, to
/// whoever may know it.
pub fn serve(
    control: &Control,
    call: &Call,
    caller: &Caller,
    target: Target<'_>,
    verb: &str,
    exists: impl Fn(&World) -> Result<(), Fault>,
) -> Answer {
    let body = call.json()?;
    match verb {
        "getIamPolicy" => {
            check_requested_version(&call.query, &body)?;
            let world = control.read();
            let found = policies::get(control, &world, caller, target)?;
            exists(&world)?;
            Ok(Reply::json(render(&found)))
        }
        "setIamPolicy" => {
            let asked = asked(&body)?;
            let set = policies::set(control, caller, target, &asked.bindings, &asked.etag, exists)?;
            Ok(Reply::json(render(&set)))
        }
        "testIamPermissions" => test(control, call, caller, target.resource),
        _ => Err(error::unknown_method()),
    }
}

/// Which of the permissions that are asked about the caller holds on a resource.
pub fn test(control: &Control, call: &Call, caller: &Caller, resource: &str) -> Answer {
    let held = policies::test(&control.read(), caller, resource, &tested(&call.json()?)?)?;
    if held.is_empty() {
        return Ok(Reply::json(json!({})));
    }
    Ok(Reply::json(json!({"permissions": held.iter().map(|p| p.as_str()).collect::<Vec<_>>()})))
}

/// A `Policy`. One that was never set shows its etag only.
pub fn render(policy: &Policy) -> Value {
    let etag = policy::etag(policy);
    if policy.revision == 0 {
        return json!({"etag": etag});
    }
    let binding = |b: &Binding| json!({"role": b.role, "members": b.members});
    let bindings: Vec<Value> = policy.bindings.iter().map(binding).collect();
    let mut shown = json!({"version": 1, "etag": etag});
    if !bindings.is_empty() {
        shown["bindings"] = bindings.into();
    }
    shown
}

/// What a client wants a policy to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub bindings: Vec<Binding>,
    /// Empty: whatever is there.
    pub etag: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicyBody {
    #[serde(default)]
    bindings: Vec<BindingBody>,
    #[serde(default)]
    etag: String,
    #[serde(default)]
    version: i32,
    #[serde(default)]
    audit_configs: Vec<Value>,
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
}

#[derive(Deserialize)]
struct BindingBody {
    #[serde(default)]
    role: String,
    #[serde(default)]
    members: BTreeSet<String>,
    condition: Option<ConditionBody>,
}

#[derive(Deserialize)]
struct ConditionBody {
    #[serde(default)]
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    expression: String,
}

/// The body of `setIamPolicy`.
///
/// # Errors
/// 400 for what is no policy, a version that is none, and what would not be obeyed.
pub fn asked(body: &Value) -> Result<Asked, Fault> {
    let policy = body
        .get("policy")
        .ok_or_else(|| Fault::invalid("Request contains an invalid argument: policy is required."))?;
    let policy: PolicyBody = serde_json::from_value(policy.clone())
        .map_err(|why| Fault::invalid(format!("Invalid JSON payload received. Invalid value at 'policy': {why}")))?;
    if ![0, 1, 3].contains(&policy.version) {
        return Err(Fault::invalid(format!("Policy version {} is not supported.", policy.version)));
    }
    if !policy.audit_configs.is_empty() {
        return Err(Fault::not_enforced("policy.auditConfigs"));
    }
    let binding = |b: BindingBody| Binding {
        role: b.role,
        members: b.members,
        condition: b.condition.map(|c| Condition {
            title: c.title,
            description: c.description,
            expression: c.expression,
        }),
    };
    Ok(Asked { bindings: policy.bindings.into_iter().map(binding).collect(), etag: policy.etag })
}

/// Refuses a version of policies that does not exist; the ones that do look alike without conditions.
pub fn check_requested_version(query: &Query, body: &Value) -> Result<(), Fault> {
    let from_body = body["options"]["requestedPolicyVersion"].as_u64();
    let number = match (query.get("options.requestedPolicyVersion"), from_body) {
        (Some(_), _) => query.number("options.requestedPolicyVersion")?,
        (None, number) => number,
    };
    match number {
        None | Some(0 | 1 | 3) => Ok(()),
        Some(other) => Err(Fault::invalid(format!("Policy version {other} is not supported."))),
    }
}

/// The body of `testIamPermissions`.
fn tested(body: &Value) -> Result<Vec<String>, Fault> {
    let Some(list) = body.get("permissions") else { return Ok(Vec::new()) };
    serde_json::from_value(list.clone())
        .map_err(|_| Fault::invalid("Invalid value at 'permissions': a list of strings is expected."))
}
