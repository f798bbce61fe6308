//! A stream whose reader may not stall: a write that nobody takes for [`API_WRITE_STALL_MAX`] ends the connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use model::limits::API_WRITE_STALL_MAX;

pub(crate) struct NoStall<T> {
    pub(crate) inner: T,
    /// Runs while a write waits.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<T> NoStall<T> {
    pub(crate) fn new(inner: T) -> NoStall<T> {
        NoStall { inner, patience: None }
    }

    /// Passes an outcome on, and keeps the clock of one that waits.
    fn watch<R>(&mut self, outcome: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        match outcome {
            Poll::Ready(done) => {
                self.patience = None;
                Poll::Ready(done)
            }
            Poll::Pending => {
                let clock = self.patience.get_or_insert_with(|| Box::pin(sleep(API_WRITE_STALL_MAX)));
                match clock.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        clock.as_mut().reset(Instant::now() + API_WRITE_STALL_MAX);
                        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for NoStall<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NoStall<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(outcome, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(outcome, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
