//! The cloud's keys, the tokens made with them, and who a credential belongs to.
//!
//! [`Mint`] holds the private keys in memory; the store holds them too, so that tokens outlive a restart of control.
//! Nobody else gets them: the guest asks [`Mint::for_seat`], the proxy gets [`Mint::public`], the token endpoint and
//! IAM credentials ask through [`crate::credentials`].

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use aws_lc_rs::digest;
use identity::{
    access::{self, AccessClaims, AccessError, AccessKey},
    assertion::Assertion,
    base64::{self, Form},
    keys::{KeyError, KeyRing, SigningKey, StoredKey},
    token::{ISSUER, IdClaims, sign_id_token},
};
use model::{
    fault::Fault,
    iam::{Principal, ServiceAccount},
    limits::{
        METADATA_TOKEN_LEFT_MIN, MINT_CACHE_MAX, OPERATOR_TOKEN_LIFETIME, REFRESH_TOKEN_LIFETIME, SIGNING_KEY_WAIT_MAX,
        TOKEN_LIFETIME,
    },
    planned::{
        edge::PublicKey,
        guest::{MintRefusal, Minted, Realm, Seat, Want},
    },
    time::Timestamp,
    vm, vpc,
};
use serde::{Deserialize, Serialize};

mod consent;

pub use self::consent::Consent;
use crate::{
    accounts,
    kind::Record,
    ops::{Caller, Change, Control},
    policies, projects,
    world::World,
};

pub const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// How a user's refresh token begins. Source: Google's do.
const REFRESH_PREFIX: &str = "1//0";
/// How [`access::mint_access`] begins a user's token; a refresh token wears another prefix.
const USER_PREFIX: &str = "ya29.a0";

/// How often it is asked whether a signing key is due, and how soon again when one could not be made.
const KEYS_CHECK: Duration = Duration::from_secs(60);
const KEYS_RETRY: Duration = Duration::from_secs(1);

/// The private keys as they are stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// What access tokens are sealed with: 32 bytes, base64.
    access: String,
    /// What ID tokens are signed with. Empty until the first one is made.
    ring: Vec<StoredKey>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MintError {
    #[error("cannot use the stored keys")]
    Key(#[from] KeyError),
    #[error("the stored access key is no 32 bytes of base64")]
    AccessKey,
    #[error("cannot store the new keys: {0}")]
    Store(Fault),
}

/// Why a credential was refused at an API. The door words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no credential")]
    Missing,
    #[error("not a token of this cloud, or taken back")]
    Unknown,
    #[error("expired")]
    Expired,
    #[error("not an access token")]
    WrongType,
    #[error("the account is disabled or deleted")]
    AccountState,
}

/// Everything that can make a token.
pub struct Mint {
    access: AccessKey,
    refresh: AccessKey,
    /// None until a new cloud's first key is made and stored.
    ring: Mutex<Option<KeyRing>>,
    /// Rings when there is one.
    founded: Condvar,
    cache: Mutex<HashMap<CacheKey, (String, Timestamp)>>,
    system: Mutex<HashMap<String, Arc<SigningKey>>>,
    /// By code. They are gone with the process; whoever held one asks again.
    consents: Mutex<HashMap<String, Consent>>,
}

/// A token that would be the same if it were made again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    unique_id: String,
    /// The workload, where the token speaks about it.
    seat: Option<Seat>,
    /// Scopes, or the audience.
    what: Vec<String>,
    id_token: bool,
}

impl Mint {
    /// The cloud's keys, made and stored on its first start. The one that signs ID tokens takes a tenth of a second to
    /// make, which nobody who only asks for access tokens should wait for: it is left to [`Mint::tend`].
    pub fn open(control: &Control) -> Result<Mint, MintError> {
        let stored = control.read().secrets.clone();
        let secrets = match stored {
            Some(secrets) => secrets,
            None => Mint::found(control)?,
        };
        let bytes = base64::decode(Form::Standard, &secrets.access).ok_or(MintError::AccessKey)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| MintError::AccessKey)?;
        let derived = digest::digest(&digest::SHA256, &[b"refresh tokens".as_slice(), &bytes].concat());
        let derived: [u8; 32] = derived.as_ref().try_into().expect("SHA-256 gives 32 bytes");
        let ring = if secrets.ring.is_empty() { None } else { Some(KeyRing::from_stored(&secrets.ring)?) };
        Ok(Mint {
            access: AccessKey::from_bytes(bytes),
            refresh: AccessKey::from_bytes(derived),
            ring: Mutex::new(ring),
            founded: Condvar::new(),
            cache: Mutex::default(),
            system: Mutex::default(),
            consents: Mutex::default(),
        })
    }

    fn found(control: &Control) -> Result<Secrets, MintError> {
        let access = base64::encode(Form::Standard, &AccessKey::generate().to_bytes());
        let fresh = Secrets { access, ring: Vec::new() };
        let decide = |world: &World, txn: &mut crate::ops::Txn| match &world.secrets {
            Some(theirs) => Ok(theirs.clone()),
            None => {
                txn.push(Change::Secrets(Box::new(fresh.clone())));
                Ok(fresh.clone())
            }
        };
        control.commit(decide).map(|(secrets, _)| secrets).map_err(MintError::Store)
    }

    /// Starts the thread that makes signing keys: a new cloud's first one at once, each next one when it is time.
    pub fn keep(self: &Arc<Mint>, control: &Arc<Control>) -> io::Result<()> {
        let (mint, control) = (self.clone(), control.clone());
        let keep = move || loop {
            let pause = match mint.tend(&control) {
                Ok(_) => KEYS_CHECK,
                Err(error) => {
                    eprintln!("control: cannot make the signing key that is due: {error}");
                    KEYS_RETRY
                }
            };
            thread::sleep(pause);
        };
        thread::Builder::new().name("keys".to_owned()).spawn(keep)?;
        Ok(())
    }

    /// Makes the signing key that is due, if one is, and forgets dead ones. True when the published keys have changed.
    ///
    /// Takes a tenth of a second when it makes one: call it on a thread that may block. A key is stored before anything
    /// is signed with it.
    pub fn tend(&self, control: &Control) -> Result<bool, MintError> {
        let now = control.now();
        let ring = match self.try_ring() {
            None => KeyRing::new(SigningKey::generate()?, now),
            Some(mut ring) => {
                let due = ring.wants_successor(now);
                if due {
                    ring.add(SigningKey::generate()?, now);
                }
                if !ring.retire(now) && !due {
                    return Ok(false);
                }
                ring
            }
        };
        let decide = |world: &World, txn: &mut crate::ops::Txn| {
            if let Some(secrets) = &world.secrets {
                txn.push(Change::Secrets(Box::new(Secrets { ring: ring.stored(), ..secrets.clone() })));
            }
            Ok(())
        };
        control.commit(decide).map_err(MintError::Store)?;
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring);
        self.founded.notify_all();
        // The driver may have looked between the commit and now.
        control.changed.notify_one();
        Ok(true)
    }

    /// The ring if there is one yet.
    pub fn try_ring(&self) -> Option<KeyRing> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ring: public keys, certificates, how long copies of them stay fresh. Waits for a new cloud's first key: call
    /// it on a thread that may block and does not hold the world, which storing the key has to change.
    pub fn ring(&self) -> Result<KeyRing, Fault> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.founded.wait_timeout_while(ring, SIGNING_KEY_WAIT_MAX, |ring| ring.is_none());
        let (ring, _) = found.unwrap_or_else(PoisonError::into_inner);
        ring.clone().ok_or_else(no_key_yet)
    }

    /// What verifiers need; nothing before the first key is there.
    pub fn public(&self) -> Vec<PublicKey> {
        self.try_ring().map(|ring| ring.public()).unwrap_or_default()
    }

    /// An access token of an hour, or of `lifetime`.
    pub(crate) fn access_token(
        &self,
        principal: Principal,
        scopes: Vec<String>,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<String, AccessError> {
        let claims = AccessClaims { principal, scopes, issued: now, expires: now.plus(lifetime) };
        access::mint_access(&self.access, &claims)
    }

    /// Does not wait for the first key: whoever can has called [`Mint::ring`] before.
    pub(crate) fn id_token(&self, claims: &IdClaims, now: Timestamp) -> Result<String, Fault> {
        let ring = self.try_ring().ok_or_else(no_key_yet)?;
        Ok(sign_id_token(&ring.signer(now), claims))
    }

    /// The token that the operator's file holds: all scopes, for a person.
    pub fn operator_token(&self, email: &str, now: Timestamp) -> Result<String, AccessError> {
        let principal = Principal::User { email: email.to_ascii_lowercase() };
        self.access_token(principal, vec![CLOUD_PLATFORM.to_owned()], now, OPERATOR_TOKEN_LIFETIME)
    }

    /// What `gcloud auth activate-refresh-token EMAIL` takes, good for these scopes; for any when there are none. Only the
    /// operator may ask for one.
    pub fn refresh_token(&self, email: &str, scopes: Vec<String>, now: Timestamp) -> Result<String, AccessError> {
        let claims = AccessClaims {
            principal: Principal::User { email: email.to_ascii_lowercase() },
            scopes,
            issued: now,
            expires: now.plus(REFRESH_TOKEN_LIFETIME),
        };
        let token = access::mint_access(&self.refresh, &claims)?;
        Ok(token.replacen(USER_PREFIX, REFRESH_PREFIX, 1))
    }

    /// Whose a refresh token is.
    pub(crate) fn verify_refresh(&self, world: &World, token: &str, now: Timestamp) -> Option<AccessClaims> {
        let sealed = format!("{USER_PREFIX}{}", token.strip_prefix(REFRESH_PREFIX)?);
        let claims = access::verify_access(&self.refresh, &sealed, now).ok()?;
        (!world.revoked.contains_key(&digest_of(token))).then_some(claims)
    }

    /// The claims of an access token, if it is one of ours, in time, not taken back, and of a living principal.
    pub fn verify_access(&self, world: &World, token: &str, now: Timestamp) -> Result<AccessClaims, Refused> {
        let claims = access::verify_access(&self.access, token, now).map_err(|why| match why {
            AccessError::Expired => Refused::Expired,
            AccessError::Invalid | AccessError::TooLong => Refused::Unknown,
        })?;
        if world.revoked.contains_key(&digest_of(token)) {
            return Err(Refused::Unknown);
        }
        match &claims.principal {
            Principal::User { .. } => Ok(claims),
            Principal::ServiceAccount { email, unique_id } => match world.accounts.get(email) {
                Some(account) if account.unique_id == *unique_id && accounts::is_usable(world, account) => Ok(claims),
                Some(_) | None => Err(Refused::AccountState),
            },
        }
    }

    /// Who is calling the API `service` (`run.googleapis.com`): an access token, or a JWT that a service account
    /// signed with its own key.
    pub fn authenticate(
        &self,
        world: &World,
        bearer: Option<&str>,
        service: &str,
        now: Timestamp,
    ) -> Result<Caller, Refused> {
        let token = bearer.ok_or(Refused::Missing)?;
        if token.bytes().filter(|b| *b == b'.').count() == 2 && !token.starts_with("ya29.") {
            return self.authenticate_assertion(world, token, service, now);
        }
        let claims = self.verify_access(world, token, now)?;
        // To a caller, no scopes means all of them; a token without scopes reaches nothing.
        if claims.scopes.is_empty() {
            return Err(Refused::Unknown);
        }
        Ok(Caller { until: Some(claims.expires), ..Caller::new(claims.principal, claims.scopes) })
    }

    fn authenticate_assertion(
        &self,
        world: &World,
        token: &str,
        service: &str,
        now: Timestamp,
    ) -> Result<Caller, Refused> {
        let assertion = Assertion::parse(token).map_err(|_| Refused::WrongType)?;
        let account = world.accounts.get(&assertion.claimed_issuer().to_ascii_lowercase()).ok_or(Refused::WrongType)?;
        let keys = self.keys_of(world, account);
        let verified = assertion.verify(&keys, now).map_err(|why| match why {
            identity::token::TokenError::Expired => Refused::Expired,
            _ => Refused::Unknown,
        })?;
        if !accounts::is_usable(world, account) {
            return Err(Refused::AccountState);
        }
        let scopes = verified.credential(service).map_err(|_| Refused::Unknown)?;
        Ok(Caller { until: Some(verified.expires()), ..Caller::new(principal(account), scopes) })
    }

    /// Every key whose signature counts as the account's: those its owner holds and are enabled, and the one control
    /// signs with in its name.
    pub fn keys_of(&self, world: &World, account: &ServiceAccount) -> Vec<PublicKey> {
        let held = accounts::keys_of(world, &account.email).filter(|k| !k.disabled).map(|k| k.public.clone());
        let system = world.system_keys.get(&account.email).and_then(|stored| self.parse_system(&account.email, stored));
        held.chain(system.map(|key| key.public().clone())).collect()
    }

    /// The key that control signs with in the account's name, made when it is first needed.
    ///
    /// Making one takes a tenth of a second: call it on a thread that may block.
    pub(crate) fn system_key(&self, control: &Control, account: &ServiceAccount) -> Result<Arc<SigningKey>, Fault> {
        let broken = || Fault::internal("The account's signing key cannot be used.");
        let stored = control.read().system_keys.get(&account.email).cloned();
        let stored = match stored {
            Some(stored) => stored,
            None => {
                let key = SigningKey::generate().map_err(|_| broken())?;
                let fresh = KeyRing::new(key, control.now()).stored().remove(0);
                let decide = |world: &World, txn: &mut crate::ops::Txn| match world.system_keys.get(&account.email) {
                    Some(theirs) => Ok(theirs.clone()),
                    None => {
                        txn.push(Change::SystemKey(account.email.clone(), fresh.clone()));
                        Ok(fresh.clone())
                    }
                };
                control.commit(decide)?.0
            }
        };
        self.parse_system(&account.email, &stored).ok_or_else(broken)
    }

    fn parse_system(&self, email: &str, stored: &StoredKey) -> Option<Arc<SigningKey>> {
        let mut parsed = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        let der = base64::decode(Form::Standard, &stored.pkcs8)?;
        if let Some(key) = parsed.get(email).filter(|key| key.to_pkcs8() == der) {
            return Some(key.clone());
        }
        let key = Arc::new(SigningKey::from_pkcs8(&der).ok()?);
        parsed.insert(email.to_owned(), key.clone());
        Some(key)
    }

    /// Takes a user's token back. False: it was none of ours, or dead already.
    pub fn revoke(&self, control: &Control, token: &str) -> Result<bool, Fault> {
        let now = control.now();
        let until = {
            let world = control.read();
            match self.verify_refresh(&world, token, now) {
                Some(claims) => Some(claims.expires),
                None => match self.verify_access(&world, token, now) {
                    Ok(AccessClaims { principal: Principal::User { .. }, expires, .. }) => Some(expires),
                    // Source: OAuth, tokens of service accounts cannot be revoked.
                    Ok(_) | Err(_) => None,
                },
            }
        };
        let Some(until) = until else { return Ok(false) };
        control.commit(|_, txn| {
            txn.push(Change::Revoked(digest_of(token), until));
            Ok(())
        })?;
        Ok(true)
    }

    /// A token for the workload in this seat, the only one it can ask for. Handed out again while it has five minutes
    /// left; whether its account may still be used is asked every time.
    pub fn for_seat(&self, world: &World, seat: Seat, want: &Want, now: Timestamp) -> Result<Minted, MintRefusal> {
        let tenant = tenant(world, seat).ok_or(MintRefusal::NoAccount)?;
        let account = tenant.usable(world)?;
        let key = CacheKey {
            unique_id: account.unique_id.clone(),
            seat: matches!(want, Want::IdToken { full: true, .. }).then_some(seat),
            what: match want {
                Want::AccessToken { scopes } => tenant.scopes(scopes),
                Want::IdToken { audience, .. } => vec![audience.clone()],
            },
            id_token: matches!(want, Want::IdToken { .. }),
        };
        // A VM that was given no scopes, or is asked for others than it has.
        if key.what.is_empty() {
            return Err(MintRefusal::NoAccount);
        }
        if let Some(minted) = self.cached(&key, now) {
            return Ok(minted);
        }
        let expires = now.plus(TOKEN_LIFETIME);
        let token = match want {
            Want::AccessToken { .. } => self
                .access_token(principal(account), key.what.clone(), now, TOKEN_LIFETIME)
                .map_err(|_| MintRefusal::Unusable)?,
            Want::IdToken { audience, full } => {
                let google = if *full { tenant.google_claim(world) } else { None };
                self.id_token(&account_claims(account, audience, google, now), now)
                    .map_err(|_| MintRefusal::Unusable)?
            }
        };
        self.remember(key, token.clone(), expires, now);
        Ok(Minted { token, expires_in_s: left_s(expires, now) })
    }

    fn cached(&self, key: &CacheKey, now: Timestamp) -> Option<Minted> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, expires) = cache.get(key)?;
        (expires.since(now) > METADATA_TOKEN_LEFT_MIN)
            .then(|| Minted { token: token.clone(), expires_in_s: left_s(*expires, now) })
    }

    fn remember(&self, key: CacheKey, token: String, expires: Timestamp, now: Timestamp) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MINT_CACHE_MAX {
            cache.retain(|_, (_, expires)| expires.since(now) > METADATA_TOKEN_LEFT_MIN);
        }
        // Still full of living tokens: they can all be made again.
        if cache.len() >= MINT_CACHE_MAX {
            cache.clear();
        }
        cache.insert(key, (token, expires));
    }
}

fn no_key_yet() -> Fault {
    Fault::unavailable("The cloud's first signing key is still being made. Try again.")
}

fn left_s(expires: Timestamp, now: Timestamp) -> u64 {
    // Source: Google's answers say 3599 for a fresh token.
    expires.since(now).as_secs().saturating_sub(1)
}

/// By which a revoked credential is remembered; the credential itself is not stored.
fn digest_of(token: &str) -> String {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

pub fn principal(account: &ServiceAccount) -> Principal {
    Principal::ServiceAccount { email: account.email.clone(), unique_id: account.unique_id.clone() }
}

/// The claims of an ID token for a service account, as the metadata server's has them.
pub(crate) fn account_claims(
    account: &ServiceAccount,
    audience: &str,
    google: Option<serde_json::Value>,
    now: Timestamp,
) -> IdClaims {
    IdClaims {
        aud: audience.to_owned(),
        azp: Some(account.unique_id.clone()),
        email: Some(account.email.clone()),
        email_verified: true,
        exp: now.plus(TOKEN_LIFETIME).unix_s(),
        google,
        iat: now.unix_s(),
        iss: ISSUER.to_owned(),
        sub: account.unique_id.clone(),
    }
}

/// Who sits in a seat.
enum Tenant<'w> {
    Vm { record: &'w Record<vm::Instance>, account: &'w vm::AttachedAccount },
    Container { project: &'w model::project::Project, account: &'w str },
}

fn tenant(world: &World, seat: Seat) -> Option<Tenant<'_>> {
    match seat.realm {
        Realm::Vpc(network) => {
            let record = world.at::<vm::Instance>(&world.by_id::<vpc::Network>(network.0)?.link, seat.address)?;
            Some(Tenant::Vm { record, account: record.spec.service_account.as_ref()? })
        }
        Realm::Fabric => {
            let revision = world.seats.at(seat.address)?;
            let account = &world.revisions.get(revision)?.template.service_account;
            Some(Tenant::Container { project: world.projects.get(&revision.service.project)?, account })
        }
    }
}

impl Tenant<'_> {
    /// The account, if tokens may be made for it now.
    fn usable<'w>(&self, world: &'w World) -> Result<&'w ServiceAccount, MintRefusal> {
        let email = match self {
            Tenant::Vm { account, .. } => account.email.as_str(),
            Tenant::Container { account, .. } => account,
        };
        let account = world.accounts.get(email).filter(|a| accounts::is_usable(world, a));
        let account = account.ok_or(MintRefusal::Unusable)?;
        match self {
            Tenant::Vm { .. } => Ok(account),
            // Cloud Run mints as its service agent, which must be allowed to: for accounts of other projects that
            // takes a grant, and a grant can be taken back.
            Tenant::Container { project, .. } => {
                let agent = projects::run_agent(project);
                let resource = accounts::resource_name(account);
                if policies::holds(world, &agent, "iam.serviceAccounts.getAccessToken", &resource) {
                    Ok(account)
                } else {
                    Err(MintRefusal::Unusable)
                }
            }
        }
    }

    /// The scopes of a token when these are asked for. A VM has those it was started with, and no other.
    fn scopes(&self, asked: &[String]) -> Vec<String> {
        match self {
            Tenant::Container { .. } if asked.is_empty() => vec![CLOUD_PLATFORM.to_owned()],
            Tenant::Container { .. } => asked.to_vec(),
            Tenant::Vm { account, .. } if asked.is_empty() => account.scopes.clone(),
            Tenant::Vm { account, .. } => {
                let all = account.scopes.iter().any(|s| s == CLOUD_PLATFORM);
                asked.iter().filter(|s| all || account.scopes.contains(s)).cloned().collect()
            }
        }
    }

    /// The `google` claim of `format=full`: what a VM is. Containers have none.
    fn google_claim(&self, world: &World) -> Option<serde_json::Value> {
        let Tenant::Vm { record, .. } = self else { return None };
        let project = world.projects.get(&record.link.project)?;
        Some(serde_json::json!({"compute_engine": {
            "instance_creation_timestamp": record.created.unix_s(),
            "instance_id": record.id.to_string(),
            "instance_name": record.link.name,
            "project_id": project.id,
            "project_number": project.number,
            "zone": match &record.link.scope {
                model::name::Scope::Zone(zone) => zone.as_str(),
                model::name::Scope::Global | model::name::Scope::Region(_) => "",
            },
        }}))
    }
}

#[cfg(test)]
mod tests;
