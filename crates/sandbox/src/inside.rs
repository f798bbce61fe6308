//! What happens on the inner side of `clone3`: the process that becomes a sandbox's pid 1, and those that are brought in
//! later. It runs as a copy of the shim, first with all rights inside its own user namespace, and ends in `exec` with
//! few. It trusts the shim and reads nothing of the workload's before it has become the workload's user.
//!
//! Start with [`pid_one`].

use std::{
    ffi::CString,
    fs, io,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree, unmount,
    },
    process::Signal,
};

use crate::{
    privilege::{Filter, drop_rights, resolve},
    sys::{self, Attributes},
    wire::{Assembly, Command, ExecRequest, Inward, Outward, Root},
};

/// Devices of a sandbox, taken one by one from the host's /dev.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of /proc and /sys that tell of the whole machine: files read as empty, directories are empty.
const MASKED_FILES: &[&str] =
    &["/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/latency_stats", "/proc/timer_list"];
const MASKED_DIRS: &[&str] = &["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/kernel/debug"];
/// Parts of /proc that would let a root write.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The host directory over which the first root is mounted, for a moment and in the sandbox's own mount namespace only.
const STAGE: &str = "/tmp";
/// As much of /etc/passwd and /etc/group is read, in bytes.
const TABLE_BYTES_MAX: u64 = 1 << 20;
/// The exit code when nothing could be executed: what shells say when a command is not executable.
const NOT_EXECUTED: i32 = 126;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
struct Fault {
    doing: String,
    source: io::Error,
}

trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T, Fault> {
        self.map_err(|e| Fault { doing: what.into(), source: e.into() })
    }
}

/// The life of pid 1 until it executes the workload's program. Returns an exit code when that fails.
pub(crate) fn pid_one(shim: &UnixStream, filter: &Filter) -> i32 {
    let Ok(shim) = sys::keep_only(shim.as_fd()) else { return NOT_EXECUTED };
    let mut link = ipc::Receiver::new(shim.into());
    let Err(fault) = try_pid_one(&mut link, filter);
    report(link.stream(), &fault);
    NOT_EXECUTED
}

fn try_pid_one(link: &mut ipc::Receiver, filter: &Filter) -> Result<std::convert::Infallible, Fault> {
    let (mut trees, mut programs, mut service) = (Vec::new(), Vec::new(), None);
    loop {
        let Some((message, fds)) = link.recv::<Inward>().doing("hear from the shim")? else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).doing("hear from the shim");
        };
        match message {
            Inward::Prepare => {
                prepare()?;
                ipc::send(link.stream(), &Outward::Prepared, &[]).doing("answer the shim")?;
            }
            Inward::Tree { at } => trees.extend(fds.into_iter().map(|fd| (fd, at.clone()))),
            Inward::Program { at } => programs.extend(fds.into_iter().map(|fd| (fd, at.clone()))),
            Inward::Service => service = fds.into_iter().next(),
            Inward::Launch(mut assembly) => {
                rustix::system::sethostname(assembly.hostname.as_bytes()).doing("set the host name")?;
                build_root(&assembly, trees)?;
                programs.into_iter().try_for_each(|(fd, at)| copy_program(fd, &at))?;
                let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
                    .doing("take the output pipes")?;
                let null = open_null()?;
                fs::create_dir_all(&assembly.command.cwd).doing(format!("make {}", assembly.command.cwd))?;
                let streams = [null.as_fd(), stdout.as_fd(), stderr.as_fd()];
                if let Some(service) = &service {
                    assembly.command.argv.insert(1, service.as_raw_fd().to_string());
                }
                return run(&assembly.command, streams, false, service.as_ref().map(AsFd::as_fd), filter);
            }
        }
    }
}

/// A process that is brought into a running sandbox. It is in all its namespaces already.
pub(crate) fn newcomer(shim: &UnixStream, request: &ExecRequest, streams: Vec<OwnedFd>, filter: &Filter) -> i32 {
    let Err(fault) = try_newcomer(shim, request, streams, filter);
    report(shim, &fault);
    NOT_EXECUTED
}

fn try_newcomer(
    shim: &UnixStream,
    request: &ExecRequest,
    streams: Vec<OwnedFd>,
    filter: &Filter,
) -> Result<std::convert::Infallible, Fault> {
    sys::become_user(0, 0, &[]).doing("become root of the sandbox")?;
    rustix::process::setsid().doing("start a session")?;
    let command = Command {
        argv: request.argv.clone(),
        env: request.env.clone(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
    };
    if request.tty {
        let (master, slave) = open_terminal()?;
        ipc::send(shim, &Outward::Terminal, &[master.as_fd()]).doing("hand out the terminal")?;
        drop(master);
        return run(&command, [slave.as_fd(), slave.as_fd(), slave.as_fd()], true, None, filter);
    }
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(streams)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        .doing("take three standard streams")?;
    run(&command, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], false, None, filter)
}

fn report(shim: &UnixStream, fault: &Fault) {
    // When the shim does not listen any more there is nobody to tell.
    ipc::send(shim, &Outward::Fault { why: fault.to_string() }, &[]).ok();
}

/// What needs no plan: the id of root, private mounts, /proc, /sys and /dev, an empty root, the network's defaults.
fn prepare() -> Result<(), Fault> {
    sys::become_user(0, 0, &[]).doing("become root of the user namespace")?;
    rustix::process::setsid().doing("start a session")?;
    die_with_shim()?;
    network_defaults()?;
    let host_root = open_path("/")?;
    sys::mount_attributes(host_root.as_fd(), Attributes::Private).doing("make mounts private")?;
    // Mounted while the host's own are still in sight: the kernel gives a new one only to who sees a whole one.
    let harmless =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = filesystem("proc", &[], harmless)?;
    let sysfs = filesystem("sysfs", &[], harmless | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let devices: Vec<(&str, OwnedFd)> =
        DEVICES.iter().map(|name| Ok((*name, tree(&format!("/dev/{name}"))?))).collect::<Result<_, Fault>>()?;

    let root = filesystem("tmpfs", &[("mode", "755")], MountAttrFlags::MOUNT_ATTR_NODEV)?;
    attach(root.as_fd(), STAGE)?;
    rustix::process::fchdir(&root).doing("enter the new root")?;
    pivot()?;
    for dir in ["/proc", "/sys", "/dev"] {
        fs::create_dir(dir).doing(format!("make {dir}"))?;
    }
    attach(proc.as_fd(), "/proc")?;
    attach(sysfs.as_fd(), "/sys")?;
    make_dev(devices)?;
    mask()
}

/// Stacks the old root over the working directory, and lets go of it.
fn pivot() -> Result<(), Fault> {
    rustix::process::pivot_root(".", ".").doing("change the root")?;
    unmount(".", UnmountFlags::DETACH).doing("let go of the old root")?;
    rustix::process::chdir("/").doing("enter the root")
}

fn network_defaults() -> Result<(), Fault> {
    sys::loopback_up().doing("switch loopback on")?;
    // A container's user need not be root to serve on port 80 or to ping.
    let net = Path::new("/proc/sys/net/ipv4");
    fs::write(net.join("ip_unprivileged_port_start"), "0").doing("free the low ports")?;
    fs::write(net.join("ping_group_range"), "0 65535").doing("allow ping")
}

fn make_dev(devices: Vec<(&str, OwnedFd)>) -> Result<(), Fault> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = filesystem("tmpfs", &[("mode", "755"), ("size", "64k")], quiet)?;
    attach(dev.as_fd(), "/dev")?;
    for (name, device) in devices {
        let at = format!("/dev/{name}");
        fs::write(&at, "").doing(format!("make {at}"))?;
        attach(device.as_fd(), &at)?;
    }
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir(dir).doing(format!("make {dir}"))?;
    }
    let pts = filesystem("devpts", &[("ptmxmode", "666"), ("mode", "620"), ("gid", "5")], quiet)?;
    attach(pts.as_fd(), "/dev/pts")?;
    let shm = filesystem("tmpfs", &[("mode", "1777")], quiet | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    attach(shm.as_fd(), "/dev/shm")?;
    let mqueue = filesystem("mqueue", &[], quiet | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    attach(mqueue.as_fd(), "/dev/mqueue")?;
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    links.iter().try_for_each(|(name, to)| {
        std::os::unix::fs::symlink(to, format!("/dev/{name}")).doing(format!("link /dev/{name}"))
    })
}

fn mask() -> Result<(), Fault> {
    for path in MASKED_FILES.iter().filter(|p| Path::new(p).exists()) {
        attach(tree("/dev/null")?.as_fd(), path)?;
    }
    for path in MASKED_DIRS.iter().filter(|p| Path::new(p).exists()) {
        let empty = filesystem("tmpfs", &[("size", "0"), ("mode", "555")], MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        attach(empty.as_fd(), path)?;
    }
    for path in READ_ONLY.iter().filter(|p| Path::new(p).exists()) {
        let same = tree(path)?;
        sys::mount_attributes(same.as_fd(), Attributes::ReadOnly).doing(format!("make {path} read-only"))?;
        attach(same.as_fd(), path)?;
    }
    Ok(())
}

/// Turns the prepared root into the workload's.
fn build_root(assembly: &Assembly, trees: Vec<(OwnedFd, String)>) -> Result<(), Fault> {
    let (layers, others): (Vec<_>, Vec<_>) = trees.into_iter().partition(|(_, at)| at.starts_with("/.layers/"));
    match assembly.root {
        Root::Fresh => {}
        Root::Overlay { layers: count } => overlay_root(&layers, count)?,
    }
    for (dir, mode) in &assembly.dirs {
        make_dir(dir, *mode)?;
    }
    for (tree, at) in &others {
        make_mountpoint(tree, at)?;
        attach(tree.as_fd(), at)?;
    }
    for (at, to) in &assembly.links {
        match std::os::unix::fs::symlink(to, at) {
            // An image that brings its own keeps it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.doing(format!("link {at}"))?,
        }
    }
    for (path, text) in &assembly.files {
        // Whatever the image has there may be a link to somewhere else.
        fs::remove_file(path).ok();
        fs::write(path, text).doing(format!("write {path}"))?;
    }
    match &assembly.seed {
        Some((path, seed)) => write_secret(path, seed),
        None => Ok(()),
    }
}

fn write_secret(path: &str, bytes: &[u8]) -> Result<(), Fault> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).doing(format!("make {}", parent.display()))?;
    }
    let mut file = fs::File::create(path).doing(format!("make {path}"))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).doing(format!("close {path} to others"))?;
    file.write_all(bytes).doing(format!("write {path}"))
}

fn copy_program(from: OwnedFd, at: &str) -> Result<(), Fault> {
    if let Some(parent) = Path::new(at).parent() {
        fs::create_dir_all(parent).doing(format!("make {}", parent.display()))?;
    }
    let mut to = fs::File::create(at).doing(format!("make {at}"))?;
    io::copy(&mut fs::File::from(from), &mut to).doing(format!("write {at}"))?;
    to.set_permissions(fs::Permissions::from_mode(0o755)).doing(format!("make {at} executable"))
}

/// Mounts the layers under a writable one that lives in the present root, a tmpfs of the sandbox whose pages are
/// charged to it, and moves there.
fn overlay_root(layers: &[(OwnedFd, String)], count: usize) -> Result<(), Fault> {
    for dir in ["/.layers", "/.upper", "/.work", "/.root"] {
        fs::create_dir(dir).doing(format!("make {dir}"))?;
    }
    for (layer, at) in layers {
        fs::create_dir(at).doing(format!("make {at}"))?;
        attach(layer.as_fd(), at)?;
    }
    // Overlayfs wants the topmost first.
    let lower: Vec<String> = (0..count).rev().map(|n| format!("/.layers/{n}")).collect();
    let options = format!("lowerdir={},upperdir=/.upper,workdir=/.work,userxattr", lower.join(":"));
    let options = CString::new(options).map_err(io::Error::from).doing("name the layers")?;
    mount("overlay", "/.root", "overlay", MountFlags::NODEV, options.as_c_str()).doing("mount the layers")?;
    let kept = ["proc", "sys", "dev"].map(|name| (name, open_path(&format!("/{name}"))));
    rustix::process::chdir("/.root").doing("enter the new root")?;
    rustix::process::pivot_root(".", ".").doing("change the root")?;
    for (name, mounted) in kept {
        match fs::create_dir(format!("/{name}")) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.doing(format!("make /{name}"))?,
        }
        attach(mounted?.as_fd(), &format!("/{name}"))?;
    }
    unmount(".", UnmountFlags::DETACH).doing("let go of the old root")?;
    rustix::process::chdir("/").doing("enter the root")
}

/// The last steps: streams, user, directory, fewer rights, exec. `kept` stays open.
fn run(
    command: &Command,
    streams: [BorrowedFd<'_>; 3],
    terminal: bool,
    kept: Option<BorrowedFd<'_>>,
    filter: &Filter,
) -> Result<std::convert::Infallible, Fault> {
    let user = resolve(&command.user, &read_table("/etc/passwd"), &read_table("/etc/group"))
        .map_err(io::Error::other)
        .doing(format!("become user {:?}", command.user))?;
    for (number, stream) in (0..).zip(streams) {
        if terminal {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(user.uid)), None)
                .doing("give the terminal away")?;
        }
        sys::become_stream(stream, number).doing("set a standard stream")?;
    }
    if terminal {
        sys::control_terminal().doing("take the terminal")?;
    }
    let env = environment(&command.env, &user.home);
    let argv = command.argv.iter().map(|a| c_string(a)).collect::<Result<Vec<_>, _>>()?;
    sys::new_session_keyring();
    sys::close_from(3, true).doing("close descriptors")?;
    if let Some(kept) = kept {
        sys::become_stream(kept, kept.as_raw_fd()).doing("hand on the service's program")?;
    }
    sys::reset_signals();
    drop_rights(&user, filter).doing("drop rights")?;
    // Becoming another user clears it, so it comes afterwards.
    die_with_shim()?;
    rustix::process::chdir(command.cwd.as_str()).doing(format!("enter {}", command.cwd))?;
    let program = find_program(&command.argv[0], &env);
    let env = env.iter().map(|(k, v)| c_string(&format!("{k}={v}"))).collect::<Result<Vec<_>, _>>()?;
    Err(sys::execute(&c_string(&program)?, &argv, &env)).doing(format!("execute {program}"))
}

/// A file of the workload's, which may put anything in its place: a pipe that never ends, a device that ends never. What
/// is no ordinary file, or not text, reads as empty.
fn read_table(path: &str) -> String {
    let open = || -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        let mut text = String::new();
        if kind == rustix::fs::FileType::RegularFile {
            fs::File::from(file).take(TABLE_BYTES_MAX).read_to_string(&mut text)?;
        }
        Ok(text)
    };
    open().unwrap_or_default()
}

fn die_with_shim() -> Result<(), Fault> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).doing("tie the sandbox to its shim")
}

fn environment(given: &[(String, String)], home: &str) -> Vec<(String, String)> {
    let mut env = given.to_vec();
    let defaults = [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", home)];
    for (key, value) in defaults {
        if !env.iter().any(|(k, _)| k == key) {
            env.push((key.into(), value.into()));
        }
    }
    env
}

/// A name without a slash is looked up in PATH, as a shell would.
fn find_program(name: &str, env: &[(String, String)]) -> String {
    if name.contains('/') {
        return name.to_owned();
    }
    let path = env.iter().rev().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
    let executable = |p: &String| fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    path.split(':').map(|dir| format!("{dir}/{name}")).find(executable).unwrap_or_else(|| name.to_owned())
}

fn open_terminal() -> Result<(OwnedFd, OwnedFd), Fault> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).doing("open a terminal")?;
    unlockpt(&master).doing("unlock a terminal")?;
    let slave = ioctl_tiocgptpeer(&master, flags).doing("open a terminal's other end")?;
    Ok((master, slave))
}

fn open_null() -> Result<OwnedFd, Fault> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing("open /dev/null")
}

fn open_path(path: &str) -> Result<OwnedFd, Fault> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(format!("open {path}"))
}

fn filesystem(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Fault> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(format!("open a {kind}"))?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value).doing(format!("set {key} of a {kind}"))?;
    }
    fsconfig_create(context.as_fd()).doing(format!("create a {kind}"))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(format!("mount a {kind}"))
}

fn tree(path: &str) -> Result<OwnedFd, Fault> {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .doing(format!("take {path}"))
}

fn attach(mounted: BorrowedFd<'_>, at: &str) -> Result<(), Fault> {
    move_mount(mounted, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(format!("attach {at}"))
}

fn make_dir(dir: &str, mode: u32) -> Result<(), Fault> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e).doing(format!("make {dir}")),
        // Said again, for the umask took some of it away.
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode)).doing(format!("make {dir}")),
    }
}

/// A directory for a directory, a file for a file.
fn make_mountpoint(tree: &OwnedFd, at: &str) -> Result<(), Fault> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree).doing(format!("look at {at}"))?.st_mode);
    let path = Path::new(at);
    if kind == rustix::fs::FileType::Directory {
        return fs::create_dir_all(path).doing(format!("make {at}"));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).doing(format!("make {}", parent.display()))?;
    }
    fs::remove_file(path).ok();
    fs::write(path, "").doing(format!("make {at}"))
}

fn c_string(text: &str) -> Result<CString, Fault> {
    CString::new(std::ffi::OsStr::new(text).as_bytes()).map_err(io::Error::from).doing("pass a text with a zero byte")
}
