//! One file per Google API (`gcp/iam.rs`, `gcp/dns.rs`, …), each with a [`Route`]: match the path, check the body against
//! [`crate::schema`], call `control`, render the answer. Compute and Run have calls that wait for what others do, and so
//! implement [`Api`] themselves.
//!
//! What belongs to no single API (errors, lists, masks, batches) lives one floor up and is not repeated here.

mod certs;
mod compute;
mod crm;
mod dns;
mod iam;
mod iamcredentials;
pub mod iap;
mod logging;
mod oauth;
mod orgpolicy;
mod oslogin;
mod policy;
mod run;
pub(crate) mod run_v1;
mod run_v2;
mod servicedirectory;
mod serviceusage;
mod who;

use std::sync::Arc;

use control::{ops::Control, tokens::Mint};
use logs::Journal;

use crate::{
    audit::Audit,
    call::{Answer, Api, BoxFuture, Call, Router, blocking},
    host::Service,
};

/// What the APIs of one cloud stand on.
#[derive(Clone)]
pub struct Cloud {
    pub control: Arc<Control>,
    pub mint: Arc<Mint>,
    pub journal: Arc<Journal>,
}

/// One of Google's APIs as a function: finds the method that a call is for, and answers. It may wait for the disk.
type Route = fn(&Cloud, &Call) -> Answer;

struct Routed {
    cloud: Cloud,
    route: Route,
}

impl Api for Routed {
    fn serve(&self, call: Call) -> BoxFuture<'_, Answer> {
        let (cloud, route) = (self.cloud.clone(), self.route);
        Box::pin(blocking(move || route(&cloud, &call)))
    }
}

/// Every API of ours behind its host.
pub fn router(cloud: &Cloud) -> Router {
    let routed = |route| Arc::new(Routed { cloud: cloud.clone(), route });
    Router::new()
        .with(Service::Compute, Arc::new(compute::Compute(cloud.clone())))
        .with(Service::Run, Arc::new(run::Run(cloud.clone())))
        .with(Service::Iam, routed(iam::route))
        .with(Service::IamCredentials, routed(iamcredentials::route))
        .with(Service::ResourceManager, routed(crm::route))
        .with(Service::ServiceUsage, routed(serviceusage::route))
        .with(Service::OrgPolicy, routed(orgpolicy::route))
        .with(Service::OsLogin, routed(oslogin::route))
        .with(Service::Dns, routed(dns::route))
        .with(Service::ServiceDirectory, routed(servicedirectory::route))
        .with(Service::Logging, routed(logging::route))
        .with(Service::OAuth, routed(oauth::route))
        .with(Service::Accounts, routed(oauth::route))
        .audited(Audit { control: cloud.control.clone(), journal: cloud.journal.clone() })
}
