//! ID tokens: who is calling a service, signed by the cloud.
//!
//! [`sign_id_token`] needs a private key and runs in the control process only; [`Verifier`] needs public keys and sits
//! in the proxy. Neither knows which services exist: whoever verifies says which audiences are its own.

use std::collections::BTreeSet;

use model::{
    limits::{TOKEN_LIFETIME, TOKEN_SKEW},
    planned::edge::PublicKey,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    jwt::{self, KeySet, Unverified},
    keys::{KeyError, SigningKey},
};

/// The issuer of every ID token. Source: OpenID discovery document of accounts.google.com.
pub const ISSUER: &str = "https://accounts.google.com";
/// The issuer's second spelling, accepted and never written.
pub const ISSUER_BARE: &str = "accounts.google.com";

/// Why a token is not accepted. Callers answer all of them alike; logs may tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a token of {bytes} bytes is over the limit")]
    Oversize { bytes: usize },
    #[error("the token is not three base64url parts with a JSON header")]
    Malformed,
    #[error("the token is not signed with RS256")]
    Algorithm,
    #[error("no known key has the token's kid")]
    UnknownKey,
    #[error("the signature does not match")]
    Signature,
    #[error("a claim is missing, repeated or of the wrong type")]
    Claims,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token was issued in the future")]
    NotYetValid,
    #[error("the token is valid for longer than an hour")]
    Lifetime,
}

/// The claims of an ID token. The order of the fields is the order on the wire: alphabetical, as Google's are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdClaims {
    /// One string, never a list; verbatim what was asked for.
    pub aud: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub email_verified: bool,
    /// Seconds since 1970.
    pub exp: i64,
    /// The instance, in tokens of `format=full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub google: Option<serde_json::Value>,
    /// Seconds since 1970.
    pub iat: i64,
    pub iss: String,
    /// The unique id of a service account or user.
    pub sub: String,
}

impl IdClaims {
    /// The e-mail address, when the issuer vouches for it; lower case, as policies compare it.
    pub fn verified_email(&self) -> Option<String> {
        self.email.as_ref().filter(|_| self.email_verified).map(|email| email.to_ascii_lowercase())
    }
}

pub fn sign_id_token(key: &SigningKey, claims: &IdClaims) -> String {
    let payload = serde_json::to_string(claims).expect("strings, numbers and JSON always serialise");
    jwt::sign(key, &payload)
}

/// Checks ID tokens against one set of public keys, parsed once. Build a new one when the keys change.
pub struct Verifier {
    keys: KeySet,
}

impl Verifier {
    pub fn new(keys: &[PublicKey]) -> Result<Verifier, KeyError> {
        Ok(Verifier { keys: KeySet::new(keys)? })
    }

    /// Shape, algorithm, key, signature, issuer and time. The audience is left to the caller: see [`Self::verify_for`].
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<IdClaims, TokenError> {
        let token = Unverified::parse(token)?;
        token.verify(&self.keys)?;
        let claims: IdClaims = token.claims()?;
        if claims.iss != ISSUER && claims.iss != ISSUER_BARE {
            return Err(TokenError::Issuer);
        }
        check_times(claims.iat, claims.exp, now)?;
        Ok(claims)
    }

    /// [`Self::verify`], and the token must be meant for one of `audiences`.
    pub fn verify_for(
        &self,
        token: &str,
        audiences: &BTreeSet<String>,
        now: Timestamp,
    ) -> Result<IdClaims, TokenError> {
        let claims = self.verify(token, now)?;
        if audiences.contains(&claims.aud) { Ok(claims) } else { Err(TokenError::Audience) }
    }
}

/// One verification with keys that are parsed for it. For more than one, keep a [`Verifier`].
pub fn verify_id_token(keys: &[PublicKey], token: &str, now: Timestamp) -> Result<IdClaims, TokenError> {
    Verifier::new(keys).map_err(|_| TokenError::UnknownKey)?.verify(token, now)
}

fn check_times(iat: i64, exp: i64, now: Timestamp) -> Result<(), TokenError> {
    if exp <= iat {
        return Err(TokenError::Claims);
    }
    let (iat, exp) = (Timestamp::from_unix_s(iat), Timestamp::from_unix_s(exp));
    if exp.since(iat) > TOKEN_LIFETIME {
        return Err(TokenError::Lifetime);
    }
    if now >= exp.plus(TOKEN_SKEW) {
        return Err(TokenError::Expired);
    }
    if iat > now.plus(TOKEN_SKEW) {
        return Err(TokenError::NotYetValid);
    }
    Ok(())
}
