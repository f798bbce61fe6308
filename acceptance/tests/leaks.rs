//! A cloud on a leash leaves nothing behind, however its holder ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use acceptance::{Cloud, until};

/// Everything on this machine that carries the name of a cloud.
fn traces(cloud: &str) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/tombolo", "/var/lib/tombolo"] {
        let path = Path::new(dir).join(cloud);
        if path.exists() {
            found.push(format!("directory {}", path.display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let marks = [format!("tombolo/{cloud}/"), format!("tombolo-{cloud}")];
    found.extend(mounts.lines().filter(|l| marks.iter().any(|m| l.contains(m))).map(|l| format!("mount {l}")));
    // Every hierarchy, whatever its version, is mounted at or below this.
    groups(Path::new("/sys/fs/cgroup"), &format!("tombolo-{cloud}"), 3, &mut found);
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = cmdline.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        if words.iter().skip(1).any(|w| w == cloud) {
            found.push(format!("process {}", words.join(" ")));
        }
    }
    found
}

fn groups(dir: &Path, name: &str, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        if entry.file_name().to_string_lossy() == name {
            found.push(format!("cgroup {}", entry.path().display()));
        } else if depth > 0 {
            groups(&entry.path(), name, depth - 1, found);
        }
    }
}

/// A process of ours that is killed in the end, whatever happens.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn holder() -> (Holder, String) {
    let mut holder =
        Command::new(env!("CARGO_BIN_EXE_holder")).stdout(Stdio::piped()).spawn().expect("the holder starts");
    let mut lines = BufReader::new(holder.stdout.take().expect("stdout is piped")).lines();
    let holder = Holder(holder);
    let name = lines.next().expect("the name of its cloud").expect("text");
    (holder, name)
}

#[track_caller]
fn nothing_is_left(cloud: &str) {
    until("nothing of the cloud", || {
        let left = traces(cloud);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

#[test]
fn after_kill_9_of_its_holder_nothing_of_a_cloud_remains() {
    let (holder, cloud) = holder();
    let living = traces(&cloud);
    for kind in ["directory /run", "directory /var", "mount", "cgroup", "process"] {
        assert!(living.iter().any(|t| t.starts_with(kind)), "a living cloud shows its {kind}: {living:#?}");
    }
    drop(holder);
    nothing_is_left(&cloud);
}

#[test]
fn a_cloud_that_goes_down_in_order_leaves_nothing_the_moment_it_is_down() {
    let cloud = Cloud::up();
    let name = cloud.name.clone();
    assert!(!traces(&name).is_empty());
    cloud.down();
    assert_eq!(traces(&name), Vec::<String>::new());
}

/// The supervisor itself dies, and with it whoever would have tidied up: `tombolo down` does.
#[test]
fn after_kill_9_of_its_supervisor_down_removes_what_stayed() {
    let (holder, cloud) = holder();
    let is_up = |word: &String| word.contains(" up ");
    let supervisor = until("the supervisor", || {
        let found: Vec<i32> = fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|e| {
                let pid = e.file_name().to_string_lossy().parse().ok()?;
                let words = String::from_utf8_lossy(&fs::read(e.path().join("cmdline")).ok()?).replace('\0', " ");
                (is_up(&words) && words.contains(&format!(" {cloud} "))).then_some(pid)
            })
            .collect();
        if let [pid] = found.as_slice() { Ok(*pid) } else { Err(format!("{found:?}")) }
    });
    acceptance::signal("-9", supervisor);
    until(
        "the end of the supervisor",
        || if acceptance::is_dead(supervisor) { Ok(()) } else { Err("alive".to_owned()) },
    );
    assert!(traces(&cloud).iter().any(|t| t.starts_with("mount")), "networks stay");
    assert!(traces(&cloud).iter().any(|t| t.contains("shim")), "workloads stay");
    let down = Command::new(acceptance::tombolo()).args(["down", "--cloud", &cloud]).output().expect("tombolo starts");
    assert!(down.status.success(), "{down:?}");
    drop(holder);
    nothing_is_left(&cloud);
}
