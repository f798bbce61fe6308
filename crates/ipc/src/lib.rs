//! Frames and file descriptors between tombolo's own processes.
//!
//! A frame is a little-endian u32 length and that many bytes of JSON. Descriptors travel beside a frame with
//! SCM_RIGHTS: the sender attaches them to the frame's first byte, the receiver finds them with it. Peers are processes
//! of the same build, so a frame that does not parse is a defect and ends the connection.

mod asked;
mod handed;
mod told;

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use asked::{answer_socket, ask_socket};
pub use handed::{Handed, HandedDoor};
pub use told::Told;

/// Largest frame, in bytes. A VPC of ten thousand endpoints is about three megabytes.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Most descriptors beside one frame.
pub const FDS_MAX: usize = 8;

/// Whether an error says only that the other process has ended; its supervisor has told that already.
pub fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Encodes one frame, length included.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let len = bytes.len() - 4;
    if len > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {len} bytes is over the limit")));
    }
    bytes[..4].copy_from_slice(&u32::try_from(len).expect("checked against the limit").to_le_bytes());
    Ok(bytes)
}

fn frame_len(head: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_le_bytes(head) as usize;
    if len > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes is over the limit")));
    }
    Ok(len)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Sends one frame, with descriptors if any. Blocks until all of it is in the socket.
pub fn send<T: Serialize>(stream: &UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    let mut sent = 0;
    if !fds.is_empty() {
        if fds.len() > FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one frame"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("no room for descriptors"));
        }
        sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        })?;
    }
    (&*stream).write_all(&bytes[sent..])
}

/// The receiving end of a blocking connection that may carry descriptors.
pub struct Receiver {
    stream: UnixStream,
    buffer: VecDeque<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Receiver {
    pub fn new(stream: UnixStream) -> Receiver {
        Receiver { stream, buffer: VecDeque::new(), fds: VecDeque::new() }
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next frame and the descriptors that came with it or before it and were not taken; None at an orderly end.
    pub fn recv<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        while self.buffer.len() < 4 {
            if !self.fill(4 - self.buffer.len())? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let head: Vec<u8> = self.buffer.drain(..4).collect();
        let len = frame_len(head.try_into().expect("four bytes were drained"))?;
        while self.buffer.len() < len {
            if !self.fill(len - self.buffer.len())? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let body: Vec<u8> = self.buffer.drain(..len).collect();
        Ok(Some((decode(&body)?, self.fds.drain(..).collect())))
    }

    /// Reads at most `want` bytes, so that never a byte past the current frame is taken: the descriptors that come with
    /// the next frame would be mistaken for this one's.
    fn fill(&mut self, want: usize) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let want = want.min(chunk.len());
        let got = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                self.stream.as_fd(),
                &mut [IoSliceMut::new(&mut chunk[..want])],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.buffer.extend(&chunk[..got.bytes]);
        Ok(got.bytes > 0)
    }
}

/// Reads one frame from a blocking reader that carries no descriptors.
pub fn read<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match reader.read_exact(&mut head) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut body = vec![0; frame_len(head)?];
    reader.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Reads one frame from an async reader; None at an orderly end. Not cancel-safe: give it a task of its own.
pub async fn read_async<T: DeserializeOwned>(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match reader.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut body = vec![0; frame_len(head)?];
    reader.read_exact(&mut body).await?;
    decode(&body).map(Some)
}

/// Writes one frame to an async writer.
pub async fn write_async<T: Serialize>(writer: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    writer.write_all(&encode(message)?).await
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_frame_they_were_sent_with() {
        let (a, b) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        send(&a, &"plain", &[]).unwrap();
        send(&a, &"with two", &[null.as_fd(), null.as_fd()]).unwrap();
        send(&a, &"plain again", &[]).unwrap();
        drop(a);
        let mut receiver = Receiver::new(b);
        let mut seen = Vec::new();
        while let Some((text, fds)) = receiver.recv::<String>().unwrap() {
            seen.push((text, fds.len()));
        }
        assert_eq!(seen, [("plain".into(), 0), ("with two".into(), 2), ("plain again".into(), 0)]);
    }

    #[test]
    fn a_torn_frame_is_an_error_and_not_an_end() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&encode(&"whole").unwrap()[..6]).unwrap();
        drop(a);
        assert_eq!(Receiver::new(b).recv::<String>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_memory_is_asked_for() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(Receiver::new(b).recv::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
