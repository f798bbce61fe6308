//! One file per Google API (`gcp/compute.rs`, `gcp/run.rs`, `gcp/iam.rs`, …), each with a type that implements
//! [`crate::call::Api`]: match the path, check the body against [`crate::schema`], call `control`, render the answer.
//!
//! What belongs to no single API (errors, lists, masks, batches) lives one floor up and is not repeated here.

pub mod certs;
pub mod compute;
pub mod crm;
pub mod iam;
pub mod logging;
pub mod oauth;
pub mod policy;
pub mod run;
pub mod run_v1;
pub mod run_v2;
pub mod serviceusage;
pub mod who;
