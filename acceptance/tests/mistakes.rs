//! The mistakes that people make along the walkthrough, one at a time, and what `tombolo why` says of each. Every
//! verdict is held against what an independent client sees on the same way.

use acceptance::{
    REGION, Said, ZONE,
    journey::{Consumer, Journey, Shared, Vm, regional, subnet_link},
    until,
};
use serde_json::{Value, json};
use tombolo::journey::{self, CONSUMER, IMAGE, PRODUCER};

static JOURNEY: Shared<Journey> = Shared::new();

fn journey() -> std::sync::Arc<Journey> {
    JOURNEY.get(|| Journey::published(&[]))
}

/// What `tombolo why` says.
#[track_caller]
fn why(journey: &Journey, vm: &Vm<'_>, to: &str, more: &[&str]) -> Value {
    let words = [&["--json", "--project", &vm.project], more, &[&vm.name, to]].concat();
    let Said { code, out, err } = journey.cloud.tombolo("why", &words);
    assert!(matches!(code, Some(0 | 1)), "{to}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out} {err}"))
}

/// Whether a connection comes about within a second, asked of the VM's own kernel.
fn connects(vm: &Vm<'_>, to: &str) -> bool {
    let (host, port) = to.rsplit_once(':').unwrap_or((to, "80"));
    vm.sh(&format!("timeout 1.3 bash -c 'exec 3<>/dev/tcp/{host}/{port}'")).code == Some(0)
}

/// Asks about a connection, and holds the verdict against the wire.
#[track_caller]
fn packet(journey: &Journey, vm: &Vm<'_>, mistake: &str, to: &str, verdict: &str) {
    let said = why(journey, vm, to, &[]);
    assert_eq!(said["verdict"], verdict, "{mistake}: {said}");
    assert_eq!(said["reached"], verdict == "reached", "{mistake}: {said}");
    assert_eq!(connects(vm, to), verdict == "reached", "{mistake}: the wire says otherwise than {said}");
}

/// A rule of a network's firewall; `more` overrides and adds fields.
fn rule(project: &str, name: &str, more: Value) -> Value {
    let mut rule = json!({"name": name, "network": journey::link(project, "global/networks/consumer-vpc")});
    for (field, value) in more.as_object().expect("fields") {
        rule[field] = value.clone();
    }
    rule
}

#[test]
fn every_mistake_in_a_firewall_is_named_by_its_rule() {
    let journey = journey();
    let project = "walls-1";
    let consumer = journey.other_consumer(project, "10.1.0.0/24");
    let caller = consumer.vm("caller", Some("10.1.0.2"));
    let db = consumer.vm("db", Some("10.1.0.3"));
    let mut server = db.talk("python3 -m http.server 5432 >/dev/null 2>&1 & while read -r x; do echo up; done");
    assert_eq!(server.ask("up?"), "up");
    until("the server listens", || match db.sh("exec 3<>/dev/tcp/127.0.0.1/5432").code {
        Some(0) => Ok(()),
        _ => Err("not yet".to_owned()),
    });

    let db_at = "10.1.0.3:5432";
    let allow = |more: Value| {
        let mut fields = json!({"direction": "INGRESS", "allowed": [{"IPProtocol": "tcp", "ports": ["5432"]}]});
        fields.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        fields
    };
    let deny = |more: Value| {
        let mut fields = json!({"direction": "EGRESS", "denied": [{"IPProtocol": "all"}]});
        fields.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        fields
    };
    let ok = || ("ok", allow(json!({})));
    type Rules = Vec<(&'static str, Value)>;
    let cases: Vec<(&str, Rules, &str, &str)> = vec![
        ("nothing allows it", vec![], db_at, "implied-deny"),
        ("no mistake", vec![ok()], db_at, "reached"),
        ("the VM by its name", vec![ok()], "db:5432", "reached"),
        (
            "a server that is not there",
            vec![("all", allow(json!({"allowed": [{"IPProtocol": "tcp"}]})))],
            "10.1.0.3:81",
            "not-listening",
        ),
        (
            "another port is allowed",
            vec![("web", allow(json!({"allowed": [{"IPProtocol": "tcp", "ports": ["5433"]}]})))],
            db_at,
            "implied-deny",
        ),
        (
            "the other protocol",
            vec![("udp", allow(json!({"allowed": [{"IPProtocol": "udp", "ports": ["5432"]}]})))],
            db_at,
            "implied-deny",
        ),
        ("another source", vec![("elsewhere", allow(json!({"sourceRanges": ["10.9.0.0/16"]})))], db_at, "implied-deny"),
        (
            "a source tag that the caller lacks",
            vec![("tagged", allow(json!({"sourceTags": ["clients"]})))],
            db_at,
            "implied-deny",
        ),
        (
            "a target tag that the server lacks",
            vec![("tagged", allow(json!({"targetTags": ["databases"]})))],
            db_at,
            "tag-missing",
        ),
        ("a rule that is switched off", vec![("off", allow(json!({"disabled": true})))], db_at, "rule-disabled"),
        (
            "a deny before the allow",
            vec![ok(), ("no", json!({"direction": "INGRESS", "priority": 900, "denied": [{"IPProtocol": "tcp"}]}))],
            db_at,
            "ingress-firewall",
        ),
        (
            "a deny behind the allow",
            vec![ok(), ("no", json!({"direction": "INGRESS", "priority": 1100, "denied": [{"IPProtocol": "tcp"}]}))],
            db_at,
            "reached",
        ),
        (
            "at one priority deny wins",
            vec![ok(), ("no", json!({"direction": "INGRESS", "denied": [{"IPProtocol": "tcp"}]}))],
            db_at,
            "ingress-firewall",
        ),
        ("nothing may leave", vec![ok(), ("shut", deny(json!({})))], db_at, "egress-firewall"),
        (
            "that destination is denied",
            vec![ok(), ("shut", deny(json!({"destinationRanges": ["10.1.0.3/32"]})))],
            db_at,
            "egress-firewall",
        ),
        (
            "another destination is denied",
            vec![ok(), ("shut", deny(json!({"destinationRanges": ["10.1.0.4/32"]})))],
            db_at,
            "reached",
        ),
        (
            "an egress deny for a tag nobody has",
            vec![ok(), ("shut", deny(json!({"targetTags": ["nobody"]})))],
            db_at,
            "reached",
        ),
    ];
    let rules = format!("projects/{project}/global/firewalls");
    for (mistake, walls, to, verdict) in cases {
        for (name, fields) in &walls {
            journey.cloud.compute("POST", &rules, rule(project, name, fields.clone()));
        }
        if to.starts_with("db") {
            assert_eq!(why(&journey, &caller, to, &[])["verdict"], verdict, "{mistake}");
        } else {
            packet(&journey, &caller, mistake, to, verdict);
        }
        for (name, _) in &walls {
            journey.cloud.compute("DELETE", &format!("{rules}/{name}"), json!({}));
        }
    }
}

#[test]
fn every_address_that_leads_nowhere_is_told_for_what_it_is() {
    let journey = journey();
    let project = "lost-1";
    let consumer = journey.other_consumer(project, "10.1.0.0/24");
    let caller = consumer.vm("caller", Some("10.1.0.2"));
    let _off = consumer.vm("off", Some("10.1.0.4"));
    consumer.allow("tcp", 80);
    let vip = journey.vip.clone();
    journey.cloud.compute(
        "POST",
        &regional(project, "addresses"),
        json!({"name": "kept", "addressType": "INTERNAL", "address": "10.1.0.50", "subnetwork": subnet_link(project, "consumer-subnet")}),
    );
    journey.cloud.compute("POST", &format!("projects/{project}/zones/{ZONE}/instances/off/stop"), json!({}));
    for (mistake, to, verdict) in [
        ("an address nobody has", "10.1.0.77", "address-vacant"),
        ("an address that is only reserved", "10.1.0.50", "address-unused"),
        ("the producer's own address", vip.as_str(), "other-network"),
        ("an address of the internet", "8.8.8.8", "no-route"),
        ("a VM that is switched off", "10.1.0.4", "vm-off"),
    ] {
        packet(&journey, &caller, mistake, to, verdict);
    }
    let nobody = journey.cloud.tombolo("why", &["--project", project, "nobody", "10.1.0.2"]);
    assert_eq!((nobody.code, nobody.err.contains("no VM is called \"nobody\"")), (Some(3), true), "{nobody:?}");
}

/// Endpoints of one consumer, each with an attachment that has its own mistake.
#[test]
fn every_state_of_an_endpoint_says_what_holds_it_and_which_command_mends_that() {
    let journey = journey();
    let project = "held-1";
    let consumer = journey.other_consumer(project, "10.1.0.0/24");
    let caller = consumer.vm("caller", Some("10.1.0.2"));
    let entry = |project: &str, limit: u32| json!({"projectIdOrNum": project, "connectionLimit": limit});
    let by_network = |project: &str| {
        json!({
            "networkUrl": journey::link(project, "global/networks/consumer-vpc"), "connectionLimit": 1
        })
    };
    let purpose = Some("PRIVATE_SERVICE_CONNECT");
    let nat = |name: &str, range: &str| {
        journey::create_subnet(&journey.client(), PRODUCER, "producer-vpc", name, range, purpose).unwrap();
        json!([subnet_link(PRODUCER, name)])
    };
    let tiny = nat("nat-tiny", "10.0.97.0/29");
    // A NAT subnet serves one attachment.
    let count = std::cell::Cell::new(100);
    let attach = |name: &str, more: Value| {
        let number = count.replace(count.get() + 1);
        let mut fields = json!({"natSubnets": nat(&format!("nat-{number}"), &format!("10.0.{number}.0/28"))});
        fields.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        journey.attach(name, &fields);
    };
    let ask = |mistake: &str, endpoint: &str, verdict: &str| packet(&journey, &caller, mistake, endpoint, verdict);

    attach("right", json!({"consumerAcceptLists": [entry(project, 10)]}));
    let right = consumer.endpoint("right", "right", None);
    ask("no mistake", &right, "reached");
    ask("another port", &format!("{right}:8080"), "port-not-served");

    attach("automatic", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    ask("no list is needed", &consumer.endpoint("automatic", "automatic", None), "reached");

    attach("empty-list", json!({}));
    ask("an empty list", &consumer.endpoint("empty-list", "empty-list", None), "endpoint-not-listed");

    attach("typo", json!({"consumerAcceptLists": [entry(CONSUMER, 10)]}));
    let typo = consumer.endpoint("typo", "typo", None);
    ask("the list names another project", &typo, "endpoint-not-listed");
    let mend = why(&journey, &caller, &typo, &[])["mend"].clone();
    let says = mend.as_str().is_some_and(|m| m.contains("service-attachments update typo") && m.contains(project));
    assert!(says, "the command that mends it: {mend}");

    let other = journey.other_consumer("held-2", "10.1.0.0/24");
    attach("other-network", json!({"consumerAcceptLists": [by_network(&other.project)]}));
    ask(
        "the list names another network",
        &consumer.endpoint("other-network", "other-network", None),
        "endpoint-not-listed",
    );

    attach("full", json!({"consumerAcceptLists": [entry(project, 1)]}));
    let first = consumer.endpoint("full-1", "full", None);
    let second = consumer.endpoint("full-2", "full", None);
    ask("within the limit", &first, "reached");
    ask("over the limit", &second, "endpoint-at-limit");

    attach("rejects", json!({"consumerAcceptLists": [entry(CONSUMER, 1)], "consumerRejectLists": [project]}));
    let rejected = consumer.endpoint("rejects", "rejects", None);
    ask("on the reject list", &rejected, "endpoint-rejected");
    journey.change("rejects", &json!({"consumerAcceptLists": [entry(project, 1)], "consumerRejectLists": []}));
    ask("taken off the reject list, not reconsidered", &rejected, "endpoint-stays-rejected");

    attach("forbidden", json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    journey.forbid(project);
    let forbidden = consumer.endpoint("forbidden", "forbidden", None);
    ask("an organisation policy forbids the consumer", &forbidden, "endpoint-forbidden-by-policy");
    journey.forbid_nobody();
    ask("the policy is gone, not reconsidered", &forbidden, "endpoint-stays-rejected");

    attach("taken-off", json!({"consumerAcceptLists": [entry(project, 10)], "reconcileConnections": true}));
    let taken_off = consumer.endpoint("taken-off", "taken-off", None);
    ask("still on the list", &taken_off, "reached");
    journey.change("taken-off", &json!({"consumerAcceptLists": [entry(CONSUMER, 1)]}));
    ask("taken off the accept list", &taken_off, "endpoint-not-listed");

    attach("gone", json!({"consumerAcceptLists": [entry(project, 10)]}));
    let gone = consumer.endpoint("gone", "gone", None);
    journey.cloud.compute("DELETE", &regional(PRODUCER, "serviceAttachments/gone"), json!({}));
    ask("the attachment was deleted", &gone, "endpoint-closed");
    attach("gone", json!({"consumerAcceptLists": [entry(project, 10)]}));
    ask("an attachment made anew under the old name", &gone, "endpoint-closed");

    journey.attach("tiny", &json!({"natSubnets": tiny, "consumerAcceptLists": [entry(project, 10)]}));
    let endpoints: Vec<String> = (1..=5).map(|n| consumer.endpoint(&format!("tiny-{n}"), "tiny", None)).collect();
    ask("the last NAT address", &endpoints[3], "reached");
    ask("no NAT address is left", &endpoints[4], "nat-addresses-exhausted");

    let shut =
        json!({"direction": "EGRESS", "denied": [{"IPProtocol": "tcp"}], "destinationRanges": [format!("{right}/32")]});
    let rules = format!("projects/{project}/global/firewalls");
    journey.cloud.compute("POST", &rules, rule(project, "shut", shut));
    ask("the consumer's own firewall denies the endpoint", &right, "egress-firewall");
    ask("and no other", &first, "reached");
}

#[test]
fn a_load_balancer_and_an_endpoint_are_reached_from_their_own_region_unless_access_is_global() {
    let journey = journey();
    let project = "regions-1";
    let consumer = journey.other_consumer(project, "10.1.0.0/24");
    let (near, far) = (consumer.vm("near", None), consumer.vm_abroad("us-west1-b", "far", "10.2.0.0/24"));
    let client = journey.client();
    let subnet = |of: &str, vpc: &str, name: &str, range: &str, purpose: &str| {
        journey::create_subnet(&client, of, vpc, name, range, Some(purpose)).unwrap();
    };
    subnet(PRODUCER, "producer-vpc", "nat-regions", "10.0.96.0/28", "PRIVATE_SERVICE_CONNECT");
    let nat = json!([subnet_link(PRODUCER, "nat-regions")]);
    journey.attach("regions", &json!({"natSubnets": nat, "connectionPreference": "ACCEPT_AUTOMATIC"}));
    let endpoint = consumer.endpoint("regions", "regions", None);

    subnet(project, "consumer-vpc", "proxies", "10.5.0.0/24", "REGIONAL_MANAGED_PROXY");
    let at = |path: &str| journey::link(project, &format!("regions/{REGION}/{path}"));
    let make = |collection: &str, body: Value| journey.cloud.compute("POST", &regional(project, collection), body);
    make("backendServices", json!({"name": "b", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP"}));
    make("urlMaps", json!({"name": "m", "defaultService": at("backendServices/b")}));
    make("targetHttpProxies", json!({"name": "p", "urlMap": at("urlMaps/m")}));
    let front = |name: &str, global: bool| {
        make(
            "forwardingRules",
            json!({
                "name": name, "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
                "network": journey::link(project, "global/networks/consumer-vpc"), "allowGlobalAccess": global,
                "subnetwork": subnet_link(project, "consumer-subnet"), "target": at("targetHttpProxies/p"),
            }),
        );
        let rule = journey.cloud.get(&regional(project, &format!("forwardingRules/{name}")));
        rule["IPAddress"].as_str().unwrap().to_owned()
    };
    let (regional, global) = (front("regional", false), front("global", true));
    for (what, to, from_far) in [
        ("an endpoint", &endpoint, "other-region"),
        ("a load balancer", &regional, "other-region"),
        ("a load balancer with global access", &global, "reached"),
    ] {
        packet(&journey, &near, what, to, "reached");
        packet(&journey, &far, what, to, from_far);
    }
}

/// A service of the producer that is there when this returns, ready or not.
fn deploy(journey: &Journey, name: &str, container: Value, more: Value) {
    let mut service = json!({"ingress": "INGRESS_TRAFFIC_ALL", "template": {"containers": [container]}});
    for (field, value) in more.as_object().expect("fields") {
        service[field] = value.clone();
    }
    let (host, collection) = ("run.googleapis.com", format!("/v2/projects/{PRODUCER}/locations/{REGION}/services"));
    let mut operation = journey.cloud.call("POST", host, &format!("{collection}?serviceId={name}"), Some(service)).body;
    while operation["done"] != true {
        let name = operation["name"].as_str().unwrap_or_else(|| panic!("no operation: {operation}")).to_owned();
        operation = journey.cloud.call("POST", host, &format!("/v2/{name}:wait"), Some(json!({"timeout": "10s"}))).body;
    }
    let member = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}});
    journey.cloud.call("POST", host, &format!("{collection}/{name}:setIamPolicy"), Some(member));
}

/// One load balancer whose URL map leads to every mistake by its path, called from a VM of the producer's.
#[test]
fn every_way_in_which_a_request_fails_is_told_from_every_other() {
    let journey = journey();
    let cloud = &journey.cloud;
    let client = journey.client();
    let hello = json!({"image": IMAGE, "env": [{"name": "HELLO_TEST", "value": "1"}]});
    let with = |fields: Value| {
        let mut container = hello.clone();
        container.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
        container
    };
    deploy(&journey, "open", hello.clone(), json!({}));
    deploy(&journey, "shut", hello.clone(), json!({"ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY"}));
    deploy(&journey, "crashes", with(json!({"args": ["--"], "command": ["/no/such/program"]})), json!({}));
    deploy(&journey, "slow", hello.clone(), json!({"template": {"containers": [hello], "timeout": "1s"}}));

    let at = |path: &str| journey::link(PRODUCER, &format!("regions/{REGION}/{path}"));
    let make = |collection: &str, body: Value| cloud.compute("POST", &regional(PRODUCER, collection), body);
    let mut paths = Vec::new();
    let mut lead = |path: &str, backend: Option<Value>| {
        let mut service = json!({"name": path, "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP"});
        if let Some(run) = backend {
            make("networkEndpointGroups", json!({"name": path, "networkEndpointType": "SERVERLESS", "cloudRun": run}));
            service["backends"] = json!([{"group": at(&format!("networkEndpointGroups/{path}"))}]);
        }
        make("backendServices", service);
        paths.push(json!({"paths": [format!("/{path}"), format!("/{path}/*")], "service": at(&format!("backendServices/{path}"))}));
    };
    lead("open", Some(json!({"service": "open"})));
    lead("shut", Some(json!({"service": "shut"})));
    lead("crashes", Some(json!({"service": "crashes"})));
    lead("missing", Some(json!({"service": "no-such-service"})));
    lead("untagged", Some(json!({"service": "open", "tag": "blue"})));
    lead("masked", Some(json!({"urlMask": "<service>.example.com"})));
    lead("bare", None);
    let matcher =
        json!({"name": "by-path", "defaultService": at("backendServices/hello-backend-service"), "pathRules": paths});
    make(
        "urlMaps",
        json!({
            "name": "mistakes", "defaultService": at("backendServices/hello-backend-service"),
            "hostRules": [{"hosts": ["*"], "pathMatcher": "by-path"}], "pathMatchers": [matcher],
        }),
    );
    make("targetHttpProxies", json!({"name": "mistakes", "urlMap": at("urlMaps/mistakes")}));
    make(
        "forwardingRules",
        json!({
            "name": "mistakes", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80", "target": at("targetHttpProxies/mistakes"),
            "network": journey::link(PRODUCER, "global/networks/producer-vpc"), "subnetwork": at("subnetworks/producer-subnet"),
        }),
    );
    let vip = cloud.get(&regional(PRODUCER, "forwardingRules/mistakes"))["IPAddress"].as_str().unwrap().to_owned();

    let project = "callers";
    let consumer: Consumer<'_> = journey.other_consumer(project, "10.1.0.0/24");
    let purpose = Some("PRIVATE_SERVICE_CONNECT");
    journey::create_subnet(&client, PRODUCER, "producer-vpc", "nat-callers", "10.0.98.0/24", purpose).unwrap();
    journey.attach(
        "mistakes",
        &json!({
            "targetService": at("forwardingRules/mistakes"), "natSubnets": [subnet_link(PRODUCER, "nat-callers")],
            "consumerAcceptLists": [{"projectIdOrNum": project, "connectionLimit": 10}],
        }),
    );
    let endpoint = consumer.endpoint("mistakes", "mistakes", None);
    let vm = consumer.vm("caller", None);
    let account = format!("stranger@{project}.iam.gserviceaccount.com");
    let made = cloud.call(
        "POST",
        "iam.googleapis.com",
        &format!("/v1/projects/{project}/serviceAccounts"),
        Some(json!({"accountId": "stranger"})),
    );
    assert_eq!(made.status, 200, "{}", made.body);

    let good = vm.id_token(&journey.url);
    let bad = vm.id_token("https://elsewhere.example.com");
    let none = String::new();
    let (anonymous, elsewhere, stranger): (&[&str], &[&str], &[&str]) =
        (&["--anonymous"], &["--audience", "https://elsewhere.example.com"], &["--as", &account]);
    for (mistake, path, flags, token, verdict, status) in [
        ("no mistake", "/", &[][..], &good, "reached", 200),
        ("no token", "/", anonymous, &none, "no-token", 403),
        ("the audience of another URL", "/", elsewhere, &bad, "wrong-audience", 401),
        ("an account without the role", "/", stranger, &none, "role-missing", 403),
        ("a service for everybody", "/open/", anonymous, &none, "reached", 200),
        ("internal ingress from inside", "/shut/", anonymous, &none, "reached", 200),
        ("a NEG that names no service", "/missing/", anonymous, &none, "no-such-service", 404),
        ("a NEG that names no tag", "/untagged/", anonymous, &none, "no-such-tag", 404),
        ("a mask that does not fit", "/masked/", anonymous, &none, "mask-mismatch", 404),
        ("a backend service without a backend", "/bare/", anonymous, &none, "no-backend", 404),
        ("a container that cannot start", "/crashes/", anonymous, &none, "container-does-not-start", 404),
    ] {
        let url = format!("http://{endpoint}{path}");
        let said = why(&journey, &vm, &url, flags);
        assert_eq!((&said["verdict"], &said["status"]), (&json!(verdict), &json!(status)), "{mistake}: {said}");
        let same_caller = flags != stranger;
        assert!(!same_caller || vm.status(&url, token) == status, "{mistake}: the wire says otherwise than {said}");
    }
    // From inside the producer's own network, without an endpoint.
    let hops = why(&journey, &vm, &format!("http://{endpoint}/"), &[])["hops"].clone();
    assert_eq!(hops[1]["before"]["dst"], json!(endpoint), "{hops}");
    assert_eq!(hops[1]["after"]["dst"], json!(vip), "{hops}");
    assert!(hops[1]["after"]["src"].as_str().is_some_and(|nat| nat.starts_with("10.0.98.")), "{hops}");

    // The role is taken away from the account that had it.
    let policy = format!("/v1/projects/{PRODUCER}/locations/{REGION}/services/hello-service");
    let grant = |member: String| {
        let body = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": [member]}]}});
        assert_eq!(cloud.call("POST", "run.googleapis.com", &format!("{policy}:setIamPolicy"), Some(body)).status, 200);
    };
    let before = cloud.call("GET", "run.googleapis.com", &format!("{policy}:getIamPolicy"), None).body;
    grant(format!("serviceAccount:{account}"));
    let url = format!("http://{endpoint}/");
    assert_eq!(why(&journey, &vm, &url, &[])["verdict"], "role-missing", "the role on the wrong account");
    assert_eq!(vm.status(&url, &good), 403);
    assert_eq!(why(&journey, &vm, &url, stranger)["verdict"], "reached", "and that one may");
    let body = json!({"policy": {"bindings": before["bindings"]}});
    cloud.call("POST", "run.googleapis.com", &format!("{policy}:setIamPolicy"), Some(body));

    // The service is deleted under the load balancer.
    cloud.call(
        "DELETE",
        "run.googleapis.com",
        &format!("/v2/projects/{PRODUCER}/locations/{REGION}/services/open"),
        None,
    );
    let url = format!("http://{endpoint}/open/");
    until("the service is gone", || match why(&journey, &vm, &url, anonymous)["verdict"].as_str() {
        Some("no-such-service") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// What the API refuses before any packet could be lost, in words that name the mistake.
#[test]
fn mistakes_that_no_packet_needs_are_refused_when_they_are_made() {
    let journey = journey();
    let project = "refused";
    let consumer = journey.other_consumer(project, "10.1.0.0/24");
    let compute = |path: &str, body: Value| {
        journey.cloud.call("POST", "compute.googleapis.com", &format!("/compute/v1/{path}"), Some(body))
    };
    let network = journey::link(project, "global/networks/consumer-vpc");
    let subnet = |name: &str, range: &str| json!({"name": name, "network": network, "ipCidrRange": range});
    let attachment = |name: &str, nat: &str, accept: Value| {
        json!({
            "name": name, "connectionPreference": "ACCEPT_MANUAL", "natSubnets": [subnet_link(PRODUCER, nat)],
            "targetService": journey::link(PRODUCER, &format!("regions/{REGION}/forwardingRules/hello-forwarding-rule")),
            "consumerAcceptLists": accept,
        })
    };
    let endpoint = |fields: Value| {
        let mut body = json!({
            "name": "e", "network": network, "subnetwork": subnet_link(project, "consumer-subnet"),
            "target": journey::link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/hello-service-attachment")),
        });
        body.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
        body
    };
    let elsewhere = journey::link(PRODUCER, "regions/us-central1/serviceAttachments/hello-service-attachment");
    for (mistake, path, body, says) in [
        (
            "an attachment of another region",
            regional(project, "forwardingRules"),
            endpoint(json!({"target": elsewhere})),
            "region",
        ),
        (
            "an attachment that does not exist",
            regional(project, "forwardingRules"),
            endpoint(json!({"target": journey::link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/no"))})),
            "not found",
        ),
        (
            "an address outside the subnet",
            regional(project, "forwardingRules"),
            endpoint(json!({"IPAddress": "10.2.0.5"})),
            "10.2.0.5",
        ),
        ("overlapping subnets", regional(project, "subnetworks"), subnet("twice", "10.1.0.128/25"), "10.1.0.128/25"),
        ("a range that is no block", regional(project, "subnetworks"), subnet("odd", "10.3.0.1/24"), "10.3.0.1/24"),
        (
            "a list with a project that does not exist",
            regional(PRODUCER, "serviceAttachments"),
            attachment(
                "typo-list",
                "producer-psc-subnet",
                json!([{"projectIdOrNum": "no-such-project-1", "connectionLimit": 1}]),
            ),
            "no-such-project-1",
        ),
        (
            "a NAT subnet of another purpose",
            regional(PRODUCER, "serviceAttachments"),
            attachment("wrong-nat", "producer-subnet", json!([])),
            "PRIVATE_SERVICE_CONNECT",
        ),
    ] {
        let answer = compute(&path, body);
        let text = answer.body.to_string();
        assert!((400..500).contains(&answer.status) && text.contains(says), "{mistake}: {} {text}", answer.status);
    }
    // A load balancer where no proxy-only subnet is.
    journey::create_subnet(&journey.client(), project, "consumer-vpc", "front", "10.4.0.0/24", None).unwrap();
    let at = |path: &str| journey::link(project, &format!("regions/{REGION}/{path}"));
    let make = |collection: &str, body: Value| journey.cloud.compute("POST", &regional(project, collection), body);
    make("backendServices", json!({"name": "b", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP"}));
    make("urlMaps", json!({"name": "m", "defaultService": at("backendServices/b")}));
    make("targetHttpProxies", json!({"name": "p", "urlMap": at("urlMaps/m")}));
    let rule = compute(
        &regional(project, "forwardingRules"),
        json!({
            "name": "f", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80", "network": network,
            "subnetwork": subnet_link(project, "front"), "target": at("targetHttpProxies/p"),
        }),
    );
    let text = rule.body.to_string();
    assert!(rule.status == 400 && text.contains("proxy-only subnetwork is required"), "no proxy-only subnet: {text}");
    assert_eq!(consumer.project, project);
}
