//! Birth: a helper joins the control groups, then clones a child into new namespaces, so that the child never has to be
//! moved and the shim is never inside. The child belongs to the shim; the helper is gone at once.

use std::{
    fs, io,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use model::limits::SANDBOX_UIDS;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use super::{ENTER_MAX, OOM_SCORE};
use crate::{
    cgroup::Group,
    inside,
    privilege::Filter,
    sys,
    wire::{Inward, Outward},
};

/// A living pid 1 and handles on its namespaces.
pub(super) struct Sandbox {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) netns: OwnedFd,
    pub(super) userns: OwnedFd,
    link: ipc::Receiver,
}

impl Sandbox {
    /// Returns when the sandbox is parked.
    pub(super) fn create(uid_base: u32, group: &Group, filter: &Filter) -> io::Result<Sandbox> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ENTER_MAX))?;
        let pid = sibling(group, |report| {
            let child = sys::fork_into_namespaces(|| inside::pid_one(&theirs, filter))?;
            report(child)
        })?;
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let map = format!("0 {uid_base} {SANDBOX_UIDS}\n");
        fs::write(format!("{proc}/uid_map"), &map)?;
        fs::write(format!("{proc}/gid_map"), &map)?;
        // Only the machine's administrator may forbid a process to be picked; being picked first is free.
        fs::write(format!("{proc}/oom_score_adj"), OOM_SCORE)?;
        let mut sandbox = Sandbox {
            pid,
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            netns: fs::File::open(format!("{proc}/ns/net"))?.into(),
            userns: fs::File::open(format!("{proc}/ns/user"))?.into(),
            link: ipc::Receiver::new(ours),
        };
        sandbox.tell(&Inward::Prepare, &[])?;
        match sandbox.hear()? {
            Some((Outward::Prepared, _)) => Ok(sandbox),
            Some((Outward::Fault { why }, _)) => Err(io::Error::other(why)),
            Some((Outward::Terminal, _)) | None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(super) fn tell(&self, message: &Inward, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        ipc::send(self.link.stream(), message, fds)
    }

    pub(super) fn hear(&mut self) -> io::Result<Option<(Outward, Vec<OwnedFd>)>> {
        self.link.recv()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // One that has ended needs no signal.
        pidfd_send_signal(self.pidfd.as_fd(), signal).ok();
    }

    /// Pid 1 and with it everything in its pid namespace.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

/// Runs `make` in a helper that sits in the sandbox's control groups; `make` starts a child of the *shim* and reports it.
pub(super) fn sibling(
    group: &Group,
    make: impl FnOnce(&mut dyn FnMut(Pid) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<Pid> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let helper = sys::fork(|| {
        let mut report = |pid: Pid| theirs.write_all(&pid.as_raw_nonzero().get().to_le_bytes());
        match group.join().and_then(|()| make(&mut report)) {
            Ok(()) => 0,
            Err(e) => {
                // Five bytes and more are a message, four are a pid.
                write!(theirs, "start: {e}").ok();
                1
            }
        }
    })?;
    drop(theirs);
    // The child holds a copy of the helper's end until it executes something: read what was said, not until the end.
    let mut said = vec![0; 512];
    waitpid(Some(helper), WaitOptions::empty())?;
    let len = ours.read(&mut said)?;
    match <[u8; 4]>::try_from(&said[..len]) {
        Ok(bytes) => Pid::from_raw(i32::from_le_bytes(bytes)).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(_) => Err(io::Error::other(String::from_utf8_lossy(&said[..len]).into_owned())),
    }
}
