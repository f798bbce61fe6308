//! What containers print and how instances come and go, read back through the Logging API.

use acceptance::{
    Cloud,
    journey::{ATTACHMENT, Journey},
    until,
};
use serde_json::json;
use tombolo::journey::{CONSUMER, PRODUCER, publish};

/// The texts in one log of the producer, oldest first.
fn texts(cloud: &Cloud, log: &str) -> Vec<String> {
    let body = json!({
        "resourceNames": [format!("projects/{PRODUCER}")],
        "filter": format!("log_id(\"run.googleapis.com/{log}\")"),
        "pageSize": 1_000,
    });
    let page = cloud.call("POST", "logging.googleapis.com", "/v2/entries:list", Some(body));
    assert_eq!(page.status, 200, "{:#}", page.body);
    let entries = page.body["entries"].as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| entry["textPayload"].as_str().unwrap_or_default().to_owned()).collect()
}

fn count(texts: &[String], start: &str) -> usize {
    texts.iter().filter(|text| text.starts_with(start)).count()
}

const GREETING: &str = "Hello from Cloud Run! The container started and listens for HTTP requests on port";
const STARTING: &str = "Starting new instance. Reason: ";

#[test]
fn what_a_container_prints_and_how_it_ends_is_logged_once_also_when_control_and_host_are_killed() {
    let journey = Journey::on(Cloud::kept());
    publish(&journey.client(), &[(CONSUMER, 10)]).expect("the service attachment");
    let cloud = &journey.cloud;
    let consumer = journey.consumer("10.1.0.0/24");
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("e", ATTACHMENT, Some("10.1.0.5"));
    until("the greeting of the first instance", || {
        let printed = texts(cloud, "stdout");
        if count(&printed, GREETING) > 0 { Ok(()) } else { Err(format!("{printed:?}")) }
    });
    let said = texts(cloud, "varlog/system");
    assert!(said.iter().any(|text| text.starts_with("Starting new instance. Reason: DEPLOYMENT_ROLLOUT")), "{said:?}");
    assert!(
        said.iter().any(|text| text.starts_with("Default STARTUP TCP probe succeeded after 1 attempt")),
        "{said:?}"
    );

    let token = vm.id_token(&journey.url);
    // With an entry that is answered, every earlier one is safe.
    let last = json!({
        "logName": format!("projects/{PRODUCER}/logs/mine"), "resource": {"type": "global"},
        "entries": [{"textPayload": "before the crash"}],
    });
    assert_eq!(cloud.call("POST", "logging.googleapis.com", "/v2/entries:write", Some(last)).status, 200);
    cloud.kill("control");
    cloud.kill("host");
    until("control to be back", || {
        let said = cloud.tombolo("status", &[]);
        if said.code == Some(0) { Ok(()) } else { Err(said.err) }
    });
    until("the container to be told to end", || {
        let status = vm.status("http://10.1.0.5/exit?code=3", &token);
        if status == 503 { Ok(()) } else { Err(format!("{status}")) }
    });
    until("its last word", || {
        let said = texts(cloud, "varlog/system");
        if said.iter().any(|text| text == "Container called exit(3).") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    until("another instance to serve", || {
        let status = vm.status("http://10.1.0.5/", &token);
        if status == 200 { Ok(()) } else { Err(format!("{status}")) }
    });
    until("as many greetings as instances", || {
        let (printed, said) = (texts(cloud, "stdout"), texts(cloud, "varlog/system"));
        let (greetings, started) = (count(&printed, GREETING), count(&said, STARTING));
        if greetings == started && started > 1 { Ok(()) } else { Err(format!("{printed:?} {said:?}")) }
    });
    journey.cloud.forget();
}
