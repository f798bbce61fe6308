//! The shim: one small single-threaded process per sandbox. It makes the sandbox, keeps its output, reaps its
//! processes, answers questions over a socket, and cleans up when pid 1 is gone. It outlives whoever started it; while
//! the sandbox is only parked it ends with the connection it was born with.
//!
//! It reads nothing that a workload writes, except output that it copies to a file. Start with [`shim_main`].

mod birth;
mod serve;

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use model::{
    id::WorkloadId,
    limits::SANDBOX_OUTPUT_BYTES_MAX,
    planned::host::{Process, SandboxEvent, SandboxPlan},
    record::Stream,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, Mode, OFlags},
    mount::{OpenTreeFlags, open_tree},
    process::Signal,
};

use crate::{
    cgroup::{Cgroups, Group, OomWatch},
    launcher::check_uids,
    output::Output,
    printed::Spool,
    privilege::Filter,
    rootfs::{self, Found, Tree, assemble},
    seed,
    sys::{self, Attributes},
    wire::{Answer, Birth, Epitaph, Inward, Outward},
};

/// Open files of a workload. Source: Cloud Run, 25 000 per instance; less where the machine's own limit is lower.
const OPEN_FILES: u64 = 25_000;
/// Who dies first when the machine (not the sandbox) runs out of memory: the workload, not the shim.
const OOM_SCORE: &str = "500";
/// A launcher that neither reads nor writes for this long is given up.
const TALK_MAX: Duration = Duration::from_secs(5);
/// What enters a sandbox and has not executed its program by then is given up: the workload may have stopped it.
const ENTER_MAX: Duration = Duration::from_secs(10);
/// Connections to one shim; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 256;

/// The whole life of a shim. Call it from `main` before any thread is started; standard input must be the socket that
/// the launcher made. Returns the exit code of the process.
pub fn shim_main() -> i32 {
    match live() {
        Ok(()) => 0,
        Err(e) => {
            // Standard error is the launcher's, and may be gone.
            io::Write::write_fmt(&mut io::stderr(), format_args!("shim: {e}\n")).ok();
            1
        }
    }
}

fn live() -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a shim must have one thread"));
    }
    let stdin = sys::take_stdin();
    sys::close_from(3, false)?;
    let link = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?);
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    // The number 0 stays open as /dev/null; nothing may close it.
    std::mem::forget(stdin);
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    raise_open_files();

    let mut first = ipc::Receiver::new(link);
    let Some((birth, _)) = first.recv::<Birth>()? else { return Ok(()) };
    let (lock_path, lock) = claim(&birth)?;
    let cgroups = Cgroups::detect(&birth.cloud)?;
    let group = cgroups.create(birth.uid_base)?;
    let shim = Shim::born(birth, &group, first);
    let ended = match shim {
        Ok(shim) => shim.run(),
        // Whoever wanted it has gone meanwhile.
        Err(e) if ipc::is_end(&e) => Ok(None),
        Err(e) => Err(e),
    };
    // Whatever happened: nothing of the sandbox stays.
    let removed = group.remove();
    cgroups.remove_parents();
    fs::remove_file(lock_path).ok();
    drop(lock);
    if let Some(end) = ended? {
        end.tell()?;
    }
    removed
}

/// Takes the lock that says whose uids these are. The kernel lets go of it when the shim dies, however it dies.
fn claim(birth: &Birth) -> io::Result<(PathBuf, fs::File)> {
    check_uids(birth.uid_base).map_err(io::Error::other)?;
    let path = birth.run_dir.join("shim").join(format!("{}.lock", birth.uid_base));
    loop {
        let file = fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| io::Error::other(format!("the uids from {} on are in use: {e}", birth.uid_base)))?;
        // A sweep may have removed the file between the two calls; a lock on that one would say nothing.
        if fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|mine| now.ino() == mine.ino())) {
            return Ok((path, file));
        }
    }
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let want = |n| Rlimit { current: Some(n), maximum: Some(n) };
    if setrlimit(Resource::Nofile, want(OPEN_FILES)).is_err() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES);
        setrlimit(Resource::Nofile, want(hard.min(OPEN_FILES))).ok();
    }
    setrlimit(Resource::Core, want(0)).ok();
}

/// Everything a shim holds.
struct Shim {
    birth: Birth,
    group: Group,
    filter: Filter,
    sandbox: birth::Sandbox,
    children: OwnedFd,
    connections: Vec<Connection>,
    running: Option<Workload>,
    /// Why the launch failed; told when nothing of the sandbox is left.
    refusal: Option<String>,
    ended: Option<ExitStatus>,
}

/// The launched workload.
struct Workload {
    id: WorkloadId,
    plan: SandboxPlan,
    listener: UnixListener,
    output: Output,
    /// Where lines go on their way to the logs; a VM's init has none.
    spool: Option<Spool>,
    pipes: Vec<(Stream, OwnedFd)>,
    oom: OomWatch,
    oom_seen: bool,
    kill_at: Option<Instant>,
}

/// Somebody who talks to this shim.
struct Connection {
    receiver: ipc::Receiver,
    subscribed: bool,
    /// The process that was started over this connection and has not ended.
    exec: Option<i32>,
}

/// What there is to say when the sandbox is gone, and to whom. Said last: who hears it may use the uids again.
enum End {
    Never { why: String, listeners: Vec<Connection> },
    Exited { epitaph: Epitaph, path: PathBuf, listeners: Vec<Connection> },
}

impl End {
    fn tell(self) -> io::Result<()> {
        let (answer, listeners) = match self {
            End::Never { why, listeners } => (Answer::Refused { why }, listeners),
            End::Exited { epitaph, path, listeners } => {
                // Where the disk is full, those who listen hear it all the same.
                if let Err(e) = fs::write(&path, serde_json::to_vec(&epitaph)?) {
                    fs::remove_file(&path).ok();
                    io::Write::write_fmt(&mut io::stderr(), format_args!("shim: {}: {e}\n", path.display())).ok();
                }
                (Answer::Event(epitaph.event), listeners)
            }
        };
        for listener in &listeners {
            // One that is gone does not hear; the file of a sandbox that ran stays for the next.
            ipc::send(listener.receiver.stream(), &answer, &[]).ok();
        }
        Ok(())
    }
}

/// Something the shim waits for.
#[derive(Clone, Copy)]
enum Source {
    Children,
    Listener,
    Connection(usize),
    Pipe(usize),
    Oom,
}

impl Shim {
    fn born(birth: Birth, group: &Group, first: ipc::Receiver) -> io::Result<Shim> {
        let children = sys::child_signals()?;
        let filter = Filter::compile()?;
        let sandbox = birth::Sandbox::create(birth.uid_base, group, &filter)?;
        let pid = sandbox.pid.as_raw_nonzero().get();
        ipc::send(first.stream(), &Answer::Parked { pid }, &[sandbox.netns.as_fd()])?;
        let connections = vec![Connection { receiver: first, subscribed: false, exec: None }];
        Ok(Shim {
            birth,
            group: group.clone(),
            filter,
            sandbox,
            children,
            connections,
            running: None,
            refusal: None,
            ended: None,
        })
    }

    /// Serves until pid 1 has ended, or until the launcher of a parked sandbox has gone.
    fn run(mut self) -> io::Result<Option<End>> {
        while self.ended.is_none() {
            let ready = self.wait()?;
            // From the back: an entry that is removed moves only those already served.
            for source in ready.into_iter().rev() {
                self.serve(source)?;
            }
            if self.running.is_none() && self.connections.is_empty() {
                self.sandbox.kill();
                return Ok(None);
            }
            self.kill_when_due();
        }
        Ok(self.finish())
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Children, self.children.as_fd(), PollFlags::IN)];
        if let Some(workload) = &self.running {
            if self.connections.len() < CONNECTIONS_MAX {
                sources.push((Source::Listener, workload.listener.as_fd(), PollFlags::IN));
            }
            sources.push(match &workload.oom {
                OomWatch::Bell(fd) => (Source::Oom, fd.as_fd(), PollFlags::IN),
                OomWatch::Events(fd) => (Source::Oom, fd.as_fd(), PollFlags::PRI),
            });
            let pipes = workload.pipes.iter().enumerate();
            sources.extend(pipes.map(|(n, (_, fd))| (Source::Pipe(n), fd.as_fd(), PollFlags::IN)));
        }
        let connections = self.connections.iter().enumerate();
        sources.extend(connections.map(|(n, c)| (Source::Connection(n), c.receiver.stream().as_fd(), PollFlags::IN)));
        let mut fds: Vec<_> = sources.iter().map(|(_, fd, flags)| PollFd::new(fd, *flags)).collect();
        let due = self.running.as_ref().and_then(|w| w.kill_at).map(|at| at.saturating_duration_since(Instant::now()));
        // A millisecond more, so that the deadline has passed when the wait is over.
        let timeout = due.and_then(|d| Timespec::try_from(d + Duration::from_millis(1)).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>();
        Ok(sources.iter().zip(ready).filter(|(_, ready)| *ready).map(|(source, ..)| source.0).collect())
    }

    fn serve(&mut self, source: Source) -> io::Result<()> {
        match source {
            Source::Children => self.reap(),
            Source::Listener => self.accept(),
            Source::Connection(n) => {
                if !self.converse(n) {
                    self.hang_up(n);
                }
                Ok(())
            }
            Source::Pipe(n) => self.copy_output(n),
            Source::Oom => {
                self.out_of_memory();
                Ok(())
            }
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        let mut record = [0; 128 * 16];
        rustix::io::read(&self.children, &mut record[..]).ok();
        while let Some((pid, status)) = sys::reap() {
            if pid == self.sandbox.pid.as_raw_nonzero().get() {
                self.ended = Some(status);
            } else if let Some(connection) = self.connections.iter_mut().find(|c| c.exec == Some(pid)) {
                connection.exec = None;
                let answer = Answer::ExecEnded { code: status.code(), signal: status.signal() };
                ipc::send(connection.receiver.stream(), &answer, &[]).ok();
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(workload) = &self.running else { return Ok(()) };
        let Ok((stream, _)) = workload.listener.accept() else { return Ok(()) };
        // The directory is closed to others already; a socket that got out of it would still not be.
        if !rustix::net::sockopt::socket_peercred(&stream)?.uid.is_root() {
            return Ok(());
        }
        stream.set_read_timeout(Some(TALK_MAX))?;
        stream.set_write_timeout(Some(TALK_MAX))?;
        self.connections.push(Connection { receiver: ipc::Receiver::new(stream), subscribed: false, exec: None });
        Ok(())
    }

    /// A process whose caller has gone is told so, as by a terminal that closes.
    fn hang_up(&mut self, n: usize) {
        let gone = self.connections.swap_remove(n);
        if let Some(pid) = gone.exec {
            serve::signal_group(pid, Signal::HUP.as_raw());
        }
    }

    fn copy_output(&mut self, n: usize) -> io::Result<()> {
        let Some(workload) = &mut self.running else { return Ok(()) };
        let (stream, pipe) = &workload.pipes[n];
        if drain(pipe, *stream, &mut workload.output, workload.spool.as_mut(), 1)? {
            workload.pipes.swap_remove(n);
        }
        Ok(())
    }

    /// A container instance that has used up its memory ends, whichever of its processes was picked by the kernel. In a
    /// VM only that process ends, as on a real machine.
    fn out_of_memory(&mut self) {
        let Some(workload) = &mut self.running else { return };
        if let OomWatch::Bell(bell) = &workload.oom {
            rustix::io::read(bell, &mut [0; 8][..]).ok();
        } else if self.group.oom_kills() == 0 {
            return;
        }
        if matches!(workload.plan.process, Process::Run { .. }) && !workload.oom_seen {
            workload.oom_seen = true;
            self.sandbox.kill();
        }
    }

    fn kill_when_due(&mut self) {
        let Some(workload) = &mut self.running else { return };
        if workload.kill_at.is_some_and(|at| at <= Instant::now()) {
            workload.kill_at = None;
            self.sandbox.kill();
        }
    }

    /// Pid 1 has ended, and with it every process of the sandbox.
    fn finish(mut self) -> Option<End> {
        let status = self.ended?;
        if let Some(why) = self.refusal {
            return Some(End::Never { why, listeners: self.connections });
        }
        let mut workload = self.running.take()?;
        for (stream, pipe) in &workload.pipes {
            // Nobody writes any more; what is left is at most what a pipe holds.
            drain(pipe, *stream, &mut workload.output, workload.spool.as_mut(), usize::MAX).ok();
        }
        if let Some(spool) = &mut workload.spool {
            spool.finish(sys::wall_clock());
        }
        let dir = self.birth.run_dir.join("shim");
        for extension in ["sock", "log"] {
            fs::remove_file(dir.join(format!("{}.{extension}", workload.id))).ok();
        }
        let killed = status.signal() == Some(libc::SIGKILL);
        let event = SandboxEvent::Exited {
            code: status.code(),
            signal: status.signal(),
            out_of_memory: killed && (workload.oom_seen || self.group.oom_kills() > 0),
            output_tail: workload.output.tail().unwrap_or_default(),
        };
        let path = dir.join(format!("{}.end", workload.id));
        let epitaph = Epitaph { id: workload.id, incarnation: workload.plan.incarnation, event };
        let listeners = self.connections.into_iter().filter(|c| c.subscribed).collect();
        Some(End::Exited { epitaph, path, listeners })
    }

    /// Makes the parked sandbox a running one. On an error it is killed, and its end ends the shim.
    fn launch(&mut self, id: WorkloadId, plan: SandboxPlan) -> Result<(), String> {
        if plan.uid_base != self.birth.uid_base {
            return Err(format!(
                "the plan's uids start at {}, the sandbox's at {}",
                plan.uid_base, self.birth.uid_base
            ));
        }
        let layers = self.birth.state_dir.join("layers");
        let (trees, mut assembly) = assemble(&plan, &layers, look_at_host).map_err(|e| e.to_string())?;
        self.group.limit(&plan.limits).map_err(|e| format!("cannot set the limits: {e}"))?;
        if matches!(plan.process, Process::Init) {
            let program = fs::File::open(&self.birth.init).map_err(|e| format!("cannot open a VM's init: {e}"))?;
            let message = Inward::Program { at: rootfs::INIT.into() };
            self.sandbox.tell(&message, &[program.as_fd()]).map_err(|e| e.to_string())?;
            if let Some(service) = &self.birth.service {
                let program = take_program(&service.program);
                let program = program.map_err(|e| format!("cannot take {}: {e}", service.program.display()))?;
                self.sandbox.tell(&Inward::Service, &[program.as_fd()]).map_err(|e| e.to_string())?;
                let seed = seed::of(&self.birth.state_dir, &id).map_err(|e| format!("cannot make a VM's seed: {e}"))?;
                assembly.seed = Some((service.seed.clone(), seed));
                assembly.command.argv.extend(service.argv.iter().cloned());
            }
        }
        for tree in &trees {
            let fd = self.take_tree(tree).map_err(|e| format!("cannot take {}: {e}", tree.from.display()))?;
            self.sandbox.tell(&Inward::Tree { at: tree.at.clone() }, &[fd.as_fd()]).map_err(|e| e.to_string())?;
        }
        let workload = self.prepare_workload(id, plan).map_err(|e| format!("cannot prepare for the workload: {e}"));
        let (workload, theirs) = workload?;
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        self.sandbox.tell(&Inward::Launch(Box::new(assembly)), &fds).map_err(|e| e.to_string())?;
        drop(theirs);
        self.running = Some(workload);
        match self.sandbox.hear() {
            // Closed by exec.
            Ok(None) => Ok(()),
            Ok(Some((Outward::Fault { why }, _))) => Err(why),
            Ok(Some((Outward::Prepared | Outward::Terminal, _))) => Err("the sandbox is confused".into()),
            Err(e) => Err(format!("cannot hear from the sandbox: {e}")),
        }
    }

    fn prepare_workload(&self, id: WorkloadId, plan: SandboxPlan) -> io::Result<(Workload, [OwnedFd; 2])> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let dir = self.birth.run_dir.join("shim");
        let output = Output::create(&dir.join(format!("{id}.log")), SANDBOX_OUTPUT_BYTES_MAX)?;
        let (out, out_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, err_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        for pipe in [&out, &err] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let path = dir.join(format!("{id}.sock"));
        fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let oom = self.group.oom_watch()?;
        let pipes = vec![(Stream::Stdout, out), (Stream::Stderr, err)];
        let spool = matches!(plan.process, Process::Run { .. }).then(|| Spool::new(&self.birth.run_dir, &id));
        let workload = Workload { id, plan, listener, output, spool, pipes, oom, oom_seen: false, kill_at: None };
        Ok((workload, [out_theirs, err_theirs]))
    }

    /// A detached copy of a piece of the host's tree, read-only.
    fn take_tree(&self, tree: &Tree) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let fd = open_tree(rustix::fs::CWD, &tree.from, flags)?;
        sys::mount_attributes(fd.as_fd(), Attributes::Private)?;
        let attributes = match tree.shifted {
            true => Attributes::ReadOnlyShifted(self.sandbox.userns.as_fd()),
            false => Attributes::ReadOnly,
        };
        sys::mount_attributes(fd.as_fd(), attributes)?;
        Ok(fd)
    }
}

/// A file as a mount of its own that is attached nowhere: whoever executes it learns no path of the host's.
fn take_program(path: &Path) -> io::Result<OwnedFd> {
    let fd = open_tree(rustix::fs::CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::mount_attributes(fd.as_fd(), Attributes::ReadOnly)?;
    Ok(fd)
}

/// Copies at most `rounds` buffers; true at the end of the pipe.
fn drain(
    pipe: &OwnedFd,
    stream: Stream,
    output: &mut Output,
    mut spool: Option<&mut Spool>,
    rounds: usize,
) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    for _ in 0..rounds {
        match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                // A full disk costs output, not the workload.
                drop(output.write(&buffer[..n]));
                if let Some(spool) = &mut spool {
                    spool.write(stream, &buffer[..n], sys::wall_clock());
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

fn look_at_host(path: &str) -> Found {
    match (fs::read_link(path), fs::exists(path)) {
        (_, Ok(false) | Err(_)) => Found::Nothing,
        (Ok(target), Ok(true)) => Found::Link(target.to_string_lossy().into_owned()),
        (Err(_), Ok(true)) => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_costs_output_and_neither_the_pipe_nor_the_workload() {
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        let mut output = Output::create(std::path::Path::new("/dev/full"), 64).unwrap();
        for _ in 0..100 {
            rustix::io::write(&theirs, b"a line that finds no room\n").unwrap();
            assert!(!drain(&ours, Stream::Stdout, &mut output, None, 1).unwrap());
        }
        drop(theirs);
        assert!(drain(&ours, Stream::Stdout, &mut output, None, 1).unwrap(), "all of it was taken");
    }
}
