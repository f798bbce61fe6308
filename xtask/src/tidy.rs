//! The house rules as checks: what a reader may rely on without looking.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::root;

/// Who may know whom. What is not listed is forbidden. ARCHITECTURE.md draws it.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("ipc", &[]),
    ("store", &["model"]),
    ("identity", &["model"]),
    ("logs", &["model"]),
    ("sandbox", &["ipc", "model"]),
    ("host", &["ipc", "model", "sandbox"]),
    ("guest", &["ipc", "model"]),
    ("sshd", &["model"]),
    ("proxy", &["identity", "ipc", "model"]),
    ("control", &["identity", "ipc", "logs", "model", "store"]),
    ("api", &["control", "identity", "logs", "model"]),
    (
        "tombolo",
        &["api", "control", "guest", "host", "identity", "ipc", "logs", "model", "proxy", "sandbox", "sshd", "store"],
    ),
    ("lab", &["host", "ipc", "model", "sandbox"]),
    // Development only: they may use all.
    ("acceptance", EVERYTHING),
    ("bench", EVERYTHING),
    ("bench", &["api", "host", "identity", "ipc", "lab", "logs", "model", "proxy", "sandbox", "store", "tombolo"]),
    ("fuzz", EVERYTHING),
    ("xtask", &[]),
];

/// Every product crate.
const EVERYTHING: &[&str] = &[
    "api", "control", "guest", "host", "identity", "ipc", "lab", "logs", "model", "proxy", "sandbox", "sshd", "store",
    "tombolo",
];

/// Lines of one file without its tests. Exceptions stand in `xtask/exceptions.txt` with their reason.
const FILE_LINES_MAX: usize = 600;

pub fn run() -> ExitCode {
    let mut passed = 0;
    if check(&mut passed) {
        println!("{passed} rules hold");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Says where a rule is broken.
type Breaches = fn() -> Vec<String>;

/// Checks all rules, counts those that hold, prints the breaches of the others.
pub fn check(passed: &mut u64) -> bool {
    let rules: &[(&str, Breaches)] = &[
        ("arrows between crates are as drawn", arrows),
        ("every source file opens with what it is for", openings),
        ("unsafe stands in sys.rs alone, each block with its reason", unsafety),
        ("no file is longer than a reader can hold", sizes),
        ("no test is switched off and nothing is left to do", leftovers),
        ("decision records are dated and say what would change our mind", decisions),
        ("the architecture names every crate", architecture),
        ("every promise names its bench", promises),
    ];
    let mut ok = true;
    for (rule, broken_by) in rules {
        let breaches = broken_by();
        if breaches.is_empty() {
            *passed += 1;
        } else {
            ok = false;
            eprintln!("tidy: {rule}:");
            breaches.iter().for_each(|b| eprintln!("  {b}"));
        }
    }
    ok
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                out.push((path.strip_prefix(root()).unwrap_or(&path).to_owned(), text));
            }
        }
    }
    let mut out = Vec::new();
    for dir in ["crates", "acceptance", "bench", "fuzz", "xtask", "images"] {
        walk(&root().join(dir), &mut out);
    }
    out.sort();
    out
}

fn arrows() -> Vec<String> {
    let Ok(output) =
        Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--no-deps"]).current_dir(root()).output()
    else {
        return vec!["cargo metadata does not run".to_owned()];
    };
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut breaches = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            breaches.push(format!("crate {name} is not drawn"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let (to, kind) = (dependency["name"].as_str().unwrap_or_default(), dependency["kind"].as_str());
            // Tests may use everything.
            if ours.contains(to) && !allowed.contains(&to) && kind != Some("dev") {
                breaches.push(format!("{name} -> {to}"));
            }
        }
    }
    breaches
}

fn openings() -> Vec<String> {
    let opens = |text: &str| text.trim_start().starts_with("//!");
    sources().iter().filter(|(_, text)| !opens(text)).map(|(path, _)| path.display().to_string()).collect()
}

fn unsafety() -> Vec<String> {
    let mut breaches = Vec::new();
    for (path, text) in sources() {
        // This file names the word.
        if path.ends_with("tidy.rs") {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe fn") {
                continue;
            }
            let reasoned = lines[i.saturating_sub(8)..=i].iter().any(|l| l.contains("SAFETY"));
            if !path.ends_with("sys.rs") && !path.starts_with("images") || !reasoned {
                breaches.push(format!("{}:{}", path.display(), i + 1));
            }
        }
    }
    breaches
}

fn sizes() -> Vec<String> {
    let exceptions = fs::read_to_string(root().join("xtask/exceptions.txt")).unwrap_or_default();
    let excepted = |path: &Path| exceptions.lines().any(|l| l.split(' ').next() == path.to_str());
    let length =
        |text: &str| text.lines().take_while(|l| !l.starts_with("#[cfg(test)]\n") && *l != "mod tests {").count();
    let long = |(path, text): &(PathBuf, String)| {
        let is_test = path.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "acceptance");
        !is_test && length(text) > FILE_LINES_MAX && !excepted(path)
    };
    sources()
        .iter()
        .filter(|f| long(f))
        .map(|(path, text)| format!("{} has {} lines", path.display(), length(text)))
        .collect()
}

fn leftovers() -> Vec<String> {
    let words = ["#[ignore", "dbg!(", "todo!(", "unimplemented!(", "TODO", "FIXME", "XXX"];
    let mut breaches = Vec::new();
    for (path, text) in sources() {
        if path.ends_with("tidy.rs") {
            continue;
        }
        for (i, line) in text.lines().enumerate() {
            if words.iter().any(|w| line.contains(w)) {
                breaches.push(format!("{}:{}", path.display(), i + 1));
            }
        }
    }
    breaches
}

fn decisions() -> Vec<String> {
    let mut breaches = Vec::new();
    for entry in fs::read_dir(root().join("docs/decisions")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dated = name.len() > 11 && name.as_bytes()[..10].iter().all(|b| b.is_ascii_digit() || *b == b'-');
        let text = fs::read_to_string(entry.path()).unwrap_or_default().to_lowercase();
        if !dated || !text.contains("change our mind") {
            breaches.push(name);
        }
    }
    breaches
}

fn architecture() -> Vec<String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    let named = |name: &str| text.contains(&format!("`{name}`"));
    ARROWS
        .iter()
        .map(|(name, _)| *name)
        .filter(|n| !named(n))
        .map(|n| format!("{n} is not in ARCHITECTURE.md"))
        .collect()
}

/// Every row of the tables in SPECIFICATION.md ends in the names of benches and tests that exist, or says *untested*.
fn promises() -> Vec<String> {
    let text = fs::read_to_string(root().join("SPECIFICATION.md")).unwrap_or_default();
    let sources: String = sources().into_iter().map(|(_, text)| text).collect();
    let exists = |name: &str| match name.strip_prefix("bench ") {
        Some(bench) => sources.contains(&format!("(\"{bench}\", ")),
        None => sources.contains(&format!("fn {name}(")),
    };
    let mut breaches = Vec::new();
    for row in text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| promise")) {
        let witness = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or_default();
        // Names stand in backquotes: every second part.
        let names: Vec<&str> = witness.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && witness.trim() != "*untested*" {
            breaches.push(format!("no witness: {row}"));
        }
        breaches.extend(names.iter().filter(|n| !exists(n)).map(|n| format!("{n} does not exist")));
    }
    breaches
}
