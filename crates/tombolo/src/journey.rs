//! The commands of the walkthrough as the API calls that `gcloud` makes of them: one function a step, each shown to the
//! newcomer as the command it stands for.

use serde_json::{Value, json};

use crate::Outcome;
use crate::client::Client;

pub const REGION: &str = "asia-northeast1";
pub const ZONE: &str = "asia-northeast1-b";
pub const PRODUCER: &str = "producer-project";
pub const CONSUMER: &str = "consumer-project";
pub const IMAGE: &str = "us-docker.pkg.dev/cloudrun/container/hello";
/// The endpoint's address in the consumer's network.
pub const ENDPOINT: &str = "10.1.0.5";

const RUN_REGIONAL: &str = "asia-northeast1-run.googleapis.com";
const RUN: &str = "run.googleapis.com";
const CRM: &str = "cloudresourcemanager.googleapis.com";
const SERVICE_USAGE: &str = "serviceusage.googleapis.com";

/// The address ranges of the two networks. The article keeps them apart; `same` gives the consumer one subnet that covers
/// every subnet of the producer, the load balancer's and the NAT addresses included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    Apart,
    Same,
}

impl Ranges {
    pub fn consumer(self) -> &'static str {
        match self {
            Ranges::Apart => "10.1.0.0/24",
            Ranges::Same => "10.0.0.0/16",
        }
    }

    pub fn endpoint(self) -> &'static str {
        match self {
            Ranges::Apart => ENDPOINT,
            Ranges::Same => "10.0.0.5",
        }
    }
}

pub fn link(project: &str, path: &str) -> String {
    format!("https://www.googleapis.com/compute/v1/projects/{project}/{path}")
}

fn regional(project: &str, collection: &str) -> String {
    format!("projects/{project}/regions/{REGION}/{collection}")
}

pub fn create_project(client: &Client, project: &str) -> Outcome<()> {
    let operation = client.ok("POST", CRM, "/v1/projects", Some(&json!({"projectId": project, "name": project})))?;
    match operation["error"]["message"].as_str() {
        Some(message) => Err(message.into()),
        None => Ok(()),
    }
}

pub fn enable(client: &Client, project: &str, services: &[&str]) -> Outcome<()> {
    let path = format!("/v1/projects/{project}/services:batchEnable");
    client.ok("POST", SERVICE_USAGE, &path, Some(&json!({"serviceIds": services})))?;
    Ok(())
}

pub fn project_number(client: &Client, project: &str) -> Outcome<String> {
    let project = client.ok("GET", CRM, &format!("/v1/projects/{project}"), None)?;
    Ok(project["projectNumber"].as_str().ok_or("a project without a number")?.to_owned())
}

/// `gcloud run deploy hello-service --no-allow-unauthenticated --ingress=internal`; returns the service when it is ready.
pub fn deploy(client: &Client, ingress: &str) -> Outcome<Value> {
    let collection = format!("/apis/serving.knative.dev/v1/namespaces/{PRODUCER}/services");
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello-service", "namespace": PRODUCER,
                     "annotations": {"run.googleapis.com/ingress": ingress}},
        "spec": {"template": {"spec": {"containers": [{"image": IMAGE}]}}},
    });
    let created = client.ok("POST", RUN_REGIONAL, &collection, Some(&service))?;
    let operation = created["metadata"]["annotations"]["run.googleapis.com/operation-id"].as_str().unwrap_or_default();
    let wait = format!("/v1/projects/{PRODUCER}/locations/{REGION}/operations/{operation}:wait");
    for _ in 0..30 {
        let state = client.ok("POST", RUN_REGIONAL, &wait, Some(&json!({"timeout": "10s"})))?;
        if let Some(message) = state["error"]["message"].as_str() {
            return Err(message.into());
        }
        if state["done"] == true {
            return client.ok("GET", RUN_REGIONAL, &format!("{collection}/hello-service"), None);
        }
    }
    Err("the service did not become ready".into())
}

pub fn let_invoke(client: &Client, member: &str) -> Outcome<()> {
    let service = format!("/v1/projects/{PRODUCER}/locations/{REGION}/services/hello-service");
    let mut policy =
        client.ok("GET", RUN, &format!("{service}:getIamPolicy?options.requestedPolicyVersion=3"), None)?;
    policy["bindings"] = json!([{"role": "roles/run.invoker", "members": [member]}]);
    client.ok("POST", RUN, &format!("{service}:setIamPolicy"), Some(&json!({"policy": policy})))?;
    Ok(())
}

pub fn create_network(client: &Client, project: &str, name: &str) -> Outcome<()> {
    let body = json!({"name": name, "autoCreateSubnetworks": false, "routingConfig": {"routingMode": "REGIONAL"}});
    client.compute("POST", &format!("projects/{project}/global/networks"), &body)?;
    Ok(())
}

pub fn create_subnet(
    client: &Client,
    project: &str,
    network: &str,
    name: &str,
    range: &str,
    purpose: Option<&str>,
) -> Outcome<()> {
    let network = link(project, &format!("global/networks/{network}"));
    let mut body = json!({"name": name, "network": network, "ipCidrRange": range});
    if let Some(purpose) = purpose {
        body["purpose"] = json!(purpose);
    }
    if purpose == Some("REGIONAL_MANAGED_PROXY") {
        body["role"] = json!("ACTIVE");
    }
    client.compute("POST", &regional(project, "subnetworks"), &body)?;
    Ok(())
}

/// NEG, backend service, URL map, proxy and forwarding rule; returns the load balancer's address.
pub fn create_load_balancer(client: &Client) -> Outcome<String> {
    let at = |path: &str| link(PRODUCER, &format!("regions/{REGION}/{path}"));
    let make = |collection: &str, body: Value| client.compute("POST", &regional(PRODUCER, collection), &body);
    make(
        "networkEndpointGroups",
        json!({
            "name": "hello-serverless-neg", "networkEndpointType": "SERVERLESS", "cloudRun": {"service": "hello-service"},
        }),
    )?;
    make(
        "backendServices",
        json!({
            "name": "hello-backend-service", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP", "timeoutSec": 30,
            "backends": [{"group": at("networkEndpointGroups/hello-serverless-neg")}],
        }),
    )?;
    make("urlMaps", json!({"name": "hello-url-map", "defaultService": at("backendServices/hello-backend-service")}))?;
    make("targetHttpProxies", json!({"name": "hello-target-proxy", "urlMap": at("urlMaps/hello-url-map")}))?;
    make(
        "forwardingRules",
        json!({
            "name": "hello-forwarding-rule", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
            "network": link(PRODUCER, "global/networks/producer-vpc"), "subnetwork": at("subnetworks/producer-subnet"),
            "target": at("targetHttpProxies/hello-target-proxy"),
        }),
    )?;
    let rule = client.get(&format!("{}/hello-forwarding-rule", regional(PRODUCER, "forwardingRules")))?;
    Ok(rule["IPAddress"].as_str().ok_or("a forwarding rule without an address")?.to_owned())
}

pub fn publish(client: &Client, accept: &[(&str, u32)]) -> Outcome<()> {
    let at = |path: &str| link(PRODUCER, &format!("regions/{REGION}/{path}"));
    let accept: Vec<Value> =
        accept.iter().map(|(project, limit)| json!({"projectIdOrNum": project, "connectionLimit": limit})).collect();
    client.compute(
        "POST",
        &regional(PRODUCER, "serviceAttachments"),
        &json!({
            "name": "hello-service-attachment", "connectionPreference": "ACCEPT_MANUAL", "enableProxyProtocol": false,
            "targetService": at("forwardingRules/hello-forwarding-rule"),
            "natSubnets": [at("subnetworks/producer-psc-subnet")],
            "consumerAcceptLists": accept,
        }),
    )?;
    Ok(())
}

/// Reserves the address and makes the endpoint; returns its connection status.
pub fn create_endpoint(client: &Client, address: &str) -> Outcome<String> {
    let at = |path: &str| link(CONSUMER, &format!("regions/{REGION}/{path}"));
    client.compute(
        "POST",
        &regional(CONSUMER, "addresses"),
        &json!({
            "name": "psc-endpoint-ip", "addressType": "INTERNAL", "purpose": "GCE_ENDPOINT", "address": address,
            "subnetwork": at("subnetworks/consumer-subnet"),
        }),
    )?;
    client.compute(
        "POST",
        &regional(CONSUMER, "forwardingRules"),
        &json!({
            "name": "psc-endpoint", "IPAddress": at("addresses/psc-endpoint-ip"),
            "network": link(CONSUMER, "global/networks/consumer-vpc"),
            "target": link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/hello-service-attachment")),
        }),
    )?;
    let rule = client.get(&format!("{}/psc-endpoint", regional(CONSUMER, "forwardingRules")))?;
    Ok(rule["pscConnectionStatus"].as_str().unwrap_or("no status").to_owned())
}

/// An endpoint with an address of the cloud's choice.
pub fn create_endpoint_named(client: &Client, name: &str) -> Outcome<()> {
    let at = |path: &str| link(CONSUMER, &format!("regions/{REGION}/{path}"));
    let rule = json!({
        "name": name, "network": link(CONSUMER, "global/networks/consumer-vpc"),
        "subnetwork": at("subnetworks/consumer-subnet"),
        "target": link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/hello-service-attachment")),
    });
    client.compute("POST", &regional(CONSUMER, "forwardingRules"), &rule)?;
    Ok(())
}

/// Returns the VM's address.
pub fn create_vm(client: &Client, name: &str, address: Option<&str>) -> Outcome<String> {
    let zonal = format!("projects/{CONSUMER}/zones/{ZONE}");
    let mut interface = json!({
        "network": link(CONSUMER, "global/networks/consumer-vpc"),
        "subnetwork": link(CONSUMER, &format!("regions/{REGION}/subnetworks/consumer-subnet")),
    });
    if let Some(address) = address {
        interface["networkIP"] = json!(address);
    }
    client.compute(
        "POST",
        &format!("{zonal}/instances"),
        &json!({
            "name": name, "machineType": link(CONSUMER, &format!("zones/{ZONE}/machineTypes/e2-micro")),
            "disks": [{"boot": true, "autoDelete": true, "initializeParams": {
                "sourceImage": link("debian-cloud", "global/images/family/debian-12")}}],
            "networkInterfaces": [interface],
            "serviceAccounts": [{"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}],
        }),
    )?;
    let vm = client.get(&format!("{zonal}/instances/{name}"))?;
    Ok(vm["networkInterfaces"][0]["networkIP"].as_str().ok_or("a VM without an address")?.to_owned())
}

pub fn enable_flow_logs(client: &Client) -> Outcome<()> {
    let path = format!("{}/consumer-subnet", regional(CONSUMER, "subnetworks"));
    let subnet = client.get(&path)?;
    let body = json!({"fingerprint": subnet["fingerprint"], "logConfig": {"enable": true, "flowSampling": 1.0}});
    client.compute("PATCH", &path, &body)?;
    Ok(())
}

/// The newest entries that match, at most five.
pub fn read_logs(client: &Client, project: &str, filter: &str) -> Outcome<Vec<Value>> {
    let body = json!({"resourceNames": [format!("projects/{project}")], "filter": filter,
                      "orderBy": "timestamp desc", "pageSize": 5});
    let page = client.ok("POST", "logging.googleapis.com", "/v2/entries:list", Some(&body))?;
    Ok(page["entries"].as_array().cloned().unwrap_or_default())
}
