//! A client of the tunnel relay, as far as tests need one: through the door, TLS, WebSocket, frames. It keeps what the
//! server has not confirmed and can cut its own connection and come back.

use std::{
    collections::VecDeque,
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, mpsc::TryRecvError},
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::pem::PemObject};

const HOST: &str = "tunnel.cloudproxy.app";
/// Payload of one DATA frame.
pub const DATA_MAX: usize = 16_384;
const ACK_AFTER: u64 = 32_768;

/// Where a tunnel leads, and who asks.
#[derive(Clone, Debug)]
pub struct Way {
    pub door: SocketAddr,
    pub ca_pem: Vec<u8>,
    pub token: String,
    pub project: String,
    pub zone: String,
    pub instance: String,
    pub port: u16,
}

/// What came instead of a tunnel, or ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Before the WebSocket: the HTTP status.
    Status(u16),
    Closed {
        code: u16,
        reason: String,
    },
    Broken(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Broken(error.to_string())
    }
}

pub struct Tunnel {
    way: Way,
    stream: StreamOwned<ClientConnection, TcpStream>,
    sid: String,
    received: u64,
    confirmed_to_server: u64,
    /// Sent and not confirmed.
    kept: VecDeque<u8>,
    confirmed: u64,
    /// Bytes that are no whole message yet.
    incoming: Vec<u8>,
}

impl Way {
    /// Opens a tunnel.
    pub fn open(&self) -> Result<Tunnel, Refused> {
        let path = format!(
            "/v4/connect?project={}&port={}&newWebsocket=True&zone={}&instance={}&interface=nic0",
            self.project, self.port, self.zone, self.instance
        );
        let mut tunnel = self.over(self.websocket(&path)?);
        let first = tunnel.message()?;
        if first[..2] != [0, 1] {
            return Err(Refused::Broken(format!("the first frame is {first:?}")));
        }
        tunnel.sid = String::from_utf8_lossy(&first[6..]).into_owned();
        Ok(tunnel)
    }

    /// The first message on a path of reconnects.
    pub fn resume(&self, path: &str) -> Result<Vec<u8>, Refused> {
        self.over(self.websocket(path)?).message()
    }

    fn over(&self, stream: StreamOwned<ClientConnection, TcpStream>) -> Tunnel {
        Tunnel {
            way: self.clone(),
            stream,
            sid: String::new(),
            received: 0,
            confirmed_to_server: 0,
            kept: VecDeque::new(),
            confirmed: 0,
            incoming: Vec::new(),
        }
    }

    /// A WebSocket on this path, agreed on.
    pub fn websocket(&self, path: &str) -> Result<StreamOwned<ClientConnection, TcpStream>, Refused> {
        let mut tcp = TcpStream::connect(self.door)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(crate::PATIENCE))?;
        write!(tcp, "CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n")?;
        status(&mut tcp, 200)?;
        let mut roots = RootCertStore::empty();
        for certificate in
            rustls::pki_types::CertificateDer::pem_reader_iter(BufReader::new(&self.ca_pem[..])).flatten()
        {
            roots.add(certificate).map_err(io::Error::other)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = HOST.try_into().map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(tls, tcp);
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: relay.tunnel.cloudproxy.app\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        )?;
        stream.flush()?;
        let head = status(&mut stream, 101)?.to_ascii_lowercase();
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert!(head.contains("sec-websocket-protocol: relay.tunnel.cloudproxy.app"), "{head}");
        Ok(stream)
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tunnel {}", self.sid)
    }
}

impl Tunnel {
    pub fn sid(&self) -> &str {
        &self.sid
    }

    /// Goes away without a word.
    pub fn hang_up(self) {}

    /// Sends bytes, in frames.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        for payload in bytes.chunks(DATA_MAX) {
            self.kept.extend(payload);
            self.write(
                &[&[0, 4][..], &u32::try_from(payload.len()).expect("a frame").to_be_bytes(), payload].concat(),
            )?;
        }
        Ok(())
    }

    /// The next bytes of the VM.
    pub fn receive(&mut self) -> Result<Vec<u8>, Refused> {
        loop {
            if let Some(data) = self.receive_within(crate::PATIENCE)? {
                return Ok(data);
            }
        }
    }

    /// The next bytes of the VM, if some come in this time.
    pub fn receive_within(&mut self, wait: Duration) -> Result<Option<Vec<u8>>, Refused> {
        match self.poll(wait)? {
            Some(message) => self.take(&message),
            None => Ok(None),
        }
    }

    /// Breaks the connection without a word, and comes back.
    pub fn cut(&mut self) -> Result<(), Refused> {
        // Reset: what is on its way in either direction is lost.
        self.stream.sock.shutdown(std::net::Shutdown::Both)?;
        let path =
            format!("/v4/reconnect?sid={}&ack={}&newWebsocket=True&zone={}", self.sid, self.received, self.way.zone);
        // The server may not have noticed yet.
        let mut tries = 0;
        loop {
            self.stream = self.way.websocket(&path)?;
            self.incoming.clear();
            match self.message() {
                Ok(first) => {
                    assert_eq!(first[..2], [0, 2], "the first frame after coming back");
                    self.confirm(count(&first));
                    break;
                }
                Err(Refused::Closed { code: 4002, .. }) if tries < 100 => tries += 1,
                Err(other) => return Err(other),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.confirmed_to_server = self.received;
        let again: Vec<u8> = self.kept.drain(..).collect();
        self.send(&again)
    }

    /// Says goodbye, and waits for the server to close.
    pub fn close(mut self) -> Result<(), Refused> {
        self.frame(8, &1000_u16.to_be_bytes())?;
        loop {
            match self.message() {
                Ok(message) => drop(self.take(&message)?),
                Err(Refused::Closed { code: 1000, .. }) => return Ok(()),
                Err(other) => return Err(other),
            }
        }
    }

    /// Between standard input and output, as an SSH client's `ProxyCommand`. Cuts its connection whenever this many more
    /// bytes have come or gone.
    pub fn bridge(mut self, cut_every: Option<u64>) -> Result<(), Refused> {
        let (tell, typed) = std::sync::mpsc::sync_channel(16);
        std::thread::spawn(move || {
            let mut buffer = [0; DATA_MAX];
            while let Ok(n @ 1..) = io::stdin().read(&mut buffer)
                && tell.send(buffer[..n].to_vec()).is_ok()
            {}
        });
        let (mut passed, mut next_cut) = (0, cut_every.unwrap_or(u64::MAX));
        loop {
            match typed.try_recv() {
                Ok(bytes) => {
                    self.send(&bytes)?;
                    passed += bytes.len() as u64;
                }
                Err(TryRecvError::Disconnected) => return self.close(),
                Err(TryRecvError::Empty) => {}
            }
            match self.receive_within(Duration::from_millis(1)) {
                Ok(Some(bytes)) => {
                    let mut out = io::stdout();
                    out.write_all(&bytes).and_then(|()| out.flush())?;
                    passed += bytes.len() as u64;
                }
                Ok(None) => {}
                Err(Refused::Closed { code: 1000, .. }) => return Ok(()),
                Err(other) => return Err(other),
            }
            if passed >= next_cut {
                next_cut = passed + cut_every.unwrap_or(u64::MAX);
                self.cut()?;
            }
        }
    }

    fn take(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        match message[..2] {
            [0, 4] => {
                let data = message[6..].to_vec();
                self.received += data.len() as u64;
                if self.received - self.confirmed_to_server > ACK_AFTER {
                    self.confirmed_to_server = self.received;
                    self.write(&[&[0, 7][..], &self.received.to_be_bytes()].concat())?;
                }
                Ok(Some(data))
            }
            [0, 7] => {
                self.confirm(count(message));
                Ok(None)
            }
            _ => Err(Refused::Broken(format!("a frame {:?}", &message[..2]))),
        }
    }

    fn confirm(&mut self, count: u64) {
        let done = usize::try_from(count - self.confirmed).expect("acks do not go back");
        assert!(done <= self.kept.len(), "more is confirmed than was sent");
        self.kept.drain(..done);
        self.confirmed = count;
    }

    fn write(&mut self, payload: &[u8]) -> Result<(), Refused> {
        self.frame(2, payload)
    }

    /// A frame under the mask 0: allowed, and the payload stays readable.
    fn frame(&mut self, opcode: u8, payload: &[u8]) -> Result<(), Refused> {
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(len @ ..=125) => frame.push(0x80 | len),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(payload.len()).expect("a frame").to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame)?;
        Ok(self.stream.flush()?)
    }

    fn message(&mut self) -> Result<Vec<u8>, Refused> {
        let waited = self.poll(crate::PATIENCE)?;
        waited.ok_or_else(|| Refused::Broken("no message in time".to_owned()))
    }

    /// The next message, if it comes in this time. A server frame must be whole, unmasked and binary.
    fn poll(&mut self, wait: Duration) -> Result<Option<Vec<u8>>, Refused> {
        self.stream.sock.set_read_timeout(Some(wait))?;
        loop {
            if let Some(message) = parse(&mut self.incoming)? {
                return Ok(Some(message));
            }
            let mut bytes = [0; 2 * DATA_MAX];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Refused::Broken("the end".to_owned())),
                Ok(n) => self.incoming.extend(&bytes[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Takes the first message out of the bytes.
fn parse(bytes: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Refused> {
    let (at, len) = match bytes[..] {
        [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
        [_, 126, ..] | [_] | [] => return Ok(None),
        [_, len, ..] => (2, usize::from(len)),
    };
    assert!(len <= DATA_MAX + 6 && bytes[1] < 127, "a server frame of {len} bytes, second byte {}", bytes[1]);
    if bytes.len() < at + len {
        return Ok(None);
    }
    let frame: Vec<u8> = bytes.drain(..at + len).collect();
    let payload = frame[at..].to_vec();
    match frame[0] {
        0x82 => Ok(Some(payload)),
        0x88 => Err(Refused::Closed {
            code: u16::from_be_bytes([payload[0], payload[1]]),
            reason: String::from_utf8_lossy(&payload[2..]).into_owned(),
        }),
        first => panic!("a server frame that begins with {first:02x}"),
    }
}

fn count(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[2..10].try_into().expect("eight bytes"))
}

/// Reads a response's head to its end and not beyond.
fn status(stream: &mut impl Read, wanted: u16) -> Result<String, Refused> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    match head.split(' ').nth(1).and_then(|code| code.parse().ok()) {
        Some(code) if code == wanted => Ok(head),
        Some(code) => Err(Refused::Status(code)),
        None => Err(Refused::Broken(head)),
    }
}
