//! OS Login: what somebody is called inside VMs, and with which keys they come.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{name::ProjectId, time::Timestamp};

/// Whoever owns an address has one profile, the same in every VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginProfile {
    pub email: String,
    /// Decimal, never reused. Source: `loginProfile.name`.
    pub id: String,
    /// Of a service account its unique id: an account that is made again under an old address gets no old keys.
    pub account: Option<String>,
    pub username: String,
    /// Also the number of its group.
    pub uid: u32,
    /// By fingerprint.
    pub keys: BTreeMap<String, LoginKey>,
    /// Projects in whose VMs it has an account.
    pub projects: BTreeSet<ProjectId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginKey {
    /// A line as `authorized_keys` has it.
    pub key: String,
    pub expires: Option<Timestamp>,
}

impl LoginKey {
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}
