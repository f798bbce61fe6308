//! Plans for the kernel hands, cut into cells. A cell is one VPC router (with the proxy namespace behind it), the
//! serverless fabric, or one workload; each has its own generation, so a change costs what it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

pub use super::vpc::*;
use crate::{
    id::{Generation, NetworkId, WorkloadId},
    record::{FlowGap, FlowRecord, Mapped, Printed},
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CellId {
    Vpc(NetworkId),
    Fabric,
    Workload(WorkloadId),
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CellId::Vpc(n) => write!(f, "vpc {n}"),
            CellId::Fabric => f.write_str("fabric"),
            CellId::Workload(w) => write!(f, "workload {w}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CellPlan {
    Vpc(VpcPlan),
    Fabric(FabricPlan),
    Workload(SandboxPlan),
}

/// The namespace between proxy and container instances. Its sources are IPv6: 96 bits say which VPC, 32 which client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FabricPlan {
    pub ports: BTreeMap<WorkloadId, FabricPort>,
    /// /96 prefixes from which the proxy may dial.
    pub sources: BTreeMap<NetworkId, Ipv6Addr>,
    /// Sandboxes to keep parked (namespaces and cgroups made, nothing mounted), so that a cold start need not make them;
    /// each by the `uid_base` with which a [`SandboxPlan`] later claims it.
    pub parked: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricPort {
    pub v6: Ipv6Addr,
    /// Link-local; the container's source towards the metadata server, and the way in for servers on 0.0.0.0.
    pub v4: Ipv4Addr,
}

/// One VM or container instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// A change starts the sandbox anew.
    pub incarnation: u32,
    pub attach: Attach,
    pub rootfs: Rootfs,
    pub process: Process,
    pub hostname: String,
    /// `/etc/resolv.conf`'s search list; the nameserver is always 169.254.169.254.
    pub search: Vec<String>,
    pub limits: SandboxLimits,
    /// First host uid and gid of its 65536; no two living sandboxes share any.
    pub uid_base: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Attach {
    /// One interface `ens4` with `address`/32 and a default route by `gateway` (the subnet's first address).
    Vpc { network: NetworkId, address: Ipv4Addr, gateway: Ipv4Addr, mtu: u16 },
    /// One interface `eth0` with both addresses.
    Fabric(FabricPort),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rootfs {
    /// A machine: a read-only, nosuid, nodev view of the host's /usr, a fresh /etc, /tmp, /home and /root.
    HostView,
    /// Layer digests (`sha256:…`), lowest first, unpacked under the state directory.
    Layers(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Process {
    /// A VM: an init that reaps, and whatever `exec` brings.
    Init,
    Run {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        cwd: String,
        user: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLimits {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub pids: u32,
}

/// Control to host. Frames of JSON over the host's Unix socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToHost {
    Apply {
        cell: CellId,
        generation: Generation,
        plan: Box<CellPlan>,
    },
    /// Turns the VPC that the host holds at generation `from` into that of `generation`. A host that does not hold it
    /// answers [`FromHost::Lacking`].
    Change {
        network: NetworkId,
        from: Generation,
        generation: Generation,
        change: Box<VpcChange>,
    },
    /// For a workload: SIGTERM, ten seconds, SIGKILL.
    Remove {
        cell: CellId,
        generation: Generation,
    },
    /// All cells have been sent since the connection was made; what is in none of them goes.
    Complete,
    /// The lines that this workload printed before number `next` are in the log.
    Logged {
        workload: WorkloadId,
        next: u64,
    },
}

/// Host to control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromHost {
    /// First message: what this machine can enforce, for `doctor` and `status`.
    Hello {
        facts: BTreeMap<String, String>,
    },
    /// The kernel now equals this generation of the cell (or never will, and why).
    Observed {
        cell: CellId,
        generation: Generation,
        fault: Option<String>,
    },
    /// A change came for a cell that the host does not hold as it was before the change: it needs the whole cell.
    Lacking {
        cell: CellId,
    },
    Sandbox {
        workload: WorkloadId,
        incarnation: u32,
        event: SandboxEvent,
    },
    Flows(Vec<FlowRecord>),
    Gap(FlowGap),
    Mapped(Vec<Mapped>),
    /// Said again to a control that comes back, until it answers `Logged`.
    Printed(Printed),
}

/// Control to host, on a connection of its own: a tunnel of the Identity-Aware Proxy is to be connected to a port of a
/// VM. Not to an address: which one it is, and in which VPC, is the host's to know. The answer is a socket that may still be
/// connecting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    pub workload: WorkloadId,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SandboxEvent {
    /// Its process has been started (it may not listen yet).
    Started {
        pid: i32,
    },
    /// It could not be started.
    Failed {
        why: String,
    },
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
        out_of_memory: bool,
        output_tail: String,
    },
}

/// What the host process says about the kernel when it is asked to compare it with the plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Control has sent all plans since this host process started.
    pub complete: bool,
    /// Namespaces that were looked at.
    pub namespaces: usize,
    /// What differs; none when the kernel equals the plans.
    pub differences: Vec<Difference>,
    /// Why the kernel could not be read.
    pub fault: Option<String>,
}

/// Something that the kernel holds and no plan says, or the other way round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub namespace: String,
    /// For people.
    pub what: String,
}
