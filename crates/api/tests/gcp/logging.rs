//! Reading the logs.

use http::Method;
use model::{record::RequestRecord, run::ServiceKey, time::Timestamp};
use serde_json::{Value, json};

use crate::scene::{START, Scene};

const LIST: &str = "https://logging.googleapis.com/v2/entries:list";

fn request(at_s: i64, status: u16) -> RequestRecord {
    let service = ServiceKey {
        project: "producer-1".parse().unwrap(),
        region: "asia-northeast1".parse().unwrap(),
        name: "hello-service".into(),
    };
    RequestRecord {
        service: Some(service),
        revision: None,
        instance: None,
        front: None,
        arrived: Timestamp::from_unix_s(at_s),
        latency_ns: 12_000_000,
        method: "GET".into(),
        url: "http://10.1.0.5/".into(),
        protocol: "HTTP/1.1".into(),
        status,
        request_bytes: 100,
        response_bytes: 200,
        user_agent: Some("curl/8".into()),
        referer: None,
        remote: "fda3:e722:ac3:cc00:22b:7027:a00:302".parse().unwrap(),
        trace: String::new(),
        span: String::new(),
        sampled: false,
        refusal: None,
    }
}

async fn with_requests() -> Scene {
    let scene = Scene::with_project().await;
    let world = scene.control.read();
    let entries: Vec<_> = (0..3)
        .flat_map(|n| control::entries::request(&world, &request(START + n, 200 + u16::try_from(n).unwrap())))
        .collect();
    drop(world);
    scene.journal.append(&entries);
    scene
}

fn statuses(page: &Value) -> Vec<u64> {
    page["entries"].as_array().unwrap().iter().map(|e| e["httpRequest"]["status"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn gcloud_reads_the_newest_entries_page_by_page() {
    let scene = with_requests().await;
    let filter = "timestamp>=\"2020-01-01T00:00:00.000000Z\" AND resource.type=cloud_run_revision AND \
                  resource.labels.service_name=hello-service AND logName=projects/producer-1/logs/run.googleapis.com%2Frequests";
    let mut body =
        json!({"filter": filter, "orderBy": "timestamp desc", "pageSize": 2, "resourceNames": ["projects/producer-1"]});
    let first = scene.post(LIST, body.clone()).await.ok();
    assert_eq!(statuses(&first), [202, 201]);
    assert_eq!(first["entries"][0]["httpRequest"]["remoteIp"], "fda3:e722:ac3:cc00:22b:7027:a00:302");
    body["pageToken"] = first["nextPageToken"].clone();
    let second = scene.post(LIST, body).await.ok();
    assert_eq!(statuses(&second), [200]);
    assert!(second.get("nextPageToken").is_none());
    let names = scene.get("https://logging.googleapis.com/v2/projects/producer-1/logs").await.ok();
    let want = ["cloudaudit.googleapis.com%2Factivity", "run.googleapis.com%2Frequests"];
    assert_eq!(names, json!({"logNames": want.map(|id| format!("projects/producer-1/logs/{id}"))}));
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_in_googles_words() {
    let scene = with_requests().await;
    let ask = |extra: Value| {
        let mut body = json!({"resourceNames": ["projects/producer-1"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    assert!(
        scene
            .post(LIST, ask(json!({"filter": "insertId=abc:def"})))
            .await
            .refused(400)
            .starts_with("Unparseable filter: syntax error at line 1")
    );
    assert_eq!(scene.post(LIST, ask(json!({"orderBy": "severity"}))).await.status, 400);
    assert_eq!(scene.post(LIST, ask(json!({"pageSize": -1}))).await.status, 400);
    assert_eq!(scene.post(LIST, ask(json!({"pageToken": "ff"}))).await.status, 400);
    assert_eq!(scene.post(LIST, json!({})).await.status, 400);
    assert_eq!(
        scene.post(LIST, json!({"resourceNames": ["projects/nowhere-1"]})).await.refused(404),
        "Project does not exist: nowhere-1"
    );
    let stranger = scene.mint.operator_token("stranger@example.com", scene.control.now()).unwrap();
    let denied = scene.call(Method::POST, LIST, Some(&stranger), None, &ask(json!({})).to_string()).await;
    assert_eq!(denied.refused(403), "Permission denied for all log views");
    assert!(
        scene
            .post("https://logging.googleapis.com/v2/entries:tail", json!({"entries": []}))
            .await
            .refused(400)
            .contains("entries.tail")
    );
}

const WRITE: &str = "https://logging.googleapis.com/v2/entries:write";

fn batch(entries: Value) -> Value {
    json!({"logName": "projects/producer-1/logs/my-log", "resource": {"type": "global"}, "entries": entries})
}

async fn written(scene: &Scene) -> Vec<Value> {
    let body = json!({"resourceNames": ["projects/producer-1"], "filter": "log_id(\"my-log\")"});
    let page = scene.post(LIST, body).await.ok();
    page["entries"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn what_is_written_is_read_back_under_the_projects_id() {
    let scene = with_requests().await;
    scene
        .post(WRITE, batch(json!([{"jsonPayload": {"n": 1}, "severity": "WARNING"}, {"textPayload": "two"}])))
        .await
        .ok();
    let entries = written(&scene).await;
    assert_eq!((&entries[0]["jsonPayload"], &entries[1]["textPayload"]), (&json!({"n": 1}), &json!("two")));
    assert_eq!(entries[0]["resource"], json!({"type": "global", "labels": {"project_id": "producer-1"}}));
    let names = scene.get("https://logging.googleapis.com/v2/projects/producer-1/logs").await.ok();
    let logs = ["cloudaudit.googleapis.com%2Factivity", "my-log", "run.googleapis.com%2Frequests"];
    assert_eq!(names, json!({"logNames": logs.map(|id| format!("projects/producer-1/logs/{id}"))}));
}

#[tokio::test]
async fn a_batch_with_a_bad_entry_is_written_whole_or_not_at_all_unless_parts_are_asked_for() {
    let scene = with_requests().await;
    let mut body = batch(json!([{"textPayload": "good"}, {"textPayload": "bad", "severity": "LOUD"}]));
    let said = scene.post(WRITE, body.clone()).await;
    let details = said.body["error"]["details"][0].clone();
    assert_eq!(said.status, 400);
    assert_eq!(details["logEntryErrors"]["1"]["message"], "'LOUD' is not a severity");
    assert!(written(&scene).await.is_empty());
    body["partialSuccess"] = json!(true);
    scene.post(WRITE, body).await.refused(400);
    assert_eq!(written(&scene).await.len(), 1);
    let mut dry = batch(json!([{"textPayload": "good"}]));
    dry["dryRun"] = json!(true);
    scene.post(WRITE, dry).await.ok();
    assert_eq!(written(&scene).await.len(), 1, "a dry run writes nothing");
    scene.post(WRITE, batch(json!([{"textPayload": "old", "timestamp": "2001-01-01T00:00:00Z"}]))).await.ok();
    assert_eq!(written(&scene).await.len(), 1, "beyond the retention: dropped without a word");
}

#[tokio::test]
async fn the_platforms_own_logs_and_other_projects_take_nothing() {
    let scene = with_requests().await;
    for (log, message) in [
        ("projects/producer-1/logs/cloudaudit.googleapis.com%2Factivity", "by the platform and by nobody else"),
        ("projects/producer-1/logs/compute.googleapis.com%2Fvpc_flows", "by the platform and by nobody else"),
        ("projects/no-such-project/logs/my-log", "denied on resource (or it may not exist)"),
    ] {
        let mut body = batch(json!([{"textPayload": "forged"}]));
        body["logName"] = json!(log);
        let said = scene.post(WRITE, body).await.refused(403);
        assert!(said.contains(message), "{log}: {said}");
    }
}
