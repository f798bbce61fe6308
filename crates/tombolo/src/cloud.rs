//! Where a cloud lives on this machine: its name, its directories, its sockets.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The cloud's short name; part of every namespace, cgroup and directory it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudName(String);

impl CloudName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CloudName {
    type Err = String;

    /// One to eight characters of `[a-z0-9]`: interface and cgroup names have little room.
    fn from_str(text: &str) -> Result<CloudName, String> {
        let fits = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if fits { Ok(CloudName(text.to_owned())) } else { Err("one to eight lower-case letters or digits".to_owned()) }
    }
}

/// The directories of one cloud.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// Sockets, namespace pins and shims: gone with the machine's uptime.
    pub run: PathBuf,
    /// Store, logs, layers and keys: kept.
    pub state: PathBuf,
}

impl Dirs {
    pub fn of(name: &CloudName) -> Dirs {
        Dirs {
            run: Path::new("/run/tombolo").join(name.as_str()),
            state: Path::new("/var/lib/tombolo").join(name.as_str()),
        }
    }

    /// Makes both, the run directory traversable (its sockets say who may connect), the state directory private.
    pub fn create(&self) -> io::Result<()> {
        for (dir, mode) in [(&self.run, 0o711), (&self.state, 0o711)] {
            fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
        }
        for dir in [self.run.join("ns"), self.run.join("shim")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(())
    }

    /// Control's part of the state: the store and its keys, the logs, the door's private CA.
    pub fn control(&self) -> PathBuf {
        self.state.join("control")
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    /// Held locked by the supervisor for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.run.join("up.lock")
    }

    /// Stands there while the cloud is ephemeral, so that whoever takes it down after a killed supervisor knows.
    pub fn ephemeral(&self) -> PathBuf {
        self.run.join("ephemeral")
    }

    /// Control's store, there once the cloud has kept anything.
    pub fn store(&self) -> PathBuf {
        self.control().join("store.redb")
    }

    /// The operator's access token; readable by root alone.
    pub fn token(&self) -> PathBuf {
        self.control().join("admin-token")
    }

    pub fn ca(&self) -> PathBuf {
        self.control().join("ca.pem")
    }
}
