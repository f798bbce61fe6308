//! The users that a cloud's processes run as: numbers without names, a block of them for each cloud of the machine, so that
//! no process of one cloud can touch what belongs to another's.
//!
//! A cloud takes its block when it first comes up and writes the number into its state directory; the blocks that the
//! other state directories name are taken. Start with [`Users::claim`].

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use model::limits::{SANDBOX_UID_FIRST, SANDBOX_UIDS};
use rustix::fs::FlockOperation;

use crate::{cloud::Dirs, roles::Role};

/// Uids of one cloud: those of its roles, then as many as a sandbox has for what unpacks images.
const BLOCK: u32 = 2 * SANDBOX_UIDS;
/// All blocks: numbers that no distribution hands out, right below those of sandboxes.
const BLOCKS: Range<u32> = 3_816..SANDBOX_UID_FIRST / BLOCK;

/// A cloud's block of uids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    block: u32,
}

impl Users {
    /// The cloud's block; one that is free when it has none yet, or when another cloud has the same (a state directory
    /// that was copied).
    ///
    /// # Errors
    /// When the state directories cannot be read or written, or every block is taken.
    pub fn claim(dirs: &Dirs) -> io::Result<Users> {
        let all = dirs.state.parent().ok_or(io::ErrorKind::NotFound)?;
        // Two clouds that come up at once choose one after the other.
        let turn = File::open(all)?;
        rustix::fs::flock(&turn, FlockOperation::LockExclusive)?;
        let taken = taken_by_others(all, &dirs.state)?;
        if let Some(mine) = read(&dirs.state).filter(|mine| !taken.contains(&mine.block)) {
            return Ok(mine);
        }
        let block = BLOCKS.into_iter().find(|block| !taken.contains(block));
        let block = block.ok_or_else(|| io::Error::other("every block of uids belongs to a cloud of this machine"))?;
        write(&dirs.state, block)?;
        Ok(Users { block })
    }

    /// The block that the cloud has claimed.
    ///
    /// # Errors
    /// When it has claimed none.
    pub fn of(dirs: &Dirs) -> io::Result<Users> {
        let path = path(&dirs.state);
        read(&dirs.state).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{} names no block of uids", path.display()))
        })
    }

    /// The uid and gid that an unprivileged role takes, one for each, so that none of them can touch another's files or
    /// memory. None for one that stays root.
    pub fn role(self, role: Role) -> Option<u32> {
        let first = self.block * BLOCK;
        match role {
            Role::Host => None,
            Role::Control => Some(first + 1),
            Role::Proxy => Some(first + 2),
            Role::Guest => Some(first + 3),
        }
    }

    /// First of the uids of the process that unpacks images.
    pub fn images(self) -> u32 {
        self.block * BLOCK + SANDBOX_UIDS
    }
}

fn path(state: &Path) -> std::path::PathBuf {
    state.join("users")
}

fn read(state: &Path) -> Option<Users> {
    let block = fs::read_to_string(path(state)).ok()?.trim().parse().ok()?;
    BLOCKS.contains(&block).then_some(Users { block })
}

fn taken_by_others(all: &Path, mine: &Path) -> io::Result<BTreeSet<u32>> {
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(all)? {
        let state = entry?.path();
        if state != mine {
            taken.extend(read(&state).map(|users| users.block));
        }
    }
    Ok(taken)
}

/// Whole or not at all.
fn write(state: &Path, block: u32) -> io::Result<()> {
    let new = path(state).with_extension("new");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    writeln!(file, "{block}")?;
    file.sync_all()?;
    fs::rename(new, path(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(all: &Path, name: &str) -> Dirs {
        let state = all.join(name);
        fs::create_dir_all(&state).unwrap();
        Dirs { run: all.join("run"), state }
    }

    #[test]
    fn clouds_of_one_machine_share_no_uid_and_each_keeps_its_own() {
        let all = std::env::temp_dir().join(format!("tombolo-users-{}", std::process::id()));
        let [a, b, copy] = ["a", "b", "copy"].map(|name| dirs(&all, name));
        let [of_a, of_b] = [&a, &b].map(|dirs| Users::claim(dirs).unwrap());
        fs::copy(path(&a.state), path(&copy.state)).unwrap();
        let of_copy = Users::claim(&copy).unwrap();
        assert_eq!([Users::claim(&a).unwrap(), Users::of(&b).unwrap()], [of_a, of_b], "what was claimed stays");
        fs::remove_dir_all(&b.state).unwrap();
        assert_eq!(Users::claim(&dirs(&all, "c")).unwrap(), of_b, "what a cloud that is gone had is free");
        fs::remove_dir_all(&all).unwrap();

        let uids = |users: Users| {
            let roles = Role::ALL.into_iter().filter_map(move |role| users.role(role));
            roles.chain(users.images()..users.images() + SANDBOX_UIDS)
        };
        let all: Vec<u32> = [of_a, of_b, of_copy].into_iter().flat_map(uids).collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len(), "no uid twice");
        assert!(all.iter().all(|uid| (500_000_000..SANDBOX_UID_FIRST).contains(uid)), "and none of a sandbox");
    }
}
