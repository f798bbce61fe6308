//! What the guest was told: who sits where, and which names there are. The last word of control holds while control is
//! away.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use ipc::Told;
use model::{
    limits::{METADATA_TOKENS_MAX, METADATA_WAITERS_MAX},
    planned::guest::{GuestItem, GuestKey, Identity, Machine, Named, Names, Realm, Seat, Want},
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
pub struct World {
    known: RwLock<Known>,
    told: Told,
}

#[derive(Default)]
struct Known {
    workloads: HashMap<Seat, (Epoch, Arc<Workload>)>,
    names: BTreeMap<(Realm, Named), (Epoch, Names)>,
    zones: HashMap<Realm, Arc<Zone>>,
}

impl Known {
    /// Replaces what a resource is called. Whoever looks something up meanwhile keeps the zone as it was.
    fn name(&mut self, realm: Realm, named: Named, told: Option<(Epoch, Names)>) {
        let key = (realm, named);
        let before = self.names.remove(&key).map(|(_, names)| names);
        let now = told.as_ref().map(|(_, names)| names);
        if before.as_ref() != now {
            let zone = Arc::make_mut(self.zones.entry(realm).or_default());
            before.iter().for_each(|names| zone.remove(names));
            now.into_iter().for_each(|names| zone.add(names));
        }
        self.names.extend(told.map(|told| (key, told)));
    }
}

/// Counts connections of control: what was not said again since the last one began is forgotten at its `Complete`.
pub type Epoch = u64;

impl World {
    /// One that knows nothing. Whoever asks for what is not known waits until control has said everything, but no longer
    /// than `hold` from now on.
    pub fn new(hold: Duration) -> World {
        World { known: RwLock::default(), told: Told::within(hold) }
    }

    /// Who sits there now.
    pub fn workload(&self, seat: Seat) -> Option<Arc<Workload>> {
        self.read().workloads.get(&seat).map(|(_, workload)| workload.clone())
    }

    /// Who sits there, once that can be known.
    pub async fn seated(&self, seat: Seat) -> Option<Arc<Workload>> {
        if let Some(known) = self.workload(seat) {
            return Some(known);
        }
        self.told.wait().await;
        self.workload(seat)
    }

    /// Names of a realm, once they can be known.
    pub async fn zone(&self, realm: Realm) -> Arc<Zone> {
        let all_told = self.told.wait().await;
        let known = self.read().zones.get(&realm).cloned().unwrap_or_default();
        if all_told { known } else { Arc::new(Arc::unwrap_or_clone(known).incomplete()) }
    }

    pub fn set(&self, epoch: Epoch, item: GuestItem) {
        match item {
            GuestItem::Workload(seat, identity) => self.seat(epoch, seat, *identity),
            GuestItem::Names(realm, named, names) => self.write().name(realm, named, Some((epoch, names))),
        }
    }

    fn seat(&self, epoch: Epoch, seat: Seat, identity: Identity) {
        let mut known = self.write();
        let entry = known.workloads.entry(seat);
        let (told_in, workload) = entry.or_insert_with(|| (epoch, Workload::new(identity.clone())));
        *told_in = epoch;
        let before = workload.identity();
        if !same_incarnation(&before, &identity) {
            *workload = Workload::new(identity);
        } else if *before != identity {
            workload.identity.send_replace(Arc::new(identity));
        }
    }

    pub fn unset(&self, key: GuestKey) {
        let mut known = self.write();
        match key {
            GuestKey::Workload(seat) => drop(known.workloads.remove(&seat)),
            GuestKey::Names(realm, named) => known.name(realm, named, None),
        }
    }

    /// Everything true has been said since `epoch` began.
    pub fn complete(&self, epoch: Epoch) {
        let mut known = self.write();
        known.workloads.retain(|_, (told_in, _)| *told_in == epoch);
        let stale = known.names.iter().filter(|(_, (told_in, _))| *told_in != epoch).map(|(key, _)| key.clone());
        for (realm, named) in stale.collect::<Vec<_>>() {
            known.name(realm, named, None);
        }
        drop(known);
        self.told.everything();
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use model::id::NetworkId;

    use super::*;
    use crate::dns::{Transport, answer};

    #[tokio::test]
    async fn when_control_stays_away_nobody_waits_for_ever_and_no_name_is_denied() {
        const SERVER_FAILURE: u8 = 2;
        const NO_SUCH_NAME: u8 = 3;
        // A query for `a.`, IN A.
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        let code = |zone: &Zone| answer(zone, query, Transport::Udp).expect("a well-formed query")[3] & 0xf;
        let world = World::new(Duration::from_millis(20));
        let realm = Realm::Vpc(NetworkId(1));
        assert!(world.seated(Seat { realm, address: [10, 0, 0, 2].into() }).await.is_none());
        assert_eq!(code(&*world.zone(realm).await), SERVER_FAILURE);
        world.complete(1);
        assert_eq!(code(&*world.zone(realm).await), NO_SUCH_NAME);
    }
}
