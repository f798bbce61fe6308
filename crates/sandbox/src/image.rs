//! Container images from files.

use serde::{Deserialize, Serialize};

/// What an image says about how to run it, and of what it consists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Of the manifest: `sha256:…`.
    pub digest: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; `/` when the image says none.
    pub workdir: String,
    /// As in [`model::planned::host::Process::Run`]; empty means root.
    pub user: String,
    /// Digests of the unpacked layers (of the uncompressed archives), lowest first.
    pub layers: Vec<String>,
}
