//! Access tokens: opaque to everybody but control, and complete, so that they need no entry in any table.
//!
//! A token is the claims, sealed with AES-256-GCM under a key that only control holds. It can be read and checked after
//! a restart, and it cannot be read or forged elsewhere. What it cannot be is taken back one by one: whoever accepts it
//! must still ask whether the principal exists and is enabled.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use model::{iam::Principal, limits::ACCESS_TOKEN_BYTES_MAX, time::Timestamp};
use serde::{Deserialize, Serialize};

use crate::base64::{self, Form};

/// Source: Google's tokens for service accounts and for users look like this.
const PREFIX_ACCOUNT: &str = "ya29.c.";
const PREFIX_USER: &str = "ya29.a0";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessClaims {
    pub principal: Principal,
    /// Full scope URLs.
    pub scopes: Vec<String>,
    pub issued: Timestamp,
    pub expires: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Ours, and once valid.
    #[error("the access token has expired")]
    Expired,
    /// Never ours: garbage, an ID token, or sealed under another key.
    #[error("no access token of this cloud")]
    Invalid,
    #[error("so many scopes do not fit into an access token")]
    TooLong,
}

/// The secret that makes and opens access tokens.
pub struct AccessKey {
    secret: [u8; 32],
    aead: RandomizedNonceKey,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKey")
    }
}

impl AccessKey {
    pub fn generate() -> AccessKey {
        let mut secret = [0; 32];
        rand::fill(&mut secret).expect("the kernel's random source does not fail once seeded");
        AccessKey::from_bytes(secret)
    }

    pub fn from_bytes(secret: [u8; 32]) -> AccessKey {
        let aead = RandomizedNonceKey::new(&AES_256_GCM, &secret).expect("the key has the length of the algorithm");
        AccessKey { secret, aead }
    }

    /// The secret itself, to be kept.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.secret
    }
}

pub fn mint_access(key: &AccessKey, claims: &AccessClaims) -> Result<String, AccessError> {
    let prefix = match claims.principal {
        Principal::User { .. } => PREFIX_USER,
        Principal::ServiceAccount { .. } => PREFIX_ACCOUNT,
    };
    let mut sealed = serde_json::to_vec(claims).expect("strings and numbers always serialise");
    let nonce = key
        .aead
        .seal_in_place_append_tag(Aad::from(prefix), &mut sealed)
        .expect("AES-GCM seals any message below 64 GiB");
    sealed.extend_from_slice(nonce.as_ref());
    let token = format!("{prefix}{}", base64::encode(Form::Url, &sealed));
    if token.len() > ACCESS_TOKEN_BYTES_MAX { Err(AccessError::TooLong) } else { Ok(token) }
}

pub fn verify_access(key: &AccessKey, token: &str, now: Timestamp) -> Result<AccessClaims, AccessError> {
    let claims = open(key, token).ok_or(AccessError::Invalid)?;
    if now >= claims.expires { Err(AccessError::Expired) } else { Ok(claims) }
}

fn open(key: &AccessKey, token: &str) -> Option<AccessClaims> {
    if token.len() > ACCESS_TOKEN_BYTES_MAX {
        return None;
    }
    let with = |prefix: &'static str| token.strip_prefix(prefix).map(|body| (prefix, body));
    let (prefix, body) = with(PREFIX_ACCOUNT).or_else(|| with(PREFIX_USER))?;
    let mut sealed = base64::decode(Form::Url, body)?;
    let nonce = sealed.split_off(sealed.len().checked_sub(NONCE_LEN)?);
    let nonce = Nonce::try_assume_unique_for_key(&nonce).ok()?;
    let plain = key.aead.open_in_place(nonce, Aad::from(prefix), &mut sealed).ok()?;
    serde_json::from_slice(plain).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> AccessClaims {
        AccessClaims {
            principal: Principal::ServiceAccount {
                email: "123456789012-compute@developer.gserviceaccount.com".into(),
                unique_id: "100000000000000000001".into(),
            },
            scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
            issued: Timestamp::from_unix_s(1_000),
            expires: Timestamp::from_unix_s(4_600),
        }
    }

    #[test]
    fn a_token_survives_a_restart_with_the_key_and_dies_at_its_hour() {
        let key = AccessKey::generate();
        let token = mint_access(&key, &claims()).unwrap();
        assert!(token.starts_with("ya29.c."), "{token}");
        let after_restart = AccessKey::from_bytes(key.to_bytes());
        assert_eq!(verify_access(&after_restart, &token, Timestamp::from_unix_s(4_599)), Ok(claims()));
        assert_eq!(verify_access(&key, &token, Timestamp::from_unix_s(4_600)), Err(AccessError::Expired));
    }

    #[test]
    fn a_token_of_another_key_or_kind_is_nobodys() {
        let key = AccessKey::generate();
        let now = Timestamp::from_unix_s(2_000);
        let token = mint_access(&key, &claims()).unwrap();
        let as_user = token.replacen(PREFIX_ACCOUNT, PREFIX_USER, 1);
        let foreign = mint_access(&AccessKey::generate(), &claims()).unwrap();
        for bad in ["", "ya29.c.", "ya29.c.AAAA", "eyJhbGciOiJub25lIn0.e30.", &as_user, &foreign, &token[..80]] {
            assert_eq!(verify_access(&key, bad, now), Err(AccessError::Invalid), "{bad}");
        }
    }

    #[test]
    fn two_tokens_for_the_same_claims_share_nothing_but_their_prefix() {
        let key = AccessKey::generate();
        let (a, b) = (mint_access(&key, &claims()).unwrap(), mint_access(&key, &claims()).unwrap());
        assert_ne!(a[7..20], b[7..20]);
    }

    #[test]
    fn scopes_beyond_the_limit_are_refused_rather_than_cut() {
        let scopes = vec!["https://www.googleapis.com/auth/x".to_owned(); 100];
        assert_eq!(
            mint_access(&AccessKey::generate(), &AccessClaims { scopes, ..claims() }),
            Err(AccessError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn one_changed_character_makes_it_invalid(at in 7usize..200, with in "[A-Za-z0-9_-]") {
            let key = AccessKey::from_bytes([7; 32]);
            let token = mint_access(&key, &claims()).unwrap();
            prop_assume!(at < token.len() && token[at..=at] != with);
            let changed = format!("{}{with}{}", &token[..at], &token[at + 1..]);
            prop_assert_eq!(verify_access(&key, &changed, Timestamp::from_unix_s(2_000)), Err(AccessError::Invalid));
        }
    }
}
