//! Projects and the APIs enabled on them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    name::{ProjectId, ProjectNumber, Region},
    time::Timestamp,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Project {
    pub id: ProjectId,
    pub number: ProjectNumber,
    pub display_name: String,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// `organizations/N` or `folders/N`.
    pub parent: Option<String>,
    pub active: bool,
    /// Service names such as `run.googleapis.com`.
    pub enabled: BTreeSet<String>,
    /// `commonInstanceMetadata`.
    pub common_metadata: BTreeMap<String, String>,
    /// Ten lower-case alphanumerics in every legacy `run.app` URL of the project, the same in every region.
    pub url_hash: String,
}

impl Project {
    /// Source: IAM, "Compute Engine default service account".
    pub fn compute_default_account(&self) -> String {
        format!("{}-compute@developer.gserviceaccount.com", self.number)
    }
}

/// The number of a region in plans; none is 0, which packets carry that nobody placed anywhere.
pub fn region_number(region: &Region) -> Option<u32> {
    let at = REGIONS.iter().position(|(name, ..)| *name == region.as_str())?;
    u32::try_from(at).ok()?.checked_add(1)
}

/// The regions and zones of every tombolo. All run on this machine; the names are what clients expect to find.
pub const REGIONS: &[(&str, &str, &[&str])] = &[
    // (region, code in legacy run.app hosts, zone letters); source: Cloud Run URLs, Compute zones.
    ("asia-northeast1", "an", &["a", "b", "c"]),
    ("us-central1", "uc", &["a", "b", "c", "f"]),
    ("us-west1", "uw", &["a", "b", "c"]),
    ("us-west3", "wm", &["a", "b", "c"]),
    ("us-east1", "ue", &["b", "c", "d"]),
    ("europe-west1", "ew", &["b", "c", "d"]),
];
