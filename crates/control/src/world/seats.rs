//! Seats, and who finds them by what.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Deref,
};

use model::{id::WorkloadId, run::RevisionKey};

use super::{Holder, SeatRecord};

/// Read it as a map; write it by [`Seats::put`] and [`Seats::take`], which keep the indexes.
#[derive(Clone, Debug, Default)]
pub struct Seats {
    all: BTreeMap<WorkloadId, SeatRecord>,
    by_revision: BTreeMap<RevisionKey, BTreeSet<WorkloadId>>,
    /// Whose instance has this address on the fabric.
    by_address: BTreeMap<Ipv4Addr, RevisionKey>,
    uid_bases: BTreeSet<u32>,
}

impl Deref for Seats {
    type Target = BTreeMap<WorkloadId, SeatRecord>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Seats {
    /// The seats of a revision's instances.
    pub fn of_revision(&self, key: &RevisionKey) -> impl Iterator<Item = &SeatRecord> {
        self.by_revision.get(key).into_iter().flatten().filter_map(|id| self.all.get(id))
    }

    /// The seats of all container instances.
    pub fn containers(&self) -> impl Iterator<Item = &SeatRecord> {
        self.by_revision.values().flatten().filter_map(|id| self.all.get(id))
    }

    /// The revision whose instance has this address on the fabric.
    pub fn at(&self, address: Ipv4Addr) -> Option<&RevisionKey> {
        self.by_address.get(&address)
    }

    /// Where the ranges of uids in use begin.
    pub fn uid_bases(&self) -> &BTreeSet<u32> {
        &self.uid_bases
    }

    pub(crate) fn put(&mut self, seat: SeatRecord) {
        self.take(&seat.workload);
        self.uid_bases.insert(seat.uid_base);
        if let Holder::Container { revision, v4, .. } = &seat.holder {
            self.by_address.insert(*v4, revision.clone());
            self.by_revision.entry(revision.clone()).or_default().insert(seat.workload.clone());
        }
        self.all.insert(seat.workload.clone(), seat);
    }

    pub(crate) fn take(&mut self, id: &WorkloadId) {
        let Some(seat) = self.all.remove(id) else { return };
        self.uid_bases.remove(&seat.uid_base);
        let Holder::Container { revision, v4, .. } = &seat.holder else { return };
        self.by_address.remove(v4);
        if let Some(ids) = self.by_revision.get_mut(revision) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_revision.remove(revision);
            }
        }
    }
}
