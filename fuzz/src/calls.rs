//! HTTP calls of the APIs, as the door hands them on: targets, queries, JSON bodies, batches, credentials.

use std::{
    cell::Cell,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use api::{
    call::{Answer, Call, CallHeaders, Parts, Query, Router},
    error::{self, Dialect},
    gcp,
    host::{self, ApiHost, Place, Service},
    list::{self, ListQuery, Listed, filter::Filter},
    mask::Mask,
    reply::{Content, Format},
    schema::{self, Kind},
    support,
};
use bytes::Bytes;
use control::{ops::Control, projects, tokens::Mint};
use http::{Method, Uri};
use logs::{Journal, journal::Bounds};
use model::{fault::Fault, time::Timestamp};
use serde_json::{Value, json};
use store::{Embedded, Kv, Outcome, Txn};
use tokio::runtime::{Builder, Runtime};

/// 2027-01-15T08:00:00Z.
const NOW: i64 = 1_800_000_000_000_000;
/// What every input finds: enough that references in it may resolve.
const FOUNDATION: &[(&str, &str)] = &[
    ("https://cloudresourcemanager.googleapis.com/v1/projects", r#"{"projectId":"proj-one"}"#),
    ("https://cloudresourcemanager.googleapis.com/v1/projects", r#"{"projectId":"proj-two"}"#),
    (
        "https://serviceusage.googleapis.com/v1/projects/proj-one/services:batchEnable",
        r#"{"serviceIds":["run.googleapis.com","compute.googleapis.com"]}"#,
    ),
    ("https://iam.googleapis.com/v1/projects/proj-one/serviceAccounts", r#"{"accountId":"runner"}"#),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/global/networks",
        r#"{"name":"net","autoCreateSubnetworks":false}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/subnetworks",
        r#"{"name":"sub","network":"global/networks/net","ipCidrRange":"10.0.0.0/24"}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/subnetworks",
        r#"{"name":"nat","network":"global/networks/net","ipCidrRange":"10.0.3.0/24","purpose":"PRIVATE_SERVICE_CONNECT"}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/subnetworks",
        r#"{"name":"proxies","network":"global/networks/net","ipCidrRange":"10.0.2.0/24","purpose":"REGIONAL_MANAGED_PROXY","role":"ACTIVE"}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/networkEndpointGroups",
        r#"{"name":"neg","networkEndpointType":"SERVERLESS","cloudRun":{"service":"hello"}}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/backendServices",
        r#"{"name":"backend","protocol":"HTTP","loadBalancingScheme":"INTERNAL_MANAGED","backends":[{"group":"regions/asia-northeast1/networkEndpointGroups/neg"}]}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/urlMaps",
        r#"{"name":"map","defaultService":"regions/asia-northeast1/backendServices/backend"}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/targetHttpProxies",
        r#"{"name":"proxy","urlMap":"regions/asia-northeast1/urlMaps/map"}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/forwardingRules",
        r#"{"name":"front","loadBalancingScheme":"INTERNAL_MANAGED","network":"global/networks/net","subnetwork":"regions/asia-northeast1/subnetworks/sub","target":"regions/asia-northeast1/targetHttpProxies/proxy","portRange":"80-80"}"#,
    ),
    (
        "https://compute.googleapis.com/compute/v1/projects/proj-one/regions/asia-northeast1/serviceAttachments",
        r#"{"name":"attachment","connectionPreference":"ACCEPT_AUTOMATIC","natSubnets":["regions/asia-northeast1/subnetworks/nat"],"targetService":"regions/asia-northeast1/forwardingRules/front"}"#,
    ),
];

/// A cloud in memory, and the operator's token for it.
struct Cloud {
    router: Arc<Router>,
    store: Arc<dyn Kv>,
    mint: Arc<Mint>,
    control: Arc<Control>,
}

impl Cloud {
    fn over(store: Arc<dyn Kv>, mint: Option<Arc<Mint>>) -> Cloud {
        let tick = std::sync::atomic::AtomicI64::new(NOW);
        let clock = Arc::new(move || Timestamp(tick.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        let control = Arc::new(Control::open(store.clone(), clock).expect("a store of our own is read"));
        let mint = mint.unwrap_or_else(|| {
            let mint = Mint::open(&control).expect("a new cloud gets its keys");
            mint.tend(&control).expect("a new cloud gets its signing key");
            Arc::new(mint)
        });
        let journal = Arc::new(Journal::in_memory(Bounds::default()));
        let router = Arc::new(gcp::router(&gcp::Cloud { control: control.clone(), mint: mint.clone(), journal }));
        Cloud { router, store, mint, control }
    }

    fn new() -> Cloud {
        let cloud = Cloud::over(Arc::new(Embedded::in_memory()), None);
        projects::bootstrap(&cloud.control, None).expect("a new cloud gets its organization");
        let token = cloud.token();
        for (url, body) in FOUNDATION {
            let call = request(Method::POST, url, body.as_bytes(), &token).expect("a call of the foundation");
            let answer = run(cloud.router.serve(call));
            assert!(answer.is_ok(), "{url}: {answer:?}");
            cloud.finish();
        }
        cloud
    }

    /// What the driver does, when everything it has to do succeeds at once.
    fn finish(&self) {
        let running: Vec<_> = {
            let world = self.control.read();
            world.operations.values().filter(|o| !o.is_done()).map(|o| (o.name.clone(), None)).collect()
        };
        self.control.finish(&running).expect("operations end");
    }

    fn token(&self) -> String {
        self.mint.operator_token(projects::ADMIN_DEFAULT, Timestamp(NOW)).expect("the operator has a token")
    }

    /// A cloud that is as this one, and that nothing else uses: an input finds the same one each time.
    fn again(&self) -> Cloud {
        let entries = self.store.range("").expect("memory can be read").entries;
        let copy = Embedded::in_memory();
        let put = |txn: Txn, entry: &store::Entry| txn.put(entry.key.as_ref(), entry.value.as_ref());
        for group in entries.chunks(64) {
            let outcome = copy.commit(group.iter().fold(Txn::new(), put));
            assert!(matches!(outcome, Ok(Outcome::Committed { .. })), "memory can be written");
        }
        Cloud::over(Arc::new(copy), Some(self.mint.clone()))
    }
}

fn foundation() -> &'static Cloud {
    static FOUNDATION: OnceLock<Cloud> = OnceLock::new();
    FOUNDATION.get_or_init(Cloud::new)
}

/// Runs on a runtime of this thread's.
fn run<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("threads can be made");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// The call of a client that asks for this URL, if any API of ours is behind it.
fn request(method: Method, url: &str, body: &[u8], token: &str) -> Option<Call> {
    let uri: Uri = url.parse().ok()?;
    let api = match host::place(&host::host_of(uri.authority()?.as_str()))? {
        Place::Api(api) => api,
        Place::Www => ApiHost::of(host::by_path(uri.path()).unwrap_or(Service::OAuth)),
        Place::RunApp | Place::Tunnel => return None,
    };
    let json = body.first().is_none_or(|first| *first == b'{');
    let content_type = if json { "application/json" } else { "application/x-www-form-urlencoded" };
    let headers = CallHeaders {
        authorization: Some(format!("Bearer {token}")),
        content_type: Some(content_type.to_owned()),
        ..CallHeaders::default()
    };
    let (peer, now) = (IpAddr::from([127, 0, 0, 1]), Timestamp(NOW));
    let parts = Parts { host: api, method, headers, body: Bytes::copy_from_slice(body), peer, now };
    Call::new(parts, &uri).ok()
}

/// `METHOD URL`, a line feed, the body.
fn parse(input: &[u8], token: &str) -> Option<Call> {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (method, url) = std::str::from_utf8(&input[..end]).ok()?.split_once(' ')?;
    // Its answer comes when an operation has ended, and nobody ends one here.
    if url.split('?').next()?.ends_with("/wait") {
        return None;
    }
    request(method.parse().ok()?, url, input.get(end + 1..).unwrap_or_default(), token)
}

/// What an answer must be, whatever was asked: an own mistake is none, and it is what a client can read.
fn check(answer: Answer, dialect: Dialect) {
    let reply = answer.unwrap_or_else(|fault| error::render(dialect, &fault));
    assert!(reply.status != http::StatusCode::INTERNAL_SERVER_ERROR, "{:?}", reply.content);
    let is_json = matches!(reply.content, Content::Json(_));
    let (_, _, body) = reply.render(&Format::default());
    assert!(!is_json || serde_json::from_slice::<Value>(&body).is_ok(), "an answer that is no JSON");
}

/// A whole call by the operator, who may do everything, to a cloud with a few resources; and then the list of what it
/// was about, which shows what was stored.
pub(crate) fn call(input: &[u8]) {
    let token = foundation().token();
    let Some(call) = parse(input, &token) else { return };
    let cloud = foundation().again();
    let dialect = Dialect::of(&call.host, call.path.first().map(String::as_str));
    let mut get = call.clone();
    (get.method, get.body) = (Method::GET, Bytes::new());
    check(run(cloud.router.serve(call)), dialect);
    check(run(cloud.router.serve(get)), dialect);
    // What was stored is read by the next control.
    cloud.finish();
    cloud.again();
}

/// A batch: its content type, a line feed, its body. Nothing it holds reaches an API.
pub(crate) fn batch(input: &[u8]) {
    thread_local! {
        static EMPTY: Cell<Option<Arc<Router>>> = const { Cell::new(None) };
    }
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let Ok(content_type) = std::str::from_utf8(&input[..end]) else { return };
    let body = input.get(end + 1..).unwrap_or_default();
    let Some(mut outer) = request(Method::POST, "https://compute.googleapis.com/batch/compute/v1", body, "t") else {
        return;
    };
    outer.headers.content_type = Some(content_type.to_owned());
    let router = EMPTY.take().unwrap_or_default();
    let answer = run(api::batch::serve(&router, &outer));
    EMPTY.set(Some(router));
    if let Ok(reply) = &answer
        && let Content::Bytes { content_type, bytes } = &reply.content
    {
        let boundary = content_type.to_str().ok().and_then(|text| text.split_once("boundary=")).expect("a boundary").1;
        assert!(bytes.ends_with(format!("--{boundary}--\r\n").as_bytes()), "an answer that does not end");
    }
    check(answer, Dialect::Compute);
}

/// Those of Cloud Run, after all of Compute.
const RUN_KINDS: [Kind; 2] = [Kind::RunServiceV1, Kind::RunServiceV2];

/// The body of a resource: the first byte says of which kind, the others are JSON.
pub(crate) fn body(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else { return };
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    let kinds = [&Kind::COMPUTE[..], &RUN_KINDS].concat();
    let kind = kinds[usize::from(*kind) % kinds.len()];
    if schema::check(kind, &value).is_err() {
        return;
    }
    if let Ok(admitted) = support::admit(kind, value.clone()) {
        let came = |name: &String| value.get(name).is_some();
        assert!(admitted.effective.keys().chain(admitted.inert.keys()).all(came), "fields out of nowhere");
    }
}

/// The query of a list over two resources, one after the other; and the mask that selects from the answer.
pub(crate) fn list(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let item = json!({
        "name": "vm-1", "id": "42", "status": "RUNNING", "creationTimestamp": "2026-05-06T18:20:11.123-07:00",
        "labels": {"env": "prod"}, "tags": {"items": ["web"]}, "networkInterfaces": [{"networkIP": "10.1.0.2"}],
    });
    let mut other = item.clone();
    other["name"] = json!("vm-2");
    let about = Listed { word: "instance", path: "projects/p/zones/z/instances" };
    // The two languages are also tried without the escapes of a query.
    if let Ok(filter) = Filter::parse(text, Kind::Instance.body()) {
        filter.matches(&item);
    }
    if let Ok(mask) = Mask::parse(text) {
        let mut masked = item.clone();
        mask.apply(&mut masked);
        assert!(masked.to_string().len() <= item.to_string().len(), "a mask adds nothing");
        mask.paths();
    }
    let Ok(query) = Query::parse(text) else { return };
    let listed = |query: &Query| -> Result<Value, Fault> {
        let query = ListQuery::parse(query, Kind::Instance.body())?;
        Ok(list::list(&query, about, vec![item.clone(), other.clone()]))
    };
    let _ = Format::parse(&query);
    let Ok(page) = listed(&query) else { return };
    // The token of a page leads to a page.
    if let Some(next) = page["nextPageToken"].as_str() {
        let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let next = Query::parse(&format!("{text}&pageToken={}", escape(next))).expect("a query and one parameter more");
        assert!(listed(&next).is_ok(), "a token of our own was refused");
    }
}

/// Whatever presents itself as a credential is none: only the operator's token opens anything, and nobody guesses it.
pub(crate) fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let url = "https://compute.googleapis.com/compute/v1/projects/proj-one/global/networks";
    let Some(call) = request(Method::GET, url, b"", text) else { return };
    let cloud = foundation();
    if text.trim() != cloud.token() {
        assert!(run(cloud.router.serve(call)).is_err(), "a stranger was let in");
    }
    // As an assertion of a service account, it opens nothing either.
    let form = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={text}");
    if let Some(call) = request(Method::POST, "https://oauth2.googleapis.com/token", form.as_bytes(), "") {
        assert!(run(cloud.router.serve(call)).is_err(), "an assertion of nobody's was taken");
    }
    let _ = identity::assertion::Assertion::parse(text);
}
