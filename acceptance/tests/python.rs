//! Google's own Python libraries from outside, through the public door: no `gcloud`, nothing of ours between.

#![allow(clippy::unwrap_used)]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use acceptance::{Cloud, Home, REGION, Said, ZONE, installed, journey::client, skip};
use serde_json::{Value, json};
use tombolo::journey::{self, CONSUMER, PRODUCER};

/// Python with what `.ci/run` has put beside the build, and with the system's own packages.
fn python(cloud: &Cloud, home: &Home) -> Command {
    let packages = acceptance::tombolo().ancestors().nth(2).map(|target| target.join("clients"));
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages.unwrap_or_default()).env("HOME", home.as_os_str()).envs(cloud.env());
    command.env_remove("NO_PROXY").env_remove("no_proxy").stdin(Stdio::null());
    command
}

fn imports(cloud: &Cloud, home: &Home, modules: &str, test: &str) -> bool {
    let found =
        python(cloud, home).args(["-c", &format!("import {modules}")]).output().is_ok_and(|o| o.status.success());
    if !found {
        skip(test, &format!("python3 does not import {modules}"));
    }
    found
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// Both projects, and a service account that may do everything in them, with a key file: what a pipeline has.
fn robot(cloud: &Cloud, home: &Home) -> PathBuf {
    let client = client(cloud);
    for project in [PRODUCER, CONSUMER] {
        journey::create_project(&client, project).unwrap();
        let apis = ["run.googleapis.com", "compute.googleapis.com", "iap.googleapis.com", "logging.googleapis.com"];
        journey::enable(&client, project, &apis).unwrap();
    }
    let iam = "iam.googleapis.com";
    let accounts = format!("/v1/projects/{PRODUCER}/serviceAccounts");
    let account = client.ok("POST", iam, &accounts, Some(&json!({"accountId": "pipeline"}))).unwrap();
    let email = account["email"].as_str().expect("an address");
    for project in [PRODUCER, CONSUMER] {
        let roles = ["roles/owner", "roles/iap.tunnelResourceAccessor"];
        let binding = |role| json!({"role": role, "members": [format!("serviceAccount:{email}")]});
        let (crm, path) = ("cloudresourcemanager.googleapis.com", format!("/v1/projects/{project}"));
        cloud.change_policy(crm, &path, |bindings| bindings.extend(roles.map(binding)));
    }
    let key = client.ok("POST", iam, &format!("{accounts}/{email}/keys"), Some(&json!({}))).unwrap();
    let file = key["privateKeyData"].as_str().expect("a key file");
    let form = identity::base64::Form::Standard;
    let path = home.join("pipeline.json");
    std::fs::write(&path, identity::base64::decode(form, file).expect("base64")).unwrap();
    path
}

#[test]
fn a_pipeline_with_google_auth_and_requests_walks_the_whole_journey_and_deletes_it() {
    let test = "the walkthrough over REST in Python";
    if !installed("python3", test) || !installed("ssh", test) {
        return;
    }
    let cloud = Cloud::up();
    let home = Home::of(&cloud);
    if !imports(&cloud, &home, "google.auth.transport.requests, requests", test) {
        return;
    }
    let key = robot(&cloud, &home);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(home.join("key")).status();
    assert!(made.is_ok_and(|status| status.success()));
    let tunnel = format!(
        "{} {} {} {CONSUMER} {ZONE} test-vm {}",
        env!("CARGO_BIN_EXE_tunnel"),
        cloud.door,
        cloud.state_dir().join("control/ca.pem").display(),
        u64::MAX
    );
    let said = python(&cloud, &home)
        .arg(script("journey.py"))
        .args([PRODUCER, CONSUMER])
        .args([home.as_os_str(), tunnel.as_ref()])
        .env("GOOGLE_APPLICATION_CREDENTIALS", key)
        .output()
        .unwrap();
    let seen: Value = serde_json::from_str(&Said::of(&said).ok()).expect("what it saw");
    assert_eq!(seen["who"], format!("pipeline@{PRODUCER}.iam.gserviceaccount.com"));
    assert_eq!(seen["project"], PRODUCER);
    assert_eq!((&seen["status"], &seen["page"], &seen["without"]), (&json!("ACCEPTED"), &json!(true), &json!("403")));
    let from = seen["from"].as_str().unwrap_or_default();
    assert!(from.starts_with("fda3:e722:ac3:") && from.ends_with("a00:302"), "{seen}");
    assert_eq!(seen["flow"], json!(["10.1.0.2", "10.1.0.5", 80]));
    cloud.kernel_equals_plan();
    assert_eq!(cloud.networks(), [""; 0], "namespaces of networks that are gone");
}

#[test]
fn googles_libraries_for_each_api_find_what_they_expect() {
    let test = "Google's client libraries";
    if !installed("python3", test) {
        return;
    }
    let cloud = Cloud::up();
    let home = Home::of(&cloud);
    let modules = "google.cloud.compute_v1, google.cloud.run_v2, google.cloud.logging_v2, \
                   google.cloud.resourcemanager_v3, google.cloud.service_usage_v1";
    if !imports(&cloud, &home, modules, test) {
        return;
    }
    let key = robot(&cloud, &home);
    let mut client = python(&cloud, &home);
    client.arg(script("libraries.py")).arg(PRODUCER).env("GOOGLE_APPLICATION_CREDENTIALS", key);
    let seen: Value = serde_json::from_str(&Said::of(&client.output().unwrap()).ok()).expect("what it saw");
    let in_use = format!("The network resource 'projects/{PRODUCER}/global/networks/vpc' is already being used by");
    assert!(seen["in use"].as_str().is_some_and(|why| why.contains(&in_use)), "{seen}");
    for (what, want) in [
        ("state", json!("ACTIVE")),
        ("enabled", json!("ENABLED")),
        ("subnets", json!(["subnet-0", "subnet-1", "subnet-2"])),
        ("service", json!("CONDITION_SUCCEEDED")),
        ("services", json!([format!("projects/{PRODUCER}/locations/{REGION}/services/hello")])),
        ("entry", json!(["written by a library", "WARNING"])),
        ("gone", json!(404)),
    ] {
        assert_eq!(seen[what], want, "{what}: {seen}");
    }
    assert!([json!(403), json!(404)].contains(&seen["hidden"]), "{seen}");
}
