//! What the control plane may ask of a machine: plain data, complete, with a generation.
//!
//! A plan leaves no choice to the hands. Names, addresses, ports, uids and digests are all in it; the hands never
//! allocate. The same world gives the same plan, byte for byte.
//!
//! - [`host`] is for the privileged process that programs the kernel and starts sandboxes, one *cell* at a time;
//! - [`edge`] is for the unprivileged proxy, one *item* at a time;
//! - [`guest`] is for the server behind 169.254.169.254, one *item* at a time.

pub mod edge;
pub mod guest;
pub mod host;
mod vpc;
