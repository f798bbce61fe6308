//! The token endpoint and what belongs to it: grants, revocation, what a token is, and the published keys.
//!
//! Served under `oauth2.googleapis.com`, `www.googleapis.com/oauth2/…` and `accounts.google.com`. Nothing here asks for a
//! caller: the credential is in the request, or what is answered is public.

use control::credentials::{self, CodeExchange, Granted, TokenInfo};
use http::{HeaderValue, Method, header};
use model::{
    fault::{Code, Fault},
    iam::Principal,
};
use serde_json::{Value, json};

use super::{Cloud, certs};
use crate::{
    call::{Answer, Call, Query},
    error,
    reply::Reply,
};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const EMAIL_SCOPES: [&str; 3] =
    ["https://www.googleapis.com/auth/userinfo.email", "email", "https://www.googleapis.com/auth/cloud-platform"];

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    match (&call.method, call.parts().as_slice()) {
        (&Method::POST, ["token"] | ["oauth2", "v4", "token"] | ["o", "oauth2", "token"]) => {
            let form = form(call)?;
            Ok(secret(Reply::json(granted(grant(cloud, &form, call)?))))
        }
        (&Method::POST | &Method::GET, ["revoke"] | ["o", "oauth2", "revoke"]) => {
            let form = form(call)?;
            let token = form.get("token").or(call.query.get("token")).unwrap_or("");
            match cloud.mint.revoke(&cloud.control, token)? {
                true => Ok(Reply::json(json!({}))),
                false => Err(error::oauth("invalid_token", "Token expired or revoked")),
            }
        }
        (&Method::POST | &Method::GET, ["tokeninfo"] | ["oauth2", "v3", "tokeninfo"]) => {
            Ok(Reply::json(token_info(&info(cloud, call)?)))
        }
        (&Method::POST | &Method::GET, ["oauth2", "v1" | "v2", "tokeninfo"]) => {
            Ok(Reply::json(old_token_info(&info(cloud, call)?)))
        }
        (&Method::GET, ["oauth2", "v1" | "v2" | "v3", "userinfo"] | ["userinfo", "v2", "me"] | ["v1", "userinfo"]) => {
            user_info(cloud, call)
        }
        (&Method::GET, ["o", "oauth2", "auth"] | ["o", "oauth2", "v2", "auth"]) => Ok(no_page()),
        (&Method::GET, ["oauth2", "v1", "certs"]) => certs::x509(&cloud.mint, call.now),
        (&Method::GET, ["oauth2", "v2" | "v3", "certs"]) => certs::jwks(&cloud.mint, call.now),
        (&Method::GET, [".well-known", "openid-configuration"]) => Ok(certs::openid_configuration()),
        (&Method::GET, ["robot", "v1", "metadata", form, email])
        | (&Method::GET, ["service_accounts", "v1", "metadata", form, email])
        | (&Method::GET, ["service_accounts", "v1", form @ "jwk", email]) => {
            certs::of_account(&cloud.mint, &cloud.control.read(), form, email, call.now)
        }
        _ => Err(error::unknown_method()),
    }
}

fn grant(cloud: &Cloud, form: &Query, call: &Call) -> Result<Granted, Fault> {
    // A grant may give an ID token, and the key for it cannot be stored while the world is held.
    cloud.mint.ring()?;
    let world = cloud.control.read();
    let need = |name: &str| {
        let missing = || error::oauth("invalid_request", format!("Missing required parameter: {name}"));
        form.get(name).filter(|v| !v.is_empty()).ok_or_else(missing)
    };
    match need("grant_type")? {
        JWT_BEARER => credentials::jwt_bearer(&cloud.mint, &world, need("assertion")?, call.now),
        "refresh_token" => {
            let client = form.get("client_id").unwrap_or("");
            let asked = form.get("scope").unwrap_or("");
            credentials::refresh(&cloud.mint, &world, need("refresh_token")?, client, asked, call.now)
        }
        "authorization_code" => {
            let ask = CodeExchange {
                code: need("code")?,
                client_id: need("client_id")?,
                redirect_uri: need("redirect_uri")?,
                verifier: need("code_verifier")?,
            };
            credentials::exchange(&cloud.mint, ask, call.now)
        }
        other => Err(error::oauth("unsupported_grant_type", format!("Invalid grant_type: {other}"))),
    }
}

fn info(cloud: &Cloud, call: &Call) -> Result<TokenInfo, Fault> {
    let form = form(call)?;
    let token = form.get("access_token").or(call.query.get("access_token")).unwrap_or("");
    credentials::token_info(&cloud.mint, &cloud.control.read(), token, call.now)
        .ok_or_else(|| error::oauth("invalid_token", "Invalid Value"))
}

fn user_info(cloud: &Cloud, call: &Call) -> Answer {
    let refused = || Fault::new(Code::Unauthenticated, "invalid_request", "Invalid Credentials");
    let token = call.bearer().ok_or_else(refused)?;
    let info = credentials::token_info(&cloud.mint, &cloud.control.read(), token, call.now).ok_or_else(refused)?;
    if !shows_email(&info) {
        return Err(refused());
    }
    let email = info.principal.email();
    let old = call.parts().contains(&"v2");
    Ok(Reply::json(match old {
        true => json!({"id": info.id, "email": email, "verified_email": true}),
        false => json!({"sub": info.id, "email": email, "email_verified": true}),
    }))
}

/// The body as form or JSON, whichever it is.
fn form(call: &Call) -> Result<Query, Fault> {
    let bad = || error::oauth("invalid_request", "The request body could not be read.");
    let json = call.headers.content_type.as_deref().is_some_and(|t| t.starts_with("application/json"));
    if !json {
        let text = std::str::from_utf8(&call.body).map_err(|_| bad())?;
        return Query::parse(text.trim()).map_err(|_| bad());
    }
    let Value::Object(fields) = call.json().map_err(|_| bad())? else { return Err(bad()) };
    let escape = |text: &str| -> String { text.bytes().map(|b| format!("%{b:02X}")).collect() };
    let pairs = fields.iter().filter_map(|(name, value)| Some(format!("{}={}", escape(name), escape(value.as_str()?))));
    Query::parse(&pairs.collect::<Vec<_>>().join("&")).map_err(|_| bad())
}

fn granted(granted: Granted) -> Value {
    match granted {
        Granted::Access { token, expires_in_s } => {
            json!({"access_token": token, "expires_in": expires_in_s, "token_type": "Bearer"})
        }
        Granted::Id { token } => json!({"id_token": token}),
        Granted::User { access, id, scope, expires_in_s, refresh } => {
            let mut shown = json!({
                "access_token": access, "expires_in": expires_in_s, "scope": scope, "token_type": "Bearer", "id_token": id,
            });
            if let Some(refresh) = refresh {
                shown["refresh_token"] = refresh.into();
            }
            shown
        }
    }
}

/// There are no passwords here, and so no page on which a person could say yes: who operates the cloud says it.
fn no_page() -> Reply {
    let page = "<!doctype html><title>Sign in</title><p>This cloud has no passwords. Whoever operates it lets a client in \
                with <code>tombolo consent USER 'THE ADDRESS OF THIS PAGE'</code>, which prints the code that the client \
                asks for.\n";
    Reply::bytes(HeaderValue::from_static("text/html; charset=utf-8"), page)
}

/// Source: RFC 6749, 5.1: what holds a token is not to be cached.
fn secret(reply: Reply) -> Reply {
    reply.header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, max-age=0, must-revalidate"))
}

fn shows_email(info: &TokenInfo) -> bool {
    info.scopes.is_empty() || info.scopes.iter().any(|s| EMAIL_SCOPES.contains(&s.as_str()))
}

/// All values are texts here.
fn token_info(info: &TokenInfo) -> Value {
    let mut shown = json!({
        "azp": info.id,
        "aud": info.id,
        "scope": info.scopes.join(" "),
        "exp": info.expires.unix_s().to_string(),
        "expires_in": info.expires_in_s.to_string(),
    });
    if shows_email(info) {
        shown["sub"] = info.id.as_str().into();
        shown["email"] = info.principal.email().into();
        shown["email_verified"] = "true".into();
    }
    shown["access_type"] = match info.principal {
        Principal::User { .. } => "offline",
        Principal::ServiceAccount { .. } => "online",
    }
    .into();
    shown
}

fn old_token_info(info: &TokenInfo) -> Value {
    let mut shown = json!({
        "issued_to": info.id,
        "audience": info.id,
        "user_id": info.id,
        "scope": info.scopes.join(" "),
        "expires_in": info.expires_in_s,
    });
    if shows_email(info) {
        shown["email"] = info.principal.email().into();
        shown["verified_email"] = true.into();
    }
    shown["access_type"] = "online".into();
    shown
}
