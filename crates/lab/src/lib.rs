//! Scenes for tests that need the real kernel: a throwaway run directory, test VMs that are plain network namespaces
//! wired by the host's own code, small TCP servers, forged packets, and a check that nothing is left behind.
//!
//! Development only; nothing in the product may use it. Start with [`Lab`].

pub mod packet;
pub mod plan;
pub mod scene;
pub mod tcp;

pub use scene::{Lab, Vm, until};
