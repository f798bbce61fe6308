//! What survives when the power goes, tried on a disk that keeps unsynced writes apart.
//!
//! A [`Platter`] counts its operations and dies at a chosen one. What had not been synced by then is, write by write
//! and by the seed, kept, lost, or torn in the middle of a sector. Start with [`after_a_cut`].
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

use crate::{
    Embedded, Kv, Outcome, Revision, Snapshot, StoreError, Txn,
    disk::Opener,
    memory::{Staged, State},
};

/// SplitMix64: the same seed, the same story.
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

enum Unsynced {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Default)]
struct Surface {
    /// What programs see.
    seen: Vec<u8>,
    /// What is certain to survive.
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
    operations: u64,
    dies_at: Option<u64>,
    bytes_max: Option<usize>,
    syncs_fail: u32,
}

fn apply(disk: &mut Vec<u8>, change: &Unsynced) {
    match change {
        Unsynced::Length(length) => disk.resize(*length, 0),
        Unsynced::Write { at, bytes } => {
            disk.resize(disk.len().max(at + bytes.len()), 0);
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl Surface {
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        match self.dies_at {
            Some(end) if self.operations > end => Err(io::Error::other("the power is gone")),
            Some(_) | None => Ok(()),
        }
    }

    fn change(&mut self, change: Unsynced) -> io::Result<()> {
        self.step()?;
        let end = match &change {
            Unsynced::Length(length) => *length,
            Unsynced::Write { at, bytes } => at + bytes.len(),
        };
        if self.bytes_max.is_some_and(|max| end > max && end > self.seen.len()) {
            return Err(io::Error::from_raw_os_error(28));
        }
        apply(&mut self.seen, &change);
        self.unsynced.push(change);
        Ok(())
    }
}

/// A disk that can be taken out of a dead machine and put into the next one.
#[derive(Clone, Default)]
struct Platter(Arc<Mutex<Surface>>);

impl std::fmt::Debug for Platter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Platter")
    }
}

impl Platter {
    fn with<T>(&self, act: impl FnOnce(&mut Surface) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn opener(&self) -> Opener {
        let platter = self.clone();
        Box::new(move |builder| builder.create_with_backend(platter.clone()))
    }

    /// The power comes back: what became of the unsynced writes is decided now.
    fn revive(&self, seed: &mut Seed) {
        self.with(|surface| {
            let mut disk = std::mem::take(&mut surface.synced);
            for mut change in surface.unsynced.drain(..) {
                let fate = seed.below(3);
                if let (2, Unsynced::Write { bytes, .. }) = (fate, &mut change) {
                    bytes.truncate(usize::try_from(seed.below(u64::try_from(bytes.len()).unwrap() + 1)).unwrap());
                }
                if fate > 0 {
                    apply(&mut disk, &change);
                }
            }
            surface.seen = disk.clone();
            surface.synced = disk;
            surface.operations = 0;
            surface.dies_at = None;
        });
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        self.with(|s| s.alive().map(|()| u64::try_from(s.seen.len()).unwrap()))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|s| {
            s.alive()?;
            let at = usize::try_from(offset).unwrap();
            let from = s.seen.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(from);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|s| s.change(Unsynced::Length(usize::try_from(len).unwrap())))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|s| {
            s.step()?;
            if s.syncs_fail > 0 {
                s.syncs_fail -= 1;
                return Err(io::Error::from_raw_os_error(5));
            }
            let Surface { synced, unsynced, .. } = s;
            unsynced.drain(..).for_each(|change| apply(synced, &change));
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|s| s.change(Unsynced::Write { at: usize::try_from(offset).unwrap(), bytes: data.to_vec() }))
    }
}

fn any_txn(seed: &mut Seed) -> Txn {
    let mut txn = Txn::new();
    for key in 0..6 {
        let size = usize::try_from(seed.below(3_000)).unwrap();
        txn = match seed.below(4) {
            0 => txn.put(format!("k/{key}"), vec![seed.next().to_le_bytes()[0]; size]),
            1 => txn.delete(format!("k/{key}")),
            _ => txn,
        };
    }
    txn.put("always", seed.next().to_string())
}

/// What the store must hold after `txn`.
fn expected(before: &Snapshot, txn: &Txn) -> Snapshot {
    let mut state = State::new(before.entries.clone(), before.revision, 0);
    let mut staged = Staged::on(&state);
    let _ = staged.add(&state, txn.clone());
    state.apply(staged);
    state.range("")
}

/// The longest life takes about this many writes and syncs, so that cuts fall everywhere, also while opening.
const OPERATIONS: u64 = 80;

/// Three lives of one disk. The first two end at a cut; the last one is long.
fn after_a_cut(number: u64) {
    let mut seed = Seed(number);
    let mut platter = Platter::default();
    let mut born = false;
    let mut states = vec![Snapshot { revision: Revision(0), entries: Vec::new() }];
    let mut acknowledged = 0;
    for life in 0..3 {
        let cut = (life < 2).then(|| seed.below(OPERATIONS));
        platter.with(|surface| surface.dies_at = cut);
        match Embedded::open_with(platter.opener()) {
            // A file gets its name only once redb has made it whole; until then each life starts with none.
            Err(_) if !born && cut.is_some() => platter = Platter::default(),
            Err(error) => assert!(cut.is_some(), "seed {number}: it does not open any more: {error:?}"),
            Ok(store) => {
                born = true;
                let found = store.range("").unwrap();
                let at = usize::try_from(found.revision.0).unwrap();
                assert!(at >= acknowledged, "seed {number}: revision {at} went back from {acknowledged}");
                assert_eq!(Some(&found), states.get(at), "seed {number}: half a transaction");
                // What is not there now has never happened; what is there has been read and may not go.
                states.truncate(at + 1);
                acknowledged = at;
                for _ in 0..6 {
                    let txn = any_txn(&mut seed);
                    states.push(expected(states.last().unwrap(), &txn));
                    match store.commit(txn) {
                        Ok(Outcome::Committed { .. }) => acknowledged = states.len() - 1,
                        Ok(Outcome::Conflict { .. }) => panic!("seed {number}: it compares nothing"),
                        Err(_) => break,
                    }
                }
                assert!(cut.is_some() || acknowledged == at + 6, "seed {number}: a healthy disk refused");
            }
        }
        platter.revive(&mut seed);
    }
}

#[test]
fn a_cut_takes_no_acknowledged_transaction_and_halves_none() {
    (0..1_500).for_each(after_a_cut);
}

#[test]
fn a_full_disk_is_said_to_be_full_and_heals() {
    let platter = Platter::default();
    let store = Embedded::open_with(platter.opener()).unwrap();
    platter.with(|s| s.bytes_max = Some(s.seen.len() + (256 << 10)));
    let mut kept = 0;
    let error = loop {
        match store.commit(Txn::new().put(format!("k/{kept}"), vec![7; 20_000])) {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 1_000, "the disk never filled");
    };
    assert!(matches!(error, StoreError::Full), "{error:?}");
    let full = store.range("k/").unwrap();
    assert_eq!(full.entries.len(), kept, "nothing half-made");
    assert!(matches!(store.commit(Txn::new().put("more", vec![7; 400_000])), Err(StoreError::Full)));
    platter.with(|s| s.bytes_max = None);
    assert!(matches!(store.commit(Txn::new().put("more", "x")), Ok(Outcome::Committed { .. })));
    drop(store);
    let again = Embedded::open_with(platter.opener()).unwrap();
    assert_eq!(again.range("k/").unwrap().entries, full.entries);
    assert!(again.get("more").unwrap().is_some());
}

#[test]
fn a_disk_that_fails_once_leaves_either_all_or_nothing_and_the_answer_says_which() {
    for number in 0..200 {
        let mut seed = Seed(number);
        let platter = Platter::default();
        let store = Embedded::open_with(platter.opener()).unwrap();
        let mut want = store.range("").unwrap();
        for _ in 0..6 {
            platter.with(|s| s.syncs_fail = u32::try_from(seed.below(3)).unwrap());
            let txn = any_txn(&mut seed);
            let after = expected(&want, &txn);
            let result = store.commit(txn);
            platter.with(|s| s.syncs_fail = 0);
            match result {
                Ok(_) => want = after,
                Err(StoreError::Io { .. }) => {}
                // The next transaction, whichever it is, settles it.
                Err(StoreError::Unknown { .. }) => {
                    let _ = store.commit(Txn::new().when("always", Revision(u64::MAX))).unwrap();
                    let now = store.range("").unwrap();
                    assert!(now == want || now == after, "seed {number}");
                    want = now;
                }
                Err(error) => panic!("seed {number}: {error:?}"),
            }
            assert_eq!(store.range("").unwrap(), want, "seed {number}");
        }
        drop(store);
        assert_eq!(Embedded::open_with(platter.opener()).unwrap().range("").unwrap(), want, "seed {number}");
    }
}
