//! A cloud in memory with three projects, and short words for calling its Compute API.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use api::{
    call::{Call, CallHeaders, Parts, Router},
    error::{self, Dialect},
    gcp,
    host::{ApiHost, Service},
    reply::Content,
};
use bytes::Bytes;
use control::{
    ops::{Caller, Control},
    projects::{self, ADMIN_DEFAULT, Wanted},
    tokens::Mint,
};
use http::Method;
use logs::{Journal, journal::Bounds};
use model::{iam::Principal, time::Timestamp};
use serde_json::{Value, json};

/// The region everything stands in.
pub const R: &str = "asia-northeast1";
/// 2026-05-07T01:20:11Z.
const START: i64 = 1_778_116_811_000_000;

pub struct Cloud {
    pub control: Arc<Control>,
    pub mint: Arc<Mint>,
    pub router: Router,
    clock: Arc<AtomicI64>,
    passed: Arc<AtomicI64>,
    token: String,
}

impl Cloud {
    pub fn new() -> Cloud {
        let clock = Arc::new(AtomicI64::new(START));
        let hands = clock.clone();
        // Every look at the clock moves it, so that no two resources are of the same instant.
        let tell = Arc::new(move || Timestamp(hands.fetch_add(1, Ordering::Relaxed)));
        let passed = Arc::new(AtomicI64::new(START));
        let steady = passed.clone();
        let steady = Arc::new(move || Timestamp(steady.load(Ordering::Relaxed)));
        let control = Control::open(Arc::new(store::Embedded::in_memory()), tell).unwrap().with_steady(steady);
        let control = Arc::new(control);
        projects::bootstrap(&control, None).unwrap();
        let admin = Caller::new(Principal::User { email: ADMIN_DEFAULT.into() }, vec![]);
        for id in ["producer-1", "consumer-1", "consumer-2"] {
            let wanted = Wanted { id: id.into(), display_name: None, parent: None, labels: Default::default() };
            projects::create(&control, &admin, &wanted).unwrap();
            projects::enable(&control, &admin, id, &["compute.googleapis.com".into()]).unwrap();
        }
        let mint = Arc::new(Mint::open(&control).unwrap());
        mint.tend(&control).unwrap();
        let token = mint.operator_token(ADMIN_DEFAULT, Timestamp(START)).unwrap();
        let journal = Arc::new(Journal::in_memory(Bounds::default()));
        let router = gcp::router(&gcp::Cloud { control: control.clone(), mint: mint.clone(), journal });
        Cloud { router, mint, control, clock, passed, token }
    }

    pub fn pass(&self, time: Duration) {
        self.passed.fetch_add(i64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
        self.set_clock(time);
    }

    /// Somebody sets the machine's clock; no time passes.
    pub fn set_clock(&self, ahead: Duration) {
        self.clock.fetch_add(i64::try_from(ahead.as_micros()).unwrap(), Ordering::Relaxed);
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::Relaxed))
    }

    /// A call to `/compute/v1/projects/PATH`.
    pub fn request(&self, method: Method, path: &str, body: &Value, token: Option<&str>) -> Call {
        let parts = Parts {
            host: ApiHost::of(Service::Compute),
            method,
            headers: CallHeaders { authorization: token.map(|t| format!("Bearer {t}")), ..CallHeaders::default() },
            body: if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) },
            peer: IpAddr::from([127, 0, 0, 1]),
            now: self.now(),
        };
        Call::new(parts, &format!("/compute/v1/projects/{path}").parse().unwrap()).unwrap()
    }

    /// The answer, as it goes over the wire.
    pub fn call_as(&self, token: Option<&str>, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let call = self.request(method, path, body, token);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reply = match runtime.block_on(self.router.serve(call)) {
            Ok(reply) => reply,
            Err(fault) => error::render(Dialect::Compute, &fault),
        };
        let body = match reply.content {
            Content::Json(value) => value,
            Content::Empty => Value::Null,
            Content::Bytes { .. } => panic!("Compute answers JSON"),
        };
        (reply.status.as_u16(), body)
    }

    pub fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.call_as(Some(&self.token), method, path, &body)
    }

    pub fn token_of(&self, email: &str) -> String {
        self.mint.operator_token(email, self.now()).unwrap()
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A change that is accepted; what the driver would do is done at once. Returns the operation, DONE.
    pub fn done(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, operation) = self.call(method, path, body);
        assert_eq!(status, 200, "{path}: {operation}");
        self.finish();
        let link = operation["selfLink"].as_str().unwrap();
        let link = link.strip_prefix("https://www.googleapis.com/compute/v1/projects/").unwrap();
        self.get(link)
    }

    pub fn finish(&self) {
        let running: Vec<_> = {
            let world = self.control.read();
            world.operations.values().filter(|o| !o.is_done()).map(|o| (o.name.clone(), None)).collect()
        };
        self.control.finish(&running).unwrap();
    }

    /// Makes a resource; returns it as it is shown.
    pub fn make(&self, collection: &str, body: Value) -> Value {
        let name = body["name"].as_str().unwrap().to_owned();
        let operation = self.done(Method::POST, collection, body);
        assert_eq!(operation.get("error"), None, "{operation}");
        self.get(&format!("{collection}/{name}"))
    }

    pub fn delete(&self, path: &str) {
        let operation = self.done(Method::DELETE, path, Value::Null);
        assert_eq!(operation.get("error"), None, "{operation}");
        assert_eq!(self.call(Method::GET, path, Value::Null).0, 404);
    }

    /// A refusal: status, reason, message.
    pub fn refused(&self, method: Method, path: &str, body: Value) -> (u64, String, String) {
        let (status, body) = self.call(method, path, body);
        let error = &body["error"]["errors"][0];
        let text = |field: &str| error[field].as_str().unwrap_or_else(|| panic!("{path}: {body}")).to_owned();
        (status.into(), text("reason"), text("message"))
    }

    /// GET, then PATCH of the whole resource with changes, as gcloud does it.
    pub fn edit(&self, path: &str, changes: Value) -> Value {
        let mut whole = self.get(path);
        for (name, value) in changes.as_object().unwrap() {
            whole[name] = value.clone();
        }
        let operation = self.done(Method::PATCH, path, whole);
        assert_eq!(operation.get("error"), None, "{operation}");
        self.get(path)
    }

    pub fn enable(&self, project: &str, api: &str) {
        let admin = Caller::new(Principal::User { email: ADMIN_DEFAULT.into() }, vec![]);
        projects::enable(&self.control, &admin, project, &[api.to_owned()]).unwrap();
    }

    // ---- scenery ----

    pub fn network(&self, project: &str, name: &str) -> Value {
        self.make(&format!("{project}/global/networks"), json!({"name": name, "autoCreateSubnetworks": false}))
    }

    pub fn subnet(&self, project: &str, network: &str, name: &str, range: &str, purpose: &str) -> Value {
        let mut body = json!({
            "name": name, "ipCidrRange": range, "purpose": purpose, "network": format!("global/networks/{network}"),
        });
        if purpose == "REGIONAL_MANAGED_PROXY" {
            body["role"] = "ACTIVE".into();
        }
        self.make(&format!("{project}/regions/{R}/subnetworks"), body)
    }

    /// Network `pv` of the producer with its three subnets and everything up to the proxy.
    pub fn producer_up_to_proxy(&self) {
        self.up_to_proxy("producer-1");
    }

    pub fn up_to_proxy(&self, project: &str) {
        self.network(project, "pv");
        self.subnet(project, "pv", "plain", "10.0.1.0/24", "PRIVATE");
        self.subnet(project, "pv", "proxies", "10.0.2.0/24", "REGIONAL_MANAGED_PROXY");
        self.subnet(project, "pv", "nat", "10.0.3.0/24", "PRIVATE_SERVICE_CONNECT");
        let r = format!("{project}/regions/{R}");
        self.make(
            &format!("{r}/networkEndpointGroups"),
            json!({"name": "neg", "networkEndpointType": "SERVERLESS", "cloudRun": {"service": "hello"}}),
        );
        self.make(
            &format!("{r}/backendServices"),
            json!({"name": "back", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP", "timeoutSec": 30,
                   "backends": [{"group": self.url(&format!("{r}/networkEndpointGroups/neg"))}]}),
        );
        self.make(
            &format!("{r}/urlMaps"),
            json!({"name": "map", "defaultService": self.url(&format!("{r}/backendServices/back"))}),
        );
        self.make(
            &format!("{r}/targetHttpProxies"),
            json!({"name": "proxy", "urlMap": self.url(&format!("{r}/urlMaps/map"))}),
        );
    }

    pub fn front(&self, name: &str) -> Value {
        let r = format!("producer-1/regions/{R}");
        self.make(&format!("{r}/forwardingRules"), self.front_body(name))
    }

    pub fn front_body(&self, name: &str) -> Value {
        self.front_body_in("producer-1", name)
    }

    pub fn front_body_in(&self, project: &str, name: &str) -> Value {
        let r = format!("{project}/regions/{R}");
        json!({
            "name": name, "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
            "network": self.url(&format!("{project}/global/networks/pv")),
            "subnetwork": self.url(&format!("{r}/subnetworks/plain")),
            "target": self.url(&format!("{r}/targetHttpProxies/proxy")),
        })
    }

    /// The producer, complete, with attachment `att`.
    pub fn producer(&self, attachment: Value) {
        self.producer_up_to_proxy();
        self.front("front");
        self.attachment("att", attachment);
    }

    pub fn attachment(&self, name: &str, extra: Value) -> Value {
        let r = format!("producer-1/regions/{R}");
        let mut body = json!({
            "name": name, "connectionPreference": "ACCEPT_MANUAL",
            "targetService": self.url(&format!("{r}/forwardingRules/front")),
            "natSubnets": [self.url(&format!("{r}/subnetworks/nat"))],
        });
        for (field, value) in extra.as_object().unwrap() {
            body[field] = value.clone();
        }
        self.make(&format!("{r}/serviceAttachments"), body)
    }

    pub fn consumer(&self, project: &str) {
        self.network(project, "cv");
        self.subnet(project, "cv", "cs", "10.1.0.0/24", "PRIVATE");
    }

    pub fn endpoint(&self, project: &str, name: &str) -> Value {
        let r = format!("{project}/regions/{R}");
        let target = self.url(&format!("producer-1/regions/{R}/serviceAttachments/att"));
        self.make(
            &format!("{r}/forwardingRules"),
            json!({"name": name, "network": self.url(&format!("{project}/global/networks/cv")),
                   "subnetwork": self.url(&format!("{r}/subnetworks/cs")), "target": target}),
        )
    }

    /// A link as gcloud writes it.
    pub fn url(&self, path: &str) -> String {
        format!("https://compute.googleapis.com/compute/v1/projects/{path}")
    }
}

/// A link as the API shows it.
pub fn shown(path: &str) -> String {
    format!("https://www.googleapis.com/compute/v1/projects/{path}")
}
