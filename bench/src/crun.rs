//! The peer for starts: crun with what our sandboxes have on: a user namespace, limits, a system call filter that names
//! as many calls, no new privileges. It is given its network namespace ready made, with loopback up, and a plain
//! directory as root; ours makes or takes both itself, so what differs speaks for crun.
//!
//! crun 1.8 refuses machines with both versions of cgroups. It runs in a mount namespace from which the second was taken
//! away, in a process of our own program ([`answer_starts`]) that starts it whenever it is asked to.

use std::{
    fs,
    io::{self, BufRead, BufReader, Lines, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use host::netns::Pins;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

use crate::{Outcome, ms, start};

/// First argument of the process that starts crun.
pub const ROLE: &str = "crun-starts";
const UNIFIED: &str = "/sys/fs/cgroup/unified";
const CONTAINER: &str = "tombolo-bench";

/// Calls that are refused, as in our own filter.
const DENIED: &str = "mount umount2 pivot_root open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr \
    open_by_handle_at quotactl quotactl_fd swapon swapoff unshare setns bpf perf_event_open init_module finit_module \
    delete_module kexec_load kexec_file_load userfaultfd io_uring_setup io_uring_enter io_uring_register fanotify_init \
    keyctl add_key request_key reboot acct syslog vhangup settimeofday clock_settime clock_adjtime adjtimex \
    lookup_dcookie nfsservctl";
const KEPT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

/// The process that starts crun when asked.
pub struct Crun {
    process: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Crun {
    /// Lays a bundle with `program` as `/hello` into `dir`.
    ///
    /// # Errors
    /// There is no crun: nobody would ever answer a client.
    pub fn start(dir: &Path, program: &Path) -> Outcome<Crun> {
        crun(dir).arg("--version").status().map_err(|e| format!("cannot start crun: {e}"))?;
        let root = dir.join("bundle/rootfs");
        for inner in ["proc", "dev", "tmp"] {
            fs::create_dir_all(root.join(inner))?;
        }
        fs::copy(program, root.join("hello"))?;
        // Root of the container is nobody here, and must reach its files.
        for path in [dir, &dir.join("bundle"), &root, &root.join("hello")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        let pins = Pins::under(dir)?;
        fs::write(dir.join("bundle/config.json"), config(&pins.path("peer")).to_string())?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?).arg(ROLE).arg(dir);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = process.stdout.take().ok_or("no standard output")?;
        Ok(Crun { process, answers: BufReader::new(out).lines() })
    }

    /// Milliseconds from the start of crun to the first byte.
    pub fn one_start(&mut self) -> Outcome<f64> {
        self.process.stdin.as_mut().ok_or("no standard input")?.write_all(b"start\n")?;
        let answer = self.answers.next().ok_or("crun does not start here; is it installed?")??;
        Ok(answer.parse()?)
    }
}

impl Drop for Crun {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The process in its own mount namespace: one line in, one start, one time out.
pub fn answer_starts(dir: &Path) -> Outcome<()> {
    if Path::new(UNIFIED).is_dir() {
        unmount(UNIFIED, UnmountFlags::DETACH)?;
    }
    // Pinned in this mount namespace, so that the pin ends with it.
    let netns = Pins::under(dir)?.create("peer")?;
    netns.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status())??;
    for line in io::stdin().lines() {
        line?;
        let (ready, go) = mpsc::channel();
        let took = thread::scope(|scope| -> Outcome<f64> {
            let client = scope.spawn(|| {
                netns.run(|| {
                    ready.send(()).ok();
                    start::first_byte()
                })
            });
            go.recv()?;
            let start = Instant::now();
            let status =
                crun(dir).args(["run", "--detach", "--bundle"]).arg(dir.join("bundle")).arg(CONTAINER).status()?;
            if !status.success() {
                // Nobody will ever answer the client.
                std::process::exit(1);
            }
            let first_byte = client.join().map_err(|_| "the client panicked")??;
            Ok(ms(first_byte - start))
        })?;
        crun(dir).args(["delete", "--force", CONTAINER]).status()?;
        println!("{took}");
    }
    Ok(())
}

fn crun(dir: &Path) -> Command {
    let mut command = Command::new("crun");
    command.arg("--root").arg(dir.join("containers")).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn config(netns: &Path) -> Value {
    let ids = json!([{"containerID": 0, "hostID": start::UID_BASE, "size": 65_536}]);
    let tmpfs = |at| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]});
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/hello"], "cwd": "/", "noNewPrivileges": true,
            "env": [format!("PORT={}", start::PORT)],
            "capabilities": {"bounding": KEPT, "effective": KEPT, "permitted": KEPT},
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "bench",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}, tmpfs("/dev"), tmpfs("/tmp")],
        "linux": {
            "cgroupsPath": format!("/{CONTAINER}"),
            "uidMappings": ids, "gidMappings": ids,
            "resources": {
                "memory": {"limit": start::MEMORY_BYTES},
                "cpu": {"quota": 100_000, "period": 100_000},
                "pids": {"limit": start::PIDS},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "user"},
                {"type": "network", "path": netns},
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": DENIED.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            },
        },
    })
}
