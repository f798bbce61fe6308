//! `kill -9` of each process while writes stream in: none of them fails for it, what was acknowledged is there, and the
//! kernel ends equal to the plans.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use acceptance::{
    Cloud, REGION,
    journey::{ATTACHMENT, Consumer, Journey, regional},
    line::Line,
};
use serde_json::{Value, json};
use tombolo::journey::{CONSUMER, IMAGE, PRODUCER, link};

const ENDPOINT: &str = "10.1.0.5";
/// How often each process is killed.
const DEATHS: u32 = 4;

/// Writes until it is told to stop.
type Writer<'a> = dyn Fn(&AtomicBool) -> Vec<String> + Sync + 'a;

/// Kills the process again and again while `write` is called; returns the names that should be there afterwards.
fn while_dying(cloud: &Cloud, role: &str, writers: &[&Writer<'_>]) -> Vec<Vec<String>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing: Vec<_> = writers.iter().map(|write| scope.spawn(|| write(&over))).collect();
        for _ in 0..DEATHS {
            std::thread::sleep(Duration::from_millis(250));
            cloud.kill(role);
            cloud.is_back(role);
        }
        over.store(true, Ordering::Relaxed);
        writing.into_iter().map(|w| w.join().expect("a write fails for no death")).collect()
    })
}

/// Makes one after another until it is over, and takes every second one away again; at least three, so that something was
/// asked for while the process was away.
fn come_and_go(over: &AtomicBool, prefix: &str, make: impl Fn(&str), unmake: impl Fn(&str)) -> Vec<String> {
    let mut left = Vec::new();
    for n in 0.. {
        if n >= 3 && over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{n}");
        make(&name);
        if n % 2 == 0 {
            left.push(name);
        } else {
            unmake(&name);
        }
    }
    left
}

fn endpoints(cloud: &Cloud, consumer: &Consumer<'_>, role: &str, over: &AtomicBool) -> Vec<String> {
    let make = |name: &str| drop(consumer.endpoint(name, ATTACHMENT, None));
    let unmake = |name: &str| {
        cloud.compute("DELETE", &regional(CONSUMER, &format!("forwardingRules/{name}")), json!({}));
    };
    come_and_go(over, &format!("e-{role}"), make, unmake)
}

fn rules(cloud: &Cloud, role: &str, over: &AtomicBool) -> Vec<String> {
    let collection = format!("projects/{CONSUMER}/global/firewalls");
    let make = |name: &str| {
        let body = json!({
            "name": name, "network": link(CONSUMER, "global/networks/consumer-vpc"), "direction": "INGRESS",
            "sourceRanges": ["10.9.0.0/16"], "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
        });
        cloud.compute("POST", &collection, body);
    };
    let unmake = |name: &str| drop(cloud.compute("DELETE", &format!("{collection}/{name}"), json!({})));
    come_and_go(over, &format!("r-{role}"), make, unmake)
}

fn services(cloud: &Cloud, role: &str, over: &AtomicBool) -> Vec<String> {
    let make = |name: &str| {
        let service = json!({"template": {"containers": [{"image": IMAGE}]}});
        run(cloud, "POST", &format!("?serviceId={name}"), Some(service));
    };
    let unmake = |name: &str| run(cloud, "DELETE", &format!("/{name}"), None);
    come_and_go(over, &format!("s-{role}"), make, unmake)
}

/// A call of Cloud Run, awaited; it must end well.
#[track_caller]
fn run(cloud: &Cloud, method: &str, path: &str, body: Option<Value>) {
    let host = "run.googleapis.com";
    let collection = format!("/v2/projects/{PRODUCER}/locations/{REGION}/services");
    let mut operation = cloud.call(method, host, &format!("{collection}{path}"), body).body;
    while operation["done"] != true {
        let name = operation["name"].as_str().unwrap_or_else(|| panic!("no operation: {operation}")).to_owned();
        operation = cloud.call("POST", host, &format!("/v2/{name}:wait"), Some(json!({"timeout": "10s"}))).body;
    }
    assert!(operation["error"].is_null(), "{method} {path}: {operation}");
}

/// Names in a list that begin with this, in order.
fn listed(list: &Value, prefix: &str) -> Vec<String> {
    let last = |item: &Value| item["name"].as_str().and_then(|n| n.rsplit('/').next()).map(str::to_owned);
    let mut names: Vec<String> = list.as_array().into_iter().flatten().filter_map(last).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[test]
fn no_write_fails_or_is_lost_while_host_guest_and_proxy_are_killed_again_and_again() {
    let journey = Journey::up(&[]);
    let cloud = &journey.cloud;
    journey.attach(ATTACHMENT, &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumer = journey.consumer("10.1.0.0/24");
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("e", ATTACHMENT, Some(ENDPOINT));
    let token = vm.id_token(&journey.url);
    let open = || -> Line {
        let mut open = vm.connect(ENDPOINT, &token);
        assert_eq!((open.hear().as_str(), &open.ask("/headers")[..12]), ("open", "HTTP/1.1 200"));
        open
    };
    for role in ["host", "guest", "proxy"] {
        let mut open = open();
        let [by_endpoints, by_rules, by_services] = while_dying(
            cloud,
            role,
            &[&|over| endpoints(cloud, &consumer, role, over), &|over| rules(cloud, role, over), &|over| {
                services(cloud, role, over)
            }],
        )
        .try_into()
        .expect("three writers");
        let found = cloud.get(&regional(CONSUMER, "forwardingRules"));
        assert_eq!(listed(&found["items"], &format!("e-{role}-")), sorted(by_endpoints.clone()));
        let found = cloud.get(&format!("projects/{CONSUMER}/global/firewalls"));
        assert_eq!(listed(&found["items"], &format!("r-{role}-")), sorted(by_rules));
        let path = format!("/v2/projects/{PRODUCER}/locations/{REGION}/services");
        let found = cloud.call("GET", "run.googleapis.com", &path, None).body;
        assert_eq!(listed(&found["services"], &format!("s-{role}-")), sorted(by_services));
        for name in &by_endpoints {
            let address = consumer.rule(name)["IPAddress"].as_str().expect("an address").to_owned();
            assert_eq!(vm.status(&format!("http://{address}/"), &token), 200, "{name}");
        }
        let answer = open.ask("/headers");
        // The connection is the proxy's; the others carry none of it.
        let lives = answer.starts_with("HTTP/1.1 200");
        assert_eq!(lives, role != "proxy", "an open connection while {role} died: {answer}");
        cloud.kernel_equals_plan();
    }
}
