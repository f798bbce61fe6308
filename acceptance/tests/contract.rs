//! What gcloud 578 sends for the walkthrough, request by request, whether or not any `gcloud` is installed here.
//!
//! Paths, methods, queries and bodies are those that a recorder saw; only names and ranges are put in.

use acceptance::{Cloud, REGION, ZONE};
use serde_json::{Value, json};

const P: &str = "producer-blog";
const C: &str = "consumer-blog";
const CRM: &str = "cloudresourcemanager.googleapis.com";
const USAGE: &str = "serviceusage.googleapis.com";
const COMPUTE: &str = "compute.googleapis.com";
const RUN: &str = "run.googleapis.com";
const RUN_HERE: &str = "asia-northeast1-run.googleapis.com";

struct Client(Cloud);

impl Client {
    /// One request, with the query that gcloud adds to each.
    #[track_caller]
    fn send(&self, method: &str, host: &str, path: &str, body: Option<Value>, want: u16) -> Value {
        let mark = if path.contains('?') { '&' } else { '?' };
        let answer = self.0.call(method, host, &format!("{path}{mark}alt=json"), body);
        assert_eq!(answer.status, want, "{method} {host}{path}: {}", answer.body);
        answer.body
    }

    #[track_caller]
    fn get(&self, host: &str, path: &str) -> Value {
        self.send("GET", host, path, None, 200)
    }

    #[track_caller]
    fn post(&self, host: &str, path: &str, body: Value) -> Value {
        self.send("POST", host, path, Some(body), 200)
    }

    /// A Compute mutation as gcloud does it: send, `wait` without a body while it is not done, and read the target but of
    /// a deletion. Returns what the operation was for.
    #[track_caller]
    fn compute(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let mut operation = self.send(method, COMPUTE, &format!("/compute/v1/projects/{path}"), body, 200);
        let link = operation["selfLink"].as_str().expect("a link").to_owned();
        let at = link.find("/compute/v1/").expect("a link of Compute");
        while operation["status"] != "DONE" {
            operation = self.send("POST", COMPUTE, &format!("{}/wait", &link[at..]), None, 200);
        }
        assert!(operation["error"].is_null(), "{method} {path}: {operation}");
        let target = operation["targetLink"].as_str().expect("a target");
        if method == "DELETE" {
            assert_eq!(operation["operationType"], "delete");
            return Value::Null;
        }
        self.get(COMPUTE, &target[target.find("/compute/v1/").expect("a link of Compute")..])
    }

    #[track_caller]
    fn make(&self, collection: &str, body: Value) -> Value {
        self.compute("POST", collection, Some(body))
    }

    /// Reads a policy and writes it back with one binding more, as every `add-iam-policy-binding` does.
    fn let_invoke(&self, member: &str) {
        let service = format!("/v1/projects/{P}/locations/{REGION}/services/hello-service");
        let policy = self.get(RUN, &format!("{service}:getIamPolicy?options.requestedPolicyVersion=3"));
        let bindings = json!([{"members": [member], "role": "roles/run.invoker"}]);
        let policy = json!({"policy": {"bindings": bindings, "etag": policy["etag"], "version": 3}});
        let set = self.post(RUN, &format!("{service}:setIamPolicy"), policy);
        assert_eq!(set["bindings"], bindings);
    }
}

/// A link as gcloud writes it into a body.
fn ce(path: &str) -> String {
    format!("https://compute.googleapis.com/compute/v1/projects/{path}")
}

fn deploy(client: &Client) {
    let collection = format!("/apis/serving.knative.dev/v1/namespaces/{P}/services");
    assert_eq!(client.get(USAGE, &format!("/v1/projects/{P}/services/run.googleapis.com"))["state"], "ENABLED");
    client.send("GET", RUN_HERE, &format!("{collection}/hello-service"), None, 404);
    let by = json!({"run.googleapis.com/client-name": "gcloud", "run.googleapis.com/client-version": "578.0.0"});
    let mut annotations = by.clone();
    annotations["run.googleapis.com/ingress"] = json!("internal");
    let mut of_template = by;
    of_template["run.googleapis.com/startup-cpu-boost"] = json!("True");
    let image = "us-docker.pkg.dev/cloudrun/container/hello";
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello-service", "namespace": P, "labels": {}, "annotations": annotations},
        "spec": {"template": {
            "metadata": {"annotations": of_template, "labels": {"client.knative.dev/nonce": "abcdefghij"}},
            "spec": {"containers": [{"image": image, "name": ""}], "nodeSelector": {}}}},
        "status": {"address": {}},
    });
    let made = client.post(RUN_HERE, &collection, service);
    let operation = made["metadata"]["annotations"]["run.googleapis.com/operation-id"].as_str().expect("an operation");
    let wait = format!("/v1/projects/{P}/locations/{REGION}/operations/{operation}:wait");
    while client.post(RUN_HERE, &wait, json!({"timeout": "10s"}))["done"] != true {}
    // It asks once or twice more after the end.
    let ended = client.post(RUN_HERE, &wait, json!({"timeout": "10s"}));
    let service = client.get(RUN_HERE, &format!("{collection}/hello-service"));
    assert_eq!(ended["response"]["status"], service["status"]);
    let ready = service["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    assert_eq!(ready.map(|ready| &ready["status"]), Some(&json!("True")), "{service}");
    assert_eq!(service["status"]["observedGeneration"], service["metadata"]["generation"]);
    assert_eq!(service["status"]["traffic"][0]["percent"], 100);
    let urls = service["metadata"]["annotations"]["run.googleapis.com/urls"].as_str().expect("a list in a text");
    let urls: Vec<String> = serde_json::from_str(urls).expect("a list");
    assert!(urls.contains(&service["status"]["url"].as_str().expect("a URL").to_owned()), "{urls:?}");
    // Deployed again: the whole object as it was read, with another nonce.
    let mut again = service;
    again["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] = json!("klmnopqrst");
    client.send("PUT", RUN_HERE, &format!("{collection}/hello-service"), Some(again), 200);
}

#[test]
fn every_request_of_gcloud_578_for_the_walkthrough_is_answered_as_it_expects() {
    let client = Client(Cloud::up());
    // 0
    for project in [P, C] {
        let made = client.post(CRM, "/v1/projects", json!({"projectId": project, "name": project}));
        client.get(CRM, &format!("/v1/{}", made["name"].as_str().expect("an operation")));
    }
    let both = json!({"serviceIds": ["run.googleapis.com", "compute.googleapis.com"]});
    let operation = client.post(USAGE, &format!("/v1/projects/{P}/services:batchEnable"), both);
    let done = client.get(USAGE, &format!("/v1/{}", operation["name"].as_str().expect("an operation")));
    assert_eq!(done["done"], true);
    for api in ["compute", "iap"] {
        client.post(USAGE, &format!("/v1/projects/{C}/services/{api}.googleapis.com:enable"), json!({}));
    }
    let enabled = client.get(USAGE, &format!("/v1/projects/{C}/services?filter=state:ENABLED&pageSize=200"));
    assert!(enabled.to_string().contains("iap.googleapis.com"), "{enabled}");
    // 1
    deploy(&client);
    let number = client.get(CRM, &format!("/v1/projects/{C}"))["projectNumber"].as_str().expect("a number").to_owned();
    client.let_invoke(&format!("serviceAccount:{number}-compute@developer.gserviceaccount.com"));
    // 2
    let network = |project: &str, name: &str| {
        let routing = json!({"routingMode": "REGIONAL"});
        let body = json!({"autoCreateSubnetworks": false, "name": name, "routingConfig": routing});
        client.make(&format!("{project}/global/networks"), body);
    };
    let (p, c) = (format!("{P}/regions/{REGION}"), format!("{C}/regions/{REGION}"));
    network(P, "producer-vpc");
    let producer_vpc = ce(&format!("{P}/global/networks/producer-vpc"));
    for (name, range, more) in [
        ("producer-subnet", "10.0.1.0/24", json!({"privateIpGoogleAccess": false})),
        ("proxy-only-subnet", "10.0.2.0/24", json!({"purpose": "REGIONAL_MANAGED_PROXY", "role": "ACTIVE"})),
        ("producer-psc-subnet", "10.0.3.0/24", json!({"purpose": "PRIVATE_SERVICE_CONNECT"})),
    ] {
        let mut body = json!({"ipCidrRange": range, "name": name, "network": producer_vpc});
        body.as_object_mut().expect("fields").extend(more.as_object().cloned().expect("fields"));
        client.make(&format!("{p}/subnetworks"), body);
    }
    // 3
    client.make(
        &format!("{p}/networkEndpointGroups"),
        json!({
        "cloudRun": {"service": "hello-service"}, "name": "hello-serverless-neg", "networkEndpointType": "SERVERLESS"}),
    );
    let mut backend = client.make(&format!("{p}/backendServices"), json!({
        "loadBalancingScheme": "INTERNAL_MANAGED", "name": "hello-backend-service", "protocol": "HTTP", "timeoutSec": 30}));
    backend["backends"] = json!([{"group": ce(&format!("{p}/networkEndpointGroups/hello-serverless-neg"))}]);
    client.compute("PUT", &format!("{p}/backendServices/hello-backend-service"), Some(backend));
    client.make(
        &format!("{p}/urlMaps"),
        json!({
        "defaultService": ce(&format!("{p}/backendServices/hello-backend-service")), "name": "hello-url-map"}),
    );
    client.make(
        &format!("{p}/targetHttpProxies"),
        json!({
        "name": "hello-target-proxy", "urlMap": ce(&format!("{p}/urlMaps/hello-url-map"))}),
    );
    let rule = client.make(
        &format!("{p}/forwardingRules"),
        json!({
        "loadBalancingScheme": "INTERNAL_MANAGED", "name": "hello-forwarding-rule", "network": producer_vpc,
        "portRange": "80", "subnetwork": ce(&format!("{p}/subnetworks/producer-subnet")),
        "target": ce(&format!("{p}/targetHttpProxies/hello-target-proxy"))}),
    );
    assert_eq!((&rule["IPProtocol"], &rule["portRange"]), (&json!("TCP"), &json!("80-80")));
    // 4
    let front = ce(&format!("{p}/forwardingRules/hello-forwarding-rule"));
    let attachment = client.make(
        &format!("{p}/serviceAttachments"),
        json!({
        "connectionPreference": "ACCEPT_MANUAL", "consumerAcceptLists": [{"connectionLimit": 10, "projectIdOrNum": C}],
        "enableProxyProtocol": false, "name": "hello-service-attachment",
        "natSubnets": [ce(&format!("{p}/subnetworks/producer-psc-subnet"))],
        "producerForwardingRule": front, "targetService": front}),
    );
    // 5, 6
    network(C, "consumer-vpc");
    let consumer_vpc = ce(&format!("{C}/global/networks/consumer-vpc"));
    let subnet = ce(&format!("{c}/subnetworks/consumer-subnet"));
    client.make(&format!("{c}/subnetworks"), json!({
        "ipCidrRange": "10.1.0.0/24", "name": "consumer-subnet", "network": consumer_vpc, "privateIpGoogleAccess": false}));
    client.make(
        &format!("{c}/addresses"),
        json!({
        "address": "10.1.0.5", "addressType": "INTERNAL", "name": "psc-endpoint-ip", "purpose": "GCE_ENDPOINT",
        "subnetwork": subnet}),
    );
    let endpoint = client.make(
        &format!("{c}/forwardingRules"),
        json!({
        "IPAddress": ce(&format!("{c}/addresses/psc-endpoint-ip")), "name": "psc-endpoint", "network": consumer_vpc,
        "target": attachment["selfLink"]}),
    );
    assert_eq!((&endpoint["IPAddress"], &endpoint["pscConnectionStatus"]), (&json!("10.1.0.5"), &json!("ACCEPTED")));
    assert_eq!(endpoint["target"], attachment["selfLink"], "in the caller's form");
    // 7
    let connected =
        client.get(COMPUTE, &format!("/compute/v1/projects/{p}/serviceAttachments/hello-service-attachment"));
    let connected = &connected["connectedEndpoints"][0];
    assert_eq!((&connected["endpoint"], &connected["status"]), (&endpoint["selfLink"], &json!("ACCEPTED")));
    // 8
    client.make(
        &format!("{C}/global/firewalls"),
        json!({
        "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}], "direction": "INGRESS", "name": "allow-iap-ssh",
        "network": consumer_vpc, "sourceRanges": ["35.235.240.0/20"]}),
    );
    client.get(COMPUTE, &format!("/compute/v1/projects/{C}/zones/{ZONE}"));
    client.get(COMPUTE, &format!("/compute/v1/projects/{C}"));
    let scopes: Vec<String> = [
        "devstorage.read_only",
        "logging.write",
        "monitoring.write",
        "pubsub",
        "service.management.readonly",
        "servicecontrol",
        "trace.append",
    ]
    .map(|scope| format!("https://www.googleapis.com/auth/{scope}"))
    .to_vec();
    let vm = client.make(
        &format!("{C}/zones/{ZONE}/instances"),
        json!({
        "canIpForward": false, "deletionProtection": false,
        "disks": [{"autoDelete": true, "boot": true, "mode": "READ_WRITE", "type": "PERSISTENT",
                   "initializeParams": {"sourceImage": ce("debian-cloud/zones/-/imageFamilyViews/debian-12")}}],
        "machineType": ce(&format!("{C}/zones/{ZONE}/machineTypes/e2-micro")), "metadata": {}, "name": "test-vm",
        "networkInterfaces": [{"network": consumer_vpc, "subnetwork": subnet}],
        "scheduling": {"automaticRestart": true}, "serviceAccounts": [{"email": "default", "scopes": scopes}]}),
    );
    assert_eq!((&vm["status"], &vm["networkInterfaces"][0]["networkIP"]), (&json!("RUNNING"), &json!("10.1.0.2")));
    // 9, 10
    let filter = format!(
        "timestamp>=\"2026-01-01T00:00:00.000000Z\" AND resource.type=cloud_run_revision AND \
         logName=projects/{P}/logs/run.googleapis.com%2Frequests"
    );
    client.post(
        "logging.googleapis.com",
        "/v2/entries:list",
        json!({
        "filter": filter, "orderBy": "timestamp desc", "pageSize": 5, "resourceNames": [format!("projects/{P}")]}),
    );
    let path = format!("{c}/subnetworks/consumer-subnet");
    let fingerprint = client.get(COMPUTE, &format!("/compute/v1/projects/{path}"))["fingerprint"].clone();
    let patch = json!({"fingerprint": fingerprint, "logConfig": {"enable": true}});
    assert_eq!(client.compute("PATCH", &path, Some(patch))["logConfig"]["enable"], true);
    client.0.down();
}
