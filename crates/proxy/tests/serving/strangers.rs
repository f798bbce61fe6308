//! Clients that are slow, silent, many or unwanted.

use std::time::Duration;

use http::Response;
use model::planned::edge::{EdgeItem, ToProxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::rig::{
    Client, Container, LISTENER, NETWORK, full, listener, patiently, public, raw, revision, run, serve_at, shop_1,
};

async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = patiently("the end of a connection", stream.read_to_end(&mut rest)).await;
}

#[test]
fn clients_of_a_lost_endpoint_are_closed_before_the_mark_is_answered_and_others_stay() {
    run(async |rig| {
        let (container, _) = serve_at("[::1]:0", |request, _| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            Response::new(full("hello"))
        })
        .await;
        let address = rig.shop(&[("i-1", container)]).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        rig.control
            .hears("demand", |m| {
                matches!(m, model::planned::edge::FromProxy::Demand { in_flight: 1, .. }).then_some(())
            })
            .await;
        for (network, peer) in [(NETWORK, [10, 9, 9, 9]), (model::id::NetworkId(99), [127, 0, 0, 1])] {
            rig.control.send(&ToProxy::CloseClients { network, peer: peer.into() }).await;
        }
        rig.control.mark().await;
        idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        patiently("an answer", idle.read_exact(&mut head)).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");

        rig.control.send(&ToProxy::CloseClients { network: NETWORK, peer: [127, 0, 0, 1].into() }).await;
        rig.control.mark().await;
        ends(&mut idle).await;
        ends(&mut busy).await;
        let records = rig.control.records(2).await;
        assert!(records.iter().any(|r| r.url.ends_with("/never") && r.status == 499), "{records:?}");
    });
}

#[test]
fn a_rule_that_is_gone_closes_its_port_and_lets_answers_end() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert_eq!(Client::connect(address).await.get("/").await.status, 200);
        rig.unlisten();
        ends(&mut idle).await;
        patiently("a refused connection", async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
}

#[test]
fn a_silent_connection_is_closed_after_the_keepalive_of_its_listener() {
    run(async |rig| {
        let container = Container::hello().await;
        let mut short = listener();
        short.keepalive_ms = 1_000;
        rig.shop(&[("i-1", container.address)]).await;
        rig.control.set(EdgeItem::Listener(LISTENER, Box::new(short))).await;
        rig.control.mark().await;
        let address = rig.listen().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        ends(&mut stream).await;
    });
}

#[test]
fn a_slow_body_streams_through_and_does_not_hold_others_up() {
    run(async |rig| {
        let (container, _) = serve_at("[::1]:0", |request, _| async move {
            // Echoes frame by frame.
            Response::new(http_body_util::BodyExt::boxed_unsync(Echo(request.into_body())))
        })
        .await;
        let address = rig.shop(&[("i-1", container)]).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(2).any(|w| w == b"ab") {
            assert_ne!(patiently("the first half", slow.read_buf(&mut seen)).await.unwrap(), 0);
        }
        assert_eq!(Client::connect(address).await.get("/").await.status, 200);
        slow.write_all(b"cd").await.unwrap();
        while !seen.windows(2).any(|w| w == b"cd") {
            assert_ne!(patiently("the second half", slow.read_buf(&mut seen)).await.unwrap(), 0);
        }
    });
}

struct Echo(hyper::body::Incoming);

impl hyper::body::Body for Echo {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, std::convert::Infallible>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx).map(|frame| frame.map(|frame| Ok(frame.unwrap())))
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off_at_the_timeout() {
    run(async |rig| {
        let (container, _) = serve_at("[::1]:0", |_, _| async { Response::new(full(vec![b'a'; 31 << 20])) }).await;
        let mut plan = revision(&[("i-1", container)]);
        plan.timeout_ms = 200;
        let address = rig.shop_with(public(), plan).await;
        let deaf = tokio::net::TcpSocket::new_v4().unwrap();
        deaf.set_recv_buffer_size(4_096).unwrap();
        let mut deaf = deaf.connect(address).await.unwrap();
        deaf.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let record = rig.control.records(1).await.remove(0);
        assert_eq!(record.revision, Some(shop_1()));
        assert!(record.response_bytes < 31 << 20, "{record:?}");
    });
}

#[test]
fn a_pipelined_pair_is_answered_in_order() {
    run(async |rig| {
        let (container, _) =
            serve_at("[::1]:0", |request, _| async move { Response::new(full(request.uri().path().to_owned())) }).await;
        let address = rig.shop(&[("i-1", container)]).await;
        let pair = "GET /one HTTP/1.1\r\nHost: a\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = raw(address, pair).await;
        let (one, two) = (answer.find("/one").unwrap(), answer.find("/two").unwrap());
        assert!(one < two);
    });
}

#[test]
fn a_thousand_idle_connections_cost_little_and_service_goes_on() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let before = resident_kib();
        let mut idle = Vec::new();
        for _ in 0..1_000 {
            let mut client = Client::connect(address).await;
            assert_eq!(client.get("/").await.status, 200);
            idle.push(client);
        }
        // Both ends of the connection are in this process, and so are other tests, which may end in between.
        let each = resident_kib().saturating_sub(before) / 1_000;
        assert!(each < 64, "{each} KiB for one idle connection");
        assert_eq!(Client::connect(address).await.get("/").await.status, 200);
        drop(idle);
    });
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_head_that_never_ends_does_not_hold_its_connection_for_ever() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
        let began = std::time::Instant::now();
        let mut rest = Vec::new();
        let most = model::limits::HEAD_READ_MAX + Duration::from_secs(20);
        let _ = tokio::time::timeout(most, stream.read_to_end(&mut rest)).await.expect("the proxy closes it");
        assert!(began.elapsed() < most);
    });
}
