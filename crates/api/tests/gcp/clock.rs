//! Somebody sets the machine's clock, forth and back, while a cloud runs.

use serde_json::{Value, json};

use crate::scene::Scene;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

async fn texts(scene: &Scene) -> Vec<String> {
    let body = json!({"resourceNames": ["projects/producer-1"], "filter": "logName:\"logs/jumps\""});
    let listed = scene.post("https://logging.googleapis.com/v2/entries:list", body).await.ok();
    let text = |entry: &Value| entry["textPayload"].as_str().unwrap().to_owned();
    let mut texts: Vec<String> = listed["entries"].as_array().into_iter().flatten().map(text).collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn a_clock_that_jumps_refuses_no_credential_loses_no_entry_and_changes_no_order_of_writes() {
    let scene = Scene::with_project().await;
    let iam = "https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts";
    let account = scene.post(iam, json!({"accountId": "robot-one"})).await.ok();
    let email = account["email"].as_str().unwrap();
    let policy = format!("{iam}/{email}:setIamPolicy");
    let may = |role: &str| json!({"policy": {"bindings": [{"role": role, "members": ["user:admin@tombolo.local"]}]}});
    let mut etags = Vec::new();
    let mut written = Vec::new();
    // Minutes, as a machine that finds a time server; days, as one whose battery was empty.
    for (n, by) in [0, HOUR, -2 * HOUR, -3 * DAY, 20 * DAY, -30 * DAY, 13 * DAY].into_iter().enumerate() {
        scene.advance_s(by);
        written.push(format!("{n}: by {by} s"));
        let entry = json!({"logName": "projects/producer-1/logs/jumps", "resource": {"type": "global"}, "textPayload": written[n]});
        scene.post("https://logging.googleapis.com/v2/entries:write", json!({"entries": [entry]})).await.ok();
        let mut so_far = written.clone();
        so_far.sort();
        assert_eq!(texts(&scene).await, so_far, "every entry is found, whatever its time");

        etags.push(scene.post(&policy, may("roles/iam.serviceAccountTokenCreator")).await.ok()["etag"].clone());
        let path =
            format!("https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{email}:generateAccessToken");
        let scope = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"]});
        let token = scene.post(&path, scope).await.ok()["accessToken"].as_str().unwrap().to_owned();
        let me = format!("https://oslogin.googleapis.com/v1/users/{email}/loginProfile");
        scene.call(http::Method::GET, &me, Some(&token), None, "").await.ok();
    }
    let all = etags.len();
    etags.sort_by_key(ToString::to_string);
    etags.dedup();
    assert_eq!(etags.len(), all, "no version of a policy has the etag of another");
}
