//! Backends behind Private Service Connect: the host makes the connections, and what fails is answered as Envoy does.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use model::{planned::edge::DialBackend, record::RequestRecord};

use crate::rig::{
    BACKEND, BACKEND_SERVICE, Client, Container, NETWORK, full, nobody, patiently, raw, raw_container, run, serve_at,
};

const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

#[test]
fn a_request_reaches_the_backend_as_the_client_wrote_it_and_the_connection_is_kept() {
    run(async |rig| {
        let backend = Container::hello().await;
        let asked = rig.host_dials(backend.address);
        let mut client = Client::connect(rig.balancer(60_000).await).await;
        let answer =
            client.get_with("/p?q=1", &[("traceparent", "mine"), ("connection", "x-hop"), ("x-hop", "1")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert_eq!(answer.headers["via"], "1.1 google");
        assert!(!answer.headers.contains_key("server"), "the backend said nothing of itself");
        let seen = backend.last();
        assert_eq!((seen.line.as_str(), &seen.headers["host"]), ("GET /p?q=1", &"10.0.0.5".parse().unwrap()));
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1,10.0.0.5");
        assert_eq!(
            (&seen.headers["x-forwarded-proto"], &seen.headers["via"]),
            (&"http".parse().unwrap(), &"1.1 google".parse().unwrap())
        );
        assert_eq!(seen.headers["traceparent"], "mine");
        assert!(!seen.headers.contains_key("x-hop") && !seen.headers.contains_key("x-cloud-trace-context"));
        // The answer's end gives the connection back.
        let body =
            Request::post("/again").header("host", "h").body(Full::new(Bytes::from("x".repeat(100_000)))).unwrap();
        assert_eq!(client.ask(body).await.status, 200);
        assert_eq!(backend.last().body.len(), 100_000);
        assert_eq!(backend.connections.get(), 1);
        assert_eq!(*asked.lock().unwrap(), [DialBackend { network: NETWORK, endpoint: BACKEND }]);
        let records = rig.control.records(2).await;
        assert!(
            records.iter().all(|record| record.service.is_none()),
            "a service's log is that of whoever publishes it"
        );
        let led_to = |record: &RequestRecord| record.front.as_ref().and_then(|front| front.backend);
        assert!(records.iter().all(|record| led_to(record) == Some(BACKEND_SERVICE)), "the balancer's log may want it");
        assert!(records[1].request_bytes > 100_000, "{:?}", records[1]);
    });
}

#[test]
fn what_a_backend_does_instead_of_answering_is_told_in_envoys_words() {
    type Case = (&'static [u8], u16, &'static str);
    let cases: [Case; 2] = [(b"", 503, "connection termination"), (b"garbage\r\n\r\n", 502, "protocol error")];
    for (says, status, reason) in cases {
        run(async |rig| {
            let _asked = rig.host_dials(raw_container(says).await);
            let answer = Client::connect(rig.balancer(60_000).await).await.get("/").await;
            assert_eq!((answer.status, answer.body), (status, format!("{RESET}{reason}")));
            assert_eq!(answer.headers["content-type"], "text/plain");
        });
    }
}

#[test]
fn a_backend_that_refuses_is_asked_twice_and_without_a_host_nobody_is() {
    run(async |rig| {
        let mut client = Client::connect(rig.balancer(60_000).await).await;
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.body), (503, format!("{RESET}local connection failure")));
        let asked = rig.host_dials(nobody());
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.body), (503, format!("{RESET}connection failure")));
        assert_eq!(asked.lock().unwrap().len(), 2);
    });
}

#[test]
fn a_backend_has_its_time_for_an_answer_and_one_that_was_silent_is_connected_anew() {
    run(async |rig| {
        let (backend, connections) = serve_at("[::1]:0", |request, _| async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
            let body = request.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or_default();
            Response::new(full(body.to_string()))
        })
        .await;
        let _asked = rig.host_dials(backend);
        let address = rig.balancer(300).await;
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("/").await.status, 200);
        let answer = client.get("/slow").await;
        assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"));
        assert_eq!((client.get("/").await.status, connections.get()), (200, 2));
        // The time for the answer begins when the request has ended: an upload that lasts longer is no timeout.
        let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
        let answer = patiently("an answer", async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            slow.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            for byte in [b"a", b"b", b"c", b"d"] {
                tokio::time::sleep(Duration::from_millis(150)).await;
                slow.write_all(byte).await.unwrap();
            }
            let mut answer = String::new();
            slow.read_to_string(&mut answer).await.unwrap();
            answer
        })
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("4"), "{answer}");
    });
}

#[test]
fn an_answer_that_breaks_off_breaks_off_for_the_client_too() {
    run(async |rig| {
        let _asked = rig.host_dials(raw_container(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await);
        let answer = raw(rig.balancer(60_000).await, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("half"), "{answer}");
    });
}

#[test]
fn websockets_are_refused() {
    run(async |rig| {
        let mut client = Client::connect(rig.balancer(60_000).await).await;
        let answer = client.get_with("/", &[("upgrade", "websocket"), ("connection", "upgrade")]).await;
        assert_eq!(answer.status, 501);
    });
}
