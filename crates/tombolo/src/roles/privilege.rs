//! Giving up privileges, before any thread is started and any stranger's byte is read.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    process::Resource,
    thread::LinkNameSpaceType,
};

use super::Role;

/// `/proc/self/ns/net` and pins of it live on this filesystem. Source: linux/magic.h, NSFS_MAGIC.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Lets a role connect to a socket that root has made.
pub fn give(socket: &Path, role: Role) -> io::Result<()> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    own(socket, role)
}

/// Makes a file or directory the role's own.
pub fn own(path: &Path, role: Role) -> io::Result<()> {
    let Some(id) = role.uid() else { return Ok(()) };
    rustix::fs::chown(path, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
    Ok(())
}

/// Becomes the role's user for good: no other id, no group, no capability, no way to gain one.
pub fn drop_to(role: Role) -> io::Result<()> {
    let Some(id) = role.uid() else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    // Changing the uid cleared it; without it the supervisor's end would go unnoticed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    Ok(())
}

/// Moves this thread, and what it starts, into a pinned network namespace.
pub fn enter_network(pin: &Path) -> io::Result<()> {
    let namespace = rustix::fs::open(pin, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Whether a pin holds a namespace: an empty file stands there before it is mounted over.
pub fn is_namespace(pin: &Path) -> bool {
    rustix::fs::statfs(pin).is_ok_and(|s| i64::from(s.f_type) == NSFS_MAGIC)
}

/// Raises the limit of open files as far as it goes.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(Resource::Nofile, limit)?;
    Ok(())
}
