//! `kill -9` of each process in the worst moments: what was acknowledged stays, what was open stays open as far as the
//! process that died did not carry it.

#![allow(clippy::unwrap_used)]

use std::{net::Ipv4Addr, time::Duration};

use acceptance::{
    Cloud, REGION,
    journey::{ATTACHMENT, Consumer, Journey, Vm, client, regional},
    signal, until,
};
use host::{
    capture::Headers,
    names,
    netlink::{
        conntrack::{self, Entry},
        socket::{Family, Socket},
    },
};
use model::id::NetworkId;
use serde_json::{Value, json};
use tombolo::journey::{CONSUMER, PRODUCER};

const ENDPOINT: &str = "10.1.0.5";
const URL: &str = "http://10.1.0.5/";
/// What is closing has less than this left; what is open has more.
const TRANSITORY_S: u32 = 200;

fn build(journey: &Journey) -> (Consumer<'_>, Vm<'_>, String) {
    journey.attach(ATTACHMENT, &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumer = journey.consumer("10.1.0.0/24");
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("e", ATTACHMENT, Some(ENDPOINT));
    let token = vm.id_token(&journey.url);
    assert_eq!(vm.status(URL, &token), 200);
    (consumer, vm, token)
}

#[track_caller]
fn is_200(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn door_answers(cloud: &Cloud) {
    until("the door", || match std::net::TcpStream::connect(cloud.door) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
}

/// What the producer's router tracks of connections to the endpoint.
fn tracked(cloud: &Cloud, producer: NetworkId) -> Vec<Entry> {
    let endpoint: Ipv4Addr = ENDPOINT.parse().expect("an address");
    let entries = cloud.netns(&names::vpc_ns(producer)).run(|| {
        let mut socket = Socket::open(Family::Netfilter).unwrap();
        conntrack::list(&mut socket).unwrap()
    });
    entries.unwrap().into_iter().filter(|e| e.original.dst == endpoint && e.original.dst_port == 80).collect()
}

/// Open connections through the endpoint have what is left of 20 minutes, whatever happened beside them.
#[track_caller]
fn idles_as_it_should(journey: &Journey) {
    let entries = tracked(&journey.cloud, journey.producer);
    let left: Vec<u32> = entries.iter().filter_map(|e| e.timeout_s).filter(|t| *t > TRANSITORY_S).collect();
    assert!(!left.is_empty() && left.iter().all(|t| (1_101..=1_200).contains(t)), "{left:?} s of 20 minutes are left");
}

#[test]
fn without_host_open_connections_live_and_new_ones_are_made_and_changes_apply_when_it_is_back() {
    let journey = Journey::up(&[]);
    let cloud = &journey.cloud;
    let (consumer, vm, token) = build(&journey);
    let mut open = vm.connect(ENDPOINT, &token);
    assert_eq!(open.hear(), "open");
    is_200(&open.ask("/headers"));
    let link = cloud.watch_link(journey.producer, consumer.network);

    let held = cloud.hold_supervisor();
    cloud.kill("host");
    is_200(&open.ask("/headers"));
    assert_eq!(vm.status(URL, &token), 200, "a new connection without host");
    drop(held);
    consumer.endpoint("e2", ATTACHMENT, Some("10.1.0.6"));
    assert_eq!(vm.status("http://10.1.0.6/", &token), 200, "a change after host has come back");
    is_200(&open.ask("/headers"));

    assert_eq!(link.count(|h| h.opens()), 2, "the open connection is still its first");
    let reset = |h: &Headers| h.dst == vm.address && h.tcp_flags & Headers::RST != 0;
    assert_eq!(link.count(reset), 0, "no RST");
    idles_as_it_should(&journey);
    cloud.kernel_equals_plan();
}

#[test]
fn a_killed_control_loses_no_acknowledged_write_and_nobody_who_does_not_write_notices() {
    let cloud = Cloud::kept();
    let journey = Journey::on(cloud);
    let cloud = &journey.cloud;
    let (consumer, vm, token) = build(&journey);
    let mut open = vm.connect(ENDPOINT, &token);
    assert_eq!(open.hear(), "open");
    // Begun before, because control knows which VM is meant.
    let mut calls = vm.talk(&format!(
        "while read -r url; do curl -s -o /dev/null -m 10 -w '%{{http_code}}\\n' \
         -H 'Authorization: Bearer {token}' $url; done"
    ));
    assert_eq!(calls.ask(URL), "200");

    let held = cloud.hold_supervisor();
    cloud.kill("control");
    until("the closed door", || match std::net::TcpStream::connect(cloud.door) {
        Err(_) => Ok(()),
        Ok(_) => Err("open".to_owned()),
    });
    is_200(&open.ask("/headers"));
    assert_eq!(calls.ask(URL), "200", "a new connection without control");
    drop(held);
    door_answers(cloud);
    is_200(&open.ask("/headers"));

    // Writes from three sides while it is killed again and again. What got an answer must be there.
    let acknowledged = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3).map(|w| scope.spawn(move || write_for_a_while(cloud, w))).collect();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(150));
            cloud.kill("control");
            door_answers(cloud);
            cloud.is_back("control");
        }
        writers.into_iter().flat_map(|w| w.join().expect("a writer ends")).collect::<Vec<_>>()
    });
    assert!(acknowledged.len() >= 10, "only {} writes were acknowledged", acknowledged.len());
    door_answers(cloud);
    are_there(cloud, &acknowledged);
    consumer.allow("tcp", 8080);
    idles_as_it_should(&journey);
    is_200(&open.ask("/headers"));
    cloud.kernel_equals_plan();
    drop((open, calls));
    journey.cloud.forget();
}

/// The networks exist, and the operations that made them end well.
fn are_there(cloud: &Cloud, networks: &[(String, String)]) {
    for (name, operation) in networks {
        assert_eq!(cloud.get(&format!("projects/{CONSUMER}/global/networks/{name}"))["name"], name.as_str());
        let at = operation.find("/compute/v1/").expect("a compute link") + "/compute/v1/".len();
        until("the end of an operation", || match cloud.get(&operation[at..]) {
            done if done["status"] == "DONE" && done["error"].is_null() => Ok(()),
            other => Err(other.to_string()),
        });
    }
}

/// Makes networks for three seconds, as far as a control answers; the acknowledged ones with their operations.
fn write_for_a_while(cloud: &Cloud, writer: usize) -> Vec<(String, String)> {
    let start = std::time::Instant::now();
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if start.elapsed() > Duration::from_secs(3) {
            break;
        }
        let name = format!("n-{writer}-{n}");
        let body = json!({"name": name, "autoCreateSubnetworks": false});
        let path = format!("/compute/v1/projects/{CONSUMER}/global/networks");
        match cloud.try_call("POST", "compute.googleapis.com", &path, &body) {
            // An answer that was cut off acknowledges nothing.
            Some(answer) if answer.status == 200 => {
                acknowledged.extend(answer.body["selfLink"].as_str().map(|operation| (name, operation.to_owned())));
            }
            Some(answer) => panic!("{name}: {}", answer.body),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    acknowledged
}

#[test]
fn a_killed_proxy_and_a_killed_guest_are_back_for_the_next_request() {
    let journey = Journey::up(&[]);
    let (_, vm, token) = build(&journey);
    let patient = format!("curl -s -o /dev/null -m 10 -w '%{{http_code}}' -H 'Authorization: Bearer {token}' {URL}");
    for _ in 0..3 {
        journey.cloud.kill("proxy");
        assert_eq!(vm.sh(&patient).out, "200");
        journey.cloud.kill("guest");
        let url = "http://169.254.169.254/computeMetadata/v1/instance/name";
        let name = vm.sh(&format!("curl -s -m 10 -w ' %{{http_code}}' -H 'Metadata-Flavor: Google' {url}"));
        assert_eq!(name.out, "test-vm 200");
        journey.cloud.kill("guest");
        assert_eq!(vm.metadata("project/project-id"), CONSUMER, "names resolve too");
    }
    journey.cloud.kernel_equals_plan();
}

#[test]
fn the_connections_of_a_killed_proxy_end_and_nothing_of_them_stays_on_their_way() {
    let journey = Journey::up(&[]);
    let (_, vm, token) = build(&journey);
    let mut open = vm.connect(ENDPOINT, &token);
    assert_eq!(open.hear(), "open");
    is_200(&open.ask("/headers"));
    let is_open = |e: &Entry| e.timeout_s.is_some_and(|t| t > TRANSITORY_S);
    let ports = || -> Vec<u16> {
        let entries = tracked(&journey.cloud, journey.producer);
        entries.iter().filter(|e| is_open(e)).map(|e| e.original.src_port).collect()
    };
    assert_eq!(ports().len(), 1);
    journey.cloud.kill("proxy");
    assert_eq!(open.ask("/headers"), "closed", "the client is told");
    assert_eq!(vm.status(URL, &token), 200, "the next connection finds the next proxy");
    until("the router to see it closed", || match ports() {
        ports if ports.is_empty() => Ok(()),
        ports => Err(format!("{ports:?}")),
    });
    journey.cloud.kernel_equals_plan();
}

#[test]
fn killed_shims_are_replaced_vm_and_instance_alike() {
    let journey = Journey::up(&[]);
    let (_, vm, token) = build(&journey);
    let cloud = &journey.cloud;
    vm.sh("touch /root/mark").ok();
    let shims = cloud.pids("shim");
    assert!(shims.len() >= 2, "one of the VM, one of the instance: {shims:?}");
    shims.iter().for_each(|pid| signal("-9", *pid));
    until("another VM in the place of the one that died", || match vm.sh("test ! -e /root/mark && echo anew") {
        said if said.out == "anew" => Ok(()),
        said => Err(format!("{said:?}")),
    });
    until("another instance", || match vm.status(URL, &token) {
        200 => Ok(()),
        // The proxy learns of the death from the first request that meets it.
        status @ (0 | 503) => Err(status.to_string()),
        status => panic!("{status}"),
    });
    cloud.kernel_equals_plan();
}

#[test]
fn a_killed_supervisor_leaves_everything_standing_and_the_next_one_finds_it() {
    let cloud = Cloud::kept();
    let name = cloud.name.clone();
    let journey = Journey::on(cloud);
    let (_, vm, token) = build(&journey);
    let boot = vm.sh("touch /root/mark; ls -i /root/mark").ok();
    let before = resources(&journey.cloud);
    let writing = &journey.cloud;
    let acknowledged = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3).map(|w| scope.spawn(move || write_for_a_while(writing, w))).collect();
        std::thread::sleep(Duration::from_millis(500));
        signal("-9", i32::try_from(journey.cloud.supervisor()).expect("a pid"));
        writers.into_iter().flat_map(|w| w.join().expect("a writer ends")).collect::<Vec<_>>()
    });
    for role in ["control", "host", "proxy", "guest"] {
        until(
            "the end of the roles",
            || if journey.cloud.pids(role).is_empty() { Ok(()) } else { Err(role.to_owned()) },
        );
    }
    drop(vm);
    drop(journey);
    let cloud = Cloud::start(&name, false, &[]);
    let vm = Vm::find(&cloud, CONSUMER, "test-vm");
    assert_eq!(vm.sh("ls -i /root/mark").ok(), boot, "it is the same VM, not another of its name");
    until("the next cloud to have taken over", || match vm.status(URL, &token) {
        200 => Ok(()),
        status @ (0 | 503) => Err(status.to_string()),
        status => panic!("{status}"),
    });
    are_there(&cloud, &acknowledged);
    // Also one that was made and whose answer was cut off: it promises nothing and may be there.
    let networks = cloud.get(&format!("projects/{CONSUMER}/global/networks"))["items"].clone();
    let names = networks.as_array().into_iter().flatten().filter_map(|network| network["name"].as_str());
    for name in names.filter(|name| name.starts_with("n-")) {
        cloud.compute("DELETE", &format!("projects/{CONSUMER}/global/networks/{name}"), json!({}));
    }
    assert_eq!(resources(&cloud), before, "and everything else is as it was");
    cloud.kernel_equals_plan();
    cloud.forget();
}

#[test]
fn a_cloud_that_was_taken_down_comes_up_with_all_its_resources_and_works() {
    let cloud = Cloud::kept();
    let name = cloud.name.clone();
    let journey = Journey::on(cloud);
    let (_, vm, token) = build(&journey);
    let before = resources(&journey.cloud);
    let policy = policy(&journey.cloud);
    drop(vm);
    let Journey { cloud, url, .. } = journey;
    cloud.down();
    let cloud = Cloud::start(&name, false, &[]);
    assert_eq!(resources(&cloud), before);
    assert_eq!(self::policy(&cloud), policy);
    let vm = Vm::find(&cloud, CONSUMER, "test-vm");
    until("the VM", || match vm.sh("true").code {
        Some(0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(vm.status(URL, &token), 200, "with the token of before");
    let fresh = vm.id_token(&url);
    assert_eq!(vm.status(URL, &fresh), 200, "with a new token");
    cloud.kernel_equals_plan();
    cloud.forget();
}

/// Nobody moves the kernel, so what is begun stays begun. Then everything dies.
#[test]
fn an_operation_that_was_begun_before_a_restart_is_polled_to_its_end_after_it() {
    let cloud = Cloud::kept();
    let name = cloud.name.clone();
    tombolo::journey::create_project(&client(&cloud), CONSUMER).unwrap();
    tombolo::journey::enable(&client(&cloud), CONSUMER, &["compute.googleapis.com"]).unwrap();
    let held = cloud.hold_supervisor();
    cloud.kill("host");
    let global = |cloud: &Cloud, method: &str, path: &str, body: Option<Value>| {
        let path = format!("/compute/v1/projects/{CONSUMER}/global/{path}");
        cloud.call(method, "compute.googleapis.com", &path, body).body
    };
    let network = json!({"name": "n", "autoCreateSubnetworks": false});
    let begun = global(&cloud, "POST", "networks", Some(network));
    let operation = format!("operations/{}", begun["name"].as_str().unwrap());
    assert_eq!(begun["status"], "RUNNING");
    assert_eq!(global(&cloud, "GET", &operation, None)["status"], "RUNNING");
    signal("-9", i32::try_from(cloud.supervisor()).expect("a pid"));
    until("the end of control", || match cloud.pids("control").as_slice() {
        [] => Ok(()),
        pids => Err(format!("{pids:?}")),
    });
    drop(held);
    drop(cloud);
    let cloud = Cloud::start(&name, false, &[]);
    let done = global(&cloud, "POST", &format!("{operation}/wait"), None);
    assert_eq!((&done["status"], &done["id"], &done["error"]), (&json!("DONE"), &begun["id"], &Value::Null));
    assert_eq!(global(&cloud, "GET", &operation, None), done);
    assert_eq!(global(&cloud, "GET", "networks/n", None)["id"], begun["targetId"]);
    cloud.kernel_equals_plan();
    cloud.forget();
}

#[test]
fn two_clouds_with_equal_names_and_addresses_do_not_see_each_other() {
    let journeys = [Journey::up(&[]), Journey::up(&[])];
    let built = journeys.each_ref().map(build);
    let [(_, vm_a, token_a), (_, vm_b, token_b)] = &built;
    assert_eq!((vm_a.status(URL, token_b), vm_b.status(URL, token_a)), (401, 401), "their keys differ");
    let [a, b] = &journeys;
    let foreign = b.cloud.call_as(
        Some(&a.cloud.token),
        "GET",
        "compute.googleapis.com",
        &format!("/compute/v1/projects/{CONSUMER}"),
        None,
    );
    assert_eq!(foreign.status, 401);
    let links = journeys.each_ref().map(|j| j.cloud.watch_balancer(j.producer));
    assert_eq!(vm_a.status(URL, token_a), 200);
    assert_eq!(links.each_ref().map(|l| l.opened().len()), [1, 0], "packets stay in their cloud");
    drop(built);
    let [a, b] = journeys;
    a.cloud.down();
    let vm = Vm::find(&b.cloud, CONSUMER, "test-vm");
    assert_eq!(vm.status(URL, &vm.id_token(&b.url)), 200, "the other goes on alone");
}

/// All that the two projects hold, as their owners see it; without what the act of looking changes.
fn resources(cloud: &Cloud) -> Vec<Value> {
    let mut found = Vec::new();
    for project in [PRODUCER, CONSUMER] {
        found.push(cloud.get(&format!("projects/{project}/global/networks"))["items"].clone());
        for collection in
            ["subnetworks", "addresses", "forwardingRules", "backendServices", "urlMaps", "serviceAttachments"]
        {
            found.push(cloud.get(&regional(project, collection))["items"].clone());
        }
        found.push(cloud.get(&format!("projects/{project}/zones/{}/instances", acceptance::ZONE))["items"].clone());
    }
    let service = format!("/v2/projects/{PRODUCER}/locations/{REGION}/services/hello-service");
    let mut service = cloud.call("GET", "run.googleapis.com", &service, None).body;
    for volatile in ["conditions", "terminalCondition", "etag"] {
        service.as_object_mut().expect("a service").remove(volatile);
    }
    found.push(service);
    found
}

fn policy(cloud: &Cloud) -> Value {
    let path = format!("/v1/projects/{PRODUCER}/locations/{REGION}/services/hello-service:getIamPolicy");
    cloud.call("GET", "run.googleapis.com", &path, None).body
}
