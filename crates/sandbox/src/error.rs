//! What can go wrong between a caller and a sandbox.

use std::{io, path::PathBuf};

/// Errors of the launcher. A variant says what was being done and to what; the source says why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot prepare the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot start the shim {program}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("cannot reach the shim at {path}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the shim of {name} does not answer")]
    Talk { name: String, source: io::Error },
    #[error("the shim of {name} is gone")]
    Gone { name: String },
    /// The shim was asked for something it could not do; the sandbox, if it never ran, is gone.
    #[error("{name}: {why}")]
    Refused { name: String, why: String },
    #[error("the shim of {name} gave an answer to another question")]
    Protocol { name: String },
    #[error("the workload id {id:?} is not a name of at most 32 characters of [a-z0-9-]")]
    Id { id: String },
    #[error("uids from {uid_base} on are not for sandboxes")]
    Uids { uid_base: u32 },
    #[error("cannot read the control groups of this machine")]
    Cgroups { source: io::Error },
}
