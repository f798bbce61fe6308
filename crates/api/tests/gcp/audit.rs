//! The activity log: who changed what, and who was not allowed to.

use http::Method;
use serde_json::{Value, json};

use crate::scene::{HELLO, REGION_HOST, Scene};

const COMPUTE: &str = "https://compute.googleapis.com/compute/v1/projects/producer-1";
const ACTIVITY: &str = "log_id(\"cloudaudit.googleapis.com/activity\")";

/// The entries of `producer-1` that a filter finds, oldest first, as `gcloud logging read` asks for them.
async fn read(scene: &Scene, filter: &str) -> Vec<Value> {
    let body = json!({"resourceNames": ["projects/producer-1"], "filter": format!("{ACTIVITY} AND {filter}")});
    let page = scene.post("https://logging.googleapis.com/v2/entries:list", body).await.ok();
    page["entries"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn every_change_through_any_api_is_written_down_with_who_made_it() {
    let scene = Scene::with_project().await;
    let services = format!("{REGION_HOST}/apis/serving.knative.dev/v1/namespaces/producer-1/services");
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "producer-1"},
        "spec": {"template": {"spec": {"containers": [{"image": HELLO}]}}},
    });
    scene.post(&services, service).await.ok();
    let v2 = "https://run.googleapis.com/v2/projects/producer-1/locations/asia-northeast1/services";
    let open = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}});
    scene.post(&format!("{v2}/hello:setIamPolicy"), open).await.ok();
    scene.delete(&format!("{v2}/hello")).await.ok();
    let accounts = "https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts";
    scene.post(accounts, json!({"accountId": "robot-1"})).await.ok();
    let robot = "robot-1@producer-1.iam.gserviceaccount.com";
    scene.post(&format!("{accounts}/{robot}/keys"), json!({})).await.ok();
    scene.delete(&format!("{accounts}/{robot}")).await.ok();
    scene.post(&format!("{COMPUTE}/global/networks"), json!({"name": "n", "autoCreateSubnetworks": false})).await.ok();
    scene.get(&format!("{COMPUTE}/global/networks")).await.ok();
    let seen: Vec<(String, String, String)> = read(&scene, "severity=NOTICE")
        .await
        .iter()
        .map(|entry| {
            let payload = &entry["protoPayload"];
            assert_eq!(payload["authenticationInfo"]["principalSubject"], "user:admin@tombolo.local");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&payload["methodName"]), text(&payload["resourceName"]), text(&entry["resource"]["type"]))
        })
        .collect();
    let number = scene.number("producer-1");
    let unique = seen.iter().find(|s| s.0.ends_with(".CreateServiceAccount")).unwrap().1.clone();
    assert!(unique.starts_with("projects/-/serviceAccounts/1"), "{unique}");
    let usage = format!("projects/{number}/services/-");
    let run = "projects/producer-1/locations/asia-northeast1/services/hello";
    let gone = format!("projects/-/serviceAccounts/{robot}");
    let want = [
        ("CreateProject", "projects/producer-1", "project"),
        ("google.api.serviceusage.v1.ServiceUsage.BatchEnableServices", &usage, "audited_resource"),
        ("google.cloud.run.v1.Services.CreateService", "namespaces/producer-1/services/hello", "cloud_run_revision"),
        ("google.cloud.run.v2.Services.SetIamPolicy", run, "cloud_run_revision"),
        ("google.cloud.run.v2.Services.DeleteService", run, "cloud_run_revision"),
        ("google.iam.admin.v1.CreateServiceAccount", &unique, "service_account"),
        ("google.iam.admin.v1.CreateServiceAccountKey", &unique, "service_account"),
        ("google.iam.admin.v1.DeleteServiceAccount", &gone, "service_account"),
        ("v1.compute.networks.insert", "projects/producer-1/global/networks/n", "gce_network"),
    ];
    let want: Vec<_> = want.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect();
    assert_eq!(seen, want, "no more and no less: what only reads is not there");
}

#[tokio::test]
async fn what_a_caller_was_refused_is_written_down_with_the_permission_that_was_missing() {
    let scene = Scene::with_project().await;
    let stranger = scene.mint.operator_token("stranger@example.com", scene.control.now()).unwrap();
    let body = json!({"name": "n", "autoCreateSubnetworks": false}).to_string();
    let networks = format!("{COMPUTE}/global/networks");
    let refused = scene.call(Method::POST, &networks, Some(&stranger), None, &body).await.refused(403);
    let found = read(&scene, "protoPayload.authenticationInfo.principalEmail=\"stranger@example.com\"").await;
    let [entry] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!(entry["severity"], "ERROR");
    let payload = &entry["protoPayload"];
    assert_eq!((&payload["status"]["code"], &payload["status"]["message"]), (&json!(7), &json!(refused)));
    let missing = &payload["authorizationInfo"][0];
    assert_eq!(missing["permission"], "compute.networks.create");
    assert_eq!(missing.get("granted"), None, "false is left out");
    assert_eq!(missing["resource"], "projects/producer-1/global/networks/n");
    // Nobody knows who this was.
    scene.call(Method::POST, &networks, None, None, &body).await.refused(401);
    assert_eq!(read(&scene, "severity=ERROR").await.len(), 1);
}

#[tokio::test]
async fn an_operation_has_two_entries_and_the_last_says_how_it_ended() {
    let scene = Scene::with_project().await;
    let network = json!({"name": "n", "autoCreateSubnetworks": false});
    let operation = scene.post(&format!("{COMPUTE}/global/networks"), network).await.ok();
    let name = operation["name"].as_str().unwrap();
    scene.control.finish(&[(name.to_owned(), None)]).unwrap();
    let ended = scene.control.read().operations[name].clone();
    scene.journal.append(&[control::entries::ended(&ended).unwrap()]);
    let both = read(&scene, &format!("operation.id=\"{name}\"")).await;
    let parts: Vec<_> = both.iter().map(|e| (&e["operation"]["first"], &e["operation"]["last"])).collect();
    assert_eq!(parts, [(&json!(true), &Value::Null), (&Value::Null, &json!(true))]);
    for field in ["methodName", "resourceName", "serviceName", "authenticationInfo"] {
        assert_eq!(both[0]["protoPayload"][field], both[1]["protoPayload"][field], "{field}");
    }
}
