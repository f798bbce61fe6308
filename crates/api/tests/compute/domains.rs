//! Domains of service attachments, and what an endpoint registers.

use control::plan;
use http::Method;
use model::id::NetworkId;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R};

const ATTACHMENTS: &str = "producer-1/regions/asia-northeast1/serviceAttachments";

fn rules(project: &str) -> String {
    format!("{project}/regions/{R}/forwardingRules")
}

/// An endpoint of an attachment, with more fields.
fn endpoint(cloud: &Cloud, name: &str, attachment: &str, more: &Value) -> Value {
    let mut body = json!({
        "name": name, "network": cloud.url("consumer-1/global/networks/cv"),
        "subnetwork": cloud.url(&format!("consumer-1/regions/{R}/subnetworks/cs")),
        "target": cloud.url(&format!("{ATTACHMENTS}/{attachment}")),
    });
    for (field, value) in more.as_object().unwrap() {
        body[field] = value.clone();
    }
    body
}

/// A producer with the domain `p.example.com.`, and a consumer that has the API of Cloud DNS.
fn scene() -> Cloud {
    let cloud = Cloud::new();
    cloud.producer(json!({"connectionPreference": "ACCEPT_AUTOMATIC", "domainNames": ["p.example.com."]}));
    cloud.consumer("consumer-1");
    cloud.enable("consumer-1", "dns.googleapis.com");
    cloud
}

/// Names with their addresses, and zones with none, as the consumer's network sees them.
fn names(cloud: &Cloud) -> Vec<String> {
    let network = cloud.get("consumer-1/global/networks/cv");
    let id = NetworkId(network["id"].as_str().unwrap().parse().unwrap());
    let world = cloud.control.read();
    let network = world.by_id::<model::vpc::Network>(id.0).unwrap();
    let planned = plan::named(&world, network).filter_map(|named| plan::names(&world, id, &named));
    let shown = planned.flat_map(|n| match n.names.is_empty() {
        true => n.zone.into_iter().collect(),
        false => n.names.iter().map(|name| format!("{name} {}", n.addresses[0])).collect::<Vec<_>>(),
    });
    shown.collect()
}

#[test]
fn an_endpoint_is_called_by_its_name_below_the_domain_until_it_goes() {
    let cloud = scene();
    let shown = cloud.make(&rules("consumer-1"), endpoint(&cloud, "e", "att", &json!({"IPAddress": "10.1.0.5"})));
    assert_eq!(shown["serviceDirectoryRegistrations"], json!([{"namespace": "goog-psc-default"}]));
    assert_eq!(shown.get("noAutomateDnsZone"), None);
    assert_eq!(names(&cloud), ["p.example.com", "e.p.example.com 10.1.0.5"]);
    let silent = json!({"noAutomateDnsZone": true, "serviceDirectoryRegistrations": [{"namespace": "mine"}]});
    let shown = cloud.make(&rules("consumer-1"), endpoint(&cloud, "silent", "att", &silent));
    assert_eq!(
        (&shown["noAutomateDnsZone"], &shown["serviceDirectoryRegistrations"][0]["namespace"]),
        (&json!(true), &json!("mine"))
    );
    assert_eq!(names(&cloud).len(), 2, "one that wants no zone has no name");
    cloud.edit(&format!("{}/silent", rules("consumer-1")), json!({"description": "changed as a whole"}));
    cloud.delete(&format!("{}/e", rules("consumer-1")));
    assert_eq!(names(&cloud), ["p.example.com"], "the zone stays");
    cloud.make(&rules("consumer-1"), endpoint(&cloud, "again", "att", &json!({"IPAddress": "10.1.0.9"})));
    assert_eq!(names(&cloud), ["p.example.com", "again.p.example.com 10.1.0.9"]);
}

#[test]
fn a_zone_that_is_in_the_way_costs_the_name_and_not_the_endpoint() {
    let cloud = scene();
    cloud.make(&rules("consumer-1"), endpoint(&cloud, "e", "att", &json!({"IPAddress": "10.1.0.5"})));
    let mine = json!({"serviceDirectoryRegistrations": [{"namespace": "mine"}]});
    cloud.make(&rules("consumer-1"), endpoint(&cloud, "same-domain", "att", &mine));
    assert_eq!(names(&cloud).len(), 2, "the network has a zone of this domain, of another namespace");
    cloud.subnet("producer-1", "pv", "nat-more", "10.0.4.0/24", "PRIVATE_SERVICE_CONNECT");
    let nat = cloud.url(&format!("producer-1/regions/{R}/subnetworks/nat-more"));
    let other = json!({
        "connectionPreference": "ACCEPT_AUTOMATIC", "domainNames": ["q.example.com."], "natSubnets": [nat],
    });
    cloud.attachment("other", other);
    let there = json!({"IPAddress": "10.1.0.7"});
    cloud.make(&rules("consumer-1"), endpoint(&cloud, "same-namespace", "other", &there));
    let names = names(&cloud);
    assert!(
        names.contains(&"same-namespace.p.example.com 10.1.0.7".to_owned()),
        "a zone shows its namespace: {names:?}"
    );
    assert!(!names.iter().any(|name| name.contains("q.example.com")), "{names:?}");
}

#[test]
fn without_the_dns_api_there_is_no_zone_and_the_endpoint_is_made() {
    let cloud = Cloud::new();
    cloud.producer(json!({"domainNames": ["p.example.com."]}));
    cloud.consumer("consumer-1");
    cloud.make(&rules("consumer-1"), endpoint(&cloud, "e", "att", &json!({})));
    assert!(names(&cloud).is_empty());
}

#[test]
fn a_domain_is_its_first_publishers_and_never_the_clouds() {
    let cloud = scene();
    let publish = |domain: Value| {
        let mut body = cloud.get(&format!("{ATTACHMENTS}/att"));
        body["name"] = "more".into();
        body["natSubnets"] = json!([cloud.url(&format!("producer-1/regions/{R}/subnetworks/nat-more"))]);
        body["domainNames"] = domain;
        (Method::POST, ATTACHMENTS, body)
    };
    cloud.subnet("producer-1", "pv", "nat-more", "10.0.4.0/24", "PRIVATE_SERVICE_CONNECT");
    let refused = |domain: Value| {
        let (method, path, body) = publish(domain);
        cloud.refused(method, path, body)
    };
    for (domain, why) in [
        ("p.googleapis.com.", "Please verify ownership of the PTR domain. It belongs to the cloud itself."),
        ("c.producer-1.internal.", "Please verify ownership of the PTR domain. It belongs to the cloud itself."),
        ("p.example.com", "Must be a fully qualified domain name that ends with a dot."),
        ("com.", "Must be below a top-level domain."),
    ] {
        let text = format!("Invalid value for field 'resource.domainNames': '{domain}'. {why}");
        assert_eq!(refused(json!([domain])), (400, "invalid".to_owned(), text));
    }
    assert_eq!(refused(json!(["a.example.com.", "b.example.com."])).0, 400);
    let (method, path, body) = publish(json!(["x.p.example.com."]));
    cloud.done(method, path, body);

    let change = |changes: Value| {
        let mut whole = cloud.get(&format!("{ATTACHMENTS}/att"));
        whole["domainNames"] = changes;
        cloud.refused(Method::PATCH, &format!("{ATTACHMENTS}/att"), whole).2
    };
    for changed in [json!(["other.example.com."]), json!([])] {
        assert!(change(changed).contains("Field is immutable."));
    }
    cloud.edit(&format!("{ATTACHMENTS}/att"), json!({"description": "changed as a whole"}));
}

#[test]
fn nobody_else_publishes_at_above_or_below_a_domain_that_is_taken() {
    let cloud = scene();
    cloud.up_to_proxy("consumer-2");
    let r = format!("consumer-2/regions/{R}");
    cloud.make(&format!("{r}/forwardingRules"), cloud.front_body_in("consumer-2", "front"));
    let publish = |domain: &str| {
        let body = json!({
            "name": "att", "connectionPreference": "ACCEPT_MANUAL", "domainNames": [domain],
            "targetService": cloud.url(&format!("{r}/forwardingRules/front")),
            "natSubnets": [cloud.url(&format!("{r}/subnetworks/nat"))],
        });
        cloud.call(Method::POST, &format!("{r}/serviceAttachments"), body)
    };
    for taken in ["p.example.com.", "x.p.example.com.", "example.com."] {
        let (status, answer) = publish(taken);
        let said = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{taken}: {answer}");
        assert!(said.contains("Another project publishes services at, above or below it."), "{said}");
    }
    cloud.delete(&format!("{ATTACHMENTS}/att"));
    assert_eq!(publish("x.p.example.com.").0, 200, "a claim ends with its last publisher");
}
