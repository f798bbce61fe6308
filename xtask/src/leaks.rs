//! What of ours is on this machine. After any run the answer must be: nothing.

use std::{fs, path::Path, process::ExitCode};

pub fn run() -> ExitCode {
    let found = find();
    found.iter().for_each(|leak| println!("{leak}"));
    if found.is_empty() {
        println!("nothing of ours is left on the machine");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One line for each leftover.
pub fn find() -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/tombolo", "/var/lib/tombolo"] {
        found.extend(children(dir).map(|name| format!("directory {dir}/{name}")));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|m| m.contains("/tombolo"));
    found.extend(mounts.map(|m| format!("mount {m}")));
    // In every hierarchy, whatever its version.
    let mut hierarchies = vec!["/sys/fs/cgroup".to_owned()];
    hierarchies.extend(children("/sys/fs/cgroup").map(|c| format!("/sys/fs/cgroup/{c}")));
    for hierarchy in hierarchies {
        let groups = children(&hierarchy).filter(|name| name.starts_with("tombolo"));
        found.extend(groups.map(|name| format!("cgroup {hierarchy}/{name}")));
    }
    found.extend(children("/proc").filter_map(|pid| process(&pid)));
    found.sort();
    found
}

fn process(pid: &str) -> Option<String> {
    pid.parse::<u32>().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let first = String::from_utf8_lossy(command.split(|b| *b == 0).next()?).into_owned();
    let name = Path::new(&first).file_name()?.to_string_lossy().into_owned();
    name.starts_with("tombolo").then(|| format!("process {pid} {name}"))
}

fn children(dir: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned())
}
