//! Which service a request is for: host patterns, path matchers, URL masks, traffic splits. Pure.
//!
//! Knows nothing of sockets or of whether a service exists. Start with [`choose`].
//! Source: URL maps, serverless NEG URL masks, Cloud Run traffic.

use model::{
    planned::edge::{Branch, EdgeTraffic, Listener, Route},
    run::{RevisionKey, ServiceKey},
};

/// The service a route leads to, before anyone asks whether it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub service: ServiceKey,
    pub tag: Option<String>,
}

/// A place in a listener's URL map, by numbers: of the path matcher, and of the path in it. None is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    matcher: Option<usize>,
    path: Option<usize>,
}

impl Place {
    /// What stands there. The listener must be the one in which the place was chosen.
    pub fn branch(self, listener: &Listener) -> &Branch {
        let Some(matcher) = self.matcher.and_then(|number| listener.matchers.get(number)) else {
            return &listener.default;
        };
        self.path.and_then(|number| matcher.paths.get(number)).map_or(&matcher.default, |(_, branch)| branch)
    }

    /// The pattern of the path that led there.
    pub fn pattern(self, listener: &Listener) -> Option<&str> {
        let (pattern, _) = listener.matchers.get(self.matcher?)?.paths.get(self.path?)?;
        Some(pattern)
    }
}

/// Where a request through this listener is led. `host` as the client wrote it, with its port: the balancer compares
/// the whole value. `path` without the query.
pub fn choose(listener: &Listener, host: &str, path: &str) -> Place {
    let matcher = listener
        .hosts
        .iter()
        .filter(|(pattern, _)| host_matches(pattern, host))
        .max_by_key(|(pattern, _)| (!pattern.starts_with('*'), pattern.len()))
        .map(|(_, number)| *number);
    let paths = matcher.and_then(|number| listener.matchers.get(number)).map_or(&[][..], |matcher| &matcher.paths);
    let path = paths
        .iter()
        .enumerate()
        .filter(|(_, (pattern, _))| path_matches(pattern, path))
        .max_by_key(|(_, (pattern, _))| (pattern.trim_end_matches('*').len(), !pattern.ends_with('*')))
        .map(|(number, _)| number);
    Place { matcher, path }
}

/// The service that a route names for this host and path; None when a mask does not fit or it leads to none.
pub fn resolve(route: &Route, host: &str, path: &str) -> Option<Target> {
    match route {
        Route::Service { service, tag } => Some(Target { service: service.clone(), tag: tag.clone() }),
        Route::Mask { project, region, mask } => {
            let found = unmask(mask, without_port(host), path)?;
            let service = ServiceKey { project: project.clone(), region: region.clone(), name: found.service };
            Some(Target { service, tag: found.tag })
        }
        Route::Endpoint { .. } | Route::NoBackend => None,
    }
}

/// The revision for one request: the tag's, or by the percentages with `dice` in 0..100.
pub fn split<'a>(traffic: &'a [EdgeTraffic], tag: Option<&str>, dice: u8) -> Option<&'a RevisionKey> {
    if let Some(tag) = tag {
        return traffic.iter().find(|t| t.tag.as_deref() == Some(tag)).map(|t| &t.revision);
    }
    let mut upto = 0u32;
    traffic
        .iter()
        .find(|t| {
            upto += u32::from(t.percent);
            u32::from(dice) < upto
        })
        .map(|t| &t.revision)
}

/// `TAG---rest` of a tag URL's host.
pub fn split_tag(host: &str) -> Option<(&str, &str)> {
    host.split_once("---").filter(|(tag, rest)| !tag.is_empty() && !rest.is_empty())
}

/// A host without its port; an IPv6 literal keeps its brackets.
pub fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if host[colon + 1..].bytes().all(|b| b.is_ascii_digit()) => &host[..colon],
        Some(_) | None => host,
    }
}

fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => {
            host.len() > suffix.len()
                && host.as_bytes()[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
        }
        None => host.eq_ignore_ascii_case(pattern),
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == pattern,
    }
}

/// No name of a service and no tag is longer. Source: RFC 1035, labels; both are part of host names.
const LABEL_BYTES_MAX: usize = 63;

#[derive(Debug, Default, PartialEq)]
struct Unmasked {
    service: String,
    tag: Option<String>,
}

/// Reads `<service>` and `<tag>` out of a URL by its mask. A mask without a host part looks at the path only; path
/// segments after the mask's end are ignored.
fn unmask(mask: &str, host: &str, path: &str) -> Option<Unmasked> {
    // Every further placeholder would multiply the ways to read a URL, and all requests of all tenants wait meanwhile.
    if ["<service>", "<tag>"].iter().any(|placeholder| mask.matches(placeholder).count() > 1) {
        return None;
    }
    let (mask_host, mask_path) = match mask.find('/') {
        Some(slash) => mask.split_at(slash),
        None => (mask, ""),
    };
    let mut found = Unmasked::default();
    let (mask_host, host) = (mask_host.to_ascii_lowercase(), host.to_ascii_lowercase());
    if !mask_host.is_empty() && !fit(&mask_host, &host, &mut found, str::is_empty) {
        return None;
    }
    let end = |rest: &str| rest.is_empty() || rest.starts_with('/') || mask_path.is_empty() || mask_path.ends_with('/');
    (fit(mask_path, path, &mut found, end) && !found.service.is_empty()).then_some(found)
}

/// Matches `text` from its start; placeholders take the longest run without `/` and `.` that lets the rest fit.
fn fit(mask: &str, text: &str, found: &mut Unmasked, end: impl Fn(&str) -> bool + Copy) -> bool {
    let Some(open) = mask.find('<') else { return text.strip_prefix(mask).is_some_and(end) };
    let Some(text) = text.strip_prefix(&mask[..open]) else { return false };
    let (is_tag, rest) = match (mask[open..].strip_prefix("<service>"), mask[open..].strip_prefix("<tag>")) {
        (Some(rest), _) => (false, rest),
        (None, Some(rest)) => (true, rest),
        (None, None) => return false,
    };
    let run = text.bytes().position(|b| b == b'/' || b == b'.').unwrap_or(text.len());
    let longest_first = (1..=run.min(LABEL_BYTES_MAX)).rev().filter(|len| text.is_char_boundary(*len));
    for len in longest_first {
        if fit(rest, &text[len..], found, end) {
            let value = text[..len].to_owned();
            if is_tag {
                found.tag = Some(value)
            } else {
                found.service = value
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use model::{id::NetworkId, planned::edge::Matcher};

    use super::*;

    fn service(name: &str) -> ServiceKey {
        ServiceKey {
            project: "producer-1".parse().unwrap(),
            region: "asia-northeast1".parse().unwrap(),
            name: name.into(),
        }
    }

    fn to(name: &str) -> Branch {
        Branch { backend: None, route: Route::Service { service: service(name), tag: None } }
    }

    fn listener() -> Listener {
        Listener {
            network: NetworkId(1),
            address: [10, 0, 0, 5].into(),
            hosts: vec![
                ("*".into(), 0),
                ("*.example.com".into(), 1),
                ("*.eu.example.com".into(), 2),
                ("a.example.com".into(), 3),
                ("h:8080".into(), 3),
            ],
            matchers: vec![
                Matcher { paths: vec![], default: to("any") },
                Matcher { paths: vec![], default: to("com") },
                Matcher { paths: vec![], default: to("eu") },
                Matcher {
                    paths: vec![
                        ("/a".into(), to("a")),
                        ("/a/*".into(), to("under-a")),
                        ("/a/b/*".into(), to("under-b")),
                        ("/a/b/".into(), to("b")),
                    ],
                    default: to("exact"),
                },
            ],
            default: to("default"),
            keepalive_ms: 1_000,
        }
    }

    #[test]
    fn the_most_exact_host_and_the_longest_path_win() {
        let mut listener = listener();
        for (host, path, want) in [
            ("10.0.0.5", "/", "any"),
            ("x.example.com", "/", "com"),
            ("x.eu.example.com", "/", "eu"),
            (".example.com", "/", "any"),
            ("A.EXAMPLE.com", "/", "exact"),
            ("a.example.com:80", "/", "any"),
            ("h:8080", "/", "exact"),
            ("h", "/", "any"),
            ("a.example.com", "/a", "a"),
            ("a.example.com", "/a/", "under-a"),
            ("a.example.com", "/a/b", "under-a"),
            ("a.example.com", "/a/b/", "b"),
            ("a.example.com", "/a/b/c", "under-b"),
            ("a.example.com", "/ab", "exact"),
        ] {
            assert_eq!(choose(&listener, host, path).branch(&listener), &to(want), "{host}{path}");
        }
        listener.hosts.remove(0);
        assert_eq!(choose(&listener, "10.0.0.5", "/").branch(&listener), &to("default"));
        assert_eq!(choose(&listener, "a.example.com", "/a/b/c").pattern(&listener), Some("/a/b/*"));
        assert_eq!(choose(&listener, "a.example.com", "/").pattern(&listener), None, "a default has no pattern");
    }

    #[test]
    fn a_url_mask_reads_service_and_tag_or_does_not_fit() {
        for (mask, host, path, want) in [
            ("/<service>", "h", "/login/x", Some(("login", None))),
            ("/<service>", "h", "/login", Some(("login", None))),
            ("/<service>", "h", "/", None),
            ("/<service>", "h", "/lo.gin", None),
            ("<tag>.domain.com/<service>", "foo1.domain.com", "/bar1", Some(("bar1", Some("foo1")))),
            ("<tag>.domain.com/<service>", "foo1.other.com", "/bar1", None),
            ("<tag>.domain.com/<service>", "a.foo1.domain.com", "/bar1", None),
            ("<service>.example.com", "Shop.example.com", "/any/path", Some(("shop", None))),
            ("<service>-<tag>.example.com", "my-shop-v1.example.com", "/", Some(("my-shop", Some("v1")))),
            ("example.com/<service>/<tag>", "example.com", "/a/b/c", Some(("a", Some("b")))),
            ("example.com/<service>/<tag>", "example.com", "/a", None),
            ("/api/<service>", "h", "/api/x", Some(("x", None))),
            ("/api/<service>", "h", "/apix/x", None),
        ] {
            let got = unmask(mask, host, path);
            let want =
                want.map(|(s, t): (&str, Option<&str>)| Unmasked { service: s.into(), tag: t.map(str::to_owned) });
            assert_eq!(got, want, "{mask} on {host}{path}");
        }
    }

    #[test]
    fn a_url_mask_has_few_ways_to_be_read_whatever_a_stranger_asks_for() {
        let label = "a".repeat(63);
        assert!(unmask("/<service>", "h", &format!("/{label}")).is_some());
        assert_eq!(unmask("/<service>", "h", &format!("/{label}a")), None, "no service has such a name");
        assert_eq!(unmask("<service>-<tag>.example.com", &"-".repeat(60_000), "/"), None);
        assert_eq!(unmask("/<service>-<service>", "h", "/a-b"), None, "a name twice");
        assert_eq!(unmask(&format!("/{}x", "<service>".repeat(30)), "h", &format!("/{label}")), None);
    }

    #[test]
    fn traffic_is_split_by_percent_and_a_tag_reaches_its_revision_at_zero_percent() {
        let revision = |n: &str| RevisionKey { service: service("s"), name: n.into() };
        let traffic = [
            EdgeTraffic { revision: revision("one"), percent: 30, tag: None },
            EdgeTraffic { revision: revision("two"), percent: 70, tag: None },
            EdgeTraffic { revision: revision("old"), percent: 0, tag: Some("blue".into()) },
        ];
        let picked = |tag, dice| split(&traffic, tag, dice).map(|r| r.name.as_str());
        assert_eq!((0..100).filter(|d| picked(None, *d) == Some("one")).count(), 30);
        assert_eq!((0..100).filter(|d| picked(None, *d) == Some("two")).count(), 70);
        assert_eq!(picked(Some("blue"), 0), Some("old"));
        assert_eq!(picked(Some("green"), 0), None);
        assert_eq!(split(&[], None, 0), None);
    }

    #[test]
    fn a_port_is_cut_off_and_an_ipv6_literal_survives() {
        for (host, want) in [("h:80", "h"), ("h", "h"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("h:", "h")] {
            assert_eq!(without_port(host), want);
        }
        assert_eq!(split_tag("blue---shop-1.run.app"), Some(("blue", "shop-1.run.app")));
        assert_eq!(split_tag("shop-1.run.app"), None);
    }
}
