//! Organisation policies: who sets them, and what they forbid.
//!
//! One constraint is obeyed, [`PSC_CONSUMERS`]; to set another is refused. Source: Organization Policy API v2, and
//! "Understanding hierarchy evaluation". When a policy reaches connections: docs/decisions/2026-11-28-org-policies.md.

use model::{
    fault::{Code, Fault},
    limits::{ORG_POLICY_RULES_MAX, ORG_POLICY_VALUES_MAX},
    name::ProjectId,
    orgpolicy::{Node, OrgPolicy, PSC_CONSUMERS, Place, Rule, Spec},
    project::Project,
};

use crate::{
    kind::Need,
    ops::{Caller, Change, Control, Txn},
    projects,
    world::World,
};

/// A stored policy with its name as it is shown, `projects/NUMBER/policies/CONSTRAINT`.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub name: String,
    pub policy: OrgPolicy,
}

/// Where policies can be set.
#[derive(Clone, Copy)]
enum Parent<'w> {
    Project(&'w Project),
    Organization,
}

impl<'w> Parent<'w> {
    /// None: there is no such place.
    fn find(world: &'w World, name: &str) -> Option<Parent<'w>> {
        match name.strip_prefix("projects/") {
            Some(project) => world.project(project).map(Parent::Project),
            None => (name == projects::ORGANIZATION).then_some(Parent::Organization),
        }
    }

    /// What IAM and the store call it.
    fn resource(self) -> String {
        match self {
            Parent::Project(project) => format!("projects/{}", project.id),
            Parent::Organization => projects::ORGANIZATION.to_owned(),
        }
    }

    fn key(self, constraint: &str) -> String {
        key(&self.resource(), constraint)
    }

    fn named(self, constraint: &str, policy: OrgPolicy) -> Named {
        let parent = match self {
            Parent::Project(project) => format!("projects/{}", project.number),
            Parent::Organization => projects::ORGANIZATION.to_owned(),
        };
        Named { name: key(&parent, constraint), policy }
    }
}

fn key(resource: &str, constraint: &str) -> String {
    format!("{resource}/policies/{constraint}")
}

fn missing() -> Fault {
    Fault::new(Code::NotFound, "notFound", "Requested entity was not found.")
}

/// The refusal of Organization Policy: the same whether the permission or the place is missing.
fn denied(permission: &str, resource: &str) -> Fault {
    let resource = format!("//orgpolicy.googleapis.com/{resource}");
    let mut fault = Fault::permission_denied(permission, &resource);
    fault.message = format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist).");
    fault
}

/// The place, for whoever may do this there.
fn admit<'w>(
    control: &Control,
    world: &'w World,
    caller: &Caller,
    parent: &str,
    permissions: &[&'static str],
) -> Result<Parent<'w>, Fault> {
    let refused = |permission: &str| denied(permission, parent);
    let found = Parent::find(world, parent).ok_or_else(|| refused(permissions[0]))?;
    let needs: Vec<Need> = permissions.iter().map(|p| Need::on(p, found.resource())).collect();
    control.authorize(world, caller, &needs).map_err(|need| refused(need.permission))?;
    if let Parent::Project(project) = found {
        projects::require_api(world, project.id.as_str(), "orgpolicy.googleapis.com")?;
    }
    Ok(found)
}

/// Only what is obeyed can be set.
fn obeyed(constraint: &str) -> Result<(), Fault> {
    if constraint == PSC_CONSUMERS {
        return Ok(());
    }
    Err(Fault::not_enforced(&format!("constraints/{constraint}")))
}

/// Whether the constraints of a place may be listed.
pub fn may_list_constraints(control: &Control, caller: &Caller, parent: &str) -> Result<(), Fault> {
    admit(control, &control.read(), caller, parent, &["orgpolicy.constraints.list"]).map(drop)
}

pub fn get(control: &Control, caller: &Caller, parent: &str, constraint: &str) -> Result<Named, Fault> {
    let world = control.read();
    let place = admit(control, &world, caller, parent, &["orgpolicy.policy.get"])?;
    let policy = world.org_policies.get(&place.key(constraint)).cloned().ok_or_else(missing)?;
    Ok(place.named(constraint, policy))
}

pub fn list(control: &Control, caller: &Caller, parent: &str) -> Result<Vec<Named>, Fault> {
    let world = control.read();
    let place = admit(control, &world, caller, parent, &["orgpolicy.policies.list"])?;
    let policy = world.org_policies.get(&place.key(PSC_CONSUMERS)).cloned();
    Ok(policy.map(|policy| place.named(PSC_CONSUMERS, policy)).into_iter().collect())
}

/// What holds at a place after everything above it was taken in; its name and its rules.
pub fn effective(
    control: &Control,
    caller: &Caller,
    parent: &str,
    constraint: &str,
) -> Result<(String, Vec<Rule>), Fault> {
    let world = control.read();
    let place = admit(control, &world, caller, parent, &["orgpolicy.policy.get"])?;
    obeyed(constraint)?;
    let rules = Effective::at(&world, &place.resource()).rules();
    let name = place.named(constraint, OrgPolicy { spec: Spec::default(), revision: 0, updated: control.now() }).name;
    Ok((name, rules))
}

/// What a write does to what is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Write<'a> {
    Create,
    /// Replaces it; the etag is that of the policy the client had read, or empty.
    Update {
        etag: &'a str,
    },
}

pub fn set(
    control: &Control,
    caller: &Caller,
    parent: &str,
    constraint: &str,
    spec: &Spec,
    write: Write<'_>,
) -> Result<Named, Fault> {
    let permissions = match write {
        Write::Create => ["orgpolicy.policies.create", "orgpolicy.policy.set"],
        Write::Update { .. } => ["orgpolicy.policies.update", "orgpolicy.policy.set"],
    };
    let (named, _) = control.commit(|world, txn| {
        let place = admit(control, world, caller, parent, &permissions)?;
        obeyed(constraint)?;
        check(spec)?;
        let key = place.key(constraint);
        let before = world.org_policies.get(&key);
        match (write, before) {
            (Write::Create, Some(_)) => {
                return Err(Fault::new(Code::AlreadyExists, "alreadyExists", "Requested entity already exists"));
            }
            (Write::Update { .. }, None) => return Err(missing()),
            (Write::Update { etag }, Some(before)) => check_etag(before, etag)?,
            (Write::Create, None) => {}
        }
        let policy = OrgPolicy { spec: spec.clone(), revision: stamp(before, txn), updated: txn.now };
        txn.push(Change::OrgPolicy(key, Box::new(policy.clone())));
        Ok(place.named(constraint, policy))
    })?;
    Ok(named)
}

pub fn delete(control: &Control, caller: &Caller, parent: &str, constraint: &str, etag: &str) -> Result<(), Fault> {
    control.commit(|world, txn| {
        let place = admit(control, world, caller, parent, &["orgpolicy.policies.delete", "orgpolicy.policy.set"])?;
        let key = place.key(constraint);
        check_etag(world.org_policies.get(&key).ok_or_else(missing)?, etag)?;
        txn.push(Change::NoOrgPolicy(key));
        Ok(())
    })?;
    Ok(())
}

fn stamp(before: Option<&OrgPolicy>, txn: &Txn) -> u64 {
    let after = before.map_or(1, |before| before.revision + 1);
    u64::try_from(txn.now.0).unwrap_or(0).max(after)
}

/// The etag of a policy as clients see it.
pub fn etag(policy: &OrgPolicy) -> String {
    identity::policy::etag_of(policy.revision)
}

fn check_etag(policy: &OrgPolicy, given: &str) -> Result<(), Fault> {
    if given.is_empty() || given.trim_end_matches('=') == etag(policy).trim_end_matches('=') {
        return Ok(());
    }
    Err(Fault::new(Code::Aborted, "aborted", "The policy was modified since it was read: its etag does not match."))
}

/// Source: Organization Policy API, `PolicySpec`.
fn check(spec: &Spec) -> Result<(), Fault> {
    if spec.reset && (spec.inherit || !spec.rules.is_empty()) {
        return Err(Fault::invalid("If 'reset' is set, 'rules' must be empty and 'inheritFromParent' must be false."));
    }
    if spec.rules.is_empty() && !spec.reset && !spec.inherit {
        return Err(Fault::invalid("A policy must have rules, or inherit from its parent, or be a reset."));
    }
    if spec.rules.len() > ORG_POLICY_RULES_MAX {
        return Err(Fault::invalid(format!("A policy may have at most {ORG_POLICY_RULES_MAX} rules.")));
    }
    let values = spec.rules.iter().map(|rule| match rule {
        Rule::AllowAll | Rule::DenyAll => 0,
        Rule::Values { allowed, denied } => allowed.len() + denied.len(),
    });
    if values.sum::<usize>() > ORG_POLICY_VALUES_MAX {
        return Err(Fault::invalid(format!("A policy may have at most {ORG_POLICY_VALUES_MAX} values.")));
    }
    Ok(())
}

/// What a list constraint says at one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effective {
    allow_all: bool,
    deny_all: bool,
    allowed: Vec<Place>,
    denied: Vec<Place>,
}

impl Effective {
    /// At `projects/ID` or `organizations/N`. The constraint's default is that everybody may connect.
    fn at(world: &World, resource: &str) -> Effective {
        let above = || match resource.strip_prefix("projects/").and_then(|id| world.project(id)?.parent.clone()) {
            Some(parent) => Effective::at(world, &parent),
            None => Effective::default(),
        };
        let Some(policy) = world.org_policies.get(&key(resource, PSC_CONSUMERS)) else { return above() };
        let mut effective = if policy.spec.inherit { above() } else { Effective::default() };
        for rule in &policy.spec.rules {
            match rule {
                Rule::AllowAll => effective.allow_all = true,
                Rule::DenyAll => effective.deny_all = true,
                Rule::Values { allowed, denied } => {
                    effective.allowed.extend(allowed.iter().cloned());
                    effective.denied.extend(denied.iter().cloned());
                }
            }
        }
        effective
    }

    /// What the producer's project says about who may connect.
    pub(crate) fn on_consumers_of(world: &World, producer: &ProjectId) -> Effective {
        Effective::at(world, &format!("projects/{producer}"))
    }

    /// Denied goes before allowed; a list of those who are allowed leaves out everybody else.
    pub(crate) fn permits(&self, world: &World, project: &ProjectId) -> bool {
        let names = |places: &[Place]| places.iter().any(|place| includes(world, &place.node, project));
        if self.deny_all || names(&self.denied) {
            return false;
        }
        self.allow_all || self.allowed.is_empty() || names(&self.allowed)
    }

    fn rules(self) -> Vec<Rule> {
        if self.deny_all {
            return vec![Rule::DenyAll];
        }
        let mut rules = Vec::new();
        if self.allow_all || (self.allowed.is_empty() && self.denied.is_empty()) {
            rules.push(Rule::AllowAll);
        }
        if !self.allowed.is_empty() || !self.denied.is_empty() {
            rules.push(Rule::Values { allowed: self.allowed, denied: self.denied });
        }
        rules
    }
}

fn includes(world: &World, node: &Node, id: &ProjectId) -> bool {
    let Some(project) = world.projects.get(id) else { return false };
    match node {
        Node::Project(name) => *name == *id.as_str() || *name == project.number.to_string(),
        Node::Below(name) => project.parent.as_ref() == Some(name),
    }
}
