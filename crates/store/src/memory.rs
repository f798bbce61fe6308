//! What the store holds, and what a transaction does to it. Pure: no disk, no lock, no thread.
//!
//! All keys and values live here; a disk, if there is one, is a mirror that is read once at the start. Transactions are
//! first staged on top ([`Staged`]), made durable as a group, and only then applied, so that no reader ever sees what
//! a power cut could take back. Start with [`Staged::add`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use crate::kv::{Change, Entry, Event, Outcome, Revision, Snapshot, StoreError, Txn};

/// Every key, the present revision, and the latest changes.
#[derive(Debug)]
pub(crate) struct State {
    entries: BTreeMap<Arc<str>, Entry>,
    revision: Revision,
    history: VecDeque<Event>,
    /// `history` holds every event later than this.
    forgotten: Revision,
    history_max: usize,
}

impl State {
    /// A store as read from disk. Its changes before now are not known, so watchers of them must list again.
    pub(crate) fn new(entries: impl IntoIterator<Item = Entry>, revision: Revision, history_max: usize) -> State {
        State {
            entries: entries.into_iter().map(|e| (e.key.clone(), e)).collect(),
            revision,
            history: VecDeque::new(),
            forgotten: revision,
            history_max,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(crate) fn range(&self, prefix: &str) -> Snapshot {
        let entries = self
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Snapshot { revision: self.revision, entries }
    }

    /// Events under `prefix` later than `after`.
    pub(crate) fn since(&self, prefix: &str, after: Revision) -> Result<Vec<Event>, StoreError> {
        if after < self.forgotten || after > self.revision {
            return Err(StoreError::Relist { after, oldest: self.forgotten, newest: self.revision });
        }
        let start = self.history.partition_point(|event| event.revision <= after);
        Ok(self.history.range(start..).filter(|event| event.change.key().starts_with(prefix)).cloned().collect())
    }

    /// Makes a group visible: readers see either none or all of each of its transactions.
    pub(crate) fn apply(&mut self, staged: Staged) {
        self.revision = staged.revision;
        for event in &staged.events {
            match &event.change {
                Change::Put(entry) => self.entries.insert(entry.key.clone(), entry.clone()),
                Change::Delete { key } => self.entries.remove(key),
            };
        }
        self.history.extend(staged.events);
        while self.history.len() > self.history_max {
            let oldest = self.history.front().map_or(self.revision, |event| event.revision);
            self.forget(oldest);
        }
    }

    /// Forgets changes made before `before`.
    pub(crate) fn compact(&mut self, before: Revision) {
        let last = Revision(before.0.saturating_sub(1)).min(self.revision);
        self.forget(last);
    }

    /// Forgets whole transactions only, so that no watcher is given half of one.
    fn forget(&mut self, up_to: Revision) {
        self.forgotten = self.forgotten.max(up_to);
        let gone = self.history.partition_point(|event| event.revision <= up_to);
        self.history.drain(..gone);
    }
}

/// Transactions decided on top of a state but not yet durable.
#[derive(Debug)]
pub(crate) struct Staged {
    revision: Revision,
    events: Vec<Event>,
    /// The last word about each key touched.
    latest: HashMap<Arc<str>, Option<Entry>>,
}

impl Staged {
    pub(crate) fn on(state: &State) -> Staged {
        Staged { revision: state.revision, events: Vec::new(), latest: HashMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The revision once this is applied.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// What the disk must say about each key touched; `None` where it is gone.
    pub(crate) fn latest(&self) -> impl Iterator<Item = (&str, Option<&Entry>)> {
        self.latest.iter().map(|(key, entry)| (&**key, entry.as_ref()))
    }

    /// Decides one transaction as if all earlier ones of the group had happened.
    pub(crate) fn add(&mut self, state: &State, txn: Txn) -> Outcome {
        for compare in &txn.compares {
            let now = self.see(state, &compare.key).map_or(Revision::ABSENT, |e| e.mod_revision);
            if now != compare.mod_revision {
                return Outcome::Conflict { key: compare.key.clone(), now };
            }
        }
        let revision = self.revision.next();
        let before = self.events.len();
        for (key, value) in txn.puts {
            let old = self.see(state, &key);
            let entry = Entry {
                value: value.into(),
                mod_revision: revision,
                create_revision: old.map_or(revision, |e| e.create_revision),
                version: old.map_or(1, |e| e.version + 1),
                key: old.map_or_else(|| Arc::from(key.as_str()), |e| e.key.clone()),
            };
            self.latest.insert(entry.key.clone(), Some(entry.clone()));
            self.events.push(Event { revision, change: Change::Put(entry) });
        }
        for key in txn.deletes {
            let Some(key) = self.see(state, &key).map(|e| e.key.clone()) else { continue };
            self.latest.insert(key.clone(), None);
            self.events.push(Event { revision, change: Change::Delete { key } });
        }
        if self.events.len() > before {
            self.revision = revision;
        }
        Outcome::Committed { revision: self.revision }
    }

    fn see<'a>(&'a self, state: &'a State, key: &str) -> Option<&'a Entry> {
        match self.latest.get(key) {
            Some(staged) => staged.as_ref(),
            None => state.get(key),
        }
    }
}
