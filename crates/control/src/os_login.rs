//! OS Login: people keep their SSH keys in a profile, and roles say into which VMs it lets them.
//!
//! A profile is its owner's alone. A VM learns of one only while its owner may log in there, and asks anew for every
//! login. Source: OS Login API v1, and "Set up OS Login". Choices: docs/decisions/2026-11-28-os-login.md.

use aws_lc_rs::digest;
use identity::base64::{self, Form};
use model::{
    fault::{Code, Fault},
    iam::Principal,
    limits::LOGIN_PROFILE_BYTES_MAX,
    login::{LoginKey, LoginProfile},
    name::ProjectId,
    planned::guest::{LoginAnswer, LoginQuestion, Realm, Seat},
    time::Timestamp,
    vm, vpc,
};

use crate::{
    accounts,
    credentials::user_id,
    kind::{Need, Record},
    ops::{Caller, Change, Control, Txn},
    policies,
    tokens::principal,
    world::World,
};

/// Numbers of people in VMs: above those that the VM's own accounts take, below the end of its user namespace.
const FIRST_UID: u32 = 20_000;
const LAST_UID: u32 = 59_999;
/// Source: useradd(8).
const USERNAME_BYTES_MAX: usize = 32;

/// The caller's own profile; one that keeps nothing yet is empty and not stored.
///
/// # Errors
/// 403 for whoever it does not belong to, and for a project the caller cannot see.
pub fn profile(control: &Control, caller: &Caller, user: &str, project: Option<&str>) -> Result<LoginProfile, Fault> {
    let world = control.read();
    visible(control, &world, caller, project)?;
    own(&world, caller, user)
}

/// Adds a key or gives it another end, and makes an account in the VMs of `project`.
///
/// # Errors
/// 400 for what is no key and for a profile that grows too large.
pub fn import(
    control: &Control,
    caller: &Caller,
    user: &str,
    key: Option<LoginKey>,
    project: Option<&str>,
) -> Result<LoginProfile, Fault> {
    let key = key.map(|key| Ok::<_, Fault>((fingerprint(&key.key)?, key))).transpose()?;
    let now = control.now();
    change(control, caller, user, project, |mut profile| {
        profile.keys.retain(|_, key| !key.is_over(now));
        profile.keys.extend(key.clone());
        Ok(profile)
    })
}

/// Gives a key another end (`Some(None)` is none), or puts another key in its place. Returns it with its fingerprint.
///
/// # Errors
/// 404 when the profile has no such key.
pub fn patch(
    control: &Control,
    caller: &Caller,
    user: &str,
    print: &str,
    line: Option<&str>,
    expires: Option<Option<Timestamp>>,
) -> Result<(String, LoginKey), Fault> {
    let after = line.map_or_else(|| Ok(print.to_owned()), fingerprint)?;
    let profile = change(control, caller, user, None, |mut profile| {
        let mut key = profile.keys.remove(print).ok_or_else(missing)?;
        key.key = line.map_or(key.key, str::to_owned);
        key.expires = expires.unwrap_or(key.expires);
        profile.keys.insert(after.clone(), key);
        Ok(profile)
    })?;
    let key = profile.keys.get(&after).cloned().ok_or_else(missing)?;
    Ok((after, key))
}

pub fn delete_key(control: &Control, caller: &Caller, user: &str, print: &str) -> Result<(), Fault> {
    let forget = |mut profile: LoginProfile| profile.keys.remove(print).map(|_| profile).ok_or_else(missing);
    change(control, caller, user, None, forget).map(drop)
}

/// Ends the account in the VMs of a project.
///
/// # Errors
/// 404 when there is none.
pub fn delete_account(control: &Control, caller: &Caller, user: &str, project: &str) -> Result<(), Fault> {
    let project: ProjectId = control.read().project(project).map(|p| p.id.clone()).ok_or_else(missing)?;
    let forget = |mut profile: LoginProfile| {
        if profile.projects.remove(&project) { Ok(profile) } else { Err(missing()) }
    };
    change(control, caller, user, None, forget).map(drop)
}

fn change(
    control: &Control,
    caller: &Caller,
    user: &str,
    project: Option<&str>,
    edit: impl Fn(LoginProfile) -> Result<LoginProfile, Fault>,
) -> Result<LoginProfile, Fault> {
    let decide = |world: &World, txn: &mut Txn| {
        let project = visible(control, world, caller, project)?;
        let mut profile = edit(own(world, caller, user)?)?;
        profile.projects.extend(project);
        // Source: OS Login, the profile's limit and this text.
        if profile.keys.values().map(|key| key.key.len()).sum::<usize>() > LOGIN_PROFILE_BYTES_MAX {
            let why = "Login profile size exceeds 32 KiB. Delete profile values to make additional space.";
            return Err(Fault::invalid(why));
        }
        txn.push(Change::Login(Box::new(profile.clone())));
        Ok(profile)
    };
    Ok(control.commit(decide)?.0)
}

/// 404 of this API.
pub fn missing() -> Fault {
    Fault::new(Code::NotFound, "notFound", "Requested entity was not found.")
}

/// The project in whose VMs an account is wanted.
fn visible(
    control: &Control,
    world: &World,
    caller: &Caller,
    project: Option<&str>,
) -> Result<Option<ProjectId>, Fault> {
    let Some(name) = project else { return Ok(None) };
    let found = world.project(name).map_or(policies::NOWHERE.to_owned(), |p| format!("projects/{}", p.id));
    let need = Need::on("compute.projects.get", &found);
    control.authorize(world, caller, &[need]).map_err(|need| Fault::permission_denied(need.permission, &found))?;
    Ok(world.project(name).map(|project| project.id.clone()))
}

fn own(world: &World, caller: &Caller, user: &str) -> Result<LoginProfile, Fault> {
    let email = caller.principal.email();
    if !email.eq_ignore_ascii_case(user) {
        return Err(Fault::new(Code::PermissionDenied, "forbidden", "The caller does not have permission"));
    }
    let account = match &caller.principal {
        Principal::User { .. } => None,
        Principal::ServiceAccount { unique_id, .. } => Some(unique_id.clone()),
    };
    match world.logins.get(email) {
        Some(kept) if kept.account == account => Ok(kept.clone()),
        Some(_) | None => {
            let (username, uid) = free_name(world, email, account.as_deref());
            let id = account.clone().unwrap_or_else(|| user_id(email));
            let (keys, projects) = Default::default();
            Ok(LoginProfile { email: email.to_owned(), id, account, username, uid, keys, projects })
        }
    }
}

/// A name and a number that no other profile has. Source: OS Login, "the username is the address, with other
/// characters replaced by underscores"; `sa_` and the unique id for service accounts.
fn free_name(world: &World, email: &str, account: Option<&str>) -> (String, u32) {
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name = account.map_or_else(|| email.chars().map(word).collect(), |id| format!("sa_{id}"));
    let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name };
    let others = || world.logins.values().filter(|other| other.email != email);
    let variant = |n: u32| {
        let end = if n == 0 { String::new() } else { format!("_{n}") };
        format!("{:.*}{end}", USERNAME_BYTES_MAX - end.len(), name)
    };
    let name = (0..).map(variant).find(|name| others().all(|other| other.username != *name)).unwrap_or(name);
    let digest = digest::digest(&digest::SHA256, email.as_bytes());
    let start = digest.as_ref().iter().take(4).fold(0, |sum: u32, byte| sum << 8 | u32::from(*byte));
    let room = LAST_UID - FIRST_UID + 1;
    let numbers = (0..room).map(|n| FIRST_UID + (start % room + n) % room);
    let uid = numbers.into_iter().find(|uid| others().all(|other| other.uid != *uid)).unwrap_or(LAST_UID);
    (name, uid)
}

/// SHA-256 of the key, in hex.
///
/// # Errors
/// 400 for what is no public key as `authorized_keys` has it.
pub fn fingerprint(line: &str) -> Result<String, Fault> {
    let wrong = || Fault::invalid("Invalid SSH public key: expected 'TYPE BASE64 COMMENT'.");
    let mut words = line.split_ascii_whitespace();
    let (kind, data) = words.next().zip(words.next()).ok_or_else(wrong)?;
    let bytes = base64::decode(Form::Standard, data).ok_or_else(wrong)?;
    // The key says once more what it is. Source: RFC 4253, 6.6.
    let named = bytes.strip_prefix(&u32::try_from(kind.len()).unwrap_or(u32::MAX).to_be_bytes()[..]);
    let rest = named.and_then(|rest| rest.strip_prefix(kind.as_bytes())).filter(|rest| !rest.is_empty());
    if rest.is_none() || line.contains(['\n', '\r', '\0']) {
        return Err(wrong());
    }
    Ok(digest::digest(&digest::SHA256, &bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect())
}

/// What the VM in this seat may know.
pub fn answer(world: &World, seat: Seat, question: &LoginQuestion, now: Timestamp) -> LoginAnswer {
    let vm = vm_at(world, seat);
    let known = |profile: &&LoginProfile| match question {
        LoginQuestion::User { username } => profile.username == *username,
        LoginQuestion::Admission { profile: id, .. } => profile.id == *id,
    };
    let profile = world.logins.values().find(known);
    let admitted = vm.zip(profile).is_some_and(|(vm, profile)| {
        let admin = matches!(question, LoginQuestion::Admission { admin: true, .. });
        may_log_in(world, vm, profile, admin)
    });
    match question {
        LoginQuestion::User { .. } => LoginAnswer::User(profile.filter(|_| admitted).map(|profile| {
            let mut profile = profile.clone();
            profile.keys.retain(|_, key| !key.is_over(now));
            Box::new(profile)
        })),
        LoginQuestion::Admission { .. } => LoginAnswer::Admission(admitted),
    }
}

/// Who may become the VM's root may use the VM's account; so whoever logs in needs that right too.
/// Source: "Set up OS Login", required roles.
fn may_log_in(world: &World, vm: &Record<vm::Instance>, profile: &LoginProfile, admin: bool) -> bool {
    let who = match &profile.account {
        None => Principal::User { email: profile.email.clone() },
        Some(id) => match world.accounts.get(&profile.email) {
            Some(account) if account.unique_id == *id && accounts::is_usable(world, account) => principal(account),
            Some(_) | None => return false,
        },
    };
    let on_vm = |permission| policies::holds(world, &who, permission, &vm.link.to_string());
    let login = if admin {
        on_vm("compute.instances.osAdminLogin")
    } else {
        on_vm("compute.instances.osLogin") || on_vm("compute.instances.osAdminLogin")
    };
    let may_act = vm.spec.service_account.as_ref().is_none_or(|attached| {
        let account = world.accounts.get(&attached.email);
        account.is_some_and(|account| {
            policies::holds(world, &who, "iam.serviceAccounts.actAs", &accounts::resource_name(account))
        })
    });
    profile.projects.contains(&vm.link.project) && login && may_act
}

fn vm_at(world: &World, seat: Seat) -> Option<&Record<vm::Instance>> {
    let Realm::Vpc(network) = seat.realm else { return None };
    world.at::<vm::Instance>(&world.by_id::<vpc::Network>(network.0)?.link, seat.address)
}

#[cfg(test)]
mod tests;
