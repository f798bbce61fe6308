//! Service accounts and the keys that their owners hold.
//!
//! A private key is made, handed out once and forgotten: only its public half is stored. Agents of the platform are
//! accounts that users can name in policies and can neither list nor change.

use identity::{assertion::CredentialsFile, keys::SigningKey, policy::bury};
use model::{
    fault::{Code, Fault},
    iam::ServiceAccount,
    limits,
    name::ProjectId,
    planned::edge::PublicKey,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    kind::Need,
    ops::{Caller, Change, Control},
    projects, random,
    world::World,
};

/// The key files we hand out name Google's token endpoint: clients reach ours under that name.
const TOKEN_URI: &str = identity::assertion::TOKEN_ENDPOINTS[0];

/// The public half of a key that its owner holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountKey {
    pub email: String,
    pub public: PublicKey,
    pub created: Timestamp,
    pub disabled: bool,
}

/// How a request names an account: `projects/{project or -}/serviceAccounts/{email or unique id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountName<'a> {
    pub project: &'a str,
    pub account: &'a str,
}

pub fn resource_name(account: &ServiceAccount) -> String {
    format!("projects/{}/serviceAccounts/{}", account.project, account.email)
}

/// 21 decimal digits that no account has. Source: IAM, `uniqueId`.
pub(crate) fn fresh_unique_id(world: &World) -> String {
    loop {
        let id = format!("1{:019}{}", random::resource_id(), random::resource_id() % 10);
        if !world.accounts.values().any(|a| a.unique_id == id) {
            return id;
        }
    }
}

/// The account of this name. Any project is accepted in the path, as IAM does: the account is found by its address.
pub fn find<'w>(world: &'w World, name: AccountName<'_>) -> Option<&'w ServiceAccount> {
    if name.account.bytes().all(|b| b.is_ascii_digit()) {
        return world.accounts.values().find(|a| a.unique_id == name.account);
    }
    world.accounts.get(&name.account.to_ascii_lowercase())
}

/// The account, if the caller holds `permission` on it. Who holds it on the project of the path hears 404 instead.
pub fn reach<'w>(
    control: &Control,
    world: &'w World,
    caller: &Caller,
    name: AccountName<'_>,
    permission: &'static str,
) -> Result<&'w ServiceAccount, Fault> {
    let asked = format!("projects/{}/serviceAccounts/{}", name.project, name.account);
    match find(world, name) {
        Some(account) => {
            let resource = resource_name(account);
            let denied = |_| Fault::permission_denied(permission, &resource);
            control.authorize(world, caller, &[Need::on(permission, &resource)]).map_err(denied)?;
            require_usable(world, &account.project)?;
            Ok(account)
        }
        None => {
            let project = format!("projects/{}", name.project);
            let visible =
                name.project != "-" && control.authorize(world, caller, &[Need::on(permission, project)]).is_ok();
            Err(if visible { absent(&asked) } else { Fault::permission_denied(permission, &asked) })
        }
    }
}

fn require_usable(world: &World, project: &ProjectId) -> Result<(), Fault> {
    world.projects.get(project).map_or(Ok(()), projects::require_active)
}

/// Whether tokens may be made for an account and are accepted from it.
pub fn is_usable(world: &World, account: &ServiceAccount) -> bool {
    !account.disabled && world.is_active(&account.project)
}

fn absent(name: &str) -> Fault {
    Fault::new(Code::NotFound, "notFound", format!("Service account {name} does not exist."))
}

/// [`reach`] for a change or for acting as the account: the platform's agents are not the users'.
pub(crate) fn own<'w>(
    control: &Control,
    world: &'w World,
    caller: &Caller,
    name: AccountName<'_>,
    permission: &'static str,
) -> Result<&'w ServiceAccount, Fault> {
    let account = reach(control, world, caller, name, permission)?;
    if account.agent { Err(Fault::permission_denied(permission, &resource_name(account))) } else { Ok(account) }
}

fn on_project(
    control: &Control,
    world: &World,
    caller: &Caller,
    project: &str,
    permission: &'static str,
) -> Result<ProjectId, Fault> {
    let denied = || Fault::permission_denied(permission, &format!("projects/{project}"));
    let id = world.project(project).ok_or_else(denied)?.id.clone();
    control.authorize(world, caller, &[Need::on(permission, format!("projects/{id}"))]).map_err(|_| denied())?;
    require_usable(world, &id)?;
    Ok(id)
}

pub fn create(
    control: &Control,
    caller: &Caller,
    project: &str,
    account_id: &str,
    display_name: &str,
    description: &str,
) -> Result<ServiceAccount, Fault> {
    let (account, _) = control.commit(|world, txn| {
        let project = on_project(control, world, caller, project, "iam.serviceAccounts.create")?;
        check_account_id(account_id)?;
        check_texts(display_name, description)?;
        let email = format!("{account_id}@{project}.iam.gserviceaccount.com");
        if world.accounts.contains_key(&email) {
            let resource = format!("projects/{project}/serviceAccounts/{email}");
            let text = format!("Service account {account_id} already exists within project projects/{project}.");
            return Err(Fault::new(Code::AlreadyExists, "alreadyExists", text).with_detail(serde_json::json!({
                "@type": "type.googleapis.com/google.rpc.ResourceInfo",
                "resourceName": resource,
            })));
        }
        let owned = world.accounts.values().filter(|a| a.project == project && !a.agent).count();
        if owned >= limits::ACCOUNTS_PER_PROJECT_MAX {
            return Err(Fault::new(
                Code::ResourceExhausted,
                "rateLimitExceeded",
                format!(
                    "The maximum of {} service accounts of project {project} is reached.",
                    limits::ACCOUNTS_PER_PROJECT_MAX
                ),
            ));
        }
        let account = ServiceAccount {
            email,
            project,
            unique_id: fresh_unique_id(world),
            display_name: display_name.to_owned(),
            description: description.to_owned(),
            disabled: false,
            created: txn.now,
            agent: false,
        };
        txn.push(Change::Account(Box::new(account.clone())));
        Ok(account)
    })?;
    Ok(account)
}

fn check_account_id(id: &str) -> Result<(), Fault> {
    if !(6..=30).contains(&id.len()) {
        return Err(Fault::invalid(format!("The account ID \"{id}\" does not have a length between 6 and 30.")));
    }
    if !model::name::is_resource_name(id) {
        return Err(Fault::invalid(format!(
            "The account ID \"{id}\" does not match the pattern [a-z]([-a-z0-9]*[a-z0-9])."
        )));
    }
    Ok(())
}

fn check_texts(display_name: &str, description: &str) -> Result<(), Fault> {
    if display_name.len() > 100 {
        return Err(Fault::invalid("The display name is longer than 100 bytes."));
    }
    if description.len() > 256 {
        return Err(Fault::invalid("The description is longer than 256 bytes."));
    }
    Ok(())
}

pub fn get(control: &Control, caller: &Caller, name: AccountName<'_>) -> Result<ServiceAccount, Fault> {
    reach(control, &control.read(), caller, name, "iam.serviceAccounts.get").cloned()
}

/// The accounts that users of the project made, and its default account, by address.
pub fn list(control: &Control, caller: &Caller, project: &str) -> Result<Vec<ServiceAccount>, Fault> {
    let world = control.read();
    let project = on_project(control, &world, caller, project, "iam.serviceAccounts.list")?;
    Ok(world.accounts.values().filter(|a| a.project == project && !a.agent).cloned().collect())
}

/// What may be changed of an account; None leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub display_name: Option<String>,
    pub description: Option<String>,
}

pub fn patch(
    control: &Control,
    caller: &Caller,
    name: AccountName<'_>,
    patch: &Patch,
) -> Result<ServiceAccount, Fault> {
    let (account, _) = control.commit(|world, txn| {
        let mut account = own(control, world, caller, name, "iam.serviceAccounts.update")?.clone();
        if let Some(text) = &patch.display_name {
            account.display_name.clone_from(text);
        }
        if let Some(text) = &patch.description {
            account.description.clone_from(text);
        }
        check_texts(&account.display_name, &account.description)?;
        txn.push(Change::Account(Box::new(account.clone())));
        Ok(account)
    })?;
    Ok(account)
}

/// Disabling is felt at once: tokens of the account are refused and none are minted. Its workloads keep running.
pub fn set_disabled(control: &Control, caller: &Caller, name: AccountName<'_>, disabled: bool) -> Result<(), Fault> {
    let permission = if disabled { "iam.serviceAccounts.disable" } else { "iam.serviceAccounts.enable" };
    control.commit(|world, txn| {
        let account = own(control, world, caller, name, permission)?;
        txn.push(Change::Account(Box::new(ServiceAccount { disabled, ..account.clone() })));
        Ok(())
    })?;
    Ok(())
}

/// Deletes an account with its keys and its own policy. An account made later under the same name is another one: what
/// was granted to this one is rewritten to name the deleted account, as IAM shows it.
pub fn delete(control: &Control, caller: &Caller, name: AccountName<'_>) -> Result<(), Fault> {
    control.commit(|world, txn| {
        let account = own(control, world, caller, name, "iam.serviceAccounts.delete")?;
        for (resource, policy) in &world.policies {
            let mut policy = policy.clone();
            if bury(&mut policy, &account.email, &account.unique_id) {
                policy.revision += 1;
                txn.push(Change::Policy(resource.clone(), policy));
            }
        }
        for (email, kid) in world.account_keys.keys().filter(|(email, _)| *email == account.email) {
            txn.push(Change::NoAccountKey { email: email.clone(), kid: kid.clone() });
        }
        txn.push(Change::NoSystemKey(account.email.clone()));
        txn.push(Change::NoPolicy(resource_name(account)));
        txn.push(Change::NoAccount(account.email.clone()));
        Ok(())
    })?;
    Ok(())
}

/// A new key with the file that its owner is given. The file is not stored and cannot be had again.
///
/// Makes an RSA key, which takes a tenth of a second: call it on a thread that may block.
pub fn create_key(control: &Control, caller: &Caller, name: AccountName<'_>) -> Result<(AccountKey, String), Fault> {
    // Refused before the costly part; decided again in the transaction.
    own(control, &control.read(), caller, name, "iam.serviceAccountKeys.create")?;
    let key = SigningKey::generate().map_err(|_| Fault::internal("The key could not be generated."))?;
    let (answer, _) = control.commit(|world, txn| {
        let account = own(control, world, caller, name, "iam.serviceAccountKeys.create")?;
        if keys_of(world, &account.email).count() >= limits::ACCOUNT_KEYS_MAX {
            return Err(Fault::new(Code::FailedPrecondition, "failedPrecondition", "Precondition check failed."));
        }
        let stored = AccountKey {
            email: account.email.clone(),
            public: key.public().clone(),
            created: txn.now,
            disabled: false,
        };
        let file = CredentialsFile::new(account, &key, TOKEN_URI).to_text();
        txn.push(Change::AccountKey(Box::new(stored.clone())));
        Ok((stored, file))
    })?;
    Ok(answer)
}

/// The keys of an account that users hold, by kid.
pub fn keys_of<'w>(world: &'w World, email: &str) -> impl Iterator<Item = &'w AccountKey> {
    let start = (email.to_owned(), String::new());
    let email = email.to_owned();
    world.account_keys.range(start..).take_while(move |((e, _), _)| *e == email).map(|(_, key)| key)
}

pub fn list_keys(
    control: &Control,
    caller: &Caller,
    name: AccountName<'_>,
) -> Result<(ServiceAccount, Vec<AccountKey>), Fault> {
    let world = control.read();
    let account = reach(control, &world, caller, name, "iam.serviceAccountKeys.list")?;
    Ok((account.clone(), keys_of(&world, &account.email).cloned().collect()))
}

fn no_key(account: &ServiceAccount, kid: &str) -> Fault {
    Fault::new(
        Code::NotFound,
        "notFound",
        format!("Service account key {}/keys/{kid} does not exist.", resource_name(account)),
    )
}

pub fn get_key(
    control: &Control,
    caller: &Caller,
    name: AccountName<'_>,
    kid: &str,
) -> Result<(ServiceAccount, AccountKey), Fault> {
    let world = control.read();
    let account = reach(control, &world, caller, name, "iam.serviceAccountKeys.get")?;
    let key = world.account_keys.get(&(account.email.clone(), kid.to_owned())).ok_or_else(|| no_key(account, kid))?;
    Ok((account.clone(), key.clone()))
}

pub fn delete_key(control: &Control, caller: &Caller, name: AccountName<'_>, kid: &str) -> Result<(), Fault> {
    edit_key(control, caller, name, kid, "iam.serviceAccountKeys.delete", |key| Change::NoAccountKey {
        email: key.email.clone(),
        kid: key.public.kid.clone(),
    })
}

pub fn set_key_disabled(
    control: &Control,
    caller: &Caller,
    name: AccountName<'_>,
    kid: &str,
    disabled: bool,
) -> Result<(), Fault> {
    let permission = if disabled { "iam.serviceAccountKeys.disable" } else { "iam.serviceAccountKeys.enable" };
    edit_key(control, caller, name, kid, permission, |key| {
        Change::AccountKey(Box::new(AccountKey { disabled, ..key.clone() }))
    })
}

fn edit_key(
    control: &Control,
    caller: &Caller,
    name: AccountName<'_>,
    kid: &str,
    permission: &'static str,
    change: impl Fn(&AccountKey) -> Change,
) -> Result<(), Fault> {
    control.commit(|world, txn| {
        let account = own(control, world, caller, name, permission)?;
        let key =
            world.account_keys.get(&(account.email.clone(), kid.to_owned())).ok_or_else(|| no_key(account, kid))?;
        txn.push(change(key));
        Ok(())
    })?;
    Ok(())
}
