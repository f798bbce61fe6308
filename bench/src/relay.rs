//! What the relay of tunnels costs: 1 GiB from a VM to a client, each byte looked at, through a tunnel and through a relay
//! that only copies, by turns. Both take the same way into the VPC; TLS, which is the door's, is left out of both.

use std::{
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use api::relay::{Client, Owner, Relay, frame};
use lab::{Lab, Vm, plan};
use model::{
    iam::Principal,
    id::NetworkId,
    name::{Link, Scope, Zone},
    planned::host::PlannedProtocol,
    vpc::{Action, Direction, PortRange},
};
use tokio::runtime::Runtime;

use crate::{
    Outcome, Tools, ms,
    report::{Aim, Row, Spread},
};

const NET: NetworkId = NetworkId(1);
const RELAY: &str = "35.235.240.0/20";
const BYTES: usize = 1 << 30;
const ROUNDS: usize = 5;
/// The VM says it again and again; no power of two, so that a byte lost or doubled anywhere shifts all that follow.
const PERIOD: usize = 1_000_003;
/// A connection that the hands have begun stands after this.
const CONNECT_MAX: Duration = Duration::from_secs(5);

pub fn bench(_: &Tools) -> Outcome<Vec<Row>> {
    let mut lab = Lab::new();
    let mut open = plan::vpc(&[("web", "10.1.0.2")]);
    let mut rule = plan::rule("allow-iap", Direction::Ingress, Action::Allow);
    rule.peers = plan::hosts(&[RELAY]);
    rule.protocols = vec![PlannedProtocol { protocol: 6, ports: vec![PortRange { first: 22, last: 22 }] }];
    open.settings.firewall = vec![rule];
    lab.hands().apply_vpc(NET, &open)?;
    let vm = lab.vm(NET.0, "web", "10.1.0.2");
    talk(&vm)?;
    let runtime = Runtime::new()?;
    let relay = Arc::new(Relay::default());
    let (mut through, mut copied) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (vm, client) = (dial(&mut lab)?, TcpListener::bind("127.0.0.1:0")?);
        let to = client.local_addr()?;
        runtime.spawn(copy(vm, client));
        copied.push(take(to, plain)?);
        let (vm, client) = (dial(&mut lab)?, TcpListener::bind("127.0.0.1:0")?);
        let to = client.local_addr()?;
        runtime.spawn(tunnel(relay.clone(), vm, client));
        through.push(take(to, framed)?);
    }
    let peer = Some(("a relay that only copies", Spread::of(copied)));
    let promise = "1 GiB from a VM through a tunnel, each byte compared";
    Ok(vec![Row { promise, aim: Aim::OfPeer(2.0), unit: "ms", ours: Spread::of(through), peer }])
}

fn said() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        // Source: Marsaglia, "Xorshift RNGs".
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..PERIOD).map(|_| next()).collect()
}

/// A server in the VM that says its bytes to whoever connects.
fn talk(vm: &Vm) -> io::Result<()> {
    let listener = vm.inside(|| TcpListener::bind("0.0.0.0:22"))?;
    thread::spawn(move || {
        let bytes = said();
        for mut stream in listener.incoming().flatten() {
            let mut left = BYTES;
            while left > 0 && stream.write_all(&bytes[..left.min(PERIOD)]).is_ok() {
                left -= left.min(PERIOD);
            }
        }
    });
    Ok(())
}

/// As control gets its connections into a VM.
fn dial(lab: &mut Lab) -> Outcome<TcpStream> {
    let stream = TcpStream::from(lab.hands().dial(NET, "10.1.0.2:22".parse()?)??);
    let begun = Instant::now();
    while stream.peer_addr().is_err() {
        if begun.elapsed() > CONNECT_MAX {
            return Err("no way to the VM".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(stream)
}

/// The next client, and the VM's connection.
async fn both(vm: TcpStream, client: TcpListener) -> io::Result<(tokio::net::TcpStream, tokio::net::TcpStream)> {
    client.set_nonblocking(true)?;
    let (client, _) = tokio::net::TcpListener::from_std(client)?.accept().await?;
    client.set_nodelay(true)?;
    Ok((tokio::net::TcpStream::from_std(vm)?, client))
}

async fn copy(vm: TcpStream, client: TcpListener) -> io::Result<()> {
    let (mut vm, mut client) = both(vm, client).await?;
    tokio::io::copy_bidirectional(&mut vm, &mut client).await.map(drop)
}

async fn tunnel(relay: Arc<Relay>, vm: TcpStream, client: TcpListener) -> io::Result<()> {
    let (vm, client) = both(vm, client).await?;
    let project = "p-roject".parse().map_err(|_| io::Error::other("a project's id"))?;
    let zone: Zone = "asia-northeast1-b".parse().map_err(|_| io::Error::other("a zone"))?;
    let instance = Link::new(&project, Scope::Zone(zone), "instances", "web");
    let owner = Owner { principal: Principal::User { email: "ada@example.com".into() }, instance };
    relay.open(owner, vm, Client::new(Box::new(client), None)).await;
    Ok(())
}

/// Milliseconds until everything has come and was found right. `next` reads some bytes, and confirms those before.
fn take(
    from: SocketAddr,
    next: impl Fn(&mut BufReader<TcpStream>, &mut Vec<u8>, usize) -> io::Result<()>,
) -> Outcome<f64> {
    let begun = Instant::now();
    let stream = TcpStream::connect(from)?;
    stream.set_nodelay(true)?;
    let (mut reader, mut came, bytes) = (BufReader::with_capacity(64 << 10, stream), Vec::new(), said());
    let mut got = 0;
    while got < BYTES {
        came.clear();
        next(&mut reader, &mut came, got)?;
        let mut rest = came.as_slice();
        while !rest.is_empty() {
            let at = got % PERIOD;
            let (part, more) = rest.split_at(rest.len().min(PERIOD - at));
            if part != &bytes[at..at + part.len()] {
                return Err(format!("other bytes came than were said, after {got}").into());
            }
            (got, rest) = (got + part.len(), more);
        }
    }
    if got == BYTES { Ok(ms(begun.elapsed())) } else { Err(format!("{got} bytes came").into()) }
}

fn plain(reader: &mut BufReader<TcpStream>, came: &mut Vec<u8>, _: usize) -> io::Result<()> {
    came.resize(16 << 10, 0);
    let n = reader.read(came)?;
    came.truncate(n);
    if n == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// One message of the relay's, as its stock client reads it.
fn framed(reader: &mut BufReader<TcpStream>, came: &mut Vec<u8>, got: usize) -> io::Result<()> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    let len = match head[1] {
        126 => {
            let mut len = [0; 2];
            reader.read_exact(&mut len)?;
            u16::from_be_bytes(len)
        }
        short => short.into(),
    };
    let mut tag = [0; 6];
    reader.read_exact(&mut tag)?;
    came.resize(usize::from(len) - tag.len(), 0);
    reader.read_exact(came)?;
    if tag[1] != 4 {
        came.clear();
    }
    let total = got + came.len();
    if total / (32 << 10) > got / (32 << 10) {
        // Under the mask 0.
        let ack = [&[0x82, 0x80 | 10, 0, 0, 0, 0][..], &frame::ack(total as u64)].concat();
        reader.get_mut().write_all(&ack)?;
    }
    Ok(())
}
