//! 32 bytes for a VM that are its own and the same at every start. A VM has no disk; without them who knows it by its
//! SSH host key would not know it again.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use aws_lc_rs::{hmac, rand};
use model::id::WorkloadId;

/// The secret of a cloud, in its state directory; readable by root alone.
const SECRET: &str = "vm-seeds.secret";

/// The seed of one VM.
pub(crate) fn of(state_dir: &Path, vm: &WorkloadId) -> io::Result<[u8; 32]> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret(state_dir)?);
    let tag = hmac::sign(&key, vm.0.as_bytes());
    tag.as_ref().try_into().map_err(io::Error::other)
}

/// Made when first asked for. Two who ask at once get the same one.
fn secret(state_dir: &Path) -> io::Result<[u8; 32]> {
    let place = state_dir.join(SECRET);
    if let Ok(bytes) = fs::read(&place) {
        return bytes.try_into().map_err(|_| io::Error::other(format!("{} holds no secret of ours", place.display())));
    }
    let mut fresh = [0; 32];
    rand::fill(&mut fresh).map_err(io::Error::other)?;
    let temporary = state_dir.join(format!(".{SECRET}.{}", std::process::id()));
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&fresh)?;
    file.sync_all()?;
    // The first link wins, so nobody's secret is replaced.
    let linked = fs::hard_link(&temporary, &place);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::read(&place)?.try_into().map_err(|_| io::Error::other("a secret of another length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_gets_the_same_seed_again_and_no_other_vm_or_cloud_gets_it() {
        let dirs = ["a", "b"].map(|n| std::env::temp_dir().join(format!("sandbox-seed-{}-{n}", std::process::id())));
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        let seed = |dir: &Path, id: &str| of(dir, &WorkloadId(id.into())).unwrap();
        let (first, again) = (seed(&dirs[0], "vm-1"), seed(&dirs[0], "vm-1"));
        let others = [seed(&dirs[0], "vm-2"), seed(&dirs[1], "vm-1")];
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dirs[0].join(SECRET)).unwrap().permissions());
        dirs.iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
        assert_eq!((first, mode & 0o777), (again, 0o600));
        assert!(!others.contains(&first) && others[0] != others[1]);
    }
}
