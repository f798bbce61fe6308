//! A connection to one of our own processes that is made again whenever it breaks.

use std::{io, path::PathBuf, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, sync::mpsc};

/// Between two attempts to connect: short, since the other side is restarted at once when it dies.
const RETRY_FIRST: Duration = Duration::from_millis(2);
const RETRY_MOST: Duration = Duration::from_millis(200);
/// Events not yet handled; the sender's socket fills up behind them.
const EVENTS_MAX: usize = 1_024;

/// What a link tells its owner.
#[derive(Debug)]
pub(super) enum Event<In> {
    /// A new connection: whatever was sent before may be lost.
    Up,
    Message(In),
    Down,
}

/// The owner's end. Messages sent while the link is down are dropped: the owner sends everything again after `Up`.
pub(super) struct Link<Out, In> {
    pub events: mpsc::Receiver<Event<In>>,
    outgoing: mpsc::UnboundedSender<Out>,
    up: bool,
}

impl<Out, In> Link<Out, In>
where
    Out: Serialize + Send + Sync + 'static,
    In: DeserializeOwned + Send + 'static,
{
    pub fn open(path: PathBuf) -> Link<Out, In> {
        let (event_tx, events) = mpsc::channel(EVENTS_MAX);
        let (outgoing, out_rx) = mpsc::unbounded_channel();
        tokio::spawn(keep(path, event_tx, out_rx));
        Link { events, outgoing, up: false }
    }

    /// Bookkeeping that goes with every event taken from [`Link::events`].
    pub fn note(&mut self, event: &Event<In>) {
        match event {
            Event::Up => self.up = true,
            Event::Down => self.up = false,
            Event::Message(_) => {}
        }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// The queue is bounded by what the plans hold: each item is in it once per change and nothing is sent while down.
    pub fn send(&self, message: Out) {
        if self.up {
            let _ = self.outgoing.send(message);
        }
    }

    /// Something that sends a message later. After a connection that is a new one by then, the other side may get what it
    /// no longer asks for.
    pub fn later(&self, message: Out) -> impl FnOnce() + Send + 'static {
        let outgoing = self.outgoing.clone();
        move || drop(outgoing.send(message))
    }
}

async fn keep<Out, In>(path: PathBuf, events: mpsc::Sender<Event<In>>, mut outgoing: mpsc::UnboundedReceiver<Out>)
where
    Out: Serialize,
    In: DeserializeOwned,
{
    let mut pause = RETRY_FIRST;
    loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                pause = RETRY_FIRST;
                while outgoing.try_recv().is_ok() {}
                if events.send(Event::Up).await.is_err() {
                    return;
                }
                if let Err(error) = exchange(stream, &events, &mut outgoing).await
                    && !ipc::is_end(&error)
                {
                    eprintln!("control: {}: {error}", path.display());
                }
                if events.send(Event::Down).await.is_err() {
                    return;
                }
            }
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MOST);
            }
        }
        if events.is_closed() {
            return;
        }
    }
}

async fn exchange<Out, In>(
    stream: UnixStream,
    events: &mpsc::Sender<Event<In>>,
    outgoing: &mut mpsc::UnboundedReceiver<Out>,
) -> io::Result<()>
where
    Out: Serialize,
    In: DeserializeOwned,
{
    let (mut reader, mut writer) = stream.into_split();
    let receive = async {
        while let Some(message) = ipc::read_async(&mut reader).await? {
            if events.send(Event::Message(message)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let send = async {
        while let Some(message) = outgoing.recv().await {
            ipc::write_async(&mut writer, &message).await?;
        }
        Ok(())
    };
    tokio::select! {
        done = receive => done,
        done = send => done,
    }
}
