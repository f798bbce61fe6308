//! Compute operations: what a mutation promised, and whether packets obey it yet.

use model::{
    fault::Fault,
    id::ResourceId,
    name::{Link, ProjectId, Scope},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// `operation-<epoch ms>-<13 hex>-<8 hex>-<8 hex>`.
    pub name: String,
    pub id: ResourceId,
    pub project: ProjectId,
    pub scope: Scope,
    /// `insert`, `patch`, `delete`, `createRegionPscForwardingRule`, …
    pub verb: String,
    pub target: Link,
    pub target_id: ResourceId,
    /// The caller's e-mail address.
    pub user: String,
    pub inserted: Timestamp,
    /// `requestId` of the call, for repeats.
    pub request_id: Option<String>,
    pub state: OperationState,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OperationState {
    /// Committed; the machine does not obey it everywhere yet.
    Running,
    Done {
        at: Timestamp,
        fault: Option<Fault>,
    },
}

impl Operation {
    pub fn is_done(&self) -> bool {
        matches!(self.state, OperationState::Done { .. })
    }

    /// Whether the target is there because of this operation. Endpoints of Private Service Connect are made by a verb of
    /// their own.
    pub fn makes_its_target(&self) -> bool {
        self.verb == "insert" || self.verb.ends_with(".insert") || self.verb.starts_with("create")
    }
}
