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
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use control::random;
use model::{
    iam::Principal,
    limits::{IAP_CUT_KEEP, IAP_FLUSH_MAX, IAP_IDLE_MAX, IAP_MESSAGE_BYTES_MAX, IAP_SESSIONS_MAX},
    name::Link,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
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
    clients: mpsc::Sender<Client>,
    /// Since when its client is cut off.
    cut: Option<Instant>,
}

/// Whose a tunnel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub principal: Principal,
    pub instance: Link,
}

/// A client's connection for a tunnel that exists.
struct Client {
    stream: Box<dyn Stream>,
    /// How much it has received, when it comes back.
    ack: Option<u64>,
    /// Dropped with the connection.
    _held: oneshot::Sender<()>,
}

impl Relay {
    /// Serves a new tunnel over `stream` until this connection of the client's ends; the tunnel may live on.
    pub async fn open(self: Arc<Self>, owner: Owner, vm: TcpStream, stream: Box<dyn Stream>) {
        let _ = vm.set_nodelay(true);
        let (clients, coming) = mpsc::channel(1);
        let sid = random::hex(SID_DIGITS);
        if !self.enter(&sid, Entry { owner, clients, cut: None }) {
            return refuse(stream, Close::UNKNOWN).await;
        }
        let (held, gone) = oneshot::channel();
        let tunnel = Tunnel::new(self, Session::open(sid), vm, Client { stream, ack: None, _held: held });
        tokio::spawn(tunnel.run(coming));
        // An error says that the other half is gone, and that is what is waited for.
        let _ = gone.await;
    }

    /// The owner of a tunnel.
    pub fn owner(&self, sid: &str) -> Option<Owner> {
        self.tunnels().get(sid).map(|entry| entry.owner.clone())
    }

    /// Brings a client back to its tunnel, and serves this connection to its end.
    pub async fn reopen(self: Arc<Self>, sid: &str, ack: u64, stream: Box<dyn Stream>) {
        let Some(clients) = self.tunnels().get(sid).map(|entry| entry.clients.clone()) else {
            return refuse(stream, Close::SID_UNKNOWN).await;
        };
        let (held, gone) = oneshot::channel();
        match clients.send(Client { stream, ack: Some(ack), _held: held }).await {
            Ok(()) => drop(gone.await),
            Err(mpsc::error::SendError(client)) => refuse(client.stream, Close::SID_UNKNOWN).await,
        }
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

/// Says why there is no tunnel, and waits a moment for the client to have heard it.
pub async fn refuse(mut stream: Box<dyn Stream>, why: Close) {
    let mut out = Vec::new();
    websocket::write_close(why, &mut out);
    let said = async {
        stream.write_all(&out).await?;
        stream.flush().await?;
        // Until it closes: a connection that is closed over unread bytes is reset, and the reason with it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = timeout(IAP_FLUSH_MAX, said).await;
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

/// A client's connection.
struct Line {
    reads: ReadHalf<Box<dyn Stream>>,
    writes: WriteHalf<Box<dyn Stream>>,
    reader: Reader,
    out: Vec<u8>,
    /// `out` ends in a close frame.
    closing: bool,
    flushed: bool,
    _held: oneshot::Sender<()>,
}

impl Line {
    fn new(client: Client) -> Line {
        let (reads, writes) = tokio::io::split(client.stream);
        let (reader, out) = (Reader::default(), Vec::new());
        Line { reads, writes, reader, out, closing: false, flushed: true, _held: client._held }
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

    /// Writes what is there, at least some of it.
    async fn write(writes: &mut WriteHalf<Box<dyn Stream>>, out: &[u8]) -> io::Result<usize> {
        if out.is_empty() { writes.flush().await.map(|()| 0) } else { writes.write(out).await }
    }
}

/// What happened to a tunnel.
enum Event {
    /// The client sent so many bytes; none is the end of its connection.
    Heard(io::Result<usize>),
    Told(io::Result<usize>),
    VmSaid(io::Result<usize>),
    VmTook(io::Result<usize>),
    Came(Option<Client>),
    Late,
}

impl Tunnel {
    fn new(relay: Arc<Relay>, session: Session, vm: TcpStream, client: Client) -> Tunnel {
        let (vm_reads, vm_writes) = vm.into_split();
        let deadline = Box::pin(sleep_until(Instant::now() + IAP_IDLE_MAX));
        Tunnel { relay, session, vm_reads, vm_writes: Some(vm_writes), line: Some(Line::new(client)), deadline }
    }

    async fn run(mut self, mut coming: mpsc::Receiver<Client>) {
        let mut from_client = vec![0; IAP_MESSAGE_BYTES_MAX];
        let mut from_vm = vec![0; OUTGOING_BYTES];
        loop {
            let event = self.wait(&mut coming, &mut from_client, &mut from_vm).await;
            let goes_on = match event {
                Event::Heard(Ok(0) | Err(_)) | Event::Told(Err(_)) => self.lose_client(),
                Event::Heard(Ok(n)) => self.hear(&from_client[..n]),
                Event::Told(Ok(n)) => self.told(n),
                Event::VmSaid(Ok(0)) => self.end_of_vm(Close::NORMAL),
                Event::VmSaid(Ok(n)) => {
                    self.session.vm_says(&from_vm[..n]);
                    self.put_off(IAP_IDLE_MAX)
                }
                Event::VmSaid(Err(_)) => self.end_of_vm(Close::READ_FAILED),
                Event::VmTook(Ok(n)) => {
                    self.session.vm_took(n);
                    self.put_off(IAP_IDLE_MAX)
                }
                Event::VmTook(Err(_)) => {
                    self.vm_writes = None;
                    self.end_of_vm(Close::WRITE_FAILED)
                }
                Event::Came(Some(client)) => self.admit(client),
                // Its entry made room for another tunnel.
                Event::Came(None) => false,
                Event::Late => self.late(),
            };
            if !goes_on {
                break;
            }
        }
        self.relay.tunnels().remove(self.session.sid());
        self.finish().await;
    }

    /// Waits for whatever can go on, in both directions at once.
    async fn wait(&mut self, coming: &mut mpsc::Receiver<Client>, from_client: &mut [u8], from_vm: &mut [u8]) -> Event {
        if let Some(line) = &mut self.line {
            line.fill(&mut self.session);
        }
        let room = self.session.room_for_vm().min(from_vm.len());
        // What a client still sends after our last word is read and dropped, so that it hears the word.
        let hears = self.line.as_ref().is_some_and(|line| line.closing || self.session.hears_client());
        let tells = self.line.as_ref().is_some_and(|line| !line.out.is_empty() || !line.flushed);
        let (mut reads, mut writes) = match &mut self.line {
            Some(line) => (Some(&mut line.reads), Some((&mut line.writes, &line.out))),
            None => (None, None),
        };
        let for_vm = self.session.for_vm();
        tokio::select! {
            heard = async { reads.as_mut().expect("a line is there").read(from_client).await }, if hears => Event::Heard(heard),
            told = async {
                let (writes, out) = writes.as_mut().expect("a line is there");
                Line::write(writes, out).await
            }, if tells => Event::Told(told),
            said = self.vm_reads.read(&mut from_vm[..room]), if room > 0 => Event::VmSaid(said),
            took = async { self.vm_writes.as_mut().expect("asked for").write(for_vm).await },
                if !for_vm.is_empty() && self.vm_writes.is_some() => Event::VmTook(took),
            client = coming.recv() => Event::Came(client),
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

    fn admit(&mut self, client: Client) -> bool {
        match self.session.reconnect(client.ack.unwrap_or_default()) {
            Ok(()) => {
                self.line = Some(Line::new(client));
                self.relay.note_cut(self.session.sid(), None);
                self.put_off(IAP_IDLE_MAX)
            }
            Err(close) => {
                tokio::spawn(async move {
                    refuse(client.stream, close).await;
                    drop(client._held);
                });
                true
            }
        }
    }

    fn late(&mut self) -> bool {
        if let Some(line) = &mut self.line
            && !line.closing
        {
            line.close(Close::NORMAL);
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
            let Some(line) = &mut self.line else { return };
            let _ = line.writes.write_all(&line.out).await;
            let _ = line.writes.shutdown().await;
            // A connection that is closed over unread bytes is reset, and our last word with it.
            let _ = tokio::io::copy(&mut line.reads, &mut tokio::io::sink()).await;
        };
        let _ = timeout(IAP_FLUSH_MAX, async { tokio::join!(to_vm, to_client) }).await;
    }
}

#[cfg(test)]
mod tests {
    use model::name::{Scope, Zone};
    use tokio::{
        io::{DuplexStream, duplex},
        net::TcpListener,
        task::yield_now,
    };

    use super::*;

    fn owner() -> Owner {
        let project = "p-roject".parse().unwrap();
        let zone: Zone = "asia-northeast1-b".parse().unwrap();
        let instance = Link::new(&project, Scope::Zone(zone), "instances", "vm");
        Owner { principal: Principal::User { email: "ada@example.com".into() }, instance }
    }

    /// A new tunnel: the client's end, its session id, the VM's end.
    async fn open(relay: &Arc<Relay>) -> (DuplexStream, String, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (vm, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut client, stream) = duplex(64 << 10);
        tokio::spawn(relay.clone().open(owner(), vm.unwrap(), Box::new(stream)));
        let mut first = [0; 2 + 6 + SID_DIGITS];
        client.read_exact(&mut first).await.unwrap();
        let sid = String::from_utf8_lossy(&first[8..]).into_owned();
        (client, sid, far.unwrap().0)
    }

    /// The code of the close frame that comes next.
    async fn closed(client: &mut DuplexStream) -> u16 {
        let mut head = [0; 4];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head[0], 0x88, "a close frame");
        u16::from_be_bytes([head[2], head[3]])
    }

    async fn until_cut(relay: &Relay, count: usize) {
        while relay.tunnels().values().filter(|entry| entry.cut.is_some()).count() < count {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_new_tunnel_takes_the_place_of_the_one_that_was_cut_first() {
        let relay = Arc::new(Relay::default());
        let mut tunnels = Vec::new();
        for _ in 0..IAP_SESSIONS_MAX {
            tunnels.push(open(&relay).await);
        }
        let (mut late, stream) = duplex(1_024);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let vm = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tokio::spawn(relay.clone().open(owner(), vm, Box::new(stream)));
        assert_eq!(closed(&mut late).await, Close::UNKNOWN.code, "all are in use");
        drop(late);

        let (client, second, _vm) = tunnels.remove(9);
        let (first_client, first, mut first_vm) = tunnels.remove(4);
        drop(first_client);
        until_cut(&relay, 1).await;
        drop(client);
        until_cut(&relay, 2).await;
        let _new = open(&relay).await;
        assert_eq!((relay.owner(&first), relay.owner(&second)), (None, Some(owner())));
        assert_eq!(first_vm.read(&mut [0; 8]).await.unwrap(), 0, "its VM is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_tunnel_waits_for_its_client_and_a_silent_one_ends_too() {
        let relay = Arc::new(Relay::default());
        let (client, sid, mut vm) = open(&relay).await;
        drop(client);
        let began = Instant::now();
        assert_eq!(vm.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(began.elapsed() >= IAP_CUT_KEEP && relay.owner(&sid).is_none());

        let (mut client, sid, mut vm) = open(&relay).await;
        let began = Instant::now();
        assert_eq!(closed(&mut client).await, 1000);
        drop(client);
        assert_eq!(vm.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(began.elapsed() >= IAP_IDLE_MAX && relay.owner(&sid).is_none());
    }
}
