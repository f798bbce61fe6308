//! IAM credentials: tokens and signatures in a service account's name.

use std::time::Duration;

use control::{
    credentials::{self, Impersonation},
    ops::Caller,
};
use http::Method;
use model::fault::{Code, Fault};
use serde_json::{Value, json};

use super::{Cloud, iam::seconds};
use crate::{
    call::{Answer, Call},
    error,
    reply::Reply,
};

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let parts = call.parts();
    // Every command with an account's credentials asks this first; there are no boundaries here.
    if let ["v1", "projects", _, "serviceAccounts", _, "allowedLocations"] = parts.as_slice() {
        return Err(Fault::new(Code::NotFound, "notFound", "Requested entity was not found."));
    }
    let caller = cloud.caller(call, "google.iam.credentials.v1.IAMCredentials")?;
    let (&Method::POST, ["v1", "projects", "-", "serviceAccounts", account], Some(verb)) =
        (&call.method, parts.as_slice(), call.verb())
    else {
        return Err(error::unknown_method());
    };
    mint(cloud, &caller, account, verb, &call.json()?)
}

fn mint(cloud: &Cloud, caller: &Caller, account: &str, verb: &str, body: &Value) -> Answer {
    let (mint, control) = (&*cloud.mint, &*cloud.control);
    let delegates = strings(&body["delegates"])?;
    let ask = Impersonation { account, delegates: &delegates };
    let payload = body["payload"].as_str().unwrap_or_default();
    match verb {
        "generateAccessToken" => {
            let lifetime = lifetime(body["lifetime"].as_str())?;
            let scopes = strings(&body["scope"])?;
            let (token, expires) = credentials::access_token(mint, control, caller, ask, &scopes, lifetime)?;
            Ok(Reply::json(json!({"accessToken": token, "expireTime": seconds(expires)})))
        }
        "generateIdToken" => {
            let audience = body["audience"].as_str().unwrap_or_default();
            let email = body["includeEmail"].as_bool().unwrap_or(false);
            let token = credentials::id_token(mint, control, caller, ask, audience, email)?;
            Ok(Reply::json(json!({"token": token})))
        }
        "signJwt" => {
            let signed = credentials::sign_jwt(mint, control, caller, ask, payload)?;
            Ok(Reply::json(json!({"keyId": signed.key_id, "signedJwt": signed.value})))
        }
        "signBlob" => {
            let signed = credentials::sign_blob(mint, control, caller, ask, payload)?;
            Ok(Reply::json(json!({"keyId": signed.key_id, "signedBlob": signed.value})))
        }
        _ => Err(error::unknown_method()),
    }
}

fn strings(value: &Value) -> Result<Vec<String>, Fault> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    serde_json::from_value(value.clone()).map_err(|_| Fault::invalid("A list of strings is expected."))
}

/// A duration such as `3600s`; an hour when there is none.
fn lifetime(text: Option<&str>) -> Result<Duration, Fault> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(Duration::from_secs(3_600)) };
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    seconds.filter(|s| s.is_finite() && *s >= 0.0 && *s < 1e9).map(Duration::from_secs_f64).ok_or_else(|| {
        Fault::invalid(format!(
            "Invalid value at 'lifetime' (type.googleapis.com/google.protobuf.Duration), \"{text}\""
        ))
    })
}
