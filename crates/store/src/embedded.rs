//! The store of a cloud on one machine: one writer thread, readers that never wait for the disk.
//!
//! Committers queue (bounded); the writer takes all that wait, decides them in order, makes them durable with one sync,
//! then shows them to readers and watchers and answers. Start with [`Writer::run`].

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use model::limits;

use crate::{
    disk::{self, Disk, DiskError, Opener},
    kv::{Entry, Kv, Outcome, Revision, Snapshot, StoreError, Txn, Watch},
    memory::{Staged, State},
    watch::{Cursor, Shared},
};

/// A store in this process, on a file or in memory only.
pub struct Embedded {
    shared: Arc<Shared>,
    /// None only while dropping: hanging up ends the writer.
    queue: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Job {
    txn: Txn,
    reply: SyncSender<Result<Outcome, StoreError>>,
}

impl Embedded {
    /// Opens the store in this file, or makes it. A file torn by a crash comes back as of the last acknowledged
    /// transaction.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process has it open, [`StoreError::Newer`] if a newer program wrote it.
    pub fn open(path: &Path) -> Result<Embedded, StoreError> {
        Embedded::open_with(disk::file(path))
    }

    /// A store that is gone with the process. Same contract, no disk.
    pub fn in_memory() -> Embedded {
        Embedded::start(State::new([], Revision(0), limits::STORE_HISTORY_MAX), None)
    }

    pub(crate) fn open_with(opener: Opener) -> Result<Embedded, StoreError> {
        let (disk, loaded) = Disk::open(opener)?;
        Ok(Embedded::start(State::new(loaded.entries, loaded.revision, limits::STORE_HISTORY_MAX), Some(disk)))
    }

    fn start(state: State, disk: Option<Disk>) -> Embedded {
        let shared = Arc::new(Shared::new(state));
        let (queue, jobs) = sync_channel(limits::STORE_QUEUE_MAX);
        let mut writer = Writer { shared: shared.clone(), disk, unsure: None };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&jobs))
            .expect("a machine that cannot start one thread cannot run a cloud");
        Embedded { shared, queue: Some(queue), writer: Some(writer) }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was already reported by its thread; every caller got `Closed`.
            let _ = writer.join();
        }
        self.shared.close();
    }
}

impl Kv for Embedded {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.read(|state| state.get(key).cloned()))
    }

    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        Ok(self.shared.read(|state| state.range(prefix)))
    }

    fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check()?;
        let (reply, answer) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.try_send(Job { txn, reply }).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })?;
        answer.recv().map_err(|_| StoreError::Closed)?
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(Cursor::new(self.shared.clone(), prefix, after)?))
    }

    fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.shared.write(|state| state.compact(before));
        Ok(())
    }
}

/// Decides, writes, shows, answers: the only one that changes anything.
struct Writer {
    shared: Arc<Shared>,
    disk: Option<Disk>,
    /// A group of which the disk could not yet say whether it holds it.
    unsure: Option<Staged>,
}

impl Writer {
    fn run(&mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let others = jobs.try_iter().take(limits::STORE_GROUP_MAX - 1);
            self.commit(std::iter::once(first).chain(others).collect());
        }
    }

    fn commit(&mut self, group: Vec<Job>) {
        if let Err(error) = self.settle() {
            // Nothing of this group was touched, whatever became of the one before.
            return group.iter().for_each(|job| answer(&job.reply, Err(error.to_error())));
        }
        let (staged, answers) = self.shared.read(|state| {
            let mut staged = Staged::on(state);
            let decide = |job: Job| (staged.add(state, job.txn), job.reply);
            let answers: Vec<_> = group.into_iter().map(decide).collect();
            (staged, answers)
        });
        match self.make_durable(staged) {
            Ok(()) => answers.into_iter().for_each(|(outcome, reply)| answer(&reply, Ok(outcome))),
            // A conflict may have been one with a transaction that failed with it: all of the group get the error.
            Err(failure) => answers.iter().for_each(|(_, reply)| answer(reply, Err(failure.to_error()))),
        }
    }

    fn make_durable(&mut self, staged: Staged) -> Result<(), Failure> {
        if staged.is_empty() {
            return Ok(());
        }
        if let Some(disk) = &mut self.disk
            && let Err(error) = disk.write(&staged)
        {
            match disk.reopen() {
                Ok(revision) if revision < staged.revision() => return Err(Failure::Clean(error)),
                // It had arrived, but a sync that failed may have left pages that only the page cache still has:
                // write them once more.
                Ok(_) if disk.write(&staged).is_ok() => {}
                Ok(_) | Err(_) => {
                    self.unsure = Some(staged);
                    return Err(Failure::Unsure(error));
                }
            }
        }
        self.show(staged);
        Ok(())
    }

    /// Finds out what became of a group after the disk failed; nothing is written before that is known.
    fn settle(&mut self) -> Result<(), DiskError> {
        let (Some(staged), Some(disk)) = (self.unsure.take(), &mut self.disk) else { return Ok(()) };
        let settled = disk.reopen().and_then(|found| {
            let arrived = found >= staged.revision();
            if arrived { disk.write(&staged).map(|()| arrived) } else { Ok(arrived) }
        });
        match settled {
            Ok(true) => self.show(staged),
            Ok(false) => {}
            Err(error) => {
                self.unsure = Some(staged);
                return Err(error);
            }
        }
        Ok(())
    }

    fn show(&self, staged: Staged) {
        let revision = staged.revision();
        self.shared.write(|state| state.apply(staged));
        self.shared.announce(revision);
    }
}

enum Failure {
    /// The disk holds nothing of the group.
    Clean(DiskError),
    Unsure(DiskError),
}

impl Failure {
    fn to_error(&self) -> StoreError {
        match self {
            Failure::Clean(error) => error.to_error(),
            Failure::Unsure(error) => StoreError::Unknown { source: error.to_io() },
        }
    }
}

fn answer(reply: &SyncSender<Result<Outcome, StoreError>>, with: Result<Outcome, StoreError>) {
    // A committer waits until it has its answer; one whose thread died needs none.
    let _ = reply.send(with);
}
