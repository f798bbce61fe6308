//! Policies, roles' users and service accounts as they are stored.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{name::ProjectId, time::Timestamp};

/// An allow policy. Source: IAM `Policy`, versions 1 and 3.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub bindings: Vec<Binding>,
    /// Counts writes; 0 is "never set" and shows as etag `ACAB`.
    pub revision: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// `roles/run.invoker`.
    pub role: String,
    /// As IAM spells them: `user:…`, `serviceAccount:…`, `allUsers`, …; lower-cased, sorted, without repetition.
    pub members: BTreeSet<String>,
    pub condition: Option<Condition>,
}

/// Stored and shown. A binding whose condition we cannot evaluate grants nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub title: String,
    pub description: String,
    pub expression: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceAccount {
    pub email: String,
    pub project: ProjectId,
    /// 21 decimal digits, first digit 1, never reused; `sub` of its tokens.
    pub unique_id: String,
    pub display_name: String,
    pub description: String,
    pub disabled: bool,
    pub created: Timestamp,
    /// Google-managed agents are not listed and cannot be changed by users.
    pub agent: bool,
}

/// Who is calling. Decided at the door from a credential, never from a header.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Principal {
    User { email: String },
    ServiceAccount { email: String, unique_id: String },
}

impl Principal {
    pub fn email(&self) -> &str {
        match self {
            Principal::User { email } | Principal::ServiceAccount { email, .. } => email,
        }
    }

    /// The member string that names exactly this principal.
    pub fn member(&self) -> String {
        match self {
            Principal::User { email } => format!("user:{email}"),
            Principal::ServiceAccount { email, .. } => format!("serviceAccount:{email}"),
        }
    }
}
