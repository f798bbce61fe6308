//! Searches for bytes that break a parser: builds the targets of `fuzz` with coverage, and lets libFuzzer run them.
//!
//! Coverage comes from flags that the stable compiler has, so nothing has to be installed but a C++ compiler, which
//! builds libFuzzer itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::root;

/// What LLVM is told: count edges, and tell libFuzzer what values are compared with.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// Longest input that is tried, most memory of a run, and longest time for one input.
const INPUT_BYTES_MAX: usize = 4_096;
const RSS_MIB_MAX: usize = 1_024;
const INPUT_S_MAX: usize = 10;
/// What is kept for the tests, of one target.
const KEPT_INPUTS_MAX: usize = 90;
const KEPT_BYTES_MAX: u64 = 15 << 10;

pub fn run(words: &[String]) -> ExitCode {
    let (mut targets, mut minutes, mut keep) = (Vec::new(), 1_u64, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--keep" => keep = true,
            "--minutes" => match words.next().and_then(|n| n.parse().ok()) {
                Some(n) => minutes = n,
                None => return wrong("--minutes needs a number"),
            },
            target => targets.push(target.to_owned()),
        }
    }
    let all = corpora();
    if let Some(unknown) = targets.iter().find(|target| !all.contains(target)) {
        return wrong(&format!("no target is called {unknown:?}; there are {}", all.join(", ")));
    }
    if targets.is_empty() {
        targets = all;
    }
    let mut broken = Vec::new();
    for target in targets {
        println!("-- {target}: {minutes} min");
        let Some(program) = build(&target) else { return ExitCode::FAILURE };
        if !search(&program, &target, minutes) {
            broken.push(target.clone());
        }
        if keep {
            keep_best(&program, &target);
        }
    }
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("broken: {}; the inputs lie in {}", broken.join(", "), work("broken", "").display());
    ExitCode::FAILURE
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(2)
}

/// The names of all targets: each has a corpus.
fn corpora() -> Vec<String> {
    let names = fs::read_dir(root().join("fuzz/corpus")).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn work(what: &str, target: &str) -> PathBuf {
    root().join("target/fuzz").join(what).join(target)
}

/// None: it did not build, and cargo said why. The machine is named, so that only what runs under libFuzzer is built
/// with coverage and no build script is.
fn build(target: &str) -> Option<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().ok()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "))?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--target", host]).env("RUSTFLAGS", COVERAGE);
    cargo
        .env("FUZZ_TARGET", target)
        .env("CARGO_TARGET_DIR", root().join("target/fuzz"))
        .current_dir(root().join("fuzz/libfuzzer"));
    cargo.status().is_ok_and(|s| s.success()).then(|| root().join("target/fuzz").join(host).join("release/libfuzzer"))
}

fn libfuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command.env("FUZZ_TARGET", target).current_dir(root());
    command.arg(format!("-max_len={INPUT_BYTES_MAX}")).arg(format!("-rss_limit_mb={RSS_MIB_MAX}"));
    command.arg(format!("-timeout={INPUT_S_MAX}"));
    command
}

/// False when some input broke the target.
fn search(program: &Path, target: &str, minutes: u64) -> bool {
    let (found, broken) = (work("found", target), work("broken", target));
    if [&found, &broken].iter().any(|place| fs::create_dir_all(place).is_err()) {
        eprintln!("{} cannot be made", found.display());
        return false;
    }
    let mut command = libfuzzer(program, target);
    command.arg(format!("-max_total_time={}", minutes * 60)).arg("-print_final_stats=1").arg("-reload=0");
    command.arg(format!("-artifact_prefix={}/", broken.display()));
    let words = root().join("fuzz/words").join(target);
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.args([found, root().join("fuzz/corpus").join(target)]);
    command.status().is_ok_and(|s| s.success())
}

/// Adds to the corpus the fewest inputs that reach everything, the shortest first, as far as there is room. What is kept
/// already stays: most of it was written by hand, and says more to a reader.
fn keep_best(program: &Path, target: &str) {
    let (best, corpus) = (work("best", target), root().join("fuzz/corpus").join(target));
    let _ = fs::remove_dir_all(&best);
    if fs::create_dir_all(&best).is_err() {
        return eprintln!("{} cannot be made", best.display());
    }
    let mut command = libfuzzer(program, target);
    command.arg("-set_cover_merge=1").args([&best, &corpus, &work("found", target)]);
    if !command.status().is_ok_and(|s| s.success()) {
        return eprintln!("{target}: its inputs could not be merged; the corpus stays as it is");
    }
    let files = |dir: &Path| -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path()))).collect()
    };
    let there = files(&corpus);
    let mut inputs = files(&best);
    inputs.sort();
    let mut room = KEPT_BYTES_MAX.saturating_sub(there.iter().map(|(len, _)| len).sum());
    let fits = |(len, _): &(u64, PathBuf)| {
        let fits = *len <= room;
        room = room.saturating_sub(*len);
        fits
    };
    let more = KEPT_INPUTS_MAX.saturating_sub(there.len());
    let kept: Vec<(u64, PathBuf)> = inputs.into_iter().take_while(fits).take(more).collect();
    let copy = |(_, input): &(u64, PathBuf)| fs::copy(input, corpus.join(input.file_name().unwrap_or_default()));
    match kept.iter().try_for_each(|input| copy(input).map(drop)) {
        Ok(()) => println!("{target}: {} inputs are kept beside {}", kept.len(), there.len()),
        Err(error) => eprintln!("{}: {error}", corpus.display()),
    }
}
