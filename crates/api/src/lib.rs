//! The door: everything about HTTP, TLS and the dialects of the cloud's APIs, and their shapes.
//!
//! Two halves. The lower one is the same for every API and knows no cloud logic: [`door`] accepts connections, [`tls`]
//! mints their certificates, [`host`] says whose a request is, [`call`] and [`reply`] are what goes in and out,
//! [`error`] renders a refusal in each dialect, [`batch`] takes many calls in one, [`mask`] and [`list`] are the query
//! parameters that every method has, [`relay`] carries
//! tunnels, [`schema`] and [`support`] say which fields exist and which of them we obey.
//! The upper half, [`gcp`], holds one file per API: it turns a [`call::Call`] into verbs of `control` and back.
//!
//! Start with [`call`], then [`door`].

pub mod audit;
pub mod batch;
pub mod call;
pub mod door;
pub mod error;
pub mod gcp;
pub mod host;
pub mod list;
pub mod mask;
mod paging;
pub mod relay;
pub mod reply;
pub mod schema;
mod stall;
pub mod support;
#[cfg(test)]
mod testing;
pub mod tls;
