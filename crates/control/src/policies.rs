//! Reading and writing allow policies of whatever has one.
//!
//! What may stand in a policy is decided by [`identity::policy::canonical`]; this file knows who may read and write one
//! and whether its members exist.

use identity::{
    permission::Permission,
    policy::{self, Member, Place},
};
use model::{
    fault::Fault,
    iam::{Binding, Policy, Principal},
    time::Timestamp,
};

use crate::{
    kind::Need,
    ops::{Caller, Change, Control, policy_chain},
    projects,
    world::World,
};

/// A resource on which nobody holds anything: what does not exist is answered like what is not the caller's.
pub const NOWHERE: &str = "projects/-";

/// A resource with a policy, and what it takes to touch it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// `projects/P`, `projects/P/locations/R/services/S`, … with the project's id.
    pub resource: &'a str,
    pub place: Place,
    pub get: &'static str,
    pub set: &'static str,
    /// The refusal of this resource's API.
    pub denied: &'a dyn Fn(&Need) -> Fault,
}

/// The policy as it is stored; of a resource that never had one, the empty policy.
pub fn get(control: &Control, world: &World, caller: &Caller, target: Target<'_>) -> Result<Policy, Fault> {
    let need = Need::on(target.get, target.resource);
    control.authorize(world, caller, &[need]).map_err(|need| (target.denied)(&need))?;
    Ok(world.policies.get(target.resource).cloned().unwrap_or_default())
}

/// Replaces the policy. `etag` is that of the policy the client had read; empty means it does not care.
///
/// `exists` looks once more, inside the transaction, whether the resource is there.
pub fn set(
    control: &Control,
    caller: &Caller,
    target: Target<'_>,
    bindings: &[Binding],
    etag: &str,
    exists: impl Fn(&World) -> Result<(), Fault>,
) -> Result<Policy, Fault> {
    let (policy, _) = control.commit(|world, txn| {
        let need = Need::on(target.set, target.resource);
        control.authorize(world, caller, &[need]).map_err(|need| (target.denied)(&need))?;
        exists(world)?;
        let before = world.policies.get(target.resource).cloned().unwrap_or_default();
        policy::check_etag(&before, etag)?;
        let bindings = policy::canonical(target.place, bindings, &before, &|member| is_known(world, member))?;
        if target.resource == projects::ORGANIZATION && !keeps_an_owner(&bindings) {
            return Err(Fault::invalid("The organization must keep at least one owner."));
        }
        let policy = Policy { bindings, revision: stamp(&before, txn.now) };
        txn.push(Change::Policy(target.resource.to_owned(), policy.clone()));
        Ok(policy)
    })?;
    Ok(policy)
}

/// Without an owner nobody could ever grant anything again.
fn keeps_an_owner(bindings: &[Binding]) -> bool {
    bindings.iter().any(|b| b.role == "roles/owner" && b.members.iter().any(|m| !m.starts_with("deleted:")))
}

/// Users and domains are the operator's business: any address of the right form is one. Service accounts are ours.
fn is_known(world: &World, member: &Member) -> bool {
    match member {
        Member::ServiceAccount(email) => world.accounts.contains_key(email),
        Member::AllUsers | Member::AllAuthenticatedUsers | Member::User(_) | Member::Domain(_) => true,
        Member::Group(_) | Member::Deleted(_) => false,
    }
}

/// The revision of a policy's next version: microseconds, so that a policy made anew never wears an old etag.
fn stamp(before: &Policy, now: Timestamp) -> u64 {
    u64::try_from(now.0).unwrap_or(0).max(before.revision + 1)
}

/// The part of `asked` that the caller holds on a resource. Needs no permission itself.
pub fn test(world: &World, caller: &Caller, resource: &str, asked: &[String]) -> Result<Vec<Permission>, Fault> {
    policy::test_permissions(&policy_chain(world, resource), policy::Caller::Known(&caller.principal), asked)
}

/// Whether a principal holds a permission on a resource; for checks that are about somebody else than the caller.
pub fn holds(world: &World, who: &Principal, permission: &'static str, resource: &str) -> bool {
    let Some(permission) = Permission::parse(permission) else { return false };
    match policy::decide(&policy_chain(world, resource), policy::Caller::Known(who), permission) {
        policy::Decision::Allowed(_) => true,
        policy::Decision::Denied => false,
    }
}

/// Adds a member to a role: what the platform itself grants.
pub(crate) fn grant(policy: &mut Policy, role: &str, member: &str, now: Timestamp) {
    match policy.bindings.iter_mut().find(|b| b.role == role && b.condition.is_none()) {
        Some(binding) => {
            binding.members.insert(member.to_owned());
        }
        None => {
            let members = [member.to_owned()].into();
            policy.bindings.push(Binding { role: role.to_owned(), members, condition: None });
            policy.bindings.sort_by(|a, b| a.role.cmp(&b.role));
        }
    }
    policy.revision = stamp(policy, now);
}
