//! Watches over one process's memory. A watch is a cursor into the shared history: it has no queue of its own, so a
//! slow one costs nothing and can lose nothing silently.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use crate::{
    kv::{Batch, Revision, StoreError, Waker, Watch},
    memory::State,
};

/// The state with the means to wait for its next change.
pub(crate) struct Shared {
    state: RwLock<State>,
    bell: Mutex<Bell>,
    rung: Condvar,
}

#[derive(Default)]
struct Bell {
    /// The revision last announced.
    revision: Revision,
    closed: bool,
    next_id: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Shared {
    pub(crate) fn new(state: State) -> Shared {
        let bell = Bell { revision: state.revision(), ..Bell::default() };
        Shared { state: RwLock::new(state), bell: Mutex::new(bell), rung: Condvar::new() }
    }

    /// Runs `read` on the state. A reader never panics half-way through a change, so a poisoned lock is whole.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn bell(&self) -> std::sync::MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes every watch. Called after the change is visible, so whoever wakes sees it.
    pub(crate) fn announce(&self, revision: Revision) {
        let mut bell = self.bell();
        bell.revision = revision;
        self.rung.notify_all();
        bell.wakers.iter().for_each(|(_, waker)| waker());
    }

    pub(crate) fn close(&self) {
        let mut bell = self.bell();
        bell.closed = true;
        self.rung.notify_all();
        bell.wakers.iter().for_each(|(_, waker)| waker());
    }
}

pub(crate) struct Cursor {
    shared: Arc<Shared>,
    prefix: String,
    after: Revision,
    waker: Option<u64>,
}

impl Cursor {
    pub(crate) fn new(shared: Arc<Shared>, prefix: &str, after: Revision) -> Result<Cursor, StoreError> {
        shared.read(|state| state.since("", after).map(drop))?;
        Ok(Cursor { shared, prefix: prefix.to_owned(), after, waker: None })
    }

    fn forget_waker(&mut self) {
        if let Some(id) = self.waker.take() {
            self.shared.bell().wakers.retain(|(other, _)| *other != id);
        }
    }
}

impl Watch for Cursor {
    fn try_recv(&mut self) -> Result<Option<Batch>, StoreError> {
        let (revision, events) = self.shared.read(|s| (s.revision(), s.since(&self.prefix, self.after)));
        let events = events?;
        self.after = revision;
        if events.is_empty() {
            return if self.shared.bell().closed { Err(StoreError::Closed) } else { Ok(None) };
        }
        Ok(Some(Batch { revision, events }))
    }

    fn recv(&mut self, timeout: Duration) -> Result<Option<Batch>, StoreError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(batch) = self.try_recv()? {
                return Ok(Some(batch));
            }
            let after = self.after;
            let left = deadline.saturating_duration_since(Instant::now());
            let quiet = |bell: &mut Bell| bell.revision <= after && !bell.closed;
            let (bell, wait) = self
                .shared
                .rung
                .wait_timeout_while(self.shared.bell(), left, quiet)
                .unwrap_or_else(PoisonError::into_inner);
            drop(bell);
            if wait.timed_out() {
                return self.try_recv();
            }
        }
    }

    fn on_ready(&mut self, waker: Waker) {
        self.forget_waker();
        let shared = self.shared.clone();
        let mut bell = shared.bell();
        if bell.revision > self.after || bell.closed {
            waker();
        }
        bell.next_id += 1;
        self.waker = Some(bell.next_id);
        let id = bell.next_id;
        bell.wakers.push((id, waker));
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.forget_waker();
    }
}
