//! What a launcher and a shim say to each other, and what a shim says to the process it parks in the sandbox.
//!
//! Both ends are the same build. Descriptors that travel beside a frame are named in its docstring.

use std::path::PathBuf;

use model::{
    id::WorkloadId,
    planned::host::{SandboxEvent, SandboxLimits, SandboxPlan},
};
use serde::{Deserialize, Serialize};

/// The first frame on a new shim's standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Birth {
    pub(crate) cloud: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// The program of a VM's pid 1.
    pub(crate) init: PathBuf,
    /// What a VM's init keeps running.
    pub(crate) service: Option<Service>,
    pub(crate) uid_base: u32,
}

/// A program of the host's that runs in every VM, as its root: its SSH server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Executed without being seen in the VM's file tree.
    pub program: PathBuf,
    /// Its command line, the program's own name first.
    pub argv: Vec<String>,
    /// A file of 32 bytes that only root of the VM may read. They are a VM's own and the same at every start of it:
    /// made from the VM's id and a secret of the cloud, which `state_dir` keeps.
    pub seed: String,
}

/// Launcher to shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Launch {
        id: WorkloadId,
        plan: Box<SandboxPlan>,
    },
    /// Without a terminal: standard input, output and error travel beside it.
    Exec(ExecRequest),
    /// To the process that this connection started.
    Signal {
        signal: i32,
    },
    /// SIGTERM to pid 1, and SIGKILL after the grace.
    Stop {
        grace_ms: u64,
    },
    Status,
    /// From now on this connection gets events. The first is `Started`.
    Subscribe,
}

/// Shim to launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The sandbox is born and waits for its plan. Beside it: the network namespace.
    Parked {
        pid: i32,
    },
    Launched {
        pid: i32,
    },
    /// With a terminal: its master travels beside it.
    Exec {
        pid: i32,
    },
    ExecEnded {
        code: Option<i32>,
        signal: Option<i32>,
    },
    Stopping,
    /// Beside it: the network namespace.
    Status(Box<Status>),
    Event(SandboxEvent),
    Refused {
        why: String,
    },
}

/// A command to run inside a running sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Never empty. The first word is looked up in the PATH of `env` when it has no slash.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; must exist.
    pub cwd: String,
    /// `name`, `uid`, `name:group` or `uid:gid`, resolved in the sandbox's own /etc/passwd.
    pub user: String,
    /// A new pseudo terminal of the sandbox becomes the three standard streams and the controlling terminal.
    pub tty: bool,
}

/// What a shim says about its sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub id: WorkloadId,
    pub incarnation: u32,
    pub uid_base: u32,
    /// Pid 1 of the sandbox, as the host counts.
    pub pid: i32,
    pub limits: SandboxLimits,
    /// Charged to the sandbox now, in bytes: its processes, its writable files, its page cache.
    pub memory_bytes: u64,
    pub pids: u32,
}

/// How a sandbox ended, kept in a file until somebody has heard it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Epitaph {
    pub(crate) id: WorkloadId,
    pub(crate) incarnation: u32,
    pub(crate) event: SandboxEvent,
}

/// Shim to the process in the sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Inward {
    /// The id maps are written: become root and prepare.
    Prepare,
    /// A mount tree (the descriptor beside it) for this place in the new root.
    Tree { at: String },
    /// A program (the file beside it) to copy to this place in the new root.
    Program { at: String },
    /// A program (the descriptor beside it) that init is given to keep running.
    Service,
    /// Everything has arrived. Beside it: the ends of the output pipes.
    Launch(Box<Assembly>),
}

/// The process in the sandbox to the shim. After `Launch`, silence and the end of the connection mean that exec
/// succeeded: the socket closes on exec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outward {
    Prepared,
    /// A terminal's master is beside it.
    Terminal,
    Fault {
        why: String,
    },
}

/// The root filesystem and the command, reduced to what the process in the sandbox must know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assembly {
    pub(crate) hostname: String,
    pub(crate) root: Root,
    /// Directories (absolute, parents first) to make when missing, with their modes.
    pub(crate) dirs: Vec<(String, u32)>,
    /// Links to make: where, to what.
    pub(crate) links: Vec<(String, String)>,
    /// Files to write over whatever is there.
    pub(crate) files: Vec<(String, String)>,
    /// A file for root's eyes only.
    pub(crate) seed: Option<(String, [u8; 32])>,
    pub(crate) command: Command,
}

/// What the root directory of the sandbox is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Root {
    /// A fresh tmpfs, with the trees attached to it.
    Fresh,
    /// An overlay of that many layers, lowest first, which came as trees at `/.layers/<n>`.
    Overlay { layers: usize },
}

/// What to execute, and as whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) user: String,
}
