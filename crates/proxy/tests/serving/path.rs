//! The way of a request: listener, route, instance, record.

use std::{net::Ipv6Addr, process::Command};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use model::planned::edge::EdgeItem;
use tokio::net::TcpStream;

use crate::{
    rig::{BACKEND_SERVICE, Client, Container, LISTENER, NETWORK, run, shop, shop_1},
    sys::own_network,
};

#[test]
fn a_request_reaches_the_instance_and_its_record_reaches_control() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let stream = TcpStream::connect(address).await.unwrap();
        let peer = stream.local_addr().unwrap();
        let mut client = Client::over(stream).await;
        let answer = client.get_with("/p?q=1", &[("user-agent", "till/1"), ("referer", "http://r/")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert_eq!(answer.headers["server"], "Google Frontend");
        assert_eq!(answer.headers["via"], "1.1 google");
        let seen = container.last();
        assert_eq!(seen.line, "GET /p?q=1");
        assert_eq!(seen.headers["host"], "10.0.0.5");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1,10.0.0.5");

        let record = rig.control.records(1).await.remove(0);
        assert_eq!((record.service, record.revision), (Some(shop()), Some(shop_1())));
        assert_eq!(record.instance.unwrap().0, "i-1");
        let front = record.front.unwrap();
        assert_eq!((front.listener, front.backend, front.pattern), (LISTENER, Some(BACKEND_SERVICE), None));
        assert_eq!((front.peer, record.status), (peer, 200));
        assert_eq!(record.url, "http://10.0.0.5/p?q=1");
        assert_eq!((record.method.as_str(), record.protocol.as_str()), ("GET", "HTTP/1.1"));
        assert_eq!((record.user_agent.as_deref(), record.referer.as_deref()), (Some("till/1"), Some("http://r/")));
        assert_eq!(record.remote.to_string(), "127.0.0.1");
        assert_eq!(
            seen.headers["x-cloud-trace-context"].to_str().unwrap().split('/').next(),
            Some(record.trace.as_str())
        );
        assert_eq!(seen.headers["traceparent"], format!("00-{}-{}-00", record.trace, record.span).as_str());
        assert_eq!(record.refusal, None);
        assert!(record.latency_ns > 0);
    });
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

#[test]
fn a_container_sees_the_endpoints_own_address_and_connections_are_kept_apart_by_it() {
    own_network();
    ip("link set lo up");
    ip("-6 route add local fda3:e722:ac3:cc00:22b:7027::/96 dev lo");
    ip("addr add 10.0.3.2/32 dev lo");
    ip("addr add 10.0.3.3/32 dev lo");
    run(async |rig| {
        let container = Container::hello().await;
        let prefix = "fda3:e722:ac3:cc00:22b:7027::".parse().unwrap();
        rig.control.set(EdgeItem::Network(NETWORK, prefix)).await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        for (nat, want) in [("10.0.3.2", "a00:302"), ("10.0.3.3", "a00:303"), ("10.0.3.2", "a00:302")] {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{nat}:0").parse().unwrap()).unwrap();
            let mut client = Client::over(socket.connect(address).await.unwrap()).await;
            assert_eq!(client.get("/").await.status, 200);
            let want: Ipv6Addr = format!("fda3:e722:ac3:cc00:22b:7027:{want}").parse().unwrap();
            assert_eq!(container.last().peer.ip(), want);
            let seen = container.last();
            assert_eq!(seen.headers["x-forwarded-for"], format!("{nat},10.0.0.5").as_str());
        }
        assert_eq!(container.connections.get(), 2, "one connection for each source");
        let remotes: Vec<String> = rig.control.records(3).await.iter().map(|r| r.remote.to_string()).collect();
        assert_eq!(remotes[1], "fda3:e722:ac3:cc00:22b:7027:a00:303");
    });
}

#[test]
fn a_container_on_ipv4_only_is_reached_and_the_log_still_shows_the_endpoint() {
    run(async |rig| {
        let container = Container::at("127.0.0.1:0").await;
        rig.control.set(EdgeItem::Network(NETWORK, "fda3:e722:ac3:cc00:22b:7027::".parse().unwrap())).await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let mut client = Client::connect(address).await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.status, 200);
        }
        assert_eq!((container.connections.get(), container.last().peer.ip().to_string().as_str()), (1, "127.0.0.1"));
        assert_eq!(rig.control.records(1).await[0].remote.to_string(), "fda3:e722:ac3:cc00:22b:7027:7f00:1");
    });
}

#[test]
fn bodies_pass_whole_in_both_directions_and_are_counted() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let body = Bytes::from(vec![b'x'; 3 << 20]);
        let request = Request::post("/up").header("host", "h").body(Full::new(body.clone())).unwrap();
        assert_eq!(Client::connect(address).await.ask(request).await.status, 200);
        assert_eq!(container.last().body, body);
        let record = rig.control.records(1).await.remove(0);
        let head = "POST /up HTTP/1.1\r\nhost: h\r\ncontent-length: 3145728\r\n\r\n".len();
        assert_eq!(record.request_bytes, u64::try_from(body.len() + head).unwrap());
    });
}

#[test]
fn the_bytes_of_an_answer_are_counted_as_they_were_sent() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let answer = crate::rig::raw(address, "GET / HTTP/1.0\r\nHost: h\r\n\r\n").await;
        let record = rig.control.records(1).await.remove(0);
        // hyper may name the connection's fate in a head; nothing else is added.
        let sent = answer.replace("connection: close\r\n", "").len();
        assert_eq!(record.response_bytes, u64::try_from(sent).unwrap(), "{answer}");
        assert_eq!(record.protocol, "HTTP/1.0");
    });
}
