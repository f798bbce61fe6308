//! The resolver over real sockets.

#![allow(clippy::unwrap_used)]

mod scene;

use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use proptest::prelude::*;
use scene::{Scene, VM};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

fn ask(name: &str) -> Message {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query
}

fn address(reply: &Message) -> Option<Ipv4Addr> {
    reply.answers.iter().find_map(|record| match &record.data {
        RData::A(a) => Some(a.0),
        _ => None,
    })
}

#[tokio::test]
async fn names_resolve_over_udp_after_garbage() {
    let scene = Scene::open().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"garbage", scene.dns).await.unwrap();
    for (name, want) in [
        ("metadata.google.internal.", Some(guest::ADDRESS)),
        ("test-vm.c.consumer-1.internal.", Some(VM)),
        ("example.com.", None),
    ] {
        let query = ask(name);
        socket.send_to(&query.to_vec().unwrap(), scene.dns).await.unwrap();
        let mut bytes = [0; 1500];
        let (len, from) = socket.recv_from(&mut bytes).await.unwrap();
        let reply = Message::from_vec(&bytes[..len]).unwrap();
        assert_eq!((from, reply.metadata.id, address(&reply)), (scene.dns, query.metadata.id, want), "{name}");
    }
}

#[tokio::test]
async fn one_tcp_connection_carries_many_questions_until_it_carries_nonsense() {
    let scene = Scene::open().await;
    let mut stream = TcpStream::connect(scene.dns).await.unwrap();
    for _ in 0..3 {
        let query = ask("nothing.google.internal.").to_vec().unwrap();
        stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let len = stream.read_u16().await.unwrap();
        let mut bytes = vec![0; usize::from(len)];
        stream.read_exact(&mut bytes).await.unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert!(stream.read_u8().await.is_err(), "closed");
}

proptest! {
    #[test]
    fn no_bytes_make_the_resolver_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        guest::dns::answer(&guest::dns::Zone::default(), &bytes, guest::dns::Transport::Udp);
    }
}
