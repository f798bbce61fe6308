//! The promises of SPECIFICATION.md that are numbers, measured beside a peer in the same run where there is one.
//!
//! `cargo xtask bench [NAME…]` builds everything for release and starts this as root. One file a subject; each returns
//! rows, and [`report`] prints them. On a shared machine a ratio means more than a number: ours and the peer take turns.

mod cloud;
mod crun;
mod haproxy;
mod journal;
mod network;
mod proxy;
mod relay;
mod report;
mod start;
mod store;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use self::report::Row;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
type Bench = fn(&Tools) -> Outcome<Vec<Row>>;

/// Each with its name, in the order of SPECIFICATION.md.
const BENCHES: [(&str, Bench); 12] = [
    ("ready", cloud::ready),
    ("memory", cloud::memory),
    ("journey", cloud::journey),
    ("start", start::bench),
    ("attach", network::attach),
    ("round-trip", network::round_trip),
    ("endpoints", network::endpoints),
    ("changes", cloud::changes),
    ("proxy", proxy::bench),
    ("relay", relay::bench),
    ("store", store::bench),
    ("logs", journal::bench),
];

/// Before everybody else. Source: setpriority(2), -20 to 19.
const NICE: i32 = -20;

/// What benches need beside themselves.
struct Tools {
    /// The program under test, built beside this one.
    tombolo: PathBuf,
    /// Made for this run and removed after it.
    scratch: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == crun::ROLE => crun::answer_starts(Path::new(rest.first().map_or("", |d| d))),
        _ => run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(names: &[String]) -> Outcome<()> {
    if let Some(unknown) = names.iter().find(|n| !BENCHES.iter().any(|(name, _)| name == n)) {
        let known = BENCHES.map(|(name, _)| name).join(", ");
        return Err(format!("no bench is called {unknown:?}; there are {known}").into());
    }
    // Ours and the peers inherit it: whoever else uses this machine disturbs them less, and both alike.
    rustix::process::setpriority_process(None, NICE)?;
    let tombolo = std::env::current_exe()?.with_file_name("tombolo");
    let scratch = std::env::temp_dir().join(format!("tombolo-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let tools = Tools { tombolo, scratch };
    report::machine("before")?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (name, bench) in BENCHES.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name)) {
        eprintln!("bench: {name}");
        match bench(&tools) {
            Ok(more) => rows.extend(more),
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    std::fs::remove_dir_all(&tools.scratch)?;
    report::table(&rows);
    report::machine("after")?;
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n       ").into()) }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
