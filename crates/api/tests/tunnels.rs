//! Many tunnels at once, in a process of their own, so that its memory is theirs.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, OnceLock};

use api::relay::{Client, Owner, Relay};
use model::{
    iam::Principal,
    limits::{IAP_SESSIONS_MAX, IAP_UNACKED_BYTES_MAX},
    name::{Link, Scope, Zone},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

const TUNNELS: usize = 1_000;
/// More than a tunnel and the buffers around it hold.
const SAID: usize = 2 * IAP_UNACKED_BYTES_MAX;
/// Buffers of the kernel's and of the pipe to the client: small, so that what is on its way is in the relay.
const BUFFER: u32 = 8 << 10;

fn owner() -> Owner {
    let zone: Zone = "asia-northeast1-b".parse().unwrap();
    let instance = Link::new(&"p-roject".parse().unwrap(), Scope::Zone(zone), "instances", "vm");
    Owner { principal: Principal::User { email: "ada@example.com".into() }, instance }
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// The client's end and the VM's.
async fn open(relay: &Arc<Relay>) -> (DuplexStream, TcpStream) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let to = listener.local_addr().unwrap();
    let near = TcpSocket::new_v4().unwrap();
    near.set_recv_buffer_size(BUFFER).unwrap();
    let (near, far) = tokio::join!(near.connect(to), TcpListener::accept(&listener));
    let (mut client, stream) = duplex(BUFFER as usize);
    tokio::spawn(relay.clone().open(owner(), near.unwrap(), Client::new(Box::new(stream), None)));
    client.read_exact(&mut [0; 2 + 6 + 32]).await.unwrap();
    (client, far.unwrap().0)
}

/// Payload until this many bytes have come; confirms what came as the stock client does.
async fn take(client: &mut DuplexStream, wanted: usize) -> Vec<u8> {
    let (mut got, mut confirmed) = (Vec::new(), 0);
    while got.len() < wanted {
        let mut head = [0; 2];
        client.read_exact(&mut head).await.unwrap();
        let len = if head[1] == 126 { client.read_u16().await.unwrap() } else { head[1].into() };
        let mut message = vec![0; len.into()];
        client.read_exact(&mut message).await.unwrap();
        if message[1] == 4 {
            got.extend_from_slice(&message[6..]);
        }
        if got.len() - confirmed > 32_768 {
            confirmed = got.len();
            // Under the mask 0.
            let ack = [&[0x82, 0x80 | 10, 0, 0, 0, 0, 0, 7][..], &(confirmed as u64).to_be_bytes()].concat();
            client.write_all(&ack).await.unwrap();
        }
    }
    got
}

/// What the VM of this number says: its own part of bytes that are here once.
fn said(number: usize) -> &'static [u8] {
    static ALL: OnceLock<Vec<u8>> = OnceLock::new();
    let all = ALL.get_or_init(|| (0..SAID + TUNNELS).map(|i| u8::try_from(i * i % 251).unwrap()).collect());
    &all[number..number + SAID]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tunnels_carry_at_once_and_each_keeps_to_its_share_of_memory() {
    const { assert!(TUNNELS <= IAP_SESSIONS_MAX) };
    let relay = Arc::new(Relay::default());
    // Whatever a first tunnel brings along is everybody's.
    let _first = open(&relay).await;
    let before = resident();
    let mut tunnels = Vec::new();
    for _ in 1..TUNNELS {
        tunnels.push(open(&relay).await);
    }
    // The pipe to the client is this test's, and within it.
    let each = (resident() - before) / TUNNELS;
    assert!(each < 24 << 10, "a silent tunnel takes {each} bytes");

    // Every VM talks, and no client listens: each is read until its tunnel is full.
    let (mut full, mut clients) = (JoinSet::new(), Vec::new());
    for (number, (client, mut vm)) in tunnels.into_iter().enumerate() {
        clients.push(client);
        full.spawn(async move {
            vm.write_all(&said(number)[..IAP_UNACKED_BYTES_MAX]).await.unwrap();
            (number, vm)
        });
    }
    let vms: Vec<(usize, TcpStream)> = full.join_all().await;
    let each = (resident() - before) / TUNNELS;
    // What is kept, what is written ahead of the client, and half as much again for the allocator.
    let share = (IAP_UNACKED_BYTES_MAX + (80 << 10)) * 3 / 2;
    assert!(each < share, "a full tunnel takes {each} bytes");

    // Now all of them listen at once, and everything arrives.
    let mut carried = JoinSet::new();
    for (number, mut vm) in vms {
        carried.spawn(async move {
            vm.write_all(&said(number)[IAP_UNACKED_BYTES_MAX..]).await.unwrap();
            // Open until its client has heard everything.
            vm
        });
    }
    let mut heard = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        heard.spawn(async move { assert!(take(&mut client, SAID).await == said(number), "tunnel {number}") });
    }
    heard.join_all().await;
    carried.join_all().await;
}
