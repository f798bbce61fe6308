//! What a durable commit costs, beside the least that durability takes on the same disk: one write and one `fdatasync`.

use std::{fs::File, os::unix::fs::FileExt, time::Instant};

use store::{Embedded, Kv, Txn};

use crate::{
    Outcome, Tools,
    report::{Aim, Row, Spread},
    us,
};

const COMMITS: u32 = 300;
const COMMITTERS: u32 = 16;
const EACH: u32 = 50;

/// About what creating one resource writes: the resource, its operation, an audit row, an index.
fn resource(key: u32) -> Txn {
    (0..4).fold(Txn::new(), |txn, part| txn.put(format!("resource/{key}/{part}"), vec![b'x'; 1_500]))
}

pub fn bench(tools: &Tools) -> Outcome<Vec<Row>> {
    let kv = Embedded::open(&tools.scratch.join("store.redb"))?;
    let raw = File::create(tools.scratch.join("raw"))?;
    let (mut alone, mut synced) = (Vec::new(), Vec::new());
    for n in 0..COMMITS {
        let start = Instant::now();
        let _ = kv.commit(resource(n))?;
        alone.push(us(start.elapsed()));
        let start = Instant::now();
        raw.write_all_at(&[b'x'; 6_000], u64::from(n) * 6_000)?;
        raw.sync_data()?;
        synced.push(us(start.elapsed()));
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let committers: Vec<_> = (0..COMMITTERS)
            .map(|c| {
                let kv = &kv;
                scope.spawn(move || (0..EACH).try_for_each(|n| kv.commit(resource(COMMITS + c * EACH + n)).map(drop)))
            })
            .collect();
        committers
            .into_iter()
            .try_for_each(|c| c.join().map_err(|_| "a committer panicked")?.map_err(|e| e.to_string()))
    })?;
    let together = us(start.elapsed() / (COMMITTERS * EACH));
    let peer = |samples: &[f64]| Some(("write and fdatasync", Spread::of(samples.to_vec())));
    Ok(vec![
        Row {
            promise: "durable commit, alone",
            aim: Aim::None,
            unit: "µs",
            ours: Spread::of(alone),
            peer: peer(&synced),
        },
        Row {
            promise: "durable commit, 16 at once, each",
            aim: Aim::None,
            unit: "µs",
            ours: Spread::of(vec![together]),
            peer: peer(&synced),
        },
    ])
}
