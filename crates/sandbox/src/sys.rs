//! The system calls that no safe wrapper covers. All `unsafe` of this crate is here.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::ExitStatusExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitStatus,
};

use rustix::process::{Gid, Pid, Uid};

/// Every namespace of a sandbox. The user namespace comes first, so it owns the others: its root may bind low ports,
/// ping, and mount sysfs.
const SANDBOX_NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWCGROUP;

/// The exit code of a child whose code panicked. EX_SOFTWARE of sysexits.
const PANICKED: i32 = 70;

pub(crate) fn number_of(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pid(result: libc::c_long) -> Option<Pid> {
    i32::try_from(result).ok().and_then(Pid::from_raw)
}

/// Runs `child` in a copy of this process and returns its pid. The caller must have one thread only: then the copy may
/// allocate and lock, which after a fork of several threads it could not.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: every process that calls this has a single thread (checked by `assert_single_threaded` at its start), so
    // no lock is held by a thread that the copy lacks.
    let result = check(libc::c_long::from(unsafe { libc::fork() }))?;
    match pid(result) {
        Some(pid) => Ok(pid),
        None => leave(child),
    }
}

/// Like [`fork`], but the child is born into all namespaces of a sandbox and belongs to the caller's parent, who is
/// told of its end by SIGCHLD and must reap it.
pub(crate) fn fork_into_namespaces(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // With CLONE_PARENT the signal at the end is the caller's own, and none may be given.
    clone(SANDBOX_NAMESPACES | libc::CLONE_PARENT, 0, child)
}

/// Like [`fork`], but the child is born into namespaces of its own. The caller reaps it.
pub(crate) fn fork_apart(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    clone(SANDBOX_NAMESPACES, u64::try_from(libc::SIGCHLD).unwrap_or(0), child)
}

/// Like [`fork`], but the child belongs to the caller's parent.
pub(crate) fn fork_sibling(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    clone(libc::CLONE_PARENT, 0, child)
}

fn clone(flags: i32, exit_signal: u64, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: zero is a valid value of every field.
    let mut args: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    args.flags = u64::try_from(flags).unwrap_or(0);
    args.exit_signal = exit_signal;
    // SAFETY: without CLONE_VM and without a stack this is fork (see there); `args` outlives the call.
    let result = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    match pid(result) {
        Some(pid) => Ok(pid),
        None => leave(child),
    }
}

/// Runs `child` and ends the process without running anything that the parent had registered to run at its own end.
fn leave(child: impl FnOnce() -> i32) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
    // SAFETY: ends the process; nothing is used afterwards.
    unsafe { libc::_exit(code) }
}

/// Enters all namespaces of the process behind `pidfd`. The pid namespace is that of children to come.
pub(crate) fn enter_namespaces(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(libc::c_long::from(unsafe { libc::setns(pidfd.as_raw_fd(), SANDBOX_NAMESPACES) })).map(drop)
}

/// What [`mount_attributes`] changes.
#[derive(Clone, Copy)]
pub(crate) enum Attributes<'a> {
    Private,
    /// Read-only, no set-uid programs, no devices.
    ReadOnly,
    /// The same, with ids shifted by the maps of this user namespace.
    ReadOnlyShifted(BorrowedFd<'a>),
}

/// Changes a mount and everything mounted below it.
pub(crate) fn mount_attributes(mount: BorrowedFd<'_>, attributes: Attributes<'_>) -> io::Result<()> {
    // SAFETY: zero is a valid value of every field.
    let mut change: libc::mount_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    match attributes {
        Attributes::Private => change.propagation = libc::MS_PRIVATE,
        Attributes::ReadOnly => {
            change.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        }
        Attributes::ReadOnlyShifted(user_namespace) => {
            change.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_IDMAP;
            change.userns_fd = u64::try_from(user_namespace.as_raw_fd()).unwrap_or(u64::MAX);
        }
    }
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: `change` and the empty path outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Becomes this user for good. In that order: groups while still allowed, then gid, then uid.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// A session keyring of its own, so that the one inherited from the host's session is out of reach.
pub(crate) fn new_session_keyring() {
    // SAFETY: takes numbers only. A kernel without keyrings has none to leak.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0) };
}

/// Closes every descriptor from `first` on, now or at exec.
pub(crate) fn close_from(first: u32, at_exec: bool) -> io::Result<()> {
    let flags = if at_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: called where no descriptor from `first` on is owned by a value that will be used again, or they are only
    // marked.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Closes whatever this process was born with beside its three standard streams: its ancestors may have had files open
/// that are not its business. For the very start of `main`, when nothing has been opened yet.
pub fn close_inherited() -> io::Result<()> {
    close_from(3, false)
}

/// Closes everything but the three standard streams and `kept`. For a copy of a process, which has no use for what its
/// original held; the values that owned the rest must not be used again.
pub(crate) fn keep_only(kept: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const KEPT: u32 = 3;
    if kept.as_raw_fd() != 3 {
        // SAFETY: takes numbers only; what 3 stood for is not used again.
        check(libc::c_long::from(unsafe { libc::dup3(kept.as_raw_fd(), 3, libc::O_CLOEXEC) }))?;
    }
    close_from(KEPT + 1, false)?;
    // SAFETY: 3 is open, and the value that owned it before is not used again.
    Ok(unsafe { OwnedFd::from_raw_fd(3) })
}

/// All signals as a fresh process has them: default action, none blocked.
pub(crate) fn reset_signals() {
    // SAFETY: `set` is initialised by sigemptyset; SIG_DFL is a valid handler for every signal, and where the kernel
    // refuses (SIGKILL, unused numbers) nothing is changed.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Limits the address space of this process, in bytes; whoever asks for more is ended by the allocator.
pub(crate) fn limit_memory(bytes: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: Some(bytes) }).map_err(Into::into)
}

/// A descriptor that is readable when a child has ended; SIGCHLD is blocked from now on.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset; the descriptor that signalfd returns is owned by nobody else.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())))?;
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The next child that has ended, if any has.
pub(crate) fn reap() -> Option<(i32, ExitStatus)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (pid, ExitStatus::from_raw(status)))
}

/// Duplicates `fd` to one of the numbers 0, 1, 2 of a process that is about to execute something else; to its own number,
/// it is kept open over that.
pub(crate) fn become_stream(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: whatever the number stood for before is not used again by this process. dup2 to itself keeps
    // close-on-exec, so clear it by hand.
    unsafe {
        if fd.as_raw_fd() == number {
            return check(libc::c_long::from(libc::fcntl(number, libc::F_SETFD, 0))).map(drop);
        }
        check(libc::c_long::from(libc::dup2(fd.as_raw_fd(), number))).map(drop)
    }
}

/// Takes ownership of standard input: the connection that a shim is born with.
pub(crate) fn take_stdin() -> OwnedFd {
    // SAFETY: called once, at the very start of a process that reads no standard input.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Makes the terminal on standard input the controlling one of this session.
pub(crate) fn control_terminal() -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(Into::into)
}

/// Replaces the program. Returns only when that fails.
pub(crate) fn execute(program: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists end in null and, like what they point to, outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Installs a classic BPF program as a seccomp filter of this thread. Needs `no_new_privs`.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program; it outlives the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Switches the loopback interface of this network namespace on.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: zero is a valid value of every field; the name fits with its end; ioctl reads and writes only `request`.
    unsafe {
        let mut request: libc::ifreq = MaybeUninit::zeroed().assume_init();
        for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
            *to = libc::c_char::try_from(*from).unwrap_or(0);
        }
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)))?;
        request.ifr_ifru.ifru_flags |= libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request))).map(drop)
    }
}

pub(crate) fn wall_clock() -> model::time::Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    model::time::Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
