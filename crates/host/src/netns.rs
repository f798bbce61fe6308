//! Network namespaces: make, pin, open, delete, and run something inside one.
//!
//! A namespace without a process lives as long as something refers to it. Ours are pinned by a bind mount under
//! `<run>/ns/`, so that routers survive the host process; a restarted one opens the pins again.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::sys;

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot prepare {}", path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error("cannot create namespace {name}")]
    Create { name: String, source: io::Error },
    #[error("cannot open namespace {name}")]
    Open { name: String, source: io::Error },
    #[error("cannot delete namespace {name}")]
    Delete { name: String, source: io::Error },
    #[error("cannot run in namespace {name}")]
    Enter { name: String, source: io::Error },
    #[error("cannot set {key} in namespace {name}")]
    Sysctl { name: String, key: String, source: io::Error },
}

/// A namespace we hold open.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    /// One that somebody else made and keeps (a sandbox's).
    pub fn borrowed(name: String, fd: OwnedFd) -> Netns {
        Netns { name, fd }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace. What it opens stays there: a socket belongs to the
    /// namespace it was made in.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let enter = |source: io::Error| NetnsError::Enter { name: self.name.clone(), source };
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, io::Error>(work())
            });
            match inside.join() {
                Ok(done) => done.map_err(enter),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Writes sysctls below `/proc/sys/net`, in order.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<(), NetnsError> {
        self.run(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key);
                fs::write(&path, value).map_err(|source| NetnsError::Sysctl {
                    name: self.name.clone(),
                    key: (*key).to_owned(),
                    source,
                })?;
            }
            Ok(())
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directory of pins of one cloud.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// `<run>/ns`, made when missing.
    pub fn under(run_dir: &Path) -> Result<Pins, NetnsError> {
        let dir = run_dir.join("ns");
        fs::create_dir_all(&dir).map_err(|source| NetnsError::Prepare { path: dir.clone(), source })?;
        Ok(Pins { dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Names of all pins, whether they still hold a namespace or not.
    pub fn names(&self) -> Result<Vec<String>, NetnsError> {
        let prepare = |source| NetnsError::Prepare { path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(prepare)? {
            names.push(entry.map_err(prepare)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Opens the namespace of this name; None when there is no living one (an empty file is a pin that never was).
    pub fn open(&self, name: &str) -> Result<Option<Netns>, NetnsError> {
        let fault = |source: io::Error| NetnsError::Open { name: name.to_owned(), source };
        let fd = match rustix::fs::open(self.path(name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(fault(e.into())),
        };
        let filesystem = rustix::fs::fstatfs(&fd).map_err(|e| fault(e.into()))?;
        let pinned = filesystem.f_type == NSFS_MAGIC;
        Ok(pinned.then(|| Netns { name: name.to_owned(), fd }))
    }

    /// Makes a new namespace and pins it.
    pub fn create(&self, name: &str) -> Result<Netns, NetnsError> {
        let fault = |source: io::Error| NetnsError::Create { name: name.to_owned(), source };
        let path = self.path(name);
        fs::write(&path, "").map_err(fault)?;
        thread::scope(|scope| {
            let born = scope.spawn(|| {
                sys::unshare_network()?;
                mount_bind("/proc/thread-self/ns/net", &path)?;
                Ok(())
            });
            born.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes namespaces panicked")))
        })
        .map_err(fault)?;
        self.open(name)?.ok_or_else(|| fault(io::ErrorKind::NotFound.into()))
    }

    /// Lets go of the pin; the kernel takes the namespace down when nothing else holds it, in its own time.
    pub fn delete(&self, name: &str) -> Result<(), NetnsError> {
        let fault = |source: io::Error| NetnsError::Delete { name: name.to_owned(), source };
        let path = self.path(name);
        match unmount(&path, UnmountFlags::DETACH) {
            // EINVAL: nothing is mounted there, an unfinished pin.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(e) => return Err(fault(e.into())),
        }
        fs::remove_file(&path).map_err(fault)
    }
}

/// Source: include/uapi/linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
