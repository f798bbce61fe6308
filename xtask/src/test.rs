//! Runs the tests floor by floor and says how many of each there were.
//!
//! Everything is built once, as one workspace, so that no library is compiled twice for two selections of packages; then
//! the test programs are run one after the other, lowest floor first.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{leaks, root, tidy};

/// The floors, lowest first.
const FLOORS: [(&str, &str); 3] = [
    ("unit", "no privilege: tables, properties, contracts, simulated disks and peers"),
    ("lab", "the real kernel, in namespaces and cgroups that the test makes"),
    ("acceptance", "a whole cloud through its public doors, with stock clients where they are installed"),
];

/// A test program that says nothing for this long will not end by itself: its longest test takes two minutes.
const SILENCE_MAX: Duration = Duration::from_secs(600);

#[derive(Default, Clone)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// One test program.
struct Program {
    floor: &'static str,
    name: String,
    path: PathBuf,
    /// The package's own directory, where its tests expect to be.
    dir: PathBuf,
}

pub fn run(floors: &[String]) -> ExitCode {
    if let Some(unknown) = floors.iter().find(|f| !FLOORS.iter().any(|(name, _)| name == f)) {
        eprintln!("no floor is called {unknown:?}; there are unit, lab and acceptance");
        return ExitCode::from(2);
    }
    if !is_root() {
        eprintln!(
            "The lab and acceptance floors make network namespaces and cgroups: run as root (sudo -E cargo xtask test)."
        );
        return ExitCode::FAILURE;
    }
    for (program, why) in [("gcloud", "the walkthrough typed with gcloud"), ("curl", "most calls from inside a VM")] {
        if !on_path(program) {
            println!("{program} is not installed: {why} will be skipped, and counted");
        }
    }
    let started = Instant::now();
    println!("building everything once (a first build takes some minutes)");
    let Some(programs) = build() else { return ExitCode::FAILURE };
    println!("built {} test programs in {} s", programs.len(), started.elapsed().as_secs());
    let before = leaks::find();
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let mut ok = tidy::check(&mut counts.entry("unit").or_default().passed);
    for (floor, what) in FLOORS {
        if floors.is_empty() || floors.iter().any(|f| f == floor) {
            println!("\n== {floor}: {what}");
            let count = counts.entry(floor).or_default();
            for program in programs.iter().filter(|p| p.floor == floor) {
                ok &= run_program(program, count);
            }
        }
    }
    let left: Vec<String> = leaks::find().into_iter().filter(|leak| !before.contains(leak)).collect();
    left.iter().for_each(|leak| eprintln!("left behind: {leak}"));
    summary(&counts, left.len(), started);
    if ok && left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(counts: &BTreeMap<&str, Count>, left: usize, started: Instant) {
    println!("\nfloor        passed  failed  skipped");
    let mut all = Count::default();
    for (floor, _) in FLOORS {
        let c = counts.get(floor).cloned().unwrap_or_default();
        println!("{floor:<12} {:>6}  {:>6}  {:>7}", c.passed, c.failed, c.skipped);
        all.passed += c.passed;
        all.failed += c.failed;
        all.skipped += c.skipped;
    }
    println!(
        "{}",
        if left == 0 { "nothing of ours is left on the machine" } else { "something was left behind, see above" }
    );
    println!("{} s in all", started.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", all.passed, all.failed + u64::from(left > 0), all.skipped);
}

/// A package's tests belong to the floor that its deepest need puts them on.
fn floor_of(package: &str) -> &'static str {
    match package {
        "host" | "sandbox" | "lab" => "lab",
        "acceptance" => "acceptance",
        _ => "unit",
    }
}

/// Builds all test programs, and the program under test with them. None: it did not compile, and cargo said why.
fn build() -> Option<Vec<Program>> {
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "test",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let mut child = command.current_dir(root()).stdout(Stdio::piped()).spawn().ok()?;
    let lines = BufReader::new(child.stdout.take()?).lines().map_while(Result::ok);
    let mut programs: Vec<Program> = lines.filter_map(|line| program(&serde_json::from_str(&line).ok()?)).collect();
    if !child.wait().ok()?.success() {
        return None;
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Some(programs)
}

/// A test program, from one of cargo's messages.
fn program(message: &Value) -> Option<Program> {
    if message["profile"]["test"] != true {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
    let dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let package = dir.file_name()?.to_string_lossy().into_owned();
    let target = message["target"]["name"].as_str()?;
    let name = if target == package { package.clone() } else { format!("{package} {target}") };
    Some(Program { floor: floor_of(&package), name, path, dir })
}

fn run_program(program: &Program, count: &mut Count) -> bool {
    let started = Instant::now();
    let mut command = Command::new(&program.path);
    command.current_dir(&program.dir).env("CARGO_MANIFEST_DIR", &program.dir);
    if program.floor != "unit" {
        command.args(["--test-threads", "2"]);
    }
    println!("-- {}", program.name);
    let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() else { return false };
    let Some(output) = child.stdout.take() else { return false };
    let (says, hears) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        lines.map(|line| String::from_utf8_lossy(&line).into_owned()).try_for_each(|line| says.send(line))
    });
    let mut tested = false;
    loop {
        match hears.recv_timeout(SILENCE_MAX) {
            Ok(line) => {
                tested |= note(&line, count);
                println!("{line}");
                // Progress is worth more than throughput here.
                drop(std::io::stdout().flush());
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                println!("-- {} has said nothing for {} s and is ended", program.name, SILENCE_MAX.as_secs());
                drop(child.kill());
                break;
            }
        }
    }
    let ok = child.wait().is_ok_and(|s| s.success());
    if !ok && !tested {
        // It died before it could say so.
        count.failed += 1;
    }
    if !ok {
        println!("-- {} FAILED after {} s", program.name, started.elapsed().as_secs());
    }
    ok
}

/// Reads `test result: ok. 8 passed; 0 failed; 0 ignored; …` and the lines `SKIPPED …` of tests that say why.
fn note(line: &str, count: &mut Count) -> bool {
    if line.starts_with("SKIPPED ") {
        count.skipped += 1;
    }
    let Some(result) = line.strip_prefix("test result: ") else { return false };
    let number = |word: &str| -> u64 {
        let end = result.find(word).unwrap_or(0);
        result[..end].trim_end().rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    count.passed += number(" passed");
    count.failed += number(" failed");
    count.skipped += number(" ignored");
    true
}

fn on_path(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).exists())
}

pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|s| s.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0")))
}
