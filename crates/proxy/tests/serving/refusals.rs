//! Every answer that is the platform's own: its status, its words, and whether the log hears of it.

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use identity::{
    keys::SigningKey,
    token::{IdClaims, sign_id_token},
};
use model::{
    planned::edge::{EdgeItem, EdgeService, Invokers, Route},
    run::Ingress,
};

use crate::rig::{
    BACKEND_SERVICE, Client, Container, LISTENER, Rig, full, lead, listener, public, raw, raw_container, revision, run,
    serve_at, shop, shop_1,
};

const URL: &str = "https://shop-123.asia-northeast1.run.app";

const TILL: &str = "till@consumer-1.iam.gserviceaccount.com";

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn token(key: &SigningKey) -> String {
    let claims = IdClaims {
        aud: URL.into(),
        azp: None,
        email: Some(TILL.into()),
        email_verified: true,
        exp: now() + 3_600,
        google: None,
        iat: now(),
        iss: "https://accounts.google.com".into(),
        sub: "1".into(),
    };
    sign_id_token(key, &claims)
}

#[test]
fn what_may_not_be_passed_on_is_refused_before_any_service_hears_of_it() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let many_headers = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
        let long_header = format!("x: {}\r\n", "a".repeat(61 << 10));
        for (what, request, want) in [
            ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), 400),
            ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400),
            ("a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), 400),
            ("trace", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
            ("connect", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
            ("too many headers", format!("GET / HTTP/1.1\r\nHost: a\r\n{many_headers}\r\n"), 431),
            ("too long a header", format!("GET / HTTP/1.1\r\nHost: a\r\n{long_header}\r\n"), 431),
            ("a folded header", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n".into(), 400),
            ("a space before the colon", "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n".into(), 400),
            (
                "two lengths",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".into(),
                400,
            ),
            ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na".into(), 400),
            ("an unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow\r\n\r\n".into(), 400),
            ("no http", "\u{16}\u{3}\u{1}\r\n\r\n".into(), 400),
        ] {
            let request = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
            let answer = raw(address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {want} ")), "{what}: {answer}");
        }
        rig.control.mark().await;
        assert_eq!(container.seen.borrow().len(), 0);
        assert_eq!(Client::connect(address).await.get("/").await.status, 200);
        assert_eq!(rig.control.records(1).await.len(), 1, "only the last request is logged");
    });
}

#[test]
fn a_request_that_two_parsers_could_read_differently_reaches_the_container_as_one() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        for (what, request) in [
            (
                "length and coding",
                format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
                ),
            ),
            (
                "coding and length",
                format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"
                ),
            ),
            (
                "an odd chunk size",
                format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x\r\n\r\n{smuggled}"),
            ),
            (
                "coding in 1.0",
                format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
            ),
        ] {
            let _ = raw(address, &request).await;
            assert!(!container.seen.borrow().iter().any(|seen| seen.line.contains("smuggled")), "{what}");
            for seen in container.seen.borrow().iter() {
                let framed = ["content-length", "transfer-encoding"].iter().filter(|h| seen.headers.contains_key(**h));
                assert!(framed.count() <= 1, "{what}: {:?}", seen.headers);
            }
        }
        // A bare line feed ends a line (RFC 9112, 2.2) here, and is written as CR LF to the container.
        let bare = raw(address, "GET /bare HTTP/1.1\nHost: a\nX-A: 1\nConnection: close\n\n").await;
        assert!(bare.starts_with("HTTP/1.1 200 "), "{bare}");
        assert_eq!(
            (container.last().line.as_str(), &container.last().headers["x-a"]),
            ("GET /bare", &"1".parse().unwrap())
        );
    });
}

#[test]
fn routes_that_lead_nowhere_answer_404_and_are_in_no_services_log() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let mut client = Client::connect(address).await;
        let mut ghost = shop();
        ghost.name = "ghost".into();
        let mask = Route::Mask { project: shop().project, region: shop().region, mask: "/<service>".into() };
        let tagged = Route::Service { service: shop(), tag: Some("no-such".into()) };
        for (what, route, ingress, path, want, says, served) in [
            ("no backend", Route::NoBackend, Ingress::All, "/", 404, "fault filter abort", false),
            (
                "no such service",
                Route::Service { service: ghost, tag: None },
                Ingress::All,
                "/",
                404,
                "Page not found",
                false,
            ),
            ("a mask that fits", mask.clone(), Ingress::All, "/shop/x", 200, "hello", true),
            ("a mask that does not", mask, Ingress::All, "/", 404, "Page not found", false),
            ("no such tag", tagged, Ingress::All, "/", 404, "Page not found", true),
            ("ingress none", listener().default.route, Ingress::None, "/", 404, "Page not found", false),
            ("ingress internal", listener().default.route, Ingress::Internal, "/", 200, "hello", true),
            (
                "internal and balancers",
                listener().default.route,
                Ingress::InternalAndCloudLoadBalancing,
                "/",
                200,
                "hello",
                true,
            ),
        ] {
            let mut changed = listener();
            changed.default = lead(route);
            rig.control.set(EdgeItem::Listener(LISTENER, Box::new(changed))).await;
            rig.control.set(EdgeItem::Service(shop(), Box::new(EdgeService { ingress, ..public() }))).await;
            rig.control.mark().await;
            rig.control.forget();
            let answer = client.get(path).await;
            assert_eq!((answer.status, answer.body.contains(says)), (want, true), "{what}: {}", answer.body);
            let record = rig.control.records(1).await.remove(0);
            assert_eq!(record.service.is_some(), served, "{what}");
            let front = record.front.unwrap();
            assert_eq!(
                (front.listener, front.backend),
                (LISTENER, Some(BACKEND_SERVICE)),
                "for the balancer's log: {what}"
            );
        }
    });
}

#[test]
fn a_listener_that_control_has_not_explained_yet_answers_fault_filter_abort() {
    run(async |rig| {
        rig.control.send(&model::planned::edge::ToProxy::Complete).await;
        rig.control.mark().await;
        let address = rig.listen().await;
        let answer = Client::connect(address).await.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (404, "fault filter abort"));
        assert_eq!(answer.headers["content-type"], "text/plain");
    });
}

#[test]
fn from_outside_only_ingress_all_is_reached_and_only_by_its_own_hosts() {
    run(async |rig| {
        let container = Container::hello().await;
        let tagged = {
            let mut service = public();
            service.traffic[0].tag = Some("blue".into());
            service
        };
        rig.shop_with(tagged.clone(), revision(&[("i-1", container.address)])).await;
        for (host, ingress, want) in [
            ("shop-123.asia-northeast1.run.app", Ingress::All, 200),
            ("SHOP-123.asia-northeast1.run.app:443", Ingress::All, 200),
            ("blue---shop-123.asia-northeast1.run.app", Ingress::All, 200),
            ("red---shop-123.asia-northeast1.run.app", Ingress::All, 404),
            ("other-123.asia-northeast1.run.app", Ingress::All, 404),
            ("shop-123.asia-northeast1.run.app", Ingress::Internal, 404),
            ("shop-123.asia-northeast1.run.app", Ingress::InternalAndCloudLoadBalancing, 404),
            ("shop-123.asia-northeast1.run.app", Ingress::None, 404),
        ] {
            let service = EdgeService { ingress, ..tagged.clone() };
            rig.control.set(EdgeItem::Service(shop(), Box::new(service))).await;
            rig.control.mark().await;
            let mut door = rig.outside().await;
            let who = r#"{"peer":"203.0.113.9","scheme":"https"}"#;
            tokio::io::AsyncWriteExt::write_all(&mut door, format!("{who}\n").as_bytes()).await.unwrap();
            let request = Request::get("/x").header("host", host).body(Full::default()).unwrap();
            let answer = Client::over(door).await.ask(request).await;
            assert_eq!(answer.status, want, "{host} {ingress:?}");
            assert!(!answer.headers.contains_key("via"));
        }
        let seen = container.last();
        assert_eq!(seen.headers["x-forwarded-for"], "203.0.113.9");
        assert_eq!(seen.headers["x-forwarded-proto"], "https");
        assert_eq!(seen.headers["forwarded"], "for=\"203.0.113.9\";proto=https");
        let record = rig.control.records(1).await.remove(0);
        assert_eq!(record.url, "https://shop-123.asia-northeast1.run.app/x");
        assert_eq!((record.remote.to_string().as_str(), record.front), ("203.0.113.9", None));
    });
}

/// A service that one account may invoke, a client of it, and that account's authorization.
async fn private_shop(rig: &Rig, container: &Container) -> (EdgeService, Client, String) {
    let key = SigningKey::generate().unwrap();
    let accounts = [("1".into(), TILL.into())].into();
    let service = EdgeService { invokers: Invokers { accounts, ..Invokers::default() }, ..public() };
    rig.control.set(EdgeItem::Keys(vec![key.public().clone()])).await;
    let address = rig.shop_with(service.clone(), revision(&[("i-1", container.address)])).await;
    (service, Client::connect(address).await, format!("Bearer {}", token(&key)))
}

#[test]
fn a_private_service_answers_401_or_403_and_logs_why() {
    run(async |rig| {
        let container = Container::hello().await;
        let (_, mut client, genuine) = private_shop(&rig, &container).await;

        let answer = client.get("/a&b?secret").await;
        assert_eq!(answer.status, 403);
        assert!(answer.body.contains("get URL <code>/a&amp;b</code> from this server."), "{}", answer.body);
        assert_eq!(answer.headers["content-type"], "text/html; charset=UTF-8");

        let answer = client.get_with("/", &[("authorization", "Bearer ya29.access")]).await;
        assert_eq!(answer.status, 401);
        let challenge = "Bearer error=\"invalid_token\" error_description=\"The access token could not be verified\"";
        assert_eq!(answer.headers["www-authenticate"], challenge);

        assert_eq!(container.seen.borrow().len(), 0);
        assert_eq!(client.get_with("/", &[("authorization", &genuine)]).await.status, 200);
        let shown = container.last().headers["authorization"].to_str().unwrap().to_owned();
        assert!(shown.ends_with(".SIGNATURE_REMOVED_BY_GOOGLE"), "{shown}");

        let records = rig.control.records(3).await;
        let told = |n: usize| records[n].refusal.clone().unwrap_or_default();
        assert!(told(0).starts_with("The request was not authenticated."), "{}", told(0));
        assert!(told(1).contains("The access token could not be verified."), "{}", told(1));
        assert_eq!((records[0].instance.clone(), records[0].revision.clone()), (None, None));
        assert_eq!(records[2].refusal, None);
    });
}

#[test]
fn a_revoked_role_holds_for_the_next_request_after_the_mark() {
    run(async |rig| {
        let container = Container::hello().await;
        let (service, mut client, genuine) = private_shop(&rig, &container).await;
        for _ in 0..3 {
            for (invokers, want) in [(service.invokers.clone(), 200), (Invokers::default(), 403)] {
                let changed = EdgeService { invokers, ..service.clone() };
                rig.control.set(EdgeItem::Service(shop(), Box::new(changed))).await;
                rig.control.mark().await;
                assert_eq!(client.get_with("/", &[("authorization", &genuine)]).await.status, want);
            }
        }
        rig.control.set(EdgeItem::Service(shop(), Box::new(service))).await;
        rig.control.set(EdgeItem::Keys(vec![])).await;
        rig.control.mark().await;
        assert_eq!(client.get_with("/", &[("authorization", &genuine)]).await.status, 401);
    });
}

#[test]
fn a_container_that_breaks_http_gives_503_and_is_reported() {
    for answer in
        [&b""[..], b"garbage\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"]
    {
        run(async |rig| {
            let container = raw_container(answer).await;
            let address = rig.shop(&[("i-1", container)]).await;
            let answer = Client::connect(address).await.get("/").await;
            assert_eq!((answer.status, answer.body.as_str()), (503, "Service Unavailable"));
            rig.control
                .hears("Broken", |m| match m {
                    model::planned::edge::FromProxy::Broken { instance, revision } => {
                        assert_eq!((instance.0.as_str(), revision), ("i-1", &shop_1()));
                        Some(())
                    }
                    _ => None,
                })
                .await;
            let record = rig.control.records(1).await.remove(0);
            assert_eq!((record.status, record.instance.unwrap().0.as_str()), (503, "i-1"));
            assert!(record.refusal.unwrap().contains("malformed"));
        });
    }
}

#[test]
fn a_slow_container_is_cut_off_at_the_timeout() {
    run(async |rig| {
        let (container, _) = serve_at("[::1]:0", |request, _| async move {
            if request.uri().path() == "/silent" {
                std::future::pending::<()>().await;
            }
            Response::new(Endless.boxed_unsync())
        })
        .await;
        let mut slow = revision(&[("i-1", container)]);
        slow.timeout_ms = 100;
        let address = rig.shop_with(public(), slow).await;
        let answer = Client::connect(address).await.get("/silent").await;
        assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"));
        let request = Request::get("/endless").header("host", "h").body(Full::default()).unwrap();
        assert!(Client::connect(address).await.try_ask(request).await.is_err(), "the answer is cut off");
        for record in rig.control.records(2).await {
            assert_eq!((record.status, record.instance.is_some()), (504, true));
            assert!(record.refusal.unwrap().contains("maximum request timeout"));
        }
    });
}

/// A body that never ends and never says anything.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, std::convert::Infallible>>> {
        std::task::Poll::Pending
    }
}

#[test]
fn bodies_over_32_mib_are_refused_declared_or_not() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let declared = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 33554433\r\n\r\n";
        let answer = raw(address, declared).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert_eq!(container.seen.borrow().len(), 0);

        let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "a".repeat(1 << 20));
        let body = chunk.repeat(33) + "0\r\n\r\n";
        let answer =
            raw(address, &format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
        for record in rig.control.records(2).await {
            assert_eq!(record.status, 413);
        }
        assert!(
            rig.control.heard(|m| matches!(m, model::planned::edge::FromProxy::Broken { .. }).then_some(())).is_empty()
        );
    });
}

#[test]
fn an_upgrade_to_websocket_is_refused_and_other_offers_are_ignored() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let mut client = Client::connect(address).await;
        let answer = client.get_with("/", &[("connection", "upgrade"), ("upgrade", "websocket")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (501, "WebSocket upgrades are not supported"));
        let answer = client
            .get_with("/", &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "x")])
            .await;
        assert_eq!(answer.status, 200);
        assert!(!container.last().headers.contains_key("http2-settings"));
    });
}

#[test]
fn a_declared_response_over_32_mib_is_replaced() {
    run(async |rig| {
        let (container, _) =
            serve_at("[::1]:0", |_, _| async { Response::new(full(vec![b'a'; (32 << 20) + 1])) }).await;
        let address = rig.shop(&[("i-1", container)]).await;
        let answer = Client::connect(address).await.get("/").await;
        assert_eq!(answer.status, 500);
        let record = rig.control.records(1).await.remove(0);
        assert_eq!(record.refusal.unwrap(), "Response size was too large. Please consider reducing response size.");
    });
}
