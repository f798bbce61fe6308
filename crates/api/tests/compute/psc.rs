//! Private Service Connect through the API: every row of the table of connection states, and what is refused.

use std::time::Duration;

use control::{ops::Txn, world::World};
use http::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

const ATTACHMENT: &str = "producer-1/regions/asia-northeast1/serviceAttachments/att";

fn accept(project: &str, limit: u32) -> Value {
    json!([{"projectIdOrNum": project, "connectionLimit": limit}])
}

/// The status of an endpoint, which both sides must see alike.
fn status(cloud: &Cloud, project: &str, name: &str) -> String {
    let endpoint = cloud.get(&format!("{project}/regions/{R}/forwardingRules/{name}"));
    let status = endpoint["pscConnectionStatus"].as_str().unwrap().to_owned();
    let (found, attachment) = cloud.call(Method::GET, ATTACHMENT, Value::Null);
    if found == 200 && status != "CLOSED" {
        let connected = attachment["connectedEndpoints"].as_array().unwrap();
        let mine = connected.iter().find(|c| c["endpoint"] == endpoint["selfLink"]).unwrap();
        assert_eq!((&mine["status"], &mine["pscConnectionId"]), (&json!(status), &endpoint["pscConnectionId"]));
    }
    status
}

fn nat(cloud: &Cloud, name: &str) -> Option<String> {
    nats(cloud, name).into_iter().next()
}

fn nats(cloud: &Cloud, name: &str) -> Vec<String> {
    let attachment = cloud.get(&format!("{ATTACHMENT}?showNatIps=true"));
    let connected = attachment["connectedEndpoints"].as_array().unwrap().clone();
    let mine = connected.into_iter().find(|c| c["endpoint"].as_str().unwrap().ends_with(&format!("/{name}"))).unwrap();
    let all = mine["natIps"].as_array().into_iter().flatten();
    all.map(|address| address.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_new_endpoint_gets_the_state_that_the_lists_say() {
    let automatic = "ACCEPT_AUTOMATIC";
    for (what, attachment, want) in [
        ("automatic", json!({"connectionPreference": automatic}), "ACCEPTED"),
        (
            "automatic, rejected",
            json!({"connectionPreference": automatic, "consumerRejectLists": ["consumer-1"]}),
            "REJECTED",
        ),
        ("manual, accepted", json!({"consumerAcceptLists": accept("consumer-1", 10)}), "ACCEPTED"),
        ("manual, on no list", json!({"consumerAcceptLists": accept("consumer-2", 10)}), "PENDING"),
        (
            "on both lists",
            json!({"consumerAcceptLists": accept("consumer-1", 10), "consumerRejectLists": ["consumer-1"]}),
            "REJECTED",
        ),
        (
            "by network",
            json!({"consumerAcceptLists": [{"networkUrl": shown("consumer-1/global/networks/cv"), "connectionLimit": 1}]}),
            "ACCEPTED",
        ),
    ] {
        let cloud = Cloud::new();
        cloud.producer(attachment);
        cloud.consumer("consumer-1");
        cloud.endpoint("consumer-1", "e");
        assert_eq!(status(&cloud, "consumer-1", "e"), want, "{what}");
    }
}

#[test]
fn a_change_of_the_lists_moves_exactly_the_connections_it_reaches() {
    let none = json!([]);
    let on = accept("consumer-1", 10);
    let rejected = json!(["consumer-1"]);
    type Row<'a> = (&'a str, Value, bool, Value, &'a str);
    let rows: Vec<Row<'_>> = vec![
        ("accept entry added", json!({}), false, json!({"consumerAcceptLists": on}), "ACCEPTED"),
        (
            "accept entry removed",
            json!({"consumerAcceptLists": on}),
            false,
            json!({"consumerAcceptLists": none}),
            "ACCEPTED",
        ),
        (
            "accept entry removed",
            json!({"consumerAcceptLists": on}),
            true,
            json!({"consumerAcceptLists": none}),
            "PENDING",
        ),
        ("reject entry added, pending", json!({}), false, json!({"consumerRejectLists": rejected}), "REJECTED"),
        (
            "reject entry added",
            json!({"consumerAcceptLists": on}),
            false,
            json!({"consumerRejectLists": rejected}),
            "ACCEPTED",
        ),
        (
            "reject entry added",
            json!({"consumerAcceptLists": on}),
            true,
            json!({"consumerRejectLists": rejected}),
            "REJECTED",
        ),
        (
            "reject entry removed",
            json!({"consumerRejectLists": rejected}),
            false,
            json!({"consumerRejectLists": none}),
            "REJECTED",
        ),
        (
            "reject entry removed",
            json!({"consumerRejectLists": rejected}),
            true,
            json!({"consumerRejectLists": none}),
            "PENDING",
        ),
        (
            "rejected, then accepted",
            json!({"consumerRejectLists": rejected}),
            true,
            json!({"consumerRejectLists": none, "consumerAcceptLists": on}),
            "ACCEPTED",
        ),
        ("to automatic", json!({}), false, json!({"connectionPreference": "ACCEPT_AUTOMATIC"}), "ACCEPTED"),
        (
            "to manual",
            json!({"connectionPreference": "ACCEPT_AUTOMATIC"}),
            false,
            json!({"connectionPreference": "ACCEPT_MANUAL"}),
            "ACCEPTED",
        ),
        (
            "to manual",
            json!({"connectionPreference": "ACCEPT_AUTOMATIC"}),
            true,
            json!({"connectionPreference": "ACCEPT_MANUAL"}),
            "PENDING",
        ),
    ];
    for (what, before, reconcile, change, want) in rows {
        let cloud = Cloud::new();
        let mut before = before;
        before["reconcileConnections"] = reconcile.into();
        cloud.producer(before);
        cloud.consumer("consumer-1");
        cloud.endpoint("consumer-1", "e");
        cloud.edit(ATTACHMENT, change);
        assert_eq!(status(&cloud, "consumer-1", "e"), want, "{what}, reconcile {reconcile}");
        assert_eq!(nat(&cloud, "e").is_some(), want == "ACCEPTED", "{what}, reconcile {reconcile}: NAT address");
    }
}

#[test]
fn a_limit_holds_and_the_longest_waiting_takes_the_place_that_falls_free() {
    let cloud = Cloud::new();
    cloud.producer(json!({"consumerAcceptLists": accept("consumer-1", 1)}));
    cloud.consumer("consumer-1");
    for name in ["e1", "e2", "e3"] {
        cloud.endpoint("consumer-1", name);
    }
    let all = |cloud: &Cloud, names: &[&str]| -> Vec<String> {
        names.iter().map(|n| status(cloud, "consumer-1", n)).collect()
    };
    assert_eq!(all(&cloud, &["e1", "e2", "e3"]), ["ACCEPTED", "PENDING", "PENDING"]);
    let operation = cloud.done(Method::DELETE, &format!("consumer-1/regions/{R}/forwardingRules/e1"), Value::Null);
    assert_eq!(operation["operationType"], "deleteRegionPscForwardingRule");
    assert_eq!(all(&cloud, &["e2", "e3"]), ["ACCEPTED", "PENDING"]);
    cloud.edit(ATTACHMENT, json!({"consumerAcceptLists": accept("consumer-1", 2)}));
    assert_eq!(all(&cloud, &["e2", "e3"]), ["ACCEPTED", "ACCEPTED"]);
    cloud.edit(ATTACHMENT, json!({"consumerAcceptLists": accept("consumer-1", 1)}));
    assert_eq!(all(&cloud, &["e2", "e3"]), ["ACCEPTED", "ACCEPTED"]);
}

#[test]
fn a_project_by_number_is_the_project_and_is_shown_as_written() {
    let cloud = Cloud::new();
    let number = cloud.get("consumer-1")["id"].as_str().unwrap().to_owned();
    cloud.producer(json!({"consumerAcceptLists": accept(&number, 10)}));
    cloud.consumer("consumer-1");
    cloud.endpoint("consumer-1", "e");
    assert_eq!(status(&cloud, "consumer-1", "e"), "ACCEPTED");
    assert_eq!(cloud.get(ATTACHMENT)["consumerAcceptLists"][0]["projectIdOrNum"], number);
}

#[test]
fn nat_addresses_run_out_and_come_back_after_quarantine() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    cloud.front("front");
    cloud.subnet("producer-1", "pv", "small", "10.0.9.0/29", "PRIVATE_SERVICE_CONNECT");
    let small = shown(&format!("producer-1/regions/{R}/subnetworks/small"));
    cloud.attachment("att", json!({"connectionPreference": "ACCEPT_AUTOMATIC", "natSubnets": [small]}));
    cloud.consumer("consumer-1");
    for n in 1..=5 {
        cloud.endpoint("consumer-1", &format!("e{n}"));
    }
    for (n, address) in [(1, "10.0.9.2"), (2, "10.0.9.3"), (3, "10.0.9.4"), (4, "10.0.9.5")] {
        assert_eq!(nat(&cloud, &format!("e{n}")).unwrap(), address);
    }
    assert_eq!(status(&cloud, "consumer-1", "e5"), "NEEDS_ATTENTION");

    // The address of one that leaves rests for two minutes before the one that waits may have it.
    cloud.delete(&format!("consumer-1/regions/{R}/forwardingRules/e2"));
    assert_eq!(status(&cloud, "consumer-1", "e5"), "NEEDS_ATTENTION");
    let relieve = || {
        let relieve = |world: &World, txn: &mut Txn| {
            control::kinds::service_attachment::relieve(world, txn);
            Ok(())
        };
        cloud.control.commit(relieve).unwrap();
    };
    relieve();
    assert_eq!(status(&cloud, "consumer-1", "e5"), "NEEDS_ATTENTION");
    cloud.set_clock(Duration::from_secs(3_600));
    relieve();
    assert_eq!(status(&cloud, "consumer-1", "e5"), "NEEDS_ATTENTION", "whatever the machine's clock says");
    cloud.pass(Duration::from_secs(121));
    relieve();
    assert_eq!(
        (status(&cloud, "consumer-1", "e5").as_str(), nat(&cloud, "e5").as_deref()),
        ("ACCEPTED", Some("10.0.9.3"))
    );
    assert!(cloud.control.read().quarantine.is_empty());

    // Another subnet helps at once; one that is in use may not be taken away.
    cloud.endpoint("consumer-1", "e6");
    assert_eq!(status(&cloud, "consumer-1", "e6"), "NEEDS_ATTENTION");
    let nat_subnet = shown(&format!("producer-1/regions/{R}/subnetworks/nat"));
    cloud.edit(ATTACHMENT, json!({"natSubnets": [small, nat_subnet]}));
    assert_eq!(nat(&cloud, "e6").as_deref(), Some("10.0.3.2"));
    let mut whole = cloud.get(ATTACHMENT);
    whole["natSubnets"] = json!([nat_subnet]);
    let (code, reason, _) = cloud.refused(Method::PATCH, ATTACHMENT, whole);
    assert_eq!((code, reason.as_str()), (400, "resourceInUseByAnotherResource"));
}

#[test]
fn a_deleted_attachment_closes_its_connections_for_good() {
    let cloud = Cloud::new();
    cloud.producer(json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    cloud.consumer("consumer-1");
    let endpoint = cloud.endpoint("consumer-1", "e");
    cloud.delete(ATTACHMENT);
    assert_eq!(status(&cloud, "consumer-1", "e"), "CLOSED");
    cloud.attachment("att", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    assert_eq!(status(&cloud, "consumer-1", "e"), "CLOSED");
    assert_eq!(cloud.get(ATTACHMENT).get("connectedEndpoints"), None);
    // Its labels can still be changed, and it can be made anew.
    let path = format!("consumer-1/regions/{R}/forwardingRules/e");
    let labels = json!({"labels": {"a": "b"}, "labelFingerprint": endpoint["labelFingerprint"]});
    cloud.done(Method::POST, &format!("{path}/setLabels"), labels);
    cloud.delete(&path);
    cloud.endpoint("consumer-1", "e");
    assert_eq!(
        (status(&cloud, "consumer-1", "e").as_str(), nat(&cloud, "e").as_deref()),
        ("ACCEPTED", Some("10.0.3.3"))
    );
}

#[test]
fn an_attachment_is_refused_for_what_it_cannot_publish() {
    let cloud = Cloud::new();
    cloud.producer(json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    cloud.consumer("consumer-1");
    cloud.endpoint("consumer-1", "e");
    cloud.network("producer-1", "other");
    cloud.subnet("producer-1", "other", "far", "10.7.0.0/24", "PRIVATE_SERVICE_CONNECT");
    cloud.subnet("producer-1", "pv", "nat2", "10.0.8.0/24", "PRIVATE_SERVICE_CONNECT");
    let r = |path: &str| shown(&format!("producer-1/regions/{R}/{path}"));
    let twice = json!([accept("consumer-1", 1)[0], accept("consumer-1", 2)[0]]);
    let mixed = json!([accept("consumer-1", 1)[0], {"networkUrl": shown("consumer-1/global/networks/cv"), "connectionLimit": 1}]);
    for (extra, code, why) in [
        (json!({"natSubnets": []}), 400, "natSubnets".to_owned()),
        (json!({"natSubnets": [r("subnetworks/plain")]}), 400, "must have purpose=PRIVATE_SERVICE_CONNECT".into()),
        (json!({"natSubnets": [r("subnetworks/far")]}), 400, "same network as the target service".into()),
        (
            json!({"natSubnets": [r("subnetworks/nat")]}),
            400,
            format!(
                "The subnetwork resource 'projects/producer-1/regions/{R}/subnetworks/nat' is already being used by \
                 'projects/producer-1/regions/{R}/serviceAttachments/att'"
            ),
        ),
        (
            json!({"targetService": r("forwardingRules/none")}),
            400,
            "The referenced forwarding_rule resource cannot be found.".into(),
        ),
        (json!({"targetService": r("urlMaps/map")}), 400, "The URL is malformed.".into()),
        (json!({"targetService": null}), 400, "Required field 'resource.targetService' not specified".into()),
        (
            json!({"producerForwardingRule": r("forwardingRules/none")}),
            400,
            "must name the same forwarding rule".into(),
        ),
        (json!({"consumerAcceptLists": twice}), 400, "Duplicate consumer.".into()),
        (json!({"consumerAcceptLists": mixed}), 400, "either only projects or only networks".into()),
        (json!({"consumerAcceptLists": accept("consumer-1", 0)}), 400, "at least 1".into()),
        (
            json!({"consumerAcceptLists": accept("no-such-project", 1)}),
            404,
            "The resource 'projects/no-such-project' was not found".into(),
        ),
        (json!({"connectionPreference": null}), 400, "connectionPreference".into()),
        (json!({"enableProxyProtocol": true}), 501, "enableProxyProtocol".into()),
        (json!({"natIpsPerEndpoint": 3}), 400, "It must be 1 or 2.".into()),
    ] {
        let mut body = json!({
            "name": "x", "connectionPreference": "ACCEPT_MANUAL", "targetService": r("forwardingRules/front"),
            "natSubnets": [r("subnetworks/nat2")],
        });
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let path = format!("producer-1/regions/{R}/serviceAttachments");
        let (got, _, message) = cloud.refused(Method::POST, &path, body);
        assert!(got == code && message.contains(&why), "{extra}: {got} {message}");
    }
    for path in ["forwardingRules/front", "subnetworks/nat"] {
        let path = format!("producer-1/regions/{R}/{path}");
        assert_eq!(cloud.refused(Method::DELETE, &path, Value::Null).1, "resourceInUseByAnotherResource");
    }
    let stale = json!({"fingerprint": "AAAAAAAAAAA=", "description": "x"});
    assert_eq!(cloud.refused(Method::PATCH, ATTACHMENT, stale).0, 412);
    let absent = format!("producer-1/regions/{R}/serviceAttachments/none");
    assert_eq!(
        cloud.refused(Method::GET, &absent, Value::Null).2,
        format!("serviceAttachment \"projects/{absent}\" not found")
    );
}

#[test]
fn an_endpoint_is_refused_for_what_it_cannot_be() {
    let cloud = Cloud::new();
    cloud.producer(json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    cloud.consumer("consumer-1");
    let body = json!({
        "name": "e", "network": cloud.url("consumer-1/global/networks/cv"),
        "subnetwork": cloud.url(&format!("consumer-1/regions/{R}/subnetworks/cs")), "target": cloud.url(ATTACHMENT),
    });
    let none = format!("producer-1/regions/{R}/serviceAttachments/none");
    for (extra, code, why) in [
        (json!({"target": cloud.url(&none)}), 404, format!("The resource 'projects/{none}' was not found")),
        (json!({"loadBalancingScheme": "INTERNAL_MANAGED"}), 400, "must be empty".into()),
        (json!({"portRange": "80"}), 400, "Cannot be specified".into()),
        (json!({"IPAddress": "10.9.0.1"}), 400, "outside the network/subnetwork range".into()),
        (json!({"IPAddress": "no-such-address"}), 404, "was not found".into()),
        (
            json!({"allowPscGlobalAccess": true}),
            400,
            "its producer service does not support consumer global access".into(),
        ),
        (json!({"allowGlobalAccess": true}), 400, "'resource.allowGlobalAccess': 'true'".into()),
        (json!({"network": cloud.url("producer-1/global/networks/pv")}), 400, "Cross project".into()),
    ] {
        let mut body = body.clone();
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let path = format!("consumer-1/regions/{R}/forwardingRules");
        let (got, _, message) = cloud.refused(Method::POST, &path, body);
        assert!(got == code && message.contains(&why), "{extra}: {got} {message}");
    }
    let elsewhere = "consumer-1/regions/us-central1/forwardingRules";
    assert_eq!(cloud.refused(Method::POST, elsewhere, body).0, 400);
    assert!(cloud.control.read().connections.is_empty());
}

#[test]
fn global_access_of_an_endpoint_follows_its_flag_and_that_of_a_front_is_for_good() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    let fronts = format!("producer-1/regions/{R}/forwardingRules");
    let mut front = cloud.front_body("front");
    front["allowGlobalAccess"] = true.into();
    cloud.make(&fronts, front);
    assert_eq!(cloud.get(&format!("{fronts}/front"))["allowGlobalAccess"], true);
    cloud.attachment("att", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    cloud.consumer("consumer-1");
    let endpoint = cloud.endpoint("consumer-1", "e");
    assert_eq!(endpoint.get("allowPscGlobalAccess"), None);
    let path = format!("consumer-1/regions/{R}/forwardingRules/e");
    assert_eq!(cloud.edit(&path, json!({"allowPscGlobalAccess": true}))["allowPscGlobalAccess"], true);
    assert_eq!(cloud.edit(&path, json!({"allowPscGlobalAccess": false})).get("allowPscGlobalAccess"), None);
    let change = |path: &str, field: &str, to: Value| {
        let body = json!({"fingerprint": cloud.get(path)["fingerprint"], field: to});
        cloud.refused(Method::PATCH, path, body)
    };
    let fixed = change(&format!("{fronts}/front"), "allowGlobalAccess", false.into());
    assert!(fixed.0 == 400 && fixed.2.contains("allowGlobalAccess"), "{fixed:?}");
    cloud.make(&fronts, cloud.front_body("regional"));
    let moved = change(ATTACHMENT, "targetService", cloud.url(&format!("{fronts}/regional")).into());
    assert!(moved.0 == 400 && moved.2.contains("global access setting"), "{moved:?}");
}

#[test]
fn a_second_nat_address_for_each_endpoint_is_promised_only_where_there_is_one_and_never_taken_back() {
    let cloud = Cloud::new();
    let r = |path: &str| format!("producer-1/regions/{R}/{path}");
    cloud.producer(json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let attached =
        |subnets: &[&str]| -> Value { subnets.iter().map(|s| shown(&r(&format!("subnetworks/{s}")))).collect() };
    cloud.make(
        &r("subnetworks"),
        json!({
            "name": "nat-small", "ipCidrRange": "10.9.0.0/29", "purpose": "PRIVATE_SERVICE_CONNECT",
            "network": shown("producer-1/global/networks/pv"),
        }),
    );
    cloud.edit(ATTACHMENT, json!({"natSubnets": attached(&["nat-small"])}));
    cloud.consumer("consumer-1");
    for name in ["a", "b", "c"] {
        cloud.endpoint("consumer-1", name);
    }
    let raise = |to: u8| {
        let body = json!({"fingerprint": cloud.get(ATTACHMENT)["fingerprint"], "natIpsPerEndpoint": to});
        cloud.refused(Method::PATCH, ATTACHMENT, body).2
    };
    let full = "Insufficient IPv4 capacity on NAT subnetworks for the requested Service Attachment update";
    assert_eq!(raise(2), full, "four addresses for three endpoints");
    assert_eq!(cloud.get(ATTACHMENT).get("natIpsPerEndpoint"), None);

    cloud.edit(ATTACHMENT, json!({"natSubnets": attached(&["nat-small", "nat"]), "natIpsPerEndpoint": 2}));
    assert_eq!(cloud.get(ATTACHMENT)["natIpsPerEndpoint"], 2);
    let first = |n: u8| format!("10.9.0.{n}");
    assert_eq!(nats(&cloud, "a"), [first(2), first(5)]);
    for (name, keeps) in [("b", first(3)), ("c", first(4))] {
        let now = nats(&cloud, name);
        assert!(now.len() == 2 && now[0] == keeps && now[1].starts_with("10.0.3."), "{name}: {now:?}");
        assert_eq!(status(&cloud, "consumer-1", name), "ACCEPTED");
    }
    cloud.endpoint("consumer-1", "d");
    assert_eq!(nats(&cloud, "d").len(), 2, "a new one has two at once");
    assert!(raise(1).contains("can only be increased"), "{}", raise(1));
}

#[test]
fn who_is_let_in_by_the_change_that_promises_second_addresses_counts_too() {
    let cloud = Cloud::new();
    let r = |path: &str| format!("producer-1/regions/{R}/{path}");
    cloud.producer(json!({"consumerAcceptLists": accept("consumer-1", 2)}));
    cloud.make(
        &r("subnetworks"),
        json!({
            "name": "nat-small", "ipCidrRange": "10.9.0.0/29", "purpose": "PRIVATE_SERVICE_CONNECT",
            "network": shown("producer-1/global/networks/pv"),
        }),
    );
    cloud.edit(ATTACHMENT, json!({"natSubnets": [shown(&r("subnetworks/nat-small"))], "natIpsPerEndpoint": 1}));
    assert_eq!(cloud.get(ATTACHMENT)["natIpsPerEndpoint"], 1, "as it was written");
    cloud.consumer("consumer-1");
    let all = ["a", "b", "c", "d"];
    all.iter().for_each(|name| drop(cloud.endpoint("consumer-1", name)));
    let statuses = || all.map(|name| status(&cloud, "consumer-1", name));
    assert_eq!(statuses(), ["ACCEPTED", "ACCEPTED", "PENDING", "PENDING"]);
    let both = json!({
        "fingerprint": cloud.get(ATTACHMENT)["fingerprint"],
        "natIpsPerEndpoint": 2, "consumerAcceptLists": accept("consumer-1", 4),
    });
    let (code, _, why) = cloud.refused(Method::PATCH, ATTACHMENT, both);
    assert!(code == 400 && why.starts_with("Insufficient IPv4 capacity"), "{code} {why}");
    assert_eq!(statuses(), ["ACCEPTED", "ACCEPTED", "PENDING", "PENDING"], "nothing has changed");
    cloud.edit(ATTACHMENT, json!({"natIpsPerEndpoint": 2}));
    assert_eq!(["a", "b"].map(|name| nats(&cloud, name).len()), [2, 2]);
}

#[test]
fn endpoints_made_at_once_never_pass_a_limit_or_share_a_nat_address() {
    let cloud = std::sync::Arc::new(Cloud::new());
    cloud.producer(json!({"consumerAcceptLists": accept("consumer-1", 10)}));
    cloud.consumer("consumer-1");
    let threads: Vec<_> = (0..4)
        .map(|t| {
            let cloud = cloud.clone();
            std::thread::spawn(move || {
                for n in 0..4 {
                    cloud.endpoint("consumer-1", &format!("e-{t}-{n}"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let attachment = cloud.get(&format!("{ATTACHMENT}?showNatIps=true"));
    let connected = attachment["connectedEndpoints"].as_array().unwrap();
    let accepted: Vec<&Value> = connected.iter().filter(|c| c["status"] == "ACCEPTED").collect();
    let nats: std::collections::BTreeSet<&str> = accepted.iter().map(|c| c["natIps"][0].as_str().unwrap()).collect();
    assert_eq!((connected.len(), accepted.len(), nats.len()), (16, 10, 10));
}
