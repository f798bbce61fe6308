//! What needs `unsafe`: the steps between fork and exec of a user's process, and waiting for a descriptor of our own.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::Command,
};

use rustix::{
    fs::{Gid, Mode, Uid},
    process::setsid,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use tokio::io::unix::AsyncFd;

use crate::accounts::Account;

/// Makes what `command` starts a session of its own that belongs to the account and to nobody else, with its standard
/// input as the controlling terminal if it has one. Root of the VM keeps what a VM's root may.
pub(crate) fn become_user(command: &mut Command, account: &Account, terminal: bool) {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let steps = move || -> io::Result<()> {
        setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on numbers that were prepared before; nothing is
    // allocated and no lock is taken.
    unsafe {
        command.pre_exec(steps);
    }
}

/// A descriptor that can be waited for.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the result, so it is neither closed nor another's while it is waited for.
    unsafe { Ok(AsyncFd::register(fd)?) }
}
