//! The journey of a service from a producer's VPC to a consumer's, with the bodies that gcloud sends.

use http::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

fn ce(path: &str) -> String {
    format!("https://compute.googleapis.com/compute/v1/projects/{path}")
}

#[test]
fn the_whole_journey_from_networks_to_a_connected_vm() {
    let cloud = Cloud::new();
    let (p, c) = (format!("producer-1/regions/{R}"), format!("consumer-1/regions/{R}"));

    let vpc = cloud.make(
        "producer-1/global/networks",
        json!({"autoCreateSubnetworks": false, "name": "producer-vpc", "routingConfig": {"routingMode": "REGIONAL"}}),
    );
    assert_eq!(vpc["routingConfig"]["routingMode"], "REGIONAL");
    assert_eq!(vpc["selfLink"], shown("producer-1/global/networks/producer-vpc"));
    let network = ce("producer-1/global/networks/producer-vpc");
    for body in [
        json!({"ipCidrRange": "10.0.1.0/24", "name": "producer-subnet", "network": network, "privateIpGoogleAccess": false}),
        json!({"ipCidrRange": "10.0.2.0/24", "name": "producer-proxy-subnet", "network": network,
               "purpose": "REGIONAL_MANAGED_PROXY", "role": "ACTIVE"}),
        json!({"ipCidrRange": "10.0.3.0/24", "name": "producer-psc-subnet", "network": network,
               "purpose": "PRIVATE_SERVICE_CONNECT"}),
    ] {
        cloud.make(&format!("{p}/subnetworks"), body);
    }

    cloud.make(
        &format!("{p}/networkEndpointGroups"),
        json!({"cloudRun": {"service": "hello-service"}, "name": "hello-neg", "networkEndpointType": "SERVERLESS"}),
    );
    let mut backend = cloud.make(
        &format!("{p}/backendServices"),
        json!({"loadBalancingScheme": "INTERNAL_MANAGED", "name": "hello-backend", "protocol": "HTTP", "timeoutSec": 30}),
    );
    backend["backends"] = json!([{"group": ce(&format!("{p}/networkEndpointGroups/hello-neg"))}]);
    let path = format!("{p}/backendServices/hello-backend");
    assert_eq!(cloud.done(Method::PUT, &path, backend)["operationType"], "update");
    assert_eq!(
        cloud.get(&path)["backends"],
        json!([{"group": shown(&format!("{p}/networkEndpointGroups/hello-neg"))}])
    );
    cloud.make(&format!("{p}/urlMaps"), json!({"defaultService": ce(&path), "name": "hello-map"}));
    cloud.make(
        &format!("{p}/targetHttpProxies"),
        json!({"name": "hello-proxy", "urlMap": ce(&format!("{p}/urlMaps/hello-map"))}),
    );
    let rule = cloud.make(
        &format!("{p}/forwardingRules"),
        json!({"loadBalancingScheme": "INTERNAL_MANAGED", "name": "hello-rule", "network": network, "portRange": "80",
               "subnetwork": ce(&format!("{p}/subnetworks/producer-subnet")),
               "target": ce(&format!("{p}/targetHttpProxies/hello-proxy"))}),
    );
    assert_eq!(rule["IPAddress"], "10.0.1.2");
    assert_eq!((&rule["IPProtocol"], &rule["portRange"]), (&json!("TCP"), &json!("80-80")));

    let front = ce(&format!("{p}/forwardingRules/hello-rule"));
    let attachment = cloud.make(
        &format!("{p}/serviceAttachments"),
        json!({"connectionPreference": "ACCEPT_MANUAL",
               "consumerAcceptLists": [{"connectionLimit": 10, "projectIdOrNum": "consumer-1"}],
               "enableProxyProtocol": false, "name": "hello-psc",
               "natSubnets": [ce(&format!("{p}/subnetworks/producer-psc-subnet"))],
               "producerForwardingRule": front, "targetService": front}),
    );
    assert_eq!(attachment.get("connectedEndpoints"), None);

    let consumer_network = ce("consumer-1/global/networks/consumer-vpc");
    cloud.make(
        "consumer-1/global/networks",
        json!({"autoCreateSubnetworks": false, "name": "consumer-vpc", "routingConfig": {"routingMode": "REGIONAL"}}),
    );
    cloud.make(
        &format!("{c}/subnetworks"),
        json!({"ipCidrRange": "10.1.0.0/24", "name": "consumer-subnet", "network": consumer_network,
               "privateIpGoogleAccess": false}),
    );
    let reserved = cloud.make(
        &format!("{c}/addresses"),
        json!({"address": "10.1.0.5", "addressType": "INTERNAL", "name": "psc-endpoint-ip", "purpose": "GCE_ENDPOINT",
               "subnetwork": ce(&format!("{c}/subnetworks/consumer-subnet"))}),
    );
    assert_eq!((&reserved["status"], reserved.get("users")), (&json!("RESERVED"), None));
    let uri = attachment["selfLink"].as_str().unwrap();
    let body = json!({"IPAddress": ce(&format!("{c}/addresses/psc-endpoint-ip")), "name": "psc-endpoint",
                      "network": consumer_network, "target": uri});
    let operation = cloud.done(Method::POST, &format!("{c}/forwardingRules"), body);
    assert_eq!(operation["operationType"], "createRegionPscForwardingRule");
    let endpoint = cloud.get(&format!("{c}/forwardingRules/psc-endpoint"));
    assert_eq!(endpoint["IPAddress"], "10.1.0.5");
    assert_eq!(endpoint["target"], uri);
    assert_eq!(endpoint["pscConnectionStatus"], "ACCEPTED");
    assert_eq!(endpoint.get("loadBalancingScheme"), None);
    let reserved = cloud.get(&format!("{c}/addresses/psc-endpoint-ip"));
    assert_eq!((&reserved["status"], &reserved["users"]), (&json!("IN_USE"), &json!([endpoint["selfLink"]])));

    let attachment = cloud.get(&format!("{p}/serviceAttachments/hello-psc?showNatIps=true"));
    assert_eq!(
        attachment["connectedEndpoints"],
        json!([{
            "status": "ACCEPTED",
            "pscConnectionId": endpoint["pscConnectionId"],
            "endpoint": endpoint["selfLink"],
            "endpointWithId": shown(&format!("{c}/forwardingRules/{}", endpoint["id"].as_str().unwrap())),
            "consumerNetwork": shown("consumer-1/global/networks/consumer-vpc"),
            "natIps": ["10.0.3.2"],
        }])
    );
    assert_eq!(attachment["producerForwardingRule"], shown(&format!("{p}/forwardingRules/hello-rule")));

    let firewall = cloud.make(
        "consumer-1/global/firewalls",
        json!({"allowed": [{"IPProtocol": "tcp", "ports": ["22"]}], "direction": "INGRESS", "name": "allow-iap-ssh",
               "network": consumer_network, "sourceRanges": ["35.235.240.0/20"]}),
    );
    assert_eq!((&firewall["priority"], &firewall["disabled"]), (&json!(1000), &json!(false)));

    let z = format!("consumer-1/zones/{R}-b");
    cloud.get(&z);
    let project = cloud.get("consumer-1");
    let vm = cloud.make(&format!("{z}/instances"), vm_body(&z, &consumer_network, &c));
    assert_eq!(vm["networkInterfaces"][0]["networkIP"], "10.1.0.2");
    assert_eq!(vm["networkInterfaces"][0]["name"], "nic0");
    assert_eq!(vm["serviceAccounts"][0]["email"], project["defaultServiceAccount"]);
    assert_eq!(vm["machineType"], shown(&format!("{z}/machineTypes/e2-micro")));
    assert_eq!(vm["status"], "RUNNING");
    assert!(vm["tags"]["fingerprint"].is_string());

    let subnet = cloud.get(&format!("{c}/subnetworks/consumer-subnet"));
    let patch = json!({"fingerprint": subnet["fingerprint"], "logConfig": {"enable": true}});
    assert_eq!(cloud.done(Method::PATCH, &format!("{c}/subnetworks/consumer-subnet"), patch).get("error"), None);
    let subnet = cloud.get(&format!("{c}/subnetworks/consumer-subnet"));
    assert_eq!(
        subnet["logConfig"],
        json!({"enable": true, "aggregationInterval": "INTERVAL_5_SEC", "flowSampling": 0.5, "metadata": "INCLUDE_ALL_METADATA"})
    );

    let key = json!({"fingerprint": project["commonInstanceMetadata"]["fingerprint"],
                     "items": [{"key": "ssh-keys", "value": "me:ssh-rsa AAAA me@host"}]});
    let operation = cloud.done(Method::POST, "consumer-1/setCommonInstanceMetadata", key);
    assert_eq!(operation["targetLink"], shown("consumer-1"));
    assert_eq!(cloud.get("consumer-1")["commonInstanceMetadata"]["items"][0]["key"], "ssh-keys");

    take_down(&cloud, &p, &c, &z);
}

fn vm_body(z: &str, network: &str, c: &str) -> Value {
    json!({"canIpForward": false, "deletionProtection": false,
        "disks": [{"autoDelete": true, "boot": true, "mode": "READ_WRITE", "type": "PERSISTENT",
                   "initializeParams": {"sourceImage": ce("debian-cloud/zones/-/imageFamilyViews/debian-12")}}],
        "machineType": ce(&format!("{z}/machineTypes/e2-micro")), "metadata": {}, "name": "test-vm",
        "networkInterfaces": [{"network": network, "subnetwork": ce(&format!("{c}/subnetworks/consumer-subnet"))}],
        "scheduling": {"automaticRestart": true},
        "serviceAccounts": [{"email": "default", "scopes": ["https://www.googleapis.com/auth/logging.write"]}]})
}

/// Everything goes again, users before what they use, and nothing is left.
fn take_down(cloud: &Cloud, p: &str, c: &str, z: &str) {
    for path in [
        format!("{z}/instances/test-vm"),
        "consumer-1/global/firewalls/allow-iap-ssh".into(),
        format!("{c}/forwardingRules/psc-endpoint"),
        format!("{c}/addresses/psc-endpoint-ip"),
        format!("{c}/subnetworks/consumer-subnet"),
        "consumer-1/global/networks/consumer-vpc".into(),
        format!("{p}/serviceAttachments/hello-psc"),
        format!("{p}/forwardingRules/hello-rule"),
        format!("{p}/targetHttpProxies/hello-proxy"),
        format!("{p}/urlMaps/hello-map"),
        format!("{p}/backendServices/hello-backend"),
        format!("{p}/networkEndpointGroups/hello-neg"),
        format!("{p}/subnetworks/producer-psc-subnet"),
        format!("{p}/subnetworks/producer-proxy-subnet"),
        format!("{p}/subnetworks/producer-subnet"),
        "producer-1/global/networks/producer-vpc".into(),
    ] {
        cloud.delete(&path);
    }
    let world = cloud.control.read();
    assert!(world.objects.is_empty() && world.seats.is_empty() && world.connections.is_empty());
}

/// A resource and everything else of the journey that stands in its way.
#[test]
fn whatever_is_deleted_first_the_refusal_names_who_still_uses_it_and_in_the_end_nothing_is_left() {
    for turn in 0..6 {
        let cloud = Cloud::new();
        let (p, c) = (format!("producer-1/regions/{R}"), format!("consumer-1/regions/{R}"));
        cloud.producer(json!({"consumerAcceptLists": [{"projectIdOrNum": "consumer-1", "connectionLimit": 1}]}));
        cloud.consumer("consumer-1");
        cloud.endpoint("consumer-1", "end");
        let mut left = vec![
            "consumer-1/global/networks/cv".to_owned(),
            format!("{c}/subnetworks/cs"),
            format!("{c}/forwardingRules/end"),
            "producer-1/global/networks/pv".to_owned(),
            format!("{p}/subnetworks/plain"),
            format!("{p}/subnetworks/proxies"),
            format!("{p}/subnetworks/nat"),
            format!("{p}/networkEndpointGroups/neg"),
            format!("{p}/backendServices/back"),
            format!("{p}/urlMaps/map"),
            format!("{p}/targetHttpProxies/proxy"),
            format!("{p}/forwardingRules/front"),
            format!("{p}/serviceAttachments/att"),
        ];
        let (turned, len) = (turn * 2, left.len());
        left.rotate_left(turned % len);
        while !left.is_empty() {
            let before = left.len();
            for path in left.clone() {
                match refusal(&cloud, &path) {
                    None => left.retain(|other| *other != path),
                    Some(why) => {
                        let user = why.rsplit("'projects/").next().and_then(|rest| rest.strip_suffix('\'')).unwrap();
                        assert!(why.contains(&format!("resource 'projects/{path}' is already being used by")), "{why}");
                        assert!(left.contains(&user.to_owned()), "{why}: but that is gone already");
                    }
                }
            }
            assert!(left.len() < before, "none of {left:?} can be deleted");
        }
        let world = cloud.control.read();
        assert!(world.objects.is_empty() && world.seats.is_empty() && world.connections.is_empty());
    }
}

/// Deletes; why not, if not. Some refusals are the call's, others its operation's.
fn refusal(cloud: &Cloud, path: &str) -> Option<String> {
    let (_, body) = cloud.call(Method::DELETE, path, Value::Null);
    cloud.finish();
    let error = &body["error"]["errors"][0];
    let message = error["message"].as_str()?.to_owned();
    let known = ["resourceInUseByAnotherResource", "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE"];
    assert!(known.iter().any(|reason| error["reason"] == *reason || error["code"] == *reason), "{path}: {body}");
    Some(message)
}

#[test]
fn of_two_clients_that_change_what_both_have_read_the_second_hears_412() {
    let cloud = Cloud::new();
    cloud.producer(json!({}));
    let p = format!("producer-1/regions/{R}");
    for (path, first, second) in [
        (format!("{p}/backendServices/back"), json!({"description": "a"}), json!({"description": "b"})),
        (format!("{p}/urlMaps/map"), json!({"description": "a"}), json!({"description": "b"})),
        (
            format!("{p}/subnetworks/plain"),
            json!({"privateIpGoogleAccess": true}),
            json!({"logConfig": {"enable": true}}),
        ),
        (format!("{p}/serviceAttachments/att"), json!({"description": "a"}), json!({"description": "b"})),
    ] {
        let read = cloud.get(&path)["fingerprint"].clone();
        let with = |mut body: Value| {
            body["fingerprint"] = read.clone();
            body
        };
        assert_eq!(cloud.done(Method::PATCH, &path, with(first)).get("error"), None, "{path}");
        let (status, reason, _) = cloud.refused(Method::PATCH, &path, with(second.clone()));
        assert_eq!((status, reason.as_str()), (412, "conditionNotMet"), "{path}");
        let mut again = second;
        again["fingerprint"] = cloud.get(&path)["fingerprint"].clone();
        assert_eq!(cloud.done(Method::PATCH, &path, again).get("error"), None, "{path}");
    }
}
