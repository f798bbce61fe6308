//! Turning one credential into another: the token endpoint, and IAM credentials (impersonation).
//!
//! Faults of the token endpoint carry OAuth's word (`invalid_grant`, …) as their reason.

use std::time::Duration;

use identity::{
    assertion::{Assertion, Grant, GrantError, TOKEN_ENDPOINTS},
    base64::{self, Form},
    token::TokenError,
};
use model::{
    fault::{Code, Fault},
    iam::{Principal, ServiceAccount},
    limits::TOKEN_LIFETIME,
    time::Timestamp,
};

use crate::{
    accounts::{self, AccountName},
    ops::{Caller, Control},
    policies,
    tokens::{self, CLOUD_PLATFORM, Mint, account_claims},
    world::World,
};

/// The OAuth client that gcloud is. Source: gcloud's own ID tokens.
const GCLOUD_CLIENT: &str = "32555940559.apps.googleusercontent.com";

/// What a grant gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    Access { token: String, expires_in_s: u64 },
    Id { token: String },
    User { access: String, id: String, scope: String, expires_in_s: u64, refresh: Option<String> },
}

/// Seconds that the token endpoint says a fresh token lives. Source: it always says 3599.
const EXPIRES_IN_S: u64 = 3_599;

fn oauth(word: &str, text: &str) -> Fault {
    let code = if word == "invalid_client" { Code::Unauthenticated } else { Code::InvalidArgument };
    Fault::new(code, word, text)
}

/// A service account's own signature for a token.
pub fn jwt_bearer(mint: &Mint, world: &World, text: &str, now: Timestamp) -> Result<Granted, Fault> {
    const SIGNATURE: &str = "Invalid JWT Signature.";
    let invalid = |why: &str| oauth("invalid_grant", why);
    let assertion = Assertion::parse(text).map_err(|_| invalid("Invalid JWT: Failed parsing the assertion."))?;
    let account = world.accounts.get(&assertion.claimed_issuer().to_ascii_lowercase());
    let account = account.ok_or_else(|| invalid("Invalid grant: account not found"))?;
    let verified = assertion.verify(&mint.keys_of(world, account), now).map_err(|why| match why {
        TokenError::Expired | TokenError::NotYetValid | TokenError::Lifetime | TokenError::Claims => invalid(
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and \
             exp values in the JWT claim.",
        ),
        _ => invalid(SIGNATURE),
    })?;
    if !accounts::is_usable(world, account) {
        return Err(oauth("invalid_client", "The OAuth client was disabled."));
    }
    let grant = verified.grant(TOKEN_ENDPOINTS[0]).map_err(|why| match why {
        GrantError::Audience => invalid("Invalid JWT: Failed audience check."),
        GrantError::Nothing => oauth("invalid_scope", "Invalid OAuth scope or ID token audience provided."),
        GrantError::Delegation => oauth(
            "unauthorized_client",
            "Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the \
             scopes requested.",
        ),
    })?;
    match grant {
        Grant::AccessToken { scopes } => {
            let token = mint
                .access_token(tokens::principal(account), scopes, now, TOKEN_LIFETIME)
                .map_err(|_| oauth("invalid_scope", "Too many scopes."))?;
            Ok(Granted::Access { token, expires_in_s: EXPIRES_IN_S })
        }
        Grant::IdToken { audience } => {
            let mut claims = account_claims(account, &audience, None, now);
            // Source: tokens of this grant name the presenter by address.
            claims.azp = Some(account.email.clone());
            Ok(Granted::Id { token: mint.id_token(&claims, now)? })
        }
    }
}

/// A user's refresh token for an access token and an ID token. `asked` are scopes, of those that the token was given
/// for; without any it is all of them.
pub fn refresh(
    mint: &Mint,
    world: &World,
    token: &str,
    client_id: &str,
    asked: &str,
    now: Timestamp,
) -> Result<Granted, Fault> {
    let claims = mint
        .verify_refresh(world, token, now)
        .ok_or_else(|| oauth("invalid_grant", "Token has been expired or revoked."))?;
    let email = claims.principal.email().to_owned();
    // One that the operator made names no scopes and is good for any.
    let any = claims.scopes.is_empty();
    let usual =
        || [CLOUD_PLATFORM, "https://www.googleapis.com/auth/userinfo.email", "openid"].map(str::to_owned).to_vec();
    let asked: Vec<String> = asked.split_whitespace().map(str::to_owned).collect();
    if !any && !asked.iter().all(|scope| claims.scopes.contains(scope)) {
        return Err(oauth("invalid_scope", "Bad Request"));
    }
    let scopes = match (asked.is_empty(), any) {
        (false, _) => asked,
        (true, true) => usual(),
        (true, false) => claims.scopes,
    };
    let scope = scopes.join(" ");
    let access = mint
        .access_token(claims.principal, scopes, now, TOKEN_LIFETIME)
        .map_err(|_| oauth("invalid_scope", "Too many scopes."))?;
    let audience = if client_id.is_empty() { GCLOUD_CLIENT } else { client_id };
    let id = mint.id_token(&user_claims(&email, audience, now), now)?;
    Ok(Granted::User { access, id, scope, expires_in_s: EXPIRES_IN_S, refresh: None })
}

/// What a client brings with the code that the operator gave to its user.
#[derive(Clone, Copy, Debug)]
pub struct CodeExchange<'a> {
    pub code: &'a str,
    pub client_id: &'a str,
    pub redirect_uri: &'a str,
    /// What its challenge was made of (RFC 7636).
    pub verifier: &'a str,
}

/// A code for a user's tokens, a refresh token among them.
pub fn exchange(mint: &Mint, ask: CodeExchange<'_>, now: Timestamp) -> Result<Granted, Fault> {
    let invalid = |why: &str| oauth("invalid_grant", why);
    let consent = mint.take_consent(ask.code, now).ok_or_else(|| invalid("Malformed auth code."))?;
    if consent.client_id != ask.client_id {
        return Err(oauth("invalid_client", "The OAuth client was not found."));
    }
    if consent.redirect_uri != ask.redirect_uri {
        return Err(oauth("redirect_uri_mismatch", "Bad Request"));
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, ask.verifier.as_bytes());
    if base64::encode(Form::Url, digest.as_ref()) != consent.challenge {
        return Err(invalid("Invalid code verifier."));
    }
    let principal = Principal::User { email: consent.email.to_ascii_lowercase() };
    let scope = consent.scopes.join(" ");
    let too_many = |_| oauth("invalid_scope", "Too many scopes.");
    let access = mint.access_token(principal, consent.scopes.clone(), now, TOKEN_LIFETIME).map_err(too_many)?;
    let refresh = mint.refresh_token(&consent.email, consent.scopes, now).map_err(too_many)?;
    let id = mint.id_token(&user_claims(&consent.email.to_ascii_lowercase(), ask.client_id, now), now)?;
    Ok(Granted::User { access, id, scope, expires_in_s: EXPIRES_IN_S, refresh: Some(refresh) })
}

fn user_claims(email: &str, audience: &str, now: Timestamp) -> identity::token::IdClaims {
    identity::token::IdClaims {
        aud: audience.to_owned(),
        azp: Some(audience.to_owned()),
        email: Some(email.to_owned()),
        email_verified: true,
        exp: now.plus(TOKEN_LIFETIME).unix_s(),
        google: None,
        iat: now.unix_s(),
        iss: identity::token::ISSUER.to_owned(),
        sub: user_id(email),
    }
}

/// The numeric id of a user: 21 digits that follow from the address, for users are not stored.
pub fn user_id(email: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, email.as_bytes());
    let digits: String = digest.as_ref().iter().take(20).map(|b| char::from(b'0' + b % 10)).collect();
    format!("1{digits}")
}

/// A request to act as a service account: `projects/-/serviceAccounts/ACCOUNT`, perhaps over others.
#[derive(Clone, Copy, Debug)]
pub struct Impersonation<'a> {
    pub account: &'a str,
    /// Accounts in between, first to last, each `projects/-/serviceAccounts/ACCOUNT`.
    pub delegates: &'a [String],
}

/// The account, if the caller may use it through every hop.
fn impersonate(
    control: &Control,
    world: &World,
    caller: &Caller,
    ask: Impersonation<'_>,
    permission: &'static str,
) -> Result<ServiceAccount, Fault> {
    let target = AccountName { project: "-", account: ask.account };
    let mut actor = caller.clone();
    for delegate in ask.delegates {
        let name = delegate.strip_prefix("projects/-/serviceAccounts/").ok_or_else(|| {
            Fault::invalid(format!("Invalid delegate '{delegate}': it must be projects/-/serviceAccounts/ACCOUNT."))
        })?;
        let hop = AccountName { project: "-", account: name };
        let hop = usable(accounts::own(control, world, &actor, hop, "iam.serviceAccounts.implicitDelegation")?)?;
        actor = Caller::new(tokens::principal(hop), Vec::new());
    }
    usable(accounts::own(control, world, &actor, target, permission)?).cloned()
}

fn usable(account: &ServiceAccount) -> Result<&ServiceAccount, Fault> {
    if account.disabled {
        let text = format!("Service account {} is disabled.", account.email);
        return Err(Fault::new(Code::FailedPrecondition, "failedPrecondition", text));
    }
    Ok(account)
}

/// `generateAccessToken`: the token and when it expires.
pub fn access_token(
    mint: &Mint,
    control: &Control,
    caller: &Caller,
    ask: Impersonation<'_>,
    scopes: &[String],
    lifetime: Duration,
) -> Result<(String, Timestamp), Fault> {
    let now = control.now();
    let account = impersonate(control, &control.read(), caller, ask, "iam.serviceAccounts.getAccessToken")?;
    if scopes.is_empty() {
        return Err(missing("scope"));
    }
    if lifetime.is_zero() {
        return Err(Fault::invalid("The lifetime of an access token must be positive."));
    }
    if lifetime > TOKEN_LIFETIME {
        return Err(Fault::invalid(format!(
            "Access tokens for service account {} can not have lifetimes of more than 1 hour. Use the Org Policy \
             Constraint constraints/iam.allowServiceAccountCredentialLifetimeExtension to allow up to 12 hours.",
            account.email
        )));
    }
    let token = mint
        .access_token(tokens::principal(&account), scopes.to_vec(), now, lifetime)
        .map_err(|_| Fault::invalid("So many scopes do not fit into an access token."))?;
    Ok((token, now.plus(lifetime)))
}

fn missing(field: &str) -> Fault {
    Fault::invalid(format!("Request contains an invalid argument: {field} is required.")).with_detail(
        serde_json::json!({
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [{"field": field, "description": "required"}],
        }),
    )
}

/// `generateIdToken`. May wait for the cloud's first signing key: call it where blocking is fine.
pub fn id_token(
    mint: &Mint,
    control: &Control,
    caller: &Caller,
    ask: Impersonation<'_>,
    audience: &str,
    include_email: bool,
) -> Result<String, Fault> {
    mint.ring()?;
    let now = control.now();
    let account = impersonate(control, &control.read(), caller, ask, "iam.serviceAccounts.getOpenIdToken")?;
    if audience.is_empty() {
        return Err(missing("audience"));
    }
    let mut claims = account_claims(&account, audience, None, now);
    if !include_email {
        claims.email = None;
        claims.email_verified = false;
    }
    mint.id_token(&claims, now)
}

/// A signature and the id of the key that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub key_id: String,
    /// A JWT, or base64.
    pub value: String,
}

/// `signJwt` over JSON text with an `exp` of at most twelve hours. May make an RSA key: call it where blocking is fine.
pub fn sign_jwt(
    mint: &Mint,
    control: &Control,
    caller: &Caller,
    ask: Impersonation<'_>,
    payload: &str,
) -> Result<Signed, Fault> {
    let account = impersonate(control, &control.read(), caller, ask, "iam.serviceAccounts.signJwt")?;
    let claims: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(payload).map_err(|_| Fault::invalid("The payload must be a JSON object."))?;
    let now = control.now().unix_s();
    if let Some(exp) = claims.get("exp") {
        let exp = exp.as_i64().ok_or_else(|| Fault::invalid("The exp claim must be an integer."))?;
        if exp <= now || exp > now + 12 * 3_600 {
            return Err(Fault::invalid("The exp claim must be in the future and at most 12 hours away."));
        }
    }
    let key = mint.system_key(control, &account)?;
    Ok(Signed { key_id: key.kid().to_owned(), value: key.sign_jwt(payload) })
}

/// `signBlob`. May make an RSA key: call it where blocking is fine.
pub fn sign_blob(
    mint: &Mint,
    control: &Control,
    caller: &Caller,
    ask: Impersonation<'_>,
    payload: &str,
) -> Result<Signed, Fault> {
    let account = impersonate(control, &control.read(), caller, ask, "iam.serviceAccounts.signBlob")?;
    let bytes = base64::decode(Form::Standard, payload).ok_or_else(|| Fault::invalid("The payload is not base64."))?;
    let key = mint.system_key(control, &account)?;
    Ok(Signed { key_id: key.kid().to_owned(), value: base64::encode(Form::Standard, &key.sign(&bytes)) })
}

/// What `tokeninfo` tells of an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    pub principal: Principal,
    /// The unique id of an account, the numeric id of a user.
    pub id: String,
    pub scopes: Vec<String>,
    pub expires: Timestamp,
    pub expires_in_s: u64,
}

pub fn token_info(mint: &Mint, world: &World, token: &str, now: Timestamp) -> Option<TokenInfo> {
    let claims = mint.verify_access(world, token, now).ok()?;
    let id = match &claims.principal {
        Principal::User { email } => user_id(email),
        Principal::ServiceAccount { unique_id, .. } => unique_id.clone(),
    };
    let expires_in_s = claims.expires.since(now).as_secs();
    Some(TokenInfo { principal: claims.principal, id, scopes: claims.scopes, expires: claims.expires, expires_in_s })
}

/// Whether the caller may use the quota of a project (`x-goog-user-project`).
pub fn may_use_project(world: &World, caller: &Caller, project: &str) -> Result<(), Fault> {
    let found = world.project(project).map(|p| format!("projects/{}", p.id));
    if found.is_some_and(|resource| policies::holds(world, &caller.principal, "serviceusage.services.use", &resource)) {
        return Ok(());
    }
    let text = format!(
        "Caller does not have required permission to use project {project}. Grant the caller the \
         roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission, by \
         visiting https://console.developers.google.com/iam-admin/iam/project?project={project} and then retry. \
         Propagation of the new permission may take a few minutes."
    );
    Err(Fault::new(Code::PermissionDenied, "forbidden", text).with_detail(serde_json::json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "USER_PROJECT_DENIED",
        "domain": "googleapis.com",
        "metadata": {"consumer": format!("projects/{project}")},
    })))
}
