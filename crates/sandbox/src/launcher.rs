//! The launcher: parks, launches, finds and sweeps sandboxes. It spawns shims and speaks with them; whatever needs a
//! namespace happens in the shim.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, mpsc},
    time::Duration,
};

use model::{
    id::WorkloadId,
    limits::{SANDBOX_UID_END, SANDBOX_UID_FIRST, SANDBOX_UIDS},
    planned::host::{SandboxEvent, SandboxPlan},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    Error, builtin,
    cgroup::Cgroups,
    events::{Watch, Watcher},
    printed,
    wire::{Answer, Birth, Epitaph, ExecRequest, Request, Service, Status},
};

/// Where sandboxes live and how a shim is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cloud's id, `[a-z0-9]{1,8}`. Part of every control group's name.
    pub cloud: String,
    /// Sockets, outputs and last words of shims go to `shim/` under it.
    pub run_dir: PathBuf,
    /// Layers are read from `layers/<digest>/` under it. Its filesystem must support idmapped mounts
    /// (ext4, xfs, btrfs, tmpfs since Linux 6.3, …).
    pub state_dir: PathBuf,
    /// Program and first arguments that end in [`crate::shim_main`], for example `[tombolo, shim]`.
    pub shim_argv: Vec<OsString>,
    /// What every VM's init keeps running, beside whatever else runs there.
    pub service: Option<Service>,
}

/// A shim that does not answer for this long is broken; whoever asked goes on without it. Longer than anything it does.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A shim whose connection is over has ended within this; it waits for the kernel to free its control groups.
const END_MAX: Duration = Duration::from_secs(5);

/// Something that happened to a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub workload: WorkloadId,
    pub incarnation: u32,
    pub event: SandboxEvent,
}

/// Starts sandboxes. Cheap to clone; usable from any thread. Every call blocks for milliseconds at most, except as said.
#[derive(Clone)]
pub struct Launcher {
    config: Arc<Config>,
    cgroups: Arc<Cgroups>,
    watcher: Watcher,
}

impl Launcher {
    /// Events of all sandboxes launched or adopted through this launcher go to `events`.
    pub fn new(config: Config, events: mpsc::Sender<Event>) -> Result<Launcher, Error> {
        let dir = config.run_dir.join("shim");
        for dir in [&dir, &printed::dir(&config.run_dir)] {
            make_private(dir).map_err(|source| Error::Directory { path: dir.clone(), source })?;
        }
        builtin::install(&config.state_dir)
            .map_err(|source| Error::Directory { path: config.state_dir.join("layers"), source })?;
        let cgroups = Cgroups::detect(&config.cloud).map_err(|source| Error::Cgroups { source })?;
        let watcher = Watcher::start(dir, events).map_err(|source| Error::Cgroups { source })?;
        Ok(Launcher { config: Arc::new(config), cgroups: Arc::new(cgroups), watcher })
    }

    /// What this machine can enforce and how, for people: one line per controller.
    pub fn facts(&self) -> Vec<(String, String)> {
        self.cgroups.facts()
    }

    /// Makes a sandbox's namespaces and control groups, with nothing of a workload in them. Uids
    /// `uid_base..uid_base + 65536` must belong to no other sandbox. `lo` is up; anything else in the network namespace
    /// is the caller's to make. Dropping the result unmakes everything.
    pub fn park(&self, uid_base: u32) -> Result<Parked, Error> {
        check_uids(uid_base)?;
        let name = format!("parked {uid_base}");
        let (ours, theirs) = UnixStream::pair().map_err(|source| Error::Talk { name: name.clone(), source })?;
        let program = self.config.shim_argv.first().cloned().unwrap_or_default();
        let child = Command::new(&program)
            .arg0("tombolo-shim")
            .args(&self.config.shim_argv[1..])
            .args([&self.config.cloud, &uid_base.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(std::process::Stdio::null())
            .spawn()
            .map_err(|source| Error::Spawn { program: program.into(), source })?;
        let mut shim = ShimProcess(Some(child));
        // Declared after the process, so on an error the connection is closed before the process is waited for.
        let mut link = Link::over(name, ours)?;
        let birth = Birth {
            cloud: self.config.cloud.clone(),
            run_dir: self.config.run_dir.clone(),
            state_dir: self.config.state_dir.clone(),
            init: builtin::init(&self.config.state_dir),
            service: self.config.service.clone(),
            uid_base,
        };
        link.send(&birth, &[])?;
        let (pid, netns) = match link.recv()? {
            (Answer::Parked { pid }, fds) => (pid, link.one(fds)?),
            (other, _) => return Err(link.unexpected(other)),
        };
        Ok(Parked { launcher: self.clone(), link, child: ShimProcess(shim.0.take()), uid_base, pid, netns })
    }

    /// The sandboxes of this cloud that run already, started by an earlier launcher. Their events (and the last words of
    /// those that ended while nobody listened) come to this launcher from now on.
    pub fn adopt(&self) -> Result<Vec<Running>, Error> {
        let dir = self.config.run_dir.join("shim");
        let mut running = Vec::new();
        for path in entries(&dir, "sock")? {
            let Ok(stream) = UnixStream::connect(&path) else { continue };
            let name = path.display().to_string();
            let mut link = Link::over(name, stream)?;
            let status = match link.ask(&Request::Status, &[]) {
                Ok((Answer::Status(status), _)) => status,
                Ok(_) | Err(_) => continue,
            };
            let sandbox = Running {
                id: status.id.clone(),
                incarnation: status.incarnation,
                uid_base: status.uid_base,
                pid: status.pid,
                socket: path,
            };
            link.send(&Request::Subscribe, &[])?;
            self.watcher.watch(Watch::new(&sandbox, link.receiver, None));
            running.push(sandbox);
        }
        for path in entries(&dir, "end")? {
            if let Some(epitaph) = read_epitaph(&path)
                && !running.iter().any(|r| r.id == epitaph.id)
            {
                self.watcher.report_epitaph(epitaph);
            }
        }
        Ok(running)
    }

    /// Removes what shims left that died without cleaning up: processes, control groups, sockets and outputs of this
    /// cloud that belong to no living shim, parked or running. What living shims have is left alone.
    pub fn sweep(&self) -> Result<(), Error> {
        let dir = self.config.run_dir.join("shim");
        for path in entries(&dir, "sock")? {
            if UnixStream::connect(&path).is_err() {
                for extension in ["sock", "log"] {
                    fs::remove_file(path.with_extension(extension)).ok();
                }
            }
        }
        let locks = entries(&dir, "lock")?;
        let (living, dead): (Vec<_>, Vec<_>) = locks.iter().partition(|path| is_locked(path));
        let living = living.iter().filter_map(|path| path.file_stem()?.to_str()?.parse().ok()).collect();
        self.cgroups.sweep(&living).map_err(|source| Error::Cgroups { source })?;
        // Last, so that the uids are taken by nobody before their groups are gone.
        dead.iter().for_each(|path| drop(fs::remove_file(path)));
        Ok(())
    }
}

/// A sandbox without a workload: it has namespaces and control groups, and waits.
pub struct Parked {
    launcher: Launcher,
    link: Link,
    child: ShimProcess,
    uid_base: u32,
    pid: i32,
    netns: OwnedFd,
}

impl Parked {
    /// Its network namespace, owned by its user namespace. Open for as long as this value lives.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Its pid 1, as the host counts.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn uid_base(&self) -> u32 {
        self.uid_base
    }

    /// Mounts the root filesystem, sets the limits and executes the plan's process. When this returns, exec has
    /// succeeded; `Started` goes to the launcher's events as well. On an error the sandbox is gone.
    /// `plan.uid_base` must be the one it was parked with; `plan.attach` is not looked at.
    pub fn launch(mut self, id: &WorkloadId, plan: &SandboxPlan) -> Result<Running, Error> {
        check_id(id)?;
        self.link.name.clone_from(&id.0);
        let request = Request::Launch { id: id.clone(), plan: Box::new(plan.clone()) };
        let pid = match self.link.ask(&request, &[])? {
            (Answer::Launched { pid }, _) => pid,
            (other, _) => return Err(self.link.unexpected(other)),
        };
        let running = Running {
            id: id.clone(),
            incarnation: plan.incarnation,
            uid_base: self.uid_base,
            pid,
            socket: self.launcher.config.run_dir.join("shim").join(format!("{id}.sock")),
        };
        self.launcher.watcher.watch(Watch::new(&running, self.link.receiver, self.child.0.take()));
        Ok(running)
    }
}

/// A sandbox with a workload. Only a handle: dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Running {
    pub(crate) id: WorkloadId,
    pub(crate) incarnation: u32,
    pub(crate) uid_base: u32,
    pub(crate) pid: i32,
    pub(crate) socket: PathBuf,
}

impl Running {
    /// The sandbox of this name, by its shim's socket in a cloud's run directory.
    pub fn find(run_dir: &Path, id: &WorkloadId) -> Result<Running, Error> {
        check_id(id)?;
        let socket = run_dir.join("shim").join(format!("{id}.sock"));
        let mut running = Running { id: id.clone(), incarnation: 0, uid_base: 0, pid: 0, socket };
        let status = running.status()?;
        running.incarnation = status.incarnation;
        running.uid_base = status.uid_base;
        running.pid = status.pid;
        Ok(running)
    }

    pub fn id(&self) -> &WorkloadId {
        &self.id
    }

    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    pub fn uid_base(&self) -> u32 {
        self.uid_base
    }

    /// Its pid 1, as the host counts.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Asks for SIGTERM now and SIGKILL after `grace` (zero: SIGKILL now). Returns at once; `Exited` follows as an event.
    /// A sandbox that is gone already is no error.
    pub fn stop(&self, grace: Duration) -> Result<(), Error> {
        let mut link = match self.connect() {
            Ok(link) => link,
            Err(Error::Connect { .. }) => return Ok(()),
            Err(e) => return Err(e),
        };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match link.ask(&Request::Stop { grace_ms }, &[]) {
            Ok((Answer::Stopping, _)) | Err(Error::Gone { .. }) => Ok(()),
            Ok((other, _)) => Err(link.unexpected(other)),
            Err(e) => Err(e),
        }
    }

    pub fn status(&self) -> Result<Status, Error> {
        self.ask_status().map(|(status, _)| status)
    }

    /// Its network namespace.
    pub fn netns(&self) -> Result<OwnedFd, Error> {
        self.ask_status().map(|(_, netns)| netns)
    }

    /// Runs one more process in the sandbox. `stdio` must be [`Stdio::Terminal`] exactly if `request.tty`.
    /// When the returned value is dropped before the process has ended, the process gets SIGHUP.
    pub fn exec(&self, request: &ExecRequest, stdio: Stdio<'_>) -> Result<Exec, Error> {
        let mut link = self.connect()?;
        let question = Request::Exec(request.clone());
        let (answer, fds) = match stdio {
            Stdio::Terminal => link.ask(&question, &[])?,
            Stdio::Streams { stdin, stdout, stderr } => link.ask(&question, &[stdin, stdout, stderr])?,
        };
        match answer {
            Answer::Exec { pid } => Ok(Exec { pid, terminal: fds.into_iter().next(), link }),
            other => Err(link.unexpected(other)),
        }
    }

    /// The workload's standard output and error, newest [`model::limits::SANDBOX_OUTPUT_BYTES_MAX`] bytes. Gone when the
    /// sandbox is gone: the `Exited` event carries the tail.
    pub fn output(&self) -> PathBuf {
        self.socket.with_extension("log")
    }

    fn ask_status(&self) -> Result<(Status, OwnedFd), Error> {
        let mut link = self.connect()?;
        match link.ask(&Request::Status, &[])? {
            (Answer::Status(status), fds) => Ok((*status, link.one(fds)?)),
            (other, _) => Err(link.unexpected(other)),
        }
    }

    fn connect(&self) -> Result<Link, Error> {
        let stream =
            UnixStream::connect(&self.socket).map_err(|source| Error::Connect { path: self.socket.clone(), source })?;
        Link::over(self.id.0.clone(), stream)
    }
}

/// Where the standard streams of an exec'd process come from.
pub enum Stdio<'a> {
    /// A new pseudo terminal inside the sandbox; its master is [`Exec::terminal`].
    Terminal,
    Streams {
        stdin: BorrowedFd<'a>,
        stdout: BorrowedFd<'a>,
        stderr: BorrowedFd<'a>,
    },
}

/// How an exec'd process ended: exactly one of the two is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecStatus {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// A process that was brought into a sandbox.
pub struct Exec {
    pid: i32,
    terminal: Option<OwnedFd>,
    link: Link,
}

impl Exec {
    /// As the host counts.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The master of its pseudo terminal: read, write, and TIOCSWINSZ for the window's size.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Sends a signal to its process group. No error when it has ended already.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        ipc::send(self.link.receiver.stream(), &Request::Signal { signal }, &[])
            .map_err(|source| Error::Talk { name: self.link.name.clone(), source })
    }

    /// Another handle that can only send signals, for a second thread while this one waits.
    pub fn signaller(&self) -> io::Result<impl Fn(i32) -> io::Result<()> + Send + 'static> {
        let stream = self.link.receiver.stream().try_clone()?;
        Ok(move |signal| ipc::send(&stream, &Request::Signal { signal }, &[]))
    }

    /// Waits for its end, for as long as it takes.
    pub fn wait(mut self) -> Result<ExecStatus, Error> {
        self.link.be_patient()?;
        match self.link.recv()? {
            (Answer::ExecEnded { code, signal }, _) => Ok(ExecStatus { code, signal }),
            (other, _) => Err(self.link.unexpected(other)),
        }
    }
}

/// A connection to one shim.
struct Link {
    name: String,
    receiver: ipc::Receiver,
}

impl Link {
    fn over(name: String, stream: UnixStream) -> Result<Link, Error> {
        let limited =
            stream.set_read_timeout(Some(ANSWER_MAX)).and_then(|()| stream.set_write_timeout(Some(ANSWER_MAX)));
        match limited {
            Ok(()) => Ok(Link { name, receiver: ipc::Receiver::new(stream) }),
            Err(source) => Err(Error::Talk { name, source }),
        }
    }

    /// The next answer may take as long as it takes.
    fn be_patient(&self) -> Result<(), Error> {
        let unlimited = self.receiver.stream().set_read_timeout(None);
        unlimited.map_err(|source| Error::Talk { name: self.name.clone(), source })
    }

    fn send<T: serde::Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        ipc::send(self.receiver.stream(), message, fds).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone { name: self.name.clone() },
            _ => Error::Talk { name: self.name.clone(), source },
        })
    }

    fn recv(&mut self) -> Result<(Answer, Vec<OwnedFd>), Error> {
        match self.receiver.recv() {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Error::Gone { name: self.name.clone() }),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(Error::Gone { name: self.name.clone() }),
            Err(source) => Err(Error::Talk { name: self.name.clone(), source }),
        }
    }

    fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>), Error> {
        self.send(request, fds)?;
        self.recv()
    }

    fn one(&self, fds: Vec<OwnedFd>) -> Result<OwnedFd, Error> {
        fds.into_iter().next().ok_or_else(|| Error::Protocol { name: self.name.clone() })
    }

    fn unexpected(&self, answer: Answer) -> Error {
        match answer {
            Answer::Refused { why } => Error::Refused { name: self.name.clone(), why },
            _ => Error::Protocol { name: self.name.clone() },
        }
    }
}

/// A shim that is this process's child and, until a sandbox runs, ends when its connection does. Reaped on drop.
struct ShimProcess(Option<Child>);

impl Drop for ShimProcess {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            // Its connection is closed, so it is cleaning up. Afterwards the uids are free.
            reap(child);
        }
    }
}

/// Waits for the end of a shim whose connection is over. One that does not come to its end is killed, and what the
/// kernel makes of that is waited for elsewhere: the caller has others to attend to. The next sweep removes what it had.
pub(crate) fn reap(child: Child) {
    reap_within(child, END_MAX);
}

fn reap_within(mut child: Child, time: Duration) {
    if !ends_within(&child, time) {
        child.kill().ok();
        if !ends_within(&child, END_MAX) {
            std::thread::spawn(move || child.wait());
            return;
        }
    }
    child.wait().ok();
}

fn ends_within(child: &Child, time: Duration) -> bool {
    let Ok(end) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return false };
    let timeout = Timespec::try_from(time).ok();
    let mut ends = [PollFd::new(&end, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut ends, timeout.as_ref())).is_ok_and(|ready| ready > 0)
}

/// The machine's own users, root first of all, are no sandbox's, whatever a plan says.
pub(crate) fn check_uids(uid_base: u32) -> Result<(), Error> {
    let whole = uid_base.is_multiple_of(SANDBOX_UIDS);
    let inside = (SANDBOX_UID_FIRST..=SANDBOX_UID_END - SANDBOX_UIDS).contains(&uid_base);
    if whole && inside { Ok(()) } else { Err(Error::Uids { uid_base }) }
}

fn check_id(id: &WorkloadId) -> Result<(), Error> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=32).contains(&id.0.len()) && id.0.bytes().all(fine) { Ok(()) } else { Err(Error::Id { id: id.0.clone() }) }
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn entries(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    let list = fs::read_dir(dir).map_err(|source| Error::Directory { path: dir.into(), source })?;
    let mut paths: Vec<_> = list.filter_map(|e| e.ok()).map(|e| e.path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == extension));
    paths.sort();
    Ok(paths)
}

/// A shim holds the lock of its uids for as long as it lives.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

pub(crate) fn read_epitaph(path: &Path) -> Option<Epitaph> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_clouds_own_users_are_never_a_sandboxs() {
        let wrong = [0, 1, 1_000, SANDBOX_UIDS, 500_000_001, SANDBOX_UID_FIRST - SANDBOX_UIDS, SANDBOX_UID_FIRST + 1];
        for uid_base in wrong.into_iter().chain([SANDBOX_UID_END, u32::MAX - SANDBOX_UIDS + 1]) {
            assert!(check_uids(uid_base).is_err(), "{uid_base}");
        }
        for uid_base in [SANDBOX_UID_FIRST, SANDBOX_UID_END - SANDBOX_UIDS] {
            assert!(check_uids(uid_base).is_ok(), "{uid_base}");
        }
    }

    #[test]
    fn a_shim_that_does_not_end_by_itself_is_killed() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        reap_within(child, Duration::from_millis(1));
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
