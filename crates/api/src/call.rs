//! One API call, parsed once: whose API, which path, which parameters, which body.
//!
//! Refuses to know what any path means. An API matches
//! `(&call.method, call.parts().as_slice(), call.verb())`; the door does the rest.

use std::{collections::BTreeMap, future::Future, net::IpAddr, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use model::{
    fault::{Code, Fault},
    time::Timestamp,
};

use crate::{
    audit::{Audit, Witness},
    error,
    host::{ApiHost, Service},
    reply::Reply,
};

/// What an API answers; the door renders the fault in the dialect of the call.
pub type Answer = Result<Reply, Fault>;
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs what waits for the disk or takes processor time where it holds up no other call.
///
/// # Errors
/// Those of `work`; 500 if it panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(panic) => {
            eprintln!("api: a call could not be served: {panic}");
            Err(Fault::internal("Internal error encountered."))
        }
    }
}

/// One of Google's APIs.
pub trait Api: Send + Sync {
    fn serve(&self, call: Call) -> BoxFuture<'_, Answer>;
}

/// Whom each call goes to. A service without a row here is not ours: its host is refused at `CONNECT`.
#[derive(Clone, Default)]
pub struct Router {
    apis: BTreeMap<Service, Arc<dyn Api>>,
    audit: Option<Arc<Audit>>,
}

impl Router {
    pub fn new() -> Router {
        Router::default()
    }

    pub fn with(mut self, service: Service, api: Arc<dyn Api>) -> Router {
        self.apis.insert(service, api);
        self
    }

    /// Writes every change that passes here into the activity log.
    pub fn audited(mut self, audit: Audit) -> Router {
        self.audit = Some(Arc::new(audit));
        self
    }

    pub fn serves(&self, service: Service) -> bool {
        self.apis.contains_key(&service)
    }

    /// Hands a call to its API.
    ///
    /// # Errors
    /// What the API refuses; a service without an API answers as if it had no methods.
    pub async fn serve(&self, call: Call) -> Answer {
        let Some(api) = self.apis.get(&call.host.service) else { return Err(error::unknown_method()) };
        let begun = self.audit.as_ref().and_then(|audit| Some((audit, audit.begin(&call)?)));
        let answer = api.serve(call).await;
        if let Some((audit, begun)) = begun {
            audit.end(begun, &answer);
        }
        answer
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    pub host: ApiHost,
    pub method: Method,
    /// Percent-decoded, without the leading slash and without a custom verb.
    pub path: Vec<String>,
    verb: Option<String>,
    pub query: Query,
    pub headers: CallHeaders,
    pub body: Bytes,
    /// Where the client is. Never a proof of identity.
    pub peer: IpAddr,
    pub now: Timestamp,
    /// Told who is calling as soon as that is known.
    pub witness: Witness,
}

/// The headers that any API reads. A call inside a batch inherits them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallHeaders {
    pub authorization: Option<String>,
    pub user_agent: Option<String>,
    /// `x-goog-user-project`: the project that pays for the call.
    pub user_project: Option<String>,
    pub content_type: Option<String>,
}

impl CallHeaders {
    pub fn read(headers: &HeaderMap) -> CallHeaders {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        CallHeaders {
            authorization: text(header::AUTHORIZATION.as_str()),
            user_agent: text(header::USER_AGENT.as_str()),
            user_project: text("x-goog-user-project"),
            content_type: text(header::CONTENT_TYPE.as_str()),
        }
    }

    /// Takes from `outer` what is absent here, except the content type: that belongs to each body.
    pub fn or(self, outer: &CallHeaders) -> CallHeaders {
        CallHeaders {
            authorization: self.authorization.or_else(|| outer.authorization.clone()),
            user_agent: self.user_agent.or_else(|| outer.user_agent.clone()),
            user_project: self.user_project.or_else(|| outer.user_project.clone()),
            content_type: self.content_type,
        }
    }
}

/// Everything of a call but its target: what [`Call::new`] needs.
pub struct Parts {
    pub host: ApiHost,
    pub method: Method,
    pub headers: CallHeaders,
    pub body: Bytes,
    pub peer: IpAddr,
    pub now: Timestamp,
}

impl Call {
    /// Splits and decodes the path and the query of `uri`; its host and scheme are ignored.
    ///
    /// # Errors
    /// 400 when an escape is no escape or does not decode to UTF-8.
    pub fn new(parts: Parts, uri: &Uri) -> Result<Call, Fault> {
        let Parts { host, method, headers, body, peer, now } = parts;
        let raw = uri.path().strip_prefix('/').unwrap_or(uri.path());
        // Compute has no custom verbs, and a colon there belongs to a name such as `example.com:project`.
        let (raw, verb) = if host.service == Service::Compute { (raw, None) } else { split_verb(raw) };
        let path = raw.split('/').map(decode_segment).collect::<Result<_, _>>()?;
        let verb = verb.map(str::to_owned);
        let query = Query::parse(uri.query().unwrap_or(""))?;
        Ok(Call { host, method, path, verb, query, headers, body, peer, now, witness: Witness::default() })
    }

    /// The path for `match`: `["compute", "v1", "projects", project, "global", "networks"]`.
    pub fn parts(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// `getIamPolicy` of `…/services/hello:getIamPolicy`.
    pub fn verb(&self) -> Option<&str> {
        self.verb.as_deref()
    }

    /// The access token the caller presented: `Authorization: Bearer`, or the query parameter `access_token`.
    pub fn bearer(&self) -> Option<&str> {
        let header = self.headers.authorization.as_deref().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        header.or_else(|| self.query.get("access_token")).filter(|token| !token.is_empty())
    }

    /// The body as JSON; an empty body is an empty object, as transcoding makes it.
    ///
    /// # Errors
    /// 400 `parseError` with the place of the first mistake.
    pub fn json(&self) -> Result<Value, Fault> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Object(serde_json::Map::new()));
        }
        serde_json::from_slice(&self.body).map_err(|why| error::malformed_json(&why))
    }

    /// The body as what a method takes.
    ///
    /// # Errors
    /// 400 `parseError` as of [`Call::json`], 400 for a field of a wrong type, and where `T` says so for one that is not known.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_value(self.json()?)
            .map_err(|why| Fault::invalid(format!("Invalid JSON payload received. {why}")))
    }
}

/// A custom verb is what follows the last colon of the last segment, if it is a word; an escaped colon is a character.
fn split_verb(path: &str) -> (&str, Option<&str>) {
    let last = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[last..].rfind(':') {
        Some(colon) => {
            let (head, verb) = (&path[..last + colon], &path[last + colon + 1..]);
            if !verb.is_empty() && verb.bytes().all(|c| c.is_ascii_alphabetic()) {
                (head, Some(verb))
            } else {
                (path, None)
            }
        }
        None => (path, None),
    }
}

fn decode_segment(raw: &str) -> Result<String, Fault> {
    percent_decode(raw, Plus::Literal).ok_or_else(|| Fault::invalid(format!("Invalid escape in path segment '{raw}'.")))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Literal,
    /// As in `application/x-www-form-urlencoded`.
    Space,
}

fn percent_decode(raw: &str, plus: Plus) -> Option<String> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if plus == Plus::Space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Query parameters in the order they came; a name may come more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `application/x-www-form-urlencoded` text: a query string, or the form body of an OAuth request.
    ///
    /// # Errors
    /// 400 when an escape is no escape or does not decode to UTF-8.
    pub fn parse(text: &str) -> Result<Query, Fault> {
        let pair = |item: &str| {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            Some((percent_decode(name, Plus::Space)?, percent_decode(value, Plus::Space)?))
        };
        text.split('&')
            .filter(|item| !item.is_empty())
            .map(|item| {
                pair(item).ok_or_else(|| Fault::invalid(format!("Invalid escape in query parameter '{item}'.")))
            })
            .collect::<Result<_, _>>()
            .map(Query)
    }

    /// The last value of a parameter, as in proto transcoding. `$name` is another spelling of a system parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name || n.strip_prefix('$') == Some(name)).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A boolean parameter; absent is `None`.
    ///
    /// # Errors
    /// 400 for anything but `true`, `false`, `1`, `0` and the bare name.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.get(name) {
            None => Ok(None),
            // gcloud writes Python's `True`.
            Some("true" | "True" | "1" | "") => Ok(Some(true)),
            Some("false" | "False" | "0") => Ok(Some(false)),
            Some(other) => Err(invalid_parameter(format!("Invalid value at '{name}' (TYPE_BOOL), \"{other}\""))),
        }
    }

    /// An unsigned parameter; absent is `None`.
    ///
    /// # Errors
    /// 400 for anything that is no decimal number.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Fault> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| invalid_parameter(format!("Invalid value at '{name}' (TYPE_UINT32), \"{text}\"")))
            })
            .transpose()
    }
}

/// Refusals of query parameters. Source: Compute, reason `invalidParameter`.
pub fn invalid_parameter(message: impl Into<String>) -> Fault {
    Fault::new(Code::InvalidArgument, "invalidParameter", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn call(service: Service, method: Method, target: &str, body: &str) -> Result<Call, Fault> {
        Call::new(
            Parts {
                host: ApiHost::of(service),
                method,
                headers: CallHeaders::default(),
                body: Bytes::copy_from_slice(body.as_bytes()),
                peer: IpAddr::from([127, 0, 0, 1]),
                now: Timestamp(0),
            },
            &target.parse().unwrap(),
        )
    }

    #[test]
    fn a_path_is_its_decoded_segments_and_a_custom_verb() {
        for (service, target, parts, verb) in [
            (
                Service::Compute,
                "/compute/v1/projects/p/global/networks",
                &["compute", "v1", "projects", "p", "global", "networks"][..],
                None,
            ),
            (Service::Compute, "/projects/example.com:proj", &["projects", "example.com:proj"], None),
            (
                Service::Iam,
                "/v1/projects/-/serviceAccounts/a%40b:getIamPolicy",
                &["v1", "projects", "-", "serviceAccounts", "a@b"],
                Some("getIamPolicy"),
            ),
            (Service::Logging, "/v2/entries:list?x=1", &["v2", "entries"], Some("list")),
            (Service::Logging, "/v2/projects/p/logs/a%2Fb%3Aget", &["v2", "projects", "p", "logs", "a/b:get"], None),
            (Service::Iam, "/v1/a:b/c", &["v1", "a:b", "c"], None),
            (Service::Iam, "/v1/a:12", &["v1", "a:12"], None),
            (Service::Compute, "/a//b/", &["a", "", "b", ""], None),
        ] {
            let call = call(service, Method::GET, target, "").unwrap();
            assert_eq!((call.parts().as_slice(), call.verb()), (parts, verb), "{target}");
        }
    }

    #[test]
    fn a_path_that_does_not_decode_is_refused() {
        for target in ["/v1/%zz", "/v1/%4", "/v1/%ff", "/v1?x=%"] {
            assert_eq!(
                call(Service::Iam, Method::GET, target, "").unwrap_err().code,
                Code::InvalidArgument,
                "{target}"
            );
        }
    }

    #[test]
    fn a_query_keeps_repeated_parameters_and_knows_the_dollar_spelling() {
        let query = Query::parse("a=1&a=2&b=x+y%26&$alt=json&c").unwrap();
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((query.get("a"), query.get("b"), query.get("alt")), (Some("2"), Some("x y&"), Some("json")));
        assert_eq!(query.flag("c"), Ok(Some(true)));
        assert_eq!(query.flag("d"), Ok(None));
        assert!(query.flag("b").is_err() && query.number("b").is_err());
    }

    #[test]
    fn a_bearer_token_comes_from_the_header_before_the_query() {
        let mut c = call(Service::Iam, Method::GET, "/v1/x?access_token=q", "").unwrap();
        assert_eq!(c.bearer(), Some("q"));
        c.headers.authorization = Some("bearer  h ".into());
        assert_eq!(c.bearer(), Some("h"));
        c.headers.authorization = Some("Basic h".into());
        assert_eq!(c.bearer(), Some("q"));
    }

    #[test]
    fn an_empty_body_is_an_empty_object_and_a_broken_one_is_a_parse_error() {
        assert_eq!(call(Service::Iam, Method::POST, "/v1/x", " \n").unwrap().json().unwrap(), serde_json::json!({}));
        let fault = call(Service::Iam, Method::POST, "/v1/x", "{\"a\":").unwrap().json().unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, "parseError"));
    }
}
