//! The way of a request: listener, route, instance, record.

use crate::rig::{Client, Container, LISTENER, run, shop, shop_1};

#[test]
fn a_request_reaches_the_instance_and_its_record_reaches_control() {
    run(async |rig| {
        let container = Container::hello().await;
        let address = rig.shop(&[("i-1", container.address)]).await;
        let mut client = Client::connect(address).await;
        let answer = client.get_with("/p?q=1", &[("user-agent", "till/1"), ("referer", "http://r/")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert_eq!(answer.headers["server"], "Google Frontend");
        assert_eq!(answer.headers["via"], "1.1 google");
        let seen = container.last();
        assert_eq!(seen.line, "GET /p?q=1");
        assert_eq!(seen.headers["host"], "10.0.0.5");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1,10.0.0.5");

        let record = rig.control.records(1).await.remove(0);
        assert_eq!((record.service, record.revision), (shop(), Some(shop_1())));
        assert_eq!(record.instance.unwrap().0, "i-1");
        assert_eq!((record.listener, record.status), (Some(LISTENER), 200));
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
