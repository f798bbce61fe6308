//! Cloud Run, as gcloud deploys and as other clients see it.

use http::Method;
use serde_json::{Value, json};

use crate::scene::{Got, HELLO, REGION_HOST, Scene};

const GLOBAL: &str =
    "https://run.googleapis.com/v1/projects/producer-1/locations/asia-northeast1/services/hello-service";
const V2: &str = "https://run.googleapis.com/v2/projects/producer-1/locations/asia-northeast1";

fn services() -> String {
    format!("{REGION_HOST}/apis/serving.knative.dev/v1/namespaces/producer-1/services")
}

fn hello() -> String {
    format!("{}/hello-service", services())
}

/// What `gcloud run deploy hello-service --image=… --no-allow-unauthenticated --ingress=internal` posts.
fn deploy() -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": "hello-service",
            "namespace": "producer-1",
            "labels": {},
            "annotations": {
                "run.googleapis.com/client-name": "gcloud",
                "run.googleapis.com/client-version": "578.0.0",
                "run.googleapis.com/ingress": "internal",
            },
        },
        "spec": {"template": {
            "metadata": {
                "annotations": {
                    "run.googleapis.com/client-name": "gcloud",
                    "run.googleapis.com/client-version": "578.0.0",
                    "run.googleapis.com/startup-cpu-boost": "True",
                },
                "labels": {"client.knative.dev/nonce": "coftkdabnw"},
            },
            "spec": {"containers": [{"image": HELLO, "name": ""}], "nodeSelector": {}},
        }},
        "status": {"address": {}},
    })
}

/// A changed copy of [`deploy`].
fn deploy_with(change: impl FnOnce(&mut Value)) -> Value {
    let mut body = deploy();
    change(&mut body);
    body
}

fn container(body: &mut Value) -> &mut Value {
    &mut body["spec"]["template"]["spec"]["containers"][0]
}

fn condition<'a>(service: &'a Value, kind: &str) -> &'a Value {
    service["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
}

async fn deployed() -> Scene {
    let scene = Scene::with_project().await;
    scene.post(&services(), deploy()).await.ok();
    scene.make_ready("hello-service");
    scene
}

#[tokio::test]
async fn a_first_deployment_is_done_when_its_revision_serves_and_the_proxy_obeys() {
    let scene = Scene::with_project().await;
    let number = scene.number("producer-1");
    assert_eq!(
        scene.get(&hello()).await.refused(404),
        "Resource 'hello-service' of kind 'SERVICE' in region 'asia-northeast1' in project 'producer-1' does not exist."
    );
    let made = scene.post(&services(), deploy()).await.ok();
    assert_eq!((&made["metadata"]["namespace"], &made["metadata"]["generation"]), (&json!(number), &json!(1)));
    assert_eq!(condition(&made, "Ready")["status"], "Unknown");
    let spec = &made["spec"]["template"]["spec"];
    assert_eq!(spec["serviceAccountName"], format!("{number}-compute@developer.gserviceaccount.com"));
    assert_eq!((&spec["containerConcurrency"], &spec["timeoutSeconds"]), (&json!(80), &json!(300)));
    assert_eq!(spec["containers"][0]["name"], "hello-1");
    assert_eq!(spec["containers"][0]["ports"], json!([{"name": "http1", "containerPort": 8080}]));
    assert_eq!(spec["containers"][0]["resources"]["limits"], json!({"cpu": "1000m", "memory": "512Mi"}));
    assert_eq!(made["spec"]["template"]["metadata"]["labels"]["run.googleapis.com/startupProbeType"], "Default");
    assert_eq!(made["spec"]["traffic"], json!([{"latestRevision": true, "percent": 100}]));
    let id = made["metadata"]["annotations"]["run.googleapis.com/operation-id"].as_str().unwrap().to_owned();
    let wait = format!("{REGION_HOST}/v1/projects/producer-1/locations/asia-northeast1/operations/{id}:wait");
    let early = scene.post(&wait, json!({"timeout": "0s"})).await.ok();
    assert!(early.get("done").is_none() && early.get("response").is_none(), "{early:#}");

    let key = scene.newest("hello-service");
    control::run::revision_ready(&scene.control, &key).unwrap();
    // Ready, but the proxy does not know it yet.
    let routing = scene.get(&hello()).await.ok();
    assert_eq!(
        (&condition(&routing, "ConfigurationsReady")["status"], &condition(&routing, "Ready")["status"]),
        (&json!("True"), &json!("Unknown"))
    );
    let (waited, ()) = tokio::join!(scene.post(&wait, json!({"timeout": "10s"})), async { scene.settle() });
    let done = waited.ok();
    assert_eq!(done["done"], true);
    let service = &done["response"];
    assert_eq!(service["@type"], "type.googleapis.com/google.cloud.run.v1.Service");
    let order: Vec<&str> =
        service["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(order, ["Ready", "ConfigurationsReady", "RoutesReady"]);
    assert!(service["status"]["conditions"].as_array().unwrap().iter().all(|c| c["status"] == "True"));
    assert_eq!(service["status"]["observedGeneration"], service["metadata"]["generation"]);
    let name = service["status"]["latestReadyRevisionName"].as_str().unwrap();
    assert!(name.starts_with("hello-service-00001-") && name.len() == "hello-service-00001-abc".len(), "{name}");
    assert_eq!(service["status"]["traffic"], json!([{"revisionName": name, "percent": 100, "latestRevision": true}]));
    let hash = scene.control.read().project("producer-1").unwrap().url_hash.clone();
    let url = format!("https://hello-service-{hash}-an.a.run.app");
    assert_eq!((&service["status"]["url"], &service["status"]["address"]["url"]), (&json!(url), &json!(url)));
    let urls: Vec<String> =
        serde_json::from_str(service["metadata"]["annotations"]["run.googleapis.com/urls"].as_str().unwrap()).unwrap();
    assert_eq!(urls, [format!("https://hello-service-{number}.asia-northeast1.run.app"), url]);
    // The operation stays readable.
    assert_eq!(scene.post(&wait, json!({"timeout": "10s"})).await.ok()["done"], true);
}

#[tokio::test]
async fn an_image_that_is_not_there_fails_the_deployment_at_once() {
    let scene = Scene::with_project().await;
    let body = deploy_with(|b| container(b)["image"] = "asia-docker.pkg.dev/p/r/ghost:v1".into());
    let made = scene.post(&services(), body).await.ok();
    let message = "Image 'asia-docker.pkg.dev/p/r/ghost:v1' not found.";
    for kind in ["Ready", "ConfigurationsReady", "RoutesReady"] {
        let c = condition(&made, kind);
        assert_eq!((&c["status"], &c["reason"]), (&json!("False"), &json!("ContainerMissing")));
        assert!(c["message"].as_str().unwrap().ends_with(message), "{c}");
    }
    assert!(made["status"].get("url").is_none());
    let id = made["metadata"]["annotations"]["run.googleapis.com/operation-id"].as_str().unwrap();
    let operation = scene
        .get(&format!("{REGION_HOST}/v1/projects/producer-1/locations/asia-northeast1/operations/{id}"))
        .await
        .ok();
    assert_eq!((&operation["done"], &operation["error"]["code"]), (&json!(true), &json!(9)));
}

#[tokio::test]
async fn a_revision_that_does_not_listen_leaves_traffic_where_it_was() {
    let scene = deployed().await;
    let first = scene.get(&hello()).await.ok();
    let old = first["status"]["latestReadyRevisionName"].clone();
    let mut body = first.clone();
    container(&mut body)["args"] = json!(["--broken"]);
    let changed = scene.put(&hello(), body).await.ok();
    assert_eq!(changed["metadata"]["generation"], 2);
    assert!(changed["status"]["latestCreatedRevisionName"].as_str().unwrap().starts_with("hello-service-00002-"));
    let key = scene.newest("hello-service");
    control::run::revision_failed(&scene.control, &key, "HealthCheckContainerError", "It did not listen.").unwrap();
    let failed = scene.get(&hello()).await.ok();
    assert_eq!(
        (&condition(&failed, "Ready")["status"], &condition(&failed, "RoutesReady")["status"]),
        (&json!("False"), &json!("True"))
    );
    assert!(condition(&failed, "Ready")["message"].as_str().unwrap().ends_with("It did not listen."));
    assert_eq!(
        (&failed["status"]["latestReadyRevisionName"], &failed["status"]["traffic"][0]["revisionName"]),
        (&old, &old)
    );
}

#[tokio::test]
async fn writing_back_what_was_read_changes_nothing_and_a_new_nonce_makes_a_revision() {
    let scene = deployed().await;
    let read = scene.get(&hello()).await.ok();
    let same = scene.put(&hello(), read.clone()).await.ok();
    assert_eq!(same, read);
    let mut redeploy = read.clone();
    redeploy["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] = "another".into();
    let made = scene.put(&hello(), redeploy.clone()).await.ok();
    assert!(made["status"]["latestCreatedRevisionName"].as_str().unwrap().starts_with("hello-service-00002-"));
    let stale = scene.put(&hello(), redeploy.clone()).await.refused(409);
    assert!(stale.starts_with("Conflict for resource 'hello-service': version '"), "{stale}");
    // Without a version the last writer wins.
    redeploy["metadata"].as_object_mut().unwrap().shift_remove("resourceVersion");
    redeploy["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] = "third".into();
    scene.put(&hello(), redeploy).await.ok();
    // Only the service's own settings: a new generation, no new revision.
    let mut settings = scene.get(&hello()).await.ok();
    settings["metadata"]["annotations"]["run.googleapis.com/ingress"] = "all".into();
    let after = scene.put(&hello(), settings.clone()).await.ok();
    assert_eq!(after["status"]["latestCreatedRevisionName"], settings["status"]["latestCreatedRevisionName"]);
    assert_eq!(after["metadata"]["generation"].as_u64(), settings["metadata"]["generation"].as_u64().map(|n| n + 1));
}

#[tokio::test]
async fn a_dry_run_shows_what_would_be_and_stores_nothing() {
    let scene = Scene::with_project().await;
    let shown = scene.post(&format!("{}?dryRun=all", services()), deploy()).await.ok();
    assert_eq!(shown["spec"]["template"]["spec"]["timeoutSeconds"], 300);
    assert_eq!(scene.get(&hello()).await.status, 404);
    assert_eq!(scene.post(&format!("{}?dryRun=some", services()), deploy()).await.status, 400);
}

#[tokio::test]
async fn every_rule_about_values_has_its_refusal() {
    let scene = Scene::with_project().await;
    let at = "spec.template.spec.containers[0]";
    type Change = Box<dyn FnOnce(&mut Value)>;
    let cases: Vec<(Change, String)> = vec![
        (Box::new(|b| b["metadata"]["name"] = "Hello".into()), "metadata.name: only lowercase".into()),
        (Box::new(|b| b["metadata"]["name"] = "h".repeat(50).into()), "metadata.name: only lowercase".into()),
        (
            Box::new(|b| b["metadata"]["namespace"] = "other-project".into()),
            "metadata.namespace: 'other-project'".into(),
        ),
        (Box::new(|b| b["kind"] = "Route".into()), "kind: 'Route' is not 'Service'.".into()),
        (Box::new(|b| container(b)["image"] = "".into()), format!("{at}.image: should be a non-empty string")),
        (
            Box::new(|b| container(b)["resources"] = json!({"limits": {"memory": "512MB"}})),
            format!("{at}.resources.limits.memory: could not match suffix MB while parsing Quantity."),
        ),
        (
            Box::new(|b| container(b)["resources"] = json!({"limits": {"memory": "64Mi"}})),
            format!("{at}.resources.limits.memory: Invalid value specified for memory."),
        ),
        (
            Box::new(|b| container(b)["resources"] = json!({"limits": {"cpu": "3"}})),
            format!("{at}.resources.limits.cpu: Invalid value specified for cpu."),
        ),
        (
            Box::new(|b| container(b)["resources"] = json!({"limits": {"cpu": "1", "memory": "8Gi"}})),
            format!("{at}.resources.limits.cpu: Invalid value specified for cpu."),
        ),
        (
            Box::new(|b| container(b)["env"] = json!([{"name": "PORT", "value": "1"}, {"name": "A"}])),
            format!(
                "{at}.env: The following reserved env names were provided: PORT. These values are automatically set by the system."
            ),
        ),
        (
            Box::new(|b| container(b)["ports"] = json!([{"containerPort": 70000}])),
            format!("{at}.ports.containerPort: should be between 1 and 65535"),
        ),
        (
            Box::new(|b| container(b)["ports"] = json!([{"name": "ftp", "containerPort": 1}])),
            format!("{at}.ports.name: 'ftp'"),
        ),
        (
            Box::new(|b| {
                container(b)["startupProbe"] = json!({"tcpSocket": {}, "periodSeconds": 200, "failureThreshold": 2})
            }),
            format!("{at}.startupProbe: initialDelaySeconds"),
        ),
        (
            Box::new(|b| container(b)["startupProbe"] = json!({"httpGet": {"path": "x"}})),
            format!("{at}.startupProbe.httpGet.path"),
        ),
        (
            Box::new(|b| b["spec"]["template"]["spec"]["timeoutSeconds"] = 3601.into()),
            "spec.template.spec.timeoutSeconds: should be 1-3600".into(),
        ),
        (
            Box::new(|b| b["spec"]["template"]["spec"]["containerConcurrency"] = 1001.into()),
            "spec.template.spec.containerConcurrency: should be 0-1000".into(),
        ),
        (
            Box::new(|b| b["spec"]["template"]["metadata"]["name"] = "other-1".into()),
            "spec.template.metadata.name: revision name 'other-1'".into(),
        ),
        (
            Box::new(|b| b["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 90}])),
            "spec.traffic: Traffic percent must sum to 100".into(),
        ),
        (
            Box::new(|b| {
                b["spec"]["traffic"] =
                    json!([{"latestRevision": true, "revisionName": "hello-service-1", "percent": 100}])
            }),
            "spec.traffic[0].latestRevision".into(),
        ),
        (
            Box::new(|b| b["spec"]["traffic"] = json!([{"revisionName": "hello-service-ghost", "percent": 100}])),
            "spec.traffic.revision_name: Revision named 'hello-service-ghost' does not exist".into(),
        ),
        (
            Box::new(|b| {
                b["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100, "tag": "x".repeat(40)}])
            }),
            format!(
                "spec.traffic.tag: traffic tag '{}' and service name 'hello-service' together are too long. Combined traffic tag and service name cannot exceed 46 characters.",
                "x".repeat(40)
            ),
        ),
        (
            Box::new(|b| b["metadata"]["annotations"]["run.googleapis.com/ingress"] = "some".into()),
            "metadata.annotations[run.googleapis.com/ingress]: 'some' is invalid.".into(),
        ),
        (
            Box::new(|b| b["metadata"]["annotations"]["run.googleapis.com/cpu-throttling"] = "true".into()),
            "metadata.annotations[run.googleapis.com/cpu-throttling]: annotation".into(),
        ),
        (
            Box::new(|b| {
                b["spec"]["template"]["metadata"]["annotations"]["autoscaling.knative.dev/target"] = "1".into()
            }),
            "spec.template.metadata.annotations[autoscaling.knative.dev/target]: annotation".into(),
        ),
        (
            Box::new(|b| b["metadata"]["labels"]["run.googleapis.com/x"] = "1".into()),
            "metadata.labels: label 'run.googleapis.com/x' is in the reserved namespace".into(),
        ),
        (
            Box::new(|b| b["spec"]["template"]["spec"]["containers"] = json!([])),
            "spec.template.spec.containers: at least one".into(),
        ),
        (
            Box::new(|b| b["spec"]["template"]["spec"]["containers"] = Value::Null),
            "spec.template.spec.containers: at least one".into(),
        ),
    ];
    for (change, want) in cases {
        let got = scene.post(&services(), deploy_with(change)).await.refused(400);
        assert!(got.starts_with(&want), "{got}\n  wanted {want}");
    }
    assert_eq!(scene.get(&hello()).await.status, 404);
}

#[tokio::test]
async fn what_would_change_something_and_is_not_done_is_refused_by_name() {
    let scene = Scene::with_project().await;
    type Change = Box<dyn FnOnce(&mut Value)>;
    let template = |name: &'static str, value: &'static str| -> Change {
        Box::new(move |b| b["spec"]["template"]["metadata"]["annotations"][name] = value.into())
    };
    let service = |name: &'static str, value: &'static str| -> Change {
        Box::new(move |b| b["metadata"]["annotations"][name] = value.into())
    };
    let cases: Vec<(Change, &str)> = vec![
        (
            Box::new(|b| {
                container(b)["env"] = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "1"}}}])
            }),
            "env.valueFrom",
        ),
        (Box::new(|b| container(b)["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}])), "volumeMounts"),
        (Box::new(|b| container(b)["livenessProbe"] = json!({"httpGet": {"path": "/"}})), "livenessProbe"),
        (Box::new(|b| container(b)["ports"] = json!([{"name": "h2c", "containerPort": 8080}])), "ports"),
        (Box::new(|b| container(b)["startupProbe"] = json!({"grpc": {"port": 8080}})), "grpc"),
        (
            Box::new(|b| {
                b["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"medium": "Memory"}}])
            }),
            "volumes",
        ),
        (
            Box::new(|b| {
                b["spec"]["template"]["spec"]["nodeSelector"] = json!({"run.googleapis.com/accelerator": "nvidia-l4"})
            }),
            "nodeSelector",
        ),
        (
            Box::new(|b| b["spec"]["template"]["spec"]["containers"] = json!([{"image": HELLO}, {"image": HELLO}])),
            "containers[1]",
        ),
        (template("run.googleapis.com/network-interfaces", "[{\"network\":\"n\"}]"), "network-interfaces"),
        (template("run.googleapis.com/vpc-access-connector", "c"), "vpc-access-connector"),
        (template("run.googleapis.com/cloudsql-instances", "p:r:i"), "cloudsql-instances"),
        (template("run.googleapis.com/sessionAffinity", "true"), "sessionAffinity"),
        (template("run.googleapis.com/health-check-disabled", "true"), "health-check-disabled"),
        (service("run.googleapis.com/iap-enabled", "true"), "iap-enabled"),
        (service("run.googleapis.com/scalingMode", "manual"), "scalingMode"),
        (service("run.googleapis.com/binary-authorization", "default"), "binary-authorization"),
    ];
    for (change, want) in cases {
        let got = scene.post(&services(), deploy_with(change)).await.refused(400);
        assert!(got.contains(want), "{got}\n  wanted {want}");
    }
    for collection in ["jobs", "executions"] {
        let url = format!("{REGION_HOST}/apis/run.googleapis.com/v1/namespaces/producer-1/{collection}");
        assert!(scene.get(&url).await.refused(400).contains(collection));
    }
}

#[tokio::test]
async fn who_deploys_must_be_allowed_to_act_as_the_revisions_account() {
    let scene = Scene::with_project().await;
    let number = scene.number("producer-1");
    let grant = json!({"policy": {"bindings": [
        {"role": "roles/owner", "members": ["user:admin@tombolo.local"]},
        {"role": "roles/run.developer", "members": ["user:dev@example.com"]},
        {"role": "roles/editor", "members": [format!("serviceAccount:{number}-compute@developer.gserviceaccount.com")]},
        {"role": "roles/run.serviceAgent", "members": [format!("serviceAccount:service-{number}@serverless-robot-prod.iam.gserviceaccount.com")]},
    ]}});
    scene.post("https://cloudresourcemanager.googleapis.com/v1/projects/producer-1:setIamPolicy", grant).await.ok();
    let dev = scene.mint.operator_token("dev@example.com", scene.control.now()).unwrap();
    let ask =
        async |body: Value| -> Got { scene.call(Method::POST, &services(), Some(&dev), None, &body.to_string()).await };
    let default = format!("{number}-compute@developer.gserviceaccount.com");
    let text = |email: &str| {
        format!("Permission 'iam.serviceaccounts.actAs' denied on service account {email} (or it may not exist).")
    };
    assert_eq!(ask(deploy()).await.refused(403), text(&default));
    let ghost = "ghost@producer-1.iam.gserviceaccount.com";
    let body = deploy_with(|b| b["spec"]["template"]["spec"]["serviceAccountName"] = ghost.into());
    assert_eq!(scene.post(&services(), body).await.refused(403), text(ghost));
    let allow = json!({"policy": {"bindings": [{"role": "roles/iam.serviceAccountUser", "members": ["user:dev@example.com"]}]}});
    scene
        .post(
            &format!("https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts/{default}:setIamPolicy"),
            allow,
        )
        .await
        .ok();
    ask(deploy()).await.ok();
    let stranger = scene.mint.operator_token("stranger@example.com", scene.control.now()).unwrap();
    let denied = scene.call(Method::GET, &hello(), Some(&stranger), None, "").await;
    assert_eq!(
        denied.refused(403),
        "Permission 'run.services.get' denied on resource 'namespaces/producer-1/services/hello-service' (or resource may not exist)."
    );
}

#[tokio::test]
async fn the_invoker_is_granted_on_the_global_host_and_the_proxy_learns_it() {
    let scene = deployed().await;
    let number = scene.number("producer-1");
    let member = format!("serviceAccount:{number}-compute@developer.gserviceaccount.com");
    let read = scene.get(&format!("{GLOBAL}:getIamPolicy?options.requestedPolicyVersion=3")).await.ok();
    let body = json!({"policy": {"bindings": [{"members": [member], "role": "roles/run.invoker"}], "etag": read["etag"], "version": 3}});
    let set = scene.post(&format!("{GLOBAL}:setIamPolicy"), body).await.ok();
    assert_eq!(set["bindings"], json!([{"role": "roles/run.invoker", "members": [member]}]));
    {
        let world = scene.control.read();
        let record = world.services.values().next().unwrap();
        let edge = control::run::plan::service(&world, record).unwrap();
        let email = format!("{number}-compute@developer.gserviceaccount.com");
        assert_eq!(edge.invokers.accounts.get(&world.accounts[&email].unique_id), Some(&email));
        assert!(!edge.invokers.everyone);
        let hash = &world.project("producer-1").unwrap().url_hash;
        for url in [
            format!("https://hello-service-{hash}-an.a.run.app"),
            format!("https://hello-service-{number}.asia-northeast1.run.app/"),
        ] {
            assert!(edge.audiences.contains(&url), "{url}");
        }
    }
    let tested = scene
        .post(&format!("{GLOBAL}:testIamPermissions"), json!({"permissions": ["run.services.setIamPolicy"]}))
        .await
        .ok();
    assert_eq!(tested, json!({"permissions": ["run.services.setIamPolicy"]}));
    let ghost = json!({"policy": {"bindings": [{"members": ["serviceAccount:ghost@p.iam.gserviceaccount.com"], "role": "roles/run.invoker"}]}});
    assert_eq!(
        scene.post(&format!("{GLOBAL}:setIamPolicy"), ghost).await.refused(400),
        "Service account ghost@p.iam.gserviceaccount.com does not exist."
    );
    let everybody = json!({"policy": {"bindings": [{"members": ["allUsers"], "role": "roles/run.invoker"}]}});
    scene.post(&format!("{GLOBAL}:setIamPolicy"), everybody).await.ok();
    let world = scene.control.read();
    assert!(control::run::plan::service(&world, world.services.values().next().unwrap()).unwrap().invokers.everyone);
}

#[tokio::test]
async fn traffic_is_split_pinned_and_tagged() {
    let scene = deployed().await;
    let first = scene.newest("hello-service").name;
    let mut body = scene.get(&hello()).await.ok();
    body["spec"]["template"]["metadata"]["name"] = "hello-service-two".into();
    body["spec"]["traffic"] = json!([{"revisionName": first, "percent": 100}, {"revisionName": "hello-service-two", "percent": 0, "tag": "canary"}]);
    scene.put(&hello(), body).await.ok();
    scene.make_ready("hello-service");
    let shown = scene.get(&hello()).await.ok();
    let hash = scene.control.read().project("producer-1").unwrap().url_hash.clone();
    let tag_url = format!("https://canary---hello-service-{hash}-an.a.run.app");
    assert_eq!(
        shown["status"]["traffic"],
        json!([{"revisionName": first, "percent": 100}, {"revisionName": "hello-service-two", "tag": "canary", "url": tag_url}])
    );
    {
        let world = scene.control.read();
        let edge = control::run::plan::service(&world, world.services.values().next().unwrap()).unwrap();
        assert!(edge.audiences.contains(&tag_url));
        assert_eq!(edge.traffic[1].tag.as_deref(), Some("canary"));
    }
    // The name of a revision is taken for good, unless nothing changed.
    let mut again = shown.clone();
    container(&mut again)["args"] = json!(["x"]);
    assert!(scene.put(&hello(), again).await.refused(409).contains("hello-service-two"));
    let revisions = format!("{REGION_HOST}/apis/serving.knative.dev/v1/namespaces/producer-1/revisions");
    for (name, why) in [("hello-service-two", "latest created"), (first.as_str(), "receiving traffic")] {
        assert!(scene.delete(&format!("{revisions}/{name}")).await.refused(400).contains(why));
    }
    let mut moved = shown;
    moved["spec"]["traffic"] = json!([{"revisionName": "hello-service-two", "percent": 100}]);
    scene.put(&hello(), moved).await.ok();
    assert_eq!(scene.delete(&format!("{revisions}/{first}")).await.ok()["status"], "Success");
    let left = scene
        .get(&format!("{revisions}?labelSelector=serving.knative.dev/service%20%3D%20hello-service&limit=100"))
        .await
        .ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "hello-service-two");
}

#[tokio::test]
async fn a_revision_shows_its_digest_and_how_it_went() {
    let scene = deployed().await;
    let name = scene.newest("hello-service").name;
    let url = format!("{REGION_HOST}/apis/serving.knative.dev/v1/namespaces/producer-1/revisions/{name}");
    let shown = scene.get(&url).await.ok();
    assert_eq!(shown["status"]["imageDigest"], format!("{HELLO}@sha256:{}", "ab".repeat(32)));
    assert_eq!(shown["metadata"]["labels"]["serving.knative.dev/service"], "hello-service");
    let ready = condition(&shown, "Ready");
    assert!(ready["message"].as_str().unwrap().starts_with("Deploying revision succeeded in "), "{ready}");
    // An image may be named by tag, by no tag and by digest.
    for image in [format!("{HELLO}:latest"), format!("{HELLO}@sha256:{}", "ab".repeat(32))] {
        let mut body = scene.get(&hello()).await.ok();
        container(&mut body)["image"] = image.as_str().into();
        let made = scene.put(&hello(), body).await.ok();
        assert_ne!(condition(&made, "Ready")["status"], "False", "{image}");
    }
    let mut body = scene.get(&hello()).await.ok();
    container(&mut body)["image"] = format!("{HELLO}:v9").into();
    assert_eq!(condition(&scene.put(&hello(), body).await.ok(), "Ready")["reason"], "ContainerMissing");
}

#[tokio::test]
async fn a_deleted_service_is_gone_with_everything_and_its_name_is_free() {
    let scene = deployed().await;
    let everybody = json!({"policy": {"bindings": [{"members": ["allUsers"], "role": "roles/run.invoker"}]}});
    scene.post(&format!("{GLOBAL}:setIamPolicy"), everybody).await.ok();
    let gone = scene.delete(&hello()).await.ok();
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(scene.get(&hello()).await.status, 404);
    assert!(scene.control.read().revisions.is_empty());
    let again = scene.post(&services(), deploy()).await.ok();
    assert!(again["status"]["latestCreatedRevisionName"].as_str().unwrap().starts_with("hello-service-00001-"));
    // Nobody inherits what was granted on its namesake.
    assert_eq!(scene.get(&format!("{GLOBAL}:getIamPolicy")).await.ok(), json!({"etag": "ACAB"}));
    assert_eq!(scene.post(&services(), deploy()).await.refused(409), "Resource 'hello-service' already exists.");
}

#[tokio::test]
async fn services_are_listed_by_region_and_for_all_regions() {
    let scene = deployed().await;
    let here = scene.get(&services()).await.ok();
    assert_eq!(
        (&here["kind"], &here["items"][0]["metadata"]["name"]),
        (&json!("ServiceList"), &json!("hello-service"))
    );
    let elsewhere = "https://us-central1-run.googleapis.com/apis/serving.knative.dev/v1/namespaces/producer-1/services";
    assert_eq!(scene.get(elsewhere).await.ok()["items"], json!([]));
    let all = scene.get("https://run.googleapis.com/v1/projects/producer-1/locations/-/services").await.ok();
    assert_eq!(all["items"][0]["metadata"]["labels"]["cloud.googleapis.com/location"], "asia-northeast1");
    let locations = scene.get("https://run.googleapis.com/v1/projects/producer-1/locations?pageSize=100").await.ok();
    assert!(locations["locations"].as_array().unwrap().iter().any(|l| l["locationId"] == "asia-northeast1"));
    let nowhere = "https://mars-north1-run.googleapis.com/apis/serving.knative.dev/v1/namespaces/producer-1/services";
    assert_eq!(
        scene.post(nowhere, deploy()).await.refused(404),
        "Location mars-north1 is not found or access is unauthorized."
    );
    let by_number = services().replace("producer-1", &scene.number("producer-1"));
    assert_eq!(scene.get(&by_number).await.ok(), here);
}

#[tokio::test]
async fn a_changed_port_takes_the_default_probe_along() {
    let scene = deployed().await;
    let mut body = scene.get(&hello()).await.ok();
    container(&mut body)["ports"][0]["containerPort"] = 9090.into();
    let made = scene.put(&hello(), body).await.ok();
    let spec = &made["spec"]["template"];
    assert_eq!(spec["spec"]["containers"][0]["startupProbe"]["tcpSocket"]["port"], 9090);
    assert_eq!(spec["metadata"]["labels"]["run.googleapis.com/startupProbeType"], "Default");
    let mut body = made.clone();
    container(&mut body)["startupProbe"] = json!({"httpGet": {"path": "/ready"}, "periodSeconds": 5});
    let made = scene.put(&hello(), body).await.ok();
    let probe = &made["spec"]["template"]["spec"]["containers"][0]["startupProbe"];
    assert_eq!(
        probe,
        &json!({"timeoutSeconds": 1, "periodSeconds": 5, "failureThreshold": 3, "httpGet": {"path": "/ready", "port": 9090}})
    );
    assert_eq!(made["spec"]["template"]["metadata"]["labels"]["run.googleapis.com/startupProbeType"], "Custom");
}

#[tokio::test]
async fn v2_is_another_view_of_the_same_services() {
    let scene = Scene::with_project().await;
    let body = json!({
        "ingress": "INGRESS_TRAFFIC_ALL",
        "labels": {"team": "a"},
        "launchStage": "GA",
        "template": {"containers": [{"image": HELLO, "env": [{"name": "FOO", "value": "bar"}]}], "scaling": {"maxInstanceCount": 2}},
        "traffic": [{"percent": 100, "type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"}],
    });
    let operation = scene.post(&format!("{V2}/services?serviceId=api"), body.clone()).await.ok();
    assert_eq!((operation.get("done"), &operation["metadata"]["reconciling"]), (None, &json!(true)));
    scene.make_ready("api");
    let name = operation["name"].as_str().unwrap();
    let done = scene.get(&format!("https://run.googleapis.com/v2/{name}")).await.ok();
    let service = &done["response"];
    assert_eq!(
        (&done["done"], &service["name"]),
        (&json!(true), &json!("projects/producer-1/locations/asia-northeast1/services/api"))
    );
    assert_eq!(service["terminalCondition"]["state"], "CONDITION_SUCCEEDED");
    assert_eq!(service["template"]["scaling"], json!({"maxInstanceCount": 2}));
    assert_eq!(service["template"]["timeout"], "300s");
    assert!(service["uri"].as_str().unwrap().ends_with("-an.a.run.app"));
    assert_eq!(service["trafficStatuses"][0]["type"], "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST");
    let shown = scene.get(&format!("{V2}/services/api")).await.ok();
    assert!(shown.get("reconciling").is_none());
    // Written back as it was read, it is the same.
    scene.patch(&format!("{V2}/services/api"), shown.clone()).await.ok();
    assert_eq!(scene.get(&format!("{V2}/services/api")).await.ok(), shown);
    // Through v1 it is the same service.
    let knative = scene.get(&format!("{}/api", services())).await.ok();
    assert_eq!(knative["spec"]["template"]["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"], "2");
    assert_eq!(knative["metadata"]["uid"], shown["uid"]);
    // A mask changes what it names.
    scene
        .patch(
            &format!("{V2}/services/api?updateMask=ingress,description"),
            json!({"ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY", "description": "d"}),
        )
        .await
        .ok();
    let masked = scene.get(&format!("{V2}/services/api")).await.ok();
    assert_eq!(
        (&masked["ingress"], &masked["labels"], &masked["description"]),
        (&json!("INGRESS_TRAFFIC_INTERNAL_ONLY"), &json!({"team": "a"}), &json!("d"))
    );
    assert_eq!(masked["latestCreatedRevision"], shown["latestCreatedRevision"]);
    assert!(
        scene.patch(&format!("{V2}/services/api?updateMask=nothing"), json!({})).await.refused(400).contains("nothing")
    );
    let stale = json!({"etag": "\"AAAAAAAAAAA\"", "description": "x"});
    assert_eq!(scene.patch(&format!("{V2}/services/api?updateMask=description"), stale).await.status, 409);
    let reserved = json!({"annotations": {"run.googleapis.com/ingress": "all"}, "template": body["template"]});
    assert!(scene.patch(&format!("{V2}/services/api"), reserved).await.refused(400).contains("reserved namespace"));
    let vpc = json!({"template": {"containers": [{"image": HELLO}], "vpcAccess": {"connector": "c"}}});
    assert!(scene.patch(&format!("{V2}/services/api"), vpc).await.refused(400).contains("vpcAccess"));
    let listed = scene.get(&format!("{V2}/services")).await.ok();
    assert_eq!(listed["services"].as_array().unwrap().len(), 1);
    let revisions = scene.get(&format!("{V2}/services/api/revisions")).await.ok();
    assert_eq!(revisions["revisions"][0]["service"], "api");
    let validated = scene.post(&format!("{V2}/services?serviceId=other&validateOnly=true"), body).await.ok();
    assert_eq!(validated["metadata"]["name"], "projects/producer-1/locations/asia-northeast1/services/other");
    assert_eq!(scene.get(&format!("{V2}/services/other")).await.status, 404);
    let deleted = scene.delete(&format!("{V2}/services/api")).await.ok();
    assert_eq!(deleted["done"], true);
    assert!(deleted["response"]["deleteTime"].is_string());
    let again = scene.get(&format!("https://run.googleapis.com/v2/{}", deleted["name"].as_str().unwrap())).await.ok();
    assert_eq!(again["done"], true);
}

#[tokio::test]
async fn a_container_gets_the_environment_that_the_contract_promises() {
    let scene = Scene::with_project().await;
    let body = deploy_with(|b| {
        container(b)["env"] = json!([{"name": "LANG", "value": "de"}, {"name": "A", "value": "$(B)"}]);
        container(b)["args"] = json!(["--loud"]);
    });
    scene.post(&services(), body).await.ok();
    let key = scene.newest("hello-service");
    let mut fleet = control::instances::Fleet::new(control::instances::Tuning::default(), Box::new(|n| "a".repeat(n)));
    let actions = fleet.on(control::instances::Event::Look, &scene.control.read(), scene.control.now());
    let [control::instances::Action::Start(seat, _)] = actions.as_slice() else { panic!("{actions:?}") };
    let plan = control::run::plan::sandbox(&scene.control.read(), seat).unwrap();
    let model::planned::host::Process::Run { argv, env, cwd, .. } = plan.process else { panic!("no process") };
    assert_eq!(argv, ["/hello", "--loud"]);
    assert_eq!(cwd, "/");
    let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    for (name, want) in [
        ("PORT", "8080"),
        ("K_SERVICE", "hello-service"),
        ("K_CONFIGURATION", "hello-service"),
        ("K_REVISION", key.name.as_str()),
        ("LANG", "de"),
        ("A", "$(B)"),
        ("HOME", "/root"),
    ] {
        assert_eq!(get(name), Some(want), "{name}");
    }
}
