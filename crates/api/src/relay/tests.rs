//! Tunnels over streams in memory, with a VM that is a socket on loopback.

use model::{
    limits::IAP_UNACKED_BYTES_MAX,
    name::{Scope, Zone},
};
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
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
    open_until(relay, None).await
}

async fn open_until(relay: &Arc<Relay>, good_until: Option<Instant>) -> (DuplexStream, String, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (vm, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (mut client, stream) = duplex(64 << 10);
    tokio::spawn(relay.clone().open(owner(), vm.unwrap(), Client::new(Box::new(stream), good_until)));
    let mut first = [0; 2 + 6 + SID_DIGITS];
    client.read_exact(&mut first).await.unwrap();
    let sid = String::from_utf8_lossy(&first[8..]).into_owned();
    let far = far.unwrap().0;
    far.set_nodelay(true).unwrap();
    (client, sid, far)
}

/// Another connection of the client's, for the same tunnel.
fn reopen(relay: &Arc<Relay>, sid: &str, ack: u64) -> DuplexStream {
    let (client, stream) = duplex(64 << 10);
    let (relay, sid) = (relay.clone(), sid.to_owned());
    tokio::spawn(async move { relay.reopen(&sid, ack, Client::new(Box::new(stream), None)).await });
    client
}

/// The next message of the server's. A cut connection has none.
async fn message(client: &mut DuplexStream) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.ok()?;
    assert_eq!(head[0], 0x82, "a whole binary message");
    let len = match head[1] {
        126 => client.read_u16().await.ok()?,
        short => short.into(),
    };
    let mut message = vec![0; len.into()];
    client.read_exact(&mut message).await.ok()?;
    Some(message)
}

fn count(message: &[u8]) -> usize {
    u64::from_be_bytes(message[2..10].try_into().unwrap()).try_into().unwrap()
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
    tokio::spawn(relay.clone().open(owner(), vm, Client::new(Box::new(stream), None)));
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

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// What the server writes to a client that comes back before its first byte of payload: how much it has received.
const WELCOME_BACK: usize = 2 + 10;

/// Sends `up` and expects `down`, over a connection that breaks when `cut_up` bytes of what the client writes have gone
/// and `cut_down` bytes of what the server writes have come; then over one that breaks within its first message if
/// `twice` says where; then over one that lasts.
async fn carry(up: &[u8], down: &[u8], cut_up: usize, cut_down: usize, twice: Option<usize>) {
    let relay = Arc::new(Relay::default());
    let (mut client, sid, vm) = open(&relay).await;
    let (mut vm_reads, mut vm_writes) = vm.into_split();
    let said = down.to_vec();
    let talking = tokio::spawn(async move {
        // In pieces, so that there are several frames.
        for piece in said.chunks(40) {
            vm_writes.write_all(piece).await.unwrap();
            yield_now().await;
        }
        vm_writes
    });
    let heard = tokio::spawn(async move {
        let mut all = Vec::new();
        vm_reads.read_to_end(&mut all).await.unwrap();
        all
    });
    let frames = |bytes: &[u8]| -> Vec<u8> {
        bytes.chunks(37).flat_map(|payload| websocket::tests::masked(0x82, &frame::data(payload))).collect()
    };
    let wire = frames(up);
    client.write_all(&wire[..cut_up]).await.unwrap();
    let mut came = vec![0; cut_down];
    client.read_exact(&mut came).await.unwrap();
    drop(client);
    until_cut(&relay, 1).await;
    let (mut got, mut rest) = (Vec::new(), came.as_slice());
    while let [0x82, len, more @ ..] = rest
        && let Some((message, after)) = more.split_at_checked((*len).into())
    {
        got.extend_from_slice(if message[1] == 4 { &message[6..] } else { &[] });
        rest = after;
    }
    if let Some(at) = twice {
        let mut client = reopen(&relay, &sid, got.len() as u64);
        client.read_exact(&mut vec![0; at]).await.unwrap();
        drop(client);
        until_cut(&relay, 1).await;
        yield_now().await;
    }
    // The tunnel may still be about to notice.
    let mut client = loop {
        let mut client = reopen(&relay, &sid, got.len() as u64);
        let mut first = [0; 2];
        client.read_exact(&mut first).await.unwrap();
        if first[0] == 0x82 {
            break client;
        }
    };
    let mut welcome = [0; WELCOME_BACK - 2];
    client.read_exact(&mut welcome).await.unwrap();
    client.write_all(&frames(&up[count(&welcome)..])).await.unwrap();
    while got.len() < down.len() {
        let message = message(&mut client).await.expect("the rest comes");
        got.extend_from_slice(if message[1] == 4 { &message[6..] } else { &[] });
    }
    client.write_all(&websocket::tests::masked(0x88, &1000_u16.to_be_bytes())).await.unwrap();
    assert_eq!(closed(&mut client).await, 1000);
    drop((client, talking.await.unwrap()));
    assert!(got == down, "down: cut at {cut_up}, {cut_down}, {twice:?}");
    assert!(heard.await.unwrap() == up, "up: cut at {cut_up}, {cut_down}, {twice:?}");
}

#[tokio::test]
async fn a_cut_at_any_byte_of_any_frame_loses_nothing_in_either_direction() {
    let (up, down) = (bytes(150), bytes(200));
    // 5 frames up with 6 bytes of head and 6 of tag and length; down at least one with 2 and 6, usually 5.
    let (wire_up, wire_down) = (150 + 5 * (6 + 6), 200 + (2 + 6));
    for at in 0..=wire_up {
        carry(&up, &down, at, at.min(wire_down), None).await;
    }
    for at in 0..=wire_down {
        carry(&up, &down, wire_up, at, None).await;
    }
    for at in 0..=WELCOME_BACK {
        carry(&up, &down, wire_up / 2, wire_down / 2, Some(at)).await;
    }
}

#[tokio::test]
async fn every_breach_of_the_rules_ends_the_tunnel_with_its_own_code() {
    use websocket::tests::masked;
    let message = |tag: u8, body: &[u8]| masked(0x82, &[&[0, tag], body].concat());
    for (sent, code) in [
        (masked(0x88, &[0x03, 0xe8]), 1000),
        (masked(0x88, &[0x0f, 0xa0]), 1000),
        (vec![0x82, 1, 0], 1002),
        (masked(0xc2, b"x"), 1002),
        (message(7, &1_u64.to_be_bytes()), 4006),
        (masked(0x81, b"text"), 4007),
        (masked(0x89, b"ping"), 4007),
        (message(9, b""), 4008),
        (message(2, &[0; 8]), 4008),
        (message(4, &[0, 0, 0, 9, 1]), 4013),
        (vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 4013),
    ] {
        let relay = Arc::new(Relay::default());
        let (mut client, sid, mut vm) = open(&relay).await;
        client.write_all(&[message(4, &[0, 0, 0, 2, b'h', b'i']), sent].concat()).await.unwrap();
        assert_eq!(closed(&mut client).await, code);
        let mut heard = Vec::new();
        vm.read_to_end(&mut heard).await.unwrap();
        assert_eq!((heard.as_slice(), relay.owner(&sid)), (&b"hi"[..], None), "what came before the {code} arrives");
    }
}

#[tokio::test]
async fn the_end_of_the_vm_has_the_code_of_how_it_ended() {
    let relay = Arc::new(Relay::default());
    let (mut client, _, mut vm) = open(&relay).await;
    vm.write_all(b"bye").await.unwrap();
    drop(vm);
    assert_eq!(message(&mut client).await.unwrap()[6..], *b"bye");
    assert_eq!(closed(&mut client).await, 1000);

    let (mut client, _, vm) = open(&relay).await;
    vm.set_zero_linger().unwrap();
    drop(vm);
    assert_eq!(closed(&mut client).await, Close::READ_FAILED.code, "reset");

    // Once the client confirms nothing, the VM is not read from any more, and a reset is met by what is written.
    let (mut client, _, mut vm) = open(&relay).await;
    let talking = tokio::spawn(async move {
        let _ = vm.write_all(&vec![0; IAP_UNACKED_BYTES_MAX]).await;
        vm
    });
    let mut came = 0;
    while came < IAP_UNACKED_BYTES_MAX {
        came += message(&mut client).await.unwrap().len() - 6;
    }
    let vm = talking.await.unwrap();
    vm.set_zero_linger().unwrap();
    drop(vm);
    client.write_all(&websocket::tests::masked(0x82, &frame::data(b"anybody there?"))).await.unwrap();
    assert_eq!(closed(&mut client).await, Close::WRITE_FAILED.code, "reset while it is written to");

    let (mut client, sid, _vm) = open(&relay).await;
    relay.leave(|_| false);
    assert_eq!(closed(&mut client).await, Close::READ_FAILED.code, "switched off");
    assert_eq!(relay.owner(&sid), None);
}

#[tokio::test]
async fn a_reconnect_that_does_not_fit_is_refused_with_its_own_code_and_the_next_one_may_fit() {
    let relay = Arc::new(Relay::default());
    assert_eq!(closed(&mut reopen(&relay, "nobody", 0)).await, Close::SID_UNKNOWN.code);
    let (mut client, sid, mut vm) = open(&relay).await;
    vm.write_all(b"hello").await.unwrap();
    assert_eq!(message(&mut client).await.unwrap()[6..], *b"hello");
    assert_eq!(closed(&mut reopen(&relay, &sid, 5)).await, Close::SID_IN_USE.code);
    client.write_all(&websocket::tests::masked(0x82, &frame::ack(5))).await.unwrap();
    drop(client);
    until_cut(&relay, 1).await;
    assert_eq!(closed(&mut reopen(&relay, &sid, 6)).await, Close::BAD_ACK.code, "more than was sent");
    assert_eq!(closed(&mut reopen(&relay, &sid, 4)).await, Close::REWIND_FAILED.code, "less than was confirmed");
    assert_eq!(message(&mut reopen(&relay, &sid, 5)).await.unwrap()[..2], [0, 2]);
}

#[tokio::test]
async fn a_client_whose_credential_has_ended_is_asked_for_another_and_loses_nothing() {
    let relay = Arc::new(Relay::default());
    let (mut client, sid, mut vm) = open_until(&relay, Some(Instant::now())).await;
    assert_eq!(closed(&mut client).await, Close::REAUTHENTICATE.code);
    // Said after the close: nobody hears it before the client is back, or is known again.
    vm.write_all(b"still here").await.unwrap();
    let mut client = reopen(&relay, &sid, 0);
    assert_eq!(message(&mut client).await.unwrap()[..2], [0, 2]);
    assert_eq!(message(&mut client).await.unwrap()[6..], *b"still here");
    client.write_all(&websocket::tests::masked(0x82, &frame::data(b"so am I"))).await.unwrap();
    let mut heard = [0; 7];
    vm.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"so am I");
}

#[tokio::test]
async fn who_floods_talks_nonsense_or_vanishes_takes_no_more_than_its_share_and_disturbs_nobody() {
    use websocket::tests::masked;
    let relay = Arc::new(Relay::default());
    let (mut good, _, vm) = open(&relay).await;
    let (mut vm_reads, mut vm_writes) = vm.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut vm_reads, &mut vm_writes).await });

    // One writes for as long as it is read, to a VM that reads nothing.
    let (mut flood, _, _silent) = open(&relay).await;
    let data = masked(0x82, &frame::data(&[7; 16_384]));
    let mut taken = 0;
    let flooded = async {
        loop {
            flood.write_all(&data).await.unwrap();
            taken += data.len();
        }
    };
    // One confirms and confirms, reads nothing, and its VM talks without end.
    let (mut deaf, _, mut talker) = open(&relay).await;
    let deafened = async {
        let acks = masked(0x82, &frame::ack(0)).repeat(1_000);
        loop {
            deaf.write_all(&acks).await.unwrap();
        }
    };
    let talked = async {
        loop {
            talker.write_all(&data).await.unwrap();
        }
    };
    let (mut nonsense, nonsense_sid, _vm) = open(&relay).await;
    nonsense.write_all(&bytes(300)).await.unwrap();
    let (mut vanished, vanished_sid, mut vanished_vm) = open(&relay).await;
    vanished.write_all(&data[..9_000]).await.unwrap();
    drop(vanished);

    let (up, mut down, mut got) = (bytes(1 << 20), Vec::new(), 0);
    let carried = async {
        for piece in up.chunks(8_192) {
            good.write_all(&masked(0x82, &frame::data(piece))).await.unwrap();
            while down.len() < piece.len() {
                let message = message(&mut good).await.unwrap();
                if message[1] == 4 {
                    down.extend_from_slice(&message[6..]);
                }
            }
            assert_eq!(down, piece);
            got += down.len() as u64;
            down.clear();
            good.write_all(&masked(0x82, &frame::ack(got))).await.unwrap();
        }
    };
    tokio::select! {
        () = carried => {}
        () = flooded => {}
        () = deafened => {}
        () = talked => {}
    }
    assert_eq!(closed(&mut nonsense).await, Close::PROTOCOL.code);
    assert_eq!(relay.owner(&nonsense_sid), None);
    until_cut(&relay, 1).await;
    assert!(relay.owner(&vanished_sid).is_some(), "it may come back");
    let half = vanished_vm.try_read(&mut [0; 8]);
    assert_eq!(half.unwrap_err().kind(), io::ErrorKind::WouldBlock, "half a frame is nothing");
    drop(vanished_vm.shutdown().await);
    assert!(taken > 0, "the flood was read at first");
}
