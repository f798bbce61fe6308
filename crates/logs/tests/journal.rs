//! What the journal keeps, finds, drops and survives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use logs::{
    Bounds, Entry, Filter, Journal, LogName, LogTime, Order, Page, Payload, Query, QueryError, Resource, Severity,
};
use proptest::prelude::*;

/// A directory that is gone after the test, whatever happens.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let dir = std::env::temp_dir().join(format!("tombolo-logs-{}-{n}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Scratch(dir)
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Who waits longer has been forgotten.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Small enough to turn over within a test.
const SMALL: Bounds = Bounds { bytes_max: 40_000, segment_bytes: 4_000, unwritten_bytes_max: 20_000 };

fn entry(project: &str, second: i64, id: &str, text: &str) -> Entry {
    Entry {
        log_name: LogName::in_project(project, "my-log"),
        resource: Resource::new("global", []),
        timestamp: LogTime(second * 1_000_000_000),
        received: LogTime(0),
        insert_id: id.to_owned(),
        severity: Severity::Default,
        labels: BTreeMap::new(),
        http_request: None,
        payload: Some(Payload::Text(text.to_owned())),
        trace: String::new(),
        span_id: String::new(),
        trace_sampled: false,
        operation: None,
        source_location: None,
    }
}

fn numbered(seconds: impl IntoIterator<Item = i64>) -> Vec<Entry> {
    seconds.into_iter().map(|n| entry("p", n, &format!("{n:06}"), "x")).collect()
}

fn query(filter: &str, order: Order, page_size: usize) -> Query {
    let filter = Filter::parse(filter).unwrap();
    Query { parents: vec!["projects/p".to_owned()], filter, order, page_size, page_token: None }
}

fn ids(page: &Page) -> Vec<String> {
    page.entries.iter().map(|e| e["insertId"].as_str().unwrap().to_owned()).collect()
}

fn seconds(page: &Page) -> Vec<i64> {
    ids(page).iter().map(|id| id.parse().unwrap()).collect()
}

/// All pages, one after another.
fn walk(journal: &Journal, mut query: Query) -> Vec<i64> {
    let mut all = Vec::new();
    loop {
        let page = journal.query(&query).unwrap();
        assert!(page.entries.len() <= query.page_size);
        all.extend(seconds(&page));
        match page.next_page_token {
            None => return all,
            token => query.page_token = token,
        }
    }
}

#[test]
fn what_was_appended_can_be_read_at_once_in_either_order() {
    let dir = Scratch::new();
    for journal in [Journal::in_memory(SMALL), Journal::open(&dir.0, SMALL).unwrap()] {
        journal.append(&numbered([3, 1, 2]));
        assert_eq!(seconds(&journal.query(&query("", Order::Asc, 10)).unwrap()), [1, 2, 3]);
        let page = journal.query(&query("", Order::Desc, 10)).unwrap();
        assert_eq!((seconds(&page), page.next_page_token), (vec![3, 2, 1], None));
        assert_eq!(
            seconds(&journal.query(&query("timestamp>=\"1970-01-01T00:00:02Z\"", Order::Asc, 10)).unwrap()),
            [2, 3]
        );
    }
}

#[test]
fn a_project_sees_its_own_entries_only() {
    let journal = Journal::in_memory(SMALL);
    journal.append(&[entry("p", 1, "1", "x"), entry("q", 2, "2", "x"), entry("p2", 3, "3", "x")]);
    let seen = |parents: &[&str]| {
        let parents = parents.iter().map(|p| (*p).to_owned()).collect();
        ids(&journal.query(&Query { parents, ..query("", Order::Asc, 10) }).unwrap())
    };
    assert_eq!(seen(&["projects/p"]), ["1"]);
    assert_eq!(seen(&["projects/p2", "projects/q"]), ["2", "3"]);
    assert_eq!(seen(&[]), [""; 0]);
    let foreign =
        Query { parents: vec!["projects/p".to_owned()], ..query("logName=projects/q/logs/my-log", Order::Asc, 10) };
    assert_eq!(journal.query(&foreign).unwrap(), Page::default(), "no error, no entries");
}

#[test]
fn entries_of_the_same_project_time_and_id_are_one() {
    let journal = Journal::in_memory(SMALL);
    journal.append(&[
        entry("p", 1, "a", "x"),
        entry("p", 1, "a", "again"),
        entry("p", 1, "b", "x"),
        entry("p", 2, "a", "x"),
    ]);
    journal.append(&[entry("p", 1, "a", "once more")]);
    assert_eq!(ids(&journal.query(&query("", Order::Asc, 10)).unwrap()), ["a", "b", "a"]);
}

#[test]
fn pages_are_stable_while_entries_come() {
    let journal = Journal::in_memory(Bounds { bytes_max: 1 << 20, ..SMALL });
    journal.append(&numbered((0..100).map(|n| n * 2)));
    for order in [Order::Asc, Order::Desc] {
        let mut query = query("", order, 7);
        let mut seen = Vec::new();
        let before = walk(&journal, query.clone());
        loop {
            let page = journal.query(&query).unwrap();
            seen.extend(seconds(&page));
            // Newer, older, and in between.
            let n = i64::try_from(seen.len()).unwrap() + if order == Order::Asc { 100_000 } else { 200_000 };
            journal.append(&[entry("p", n, &n.to_string(), "x"), entry("p", 51, &n.to_string(), "x")]);
            match page.next_page_token {
                None => break,
                token => query.page_token = token,
            }
        }
        assert_eq!(seen, before);
    }
}

#[test]
fn a_token_belongs_to_its_query() {
    let journal = Journal::in_memory(SMALL);
    journal.append(&numbered(0..10));
    let first = query("x", Order::Asc, 3);
    let token = journal.query(&first).unwrap().next_page_token;
    assert!(token.is_some());
    let next = |query: Query| journal.query(&Query { page_token: token.clone(), ..query });
    assert_eq!(seconds(&next(first.clone()).unwrap()), [3, 4, 5]);
    assert_eq!(
        seconds(&next(Query { page_size: 5, ..first.clone() }).unwrap()),
        [3, 4, 5, 6, 7],
        "the size may change"
    );
    assert!(matches!(next(query("x", Order::Desc, 3)), Err(QueryError::Token)));
    assert!(matches!(next(query("x x", Order::Asc, 3)), Err(QueryError::Token)));
    for nonsense in ["", "zz", "00", "é"] {
        let query = Query { page_token: Some(nonsense.to_owned()), ..first.clone() };
        assert!(matches!(journal.query(&query), Err(QueryError::Token)), "{nonsense:?}");
    }
}

#[test]
fn a_journal_opened_again_holds_all_it_held() {
    let dir = Scratch::new();
    for round in 0..3 {
        let journal = Journal::open(&dir.0, SMALL).unwrap();
        assert_eq!(journal.stats().entries, u64::try_from(round * 40).unwrap());
        journal.append(&numbered(round * 40..round * 40 + 40));
    }
    let journal = Journal::open(&dir.0, SMALL).unwrap();
    assert_eq!(walk(&journal, query("", Order::Asc, 9)), (0..120).collect::<Vec<_>>());
    let open = dir.files().iter().filter(|f| f.ends_with(".open")).count();
    assert!(dir.files().len() >= 3 && open <= 1, "segments were finished: {:?}", dir.files());
}

#[test]
fn a_torn_end_is_cut_off_and_written_over() {
    let dir = Scratch::new();
    drop({
        let journal = Journal::open(&dir.0, Bounds::default()).unwrap();
        journal.append(&numbered(0..5));
        journal
    });
    let file = dir.0.join(&dir.files()[0]);
    let whole = fs::read(&file).unwrap();
    for torn in [1, 15, 16, 40] {
        fs::write(&file, &whole[..whole.len() - torn]).unwrap();
        let journal = Journal::open(&dir.0, Bounds::default()).unwrap();
        journal.append(&numbered(10..11));
        drop(journal);
        let journal = Journal::open(&dir.0, Bounds::default()).unwrap();
        assert_eq!(walk(&journal, query("", Order::Asc, 10)), [0, 1, 2, 3, 10], "{torn} bytes torn off");
    }
}

#[test]
fn the_oldest_go_when_there_is_too_much() {
    let dir = Scratch::new();
    for journal in [Journal::in_memory(SMALL), Journal::open(&dir.0, SMALL).unwrap()] {
        for n in 0..1_000 {
            journal.append(&numbered([n]));
            if n % 50 == 0 {
                journal.flush().unwrap();
            }
        }
        journal.flush().unwrap();
        let stats = journal.stats();
        assert!(stats.bytes <= SMALL.bytes_max, "{stats:?}");
        assert_eq!((stats.dropped, stats.entries + stats.expired), (0, 1_000));
        let kept = i64::try_from(stats.entries).unwrap();
        assert!(kept > 100, "{stats:?}");
        assert_eq!(walk(&journal, query("", Order::Asc, 1_000)), (1_000 - kept..1_000).collect::<Vec<_>>());
    }
    let on_disk: u64 = fs::read_dir(&dir.0).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk <= SMALL.bytes_max, "{on_disk}");
}

#[test]
fn a_disk_that_refuses_costs_counted_entries_but_no_wait_and_heals() {
    let dir = Scratch::new();
    let (home, away) = (dir.0.join("home"), dir.0.join("away"));
    let journal = Journal::open(&home, SMALL).unwrap();
    journal.append(&numbered(0..10));
    journal.flush().unwrap();
    fs::rename(&home, &away).unwrap();
    for n in 10..1_000 {
        journal.append(&numbered([n]));
    }
    assert!(journal.flush().is_err());
    let stats = journal.stats();
    assert!(stats.dropped > 0 && stats.disk_error.is_some(), "{stats:?}");
    assert_eq!(stats.entries + stats.dropped, 1_000, "each is kept or counted");
    let kept = walk(&journal, query("timestamp<\"1970-01-01T00:01:00Z\"", Order::Asc, 100));
    assert_eq!(kept, (0..60).collect::<Vec<_>>(), "what is kept can be read");
    fs::rename(&away, &home).unwrap();
    journal.flush().unwrap();
    journal.append(&numbered([2_000]));
    assert_eq!(journal.stats().disk_error, None);
    let before = walk(&journal, query("", Order::Asc, 1_000));
    drop(journal);
    assert_eq!(walk(&Journal::open(&home, SMALL).unwrap(), query("", Order::Asc, 1_000)), before);
}

#[test]
fn what_is_said_to_be_written_is_found_by_another_process() {
    let dir = Scratch::new();
    let journal = Journal::open(&dir.0, Bounds::default()).unwrap();
    let (said, hears) = std::sync::mpsc::channel();
    for n in 0..20 {
        let said = said.clone();
        journal.append_then(&numbered([n]), move || said.send(n).unwrap());
    }
    for n in 0..20 {
        assert_eq!(hears.recv(), Ok(n), "in their order");
        let other = Scratch::new();
        for file in dir.files() {
            fs::copy(dir.0.join(&file), other.0.join(&file)).unwrap();
        }
        let found = walk(&Journal::open(&other.0, Bounds::default()).unwrap(), query("", Order::Asc, 100));
        assert!(found.starts_with(&(0..=n).collect::<Vec<_>>()), "{n}: {found:?}");
    }
}

#[test]
fn who_comes_while_others_are_written_hears_of_it_without_another_entry() {
    for round in 0..20 {
        let dir = Scratch::new();
        let journal = Journal::open(&dir.0, Bounds::default()).unwrap();
        let (said, hears) = std::sync::mpsc::channel();
        // Long enough to be still at it when its file is seen.
        journal.append(&[entry("p", 1, "1", &"x".repeat(4 << 20))]);
        while dir.files().is_empty() {
            std::hint::spin_loop();
        }
        journal.append_then(&numbered([2]), move || said.send(()).unwrap());
        assert_eq!(hears.recv_timeout(FOR_EVER), Ok(()), "round {round}");
    }
}

#[test]
fn whoever_waits_for_an_entry_hears_of_it_also_when_the_disk_refuses_or_there_is_none() {
    let (said, hears) = std::sync::mpsc::channel();
    let say = |n: i64| {
        let said = said.clone();
        move || said.send(n).unwrap()
    };
    Journal::in_memory(SMALL).append_then(&numbered([1]), say(1));
    assert_eq!(hears.try_recv(), Ok(1));
    let dir = Scratch::new();
    let journal = Journal::open(&dir.0.join("home"), SMALL).unwrap();
    journal.append_then(&[], say(2));
    assert_eq!(hears.try_recv(), Ok(2), "nothing is written at once");
    fs::remove_dir(dir.0.join("home")).unwrap();
    journal.append_then(&numbered([3]), say(3));
    assert!(journal.flush().is_err());
    assert!(hears.try_recv().is_err(), "it is not written");
    while journal.stats().dropped == 0 {
        journal.append(&numbered([4]));
    }
    journal.append_then(&numbered(5..100), say(5));
    assert_eq!(hears.try_recv(), Ok(5), "there was no room for it");
    fs::create_dir(dir.0.join("home")).unwrap();
    assert_eq!(hears.recv(), Ok(3));
}

#[test]
fn damage_in_a_finished_segment_is_counted_and_hides_no_other() {
    let dir = Scratch::new();
    let journal = Journal::open(&dir.0, SMALL).unwrap();
    (0..60).for_each(|n| journal.append(&numbered([n])));
    journal.flush().unwrap();
    let victim = dir.files().into_iter().find(|f| f.ends_with(".seg")).unwrap();
    let mut bytes = fs::read(dir.0.join(&victim)).unwrap();
    bytes[30] ^= 1;
    fs::write(dir.0.join(&victim), bytes).unwrap();
    let seen = walk(&journal, query("", Order::Asc, 100));
    assert!(seen.len() < 60 && seen.ends_with(&[58, 59]), "{seen:?}");
    assert_eq!(journal.stats().damaged, 1);
}

#[test]
fn many_may_write_and_read_at_once() {
    let dir = Scratch::new();
    let bounds = Bounds { bytes_max: 1 << 20, segment_bytes: 2_000, unwritten_bytes_max: 1 << 20 };
    let journal = Journal::open(&dir.0, bounds).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || (0..100).for_each(|n| journal.append(&numbered([n * 4 + thread]))));
            scope.spawn(move || {
                for _ in 0..20 {
                    let seen = walk(journal, query("", Order::Desc, 50));
                    assert!(seen.is_sorted_by(|a, b| a > b), "each once, in order");
                }
            });
        }
    });
    assert_eq!(walk(&journal, query("", Order::Asc, 50)), (0..400).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_walk_finds_exactly_what_the_filter_wants(
        times in prop::collection::vec(0i64..60, 0..120),
        page_size in 1usize..20,
        from in 0i64..60,
        descending in any::<bool>(),
    ) {
        let dir = Scratch::new();
        let bounds = Bounds { segment_bytes: 1_500, ..Bounds::default() };
        let journal = Journal::open(&dir.0, bounds).unwrap();
        for chunk in times.chunks(7) {
            journal.append(&numbered(chunk.iter().copied()));
        }
        journal.flush().unwrap();
        let order = if descending { Order::Desc } else { Order::Asc };
        let filter = format!("timestamp>=\"1970-01-01T00:00:{from:02}Z\"");
        let mut want: Vec<i64> = times.into_iter().filter(|t| *t >= from).collect();
        want.sort_unstable();
        want.dedup();
        if descending {
            want.reverse();
        }
        prop_assert_eq!(walk(&journal, query(&filter, order, page_size)), want);
    }
}
