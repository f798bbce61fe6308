//! The contract that every store keeps, and its words. No implementation here.
//!
//! Start with [`Kv`].

use std::{fmt, io, sync::Arc, time::Duration};

use model::limits;

/// What is stored under a key. Shared, so that listing a whole cloud copies no bytes.
pub type Value = Arc<[u8]>;

/// Called when a watch has something to say. Must be quick and must not call the store; a typical one is
/// `move || notify.notify_one()` with a `tokio::sync::Notify`.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// Counts the transactions that changed something. Zero is before the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// As a compare: the key must not exist.
    pub const ABSENT: Revision = Revision(0);

    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A key with its value and its history in three numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Value,
    /// The transaction that wrote this value. What a compare names.
    pub mod_revision: Revision,
    /// The transaction that made the key (again, if it had been deleted).
    pub create_revision: Revision,
    /// 1 at creation, one more with each put.
    pub version: u64,
}

/// All entries under a prefix, in key order, as they stood together at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the whole store, also when the prefix did not change in it. Watch after this to miss nothing.
    pub revision: Revision,
    pub entries: Vec<Entry>,
}

/// A condition of a transaction: the key was last written at exactly this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    /// [`Revision::ABSENT`]: the key must not exist.
    pub mod_revision: Revision,
}

/// Happens entirely or not at all. A key may be written once in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub puts: Vec<(String, Vec<u8>)>,
    /// Deleting what does not exist is no error and no change.
    pub deletes: Vec<String>,
}

impl Txn {
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Only if `key` was last written at `mod_revision`.
    pub fn when(mut self, key: impl Into<String>, mod_revision: Revision) -> Txn {
        self.compares.push(Compare { key: key.into(), mod_revision });
        self
    }

    /// Only if `key` does not exist.
    pub fn when_absent(self, key: impl Into<String>) -> Txn {
        self.when(key, Revision::ABSENT)
    }

    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Txn {
        self.puts.push((key.into(), value.into()));
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.deletes.push(key.into());
        self
    }

    /// What no store would accept, whatever it holds.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let ops = self.compares.len().max(self.puts.len()).max(self.deletes.len());
        if ops > limits::STORE_TXN_OPS_MAX {
            return Err(StoreError::TooLarge { what: TooLarge::Operations, is: ops, max: limits::STORE_TXN_OPS_MAX });
        }
        let bytes: usize = self.puts.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > limits::STORE_TXN_BYTES_MAX {
            return Err(StoreError::TooLarge { what: TooLarge::Bytes, is: bytes, max: limits::STORE_TXN_BYTES_MAX });
        }
        let mut written: Vec<&str> =
            self.puts.iter().map(|(k, _)| k.as_str()).chain(self.deletes.iter().map(String::as_str)).collect();
        for key in written.iter().copied().chain(self.compares.iter().map(|c| c.key.as_str())) {
            if key.is_empty() {
                return Err(StoreError::EmptyKey);
            }
            if key.len() > limits::STORE_KEY_BYTES_MAX {
                return Err(StoreError::TooLarge {
                    what: TooLarge::Key,
                    is: key.len(),
                    max: limits::STORE_KEY_BYTES_MAX,
                });
            }
        }
        written.sort_unstable();
        match written.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(StoreError::WrittenTwice { key: pair[0].to_owned() }),
            None => Ok(()),
        }
    }
}

/// What became of a transaction. Callers must handle both.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a transaction may have met a conflict"]
pub enum Outcome {
    /// Durable. The revision it made; the present one if it changed nothing.
    Committed { revision: Revision },
    /// Nothing was changed: this compare failed first. `now` is [`Revision::ABSENT`] for a key that does not exist.
    Conflict { key: String, now: Revision },
}

/// One key's change within a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Entry),
    Delete { key: Arc<str> },
}

impl Change {
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key } => key,
        }
    }
}

/// What a watch saw since it was last asked: whole transactions, in order, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Everything up to here has been delivered. Watching after this continues without gap or repetition.
    pub revision: Revision,
    /// Never empty.
    pub events: Vec<Event>,
}

/// The changes under a prefix, from one revision on. Dropping it ends it.
pub trait Watch: Send {
    /// What happened since the last call; `None` if nothing. Never blocks on other callers' work.
    fn try_recv(&mut self) -> Result<Option<Batch>, StoreError>;

    /// As [`Watch::try_recv`], but waits up to `timeout` for something to happen. `None` when the time is over.
    fn recv(&mut self, timeout: Duration) -> Result<Option<Batch>, StoreError>;

    /// From now on `waker` is called after something happened (once at once, if something already has), and when the
    /// store closes. It may be called for nothing. Replaces an earlier waker.
    fn on_ready(&mut self, waker: Waker);
}

/// A store. All methods may block: on a disk here, on a network with etcd.
pub trait Kv: Send + Sync {
    /// # Errors
    /// Only those of reaching the store.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All entries whose key starts with `prefix` (all of them if it is empty).
    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// Returns once the transaction is durable, or has changed nothing.
    ///
    /// # Errors
    /// After every error but [`StoreError::Unknown`] nothing was changed.
    fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// The changes under `prefix` made by transactions later than `after`.
    ///
    /// # Errors
    /// [`StoreError::Relist`] if the store no longer holds them all; the watch itself says so later if it falls behind.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Forgets changes made before this revision. What the keys hold is not touched.
    fn compact(&self, before: Revision) -> Result<(), StoreError>;
}

/// Which limit a transaction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLarge {
    Key,
    Bytes,
    Operations,
}

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The transaction left no trace. Later ones work as soon as there is space.
    #[error("no space left on the store's disk")]
    Full,
    /// As [`StoreError::Full`]: no trace, and later transactions try again.
    #[error("the store's disk failed")]
    Io { source: io::Error },
    /// The disk failed while the transaction was on its way. Read before repeating it.
    #[error("the store's disk failed and it is not known whether the transaction happened")]
    Unknown { source: io::Error },
    #[error("too many transactions are waiting for the store's disk")]
    Overloaded,
    #[error("the store is closed")]
    Closed,
    #[error("changes after revision {after} are not held (oldest {oldest}, newest {newest}): list again")]
    Relist { after: Revision, oldest: Revision, newest: Revision },
    #[error("a transaction's {what:?} may be at most {max}, not {is}")]
    TooLarge { what: TooLarge, is: usize, max: usize },
    #[error("a key may not be empty")]
    EmptyKey,
    #[error("key {key:?} is written twice in one transaction")]
    WrittenTwice { key: String },
    #[error("the store's file is open in another process")]
    InUse,
    #[error("the store has {what} version {found}, newer than the {known} this program knows: run a newer tombolo")]
    Newer { what: &'static str, found: u64, known: u64 },
    #[error("the store is damaged: {detail}")]
    Damaged { detail: String },
}
