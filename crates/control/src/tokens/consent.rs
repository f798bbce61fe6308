//! Codes that clients exchange for tokens of a user. Whoever operates the cloud hands them out; nobody else can.

use std::sync::PoisonError;

use model::{fault::Fault, limits::CONSENTS_MAX, time::Timestamp};

use super::Mint;
use crate::random;

/// That a client may act as a user. Only the operator can say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    pub email: String,
    /// The client as it named itself, and where it wanted the code sent: both must be the same again.
    pub client_id: String,
    pub redirect_uri: String,
    /// The SHA-256 of what only the client knows, base64url. Source: RFC 7636, S256.
    pub challenge: String,
    pub scopes: Vec<String>,
    pub until: Timestamp,
}

impl Mint {
    /// A code for which a client gets tokens of a user, once. Only the operator may ask for one.
    pub fn consent(&self, consent: Consent, now: Timestamp) -> Result<String, Fault> {
        let mut consents = self.consents.lock().unwrap_or_else(PoisonError::into_inner);
        consents.retain(|_, consent| consent.until > now);
        if consents.len() >= CONSENTS_MAX {
            return Err(Fault::unavailable("So many codes are out already. They end after ten minutes."));
        }
        // Source: Google's codes look like this.
        let code = format!("4/0{}", random::hex(64));
        consents.insert(code.clone(), consent);
        Ok(code)
    }

    /// Takes a code: whatever becomes of it, it is not taken again.
    pub(crate) fn take_consent(&self, code: &str, now: Timestamp) -> Option<Consent> {
        let mut consents = self.consents.lock().unwrap_or_else(PoisonError::into_inner);
        consents.remove(code).filter(|consent| consent.until > now)
    }
}
