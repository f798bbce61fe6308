//! The kinds of Compute resources, one file each: what a caller must hold, what a spec may say, and what is decided
//! when it is committed.
//!
//! Beside them: [`place`] (where the parts of a configuration must stand), [`holding`] (who holds which address),
//! [`endpoint`] (a consumer's end of Private Service Connect) and [`seat`] (which uids a sandbox gets).

mod address;
pub mod backend_service;
pub mod endpoint;
pub mod firewall;
pub mod forwarding_rule;
pub mod holding;
pub mod instance;
pub mod network;
mod network_endpoint_group;
mod place;
pub mod seat;
pub mod service_attachment;
pub mod subnetwork;
mod target_http_proxy;
#[cfg(test)]
pub(crate) mod tests;
mod url_map;
