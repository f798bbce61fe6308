//! What the journal costs: appending request records as they come, and finding them again.

use std::time::Instant;

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

use crate::{
    Outcome, Tools, ms,
    report::{Aim, Row, Spread},
    us,
};

const ENTRIES: u32 = 50_000;
const BATCH: u32 = 10;
const QUERIES: usize = 9;

pub fn bench(tools: &Tools) -> Outcome<Vec<Row>> {
    let service = ServiceKey {
        project: "producer-1".parse()?,
        region: "asia-northeast1".parse()?,
        name: "hello-service".to_owned(),
    };
    let names = RunNames { instance_id: Some("00ab".repeat(40)), ..RunNames::default() };
    let entries: Vec<Entry> = (0..ENTRIES).filter_map(|n| request_entry(&request(&service, n), &names, n)).collect();
    let journal = Journal::open(&tools.scratch.join("logs"), Bounds::default())?;
    let mut appends = Vec::new();
    for batch in entries.chunks(usize::try_from(BATCH)?) {
        let start = Instant::now();
        journal.append(batch);
        appends.push(us(start.elapsed() / BATCH));
        if appends.len() % 500 == 0 {
            // Faster than the disk: not what is measured here.
            journal.flush()?;
        }
    }
    journal.flush()?;
    let row = |promise, unit, samples| Row { promise, aim: Aim::None, unit, ours: Spread::of(samples), peer: None };
    let walkthrough = "timestamp>=\"2020-01-01T00:00:00Z\" AND resource.type=cloud_run_revision AND \
        resource.labels.service_name=hello-service AND logName=projects/producer-1/logs/run.googleapis.com%2Frequests";
    Ok(vec![
        row("append a request record", "µs", appends),
        row("newest 5 of 50,000 records", "ms", queries(&journal, walkthrough)?),
        row("look through 50,000 records for nothing", "ms", queries(&journal, "httpRequest.status=418")?),
    ])
}

fn queries(journal: &Journal, filter: &str) -> Outcome<Vec<f64>> {
    let query = Query {
        parents: vec!["projects/producer-1".to_owned()],
        filter: Filter::parse(filter)?,
        order: Order::Desc,
        page_size: 5,
        page_token: None,
    };
    let mut times = Vec::new();
    for _ in 0..QUERIES {
        let start = Instant::now();
        journal.query(&query)?;
        times.push(ms(start.elapsed()));
    }
    Ok(times)
}

fn request(service: &ServiceKey, n: u32) -> RequestRecord {
    RequestRecord {
        revision: Some(RevisionKey { service: service.clone(), name: "hello-service-00001-abc".to_owned() }),
        service: Some(service.clone()),
        instance: Some(WorkloadId(format!("i-{}", n % 20))),
        front: None,
        arrived: Timestamp(1_780_000_000_000_000 + i64::from(n) * 1_000),
        latency_ns: 12_000_000,
        method: "GET".to_owned(),
        url: format!("http://10.1.0.5/items/{n}?page=1"),
        protocol: "HTTP/1.1".to_owned(),
        status: if n.is_multiple_of(50) { 500 } else { 200 },
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
