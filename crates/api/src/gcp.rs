//! One file per Google API (`gcp/compute.rs`, `gcp/run.rs`, `gcp/iam.rs`, …), each with a type that implements
//! [`crate::call::Api`]: match the path, check the body against [`crate::schema`], call `control`, render the answer.
//!
//! What belongs to no single API (errors, lists, masks, batches) lives one floor up and is not repeated here.

pub mod certs;
pub mod compute;
pub mod crm;
pub mod dns;
pub mod iam;
pub mod iap;
pub mod logging;
pub mod oauth;
pub mod orgpolicy;
pub mod oslogin;
pub mod policy;
pub mod run;
pub mod run_v1;
pub mod run_v2;
pub mod servicedirectory;
pub mod serviceusage;
pub mod who;

use std::sync::Arc;

use control::{ops::Control, tokens::Mint};
use logs::Journal;

use crate::{audit::Audit, call::Router, host::Service};

/// Every API of ours behind its host.
pub fn router(control: Arc<Control>, mint: Arc<Mint>, journal: Arc<Journal>) -> Router {
    let (c, m) = (|| control.clone(), || mint.clone());
    let oauth = Arc::new(oauth::OAuth { control: c(), mint: m() });
    Router::new()
        .with(Service::Compute, Arc::new(compute::Compute { control: c(), mint: m() }))
        .with(Service::Run, Arc::new(run::Run { control: c(), mint: m() }))
        .with(Service::Iam, Arc::new(iam::Iam { control: c(), mint: m() }))
        .with(Service::IamCredentials, Arc::new(iam::IamCredentials { control: c(), mint: m() }))
        .with(Service::ResourceManager, Arc::new(crm::ResourceManager { control: c(), mint: m() }))
        .with(Service::ServiceUsage, Arc::new(serviceusage::ServiceUsage { control: c(), mint: m() }))
        .with(Service::OrgPolicy, Arc::new(orgpolicy::OrgPolicy { control: c(), mint: m() }))
        .with(Service::OsLogin, Arc::new(oslogin::OsLogin { control: c(), mint: m() }))
        .with(Service::Dns, Arc::new(dns::Dns { control: c(), mint: m() }))
        .with(Service::ServiceDirectory, Arc::new(servicedirectory::ServiceDirectory { control: c(), mint: m() }))
        .with(Service::Logging, Arc::new(logging::Logging { control: c(), mint: m(), journal: journal.clone() }))
        .audited(Audit { control: c(), journal })
        .with(Service::OAuth, oauth.clone())
        .with(Service::Accounts, oauth)
}
