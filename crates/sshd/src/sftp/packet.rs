//! Packets: what comes in is read with care, what goes out is written.

use std::{
    ffi::OsStr,
    fs::Metadata,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::PathBuf,
};

use super::long_name;

pub(super) const INIT: u8 = 1;
const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const READLINK: u8 = 19;
pub(super) const SYMLINK: u8 = 20;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
pub(super) const EXTENDED: u8 = 200;

/// The version of the protocol, and what we can beyond it.
const PROTOCOL: u32 = 3;
const EXTENSIONS: [(&str, &str); 4] = [
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// What a client asks for. Handles are ours: numbers of four bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    Open {
        path: PathBuf,
        flags: u32,
        attributes: Attributes,
    },
    Close(u32),
    Read {
        handle: u32,
        at: u64,
        len: u32,
    },
    Write {
        handle: u32,
        at: u64,
        data: &'a [u8],
    },
    /// Of a link itself, or of what it leads to.
    Stat {
        path: PathBuf,
        follow: bool,
    },
    StatOpen(u32),
    Set {
        path: PathBuf,
        attributes: Attributes,
    },
    SetOpen {
        handle: u32,
        attributes: Attributes,
    },
    OpenDirectory(PathBuf),
    ReadDirectory(u32),
    Remove(PathBuf),
    MakeDirectory {
        path: PathBuf,
        attributes: Attributes,
    },
    RemoveDirectory(PathBuf),
    RealPath(PathBuf),
    /// The protocol's own renaming replaces nothing.
    Rename {
        from: PathBuf,
        to: PathBuf,
        replace: bool,
    },
    ReadLink(PathBuf),
    /// Source: OpenSSH's PROTOCOL, 4.1: the target comes first, whatever the draft says.
    SymbolicLink {
        target: PathBuf,
        link: PathBuf,
    },
    HardLink {
        from: PathBuf,
        to: PathBuf,
    },
    Sync(u32),
    ExpandPath(PathBuf),
}

/// Why a packet is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It ends before what it should hold.
    Short,
    NoSuchRequest,
    NoSuchExtension,
}

/// A packet, without its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Init,
    /// With the id that its answer carries. One that is too short for an id has 0.
    Request(u32, Result<Request<'a>, Unread>),
}

impl<'a> Packet<'a> {
    pub fn read(bytes: &'a [u8]) -> Packet<'a> {
        let mut rest = Rest(bytes);
        match rest.byte() {
            Ok(INIT) => Packet::Init,
            Ok(kind) => match rest.u32() {
                Ok(id) => Packet::Request(id, rest.request(kind)),
                Err(short) => Packet::Request(0, Err(short)),
            },
            Err(short) => Packet::Request(0, Err(short)),
        }
    }
}

/// What a client wants a file to be like; only what it says is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub size: Option<u64>,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// Last read and last written, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

/// What is left of a packet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn request(&mut self, kind: u8) -> Result<Request<'a>, Unread> {
        Ok(match kind {
            OPEN => Request::Open { path: self.path()?, flags: self.u32()?, attributes: self.attributes()? },
            CLOSE => Request::Close(self.handle()?),
            READ => Request::Read { handle: self.handle()?, at: self.u64()?, len: self.u32()? },
            WRITE => Request::Write { handle: self.handle()?, at: self.u64()?, data: self.bytes()? },
            LSTAT => Request::Stat { path: self.path()?, follow: false },
            STAT => Request::Stat { path: self.path()?, follow: true },
            FSTAT => Request::StatOpen(self.handle()?),
            SETSTAT => Request::Set { path: self.path()?, attributes: self.attributes()? },
            FSETSTAT => Request::SetOpen { handle: self.handle()?, attributes: self.attributes()? },
            OPENDIR => Request::OpenDirectory(self.path()?),
            READDIR => Request::ReadDirectory(self.handle()?),
            REMOVE => Request::Remove(self.path()?),
            MKDIR => Request::MakeDirectory { path: self.path()?, attributes: self.attributes()? },
            RMDIR => Request::RemoveDirectory(self.path()?),
            REALPATH => Request::RealPath(self.path()?),
            RENAME => Request::Rename { from: self.path()?, to: self.path()?, replace: false },
            READLINK => Request::ReadLink(self.path()?),
            SYMLINK => Request::SymbolicLink { target: self.path()?, link: self.path()? },
            EXTENDED => return self.extension(),
            _ => return Err(Unread::NoSuchRequest),
        })
    }

    fn extension(&mut self) -> Result<Request<'a>, Unread> {
        Ok(match self.bytes()? {
            b"posix-rename@openssh.com" => Request::Rename { from: self.path()?, to: self.path()?, replace: true },
            b"hardlink@openssh.com" => Request::HardLink { from: self.path()?, to: self.path()? },
            b"fsync@openssh.com" => Request::Sync(self.handle()?),
            b"expand-path@openssh.com" => Request::ExpandPath(self.path()?),
            _ => return Err(Unread::NoSuchExtension),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unread> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Unread::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, Unread> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Unread> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Unread> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Unread> {
        let len = usize::try_from(self.u32()?).map_err(|_| Unread::Short)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(Unread::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn path(&mut self) -> Result<PathBuf, Unread> {
        Ok(OsStr::from_bytes(self.bytes()?).into())
    }

    fn handle(&mut self) -> Result<u32, Unread> {
        self.bytes()?.try_into().map(u32::from_be_bytes).map_err(|_| Unread::Short)
    }

    fn attributes(&mut self) -> Result<Attributes, Unread> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & 1 != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & 2 != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & 4 != 0 {
            attributes.mode = Some(self.u32()?);
        }
        if flags & 8 != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        Ok(attributes)
    }
}

/// Writes answers; each is a whole packet with its length.
pub(super) struct Reply(Vec<u8>);

impl Reply {
    fn new(kind: u8, id: u32) -> Reply {
        Reply(vec![0, 0, 0, 0, kind]).u32(id)
    }

    fn u32(mut self, n: u32) -> Reply {
        self.0.extend(n.to_be_bytes());
        self
    }

    fn bytes(self, bytes: &[u8]) -> Reply {
        let mut reply = self.u32(u32::try_from(bytes.len()).expect("bounded by a packet"));
        reply.0.extend_from_slice(bytes);
        reply
    }

    fn about(self, about: &Metadata) -> Reply {
        let mut reply = self.u32(1 | 2 | 4 | 8);
        reply.0.extend(about.len().to_be_bytes());
        let seconds = |time: i64| u32::try_from(time).unwrap_or(0);
        reply
            .u32(about.uid())
            .u32(about.gid())
            .u32(about.mode())
            .u32(seconds(about.atime()))
            .u32(seconds(about.mtime()))
    }

    fn whole(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - 4).expect("bounded by a packet");
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }

    pub(super) fn version() -> Vec<u8> {
        let reply = Reply::new(VERSION, PROTOCOL);
        let named =
            |reply: Reply, (name, version): &(&str, &str)| reply.bytes(name.as_bytes()).bytes(version.as_bytes());
        EXTENSIONS.iter().fold(reply, named).whole()
    }

    pub(super) fn status(id: u32, code: u32, why: &str) -> Vec<u8> {
        Reply::new(STATUS, id).u32(code).bytes(why.as_bytes()).bytes(b"en").whole()
    }

    pub(super) fn handle(id: u32, handle: u32) -> Vec<u8> {
        Reply::new(HANDLE, id).bytes(&handle.to_be_bytes()).whole()
    }

    pub(super) fn data(id: u32, data: &[u8]) -> Vec<u8> {
        Reply::new(DATA, id).bytes(data).whole()
    }

    pub(super) fn attributes(id: u32, about: &Metadata) -> Vec<u8> {
        Reply::new(ATTRS, id).about(about).whole()
    }

    /// Names with what is known of them.
    pub(super) fn names(id: u32, names: impl Iterator<Item = (Vec<u8>, Option<Metadata>)>) -> Vec<u8> {
        let names: Vec<_> = names.collect();
        let count = u32::try_from(names.len()).expect("bounded by a packet");
        let named = |reply: Reply, (name, about): &(Vec<u8>, Option<Metadata>)| match about {
            Some(about) => reply.bytes(name).bytes(&long_name(name, about)).about(about),
            None => reply.bytes(name).bytes(name).u32(0),
        };
        names.iter().fold(Reply::new(NAME, id).u32(count), named).whole()
    }
}
