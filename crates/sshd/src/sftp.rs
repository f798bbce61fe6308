//! The SFTP subsystem: a process of its own that has become the user before it reads anything, so what it may do is
//! what the kernel lets that user do. Protocol 3, as OpenSSH's clients speak it.
//!
//! Source: draft-ietf-secsh-filexfer-02; OpenSSH's PROTOCOL file for its extensions and the order of SYMLINK's paths.
//! Start with [`run`], then [`Server::answer`].

pub mod packet;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, Permissions, ReadDir},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use model::limits::{SFTP_HANDLES_MAX, SFTP_PACKET_BYTES_MAX};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use self::packet::{Attributes, Packet, Reply, Request, Unread};

/// Most bytes of one answer to READ: a packet with its head must stay under what clients take.
const READ_MAX: usize = SFTP_PACKET_BYTES_MAX - 1_024;
/// Names in one answer to READDIR.
const NAMES_MAX: usize = 100;

const OK: u32 = 0;
const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
const FAILURE: u32 = 4;
const BAD_MESSAGE: u32 = 5;
const UNSUPPORTED: u32 = 8;

/// Serves one client over standard input and output until it ends.
///
/// # Errors
/// The client is gone, or said something that is no packet.
pub fn run() -> io::Result<()> {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let mut server = Server::default();
    loop {
        let mut len = [0; 4];
        match stdin.read_exact(&mut len) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            outcome => outcome?,
        }
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if len > SFTP_PACKET_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a packet of {len} bytes")));
        }
        let mut packet = vec![0; len];
        stdin.read_exact(&mut packet)?;
        stdout.write_all(&server.answer(&packet))?;
        stdout.flush()?;
    }
}

#[derive(Default)]
struct Server {
    handles: BTreeMap<u32, Handle>,
    next: u32,
}

enum Handle {
    File(File),
    Directory(ReadDir),
}

/// Why a request was not done.
enum Trouble {
    Io(io::Error),
    Code(u32, &'static str),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Io(error)
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(error: rustix::io::Errno) -> Trouble {
        Trouble::Io(error.into())
    }
}

impl From<Unread> for Trouble {
    fn from(why: Unread) -> Trouble {
        match why {
            Unread::Short => Trouble::Code(BAD_MESSAGE, "cut short"),
            Unread::NoSuchRequest => Trouble::Code(UNSUPPORTED, "no such request"),
            Unread::NoSuchExtension => Trouble::Code(UNSUPPORTED, "no such extension"),
        }
    }
}

impl Server {
    /// The whole answer to one packet, its length included.
    fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (id, request) = match Packet::read(bytes) {
            Packet::Init => return Reply::version(),
            Packet::Request(id, request) => (id, request),
        };
        match request.map_err(Trouble::from).and_then(|request| self.obey(id, request)) {
            Ok(reply) => reply,
            Err(Trouble::Code(code, why)) => Reply::status(id, code, why),
            Err(Trouble::Io(error)) => {
                let code = match error.kind() {
                    io::ErrorKind::NotFound => NO_SUCH_FILE,
                    io::ErrorKind::PermissionDenied => PERMISSION_DENIED,
                    io::ErrorKind::UnexpectedEof => EOF,
                    _ => FAILURE,
                };
                Reply::status(id, code, &error.to_string())
            }
        }
    }

    fn obey(&mut self, id: u32, request: Request<'_>) -> Result<Vec<u8>, Trouble> {
        match request {
            Request::Open { path, flags, attributes } => {
                let file = open(&path, flags, &attributes)?;
                self.keep(id, Handle::File(file))
            }
            Request::Close(handle) => {
                self.handles.remove(&handle).map(|_| done(id)).ok_or(Trouble::Code(FAILURE, "no such handle"))
            }
            Request::Read { handle, at, len } => {
                let mut data = vec![0; usize::try_from(len).unwrap_or(READ_MAX).min(READ_MAX)];
                match self.file(handle)?.read_at(&mut data, at)? {
                    0 if len > 0 => Ok(Reply::status(id, EOF, "the end")),
                    n => Ok(Reply::data(id, &data[..n])),
                }
            }
            Request::Write { handle, at, data } => nothing(id, self.file(handle)?.write_all_at(data, at)),
            Request::Stat { path, follow: false } => Ok(Reply::attributes(id, &fs::symlink_metadata(path)?)),
            Request::Stat { path, follow: true } => Ok(Reply::attributes(id, &fs::metadata(path)?)),
            Request::StatOpen(handle) => Ok(Reply::attributes(id, &self.file(handle)?.metadata()?)),
            Request::Set { path, attributes } => {
                if let Some(size) = attributes.size {
                    OpenOptions::new().write(true).open(&path)?.set_len(size)?;
                }
                set(&path, &attributes)?;
                Ok(done(id))
            }
            Request::SetOpen { handle, attributes } => {
                let file = self.file(handle)?;
                if let Some(size) = attributes.size {
                    file.set_len(size)?;
                }
                // Its own name for the open file, wherever that is by now.
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
                set(Path::new(&path), &attributes)?;
                Ok(done(id))
            }
            Request::OpenDirectory(path) => {
                let directory = fs::read_dir(path)?;
                self.keep(id, Handle::Directory(directory))
            }
            Request::ReadDirectory(handle) => {
                let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle) else {
                    return Err(Trouble::Code(FAILURE, "no directory"));
                };
                let entries: Vec<_> = directory.take(NAMES_MAX).collect::<Result<_, _>>()?;
                if entries.is_empty() {
                    return Ok(Reply::status(id, EOF, "the end"));
                }
                // One that went meanwhile is left out.
                let named = entries.iter().filter_map(|e| Some((e.file_name(), e.path().symlink_metadata().ok()?)));
                Ok(Reply::names(id, named.map(|(name, about)| (name.into_vec(), Some(about)))))
            }
            Request::Remove(path) => nothing(id, fs::remove_file(path)),
            Request::MakeDirectory { path, attributes } => {
                nothing(id, fs::DirBuilder::new().mode(attributes.mode.unwrap_or(0o777) & 0o7777).create(path))
            }
            Request::RemoveDirectory(path) => nothing(id, fs::remove_dir(path)),
            Request::RealPath(path) => Ok(one_name(id, real(&path)?)),
            Request::Rename { to, replace: false, .. } if to.symlink_metadata().is_ok() => {
                Err(Trouble::Code(FAILURE, "it exists"))
            }
            Request::Rename { from, to, .. } => nothing(id, fs::rename(from, to)),
            Request::ReadLink(path) => Ok(one_name(id, fs::read_link(path)?)),
            Request::SymbolicLink { target, link } => nothing(id, std::os::unix::fs::symlink(target, link)),
            Request::HardLink { from, to } => nothing(id, fs::hard_link(from, to)),
            Request::Sync(handle) => nothing(id, self.file(handle)?.sync_all()),
            Request::ExpandPath(path) => Ok(one_name(id, real(&expand(&path))?)),
        }
    }

    fn keep(&mut self, id: u32, handle: Handle) -> Result<Vec<u8>, Trouble> {
        if self.handles.len() >= SFTP_HANDLES_MAX {
            return Err(Trouble::Code(FAILURE, "too many open files"));
        }
        self.next = self.next.wrapping_add(1);
        self.handles.insert(self.next, handle);
        Ok(Reply::handle(id, self.next))
    }

    fn file(&self, handle: u32) -> Result<&File, Trouble> {
        match self.handles.get(&handle) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Directory(_)) | None => Err(Trouble::Code(FAILURE, "no file")),
        }
    }
}

fn done(id: u32) -> Vec<u8> {
    Reply::status(id, OK, "")
}

fn one_name(id: u32, path: PathBuf) -> Vec<u8> {
    Reply::names(id, [(path.into_os_string().into_vec(), None)].into_iter())
}

fn nothing(id: u32, outcome: io::Result<()>) -> Result<Vec<u8>, Trouble> {
    Ok(outcome.map(|()| done(id))?)
}

/// Source: the draft, 6.3: READ 1, WRITE 2, APPEND 4, CREAT 8, TRUNC 16, EXCL 32.
fn open(path: &Path, flags: u32, attributes: &Attributes) -> io::Result<File> {
    let has = |flag: u32| flags & flag != 0;
    let mut options = OpenOptions::new();
    options.read(has(1)).write(has(2) || has(4)).append(has(4));
    if has(8) {
        options.create(!has(32)).create_new(has(32)).mode(attributes.mode.unwrap_or(0o666) & 0o7777);
    }
    options.truncate(has(16) && has(2)).open(path)
}

fn set(path: &Path, attributes: &Attributes) -> Result<(), Trouble> {
    if let Some((uid, gid)) = attributes.owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    if let Some(mode) = attributes.mode {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((read, written)) = attributes.times {
        let time = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
        let times = Timestamps { last_access: time(read), last_modification: time(written) };
        utimensat(CWD, path, &times, AtFlags::empty())?;
    }
    Ok(())
}

/// The absolute path; of what does not exist yet, as far as it does.
fn real(path: &Path) -> io::Result<PathBuf> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(path), _, _) => Ok(path),
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(real(parent)?.join(name))
        }
        (Err(error), _, _) => Err(error),
    }
}

/// `~` and `~/…` are the user's home.
fn expand(path: &Path) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
    match path.as_os_str().as_bytes() {
        b"~" => home(),
        [b'~', b'/', rest @ ..] => home().join(std::ffi::OsStr::from_bytes(rest)),
        _ => path.to_owned(),
    }
}

/// As `ls -l` shows it, without names of owners and without the time: clients show what they get.
fn long_name(name: &[u8], about: &fs::Metadata) -> Vec<u8> {
    let kind = match about.mode() & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        _ => '-',
    };
    let bits: String =
        (0..9).rev().map(|bit| if about.mode() >> bit & 1 == 1 { ['x', 'w', 'r'][bit % 3] } else { '-' }).collect();
    let head = format!("{kind}{bits} {:3} {:8} {:8} {:12} ", about.nlink(), about.uid(), about.gid(), about.len());
    [head.as_bytes(), name].concat()
}

#[cfg(test)]
mod tests;
