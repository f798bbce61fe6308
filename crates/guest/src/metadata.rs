//! What the metadata server answers. Pure: a request head and an identity go in, a [`Step`] comes out.
//!
//! Who asks is settled before: nothing in a request can name another workload, for nothing here looks for one.
//! Source: metadata server, "Access metadata", "Query parameters", and what stock clients check (see the tests).

use std::time::Duration;

use http::{HeaderMap, Method, header, request};
use model::{
    limits::{METADATA_SCOPES_MAX, METADATA_WAIT_MAX},
    login::LoginKey,
    planned::guest::{Identity, LoginAnswer, LoginQuestion, Want},
};

use crate::{
    page::{Answer, Flavor, HTML, JSON, TEXT},
    tree::{Alt, Endpoint, Node},
};

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Answer(Answer),
    Hang(Hang),
    Mint(Want),
    Login(LoginQuestion),
}

/// A request that is answered when a value is no longer the one the client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    path: Vec<String>,
    alt: Option<Alt>,
    /// The value that the client knows.
    pub etag: String,
    /// When to answer anyway.
    pub at_most: Duration,
}

impl Hang {
    /// The value now, with its etag; None when it has gone.
    pub fn look(&self, identity: &Identity) -> Option<(String, Answer)> {
        let root = Node::root(identity);
        let node = root.find(&self.path)?;
        let etag = node.etag();
        Some((etag.clone(), Answer::shown(node.recursive(self.alt), etag)))
    }
}

/// `identity` is that of the workload behind the connection; None when there is none.
pub fn consider(request: &request::Parts, identity: Option<&Identity>) -> Step {
    let path = request.uri.path();
    match admit(request) {
        Err(refusal) => Step::Answer(refusal),
        Ok(()) if path == "/" => Step::Answer(Answer::ok(TEXT, "computeMetadata/\n".to_owned())),
        Ok(()) => match (identity, segments(path)) {
            (None, _) => Step::Answer(Answer::unavailable()),
            (Some(_), None) => Step::Answer(Answer::not_found(path)),
            (Some(identity), Some(asked)) => read(request, identity, asked),
        },
    }
}

/// The rules that keep a tricked browser or proxy from asking in a workload's name.
fn admit(request: &request::Parts) -> Result<(), Answer> {
    let path = request.uri.path();
    if request.headers.contains_key("x-forwarded-for") {
        return Err(Answer::forbidden(path, ""));
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(Answer::bad_method(path));
    }
    if path == "/" || has_flavor(&request.headers) {
        return Ok(());
    }
    if path == "/computeMetadata" || path.starts_with("/computeMetadata/") {
        return Err(Answer::forbidden(path, "Missing Metadata-Flavor:Google header."));
    }
    Err(Answer::not_found(path))
}

fn has_flavor(headers: &HeaderMap) -> bool {
    let says = |name: &str, value: &str| headers.get(name).is_some_and(|is| is == value);
    says("metadata-flavor", "Google") || says("x-google-metadata-request", "True")
}

/// The decoded parts of a path.
struct Asked {
    path: Vec<String>,
    /// The client asked for a directory.
    slash: bool,
}

fn segments(path: &str) -> Option<Asked> {
    let rest = path.strip_prefix('/')?;
    let (rest, slash) = rest.strip_suffix('/').map_or((rest, false), |rest| (rest, true));
    let path = rest.split('/').map(|part| decoded(part, Plus::Itself)).collect::<Option<_>>()?;
    Some(Asked { path, slash })
}

fn read(request: &request::Parts, identity: &Identity, asked: Asked) -> Step {
    let path = request.uri.path();
    let Some(query) = Query::parse(request.uri.query().unwrap_or_default()) else {
        return Step::Answer(Answer::bad_request());
    };
    if let ["computeMetadata", "v1", "oslogin", asked] = asked.path.iter().map(String::as_str).collect::<Vec<_>>()[..]
        && Flavor::of(Some(identity)) == Flavor::Vm
    {
        return login(asked, query).unwrap_or_else(|| Step::Answer(Answer::not_found(path)));
    }
    let root = Node::root(identity);
    match (root.find(&asked.path), asked.slash) {
        (None, _) if is_guest_attributes(&asked.path) => {
            let why = "Guest attributes endpoint access is disabled.";
            Step::Answer(Answer::refusal(http::StatusCode::FORBIDDEN, HTML, why))
        }
        (None, _) | (Some(Node::Leaf(_) | Node::Mint(_)), true) => Step::Answer(Answer::not_found(path)),
        (Some(Node::Dir(_)), false) => {
            Step::Answer(Answer::redirect(request.headers.get(header::HOST), path, request.uri.query()))
        }
        (Some(Node::Mint(endpoint)), false) => mint(*endpoint, &query, Flavor::of(Some(identity))),
        (Some(Node::Dir(dir)), true) if !query.recursive => {
            if query.wait || query.alt == Some(Alt::Json) {
                return Step::Answer(Answer::bad_request());
            }
            let etag = root.find(&asked.path).map(Node::etag);
            Step::Answer(Answer { etag, ..Answer::ok(TEXT, dir.listing()) })
        }
        (Some(node), _) => value(node, query, asked.path),
    }
}

fn value(node: &Node, query: Query, path: Vec<String>) -> Step {
    let etag = node.etag();
    if query.wait && query.last_etag.as_ref().is_none_or(|last| *last == etag) {
        let at_most = query.timeout.unwrap_or(METADATA_WAIT_MAX).min(METADATA_WAIT_MAX);
        return Step::Hang(Hang { path, alt: query.alt, etag, at_most });
    }
    Step::Answer(Answer::shown(node.recursive(query.alt), etag))
}

/// Written by the guest itself elsewhere; here nobody reads them, so nobody may write them.
fn is_guest_attributes(path: &[String]) -> bool {
    path.get(2).is_some_and(|part| part == "instance") && path.get(3).is_some_and(|part| part == "guest-attributes")
}

fn mint(endpoint: Endpoint, query: &Query, flavor: Flavor) -> Step {
    match endpoint {
        Endpoint::AccessToken => match flavor {
            // The scopes of a VM are fixed with the VM.
            Flavor::Vm => Step::Mint(Want::AccessToken { scopes: Vec::new() }),
            Flavor::Serverless if query.scopes.len() > METADATA_SCOPES_MAX => Step::Answer(Answer::bad_request()),
            Flavor::Serverless => Step::Mint(Want::AccessToken { scopes: query.scopes.clone() }),
        },
        Endpoint::IdToken => match (query.audience.as_deref(), query.format.as_deref()) {
            (None | Some(""), _) => {
                let why = "non-empty audience parameter required";
                Step::Answer(Answer::refusal(http::StatusCode::BAD_REQUEST, HTML, why))
            }
            (Some(_), Some(format)) if format != "standard" && format != "full" => Step::Answer(Answer::bad_request()),
            (Some(audience), format) => {
                let full = format == Some("full") && flavor == Flavor::Vm;
                Step::Mint(Want::IdToken { audience: audience.to_owned(), full })
            }
        },
    }
}

/// What a login through OS Login is asked for. Source: Google's guest environment for Linux, `oslogin`.
fn login(asked: &str, query: Query) -> Option<Step> {
    Some(Step::Login(match (asked, query.policy.as_deref()) {
        ("users", _) => LoginQuestion::User { username: query.username? },
        ("authorize", Some(policy @ ("login" | "adminLogin"))) => {
            LoginQuestion::Admission { profile: query.email?, admin: policy == "adminLogin" }
        }
        _ => return None,
    }))
}

pub fn logged_in(answer: &LoginAnswer, path: &str) -> Answer {
    let shown = match answer {
        LoginAnswer::User(None) => return Answer::not_found(path),
        LoginAnswer::Admission(success) => serde_json::json!({"success": success}),
        LoginAnswer::User(Some(profile)) => {
            let key = |(print, key): (&String, &LoginKey)| {
                let mut shown = serde_json::json!({"key": key.key, "fingerprint": print});
                if let Some(expires) = key.expires {
                    shown["expirationTimeUsec"] = expires.0.to_string().into();
                }
                (print.clone(), shown)
            };
            let account = serde_json::json!({
                "primary": true, "username": profile.username, "uid": profile.uid, "gid": profile.uid,
                "homeDirectory": format!("/home/{}", profile.username), "operatingSystemType": "LINUX",
            });
            let keys: serde_json::Map<_, _> = profile.keys.iter().map(key).collect();
            let profile = serde_json::json!({"name": profile.id, "posixAccounts": [account], "sshPublicKeys": keys});
            serde_json::json!({"loginProfiles": [profile]})
        }
    };
    Answer::ok(JSON, shown.to_string())
}

/// What a minted token looks like on the wire.
pub fn minted(want: &Want, token: &str, expires_in_s: u64) -> Answer {
    match want {
        Want::AccessToken { .. } => {
            let body = serde_json::json!({
                "access_token": token, "expires_in": expires_in_s, "token_type": "Bearer",
            });
            Answer::ok(JSON, body.to_string())
        }
        Want::IdToken { .. } => Answer::ok(HTML, token.to_owned()),
    }
}

#[derive(Default)]
struct Query {
    recursive: bool,
    alt: Option<Alt>,
    wait: bool,
    last_etag: Option<String>,
    timeout: Option<Duration>,
    scopes: Vec<String>,
    audience: Option<String>,
    format: Option<String>,
    username: Option<String>,
    email: Option<String>,
    policy: Option<String>,
}

impl Query {
    /// Unknown parameters are ignored, as they are by Google's; known ones must make sense.
    fn parse(text: &str) -> Option<Query> {
        let mut query = Query::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value, Plus::Space)?;
            match decoded(name, Plus::Space)?.as_str() {
                "recursive" => query.recursive = value.eq_ignore_ascii_case("true"),
                "alt" => query.alt = Some(alt(&value)?),
                "wait_for_change" => query.wait = value.eq_ignore_ascii_case("true"),
                "last_etag" => query.last_etag = Some(value),
                "timeout_sec" => query.timeout = Some(Duration::from_secs(value.parse().ok()?)),
                "scopes" => query.scopes = scopes(&value),
                "audience" => query.audience = Some(value),
                "format" => query.format = Some(value),
                "username" => query.username = Some(value),
                "email" => query.email = Some(value),
                "policy" => query.policy = Some(value),
                _ => {}
            }
        }
        Some(query)
    }
}

fn alt(value: &str) -> Option<Alt> {
    match value {
        "json" => Some(Alt::Json),
        "text" => Some(Alt::Text),
        _ => None,
    }
}

fn scopes(value: &str) -> Vec<String> {
    let mut scopes: Vec<String> =
        value.split([',', ' ']).filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
    scopes.sort();
    scopes.dedup();
    scopes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    /// In paths.
    Itself,
    /// In queries.
    Space,
}

/// Percent-decoding. None for a broken escape and for what is not UTF-8 afterwards.
fn decoded(text: &str, plus: Plus) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                bytes.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
                rest = after;
            }
            (b'%', _) => return None,
            (b'+', _) if plus == Plus::Space => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
