//! Operations, repeats, lists, who may call, and the catalogue.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

const NETWORK: &str = "producer-1/global/networks";

fn network(name: &str) -> Value {
    json!({"name": name, "autoCreateSubnetworks": false})
}

#[test]
fn an_operation_has_every_field_that_gcloud_follows() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    let body = json!({"name": "s", "network": "global/networks/n", "ipCidrRange": "10.0.0.0/24"});
    let (_, running) = cloud.call(Method::POST, &format!("producer-1/regions/{R}/subnetworks"), body);
    assert_eq!((&running["status"], &running["progress"]), (&json!("RUNNING"), &json!(0)));
    assert_eq!(running["operationType"], "insert");
    assert_eq!(running["targetLink"], shown(&format!("producer-1/regions/{R}/subnetworks/s")));
    assert_eq!(running["region"], shown(&format!("producer-1/regions/{R}")));
    let name = running["name"].as_str().unwrap();
    assert_eq!(running["selfLink"], shown(&format!("producer-1/regions/{R}/operations/{name}")));
    assert_eq!(running["user"], "admin@tombolo.local");
    assert_eq!(running.get("endTime"), None);
    cloud.finish();
    let by_number = running["id"].as_str().unwrap();
    let done = cloud.get(&format!("producer-1/regions/{R}/operations/{by_number}"));
    assert_eq!((&done["status"], &done["progress"], &done["name"]), (&json!("DONE"), &json!(100), &json!(name)));
    assert!(done["endTime"].is_string());
    let path = format!("producer-1/regions/{R}/operations");
    assert_eq!(cloud.get(&path)["items"].as_array().unwrap().len(), 1);
    assert_eq!(cloud.call(Method::GET, &format!("producer-1/global/operations/{name}"), Value::Null).0, 404);
    assert_eq!(cloud.call(Method::DELETE, &format!("{path}/{name}"), Value::Null), (204, Value::Null));
    assert_eq!(cloud.call(Method::GET, &format!("{path}/{name}"), Value::Null).0, 404);
}

#[test]
fn wait_answers_when_the_operation_is_done_and_not_before() {
    let cloud = Arc::new(Cloud::new());
    let (_, operation) = cloud.call(Method::POST, NETWORK, network("n"));
    let path = format!("producer-1/global/operations/{}/wait", operation["name"].as_str().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let token = cloud.token_of("admin@tombolo.local");
        let call = cloud.request(Method::POST, &path, &Value::Null, Some(&token));
        let waiting = tokio::spawn({
            let (cloud, call) = (cloud.clone(), call.clone());
            async move { cloud.router.serve(call).await }
        });
        // The clock is ours: a minute passes without an answer.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        cloud.finish();
        let reply = waiting.await.unwrap().unwrap();
        assert_eq!(json_of(reply)["status"], "DONE");
        // What is done is answered at once.
        assert_eq!(json_of(cloud.router.serve(call).await.unwrap())["status"], "DONE");
    });
}

#[test]
fn wait_gives_up_after_two_minutes_without_an_error() {
    let cloud = Cloud::new();
    let (_, operation) = cloud.call(Method::POST, NETWORK, network("n"));
    let path = format!("producer-1/global/operations/{}/wait", operation["name"].as_str().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let token = cloud.token_of("admin@tombolo.local");
        let began = tokio::time::Instant::now();
        let reply = cloud.router.serve(cloud.request(Method::POST, &path, &Value::Null, Some(&token))).await.unwrap();
        assert_eq!(json_of(reply)["status"], "RUNNING");
        assert!(began.elapsed() >= Duration::from_secs(120));
    });
}

fn json_of(reply: api::reply::Reply) -> Value {
    match reply.content {
        api::reply::Content::Json(value) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_repeated_request_id_is_answered_with_the_first_operation() {
    let cloud = Cloud::new();
    let path = format!("{NETWORK}?requestId=0f8fad5b-d9cb-469f-a165-70867728950e");
    let (_, first) = cloud.call(Method::POST, &path, network("n"));
    cloud.finish();
    let (status, second) = cloud.call(Method::POST, &path, network("n"));
    assert_eq!((status, &second["name"], &second["status"]), (200, &first["name"], &json!("DONE")));
    assert_eq!(first["clientOperationId"], "0f8fad5b-d9cb-469f-a165-70867728950e");
    for id in ["1", "00000000-0000-0000-0000-000000000000"] {
        assert_eq!(cloud.refused(Method::POST, &format!("{NETWORK}?requestId={id}"), network("m")).0, 400);
    }
}

#[test]
fn resources_are_found_by_number_and_projects_too() {
    let cloud = Cloud::new();
    let made = cloud.network("producer-1", "n");
    let number = cloud.get("producer-1")["id"].as_str().unwrap().to_owned();
    let by_numbers = cloud.get(&format!("{number}/global/networks/{}", made["id"].as_str().unwrap()));
    assert_eq!(by_numbers, made);
    let body = json!({"name": "s", "ipCidrRange": "10.0.0.0/24",
                      "network": format!("https://elsewhere.example/compute/v1/projects/{number}/global/networks/n")});
    let subnet = cloud.make(&format!("producer-1/regions/{R}/subnetworks"), body);
    assert_eq!(subnet["network"], shown("producer-1/global/networks/n"));
}

#[test]
fn lists_show_one_scope_and_aggregated_lists_all_of_them() {
    let cloud = Cloud::new();
    assert_eq!(cloud.get(NETWORK).get("items"), None);
    cloud.network("producer-1", "n");
    cloud.network("consumer-1", "other");
    for (name, range) in [("b", "10.0.0.0/24"), ("a", "10.0.1.0/24")] {
        cloud.subnet("producer-1", "n", name, range, "PRIVATE");
    }
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = cloud.get(&format!("producer-1/regions/{R}/subnetworks"));
    assert_eq!(
        (names(&list["items"]), &list["kind"]),
        (vec!["a".into(), "b".into()], &json!("compute#subnetworkList"))
    );
    assert_eq!(names(&cloud.get(NETWORK)["items"]), ["n"]);
    let filtered = cloud.get(&format!("producer-1/regions/{R}/subnetworks?filter=name%20eq%20%22.%2A%5Cba%5Cb.%2A%22"));
    assert_eq!(names(&filtered["items"]), ["a"]);
    let all =
        cloud.get("producer-1/aggregated/subnetworks?includeAllScopes=True&maxResults=500&returnPartialSuccess=True");
    assert_eq!(names(&all["items"][format!("regions/{R}")]["subnetworks"]), ["a", "b"]);
    assert_eq!(all["items"]["regions/us-west1"]["warning"]["code"], "NO_RESULTS_ON_PAGE");
    assert_eq!(cloud.get("consumer-1/aggregated/instances")["items"], json!({}));
}

#[test]
fn nobody_calls_without_a_credential_or_beyond_their_rights() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    assert_eq!(cloud.call_as(None, Method::GET, NETWORK, &Value::Null).0, 401);
    assert_eq!(cloud.call_as(Some("ya29.junk"), Method::GET, NETWORK, &Value::Null).0, 401);
    let stranger = cloud.token_of("stranger@example.com");
    for (method, path, body, permission, on) in [
        (Method::GET, NETWORK.to_owned(), Value::Null, "compute.networks.list", "projects/producer-1"),
        (
            Method::GET,
            format!("{NETWORK}/n"),
            Value::Null,
            "compute.networks.get",
            "projects/producer-1/global/networks/n",
        ),
        (
            Method::POST,
            NETWORK.to_owned(),
            network("m"),
            "compute.networks.create",
            "projects/producer-1/global/networks/m",
        ),
        (
            Method::DELETE,
            format!("{NETWORK}/n"),
            Value::Null,
            "compute.networks.delete",
            "projects/producer-1/global/networks/n",
        ),
    ] {
        let (status, body) = cloud.call_as(Some(&stranger), method, &path, &body);
        assert_eq!(status, 403);
        assert_eq!(body["error"]["message"], format!("Required '{permission}' permission for '{on}'"));
        assert_eq!(body["error"]["errors"][0]["reason"], "forbidden");
    }
    // Whether a resource exists is not told to whoever may not see it.
    let (status, _) = cloud.call_as(Some(&stranger), Method::DELETE, &format!("{NETWORK}/none"), &Value::Null);
    assert_eq!(status, 403);
}

#[test]
fn a_project_without_the_api_is_told_how_to_enable_it() {
    let cloud = Cloud::new();
    let admin = model::iam::Principal::User { email: "admin@tombolo.local".into() };
    let admin = control::ops::Caller::new(admin, vec![]);
    let number =
        control::projects::disable(&cloud.control, &admin, "consumer-2", "compute.googleapis.com").unwrap().number;
    let (status, reason, message) = cloud.refused(Method::GET, "consumer-2/global/networks", Value::Null);
    assert_eq!((status, reason.as_str()), (403, "accessNotConfigured"));
    assert!(message.contains(&format!(
        "Enable it by visiting https://console.developers.google.com/apis/api/compute.googleapis.com/overview?project={number} \
         then retry. If you enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
    )));
    assert_eq!(cloud.refused(Method::GET, "no-such-project/global/networks", Value::Null).0, 404);
}

#[test]
fn the_catalogue_has_regions_zones_machine_types_and_images() {
    let cloud = Cloud::new();
    assert_eq!(cloud.get(&format!("producer-1/regions/{R}"))["status"], "UP");
    assert_eq!(
        cloud.get("producer-1/zones?filter=name=us-central1-f")["items"][0]["region"],
        shown("producer-1/regions/us-central1")
    );
    assert_eq!(cloud.get(&format!("producer-1/zones/{R}-b/machineTypes/e2-micro"))["guestCpus"], 2);
    assert_eq!(cloud.get("debian-cloud/global/images/family/debian-12")["status"], "READY");
    assert!(cloud.get("debian-cloud/zones/us-central1-a/imageFamilyViews/debian-12")["image"]["name"].is_string());
    assert_eq!(
        cloud.refused(Method::GET, "debian-cloud/global/images/debian-2", Value::Null).2,
        "The resource 'projects/debian-cloud/global/images/debian-2' was not found"
    );
}

#[test]
fn a_policy_on_a_resource_opens_that_resource_only_and_goes_with_it() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.0.0/24", "PRIVATE");
    cloud.subnet("producer-1", "n", "t", "10.0.1.0/24", "PRIVATE");
    let path = |name: &str| format!("producer-1/regions/{R}/subnetworks/{name}");
    let (_, empty) = cloud.call(Method::GET, &format!("{}/getIamPolicy", path("s")), Value::Null);
    let policy = json!({"policy": {"etag": empty["etag"], "bindings": [
        {"role": "roles/compute.networkUser", "members": ["user:friend@example.com"]}]}});
    let (status, set) = cloud.call(Method::POST, &format!("{}/setIamPolicy", path("s")), policy);
    assert_eq!((status, &set["bindings"][0]["role"]), (200, &json!("roles/compute.networkUser")));
    let friend = cloud.token_of("friend@example.com");
    assert_eq!(cloud.call_as(Some(&friend), Method::GET, &path("s"), &Value::Null).0, 200);
    assert_eq!(cloud.call_as(Some(&friend), Method::GET, &path("t"), &Value::Null).0, 403);
    let asked = json!({"permissions": ["compute.subnetworks.use", "compute.subnetworks.delete"]});
    let (_, held) = cloud.call_as(Some(&friend), Method::POST, &format!("{}/testIamPermissions", path("s")), &asked);
    assert_eq!(held, json!({"permissions": ["compute.subnetworks.use"]}));
    cloud.delete(&path("s"));
    cloud.subnet("producer-1", "n", "s", "10.0.0.0/24", "PRIVATE");
    assert_eq!(cloud.call_as(Some(&friend), Method::GET, &path("s"), &Value::Null).0, 403);
}

#[test]
fn a_resource_can_be_used_once_its_own_operation_is_done() {
    let cloud = Cloud::new();
    let networks = "producer-1/global/networks";
    let (status, _) = cloud.call(Method::POST, networks, json!({"name": "n", "autoCreateSubnetworks": false}));
    assert_eq!(status, 200);
    let subnets = format!("producer-1/regions/{R}/subnetworks");
    let subnet = json!({"name": "s", "network": "global/networks/n", "ipCidrRange": "10.0.0.0/24"});
    let early = cloud.refused(Method::POST, &subnets, subnet.clone());
    let why = "The resource 'projects/producer-1/global/networks/n' is not ready".to_owned();
    assert_eq!(early, (400, "resourceNotReady".to_owned(), why));
    cloud.finish();
    cloud.make(&subnets, subnet);
}
