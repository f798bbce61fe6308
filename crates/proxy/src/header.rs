//! What the proxy changes in the heads of requests and answers. Pure.
//!
//! Hop-by-hop fields end here, the client's address and the trace are added, nothing else is touched. Start with
//! [`to_container`] and [`to_client`].

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, PROXY_AUTHORIZATION, SERVER, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
};

use crate::trace::Trace;

pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub static X_CLOUD_TRACE_CONTEXT: HeaderName = HeaderName::from_static("x-cloud-trace-context");
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub static X_SERVERLESS_AUTHORIZATION: HeaderName = HeaderName::from_static("x-serverless-authorization");

static VIA_GOOGLE: HeaderValue = HeaderValue::from_static("1.1 google");
static SERVER_NAME: HeaderValue = HeaderValue::from_static("Google Frontend");

/// What every request of one client connection is told about it, made once per connection.
#[derive(Clone, Debug)]
pub struct Hop {
    /// `CLIENT,VIP`, or `CLIENT` from outside.
    forwarded_for: HeaderValue,
    forwarded: HeaderValue,
    proto: HeaderValue,
    /// Through a load balancer: it adds `Via`.
    balanced: bool,
}

impl Hop {
    pub fn new(client: IpAddr, vip: Option<IpAddr>, scheme: &str) -> Hop {
        let value = |text: String| HeaderValue::try_from(text).expect("addresses make header values");
        let node = match client {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let secure = scheme == "https";
        let proto = if secure { "https" } else { "http" };
        Hop {
            forwarded_for: value(vip.map_or_else(|| client.to_string(), |vip| format!("{client},{vip}"))),
            forwarded: value(format!("for=\"{node}\";proto={proto}")),
            proto: HeaderValue::from_static(proto),
            balanced: vip.is_some(),
        }
    }
}

/// Rewrites a request's head for the container.
pub fn to_container(headers: &mut HeaderMap, hop: &Hop, trace: Trace) {
    to_backend(headers, hop);
    headers.insert(FORWARDED, hop.forwarded.clone());
    trace.write(headers);
}

/// Rewrites a request's head for a backend that is a front end itself: the trace is its to begin.
pub fn to_backend(headers: &mut HeaderMap, hop: &Hop) {
    strip(headers, Direction::Request);
    let forwarded_for = match headers.contains_key(&X_FORWARDED_FOR) {
        true => append(headers, &hop.forwarded_for),
        false => hop.forwarded_for.clone(),
    };
    headers.insert(X_FORWARDED_FOR.clone(), forwarded_for);
    headers.insert(X_FORWARDED_PROTO.clone(), hop.proto.clone());
    if hop.balanced {
        headers.append(VIA, VIA_GOOGLE.clone());
    }
}

/// Rewrites a backend's answer for the client.
pub fn from_backend(headers: &mut HeaderMap, hop: &Hop) {
    strip(headers, Direction::Response);
    if hop.balanced {
        headers.append(VIA, VIA_GOOGLE.clone());
    }
}

/// Rewrites a container's or our own answer for the client.
pub fn to_client(headers: &mut HeaderMap, hop: &Hop, trace: Trace) {
    from_backend(headers, hop);
    headers.insert(SERVER, SERVER_NAME.clone());
    headers.insert(X_CLOUD_TRACE_CONTEXT.clone(), trace.answer());
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Request,
    Response,
}

fn append(headers: &HeaderMap, ours: &HeaderValue) -> HeaderValue {
    let mut all = Vec::new();
    for value in headers.get_all(&X_FORWARDED_FOR) {
        all.extend_from_slice(value.as_bytes());
        all.push(b',');
    }
    all.extend_from_slice(ours.as_bytes());
    HeaderValue::try_from(all).expect("header values joined by commas make a header value")
}

/// Removes what concerns one hop only, what the client's `Connection` names, and in requests the platform's own names.
fn strip(headers: &mut HeaderMap, direction: Direction) {
    let mut doomed: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        if is_hop_by_hop(name, direction) {
            doomed.push(name.clone());
        }
    }
    if doomed.is_empty() {
        return;
    }
    for value in headers.get_all(CONNECTION) {
        let names = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        doomed.extend(names.filter_map(|n| HeaderName::from_bytes(n).ok()).filter(may_be_named));
    }
    for name in &doomed {
        headers.remove(name);
    }
}

/// `Connection` may not take away what frames, routes or authorises the message.
fn may_be_named(name: &HeaderName) -> bool {
    ![HOST, CONTENT_LENGTH, AUTHORIZATION].contains(name) && *name != X_SERVERLESS_AUTHORIZATION
}

fn is_hop_by_hop(name: &HeaderName, direction: Direction) -> bool {
    let both = [CONNECTION, TRANSFER_ENCODING, UPGRADE, TE, TRAILER];
    if both.contains(name) {
        return true;
    }
    let text = name.as_str();
    if text == "keep-alive" || text == "proxy-connection" {
        return true;
    }
    // `Expect` was answered by this hop.
    direction == Direction::Request
        && (*name == EXPECT || *name == PROXY_AUTHORIZATION || text.starts_with("x-google-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: Trace = Trace { id: 0xabc, span: 1, sampled: false };

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        map
    }

    fn balanced() -> Hop {
        Hop::new([10, 0, 3, 2].into(), Some([10, 0, 0, 5].into()), "http")
    }

    #[test]
    fn hop_by_hop_fields_and_what_connection_names_end_at_the_proxy() {
        for gone in [
            ("connection", "close"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "close"),
            ("expect", "100-continue"),
            ("x-google-anything", "1"),
        ] {
            let mut map = headers(&[gone, ("host", "h"), ("x-mine", "1")]);
            to_container(&mut map, &balanced(), TRACE);
            assert!(!map.contains_key(gone.0), "{}", gone.0);
            assert_eq!((&map["host"], &map["x-mine"]), (&"h".parse().unwrap(), &"1".parse().unwrap()));
        }
        let mut map = headers(&[("connection", "X-Mine, host, authorization"), ("x-mine", "1"), ("host", "h")]);
        map.insert("authorization", "Bearer x".parse().unwrap());
        to_container(&mut map, &balanced(), TRACE);
        assert!(!map.contains_key("x-mine") && map.contains_key("host") && map.contains_key("authorization"));
    }

    #[test]
    fn the_container_learns_the_client_and_the_balancer() {
        for (sent, want) in [
            (vec![], "10.0.3.2,10.0.0.5"),
            (vec![("x-forwarded-for", "1.2.3.4")], "1.2.3.4,10.0.3.2,10.0.0.5"),
            (vec![("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")], "1.2.3.4,5.6.7.8,10.0.3.2,10.0.0.5"),
        ] {
            let mut map = headers(&sent);
            to_container(&mut map, &balanced(), TRACE);
            assert_eq!(map.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), [want]);
            assert_eq!(map["x-forwarded-proto"], "http");
            assert_eq!(map["forwarded"], "for=\"10.0.3.2\";proto=http");
            assert_eq!(map["via"], "1.1 google");
        }
    }

    #[test]
    fn a_client_from_outside_meets_no_balancer() {
        let hop = Hop::new("2001:db8::1".parse().unwrap(), None, "https");
        let mut map = headers(&[("x-forwarded-proto", "gopher"), ("forwarded", "for=me")]);
        to_container(&mut map, &hop, TRACE);
        assert_eq!(map["x-forwarded-for"], "2001:db8::1");
        assert_eq!(map["x-forwarded-proto"], "https");
        assert_eq!(map["forwarded"], "for=\"[2001:db8::1]\";proto=https");
        assert!(!map.contains_key("via"));
    }

    #[test]
    fn an_answer_says_it_came_from_the_front_end() {
        let mut map = headers(&[("server", "gunicorn"), ("connection", "close"), ("transfer-encoding", "chunked")]);
        to_client(&mut map, &balanced(), TRACE);
        assert_eq!(map["server"], "Google Frontend");
        assert_eq!(map["via"], "1.1 google");
        assert!(map["x-cloud-trace-context"].to_str().unwrap().ends_with("abc;o=0"));
        assert!(!map.contains_key("connection") && !map.contains_key("transfer-encoding"));
    }
}
