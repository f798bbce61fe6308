//! Container images from files: an OCI layout (a directory or a tar of one) or an archive that `docker save` wrote.
//!
//! Archives come from strangers. What parses them is a process of its own: root of a user namespace whose ids mean
//! nothing on the host, without network, confined to one empty staging directory, with few system calls. It is given
//! open files, no paths. When it is done and gone, the caller gives the files their owners and moves whole layers to
//! their places; a crash leaves only a staging directory, which the next call removes.
//!
//! Start with [`load`]; `layer` is the part that writes files, `manifest` and `source` find out which.

mod layer;
mod manifest;
mod source;

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use model::limits::SANDBOX_UIDS;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags},
};
use serde::{Deserialize, Serialize};

use self::{layer::Budget, manifest::Parsed, source::Source};
use crate::{
    privilege::{Filter, keep_file_rights},
    rootfs::layer_name,
    sys,
};

/// Address space of the unpacker, in bytes. It needs a few megabytes; a header that claims a gigabyte ends it.
const UNPACKER_MEMORY_MAX: u64 = 1 << 30;
/// Files of an OCI layout.
const BLOBS_MAX: usize = 10_000;
/// Name of staging directories under `layers/`.
const STAGING: &str = ".staging";

/// What an image says about how to run it, and of what it consists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Of the manifest: `sha256:…`.
    pub digest: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; `/` when the image says none.
    pub workdir: String,
    /// As in [`model::planned::host::Process::Run`]; empty means root.
    pub user: String,
    /// Digests of the unpacked layers (of the uncompressed archives), lowest first.
    pub layers: Vec<String>,
}

/// Why an image was not loaded. Nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write to {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot run the unpacker")]
    Unpacker { source: io::Error },
    /// The archive is broken, hostile, too large, or of a kind that is not supported.
    #[error("the image is refused: {why}")]
    Refused { why: String },
    #[error("the unpacker died")]
    Died,
}

/// How and where images are loaded.
#[derive(Clone, Debug)]
pub struct Loader {
    /// Layers go to `layers/<hex>/` under it.
    pub state_dir: PathBuf,
    /// Program and first arguments that end in [`image_main`].
    pub image_argv: Vec<OsString>,
    /// First of 65536 uids and gids that no sandbox has: the unpacker's.
    pub uid_base: u32,
}

/// To the unpacker.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// A file of the image, by its name in the layout (empty: the archive itself). Beside it: the file.
    File { name: String },
    /// All files have been given. Beside it: the staging directory.
    Unpack { uid_base: u32 },
}

/// From the unpacker.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Unpacked(ImageConfig),
    Refused { why: String },
}

/// Reads the image at `path`, verifies every digest, and unpacks its layers. Needs root. Takes as long as it takes to
/// read and write the image; two calls for one state directory take turns.
pub fn load(loader: &Loader, path: &Path) -> Result<ImageConfig, ImageError> {
    let layers = loader.state_dir.join("layers");
    let write = |source| ImageError::Write { path: layers.clone(), source };
    fs::create_dir_all(&layers).map_err(write)?;
    fs::set_permissions(&layers, fs::Permissions::from_mode(0o700)).map_err(write)?;
    let lock = fs::File::open(&layers).map_err(write)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| write(e.into()))?;
    let staging = layers.join(STAGING);
    // What a crash has left.
    remove_tree(&staging).map_err(write)?;
    fs::create_dir(&staging).map_err(write)?;
    std::os::unix::fs::chown(&staging, Some(loader.uid_base), Some(loader.uid_base)).map_err(write)?;
    let image = unpack(loader, path, &staging).and_then(|image| {
        let places = image.layers.iter().filter_map(|digest| layer_name(digest));
        for name in places.filter(|name| !layers.join(name).exists()) {
            adopt_layer(&staging.join(name), &layers.join(name), loader.uid_base).map_err(write)?;
        }
        Ok(image)
    });
    remove_tree(&staging).map_err(write)?;
    image
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs the unpacker on `path` and returns what it says.
fn unpack(loader: &Loader, path: &Path, staging: &Path) -> Result<ImageConfig, ImageError> {
    let unpacker = |source| ImageError::Unpacker { source };
    let (ours, theirs) = UnixStream::pair().map_err(unpacker)?;
    let program = loader.image_argv.first().cloned().unwrap_or_default();
    let mut child = Command::new(program)
        .arg0("tombolo-image")
        .args(loader.image_argv.get(1..).unwrap_or_default())
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(std::process::Stdio::null())
        .spawn()
        .map_err(unpacker)?;
    let order = |link: &UnixStream, order: &Order, file: fs::File| {
        ipc::send(link, order, &[file.as_fd()]).map_err(|source| match source.kind() {
            // Nobody reads any more.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ImageError::Died,
            _ => unpacker(source),
        })
    };
    let outcome = (|| {
        for (name, file) in files_of(path)? {
            order(&ours, &Order::File { name }, file)?;
        }
        let staging = fs::File::open(staging).map_err(unpacker)?;
        order(&ours, &Order::Unpack { uid_base: loader.uid_base }, staging)?;
        match ipc::Receiver::new(ours).recv::<Outcome>() {
            Ok(Some((Outcome::Unpacked(image), _))) => Ok(image),
            Ok(Some((Outcome::Refused { why }, _))) => Err(ImageError::Refused { why }),
            Ok(None) | Err(_) => Err(ImageError::Died),
        }
    })();
    // Its connection is closed or it has said its last word; only when it is gone is the staging directory ours.
    child.wait().map_err(unpacker)?;
    outcome
}

/// The files of an image, opened for somebody who could not open them.
fn files_of(path: &Path) -> Result<Vec<(String, fs::File)>, ImageError> {
    let read = |source| ImageError::Read { path: path.into(), source };
    if !path.is_dir() {
        return Ok(vec![(String::new(), plain_file(path)?)]);
    }
    let mut names = vec!["index.json".to_owned()];
    for entry in fs::read_dir(path.join("blobs/sha256")).map_err(read)?.take(BLOBS_MAX) {
        let name = entry.map_err(read)?.file_name();
        names.push(format!("blobs/sha256/{}", name.to_string_lossy()));
    }
    names.into_iter().map(|name| plain_file(&path.join(&name)).map(|file| (name, file))).collect()
}

/// Opens a file and nothing else: a pipe would wait for its other end, a device may do anything.
fn plain_file(path: &Path) -> Result<fs::File, ImageError> {
    let read = |source| ImageError::Read { path: path.into(), source };
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    match file {
        Ok(file) if file.metadata().map_err(read)?.is_file() => Ok(file),
        // A socket cannot even be opened.
        Err(e) if e.raw_os_error() != Some(libc::ENXIO) => Err(read(e)),
        Ok(_) | Err(_) => Err(ImageError::Refused { why: format!("{} is not a plain file", path.display()) }),
    }
}

/// Gives the files of an unpacked layer the owners they have in the image, and moves it to its place.
fn adopt_layer(from: &Path, to: &Path, uid_base: u32) -> io::Result<()> {
    // What the unpacker says is a directory may be a link to one of the host's, should a stranger have taken it over.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(from, flags, Mode::empty())?;
    give_away(&dir, uid_base)?;
    shift(dir.as_fd(), c".", uid_base)?;
    rustix::fs::syncfs(&dir)?;
    fs::rename(from, to)
}

/// Shifts the owners of everything below a directory. No link is followed; nobody else can write here any more.
fn give_away(dir: &OwnedFd, uid_base: u32) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if entry.file_type() == FileType::Directory {
            give_away(&rustix::fs::openat(dir, name, flags, Mode::empty())?, uid_base)?;
        }
        shift(dir.as_fd(), name, uid_base)?;
    }
    Ok(())
}

fn shift(dir: std::os::fd::BorrowedFd<'_>, name: &std::ffi::CStr, uid_base: u32) -> io::Result<()> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    // The second name of a file whose first has been seen.
    let (Some(uid), Some(gid)) = (stat.st_uid.checked_sub(uid_base), stat.st_gid.checked_sub(uid_base)) else {
        return Ok(());
    };
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Symlink {
        // Changing the owner took the set-uid bit away.
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    Ok(())
}

/// The whole life of an unpacker. Call it from `main` before any thread is started; standard input must be the socket
/// that [`load`] made. Returns the exit code of the process.
pub fn image_main() -> i32 {
    match receive_orders() {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn receive_orders() -> io::Result<()> {
    let mut link = ipc::Receiver::new(UnixStream::from(sys::take_stdin()));
    let mut files = Vec::new();
    loop {
        match link.recv::<Order>()? {
            None => return Ok(()),
            Some((Order::File { name }, fds)) => files.extend(fds.into_iter().map(|fd| (name.clone(), fd.into()))),
            Some((Order::Unpack { uid_base }, fds)) => {
                let staging = fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
                return confine(link.stream(), files, &staging, uid_base);
            }
        }
    }
}

/// Starts the process that will read the archive, writes its id maps, lets it go and waits for its end.
fn confine(link: &UnixStream, files: Vec<(String, fs::File)>, staging: &OwnedFd, uid_base: u32) -> io::Result<()> {
    let filter = Filter::compile()?;
    let (go, wait) = UnixStream::pair()?;
    let mut go = Some(go);
    let pid = sys::fork_apart(|| {
        // Its copy, so that the end of this process is heard.
        drop(go.take());
        let outcome = match enter(&wait, staging, &filter).map_err(|e| format!("cannot confine the unpacker: {e}")) {
            Ok(()) => unpack_image(files),
            Err(why) => Err(why),
        };
        let outcome = outcome.map_or_else(|why| Outcome::Refused { why }, Outcome::Unpacked);
        i32::from(ipc::send(link, &outcome, &[]).is_err())
    })?;
    let map = format!("0 {uid_base} {SANDBOX_UIDS}\n");
    fs::write(format!("/proc/{}/uid_map", pid.as_raw_nonzero()), &map)?;
    fs::write(format!("/proc/{}/gid_map", pid.as_raw_nonzero()), &map)?;
    go.as_ref().map_or(Ok(()), |go| ipc::send(go, &(), &[]))?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    Ok(())
}

/// Gives up everything but the staging directory and the files that are open already.
fn enter(wait: &UnixStream, staging: &OwnedFd, filter: &Filter) -> io::Result<()> {
    tie_to(wait)?;
    ipc::Receiver::new(wait.try_clone()?).recv::<()>()?.ok_or(io::ErrorKind::BrokenPipe)?;
    rustix::process::umask(Mode::empty());
    rustix::process::fchdir(staging)?;
    sys::become_user(0, 0, &[])?;
    // The change of user has cut the tie.
    tie_to(wait)?;
    rustix::process::chroot(".")?;
    sys::limit_memory(UNPACKER_MEMORY_MAX)?;
    sys::new_session_keyring();
    keep_file_rights(filter)
}

/// Ends together with the parent, which holds the other end, also when it has ended already.
fn tie_to(parent: &UnixStream) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut end = [PollFd::new(parent, PollFlags::empty())];
    poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    match end[0].revents().contains(PollFlags::HUP) {
        true => Err(io::ErrorKind::BrokenPipe.into()),
        false => Ok(()),
    }
}

/// Reads the image and unpacks its layers to `/<hex>/`, which is the staging directory.
fn unpack_image(files: Vec<(String, fs::File)>) -> Result<ImageConfig, String> {
    let source = Source::open(files).map_err(|e| e.to_string())?;
    let Parsed { config, layers } = manifest::read(&source)?;
    let mut budget = Budget::new();
    for (file, diff_id) in &layers {
        let name = layer_name(diff_id).ok_or_else(|| format!("{diff_id:?} is no digest of a layer"))?;
        let place = PathBuf::from("/").join(name);
        // The same layer twice is the same directory.
        if place.exists() {
            continue;
        }
        let blob = source.open_file(file).map_err(|e| format!("{file}: {e}"))?;
        layer::unpack(blob, diff_id, &place, &mut budget).map_err(|e| format!("layer {diff_id}: {e}"))?;
    }
    Ok(config)
}
