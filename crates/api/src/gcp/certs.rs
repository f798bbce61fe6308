//! Published keys: the cloud's own and those of its service accounts, as certificates and as JWK sets.

use control::{tokens::Mint, world::World};
use http::{HeaderValue, header};
use model::{
    fault::{Code, Fault},
    planned::edge::PublicKey,
    time::Timestamp,
};
use serde_json::{Map, Value, json};

use crate::{call::Answer, reply::Reply};

/// Clients keep a copy this long at most, in seconds, even where it would stay complete for longer.
const CACHE_S_MAX: u64 = 20_000;

/// `{kid: certificate}` of the keys that sign ID tokens. May wait for a new cloud's first one, as [`jwks`] may.
pub fn x509(mint: &Mint, now: Timestamp) -> Answer {
    let certificates = mint.ring()?.certificates().map_err(|why| {
        eprintln!("api: {why}");
        Fault::internal("The certificates cannot be made.")
    })?;
    let set: Map<String, Value> = certificates.into_iter().map(|(kid, pem)| (kid, pem.into())).collect();
    Ok(cached(mint, now, set.into()))
}

/// The same keys as a JWK set.
pub fn jwks(mint: &Mint, now: Timestamp) -> Answer {
    Ok(cached(mint, now, jwk_set(&mint.ring()?.public())))
}

fn jwk_set(keys: &[PublicKey]) -> Value {
    let jwk = |k: &PublicKey| json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": k.kid, "n": k.n, "e": k.e});
    json!({"keys": keys.iter().map(jwk).collect::<Vec<_>>()})
}

/// The keys whose signatures count as an account's.
pub fn of_account(mint: &Mint, world: &World, form: &str, email: &str, now: Timestamp) -> Answer {
    let absent = || Fault::new(Code::NotFound, "notFound", "Requested entity was not found.");
    let account = world.accounts.get(&email.to_ascii_lowercase()).ok_or_else(absent)?;
    let keys = mint.keys_of(world, account);
    match form {
        "jwk" => Ok(cached(mint, now, jwk_set(&keys))),
        "x509" => {
            // A certificate needs the private key, which only the owner has: what is published instead is the public
            // key itself in PEM, which the verifiers of Google's libraries read as well.
            let pem = |key: &PublicKey| Some((key.kid.clone(), identity::keys::public_pem(key).ok()?.into()));
            let set: Map<String, Value> = keys.iter().filter_map(pem).collect();
            Ok(cached(mint, now, set.into()))
        }
        _ => Err(crate::error::unknown_method()),
    }
}

fn cached(mint: &Mint, now: Timestamp, body: Value) -> Reply {
    let seconds = mint.try_ring().map_or(0, |ring| ring.fresh_for(now).as_secs()).min(CACHE_S_MAX);
    let control = format!("public, max-age={seconds}, must-revalidate, no-transform");
    let value = HeaderValue::from_str(&control).expect("digits and words are a header value");
    Reply::json(body).header(header::CACHE_CONTROL, value)
}

/// Source: OpenID Connect Discovery 1.0, and accounts.google.com's own document.
pub fn openid_configuration() -> Reply {
    Reply::json(json!({
        "issuer": identity::token::ISSUER,
        "authorization_endpoint": "https://accounts.google.com/o/oauth2/v2/auth",
        "token_endpoint": "https://oauth2.googleapis.com/token",
        "userinfo_endpoint": "https://openidconnect.googleapis.com/v1/userinfo",
        "revocation_endpoint": "https://oauth2.googleapis.com/revoke",
        "jwks_uri": "https://www.googleapis.com/oauth2/v3/certs",
        "response_types_supported": ["code", "token", "id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid", "email", "profile"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "claims_supported": ["aud", "email", "email_verified", "exp", "iat", "iss", "sub"],
        "code_challenge_methods_supported": ["S256"],
        "grant_types_supported": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:jwt-bearer"],
    }))
}
