//! Connections from outside every VPC, handed over by the door: one line that says who it is, then HTTP.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use model::{
    limits::{HEAD_READ_MAX, LB_KEEPALIVE_DEFAULT, OUTSIDE_LINE_BYTES_MAX},
    planned::edge::Outside,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::{
    Proxy, accept_again,
    client::{self, Arrived, Origin},
    header::Hop,
};

/// Accepts the door's connections.
pub async fn listen(proxy: Rc<Proxy>, door: UnixListener) {
    proxy.told.wait().await;
    loop {
        match door.accept().await {
            Ok((stream, _)) if proxy.clients.is_full() => {
                let _ = stream.try_write(crate::FULL.as_bytes());
            }
            Ok((stream, _)) => {
                tokio::task::spawn_local(greet(proxy.clone(), stream));
            }
            Err(_) => accept_again().await,
        }
    }
}

async fn greet(proxy: Rc<Proxy>, mut stream: UnixStream) {
    let Ok(Ok((who, first))) = timeout(HEAD_READ_MAX, introduction(&mut stream)).await else { return };
    let arrived = Arrived {
        hop: Hop::new(who.peer, None, &who.scheme),
        origin: Origin::Outside { peer: who.peer, scheme: who.scheme },
        keepalive_s: LB_KEEPALIVE_DEFAULT.as_secs(),
    };
    let enrolled = client::enroll(&proxy, arrived);
    client::serve(proxy, Replayed { first, stream }, enrolled).await;
}

/// Reads the first line, and what came with it of the client's bytes.
async fn introduction(stream: &mut UnixStream) -> io::Result<(Outside, Bytes)> {
    let mut bytes = BytesMut::with_capacity(OUTSIDE_LINE_BYTES_MAX);
    loop {
        if let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let line = bytes.split_to(end);
            bytes.advance(1);
            let who = serde_json::from_slice(&line)?;
            return Ok((who, bytes.freeze()));
        }
        if bytes.len() >= OUTSIDE_LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the first line is over the limit"));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A stream whose first bytes were read already.
struct Replayed {
    first: Bytes,
    stream: UnixStream,
}

impl AsyncRead for Replayed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.first.len().min(buf.remaining());
        let first = self.first.split_to(count);
        buf.put_slice(&first);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
