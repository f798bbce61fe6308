//! Projects and the APIs enabled on them.

use http::Method;
use serde_json::json;

use crate::scene::{HELLO, REGION_HOST, Scene};

const CRM: &str = "https://cloudresourcemanager.googleapis.com/v1/projects";
const USAGE: &str = "https://serviceusage.googleapis.com/v1/projects";

#[tokio::test]
async fn a_project_is_created_once_and_belongs_to_whoever_made_it() {
    let scene = Scene::new();
    let made = scene
        .post(CRM, json!({"projectId": "producer-1", "name": "Producer", "parent": {"type": "organization", "id": "123450001"}}))
        .await
        .ok();
    let project = &made["response"];
    assert_eq!((made["done"].as_bool(), project["name"].as_str()), (Some(true), Some("Producer")));
    let number = project["projectNumber"].as_str().unwrap().to_owned();
    assert_eq!(number.len(), 12);
    let operation = format!("https://cloudresourcemanager.googleapis.com/v1/{}", made["name"].as_str().unwrap());
    assert_eq!(scene.get(&operation).await.ok()["response"]["projectId"], "producer-1");
    // By id and by number it is the same project.
    for name in ["producer-1", &number] {
        let shown = scene.get(&format!("{CRM}/{name}")).await.ok();
        assert_eq!((&shown["projectNumber"], &shown["lifecycleState"]), (&json!(number), &json!("ACTIVE")));
        assert_eq!(shown["parent"], json!({"type": "organization", "id": "123450001"}));
    }
    let policy = scene
        .post(&format!("{CRM}/producer-1:getIamPolicy"), json!({"options": {"requestedPolicyVersion": 3}}))
        .await
        .ok();
    assert_eq!(policy["bindings"], json!([{"role": "roles/owner", "members": ["user:admin@tombolo.local"]}]));
    assert_eq!(
        scene.post(CRM, json!({"projectId": "producer-1"})).await.refused(409),
        "Requested entity already exists"
    );
    assert!(scene.post(CRM, json!({"projectId": "x"})).await.refused(400).contains("6 to 30"));
}

#[tokio::test]
async fn a_project_that_is_not_there_or_not_theirs_is_the_same_refusal() {
    let scene = Scene::new();
    scene.project("producer-1").await;
    let stranger = scene.mint.operator_token("stranger@example.com", scene.control.now()).unwrap();
    for (token, name) in [(&scene.admin, "nowhere-1"), (&stranger, "producer-1"), (&stranger, "nowhere-1")] {
        let got = scene.call(Method::GET, &format!("{CRM}/{name}"), Some(token), None, "").await;
        assert_eq!(got.refused(403), "The caller does not have permission");
    }
    let listed = scene.call(Method::GET, CRM, Some(&stranger), None, "").await.ok();
    assert_eq!(listed, json!({}));
    let create = scene.call(Method::POST, CRM, Some(&stranger), None, "{\"projectId\":\"mine-123\"}").await;
    assert_eq!(create.refused(403), "The caller does not have permission");
}

#[tokio::test]
async fn a_deleted_project_is_only_marked_and_can_be_taken_back() {
    let scene = Scene::new();
    scene.project("producer-1").await;
    scene.project("consumer-1").await;
    assert_eq!(scene.delete(&format!("{CRM}/consumer-1")).await.ok(), json!({}));
    let state = |shown: serde_json::Value| shown["lifecycleState"].as_str().unwrap().to_owned();
    assert_eq!(state(scene.get(&format!("{CRM}/consumer-1")).await.ok()), "DELETE_REQUESTED");
    let active = scene.get(&format!("{CRM}?filter=lifecycleState:ACTIVE&pageSize=500")).await.ok();
    let ids: Vec<&str> =
        active["projects"].as_array().unwrap().iter().map(|p| p["projectId"].as_str().unwrap()).collect();
    assert_eq!(ids, ["producer-1"]);
    scene.post(&format!("{CRM}/consumer-1:undelete"), json!({})).await.ok();
    assert_eq!(state(scene.get(&format!("{CRM}/consumer-1")).await.ok()), "ACTIVE");
    assert!(scene.get(&format!("{CRM}?filter=nonsense:x")).await.refused(400).contains("Invalid filter"));
}

#[tokio::test]
async fn enabling_run_brings_the_default_account_and_the_agents_with_their_roles() {
    let scene = Scene::new();
    scene.post(CRM, json!({"projectId": "producer-1"})).await.ok();
    let number = scene.number("producer-1");
    let service = format!("{USAGE}/producer-1/services/run.googleapis.com");
    assert_eq!(scene.get(&service).await.ok()["state"], "DISABLED");
    let url = format!("{USAGE}/producer-1/services:batchEnable");
    let done = scene.post(&url, json!({"serviceIds": ["run.googleapis.com", "compute.googleapis.com"]})).await.ok();
    assert_eq!(done["done"], true);
    assert!(done["name"].as_str().unwrap().starts_with(&format!("operations/acat.p2-{number}-")), "{done}");
    assert_eq!(scene.get(&service).await.ok()["state"], "ENABLED");
    let policy = scene.post(&format!("{CRM}/producer-1:getIamPolicy"), json!({})).await.ok();
    let holds = |role: &str, member: String| {
        let bindings = policy["bindings"].as_array().unwrap();
        bindings.iter().any(|b| b["role"] == role && b["members"].as_array().unwrap().contains(&json!(member)))
    };
    assert!(
        holds("roles/editor", format!("serviceAccount:{number}-compute@developer.gserviceaccount.com")),
        "{policy:#}"
    );
    let agent = format!("serviceAccount:service-{number}@serverless-robot-prod.iam.gserviceaccount.com");
    assert!(holds("roles/run.serviceAgent", agent), "{policy:#}");
    // Again: nothing to do, and nothing is granted twice.
    let again = scene.post(&url, json!({"serviceIds": ["run.googleapis.com"]})).await.ok();
    assert_eq!(again["name"], "operations/noop.DONE_OPERATION");
    assert_eq!(scene.post(&format!("{CRM}/producer-1:getIamPolicy"), json!({})).await.ok(), policy);
    // Agents are not the project's to see.
    let accounts = scene.get("https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts").await.ok();
    assert_eq!(accounts["accounts"].as_array().unwrap().len(), 1);
    assert_eq!(accounts["accounts"][0]["displayName"], "Compute Engine default service account");
}

#[tokio::test]
async fn an_api_that_is_off_says_how_to_switch_it_on() {
    let scene = Scene::with_project().await;
    let services =
        "https://asia-northeast1-run.googleapis.com/apis/serving.knative.dev/v1/namespaces/producer-1/services";
    scene.get(services).await.ok();
    scene.post(&format!("{USAGE}/producer-1/services/run.googleapis.com:disable"), json!({})).await.ok();
    let number = scene.number("producer-1");
    let want = format!(
        "Cloud Run Admin API has not been used in project {number} before or it is disabled. Enable it by visiting \
         https://console.developers.google.com/apis/api/run.googleapis.com/overview?project={number} then retry. If you \
         enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
    );
    assert_eq!(scene.get(services).await.refused(403), want);
    let unknown = scene.post(&format!("{USAGE}/producer-1/services/nothing.googleapis.com:enable"), json!({})).await;
    assert_eq!(unknown.refused(404), "Not found or permission denied for service(s): nothing.googleapis.com.");
}

#[tokio::test]
async fn enabled_services_are_listed_page_by_page() {
    let scene = Scene::with_project().await;
    let url = format!("{USAGE}/producer-1/services?filter=state:ENABLED&pageSize=1");
    let first = scene.get(&url).await.ok();
    assert_eq!(first["services"][0]["config"]["name"], "compute.googleapis.com");
    let token = first["nextPageToken"].as_str().unwrap();
    let second = scene.get(&format!("{url}&pageToken={token}")).await.ok();
    assert_eq!(second["services"][0]["config"]["name"], "run.googleapis.com");
    assert!(second.get("nextPageToken").is_none());
    assert!(scene.get(&format!("{USAGE}/producer-1/services?filter=x")).await.refused(400).contains("Invalid filter"));
}

#[tokio::test]
async fn what_is_not_there_is_answered_like_what_is_not_the_callers() {
    let scene = Scene::new();
    scene.project("producer-1").await;
    let stranger = scene.mint.operator_token("stranger@example.com", scene.control.now()).unwrap();
    let account = format!("{}-compute@developer.gserviceaccount.com", scene.number("producer-1"));
    let accounts = "https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts";
    let run = "https://run.googleapis.com/v1/projects";
    let asked = |permission: &str| json!({"permissions": [permission]}).to_string();
    let answers = async |method: Method, url: String, hidden: &str, body: String| {
        let got = scene.call(method, &url, Some(&stranger), None, &body).await;
        (got.status, got.body.to_string().replace(hidden, "NAME"))
    };
    for (method, url, hidden, absent, body) in [
        (Method::POST, format!("{CRM}/NAME:testIamPermissions"), "producer-1", "nowhere-1", asked("run.services.get")),
        (Method::POST, format!("{CRM}/NAME:getIamPolicy"), "producer-1", "nowhere-1", String::new()),
        (
            Method::POST,
            format!("{accounts}/NAME:testIamPermissions"),
            account.as_str(),
            "nobody-here@producer-1.iam.gserviceaccount.com",
            asked("iam.serviceAccounts.get"),
        ),
        (
            Method::DELETE,
            format!("{run}/NAME/locations/asia-northeast1/services/hello"),
            "producer-1",
            "nowhere-1",
            String::new(),
        ),
        (
            Method::POST,
            format!("{run}/NAME/locations/asia-northeast1/services/hello:testIamPermissions"),
            "producer-1",
            "nowhere-1",
            asked("run.services.get"),
        ),
    ] {
        let there = answers(method.clone(), url.replace("NAME", hidden), hidden, body.clone()).await;
        let nowhere = answers(method.clone(), url.replace("NAME", absent), absent, body).await;
        assert_eq!(there, nowhere, "{method} {url}");
    }
}

#[tokio::test]
async fn services_of_a_deleted_project_are_out_of_reach_until_it_is_taken_back() {
    let scene = Scene::with_project().await;
    let url = "https://run.googleapis.com/v1/projects/producer-1/locations/asia-northeast1/services/none";
    assert_eq!(scene.get(url).await.status, 404);
    scene.delete(&format!("{CRM}/producer-1")).await.ok();
    let number = scene.number("producer-1");
    let gone = format!(
        "Project #{number} has been scheduled for deletion and cannot be used for API calls. Visit \
         https://console.developers.google.com/iam-admin/projects?pendingDeletion=true to undelete the project."
    );
    assert_eq!(scene.get(url).await.refused(403), gone);
    let accounts = "https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts";
    assert_eq!(scene.get(accounts).await.refused(403), gone);
    assert_eq!(scene.get(&format!("{USAGE}/producer-1/services")).await.refused(403), gone);
    scene.post(&format!("{CRM}/producer-1:undelete"), json!({})).await.ok();
    assert_eq!(scene.get(url).await.status, 404);
    scene.get(accounts).await.ok();
}

#[tokio::test]
async fn what_belongs_to_a_deleted_project_serves_nobody_until_it_is_taken_back() {
    let scene = Scene::with_project().await;
    let body = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "producer-1"},
        "spec": {"template": {"metadata": {"annotations": {"autoscaling.knative.dev/minScale": "2"}},
                              "spec": {"containers": [{"image": HELLO}]}}},
    });
    let services = format!("{REGION_HOST}/apis/serving.knative.dev/v1/namespaces/producer-1/services");
    scene.post(&services, body).await.ok();
    scene.make_ready("hello");
    let account = format!("{}-compute@developer.gserviceaccount.com", scene.number("producer-1"));
    let token = {
        let ask = format!("https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{account}");
        let admin = "user:admin@tombolo.local";
        let bindings = json!([{"role": "roles/iam.serviceAccountTokenCreator", "members": [admin]}]);
        let grant = json!({"policy": {"bindings": bindings}});
        let on = format!("https://iam.googleapis.com/v1/projects/-/serviceAccounts/{account}:setIamPolicy");
        scene.post(&on, grant).await.ok();
        let scope = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"]});
        let minted = scene.post(&format!("{ask}:generateAccessToken"), scope).await.ok();
        minted["accessToken"].as_str().unwrap().to_owned()
    };
    let serves = || {
        let world = scene.control.read();
        let record = world.services.values().next().unwrap();
        let key = world.revisions.keys().next().unwrap();
        (control::run::plan::service(&world, record).is_some(), control::run::plan::bounds(&world, key).min)
    };
    let called = async || scene.call(Method::GET, &services, Some(&token), None, "").await.status;
    assert_eq!((serves(), called().await), ((true, 2), 200));
    scene.delete(&format!("{CRM}/producer-1")).await.ok();
    assert_eq!((serves(), called().await), ((false, 0), 401));
    scene.post(&format!("{CRM}/producer-1:undelete"), json!({})).await.ok();
    assert_eq!((serves(), called().await), ((true, 2), 200));
}
