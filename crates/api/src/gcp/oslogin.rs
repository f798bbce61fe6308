//! OS Login v1: a caller's own profile, with the keys that open VMs to them. Who may log in where is decided in
//! `control::os_login`.

use control::{
    ops::{Caller, Control},
    os_login,
};
use http::Method;
use model::{
    fault::Fault,
    login::{LoginKey, LoginProfile},
    time::Timestamp,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Cloud;
use crate::{
    call::{Answer, Call},
    error,
    reply::Reply,
};

/// `SshPublicKey`. What the server says of a key is dropped when a client sends it back.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    #[serde(default)]
    key: String,
    /// A 64-bit number, which JSON has as text; 0 is none.
    expiration_time_usec: Option<Value>,
    #[serde(rename = "fingerprint")]
    _fingerprint: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<Value>,
}

impl Body {
    fn expires(&self) -> Result<Option<Timestamp>, Fault> {
        let Some(value) = &self.expiration_time_usec else { return Ok(None) };
        let number = value.as_i64().or_else(|| value.as_str()?.parse().ok()).filter(|at| *at >= 0);
        let number = number
            .ok_or_else(|| Fault::invalid("Invalid value at 'ssh_public_key.expiration_time_usec' (TYPE_INT64)"))?;
        Ok(Some(Timestamp(number)).filter(|at| at.0 > 0))
    }

    fn wanted(self) -> Result<LoginKey, Fault> {
        Ok(LoginKey { expires: self.expires()?, key: self.key })
    }
}

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.cloud.oslogin.v1.OsLoginService")?;
    let parts = call.parts();
    let ["v1" | "v1beta" | "v1alpha", "users", user, rest @ ..] = parts.as_slice() else {
        return Err(match parts.as_slice() {
            [_, "projects", _, "locations", ..] => Fault::not_enforced("SSH certificates"),
            _ => error::unknown_method(),
        });
    };
    let (control, caller, project) = (&*cloud.control, &caller, call.query.get("projectId"));
    match (&call.method, rest, call.verb()) {
        (&Method::GET, ["loginProfile"], None) => {
            Ok(Reply::json(show(&os_login::profile(control, caller, user, project)?)))
        }
        (&Method::POST, [], Some("importSshPublicKey")) => {
            let key = call.read::<Body>()?.wanted()?;
            // Without a key it makes an account and nothing else.
            let key = Some(key).filter(|key| !key.key.is_empty());
            let profile = os_login::import(control, caller, user, key, project)?;
            Ok(Reply::json(json!({"loginProfile": show(&profile)})))
        }
        (&Method::POST, ["sshPublicKeys"], None) => {
            let key = call.read::<Body>()?.wanted()?;
            let print = os_login::fingerprint(&key.key)?;
            os_login::import(control, caller, user, Some(key.clone()), None)?;
            Ok(Reply::json(show_key(user, &print, &key)))
        }
        (_, ["sshPublicKeys", print], None) => key(control, call, caller, user, print),
        (&Method::POST, ["projects", project], None) => {
            let profile = os_login::import(control, caller, user, None, Some(project))?;
            Ok(Reply::json(account(&profile, project)))
        }
        (&Method::DELETE, ["projects", project], None) => {
            os_login::delete_account(control, caller, user, project)?;
            Ok(Reply::json(json!({})))
        }
        (_, ["projects", ..], Some("signSshPublicKey")) => Err(Fault::not_enforced("SSH certificates")),
        _ => Err(error::unknown_method()),
    }
}

fn key(control: &Control, call: &Call, caller: &Caller, user: &str, print: &str) -> Answer {
    match call.method {
        Method::GET => {
            let profile = os_login::profile(control, caller, user, None)?;
            let key = profile.keys.get(print).ok_or_else(os_login::missing)?;
            Ok(Reply::json(show_key(user, print, key)))
        }
        Method::PATCH => {
            let body: Body = call.read()?;
            let mask = call.query.get("updateMask").unwrap_or("key,expirationTimeUsec");
            let (mut line, mut expires) = (None, None);
            for field in mask.split(',') {
                match field {
                    "key" => line = Some(body.key.as_str()).filter(|key| !key.is_empty()),
                    "expirationTimeUsec" | "expiration_time_usec" => expires = Some(body.expires()?),
                    _ => return Err(Fault::invalid(format!("Invalid field '{field}' in updateMask."))),
                }
            }
            let (print, key) = os_login::patch(control, caller, user, print, line, expires)?;
            Ok(Reply::json(show_key(user, &print, &key)))
        }
        Method::DELETE => {
            os_login::delete_key(control, caller, user, print)?;
            Ok(Reply::json(json!({})))
        }
        _ => Err(error::unknown_method()),
    }
}

fn show(profile: &LoginProfile) -> Value {
    let accounts: Vec<Value> = profile.projects.iter().map(|project| account(profile, project.as_str())).collect();
    let key = |(print, key): (&String, &LoginKey)| (print.clone(), show_key(&profile.email, print, key));
    let keys: Map<String, Value> = profile.keys.iter().map(key).collect();
    let mut shown = json!({"name": profile.id});
    if !accounts.is_empty() {
        shown["posixAccounts"] = accounts.into();
    }
    if !keys.is_empty() {
        shown["sshPublicKeys"] = keys.into();
    }
    shown
}

fn account(profile: &LoginProfile, project: &str) -> Value {
    json!({
        "accountId": project,
        "gid": profile.uid.to_string(),
        "homeDirectory": format!("/home/{}", profile.username),
        "name": format!("users/{}/projects/{project}", profile.email),
        "operatingSystemType": "LINUX",
        "primary": true,
        "uid": profile.uid.to_string(),
        "username": profile.username,
    })
}

fn show_key(user: &str, print: &str, key: &LoginKey) -> Value {
    let mut shown = json!({
        "fingerprint": print, "key": key.key, "name": format!("users/{user}/sshPublicKeys/{print}"),
    });
    if let Some(expires) = key.expires {
        shown["expirationTimeUsec"] = expires.0.to_string().into();
    }
    shown
}
