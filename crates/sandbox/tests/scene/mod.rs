//! A cloud of its own for one test: directories, a launcher, and a look at what is left when the test is over.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs,
    io::Read,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use model::{
    id::{NetworkId, WorkloadId},
    planned::host::{Attach, Process, Rootfs, SandboxEvent, SandboxLimits, SandboxPlan},
};
use sandbox::{Config, Event, ExecRequest, ExecStatus, Launcher, Running, Stdio};

/// Longer than anything here takes on a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Scene {
    pub dir: PathBuf,
    pub config: Config,
    pub launcher: Option<Launcher>,
    pub events: mpsc::Receiver<Event>,
    pub hello: String,
    number: u32,
}

/// How an exec'd command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub status: ExecStatus,
    pub out: String,
    pub err: String,
}

impl Scene {
    pub fn new() -> Scene {
        let number = std::process::id() % 100_000 * 10 + NUMBER.fetch_add(1, Ordering::Relaxed) % 10;
        let dir = std::env::temp_dir().join(format!("tombolo-sandbox-{number}"));
        fs::create_dir_all(&dir).unwrap();
        let config = Config {
            cloud: format!("t{number}"),
            run_dir: dir.join("run"),
            state_dir: dir.join("state"),
            shim_argv: vec![env!("CARGO_BIN_EXE_sandbox").into(), "shim".into()],
            service: None,
        };
        let (sender, events) = mpsc::channel();
        let launcher = Launcher::new(config.clone(), sender).unwrap();
        let images = sandbox::builtin::install(&config.state_dir).unwrap();
        let hello = images[0].1.layers[0].clone();
        Scene { dir, config, launcher: Some(launcher), events, hello, number }
    }

    pub fn launcher(&self) -> &Launcher {
        self.launcher.as_ref().unwrap()
    }

    /// Uids of the n-th sandbox of this scene; no two scenes share any.
    pub fn uids(&self, n: u32) -> u32 {
        model::limits::SANDBOX_UID_FIRST + (self.number % 3_000 * 8 + n) * model::limits::SANDBOX_UIDS
    }

    pub fn vm(&self, n: u32) -> SandboxPlan {
        SandboxPlan {
            incarnation: 1,
            attach: Attach::Vpc {
                network: NetworkId(1),
                address: Ipv4Addr::new(10, 0, 0, 2),
                gateway: Ipv4Addr::new(10, 0, 0, 1),
                mtu: 1460,
            },
            rootfs: Rootfs::HostView,
            process: Process::Init,
            hostname: "till".into(),
            search: vec!["home-a.c.shop.internal".into(), "google.internal".into()],
            limits: SandboxLimits { cpu_millis: 2_000, memory_bytes: 128 << 20, pids: 64 },
            uid_base: self.uids(n),
        }
    }

    pub fn container(&self, n: u32, argv: &[&str], env: &[(&str, &str)]) -> SandboxPlan {
        SandboxPlan {
            rootfs: Rootfs::Layers(vec![self.hello.clone()]),
            process: Process::Run {
                argv: argv.iter().map(|a| (*a).to_owned()).collect(),
                env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                cwd: "/".into(),
                user: String::new(),
            },
            ..self.vm(n)
        }
    }

    pub fn start(&self, name: &str, plan: &SandboxPlan) -> Running {
        let parked = self.launcher().park(plan.uid_base).unwrap();
        parked.launch(&WorkloadId(name.into()), plan).unwrap()
    }

    pub fn event(&self) -> SandboxEvent {
        self.events.recv_timeout(PATIENCE).expect("an event comes in time").event
    }

    /// Waits for the end; events before it are dropped.
    pub fn exit(&self) -> (Option<i32>, Option<i32>, bool, String) {
        loop {
            match self.event() {
                SandboxEvent::Exited { code, signal, out_of_memory, output_tail } => {
                    return (code, signal, out_of_memory, output_tail);
                }
                SandboxEvent::Started { .. } | SandboxEvent::Failed { .. } => {}
            }
        }
    }

    /// The groups of this scene in all hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let name = format!("tombolo-{}", self.config.cloud);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4));
        let groups = mounts.map(|m| PathBuf::from(m).join(&name)).filter(|p| p.exists());
        groups.collect()
    }

    pub fn shim_files(&self) -> Vec<String> {
        let list = fs::read_dir(self.config.run_dir.join("shim")).unwrap();
        list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let launcher = self.launcher.take();
        let (sender, _events) = mpsc::channel();
        let launcher = launcher.or_else(|| Launcher::new(self.config.clone(), sender).ok());
        if let Some(launcher) = launcher {
            for running in launcher.adopt().unwrap_or_default() {
                running.stop(Duration::ZERO).ok();
            }
            let deadline = Instant::now() + PATIENCE;
            while (!self.cgroups().is_empty() || self.shim_files().iter().any(|f| f.ends_with("sock")))
                && Instant::now() < deadline
            {
                launcher.sweep().ok();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let left = self.cgroups();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = mounts.contains(&*self.dir.to_string_lossy());
        fs::remove_dir_all(&self.dir).ok();
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<PathBuf>::new(), "no control group is left");
            assert!(!mounted, "no mount is left");
            assert!(!self.dir.exists(), "no file is left");
        }
    }
}

pub fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: "root".into(),
        tty: false,
    }
}

pub fn sh(sandbox: &Running, script: &str) -> Said {
    exec(sandbox, &request(&["/bin/sh", "-c", script]), "")
}

/// Runs a command with `input` on its standard input, waits for its end.
pub fn exec(sandbox: &Running, request: &ExecRequest, input: &str) -> Said {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((stdin, mut feed), (out, stdout), (err, stderr)) = {
        let (r, w) = pipe();
        ((r, fs::File::from(w)), pipe(), pipe())
    };
    let streams = Stdio::Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let exec = sandbox.exec(request, streams).unwrap();
    drop((stdin, stdout, stderr));
    std::io::Write::write_all(&mut feed, input.as_bytes()).ok();
    drop(feed);
    let read = |fd: OwnedFd| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            fs::File::from(fd).read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let (out, err) = (read(out), read(err));
    let status = exec.wait().unwrap();
    Said { status, out: out.join().unwrap(), err: err.join().unwrap() }
}

/// Until it is true, for as long as patience lasts.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
