//! Cloud Run services and revisions, as both API versions see them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    name::{ProjectId, Region},
    time::Timestamp,
};

/// A service, named within its project and region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    pub project: ProjectId,
    pub region: Region,
    pub name: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}/locations/{}/services/{}", self.project, self.region, self.name)
    }
}

/// A revision of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RevisionKey {
    pub service: ServiceKey,
    /// `hello-00001-abc`.
    pub name: String,
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/revisions/{}", self.service, self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ingress {
    All,
    Internal,
    InternalAndCloudLoadBalancing,
    None,
}

/// What the user wants of a service, apart from the template of its next revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub ingress: Ingress,
    pub invoker_iam_disabled: bool,
    pub default_url_disabled: bool,
    pub custom_audiences: Vec<String>,
    pub template: RevisionTemplate,
    pub traffic: Vec<TrafficTarget>,
    /// User labels and annotations that carry no meaning for us, shown back.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub scaling: Scaling,
    pub creator: String,
    pub last_modifier: String,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficTarget {
    /// `None` follows the latest ready revision.
    pub revision: Option<String>,
    pub percent: u8,
    pub tag: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    pub min: u32,
    pub max: Option<u32>,
}

/// Everything of a revision that its instances need. Immutable once the revision exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionTemplate {
    /// A name of the client's choice.
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub container: Container,
    /// Requests in flight per instance, 1 to 1000.
    pub concurrency: u32,
    pub timeout_s: u32,
    pub service_account: String,
    pub scaling: Scaling,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    pub name: String,
    /// As given; the digest is resolved once, when the revision is made.
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub port: u16,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// The texts of `resources.limits`, shown back as written.
    pub limits_written: BTreeMap<String, String>,
    pub startup_probe: Probe,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub check: ProbeCheck,
    pub initial_delay_s: u32,
    pub timeout_s: u32,
    pub period_s: u32,
    pub failure_threshold: u32,
    /// The user set none: label `startupProbeType: Default`.
    pub is_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeCheck {
    Tcp { port: u16 },
    Http { port: u16, path: String, headers: Vec<(String, String)> },
}

impl Probe {
    /// One TCP probe that may take all of 240 s. Source: Cloud Run, default startup probe.
    pub fn default_for(port: u16) -> Probe {
        Probe {
            check: ProbeCheck::Tcp { port },
            initial_delay_s: 0,
            timeout_s: 240,
            period_s: 240,
            failure_threshold: 1,
            is_default: true,
        }
    }
}

/// A revision as stored: the template with what was decided when it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    pub key: RevisionKey,
    pub uid: String,
    pub created: Timestamp,
    /// The 1, 2, 3 … of `hello-00003-xyz`.
    pub number: u32,
    pub creator: String,
    pub template: RevisionTemplate,
    pub image_digest: String,
    pub state: RevisionState,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RevisionState {
    /// Its first instance has not passed the startup probe yet.
    Deploying,
    Ready {
        since: Timestamp,
    },
    /// `reason` is a condition reason such as `HealthCheckContainerError`.
    Failed {
        since: Timestamp,
        reason: String,
        message: String,
    },
}

/// Accepted audiences of a service, exact strings.
pub type Audiences = BTreeSet<String>;
