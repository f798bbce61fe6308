//! Tunnels of the Identity-Aware Proxy: a client's WebSocket on one side, a VM's port on the other.
//!
//! [`session`] is what a tunnel is, [`frame`] and [`websocket`] how it looks on the wire; all three are pure. Here is
//! what moves the bytes: one task for each tunnel, which holds the connection to the VM, and to which the client's
//! connections come and go. Who may open one is not decided here. Start with [`Relay::open`].

pub mod early;
pub mod frame;
pub mod session;
pub mod websocket;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, ready},
    time::Duration,
};

use control::random;
use model::{
    iam::Principal,
    limits::{IAP_CUT_KEEP, IAP_FLUSH_MAX, IAP_IDLE_MAX, IAP_MESSAGE_BYTES_MAX, IAP_SESSIONS_MAX},
    name::Link,
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::{Instant, Sleep, sleep_until, timeout},
};

use self::{
    frame::Close,
    session::{Say, Session},
    websocket::{Message, Reader},
};
use crate::door::Stream;

/// Bytes that one read takes at most.
const READ_BYTES: usize = 64 << 10;
/// Bytes written to a client ahead of what it takes.
const OUTGOING_BYTES: usize = 64 << 10;
/// Random hexadecimal digits of a session id: 128 bits, since who knows one and may use the VM may take the tunnel over.
const SID_DIGITS: usize = 32;

/// The tunnels of a cloud.
#[derive(Default)]
pub struct Relay {
    tunnels: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    /// Who opened it, and to where: nobody else may come back to it.
    owner: Owner,
    clients: mpsc::Sender<Coming>,
    /// Since when its client is cut off.
    cut: Option<Instant>,
}

/// Whose a tunnel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub principal: Principal,
    pub instance: Link,
}

/// A client's connection.
pub struct Client {
    stream: Box<dyn Stream>,
    /// When the credential ends that it came with, if it does.
    good_until: Option<Instant>,
}

/// A client's connection for a tunnel that exists.
struct Coming {
    client: Client,
    /// How much it has received.
    ack: u64,
    /// Dropped with the connection.
    held: oneshot::Sender<()>,
}

impl Client {
    pub fn new(stream: Box<dyn Stream>, good_until: Option<Instant>) -> Client {
        Client { stream, good_until }
    }

    /// Says why there is no tunnel, and waits a moment for the client to have heard it.
    pub async fn refuse(self, why: Close) {
        let (held, _) = oneshot::channel();
        let mut line = Line::new(self, held);
        line.close(why);
        line.end().await;
    }
}

impl Relay {
    /// Serves a new tunnel until this connection of the client's ends; the tunnel may live on.
    pub async fn open(self: Arc<Self>, owner: Owner, vm: TcpStream, client: Client) {
        let _ = vm.set_nodelay(true);
        let (clients, coming) = mpsc::channel(1);
        let sid = random::hex(SID_DIGITS);
        if !self.enter(&sid, Entry { owner, clients, cut: None }) {
            return client.refuse(Close::UNKNOWN).await;
        }
        let (held, gone) = oneshot::channel();
        let tunnel = Tunnel::new(self, Session::open(sid), vm, Line::new(client, held));
        tokio::spawn(tunnel.run(coming));
        // An error says that the other half is gone, and that is what is waited for.
        let _ = gone.await;
    }

    /// The owner of a tunnel.
    pub fn owner(&self, sid: &str) -> Option<Owner> {
        self.tunnels().get(sid).map(|entry| entry.owner.clone())
    }

    /// Brings a client back to its tunnel, and serves this connection to its end.
    pub async fn reopen(self: Arc<Self>, sid: &str, ack: u64, client: Client) {
        let Some(clients) = self.tunnels().get(sid).map(|entry| entry.clients.clone()) else {
            return client.refuse(Close::SID_UNKNOWN).await;
        };
        let (held, gone) = oneshot::channel();
        match clients.send(Coming { client, ack, held }).await {
            Ok(()) => drop(gone.await),
            Err(mpsc::error::SendError(coming)) => coming.client.refuse(Close::SID_UNKNOWN).await,
        }
    }

    /// Ends the tunnels to VMs that are no more: such a VM says no farewell, and what is sent to it is never refused.
    pub fn leave(&self, is_there: impl Fn(&Link) -> bool) {
        self.tunnels().retain(|_, entry| is_there(&entry.owner.instance));
    }

    /// Makes room by ending the tunnel that has been cut off for longest. False when all are in use.
    fn enter(&self, sid: &str, entry: Entry) -> bool {
        let mut tunnels = self.tunnels();
        if tunnels.len() >= IAP_SESSIONS_MAX {
            let cut = tunnels.iter().filter_map(|(sid, entry)| Some((entry.cut?, sid.clone())));
            let Some((_, oldest)) = cut.min() else { return false };
            // Its task ends when it finds that nobody can come back.
            tunnels.remove(&oldest);
        }
        tunnels.insert(sid.to_owned(), entry);
        true
    }

    fn note_cut(&self, sid: &str, since: Option<Instant>) {
        if let Some(entry) = self.tunnels().get_mut(sid) {
            entry.cut = since;
        }
    }

    fn tunnels(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One tunnel with its connections.
struct Tunnel {
    relay: Arc<Relay>,
    session: Session,
    vm_reads: OwnedReadHalf,
    /// None once nothing more goes to the VM.
    vm_writes: Option<OwnedWriteHalf>,
    line: Option<Line>,
    /// When it ends unless something happens.
    deadline: Pin<Box<Sleep>>,
}

/// Reads what there is, at most `room` bytes, through a buffer that all tunnels of a thread share: most of them are
/// silent most of the time.
async fn read(reads: &mut (impl AsyncRead + Unpin), room: usize) -> io::Result<Vec<u8>> {
    thread_local! {
        static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
    }
    poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(&mut buffer[..room.min(READ_BYTES)]);
            ready!(Pin::new(&mut *reads).poll_read(context, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().to_vec()))
        })
    })
    .await
}

/// A client's connection.
struct Line {
    reads: ReadHalf<Box<dyn Stream>>,
    writes: WriteHalf<Box<dyn Stream>>,
    reader: Reader,
    out: Vec<u8>,
    /// `out` ends in a close frame.
    closing: bool,
    flushed: bool,
    /// When the client's credential ends, if it does.
    expiry: Option<Pin<Box<Sleep>>>,
    _held: oneshot::Sender<()>,
}

impl Line {
    fn new(client: Client, held: oneshot::Sender<()>) -> Line {
        let Client { stream, good_until } = client;
        let (reads, writes) = tokio::io::split(stream);
        let (reader, out) = (Reader::default(), Vec::new());
        let expiry = good_until.map(|end| Box::pin(sleep_until(end)));
        Line { reads, writes, reader, out, closing: false, flushed: true, expiry, _held: held }
    }

    /// Takes what the session has to say, as much as is worth having ready.
    fn fill(&mut self, session: &mut Session) {
        while !self.closing && self.out.len() < OUTGOING_BYTES {
            match session.say() {
                Some(Say::Message(message)) => websocket::write_binary(&message, &mut self.out),
                Some(Say::Close(close)) => self.close(close),
                None => return,
            }
        }
    }

    fn close(&mut self, close: Close) {
        websocket::write_close(close, &mut self.out);
        self.closing = true;
    }

    /// Says what is left to say, and waits a moment for the client to have heard it.
    async fn end(mut self) {
        let said = async {
            self.writes.write_all(&self.out).await?;
            self.writes.shutdown().await?;
            // Until it closes: a connection that is closed over unread bytes is reset, and our last word with it.
            while !read(&mut self.reads, READ_BYTES).await?.is_empty() {}
            Ok::<_, io::Error>(())
        };
        let _ = timeout(IAP_FLUSH_MAX, said).await;
    }

    /// Writes what is there, at least some of it.
    async fn write(writes: &mut WriteHalf<Box<dyn Stream>>, out: &[u8]) -> io::Result<usize> {
        if out.is_empty() { writes.flush().await.map(|()| 0) } else { writes.write(out).await }
    }
}

/// What happened to a tunnel.
enum Event {
    /// The client sent these bytes; none is the end of its connection.
    Heard(io::Result<Vec<u8>>),
    Told(io::Result<usize>),
    VmSaid(io::Result<Vec<u8>>),
    VmTook(io::Result<usize>),
    Came(Option<Coming>),
    /// The client's credential has ended.
    Expired,
    Late,
}

impl Tunnel {
    fn new(relay: Arc<Relay>, session: Session, vm: TcpStream, line: Line) -> Tunnel {
        let (vm_reads, vm_writes) = vm.into_split();
        let deadline = Box::pin(sleep_until(Instant::now() + IAP_IDLE_MAX));
        Tunnel { relay, session, vm_reads, vm_writes: Some(vm_writes), line: Some(line), deadline }
    }

    async fn run(mut self, mut coming: mpsc::Receiver<Coming>) {
        loop {
            let goes_on = match self.wait(&mut coming).await {
                Event::Heard(Ok(bytes)) if !bytes.is_empty() => self.hear(&bytes),
                Event::Heard(Ok(_) | Err(_)) | Event::Told(Err(_)) => self.lose_client(),
                Event::Told(Ok(n)) => self.told(n),
                Event::VmSaid(Ok(bytes)) if !bytes.is_empty() => {
                    self.session.vm_says(&bytes);
                    self.put_off(IAP_IDLE_MAX)
                }
                Event::VmSaid(Ok(_)) => self.end_of_vm(Close::NORMAL),
                Event::VmSaid(Err(_)) => self.end_of_vm(Close::READ_FAILED),
                Event::VmTook(Ok(n)) => {
                    self.session.vm_took(n);
                    self.put_off(IAP_IDLE_MAX)
                }
                Event::VmTook(Err(_)) => {
                    self.vm_writes = None;
                    self.end_of_vm(Close::WRITE_FAILED)
                }
                Event::Came(Some(coming)) => self.admit(coming),
                // Its entry is gone: it made room for another tunnel, or the VM is no more.
                Event::Came(None) => self.give_up(Close::READ_FAILED),
                Event::Expired => self.ask_again(),
                Event::Late => self.give_up(Close::NORMAL),
            };
            if !goes_on {
                break;
            }
        }
        self.relay.tunnels().remove(self.session.sid());
        self.finish().await;
    }

    /// Waits for whatever can go on, in both directions at once.
    async fn wait(&mut self, coming: &mut mpsc::Receiver<Coming>) -> Event {
        if let Some(line) = &mut self.line {
            line.fill(&mut self.session);
        }
        let room = self.session.room_for_vm();
        // What a client still sends after our last word is read and dropped, so that it hears the word.
        let hears = self.line.as_ref().is_some_and(|line| line.closing || self.session.hears_client());
        let tells = self.line.as_ref().is_some_and(|line| !line.out.is_empty() || !line.flushed);
        let expires = self.line.as_ref().is_some_and(|line| line.expiry.is_some() && !line.closing);
        let (mut reads, mut writes, mut expiry) = match &mut self.line {
            Some(line) => (Some(&mut line.reads), Some((&mut line.writes, &line.out)), line.expiry.as_mut()),
            None => (None, None, None),
        };
        let for_vm = self.session.for_vm();
        tokio::select! {
            heard = async { read(reads.as_mut().expect("a line is there"), IAP_MESSAGE_BYTES_MAX).await },
                if hears => Event::Heard(heard),
            told = async {
                let (writes, out) = writes.as_mut().expect("a line is there");
                Line::write(writes, out).await
            }, if tells => Event::Told(told),
            said = read(&mut self.vm_reads, room), if room > 0 => Event::VmSaid(said),
            took = async { self.vm_writes.as_mut().expect("asked for").write(for_vm).await },
                if !for_vm.is_empty() && self.vm_writes.is_some() => Event::VmTook(took),
            coming = coming.recv() => Event::Came(coming),
            () = async { expiry.as_mut().expect("asked for").await }, if expires => Event::Expired,
            () = &mut self.deadline => Event::Late,
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> bool {
        let Some(line) = &mut self.line else { return true };
        line.reader.bytes.extend_from_slice(bytes);
        let outcome = loop {
            match line.reader.message() {
                Ok(None) => break None,
                // After our own last word only the client's counts.
                Ok(Some(Message::Binary(_))) if line.closing => {}
                Ok(Some(Message::Binary(message))) => {
                    if let Err(close) = self.session.client_says(&message) {
                        break Some(close);
                    }
                }
                // Its last word, whatever the code: everything before it goes to the VM.
                Ok(Some(Message::Close(_))) => break Some(Close::NORMAL),
                // It broke the rules: what it would send next means nothing.
                Err(close) => break Some(close),
            }
        };
        match outcome {
            None => self.put_off(IAP_IDLE_MAX),
            Some(_) if line.closing => false,
            Some(close) => {
                line.close(close);
                false
            }
        }
    }

    fn told(&mut self, bytes: usize) -> bool {
        let Some(line) = &mut self.line else { return true };
        line.flushed = bytes == 0;
        line.out.drain(..bytes);
        // It has our last word, and a moment to answer.
        if line.closing && line.flushed { self.put_off(IAP_FLUSH_MAX) } else { true }
    }

    /// The client's connection ended without a close frame: it may come back.
    fn lose_client(&mut self) -> bool {
        self.line = None;
        self.session.cut();
        self.relay.note_cut(self.session.sid(), Some(Instant::now()));
        self.put_off(IAP_CUT_KEEP)
    }

    fn end_of_vm(&mut self, how: Close) -> bool {
        self.session.vm_ended(how);
        true
    }

    fn admit(&mut self, coming: Coming) -> bool {
        let mut line = Line::new(coming.client, coming.held);
        match self.session.reconnect(coming.ack) {
            Ok(()) => {
                self.line = Some(line);
                self.relay.note_cut(self.session.sid(), None);
                self.put_off(IAP_IDLE_MAX)
            }
            Err(close) => {
                line.close(close);
                tokio::spawn(line.end());
                true
            }
        }
    }

    /// Who the client is was decided by a credential that has ended. It may come back with another, as after a cut, and
    /// whether it still may use the VM is asked anew.
    fn ask_again(&mut self) -> bool {
        if let Some(mut line) = self.line.take() {
            line.close(Close::REAUTHENTICATE);
            tokio::spawn(line.end());
        }
        self.lose_client()
    }

    fn give_up(&mut self, why: Close) -> bool {
        if let Some(line) = &mut self.line
            && !line.closing
        {
            line.close(why);
        }
        false
    }

    fn put_off(&mut self, by: Duration) -> bool {
        // While the client is away, what the VM does buys no time.
        if self.line.is_some() || by == IAP_CUT_KEEP {
            self.deadline.as_mut().reset(Instant::now() + by);
        }
        true
    }

    /// What was sent before the end still arrives, on both sides, if it is taken soon.
    async fn finish(mut self) {
        let to_vm = async {
            let Some(vm) = &mut self.vm_writes else { return };
            while !self.session.for_vm().is_empty() {
                let Ok(n) = vm.write(self.session.for_vm()).await else { return };
                self.session.vm_took(n);
            }
            let _ = vm.shutdown().await;
        };
        let to_client = async {
            if let Some(line) = self.line {
                line.end().await;
            }
        };
        tokio::join!(timeout(IAP_FLUSH_MAX, to_vm), to_client).1
    }
}

#[cfg(test)]
mod tests;
