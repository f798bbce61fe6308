//! Organisation policies as gcloud and Terraform set them, and who may.

use http::Method;
use serde_json::{Value, json};

use crate::scene::{Got, Scene};

const HOST: &str = "https://orgpolicy.googleapis.com";
const ORGANIZATION: &str = "organizations/123450001";
const CONSTRAINT: &str = "compute.restrictPrivateServiceConnectConsumer";

/// A project that has the API, whose operator may set policies.
async fn scene() -> Scene {
    let scene = Scene::with_project().await;
    let url = "https://serviceusage.googleapis.com/v1/projects/producer-1/services/orgpolicy.googleapis.com:enable";
    scene.post(url, json!({})).await.ok();
    let organization = format!("https://cloudresourcemanager.googleapis.com/v1/{ORGANIZATION}");
    let mut policy = scene.post(&format!("{organization}:getIamPolicy"), json!({})).await.ok();
    let admin = json!({"role": "roles/orgpolicy.policyAdmin", "members": ["user:admin@tombolo.local"]});
    policy["bindings"].as_array_mut().unwrap().push(admin);
    scene.post(&format!("{organization}:setIamPolicy"), json!({"policy": policy})).await.ok();
    scene
}

fn policy(parent: &str, rules: Value) -> Value {
    json!({"name": format!("{parent}/policies/{CONSTRAINT}"), "spec": {"rules": rules}})
}

async fn create(scene: &Scene, parent: &str, body: Value) -> Got {
    scene.post(&format!("{HOST}/v2/{parent}/policies"), body).await
}

async fn effective(scene: &Scene) -> Value {
    let url = format!("{HOST}/v2/projects/producer-1/policies/{CONSTRAINT}:getEffectivePolicy");
    scene.get(&url).await.ok()["spec"]["rules"].clone()
}

#[tokio::test]
async fn a_policy_is_made_read_changed_and_deleted() {
    let scene = scene().await;
    let url = format!("{HOST}/v2/projects/producer-1/policies/{CONSTRAINT}");
    assert_eq!(scene.get(&url).await.refused(404), "Requested entity was not found.");
    assert_eq!(scene.get(&format!("{HOST}/v2/projects/producer-1/policies")).await.ok(), json!({}));
    let rules = json!([{"values": {"allowedValues": ["under:projects/consumer-1"]}}]);
    let made = create(&scene, "projects/producer-1", policy("projects/producer-1", rules.clone())).await.ok();
    let number = scene.number("producer-1");
    assert_eq!(made["name"], format!("projects/{number}/policies/{CONSTRAINT}"), "shown by number");
    assert_eq!(made["spec"]["rules"], rules, "values are shown as they were written");
    let again = create(&scene, "projects/producer-1", policy("projects/producer-1", rules)).await;
    assert_eq!(again.refused(409), "Requested entity already exists");
    assert_eq!(scene.get(&url).await.ok(), made);
    let listed = scene.get(&format!("{HOST}/v2/projects/{number}/policies")).await.ok();
    assert_eq!(listed["policies"], json!([made]));

    let mut changed = made.clone();
    changed["spec"]["rules"] = json!([{"denyAll": true}]);
    let changed_to = scene.patch(&url, changed.clone()).await.ok();
    assert_eq!(changed_to["spec"]["rules"], json!([{"denyAll": true}]));
    scene.patch(&url, changed).await.refused(409);
    let stale = format!("{url}?etag={}", made["etag"].as_str().unwrap());
    scene.delete(&stale).await.refused(409);
    assert_eq!(scene.delete(&url).await.ok(), json!({}));
    scene.delete(&url).await.refused(404);
    scene.patch(&url, policy("projects/producer-1", json!([{"denyAll": true}]))).await.refused(404);
}

#[tokio::test]
async fn a_projects_policy_takes_the_place_of_the_organisations_unless_it_inherits() {
    let scene = scene().await;
    assert_eq!(effective(&scene).await, json!([{"allowAll": true}]), "by default everybody may connect");
    let above = json!([{"values": {"allowedValues": ["under:organizations/5"]}}]);
    create(&scene, ORGANIZATION, policy(ORGANIZATION, above.clone())).await.ok();
    assert_eq!(effective(&scene).await, above);
    let mut own = policy("projects/producer-1", json!([{"values": {"deniedValues": ["under:projects/other-1"]}}]));
    create(&scene, "projects/producer-1", own.clone()).await.ok();
    assert_eq!(effective(&scene).await, own["spec"]["rules"]);
    own["spec"]["inheritFromParent"] = true.into();
    let url = format!("{HOST}/v2/projects/producer-1/policies/{CONSTRAINT}");
    scene.patch(&format!("{url}?updateMask=policy.spec"), own).await.ok();
    let both =
        json!([{"values": {"allowedValues": ["under:organizations/5"], "deniedValues": ["under:projects/other-1"]}}]);
    assert_eq!(effective(&scene).await, both);
    scene.patch(&url, json!({"spec": {"reset": true}})).await.ok();
    assert_eq!(effective(&scene).await, json!([{"allowAll": true}]), "back to the default, whatever is above");
}

#[tokio::test]
async fn what_would_not_be_obeyed_is_refused() {
    let scene = scene().await;
    let parent = "projects/producer-1";
    let values = |value: &str| json!([{"values": {"allowedValues": [value]}}]);
    for (what, body, says) in [
        (
            "another constraint",
            json!({"name": format!("{parent}/policies/run.allowedIngress"), "spec": {"rules": [{"denyAll": true}]}}),
            "constraints/run.allowedIngress",
        ),
        (
            "a dry run",
            json!({"name": format!("{parent}/policies/{CONSTRAINT}"), "dryRunSpec": {"rules": []}}),
            "policy.dryRunSpec",
        ),
        ("a condition", policy(parent, json!([{"denyAll": true, "condition": {"expression": "true"}}])), "condition"),
        ("a boolean rule", policy(parent, json!([{"enforce": true}])), "'enforce'"),
        ("two kinds in a rule", policy(parent, json!([{"denyAll": true, "allowAll": true}])), "exactly one"),
        ("no rule", policy(parent, json!([])), "must have rules"),
        ("a value that names nothing", policy(parent, values("consumer-1")), "under:projects/PROJECT"),
        ("an unknown field", json!({"name": format!("{parent}/policies/{CONSTRAINT}"), "spek": {}}), "spek"),
        ("no name", json!({"spec": {"rules": [{"denyAll": true}]}}), "Invalid policy name"),
    ] {
        let message = create(&scene, parent, body).await.refused(400);
        assert!(message.contains(says), "{what}: {message}");
    }
}

#[tokio::test]
async fn policies_are_the_policy_administrators_and_every_change_is_written_down() {
    let scene = scene().await;
    let owner = scene.mint.operator_token("owner@example.com", scene.control.now()).unwrap();
    let project = "https://cloudresourcemanager.googleapis.com/v1/projects/producer-1";
    let mut policies = scene.post(&format!("{project}:getIamPolicy"), json!({})).await.ok();
    let owners = json!({"role": "roles/owner", "members": ["user:admin@tombolo.local", "user:owner@example.com"]});
    let bindings = policies["bindings"].as_array_mut().unwrap();
    bindings.retain(|binding| binding["role"] != "roles/owner");
    bindings.push(owners);
    scene.post(&format!("{project}:setIamPolicy"), json!({"policy": policies})).await.ok();
    let body = policy("projects/producer-1", json!([{"denyAll": true}]));
    let url = format!("{HOST}/v2/projects/producer-1/policies");
    let refused = scene.call(Method::POST, &url, Some(&owner), None, &body.to_string()).await.refused(403);
    let resource = "//orgpolicy.googleapis.com/projects/producer-1";
    let denied =
        |permission| format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist).");
    assert_eq!(refused, denied("orgpolicy.policies.create"), "an owner sets no organisation policy");
    scene.call(Method::GET, &url, Some(&owner), None, "").await.ok();
    let nowhere = format!("{HOST}/v2/projects/nowhere-1/policies");
    scene.get(&nowhere).await.refused(403);
    scene.post(&url, body).await.ok();
    scene.delete(&format!("{url}/{CONSTRAINT}")).await.ok();
    let query = json!({"resourceNames": ["projects/producer-1"], "filter": "protoPayload.serviceName=orgpolicy.googleapis.com"});
    let found = scene.post("https://logging.googleapis.com/v2/entries:list", query).await.ok();
    let told: Vec<(&str, &str)> = found["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["protoPayload"]["methodName"].as_str().unwrap(), e["severity"].as_str().unwrap()))
        .collect();
    let name = |verb| format!("google.cloud.orgpolicy.v2.OrgPolicy.{verb}");
    let (create, delete) = (name("CreatePolicy"), name("DeletePolicy"));
    assert_eq!(told, [(&*create, "ERROR"), (&*create, "NOTICE"), (&*delete, "NOTICE")]);
}
