//! Private Service Connect: what each state of a connection means for packets, on a cloud that all tests here share.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use acceptance::journey::{Consumer, Journey, Shared, Vm, regional, subnet_link};
use model::id::NetworkId;
use serde_json::{Value, json};
use tombolo::journey::{self, CONSUMER, PRODUCER, REGION};

static JOURNEY: Shared<Journey> = Shared::new();

const ACCEPTED: &str = "ACCEPTED";
const PENDING: &str = "PENDING";
const REJECTED: &str = "REJECTED";

/// Long enough for two tries of TCP, one second after the first SYN and two after the second.
const THREE_SECONDS: Duration = Duration::from_millis(3_200);

/// Every test takes a project and a NAT subnet of its own, so that they may run side by side.
struct Scene<'j> {
    journey: &'j Journey,
    consumer: Consumer<'j>,
    vm: Vm<'j>,
    token: String,
    nat: String,
}

impl<'j> Scene<'j> {
    fn new(journey: &'j Journey, project: &str, nat_range: &str) -> Scene<'j> {
        let nat = format!("nat-{project}");
        let purpose = Some("PRIVATE_SERVICE_CONNECT");
        journey::create_subnet(&journey.client(), PRODUCER, "producer-vpc", &nat, nat_range, purpose).unwrap();
        let consumer = journey.other_consumer(project, "10.1.0.0/24");
        let vm = consumer.vm(&format!("vm-{project}"), None);
        let token = vm.id_token(&journey.url);
        Scene { journey, consumer, vm, token, nat }
    }

    fn attach(&self, name: &str, more: &Value) {
        let mut fields = more.clone();
        fields["natSubnets"] = json!([subnet_link(PRODUCER, &self.nat)]);
        self.journey.attach(name, &fields);
    }

    fn on_list(&self, limit: u32) -> Value {
        json!([{"projectIdOrNum": self.consumer.project, "connectionLimit": limit}])
    }

    /// Whether packets obey a status: a call through an accepted connection gets its page, through any other none.
    #[track_caller]
    fn prove(&self, address: &str, status: &str, what: &str) {
        let want = if status == ACCEPTED { 200 } else { 0 };
        assert_eq!(self.vm.status(&format!("http://{address}/"), &self.token), want, "{what}: {status}");
    }

    fn network(&self) -> NetworkId {
        self.consumer.network
    }
}

#[test]
fn an_endpoint_on_no_list_is_pending_and_none_of_its_packets_reaches_the_producer() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "unlisted", "10.0.32.0/24");
    scene
        .attach("att-unlisted", &json!({"consumerAcceptLists": [{"projectIdOrNum": CONSUMER, "connectionLimit": 10}]}));
    let address = scene.consumer.endpoint("e", "att-unlisted", None);
    assert_eq!(scene.consumer.status("e", "att-unlisted"), PENDING);
    let (at_vm, at_balancer) =
        (journey.cloud.watch_vm(scene.network(), &scene.vm.workload), journey.cloud.watch_balancer(journey.producer));
    let tried = scene.vm.sh(&format!("curl -s -o /dev/null -m {} http://{address}/", THREE_SECONDS.as_secs_f32()));
    assert_eq!(tried.code, Some(28), "it times out: {tried:?}");
    let tries = at_vm.opened_to(address.parse().unwrap());
    assert!(tries >= 2, "the VM sent {tries} SYNs");
    let from_here = at_balancer.opened().iter().filter(|h| in_range(h.src, [10, 0, 32])).count();
    assert_eq!(from_here, 0, "SYNs at the producer");
    assert_eq!(at_vm.count(|h| h.dst == scene.vm.address && h.protocol != 17), 0, "silence, neither RST nor ICMP");
    let link = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        journey.cloud.watch_link(journey.producer, scene.network())
    }));
    assert!(link.is_err(), "there is not even a cable to the producer");
}

#[test]
fn over_a_full_limit_a_second_endpoint_waits_and_its_packets_do_not_use_the_first_ones_link() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "crowded", "10.0.33.0/24");
    scene.attach("att-crowded", &json!({"consumerAcceptLists": scene.on_list(10)}));
    let addresses: Vec<String> =
        (1..=11).map(|n| scene.consumer.endpoint(&format!("e{n}"), "att-crowded", None)).collect();
    for (n, address) in (1..=10).zip(&addresses) {
        assert_eq!(scene.consumer.status(&format!("e{n}"), "att-crowded"), ACCEPTED);
        scene.prove(address, ACCEPTED, "within the limit");
    }
    assert_eq!(scene.consumer.status("e11", "att-crowded"), PENDING);
    let link = journey.cloud.watch_link(journey.producer, scene.network());
    scene.prove(&addresses[10], PENDING, "the eleventh");
    assert_eq!(link.opened().len(), 0, "SYNs at the producer's end of the link");
    scene.consumer.delete_endpoint("e3");
    assert_eq!(scene.consumer.status("e11", "att-crowded"), ACCEPTED, "the oldest that waits gets the place");
    scene.prove(&addresses[10], ACCEPTED, "the eleventh, after one has left");
    assert_eq!(link.opened_to(addresses[10].parse().unwrap()), 1);
    scene.prove(&addresses[2], "deleted", "the one that has left");
}

#[test]
fn a_removed_list_entry_cuts_the_open_connection_at_both_ends_without_a_word() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "removed", "10.0.34.0/24");
    scene.attach("att-removed", &json!({"consumerAcceptLists": scene.on_list(10), "reconcileConnections": true}));
    let address = scene.consumer.endpoint("e", "att-removed", None);
    let endpoint = address.parse::<std::net::IpAddr>().unwrap();
    let at_vm = journey.cloud.watch_vm(scene.network(), &scene.vm.workload);
    let link = journey.cloud.watch_link(journey.producer, scene.network());
    // One connection streams, one rests.
    let mut streams = scene.vm.connect(&address, &scene.token);
    let mut rests = scene.vm.connect(&address, &scene.token);
    assert_eq!((streams.hear().as_str(), rests.hear().as_str()), ("open", "open"));
    assert!(rests.ask("/headers").starts_with("HTTP/1.1 200"));
    assert!(streams.ask("/stream?ms=700").starts_with("HTTP/1.1 200"), "the answer has begun");
    assert!(at_vm.count(|h| h.src == endpoint && h.payload_bytes > 0) >= 2, "bytes flow on both");

    journey
        .change("att-removed", &json!({"consumerAcceptLists": [{"projectIdOrNum": CONSUMER, "connectionLimit": 10}]}));
    let (before, arrived) = (at_vm.seen().len(), link.seen().len());
    assert_eq!(scene.consumer.status("e", "att-removed"), PENDING);
    rests.say("/headers");
    let heard = rests.hear_within(THREE_SECONDS);
    assert_eq!(heard, None, "no answer and no end: {:#?}", at_vm.seen().split_off(before.saturating_sub(8)));
    assert_eq!(streams.hear_within(Duration::from_millis(1)), None);
    let after = at_vm.seen().split_off(before);
    let tries = after.iter().filter(|h| h.dst == endpoint && h.payload_bytes > 0).count();
    assert!(tries >= 2, "the VM tried {tries} times");
    let heard: Vec<_> = after.iter().filter(|h| h.dst == scene.vm.address && h.protocol != 17).collect();
    assert!(heard.is_empty(), "nothing reaches the VM, neither byte nor RST nor ICMP: {heard:?}");
    let passed = link.seen().split_off(arrived);
    let passed: Vec<_> = passed.iter().filter(|h| h.dst == endpoint).collect();
    assert!(passed.is_empty(), "nothing reaches the producer: {passed:?}");

    journey.change("att-removed", &json!({"consumerAcceptLists": scene.on_list(10)}));
    assert_eq!(scene.consumer.status("e", "att-removed"), ACCEPTED);
    scene.prove(&address, ACCEPTED, "on the list again");
}

/// Source: Private Service Connect, connection states and `reconcileConnections`; and, where it is silent, the decision
/// record on transitions.
#[test]
fn every_transition_shows_at_both_ends_and_in_packets() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "moving", "10.0.35.0/24");
    let other = json!([{"projectIdOrNum": CONSUMER, "connectionLimit": 1}]);
    let nothing = json!({});
    let listed = json!({"consumerAcceptLists": scene.on_list(10)});
    let others = json!({"consumerAcceptLists": other});
    let rejected = json!({"consumerRejectLists": [scene.consumer.project]});
    let unrejected = json!({"consumerRejectLists": []});
    let automatic = json!({"connectionPreference": "ACCEPT_AUTOMATIC"});
    let manual = json!({"connectionPreference": "ACCEPT_MANUAL"});
    let both = merged(&listed, &rejected);
    let automatic_but = merged(&automatic, &rejected);
    // What happens; the attachment and the status before; whether it reconciles; the change and the status after.
    type Row<'a> = (&'a str, &'a Value, &'a str, bool, Value, &'a str);
    let rows: Vec<Row> = vec![
        ("accept entry added", &nothing, PENDING, false, listed.clone(), ACCEPTED),
        ("accept entry removed", &listed, ACCEPTED, false, others.clone(), ACCEPTED),
        ("accept entry removed", &listed, ACCEPTED, true, others.clone(), PENDING),
        ("reject entry added while it waits", &nothing, PENDING, false, rejected.clone(), REJECTED),
        ("reject entry added", &listed, ACCEPTED, false, rejected.clone(), ACCEPTED),
        ("reject entry added", &listed, ACCEPTED, true, rejected.clone(), REJECTED),
        ("reject entry removed", &rejected, REJECTED, false, unrejected.clone(), REJECTED),
        ("reject entry removed", &rejected, REJECTED, true, unrejected.clone(), PENDING),
        ("reject entry becomes accept entry", &rejected, REJECTED, true, merged(&unrejected, &listed), ACCEPTED),
        ("on both lists", &both, REJECTED, false, json!({"description": "still on both"}), REJECTED),
        ("automatic, reject entry added", &automatic, ACCEPTED, false, rejected.clone(), ACCEPTED),
        ("automatic, reject entry added", &automatic, ACCEPTED, true, rejected.clone(), REJECTED),
        ("automatic, reject entry removed", &automatic_but, REJECTED, true, unrejected.clone(), ACCEPTED),
        ("manual to automatic", &nothing, PENDING, false, automatic.clone(), ACCEPTED),
        ("automatic to manual", &automatic, ACCEPTED, false, manual.clone(), ACCEPTED),
        ("automatic to manual", &automatic, ACCEPTED, true, manual.clone(), PENDING),
        (
            "reconciliation on",
            &listed,
            ACCEPTED,
            false,
            merged(&others, &json!({"reconcileConnections": true})),
            PENDING,
        ),
    ];
    for (what, before, first, reconcile, change, then) in rows {
        let what = format!("{what}, reconcile {reconcile}");
        scene.attach("att-moving", &merged(before, &json!({"reconcileConnections": reconcile})));
        let address = scene.consumer.endpoint("e", "att-moving", None);
        assert_eq!(scene.consumer.status("e", "att-moving"), first, "{what}: before");
        if first == ACCEPTED {
            scene.prove(&address, first, &what);
        }
        journey.change("att-moving", &change);
        assert_eq!(scene.consumer.status("e", "att-moving"), then, "{what}: after");
        scene.prove(&address, then, &what);
        scene.consumer.delete_endpoint("e");
        delete_attachment(&journey, "att-moving");
    }
}

/// The policy forbids this consumer alone, because the tests here share the producer.
#[test]
fn a_producers_organisation_policy_rejects_new_connections_and_cuts_none_until_they_are_reconciled() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "forbidden", "10.0.39.0/24");
    scene.attach("att-forbidden", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let before = scene.consumer.endpoint("before", "att-forbidden", None);
    scene.prove(&before, ACCEPTED, "before the policy");
    let mut open = scene.vm.connect(&before, &scene.token);
    assert_eq!(open.hear(), "open");

    journey.forbid(&scene.consumer.project);

    assert_eq!(scene.consumer.status("before", "att-forbidden"), ACCEPTED, "not retroactive");
    assert!(open.ask("/headers").starts_with("HTTP/1.1 200"), "the open connection lives");
    scene.prove(&before, ACCEPTED, "accepted before the policy");
    let after = scene.consumer.endpoint("after", "att-forbidden", None);
    assert_eq!(scene.consumer.status("after", "att-forbidden"), REJECTED);
    let link = journey.cloud.watch_link(journey.producer, scene.network());
    scene.prove(&after, REJECTED, "made under the policy");
    assert_eq!(link.opened_to(after.parse().unwrap()), 0, "no packet of it reaches the producer");

    journey.change("att-forbidden", &json!({"reconcileConnections": true}));
    assert_eq!(scene.consumer.status("before", "att-forbidden"), REJECTED, "decided anew");
    scene.prove(&before, REJECTED, "reconciled under the policy");
    journey.forbid_nobody();
    journey.change("att-forbidden", &json!({"description": "decided anew without the policy"}));
    for (endpoint, address) in [("before", &before), ("after", &after)] {
        assert_eq!(scene.consumer.status(endpoint, "att-forbidden"), ACCEPTED, "{endpoint}");
        scene.prove(address, ACCEPTED, endpoint);
    }
}

#[test]
fn a_deleted_attachment_closes_its_connections_and_a_new_one_of_its_name_does_not_open_them() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "closed", "10.0.36.0/24");
    scene.attach("att-closed", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let address = scene.consumer.endpoint("e", "att-closed", None);
    scene.prove(&address, ACCEPTED, "before");
    delete_attachment(&journey, "att-closed");
    assert_eq!(scene.consumer.rule("e")["pscConnectionStatus"], "CLOSED");
    scene.prove(&address, "CLOSED", "deleted");
    scene.attach("att-closed", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    assert_eq!(scene.consumer.rule("e")["pscConnectionStatus"], "CLOSED");
    assert!(journey.attachment("att-closed")["connectedEndpoints"].is_null());
    scene.prove(&address, "CLOSED", "made anew");
    scene.consumer.delete_endpoint("e");
    let address = scene.consumer.endpoint("e", "att-closed", None);
    assert_eq!(scene.consumer.status("e", "att-closed"), ACCEPTED);
    scene.prove(&address, ACCEPTED, "a new endpoint");
}

#[test]
fn a_nat_subnet_of_eight_addresses_serves_four_endpoints_and_the_fifth_needs_attention() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "narrow", "10.0.37.0/29");
    scene.attach("att-narrow", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let addresses: Vec<String> =
        (1..=5).map(|n| scene.consumer.endpoint(&format!("e{n}"), "att-narrow", None)).collect();
    let statuses: Vec<String> = (1..=5).map(|n| scene.consumer.status(&format!("e{n}"), "att-narrow")).collect();
    assert_eq!(statuses, [ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, "NEEDS_ATTENTION"]);
    let balancer = journey.cloud.watch_balancer(journey.producer);
    for (address, status) in addresses.iter().zip(&statuses) {
        scene.prove(address, status, "four have an address");
    }
    let mut sources: Vec<String> =
        balancer.opened().iter().filter(|h| in_range(h.src, [10, 0, 37])).map(|h| h.src.to_string()).collect();
    sources.sort();
    assert_eq!(sources, ["10.0.37.2", "10.0.37.3", "10.0.37.4", "10.0.37.5"], "one address each, lowest first");
    // Another subnet helps at once, and nobody who has an address notices.
    let mut open = scene.vm.connect(&addresses[0], &scene.token);
    let mut load = scene.vm.talk(&LOAD.replace("ADDRESS", &addresses[1]).replace("TOKEN", &scene.token));
    assert_eq!((open.hear().as_str(), load.hear().as_str()), ("open", "begun"));
    assert!(open.ask("/headers").starts_with("HTTP/1.1 200"));
    let purpose = Some("PRIVATE_SERVICE_CONNECT");
    journey::create_subnet(&journey.client(), PRODUCER, "producer-vpc", "nat-more", "10.0.38.0/29", purpose).unwrap();
    let subnets = json!([subnet_link(PRODUCER, &scene.nat), subnet_link(PRODUCER, "nat-more")]);
    journey.change("att-narrow", &json!({"natSubnets": subnets}));
    assert_eq!(scene.consumer.status("e5", "att-narrow"), ACCEPTED);
    scene.prove(&addresses[4], ACCEPTED, "from the second subnet");
    assert!(open.ask("/headers").starts_with("HTTP/1.1 200"), "the open connection lives on");
    load.say("enough");
    let (asked, failed) = load.hear().split_once(' ').map(|(a, f)| (a.to_owned(), f.to_owned())).expect("two numbers");
    assert_eq!(failed, "0", "of {asked} requests");
    assert!(asked.parse::<u32>().is_ok_and(|asked| asked >= 2), "{asked} requests were made meanwhile");
}

#[test]
fn an_endpoint_with_two_nat_addresses_calls_from_both_and_its_open_connection_keeps_the_first() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "twofold", "10.0.41.0/29");
    scene.attach("att-twofold", &json!({"consumerAcceptLists": scene.on_list(10)}));
    let address = scene.consumer.endpoint("e", "att-twofold", None);
    let mut open = scene.vm.connect(&address, &scene.token);
    assert_eq!(open.hear(), "open");
    journey.change("att-twofold", &json!({"natIpsPerEndpoint": 2}));
    let path = format!("{}?showNatIps=true", regional(PRODUCER, "serviceAttachments/att-twofold"));
    assert_eq!(journey.cloud.get(&path)["connectedEndpoints"][0]["natIps"], json!(["10.0.41.2", "10.0.41.3"]));
    assert!(open.ask("/headers").starts_with("HTTP/1.1 200"), "the open connection lives on");

    let balancer = journey.cloud.watch_balancer(journey.producer);
    for port in 40_000..40_004 {
        let call = format!(
            "curl -s -o /dev/null -w '%{{http_code}}' --local-port {port} -H 'Authorization: Bearer {}' http://{address}/",
            scene.token
        );
        assert_eq!(scene.vm.sh(&call).out, "200");
    }
    let mut sources: Vec<String> =
        balancer.opened().iter().filter(|h| in_range(h.src, [10, 0, 41])).map(|h| h.src.to_string()).collect();
    sources.sort();
    assert_eq!(sources, ["10.0.41.2", "10.0.41.2", "10.0.41.3", "10.0.41.3"], "as the producer's balancer sees them");
    scene.consumer.delete_endpoint("e");
    scene.prove(&address, "deleted", "both are gone");
}

/// Asks again and again until it is told that it is enough; then says how often it asked and how often in vain.
const LOAD: &str = r#"
asked=0 failed=0
echo begun
while :; do
  code=$(curl -s -o /dev/null -m 5 -w '%{http_code}' -H 'Authorization: Bearer TOKEN' http://ADDRESS/)
  asked=$((asked + 1))
  [ "$code" = 200 ] || failed=$((failed + 1))
  read -r -t 0.01 && break
done
echo "$asked $failed""#;

#[test]
fn vms_of_other_regions_reach_an_endpoint_and_a_load_balancer_only_with_global_access() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "abroad-1", "10.0.40.0/24");
    let producers = |path: &str| journey::link(PRODUCER, &format!("regions/{REGION}/{path}"));
    let front = json!({
        "name": "global-front", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80", "allowGlobalAccess": true,
        "network": journey::link(PRODUCER, "global/networks/producer-vpc"),
        "subnetwork": subnet_link(PRODUCER, "producer-subnet"), "target": producers("targetHttpProxies/hello-target-proxy"),
    });
    journey.cloud.compute("POST", &regional(PRODUCER, "forwardingRules"), front);
    let target =
        json!({"connectionPreference": "ACCEPT_AUTOMATIC", "targetService": producers("forwardingRules/global-front")});
    scene.attach("att-abroad", &target);
    let address = scene.consumer.endpoint("e", "att-abroad", None);
    let far = scene.consumer.vm_abroad("us-west1-b", "vm-far", "10.2.0.0/24");
    let url = format!("http://{address}/");
    scene.prove(&address, ACCEPTED, "from its own region");
    let link = journey.cloud.watch_link(journey.producer, scene.network());
    let arrived = || link.count(|h| h.src == far.address);
    assert_eq!(far.status(&url, &scene.token), 0, "from another region");
    assert_eq!(arrived(), 0, "no packet of it reaches the producer");

    let allow = |allowed: bool| {
        let body = json!({"allowPscGlobalAccess": allowed, "fingerprint": scene.consumer.rule("e")["fingerprint"]});
        journey.cloud.compute("PATCH", &regional(&scene.consumer.project, "forwardingRules/e"), body);
    };
    let mut near = scene.vm.connect(&address, &scene.token);
    assert_eq!(near.hear(), "open");
    allow(true);
    assert_eq!(far.status(&url, &scene.token), 200, "with global access");
    let mut open = far.connect(&address, &scene.token);
    assert_eq!(open.hear(), "open");
    assert!(open.ask("/headers").starts_with("HTTP/1.1 200"));
    allow(false);
    let before = arrived();
    open.say("/headers");
    assert_eq!(open.hear_within(THREE_SECONDS), None, "its open connection is cut");
    assert_eq!((far.status(&url, &scene.token), arrived()), (0, before));
    assert!(near.ask("/headers").starts_with("HTTP/1.1 200"), "one from its own region never noticed");
    journey.cloud.kernel_equals_plan();
}

fn merged(one: &Value, other: &Value) -> Value {
    let mut all = one.clone();
    for (field, value) in other.as_object().expect("fields") {
        all[field] = value.clone();
    }
    all
}

#[track_caller]
fn delete_attachment(journey: &Journey, name: &str) {
    journey.cloud.compute("DELETE", &regional(PRODUCER, &format!("serviceAttachments/{name}")), json!({}));
}

fn in_range(address: std::net::IpAddr, first: [u8; 3]) -> bool {
    matches!(address, std::net::IpAddr::V4(v4) if v4.octets()[..3] == first)
}

#[test]
fn a_released_nat_address_rests_before_the_endpoint_that_waits_for_it_gets_it() {
    const REST_S: u64 = 4;
    let journey = Journey::up(&["--psc-rest", &REST_S.to_string()]);
    let scene = Scene::new(&journey, "consumer-rest", "10.0.9.0/29");
    scene.attach("small", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    // A range of eight has four addresses to give away.
    let addresses: Vec<String> = (1..=5).map(|n| scene.consumer.endpoint(&format!("e{n}"), "small", None)).collect();
    scene.prove(&addresses[0], ACCEPTED, "one that has an address");
    scene.prove(&addresses[4], "NEEDS_ATTENTION", "one for which there is none");
    let released = std::time::Instant::now();
    scene.consumer.delete_endpoint("e1");
    acceptance::until("the rest to be over", || match scene.consumer.status("e5", "small").as_str() {
        ACCEPTED => Ok(()),
        status => Err(status.to_owned()),
    });
    assert!(released.elapsed() >= Duration::from_secs(REST_S), "after {:?}", released.elapsed());
    acceptance::until("packets to obey", || {
        match scene.vm.status(&format!("http://{}/", addresses[4]), &scene.token) {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    journey.cloud.kernel_equals_plan();
}
