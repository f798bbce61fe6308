//! What every store promises, run on each. A new implementation adds one line to the macro at the end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use store::{Batch, Change, Compare, Embedded, Kv, Outcome, Revision, StoreError, Txn};

/// Long enough never to be the reason of a failure.
const PATIENCE: Duration = Duration::from_secs(30);

fn commit(kv: &dyn Kv, txn: Txn) -> Revision {
    match kv.commit(txn).unwrap() {
        Outcome::Committed { revision } => revision,
        Outcome::Conflict { key, now } => panic!("unexpected conflict on {key} at {now}"),
    }
}

fn put(kv: &dyn Kv, key: &str, value: &str) -> Revision {
    commit(kv, Txn::new().put(key, value))
}

fn value(kv: &dyn Kv, key: &str) -> Option<String> {
    kv.get(key).unwrap().map(|e| String::from_utf8(e.value.to_vec()).unwrap())
}

fn keys(kv: &dyn Kv, prefix: &str) -> Vec<String> {
    kv.range(prefix).unwrap().entries.iter().map(|e| e.key.to_string()).collect()
}

fn words(batch: &Batch) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Put(e) => format!("{}={}", e.key, String::from_utf8_lossy(&e.value)),
        Change::Delete { key } => format!("-{key}"),
    };
    batch.events.iter().map(|e| word(&e.change)).collect()
}

fn an_entry_knows_when_it_was_made_and_changed(kv: &dyn Kv) {
    let first = put(kv, "a", "1");
    let second = put(kv, "a", "2");
    let e = kv.get("a").unwrap().unwrap();
    assert_eq!((e.create_revision, e.mod_revision, e.version), (first, second, 2));
    commit(kv, Txn::new().delete("a"));
    let again = put(kv, "a", "3");
    let e = kv.get("a").unwrap().unwrap();
    assert_eq!((e.create_revision, e.mod_revision, e.version), (again, again, 1));
    assert!(second < again);
}

fn a_range_is_the_prefix_in_key_order_at_one_revision(kv: &dyn Kv) {
    for key in ["b/2", "b/1", "a", "b", "b0", "c"] {
        put(kv, key, "");
    }
    let last = put(kv, "z", "");
    assert_eq!(keys(kv, "b/"), ["b/1", "b/2"]);
    assert_eq!(keys(kv, "b"), ["b", "b/1", "b/2", "b0"]);
    assert_eq!(keys(kv, "nothing"), [""; 0]);
    assert_eq!(keys(kv, "").len(), 7);
    assert_eq!(kv.range("b/").unwrap().revision, last);
}

fn a_transaction_whose_compare_fails_changes_nothing(kv: &dyn Kv) {
    let at = put(kv, "a", "1");
    let stale = Txn::new().when("a", at).when_absent("b").put("a", "2").put("b", "2").delete("a2");
    put(kv, "b", "mine");
    let before = kv.range("").unwrap();
    let Outcome::Conflict { key, now } = kv.commit(stale).unwrap() else { panic!("it must conflict") };
    assert_eq!((key.as_str(), now), ("b", before.revision));
    assert_eq!(kv.range("").unwrap(), before);
    let absent = kv.commit(Txn::new().when("nobody", at).put("a", "2")).unwrap();
    assert_eq!(absent, Outcome::Conflict { key: "nobody".to_owned(), now: Revision::ABSENT });
}

fn a_transaction_happens_as_a_whole(kv: &dyn Kv) {
    put(kv, "old", "x");
    let at = commit(kv, Txn::new().when_absent("a").put("a", "1").put("b", "2").delete("old"));
    assert_eq!(keys(kv, ""), ["a", "b"]);
    assert!(kv.range("").unwrap().entries.iter().all(|e| e.mod_revision == at));
}

fn what_changes_nothing_makes_no_revision(kv: &dyn Kv) {
    let at = put(kv, "a", "1");
    assert_eq!(commit(kv, Txn::new().when("a", at).delete("nobody")), at);
    assert_eq!(kv.range("").unwrap().revision, at);
}

fn what_no_store_could_keep_is_refused_by_name(kv: &dyn Kv) {
    let refuse = |txn: Txn| kv.commit(txn).unwrap_err();
    assert!(matches!(refuse(Txn::new().put("a", "1").delete("a")), StoreError::WrittenTwice { key } if key == "a"));
    assert!(matches!(refuse(Txn::new().put("", "1")), StoreError::EmptyKey));
    assert!(matches!(refuse(Txn::new().put("k".repeat(2_000), "1")), StoreError::TooLarge { .. }));
    assert!(matches!(refuse(Txn::new().put("a", vec![0; 2 << 20])), StoreError::TooLarge { .. }));
    let many = (0..600).fold(Txn::new(), |txn, n| txn.put(n.to_string(), ""));
    assert!(matches!(refuse(many), StoreError::TooLarge { .. }));
    assert_eq!(kv.range("").unwrap().entries, []);
}

fn of_many_that_want_the_same_place_one_gets_it(kv: &dyn Kv) {
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..16 {
            let won = &won;
            scope.spawn(move || {
                match kv.commit(Txn::new().when_absent("place").put("place", n.to_string())).unwrap() {
                    Outcome::Committed { .. } => _ = won.fetch_add(1, Ordering::SeqCst),
                    Outcome::Conflict { now, .. } => assert_ne!(now, Revision::ABSENT),
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
}

fn counting_with_compares_loses_no_count(kv: &dyn Kv) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    loop {
                        let old = kv.get("n").unwrap();
                        let at = old.as_ref().map_or(Revision::ABSENT, |e| e.mod_revision);
                        let n = old.map_or(0, |e| String::from_utf8(e.value.to_vec()).unwrap().parse().unwrap());
                        let next: u32 = n + 1;
                        let txn = Txn::new().when("n", at).put("n", next.to_string());
                        if let Outcome::Committed { .. } = kv.commit(txn).unwrap() {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(value(kv, "n").as_deref(), Some("100"));
    assert_eq!(kv.get("n").unwrap().unwrap().version, 100);
}

fn a_watch_after_a_listing_misses_nothing_and_repeats_nothing(kv: &dyn Kv) {
    put(kv, "a/1", "old");
    let listed = kv.range("a/").unwrap();
    put(kv, "a/1", "new");
    put(kv, "b/1", "elsewhere");
    let last = commit(kv, Txn::new().put("a/2", "x").delete("a/1"));
    let mut watch = kv.watch("a/", listed.revision).unwrap();
    let batch = watch.recv(PATIENCE).unwrap().unwrap();
    assert_eq!(words(&batch), ["a/1=new", "a/2=x", "-a/1"]);
    assert_eq!(batch.revision, last);
    assert_eq!(watch.try_recv().unwrap(), None);
}

fn a_watcher_that_waits_is_woken_by_the_change(kv: &dyn Kv) {
    let at = kv.range("").unwrap().revision;
    let mut watch = kv.watch("a/", at).unwrap();
    assert_eq!(watch.recv(Duration::from_millis(1)).unwrap(), None);
    std::thread::scope(|scope| {
        let got = scope.spawn(move || watch.recv(PATIENCE).unwrap().unwrap());
        put(kv, "b", "not for you");
        put(kv, "a/1", "for you");
        assert_eq!(words(&got.join().unwrap()), ["a/1=for you"]);
    });
}

fn a_waker_is_called_also_for_what_came_before_it(kv: &dyn Kv) {
    let calls = Arc::new(AtomicUsize::new(0));
    let at = kv.range("").unwrap().revision;
    let mut watch = kv.watch("", at).unwrap();
    put(kv, "a", "1");
    let counter = calls.clone();
    watch.on_ready(Box::new(move || _ = counter.fetch_add(1, Ordering::SeqCst)));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    put(kv, "b", "1");
    assert_eq!(calls.load(Ordering::SeqCst), 2, "an acknowledged change has been announced");
    assert_eq!(words(&watch.try_recv().unwrap().unwrap()), ["a=1", "b=1"]);
    drop(watch);
    put(kv, "c", "1");
    assert_eq!(calls.load(Ordering::SeqCst), 2, "a watch that is gone wakes nobody");
}

fn a_watcher_too_far_behind_is_told_to_list_again(kv: &dyn Kv) {
    let start = kv.range("").unwrap().revision;
    let mut slow = kv.watch("", start).unwrap();
    put(kv, "a", "1");
    let second = put(kv, "a", "2");
    put(kv, "a", "3");
    kv.compact(second).unwrap();
    assert!(matches!(slow.try_recv(), Err(StoreError::Relist { .. })));
    assert!(matches!(kv.watch("", start), Err(StoreError::Relist { .. })));
    let mut watch = kv.watch("", Revision(second.0 - 1)).unwrap();
    assert_eq!(words(&watch.try_recv().unwrap().unwrap()), ["a=2", "a=3"]);
    assert_eq!(value(kv, "a").as_deref(), Some("3"));
}

fn a_watch_from_a_future_that_never_was_is_told_to_list_again(kv: &dyn Kv) {
    let now = kv.range("").unwrap().revision;
    assert!(matches!(kv.watch("", now.next()), Err(StoreError::Relist { .. })));
}

fn watchers_see_every_transaction_of_a_crowd_once_and_in_order(kv: &dyn Kv) {
    let start = kv.range("").unwrap().revision;
    let mut watch = kv.watch("", start).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || (0..50).for_each(|n| _ = put(kv, &format!("{thread}/{n}"), "")));
        }
        let mut seen = Vec::new();
        while seen.len() < 200 {
            let batch = watch.recv(PATIENCE).unwrap().expect("all of them come");
            assert_eq!(batch.events.last().unwrap().revision, batch.revision);
            seen.extend(batch.events.into_iter().map(|e| e.revision.0));
        }
        let all: Vec<u64> = (start.0 + 1..=start.0 + 200).collect();
        assert_eq!(seen, all);
    });
}

fn history_is_bounded(kv: &dyn Kv) {
    let start = kv.range("").unwrap().revision;
    for n in 0..=(model::limits::STORE_HISTORY_MAX / 500) {
        commit(kv, (0..500).fold(Txn::new(), |txn, k| txn.put(k.to_string(), n.to_string())));
    }
    assert!(matches!(kv.watch("", start), Err(StoreError::Relist { .. })));
}

/// A directory that is gone after the test, whatever happens.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let dir = std::env::temp_dir().join(format!("tombolo-store-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Scratch(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.join("store")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

macro_rules! contract {
    ($($promise:ident)*) => {
        mod in_memory { $( #[test] fn $promise() { super::$promise(&store::Embedded::in_memory()) } )* }
        mod on_a_file { $( #[test] fn $promise() {
            let dir = super::Scratch::new();
            super::$promise(&store::Embedded::open(&dir.file()).unwrap())
        } )* }
    };
}
contract! {
    an_entry_knows_when_it_was_made_and_changed
    a_range_is_the_prefix_in_key_order_at_one_revision
    a_transaction_whose_compare_fails_changes_nothing
    a_transaction_happens_as_a_whole
    what_changes_nothing_makes_no_revision
    what_no_store_could_keep_is_refused_by_name
    of_many_that_want_the_same_place_one_gets_it
    counting_with_compares_loses_no_count
    a_watch_after_a_listing_misses_nothing_and_repeats_nothing
    a_watcher_that_waits_is_woken_by_the_change
    a_waker_is_called_also_for_what_came_before_it
    a_watcher_too_far_behind_is_told_to_list_again
    a_watch_from_a_future_that_never_was_is_told_to_list_again
    watchers_see_every_transaction_of_a_crowd_once_and_in_order
    history_is_bounded
}

#[test]
fn a_store_opened_again_is_as_it_was_left() {
    let dir = Scratch::new();
    let before = {
        let kv = Embedded::open(&dir.file()).unwrap();
        put(&kv, "a", "1");
        put(&kv, "b", "1");
        commit(&kv, Txn::new().put("a", "2").delete("b"));
        kv.range("").unwrap()
    };
    let kv = Embedded::open(&dir.file()).unwrap();
    assert_eq!(kv.range("").unwrap(), before);
    assert!(matches!(kv.watch("", Revision(1)), Err(StoreError::Relist { .. })));
    assert_eq!(put(&kv, "c", "1"), before.revision.next());
}

#[test]
fn a_file_whose_making_was_cut_short_is_made_anew() {
    let dir = Scratch::new();
    std::fs::write(dir.0.join("store.new"), "half a dat").unwrap();
    put(&Embedded::open(&dir.file()).unwrap(), "a", "1");
    let names: Vec<_> = std::fs::read_dir(&dir.0).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names, ["store"]);
}

#[test]
fn a_file_has_one_owner() {
    let dir = Scratch::new();
    let _owner = Embedded::open(&dir.file()).unwrap();
    assert!(matches!(Embedded::open(&dir.file()), Err(StoreError::InUse)));
}

#[test]
fn closing_a_store_ends_its_watches() {
    let kv = Embedded::in_memory();
    let mut watch = kv.watch("", Revision(0)).unwrap();
    put(&kv, "a", "1");
    drop(kv);
    assert_eq!(words(&watch.recv(PATIENCE).unwrap().unwrap()), ["a=1"]);
    assert!(matches!(watch.recv(PATIENCE), Err(StoreError::Closed)));
}

/// The whole contract of `commit`, in the simplest words.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, (Vec<u8>, u64, u64, u64)>,
    revision: u64,
}

impl Model {
    fn commit(&mut self, txn: &Txn) -> Outcome {
        for Compare { key, mod_revision } in &txn.compares {
            let now = Revision(self.entries.get(key).map_or(0, |e| e.1));
            if now != *mod_revision {
                return Outcome::Conflict { key: key.clone(), now };
            }
        }
        let next = self.revision + 1;
        for (key, value) in &txn.puts {
            let (created, version) = self.entries.get(key).map_or((next, 0), |e| (e.2, e.3));
            self.entries.insert(key.clone(), (value.clone(), next, created, version + 1));
            self.revision = next;
        }
        for key in &txn.deletes {
            if self.entries.remove(key).is_some() {
                self.revision = next;
            }
        }
        Outcome::Committed { revision: Revision(self.revision) }
    }
}

fn any_txn() -> impl Strategy<Value = Txn> {
    let key = || "[ab]/[0-3]";
    (prop::collection::vec((key(), 0u64..12), 0..2), prop::collection::btree_map(key(), any::<Option<[u8; 2]>>(), 0..4))
        .prop_map(|(compares, writes)| {
            let txn = compares.into_iter().fold(Txn::new(), |txn, (key, at)| txn.when(key, Revision(at)));
            writes.into_iter().fold(txn, |txn, (key, value)| match value {
                Some(value) => txn.put(key, value),
                None => txn.delete(key),
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_a_map_with_revisions(txns in prop::collection::vec((any_txn(), any::<bool>()), 1..24)) {
        let dir = Scratch::new();
        let mut model = Model::default();
        let mut kv = Embedded::open(&dir.file()).unwrap();
        for (txn, reopen) in txns {
            prop_assert_eq!(kv.commit(txn.clone()).unwrap(), model.commit(&txn));
            if reopen && model.revision % 5 == 0 {
                drop(kv);
                kv = Embedded::open(&dir.file()).unwrap();
            }
            let seen = kv.range("").unwrap();
            prop_assert_eq!(seen.revision.0, model.revision);
            let seen: Vec<_> = seen.entries.iter().map(|e| {
                (e.key.to_string(), (e.value.to_vec(), e.mod_revision.0, e.create_revision.0, e.version))
            }).collect();
            let want: Vec<_> = model.entries.clone().into_iter().collect();
            prop_assert_eq!(seen, want);
        }
    }
}
