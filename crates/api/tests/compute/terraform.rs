//! What users of Terraform's `google_compute_service_attachment` have run into, as the calls that the provider makes:
//! a create, a PATCH of the changed fields with the fingerprint it had read, and a read whose difference to the
//! configuration is the next plan. Source: terraform-provider-google, the numbers with each test.

use http::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

const ATTACHMENT: &str = "producer-1/regions/asia-northeast1/serviceAttachments/att";

fn cloud(attachment: Value) -> Cloud {
    let cloud = Cloud::new();
    cloud.producer(attachment);
    cloud.consumer("consumer-1");
    cloud
}

/// An update in place, and what the provider reads after it.
fn apply(cloud: &Cloud, changed: &Value) -> Value {
    let mut body = changed.clone();
    body["fingerprint"] = cloud.get(ATTACHMENT)["fingerprint"].clone();
    let operation = cloud.done(Method::PATCH, ATTACHMENT, body);
    assert_eq!(operation.get("error"), None, "{operation}");
    let read = cloud.get(ATTACHMENT);
    for (field, wanted) in changed.as_object().unwrap() {
        assert_eq!(&read[field], wanted, "{field}: the next plan is empty");
    }
    read
}

fn status(cloud: &Cloud, endpoint: &str) -> Value {
    cloud.get(&format!("consumer-1/regions/{R}/forwardingRules/{endpoint}"))["pscConnectionStatus"].clone()
}

fn accept(project: &str, limit: u32) -> Value {
    json!([{"projectIdOrNum": project, "connectionLimit": limit}])
}

/// 17153. The provider sends the lists along, although only the preference changes.
#[test]
fn a_manual_attachment_becomes_automatic_in_place_with_its_lists_in_the_same_patch() {
    let cloud = cloud(json!({"consumerAcceptLists": accept("consumer-2", 4)}));
    cloud.endpoint("consumer-1", "e");
    assert_eq!(status(&cloud, "e"), "PENDING");
    let lists = json!({"consumerAcceptLists": accept("consumer-2", 4)});
    let mut change = lists.clone();
    change["connectionPreference"] = json!("ACCEPT_AUTOMATIC");
    apply(&cloud, &change);
    assert_eq!(status(&cloud, "e"), "ACCEPTED");
}

/// 27513.
#[test]
fn a_raised_limit_alone_is_a_change_that_lets_the_next_endpoint_in() {
    let cloud = cloud(json!({"consumerAcceptLists": accept("consumer-1", 1)}));
    cloud.endpoint("consumer-1", "first");
    cloud.endpoint("consumer-1", "second");
    assert_eq!((status(&cloud, "first"), status(&cloud, "second")), (json!("ACCEPTED"), json!("PENDING")));
    apply(&cloud, &json!({"consumerAcceptLists": accept("consumer-1", 2)}));
    assert_eq!(status(&cloud, "second"), "ACCEPTED");
}

/// 26612. Entries come back as they were written and in their order, whatever order a set had made of them.
#[test]
fn a_list_is_read_as_it_was_written_and_written_again_changes_nothing() {
    let cloud = cloud(json!({}));
    cloud.consumer("consumer-2");
    let entry = |project: &str| json!({"projectIdOrNum": project, "connectionLimit": 3});
    let number = cloud.control.read().project("consumer-2").unwrap().number.to_string();
    for entries in [
        vec![entry("consumer-1")],
        vec![entry("consumer-1"), entry(&number)],
        vec![entry(&number), entry("consumer-1")],
        vec![entry(&number)],
        vec![],
    ] {
        if entries.is_empty() {
            let empty = json!({"consumerAcceptLists": [], "fingerprint": cloud.get(ATTACHMENT)["fingerprint"]});
            cloud.done(Method::PATCH, ATTACHMENT, empty);
            assert_eq!(cloud.get(ATTACHMENT).get("consumerAcceptLists"), None, "an empty list is none");
            continue;
        }
        let lists = json!({"consumerAcceptLists": entries});
        let once = apply(&cloud, &lists);
        let twice = apply(&cloud, &lists);
        assert_eq!(once, twice, "to write the same again is no change");
    }
}

/// 15203.
#[test]
fn consumers_are_accepted_by_network_and_a_list_turns_from_projects_to_networks_in_one_patch() {
    let cloud = cloud(json!({"consumerAcceptLists": accept("consumer-1", 2), "reconcileConnections": true}));
    cloud.endpoint("consumer-1", "e");
    let network =
        |project: &str| json!([{"networkUrl": shown(&format!("{project}/global/networks/cv")), "connectionLimit": 2}]);
    cloud.consumer("consumer-2");
    let read = apply(&cloud, &json!({"consumerAcceptLists": network("consumer-1")}));
    assert_eq!(read["consumerAcceptLists"][0].get("projectIdOrNum"), None, "an entry is one or the other");
    assert_eq!(status(&cloud, "e"), "ACCEPTED", "the same consumer by another name");
    apply(&cloud, &json!({"consumerAcceptLists": network("consumer-2")}));
    assert_eq!(status(&cloud, "e"), "PENDING", "another network of another project");
}

/// 14915.
#[test]
fn reconciliation_is_switched_on_and_off_in_place_and_off_is_shown() {
    let cloud = cloud(json!({"consumerAcceptLists": accept("consumer-1", 2)}));
    assert_eq!(
        cloud.get(ATTACHMENT)["reconcileConnections"],
        false,
        "said, not left out: the default is no difference"
    );
    cloud.endpoint("consumer-1", "e");
    apply(&cloud, &json!({"consumerAcceptLists": accept("consumer-2", 2)}));
    assert_eq!(status(&cloud, "e"), "ACCEPTED", "without it who was accepted stays");
    apply(&cloud, &json!({"reconcileConnections": true}));
    assert_eq!(status(&cloud, "e"), "PENDING", "with it the list counts for everyone");
    apply(&cloud, &json!({"reconcileConnections": false}));
    assert_eq!(status(&cloud, "e"), "PENDING");
}
