//! The memory of the cloud: keys with values, read at a revision, written by transactions, watched for changes.
//!
//! It follows etcd's model, so that a cloud on one machine ([`Embedded`]) and one on many (etcd) differ in nothing a
//! caller can see. It knows no resource, no project and no wire format: values are bytes.
//!
//! What a caller must assume, also while it is alone today:
//! - Another process may have written between any two calls. Read, decide, [`Kv::commit`] with compares, and on
//!   [`Outcome::Conflict`] read and decide again.
//! - A [`Watch`] may end with [`StoreError::Relist`]. List again ([`Kv::range`]), then watch after that revision.
//! - [`StoreError::Unknown`] means what it says: the transaction may or may not have happened.
//!
//! Start with [`kv`]; then `memory` (what a transaction does, pure), `embedded` (one writer, many readers), `disk`
//! (how a group of transactions becomes durable at once).

mod disk;
mod embedded;
mod kv;
mod memory;
pub mod schema;
mod watch;

#[cfg(test)]
mod crash;

pub use embedded::Embedded;
pub use kv::{
    Batch, Change, Compare, Entry, Event, Kv, Outcome, Revision, Snapshot, StoreError, TooLarge, Txn, Value, Waker,
    Watch,
};
