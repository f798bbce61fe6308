//! Runs the tests floor by floor and says how many of each there were.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use crate::{leaks, root, tidy};

/// The floors, lowest first. A package's tests belong to the floor that its deepest need puts them on.
const FLOORS: [(&str, &str); 3] = [
    ("unit", "no privilege: tables, properties, contracts, simulated disks and peers"),
    ("lab", "the real kernel, in namespaces and cgroups the test makes: needs root"),
    ("acceptance", "a whole cloud through its public doors, with stock clients where they are installed"),
];

#[derive(Default, Clone)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

pub fn run(floors: &[String]) -> ExitCode {
    if let Some(unknown) = floors.iter().find(|f| !FLOORS.iter().any(|(name, _)| name == f)) {
        eprintln!("no floor is called {unknown:?}; there are unit, lab and acceptance");
        return ExitCode::from(2);
    }
    if !is_root() {
        eprintln!("The lab and acceptance floors make network namespaces and cgroups: run as root (sudo -E cargo xtask test).");
        return ExitCode::FAILURE;
    }
    let before = leaks::find();
    if !before.is_empty() {
        eprintln!("Something of ours is already on this machine; it will not be counted against the tests:");
        before.iter().for_each(|leak| eprintln!("  {leak}"));
    }
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let mut ok = tidy::check(&mut counts.entry("unit").or_default().passed);
    for (floor, what) in FLOORS {
        if floors.is_empty() || floors.iter().any(|f| f == floor) {
            println!("\n== {floor}: {what}");
            ok &= run_floor(floor, counts.entry(floor).or_default());
        }
    }
    let left: Vec<String> = leaks::find().into_iter().filter(|leak| !before.contains(leak)).collect();
    for leak in &left {
        eprintln!("left behind: {leak}");
    }
    ok &= left.is_empty();
    summary(&counts, left.len());
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(counts: &BTreeMap<&str, Count>, left: usize) {
    println!("\nfloor        passed  failed  skipped");
    let mut all = Count::default();
    for (floor, c) in counts {
        println!("{floor:<12} {:>6}  {:>6}  {:>7}", c.passed, c.failed, c.skipped);
        all.passed += c.passed;
        all.failed += c.failed;
        all.skipped += c.skipped;
    }
    println!("{}", if left == 0 { "nothing of ours is left on the machine" } else { "something was left behind, see above" });
    println!("{} passed, {} failed, {} skipped", all.passed, all.failed + u64::from(left > 0), all.skipped);
}

/// Which cargo arguments run a floor.
fn arguments(floor: &str) -> Vec<&'static str> {
    const LAB: [&str; 3] = ["host", "sandbox", "lab"];
    match floor {
        "unit" => {
            let mut args = vec!["--workspace", "--lib", "--bins", "--tests", "--exclude", "acceptance"];
            for package in LAB {
                args.extend(["--exclude", package]);
            }
            args
        }
        // One at a time: lab tests read counters of a kernel they share.
        "lab" => LAB.iter().flat_map(|p| ["--package", p]).collect(),
        _ => vec!["--package", "acceptance"],
    }
}

fn run_floor(floor: &str, count: &mut Count) -> bool {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO"));
    // The binary under test is built first, with the same profile.
    if floor == "acceptance" {
        let built = Command::new(env!("CARGO")).args(["build", "--package", "tombolo"]).current_dir(root()).status();
        if !built.is_ok_and(|s| s.success()) {
            return false;
        }
    }
    command.arg("test").args(arguments(floor)).arg("--no-fail-fast").current_dir(root());
    if floor != "unit" {
        command.args(["--", "--test-threads", "2"]);
    }
    let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else { return false };
    let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
    for line in output.lines().map_while(Result::ok) {
        note(&line, count);
        println!("{line}");
        // Progress is worth more than throughput here.
        drop(std::io::stdout().flush());
    }
    let ok = child.wait().is_ok_and(|s| s.success());
    println!("== {floor}: {} in {} s", if ok { "passed" } else { "FAILED" }, started.elapsed().as_secs());
    ok
}

/// Reads `test result: ok. 8 passed; 0 failed; 0 ignored; …` and the lines `SKIPPED …` of tests that say why.
fn note(line: &str, count: &mut Count) {
    if line.starts_with("SKIPPED ") {
        count.skipped += 1;
    }
    let Some(result) = line.strip_prefix("test result: ") else { return };
    let number = |word: &str| -> u64 {
        let end = result.find(word).unwrap_or(0);
        result[..end].trim_end().rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    count.passed += number(" passed");
    count.failed += number(" failed");
    count.skipped += number(" ignored");
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|s| s.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0")))
}
