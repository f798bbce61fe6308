//! Allow policies: deciding by them and writing them.
//!
//! [`decide`] is the only maker of [`Authorized`], and what changes the cloud asks for one; so nothing is changed that
//! nobody decided about. [`canonical`] is the door through which policies get in: what it lets pass is what is obeyed.
//! Which policies apply (resource, project, organisation) is for the caller to collect.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use model::{
    fault::{Code, Fault},
    iam::{Binding, Policy, Principal},
    limits::{POLICY_MEMBERS_MAX, TEST_PERMISSIONS_MAX},
    planned::edge::Invokers,
};

use crate::{permission, permission::Permission, role::Role};

/// Who asks, as a door established it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    Anonymous,
    Known(&'a Principal),
}

/// The answer to "may they?".
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed(Authorized),
    Denied,
}

impl Decision {
    /// The proof, or what `refusal` makes of its absence.
    pub fn or_refuse(self, refusal: impl FnOnce() -> Fault) -> Result<Authorized, Fault> {
        match self {
            Decision::Allowed(proof) => Ok(proof),
            Decision::Denied => Err(refusal()),
        }
    }
}

/// Proof that somebody was found to hold a permission. Made by [`decide`] and by nothing else.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Authorized {
    permission: Permission,
    role: &'static Role,
    level: usize,
}

impl Authorized {
    pub fn permission(&self) -> Permission {
        self.permission
    }

    /// The role that gave it.
    pub fn role(&self) -> &'static Role {
        self.role
    }

    /// Which policy of the chain gave it.
    pub fn level(&self) -> usize {
        self.level
    }
}

/// Whether a policy of `chain` (the resource's own, its project's, … its organisation's) gives `who` the permission.
/// A lower policy adds to a higher one and takes nothing away. A binding with a condition gives nothing.
pub fn decide(chain: &[&Policy], who: Caller<'_>, permission: Permission) -> Decision {
    let mut giving = grants(chain, permission);
    match giving.find(|grant| grant.binding.members.iter().any(|member| matches(member, who))) {
        Some(Grant { level, role, .. }) => Decision::Allowed(Authorized { permission, role, level }),
        None => Decision::Denied,
    }
}

/// The part of `asked` that `who` holds, in the order of asking (`testIamPermissions`). It needs no permission itself.
pub fn test_permissions(chain: &[&Policy], who: Caller<'_>, asked: &[String]) -> Result<Vec<Permission>, Fault> {
    if asked.len() > TEST_PERMISSIONS_MAX {
        return Err(Fault::invalid(format!("At most {TEST_PERMISSIONS_MAX} permissions can be tested at once.")));
    }
    let mut held = Vec::new();
    for name in asked {
        let permission = Permission::parse(name)
            .ok_or_else(|| Fault::invalid(format!("Permission {name} is not valid for this resource.")))?;
        if decide(chain, who, permission) != Decision::Denied {
            held.push(permission);
        }
    }
    Ok(held)
}

/// Every member that some policy of the chain gives the permission, as written there.
pub fn holders<'a>(chain: &[&'a Policy], permission: Permission) -> BTreeSet<&'a str> {
    grants(chain, permission).flat_map(|grant| grant.binding.members.iter().map(String::as_str)).collect()
}

/// Who may call a Cloud Run service, in the form in which the proxy asks. `open` says that the service does not check;
/// `unique_id` knows the service accounts there are by address.
pub fn invokers(chain: &[&Policy], open: bool, unique_id: &dyn Fn(&str) -> Option<String>) -> Invokers {
    let mut invokers = Invokers { everyone: open, ..Invokers::default() };
    for member in holders(chain, permission!("run.routes.invoke")) {
        match member.parse() {
            Ok(Member::AllUsers) => invokers.everyone = true,
            Ok(Member::AllAuthenticatedUsers) => invokers.all_authenticated = true,
            Ok(Member::User(email)) => {
                invokers.emails.insert(email);
            }
            Ok(Member::ServiceAccount(email)) => invokers.accounts.extend(unique_id(&email).map(|id| (id, email))),
            Ok(Member::Domain(domain)) => {
                invokers.domains.insert(domain);
            }
            Ok(Member::Group(_) | Member::Deleted(_)) | Err(MemberError(_)) => {}
        }
    }
    invokers
}

struct Grant<'a> {
    level: usize,
    role: &'static Role,
    binding: &'a Binding,
}

fn grants<'a>(chain: &[&'a Policy], permission: Permission) -> impl Iterator<Item = Grant<'a>> {
    let bindings = chain.iter().enumerate().flat_map(|(level, policy)| policy.bindings.iter().map(move |b| (level, b)));
    bindings.filter_map(move |(level, binding)| {
        let role = Role::find(&binding.role).filter(|role| role.holds(permission))?;
        binding.condition.is_none().then_some(Grant { level, role, binding })
    })
}

/// A member of a binding, parsed. Addresses and domains are lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// Everybody, unauthenticated callers included.
    AllUsers,
    /// Every user and service account of any project.
    AllAuthenticatedUsers,
    User(String),
    ServiceAccount(String),
    Group(String),
    Domain(String),
    /// What is left of a deleted principal: kind, address and `?uid=`. It is nobody.
    Deleted(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The member {0} is of an unknown type. Please set a valid type prefix for the member.")]
pub struct MemberError(pub String);

impl FromStr for Member {
    type Err = MemberError;

    fn from_str(text: &str) -> Result<Member, MemberError> {
        let bad = || MemberError(text.to_owned());
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let rest = rest.to_ascii_lowercase();
        let with_address = |make: fn(String) -> Member| is_address(&rest).then(|| make(rest.clone())).ok_or_else(bad);
        match kind.to_ascii_lowercase().as_str() {
            "allusers" if rest.is_empty() => Ok(Member::AllUsers),
            "allauthenticatedusers" if rest.is_empty() => Ok(Member::AllAuthenticatedUsers),
            "user" => with_address(Member::User),
            "serviceaccount" => with_address(Member::ServiceAccount),
            "group" => with_address(Member::Group),
            "domain" if is_domain(&rest) => Ok(Member::Domain(rest)),
            "deleted" if rest.contains("?uid=") => Ok(Member::Deleted(text["deleted:".len()..].to_owned())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::AllUsers => f.write_str("allUsers"),
            Member::AllAuthenticatedUsers => f.write_str("allAuthenticatedUsers"),
            Member::User(email) => write!(f, "user:{email}"),
            Member::ServiceAccount(email) => write!(f, "serviceAccount:{email}"),
            Member::Group(email) => write!(f, "group:{email}"),
            Member::Domain(domain) => write!(f, "domain:{domain}"),
            Member::Deleted(who) => write!(f, "deleted:{who}"),
        }
    }
}

fn is_address(text: &str) -> bool {
    text.split_once('@').is_some_and(|(name, domain)| {
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic()) && is_domain(domain)
    })
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !label.starts_with('-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(label)
}

impl Member {
    /// Whether `who` is this member. Groups have no members here and a deleted principal is nobody.
    pub fn is(&self, who: Caller<'_>) -> bool {
        let Caller::Known(principal) = who else { return *self == Member::AllUsers };
        let has = |email: &str| principal.email().eq_ignore_ascii_case(email);
        match (self, principal) {
            (Member::AllUsers | Member::AllAuthenticatedUsers, _) => true,
            (Member::User(email), Principal::User { .. }) => has(email),
            (Member::ServiceAccount(email), Principal::ServiceAccount { .. }) => has(email),
            (Member::Domain(domain), Principal::User { email }) => {
                email.rsplit_once('@').is_some_and(|(_, of)| of.eq_ignore_ascii_case(domain))
            }
            (Member::User(_) | Member::ServiceAccount(_) | Member::Domain(_), _) => false,
            (Member::Group(_) | Member::Deleted(_), _) => false,
        }
    }
}

fn matches(member: &str, who: Caller<'_>) -> bool {
    member.parse::<Member>().is_ok_and(|member| member.is(who))
}

/// What kind of thing a policy sits on: it decides what may be granted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A project, folder or organisation: basic roles, but nothing for everybody.
    Hierarchy,
    /// A Cloud Run service: the one thing that may be open to everybody.
    RunService,
    /// Any other resource.
    Resource,
}

/// Checks a policy that a client wants to set and brings it into the one form that is stored: one binding per role,
/// sorted by role; members lower-case, sorted, once; no empty binding.
///
/// `exists` tells which users, service accounts and domains there are. `before` is the stored policy: a deleted
/// principal may stay in it and may not be added.
pub fn canonical(
    place: Place,
    asked: &[Binding],
    before: &Policy,
    exists: &dyn Fn(&Member) -> bool,
) -> Result<Vec<Binding>, Fault> {
    let members = asked.iter().map(|binding| binding.members.len()).sum::<usize>();
    if members > POLICY_MEMBERS_MAX {
        let why = format!(
            "The number of members in the policy ({members}) is larger than the maximum allowed size \
             {POLICY_MEMBERS_MAX}."
        );
        return Err(Fault::invalid(why));
    }
    let mut merged: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for Binding { role, members, condition } in asked {
        if condition.is_some() {
            return Err(Fault::not_enforced("policy.bindings.condition"));
        }
        let role = grantable(place, role)?;
        for member in members {
            let member = member.parse().map_err(|e: MemberError| Fault::invalid(e.to_string()))?;
            admit(place, &member, before, exists)?;
            merged.entry(role.name).or_default().insert(member.to_string());
        }
    }
    let binding = |(role, members): (&str, _)| Binding { role: role.to_owned(), members, condition: None };
    Ok(merged.into_iter().map(binding).collect())
}

fn grantable(place: Place, name: &str) -> Result<&'static Role, Fault> {
    match Role::find(name) {
        None => Err(Fault::invalid(format!("Role {name} does not exist in the resource's hierarchy."))),
        Some(role) if role.is_basic() && place != Place::Hierarchy => {
            Err(Fault::invalid(format!("Role {name} is not supported for this resource.")))
        }
        Some(role) => Ok(role),
    }
}

fn admit(place: Place, member: &Member, before: &Policy, exists: &dyn Fn(&Member) -> bool) -> Result<(), Fault> {
    let refuse = |why: String| Err(Fault::invalid(why));
    match member {
        Member::AllUsers | Member::AllAuthenticatedUsers => match place {
            Place::RunService => Ok(()),
            Place::Hierarchy | Place::Resource => {
                refuse(format!("Member {member} cannot be granted a role on this resource."))
            }
        },
        Member::Deleted(_) => {
            let text = member.to_string();
            let known = before.bindings.iter().any(|binding| binding.members.contains(&text));
            if known { Ok(()) } else { refuse(format!("The member {text} is deleted and cannot be added.")) }
        }
        Member::User(email) if !exists(member) => refuse(format!("User {email} does not exist.")),
        Member::ServiceAccount(email) if !exists(member) => refuse(format!("Service account {email} does not exist.")),
        // There are no groups in this cloud: whoever is written down is obeyed, so none may be written down.
        Member::Group(email) => refuse(format!("Group {email} does not exist.")),
        Member::Domain(domain) if domain.ends_with("gserviceaccount.com") || !exists(member) => {
            refuse(format!("Domain {domain} does not exist."))
        }
        Member::User(_) | Member::ServiceAccount(_) | Member::Domain(_) => Ok(()),
    }
}

/// Turns every mention of a service account into that of its deleted self, so that another of the same name inherits
/// nothing. True when there was one.
pub fn bury(policy: &mut Policy, email: &str, unique_id: &str) -> bool {
    rename(policy, &format!("serviceAccount:{email}"), &deleted(email, unique_id))
}

/// The reverse of [`bury`].
pub fn revive(policy: &mut Policy, email: &str, unique_id: &str) -> bool {
    rename(policy, &deleted(email, unique_id), &format!("serviceAccount:{email}"))
}

fn deleted(email: &str, unique_id: &str) -> String {
    format!("deleted:serviceAccount:{email}?uid={unique_id}")
}

fn rename(policy: &mut Policy, from: &str, to: &str) -> bool {
    let mut found = false;
    for binding in &mut policy.bindings {
        if binding.members.remove(from) {
            binding.members.insert(to.to_owned());
            found = true;
        }
    }
    found
}

/// The etag of a policy that was never set.
const ETAG_NEVER: &str = "ACAB";
/// The first 62 digits of base64: those that both of its alphabets share.
const DIGITS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// The etag of a policy: base64 of eight bytes that begin with 0x07, as Google's are, and that hold the revision.
///
/// It is written digit by digit to the base 62, so that neither `+` nor `/` occurs and clients that know only one of
/// the two base64 alphabets send it back as it was.
pub fn etag(policy: &Policy) -> String {
    etag_of(policy.revision)
}

/// The etag of a revision; 0 is that of a policy that was never set.
pub fn etag_of(revision: u64) -> String {
    if revision == 0 {
        return ETAG_NEVER.to_owned();
    }
    let mut rest = revision;
    let mut digits = [b'A'; 8];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[usize::try_from(rest % 62).expect("less than 62")];
        rest /= 62;
    }
    format!("Bw{}A=", String::from_utf8_lossy(&digits))
}

/// Checks the etag of a read-modify-write. An empty one means "whatever is there".
pub fn check_etag(policy: &Policy, given: &str) -> Result<(), Fault> {
    let current = etag(policy);
    // Padding is all in which two spellings of our etags can differ.
    if given.is_empty() || given.trim_end_matches('=') == current.trim_end_matches('=') {
        return Ok(());
    }
    let why = format!(
        "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff. The \
         request's ETag '{given}' did not match the current policy's ETag '{current}'."
    );
    Err(Fault::new(Code::Aborted, "aborted", why))
}
