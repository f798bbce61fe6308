//! Networks, subnets, addresses and firewall rules.

use http::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

const NETWORKS: &str = "producer-1/global/networks";

fn subnets() -> String {
    format!("producer-1/regions/{R}/subnetworks")
}

#[test]
fn an_auto_mode_network_brings_its_subnets_and_takes_them_along() {
    let cloud = Cloud::new();
    let network = cloud.make(NETWORKS, json!({"name": "auto", "autoCreateSubnetworks": true}));
    assert_eq!(network["subnetworks"].as_array().unwrap().len(), model::project::REGIONS.len());
    let subnet = cloud.get(&format!("{}/auto", subnets()));
    assert_eq!((&subnet["ipCidrRange"], &subnet["gatewayAddress"]), (&json!("10.146.0.0/20"), &json!("10.146.0.1")));
    let inside = json!({"name": "s", "network": "global/networks/auto", "ipCidrRange": "10.200.0.0/24"});
    let (status, _, why) = cloud.refused(Method::POST, &subnets(), inside);
    assert_eq!(status, 400);
    assert!(why.contains("conflicts with reserved IP range '10.128.0.0/9'"), "{why}");
    cloud.delete("producer-1/global/networks/auto");
    assert!(cloud.control.read().objects.is_empty());
}

#[test]
fn a_network_in_use_is_found_out_by_its_operation() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.0.0/24", "PRIVATE");
    let (status, operation) = cloud.call(Method::DELETE, "producer-1/global/networks/n", Value::Null);
    assert_eq!(status, 200);
    assert_eq!((&operation["status"], &operation["httpErrorStatusCode"]), (&json!("DONE"), &json!(400)));
    assert_eq!(operation["httpErrorMessage"], "BAD REQUEST");
    let used = format!(
        "The network resource 'projects/producer-1/global/networks/n' is already being used by \
         'projects/producer-1/regions/{R}/subnetworks/s'"
    );
    assert_eq!(operation["error"]["errors"], json!([{"code": "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "message": used}]));
    cloud.get("producer-1/global/networks/n");
}

#[test]
fn a_network_is_refused_for_what_it_cannot_be() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "taken");
    for (body, status, reason, message) in [
        (json!({"name": "n"}), 400, "invalid", "Legacy networks are no longer supported"),
        (json!({"autoCreateSubnetworks": false}), 400, "required", "Required field 'resource.name' not specified"),
        (
            json!({"name": "Bad_Name", "autoCreateSubnetworks": false}),
            400,
            "invalid",
            "Invalid value for field 'resource.name': 'Bad_Name'. Must be a match of regex \
             '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'",
        ),
        (
            json!({"name": "n", "autoCreateSubnetworks": false, "mtu": 9000}),
            400,
            "invalid",
            "Invalid value for field 'resource.mtu': '9000'. Must be between 1300 and 8896.",
        ),
        (
            json!({"name": "taken", "autoCreateSubnetworks": false}),
            409,
            "alreadyExists",
            "The resource 'projects/producer-1/global/networks/taken' already exists",
        ),
        (json!({"name": "n", "autoCreateSubnetworks": false, "nonsense": 1}), 400, "invalid", "nonsense"),
    ] {
        let (got_status, got_reason, got_message) = cloud.refused(Method::POST, NETWORKS, body.clone());
        assert_eq!((got_status, got_reason.as_str()), (status, reason), "{body}: {got_message}");
        assert!(got_message.contains(message), "{body}: {got_message}");
    }
}

#[test]
fn a_network_keeps_what_it_was_given_and_lets_its_mtu_be_changed() {
    let cloud = Cloud::new();
    let body = json!({"name": "n", "autoCreateSubnetworks": false, "routingConfig": {"routingMode": "GLOBAL"}});
    let network = cloud.make(NETWORKS, body);
    assert_eq!(network["routingConfig"], json!({"routingMode": "GLOBAL", "bgpBestPathSelectionMode": "LEGACY"}));
    let operation = cloud.done(Method::PATCH, "producer-1/global/networks/n", json!({"mtu": 1500}));
    assert_eq!(operation["operationType"], "compute.networks.patch");
    assert_eq!(cloud.get("producer-1/global/networks/n")["mtu"], 1500);
    let (status, _, why) =
        cloud.refused(Method::PATCH, "producer-1/global/networks/n", json!({"autoCreateSubnetworks": true}));
    assert_eq!((status, why.ends_with("Field is immutable.")), (400, true));
}

#[test]
fn a_subnet_is_shown_as_the_real_cloud_shows_it() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    let shown_subnet = cloud.subnet("producer-1", "n", "s", "10.0.1.0/24", "PRIVATE");
    let mut rest = shown_subnet.clone();
    for field in ["id", "creationTimestamp", "fingerprint"] {
        assert!(rest.as_object_mut().unwrap().remove(field).unwrap().is_string(), "{field}");
    }
    assert_eq!(
        rest,
        json!({
            "kind": "compute#subnetwork",
            "name": "s",
            "network": shown("producer-1/global/networks/n"),
            "ipCidrRange": "10.0.1.0/24",
            "gatewayAddress": "10.0.1.1",
            "privateIpGoogleAccess": false,
            "privateIpv6GoogleAccess": "DISABLE_GOOGLE_ACCESS",
            "purpose": "PRIVATE",
            "stackType": "IPV4_ONLY",
            "state": "READY",
            "region": shown(&format!("producer-1/regions/{R}")),
            "selfLink": shown(&format!("producer-1/regions/{R}/subnetworks/s")),
        })
    );
    assert!(shown_subnet["creationTimestamp"].as_str().unwrap().ends_with("-07:00"));
}

#[test]
fn a_subnet_is_refused_for_what_it_cannot_be() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.1.0/24", "PRIVATE");
    cloud.subnet("producer-1", "n", "p", "10.0.2.0/24", "REGIONAL_MANAGED_PROXY");
    let body = |range: &str, extra: Value| {
        let mut body = json!({"name": "t", "network": "global/networks/n", "ipCidrRange": range});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let field =
        |field: &str, value: &str, why: &str| format!("Invalid value for field 'resource.{field}': '{value}'. {why}");
    let proxy = |role: &str| json!({"purpose": "REGIONAL_MANAGED_PROXY", "role": role});
    for (body, why) in [
        (body("10.0.0.1/24", json!({})), field("ipCidrRange", "10.0.0.1/24", "Must be a CIDR address range.")),
        (
            body("10.0.9.0/30", json!({})),
            field("ipCidrRange", "10.0.9.0/30", "The prefix length must be between /4 and /29."),
        ),
        (
            body("10.0.9.0/27", proxy("BACKUP")),
            field("ipCidrRange", "10.0.9.0/27", "The prefix length must be between /4 and /26."),
        ),
        (
            body("127.1.0.0/24", json!({})),
            "Invalid IPCidrRange: 127.1.0.0/24 conflicts with reserved IP range '127.0.0.0/8'.".into(),
        ),
        (body("224.0.0.0/24", json!({})), "conflicts with reserved IP range '224.0.0.0/4'.".into()),
        (
            body("10.0.1.128/25", json!({})),
            format!("Invalid IPCidrRange: 10.0.1.128/25 conflicts with existing subnetwork 's' in region '{R}'."),
        ),
        (body("10.0.9.0/24", json!({"purpose": "REGIONAL_MANAGED_PROXY"})), field("role", "", "Role must be set")),
        (body("10.0.9.0/24", json!({"role": "ACTIVE"})), field("role", "ACTIVE", "Role can only be set")),
        (body("10.0.9.0/24", proxy("ACTIVE")), "ACTIVE proxy-only subnetwork p already exists in network n".into()),
        (
            body("10.0.9.0/24", json!({"network": "global/networks/none"})),
            field(
                "network",
                &shown("producer-1/global/networks/none"),
                "The referenced network resource cannot be found.",
            ),
        ),
        (
            body("10.0.9.0/24", json!({"network": "http://x/y"})),
            field("network", "http://x/y", "The URL is malformed."),
        ),
        (
            body("10.0.9.0/24", json!({"purpose": "PRIVATE_SERVICE_CONNECT", "privateIpGoogleAccess": true})),
            field("privateIpGoogleAccess", "true", "Private Google Access is only supported"),
        ),
    ] {
        let (status, _, message) = cloud.refused(Method::POST, &subnets(), body.clone());
        assert_eq!(status, 400, "{body}: {message}");
        assert!(message.contains(&why), "{body}: {message}");
    }
    let (status, _, why) =
        cloud.refused(Method::POST, "producer-1/regions/mars/subnetworks", body("10.0.9.0/24", json!({})));
    assert_eq!((status, why.as_str()), (400, "Invalid value for field 'region': 'mars'. Unknown region."));
}

#[test]
fn a_subnet_changes_only_under_its_fingerprint() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    let subnet = cloud.subnet("producer-1", "n", "s", "10.0.1.0/24", "PRIVATE");
    let path = format!("{}/s", subnets());
    let first = subnet["fingerprint"].as_str().unwrap().to_owned();
    // gcloud sends fingerprints back in the URL-safe alphabet.
    let url_safe = first.replace('+', "-").replace('/', "_");
    let patch = |fingerprint: &str| json!({"fingerprint": fingerprint, "enableFlowLogs": true});
    cloud.done(Method::PATCH, &path, patch(&url_safe));
    let after = cloud.get(&path);
    assert_ne!(after["fingerprint"], first.as_str());
    assert_eq!((&after["enableFlowLogs"], &after["logConfig"]["enable"]), (&json!(true), &json!(true)));
    assert_eq!(
        cloud.refused(Method::PATCH, &path, patch(&first)),
        (412, "conditionNotMet".into(), "Invalid fingerprint.".into())
    );
    assert_eq!(cloud.refused(Method::PATCH, &path, json!({"enableFlowLogs": false})).0, 400);
    let off = json!({"fingerprint": after["fingerprint"], "logConfig": {"enable": false}});
    cloud.done(Method::PATCH, &path, off);
    assert_eq!(cloud.get(&path)["logConfig"], json!({"enable": false}));
}

#[test]
fn a_range_only_grows_and_only_by_its_own_verb() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.1.0/24", "PRIVATE");
    cloud.subnet("producer-1", "n", "t", "10.0.2.0/24", "PRIVATE");
    let path = format!("{}/s", subnets());
    let expand = format!("{path}/expandIpCidrRange");
    for (range, why) in [
        ("10.0.1.0/25", "New IP range must be a superset"),
        ("10.9.0.0/16", "New IP range must be a superset"),
        ("10.0.0.0/22", "conflicts with existing subnetwork 't'"),
        ("10.0.1.0/24", "must be larger"),
    ] {
        let (status, _, message) = cloud.refused(Method::POST, &expand, json!({"ipCidrRange": range}));
        assert!(status == 400 && message.contains(why), "{range}: {message}");
    }
    let operation = cloud.done(Method::POST, &expand, json!({"ipCidrRange": "10.0.0.0/23"}));
    assert_eq!(operation["operationType"], "expandIpCidrRange");
    let subnet = cloud.get(&path);
    assert_eq!(subnet["ipCidrRange"], "10.0.0.0/23");
    let patch = json!({"fingerprint": subnet["fingerprint"], "ipCidrRange": "10.0.0.0/24"});
    assert!(cloud.refused(Method::PATCH, &path, patch).2.contains("expandIpCidrRange"));
}

#[test]
fn the_backup_proxy_subnet_takes_over_and_the_active_one_stays_while_it_is_needed() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    cloud.front("front");
    let path = |name: &str| format!("{}/{name}", subnets());
    let (status, reason, _) = cloud.refused(Method::DELETE, &path("proxies"), Value::Null);
    assert_eq!((status, reason.as_str()), (400, "resourceInUseByAnotherResource"));
    let spare = json!({"name": "spare", "network": "global/networks/pv", "ipCidrRange": "10.0.4.0/24",
                       "purpose": "REGIONAL_MANAGED_PROXY", "role": "BACKUP"});
    let spare = cloud.make(&subnets(), spare);
    assert_eq!(
        cloud.refused(Method::DELETE, &path("proxies"), Value::Null).2,
        "Invalid resource usage: Cannot delete ACTIVE subnetwork because a BACKUP subnetwork exists."
    );
    cloud.done(Method::PATCH, &path("spare"), json!({"role": "ACTIVE", "fingerprint": spare["fingerprint"]}));
    assert_eq!(cloud.get(&path("spare"))["role"], "ACTIVE");
    assert_eq!(cloud.get(&path("proxies"))["role"], "BACKUP");
    cloud.delete(&path("proxies"));
}

#[test]
fn private_google_access_has_a_verb_of_its_own() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.1.0/24", "PRIVATE");
    let path = format!("{}/s", subnets());
    let verb = format!("{path}/setPrivateIpGoogleAccess");
    let operation = cloud.done(Method::POST, &verb, json!({"privateIpGoogleAccess": true}));
    assert_eq!(operation["operationType"], "setPrivateIpGoogleAccess");
    assert_eq!(cloud.get(&path)["privateIpGoogleAccess"], true);
}

#[test]
fn an_address_is_the_one_asked_for_or_the_lowest_free_one() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.1.0/29", "PRIVATE");
    cloud.subnet("producer-1", "n", "p", "10.0.2.0/24", "REGIONAL_MANAGED_PROXY");
    let addresses = format!("producer-1/regions/{R}/addresses");
    let body = |name: &str, extra: Value| {
        let mut body =
            json!({"name": name, "addressType": "INTERNAL", "subnetwork": format!("regions/{R}/subnetworks/s")});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let outside = "Requested internal IP address is outside the network/subnetwork range.";
    for (extra, status, why) in [
        (json!({"address": "10.0.9.9"}), 400, outside),
        (json!({"address": "10.0.1.1"}), 400, "reserved in the subnetwork range"),
        (json!({"address": "ten"}), 400, "Must be a valid IP address."),
        (json!({"subnetwork": format!("regions/{R}/subnetworks/p")}), 400, "Subnetwork must have purpose=PRIVATE."),
        (json!({"subnetwork": "regions/us-central1/subnetworks/none"}), 400, "cannot be found"),
        (json!({"addressType": "EXTERNAL"}), 501, "addressType"),
    ] {
        let (got, _, message) = cloud.refused(Method::POST, &addresses, body("a", extra.clone()));
        assert!(got == status && message.contains(why), "{extra}: {got} {message}");
    }
    assert_eq!(cloud.make(&addresses, body("a", json!({"address": "10.0.1.3"})))["address"], "10.0.1.3");
    assert_eq!(
        cloud.refused(Method::POST, &addresses, body("b", json!({"address": "10.0.1.3"}))),
        (409, "ipInUseByAnotherResource".into(), "IP '10.0.1.3' is already being used by another resource.".into())
    );
    for (name, got) in [("b", "10.0.1.2"), ("c", "10.0.1.4"), ("d", "10.0.1.5")] {
        assert_eq!(cloud.make(&addresses, body(name, json!({})))["address"], got);
    }
    assert!(cloud.refused(Method::POST, &addresses, body("e", json!({}))).2.contains("is exhausted"));
}

#[test]
fn labels_change_under_their_own_fingerprint() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    cloud.subnet("producer-1", "n", "s", "10.0.1.0/24", "PRIVATE");
    let path = format!("producer-1/regions/{R}/addresses/a");
    let address = cloud.make(
        &format!("producer-1/regions/{R}/addresses"),
        json!({"name": "a", "addressType": "INTERNAL", "subnetwork": format!("regions/{R}/subnetworks/s"), "labels": {"k": "v"}}),
    );
    assert_eq!(address["labels"], json!({"k": "v"}));
    let set = |fingerprint: &Value| json!({"labels": {"k": "w"}, "labelFingerprint": fingerprint});
    let verb = format!("{path}/setLabels");
    assert_eq!(cloud.done(Method::POST, &verb, set(&address["labelFingerprint"]))["operationType"], "setLabels");
    assert_eq!(cloud.get(&path)["labels"], json!({"k": "w"}));
    assert_eq!(
        cloud.refused(Method::POST, &verb, set(&address["labelFingerprint"])),
        (412, "conditionNotMet".into(), "Labels fingerprint either invalid or resource labels have changed".into())
    );
    let bad = json!({"labels": {"Upper": "v"}, "labelFingerprint": cloud.get(&path)["labelFingerprint"]});
    assert_eq!(cloud.refused(Method::POST, &verb, bad).0, 400);
}

#[test]
fn a_firewall_rule_says_who_may_come_and_is_refused_when_it_contradicts_itself() {
    let cloud = Cloud::new();
    cloud.network("producer-1", "n");
    let rules = "producer-1/global/firewalls";
    let rule = cloud.make(
        rules,
        json!({"name": "r", "network": "global/networks/n", "allowed": [{"IPProtocol": "tcp", "ports": ["80", "1000-2000"]}, {"IPProtocol": "icmp"}],
               "targetTags": ["web"]}),
    );
    assert_eq!(rule["allowed"], json!([{"IPProtocol": "tcp", "ports": ["80", "1000-2000"]}, {"IPProtocol": "icmp"}]));
    assert_eq!((&rule["direction"], &rule["sourceRanges"]), (&json!("INGRESS"), &json!(["0.0.0.0/0"])));
    let allowed = json!([{"IPProtocol": "tcp"}]);
    for (extra, why) in [
        (json!({}), "Exactly one of allowed and denied must be specified."),
        (json!({"allowed": allowed, "denied": allowed}), "Exactly one of allowed and denied must be specified."),
        (json!({"allowed": [{"IPProtocol": "icmp", "ports": ["1"]}]}), "Ports can only be specified"),
        (json!({"allowed": [{"IPProtocol": "tcp", "ports": ["9-1"]}]}), "The first port of a range"),
        (json!({"allowed": [{"IPProtocol": "tcp", "ports": ["x"]}]}), "Must be a port or a range of ports"),
        (json!({"allowed": [{"IPProtocol": "quic"}]}), "Must be a protocol name"),
        (json!({"allowed": allowed, "direction": "EGRESS", "sourceRanges": ["10.0.0.0/8"]}), "EGRESS rule"),
        (json!({"allowed": allowed, "priority": 70000}), "priority"),
        (json!({"allowed": allowed, "sourceRanges": ["10.0.0.1/8"]}), "Must be a CIDR address range."),
        (json!({"allowed": allowed, "targetTags": ["No"]}), "Must be a match of regex"),
    ] {
        let mut body = json!({"name": "x", "network": "global/networks/n"});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let (status, _, message) = cloud.refused(Method::POST, rules, body);
        assert!(status == 400 && message.contains(why), "{extra}: {message}");
    }
    let path = format!("{rules}/r");
    let operation =
        cloud.done(Method::PATCH, &path, json!({"name": "r", "allowed": [{"IPProtocol": "tcp"}], "disabled": true}));
    assert_eq!(operation["operationType"], "compute.firewalls.patch");
    let after = cloud.get(&path);
    assert_eq!((&after["allowed"], &after["disabled"]), (&json!([{"IPProtocol": "tcp"}]), &json!(true)));
    assert_eq!(after["targetTags"], json!(["web"]));
    assert!(cloud.refused(Method::PATCH, &path, json!({"direction": "EGRESS"})).2.contains("direction"));
    let put = json!({"name": "r", "network": "global/networks/n", "denied": [{"IPProtocol": "all"}], "priority": 5});
    cloud.done(Method::PUT, &path, put);
    let after = cloud.get(&path);
    assert_eq!(
        (&after["denied"], after.get("allowed"), after.get("targetTags")),
        (&json!([{"IPProtocol": "all"}]), None, None)
    );
}
