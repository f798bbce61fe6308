//! VM instances: system containers with one network interface.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::name::Link;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Short name such as `e2-micro`; its limits come from [`machine_type`].
    pub machine_type: String,
    pub network: Link,
    pub subnetwork: Link,
    /// Decided at commit when the user gave none.
    pub address: Ipv4Addr,
    pub tags: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    /// No account: the metadata server lists none and mints nothing.
    pub service_account: Option<AttachedAccount>,
    pub description: Option<String>,
    /// `start` and `stop` flip it.
    pub wanted: Power,
    /// What becomes of a VM that ends by itself: it is started again, or stays off.
    #[serde(default = "yes")]
    pub automatic_restart: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedAccount {
    pub email: String,
    pub scopes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    On,
    Off,
}

/// A row of the machine type catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineType {
    pub name: &'static str,
    pub cpus: u32,
    pub memory_mb: u32,
    /// CPU time the sandbox may use, in thousandths of a core.
    pub cpu_millis: u32,
}

/// The machine types we offer. Source: Compute Engine "E2 machine series"; shared-core types get their fraction.
pub const MACHINE_TYPES: &[MachineType] = &[
    MachineType { name: "e2-micro", cpus: 2, memory_mb: 1_024, cpu_millis: 250 * 2 },
    MachineType { name: "e2-small", cpus: 2, memory_mb: 2_048, cpu_millis: 500 * 2 },
    MachineType { name: "e2-medium", cpus: 2, memory_mb: 4_096, cpu_millis: 1_000 * 2 },
    MachineType { name: "e2-standard-2", cpus: 2, memory_mb: 8_192, cpu_millis: 2_000 },
    MachineType { name: "e2-standard-4", cpus: 4, memory_mb: 16_384, cpu_millis: 4_000 },
    MachineType { name: "n1-standard-1", cpus: 1, memory_mb: 3_840, cpu_millis: 1_000 },
];

pub fn machine_type(name: &str) -> Option<&'static MachineType> {
    MACHINE_TYPES.iter().find(|m| m.name == name)
}
