//! One trace id finds what every hop of a call logged: the consumer's flow, the translation, the balancer and the service.

use acceptance::{
    Cloud,
    journey::{Consumer, Journey, Vm, regional},
    until,
};
use serde_json::{Value, json};
use tombolo::journey::PRODUCER;

/// Both networks use it, so that no address alone says whose it is.
const RANGE: &str = "10.0.0.0/16";
const ENDPOINT: &str = "10.0.0.5";

const RUN: &str = "run.googleapis.com%2Frequests";
const FLOWS: &str = "compute.googleapis.com%2Fvpc_flows";

/// Changes a resource that has a fingerprint.
fn patch(cloud: &Cloud, path: &str, mut changes: Value) {
    changes["fingerprint"] = cloud.get(path)["fingerprint"].clone();
    cloud.compute("PATCH", path, changes);
}

/// Turns on every log on the way of a call.
fn log_everything(journey: &Journey, consumer: &Consumer<'_>) {
    let flows = json!({"logConfig": {"enable": true, "flowSampling": 1.0, "aggregationInterval": "INTERVAL_5_SEC"}});
    for subnet in
        [regional(PRODUCER, "subnetworks/producer-subnet"), regional(&consumer.project, "subnetworks/consumer-subnet")]
    {
        patch(&journey.cloud, &subnet, flows.clone());
    }
    let backend = regional(PRODUCER, "backendServices/hello-backend-service");
    patch(&journey.cloud, &backend, json!({"logConfig": {"enable": true, "sampleRate": 1.0}}));
}

/// Every entry of these projects that has this text in any field, as one query finds them.
fn entries(cloud: &Cloud, projects: &[&str], text: &str) -> Vec<Value> {
    let body = json!({
        "resourceNames": projects.iter().map(|project| format!("projects/{project}")).collect::<Vec<_>>(),
        "filter": format!("\"{text}\""), "pageSize": 1_000,
    });
    let page = cloud.call("POST", "logging.googleapis.com", "/v2/entries:list", Some(body));
    assert_eq!(page.status, 200, "{:#}", page.body);
    page.body["entries"].as_array().cloned().unwrap_or_default()
}

/// What an entry is, in short: its log, its project, and for a flow whose direction it tells and from where.
fn hop(entry: &Value) -> String {
    let name = entry["logName"].as_str().unwrap_or_default();
    let connection = &entry["jsonPayload"]["connection"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = name.trim_start_matches("projects/").replace("/logs/", " ");
    if connection.is_null() { name } else { format!("{name} {}", text(&entry["jsonPayload"]["reporter"])) }
}

/// Waits until every hop has an entry with this id, and returns all that have it.
fn all_hops(cloud: &Cloud, consumer: &str, id: &str) -> Vec<Value> {
    // Each flow is told by both of its directions.
    let mut want = vec![
        format!("{consumer} {FLOWS} DEST"),
        format!("{consumer} {FLOWS} SRC"),
        format!("{PRODUCER} {FLOWS} DEST"),
        format!("{PRODUCER} {FLOWS} SRC"),
        format!("{PRODUCER} requests"),
        format!("{PRODUCER} {RUN}"),
    ];
    want.sort();
    let mut found = Vec::new();
    until("every hop to be found by the trace id", || {
        found = entries(cloud, &[consumer, PRODUCER], id);
        let mut hops: Vec<_> = found.iter().map(hop).collect();
        hops.sort();
        hops.dedup();
        if hops == want { Ok(()) } else { Err(format!("{hops:?}")) }
    });
    found
}

fn call(vm: &Vm<'_>, token: &str, ids: &[&str]) {
    let calls = ids.iter().map(|id| {
        format!(
            "-s -o /dev/null -w '%{{http_code}}\\n' -m 20 -H 'Authorization: Bearer {token}' \
             -H 'traceparent: 00-{id}-00f067aa0ba902b7-01' http://{ENDPOINT}/headers"
        )
    });
    let said = vm.sh(&format!("curl {}", calls.collect::<Vec<_>>().join(" --next ")));
    assert_eq!(said.ok(), vec!["200"; ids.len()].join("\n"), "every call is answered");
}

#[test]
fn one_query_by_a_trace_id_finds_the_flow_the_translation_the_balancer_and_the_service() {
    let journey = Journey::up(&[]);
    journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumers = [journey.consumer(RANGE), journey.other_consumer("consumer-two", RANGE)];
    let vms = consumers.each_ref().map(|c| c.vm(&format!("vm-{}", c.project), Some("10.0.0.9")));
    for consumer in &consumers {
        consumer.endpoint("e", "att", Some(ENDPOINT));
        log_everything(&journey, consumer);
    }
    let tokens = vms.each_ref().map(|vm| vm.id_token(&journey.url));
    let ids = ["4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f3577b34da6a3ce929d0e0e4737"];
    // Two consumers call from equal addresses to equal addresses.
    for ((vm, token), id) in vms.iter().zip(&tokens).zip(ids) {
        call(vm, token, &[id]);
    }
    for (consumer, id) in consumers.iter().zip(ids) {
        let found = all_hops(&journey.cloud, &consumer.project, id);
        for entry in &found {
            let project = hop(entry).split(' ').next().map(str::to_owned).expect("a project");
            assert_eq!(entry["trace"], format!("projects/{project}/traces/{id}"), "each names the trace as its own");
            assert_eq!(entry["labels"].get("tombolo.dev/traces"), None, "one request, one trace");
            if project == PRODUCER && entry["jsonPayload"].get("connection").is_some() {
                let text = entry.to_string();
                let known = ["10.0.0.9", ENDPOINT, &consumer.project, "consumer-vpc"];
                assert!(known.iter().all(|word| !text.contains(word)), "the producer learns nothing: {text}");
            }
        }
        let connection = consumer.rule("e")["pscConnectionId"].clone();
        let flows = found.iter().filter(|e| e["jsonPayload"].get("connection").is_some());
        for flow in flows {
            let psc = &flow["jsonPayload"]["psc"]["psc_endpoint"];
            assert_eq!(psc["psc_connection_id"], connection, "the flow is of this consumer's connection: {flow:#}");
        }
        let at = |want: String| found.iter().find(|e| hop(e) == want).expect("just found");
        let nat = &at(format!("{PRODUCER} {FLOWS} DEST"))["jsonPayload"]["connection"];
        let nat = format!("{}:{}", nat["src_ip"].as_str().expect("an address"), nat["src_port"]);
        let balancer = at(format!("{PRODUCER} requests"));
        assert_eq!(balancer["httpRequest"]["remoteIp"], nat, "the balancer's client is the translation");
    }

    // Two calls on one connection are found by either id.
    let two = ["4bf92f3577b34da6a3ce929d0e0e4738", "4bf92f3577b34da6a3ce929d0e0e4739"];
    call(&vms[0], &tokens[0], &two);
    let ports = two.map(|id| {
        let found = all_hops(&journey.cloud, &consumers[0].project, id);
        let flow =
            found.iter().find(|e| hop(e) == format!("{} {FLOWS} SRC", consumers[0].project)).expect("just found");
        flow["jsonPayload"]["connection"]["src_port"].clone()
    });
    assert_eq!(ports[0], ports[1], "one connection");
}
