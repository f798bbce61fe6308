//! What the holder of a service account's key signs: assertions for the token endpoint, and whole credentials that need
//! no token endpoint. Also the key file that such a holder is given.
//!
//! The issuer claims who it is before anyone can check it: [`Assertion::parse`] says whose keys to fetch, and only
//! [`Assertion::verify`] gives claims to act on.

use model::{
    limits::{ASSERTION_LIFETIME_MAX, ASSERTION_SKEW, TOKEN_SKEW},
    planned::edge::PublicKey,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    jwt::{KeySet, Unverified},
    keys::SigningKey,
    token::TokenError,
};

/// Audiences that mean Google's token endpoint. Source: OAuth for service accounts; `token_uri` of key files.
pub const TOKEN_ENDPOINTS: [&str; 3] = [
    "https://oauth2.googleapis.com/token",
    "https://www.googleapis.com/oauth2/v4/token",
    "https://accounts.google.com/o/oauth2/token",
];

/// A JWT of a service account, not yet believed.
pub struct Assertion<'a> {
    jwt: Unverified<'a>,
    claims: Claims,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Claims {
    iss: String,
    sub: Option<String>,
    aud: Option<String>,
    scope: Option<String>,
    target_audience: Option<String>,
    iat: i64,
    exp: i64,
}

/// A JWT that this service account signed, in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    claims: Claims,
}

/// What a `jwt-bearer` grant asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    AccessToken { scopes: Vec<String> },
    IdToken { audience: String },
}

/// Why a verified assertion gives nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("the assertion is not meant for this endpoint")]
    Audience,
    #[error("neither a scope nor a target audience is named")]
    Nothing,
    #[error("acting for another user is not authorised")]
    Delegation,
}

impl<'a> Assertion<'a> {
    pub fn parse(text: &'a str) -> Result<Assertion<'a>, TokenError> {
        let jwt = Unverified::parse(text)?;
        let claims = jwt.claims()?;
        Ok(Assertion { jwt, claims })
    }

    /// The e-mail address that it says it is from.
    pub fn claimed_issuer(&self) -> &str {
        &self.claims.iss
    }

    /// The id of the key that it says it is signed with.
    pub fn kid(&self) -> &str {
        self.jwt.kid()
    }

    /// `keys` are the enabled keys of the account that [`Self::claimed_issuer`] names.
    pub fn verify(self, keys: &[PublicKey], now: Timestamp) -> Result<Verified, TokenError> {
        let keys = KeySet::new(keys).map_err(|_| TokenError::UnknownKey)?;
        self.jwt.verify(&keys)?;
        check_times(&self.claims, now)?;
        Ok(Verified { claims: self.claims })
    }
}

/// Parse and verify in one step, where the account is known already.
pub fn verify_assertion(keys: &[PublicKey], issuer: &str, text: &str, now: Timestamp) -> Result<Verified, TokenError> {
    let assertion = Assertion::parse(text)?;
    if !assertion.claimed_issuer().eq_ignore_ascii_case(issuer) {
        return Err(TokenError::Issuer);
    }
    assertion.verify(keys, now)
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), TokenError> {
    let (iat, exp) = (Timestamp::from_unix_s(claims.iat), Timestamp::from_unix_s(claims.exp));
    if exp <= iat {
        return Err(TokenError::Claims);
    }
    if exp.since(iat) > ASSERTION_LIFETIME_MAX + TOKEN_SKEW {
        return Err(TokenError::Lifetime);
    }
    if now >= exp.plus(TOKEN_SKEW) {
        return Err(TokenError::Expired);
    }
    if iat > now.plus(ASSERTION_SKEW) {
        return Err(TokenError::NotYetValid);
    }
    Ok(())
}

impl Verified {
    /// The account's e-mail address, lower case.
    pub fn email(&self) -> String {
        self.claims.iss.to_ascii_lowercase()
    }

    /// When it ends.
    pub fn expires(&self) -> Timestamp {
        Timestamp::from_unix_s(self.claims.exp)
    }

    /// Reads it as a grant at the token endpoint. `own` is the URL of our own endpoint, accepted beside Google's.
    pub fn grant(&self, own: &str) -> Result<Grant, GrantError> {
        let aud = self.claims.aud.as_deref().ok_or(GrantError::Audience)?;
        if aud != own && !TOKEN_ENDPOINTS.contains(&aud) {
            return Err(GrantError::Audience);
        }
        self.no_delegation()?;
        let scopes = self.scopes();
        match (&self.claims.target_audience, scopes.is_empty()) {
            (Some(audience), _) if !audience.is_empty() => Ok(Grant::IdToken { audience: audience.clone() }),
            (_, false) => Ok(Grant::AccessToken { scopes }),
            (_, true) => Err(GrantError::Nothing),
        }
    }

    /// Reads it as a credential by itself at the API `https://{service}/`. Empty scopes mean all of the service.
    pub fn credential(&self, service: &str) -> Result<Vec<String>, GrantError> {
        if self.claims.sub.is_none() {
            return Err(GrantError::Delegation);
        }
        self.no_delegation()?;
        let scopes = self.scopes();
        match &self.claims.aud {
            Some(aud) => {
                let host = aud.strip_prefix("https://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
                if host == Some(service) { Ok(scopes) } else { Err(GrantError::Audience) }
            }
            None if scopes.is_empty() => Err(GrantError::Nothing),
            None => Ok(scopes),
        }
    }

    fn scopes(&self) -> Vec<String> {
        self.claims.scope.iter().flat_map(|scope| scope.split_ascii_whitespace()).map(str::to_owned).collect()
    }

    fn no_delegation(&self) -> Result<(), GrantError> {
        match &self.claims.sub {
            Some(sub) if !sub.eq_ignore_ascii_case(&self.claims.iss) => Err(GrantError::Delegation),
            Some(_) | None => Ok(()),
        }
    }
}

/// The JSON file a key's holder is given, member for member as Google writes it.
#[derive(Serialize)]
pub struct CredentialsFile<'a> {
    r#type: &'static str,
    project_id: &'a str,
    private_key_id: &'a str,
    private_key: String,
    client_email: &'a str,
    client_id: &'a str,
    auth_uri: &'static str,
    token_uri: &'a str,
    auth_provider_x509_cert_url: &'static str,
    client_x509_cert_url: String,
    universe_domain: &'static str,
}

impl<'a> CredentialsFile<'a> {
    /// `token_uri` is where libraries will send what they sign with the key.
    pub fn new(account: &'a model::iam::ServiceAccount, key: &'a SigningKey, token_uri: &'a str) -> Self {
        CredentialsFile {
            r#type: "service_account",
            project_id: account.project.as_str(),
            private_key_id: key.kid(),
            private_key: key.to_pkcs8_pem(),
            client_email: &account.email,
            client_id: &account.unique_id,
            auth_uri: "https://accounts.google.com/o/oauth2/auth",
            token_uri,
            auth_provider_x509_cert_url: "https://www.googleapis.com/oauth2/v1/certs",
            client_x509_cert_url: format!(
                "https://www.googleapis.com/robot/v1/metadata/x509/{}",
                account.email.replace('@', "%40")
            ),
            universe_domain: "googleapis.com",
        }
    }

    /// Indented with two spaces, with a final newline.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings always serialise") + "\n"
    }
}
