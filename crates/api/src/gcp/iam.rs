//! IAM: service accounts, their keys and policies, the predefined roles.

use control::{
    accounts::{self, AccountKey, AccountName, Patch},
    kind::Need,
    ops::{Caller, Control},
    policies::{self, Target},
};
use http::Method;
use identity::{
    base64::{self, Form},
    keys::public_pem,
    policy::Place,
    role::Role,
};
use model::{
    fault::{Code, Fault},
    iam::ServiceAccount,
    time::Timestamp,
};
use serde_json::{Value, json};

use super::{Cloud, policy};
use crate::{
    call::{Answer, Call},
    error,
    paging::{Order, Paging},
    reply::Reply,
};

/// Deprecated everywhere and the same for every account. Source: IAM's answers.
const ETAG: &str = "MDEwMjE5MjA=";
const ACCOUNT_PAGES: Paging = Paging { size: "pageSize", default: 20, max: 100, order: Order::ByKey };

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = &cloud.caller(call, "google.iam.admin.v1.IAM")?;
    let control = &cloud.control;
    let name = |project, account| AccountName { project, account };
    match (&call.method, call.parts().as_slice(), call.verb()) {
        (&Method::POST, ["v1", "projects", project, "serviceAccounts"], None) => {
            let body = call.json()?;
            let inner = &body["serviceAccount"];
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let account = accounts::create(
                control,
                caller,
                project,
                body["accountId"].as_str().unwrap_or_default(),
                &text(&inner["displayName"]),
                &text(&inner["description"]),
            )?;
            Ok(Reply::json(account_json(&account)))
        }
        (&Method::GET, ["v1", "projects", project, "serviceAccounts"], None) => {
            let all = accounts::list(control, caller, project)?;
            let shown = all.iter().map(|account| (account.email.clone(), account_json(account)));
            ACCOUNT_PAGES.list(&call.query, "accounts", shown.collect())
        }
        (_, ["v1", "projects", project, "serviceAccounts", account], _) => {
            one_account(control, call, caller, name(project, account))
        }
        (&Method::POST, ["v1", "projects", project, "serviceAccounts", account, "keys"], None) => {
            create_key(control, caller, name(project, account), &call.json()?)
        }
        (&Method::GET, ["v1", "projects", project, "serviceAccounts", account, "keys"], None) => {
            let (owner, keys) = accounts::list_keys(control, caller, name(project, account))?;
            list_keys(call, &owner, &keys)
        }
        (&Method::GET, ["v1", "projects", project, "serviceAccounts", account, "keys", kid], None) => {
            let (owner, key) = accounts::get_key(control, caller, name(project, account), kid)?;
            let mut shown = key_json(&owner, &key);
            if let Some(data) = public_data(&key, call.query.get("publicKeyType").unwrap_or("TYPE_NONE"))? {
                shown["publicKeyData"] = data.into();
            }
            Ok(Reply::json(shown))
        }
        (&Method::DELETE, ["v1", "projects", project, "serviceAccounts", account, "keys", kid], None) => {
            accounts::delete_key(control, caller, name(project, account), kid)?;
            Ok(Reply::json(json!({})))
        }
        (
            &Method::POST,
            ["v1", "projects", project, "serviceAccounts", account, "keys", kid],
            Some(verb @ ("disable" | "enable")),
        ) => {
            accounts::set_key_disabled(control, caller, name(project, account), kid, verb == "disable")?;
            Ok(Reply::json(json!({})))
        }
        (&Method::GET, ["v1", "roles"], None) => list_roles(call),
        (&Method::GET, ["v1", "roles", role], None) => {
            let role = format!("roles/{role}");
            let found = Role::find(&role).ok_or_else(|| unknown_role(&role))?;
            Ok(Reply::json(role_json(found, View::Full)))
        }
        (&Method::GET, ["v1", "projects" | "organizations", _, "roles"], None) => Ok(Reply::json(json!({}))),
        (&Method::GET, ["v1", parent @ ("projects" | "organizations"), owner, "roles", role], None) => {
            Err(unknown_role(&format!("{parent}/{owner}/roles/{role}")))
        }
        (_, ["v1", "projects" | "organizations", _, "roles", ..], _) => Err(Fault::not_enforced("role")),
        _ => Err(error::unknown_method()),
    }
}

fn one_account(control: &Control, call: &Call, caller: &Caller, name: AccountName<'_>) -> Answer {
    match (&call.method, call.verb()) {
        (&Method::GET, None) => Ok(Reply::json(account_json(&accounts::get(control, caller, name)?))),
        (&Method::PATCH, None) => {
            let patch = patch(&call.json()?)?;
            Ok(Reply::json(account_json(&accounts::patch(control, caller, name, &patch)?)))
        }
        (&Method::PUT, None) => {
            let display_name = call.json()?["displayName"].as_str().unwrap_or_default().to_owned();
            let patch = Patch { display_name: Some(display_name), description: None };
            Ok(Reply::json(account_json(&accounts::patch(control, caller, name, &patch)?)))
        }
        (&Method::DELETE, None) => {
            accounts::delete(control, caller, name)?;
            Ok(Reply::json(json!({})))
        }
        (&Method::POST, Some(verb @ ("disable" | "enable"))) => {
            accounts::set_disabled(control, caller, name, verb == "disable")?;
            Ok(Reply::json(json!({})))
        }
        // With GET a policy is only read: whatever a GET does, read-only scopes allow.
        (&Method::GET, Some(verb @ "getIamPolicy"))
        | (&Method::POST, Some(verb @ ("getIamPolicy" | "setIamPolicy" | "testIamPermissions"))) => {
            policy(control, call, caller, name, verb)
        }
        _ => Err(error::unknown_method()),
    }
}

fn policy(control: &Control, call: &Call, caller: &Caller, name: AccountName<'_>, verb: &str) -> Answer {
    let found = accounts::find(&control.read(), name).map(accounts::resource_name);
    let permission = match verb {
        "setIamPolicy" => "iam.serviceAccounts.setIamPolicy",
        _ => "iam.serviceAccounts.getIamPolicy",
    };
    let Some(resource) = found else {
        if verb == "testIamPermissions" {
            return policy::test(control, call, caller, policies::NOWHERE);
        }
        // Says whether it is missing or hidden, as every method on an account does.
        accounts::reach(control, &control.read(), caller, name, permission)?;
        return Err(error::unknown_method());
    };
    let target = Target {
        resource: &resource,
        place: Place::Resource,
        get: "iam.serviceAccounts.getIamPolicy",
        set: "iam.serviceAccounts.setIamPolicy",
        denied: &|need: &Need| Fault::permission_denied(need.permission, &need.resource),
    };
    let email = resource.rsplit('/').next().unwrap_or_default();
    policy::serve(control, call, caller, target, verb, |world| match world.accounts.contains_key(email) {
        true => Ok(()),
        false => Err(Fault::permission_denied(permission, &resource)),
    })
}

fn create_key(control: &Control, caller: &Caller, name: AccountName<'_>, body: &Value) -> Answer {
    match body["privateKeyType"].as_str() {
        None | Some("" | "TYPE_UNSPECIFIED" | "TYPE_GOOGLE_CREDENTIALS_FILE") => {}
        Some(_) => return Err(Fault::not_enforced("privateKeyType")),
    }
    match body["keyAlgorithm"].as_str() {
        None | Some("" | "KEY_ALG_UNSPECIFIED" | "KEY_ALG_RSA_2048") => {}
        Some(_) => return Err(Fault::not_enforced("keyAlgorithm")),
    }
    let (key, file) = accounts::create_key(control, caller, name)?;
    let owner = accounts::find(&control.read(), name).cloned();
    let owner = owner.ok_or_else(|| Fault::unavailable("The account was deleted meanwhile."))?;
    let mut shown = key_json(&owner, &key);
    shown["privateKeyType"] = "TYPE_GOOGLE_CREDENTIALS_FILE".into();
    shown["privateKeyData"] = base64::encode(Form::Standard, file.as_bytes()).into();
    Ok(Reply::json(shown))
}

/// Only what the mask names; without a mask (gcloud always sends one) what the body has.
fn patch(body: &Value) -> Result<Patch, Fault> {
    let fields = &body["serviceAccount"];
    let field = |name: &str| fields[name].as_str().map(str::to_owned);
    let Some(mask) = body["updateMask"].as_str() else {
        return Ok(Patch { display_name: field("displayName"), description: field("description") });
    };
    let mut patch = Patch::default();
    for path in mask.split(',') {
        match path.trim() {
            "displayName" | "display_name" => patch.display_name = Some(field("displayName").unwrap_or_default()),
            "description" => patch.description = Some(field("description").unwrap_or_default()),
            "" | "etag" => {}
            other => {
                return Err(Fault::invalid(format!("The field '{other}' of a service account cannot be updated.")));
            }
        }
    }
    Ok(patch)
}

fn account_json(a: &ServiceAccount) -> Value {
    let mut shown = json!({
        "name": accounts::resource_name(a),
        "projectId": a.project,
        "uniqueId": a.unique_id,
        "email": a.email,
    });
    if !a.display_name.is_empty() {
        shown["displayName"] = a.display_name.as_str().into();
    }
    shown["etag"] = ETAG.into();
    if !a.description.is_empty() {
        shown["description"] = a.description.as_str().into();
    }
    shown["oauth2ClientId"] = a.unique_id.as_str().into();
    if a.disabled {
        shown["disabled"] = true.into();
    }
    shown
}

/// Source: IAM, keys that Google made for users never end.
const NEVER: &str = "9999-12-31T23:59:59Z";

pub(super) fn seconds(t: Timestamp) -> String {
    let text = t.rfc3339_us();
    text.split_once('.').map_or(text.clone(), |(whole, _)| format!("{whole}Z"))
}

fn key_json(owner: &ServiceAccount, key: &AccountKey) -> Value {
    let mut shown = json!({
        "name": format!("{}/keys/{}", accounts::resource_name(owner), key.public.kid),
        "validAfterTime": seconds(key.created),
        "validBeforeTime": NEVER,
        "keyAlgorithm": "KEY_ALG_RSA_2048",
        "keyOrigin": "GOOGLE_PROVIDED",
        "keyType": "USER_MANAGED",
    });
    if key.disabled {
        shown["disabled"] = true.into();
    }
    shown
}

fn list_keys(call: &Call, owner: &ServiceAccount, keys: &[AccountKey]) -> Answer {
    let types: Vec<&str> = call.query.all("keyTypes").collect();
    let shown: Vec<Value> = if types.is_empty() || types.contains(&"USER_MANAGED") {
        keys.iter().map(|key| key_json(owner, key)).collect()
    } else {
        Vec::new()
    };
    Ok(Reply::json(if shown.is_empty() { json!({}) } else { json!({"keys": shown}) }))
}

fn public_data(key: &AccountKey, form: &str) -> Result<Option<String>, Fault> {
    let pem = || public_pem(&key.public).map_err(|_| Fault::internal("The stored key does not parse."));
    match form {
        "TYPE_NONE" | "" => Ok(None),
        "TYPE_RAW_PUBLIC_KEY" => Ok(Some(base64::encode(Form::Standard, pem()?.as_bytes()))),
        // A certificate over it would need the private key, which only its owner has.
        _ => Err(Fault::not_enforced("publicKeyType")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Basic,
    Full,
}

fn role_json(role: &Role, view: View) -> Value {
    let mut shown = json!({"name": role.name, "title": role.title, "description": role.description});
    if view == View::Full {
        shown["includedPermissions"] = role.permissions.iter().map(|p| p.as_str()).collect();
    }
    shown["stage"] = role.stage.as_str().into();
    shown["etag"] = "AA==".into();
    shown
}

fn list_roles(call: &Call) -> Answer {
    let view = if call.query.get("view") == Some("FULL") { View::Full } else { View::Basic };
    let roles: Vec<Value> = Role::all().map(|role| role_json(role, view)).collect();
    Ok(Reply::json(json!({"roles": roles})))
}

fn unknown_role(name: &str) -> Fault {
    Fault::new(Code::NotFound, "notFound", format!("The role named {name} was not found."))
}
