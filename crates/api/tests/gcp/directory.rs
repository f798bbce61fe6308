//! Service Directory and Cloud DNS as gcloud calls them.

use control::kind::Record;
use http::Method;
use model::{
    id::ResourceId,
    name::{Link, Scope},
    vpc,
};
use serde_json::{Value, json};

use crate::scene::{Got, Scene};

const NAMESPACES: &str =
    "https://servicedirectory.googleapis.com/v1/projects/producer-1/locations/asia-northeast1/namespaces";

/// A project that has both APIs, and the network `n`.
async fn scene() -> Scene {
    let scene = Scene::with_project().await;
    let url = "https://serviceusage.googleapis.com/v1/projects/producer-1/services:batchEnable";
    let apis = ["servicedirectory.googleapis.com", "dns.googleapis.com"];
    scene.post(url, json!({"serviceIds": apis})).await.ok();
    let network = Record {
        id: ResourceId(7),
        link: Link::new(&"producer-1".parse().unwrap(), Scope::Global, "networks", "n"),
        created: scene.control.now(),
        generation: 1,
        labels: Default::default(),
        label_generation: 1,
        spec: vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None },
        inert: Default::default(),
    };
    scene
        .control
        .commit(|_, txn| {
            txn.put(network.clone());
            Ok(())
        })
        .unwrap();
    scene
}

async fn create(scene: &Scene, parent: &str, kind: &str, name: &str, body: Value) -> Got {
    scene.post(&format!("{NAMESPACES}{parent}?{kind}Id={name}"), body).await
}

/// Namespace `shop`, service `web` and its endpoint `one`.
async fn registered() -> Scene {
    let scene = scene().await;
    create(&scene, "", "namespace", "shop", json!({"labels": {"team": "a"}})).await.ok();
    create(&scene, "/shop/services", "service", "web", json!({"annotations": {"v": "1"}})).await.ok();
    let network = format!("projects/{}/locations/global/networks/n", scene.number("producer-1"));
    let endpoint = json!({"address": "10.1.0.9", "port": 8080, "network": network});
    create(&scene, "/shop/services/web/endpoints", "endpoint", "one", endpoint).await.ok();
    scene
}

#[tokio::test]
async fn what_is_registered_is_listed_resolved_changed_and_deleted() {
    let scene = registered().await;
    let home = "projects/producer-1/locations/asia-northeast1/namespaces/shop";
    let listed = scene.get(NAMESPACES).await.ok();
    assert_eq!(
        (&listed["namespaces"][0]["name"], &listed["namespaces"][0]["labels"]["team"]),
        (&json!(home), &json!("a"))
    );
    let resolve = format!("{NAMESPACES}/shop/services/web:resolve");
    let resolved = scene.post(&resolve, json!({})).await.ok()["service"].clone();
    assert_eq!(
        (&resolved["name"], &resolved["annotations"]["v"]),
        (&json!(format!("{home}/services/web")), &json!("1"))
    );
    let endpoint = &resolved["endpoints"][0];
    assert_eq!(endpoint["name"], format!("{home}/services/web/endpoints/one"));
    assert_eq!((&endpoint["address"], &endpoint["port"]), (&json!("10.1.0.9"), &json!(8080)));
    let one = format!("{NAMESPACES}/shop/services/web/endpoints/one");
    assert_eq!(scene.get(&one).await.ok(), *endpoint);
    assert_eq!(scene.get(&format!("{NAMESPACES}/shop/services/web")).await.ok().get("endpoints"), None);

    let changed = scene.patch(&format!("{one}?updateMask=port"), json!({"port": 81, "address": "10.9.9.9"})).await.ok();
    assert_eq!((&changed["address"], &changed["port"]), (&json!("10.1.0.9"), &json!(81)), "only what the mask names");
    scene.patch(&one, json!({"port": 81})).await.refused(400);
    let web = format!("{NAMESPACES}/shop/services/web");
    let changed = scene.patch(&format!("{web}?updateMask=annotations"), json!({"annotations": {"v": "2"}})).await.ok();
    assert_eq!(changed["annotations"]["v"], "2");

    let two = json!({"address": "10.1.0.10"});
    create(&scene, "/shop/services/web/endpoints", "endpoint", "two", two).await.ok();
    let first = scene.post(&resolve, json!({"maxEndpoints": 1})).await.ok();
    assert_eq!(first["service"]["endpoints"].as_array().unwrap().len(), 1);
    let page = scene.get(&format!("{web}/endpoints?pageSize=1")).await.ok();
    let next = page["nextPageToken"].as_str().unwrap();
    let page = scene.get(&format!("{web}/endpoints?pageToken={next}")).await.ok();
    assert_eq!(page["endpoints"][0]["address"], "10.1.0.10");

    assert_eq!(scene.delete(&one).await.ok(), json!({}));
    assert_eq!(scene.delete(&format!("{NAMESPACES}/shop")).await.ok(), json!({}), "with everything in it");
    let missing = format!("Resource '{home}/services/web' was not found");
    assert_eq!(scene.post(&resolve, json!({})).await.refused(404), missing);
}

#[tokio::test]
async fn what_cannot_be_registered_is_refused_in_the_apis_own_words() {
    let scene = registered().await;
    let home = "projects/producer-1/locations/asia-northeast1/namespaces";
    let twice = create(&scene, "", "namespace", "shop", json!({})).await;
    assert_eq!(twice.refused(409), format!("Resource '{home}/shop' already exists"));
    let nowhere = create(&scene, "/none/services", "service", "web", json!({})).await;
    assert_eq!(nowhere.refused(404), format!("Resource '{home}/none' was not found"));
    create(&scene, "", "namespace", "Shop", json!({})).await.refused(400);
    create(&scene, "", "namespace", "new", json!({"colour": "blue"})).await.refused(400);
    let endpoints = "/shop/services/web/endpoints";
    for (body, why) in [
        (json!({"address": "nowhere"}), "Invalid address 'nowhere'."),
        (json!({"address": "fd00::1"}), "Field 'endpoint.address' is not supported"),
        (json!({"network": "projects/producer-1/locations/global/networks/n"}), "Invalid network"),
    ] {
        let said = create(&scene, endpoints, "endpoint", "bad", body).await.refused(400);
        assert!(said.starts_with(why), "{said}");
    }
    let long = json!({"annotations": {"a": "x".repeat(512)}});
    assert!(create(&scene, endpoints, "endpoint", "bad", long).await.refused(400).contains("at most 512 characters"));
    scene.get(&format!("{NAMESPACES}?filter=a")).await.refused(400);
    scene.post(&format!("{NAMESPACES}/shop:setIamPolicy"), json!({"policy": {}})).await.refused(400);
    let elsewhere = NAMESPACES.replace("asia-northeast1", "mars-north1");
    scene.get(&elsewhere).await.refused(404);
}

#[tokio::test]
async fn each_call_takes_its_permission_and_each_change_is_in_the_activity_log() {
    let scene = registered().await;
    let stranger = scene.mint.operator_token("stranger@example.com", scene.control.now()).unwrap();
    let web = format!("{NAMESPACES}/shop/services/web");
    for (method, url, permission) in [
        (Method::GET, NAMESPACES.to_owned(), "namespaces.list"),
        (Method::DELETE, format!("{NAMESPACES}/shop"), "namespaces.delete"),
        (Method::GET, web.clone(), "services.get"),
        (Method::POST, format!("{web}:resolve"), "services.resolve"),
        (Method::DELETE, format!("{web}/endpoints/one"), "endpoints.delete"),
    ] {
        let said = scene.call(method, &url, Some(&stranger), None, "{}").await.refused(403);
        assert!(said.contains(&format!("'servicedirectory.{permission}'")), "{said}");
    }
    let body = json!({
        "resourceNames": ["projects/producer-1"],
        "filter": "protoPayload.serviceName=\"servicedirectory.googleapis.com\" AND severity=NOTICE",
    });
    let page = scene.post("https://logging.googleapis.com/v2/entries:list", body).await.ok();
    let told = |entry: &Value| {
        let payload = &entry["protoPayload"];
        let method = payload["methodName"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        (method, payload["resourceName"].as_str().unwrap().rsplit("/namespaces/").next().unwrap().to_owned())
    };
    let seen: Vec<_> = page["entries"].as_array().unwrap().iter().map(told).collect();
    let want = [
        ("CreateNamespace", "shop"),
        ("CreateService", "shop/services/web"),
        ("CreateEndpoint", "shop/services/web/endpoints/one"),
    ];
    assert_eq!(seen, want.map(|(method, name)| (method.to_owned(), name.to_owned())));
}

#[tokio::test]
async fn zones_are_shown_and_made_by_nobody() {
    let scene = scene().await;
    let zones = "https://dns.googleapis.com/dns/v1/projects/producer-1/managedZones";
    let none = json!({"kind": "dns#managedZonesListResponse", "managedZones": []});
    assert_eq!(scene.get(zones).await.ok(), none);
    let said = scene.get(&format!("{zones}/none")).await.refused(404);
    assert_eq!(said, "The 'parameters.managedZone' resource named 'none' does not exist.");
    let said = scene.post(zones, json!({"name": "z", "dnsName": "z.", "description": ""})).await.refused(400);
    assert!(said.contains("'managedZones' is not supported by tombolo yet"), "{said}");
}
