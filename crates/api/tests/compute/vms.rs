//! VM instances.

use http::Method;
use model::{
    planned::guest::{MintRefusal, Realm, Seat, Want},
    vm,
};
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

fn instances() -> String {
    format!("consumer-1/zones/{R}-b/instances")
}

fn body(name: &str, extra: Value) -> Value {
    let mut body = json!({
        "name": name,
        "machineType": format!("zones/{R}-b/machineTypes/e2-micro"),
        "disks": [{"boot": true, "autoDelete": true, "initializeParams": {"sourceImage": "projects/debian-cloud/global/images/family/debian-12"}}],
        "networkInterfaces": [{"network": "global/networks/cv", "subnetwork": format!("regions/{R}/subnetworks/cs")}],
    });
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn a_vm_has_an_address_a_seat_and_nothing_it_was_not_given() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    let vm = cloud.make(&instances(), body("vm", json!({"tags": {"items": ["web"]}, "labels": {"k": "v"}})));
    assert_eq!(vm["networkInterfaces"][0]["networkIP"], "10.1.0.2");
    assert_eq!(vm["networkInterfaces"][0].get("accessConfigs"), None);
    assert_eq!((&vm["tags"]["items"], &vm["labels"]), (&json!(["web"]), &json!({"k": "v"})));
    assert_eq!(vm.get("serviceAccounts"), None);
    assert_eq!(vm["zone"], shown(&format!("consumer-1/zones/{R}-b")));
    assert_eq!(vm["disks"][0]["boot"], true);
    cloud.make(&instances(), body("vm2", json!({})));
    let seats: Vec<u32> = cloud.control.read().seats.values().map(|s| s.uid_base).collect();
    assert_eq!(seats.len(), 2);
    assert!(seats[0].abs_diff(seats[1]) >= 65_536);
    cloud.delete(&format!("{}/vm", instances()));
    assert_eq!(cloud.control.read().seats.len(), 1);
}

#[test]
fn a_vm_is_refused_for_what_it_cannot_be() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    cloud.make(&instances(), body("first", json!({})));
    let nic = |extra: Value| {
        let mut nic = json!({"network": "global/networks/cv", "subnetwork": format!("regions/{R}/subnetworks/cs")});
        for (name, value) in extra.as_object().unwrap() {
            nic[name] = value.clone();
        }
        json!({"networkInterfaces": [nic]})
    };
    for (extra, status, why) in [
        (
            json!({"machineType": format!("zones/{R}-b/machineTypes/z9-huge")}),
            400,
            "Machine type with name 'z9-huge' does not exist",
        ),
        (json!({"machineType": "zones/us-central1-a/machineTypes/e2-micro"}), 400, "The URL is malformed."),
        (json!({"networkInterfaces": []}), 400, "networkInterfaces"),
        (nic(json!({"subnetwork": null})), 400, "Subnetwork should be specified for custom subnetmode network"),
        (nic(json!({"networkIP": "10.1.0.2"})), 409, "IP '10.1.0.2' is already being used by another resource."),
        (nic(json!({"networkIP": "10.2.0.2"})), 400, "Requested internal IP address is outside"),
        (nic(json!({"accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]})), 501, "accessConfigs"),
        (
            nic(json!({"network": "global/networks/none", "subnetwork": null})),
            400,
            "The referenced network resource cannot be found.",
        ),
        (json!({"tags": {"items": ["No"]}}), 400, "Must be a match of regex"),
        (
            json!({"metadata": {"items": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}}),
            400,
            "duplicate key",
        ),
        (json!({"metadata": {"items": [{"key": "enable-oslogin-2fa", "value": "TRUE"}]}}), 501, "enable-oslogin-2fa"),
        (
            json!({"disks": [{"initializeParams": {"sourceImage": "projects/debian-cloud/global/images/none"}}]}),
            400,
            "image",
        ),
        (json!({"canIpForward": true}), 501, "canIpForward"),
    ] {
        let (got, _, message) = cloud.refused(Method::POST, &instances(), body("x", extra.clone()));
        assert!(got == status && message.contains(why), "{extra}: {got} {message}");
    }
    let (status, _, why) = cloud.refused(Method::POST, "consumer-1/zones/mars-a/instances", body("x", json!({})));
    assert_eq!((status, why.as_str()), (400, "Invalid value for field 'zone': 'mars-a'. Unknown zone."));
}

#[test]
fn whoever_may_not_act_as_the_account_finds_out_by_the_operation() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    let account = json!({"serviceAccounts": [{"email": "nobody@consumer-1.iam.gserviceaccount.com", "scopes": []}]});
    let (status, operation) = cloud.call(Method::POST, &instances(), body("vm", account));
    assert_eq!((status, &operation["status"]), (200, &json!("DONE")));
    assert_eq!(
        operation["error"]["errors"][0],
        json!({
            "code": "SERVICE_ACCOUNT_ACCESS_DENIED",
            "message": "The user does not have access to service account 'nobody@consumer-1.iam.gserviceaccount.com'.  \
                        User: 'admin@tombolo.local'.  Ask a project owner to grant you the iam.serviceAccountUser role on \
                        the service account",
        })
    );
    assert_eq!(cloud.call(Method::GET, &format!("{}/vm", instances()), Value::Null).0, 404);
}

#[test]
fn a_stopped_vm_keeps_its_place_and_starts_as_a_new_incarnation() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    let vm = cloud.make(&instances(), body("vm", json!({})));
    let path = format!("{}/vm", instances());
    let (_, stopping) = cloud.call(Method::POST, &format!("{path}/stop"), Value::Null);
    assert_eq!(
        (&stopping["operationType"], &stopping["zone"]),
        (&json!("stop"), &json!(shown(&format!("consumer-1/zones/{R}-b"))))
    );
    assert_eq!(cloud.get(&path)["status"], "STOPPING");
    cloud.finish();
    assert_eq!(cloud.get(&path)["status"], "TERMINATED");
    let before = cloud.control.read().seats.values().next().unwrap().clone();
    cloud.done(Method::POST, &format!("{path}/start"), Value::Null);
    let after = cloud.get(&path);
    assert_eq!((&after["status"], &after["id"]), (&json!("RUNNING"), &vm["id"]));
    let seat = cloud.control.read().seats.values().next().unwrap().clone();
    assert_eq!((seat.uid_base, seat.incarnation), (before.uid_base, before.incarnation + 1));
}

#[test]
fn guest_attributes_are_none_that_is_there() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    cloud.make(&instances(), body("vm", json!({})));
    let ask = |vm: &str| {
        let path = format!("{}/{vm}/getGuestAttributes?queryPath=hostkeys/", instances());
        cloud.refused(Method::GET, &path, Value::Null)
    };
    let why = "The resource 'hostkeys/' of type 'Guest Attribute' was not found.";
    assert_eq!(ask("vm"), (404, "notFound".to_owned(), why.to_owned()));
    assert!(ask("nobody").2.contains("instances/nobody"));
}

#[test]
fn tags_and_metadata_change_under_their_own_fingerprints() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    let vm = cloud.make(&instances(), body("vm", json!({})));
    let path = format!("{}/vm", instances());
    let tags = json!({"items": ["web"], "fingerprint": vm["tags"]["fingerprint"]});
    cloud.done(Method::POST, &format!("{path}/setTags"), tags.clone());
    assert_eq!(cloud.get(&path)["tags"]["items"], json!(["web"]));
    assert_eq!(cloud.refused(Method::POST, &format!("{path}/setTags"), tags).0, 412);
    let metadata = json!({"items": [{"key": "k", "value": "v"}], "fingerprint": vm["metadata"]["fingerprint"]});
    cloud.done(Method::POST, &format!("{path}/setMetadata"), metadata.clone());
    assert_eq!(cloud.get(&path)["metadata"]["items"], json!([{"key": "k", "value": "v"}]));
    assert_eq!(cloud.refused(Method::POST, &format!("{path}/setMetadata"), metadata).0, 412);
    let labels = json!({"labels": {"a": "b"}, "labelFingerprint": vm["labelFingerprint"]});
    cloud.done(Method::POST, &format!("{path}/setLabels"), labels);
    assert_eq!(cloud.get(&path)["labels"], json!({"a": "b"}));
}

#[test]
fn a_vm_without_scopes_gets_no_token_rather_than_one_for_everything() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    let token = |name: &str, scopes: Value| {
        cloud.make(&instances(), body(name, json!({"serviceAccounts": [{"email": "default", "scopes": scopes}]})));
        let world = cloud.control.read();
        let vm = world.all::<vm::Instance>().find(|vm| vm.link.name == name).unwrap();
        let realm = Realm::Vpc(world.network_id(&vm.spec.network).unwrap());
        let seat = Seat { realm, address: vm.spec.address };
        cloud.mint.for_seat(&world, seat, &Want::AccessToken { scopes: vec![] }, cloud.now())
    };
    assert_eq!(token("none", json!([])), Err(MintRefusal::NoAccount));
    let minted = token("some", json!(["https://www.googleapis.com/auth/compute.readonly"])).unwrap();
    let call = |method, path| cloud.call_as(Some(&minted.token), method, path, &json!({"name": "x"})).0;
    assert_eq!(call(Method::GET, "consumer-1/global/networks"), 200);
    assert_eq!(call(Method::POST, "consumer-1/global/networks"), 403);
}

#[test]
fn what_stands_in_another_project_is_not_told_by_who_is_refused_how() {
    let cloud = Cloud::new();
    for project in ["consumer-1", "consumer-2"] {
        cloud.consumer(project);
    }
    let far = format!("consumer-2/regions/{R}");
    let hidden = json!({"name": "hidden", "addressType": "INTERNAL", "address": "10.1.0.77",
                        "subnetwork": cloud.url(&format!("{far}/subnetworks/cs"))});
    cloud.make(&format!("{far}/addresses"), hidden);
    let refusal = |interface: Value| {
        let vm = body("x", json!({"networkInterfaces": [interface]}));
        let (status, _, message) = cloud.refused(Method::POST, &instances(), vm);
        (status, message)
    };
    let address = |name: &str| {
        let own = json!({"network": "global/networks/cv", "subnetwork": format!("regions/{R}/subnetworks/cs")});
        let mut interface = own;
        interface["networkIP"] = cloud.url(&format!("{far}/addresses/{name}")).into();
        refusal(interface).1.replace(name, "NAME")
    };
    assert_eq!(address("hidden"), address("absent"));
    let subnet = |name: &str| {
        let (status, why) = refusal(json!({"subnetwork": cloud.url(&format!("{far}/subnetworks/{name}"))}));
        (status, why.replace(&format!("subnetworks/{name}"), "NAME"))
    };
    assert_eq!(subnet("cs"), subnet("absent"));
}

#[test]
fn a_vm_shows_whether_it_is_started_again_when_it_ends() {
    let cloud = Cloud::new();
    cloud.consumer("consumer-1");
    let shown = |name: &str, scheduling: Value| {
        cloud.make(&instances(), body(name, json!({"scheduling": scheduling})))["scheduling"].clone()
    };
    assert_eq!(shown("by-default", json!({}))["automaticRestart"], true);
    let once = shown("once", json!({"automaticRestart": false, "onHostMaintenance": "TERMINATE"}));
    assert_eq!((&once["automaticRestart"], &once["onHostMaintenance"]), (&json!(false), &json!("TERMINATE")));
}
