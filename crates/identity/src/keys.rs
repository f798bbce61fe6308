//! RSA keys: what signs ID tokens, and what a service account's owner signs with.
//!
//! [`SigningKey`] is one key; [`KeyRing`] is the cloud's set with its order of succession. Time comes in as an argument
//! and nothing is stored here: [`KeyRing::stored`] is what to keep.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use model::{
    limits::{SIGNING_KEY_LIFE, SIGNING_KEY_PUBLISHED_AHEAD, TOKEN_LIFETIME, TOKEN_SKEW},
    planned::edge::PublicKey,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::base64::{self, Form};

/// The common name in the certificates of the cloud's own keys. Source: `oauth2/v1/certs`.
pub const FEDERATED_SIGNON: &str = "federated-signon.system.gserviceaccount.com";

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot generate an RSA key")]
    Generate,
    #[error("the stored private key does not parse")]
    Private,
    #[error("public key {kid:?} is no RSA key of at least 2048 bits")]
    Public { kid: String },
    #[error("cannot make the certificate of key {kid}")]
    Certificate { kid: String, source: rcgen::Error },
    #[error("a key ring needs at least one key")]
    EmptyRing,
}

/// An RSA-2048 private key. Its kid follows from its public half.
pub struct SigningKey {
    pair: KeyPair,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey {{ kid: {} }}", self.public.kid)
    }
}

impl SigningKey {
    /// Takes a tenth of a second of processor time: call it on a thread of its own.
    pub fn generate() -> Result<SigningKey, KeyError> {
        KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate).and_then(SigningKey::new)
    }

    /// PKCS#8, DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<SigningKey, KeyError> {
        KeyPair::from_pkcs8(der).map_err(|_| KeyError::Private).and_then(SigningKey::new)
    }

    fn new(pair: KeyPair) -> Result<SigningKey, KeyError> {
        let modulus = pair.public_key().modulus();
        let exponent = pair.public_key().exponent();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Private)?;
        let fingerprint = digest::digest(&digest::SHA256, spki.as_ref());
        let public = PublicKey {
            kid: hex(&fingerprint.as_ref()[..20]),
            n: base64::encode(Form::Url, modulus.big_endian_without_leading_zero()),
            e: base64::encode(Form::Url, exponent.big_endian_without_leading_zero()),
        };
        Ok(SigningKey { pair, public })
    }

    /// 40 lower-case hex digits: the first 20 bytes of the SHA-256 of the public key.
    pub fn kid(&self) -> &str {
        &self.public.kid
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// RSASSA-PKCS1-v1_5 with SHA-256, 256 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .expect("an RSA key of 2048 bits signs any SHA-256 digest");
        signature
    }

    /// A JWS over this payload, for `signJwt`. The payload is JSON text; it is signed as it is.
    pub fn sign_jwt(&self, payload: &str) -> String {
        crate::jwt::sign(self, payload)
    }

    /// The secret itself, PKCS#8 DER.
    pub fn to_pkcs8(&self) -> Vec<u8> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().expect("a key in memory always has its PKCS#8 form");
        der.as_ref().to_vec()
    }

    /// The secret itself, PKCS#8 in PEM.
    pub fn to_pkcs8_pem(&self) -> String {
        pem("PRIVATE KEY", &self.to_pkcs8())
    }

    /// A self-signed X.509 certificate over the public key, in PEM: the form in which older verifiers fetch keys.
    pub fn certificate(&self, common_name: &str, from: Timestamp, until: Timestamp) -> Result<String, KeyError> {
        let failed = |source| KeyError::Certificate { kid: self.public.kid.clone(), source };
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + from.since(Timestamp(0));
        params.not_after = epoch + until.since(Timestamp(0));
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let pair = rcgen::KeyPair::try_from(self.to_pkcs8()).map_err(failed)?;
        Ok(params.self_signed(&pair).map_err(failed)?.pem())
    }
}

/// The SubjectPublicKeyInfo of a key in PEM (`TYPE_RAW_PUBLIC_KEY`).
pub fn public_pem(key: &PublicKey) -> Result<String, KeyError> {
    let bad = || KeyError::Public { kid: key.kid.clone() };
    let n = base64::decode(Form::Url, &key.n).ok_or_else(bad)?;
    let e = base64::decode(Form::Url, &key.e).ok_or_else(bad)?;
    let der: PublicKeyX509Der<'_> = aws_lc_rs::rsa::PublicKeyComponents { n, e }.as_der().map_err(|_| bad())?;
    Ok(pem("PUBLIC KEY", der.as_ref()))
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::encode(Form::Standard, der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for start in (0..body.len()).step_by(64) {
        text.push_str(&body[start..body.len().min(start + 64)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// One key of the ring as it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    /// PKCS#8 DER, base64.
    pub pkcs8: String,
    pub signs_from: Timestamp,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredKey {{ signs_from: {} }}", self.signs_from)
    }
}

#[derive(Clone, Debug)]
struct Turn {
    key: Arc<SigningKey>,
    signs_from: Timestamp,
}

/// The keys that sign ID tokens, in the order of their turns. At every instant exactly one signs; a key is public from
/// the moment it is in the ring until the last token it signed has expired.
#[derive(Clone, Debug)]
pub struct KeyRing {
    /// By `signs_from`; never empty.
    turns: Vec<Turn>,
}

impl KeyRing {
    /// A new cloud: the first key signs at once.
    pub fn new(first: SigningKey, now: Timestamp) -> KeyRing {
        KeyRing { turns: vec![Turn { key: Arc::new(first), signs_from: now }] }
    }

    pub fn from_stored(stored: &[StoredKey]) -> Result<KeyRing, KeyError> {
        let mut turns = Vec::with_capacity(stored.len());
        for StoredKey { pkcs8, signs_from } in stored {
            let der = base64::decode(Form::Standard, pkcs8).ok_or(KeyError::Private)?;
            turns.push(Turn { key: Arc::new(SigningKey::from_pkcs8(&der)?), signs_from: *signs_from });
        }
        turns.sort_by_key(|turn| turn.signs_from);
        if turns.is_empty() { Err(KeyError::EmptyRing) } else { Ok(KeyRing { turns }) }
    }

    pub fn stored(&self) -> Vec<StoredKey> {
        let keep = |turn: &Turn| StoredKey {
            pkcs8: base64::encode(Form::Standard, &turn.key.to_pkcs8()),
            signs_from: turn.signs_from,
        };
        self.turns.iter().map(keep).collect()
    }

    /// Whose turn it is. Before the first turn, which only a clock that went back can show, the first key signs.
    pub fn signer(&self, now: Timestamp) -> Arc<SigningKey> {
        let turn = self.turns.iter().rev().find(|turn| turn.signs_from <= now).unwrap_or(&self.turns[0]);
        turn.key.clone()
    }

    /// Everything a verifier has to know.
    pub fn public(&self) -> Vec<PublicKey> {
        self.turns.iter().map(|turn| turn.key.public().clone()).collect()
    }

    /// The kid and the PEM certificate of every published key.
    pub fn certificates(&self) -> Result<Vec<(String, String)>, KeyError> {
        let certify = |turn: &Turn| {
            let from = turn.signs_from;
            let until = from.plus(SIGNING_KEY_LIFE + SIGNING_KEY_PUBLISHED_AHEAD);
            Ok((turn.key.kid().to_owned(), turn.key.certificate(FEDERATED_SIGNON, from, until)?))
        };
        self.turns.iter().map(certify).collect()
    }

    /// True when the last key's successor should be made and [added](Self::add) now.
    pub fn wants_successor(&self, now: Timestamp) -> bool {
        now.plus(SIGNING_KEY_PUBLISHED_AHEAD) >= self.last().signs_from.plus(SIGNING_KEY_LIFE)
    }

    /// Adds the next key. Its turn begins when the last one's life ends, and never before it was public for a day.
    pub fn add(&mut self, key: SigningKey, now: Timestamp) {
        let signs_from = self.last().signs_from.plus(SIGNING_KEY_LIFE).max(now.plus(SIGNING_KEY_PUBLISHED_AHEAD));
        self.turns.push(Turn { key: Arc::new(key), signs_from });
    }

    /// Forgets keys whose last token has expired. True when one went.
    pub fn retire(&mut self, now: Timestamp) -> bool {
        let dead = |next: &Turn| next.signs_from.plus(TOKEN_LIFETIME + TOKEN_SKEW) <= now;
        let gone = self.turns.iter().skip(1).take_while(|next| dead(next)).count();
        self.turns.drain(..gone);
        gone > 0
    }

    /// How long a copy of the published keys stays complete: until a key that is not in it may sign.
    pub fn fresh_for(&self, now: Timestamp) -> Duration {
        let next = self.last().signs_from.plus(SIGNING_KEY_LIFE).max(now.plus(SIGNING_KEY_PUBLISHED_AHEAD));
        next.since(now)
    }

    fn last(&self) -> &Turn {
        &self.turns[self.turns.len() - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: i64) -> Timestamp {
        Timestamp::from_unix_s(1_800_000_000 + n * 86_400)
    }

    #[test]
    fn a_key_survives_storage_with_its_kid() {
        let key = SigningKey::generate().unwrap();
        assert_eq!(key.kid().len(), 40);
        assert_eq!(key.public().e, "AQAB");
        let again = SigningKey::from_pkcs8(&key.to_pkcs8()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.sign(b"x"), key.sign(b"x"));
        assert!(!format!("{key:?}").contains("pair"));
    }

    #[test]
    fn keys_take_turns_and_are_public_before_and_after_their_own() {
        let mut ring = KeyRing::new(SigningKey::generate().unwrap(), day(0));
        let first = ring.signer(day(0)).kid().to_owned();
        assert!(!ring.wants_successor(day(12)));
        assert!(ring.wants_successor(day(13)));
        ring.add(SigningKey::generate().unwrap(), day(13));
        assert!(!ring.wants_successor(day(13)));
        assert_eq!((ring.public().len(), ring.signer(day(13)).kid()), (2, first.as_str()));
        assert_ne!(ring.signer(day(14)).kid(), first);
        let last_token_ends = day(14).plus(TOKEN_LIFETIME + TOKEN_SKEW);
        assert!(!ring.retire(Timestamp(last_token_ends.0 - 1)), "a token of the first key may still be valid");
        assert!(ring.retire(last_token_ends));
        assert_eq!(ring.public().len(), 1);
        assert_eq!(KeyRing::from_stored(&ring.stored()).unwrap().public(), ring.public());
    }

    #[test]
    fn a_cloud_that_slept_for_months_still_publishes_a_key_a_day_before_it_signs() {
        let mut ring = KeyRing::new(SigningKey::generate().unwrap(), day(0));
        let old = ring.signer(day(0)).kid().to_owned();
        ring.add(SigningKey::generate().unwrap(), day(100));
        assert_eq!(ring.signer(day(100)).kid(), old);
        assert_ne!(ring.signer(day(101)).kid(), old);
        assert_eq!(ring.fresh_for(day(100)), SIGNING_KEY_LIFE + SIGNING_KEY_PUBLISHED_AHEAD);
    }

    #[test]
    fn every_published_key_has_a_certificate() {
        let ring = KeyRing::new(SigningKey::generate().unwrap(), day(0));
        let certificates = ring.certificates().unwrap();
        assert_eq!(certificates[0].0, ring.public()[0].kid);
        assert!(certificates[0].1.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(public_pem(&ring.public()[0]).unwrap().starts_with("-----BEGIN PUBLIC KEY-----\nMIIB"));
    }
}
