//! What really happens to a call: it is made from inside the VM's namespace while the routers on its way are traced.

use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use control::why::{Case, Target};
use host::{
    names,
    netns::{Netns, Pins},
    trace::{Passage, Trace},
};
use model::id::NetworkId;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use sandbox::Running;

use super::verdict::Request;
use crate::{Outcome, cloud::Dirs};

/// A first segment without an answer is repeated after one second; when that is not answered either it is called silence.
const CONNECT_MAX: Duration = Duration::from_millis(1_300);
/// The trace is complete when the kernel has told nothing for this long.
const QUIET: Duration = Duration::from_millis(60);
const TELL_MAX: Duration = Duration::from_secs(2);
/// As much of an answer is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Ports from which the call is made.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The call that is made.
pub(super) struct Exchange {
    pub port: u16,
    /// The bytes of a request, once connected.
    pub request: Option<Vec<u8>>,
    pub wait_s: u64,
}

/// What was seen.
pub(super) struct Seen {
    pub source: SocketAddrV4,
    pub connection: Connection,
    pub took: Duration,
    /// The first segment's way through each router, as far as it came.
    pub routers: Vec<(NetworkId, Passage)>,
    pub reply: Option<Reply>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Made,
    /// Somebody answered that nobody listens.
    Refused,
    /// A router said that there is no way.
    Unreachable,
    Silent,
}

/// The answer to a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    /// None: the connection ended, or time did, before there was an answer.
    pub status: Option<u16>,
    pub body: String,
}

impl Reply {
    pub fn is_success(&self) -> bool {
        self.status.is_some_and(|status| (200..400).contains(&status))
    }

    fn parse(bytes: &[u8]) -> Reply {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split_ascii_whitespace().nth(1).and_then(|status| status.parse().ok());
        Reply { status: status.filter(|_| head.starts_with("HTTP/1.")), body: body.to_owned() }
    }
}

/// The bytes of the request.
pub(super) fn http(request: &Request, host: &str, port: u16) -> Vec<u8> {
    let host = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
    let token = request.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let path = &request.path;
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tombolo-why\r\n{token}Connection: close\r\n\r\n")
        .into_bytes()
}

pub(super) fn probe(dirs: &Dirs, case: &Case, exchange: &Exchange) -> Outcome<Seen> {
    let running = Running::find(&dirs.run, &case.workload)?;
    let vm = Netns::borrowed(case.vm.to_string(), running.netns()?);
    let (socket, source) = bound(&vm, case)?;
    let pins = Pins::under(&dirs.run)?;
    let producer = match &case.target {
        Target::Endpoint { producer, .. } => *producer,
        _ => None,
    };
    let mut traces = Vec::new();
    for network in [Some(case.network_id), producer.filter(|p| *p != case.network_id)].into_iter().flatten() {
        if let Some(router) = pins.open(&names::vpc_ns(network))? {
            traces.push((network, Trace::start(&router, source.port())?));
        }
    }
    let start = Instant::now();
    let connection = connect(&socket, SocketAddrV4::new(case.to, exchange.port))?;
    let took = start.elapsed();
    let reply = match (&exchange.request, connection) {
        (Some(request), Connection::Made) => Some(answer(socket.into(), request, Duration::from_secs(exchange.wait_s))),
        _ => None,
    };
    let mut routers = Vec::new();
    for (network, mut trace) in traces {
        let passages = trace.passages(QUIET, TELL_MAX)?;
        routers.extend(passages.into_iter().find(|p| p.came.opens()).map(|passage| (network, passage)));
    }
    Ok(Seen { source, connection, took, routers, reply })
}

/// A socket of the VM with a port of its own, so that the trace is open before anything is sent.
fn bound(vm: &Netns, case: &Case) -> Outcome<(OwnedFd, SocketAddrV4)> {
    let start = u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start)).unwrap_or(0);
    let ports = (PORTS.start + start..PORTS.end).chain(PORTS.start..PORTS.start + start);
    let socket = vm.run(|| -> io::Result<_> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        for port in ports {
            let source = SocketAddrV4::new(case.from, port);
            match rustix::net::bind(&socket, &source) {
                Ok(()) => return Ok((socket, source)),
                Err(rustix::io::Errno::ADDRINUSE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    })?;
    Ok(socket?)
}

fn connect(socket: &OwnedFd, to: SocketAddrV4) -> io::Result<Connection> {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        io::Errno,
    };
    let outcome = match rustix::net::connect(socket, &to) {
        Err(Errno::INPROGRESS) => {
            let wait = Timespec::try_from(CONNECT_MAX).map_err(io::Error::other)?;
            match rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&wait)))? {
                0 => return Ok(Connection::Silent),
                _ => sockopt::socket_error(socket)?,
            }
        }
        outcome => outcome,
    };
    match outcome {
        Ok(()) => Ok(Connection::Made),
        Err(Errno::CONNREFUSED) => Ok(Connection::Refused),
        Err(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ACCESS) => Ok(Connection::Unreachable),
        Err(Errno::TIMEDOUT) => Ok(Connection::Silent),
        Err(error) => Err(error.into()),
    }
}

/// An answer, or what there is of it when the time is over.
fn answer(mut stream: TcpStream, request: &[u8], wait: Duration) -> Reply {
    let mut bytes = Vec::new();
    let mut exchange = || -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(wait))?;
        stream.write_all(request)?;
        let deadline = Instant::now() + wait;
        let mut buffer = [0; 16 << 10];
        while bytes.len() < usize::try_from(ANSWER_BYTES_MAX).unwrap_or(usize::MAX) {
            let left = deadline.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match stream.read(&mut buffer)? {
                0 => break,
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
        Ok(())
    };
    // Without an answer the reply says so; with one, how the connection ended changes nothing.
    let _ = exchange();
    Reply::parse(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body_and_garbage_is_none() {
        let reply = Reply::parse(b"HTTP/1.1 403 Forbidden\r\nA: b\r\n\r\nno");
        assert_eq!((reply.status, reply.body.as_str(), reply.is_success()), (Some(403), "no", false));
        for garbage in [&b""[..], b"SSH-2.0-x 200", b"HTTP/1.1", b"\xff\xfe 200 \r\n\r\n"] {
            assert_eq!(Reply::parse(garbage).status, None, "{garbage:?}");
        }
    }
}
