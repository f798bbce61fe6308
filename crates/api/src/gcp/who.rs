//! Who is calling, and whether their credential reaches this far.
//!
//! Every method begins here. What the caller may do to which resource is decided behind, in `control`.

use control::{
    credentials,
    ops::Caller,
    tokens::{CLOUD_PLATFORM, Refused},
};
use http::Method;
use model::fault::Fault;

use super::Cloud;
use crate::{
    call::Call,
    error::{self, Credential},
    host::Service,
};

const READ_ONLY: &str = "https://www.googleapis.com/auth/cloud-platform.read-only";

/// Scopes that open an API beside `cloud-platform`: for all of it, and for reading. Source: each API's method list.
fn scopes(service: Service) -> (&'static [&'static str], &'static [&'static str]) {
    match service {
        Service::Compute => {
            (&["https://www.googleapis.com/auth/compute"], &["https://www.googleapis.com/auth/compute.readonly"])
        }
        Service::Iam | Service::IamCredentials => (&["https://www.googleapis.com/auth/iam"], &[]),
        Service::ServiceUsage => (&["https://www.googleapis.com/auth/service.management"], &[]),
        Service::ResourceManager => (&[], &["https://www.googleapis.com/auth/cloudplatformprojects.readonly"]),
        Service::Logging => {
            (&["https://www.googleapis.com/auth/logging.admin"], &["https://www.googleapis.com/auth/logging.read"])
        }
        Service::Dns => (
            &["https://www.googleapis.com/auth/ndev.clouddns.readwrite"],
            &["https://www.googleapis.com/auth/ndev.clouddns.readonly"],
        ),
        Service::OsLogin => (&["https://www.googleapis.com/auth/compute"], &[]),
        Service::Run
        | Service::OrgPolicy
        | Service::ServiceDirectory
        | Service::Iap
        | Service::OAuth
        | Service::Accounts => (&[], &[]),
    }
}

impl Cloud {
    /// The caller of a method. `method` is its full name, as refusals show it.
    ///
    /// # Errors
    /// 401 without a living credential, 403 when its scopes do not reach, 403 when it charges a project it may not use.
    pub fn caller(&self, call: &Call, method: &str) -> Result<Caller, Fault> {
        let service = call.host.service;
        let world = self.control.read();
        let caller = self.mint.authenticate(&world, call.bearer(), service.host(), call.now).map_err(|why| {
            let why = match why {
                Refused::Missing => Credential::Missing,
                Refused::Unknown => Credential::Unknown,
                Refused::Expired => Credential::Expired,
                Refused::WrongType => Credential::WrongType,
                Refused::AccountState => Credential::AccountState,
            };
            error::unauthenticated(why, service, method)
        })?;
        let (all, read) = scopes(service);
        let mut accepted = vec![CLOUD_PLATFORM];
        accepted.extend(all);
        // Logs are read with POST.
        if call.method == Method::GET || (service == Service::Logging && call.verb() == Some("list")) {
            accepted.push(READ_ONLY);
            accepted.extend(read);
        }
        if !caller.scopes.is_empty() && !caller.scopes.iter().any(|s| accepted.contains(&s.as_str())) {
            return Err(error::insufficient_scopes(service, method, &accepted));
        }
        if let Some(project) = &call.headers.user_project {
            credentials::may_use_project(&world, &caller, project)?;
        }
        call.witness.tell(&caller);
        Ok(caller)
    }
}
