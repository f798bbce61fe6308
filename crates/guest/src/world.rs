//! What the guest was told: who sits where, and which names there are. The last word of control holds while control is
//! away.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use model::{
    limits::{METADATA_TOKENS_MAX, METADATA_WAITERS_MAX},
    planned::guest::{GuestItem, GuestKey, Identity, Machine, Realm, Seat, Want},
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::dns::Zone;

/// One incarnation of a workload in its seat. Its successor in the same seat is another value, with no memory of it.
pub struct Workload {
    /// Closed when the workload has left.
    pub identity: watch::Sender<Arc<Identity>>,
    pub waiters: Arc<Semaphore>,
    tokens: Mutex<Vec<Kept>>,
}

struct Kept {
    want: Want,
    token: String,
    until: Instant,
}

impl Workload {
    fn new(identity: Identity) -> Arc<Workload> {
        Arc::new(Workload {
            identity: watch::Sender::new(Arc::new(identity)),
            waiters: Arc::new(Semaphore::new(METADATA_WAITERS_MAX)),
            tokens: Mutex::default(),
        })
    }

    pub fn identity(&self) -> Arc<Identity> {
        self.identity.borrow().clone()
    }

    /// The token and when it expires, if it is worth handing out after `not_before`.
    pub fn kept(&self, want: &Want, not_before: Instant) -> Option<(String, Instant)> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tokens.iter().find(|kept| kept.want == *want && kept.until >= not_before)?;
        Some((found.token.clone(), found.until))
    }

    pub fn keep(&self, want: Want, token: String, until: Instant) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|kept| kept.want != want);
        if tokens.len() >= METADATA_TOKENS_MAX {
            let first = tokens.iter().enumerate().min_by_key(|(_, kept)| kept.until).map(|(at, _)| at);
            first.map(|at| tokens.swap_remove(at));
        }
        tokens.push(Kept { want, token, until });
    }
}

/// Whether both are the same workload with the same account: what one was given, the other may have.
fn same_incarnation(a: &Identity, b: &Identity) -> bool {
    let same_machine = match (&a.machine, &b.machine) {
        (Machine::Vm { id: a, .. }, Machine::Vm { id: b, .. }) => a == b,
        (Machine::Container { instance_id: a }, Machine::Container { instance_id: b }) => a == b,
        (Machine::Vm { .. }, Machine::Container { .. }) | (Machine::Container { .. }, Machine::Vm { .. }) => false,
    };
    same_machine && a.project_id == b.project_id && a.account == b.account
}

/// Shared between all connections. Locks are held for look-ups only, never across a wait.
#[derive(Default)]
pub struct World(RwLock<Told>);

#[derive(Default)]
struct Told {
    workloads: HashMap<Seat, (Epoch, Arc<Workload>)>,
    zones: HashMap<Realm, (Epoch, Arc<Zone>)>,
}

/// Counts connections of control: what was not said again since the last one began is forgotten at its `Complete`.
pub type Epoch = u64;

impl World {
    pub fn workload(&self, seat: Seat) -> Option<Arc<Workload>> {
        self.read().workloads.get(&seat).map(|(_, workload)| workload.clone())
    }

    /// Names of a realm; an empty zone for one that has none.
    pub fn zone(&self, realm: Realm) -> Arc<Zone> {
        self.read().zones.get(&realm).map(|(_, zone)| zone.clone()).unwrap_or_default()
    }

    pub fn set(&self, epoch: Epoch, item: GuestItem) {
        match item {
            GuestItem::Workload(seat, identity) => self.seat(epoch, seat, *identity),
            GuestItem::Names(realm, names) => self.name(epoch, realm, names),
        }
    }

    fn seat(&self, epoch: Epoch, seat: Seat, identity: Identity) {
        let mut told = self.write();
        let entry = told.workloads.entry(seat);
        let (told_in, workload) = entry.or_insert_with(|| (epoch, Workload::new(identity.clone())));
        *told_in = epoch;
        let before = workload.identity();
        if !same_incarnation(&before, &identity) {
            *workload = Workload::new(identity);
        } else if *before != identity {
            workload.identity.send_replace(Arc::new(identity));
        }
    }

    fn name(&self, epoch: Epoch, realm: Realm, names: BTreeMap<String, std::net::Ipv4Addr>) {
        self.write().zones.insert(realm, (epoch, Arc::new(Zone::new(names))));
    }

    pub fn unset(&self, key: GuestKey) {
        let mut told = self.write();
        match key {
            GuestKey::Workload(seat) => drop(told.workloads.remove(&seat)),
            GuestKey::Names(realm) => drop(told.zones.remove(&realm)),
        }
    }

    /// Everything true has been said since `epoch` began.
    pub fn complete(&self, epoch: Epoch) {
        let mut told = self.write();
        told.workloads.retain(|_, (told_in, _)| *told_in == epoch);
        told.zones.retain(|_, (told_in, _)| *told_in == epoch);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Told> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Told> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
