//! Who is refused, where and how: at the service, from outside, and at the APIs.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use acceptance::{
    Cloud, REGION,
    journey::{ATTACHMENT, Journey, Shared, Vm, client, invoker},
    until,
};
use aws_lc_rs::hmac;
use control::{ops::Control, tokens::Mint};
use identity::{
    base64::{self, Form},
    keys::{SigningKey, public_pem},
    token::{IdClaims, sign_id_token},
};
use model::time::Timestamp;
use serde_json::{Value, json};
use store::Embedded;
use tombolo::{
    client::Client,
    journey::{self, CONSUMER, PRODUCER},
};

static JOURNEY: Shared<Journey> = Shared::new();

/// A journey whose instances are put away after a second.
fn journey() -> Arc<Journey> {
    JOURNEY.get(|| {
        let journey = Journey::published(&["--idle-instance", "1"]);
        let consumer = journey.consumer("10.1.0.0/24");
        consumer.vm("test-vm", None);
        consumer.endpoint("e", ATTACHMENT, Some("10.1.0.5"));
        journey
    })
}

const ENDPOINT: &str = "http://10.1.0.5/";

fn unix_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("before 2262")
}

/// The very key with which a cloud signs ID tokens, out of its store. The cloud must be down.
fn signing_key(cloud: &str) -> Arc<SigningKey> {
    let store = Embedded::open(&Path::new("/var/lib/tombolo").join(cloud).join("control/store.redb")).unwrap();
    let control = Control::open(Arc::new(store), Arc::new(|| Timestamp::from_unix_s(unix_s()))).unwrap();
    let mint = Mint::open(&control).unwrap();
    mint.tend(&control).unwrap();
    mint.ring().unwrap().signer(Timestamp::from_unix_s(unix_s()))
}

fn part(token: &str, n: usize) -> Value {
    let bytes = base64::decode(Form::Url, token.split('.').nth(n).expect("three parts")).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn jws(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let encode = |bytes: &[u8]| base64::encode(Form::Url, bytes);
    let body = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    format!("{body}.{}", encode(&sign(body.as_bytes())))
}

/// With the cloud's own key in hand, each forgery differs from a good token in one thing, and falls by that.
#[test]
fn every_forged_stale_or_misdirected_token_is_answered_401_and_the_good_one_200() {
    let cloud = Cloud::kept();
    let name = cloud.name.clone();
    cloud.down();
    let key = signing_key(&name);
    let journey = Journey::on(Cloud::start(&name, false, &[]));
    journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumer = journey.consumer("10.1.0.0/24");
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("e", "att", Some("10.1.0.5"));
    let good = vm.id_token(&journey.url);
    let (header, claims) = (part(&good, 0), part(&good, 1));
    let sign = |change: &dyn Fn(&mut IdClaims)| {
        let mut changed: IdClaims = serde_json::from_value(claims.clone()).expect("the claims of an ID token");
        change(&mut changed);
        sign_id_token(&key, &changed)
    };
    let with = |field: &str, value: &str| {
        let mut header = header.clone();
        header[field] = json!(value);
        header
    };
    let pem = public_pem(key.public()).unwrap();
    let by_public_key =
        |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, pem.as_bytes()), message).as_ref().to_vec();
    let stranger = SigningKey::generate().unwrap();
    let mut altered = claims.clone();
    altered["email"] = json!("somebody@else.example");
    let tokens = [
        ("the good one", good.clone(), 200),
        ("the good one, signed by us", sign(&|_| {}), 200),
        ("none", String::new(), 403),
        ("nonsense", "nonsense".to_owned(), 401),
        ("for another audience", vm.id_token("https://example.com"), 401),
        ("for the endpoint's address", vm.id_token("http://10.1.0.5"), 401),
        ("expired", sign(&|c| (c.iat, c.exp) = (c.iat - 7_200, c.exp - 7_200)), 401),
        ("not valid yet", sign(&|c| (c.iat, c.exp) = (c.iat + 600, c.exp + 600)), 401),
        ("of another issuer", sign(&|c| c.iss = "https://accounts.example.com".to_owned()), 401),
        ("alg none", jws(&with("alg", "none"), &claims, |_| Vec::new()), 401),
        ("HS256 with the public key as the secret", jws(&with("alg", "HS256"), &claims, by_public_key), 401),
        ("signed by a stranger under our key's name", jws(&header, &claims, |m| stranger.sign(m)), 401),
        (
            "signed by a stranger under its own name",
            jws(&with("kid", stranger.kid()), &claims, |m| stranger.sign(m)),
            401,
        ),
        (
            "altered",
            jws(&header, &altered, |_| base64::decode(Form::Url, good.rsplit('.').next().unwrap()).unwrap()),
            401,
        ),
        ("an access token", vm.access_token(), 401),
    ];
    let mut wrong = Vec::new();
    for (what, token, want) in &tokens {
        let got = vm.status(ENDPOINT, token);
        if got != *want {
            wrong.push(format!("{what}: {got} instead of {want}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    journey.cloud.forget();
}

#[test]
fn a_role_that_is_taken_away_is_missing_in_the_next_request() {
    let journey = journey();
    let vm = Vm::find(&journey.cloud, CONSUMER, "test-vm");
    let token = vm.id_token(&journey.url);
    let client = journey.client();
    let member = invoker(&client, CONSUMER);
    for _ in 0..3 {
        assert_eq!(vm.status(ENDPOINT, &token), 200);
        journey::let_invoke(&client, "user:nobody@example.com").unwrap();
        assert_eq!(vm.status(ENDPOINT, &token), 403, "the binding is gone");
        journey::let_invoke(&client, &member).unwrap();
    }
}

/// Container instances that run.
fn instances(cloud: &Cloud) -> usize {
    let shims = std::fs::read_dir(cloud.run_dir().join("shim")).unwrap().flatten();
    let names = shims.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("run-") && name.ends_with(".sock")).count()
}

#[test]
fn from_outside_an_internal_service_is_not_there_and_no_instance_is_started_to_say_so() {
    let cloud = Cloud::up_with(&["--idle-instance", "1"]);
    let journey = Journey::on(cloud);
    journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumer = journey.consumer("10.1.0.0/24");
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("e", "att", Some("10.1.0.5"));
    let token = vm.id_token(&journey.url);
    assert_eq!(vm.status(ENDPOINT, &token), 200);
    let none = || match instances(&journey.cloud) {
        0 => Ok(()),
        n => Err(format!("{n} instances")),
    };
    until("scaling to zero", none);
    let outside = Client { door: journey.cloud.door, token: token.clone() };
    let ca = journey.cloud.state_dir().join("control/ca.pem");
    let host = journey.url.trim_start_matches("https://");
    for _ in 0..5 {
        assert_eq!(outside.get_tls(host, "/", &ca).unwrap().status, 404);
    }
    // An instance for any of these would stand for a second at least.
    let end = Instant::now() + Duration::from_millis(900);
    while Instant::now() < end {
        assert_eq!(instances(&journey.cloud), 0);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(vm.status(ENDPOINT, &token), 200, "from inside it starts again");
    assert_eq!(instances(&journey.cloud), 1);
}

#[test]
fn an_api_that_is_not_enabled_refuses_and_says_which() {
    let cloud = &journey().cloud;
    let client = client(cloud);
    journey::create_project(&client, "bare-project").unwrap();
    let networks = "/compute/v1/projects/bare-project/global/networks";
    let body = json!({"name": "n", "autoCreateSubnetworks": false});
    let refused = cloud.call("POST", "compute.googleapis.com", networks, Some(body.clone()));
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert!(refused.body.to_string().contains("compute.googleapis.com"), "{}", refused.body);
    let services = format!("/v2/projects/bare-project/locations/{REGION}/services");
    assert_eq!(cloud.call("GET", "run.googleapis.com", &services, None).status, 403);
    journey::enable(&client, "bare-project", &["compute.googleapis.com"]).unwrap();
    assert_eq!(cloud.call("GET", "compute.googleapis.com", networks, None).status, 200);
    assert_eq!(cloud.call("GET", "run.googleapis.com", &services, None).status, 403, "the other is still off");
    let disable = "/v1/projects/bare-project/services/compute.googleapis.com:disable";
    assert_eq!(cloud.call("POST", "serviceusage.googleapis.com", disable, Some(json!({}))).status, 200);
    assert_eq!(cloud.call("POST", "compute.googleapis.com", networks, Some(body)).status, 403, "off again");
}

/// One reading call of each API.
fn calls(project: &str) -> [(&'static str, String); 4] {
    [
        ("compute.googleapis.com", format!("/compute/v1/projects/{project}/global/networks")),
        ("run.googleapis.com", format!("/v2/projects/{project}/locations/{REGION}/services/hello-service")),
        ("iam.googleapis.com", format!("/v1/projects/{project}/serviceAccounts")),
        ("cloudresourcemanager.googleapis.com", format!("/v1/projects/{project}")),
    ]
}

#[test]
fn nobody_calls_an_api_without_a_credential_of_this_cloud() {
    let journey = journey();
    let vm = Vm::find(&journey.cloud, CONSUMER, "test-vm");
    let id_token = vm.id_token(&journey.url);
    for (host, path) in calls(PRODUCER) {
        assert_eq!(journey.cloud.call("GET", host, &path, None).status, 200, "{host} to its owner");
        for token in [None, Some("nonsense"), Some("ya29.nonsense"), Some(id_token.as_str())] {
            let answer = journey.cloud.call_as(token, "GET", host, &path, None);
            assert_eq!(answer.status, 401, "{host} to {token:?}: {}", answer.body);
        }
    }
}

#[test]
fn an_account_of_one_project_is_nobody_in_another() {
    let journey = journey();
    let vm = Vm::find(&journey.cloud, CONSUMER, "test-vm");
    let access = vm.access_token();
    let token = Some(access.as_str());
    let mine = format!("/compute/v1/projects/{CONSUMER}/global/networks");
    assert_eq!(journey.cloud.call_as(token, "GET", "compute.googleapis.com", &mine, None).status, 200, "at home");
    for (host, path) in calls(PRODUCER) {
        let answer = journey.cloud.call_as(token, "GET", host, &path, None);
        assert_eq!(answer.status, 403, "{host}{path}: {}", answer.body);
    }
    let network = json!({"name": "intruder", "autoCreateSubnetworks": false});
    let path = format!("/compute/v1/projects/{PRODUCER}/global/networks");
    assert_eq!(journey.cloud.call_as(token, "POST", "compute.googleapis.com", &path, Some(network)).status, 403);
    let service = format!("/v1/projects/{PRODUCER}/locations/{REGION}/services/hello-service:setIamPolicy");
    let policy = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}});
    assert_eq!(journey.cloud.call_as(token, "POST", "run.googleapis.com", &service, Some(policy)).status, 403);
    assert_eq!(vm.status(ENDPOINT, ""), 403, "and the service is still private");
}
