//! What the store costs: opening, a durable commit alone and in company, reading.
//!
//! `cargo run --release -p store --example bench_store` prints one line per question.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use store::{Embedded, Kv, Outcome, Txn};

const RESOURCES: u32 = 5_000;
const THREADS: u32 = 16;

fn commit(kv: &dyn Kv, key: u32) -> Result<Outcome, store::StoreError> {
    kv.commit((0..4).fold(Txn::new(), |txn, part| txn.put(format!("resource/{key}/{part}"), vec![b'x'; 1_500])))
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("tombolo-bench-store-{}", std::process::id()));
    let result = run(&path);
    std::fs::remove_file(&path)?;
    result
}

fn run(path: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let kv = Embedded::open(path)?;
    println!("make a new file: {:?}", start.elapsed());

    let mut times = Vec::new();
    for n in 0..500 {
        let start = Instant::now();
        let _ = commit(&kv, n)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("commit of 4 x 1.5 KB alone: p50 {:?}, p99 {:?}", times[250], times[495]);

    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let kv = &kv;
            scope.spawn(move || (0..100).try_for_each(|n| commit(kv, thread * 100 + n).map(drop)));
        }
    });
    let each = start.elapsed() / (THREADS * 100);
    println!(
        "{THREADS} committers at once: {each:?} each, {:.0}/s",
        Duration::from_secs(1).as_secs_f64() / each.as_secs_f64()
    );

    for n in (0..RESOURCES).step_by(100) {
        let txn = (n..n + 100).fold(Txn::new(), |txn, n| txn.put(format!("bulk/{n:05}"), vec![b'x'; 2_000]));
        let _ = kv.commit(txn)?;
    }
    let start = Instant::now();
    let listed = kv.range("bulk/")?.entries.len();
    println!("list {listed} resources: {:?}", start.elapsed());
    let start = Instant::now();
    (0..10_000).try_for_each(|n| kv.get(&format!("bulk/{:05}", n % RESOURCES)).map(drop))?;
    println!("get: {:?}", start.elapsed() / 10_000);
    let size = kv.range("")?.entries.len();
    drop(kv);

    let start = Instant::now();
    let kv = Embedded::open(path)?;
    println!("open with {size} entries: {:?}", start.elapsed());
    drop(kv);
    Ok(())
}
