//! Sockets that one process asks another for, which makes them where the first may not go: a connection for each question,
//! one frame in each direction.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Receiver, send};

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The socket is beside it.
    Made,
    Refused(String),
}

/// Asks at a Unix socket and waits for the answer, no longer than `patience` for each step. Blocks.
///
/// # Errors
/// When nobody answers in time, and with the other side's words when it refuses.
pub fn ask_socket(path: &Path, question: &impl Serialize, patience: Duration) -> io::Result<OwnedFd> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    send(&stream, question, &[])?;
    match Receiver::new(stream).recv::<Answer>()? {
        Some((Answer::Made, mut sockets)) => sockets.pop().ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Some((Answer::Refused(why), _)) => Err(io::Error::other(why)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Answers one question. Blocks until it is in the socket.
pub fn answer_socket(stream: &UnixStream, outcome: Result<OwnedFd, String>) -> io::Result<()> {
    match outcome {
        Ok(socket) => send(stream, &Answer::Made, &[socket.as_fd()]),
        Err(why) => send(stream, &Answer::Refused(why), &[]),
    }
}
