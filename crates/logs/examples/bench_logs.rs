//! What the journal costs: appending, finding the newest few, and looking through everything for nothing.
//!
//! `cargo run --release -p logs --example bench_logs -- [ENTRIES]` prints one line per question.

use std::{error::Error, time::Instant};

use logs::{
    Bounds, Entry, Filter, Journal, Order, Query,
    records::{RunNames, request_entry},
};
use model::{
    id::WorkloadId,
    record::RequestRecord,
    run::{RevisionKey, ServiceKey},
    time::Timestamp,
};

fn request(service: &ServiceKey, n: u32) -> RequestRecord {
    RequestRecord {
        revision: Some(RevisionKey { service: service.clone(), name: "hello-service-00001-abc".to_owned() }),
        service: service.clone(),
        instance: Some(WorkloadId(format!("i-{}", n % 20))),
        listener: None,
        arrived: Timestamp(1_780_000_000_000_000 + i64::from(n) * 1_000),
        latency_ns: 12_000_000,
        method: "GET".to_owned(),
        url: format!("http://10.1.0.5/items/{n}?page=1"),
        protocol: "HTTP/1.1".to_owned(),
        status: if n % 50 == 0 { 500 } else { 200 },
        request_bytes: 300,
        response_bytes: 1_200,
        user_agent: Some("curl/8.5.0".to_owned()),
        referer: None,
        remote: [10, 1, 0, 2].into(),
        trace: format!("{n:032x}"),
        span: format!("{n:016x}"),
        sampled: false,
        refusal: None,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(100_000), |n| n.parse())?;
    let dir = std::env::temp_dir().join(format!("tombolo-bench-logs-{}", std::process::id()));
    let result = run(&dir, count);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn run(dir: &std::path::Path, count: u32) -> Result<(), Box<dyn Error>> {
    let service = ServiceKey {
        project: "producer-1".parse()?,
        region: "asia-northeast1".parse()?,
        name: "hello-service".to_owned(),
    };
    let names = RunNames { instance_id: Some("00ab".repeat(40)), ..RunNames::default() };
    let entries: Vec<Entry> = (0..count).map(|n| request_entry(&request(&service, n), &names, n)).collect();
    let journal = Journal::open(dir, Bounds::default())?;

    let start = Instant::now();
    let mut dropped = 0;
    for entry in entries.chunks(10) {
        journal.append(entry);
        if journal.stats().dropped > dropped {
            // Faster than the disk: not what is measured here.
            dropped = journal.stats().dropped;
            journal.flush()?;
        }
    }
    let took = start.elapsed();
    let stats = journal.stats();
    println!("append: {:.0} entries/s, dropped {}", f64::from(count) / took.as_secs_f64(), stats.dropped);
    println!("kept: {} entries, {} bytes each", stats.entries, stats.bytes / stats.entries.max(1));
    journal.flush()?;

    let walkthrough = "timestamp>=\"2020-01-01T00:00:00Z\" AND resource.type=cloud_run_revision AND \
        resource.labels.service_name=hello-service AND logName=projects/producer-1/logs/run.googleapis.com%2Frequests";
    for (what, filter, page_size) in [
        ("newest 5", walkthrough, 5),
        ("newest 1000", walkthrough, 1_000),
        ("scan of all for a status", "httpRequest.status=418", 5),
        ("scan of all for a service", "resource.labels.service_name=nobody", 5),
    ] {
        let query = Query {
            parents: vec!["projects/producer-1".to_owned()],
            filter: Filter::parse(filter)?,
            order: Order::Desc,
            page_size,
            page_token: None,
        };
        let start = Instant::now();
        let page = journal.query(&query)?;
        println!("{what}: {} entries in {:?}", page.entries.len(), start.elapsed());
    }

    drop(journal);
    let start = Instant::now();
    Journal::open(dir, Bounds::default())?;
    println!("open: {:?}", start.elapsed());
    Ok(())
}
