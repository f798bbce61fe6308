//! The one shape of signed token that tombolo reads and writes: a compact JWS with RS256 (RFC 7515, RFC 8725).
//!
//! The algorithm is not negotiable: the header may only agree. Claims are the business of `token` and `assertion`; here
//! they are bytes.

use aws_lc_rs::{
    rsa::PublicKeyComponents,
    signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256},
};
use model::{limits::TOKEN_BYTES_MAX, planned::edge::PublicKey};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    base64::{self, Form},
    json,
    keys::{KeyError, SigningKey},
    token::TokenError,
};

/// 2048 bits.
const MODULUS_BYTES_MIN: usize = 256;

/// Serialised header and payload, base64url, a dot, and the signature over both.
pub fn sign(key: &SigningKey, payload: &str) -> String {
    // The kid is hex, so nothing in the header needs escaping.
    let header = format!(r#"{{"alg":"RS256","kid":"{}","typ":"JWT"}}"#, key.kid());
    let mut text = base64::encode(Form::Url, header.as_bytes());
    text.push('.');
    text.push_str(&base64::encode(Form::Url, payload.as_bytes()));
    let signature = base64::encode(Form::Url, &key.sign(text.as_bytes()));
    text.push('.');
    text.push_str(&signature);
    text
}

/// A well-formed JWS whose signature nobody has checked yet.
pub struct Unverified<'a> {
    signed: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
    kid: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// Extensions that must be understood (RFC 7515, 4.1.11). We understand none.
    crit: Option<serde_json::Value>,
}

impl<'a> Unverified<'a> {
    pub fn parse(text: &'a str) -> Result<Unverified<'a>, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Oversize { bytes: text.len() });
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let part = |text| base64::decode(Form::Url, text).ok_or(TokenError::Malformed);
        let header: Header = json::parse(&part(header)?).ok_or(TokenError::Malformed)?;
        if header.alg != "RS256" {
            return Err(TokenError::Algorithm);
        }
        if header.crit.is_some() || header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
            return Err(TokenError::Malformed);
        }
        let kid = header.kid.ok_or(TokenError::UnknownKey)?;
        // A second dot in the payload is no base64 and falls here.
        Ok(Unverified { signed, payload: part(payload)?, signature: part(signature)?, kid })
    }

    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The claims as their author wrote them. Good for nothing but finding out whose keys to check with.
    pub fn claims<T: DeserializeOwned>(&self) -> Result<T, TokenError> {
        json::parse(&self.payload).ok_or(TokenError::Claims)
    }

    pub fn verify(&self, keys: &KeySet) -> Result<(), TokenError> {
        let key = keys.find(&self.kid).ok_or(TokenError::UnknownKey)?;
        key.verify_sig(self.signed.as_bytes(), &self.signature).map_err(|_| TokenError::Signature)
    }
}

/// Public keys, parsed once. There are two or three; a list is the fastest map.
pub struct KeySet(Vec<(String, ParsedPublicKey)>);

impl KeySet {
    /// Refuses keys under 2048 bits and what is no RSA key.
    pub fn new(keys: &[PublicKey]) -> Result<KeySet, KeyError> {
        keys.iter().map(|key| Ok((key.kid.clone(), parse_key(key)?))).collect::<Result<_, _>>().map(KeySet)
    }

    fn find(&self, kid: &str) -> Option<&ParsedPublicKey> {
        self.0.iter().find(|(id, _)| id == kid).map(|(_, key)| key)
    }
}

fn parse_key(key: &PublicKey) -> Result<ParsedPublicKey, KeyError> {
    let bad = || KeyError::Public { kid: key.kid.clone() };
    let n = base64::decode(Form::Url, &key.n).ok_or_else(bad)?;
    let e = base64::decode(Form::Url, &key.e).ok_or_else(bad)?;
    // The library looks at the size only when it verifies; a weak key must not get that far.
    if n.len() < MODULUS_BYTES_MIN || n[0] < 0x80 && n.len() == MODULUS_BYTES_MIN {
        return Err(bad());
    }
    PublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).map_err(|_| bad())
}
