//! A cloud in memory with its doors, and a client with the operator's token.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use api::{
    call::{Call, CallHeaders, Parts, Router},
    error::{self, Dialect},
    gcp::{self, Cloud},
    host::{self, ApiHost, Place, Service},
    reply::Content,
};
use control::{
    ops::{Change, Control},
    projects, run,
    tokens::Mint,
    world::ImageRecord,
};
use http::{Method, Uri};
use logs::{Journal, journal::Bounds};
use model::{run::RevisionKey, time::Timestamp};
use serde_json::{Value, json};

pub const HELLO: &str = "us-docker.pkg.dev/cloudrun/container/hello";
pub const REGION_HOST: &str = "https://asia-northeast1-run.googleapis.com";
pub const START: i64 = 1_800_000_000;

pub struct Scene {
    pub control: Arc<Control>,
    pub mint: Arc<Mint>,
    pub journal: Arc<Journal>,
    router: Router,
    clock: Arc<AtomicI64>,
    pub admin: String,
}

#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub body: Value,
}

impl Got {
    /// The body of a success.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{:#}", self.body);
        self.body
    }

    /// The message of a refusal with this status.
    pub fn refused(self, status: u16) -> String {
        assert_eq!(self.status, status, "{:#}", self.body);
        match &self.body["error"]["message"] {
            Value::String(text) => text.clone(),
            _ => self.body["error_description"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

impl Scene {
    pub fn new() -> Scene {
        let clock = Arc::new(AtomicI64::new(START * 1_000_000));
        let hand = clock.clone();
        // Every look at the clock is a microsecond later, so that nothing happens twice at once.
        let now = Arc::new(move || Timestamp(hand.fetch_add(1, Ordering::SeqCst)));
        let control = Arc::new(Control::open(Arc::new(store::Embedded::in_memory()), now).unwrap());
        let mint = Arc::new(Mint::open(&control).unwrap());
        mint.tend(&control).unwrap();
        projects::bootstrap(&control, None).unwrap();
        let admin = mint.operator_token(projects::ADMIN_DEFAULT, control.now()).unwrap();
        let journal = Arc::new(Journal::in_memory(Bounds::default()));
        let cloud = Cloud { control: control.clone(), mint: mint.clone(), journal: journal.clone() };
        Scene { router: gcp::router(&cloud), clock, admin, journal, control, mint }
    }

    /// A scene with project `producer-1` in which Run and Compute are enabled and the hello image is there.
    pub async fn with_project() -> Scene {
        let scene = Scene::new();
        scene.project("producer-1").await;
        scene.image(HELLO);
        scene
    }

    pub async fn project(&self, id: &str) {
        self.post("https://cloudresourcemanager.googleapis.com/v1/projects", json!({"projectId": id})).await.ok();
        let url = format!("https://serviceusage.googleapis.com/v1/projects/{id}/services:batchEnable");
        self.post(&url, json!({"serviceIds": ["run.googleapis.com", "compute.googleapis.com"]})).await.ok();
    }

    pub fn image(&self, name: &str) {
        let image = ImageRecord {
            name: name.to_owned(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            layers: vec!["sha256:00".into()],
            entrypoint: vec!["/hello".into()],
            cmd: vec!["--quiet".into()],
            env: vec![("LANG".into(), "C".into())],
            working_dir: "/".into(),
            user: String::new(),
        };
        self.control
            .commit(|_, txn| {
                txn.push(Change::Image(Box::new(image.clone())));
                Ok(())
            })
            .unwrap();
    }

    pub fn number(&self, project: &str) -> String {
        self.control.read().project(project).unwrap().number.to_string()
    }

    pub fn advance_s(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    /// Lets the newest revision of a service become ready and the proxy obey.
    pub fn make_ready(&self, service: &str) {
        let key = self.newest(service);
        run::revision_ready(&self.control, &key).unwrap();
        self.settle();
    }

    pub fn settle(&self) {
        let waiting = run::unsettled(&self.control.read());
        run::settle(&self.control, &waiting).unwrap();
    }

    pub fn newest(&self, service: &str) -> RevisionKey {
        let world = self.control.read();
        let record = world.services.values().find(|s| s.key.name == service).unwrap();
        RevisionKey { service: record.key.clone(), name: record.latest_created.clone().unwrap() }
    }

    pub async fn get(&self, url: &str) -> Got {
        self.call(Method::GET, url, Some(&self.admin), None, "").await
    }

    pub async fn delete(&self, url: &str) -> Got {
        self.call(Method::DELETE, url, Some(&self.admin), None, "").await
    }

    pub async fn post(&self, url: &str, body: Value) -> Got {
        self.call(Method::POST, url, Some(&self.admin), None, &body.to_string()).await
    }

    pub async fn put(&self, url: &str, body: Value) -> Got {
        self.call(Method::PUT, url, Some(&self.admin), None, &body.to_string()).await
    }

    pub async fn patch(&self, url: &str, body: Value) -> Got {
        self.call(Method::PATCH, url, Some(&self.admin), None, &body.to_string()).await
    }

    pub async fn form(&self, url: &str, pairs: &[(&str, &str)]) -> Got {
        let escape = |text: &str| -> String { text.bytes().map(|b| format!("%{b:02X}")).collect() };
        let body: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={}", escape(k), escape(v))).collect();
        self.call(Method::POST, url, None, Some("application/x-www-form-urlencoded"), &body.join("&")).await
    }

    /// One call as the door would hand it on.
    pub async fn call(
        &self,
        method: Method,
        url: &str,
        token: Option<&str>,
        content_type: Option<&str>,
        body: &str,
    ) -> Got {
        let uri: Uri = url.parse().unwrap();
        let api = match host::place(uri.host().unwrap()).unwrap() {
            Place::Api(api) => api,
            Place::Www => ApiHost::of(host::by_path(uri.path()).unwrap_or(Service::OAuth)),
            Place::RunApp | Place::Tunnel => panic!("{url} is no API"),
        };
        let headers = CallHeaders {
            authorization: token.map(|t| format!("Bearer {t}")),
            content_type: content_type.map(str::to_owned),
            ..CallHeaders::default()
        };
        let now = self.control.now();
        let parts = Parts {
            host: api.clone(),
            method,
            headers,
            body: body.to_owned().into(),
            peer: [127, 0, 0, 1].into(),
            now,
        };
        let call = Call::new(parts, &uri).unwrap();
        let version = call.path.first().cloned();
        let reply = match self.router.serve(call).await {
            Ok(reply) => reply,
            Err(fault) => error::render(Dialect::of(&api, version.as_deref()), &fault),
        };
        let status = reply.status.as_u16();
        match reply.content {
            Content::Json(body) => Got { status, body },
            Content::Empty | Content::Bytes { .. } => Got { status, body: Value::Null },
        }
    }
}
