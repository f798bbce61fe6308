//! Unpacks one layer: a tar, maybe compressed, from a stranger. Every name is walked component by component from the
//! layer's own directory, and a link is never followed; whatever cannot be written faithfully is refused, except device
//! nodes and extended attributes, which a sandbox could not use anyway and which are left out.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use aws_lc_rs::digest::{Context, SHA256};
use flate2::bufread::MultiGzDecoder;
use model::limits::{IMAGE_BYTES_MAX, IMAGE_ENTRIES_MAX, SANDBOX_UIDS};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use tar::EntryType;

use crate::builtin::hex;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Directories within directories. Whoever unpacks, gives away or removes a tree holds one open file for each.
const DEPTH_MAX: usize = 128;
/// Names by which a layer says what it takes away from those below it. Source: OCI image layer specification.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The same said to overlayfs (mounted with `userxattr`).
const OPAQUE_ATTRIBUTE: &str = "user.overlay.opaque";

/// What an image may still use up.
pub(super) struct Budget {
    bytes: u64,
    entries: u64,
}

impl Budget {
    pub(super) fn new() -> Budget {
        Budget { bytes: IMAGE_BYTES_MAX, entries: IMAGE_ENTRIES_MAX }
    }

    fn spend_bytes(&mut self, n: u64) -> Result<(), LayerError> {
        self.bytes = self.bytes.checked_sub(n).ok_or(LayerError::TooLarge)?;
        Ok(())
    }

    fn spend_entry(&mut self) -> Result<(), LayerError> {
        self.entries = self.entries.checked_sub(1).ok_or(LayerError::TooMany)?;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    #[error("larger than {IMAGE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("more than {IMAGE_ENTRIES_MAX} entries")]
    TooMany,
    #[error("compressed with zstd, which is not supported")]
    Zstd,
    #[error("its content has the digest {found}")]
    Digest { found: String },
    #[error("the name {name:?} leads out of the image or through a link")]
    Name { name: String },
    #[error("a name of more than {DEPTH_MAX} directories")]
    Depth,
    #[error("{name:?} belongs to id {id}, above the {SANDBOX_UIDS} of a sandbox")]
    Owner { name: String, id: u64 },
    #[error("{name:?} is of the kind {kind:?}, which is not supported")]
    Kind { name: String, kind: EntryType },
    #[error("cannot write {name:?}: {source}")]
    Write { name: String, source: io::Error },
    #[error("cannot read: {0}")]
    Read(io::Error),
}

/// Unpacks `blob` to the new directory `place`, and checks that the uncompressed archive has the digest `diff_id`.
pub(super) fn unpack(blob: impl Read, diff_id: &str, place: &Path, budget: &mut Budget) -> Result<(), LayerError> {
    let mut blob = BufReader::with_capacity(64 << 10, blob);
    let head = blob.fill_buf().map_err(LayerError::Read)?;
    if head.starts_with(&ZSTD) {
        return Err(LayerError::Zstd);
    }
    let plain: Box<dyn Read + '_> = match head.starts_with(&GZIP) {
        true => Box::new(MultiGzDecoder::new(blob)),
        false => Box::new(blob),
    };
    let mut reader = Hashing { inner: plain, context: Context::new(&SHA256), left: budget.bytes.saturating_add(1) };
    fs::create_dir(place).map_err(|source| LayerError::Write { name: "/".into(), source })?;
    let root = File::open(place).map_err(|source| LayerError::Write { name: "/".into(), source })?.into();
    let mut archive = tar::Archive::new(&mut reader);
    for entry in archive.entries().map_err(LayerError::Read)? {
        let mut entry = entry.map_err(LayerError::Read)?;
        budget.spend_entry()?;
        write_entry(&root, &mut entry, budget)?;
    }
    // What follows the end mark counts for the digest, too.
    io::copy(&mut reader, &mut io::sink()).map_err(LayerError::Read)?;
    if reader.left == 0 {
        return Err(LayerError::TooLarge);
    }
    let found = hex(reader.context.finish().as_ref());
    if found == diff_id { Ok(()) } else { Err(LayerError::Digest { found }) }
}

/// Counts and digests what passes. Ends early when the limit is reached.
struct Hashing<'a> {
    inner: Box<dyn Read + 'a>,
    context: Context,
    left: u64,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = (&mut self.inner).take(self.left).read(buffer)?;
        self.left -= u64::try_from(got).unwrap_or(self.left);
        self.context.update(&buffer[..got]);
        Ok(got)
    }
}

/// What an entry is apart from its content.
struct Meta {
    name: String,
    mode: Mode,
    uid: u32,
    gid: u32,
    mtime: i64,
}

fn write_entry(root: &OwnedFd, entry: &mut tar::Entry<'_, impl Read>, budget: &mut Budget) -> Result<(), LayerError> {
    let path = entry.path().map_err(LayerError::Read)?.into_owned();
    let meta = meta(entry, &path)?;
    let failed = |source: io::Error| LayerError::Write { name: meta.name.clone(), source };
    let Some((parent, name)) = walk(root, &path, budget)? else {
        // The root directory itself.
        return finish(root, Path::new("."), &meta, FileType::Directory);
    };
    let bytes = name.as_bytes();
    if bytes == OPAQUE {
        return rustix::fs::fsetxattr(&parent, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
            .map_err(|e| failed(e.into()));
    }
    if let Some(gone) = bytes.strip_prefix(WHITEOUT) {
        // Overlayfs says so with a device 0/0, which anybody may make.
        let gone = OsStr::from_bytes(gone);
        make_way(&parent, Path::new(gone), false).map_err(failed)?;
        return rustix::fs::mknodat(&parent, gone, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|e| failed(e.into()));
    }
    let name = Path::new(name);
    let kind = entry.header().entry_type();
    let file_type = match kind {
        EntryType::Directory => {
            make_way(&parent, name, true).map_err(failed)?;
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => FileType::Directory,
                Err(e) => return Err(failed(e.into())),
            }
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            make_way(&parent, name, false).map_err(failed)?;
            budget.spend_bytes(entry.size())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file =
                rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
            let wanted = entry.size();
            let copied = io::copy(entry, &mut File::from(file)).map_err(failed)?;
            if copied != wanted {
                return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            FileType::RegularFile
        }
        EntryType::Symlink => {
            make_way(&parent, name, false).map_err(failed)?;
            let to = entry.link_name_bytes().unwrap_or_default().into_owned();
            rustix::fs::symlinkat(OsStr::from_bytes(&to), &parent, name).map_err(|e| failed(e.into()))?;
            FileType::Symlink
        }
        EntryType::Link => {
            let to = entry.link_name().map_err(LayerError::Read)?.unwrap_or_default().into_owned();
            let Some((from, from_name)) = walk(root, &to, budget)? else {
                return Err(LayerError::Name { name: meta.name });
            };
            make_way(&parent, name, false).map_err(failed)?;
            // No flag: a link to a link is a link to that link, not to what it names.
            rustix::fs::linkat(from, from_name, &parent, name, AtFlags::empty()).map_err(|e| failed(e.into()))?;
            return Ok(());
        }
        EntryType::Fifo => {
            make_way(&parent, name, false).map_err(failed)?;
            rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR, 0).map_err(|e| failed(e.into()))?;
            FileType::Fifo
        }
        EntryType::Char | EntryType::Block | EntryType::XGlobalHeader => return Ok(()),
        kind => return Err(LayerError::Kind { name: meta.name, kind }),
    };
    finish(&parent, name, &meta, file_type)
}

fn meta(entry: &tar::Entry<'_, impl Read>, path: &Path) -> Result<Meta, LayerError> {
    let (header, name) = (entry.header(), path.to_string_lossy().into_owned());
    let id = |id: u64| match u32::try_from(id) {
        Ok(small) if small < SANDBOX_UIDS => Ok(small),
        Ok(_) | Err(_) => Err(LayerError::Owner { name: name.clone(), id }),
    };
    let (uid, gid) = (id(header.uid().map_err(LayerError::Read)?)?, id(header.gid().map_err(LayerError::Read)?)?);
    let mode = Mode::from_raw_mode(header.mode().map_err(LayerError::Read)? & 0o7777);
    let mtime = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    Ok(Meta { name, mode, uid, gid, mtime })
}

/// Opens the directory that `path` is in, making what is missing; returns it and the last component. None for the root.
/// A directory that is only implied is an entry like any other: it takes its place on the disk.
fn walk<'a>(root: &OwnedFd, path: &'a Path, budget: &mut Budget) -> Result<Option<(OwnedFd, &'a OsStr)>, LayerError> {
    let wrong = || LayerError::Name { name: path.to_string_lossy().into_owned() };
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(wrong()),
        }
    }
    let Some(last) = names.pop() else { return Ok(None) };
    if names.len() > DEPTH_MAX {
        return Err(LayerError::Depth);
    }
    let mut dir = root.try_clone().map_err(|source| LayerError::Write { name: "/".into(), source })?;
    for name in names {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(&dir, name, flags, Mode::empty(), resolve);
        let mut next = open();
        if matches!(next, Err(rustix::io::Errno::NOENT)) {
            budget.spend_entry()?;
            next = rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)).and_then(|()| open());
        }
        dir = match next {
            Ok(next) => next,
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => return Err(wrong()),
            Err(e) => return Err(LayerError::Write { name: path.to_string_lossy().into_owned(), source: e.into() }),
        };
    }
    Ok(Some((dir, last)))
}

/// Removes what an earlier entry of the same name has made; a directory may stay for a directory.
fn make_way(parent: &OwnedFd, name: &Path, for_directory: bool) -> io::Result<()> {
    let found = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    match (found, for_directory) {
        (FileType::Directory, true) => Ok(()),
        (FileType::Directory, false) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        (_, _) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?),
    }
}

/// Owner, mode, time; in that order, for a new owner takes set-uid bits away.
fn finish(dir: &OwnedFd, name: &Path, meta: &Meta, kind: FileType) -> Result<(), LayerError> {
    let done = || -> rustix::io::Result<()> {
        let (uid, gid) = (rustix::fs::Uid::from_raw(meta.uid), rustix::fs::Gid::from_raw(meta.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(dir, name, meta.mode, AtFlags::empty())?;
        }
        let time = Timespec { tv_sec: meta.mtime, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(dir.as_fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW)
    };
    done().map_err(|e| LayerError::Write { name: meta.name.clone(), source: e.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_a_name_implies_count_as_entries() {
        let dir = std::env::temp_dir().join(format!("tombolo-layer-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let root = File::open(&dir).unwrap().into();
        let mut budget = Budget { bytes: 0, entries: 5 };
        assert!(walk(&root, Path::new("a/b/c/file"), &mut budget).unwrap().is_some());
        assert!(walk(&root, Path::new("a/b/d/file"), &mut budget).unwrap().is_some());
        assert_eq!(budget.entries, 1, "four directories were made");
        let refused = walk(&root, Path::new("x/y/file"), &mut budget);
        fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(refused, Err(LayerError::TooMany)));
    }
}
