//! Private Service Connect backends: a consumer's own load balancer in front of what a producer publishes.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use acceptance::journey::{Consumer, Journey, Shared, Vm, regional, subnet_link};
use serde_json::{Value, json};
use tombolo::journey::{self, PRODUCER, REGION};

static JOURNEY: Shared<Journey> = Shared::new();

const ACCEPTED: &str = "ACCEPTED";
const PENDING: &str = "PENDING";
/// In Envoy's words.
const NO_ANSWER: &str =
    "503 upstream connect error or disconnect/reset before headers. reset reason: connection timeout";

/// A consumer with a VM and a proxy-only subnet.
struct Scene<'j> {
    journey: &'j Journey,
    consumer: Consumer<'j>,
    vm: Vm<'j>,
    token: String,
}

/// Publishes the producer's balancer, with a NAT subnet of the attachment's own.
fn attach(journey: &Journey, name: &str, nat_range: &str, more: Value) {
    let (nat, purpose) = (format!("nat-{name}"), Some("PRIVATE_SERVICE_CONNECT"));
    journey::create_subnet(&journey.client(), PRODUCER, "producer-vpc", &nat, nat_range, purpose).unwrap();
    let mut fields = more;
    fields["natSubnets"] = json!([subnet_link(PRODUCER, &nat)]);
    journey.attach(name, &fields);
}

impl<'j> Scene<'j> {
    fn new(journey: &'j Journey, project: &str, [range, proxies]: [&str; 2]) -> Scene<'j> {
        let consumer = journey.other_consumer(project, range);
        let purpose = Some("REGIONAL_MANAGED_PROXY");
        journey::create_subnet(&journey.client(), project, "consumer-vpc", "proxies", proxies, purpose).unwrap();
        let vm = consumer.vm(&format!("vm-{project}"), None);
        let token = vm.id_token(&journey.url);
        Scene { journey, consumer, vm, token }
    }

    fn link(&self, path: &str) -> String {
        journey::link(&self.consumer.project, &format!("regions/{REGION}/{path}"))
    }

    fn make(&self, collection: &str, body: Value) {
        self.journey.cloud.compute("POST", &regional(&self.consumer.project, collection), body);
    }

    fn get(&self, path: &str) -> Value {
        self.journey.cloud.get(&regional(&self.consumer.project, path))
    }

    /// A network endpoint group of an attachment; returns its address.
    fn group(&self, name: &str, attachment: &str) -> Ipv4Addr {
        self.make(
            "networkEndpointGroups",
            json!({
                "name": name, "networkEndpointType": "PRIVATE_SERVICE_CONNECT",
                "network": journey::link(&self.consumer.project, "global/networks/consumer-vpc"),
                "subnetwork": subnet_link(&self.consumer.project, "consumer-subnet"),
                "pscTargetService": journey::link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/{attachment}")),
            }),
        );
        let address = self.get(&format!("networkEndpointGroups/{name}"))["pscData"]["consumerPscAddress"].clone();
        address.as_str().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("no address but {address}"))
    }

    fn service(&self, name: &str, group: &str, timeout_s: u32) {
        self.make(
            "backendServices",
            json!({
                "name": name, "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP", "timeoutSec": timeout_s,
                "backends": [{"group": self.link(&format!("networkEndpointGroups/{group}"))}],
            }),
        );
    }

    /// The balancer in front of a URL map's services; returns its address.
    fn balancer(&self, name: &str, map: Value) -> String {
        let mut map = map;
        map["name"] = json!(name);
        self.make("urlMaps", map);
        self.make("targetHttpProxies", json!({"name": name, "urlMap": self.link(&format!("urlMaps/{name}"))}));
        self.make(
            "forwardingRules",
            json!({
                "name": name, "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
                "network": journey::link(&self.consumer.project, "global/networks/consumer-vpc"),
                "subnetwork": subnet_link(&self.consumer.project, "consumer-subnet"),
                "target": self.link(&format!("targetHttpProxies/{name}")),
            }),
        );
        self.consumer.rule(name)["IPAddress"].as_str().expect("an address").to_owned()
    }

    /// A balancer whose one backend is a group; returns both addresses.
    fn balanced(&self, name: &str, attachment: &str, timeout_s: u32) -> (String, Ipv4Addr) {
        let group = self.group(name, attachment);
        self.service(name, name, timeout_s);
        (self.balancer(name, json!({"defaultService": self.link(&format!("backendServices/{name}"))})), group)
    }

    /// The status of a group as its consumer sees it, after making sure that the producer sees the same.
    #[track_caller]
    fn status(&self, group: &str, attachment: &str) -> String {
        let group = self.get(&format!("networkEndpointGroups/{group}"));
        let connected = self.journey.attachment(attachment)["connectedEndpoints"].clone();
        let mine = connected.as_array().into_iter().flatten().find(|c| c["endpoint"] == group["selfLink"]);
        let mine = mine.unwrap_or_else(|| panic!("the producer does not see the group: {connected}"));
        assert_eq!(mine["pscConnectionId"], group["pscData"]["pscConnectionId"]);
        assert_eq!(mine["status"], group["pscData"]["pscConnectionStatus"], "both see one status");
        mine["status"].as_str().expect("a status").to_owned()
    }

    /// Status and body of a GET, on one line.
    fn ask(&self, url: &str) -> String {
        let (header, format) = (format!("Authorization: Bearer {}", self.token), "%{http_code} ");
        let said =
            self.vm.sh(&format!("curl -s -m 30 -o /tmp/body -w '{format}' -H '{header}' '{url}'; cat /tmp/body"));
        said.ok().trim_end().to_owned()
    }

    fn on_list(&self) -> Value {
        json!({"consumerAcceptLists": [{"projectIdOrNum": self.consumer.project, "connectionLimit": 10}]})
    }
}

#[test]
fn a_call_through_ones_own_balancer_reaches_the_producers_service_from_the_nat_address() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "chained", ["10.1.0.0/24", "10.129.0.0/26"]);
    attach(&journey, "att-chained", "10.0.42.0/24", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let group = scene.group("far", "att-chained");
    scene.service("far", "far", 30);
    scene.make(
        "networkEndpointGroups",
        json!({"name": "own", "networkEndpointType": "SERVERLESS", "cloudRun": {"service": "not-there"}}),
    );
    scene.service("own", "own", 30);
    let own = json!({"paths": ["/own/*"], "service": scene.link("backendServices/own")});
    let far = scene.link("backendServices/far");
    let vip = scene.balancer(
        "front",
        json!({
            "defaultService": far, "hostRules": [{"hosts": ["*"], "pathMatcher": "m"}],
            "pathMatchers": [{"name": "m", "defaultService": far, "pathRules": [own]}],
        }),
    );
    assert_eq!(scene.status("far", "att-chained"), ACCEPTED);
    let link = journey.cloud.watch_link(journey.producer, scene.consumer.network);
    let balancer = journey.cloud.watch_balancer(journey.producer);

    let page = scene.ask(&format!("http://{vip}/headers?nonce=1"));
    assert!(page.starts_with("200 ") && page.contains("GET /headers?nonce=1\n"), "{page}");
    let line = |name: &str| {
        let found = page.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
        found.unwrap_or_else(|| panic!("no {name} in {page}"))
    };
    let shown = journey.cloud.get(&format!("{}?showNatIps=true", regional(PRODUCER, "serviceAttachments/att-chained")));
    let nat: Ipv4Addr = shown["connectedEndpoints"][0]["natIps"][0].as_str().unwrap().parse().unwrap();
    assert_eq!(line("host"), vip, "the host is the client's own");
    assert_eq!(line("x-forwarded-for"), format!("{},{vip},{nat},{}", scene.vm.address, journey.vip));
    let [a, b, c, d] = nat.octets();
    assert!(line("peer").contains(&format!("{:x}:{:x}]", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))));
    let opened = link.opened();
    let ends: Vec<_> = opened.iter().map(|h| (h.src.to_string(), h.dst.to_string(), h.dst_port)).collect();
    assert_eq!(ends, [("10.129.0.2".to_owned(), group.to_string(), 80)], "the balancer dials from the proxies' subnet");
    assert_eq!(balancer.opened().iter().filter(|h| h.src == nat).count(), 1);

    // The connection is kept for the next request; the other backend is the consumer's own.
    assert!(scene.ask(&format!("http://{vip}/headers?nonce=2")).contains("GET /headers?nonce=2\n"));
    assert!(scene.ask(&format!("http://{vip}/own/page")).starts_with("404 "));
    assert_eq!(link.opened().len(), 1, "SYNs on the link");
    // A group is no endpoint of the VMs.
    assert_eq!(scene.vm.status(&format!("http://{group}/"), &scene.token), 0);
    assert_eq!(link.opened().len(), 1, "SYNs on the link");
    journey.cloud.kernel_equals_plan();
}

#[test]
fn a_balancer_gets_no_answer_while_its_backend_is_not_accepted_and_loses_the_one_it_waits_for_when_it_is_cut() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "waiting", ["10.1.0.0/24", "10.129.0.0/26"]);
    attach(&journey, "att-waiting", "10.0.43.0/24", json!({"reconcileConnections": true}));
    let (vip, group) = scene.balanced("far", "att-waiting", 6);
    let url = |path: &str| format!("http://{vip}{path}");
    let balancer = journey.cloud.watch_balancer(journey.producer);
    let arrived = || balancer.opened().iter().filter(|h| h.src.to_string().starts_with("10.0.43.")).count();
    assert_eq!(scene.status("far", "att-waiting"), PENDING);
    assert_eq!((scene.ask(&url("/")).as_str(), arrived()), (NO_ANSWER, 0));

    journey.change("att-waiting", &scene.on_list());
    assert_eq!(scene.status("far", "att-waiting"), ACCEPTED);
    assert!(scene.ask(&url("/headers")).starts_with("200 "));
    let link = journey.cloud.watch_link(journey.producer, scene.consumer.network);
    // A request that would be answered in time, were its connection not cut meanwhile.
    let mut waits = scene.vm.connect(&vip, &scene.token);
    assert_eq!(waits.hear(), "open");
    assert!(waits.ask("/headers").starts_with("HTTP/1.1 200"));
    let before = sent_to(&link, group);
    waits.say("/sleep?ms=3000");
    acceptance::until("the request has left", || {
        if sent_to(&link, group) > before { Ok(()) } else { Err("no byte".into()) }
    });
    let rejected = json!({"consumerAcceptLists": [], "consumerRejectLists": [scene.consumer.project]});
    journey.change("att-waiting", &rejected);
    assert_eq!(scene.status("far", "att-waiting"), "REJECTED");
    assert_eq!(waits.hear(), "HTTP/1.1 504 Gateway Timeout upstream request timeout");
    assert_eq!(scene.ask(&url("/")), NO_ANSWER, "a new connection is as silent");

    journey.change("att-waiting", &json!({"consumerRejectLists": [], "connectionPreference": "ACCEPT_AUTOMATIC"}));
    assert!(scene.ask(&url("/headers")).starts_with("200 "), "accepted again");
    journey.cloud.compute("DELETE", &regional(PRODUCER, "serviceAttachments/att-waiting"), json!({}));
    assert_eq!(scene.get("networkEndpointGroups/far")["pscData"]["pscConnectionStatus"], "CLOSED");
    // On the connection that was kept it is the answer that does not come.
    let silent = scene.ask(&url("/"));
    assert!([NO_ANSWER, "504 upstream request timeout"].contains(&silent.as_str()), "{silent}");
    journey.cloud.kernel_equals_plan();
}

fn sent_to(link: &acceptance::wire::Watch, to: Ipv4Addr) -> usize {
    link.count(|h| h.dst == std::net::IpAddr::V4(to) && h.payload_bytes > 0)
}

/// The consumers' subnets are the producer's own: their VMs have the address of the producer's balancer, their proxies dial
/// from the range of the producer's proxies.
#[test]
fn two_consumers_and_the_producer_with_the_same_ranges_reach_one_service_through_balancers_of_their_own() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    journey.attach("att-same", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let scenes = ["same-one", "same-two"].map(|name| Scene::new(&journey, name, ["10.0.1.0/24", "10.0.2.0/24"]));
    let fronts = scenes.each_ref().map(|scene| scene.balanced("far", "att-same", 30));
    assert_eq!(fronts[0], fronts[1], "equal addresses");
    let asks = || -> Vec<String> {
        std::thread::scope(|threads| {
            let ask =
                |(scene, name): (&Scene<'_>, &str)| scene.ask(&format!("http://{}/headers?of={name}", fronts[0].0));
            let all: Vec<_> = scenes.iter().zip(["one", "two"]).map(|pair| threads.spawn(move || ask(pair))).collect();
            all.into_iter().map(|one| one.join().expect("a call ends")).collect()
        })
    };
    for _ in 0..3 {
        let pages = asks();
        for (page, name) in pages.iter().zip(["one", "two"]) {
            assert!(page.starts_with("200 ") && page.contains(&format!("GET /headers?of={name}\n")), "{page}");
        }
        let peer = |page: &String| {
            page.lines().find(|l| l.starts_with("peer: ")).map(|l| l[..l.rfind(']').unwrap()].to_owned())
        };
        assert_ne!(peer(&pages[0]), peer(&pages[1]), "each has a NAT address of its own");
    }
    journey.cloud.kernel_equals_plan();
}

#[test]
fn what_a_group_cannot_be_is_refused_and_it_stays_while_a_backend_service_has_it() {
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "refused-1", ["10.1.0.0/24", "10.129.0.0/26"]);
    attach(&journey, "att-refused", "10.0.44.0/24", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let (_, group) = scene.balanced("far", "att-refused", 30);
    let at = |path: &str| format!("/compute/v1/{}", regional(&scene.consumer.project, path));
    let refusal = |method: &str, path: &str, body: Value| {
        let answer = journey.cloud.call(method, "compute.googleapis.com", &at(path), Some(body));
        (answer.status, answer.body["error"]["message"].as_str().unwrap_or_default().to_owned())
    };
    let place = json!({
        "name": "no", "networkEndpointType": "PRIVATE_SERVICE_CONNECT",
        "subnetwork": subnet_link(&scene.consumer.project, "consumer-subnet"),
        "pscTargetService": journey::link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/att-refused")),
    });
    let with = |field: &str, value: Value| {
        let mut body = place.clone();
        body[field] = value;
        body
    };
    for (body, status, says) in [
        (with("pscTargetService", json!("asia-northeast1-storage.googleapis.com")), 501, "resource.pscTargetService"),
        (with("pscTargetService", json!(null)), 400, "Required field 'resource.pscTargetService' not specified"),
        (with("cloudRun", json!({"service": "s"})), 400, "of type PRIVATE_SERVICE_CONNECT"),
        (with("defaultPort", json!(80)), 501, "defaultPort"),
        (with("subnetwork", json!(subnet_link(&scene.consumer.project, "proxies"))), 400, "must have purpose=PRIVATE"),
        (with("pscData", json!({"producerPort": 0})), 400, "producerPort"),
    ] {
        let (found, message) = refusal("POST", "networkEndpointGroups", body.clone());
        assert!(found == status && message.contains(says), "{body}: {found} {message}");
    }
    let (status, message) = refusal("DELETE", "networkEndpointGroups/far", json!({}));
    assert!(status == 400 && message.contains("is already being used by"), "{status} {message}");
    // Nobody else gets its address.
    let taken = json!({"name": "vm-taken", "machineType": format!("zones/{REGION}-b/machineTypes/e2-micro"),
        "networkInterfaces": [{"subnetwork": subnet_link(&scene.consumer.project, "consumer-subnet"), "networkIP": group.to_string()}]});
    let vms = format!("/compute/v1/projects/{}/zones/{REGION}-b/instances", scene.consumer.project);
    let answer = journey.cloud.call("POST", "compute.googleapis.com", &vms, Some(taken));
    assert!(answer.body.to_string().contains("is already being used"), "{}", answer.body);
}

#[test]
fn gcloud_makes_a_group_and_puts_it_behind_a_backend_service() {
    const TEST: &str = "gcloud_makes_a_group_and_puts_it_behind_a_backend_service";
    if !acceptance::installed("gcloud", TEST) {
        return;
    }
    let journey = JOURNEY.get(|| Journey::up(&[]));
    let scene = Scene::new(&journey, "commanded", ["10.1.0.0/24", "10.129.0.0/26"]);
    attach(&journey, "att-commanded", "10.0.45.0/24", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let here = format!("--project={} --region={REGION}", scene.consumer.project);
    let gcloud = |args: &str| journey.cloud.gcloud(&format!("compute {args} {here}")).ok();
    gcloud(&format!(
        "network-endpoint-groups create far --network-endpoint-type=private-service-connect --network=consumer-vpc \
         --subnet=consumer-subnet --producer-port=80 \
         --psc-target-service=projects/{PRODUCER}/regions/{REGION}/serviceAttachments/att-commanded"
    ));
    gcloud("backend-services create far --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP");
    gcloud(&format!(
        "backend-services add-backend far --network-endpoint-group=far --network-endpoint-group-region={REGION}"
    ));
    let shown = gcloud("network-endpoint-groups describe far --format='value(pscData.pscConnectionStatus)'");
    assert_eq!(shown, ACCEPTED);
    let vip = scene.balancer("far", json!({"defaultService": scene.link("backendServices/far")}));
    assert!(scene.ask(&format!("http://{vip}/headers")).starts_with("200 "));
}

#[test]
fn a_backend_is_reached_on_kept_connections_while_the_host_is_away_and_by_the_next_proxy_and_host() {
    let journey = Journey::up(&[]);
    let scene = Scene::new(&journey, "restarted", ["10.1.0.0/24", "10.129.0.0/26"]);
    journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let (vip, _) = scene.balanced("far", "att", 30);
    let ask = || scene.ask(&format!("http://{vip}/headers"));
    assert!(ask().starts_with("200 "));
    let mut client = scene.vm.connect(&vip, &scene.token);
    assert_eq!(client.hear(), "open");
    {
        let _held = journey.cloud.hold_supervisor();
        journey.cloud.kill("host");
        assert!(client.ask("/headers").starts_with("HTTP/1.1 200"), "without a host");
    }
    journey.cloud.is_back("host");
    journey.cloud.kill("proxy");
    journey.cloud.is_back("proxy");
    // The next proxy has kept no connection, and gets its sockets from the next host.
    acceptance::until("an answer through the next proxy", || match ask() {
        page if page.starts_with("200 ") => Ok(()),
        other => Err(other),
    });
    journey.cloud.kernel_equals_plan();
}
