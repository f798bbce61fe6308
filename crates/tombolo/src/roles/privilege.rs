//! Giving up privileges, before any thread is started and any stranger's byte is read.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    process::{Resource, Signal},
    thread::LinkNameSpaceType,
};

/// `/proc/self/ns/net` and pins of it live on this filesystem. Source: linux/magic.h, NSFS_MAGIC.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Lets a user connect to a socket that root has made.
pub fn give(socket: &Path, user: Option<u32>) -> io::Result<()> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    own(socket, user)
}

/// Makes a file or directory the user's own; a link itself, not what it names.
pub fn own(path: &Path, user: Option<u32>) -> io::Result<()> {
    std::os::unix::fs::lchown(path, user, user)
}

/// Makes a directory and everything in it the user's own, unless it is: a cloud's state that came from elsewhere, where it
/// had other users.
pub fn own_all(dir: &Path, user: Option<u32>) -> io::Result<()> {
    if user.is_none_or(|user| fs::symlink_metadata(dir).is_ok_and(|found| found.uid() == user)) {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => own_all(&entry.path(), user)?,
            false => own(&entry.path(), user)?,
        }
    }
    // Last, so that one that was interrupted begins again.
    own(dir, user)
}

/// Ends this process with the supervisor, which may have ended already: a role that outlived it would meet the roles of
/// the next one.
pub fn end_with(supervisor: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    match rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()) {
        Some(parent) if parent == supervisor => Ok(()),
        _ => Err(io::Error::other("whoever started it has ended")),
    }
}

/// Becomes the user for good: no other id, no group, no capability, no way to gain one.
pub fn drop_to(user: Option<u32>, supervisor: i32) -> io::Result<()> {
    let Some(id) = user else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    // Changing the uid has cut the tie.
    end_with(supervisor)
}

/// Moves this thread, and what it starts, into a pinned network namespace.
pub fn enter_network(pin: &Path) -> io::Result<()> {
    let namespace = rustix::fs::open(pin, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Whether a pin holds a namespace: an empty file stands there before it is mounted over.
pub fn is_namespace(pin: &Path) -> bool {
    rustix::fs::statfs(pin).is_ok_and(|s| s.f_type == NSFS_MAGIC)
}

/// Raises the limit of open files as far as it goes.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(Resource::Nofile, limit)?;
    Ok(())
}
