//! One pipeline for every write: authorize, check, resolve, admit, commit.
//!
//! A commit is all or nothing and durable when it returns; the world follows it, then whoever plans is told what was
//! touched. All writers, also in other processes, are put in order by one key that every commit compares and replaces.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use identity::{
    permission::Permission,
    policy::{self, Decision},
};
use model::{
    fault::{Code, Fault},
    iam::{Policy, Principal},
    id::ResourceId,
    limits::PSC_NAT_QUARANTINE,
    name::Link,
    time::Timestamp,
};
use store::{Kv, Outcome, Revision as StoreRevision, StoreError};
use tokio::sync::Notify;

pub use crate::change::Change;
use crate::{
    dirty::Dirty,
    kind::{Kind, Need, Record, Reference, word_of},
    operation::{Operation, OperationState},
    policies, random,
    world::World,
};

/// How often a commit is tried again when another writer was faster.
const COMMIT_TRIES: u32 = 16;
/// Questions to IAM that one call's entry shows at most.
const TRAIL_MAX: usize = 64;
/// The key that puts all writers in order.
const HEAD: &str = "head";

/// Tells the time. Handed in, so that tests own it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What one commit will do. A later change of the same key replaces an earlier one.
pub struct Txn {
    pub now: Timestamp,
    /// For rests and waits: see [`Control::steady`].
    pub steady: Timestamp,
    /// How long a released NAT address rests.
    pub(crate) nat_rest: Duration,
    /// Who makes a resource, where somebody does: what comes with it is made in their name.
    pub(crate) by: Option<Principal>,
    changes: Vec<Change>,
}

impl Txn {
    /// One that nobody will commit: to find out what a change would do.
    pub(crate) fn scratch(now: Timestamp) -> Txn {
        Txn { now, steady: now, nat_rest: PSC_NAT_QUARANTINE, by: None, changes: Vec::new() }
    }

    pub fn push(&mut self, change: Change) {
        let key = change.key();
        self.changes.retain(|c| c.key() != key);
        self.changes.push(change);
    }

    pub fn put<K: Kind>(&mut self, record: Record<K>) {
        self.push(Change::Object(Box::new(K::wrap(record))));
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
}

/// Who asks, as the door established it.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    pub principal: Principal,
    /// OAuth scopes of the credential; empty means all (the operator's own token).
    pub scopes: Vec<String>,
    /// When the credential ends, if it does.
    pub until: Option<Timestamp>,
    /// What was asked of IAM in their name.
    pub trail: Trail,
}

impl Caller {
    pub fn new(principal: Principal, scopes: Vec<String>) -> Caller {
        Caller { principal, scopes, until: None, trail: Trail::default() }
    }
}

/// What was asked of IAM in the course of one call, for the activity log. Clones are of the same call.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Mutex<Vec<Checked>>>);

/// One question to IAM and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub permission: &'static str,
    pub resource: String,
    pub granted: bool,
}

impl Trail {
    /// The last answer to each question, in the order of asking: a decision may be made more than once.
    fn note(&self, need: &Need, granted: bool) {
        let mut checked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |c: &&mut Checked| c.permission == need.permission && c.resource == need.resource;
        if let Some(before) = checked.iter_mut().find(same) {
            before.granted = granted;
        } else if checked.len() < TRAIL_MAX {
            checked.push(Checked { permission: need.permission, resource: need.resource.clone(), granted });
        }
    }

    pub fn checked(&self) -> Vec<Checked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// It says nothing of who somebody is.
impl PartialEq for Trail {
    fn eq(&self, _: &Trail) -> bool {
        true
    }
}

/// The right to do something, made only by [`Control::authorize`].
pub struct Authorized(());

/// A resource that a caller wants to exist.
pub struct Draft<K> {
    pub link: Link,
    pub labels: std::collections::BTreeMap<String, String>,
    pub spec: K,
    pub inert: serde_json::Map<String, serde_json::Value>,
    /// `insert`, or a verb of its own such as `createRegionPscForwardingRule`.
    pub verb: &'static str,
    pub request_id: Option<String>,
}

pub struct Control {
    store: Arc<dyn Kv>,
    clock: Clock,
    steady: Clock,
    nat_rest: Duration,
    world: RwLock<World>,
    /// Held over a whole commit, so that the world it was decided on is the one it changes.
    writer: Mutex<Head>,
    touched: Mutex<Touched>,
    /// Rings after every commit.
    pub changed: Notify,
    /// Rings when operations finish.
    pub finished: Notify,
}

struct Head {
    mod_revision: StoreRevision,
}

/// What was committed since the driver last looked.
#[derive(Default)]
pub struct Touched {
    pub dirty: Dirty,
    /// Operations that began, by name.
    pub started: Vec<String>,
    /// Operations that are done.
    pub ended: Vec<Operation>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    #[error("the stored value of {key} does not parse")]
    Value { key: String, source: serde_json::Error },
}

impl Control {
    pub fn open(store: Arc<dyn Kv>, clock: Clock) -> Result<Control, OpenError> {
        let (world, head) = load(&*store)?;
        Ok(Control {
            store,
            steady: clock.clone(),
            clock,
            nat_rest: PSC_NAT_QUARANTINE,
            world: RwLock::new(world),
            writer: Mutex::new(head),
            touched: Mutex::default(),
            changed: Notify::new(),
            finished: Notify::new(),
        })
    }

    /// Released NAT addresses rest this long instead of [`PSC_NAT_QUARANTINE`]; for tests that wait it out.
    pub fn with_nat_rest(self, nat_rest: Duration) -> Control {
        Control { nat_rest, ..self }
    }

    /// Rests and waits are measured by this clock instead of the one that tells the time.
    pub fn with_steady(self, steady: Clock) -> Control {
        Control { steady, ..self }
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The time for what is measured and not shown: it passes evenly, also when somebody sets the machine's clock.
    pub fn steady(&self) -> Timestamp {
        (self.steady)()
    }

    pub fn read(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().expect("no writer of the world panics between its changes")
    }

    /// The world, and what was committed since the last call, up to exactly this world; for the driver, which is the only
    /// one to call it.
    pub fn look(&self) -> (RwLockReadGuard<'_, World>, Touched) {
        let world = self.read();
        let touched = std::mem::take(&mut *self.touched());
        (world, touched)
    }

    /// To be locked after the world.
    fn touched(&self) -> MutexGuard<'_, Touched> {
        self.touched.lock().expect("whoever notes what was touched does not panic")
    }

    /// Decides on the world as it is and commits the decision. `decide` may run more than once and must have no effect
    /// but on the transaction. Returns its answer and the revision.
    pub fn commit<T>(&self, decide: impl Fn(&World, &mut Txn) -> Result<T, Fault>) -> Result<(T, u64), Fault> {
        let mut head = self.writer.lock().expect("a commit does not panic while it holds the writer's lock");
        for _ in 0..COMMIT_TRIES {
            let (now, steady) = (self.now(), self.steady());
            let mut txn = Txn { now, steady, nat_rest: self.nat_rest, by: None, changes: Vec::new() };
            let answer = decide(&self.read(), &mut txn)?;
            if txn.changes.is_empty() {
                return Ok((answer, self.read().revision));
            }
            let mut write = store::Txn::new().when(HEAD, head.mod_revision).put(HEAD, Vec::new());
            for change in &txn.changes {
                write = match change.value() {
                    Some(value) => write.put(change.key(), value),
                    None => write.delete(change.key()),
                };
            }
            match self.store.commit(write) {
                Ok(Outcome::Committed { revision }) => {
                    head.mod_revision = revision;
                    self.follow(revision.0, txn.changes);
                    return Ok((answer, revision.0));
                }
                Ok(Outcome::Conflict { .. }) => self.reload(&mut head)?,
                Err(StoreError::Full) => {
                    return Err(Fault::unavailable(
                        "The disk is full. Nothing was changed; free some space and try again.",
                    ));
                }
                Err(error) => {
                    // It may have happened all the same: look at what is stored before anyone decides on it again.
                    eprintln!("control: cannot commit: {error}");
                    self.reload(&mut head)?;
                    return Err(Fault::unavailable("The store could not be written. Look before you try again."));
                }
            }
        }
        Err(Fault::new(Code::Aborted, "conflict", "Too many concurrent changes. Try again."))
    }

    fn follow(&self, revision: u64, changes: Vec<Change>) {
        {
            let mut world = self.world.write().expect("no writer of the world panics between its changes");
            let mut touched = self.touched();
            for change in changes {
                match &change {
                    Change::Operation(operation) if operation.is_done() => touched.ended.push((**operation).clone()),
                    Change::Operation(operation) => touched.started.push(operation.name.clone()),
                    _ => {}
                }
                touched.dirty.note(&world, &change);
                change.apply(&mut world);
            }
            world.revision = revision;
        }
        self.changed.notify_one();
    }

    /// Another process wrote: read everything again.
    fn reload(&self, head: &mut Head) -> Result<(), Fault> {
        let (world, new_head) = load(&*self.store).map_err(|error| {
            eprintln!("control: cannot read the store: {error}");
            Fault::unavailable("The store cannot be read.")
        })?;
        *self.world.write().expect("no writer of the world panics between its changes") = world;
        self.touched().dirty.everything = true;
        *head = new_head;
        self.changed.notify_one();
        Ok(())
    }

    /// Checks all `needs`, in order; the error names the first that is missing.
    pub fn authorize(&self, world: &World, caller: &Caller, needs: &[Need]) -> Result<Authorized, Need> {
        let who = policy::Caller::Known(&caller.principal);
        for need in needs {
            let allowed = Permission::parse(need.permission).is_some_and(|permission| {
                let decision = policy::decide(&policy_chain(world, &need.resource), who, permission);
                matches!(decision, Decision::Allowed(_))
            });
            caller.trail.note(need, allowed);
            if !allowed {
                return Err(need.clone());
            }
        }
        Ok(Authorized(()))
    }

    /// [`Control::authorize`] with Compute's refusal.
    pub fn authorize_compute(&self, world: &World, caller: &Caller, needs: &[Need]) -> Result<Authorized, Fault> {
        self.authorize(world, caller, needs).map_err(|need| {
            Fault::new(
                Code::PermissionDenied,
                "forbidden",
                format!("Required '{}' permission for '{}'", need.permission, need.resource),
            )
        })
    }

    /// Creates a resource. The operation is done when packets obey it.
    pub fn insert<K: Kind>(&self, caller: &Caller, draft: Draft<K>) -> Result<Operation, Fault> {
        if let Some(earlier) = self.repeated(caller, draft.request_id.as_deref()) {
            return Ok(earlier);
        }
        self.authorize_compute(&self.read(), caller, &draft.spec.needs_to_create(&draft.link))?;
        draft.spec.check(None)?;
        let (operation, _) = self.commit(|world, txn| {
            if world.objects.contains_key(&draft.link) {
                return Err(Fault::already_exists(&draft.link));
            }
            let mut record = Record {
                id: ResourceId(random::resource_id()),
                link: draft.link.clone(),
                created: txn.now,
                generation: 1,
                labels: draft.labels.clone(),
                label_generation: 1,
                spec: draft.spec.clone(),
                inert: draft.inert.clone(),
            };
            let call = Call { caller, verb: draft.verb, request_id: draft.request_id.as_deref() };
            if let Err(fault) = self.authorize_acting(world, caller, &record.spec.accounts_used()) {
                return Ok(call.fail(&record, fault, txn));
            }
            resolve(world, None, &record.spec)?;
            txn.by = Some(caller.principal.clone());
            K::admit(&mut record, None, world, txn)?;
            let operation = call.begin(&record, txn);
            txn.put(record);
            Ok(operation)
        })?;
        Ok(operation)
    }

    /// Changes a resource. `edit` gets the record as it is and leaves it as it should be; a stale fingerprint is its
    /// error to make. An edit that changes nothing still gives an operation.
    pub fn change<K: Kind>(
        &self,
        call: Call<'_>,
        link: &Link,
        edit: impl Fn(&World, &mut Record<K>) -> Result<(), Fault>,
    ) -> Result<Operation, Fault> {
        self.change_by(call, link, |spec| spec.needs_to_update(link), edit)
    }

    /// [`Control::change`] by a verb with permissions of its own. They are asked of the record as it was and as it
    /// becomes: whoever points a resource at another must be allowed to use that one.
    pub fn change_by<K: Kind>(
        &self,
        call: Call<'_>,
        link: &Link,
        needs: impl Fn(&K) -> Vec<Need>,
        edit: impl Fn(&World, &mut Record<K>) -> Result<(), Fault>,
    ) -> Result<Operation, Fault> {
        if let Some(earlier) = self.repeated(call.caller, call.request_id) {
            return Ok(earlier);
        }
        let (operation, _) = self.commit(|world, txn| {
            let Some(old) = world.get::<K>(link) else { return Err(self.absent(world, call.caller, link)) };
            self.authorize_compute(world, call.caller, &needs(&old.spec))?;
            let mut record = old.clone();
            match edit(world, &mut record) {
                Err(fault) if K::is_found_late(&fault) => return Ok(call.fail(old, fault, txn)),
                edited => edited?,
            }
            self.authorize_compute(world, call.caller, &needs(&record.spec))?;
            record.spec.check(Some(&old.spec))?;
            resolve(world, Some(&old.spec), &record.spec)?;
            K::admit(&mut record, Some(old), world, txn)?;
            if record != *old {
                record.generation += 1;
            }
            let operation = call.begin(&record, txn);
            txn.put(record);
            Ok(operation)
        })?;
        Ok(operation)
    }

    pub fn delete<K: Kind>(&self, call: Call<'_>, link: &Link) -> Result<Operation, Fault> {
        if let Some(earlier) = self.repeated(call.caller, call.request_id) {
            return Ok(earlier);
        }
        let (operation, _) = self.commit(|world, txn| {
            let Some(old) = world.get::<K>(link) else { return Err(self.absent(world, call.caller, link)) };
            self.authorize_compute(world, call.caller, &old.spec.needs_to_delete(link))?;
            match removable(old, world).and_then(|()| K::retire(old, world, txn)) {
                Ok(()) => {
                    txn.push(Change::NoObject(link.clone()));
                    // A resource made anew under the name must not find the old one's policy.
                    if world.policies.contains_key(&link.to_string()) {
                        txn.push(Change::NoPolicy(link.to_string()));
                    }
                    Ok(call.begin(old, txn))
                }
                Err(fault) if K::is_found_late(&fault) => Ok(call.fail(old, fault, txn)),
                Err(fault) => Err(fault),
            }
        })?;
        Ok(operation)
    }

    /// The right to act as service accounts. Its absence ends an operation rather than the call.
    /// Source: Compute, SERVICE_ACCOUNT_ACCESS_DENIED; the same for an account that does not exist.
    pub fn authorize_acting(&self, world: &World, caller: &Caller, emails: &[&str]) -> Result<(), Fault> {
        for email in emails {
            // The platform's agents act for it alone.
            let known = world.accounts.get(*email).filter(|account| !account.agent);
            let allowed = known.is_some_and(|account| {
                let resource = format!("projects/{}/serviceAccounts/{email}", account.project);
                self.authorize(world, caller, &[Need::on("iam.serviceAccounts.actAs", resource)]).is_ok()
            });
            if !allowed {
                let user = caller.principal.email();
                let text = format!(
                    "The user does not have access to service account '{email}'.  User: '{user}'.  Ask a project owner \
                     to grant you the iam.serviceAccountUser role on the service account"
                );
                return Err(Fault::new(Code::InvalidArgument, "serviceAccountAccessDenied", text));
            }
        }
        Ok(())
    }

    /// What a caller hears of a resource that does not exist: 404 only with the right to see its project.
    fn absent(&self, world: &World, caller: &Caller, link: &Link) -> Fault {
        let project = format!("projects/{}", link.project);
        if policies::holds(world, &caller.principal, "compute.projects.get", &project) {
            return Fault::not_found(link);
        }
        let text = format!("Required 'compute.{}.get' permission for '{link}'", link.collection);
        Fault::new(Code::PermissionDenied, "forbidden", text)
    }

    /// The operation that the same caller began under this `requestId`.
    pub fn repeated(&self, caller: &Caller, request_id: Option<&str>) -> Option<Operation> {
        self.read().requested(caller.principal.email(), request_id?).cloned()
    }

    /// Marks operations as done; for the driver.
    pub fn finish(&self, outcomes: &[(String, Option<Fault>)]) -> Result<(), Fault> {
        self.commit(|world, txn| {
            for (name, fault) in outcomes {
                let Some(operation) = world.operations.get(name).filter(|o| !o.is_done()) else { continue };
                let mut operation = operation.clone();
                operation.state = OperationState::Done { at: txn.now, fault: fault.clone() };
                txn.push(Change::Operation(Box::new(operation)));
            }
            Ok(())
        })?;
        self.finished.notify_waiters();
        Ok(())
    }
}

/// Every reference of `spec` must exist, and what is newly referred to must have been made.
/// Source: Compute, a resource can be used once its own operation is done.
fn resolve<K: Kind>(world: &World, old: Option<&K>, spec: &K) -> Result<(), Fault> {
    let before = old.map(K::references).unwrap_or_default();
    for Reference { field, to } in spec.references() {
        if !world.objects.contains_key(&to) {
            let why = format!("The referenced {} resource cannot be found.", word_of(&to.collection));
            return Err(Fault::invalid_value(field, &to.url(), &why));
        }
        let known = before.iter().any(|reference| reference.to == to);
        if !known && world.running_on(&to).any(|operation| operation.makes_its_target()) {
            return Err(Fault::not_ready(&to));
        }
    }
    Ok(())
}

/// Nobody refers to the resource but those that go with it.
fn removable<K: Kind>(record: &Record<K>, world: &World) -> Result<(), Fault> {
    let companions = K::companions(record, world);
    match world.referrers(&record.link).find(|user| !companions.contains(user)) {
        Some(user) => Err(Fault::in_use(K::WORD, &record.link, user)),
        None => Ok(()),
    }
}

/// A call that changes something: who makes it, and what its operation is called.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub caller: &'a Caller,
    /// `patch`, `delete`, `setLabels`, …
    pub verb: &'a str,
    pub request_id: Option<&'a str>,
}

impl Call<'_> {
    /// The operation of a change that is committed with it.
    fn begin<K: Kind>(&self, record: &Record<K>, txn: &mut Txn) -> Operation {
        self.operation(&record.link, record.id, OperationState::Running, txn)
    }

    /// The operation of a change that was refused after the call was answered. Nothing else is committed.
    fn fail<K: Kind>(&self, record: &Record<K>, fault: Fault, txn: &mut Txn) -> Operation {
        txn.changes.clear();
        let state = OperationState::Done { at: txn.now, fault: Some(fault) };
        self.operation(&record.link, record.id, state, txn)
    }

    /// Puts an operation on `target` into the transaction.
    pub fn operation(&self, target: &Link, id: ResourceId, state: OperationState, txn: &mut Txn) -> Operation {
        let now = txn.now;
        let operation = Operation {
            name: format!("operation-{}-{}-{}-{}", now.unix_ms(), random::hex(13), random::hex(8), random::hex(8)),
            id: ResourceId(random::resource_id()),
            project: target.project.clone(),
            scope: target.scope.clone(),
            verb: self.verb.to_owned(),
            target: target.clone(),
            target_id: id,
            user: self.caller.principal.email().to_owned(),
            inserted: now,
            request_id: self.request_id.map(str::to_owned),
            state,
        };
        txn.push(Change::Operation(Box::new(operation.clone())));
        operation
    }
}

/// The policies that speak about `resource`, nearest first: its own, its project's, its organisation's.
pub fn policy_chain<'w>(world: &'w World, resource: &str) -> Vec<&'w Policy> {
    let mut names: Vec<String> = Vec::new();
    let parts: Vec<&str> = resource.split('/').collect();
    if let ["projects", project, rest @ ..] = parts.as_slice() {
        if let Some(project) = world.project(project) {
            if !rest.is_empty() {
                names.push(format!("projects/{}/{}", project.id, rest.join("/")));
            }
            names.push(format!("projects/{}", project.id));
            names.extend(project.parent.clone());
        }
    } else {
        names.push(resource.to_owned());
    }
    names.dedup();
    names.iter().filter_map(|name| world.policies.get(name)).collect()
}

fn load(store: &dyn Kv) -> Result<(World, Head), OpenError> {
    let snapshot = store.range("")?;
    let mut world = World::default();
    world.revision = snapshot.revision.0;
    let mut head = Head { mod_revision: StoreRevision::ABSENT };
    for entry in snapshot.entries {
        if &*entry.key == HEAD {
            head.mod_revision = entry.mod_revision;
            continue;
        }
        match Change::parse(&entry.key, &entry.value) {
            Ok(Some(change)) => change.apply(&mut world),
            Ok(None) => {}
            Err(source) => return Err(OpenError::Value { key: entry.key.to_string(), source }),
        }
    }
    Ok((world, head))
}
