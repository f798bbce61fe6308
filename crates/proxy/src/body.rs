//! Bodies on their way: streamed in both directions, counted, cut off at the limits, never collected.
//!
//! [`Upload`] carries a client's body to whoever answers, [`Reply`] an answer to the client. A reply holds everything that
//! ends with it: the place at the instance or backend, the deadline, the record in the log.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::Notify;

use crate::{
    backend::Seat,
    client::Turn,
    exchange::Exchange,
    refusal::Refusal,
    revision::Slot,
    upstream::{Pool, Sender},
};

/// What became of a client's body, seen from the other side of the exchange.
#[derive(Debug, Default)]
pub struct Meter {
    pub bytes: Cell<u64>,
    pub too_large: Cell<bool>,
    /// The client broke off.
    pub broken: Cell<bool>,
    /// Nobody reads it any more: it is at its end, or the other side has had enough.
    pub done: Cell<bool>,
    over: Notify,
}

impl Meter {
    /// Returns when the body is done.
    pub async fn over(&self) {
        self.over.notified().await;
    }
}

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("the request body is over the limit")]
    TooLarge,
    #[error("the client broke off its request body")]
    Client(#[source] hyper::Error),
}

/// A request body with its limit, in bytes.
pub struct Upload {
    inner: Incoming,
    most: u64,
    meter: Option<Rc<Meter>>,
}

impl Upload {
    /// The body, and its meter if it has any bytes to count.
    pub fn new(inner: Incoming, most: u64) -> (Upload, Option<Rc<Meter>>) {
        let meter = if inner.is_end_stream() { None } else { Some(Rc::new(Meter::default())) };
        (Upload { inner, most, meter: meter.clone() }, meter)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.done.set(true);
            meter.over.notify_one();
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let Some(meter) = &self.meter else { return polled.map_err(UploadError::Client) };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let more = frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
                meter.bytes.set(meter.bytes.get().saturating_add(more));
                if meter.bytes.get() > self.most {
                    meter.too_large.set(true);
                    return Poll::Ready(Some(Err(UploadError::TooLarge)));
                }
            }
            Poll::Ready(Some(Err(_))) => meter.broken.set(true),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled.map_err(UploadError::Client)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    #[error("the request reached its timeout")]
    Timeout,
    #[error("whoever answered broke off")]
    Instance(#[source] hyper::Error),
}

/// An answer's body. Its fields are dropped in their order: the place at the instance is free before the record is
/// written and before the client's next turn.
pub struct Reply {
    content: Content,
    exchange: Option<Exchange>,
    _turn: Turn,
}

enum Content {
    Text(Option<Bytes>),
    Stream(Stream),
}

struct Stream {
    inner: Incoming,
    /// Kept for the next request when the answer came to its end.
    sender: Option<Sender>,
    from: Option<std::net::Ipv6Addr>,
    deadline: Deadline,
    place: Place,
}

/// When an answer is cut off.
pub type Deadline = Pin<Box<dyn Future<Output = ()>>>;

/// What a request occupies until its answer has ended.
pub enum Place {
    Instance(Slot),
    Backend(Seat),
}

impl Place {
    fn pool(&self) -> &Pool {
        match self {
            Place::Instance(slot) => &slot.instance.pool,
            Place::Backend(seat) => seat.pool(),
        }
    }
}

impl Reply {
    pub fn text(text: Bytes, exchange: Option<Exchange>, turn: Turn) -> Reply {
        Reply { content: Content::Text((!text.is_empty()).then_some(text)), exchange, _turn: turn }
    }

    pub fn stream(source: Source, exchange: Exchange, turn: Turn) -> Reply {
        let Source { inner, sender, from, deadline, place } = source;
        let stream = Stream { inner, sender: Some(sender), from, deadline, place };
        Reply { content: Content::Stream(stream), exchange: Some(exchange), _turn: turn }
    }
}

/// The answer of an instance or a backend with what it holds.
pub struct Source {
    pub inner: Incoming,
    pub sender: Sender,
    pub from: Option<std::net::Ipv6Addr>,
    pub deadline: Deadline,
    pub place: Place,
}

impl Stream {
    fn keep_connection(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.place.pool().put(self.from, sender, Instant::now());
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // hyper asks for no further frame when it knows the length.
        if self.inner.is_end_stream() {
            self.keep_connection();
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = &mut *self;
        let stream = match &mut this.content {
            Content::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Content::Stream(stream) => stream,
        };
        let exchange = this.exchange.as_mut();
        match Pin::new(&mut stream.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(exchange), Some(data)) = (exchange, frame.data_ref()) {
                    exchange.sends(data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                stream.keep_connection();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                if let (Some(exchange), Place::Instance(slot)) = (exchange, &stream.place) {
                    exchange.broken_off(slot);
                }
                Poll::Ready(Some(Err(ReplyError::Instance(error))))
            }
            Poll::Pending => match stream.deadline.as_mut().poll(cx) {
                Poll::Ready(()) => {
                    if let Some(exchange) = exchange {
                        exchange.refused(Refusal::Timeout);
                    }
                    Poll::Ready(Some(Err(ReplyError::Timeout)))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Text(text) => text.is_none(),
            Content::Stream(stream) => stream.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| u64::try_from(text.len()).unwrap_or(u64::MAX)))
            }
            Content::Stream(stream) => stream.inner.size_hint(),
        }
    }
}
